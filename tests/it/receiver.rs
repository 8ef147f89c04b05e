//! An HTTP receiver of callbacks, good or bad, with TLS or without. It remembers every request.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;

use crate::recorder::eventually;

/// What it does with a request.
#[derive(Clone, PartialEq, Debug)]
pub enum Manner {
    Take,
    Status(u16),
    /// 307 to there.
    Redirect(String),
    /// Reads and never answers.
    Hang,
    /// Answers with what is no HTTP.
    Garbage,
    /// 200 and 10 MB.
    Huge,
    /// Closes the connection in the middle of its answer's head.
    Break,
}

#[derive(Clone, Debug)]
pub struct Request {
    pub target: String,
    pub signature: String,
    pub content_type: String,
    pub body: Vec<u8>,
    pub event: Value,
}

impl Request {
    /// `session.started`
    pub fn name(&self) -> String {
        let name = self.event["type"].as_str().unwrap();
        name.strip_prefix("io.sipreel.").unwrap().strip_suffix(".v1").unwrap().to_owned()
    }
}

pub struct Receiver {
    pub address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    manner: Arc<Mutex<Manner>>,
    stopped: Arc<AtomicBool>,
}

impl Receiver {
    pub fn start(manner: Manner) -> Receiver {
        Receiver::listen(TcpListener::bind("127.0.0.1:0").unwrap(), manner, None)
    }

    /// Where nobody has listened so far.
    pub fn at(address: SocketAddr) -> Receiver {
        Receiver::listen(TcpListener::bind(address).unwrap(), Manner::Take, None)
    }

    /// With this certificate.
    pub fn tls(authority: &Authority) -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Receiver::listen(listener, Manner::Take, Some(authority.server.clone()))
    }

    fn listen(listener: TcpListener, manner: Manner, tls: Option<Arc<ServerConfig>>) -> Receiver {
        let receiver = Receiver {
            address: listener.local_addr().unwrap(),
            requests: Arc::default(),
            manner: Arc::new(Mutex::new(manner)),
            stopped: Arc::default(),
        };
        let (requests, manner) = (receiver.requests.clone(), receiver.manner.clone());
        let stopped = receiver.stopped.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let (requests, manner, tls) = (requests.clone(), manner.clone(), tls.clone());
                thread::spawn(move || match tls {
                    None => serve(stream, &requests, &manner),
                    Some(config) => {
                        let connection = ServerConnection::new(config).unwrap();
                        serve(StreamOwned::new(connection, stream), &requests, &manner);
                    }
                });
            }
        });
        receiver
    }

    pub fn behave(&self, manner: Manner) {
        *self.manner.lock().unwrap() = manner;
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// Names of the events so far, alarms left out.
    pub fn names(&self) -> Vec<String> {
        self.requests().iter().map(Request::name).filter(|name| name != "alarm").collect()
    }

    /// The requests, when there is one of this event.
    #[track_caller]
    pub fn when(&self, name: &str, count: usize) -> Vec<Request> {
        eventually(&format!("{count} times {name}"), || {
            let requests = self.requests();
            let found = requests.iter().filter(|request| request.name() == name).count();
            (found >= count).then_some(requests)
        })
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        // The listener's thread wakes up, and with its end the address is free.
        let _ = TcpStream::connect(self.address);
        thread::sleep(Duration::from_millis(20));
    }
}

fn serve(stream: impl Read + Write, requests: &Mutex<Vec<Request>>, manner: &Mutex<Manner>) {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read(&mut stream) {
        let manner = manner.lock().unwrap().clone();
        requests.lock().unwrap().push(request);
        if answer(stream.get_mut(), &manner).is_none() {
            return;
        }
    }
}

/// `None`: the connection is over.
fn read(stream: &mut impl BufRead) -> Option<Request> {
    let mut line = || {
        let mut line = String::new();
        stream.read_line(&mut line).ok().filter(|n| *n > 0)?;
        Some(line.trim_end().to_owned())
    };
    let start = line()?;
    let (mut length, mut signature, mut content_type) = (0, String::new(), String::new());
    loop {
        let field = line()?;
        let Some((name, value)) = field.split_once(": ") else { break };
        match name.to_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap(),
            "sipreel-signature" => signature = value.to_owned(),
            "content-type" => content_type = value.to_owned(),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    let event = serde_json::from_slice(&body).unwrap();
    let target = start.strip_prefix("POST ").unwrap().split(' ').next().unwrap().to_owned();
    Some(Request { target, signature, content_type, body, event })
}

fn answer(stream: &mut impl Write, manner: &Manner) -> Option<()> {
    let empty = |status: &str, field: &str| format!("HTTP/1.1 {status}\r\n{field}Content-Length: 0\r\n\r\n");
    let text = match manner {
        Manner::Take => empty("204 No Content", ""),
        Manner::Status(code) => empty(&format!("{code} Because"), ""),
        Manner::Redirect(to) => empty("307 Elsewhere", &format!("Location: {to}\r\n")),
        Manner::Hang => loop {
            thread::park();
        },
        Manner::Garbage => "\u{1}\u{2}HELLO\r\n\r\n".repeat(3),
        Manner::Break => "HTTP/1.1 200 O".to_owned(),
        Manner::Huge => {
            let size = 10_000_000;
            stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n").as_bytes()).ok()?;
            stream.write_all(&vec![b'x'; size]).ok()?;
            return Some(());
        }
    };
    stream.write_all(text.as_bytes()).and_then(|()| stream.flush()).ok()?;
    (!matches!(manner, Manner::Garbage | Manner::Break)).then_some(())
}

/// A certificate authority of its own, and a server on loopback that it has signed for.
pub struct Authority {
    /// PEM.
    pub certificate: String,
    server: Arc<ServerConfig>,
}

impl Authority {
    pub fn new() -> Authority {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap().pem();
        let issuer = rcgen::Issuer::new(params, key);
        let server_key = rcgen::KeyPair::generate().unwrap();
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let server = rcgen::CertificateParams::new(names).unwrap().signed_by(&server_key, &issuer).unwrap();
        let chain = vec![CertificateDer::from_pem_slice(server.pem().as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(server_key.serialize_pem().as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        Authority { certificate, server: Arc::new(server) }
    }
}

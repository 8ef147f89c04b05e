//! SIP over TLS, with openssl and the load tool as peers: versions, certificates of both sides, reload, peers that stall.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use serde_json::Value;
use tempfile::TempDir;

use crate::peers;
use crate::recorder::{Recorder, Setup, eventually, number};
use crate::src::Call;

const OPTIONS: &str = "OPTIONS sip:srs@127.0.0.1 SIP/2.0\r\nVia: SIP/2.0/TLS 127.0.0.1:5061;branch=z9hG4bK1\r\n\
     From: <sip:src@example.com>;tag=1\r\nTo: <sip:srs@example.com>\r\nCall-ID: 1\r\nCSeq: 1 OPTIONS\r\n\
     Max-Forwards: 70\r\nContent-Length: 0\r\n\r\n";

/// A CA, and files in a directory of its own.
struct Authority {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Authority { dir, issuer: Issuer::new(params, key) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// `NAME.pem` and `NAME.key`.
    fn issue(&self, name: &str, names: &[&str], uri: Option<&str>) {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names.extend(uri.map(|uri| SanType::URI(uri.try_into().unwrap())));
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(self.path(&format!("{name}.pem")), certificate.pem()).unwrap();
        fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    /// A recorder with a certificate of this CA; `mutual`: that wants one of its peers.
    fn recorder(&self, setup: Setup, mutual: bool) -> (Recorder, SocketAddr) {
        self.issue("srs", &["127.0.0.1"], None);
        let setup = setup.flag("--sip-tls", "127.0.0.1:0");
        let setup = setup.flag("--tls-cert", &self.text("srs.pem")).flag("--tls-key", &self.text("srs.key"));
        let setup = if mutual { setup.flag("--tls-client-ca", &self.text("ca.pem")) } else { setup };
        let mut recorder = setup.start();
        let address = recorder.logged("ready")["sip_tls"].as_str().unwrap().parse().unwrap();
        (recorder, address)
    }
}

/// `openssl s_client`, which believes this CA.
struct Client {
    child: Child,
    stdin: Option<ChildStdin>,
    said: Arc<Mutex<Vec<u8>>>,
}

impl Client {
    fn connect(ca: &Path, target: SocketAddr, arguments: &[&str]) -> Client {
        let mut child = Command::new("openssl")
            .args(["s_client", "-quiet", "-verify_return_error", "-connect", &target.to_string()])
            .args(["-CAfile".as_ref(), ca.as_os_str()])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said = Arc::new(Mutex::new(Vec::new()));
        let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        collect(stdout, said.clone());
        collect(stderr, said.clone());
        let stdin = child.stdin.take();
        Client { child, stdin, said }
    }

    fn say(&mut self, text: &str) {
        self.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&self.said.lock().unwrap()).into_owned()
    }

    /// Asks for OPTIONS; the n-th 200 comes.
    #[track_caller]
    fn answered(&mut self, n: usize) {
        self.say(
            &OPTIONS
                .replace("z9hG4bK1", &format!("z9hG4bK{n}"))
                .replace("1 OPTIONS", &format!("{n} OPTIONS")),
        );
        eventually("a 200 over TLS", || {
            assert!(self.child.try_wait().unwrap().is_none(), "{}", self.said());
            (self.said().matches("SIP/2.0 200 OK").count() == n).then_some(())
        });
    }

    /// It comes to no connection, or to the end of one.
    #[track_caller]
    fn refused(&mut self) -> String {
        // TLS 1.3: a client learns only when it reads that its certificate was not good enough.
        eventually("the client ends", || self.child.try_wait().unwrap());
        self.said()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn collect(mut from: impl Read + Send + 'static, to: Arc<Mutex<Vec<u8>>>) {
    thread::spawn(move || {
        let mut buffer = [0; 4_096];
        while let Ok(length) = from.read(&mut buffer)
            && length > 0
        {
            to.lock().unwrap().extend(&buffer[..length]);
        }
    });
}

fn wire(stats: &Value) -> &Value {
    &stats["sip"]["wire"]
}

#[test]
fn tls_1_2_and_1_3_are_spoken_and_nothing_older() {
    if !peers::installed(&["openssl"]) {
        return;
    }
    let ca = Authority::new();
    let (mut recorder, address) = ca.recorder(Setup::new(), false);
    for version in ["-tls1_2", "-tls1_3"] {
        let mut client = Client::connect(&ca.path("ca.pem"), address, &[version]);
        client.answered(1);
        // RFC 5626 §4.4.1
        let before = client.said().len();
        client.say("\r\n\r\n");
        eventually("the keepalive is answered", || (client.said().len() == before + 2).then_some(()));
        client.answered(2);
    }
    let old = ["-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"];
    let said = Client::connect(&ca.path("ca.pem"), address, &old).refused();
    assert!(said.contains("alert"), "{said}");
    let mut plain = TcpStream::connect(address).unwrap();
    plain.write_all(OPTIONS.as_bytes()).unwrap();
    assert_eq!(plain.read(&mut [0; 8]).unwrap_or(0), 0, "no SIP without TLS");
    let stats = recorder.stats_when("all connections are gone", |stats| number(wire(stats), "tcp_open") == 0);
    let wire = wire(&stats);
    assert_eq!((&wire["tls_handshakes"]["1.2"], &wire["tls_handshakes"]["1.3"]), (&1.into(), &1.into()));
    assert_eq!((&wire["tls_failed"]["version"], &wire["tls_failed"]["not_tls"]), (&1.into(), &1.into()));
    assert_eq!(number(wire, "keepalives"), 2);
    let closed: u64 =
        wire["connections_closed"].as_object().unwrap().values().filter_map(Value::as_u64).sum();
    assert_eq!(number(wire, "tcp_accepted"), closed);
    // Whoever is connected at the end is told that nothing more will come (RFC 8446 §6.1).
    let mut last = Client::connect(&ca.path("ca.pem"), address, &[]);
    last.answered(1);
    recorder.stop();
    let said = last.refused();
    assert!(!said.contains("unexpected eof"), "{said}");
}

#[test]
fn mutual_tls_lets_in_whom_the_ca_knows() {
    if !peers::installed(&["openssl"]) {
        return;
    }
    let (ca, other) = (Authority::new(), Authority::new());
    ca.issue("src", &["src.example.com"], None);
    other.issue("src", &["src.example.com"], None);
    let (mut recorder, address) = ca.recorder(Setup::new(), true);
    for version in ["-tls1_2", "-tls1_3"] {
        let with = |authority: &Authority| [authority.text("src.pem"), authority.text("src.key")];
        let [certificate, key] = with(&ca);
        let arguments = [version, "-cert", &certificate, "-key", &key];
        Client::connect(&ca.path("ca.pem"), address, &arguments).answered(1);
        let said = Client::connect(&ca.path("ca.pem"), address, &[version]).refused();
        assert!(said.contains("alert"), "{said}");
        let [certificate, key] = with(&other);
        let arguments = [version, "-cert", &certificate, "-key", &key];
        let said = Client::connect(&ca.path("ca.pem"), address, &arguments).refused();
        assert!(said.contains("alert"), "{said}");
    }
    let stats = recorder.stats_when("all connections are gone", |stats| number(wire(stats), "tcp_open") == 0);
    let failed = &wire(&stats)["tls_failed"];
    assert_eq!((&failed["no_certificate"], &failed["certificate_refused"]), (&2.into(), &2.into()));
    let told = recorder.log().iter().any(|line| line["message"] == "TLS with a peer failed");
    assert!(told, "{:?}", recorder.log());
    recorder.stop();
}

#[test]
fn a_new_certificate_ends_no_connection() {
    if !peers::installed(&["openssl"]) {
        return;
    }
    let (ca, new) = (Authority::new(), Authority::new());
    let (mut recorder, address) = ca.recorder(Setup::new(), false);
    let mut open = Client::connect(&ca.path("ca.pem"), address, &[]);
    open.answered(1);
    new.issue("srs", &["127.0.0.1"], None);
    let replace = |name: &str| fs::copy(new.path(name), ca.path(name)).unwrap();
    // Half of a pair is no pair: the old one goes on, and the log says why.
    replace("srs.pem");
    recorder.signal("HUP");
    let line = recorder.logged("not_reloaded");
    assert!(line["message"].as_str().unwrap().contains("is not the key of --tls-cert"), "{line}");
    Client::connect(&ca.path("ca.pem"), address, &[]).answered(1);
    replace("srs.key");
    recorder.signal("HUP");
    recorder.logged("reloaded");
    eventually("new connections have the new certificate", || {
        let mut client = Client::connect(&new.path("ca.pem"), address, &[]);
        client.say(OPTIONS);
        eventually("an answer or an end", || {
            let said = client.said();
            (said.contains("SIP/2.0 200") || client.child.try_wait().unwrap().is_some()).then_some(())
        });
        client.said().contains("SIP/2.0 200").then_some(())
    });
    Client::connect(&ca.path("ca.pem"), address, &[]).refused();
    open.answered(2);
    recorder.stop_after_errors();
}

/// Whole calls over mutual TLS, and every packet of them proved to be there.
#[test]
fn calls_over_tls_are_recorded_with_the_name_of_their_src() {
    let ca = Authority::new();
    ca.issue("src", &["src.example.com"], Some("sip:src.example.com"));
    let (mut recorder, address) = ca.recorder(Setup::new().pairs(48), true);
    let output = Command::new(env!("CARGO_BIN_EXE_sipreel-load"))
        .args(["--target", &address.to_string(), "--transport", "tls", "--tls-ca", &ca.text("ca.pem")])
        .args(["--tls-cert", &ca.text("src.pem"), "--tls-key", &ca.text("src.key")])
        .args(["--calls", "20", "--rate", "100", "--duration", "1", "--json"])
        .args(["--verify-dir".as_ref(), recorder.dir().as_os_str()])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(number(&report["verify"], "missing"), 0, "{report:#}");
    let names = serde_json::json!(["DNS:src.example.com", "URI:sip:src.example.com"]);
    for recording in recorder.committed(20) {
        recording.check_whole();
        let sip = &recording.manifest["sip"];
        assert_eq!((&sip["transport"], &sip["peer_certificate"]["names"]), (&"tls".into(), &names));
    }
    let started: Vec<Value> =
        recorder.log().into_iter().filter(|line| line["message"] == "recording started").collect();
    let certificate = "DNS:src.example.com, URI:sip:src.example.com";
    assert_eq!(started.len(), 20);
    assert!(started.iter().all(|line| line["certificate"] == certificate), "{:?}", started[0]);
    recorder.quiet();
    recorder.stop();
}

/// Peers that stall in the handshake, and in the middle of a message, are closed while another call goes on.
#[test]
fn peers_that_stall_are_closed_and_nobody_waits_for_them() {
    if !peers::installed(&["openssl"]) {
        return;
    }
    let ca = Authority::new();
    let (mut recorder, address) = ca.recorder(Setup::new(), false);
    let mut stalled: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(address).unwrap()).collect();
    // The beginning of a ClientHello.
    stalled.iter_mut().for_each(|stream| stream.write_all(&[22, 3, 1, 2, 0, 1, 0]).unwrap());
    let mut loris = Client::connect(&ca.path("ca.pem"), address, &[]);
    loris.say("OPTIONS sip:srs@127.0.0.1 SIP/2.0\r\nVia:");
    let mut call = Call::tcp(recorder.tcp);
    call.establish();
    recorder.stats_when("those that stalled are closed", |stats| {
        let closed = &wire(stats)["connections_closed"];
        closed["handshake_time"] == 20 && closed["message_time"] == 1
    });
    let stats = recorder.stats();
    assert_eq!(wire(&stats)["tls_failed"]["time"], 20);
    assert_eq!(number(wire(&stats), "tcp_open"), 1, "the call's");
    loris.refused();
    Client::connect(&ca.path("ca.pem"), address, &[]).answered(1);
    call.hang_up();
    recorder.recording().check_whole();
    recorder.stop();
}

#[test]
fn files_that_cannot_be_used_are_one_sentence() {
    let ca = Authority::new();
    ca.issue("srs", &["127.0.0.1"], None);
    ca.issue("other", &["127.0.0.1"], None);
    fs::write(ca.path("text.pem"), "no PEM").unwrap();
    let sentence = |certificate: &str, key: &str| {
        let setup = Setup::new().flag("--sip-tls", "127.0.0.1:0");
        let setup = setup.flag("--tls-cert", &ca.text(certificate)).flag("--tls-key", &ca.text(key));
        setup.refused().1
    };
    assert!(sentence("none.pem", "srs.key").contains("none.pem cannot be read"));
    assert!(sentence("text.pem", "srs.key").contains("has no certificate in PEM"));
    assert!(sentence("srs.pem", "other.key").contains("is not the key of --tls-cert"));
}

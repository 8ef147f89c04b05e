//! What the `--callback` flags mean, checked before anything is opened.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ureq::http::Uri;
use ureq::tls::{Certificate, PemItem, parse_pem};

use super::signature::Secrets;
use crate::limits::{CALLBACK_ENDPOINTS, CALLBACK_FILE_MAX, CALLBACK_QUEUE_MIN, CALLBACK_URL_MAX};

/// Where events go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Url(pub Uri);

/// Endpoints, and what all of them share.
#[derive(Clone, Debug)]
pub struct Endpoints {
    pub urls: Vec<Url>,
    pub secrets: Secrets,
    /// Who may sign for an HTTPS endpoint.
    pub roots: Arc<Vec<Certificate<'static>>>,
    /// The queue.
    pub dir: PathBuf,
    pub bytes_max: u64,
}

/// What was typed.
#[derive(Clone, Copy, Debug)]
pub struct Typed<'a> {
    pub urls: &'a [String],
    pub secret_file: Option<&'a Path>,
    pub ca: Option<&'a Path>,
    pub queue: Option<&'a Path>,
    pub queue_size: Option<usize>,
    /// The recordings directory.
    pub dir: &'a Path,
}

/// Why it cannot work. Each displays as one sentence that names the flag and what to change.
#[derive(PartialEq, Eq, Debug)]
pub enum Refusal {
    Url { url: String, why: &'static str },
    Twice(String),
    TooMany(usize),
    Unused(&'static str),
    NoSecret,
    File { flag: &'static str, path: PathBuf, why: String },
    QueueSize(usize),
}

/// --callback-queue-size, when nobody said: a night of 10 calls a second for an endpoint that is down.
const QUEUE_BYTES: usize = 256 * 1024 * 1024;

impl Endpoints {
    /// `None`: nobody wants events.
    pub fn new(typed: &Typed<'_>) -> Result<Option<Endpoints>, Refusal> {
        let unused = [
            ("--callback-secret-file", typed.secret_file.is_some()),
            ("--callback-ca", typed.ca.is_some()),
            ("--callback-queue", typed.queue.is_some()),
            ("--callback-queue-size", typed.queue_size.is_some()),
        ];
        if typed.urls.is_empty() {
            return match unused.into_iter().find(|(_, given)| *given) {
                Some((flag, _)) => Err(Refusal::Unused(flag)),
                None => Ok(None),
            };
        }
        let urls = urls(typed.urls)?;
        let secret = typed.secret_file.ok_or(Refusal::NoSecret)?;
        let secrets = read(secret).and_then(|text| Secrets::parse(&text));
        let secrets = secrets.map_err(|why| refused("--callback-secret-file", secret, why))?;
        let own = typed.ca.map(|path| certificates(path).map_err(|why| refused("--callback-ca", path, why)));
        let mut roots = own.transpose()?.unwrap_or_default();
        if urls.iter().any(Url::tls) {
            roots.extend(of_the_box());
        }
        let queue_size = typed.queue_size.unwrap_or(QUEUE_BYTES);
        if (queue_size as u64) < CALLBACK_QUEUE_MIN {
            return Err(Refusal::QueueSize(queue_size));
        }
        Ok(Some(Endpoints {
            urls,
            secrets,
            roots: Arc::new(roots),
            dir: typed.queue.map_or_else(|| typed.dir.join(".callbacks"), Path::to_path_buf),
            bytes_max: queue_size as u64,
        }))
    }
}

impl Url {
    pub fn parse(text: &str) -> Result<Url, &'static str> {
        if text.len() > CALLBACK_URL_MAX {
            return Err("is longer than any URL should be: shorten it");
        }
        if text.contains('#') {
            return Err("has a fragment, which is never sent: take it out");
        }
        let uri: Uri = text.parse().map_err(|_| "is not a URL: write it as https://host/path")?;
        match uri.authority() {
            _ if !matches!(uri.scheme_str(), Some("http" | "https")) => {
                Err("is neither http nor https: write it as https://host/path")
            }
            Some(authority) if authority.as_str().contains('@') => {
                Err("holds a user name or password, which logs would show: take it out, requests are signed")
            }
            Some(authority) if !authority.host().is_empty() => Ok(Url(uri)),
            _ => Err("has no host: write it as https://host/path"),
        }
    }

    pub fn tls(&self) -> bool {
        self.0.scheme_str() == Some("https")
    }

    /// Without the query.
    pub fn shown(&self) -> String {
        let text = self.0.to_string();
        text.split('?').next().unwrap_or_default().to_owned()
    }
}

fn urls(typed: &[String]) -> Result<Vec<Url>, Refusal> {
    if typed.len() > CALLBACK_ENDPOINTS {
        return Err(Refusal::TooMany(typed.len()));
    }
    let mut urls = Vec::new();
    for text in typed {
        let url = Url::parse(text).map_err(|why| Refusal::Url { url: text.clone(), why })?;
        if urls.contains(&url) {
            return Err(Refusal::Twice(text.clone()));
        }
        urls.push(url);
    }
    Ok(urls)
}

fn refused(flag: &'static str, path: &Path, why: String) -> Refusal {
    Refusal::File { flag, path: path.to_owned(), why }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(CALLBACK_FILE_MAX + 1).read_to_end(&mut bytes));
    match read {
        Ok(n) if n as u64 > CALLBACK_FILE_MAX => Err("is far too long".into()),
        Ok(_) => Ok(bytes),
        Err(error) => Err(format!("cannot be read ({error})")),
    }
}

fn certificates(path: &Path) -> Result<Vec<Certificate<'static>>, String> {
    let mut certificates = Vec::new();
    for item in parse_pem(&read(path)?) {
        match item {
            Ok(PemItem::Certificate(certificate)) => certificates.push(certificate),
            Ok(_) => {}
            Err(error) => return Err(format!("is not PEM ({error})")),
        }
    }
    if certificates.is_empty() { Err("holds no certificate in PEM".into()) } else { Ok(certificates) }
}

/// What programs of this box trust.
fn of_the_box() -> Vec<Certificate<'static>> {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!("certificates that this box trusts cannot be read: {error}");
    }
    found.certs.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect()
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Url { url, why } => write!(f, "--callback {url} {why}"),
            Refusal::Twice(url) => write!(f, "--callback has {url} twice: take one out"),
            Refusal::TooMany(n) => write!(
                f,
                "--callback names {n} endpoints, and sipreel serves at most {CALLBACK_ENDPOINTS}: let one of them pass events on"
            ),
            Refusal::Unused(flag) => {
                write!(f, "{flag} says nothing without an endpoint: give --callback, or take it out")
            }
            Refusal::NoSecret => write!(
                f,
                "--callback has no secret to sign with, and anybody could forge an event: give --callback-secret-file"
            ),
            Refusal::File { flag, path, why } => {
                write!(f, "{flag} {} {why}: give another file", path.display())
            }
            Refusal::QueueSize(bytes) => write!(
                f,
                "--callback-queue-size {bytes} is too small to be of use: give at least {}M",
                CALLBACK_QUEUE_MIN >> 20
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn typed<'a>(urls: &'a [String], secret: Option<&'a Path>) -> Typed<'a> {
        let dir = Path::new("/srv/recordings");
        Typed { urls, secret_file: secret, ca: None, queue: None, queue_size: None, dir }
    }

    fn strings(urls: &[&str]) -> Vec<String> {
        urls.iter().map(|url| (*url).to_owned()).collect()
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn no_endpoint_no_callbacks() {
        assert!(Endpoints::new(&typed(&[], None)).unwrap().is_none());
        let secret = file("0123456789abcdef");
        let unused = Endpoints::new(&typed(&[], Some(secret.path()))).unwrap_err();
        assert_eq!(unused, Refusal::Unused("--callback-secret-file"));
    }

    #[test]
    fn the_queue_is_beside_the_recordings_unless_said_otherwise() {
        let (urls, secret) = (strings(&["http://127.0.0.1:1/x"]), file("0123456789abcdef\n"));
        let endpoints = Endpoints::new(&typed(&urls, Some(secret.path()))).unwrap().unwrap();
        assert_eq!(endpoints.dir, Path::new("/srv/recordings/.callbacks"));
        assert_eq!((endpoints.bytes_max, endpoints.roots.len()), (256 << 20, 0));
        let other = Typed { queue: Some(Path::new("/q")), ..typed(&urls, Some(secret.path())) };
        assert_eq!(Endpoints::new(&other).unwrap().unwrap().dir, Path::new("/q"));
    }

    #[test]
    fn urls_that_cannot_work() {
        for (url, why) in [
            ("", "is not a URL"),
            ("host/path", "is not a URL"),
            ("/path", "neither http nor https"),
            ("ftp://host/x", "neither http nor https"),
            ("https:///x", "is not a URL"),
            ("https://me:secret@host/x", "user name or password"),
            ("https://host/x#y", "fragment"),
            ("https://ho st/", "is not a URL"),
        ] {
            assert!(Url::parse(url).unwrap_err().contains(why), "{url}: {:?}", Url::parse(url));
        }
        let long = format!("https://host/{}", "x".repeat(CALLBACK_URL_MAX));
        assert!(Url::parse(&long).unwrap_err().contains("longer"));
        let url = Url::parse("https://[2001:db8::1]:8443/events?key=secret").unwrap();
        assert_eq!((url.shown().as_str(), url.tls()), ("https://[2001:db8::1]:8443/events", true));
    }

    /// Each begins with its flag and says what to change.
    #[test]
    fn combinations_that_cannot_work() {
        let good = file("0123456789abcdef");
        let (short, empty) = (file("short"), file(""));
        let one = strings(&["http://a/x"]);
        let many: Vec<String> = (0..=CALLBACK_ENDPOINTS).map(|n| format!("http://a/{n}")).collect();
        let with = |urls, secret| typed(urls, secret);
        let nowhere = Path::new("/nowhere/secret");
        let twice = strings(&["http://a/x", "http://a/x"]);
        let bad = strings(&["gopher://a/x"]);
        let cases = [
            (with(&one, None), "give --callback-secret-file"),
            (with(&one, Some(short.path())), "fewer than 16"),
            (with(&one, Some(empty.path())), "is empty"),
            (with(&one, Some(nowhere)), "cannot be read"),
            (with(&twice, Some(good.path())), "twice"),
            (with(&many, Some(good.path())), "at most 8"),
            (with(&bad, Some(good.path())), "neither http nor https"),
            (Typed { queue_size: Some(1_000), ..with(&one, Some(good.path())) }, "at least 4M"),
            (Typed { ca: Some(good.path()), ..with(&one, Some(good.path())) }, "no certificate"),
            (Typed { ca: Some(nowhere), ..with(&one, Some(good.path())) }, "cannot be read"),
        ];
        for (typed, words) in cases {
            let sentence = Endpoints::new(&typed).unwrap_err().to_string();
            assert!(sentence.starts_with("--callback") && sentence.contains(": "), "{sentence}");
            assert!(sentence.contains(words), "{sentence}");
        }
    }
}

//! Who the recorder is over TLS, and whom it lets in: certificate, key and client CAs from files.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{InconsistentKeys, RootCertStore, ServerConfig};
use x509_cert::Certificate;
use x509_cert::der::Decode;

use crate::engine::cpu;
use crate::limits::TLS_FILE_MAX;

/// The files of `--tls-cert`, `--tls-key` and `--tls-client-ca`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IdentityFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub client_ca: Option<PathBuf>,
}

/// What the files hold.
pub struct Identity {
    pub config: Arc<ServerConfig>,
    /// What peers will stumble over: one sentence each.
    pub warnings: Vec<String>,
}

/// Why the files cannot be used. Displays as one sentence that names flag and file.
#[derive(Debug)]
pub struct Unusable {
    flag: &'static str,
    path: PathBuf,
    why: String,
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.flag, self.path.display(), self.why)
    }
}

impl IdentityFiles {
    /// Reads the files and checks that they belong together.
    pub fn load(&self) -> Result<Identity, Unusable> {
        let chain = certificates("--tls-cert", &self.certificate)?;
        let now = SystemTime::UNIX_EPOCH + Duration::from_nanos(cpu::now().wall.0);
        let mut warnings = Vec::new();
        warnings.extend(validity(&chain[0], now).map(|problem| {
            format!("--tls-cert {} {problem}: peers will refuse it", self.certificate.display())
        }));
        let key = self.key(chain)?;
        let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|e| unusable("--tls-cert", &self.certificate, format!("cannot be used ({e})")))?;
        let mut config = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => builder.with_client_cert_verifier(verifier(path)?),
        }
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
        if self.client_ca.is_some() {
            // Each connection proves its certificate anew, to the CAs of this moment.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        Ok(Identity { config: Arc::new(config), warnings })
    }

    fn key(&self, chain: Vec<CertificateDer<'static>>) -> Result<CertifiedKey, Unusable> {
        let refuse = |why: String| unusable("--tls-key", &self.key, why);
        let key = PrivateKeyDer::from_pem_slice(&read("--tls-key", &self.key)?).map_err(|e| match e {
            pem::Error::NoItemsFound => {
                refuse("has no private key in PEM: give the key of --tls-cert, without a passphrase".into())
            }
            e => refuse(format!("is not PEM ({e}): give the key of --tls-cert, without a passphrase")),
        })?;
        CertifiedKey::from_der(chain, key, &default_provider()).map_err(|e| match e {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                refuse(format!("is not the key of --tls-cert {}: give the pair", self.certificate.display()))
            }
            e => refuse(format!("cannot be used ({e}): give an RSA, ECDSA or Ed25519 key")),
        })
    }
}

fn verifier(path: &Path) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, Unusable> {
    let refuse = |why: String| unusable("--tls-client-ca", path, why);
    let mut roots = RootCertStore::empty();
    for certificate in certificates("--tls-client-ca", path)? {
        roots
            .add(certificate)
            .map_err(|e| refuse(format!("has a certificate that cannot be trusted ({e}): give CAs")))?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(default_provider()))
        .build()
        .map_err(|e| refuse(format!("cannot be used ({e}): give CAs")))
}

/// At least one.
fn certificates(flag: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Unusable> {
    let refuse = |why: String| unusable(flag, path, why);
    let text = read(flag, path)?;
    let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|e| refuse(format!("is not PEM ({e}): give certificates as PEM")))?;
    if certificates.is_empty() {
        return Err(refuse("has no certificate in PEM: give certificates as PEM".into()));
    }
    Ok(certificates)
}

fn read(flag: &'static str, path: &Path) -> Result<Vec<u8>, Unusable> {
    let refuse = |why: String| unusable(flag, path, why);
    let length = fs::metadata(path)
        .map_err(|e| refuse(format!("cannot be read ({e}): give a file that this user can read")))?;
    if length.len() > TLS_FILE_MAX {
        return Err(refuse(format!("is larger than {TLS_FILE_MAX} bytes: give the PEM file")));
    }
    fs::read(path).map_err(|e| refuse(format!("cannot be read ({e}): give a file that this user can read")))
}

fn unusable(flag: &'static str, path: &Path, why: String) -> Unusable {
    Unusable { flag, path: path.to_path_buf(), why }
}

/// What is wrong with the time in which a certificate is valid.
fn validity(der: &[u8], now: SystemTime) -> Option<String> {
    let certificate = Certificate::from_der(der).ok()?;
    let validity = certificate.tbs_certificate().validity();
    if validity.not_after.to_system_time() < now {
        return Some(format!("has expired on {}", validity.not_after));
    }
    (validity.not_before.to_system_time() > now)
        .then(|| format!("is not valid before {}", validity.not_before))
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
    use rustls::{ClientConfig, ClientConnection, SupportedProtocolVersion};
    use tempfile::TempDir;

    /// A CA, a recorder's certificate of it, and their files.
    pub struct Paper {
        dir: TempDir,
        issuer: Issuer<'static, KeyPair>,
        ca: rcgen::Certificate,
    }

    pub fn paper(names: &[&str]) -> Paper {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().unwrap();
        let ca = params.self_signed(&key).unwrap();
        let paper = Paper { dir: TempDir::new().unwrap(), issuer: Issuer::new(params, key), ca };
        fs::write(paper.path("ca.pem"), paper.ca.pem()).unwrap();
        let (certificate, key) = paper.client(names);
        fs::write(paper.path("cert.pem"), certificate).unwrap();
        fs::write(paper.path("key.pem"), key).unwrap();
        paper
    }

    impl Paper {
        pub fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        /// Certificate and key in PEM.
        pub fn client(&self, names: &[&str]) -> (String, String) {
            let (dns, uris): (Vec<&str>, Vec<&str>) = names.iter().partition(|name| !name.contains(':'));
            let mut params =
                CertificateParams::new(dns.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
            let uri = |uri: &&str| rcgen::SanType::URI((*uri).try_into().unwrap());
            params.subject_alt_names.extend(uris.iter().map(uri));
            let key = KeyPair::generate().unwrap();
            let certificate = params.signed_by(&key, &self.issuer).unwrap();
            (certificate.pem(), key.serialize_pem())
        }

        pub fn files(&self) -> IdentityFiles {
            IdentityFiles { certificate: self.path("cert.pem"), key: self.path("key.pem"), client_ca: None }
        }

        pub fn config(&self) -> Arc<ServerConfig> {
            self.files().load().unwrap().config
        }

        pub fn mutual(&self) -> Arc<ServerConfig> {
            IdentityFiles { client_ca: Some(self.path("ca.pem")), ..self.files() }.load().unwrap().config
        }
    }

    pub fn client(
        paper: &Paper,
        version: &'static SupportedProtocolVersion,
        identity: Option<&(String, String)>,
    ) -> ClientConnection {
        let mut roots = RootCertStore::empty();
        roots.add(paper.ca.der().clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => builder
                .with_client_auth_cert(
                    vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
                    PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
                )
                .unwrap(),
        };
        ClientConnection::new(Arc::new(config), "srs.example.com".try_into().unwrap()).unwrap()
    }

    fn sentence(files: &IdentityFiles) -> String {
        let sentence = files.load().err().expect("unusable").to_string();
        assert!(sentence.starts_with("--tls-") && sentence.contains(": ") && !sentence.contains('\n'));
        sentence
    }

    #[test]
    fn each_file_that_cannot_be_used_has_its_sentence() {
        let (paper, other) = (paper(&["srs.example.com"]), paper(&["srs.example.com"]));
        let files = paper.files();
        assert!(files.load().unwrap().warnings.is_empty());
        let missing = IdentityFiles { certificate: paper.path("none.pem"), ..files.clone() };
        assert!(sentence(&missing).contains("none.pem cannot be read"));
        fs::write(paper.path("text.pem"), "no PEM at all").unwrap();
        fs::write(paper.path("broken.pem"), "-----BEGIN CERTIFICATE-----\nMIIB\n").unwrap();
        let text = paper.path("text.pem");
        assert!(
            sentence(&IdentityFiles { certificate: text.clone(), ..files.clone() })
                .contains("has no certificate")
        );
        assert!(
            sentence(&IdentityFiles { key: text.clone(), ..files.clone() }).contains("has no private key")
        );
        let broken = IdentityFiles { certificate: paper.path("broken.pem"), ..files.clone() };
        assert!(sentence(&broken).contains("is not PEM"));
        let mixed = IdentityFiles { key: other.path("key.pem"), ..files.clone() };
        assert!(sentence(&mixed).contains("is not the key of --tls-cert"));
        let ca = IdentityFiles { client_ca: Some(text), ..files };
        assert!(sentence(&ca).starts_with("--tls-client-ca"));
    }

    #[test]
    fn a_certificate_out_of_its_time_is_a_warning() {
        let paper = paper(&["srs.example.com"]);
        let mut params = CertificateParams::new(vec!["srs.example.com".into()]).unwrap();
        params.not_after = rcgen::date_time_ymd(2001, 2, 3);
        params.not_before = rcgen::date_time_ymd(2001, 1, 1);
        let key = KeyPair::generate().unwrap();
        fs::write(paper.path("cert.pem"), params.signed_by(&key, &paper.issuer).unwrap().pem()).unwrap();
        fs::write(paper.path("key.pem"), key.serialize_pem()).unwrap();
        let warnings = paper.files().load().unwrap().warnings;
        assert!(warnings[0].contains("has expired on 2001-02-03"), "{warnings:?}");
    }
}

//! SIP over TLS: which recorder is believed, and the bytes of one connection.

use std::io::{self, BufRead, Write};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::default_provider;
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use tokio_uring::net::TcpStream;

use super::options::Tls;

/// Bytes read at once: a record of TLS and what surrounds it.
const READ: usize = 20 * 1024;

/// The client that these options ask for.
pub fn client(options: &Tls) -> io::Result<Arc<ClientConfig>> {
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(io::Error::other)?;
    let builder = match &options.tls_ca {
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(ca)? {
                roots.add(certificate).map_err(|e| bad(ca, &e))?;
            }
            builder.with_root_certificates(roots)
        }
        None => builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody)),
    };
    let config = match (&options.tls_cert, &options.tls_key) {
        (Some(certificate), Some(key)) => {
            let private = PrivateKeyDer::from_pem_file(key).map_err(|e| bad(key, &e))?;
            builder
                .with_client_auth_cert(certificates(certificate)?, private)
                .map_err(|e| bad(certificate, &e))?
        }
        _ => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| bad(path, &e))
}

fn bad(path: &Path, e: &dyn std::fmt::Display) -> io::Error {
    io::Error::other(format!("{}: {e}", path.display()))
}

/// Over a connected stream: the handshake, to its end.
pub async fn handshake(
    stream: &TcpStream,
    config: Arc<ClientConfig>,
    peer: IpAddr,
) -> io::Result<ClientConnection> {
    let mut tls = ClientConnection::new(config, ServerName::from(peer)).map_err(io::Error::other)?;
    let mut buffer = vec![0; READ];
    while tls.is_handshaking() {
        let flight = wire(&mut tls)?;
        if !flight.is_empty() {
            stream.write_all(flight).await.0?;
        }
        let (result, returned) = stream.read(buffer).await;
        buffer = returned;
        match result? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            length => drop(heard(&mut tls, &buffer[..length])?),
        }
    }
    let last_flight = wire(&mut tls)?;
    if !last_flight.is_empty() {
        stream.write_all(last_flight).await.0?;
    }
    Ok(tls)
}

/// What there is to send.
pub fn wire(tls: &mut ClientConnection) -> io::Result<Vec<u8>> {
    let mut wire = Vec::new();
    while tls.wants_write() {
        tls.write_tls(&mut wire)?;
    }
    Ok(wire)
}

pub fn sealed(tls: &mut ClientConnection, text: &[u8]) -> io::Result<Vec<u8>> {
    let mut sealed = Vec::new();
    let mut left = text;
    while !left.is_empty() {
        let taken = tls.writer().write(left)?;
        left = &left[taken..];
        sealed.append(&mut wire(tls)?);
    }
    // What the other side made us say.
    sealed.append(&mut wire(tls)?);
    Ok(sealed)
}

/// What these bytes of the wire said.
pub fn heard(tls: &mut ClientConnection, mut bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut heard = Vec::new();
    while !bytes.is_empty() && tls.read_tls(&mut bytes)? > 0 {
        tls.process_new_packets().map_err(io::Error::other)?;
        let mut reader = tls.reader();
        while let Ok(plain) = reader.fill_buf() {
            let length = plain.len();
            if length == 0 {
                break;
            }
            heard.extend_from_slice(plain);
            reader.consume(length);
        }
    }
    Ok(heard)
}

/// `--tls-insecure`: whoever answers is the recorder.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(
            message,
            certificate,
            signed,
            &default_provider().signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            certificate,
            signed,
            &default_provider().signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider().signature_verification_algorithms.supported_schemes()
    }
}

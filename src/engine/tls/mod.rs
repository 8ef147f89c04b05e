//! TLS of one connection (RFC 5246, RFC 8446): bytes of the wire in and SIP out, and the other way round. It has no socket and
//! waits for nothing; the reactor's ring carries what it gives.

pub mod identity;
mod names;

use std::io::{BufRead, Write};
use std::sync::Arc;

use bytes::Bytes;
use rustls::{
    CertificateError, Error, HandshakeKind, PeerIncompatible, ProtocolVersion, ServerConfig, ServerConnection,
};

use crate::counters::{HandshakeFailure, TlsVersion};
use crate::proto::manifest::PeerCertificate;

/// The first byte of a record (RFC 8446 §5.1): content types 20 to 24.
const CONTENT_TYPES: std::ops::RangeInclusive<u8> = 20..=24;
/// Content type, version, length.
const RECORD_HEADER: usize = 5;

pub struct Tls {
    connection: ServerConnection,
    records: Records,
    closed: bool,
}

/// Why the connection cannot go on. The alert that tells the peer is in [`Tls::wire`].
#[derive(Debug)]
pub struct Broken {
    pub cause: HandshakeFailure,
    /// For the log.
    pub why: String,
}

impl Tls {
    pub fn new(config: Arc<ServerConfig>) -> Result<Tls, Error> {
        let mut connection = ServerConnection::new(config)?;
        // What is written is taken at once, and the connection's own queue is bounded.
        connection.set_buffer_limit(None);
        Ok(Tls { connection, records: Records::default(), closed: false })
    }

    /// Takes bytes of the wire; what they said is appended to `plain`: no more than they are, and one record.
    pub fn receive(&mut self, mut wire: &[u8], plain: &mut Vec<u8>) -> Result<(), Broken> {
        let first = wire.first().copied();
        if self.records.untouched() && first.is_some_and(|byte| !CONTENT_TYPES.contains(&byte)) {
            return Err(Broken { cause: HandshakeFailure::NotTls, why: "no TLS record".into() });
        }
        self.records.pass(wire);
        while !wire.is_empty() {
            match self.connection.read_tls(&mut wire) {
                // After a close_notify nothing more is read.
                Ok(0) => break,
                Ok(_) => {}
                Err(e) => return Err(Broken { cause: HandshakeFailure::Protocol, why: e.to_string() }),
            }
            let state = self.connection.process_new_packets().map_err(|e| broken(&e))?;
            self.closed |= state.peer_has_closed();
            self.read(plain);
        }
        Ok(())
    }

    fn read(&mut self, plain: &mut Vec<u8>) {
        let mut reader = self.connection.reader();
        while let Ok(bytes) = reader.fill_buf() {
            let length = bytes.len();
            if length == 0 {
                break;
            }
            plain.extend_from_slice(bytes);
            reader.consume(length);
        }
    }

    /// Encrypts a message.
    pub fn send(&mut self, plain: &[u8]) {
        // Into memory, without a limit: it takes all.
        let _ = self.connection.writer().write_all(plain);
    }

    /// Says that nothing more will come (close_notify).
    pub fn close(&mut self) {
        self.connection.send_close_notify();
    }

    /// What is to be sent now.
    pub fn wire(&mut self) -> Option<Bytes> {
        let mut wire = Vec::new();
        while self.connection.wants_write() {
            // Memory takes everything.
            self.connection.write_tls(&mut wire).ok()?;
        }
        (!wire.is_empty()).then(|| wire.into())
    }

    pub fn handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// The peer has said that nothing more will come.
    pub fn closed(&self) -> bool {
        self.closed
    }

    /// Part of a record has come, and its rest has not.
    pub fn unfinished(&self) -> bool {
        self.records.unfinished()
    }

    /// Known when the handshake is over.
    pub fn version(&self) -> TlsVersion {
        match self.connection.protocol_version() {
            Some(ProtocolVersion::TLSv1_2) => TlsVersion::V1_2,
            _ => TlsVersion::V1_3,
        }
    }

    pub fn resumed(&self) -> bool {
        self.connection.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// Who the peer has proved to be.
    pub fn peer(&self) -> Option<PeerCertificate> {
        self.connection.peer_certificates()?.first().map(|certificate| names::of(certificate))
    }
}

fn broken(e: &Error) -> Broken {
    let cause = match e {
        Error::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::SupportedVersionsExtensionRequired
            // What came with TLS 1.2; rustls looks for it first.
            | PeerIncompatible::SignatureAlgorithmsExtensionRequired
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled,
        ) => HandshakeFailure::Version,
        Error::PeerIncompatible(_) => HandshakeFailure::NothingInCommon,
        Error::NoCertificatesPresented => HandshakeFailure::NoCertificate,
        Error::InvalidCertificate(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        ) => HandshakeFailure::CertificateExpired,
        Error::InvalidCertificate(_) => HandshakeFailure::CertificateRefused,
        Error::AlertReceived(_) => HandshakeFailure::Alert,
        _ => HandshakeFailure::Protocol,
    };
    Broken { cause, why: e.to_string() }
}

/// Where in the records of a stream its reader is: only this tells a peer that stops in the middle of one.
#[derive(Default)]
struct Records {
    /// Of the header in progress.
    header: [u8; RECORD_HEADER],
    have: usize,
    /// Bytes of the record's body that are to come.
    left: usize,
    begun: bool,
}

impl Records {
    fn pass(&mut self, mut wire: &[u8]) {
        self.begun |= !wire.is_empty();
        while !wire.is_empty() {
            if self.left > 0 {
                let taken = self.left.min(wire.len());
                self.left -= taken;
                wire = &wire[taken..];
                continue;
            }
            self.header[self.have] = wire[0];
            self.have += 1;
            wire = &wire[1..];
            if self.have == RECORD_HEADER {
                self.left = usize::from(u16::from_be_bytes([self.header[3], self.header[4]]));
                self.have = 0;
            }
        }
    }

    fn unfinished(&self) -> bool {
        self.have > 0 || self.left > 0
    }

    fn untouched(&self) -> bool {
        !self.begun
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::tls::identity::tests::{client, paper};
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    /// Everything that one end has for the other goes there, in slices of `size` bytes, until both are silent.
    fn talk(server: &mut Tls, client: &mut rustls::ClientConnection, size: usize) -> Result<Vec<u8>, Broken> {
        let mut heard = Vec::new();
        for _ in 0..50 {
            let mut wire = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut wire).unwrap();
            }
            for slice in wire.chunks(size) {
                server.receive(slice, &mut heard)?;
            }
            let Some(answer) = server.wire() else { break };
            client.read_tls(&mut &answer[..]).unwrap();
            let _ = client.process_new_packets();
        }
        Ok(heard)
    }

    #[test]
    fn messages_pass_however_the_wire_is_sliced() {
        for (version, expected) in
            [(&rustls::version::TLS12, TlsVersion::V1_2), (&rustls::version::TLS13, TlsVersion::V1_3)]
        {
            for size in [1, 7, 8_192] {
                let paper = paper(&["srs.example.com"]);
                let mut server = Tls::new(paper.config()).unwrap();
                let mut client = client(&paper, version, None);
                talk(&mut server, &mut client, size).unwrap();
                assert!(!server.handshaking() && !server.unfinished());
                assert_eq!(server.version(), expected);
                client.writer().write_all(b"OPTIONS").unwrap();
                assert_eq!(talk(&mut server, &mut client, size).unwrap(), b"OPTIONS");
                server.send(b"SIP/2.0 200 OK");
                talk(&mut server, &mut client, size).unwrap();
                let mut answer = [0; 14];
                std::io::Read::read_exact(&mut client.reader(), &mut answer).unwrap();
                assert_eq!(&answer, b"SIP/2.0 200 OK");
            }
        }
    }

    #[test]
    fn a_record_that_stops_in_the_middle_is_known() {
        let mut records = Records::default();
        assert!(records.untouched() && !records.unfinished());
        records.pass(&[23, 3, 3]);
        assert!(records.unfinished() && !records.untouched());
        records.pass(&[0, 2, 0xaa]);
        assert!(records.unfinished());
        records.pass(&[0xbb]);
        assert!(!records.unfinished());
        records.pass(&[23, 3, 3, 0, 1, 0xcc, 23]);
        assert!(records.unfinished());
    }

    #[test]
    fn what_is_no_tls_is_told_from_what_is_bad_tls() {
        let paper = paper(&["srs.example.com"]);
        let cause = |wire: &[u8]| {
            let mut server = Tls::new(paper.config()).unwrap();
            server.receive(wire, &mut Vec::new()).unwrap_err().cause
        };
        assert_eq!(cause(b"OPTIONS sip:srs@192.0.2.1 SIP/2.0\r\n"), HandshakeFailure::NotTls);
        assert_eq!(cause(&[22, 3, 1, 0, 4, 9, 9, 9, 9]), HandshakeFailure::Protocol);
    }

    /// Whatever comes: an error or silence, what is kept bounded by what came.
    #[test]
    fn noise_is_refused() {
        let config = paper(&["srs.example.com"]).config();
        let (mut rng, mut refused) = (StdRng::seed_from_u64(1), 0);
        for round in 0..1_000 {
            let mut server = Tls::new(config.clone()).unwrap();
            let length = rng.random_range(0..2_000usize);
            let kind = if round % 2 == 0 { 22 } else { rng.random_range(20..=24) };
            let mut wire = vec![kind, 3, rng.random_range(0..5), (length >> 8) as u8, length as u8, 1, 0];
            wire.extend((0..length).map(|_| rng.random::<u8>()));
            let mut plain = Vec::new();
            refused += usize::from(wire.chunks(700).any(|slice| server.receive(slice, &mut plain).is_err()));
            assert!(plain.is_empty() && server.handshaking());
            assert!(server.wire().is_none_or(|alert| alert.len() < 64), "an alert, if anything");
        }
        assert!(refused > 500, "{refused}");
    }

    #[test]
    fn a_client_proves_who_it_is_or_is_refused() {
        let (paper, stranger) = (paper(&["srs.example.com"]), paper(&["stranger.example.com"]));
        let identity = paper.client(&["src.example.com", "sip:src.example.com"]);
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let mut server = Tls::new(paper.mutual()).unwrap();
            talk(&mut server, &mut client(&paper, version, Some(&identity)), 8_192).unwrap();
            assert_eq!(server.peer().unwrap().names, ["DNS:src.example.com", "URI:sip:src.example.com"]);

            let mut server = Tls::new(paper.mutual()).unwrap();
            let refused = talk(&mut server, &mut client(&paper, version, None), 8_192).unwrap_err();
            assert_eq!(refused.cause, HandshakeFailure::NoCertificate);
            assert!(server.wire().is_some(), "an alert");

            let other = stranger.client(&["src.example.com"]);
            let mut server = Tls::new(paper.mutual()).unwrap();
            let refused = talk(&mut server, &mut client(&paper, version, Some(&other)), 8_192).unwrap_err();
            assert_eq!(refused.cause, HandshakeFailure::CertificateRefused, "{}", refused.why);
        }
    }
}

//! The names in a certificate (RFC 5922 §7.1): subjectAltName, and the common name where that says nothing.

use std::net::IpAddr;

use sha2::{Digest, Sha256};
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use crate::limits::{CERTIFICATE_NAME_MAX, CERTIFICATE_NAMES_MAX};
use crate::proto::manifest::PeerCertificate;

/// What a verified certificate says, as far as it can be read.
pub fn of(der: &[u8]) -> PeerCertificate {
    let sha256 = Sha256::digest(der).iter().map(|byte| format!("{byte:02x}")).collect();
    let names = Certificate::from_der(der).map(|certificate| names(&certificate)).unwrap_or_default();
    PeerCertificate { names, sha256 }
}

fn names(certificate: &Certificate) -> Vec<String> {
    let tbs = certificate.tbs_certificate();
    let alternative = tbs.get_extension::<SubjectAltName>().ok().flatten();
    let alternative = alternative.into_iter().flat_map(|(_, names)| names.0);
    let mut names: Vec<String> = alternative.filter_map(|name| text(&name)).collect();
    if names.is_empty() {
        let common = tbs.subject().common_name().ok().flatten();
        names.extend(common.and_then(|name| plain("CN", &name.value())));
    }
    names.truncate(CERTIFICATE_NAMES_MAX);
    names
}

fn text(name: &GeneralName) -> Option<String> {
    match name {
        GeneralName::DnsName(name) => plain("DNS", name.as_str()),
        GeneralName::UniformResourceIdentifier(uri) => plain("URI", uri.as_str()),
        GeneralName::IpAddress(bytes) => {
            let bytes = bytes.as_bytes();
            let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
            v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok().map(|ip| format!("IP:{ip}"))
        }
        _ => None,
    }
}

/// `DNS:src.example.com`. A name with a control character in it is none.
fn plain(kind: &str, name: &str) -> Option<String> {
    let fits = !name.is_empty() && name.len() <= CERTIFICATE_NAME_MAX && !name.chars().any(char::is_control);
    fits.then(|| format!("{kind}:{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::string::Ia5String;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    fn certificate(common: &str, names: Vec<SanType>) -> PeerCertificate {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, common);
        params.subject_alt_names = names;
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        of(certificate.der())
    }

    fn text(text: &str) -> Ia5String {
        text.try_into().unwrap()
    }

    #[test]
    fn alternative_names_before_the_common_one() {
        let names = vec![
            SanType::DnsName(text("sbc.example.com")),
            SanType::URI(text("sip:example.com")),
            SanType::IpAddress("192.0.2.7".parse().unwrap()),
            SanType::IpAddress("2001:db8::7".parse().unwrap()),
            SanType::Rfc822Name(text("sbc@example.com")),
        ];
        let said = certificate("other.example.com", names);
        assert_eq!(
            said.names,
            ["DNS:sbc.example.com", "URI:sip:example.com", "IP:192.0.2.7", "IP:2001:db8::7"]
        );
        assert_eq!(said.sha256.len(), 64);
        assert_eq!(certificate("sbc.example.com", Vec::new()).names, ["CN:sbc.example.com"]);
    }

    #[test]
    fn names_that_are_none_are_left_out() {
        let bad = |name: &str| certificate("", vec![SanType::DnsName(text(name))]).names;
        assert!(bad("a\r\nforged: log line").is_empty());
        assert!(bad(&"x".repeat(CERTIFICATE_NAME_MAX + 1)).is_empty());
        let many = (0..2 * CERTIFICATE_NAMES_MAX).map(|n| SanType::DnsName(text(&format!("{n}.example"))));
        assert_eq!(certificate("", many.collect()).names.len(), CERTIFICATE_NAMES_MAX);
        assert!(of(b"no certificate").names.is_empty());
    }
}

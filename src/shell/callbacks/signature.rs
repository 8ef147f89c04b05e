//! `Sipreel-Signature: t=<seconds>,v1=<hex>`: HMAC-SHA256 over the seconds, a point and the body.
//!
//! The time is that of the attempt, so that a receiver can refuse a request that somebody has kept and sends again.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::clock::Wall;
use crate::limits::{CALLBACK_SECRET_MIN, CALLBACK_SECRETS_MAX};

pub const HEADER: &str = "Sipreel-Signature";

/// What the recorder and its receivers know and nobody else does. While a secret is being changed there are two, and each
/// request carries a signature by each.
#[derive(Clone)]
pub struct Secrets(Vec<Vec<u8>>);

impl Secrets {
    /// A secret a line; what is around it is not part of it. The error says what is wrong with the file.
    pub fn parse(file: &[u8]) -> Result<Secrets, String> {
        let lines = file.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        let secrets: Vec<Vec<u8>> = lines.filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect();
        if secrets.iter().any(|secret| secret.len() < CALLBACK_SECRET_MIN) {
            return Err(format!("has a secret of fewer than {CALLBACK_SECRET_MIN} bytes"));
        }
        match secrets.len() {
            0 => Err("is empty".into()),
            n if n > CALLBACK_SECRETS_MAX => {
                Err(format!("has {n} secrets, and {CALLBACK_SECRETS_MAX} are used"))
            }
            _ => Ok(Secrets(secrets)),
        }
    }

    /// The value of the header.
    pub fn sign(&self, now: Wall, body: &[u8]) -> String {
        let seconds = now.0 / 1_000_000_000;
        let mut value = format!("t={seconds}");
        for secret in &self.0 {
            let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes a key of any length");
            mac.update(format!("{seconds}.").as_bytes());
            mac.update(body);
            value += ",v1=";
            value.extend(mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")));
        }
        value
    }
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} secrets", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_the_one_that_openssl_makes() {
        let secrets = Secrets::parse(b"0123456789abcdef\n").unwrap();
        // printf '1700000000.{"a":1}' | openssl dgst -sha256 -hmac 0123456789abcdef
        assert_eq!(
            secrets.sign(Wall(1_700_000_000_999_999_999), b"{\"a\":1}"),
            "t=1700000000,v1=9eb18f493f8ec135d9eb2dad817c369bb4e9cbfa818657897a7437c1cd8c3a23"
        );
    }

    #[test]
    fn while_a_secret_is_changed_both_sign() {
        let both = Secrets::parse(b" new-new-new-new-new \r\n\nold-old-old-old-old").unwrap();
        let new = Secrets::parse(b"new-new-new-new-new").unwrap();
        let old = Secrets::parse(b"old-old-old-old-old").unwrap();
        let (now, body) = (Wall(5_000_000_000), b"x");
        let old = old.sign(now, body);
        assert_eq!(both.sign(now, body), format!("{}{}", new.sign(now, body), &old[3..]));
        assert!(!format!("{both:?}").contains("old"));
    }

    #[test]
    fn secrets_that_protect_nothing_are_refused() {
        for (file, why) in [
            (&b""[..], "is empty"),
            (b" \n\n", "is empty"),
            (b"short", "fewer than 16"),
            (b"0123456789abcdef\nshort\n", "fewer than 16"),
            (b"0123456789abcdef\n0123456789abcdeg\n0123456789abcdeh\n", "has 3 secrets"),
        ] {
            assert!(Secrets::parse(file).unwrap_err().contains(why), "{file:?}");
        }
    }
}

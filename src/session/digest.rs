//! Digest authentication (RFC 7616, RFC 8760): who may ask for a recording, proved by a password that never travels.
//!
//! A nonce is its time and a random number under an HMAC, so that whoever only asks costs no memory. What is kept is how often
//! each nonce was used by somebody who knew a password.

use hmac::{Hmac, KeyInit, Mac};
use md5::Md5;
use rand::Rng;
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::hint::black_box;
use std::num::NonZeroU32;

use crate::clock::Mono;
use crate::limits::{AUTH_USERS_MAX, NONCE_LIFETIME, NONCES_MAX};
use crate::proto::sip::Authorization;

/// In the order in which they are offered: the best first (RFC 8760 §2.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Algorithm {
    Sha256,
    Md5,
}

impl Algorithm {
    const ALL: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Md5];

    fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "SHA-256",
            Algorithm::Md5 => "MD5",
        }
    }

    /// Hexadecimal digits of the hash of these, colons between them.
    fn hash(self, parts: &[&str]) -> String {
        let text = parts.join(":");
        match self {
            Algorithm::Sha256 => hexadecimal(&Sha256::digest(text)),
            Algorithm::Md5 => hexadecimal(&Md5::digest(text)),
        }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Who is known, and by what: `--auth-users`.
#[derive(Clone, Default)]
pub struct Credentials {
    realm: String,
    /// H(user:realm:password) by each algorithm, in lower case.
    users: HashMap<String, [Option<String>; 2]>,
}

/// Names and hashes are for no log.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({} users of {:?})", self.users.len(), self.realm)
    }
}

impl Credentials {
    /// Lines of `user:realm:hash`, as htdigest writes them; 32 hexadecimal digits are MD5, 64 SHA-256. A user may have
    /// a line of each. Empty lines and those that begin with `#` say nothing. The error is a sentence for the operator.
    pub fn parse(text: &str) -> Result<Credentials, String> {
        let mut credentials = Credentials::default();
        for (number, line) in text.lines().enumerate().map(|(index, line)| (index + 1, line.trim())) {
            if !line.is_empty() && !line.starts_with('#') {
                credentials.line(line).map_err(|what| format!("line {number} {what}"))?;
            }
        }
        if credentials.users.is_empty() {
            return Err("names no user: write lines of user:realm:hash".to_owned());
        }
        Ok(credentials)
    }

    fn line(&mut self, line: &str) -> Result<(), String> {
        let (user, rest) = line.split_once(':').ok_or("is not user:realm:hash")?;
        let (realm, hash) = rest.rsplit_once(':').ok_or("is not user:realm:hash")?;
        let algorithm = match hash.len() {
            64 => Algorithm::Sha256,
            32 => Algorithm::Md5,
            _ => return Err("has a hash of neither 32 (MD5) nor 64 (SHA-256) hexadecimal digits".to_owned()),
        };
        if !hash.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err("has a hash that is not hexadecimal".to_owned());
        }
        if user.is_empty() || realm.is_empty() || line.contains(['"', '\\']) {
            return Err("has no user or no realm, or a quote or backslash in one".to_owned());
        }
        if self.users.is_empty() {
            realm.clone_into(&mut self.realm);
        }
        if realm != self.realm {
            return Err(format!("has the realm {realm}, and those before it {}: use one", self.realm));
        }
        if self.users.len() >= AUTH_USERS_MAX {
            return Err(format!("is one user more than the {AUTH_USERS_MAX} that are taken"));
        }
        let hashes = self.users.entry(user.to_owned()).or_default();
        match hashes[algorithm as usize].replace(hash.to_ascii_lowercase()) {
            Some(_) => Err(format!("is the second of {user} with {}", algorithm.name())),
            None => Ok(()),
        }
    }

    /// What is worth offering: an algorithm by which nobody is known lets nobody in.
    fn algorithms(&self) -> impl Iterator<Item = Algorithm> {
        let known =
            |algorithm: &Algorithm| self.users.values().any(|hashes| hashes[*algorithm as usize].is_some());
        Algorithm::ALL.into_iter().filter(known)
    }
}

/// Why a request is not taken as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unproved {
    /// It says nothing of who sends it, or nothing that is meant for here.
    Anonymous,
    /// The password was right, and the nonce is too old or was used already.
    Stale,
    /// There is no such user, or the password is another.
    Wrong,
}

/// Asks for proof, and checks it.
#[derive(Debug)]
pub struct Guard {
    credentials: Credentials,
    offered: Vec<Algorithm>,
    key: [u8; 32],
    used: BTreeMap<Nonce, Counts>,
    /// No nonce up to this one is taken any more, unless its counts are there.
    forgotten: Option<Nonce>,
}

/// Ordered by time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Nonce {
    made: Mono,
    random: u64,
}

/// The counts that came with a nonce: the highest, and which of the 64 up to it.
#[derive(Clone, Copy, Debug)]
struct Counts {
    highest: u32,
    seen: u64,
}

impl Guard {
    pub fn new(credentials: Credentials, rng: &mut impl Rng) -> Guard {
        let offered = credentials.algorithms().collect();
        Guard { credentials, offered, key: rng.random(), used: BTreeMap::new(), forgotten: None }
    }

    /// A value of WWW-Authenticate for each algorithm, all with one new nonce.
    pub fn challenges(&self, now: Mono, random: u64, stale: bool) -> Vec<String> {
        let nonce = self.written(Nonce { made: now, random });
        let realm = &self.credentials.realm;
        let stale = if stale { ", stale=true" } else { "" };
        let challenge = |algorithm: &Algorithm| {
            let name = algorithm.name();
            format!("Digest realm=\"{realm}\", nonce=\"{nonce}\", algorithm={name}, qop=\"auth\"{stale}")
        };
        self.offered.iter().map(challenge).collect()
    }

    /// Whether one of these Authorization values proves who sends a request of this method.
    pub fn check<'a>(
        &mut self,
        now: Mono,
        method: &str,
        values: impl Iterator<Item = &'a [u8]>,
    ) -> Result<(), Unproved> {
        let mut outcome = Err(Unproved::Anonymous);
        for authorization in values.filter_map(Authorization::parse) {
            if outcome.is_ok() || authorization.realm != self.credentials.realm {
                continue;
            }
            outcome = self.proof(now, method, &authorization);
        }
        outcome
    }

    /// The nonce is ours, then the password is right, then the nonce is fresh: only who knows a password costs memory or
    /// learns that a nonce was good.
    fn proof(&mut self, now: Mono, method: &str, given: &Authorization) -> Result<(), Unproved> {
        let nonce = self.read(given.nonce).ok_or(Unproved::Anonymous)?;
        // Without a quality of protection there would be no count, and so no defence against a repetition.
        let (Some("auth"), Some(cnonce), Some(count)) = (given.qop, given.cnonce, given.nc) else {
            return Err(Unproved::Anonymous);
        };
        let name = given.algorithm.unwrap_or(Algorithm::Md5.name());
        let offered = |algorithm: &&Algorithm| algorithm.name().eq_ignore_ascii_case(name);
        let algorithm = *self.offered.iter().find(offered).ok_or(Unproved::Anonymous)?;
        let known =
            self.credentials.users.get(given.username).and_then(|user| user[algorithm as usize].as_deref());
        // The work is the same for a user who is not there.
        let expected =
            response(algorithm, known.unwrap_or_default(), given.nonce, count, cnonce, method, given.uri);
        if !equal(expected.as_bytes(), given.response.to_ascii_lowercase().as_bytes()) || known.is_none() {
            return Err(Unproved::Wrong);
        }
        let count = (count.len() == 8).then(|| u32::from_str_radix(count, 16).ok()).flatten();
        let count = count.and_then(NonZeroU32::new).ok_or(Unproved::Wrong)?;
        self.fresh(now, nonce, count).then_some(()).ok_or(Unproved::Stale)
    }

    /// Whether this count of this nonce comes for the first time, and in time. Counts may overtake each other a little, as
    /// datagrams do.
    fn fresh(&mut self, now: Mono, nonce: Nonce, count: NonZeroU32) -> bool {
        if now.since(nonce.made) > NONCE_LIFETIME || nonce.made > now {
            return false;
        }
        let forgotten = self.forgotten.is_some_and(|forgotten| nonce <= forgotten);
        let new = Counts { highest: 0, seen: 0 };
        let fresh = match self.used.get_mut(&nonce) {
            Some(counts) => counts.take(count.get()),
            None if forgotten => false,
            None => self.used.entry(nonce).or_insert(new).take(count.get()),
        };
        while let Some((oldest, _)) = self.used.first_key_value() {
            if self.used.len() <= NONCES_MAX && now.since(oldest.made) <= NONCE_LIFETIME {
                break;
            }
            self.forgotten = self.used.pop_first().map(|(nonce, _)| nonce).max(self.forgotten);
        }
        fresh
    }

    /// Time, random number and the first half of their HMAC, in hexadecimal digits.
    fn written(&self, nonce: Nonce) -> String {
        let Nonce { made, random } = nonce;
        let plain = format!("{:016x}{random:016x}", made.0);
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes a key of any length");
        mac.update(plain.as_bytes());
        plain + &hexadecimal(&mac.finalize().into_bytes()[..16])
    }

    /// `None` if it is not one that this recorder has made since it was started.
    fn read(&self, text: &str) -> Option<Nonce> {
        let number = |range| u64::from_str_radix(text.get(range)?, 16).ok();
        let nonce = Nonce { made: Mono(number(0..16)?), random: number(16..32)? };
        equal(self.written(nonce).as_bytes(), text.as_bytes()).then_some(nonce)
    }
}

impl Counts {
    fn take(&mut self, count: u32) -> bool {
        let ahead = count.saturating_sub(self.highest);
        if ahead > 0 {
            self.seen = self.seen.checked_shl(ahead).unwrap_or(0) | 1;
            self.highest = count;
            return true;
        }
        let bit = 1u64.checked_shl(self.highest - count).unwrap_or(0);
        let fresh = bit != 0 && self.seen & bit == 0;
        self.seen |= bit;
        fresh
    }
}

/// RFC 7616 §3.4.1 with `qop=auth`.
fn response(
    algorithm: Algorithm,
    secret: &str,
    nonce: &str,
    count: &str,
    cnonce: &str,
    method: &str,
    uri: &str,
) -> String {
    let request = algorithm.hash(&[method, uri]);
    algorithm.hash(&[secret, nonce, count, cnonce, "auth", &request])
}

/// In a time that tells nothing of where they differ.
fn equal(a: &[u8], b: &[u8]) -> bool {
    let differing = a.iter().zip(b).fold(0, |differing, (a, b)| black_box(differing | (a ^ b)));
    a.len() == b.len() && differing == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use std::time::Duration;

    const REALM: &str = "recorders";
    const NOW: Mono = Mono(1_000_000_000_000);

    /// Bob has both hashes, Ann only that of MD5.
    fn guard() -> Guard {
        let line = |algorithm: Algorithm, user: &str| {
            format!("{user}:{REALM}:{}\n", algorithm.hash(&[user, REALM, "secret"]))
        };
        let text = line(Algorithm::Sha256, "bob")
            + "# old\n\n"
            + &line(Algorithm::Md5, "bob")
            + &line(Algorithm::Md5, "ann");
        Guard::new(Credentials::parse(&text).unwrap(), &mut StdRng::seed_from_u64(5))
    }

    fn nonce_of(challenge: &str) -> &str {
        challenge.split("nonce=\"").nth(1).unwrap().split('"').next().unwrap()
    }

    /// What a client answers to a challenge with this nonce.
    fn answer(algorithm: Algorithm, (user, password): (&str, &str), nonce: &str, count: u32) -> String {
        let secret = algorithm.hash(&[user, REALM, password]);
        let count = format!("{count:08x}");
        let uri = "sip:srs@192.0.2.10";
        let proof = response(algorithm, &secret, nonce, &count, "c0ffee", "INVITE", uri);
        format!(
            "Digest username=\"{user}\", realm=\"{REALM}\", nonce=\"{nonce}\", uri=\"{uri}\", response=\"{proof}\", \
             algorithm={}, cnonce=\"c0ffee\", qop=auth, nc={count}",
            algorithm.name()
        )
    }

    fn check(guard: &mut Guard, now: Mono, value: &str) -> Result<(), Unproved> {
        guard.check(now, "INVITE", [value.as_bytes()].into_iter())
    }

    /// RFC 7616 §3.9.1
    #[test]
    fn responses_as_the_rfc_has_them() {
        for (algorithm, expected) in [
            (Algorithm::Md5, "8ca523f5e9506fed4657c9700eebdbec"),
            (Algorithm::Sha256, "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"),
        ] {
            let secret = algorithm.hash(&["Mufasa", "http-auth@example.org", "Circle of Life"]);
            let nonce = "7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v";
            let cnonce = "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ";
            let response = response(algorithm, &secret, nonce, "00000001", cnonce, "GET", "/dir/index.html");
            assert_eq!(response, expected);
        }
    }

    #[test]
    fn sha_256_is_offered_before_md5() {
        let challenges = guard().challenges(NOW, 7, false);
        assert_eq!(challenges.len(), 2);
        assert!(challenges[0].starts_with("Digest realm=\"recorders\", nonce=\""), "{}", challenges[0]);
        assert!(challenges[0].ends_with("algorithm=SHA-256, qop=\"auth\""), "{}", challenges[0]);
        assert!(challenges[1].contains("algorithm=MD5"));
        assert!(guard().challenges(NOW, 7, true)[0].ends_with(", stale=true"));
        let md5 = format!("ann:{REALM}:{}", "0".repeat(32));
        let guard = Guard::new(Credentials::parse(&md5).unwrap(), &mut StdRng::seed_from_u64(5));
        assert_eq!(guard.challenges(NOW, 7, false).len(), 1, "nobody is known by SHA-256");
    }

    #[test]
    fn who_knows_the_password_passes() {
        let mut guard = guard();
        let challenge = guard.challenges(NOW, 7, false).remove(0);
        let nonce = nonce_of(&challenge);
        let (bob, ann) = (("bob", "secret"), ("ann", "secret"));
        assert_eq!(check(&mut guard, NOW, &answer(Algorithm::Sha256, bob, nonce, 1)), Ok(()));
        assert_eq!(check(&mut guard, NOW, &answer(Algorithm::Md5, ann, nonce, 2)), Ok(()));
        let wrong = [
            answer(Algorithm::Sha256, ("bob", "Secret"), nonce, 3),
            answer(Algorithm::Sha256, ann, nonce, 3),
            answer(Algorithm::Md5, ("eve", "secret"), nonce, 3),
            answer(Algorithm::Md5, ann, nonce, 3).replace("sip:srs", "sip:another"),
            answer(Algorithm::Md5, ann, nonce, 0),
        ];
        for value in wrong {
            assert_eq!(check(&mut guard, NOW, &value), Err(Unproved::Wrong), "{value}");
        }
        let other = guard.check(NOW, "BYE", [answer(Algorithm::Md5, ann, nonce, 4).as_bytes()].into_iter());
        assert_eq!(other, Err(Unproved::Wrong), "proof for one method is none for another");
    }

    #[test]
    fn what_proves_nothing() {
        let mut guard = guard();
        let challenge = guard.challenges(NOW, 7, false).remove(0);
        let good = answer(Algorithm::Md5, ("ann", "secret"), nonce_of(&challenge), 1);
        let tampered = nonce_of(&challenge).replacen('0', "1", 1);
        let anonymous = [
            String::new(),
            "Basic YTpi".to_owned(),
            good.replace(REALM, "elsewhere"),
            good.replace(", qop=auth", ""),
            good.replace("algorithm=MD5", "algorithm=SHA-512-256"),
            answer(Algorithm::Md5, ("ann", "secret"), &tampered, 1),
            answer(Algorithm::Md5, ("ann", "secret"), "", 1),
            answer(Algorithm::Md5, ("ann", "secret"), &"é".repeat(32), 1),
        ];
        for value in anonymous {
            assert_eq!(check(&mut guard, NOW, &value), Err(Unproved::Anonymous), "{value}");
        }
        assert!(guard.used.is_empty(), "nobody has cost any memory yet");
        let both = ["Basic YTpi", &good];
        assert_eq!(guard.check(NOW, "INVITE", both.iter().map(|value| value.as_bytes())), Ok(()));
    }

    #[test]
    fn a_count_passes_once() {
        let mut guard = guard();
        let challenge = guard.challenges(NOW, 7, false).remove(0);
        let nonce = nonce_of(&challenge).to_owned();
        let mut use_count =
            |count| check(&mut guard, NOW, &answer(Algorithm::Md5, ("ann", "secret"), &nonce, count));
        assert_eq!(use_count(1), Ok(()));
        assert_eq!(use_count(1), Err(Unproved::Stale));
        assert_eq!((use_count(5), use_count(3), use_count(3)), (Ok(()), Ok(()), Err(Unproved::Stale)));
        assert_eq!((use_count(200), use_count(137), use_count(136)), (Ok(()), Ok(()), Err(Unproved::Stale)));
        assert_eq!((use_count(u32::MAX), use_count(u32::MAX)), (Ok(()), Err(Unproved::Stale)));
    }

    #[test]
    fn a_nonce_grows_old() {
        let mut guard = guard();
        let challenge = guard.challenges(NOW, 7, false).remove(0);
        let last = NOW + NONCE_LIFETIME;
        let value = |count| answer(Algorithm::Md5, ("ann", "secret"), nonce_of(&challenge), count);
        assert_eq!(check(&mut guard, last, &value(1)), Ok(()));
        assert_eq!(check(&mut guard, last + Duration::from_nanos(1), &value(2)), Err(Unproved::Stale));
    }

    /// More nonces than are remembered: those that were forgotten are not taken again.
    #[test]
    fn memory_is_bounded_and_nothing_passes_twice() {
        let mut guard = guard();
        let first = guard.challenges(NOW, 0, false).remove(1);
        let value =
            |challenge: &str, count| answer(Algorithm::Md5, ("ann", "secret"), nonce_of(challenge), count);
        assert_eq!(check(&mut guard, NOW, &value(&first, 1)), Ok(()));
        for n in 1..=NONCES_MAX as u64 {
            let made = Mono(NOW.0 + n);
            assert!(guard.fresh(made, Nonce { made, random: n }, NonZeroU32::MIN));
        }
        assert_eq!(guard.used.len(), NONCES_MAX);
        let later = Mono(NOW.0 + NONCES_MAX as u64);
        assert_eq!(check(&mut guard, later, &value(&first, 1)), Err(Unproved::Stale));
        assert_eq!(check(&mut guard, later, &value(&first, 2)), Err(Unproved::Stale));
        let much_later = later + NONCE_LIFETIME * 2;
        assert!(guard.fresh(much_later, Nonce { made: much_later, random: 1 }, NonZeroU32::MIN));
        assert_eq!(guard.used.len(), 1, "old ones go when new ones come");
    }

    #[test]
    fn files_that_name_nobody_in_particular() {
        let hash = "0".repeat(32);
        for (text, what) in [
            (String::new(), "names no user"),
            ("# nobody\n".to_owned(), "names no user"),
            ("bob".to_owned(), "line 1 is not user:realm:hash"),
            ("bob:secret".to_owned(), "line 1 is not user:realm:hash"),
            ("bob:r:secret".to_owned(), "neither 32 (MD5) nor 64"),
            (format!("bob:r:{}", "x".repeat(32)), "not hexadecimal"),
            (format!(":r:{hash}"), "no user"),
            (format!("\nbob:r:{hash}\nann:s:{hash}"), "line 3 has the realm s, and those before it r"),
            (format!("bob:r:{hash}\nbob:r:{hash}"), "line 2 is the second of bob with MD5"),
        ] {
            let error = Credentials::parse(&text).map(|_| ()).unwrap_err();
            assert!(error.contains(what), "{text:?}: {error}");
        }
        let shown = format!("{:?}", Credentials::parse(&format!("bob:a:b:{hash}")).unwrap());
        assert_eq!(shown, "Credentials(1 users of \"a:b\")");
    }
}

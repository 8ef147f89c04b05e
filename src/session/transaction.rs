//! Server transactions (RFC 3261 §17.2, RFC 6026 §7): a request that comes again is answered again, and done once.
//!
//! ```text
//! INVITE      Proceeding ─2xx─▶ Accepted ───────────────timer L─▶ gone     the 2xx is repeated by the session (§13.3.1.4)
//!                 └──3xx…6xx──▶ Completed ─ACK─▶ Confirmed ─I───▶ gone     repeated here (timer G) until ACK or timer H
//! others      Proceeding ─final response─▶ Completed ─────────────timer J─▶ gone
//! ```
//!
//! A request that is not an INVITE has no provisional response here; an UPDATE that changes streams waits in Proceeding.

use bytes::Bytes;
use rand::Rng;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher};
use std::time::Duration;

use super::timers::Timers;
use super::{Flow, RecordingKey};
use crate::clock::Mono;
use crate::limits::{T1, T2, T4, TRANSACTION_BYTES_MAX, TRANSACTION_TIMEOUT};
use crate::proto::sip::{Checked, Method};

/// What makes two requests the same transaction, or the same request over two ways: 128 bits of a keyed hash, so that
/// a peer can neither choose them nor make them long.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Identity(u128);

/// The key of the hash.
#[derive(Debug)]
pub struct Fingerprint {
    seeds: [u64; 2],
}

impl Fingerprint {
    pub fn new(rng: &mut impl Rng) -> Fingerprint {
        Fingerprint { seeds: [rng.random(), rng.random()] }
    }

    /// The transaction that a request of `method` with this Via, Call-ID and CSeq belongs to. An ACK belongs to its INVITE;
    /// of a CANCEL, `Method::Invite` gives the transaction that it wants to end (§9.2).
    pub fn transaction(&self, request: &Checked, method: Method) -> Identity {
        let via = &request.via;
        let host = via.host.to_ascii_lowercase();
        let port = via.port.unwrap_or(5060).to_be_bytes();
        let method = match method {
            Method::Ack => Method::Invite.text(),
            Method::Other => request.method_text,
            named => named.text(),
        };
        let branch = via.branch.unwrap_or_default();
        if has_magic_cookie(branch) {
            return self.digest(&[b"3261", branch.as_bytes(), host.as_bytes(), &port, method.as_bytes()]);
        }
        // §17.2.3 for peers of RFC 2543. The To tag is left out: CSeq tells the requests of a dialog apart already, and
        // the ACK has a tag that its INVITE had not.
        let cseq = request.cseq.number.to_be_bytes();
        self.digest(&[
            b"2543",
            request.uri.as_bytes(),
            request.from_tag.as_bytes(),
            request.call_id.as_bytes(),
            &cseq,
            branch.as_bytes(),
            host.as_bytes(),
            &port,
            method.as_bytes(),
        ])
    }

    /// Equal for copies of one request that came over different ways (§8.2.2.2). Only requests without a To tag have it.
    pub fn merge(&self, request: &Checked) -> Option<Identity> {
        let cseq = request.cseq.number.to_be_bytes();
        let parts = [
            b"merge",
            request.from_tag.as_bytes(),
            request.call_id.as_bytes(),
            &cseq,
            request.cseq.text.as_bytes(),
        ];
        request.to_tag.is_none().then(|| self.digest(&parts))
    }

    /// The same tag whenever the same bytes come: what a stateless answer needs (§8.2.7).
    pub fn tag(&self, bytes: &[u8]) -> u64 {
        self.digest(&[b"tag", bytes]).0 as u64
    }

    fn digest(&self, parts: &[&[u8]]) -> Identity {
        let [low, high] = self.seeds.map(|seed| {
            let mut hasher = DefaultHasher::new();
            hasher.write_u64(seed);
            for part in parts {
                hasher.write_usize(part.len());
                hasher.write(part);
            }
            hasher.finish()
        });
        Identity(u128::from(high) << 64 | u128::from(low))
    }
}

fn has_magic_cookie(branch: &str) -> bool {
    branch.get(..7).is_some_and(|start| start.eq_ignore_ascii_case("z9hG4bK"))
}

/// A transaction, as long as it lives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TransactionId {
    index: u32,
    generation: u32,
}

/// No room for another transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

/// A response to be sent again.
#[derive(Debug)]
pub struct Resend {
    pub flow: Flow,
    pub bytes: Bytes,
    pub owner: Option<RecordingKey>,
}

/// What an ACK was for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Acknowledged {
    /// A 3xx…6xx: it ends here.
    Failure,
    /// A 2xx: it belongs to the dialog, though it came with the branch of its INVITE.
    Success,
}

#[derive(Debug)]
pub struct Transactions {
    by_identity: HashMap<Identity, TransactionId>,
    by_merge: HashMap<Identity, TransactionId>,
    entries: Vec<Entry>,
    free: Vec<u32>,
    timers: Timers<TransactionId>,
    max: usize,
    /// Bytes of the responses kept.
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    generation: u32,
    transaction: Option<Transaction>,
}

#[derive(Debug)]
struct Transaction {
    identity: Identity,
    merge: Option<Identity>,
    invite: bool,
    state: State,
    /// Where the responses go.
    flow: Flow,
    owner: Option<RecordingKey>,
    response: Option<Bytes>,
    /// Timer G, and the interval it will have next.
    retransmit: Option<(Mono, Duration)>,
    /// Timer H, I, J or L.
    ends: Option<Mono>,
    armed: Option<Mono>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Proceeding,
    Accepted,
    Completed,
    Confirmed,
}

impl Transactions {
    pub fn new(max: usize) -> Transactions {
        Transactions {
            by_identity: HashMap::new(),
            by_merge: HashMap::new(),
            entries: Vec::new(),
            free: Vec::new(),
            timers: Timers::new(),
            max,
            bytes: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    pub fn find(&self, identity: Identity) -> Option<TransactionId> {
        self.by_identity.get(&identity).copied()
    }

    /// Whether a transaction with this merge identity is alive.
    pub fn merged(&self, merge: Option<Identity>) -> bool {
        merge.is_some_and(|merge| self.by_merge.contains_key(&merge))
    }

    /// A new request, whose responses go to `flow`.
    pub fn begin(
        &mut self,
        identity: Identity,
        merge: Option<Identity>,
        invite: bool,
        flow: Flow,
    ) -> Result<TransactionId, Full> {
        if self.len() >= self.max || self.bytes >= TRANSACTION_BYTES_MAX {
            return Err(Full);
        }
        let transaction = Transaction {
            identity,
            merge,
            invite,
            state: State::Proceeding,
            flow,
            owner: None,
            response: None,
            retransmit: None,
            ends: None,
            armed: None,
        };
        let id = self.place(transaction);
        self.by_identity.insert(identity, id);
        if let Some(merge) = merge {
            self.by_merge.entry(merge).or_insert(id);
        }
        Ok(id)
    }

    /// The recording in whose dialog the request is: what is sent again is part of it.
    pub fn own(&mut self, id: TransactionId, owner: RecordingKey) {
        if let Some(transaction) = self.get_mut(id) {
            transaction.owner = Some(owner);
        }
    }

    pub fn owner(&self, id: TransactionId) -> Option<RecordingKey> {
        self.get(id)?.owner
    }

    /// A response has been sent.
    pub fn respond(&mut self, now: Mono, id: TransactionId, code: u16, bytes: Bytes) {
        self.keep(id, Some(bytes));
        let Some(transaction) = self.get_mut(id).filter(|t| t.state == State::Proceeding && code >= 200)
        else {
            return;
        };
        let reliable = transaction.flow.transport.reliable();
        transaction.ends = Some(now + TRANSACTION_TIMEOUT);
        match (transaction.invite, code) {
            (true, 200..300) => transaction.state = State::Accepted,
            (true, _) => {
                transaction.state = State::Completed;
                transaction.retransmit = (!reliable).then_some((now + T1, T1 * 2));
            }
            // Timer J is zero on reliable transports.
            (false, _) if reliable => return self.remove(id),
            (false, _) => transaction.state = State::Completed,
        }
        self.arm(id);
    }

    /// The request has come again: what to send again, if anything.
    pub fn again(&self, id: TransactionId) -> Option<Resend> {
        let transaction = self.get(id)?;
        if transaction.state == State::Confirmed {
            return None;
        }
        let bytes = transaction.response.clone()?;
        Some(Resend { flow: transaction.flow, bytes, owner: transaction.owner })
    }

    /// An ACK with the branch of this INVITE has come.
    pub fn ack(&mut self, now: Mono, id: TransactionId) -> Acknowledged {
        let Some(transaction) = self.get_mut(id) else { return Acknowledged::Failure };
        match transaction.state {
            State::Proceeding | State::Accepted => Acknowledged::Success,
            State::Confirmed => Acknowledged::Failure,
            State::Completed => {
                transaction.state = State::Confirmed;
                transaction.retransmit = None;
                let reliable = transaction.flow.transport.reliable();
                transaction.ends = Some(now + if reliable { Duration::ZERO } else { T4 });
                self.keep(id, None);
                if reliable {
                    self.remove(id)
                } else {
                    self.arm(id)
                }
                Acknowledged::Failure
            }
        }
    }

    /// The 2xx of this INVITE is acknowledged: from now on a copy of the INVITE is absorbed (RFC 6026 §7.1).
    pub fn acknowledged(&mut self, id: TransactionId) {
        self.keep(id, None);
    }

    /// What has to be sent again by now.
    pub fn timeout(&mut self, now: Mono, resend: &mut Vec<Resend>) {
        while let Some(id) = self.timers.pop(now) {
            let Some(transaction) = self.get_mut(id) else { continue };
            if transaction.ends.is_some_and(|ends| ends <= now) {
                self.remove(id);
                continue;
            }
            if let Some((_, interval)) = transaction.retransmit.filter(|(at, _)| *at <= now) {
                transaction.retransmit = Some((now + interval, (interval * 2).min(T2)));
                resend.extend(self.again(id));
            }
            self.arm(id);
        }
    }

    pub fn next(&self) -> Option<Mono> {
        self.timers.next()
    }

    fn place(&mut self, transaction: Transaction) -> TransactionId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.entries.push(Entry { generation: 0, transaction: None });
            self.entries.len() as u32 - 1
        });
        let entry = &mut self.entries[index as usize];
        entry.transaction = Some(transaction);
        TransactionId { index, generation: entry.generation }
    }

    fn remove(&mut self, id: TransactionId) {
        self.keep(id, None);
        let entry = &mut self.entries[id.index as usize];
        let Some(mut transaction) = entry.transaction.take() else { return };
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(id.index);
        self.timers.set(&mut transaction.armed, id, None);
        self.by_identity.remove(&transaction.identity);
        if let Some(merge) = transaction.merge.filter(|merge| self.by_merge.get(merge) == Some(&id)) {
            self.by_merge.remove(&merge);
        }
    }

    fn get(&self, id: TransactionId) -> Option<&Transaction> {
        self.entries
            .get(id.index as usize)
            .filter(|entry| entry.generation == id.generation)?
            .transaction
            .as_ref()
    }

    fn get_mut(&mut self, id: TransactionId) -> Option<&mut Transaction> {
        let entry =
            self.entries.get_mut(id.index as usize).filter(|entry| entry.generation == id.generation)?;
        entry.transaction.as_mut()
    }

    /// Replaces the response that is kept.
    fn keep(&mut self, id: TransactionId, response: Option<Bytes>) {
        let new = response.as_ref().map_or(0, Bytes::len);
        let Some(transaction) = self.get_mut(id) else { return };
        let old = std::mem::replace(&mut transaction.response, response).map_or(0, |bytes| bytes.len());
        self.bytes = self.bytes - old + new;
    }

    fn arm(&mut self, id: TransactionId) {
        let Some(transaction) = self.entries[id.index as usize].transaction.as_mut() else { return };
        let at = transaction.retransmit.map(|(at, _)| at).into_iter().chain(transaction.ends).min();
        self.timers.set(&mut transaction.armed, id, at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::sip::Message;
    use crate::session::Transport;

    const MS: Duration = Duration::from_millis(1);

    fn flow(transport: Transport) -> Flow {
        Flow {
            reactor: 0,
            transport,
            local: "192.0.2.1:5060".parse().unwrap(),
            peer: "192.0.2.2:5060".parse().unwrap(),
            listener: 0,
            connection: None,
        }
    }

    fn begin(transport: Transport, invite: bool) -> (Transactions, TransactionId) {
        let mut transactions = Transactions::new(4);
        let id = transactions.begin(Identity(1), Some(Identity(2)), invite, flow(transport)).unwrap();
        (transactions, id)
    }

    /// Milliseconds at which the response is sent again, until nothing is armed; and when that is.
    fn repeats(transactions: &mut Transactions) -> (Vec<u64>, u64) {
        let (mut times, mut last) = (Vec::new(), Mono(0));
        while let Some(at) = transactions.next() {
            let mut resend = Vec::new();
            transactions.timeout(at, &mut resend);
            times.extend(resend.iter().map(|_| at.0 / 1_000_000));
            last = at;
        }
        (times, last.0 / 1_000_000)
    }

    #[test]
    fn a_failure_is_repeated_by_timer_g_until_timer_h() {
        let (mut transactions, id) = begin(Transport::Udp, true);
        transactions.respond(Mono(0), id, 486, Bytes::from_static(b"486"));
        let every = [500, 1_500, 3_500, 7_500, 11_500, 15_500, 19_500, 23_500, 27_500, 31_500];
        assert_eq!(repeats(&mut transactions), (every.to_vec(), 32_000));
        assert_eq!((transactions.len(), transactions.bytes), (0, 0));
    }

    #[test]
    fn a_failure_is_not_repeated_on_a_stream() {
        let (mut transactions, id) = begin(Transport::Tcp, true);
        transactions.respond(Mono(0), id, 486, Bytes::from_static(b"486"));
        assert_eq!(repeats(&mut transactions), (vec![], 32_000));
    }

    #[test]
    fn an_ack_confirms_and_timer_i_absorbs_its_copies() {
        let (mut transactions, id) = begin(Transport::Udp, true);
        transactions.respond(Mono(0), id, 486, Bytes::from_static(b"486"));
        assert!(transactions.again(id).is_some());
        assert_eq!(transactions.ack(Mono(0) + 100 * MS, id), Acknowledged::Failure);
        assert_eq!(transactions.ack(Mono(0) + 200 * MS, id), Acknowledged::Failure);
        assert!(transactions.again(id).is_none());
        assert_eq!(repeats(&mut transactions), (vec![], 5_100));

        let (mut transactions, id) = begin(Transport::Tcp, true);
        transactions.respond(Mono(0), id, 486, Bytes::from_static(b"486"));
        transactions.ack(Mono(0), id);
        assert_eq!(transactions.len(), 0);
    }

    #[test]
    fn a_2xx_is_left_to_the_session_and_timer_l_ends_it() {
        for transport in [Transport::Udp, Transport::Tcp, Transport::Tls] {
            let (mut transactions, id) = begin(transport, true);
            transactions.respond(Mono(0), id, 100, Bytes::from_static(b"100"));
            assert_eq!(transactions.next(), None);
            transactions.respond(Mono(0), id, 200, Bytes::from_static(b"200"));
            assert_eq!(&transactions.again(id).unwrap().bytes[..], b"200");
            assert_eq!(transactions.ack(Mono(0), id), Acknowledged::Success);
            transactions.acknowledged(id);
            assert!(transactions.again(id).is_none());
            assert_eq!(repeats(&mut transactions), (vec![], 32_000));
        }
    }

    #[test]
    fn other_requests_are_remembered_for_timer_j() {
        let (mut transactions, id) = begin(Transport::Udp, false);
        transactions.respond(Mono(0), id, 200, Bytes::from_static(b"200"));
        assert_eq!(&transactions.again(id).unwrap().bytes[..], b"200");
        assert!(transactions.merged(Some(Identity(2))));
        assert_eq!(repeats(&mut transactions), (vec![], 32_000));
        assert!(!transactions.merged(Some(Identity(2))));

        let (mut transactions, id) = begin(Transport::Tcp, false);
        transactions.respond(Mono(0), id, 200, Bytes::from_static(b"200"));
        assert_eq!((transactions.len(), transactions.find(Identity(1))), (0, None));
    }

    #[test]
    fn there_is_room_for_so_many() {
        let mut transactions = Transactions::new(2);
        let first = transactions.begin(Identity(1), None, false, flow(Transport::Udp)).unwrap();
        transactions.begin(Identity(2), None, false, flow(Transport::Udp)).unwrap();
        assert_eq!(transactions.begin(Identity(3), None, false, flow(Transport::Udp)), Err(Full));
        transactions.respond(Mono(0), first, 200, Bytes::new());
        transactions.timeout(Mono(0) + TRANSACTION_TIMEOUT, &mut Vec::new());
        let third = transactions.begin(Identity(3), None, false, flow(Transport::Udp)).unwrap();
        assert_eq!(third.index, first.index);
        assert!(transactions.again(first).is_none(), "an id of the former occupant finds nothing");
    }

    #[test]
    fn what_makes_a_transaction() {
        let fingerprint = Fingerprint { seeds: [1, 2] };
        let identity = |method: &str, via: &str, cseq: u32| {
            let text = format!(
                "{method} sip:b@example.com SIP/2.0\r\nVia: SIP/2.0/UDP {via}\r\nFrom: <sip:a@example.com>;tag=1\r\n\
                 To: <sip:b@example.com>\r\nCall-ID: x\r\nCSeq: {cseq} {method}\r\nMax-Forwards: 70\r\n\
                 Contact: <sip:a@192.0.2.2>\r\nContent-Length: 0\r\n\r\n"
            );
            let message = Message::parse_datagram(text.as_bytes()).unwrap();
            let checked = message.check_request().unwrap();
            fingerprint.transaction(&checked, checked.method)
        };
        let invite = identity("INVITE", "Host.example.com:5060;branch=z9hG4bK1", 1);
        // The ACK of a failure; the port is 5060 when none is given, and host names have no case.
        assert_eq!(invite, identity("ACK", "host.example.com;branch=z9hG4bK1", 1));
        assert_eq!(
            invite,
            identity("INVITE", "host.example.com;branch=z9hG4bK1", 2),
            "the branch alone counts"
        );
        assert_ne!(invite, identity("CANCEL", "host.example.com;branch=z9hG4bK1", 1));
        assert_ne!(invite, identity("INVITE", "host.example.com;branch=z9hG4bK2", 1));
        assert_ne!(invite, identity("INVITE", "other.example.com;branch=z9hG4bK1", 1));
        // RFC 2543: branches without the cookie say nothing by themselves.
        let old = identity("INVITE", "host.example.com;branch=1", 1);
        assert_eq!(old, identity("ACK", "host.example.com;branch=1", 1));
        assert_ne!(old, identity("INVITE", "host.example.com;branch=1", 2));
    }
}

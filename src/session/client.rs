//! Client transactions of the requests that we send in dialogs: BYE, UPDATE, re-INVITE (RFC 3261 §17.1).
//!
//! A recording ends when its BYE is handed over (§15.1.1), so nobody waits for the answer but a drain. What became of the
//! others is told to their recording.

use bytes::Bytes;
use std::collections::HashMap;
use std::time::Duration;

use super::timers::Timers;
use super::{Flow, RecordingKey};
use crate::clock::Mono;
use crate::limits::{T1, T2, T4, TRANSACTION_TIMEOUT};

/// At most one of each [`Purpose`] per recording, for 37 s.
#[derive(Debug)]
pub struct Clients {
    /// By the number in the branch.
    clients: HashMap<u64, Client>,
    timers: Timers<u64>,
    /// Those without a final response.
    unanswered: usize,
}

/// What a request is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// The recording has ended with it.
    Bye,
    /// It asks for a complete description of the communication sessions (RFC 7866 §9.2).
    Snapshot,
    /// The session timer asks for it (RFC 4028 §10).
    Refresh,
}

/// Who is to be told what became of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asker {
    pub key: RecordingKey,
    pub purpose: Purpose,
}

/// What a response was to the transactions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Taken {
    /// No transaction has its branch.
    Stray,
    /// Provisional, or a copy of the final one.
    Absorbed(Asker),
    /// The final one. That of an INVITE has to be acknowledged: see [`Clients::acknowledged`].
    Final(Asker),
    /// A copy of the final one to an INVITE: this ACK has to be sent again.
    Again(Flow, Bytes),
}

/// What a timeout has to do.
#[derive(Debug, Default)]
pub struct Due {
    pub resend: Vec<(Flow, Bytes)>,
    /// No final response came in time: as good as 408 (§8.1.3.1).
    pub given_up: Vec<Asker>,
}

#[derive(Debug)]
struct Client {
    asker: Asker,
    invite: bool,
    /// That of an INVITE's final response.
    ack: Option<(Flow, Bytes)>,
    flow: Flow,
    bytes: Bytes,
    state: State,
    /// Timer A or E, and the interval it will have next; `None` on reliable transports, after the final response, and of
    /// an INVITE after the first provisional one.
    retransmit: Option<(Mono, Duration)>,
    /// Timer B or F, then D or K. A 1xx to an INVITE buys no time: our INVITEs ask nobody to pick up a telephone.
    ends: Mono,
    armed: Option<Mono>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Trying,
    Proceeding,
    Completed,
}

const COOKIE: &str = "z9hG4bK";

/// The branch parameter with this number in it.
pub fn branch(number: u64) -> String {
    format!("{COOKIE}{number:016x}")
}

/// The number in a branch of ours.
pub fn number(branch: &str) -> Option<u64> {
    u64::from_str_radix(branch.strip_prefix(COOKIE)?, 16).ok()
}

impl Clients {
    pub fn new() -> Clients {
        Clients { clients: HashMap::new(), timers: Timers::new(), unanswered: 0 }
    }

    /// The request has been sent for the first time.
    pub fn begin(&mut self, now: Mono, number: u64, asker: Asker, flow: Flow, bytes: Bytes) {
        let retransmit = (!flow.transport.reliable()).then_some((now + T1, T1 * 2));
        let ends = now + TRANSACTION_TIMEOUT;
        let invite = bytes.starts_with(b"INVITE ");
        let state = State::Trying;
        let client = Client { asker, invite, ack: None, flow, bytes, state, retransmit, ends, armed: None };
        self.clients.insert(number, client);
        self.unanswered += 1;
        self.arm(number);
    }

    /// Takes a response with this topmost branch.
    pub fn response(&mut self, now: Mono, branch: &str, code: u16) -> Taken {
        let Some((number, client)) =
            number(branch).and_then(|n| self.clients.get_mut(&n).map(|client| (n, client)))
        else {
            return Taken::Stray;
        };
        let asker = client.asker;
        if client.state == State::Completed {
            let ack = client.ack.clone().filter(|_| code >= 200);
            return ack.map_or(Taken::Absorbed(asker), |(flow, ack)| Taken::Again(flow, ack));
        }
        if code < 200 {
            client.state = State::Proceeding;
            client.retransmit = client.retransmit.filter(|_| !client.invite).map(|_| (now + T2, T2));
        } else {
            client.state = State::Completed;
            client.retransmit = None;
            self.unanswered -= 1;
            client.ends = match client.flow.transport.reliable() {
                _ if client.invite => now + TRANSACTION_TIMEOUT,
                true => now,
                false => now + T4,
            };
        }
        self.arm(number);
        if code < 200 { Taken::Absorbed(asker) } else { Taken::Final(asker) }
    }

    /// The final response of an INVITE with this branch has been acknowledged so.
    pub fn acknowledged(&mut self, branch: &str, flow: Flow, ack: Bytes) {
        if let Some(client) = number(branch).and_then(|number| self.clients.get_mut(&number)) {
            client.ack = Some((flow, ack));
        }
    }

    /// What has to be sent again, or is given up, by now.
    pub fn timeout(&mut self, now: Mono) -> Due {
        let mut due = Due::default();
        while let Some(number) = self.timers.pop(now) {
            let Some(client) = self.clients.get_mut(&number) else { continue };
            if client.ends <= now {
                if client.state != State::Completed {
                    self.unanswered -= 1;
                    due.given_up.push(client.asker);
                }
                self.clients.remove(&number);
                continue;
            }
            if let Some((at, interval)) = client.retransmit.filter(|(at, _)| *at <= now) {
                debug_assert!(at <= now);
                due.resend.push((client.flow, client.bytes.clone()));
                let next = if client.invite { interval * 2 } else { (interval * 2).min(T2) };
                client.retransmit = Some((now + interval, next));
            }
            self.arm(number);
        }
        due
    }

    pub fn next(&self) -> Option<Mono> {
        self.timers.next()
    }

    pub fn unanswered(&self) -> usize {
        self.unanswered
    }

    fn arm(&mut self, number: u64) {
        if let Some(client) = self.clients.get_mut(&number) {
            let at = client.retransmit.map_or(client.ends, |(at, _)| at.min(client.ends));
            self.timers.set(&mut client.armed, number, Some(at));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Transport;

    const ASKER: Asker =
        Asker { key: RecordingKey { reactor: 0, slot: 3, generation: 1 }, purpose: Purpose::Bye };

    fn begin(transport: Transport) -> Clients {
        begin_with(transport, b"BYE sip:a@b SIP/2.0")
    }

    fn begin_with(transport: Transport, request: &'static [u8]) -> Clients {
        let flow = flow(transport);
        let mut clients = Clients::new();
        clients.begin(Mono(0), 0xab, ASKER, flow, Bytes::from_static(request));
        clients
    }

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

    fn repeats(clients: &mut Clients) -> (Vec<u64>, u64) {
        let (mut times, mut last) = (Vec::new(), Mono(0));
        while let Some(at) = clients.next() {
            let due = clients.timeout(at);
            times.extend(due.resend.iter().map(|_| at.0 / 1_000_000));
            last = at;
        }
        assert_eq!((clients.unanswered(), clients.clients.len()), (0, 0));
        (times, last.0 / 1_000_000)
    }

    #[test]
    fn timer_e_repeats_until_timer_f() {
        let every = [500, 1_500, 3_500, 7_500, 11_500, 15_500, 19_500, 23_500, 27_500, 31_500];
        assert_eq!(repeats(&mut begin(Transport::Udp)), (every.to_vec(), 32_000));
        assert_eq!(repeats(&mut begin(Transport::Tcp)), (vec![], 32_000));
    }

    #[test]
    fn who_asked_is_told_that_nobody_answered() {
        let mut clients = begin(Transport::Tcp);
        assert_eq!(clients.timeout(Mono(0) + TRANSACTION_TIMEOUT).given_up, [ASKER]);
        let mut clients = begin(Transport::Tcp);
        clients.response(Mono(0), &branch(0xab), 200);
        assert_eq!(clients.timeout(Mono(0) + TRANSACTION_TIMEOUT).given_up, []);
    }

    #[test]
    fn a_final_response_ends_it_and_timer_k_absorbs_its_copies() {
        let mut clients = begin(Transport::Udp);
        for stranger in ["z9hG4bK00000000000000ac", "00000000000000ab"] {
            assert_eq!(clients.response(Mono(0), stranger, 200), Taken::Stray);
        }
        assert_eq!(clients.response(Mono(0), &branch(0xab), 200), Taken::Final(ASKER));
        assert_eq!(clients.unanswered(), 0);
        assert_eq!(clients.response(Mono(1), &branch(0xab), 200), Taken::Absorbed(ASKER));
        assert_eq!(repeats(&mut clients), (vec![], 5_000));
        assert_eq!(clients.response(Mono(1), &branch(0xab), 200), Taken::Stray);
    }

    #[test]
    fn an_invite_has_timers_a_b_and_d() {
        const INVITE: &[u8] = b"INVITE sip:a@b SIP/2.0";
        let every = [500, 1_500, 3_500, 7_500, 15_500, 31_500];
        assert_eq!(repeats(&mut begin_with(Transport::Udp, INVITE)), (every.to_vec(), 32_000));
        let mut clients = begin_with(Transport::Udp, INVITE);
        assert_eq!(clients.response(Mono(0), &branch(0xab), 100), Taken::Absorbed(ASKER));
        assert_eq!(clients.response(Mono(0), &branch(0xab), 200), Taken::Final(ASKER));
        let ack = Bytes::from_static(b"ACK");
        clients.acknowledged(&branch(0xab), flow(Transport::Udp), ack.clone());
        let again = Taken::Again(flow(Transport::Udp), ack);
        assert_eq!(clients.response(Mono(0), &branch(0xab), 200), again);
        assert_eq!(repeats(&mut clients), (vec![], 32_000));
    }

    #[test]
    fn a_provisional_response_slows_it_down() {
        let mut clients = begin(Transport::Udp);
        assert_eq!(clients.response(Mono(0), &branch(0xab), 100), Taken::Absorbed(ASKER));
        assert_eq!(
            repeats(&mut clients),
            (vec![4_000, 8_000, 12_000, 16_000, 20_000, 24_000, 28_000], 32_000)
        );
    }
}

//! Client transactions of the requests that we send: BYE, and nothing else (RFC 3261 §17.1.2).
//!
//! A recording ends when its BYE is handed over (§15.1.1), so nobody waits for the answer but a drain.

use bytes::Bytes;
use std::collections::HashMap;
use std::time::Duration;

use super::timers::Timers;
use super::{Flow, Transport};
use crate::clock::Mono;
use crate::limits::{T1, T2, T4, TRANSACTION_TIMEOUT};

/// At most one per recording that we end, for 37 s.
#[derive(Debug)]
pub struct Clients {
    /// By the number in the branch.
    clients: HashMap<u64, Client>,
    timers: Timers<u64>,
    /// Those without a final response.
    unanswered: usize,
}

#[derive(Debug)]
struct Client {
    flow: Flow,
    bytes: Bytes,
    state: State,
    /// Timer E, and the interval it will have next; `None` on reliable transports and after the final response.
    retransmit: Option<(Mono, Duration)>,
    /// Timer F, then K.
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

fn number(branch: &str) -> Option<u64> {
    u64::from_str_radix(branch.strip_prefix(COOKIE)?, 16).ok()
}

impl Clients {
    pub fn new() -> Clients {
        Clients { clients: HashMap::new(), timers: Timers::new(), unanswered: 0 }
    }

    /// The request has been sent for the first time.
    pub fn begin(&mut self, now: Mono, number: u64, flow: Flow, bytes: Bytes) {
        let retransmit = (flow.transport == Transport::Udp).then_some((now + T1, T1 * 2));
        let ends = now + TRANSACTION_TIMEOUT;
        let client = Client { flow, bytes, state: State::Trying, retransmit, ends, armed: None };
        self.clients.insert(number, client);
        self.unanswered += 1;
        self.arm(number);
    }

    /// Takes a response with this topmost branch; `false` when it belongs to no transaction.
    pub fn response(&mut self, now: Mono, branch: &str, code: u16) -> bool {
        let Some((number, client)) =
            number(branch).and_then(|n| self.clients.get_mut(&n).map(|client| (n, client)))
        else {
            return false;
        };
        if client.state == State::Completed {
            return true;
        }
        if code < 200 {
            client.state = State::Proceeding;
            client.retransmit = client.retransmit.map(|_| (now + T2, T2));
        } else {
            client.state = State::Completed;
            client.retransmit = None;
            self.unanswered -= 1;
            match client.flow.transport {
                Transport::Udp => client.ends = now + T4,
                Transport::Tcp => client.ends = now,
            }
        }
        self.arm(number);
        true
    }

    /// What has to be sent again by now.
    pub fn timeout(&mut self, now: Mono, resend: &mut Vec<(Flow, Bytes)>) {
        while let Some(number) = self.timers.pop(now) {
            let Some(client) = self.clients.get_mut(&number) else { continue };
            if client.ends <= now {
                self.unanswered -= usize::from(client.state != State::Completed);
                self.clients.remove(&number);
                continue;
            }
            if let Some((at, interval)) = client.retransmit.filter(|(at, _)| *at <= now) {
                debug_assert!(at <= now);
                resend.push((client.flow, client.bytes.clone()));
                client.retransmit = Some((now + interval, (interval * 2).min(T2)));
            }
            self.arm(number);
        }
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

    fn begin(transport: Transport) -> Clients {
        let flow = Flow {
            reactor: 0,
            transport,
            local: "192.0.2.1:5060".parse().unwrap(),
            peer: "192.0.2.2:5060".parse().unwrap(),
            listener: 0,
            connection: None,
        };
        let mut clients = Clients::new();
        clients.begin(Mono(0), 0xab, flow, Bytes::from_static(b"BYE"));
        clients
    }

    fn repeats(clients: &mut Clients) -> (Vec<u64>, u64) {
        let (mut times, mut last) = (Vec::new(), Mono(0));
        while let Some(at) = clients.next() {
            let mut resend = Vec::new();
            clients.timeout(at, &mut resend);
            times.extend(resend.iter().map(|_| at.0 / 1_000_000));
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
    fn a_final_response_ends_it_and_timer_k_absorbs_its_copies() {
        let mut clients = begin(Transport::Udp);
        assert!(!clients.response(Mono(0), "z9hG4bK00000000000000ac", 200), "another branch");
        assert!(!clients.response(Mono(0), "00000000000000ab", 200), "no branch of ours");
        assert!(clients.response(Mono(0), &branch(0xab), 200));
        assert_eq!(clients.unanswered(), 0);
        assert!(clients.response(Mono(1), &branch(0xab), 200));
        assert_eq!(repeats(&mut clients), (vec![], 5_000));
        assert!(!clients.response(Mono(1), &branch(0xab), 200));
    }

    #[test]
    fn a_provisional_response_slows_it_down() {
        let mut clients = begin(Transport::Udp);
        assert!(clients.response(Mono(0), &branch(0xab), 100));
        assert_eq!(
            repeats(&mut clients),
            (vec![4_000, 8_000, 12_000, 16_000, 20_000, 24_000, 28_000], 32_000)
        );
    }
}

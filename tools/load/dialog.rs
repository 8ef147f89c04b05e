//! One recording session from the SRC's side: the INVITE and BYE client transactions (RFC 3261 §17.1) and the dialog between
//! them. Pure: time and messages are arguments, effects are returned.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::answer::{self, Destination};
use super::message::{Message, Start};
use super::options::Transport;
use super::template::{Peer, Site, Source, labels, respond};

const T1: Duration = Duration::from_millis(500);
const T2: Duration = Duration::from_secs(4);
/// Timers B and F.
const TIMEOUT: Duration = Duration::from_secs(32);
/// From a provisional answer to the final one; RFC 3261 leaves it to the caller.
const ANSWER_WAIT: Duration = Duration::from_secs(60);
const INVITE_CSEQ: u32 = 1;
const BYE_CSEQ: u32 = 2;

#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    Send(String),
    /// The answer is in order and acknowledged; media may flow.
    Established {
        streams: Vec<Destination>,
        setup: Duration,
    },
    /// A code (`503`), a deviation, or `timeout`. Never twice for one call.
    Failed(String),
    /// Nothing will be sent any more of its own accord.
    Over,
}

pub struct Call {
    index: u32,
    site: Rc<Site>,
    sources: Vec<Source>,
    state: State,
    failed: bool,
}

enum State {
    Idle,
    Inviting(Inviting),
    Up(Dialog),
    Leaving(Dialog, Retransmission),
    /// A lost ACK may still have to be repeated.
    Over(Option<Dialog>),
}

struct Inviting {
    since: Instant,
    request: Retransmission,
    proceeding: bool,
    /// We have lost interest: CANCEL as soon as that is allowed, BYE if the answer was faster.
    cancelled: bool,
}

struct Dialog {
    peer: Peer,
    ack: String,
}

/// A request that is repeated until something comes back.
struct Retransmission {
    text: String,
    /// `None`: not any more, or the transport is reliable.
    next: Option<Instant>,
    interval: Duration,
    interval_max: Duration,
    deadline: Instant,
}

impl Call {
    pub fn new(site: Rc<Site>, index: u32, sources: Vec<Source>) -> Call {
        Call { index, site, sources, state: State::Idle, failed: false }
    }

    pub fn invite(&mut self, now: Instant, wall: Duration) -> Vec<Effect> {
        let text = self.site.invite(self.index, INVITE_CSEQ, &self.sources, wall);
        // Timer A doubles without a ceiling (§17.1.1.2); timer B ends it.
        let request = Retransmission::start(text.clone(), self.site.transport, TIMEOUT, now);
        self.state = State::Inviting(Inviting { since: now, request, proceeding: false, cancelled: false });
        vec![Effect::Send(text)]
    }

    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Over(_))
    }

    /// When [`Call::tick`] is due.
    pub fn wake(&self) -> Option<Instant> {
        match &self.state {
            State::Inviting(Inviting { request, .. }) | State::Leaving(_, request) => Some(request.wake()),
            State::Idle | State::Up(_) | State::Over(_) => None,
        }
    }

    pub fn tick(&mut self, now: Instant) -> Vec<Effect> {
        let request = match &mut self.state {
            State::Inviting(Inviting { request, .. }) | State::Leaving(_, request) => request,
            _ => return Vec::new(),
        };
        if now < request.deadline {
            return request.repeat(now).map(Effect::Send).into_iter().collect();
        }
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Inviting(inviting) => self.give_up(&inviting),
            State::Leaving(dialog, _) => {
                let mut effects = self.fail("bye_timeout".into());
                effects.extend(self.end(Some(dialog)));
                effects
            }
            state => {
                self.state = state;
                Vec::new()
            }
        }
    }

    fn give_up(&mut self, inviting: &Inviting) -> Vec<Effect> {
        let mut effects = Vec::new();
        if inviting.proceeding {
            effects.push(Effect::Send(self.site.cancel(self.index, INVITE_CSEQ)));
        }
        effects.extend(self.fail(if inviting.proceeding { "no_answer" } else { "timeout" }.into()));
        effects.extend(self.end(None));
        effects
    }

    /// Ends the call in whatever way its state asks for.
    pub fn hang_up(&mut self, now: Instant) -> Vec<Effect> {
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Idle => self.end(None),
            State::Up(dialog) => self.leave(dialog, now),
            State::Inviting(mut inviting) => {
                let cancel = inviting.proceeding && !inviting.cancelled;
                inviting.cancelled = true;
                self.state = State::Inviting(inviting);
                let text = cancel.then(|| self.site.cancel(self.index, INVITE_CSEQ));
                text.map(Effect::Send).into_iter().collect()
            }
            state => {
                self.state = state;
                Vec::new()
            }
        }
    }

    fn leave(&mut self, dialog: Dialog, now: Instant) -> Vec<Effect> {
        let text = self.site.bye(self.index, BYE_CSEQ, &dialog.peer);
        let mut request = Retransmission::start(text.clone(), self.site.transport, TIMEOUT, now);
        request.interval_max = T2;
        self.state = State::Leaving(dialog, request);
        vec![Effect::Send(text)]
    }

    /// The connection is gone.
    pub fn disconnected(&mut self) -> Vec<Effect> {
        if self.is_over() {
            return Vec::new();
        }
        let mut effects = self.fail("disconnected".into());
        effects.extend(self.end(None));
        effects
    }

    pub fn receive(&mut self, message: &Message, now: Instant) -> Vec<Effect> {
        match (&message.start, self.transaction(message)) {
            (Start::Request { method }, _) => self.requested(method, message),
            (Start::Response { code, .. }, Some((INVITE_CSEQ, "INVITE"))) => match code {
                100..200 => self.provisional(now),
                200..300 => self.accepted(message, now),
                _ => self.refused(*code, message),
            },
            (Start::Response { code: 200.., .. }, Some((BYE_CSEQ, "BYE"))) => self.left(message),
            _ => Vec::new(),
        }
    }

    /// CSeq of an answer to one of our transactions (RFC 3261 §17.1.3).
    fn transaction<'m>(&self, message: &'m Message) -> Option<(u32, &'m str)> {
        message.cseq().filter(|(cseq, _)| message.branch() == Some(&self.site.branch(self.index, *cseq)))
    }

    fn provisional(&mut self, now: Instant) -> Vec<Effect> {
        let State::Inviting(inviting) = &mut self.state else { return Vec::new() };
        let first = !std::mem::replace(&mut inviting.proceeding, true);
        inviting.request.next = None;
        if first {
            inviting.request.deadline = now + ANSWER_WAIT;
        }
        // RFC 3261 §9.1: a CANCEL waits for the first provisional answer.
        let cancel = first && inviting.cancelled;
        cancel.then(|| Effect::Send(self.site.cancel(self.index, INVITE_CSEQ))).into_iter().collect()
    }

    fn accepted(&mut self, message: &Message, now: Instant) -> Vec<Effect> {
        let inviting = match std::mem::replace(&mut self.state, State::Idle) {
            State::Inviting(inviting) => inviting,
            state => {
                let repeated = state.dialog().map(|dialog| Effect::Send(dialog.ack.clone()));
                self.state = state;
                return repeated.into_iter().collect();
            }
        };
        let peer = peer(message, &self.site);
        let ack = self.site.ack(self.index, INVITE_CSEQ, &peer);
        let dialog = Dialog { peer, ack: ack.clone() };
        let mut effects = vec![Effect::Send(ack)];
        if inviting.cancelled {
            effects.extend(self.leave(dialog, now));
            return effects;
        }
        match answer::check(message, self.site.plan.codec, &labels(&self.site.plan)) {
            Ok(streams) => {
                self.state = State::Up(dialog);
                effects.push(Effect::Established { streams, setup: now - inviting.since });
            }
            Err(deviation) => {
                effects.extend(self.fail(deviation.name().into()));
                effects.extend(self.leave(dialog, now));
            }
        }
        effects
    }

    fn refused(&mut self, code: u16, message: &Message) -> Vec<Effect> {
        let to = message.header("to").unwrap_or_default();
        let mut effects = vec![Effect::Send(self.site.ack_refusal(self.index, INVITE_CSEQ, to))];
        if let State::Inviting(inviting) = &self.state {
            if !(inviting.cancelled && code == 487) {
                effects.extend(self.fail(code.to_string()));
            }
            effects.extend(self.end(None));
        }
        effects
    }

    fn left(&mut self, message: &Message) -> Vec<Effect> {
        let State::Leaving(dialog, _) = std::mem::replace(&mut self.state, State::Idle) else {
            return Vec::new();
        };
        let mut effects = match message.start {
            Start::Response { code: 300.., .. } => self.fail(format!("bye_{}", code(message))),
            _ => Vec::new(),
        };
        effects.extend(self.end(Some(dialog)));
        effects
    }

    fn requested(&mut self, method: &str, message: &Message) -> Vec<Effect> {
        let status = match method {
            "ACK" => return Vec::new(),
            "BYE" | "OPTIONS" => "200 OK",
            "INVITE" | "UPDATE" => "488 Not Acceptable Here",
            _ => "405 Method Not Allowed",
        };
        let mut effects = vec![Effect::Send(respond(message, status))];
        if method == "BYE" && !self.is_over() {
            if !matches!(self.state, State::Leaving(..)) {
                effects.extend(self.fail("ended_by_recorder".into()));
            }
            effects.extend(self.end(None));
        }
        effects
    }

    fn fail(&mut self, why: String) -> Vec<Effect> {
        let first = !std::mem::replace(&mut self.failed, true);
        if first { vec![Effect::Failed(why)] } else { Vec::new() }
    }

    fn end(&mut self, dialog: Option<Dialog>) -> Vec<Effect> {
        self.state = State::Over(dialog);
        vec![Effect::Over]
    }
}

impl State {
    fn dialog(&self) -> Option<&Dialog> {
        match self {
            State::Up(dialog) | State::Leaving(dialog, _) => Some(dialog),
            State::Over(dialog) => dialog.as_ref(),
            State::Idle | State::Inviting(_) => None,
        }
    }
}

impl Retransmission {
    fn start(text: String, transport: Transport, timeout: Duration, now: Instant) -> Retransmission {
        let next = (transport == Transport::Udp).then(|| now + T1);
        Retransmission { text, next, interval: T1, interval_max: Duration::MAX, deadline: now + timeout }
    }

    fn wake(&self) -> Instant {
        self.next.map_or(self.deadline, |next| next.min(self.deadline))
    }

    fn repeat(&mut self, now: Instant) -> Option<String> {
        self.next.filter(|next| now >= *next)?;
        self.interval = (self.interval * 2).min(self.interval_max);
        self.next = Some(now + self.interval);
        Some(self.text.clone())
    }
}

fn code(message: &Message) -> u16 {
    match message.start {
        Start::Response { code, .. } => code,
        Start::Request { .. } => 0,
    }
}

/// RFC 3261 §12.1.2: remote target from Contact, route set from Record-Route in reverse order.
fn peer(message: &Message, site: &Site) -> Peer {
    let contact = message.header("contact").unwrap_or_default();
    let uri = contact.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map(|(uri, _)| uri);
    let mut routes: Vec<String> = message
        .headers("record-route")
        .flat_map(|field| field.split(','))
        .map(|route| route.trim().to_owned())
        .collect();
    routes.reverse();
    let to = message.header("to").unwrap_or_default();
    Peer { to: to.to_owned(), target: uri.map(str::to_owned).unwrap_or_else(|| site.request_uri()), routes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::answer::tests::GOOD;
    use crate::load::clock;
    use crate::load::template::tests::{site, sources};

    struct Bench {
        call: Call,
        start: Instant,
    }

    fn bench(transport: Transport) -> Bench {
        let site = Site { transport, ..site() };
        Bench { call: Call::new(Rc::new(site), 0, sources()), start: clock::now() }
    }

    impl Bench {
        fn at(&self, ms: u64) -> Instant {
            self.start + Duration::from_millis(ms)
        }

        fn answer(&mut self, ms: u64, text: &str) -> Vec<String> {
            let at = self.at(ms);
            names(self.call.receive(&Message::parse(text.as_bytes()).unwrap(), at))
        }

        fn tick(&mut self, ms: u64) -> Vec<String> {
            let at = self.at(ms);
            names(self.call.tick(at))
        }

        fn invite(&mut self) -> Vec<String> {
            let at = self.start;
            names(self.call.invite(at, Duration::ZERO))
        }

        fn hang_up(&mut self, ms: u64) -> Vec<String> {
            let at = self.at(ms);
            names(self.call.hang_up(at))
        }
    }

    /// Effects by their first word.
    fn names(effects: Vec<Effect>) -> Vec<String> {
        let name = |effect| match effect {
            Effect::Send(text) => {
                text.split(' ').take(if text.starts_with("SIP") { 2 } else { 1 }).last().unwrap().to_owned()
            }
            Effect::Established { .. } => "established".into(),
            Effect::Failed(why) => why,
            Effect::Over => "over".into(),
        };
        effects.into_iter().map(name).collect()
    }

    fn ok() -> String {
        GOOD.replacen("To:", "CSeq: 1 INVITE\r\nTo:", 1)
    }

    fn status(code: u16, cseq: &str) -> String {
        let number = &cseq[..1];
        format!(
            "SIP/2.0 {code} X\r\nVia: SIP/2.0/UDP h;branch=z9hG4bK-r1-0-{number}\r\n\
             To: <sip:srs@h>;tag=t\r\nCSeq: {cseq}\r\nContent-Length: 0\r\n\r\n"
        )
    }

    #[test]
    fn a_call_from_invite_to_bye() {
        let mut bench = bench(Transport::Udp);
        assert_eq!(bench.invite(), ["INVITE"]);
        assert_eq!(bench.answer(1, &status(100, "1 INVITE")), [""; 0]);
        assert_eq!(bench.answer(5, &ok()), ["ACK", "established"]);
        assert_eq!(bench.answer(600, &ok()), ["ACK"], "a repeated 200 is acknowledged again");
        assert_eq!(bench.hang_up(1_000), ["BYE"]);
        assert_eq!(bench.answer(1_001, &ok()), ["ACK"]);
        assert_eq!(bench.answer(1_002, &status(200, "2 BYE")), ["over"]);
        assert_eq!(bench.answer(1_003, &ok()), ["ACK"]);
        assert_eq!(bench.call.wake(), None);
    }

    #[test]
    fn timers_a_and_b() {
        let mut bench = bench(Transport::Udp);
        bench.invite();
        let mut sent = Vec::new();
        while !bench.call.is_over() {
            let wake = bench.call.wake().unwrap();
            let effects = names(bench.call.tick(wake));
            sent.push(((wake - bench.start).as_millis(), effects.concat()));
        }
        let times: Vec<u128> = sent.iter().map(|(at, _)| *at).collect();
        assert_eq!(times, [500, 1_500, 3_500, 7_500, 15_500, 31_500, 32_000]);
        assert_eq!(sent.last().unwrap().1, "timeoutover");
    }

    #[test]
    fn a_reliable_transport_repeats_nothing() {
        let mut bench = bench(Transport::Tcp);
        bench.invite();
        assert_eq!(bench.call.wake(), Some(bench.at(32_000)));
        bench.answer(1, &ok());
        bench.hang_up(2);
        assert_eq!(bench.tick(20_000), [""; 0]);
        assert_eq!(bench.tick(32_002), ["bye_timeout", "over"]);
    }

    #[test]
    fn timer_e_stops_growing_at_t2() {
        let mut bench = bench(Transport::Udp);
        bench.invite();
        bench.answer(0, &ok());
        bench.hang_up(0);
        let mut times = Vec::new();
        for _ in 0..6 {
            let wake = bench.call.wake().unwrap();
            times.push((wake - bench.start).as_millis());
            assert_eq!(names(bench.call.tick(wake)), ["BYE"]);
        }
        assert_eq!(times, [500, 1_500, 3_500, 7_500, 11_500, 15_500]);
    }

    #[test]
    fn a_provisional_answer_stops_timer_a() {
        let mut bench = bench(Transport::Udp);
        bench.invite();
        bench.answer(100, &status(100, "1 INVITE"));
        assert_eq!(bench.tick(10_000), [""; 0]);
        assert_eq!(bench.tick(60_100), ["CANCEL", "no_answer", "over"]);
    }

    #[test]
    fn a_refusal_is_acknowledged_and_named() {
        let mut bench = bench(Transport::Udp);
        bench.invite();
        assert_eq!(bench.answer(1, &status(503, "1 INVITE")), ["ACK", "503", "over"]);
        assert_eq!(bench.answer(600, &status(503, "1 INVITE")), ["ACK"]);
    }

    #[test]
    fn a_deviating_answer_fails_the_call_and_ends_it() {
        let mut bench = bench(Transport::Udp);
        bench.invite();
        let bad = ok().replace("a=label:2\r\n", "");
        assert_eq!(bench.answer(1, &bad), ["ACK", "answer_without_label", "BYE"]);
        assert_eq!(bench.answer(2, &status(200, "2 BYE")), ["over"]);
    }

    #[test]
    fn cancel_waits_for_a_provisional_answer_and_may_lose_the_race() {
        let mut bench = bench(Transport::Udp);
        bench.invite();
        assert_eq!(bench.hang_up(1), [""; 0]);
        assert_eq!(bench.answer(2, &status(100, "1 INVITE")), ["CANCEL"]);
        assert_eq!(bench.answer(3, &ok()), ["ACK", "BYE"]);

        let mut bench = self::bench(Transport::Udp);
        bench.invite();
        bench.answer(2, &status(100, "1 INVITE"));
        assert_eq!(bench.hang_up(3), ["CANCEL"]);
        assert_eq!(bench.answer(4, &status(200, "1 CANCEL")), [""; 0]);
        assert_eq!(bench.answer(5, &status(487, "1 INVITE")), ["ACK", "over"]);
    }

    #[test]
    fn an_answer_to_a_foreign_transaction_is_ignored() {
        let mut bench = bench(Transport::Udp);
        bench.invite();
        assert_eq!(bench.answer(1, &ok().replace("z9hG4bK-r1-0-1", "z9hG4bK-r1-0-2")), [""; 0]);
        assert_eq!(bench.answer(2, &ok()), ["ACK", "established"]);
    }

    #[test]
    fn the_recorder_may_hang_up_and_that_is_a_failure() {
        let mut bench = bench(Transport::Udp);
        bench.invite();
        bench.answer(1, &ok());
        assert_eq!(bench.answer(2, BYE), ["200", "ended_by_recorder", "over"]);
    }

    const BYE: &str = "BYE sip:src@h SIP/2.0\r\nVia: SIP/2.0/UDP h;branch=z9hG4bK-q\r\nCSeq: 9 BYE\r\n\r\n";

    #[test]
    fn hanging_up_before_answering_is_a_failure_too() {
        let mut bench = bench(Transport::Udp);
        bench.invite();
        assert_eq!(bench.answer(1, BYE), ["200", "ended_by_recorder", "over"]);
    }

    #[test]
    fn a_bye_that_is_refused_is_named() {
        let mut bench = bench(Transport::Udp);
        bench.invite();
        bench.answer(1, &ok());
        bench.hang_up(2);
        assert_eq!(bench.answer(3, &status(481, "2 BYE")), ["bye_481", "over"]);
    }
}

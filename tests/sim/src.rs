//! One recording call of an SRC: RFC 3261's user agent client as a state machine, with the habits that are met in the field.

use rand::Rng;
use rand::rngs::StdRng;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use sipreel::clock::Mono;
use sipreel::limits::{T1, T2, TRANSACTION_TIMEOUT};
use sipreel::session::Transport;

use crate::report::Rule;
use crate::sip::Message;
use crate::vendor::{Change, Offerer, Own, Template};

/// What an SRC does by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Act {
    Invite,
    /// The same INVITE over another way (RFC 3261 §8.2.2.2).
    Fork,
    Cancel,
    Change(Change),
    /// A second offer before the first is answered.
    Glare,
    Bye,
    /// A request with a lower CSeq, one in a dialog that never was, one of an unknown method, one that nobody sends.
    LowCseq,
    ForeignBye,
    Unknown,
    /// From now on nothing is heard of it.
    Die,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Alarm {
    Act(Act),
    /// Timers A, E: the transaction's number.
    Repeat(u32),
    /// The ACK of the INVITE with this CSeq.
    Ack(u32),
    /// An answer that took its time.
    Answer(u32),
}

/// What the call wants of the world.
#[derive(Debug)]
pub enum Effect {
    Send(String),
    Later(Duration, Alarm),
    Broken(Rule, String),
}

/// The INVITE that begins the call, and what has to become of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Opening {
    Usual,
    UnknownExtension,
    NotRecording,
    Image,
    Encrypted,
    Version3,
    /// A session timer of half a minute.
    ShortTimer,
}

impl Opening {
    pub const ODD: [Opening; 6] = [
        Opening::UnknownExtension,
        Opening::NotRecording,
        Opening::Image,
        Opening::Encrypted,
        Opening::Version3,
        Opening::ShortTimer,
    ];

    fn expected(self) -> Option<u16> {
        match self {
            Opening::Usual => None,
            Opening::UnknownExtension => Some(420),
            Opening::NotRecording => Some(403),
            Opening::Image => Some(415),
            Opening::Encrypted => Some(488),
            Opening::Version3 => Some(505),
            Opening::ShortTimer => Some(422),
        }
    }
}

/// How it answers a request of the recorder.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answers {
    Ok,
    TryingFirst,
    Late,
    Never,
    UnknownDialog,
    /// It does not do UPDATE.
    NoUpdate,
    /// Another time (RFC 3261 §14.2).
    Busy,
}

#[derive(Clone, Copy, Debug)]
pub struct Habits {
    pub opening: Opening,
    pub rport: bool,
    pub never_acks: bool,
    /// How long its ACK takes.
    pub ack_delay: Duration,
    /// Its ACK of a 200 has the branch of the INVITE.
    pub ack_in_transaction: bool,
    pub acks_twice: bool,
    /// Its BYE has the CSeq number of the request before.
    pub bye_same_cseq: bool,
    /// Its BYE overtakes its ACK.
    pub bye_before_ack: bool,
    pub answers: Answers,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    Idle,
    Inviting,
    /// It wants to end what it has not got yet.
    Cancelling,
    Up,
    Ended,
    Dead,
}

pub struct Call {
    pub template: &'static Template,
    pub habits: Habits,
    pub source: usize,
    pub call_id: String,
    pub state: State,
    from_tag: String,
    to_tag: Option<String>,
    cseq: u32,
    offerer: Offerer,
    /// Requests without a final response, by number.
    waiting: BTreeMap<u32, Waiting>,
    begun: u32,
    branches: u32,
    /// Branch and body of the ACK of each INVITE with a 2xx, by CSeq.
    acks: BTreeMap<u32, (String, Option<String>)>,
    /// The INVITE that began it, for its copies.
    invite: String,
    /// Answers to requests of the recorder by branch, and those that wait.
    answered: BTreeMap<String, String>,
    late: BTreeMap<u32, String>,
}

struct Waiting {
    method: String,
    branch: String,
    cseq: u32,
    text: String,
    interval: Duration,
    deadline: Mono,
    provisional: bool,
    offerless: bool,
}

/// The way to the recorder, and what time it is.
#[derive(Clone, Copy)]
pub struct Here {
    pub now: Mono,
    pub transport: Transport,
    pub address: SocketAddr,
}

impl Call {
    pub fn new(template: &'static Template, habits: Habits, source: usize, name: &str) -> Call {
        Call {
            template,
            habits,
            source,
            call_id: format!("{name}@{}", template.profile.name),
            state: State::Idle,
            from_tag: format!("f{name}"),
            to_tag: None,
            cseq: 1 + name.len() as u32,
            offerer: Offerer::new(template),
            waiting: BTreeMap::new(),
            begun: 0,
            branches: 0,
            acks: BTreeMap::new(),
            invite: String::new(),
            answered: BTreeMap::new(),
            late: BTreeMap::new(),
        }
    }

    pub fn alarm(&mut self, here: Here, alarm: Alarm, rng: &mut StdRng) -> Vec<Effect> {
        if self.state == State::Dead {
            return Vec::new();
        }
        match alarm {
            Alarm::Act(act) => self.act(here, act, rng),
            Alarm::Repeat(number) => self.repeat(here, number),
            Alarm::Ack(cseq) => self.ack(here, cseq),
            Alarm::Answer(number) => self.late.remove(&number).map(Effect::Send).into_iter().collect(),
        }
    }

    // ---- what it does -------------------------------------------------------------------------------------------

    fn act(&mut self, here: Here, act: Act, rng: &mut StdRng) -> Vec<Effect> {
        match (act, self.state) {
            (Act::Die, _) => {
                self.state = State::Dead;
                Vec::new()
            }
            (Act::Invite, State::Idle) => self.invite(here),
            (Act::Fork, State::Inviting) => self.fork(here),
            (Act::Cancel, State::Inviting) => self.cancel(here),
            (Act::Change(change), State::Up) if !self.inviting() => self.change(here, change),
            (Act::Glare, State::Up) => {
                let mut effects = self.change(here, Change::AddLine);
                effects.extend(self.change(here, Change::Inactive));
                effects
            }
            (Act::Bye, State::Up) => self.bye(here),
            (Act::LowCseq, State::Up) => {
                let cseq = std::mem::replace(&mut self.cseq, 0);
                let effects = self.request(here, "OPTIONS", None);
                self.cseq = cseq;
                effects
            }
            (Act::ForeignBye, State::Up) => {
                let tag = self.to_tag.replace("0123456789abcdef".to_owned());
                let effects = self.request(here, "BYE", None);
                self.to_tag = tag;
                effects
            }
            (Act::Unknown, State::Up) => {
                let method = ["FROBNICATE", "REFER", "SUBSCRIBE", "MESSAGE"][rng.random_range(0..4)];
                self.request(here, method, None)
            }
            _ => Vec::new(),
        }
    }

    fn inviting(&self) -> bool {
        self.waiting.values().any(|waiting| waiting.method == "INVITE")
    }

    fn invite(&mut self, here: Here) -> Vec<Effect> {
        self.state = State::Inviting;
        let body = match self.habits.opening {
            Opening::Image => ("image/png".to_owned(), "no image".to_owned()),
            Opening::NotRecording => ("application/sdp".to_owned(), self.offerer.sdp()),
            Opening::Encrypted => {
                ("application/sdp".to_owned(), self.offerer.sdp().replace("RTP/AVP", "RTP/SAVP"))
            }
            _ => self.offerer.first(),
        };
        self.request(here, "INVITE", Some(body))
    }

    /// What makes this INVITE one that is refused.
    fn spoil(&self, text: String) -> String {
        let contact_plain = || text.replace(";+sip.src", "").replace(";src", "");
        match self.habits.opening {
            Opening::Usual | Opening::Image | Opening::Encrypted => text,
            Opening::UnknownExtension => text.replacen("Call-ID: ", "Require: holography\r\nCall-ID: ", 1),
            Opening::NotRecording => {
                contact_plain().replace("Require: siprec", "X-Require: none").replace(",siprec", "")
            }
            Opening::Version3 => text.replacen(" SIP/2.0", " SIP/3.0", 1),
            Opening::ShortTimer => {
                let text = text.replace("Session-Expires:", "X-Expires:").replace("Min-SE:", "X-SE:");
                let timer = "Supported: timer\r\nSession-Expires: 30\r\nCall-ID: ";
                text.replacen("Call-ID: ", timer, 1)
            }
        }
    }

    fn fork(&mut self, here: Here) -> Vec<Effect> {
        let branch = self.new_branch();
        let Some(waiting) = self.waiting.values().find(|waiting| waiting.method == "INVITE") else {
            return Vec::new();
        };
        let (text, cseq) = (self.invite.replace(&waiting.branch, &branch), waiting.cseq);
        self.begin(here, "INVITE", branch, cseq, text)
    }

    fn cancel(&mut self, here: Here) -> Vec<Effect> {
        self.state = State::Cancelling;
        let Some(waiting) = self.waiting.values().find(|waiting| waiting.method == "INVITE") else {
            return Vec::new();
        };
        let (branch, cseq) = (waiting.branch.clone(), waiting.cseq);
        let text = self.text(here, "CANCEL", &branch, cseq, None);
        self.begin(here, "CANCEL", branch, cseq, text)
    }

    fn change(&mut self, here: Here, change: Change) -> Vec<Effect> {
        let (method, body) = self.offerer.change(change);
        self.in_dialog(here, method, body)
    }

    fn bye(&mut self, here: Here) -> Vec<Effect> {
        self.state = State::Ended;
        if self.habits.bye_same_cseq {
            self.cseq -= 1;
        }
        let body = self.offerer.farewell();
        self.in_dialog(here, "BYE", body)
    }

    // ---- requests -----------------------------------------------------------------------------------------------

    fn in_dialog(&mut self, here: Here, method: &str, body: Option<(String, String)>) -> Vec<Effect> {
        self.cseq += 1;
        self.request(here, method, body)
    }

    fn request(&mut self, here: Here, method: &str, body: Option<(String, String)>) -> Vec<Effect> {
        let branch = self.new_branch();
        let text = self.text(here, method, &branch, self.cseq, body);
        self.begin(here, method, branch, self.cseq, text)
    }

    fn begin(&mut self, here: Here, method: &str, branch: String, cseq: u32, text: String) -> Vec<Effect> {
        let mut text = text;
        if method == "INVITE" && self.to_tag.is_none() && self.invite.is_empty() {
            text = self.spoil(text);
            self.invite.clone_from(&text);
        }
        self.begun += 1;
        let number = self.begun;
        let waiting = Waiting {
            method: method.to_owned(),
            branch,
            cseq,
            text: text.clone(),
            interval: T1,
            deadline: here.now + TRANSACTION_TIMEOUT,
            provisional: false,
            offerless: method == "INVITE" && !text.contains("v=0"),
        };
        self.waiting.insert(number, waiting);
        vec![Effect::Send(text), Effect::Later(T1, Alarm::Repeat(number))]
    }

    fn new_branch(&mut self) -> String {
        self.branches += 1;
        format!("z9hG4bK{}-{}", self.from_tag, self.branches)
    }

    fn text(
        &self,
        here: Here,
        method: &str,
        branch: &str,
        cseq: u32,
        body: Option<(String, String)>,
    ) -> String {
        let to_tag = self.to_tag.as_ref().filter(|_| method != "CANCEL");
        let own = Own {
            method,
            transport: if here.transport == Transport::Udp { "UDP" } else { "TCP" },
            address: &here.address.to_string(),
            rport: self.habits.rport,
            branch,
            from_tag: &self.from_tag,
            to_tag: &to_tag.map(|tag| format!(";tag={tag}")).unwrap_or_default(),
            call_id: &self.call_id,
            cseq,
            length: None,
        };
        self.template.request(&own, body)
    }

    fn repeat(&mut self, here: Here, number: u32) -> Vec<Effect> {
        let Some(waiting) = self.waiting.get_mut(&number) else { return Vec::new() };
        let invite = waiting.method == "INVITE";
        if invite && waiting.provisional {
            return Vec::new();
        }
        if here.now >= waiting.deadline {
            let waiting = self.waiting.remove(&number);
            // Timers B and F: the recorder is not there.
            if waiting.is_some_and(|waiting| waiting.method == "INVITE" && self.to_tag.is_none()) {
                self.state = State::Cancelling;
            }
            return Vec::new();
        }
        waiting.interval = if invite { waiting.interval * 2 } else { (waiting.interval * 2).min(T2) };
        let next = waiting.interval.min(waiting.deadline.since(here.now));
        let mut effects = vec![Effect::Later(next, Alarm::Repeat(number))];
        if here.transport == Transport::Udp {
            effects.push(Effect::Send(waiting.text.clone()));
        }
        effects
    }

    fn ack(&mut self, here: Here, cseq: u32) -> Vec<Effect> {
        let Some((branch, body)) = self.acks.get(&cseq).cloned() else { return Vec::new() };
        let body = body.map(|sdp| ("application/sdp".to_owned(), sdp));
        let text = self.text(here, "ACK", &branch, cseq, body);
        let copies = if self.habits.acks_twice { 2 } else { 1 };
        (0..copies).map(|_| Effect::Send(text.clone())).collect()
    }

    // ---- what comes ---------------------------------------------------------------------------------------------

    pub fn receive(&mut self, here: Here, message: &Message) -> Vec<Effect> {
        match (self.state, message.code()) {
            (State::Dead, _) => Vec::new(),
            (_, Some(code)) => self.response(here, message, code),
            (_, None) => self.asked(here, message),
        }
    }

    fn response(&mut self, here: Here, message: &Message, code: u16) -> Vec<Effect> {
        let Some((cseq, method)) = message.cseq() else { return Vec::new() };
        let branch = message.key().map(|key| key.branch).unwrap_or_default();
        let found = self
            .waiting
            .iter()
            .find(|(_, waiting)| waiting.branch == branch && waiting.method == method)
            .map(|(number, _)| *number);
        if code < 200 {
            if let Some(waiting) = found.and_then(|number| self.waiting.get_mut(&number)) {
                waiting.provisional = true;
            }
            return Vec::new();
        }
        let waiting = found.and_then(|number| self.waiting.remove(&number));
        match (method, code) {
            ("INVITE", 200..300) => self.accepted(here, message, cseq, waiting),
            ("INVITE", _) => self.refused(here, message, code, waiting),
            _ => {
                if waiting.is_some()
                    && matches!(code, 408 | 481)
                    && self.state == State::Up
                    && method != "BYE"
                {
                    self.state = State::Ended;
                }
                Vec::new()
            }
        }
    }

    fn accepted(
        &mut self,
        here: Here,
        message: &Message,
        cseq: u32,
        waiting: Option<Waiting>,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        let Some(tag) = message.tag("to") else { return effects };
        let to_tag = self.to_tag.get_or_insert_with(|| tag.to_owned());
        if to_tag != tag {
            return effects;
        }
        if let Some(waiting) = &waiting {
            if let Some(code) = self.habits.opening.expected() {
                effects.push(Effect::Broken(Rule::OneFinal, format!("200 where {code} was due")));
            }
            let branch = match self.habits.ack_in_transaction {
                true => waiting.branch.clone(),
                false => self.new_branch(),
            };
            let answer = waiting.offerless.then(|| self.offerer.sdp());
            self.acks.insert(cseq, (branch, answer));
        }
        let over = self.state == State::Cancelling;
        if self.state == State::Inviting {
            self.state = State::Up;
        }
        if over && self.habits.bye_before_ack {
            self.state = State::Up;
            effects.extend(self.bye(here));
        }
        if !self.habits.never_acks {
            match self.habits.ack_delay {
                Duration::ZERO => effects.extend(self.ack(here, cseq)),
                delay => effects.push(Effect::Later(delay, Alarm::Ack(cseq))),
            }
        }
        if over && self.state == State::Cancelling {
            self.state = State::Up;
            effects.extend(self.bye(here));
        }
        effects
    }

    fn refused(&mut self, here: Here, message: &Message, code: u16, waiting: Option<Waiting>) -> Vec<Effect> {
        let Some(key) = message.key() else { return Vec::new() };
        let cseq = message.cseq().map_or(0, |(cseq, _)| cseq);
        let own = self.to_tag.take();
        self.to_tag = message.tag("to").map(str::to_owned);
        let ack = self.text(here, "ACK", &key.branch, cseq, None);
        self.to_tag = own;
        let mut effects = vec![Effect::Send(ack)];
        let initial = self.to_tag.is_none();
        if waiting.is_some() && initial {
            // A copy of the INVITE over another way says nothing of the INVITE itself.
            if code != 482 {
                self.state = State::Ended;
            }
            let due = self.habits.opening.expected();
            let elsewhere = matches!(code, 482 | 487 | 503);
            if due.is_some_and(|due| due != code && !elsewhere) {
                effects.push(Effect::Broken(Rule::OneFinal, format!("{code} where {due:?} was due")));
            }
        }
        if waiting.is_some() && matches!(code, 408 | 481) && !initial {
            self.state = State::Ended;
        }
        effects
    }

    /// A request of the recorder.
    fn asked(&mut self, here: Here, message: &Message) -> Vec<Effect> {
        let Some(key) = message.key() else { return Vec::new() };
        if message.method() == "ACK" || self.habits.answers == Answers::Never {
            return Vec::new();
        }
        if let Some(answer) = self.answered.get(&key.branch) {
            return vec![Effect::Send(answer.clone())];
        }
        if message.method() == "BYE" {
            self.state = State::Ended;
        }
        let answer = self.answer(here, message);
        self.answered.insert(key.branch, answer.clone());
        match self.habits.answers {
            Answers::TryingFirst => {
                vec![Effect::Send(reply(message, "100 Trying", "")), Effect::Send(answer)]
            }
            Answers::Late => {
                let number = self.late.len() as u32;
                self.late.insert(number, answer);
                vec![Effect::Later(Duration::from_secs(3), Alarm::Answer(number))]
            }
            _ => vec![Effect::Send(answer)],
        }
    }

    /// The final answer to a request of the recorder: that it goes on, if it does.
    fn answer(&self, here: Here, message: &Message) -> String {
        let method = message.method();
        let goes_on = matches!(method, "UPDATE" | "INVITE");
        match self.habits.answers {
            Answers::UnknownDialog => reply(message, "481 Call/Transaction Does Not Exist", ""),
            Answers::NoUpdate if method == "UPDATE" => reply(message, "405 Method Not Allowed", ""),
            Answers::Busy if goes_on => reply(message, "500 Busy\r\nRetry-After: 2", ""),
            _ if self.state != State::Up && goes_on => {
                reply(message, "481 Call/Transaction Does Not Exist", "")
            }
            _ if goes_on => {
                let expires = message.field("session-expires").unwrap_or("1800;refresher=uac");
                let address = here.address;
                let status = format!(
                    "200 OK\r\nRequire: timer\r\nSession-Expires: {expires}\r\nContact: <sip:src@{address};x=0>"
                );
                let body = if method == "INVITE" { self.offerer.sdp() } else { String::new() };
                reply(message, &status, &body)
            }
            _ => reply(message, "200 OK", ""),
        }
    }
}

/// A response of somebody who is asked; lines may follow the status, SDP may be its body.
pub fn reply(request: &Message, status: &str, sdp: &str) -> String {
    let mut text = format!("SIP/2.0 {status}\r\n");
    for (name, field) in
        [("Via", "via"), ("From", "from"), ("To", "to"), ("Call-ID", "call-id"), ("CSeq", "cseq")]
    {
        for value in request.all(field) {
            text += &format!("{name}: {value}\r\n");
        }
    }
    if !sdp.is_empty() {
        text += "Content-Type: application/sdp\r\n";
    }
    text + &format!("Content-Length: {}\r\n\r\n{sdp}", sdp.len())
}

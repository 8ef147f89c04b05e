//! Faults that a session layer might have, planted behind the real one: each has to be found.

use bytes::Bytes;
use sipreel::counters::SessionCounters;
use sipreel::session::{Close, Command, Event, RecordingKey};

use crate::engine::Temper;
use crate::network::Weather;
use crate::referee::Cause;
use crate::report::Rule;
use crate::sip::Message;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plant {
    ForgetsClose,
    ClosesTwice,
    ForgetsFinal,
    SecondFinal,
    AnswersAck,
    OkBeforeOpened,
    OkAfterAck,
    ProvisionalAfterFinal,
    OtherTag,
    OtherCseq,
    WrongPort,
    NoAllow,
    WrongPeer,
    LosesClosed,
    SignalsAfterClose,
    ByeTwice,
    ByeWithoutCseq,
    ByeBeforeAck,
    WrongCause,
    WrongCount,
}

impl Plant {
    /// Each fault and the rule that it breaks.
    pub const ALL: &[(Plant, Rule)] = &[
        (Plant::ForgetsClose, Rule::Left),
        (Plant::ClosesTwice, Rule::Engine),
        (Plant::ForgetsFinal, Rule::OneFinal),
        (Plant::SecondFinal, Rule::OneFinal),
        (Plant::AnswersAck, Rule::Unasked),
        (Plant::OkBeforeOpened, Rule::Answer),
        (Plant::OkAfterAck, Rule::Repeats),
        (Plant::ProvisionalAfterFinal, Rule::Provisional),
        (Plant::OtherTag, Rule::ToTag),
        (Plant::OtherCseq, Rule::Copied),
        (Plant::WrongPort, Rule::Answer),
        (Plant::NoAllow, Rule::Field),
        (Plant::WrongPeer, Rule::Destination),
        (Plant::LosesClosed, Rule::Pools),
        (Plant::SignalsAfterClose, Rule::Engine),
        (Plant::ByeTwice, Rule::OwnRequest),
        (Plant::ByeWithoutCseq, Rule::OwnRequest),
        (Plant::ByeBeforeAck, Rule::EarlyBye),
        (Plant::WrongCause, Rule::Manifest),
        (Plant::WrongCount, Rule::Counters),
    ];
}

/// A planted fault, done once.
pub struct Fault {
    plant: Plant,
    done: bool,
    /// Something seen before that is used again.
    kept: Option<Command>,
    closed: Option<RecordingKey>,
}

impl Fault {
    pub fn new(plant: Plant) -> Fault {
        Fault { plant, done: false, kept: None, closed: None }
    }

    /// Where the fault cannot be taken for something else.
    pub fn set_scene(&self, temper: &mut Temper, weather: &mut Weather) {
        if self.plant == Plant::OkBeforeOpened {
            temper.slowest = 1_500;
        }
        weather.cut = 0.0;
    }

    /// Whether the layer never hears of this.
    pub fn swallows(&mut self, event: &Event) -> bool {
        let lost = self.plant == Plant::LosesClosed && !self.done && matches!(event, Event::Closed { .. });
        self.done |= lost;
        lost
    }

    pub fn spoil(&mut self, out: &mut Vec<Command>, cause: &Cause, counters: &SessionCounters) {
        if self.done {
            return;
        }
        let before = out.len();
        match self.plant {
            Plant::ForgetsClose => self.drop_first(out, |command| matches!(command, Command::Close(_))),
            Plant::ClosesTwice => self.close_again(out),
            Plant::ForgetsFinal => self.forget_final(out),
            Plant::SecondFinal => self.rewrite(out, 1, |text| {
                text.starts_with("SIP/2.0 200").then(|| text.replacen("SIP/2.0 200 OK", "SIP/2.0 500 Oh", 1))
            }),
            Plant::AnswersAck => self.answer_ack(out, cause),
            Plant::OkBeforeOpened => self.rewrite(out, 0, |text| {
                let trying = text.starts_with("SIP/2.0 100") && text.contains(" INVITE");
                let ok = "Contact: <sip:x@192.0.2.10>;+sip.srs\r\nContent-Length: 24\r\n\r\nv=0\r\nm=audio 20000 x 0\r\n";
                trying.then(|| {
                    let text = text.replacen("SIP/2.0 100 Trying", "SIP/2.0 200 OK", 1);
                    let tagged = with_tag(&text, "00ff");
                    tagged.replacen("Content-Length: 0\r\n\r\n", ok, 1)
                })
            }),
            Plant::OkAfterAck => self.ok_after_ack(out, cause),
            Plant::ProvisionalAfterFinal => self.rewrite(out, 1, |text| {
                text.starts_with("SIP/2.0 200").then(|| text.replacen("SIP/2.0 200 OK", "SIP/2.0 100 Trying", 1))
            }),
            Plant::OtherTag => self.rewrite(out, 0, |text| {
                let bye = text.starts_with("SIP/2.0 200") && text.contains(" BYE\r\n");
                bye.then(|| with_tag(text, "beef"))
            }),
            Plant::OtherCseq => self.rewrite(out, 0, |text| {
                text.starts_with("SIP/2.0 200").then(|| text.replacen("CSeq: ", "CSeq: 1", 1))
            }),
            Plant::WrongPort => self.rewrite(out, 0, |text| {
                let ok = text.starts_with("SIP/2.0 200") && text.contains("m=audio 2");
                ok.then(|| text.replacen("m=audio 2", "m=audio 3", 1))
            }),
            Plant::NoAllow => self.rewrite(out, 0, |text| {
                let found = text.starts_with("SIP/2.0 405") || text.starts_with("SIP/2.0 503");
                found.then(|| text.replacen("\r\nAllow:", "\r\nX:", 1).replacen("\r\nRetry-After:", "\r\nX:", 1))
            }),
            Plant::WrongPeer => self.wrong_peer(out),
            Plant::SignalsAfterClose => self.signal_after_close(out),
            Plant::ByeTwice => self.rewrite(out, 1, |text| {
                text.starts_with("BYE ").then(|| text.replacen("branch=z9hG4bK", "branch=z9hG4bKa", 1))
            }),
            Plant::ByeWithoutCseq => self.rewrite(out, 0, |text| {
                text.starts_with("BYE ").then(|| text.replacen("CSeq: 1 BYE", "CSeq: 0 BYE", 1))
            }),
            Plant::ByeBeforeAck => self.rewrite(out, 1, bye_after),
            Plant::WrongCause => self.wrong_cause(out),
            Plant::WrongCount => {
                self.done = before > 0;
                counters.responses[200].add(u64::from(self.done));
            }
            Plant::LosesClosed => {}
        }
    }

    fn drop_first(&mut self, out: &mut Vec<Command>, which: impl Fn(&Command) -> bool) {
        if let Some(index) = out.iter().position(which) {
            out.remove(index);
            self.done = true;
        }
    }

    fn forget_final(&mut self, out: &mut Vec<Command>) {
        // A transaction that repeats nothing by itself, and whose request does not come again.
        self.drop_first(out, |command| {
            let Command::Send { bytes, flow } = command else { return false };
            flow.connection.is_some()
                && Message::read(bytes).is_some_and(|message| {
                    message.code().is_some_and(|code| code >= 200) && message.method() != "INVITE"
                })
        });
    }

    /// The first message that `change` takes is changed; with `copies`, it goes out as it was and then changed.
    fn rewrite(&mut self, out: &mut Vec<Command>, copies: usize, change: impl Fn(&str) -> Option<String>) {
        let changed = out.iter().enumerate().find_map(|(index, command)| {
            let Command::Send { flow, bytes } = command else { return None };
            Some((index, *flow, change(std::str::from_utf8(bytes).ok()?)?))
        });
        let Some((index, flow, text)) = changed else { return };
        if copies == 0 {
            out.remove(index);
        }
        out.insert(index + copies, Command::Send { flow, bytes: Bytes::from(text) });
        self.done = true;
    }

    fn close_again(&mut self, out: &mut Vec<Command>) {
        let key = out.iter().find_map(|command| match command {
            Command::Close(close) => Some(close.key),
            _ => None,
        });
        if let Some(key) = key {
            out.push(Command::Close(Box::new(Close { key, manifest: None })));
            self.done = true;
        }
    }

    fn answer_ack(&mut self, out: &mut Vec<Command>, cause: &Cause) {
        if self.kept.is_none() {
            self.kept = first_ok(out, "BYE");
        }
        let ack = cause.message.as_ref().filter(|message| message.method() == "ACK");
        if let (Some(_), Some(Command::Send { flow, bytes })) = (ack, &self.kept) {
            let text = String::from_utf8_lossy(bytes).replacen("branch=z9hG4bK", "branch=z9hG4bKack", 1);
            out.push(Command::Send { flow: *flow, bytes: Bytes::from(text) });
            self.done = true;
        }
    }

    fn ok_after_ack(&mut self, out: &mut Vec<Command>, cause: &Cause) {
        if self.kept.is_none() {
            self.kept = first_ok(out, "INVITE");
            return;
        }
        let Some(Command::Send { flow, bytes }) = &self.kept else { return };
        let call_id = Message::read(bytes).map(|ok| ok.call_id().to_owned());
        let ack = cause.message.as_ref().filter(|message| message.method() == "ACK");
        if ack.map(|ack| ack.call_id().to_owned()) == call_id {
            out.push(Command::Send { flow: *flow, bytes: bytes.clone() });
            self.done = true;
        }
    }

    fn wrong_peer(&mut self, out: &mut [Command]) {
        let sent = out.iter_mut().find_map(|command| match command {
            Command::Send { flow, bytes } if bytes.starts_with(b"SIP/2.0 ") => Some(flow),
            _ => None,
        });
        if let Some(flow) = sent {
            flow.peer.set_port(9);
            self.done = true;
        }
    }

    fn signal_after_close(&mut self, out: &mut Vec<Command>) {
        for command in out.iter() {
            match command {
                Command::Signal { key, signal } if self.kept.is_none() => {
                    self.kept = Some(Command::Signal { key: *key, signal: signal.clone() });
                    self.closed = Some(*key);
                }
                _ => {}
            }
        }
        let closes =
            |command: &Command| matches!(command, Command::Close(close) if Some(close.key) == self.closed);
        if out.iter().any(closes) {
            out.extend(self.kept.take());
            self.done = true;
        }
    }

    fn wrong_cause(&mut self, out: &mut [Command]) {
        for command in out {
            if let Command::Close(close) = command
                && let Some(manifest) = &mut close.manifest
            {
                manifest.end_cause = Some("moon".to_owned());
                self.done = true;
            }
        }
    }
}

fn first_ok(out: &[Command], method: &str) -> Option<Command> {
    out.iter().find_map(|command| {
        let Command::Send { flow, bytes } = command else { return None };
        let message = Message::read(bytes)?;
        let ok = message.code() == Some(200) && message.method() == method;
        ok.then(|| Command::Send { flow: *flow, bytes: bytes.clone() })
    })
}

/// A BYE in the dialog that this 200 begins.
fn bye_after(ok: &str) -> Option<String> {
    let message =
        Message::read(ok.as_bytes()).filter(|ok| ok.code() == Some(200) && ok.method() == "INVITE")?;
    let (us, them) = (message.field("to")?, message.field("from")?);
    Some(format!(
        "BYE sip:x@192.0.2.10 SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.10;branch=z9hG4bKearly\r\nFrom: {us}\r\nTo: {them}\r\n\
         Call-ID: {}\r\nCSeq: 1 BYE\r\nMax-Forwards: 70\r\nContent-Length: 0\r\n\r\n",
        message.call_id()
    ))
}

/// The message with this To tag.
fn with_tag(text: &str, tag: &str) -> String {
    let lines: Vec<String> = text
        .split("\r\n")
        .map(|line| match line.strip_prefix("To: ") {
            Some(to) => format!("To: {};tag={tag}", to.split(";tag=").next().unwrap_or_default()),
            None => line.to_owned(),
        })
        .collect();
    lines.join("\r\n")
}

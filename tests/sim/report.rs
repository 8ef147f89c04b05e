//! What was found wrong, and what had happened before.

use std::fmt;

use sipreel::clock::Mono;

/// What a checker holds the session layer to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Rule {
    /// A response belongs to a request that came, and never to an ACK (RFC 3261 §17.2).
    Unasked,
    /// Each request gets a final response, and only one.
    OneFinal,
    /// A provisional response comes before the final one.
    Provisional,
    /// Via, From, To, Call-ID and CSeq are those of the request (§8.2.6.2).
    Copied,
    /// The To tag is there, and the same in every response of a dialog.
    ToTag,
    /// A code's own field: 405 has Allow, 503 has Retry-After, …
    Field,
    /// A 2xx is repeated from T1 to T2 apart until its ACK comes, and no more then (§13.3.1.4).
    Repeats,
    /// What an answer says is what the offer asked (RFC 3264 §6, §8) and what the engine has armed.
    Answer,
    /// Where a message goes (§18.2.2, §12.2.1.1).
    Destination,
    /// Our requests: their dialog, CSeq, Request-URI, repetitions (§12.2.1).
    OwnRequest,
    /// No BYE of ours before the ACK of our 2xx, or the end of its repetitions (§15).
    EarlyBye,
    /// What the engine may rely on: keys, ports, order.
    Engine,
    /// Ports, slots, transactions and timers that are in use are the ones that somebody uses.
    Pools,
    /// Counters add up to what was seen.
    Counters,
    /// The manifest says what happened.
    Manifest,
    /// When nothing more can happen, nothing is left.
    Left,
    /// A timeout that is called when it is due does what is due.
    Wake,
    /// What was logged: each recording begins once and ends once.
    Notices,
}

#[derive(Clone, Debug)]
pub struct Violation {
    pub rule: Rule,
    pub at: Mono,
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}: {}", Second(self.at), self.rule, self.what)
    }
}

/// A moment, as seconds since the world began.
pub struct Second(pub Mono);

impl fmt::Display for Second {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>9.3}", self.0.since(crate::world::BEGIN).as_secs_f64())
    }
}

#[derive(Default)]
pub struct Report {
    pub violations: Vec<Violation>,
    /// A line for each event and command, where somebody wants to read them.
    pub trace: Option<Vec<String>>,
    pub now: Mono,
}

impl Report {
    pub fn broken(&mut self, rule: Rule, what: impl Into<String>) {
        let what = what.into();
        self.note(|| format!("!!!! {rule:?}: {what}"));
        self.violations.push(Violation { rule, at: self.now, what });
    }

    /// A violation unless `holds`.
    pub fn hold(&mut self, holds: bool, rule: Rule, what: impl FnOnce() -> String) {
        if !holds {
            self.broken(rule, what());
        }
    }

    pub fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{} {}", Second(self.now), line()));
        }
    }
}

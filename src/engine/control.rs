//! The control thread: feeds the session layer with events and time, carries its commands to the reactors.

use std::sync::Arc;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender};

use super::mailbox::{Letter, Mailbox};
use super::orders::Waiting;
use super::published::Recorded;
use super::{Outcome, cpu};
use crate::clock::Wall;
use crate::counters::SessionCounters;
use crate::limits;
use crate::proto::metadata::{Finding, Severity};
use crate::session::state::State;
use crate::session::{Command, Event, Notice, Sessions, Transition};

/// A notice, and when it was given.
pub type Noticed = (Wall, Notice);

pub struct Control {
    pub sessions: Sessions,
    pub events: Receiver<Event>,
    pub reactors: Vec<Mailbox>,
    pub setup: Recorded,
    pub outcome: Outcome,
    /// Who wants the notices besides the log. It is never waited for: what it has no room for is counted.
    pub listener: Option<Sender<Noticed>>,
    pub counters: Arc<SessionCounters>,
    pub orders: Arc<Waiting>,
}

impl Control {
    /// Runs until a drain is complete; then the reactors are told to stop.
    ///
    /// 1. take events, or sleep until one comes or something is due · 2. what is due · 3. commands · 4. log and figures
    pub fn run(mut self) -> Outcome {
        // Peers wait for what it decides.
        let _ = cpu::run_soon(limits::REACTOR_SLICE);
        let mut commands = Vec::new();
        while !self.sessions.drained() {
            let now = cpu::now();
            let sleep = self.sessions.next_wake().map_or(limits::CONTROL_IDLE, |wake| wake.since(now.mono));
            match self.events.recv_timeout(sleep.min(limits::CONTROL_IDLE)) {
                Ok(first) => self.events(first, &mut commands),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.sessions.timeout(cpu::now(), &mut commands);
            self.carry(&mut commands);
            self.report();
        }
        for reactor in &self.reactors {
            reactor.put(Letter::Stop);
            reactor.ring_bell();
        }
        self.outcome
    }

    fn events(&mut self, first: Event, commands: &mut Vec<Command>) {
        self.event(first, commands);
        for _ in 1..limits::EVENTS_PER_TURN {
            match self.events.try_recv() {
                Ok(event) => self.event(event, commands),
                Err(_) => break,
            }
        }
    }

    fn event(&mut self, event: Event, commands: &mut Vec<Command>) {
        match &event {
            Event::Committed { incomplete, .. } => {
                self.outcome.committed += 1;
                self.outcome.incomplete += u64::from(*incomplete);
            }
            Event::CommitFailed { .. } => self.outcome.failed += 1,
            Event::OpenFailed { failure, .. } | Event::ChangeFailed { failure, .. } => {
                tracing::error!("{failure}");
            }
            _ => {}
        }
        self.sessions.handle(cpu::now(), event, commands);
    }

    /// Puts all commands into the mailboxes, then rings each bell once.
    fn carry(&mut self, commands: &mut Vec<Command>) {
        let mut rung = [false; limits::REACTORS_MAX];
        for command in commands.drain(..) {
            let reactor = usize::from(command.reactor());
            rung[reactor] = true;
            self.reactors[reactor].put(Letter::Command(command));
        }
        for (mailbox, _) in self.reactors.iter().zip(rung).filter(|(_, rung)| *rung) {
            mailbox.ring_bell();
        }
    }

    fn report(&mut self) {
        let now = cpu::now().wall;
        for notice in self.sessions.take_notices() {
            log(&notice);
            self.pass_on((now, notice));
        }
        for (ticket, outcome) in self.sessions.take_answers() {
            self.orders.answer(ticket, outcome);
        }
        for nanos in self.sessions.setup_times() {
            self.setup.record(nanos);
        }
        self.setup.publish();
    }

    fn pass_on(&self, noticed: Noticed) {
        let Some(listener) = &self.listener else { return };
        if listener.try_send(noticed).is_err() {
            self.counters.notices_dropped.add(1);
        }
    }
}

fn log(notice: &Notice) {
    match notice {
        Notice::HandshakeFailed { peer, why } => {
            tracing::warn!(%peer, why, "TLS with a peer failed");
        }
        Notice::State(transition) => log_transition(transition),
        Notice::Updated { id, call_id, streams, .. } => {
            tracing::info!(recording = %id, call_id, streams, "recording updated");
        }
        Notice::Whole { id, path, incomplete: false } => {
            tracing::debug!(recording = id, path, "recording is whole on disk");
        }
        Notice::Whole { id, path, incomplete: true } => {
            tracing::warn!(
                recording = id,
                path,
                "recording is whole on disk, but its manifest lists problems"
            );
        }
        Notice::NotWhole { id, why } => {
            tracing::error!(recording = id, "recording stays under its .part name: {why}");
        }
        Notice::Refused { call_id, peer, code, why } => {
            tracing::warn!(call_id, %peer, code, why, "session refused");
        }
        Notice::MoreRefused { cause, more } => {
            let seconds = limits::REFUSALS_LOGGED_WITHIN.as_secs();
            tracing::warn!(cause, more, "more sessions refused in {seconds} s");
        }
        Notice::Finding { id, finding, unlogged } => found(id, finding, *unlogged),
    }
}

/// One line in a minute for each code: what it is, and how many more there were.
fn found(id: &str, finding: &Finding, unlogged: u64) {
    let Finding { code, element, value, .. } = finding;
    let (name, source, rule) = (code.text(), code.source(), code.rule());
    match code.severity() {
        Severity::Critical => {
            tracing::warn!(
                recording = id,
                code = name,
                element,
                value,
                source,
                unlogged,
                "metadata not understood: {rule}"
            );
        }
        Severity::Error | Severity::Warning => {
            tracing::info!(recording = id, code = name, element, value, source, unlogged, "metadata: {rule}");
        }
        Severity::Note => {
            tracing::debug!(
                recording = id,
                code = name,
                element,
                value,
                source,
                unlogged,
                "metadata: {rule}"
            );
        }
    }
}

fn log_transition(transition: &Transition) {
    let Transition { id, call_id, peer, from, to, cause, detail, streams, age, .. } = transition;
    let certificate = transition.certificate.as_ref().map(|certificate| certificate.names.join(", "));
    let (was, note, seconds) = (from.text(), detail.as_deref(), age.as_secs());
    match to {
        State::Active | State::Paused if from.opening() => {
            let (transport, state) = (transition.transport.name(), to.text());
            tracing::info!(
                recording = %id,
                call_id,
                %peer,
                transport,
                certificate,
                streams,
                state,
                "recording started"
            );
        }
        State::Ending => {
            tracing::info!(recording = %id, call_id, cause, note, seconds, "recording ended");
        }
        // The refusal has a line of its own.
        State::Failed | State::Ended => {
            tracing::debug!(recording = %id, call_id, cause, note, was, "session {}", to.text());
        }
        _ => tracing::info!(recording = %id, call_id, cause, note, was, "session {}", to.text()),
    }
}

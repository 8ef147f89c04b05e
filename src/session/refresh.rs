//! Session timers (RFC 4028): an SRC that has died without a BYE is noticed, and its recording ends.
//!
//! Each 2xx to an INVITE or UPDATE, of either side, agrees anew on an interval and on who refreshes. When that is we, an
//! UPDATE without SDP does it, the request that changes least; to an SRC that does not know UPDATE a re-INVITE offers what
//! was answered last.

use rand::Rng;
use std::time::Duration;

use super::client::Purpose;
use super::invite::contact;
use super::recording::{Awaited, Recording};
use super::send::{ALLOW, Ask, Refusal};
use super::{Command, RecordingKey, Sessions, Terms};
use crate::clock::{Mono, Now};
use crate::counters::{EndCause, RefuseCause};
use crate::limits::{MIN_SE, REFRESH_AGAIN, SESSION_END_AHEAD};
use crate::proto::manifest::{Event, EventKind};
use crate::proto::sdp;
use crate::proto::sip::{HeaderName, Message, Method, Refresher, SessionExpires};

/// What a 200 of ours agrees to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Agreed {
    seconds: u32,
    /// Of the request that is answered: the SRC is its UAC.
    refresher: Refresher,
    /// The SRC knows of session timers, and has to heed what we agree to (§9).
    heeds: bool,
}

/// The session timer of a dialog while it runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionTimer {
    seconds: u32,
    /// We refresh, at this time; `None` while our request is under way.
    ours: bool,
    refresh_at: Option<Mono>,
    /// Nobody has refreshed it by then: the session ends, a little before its time (§10).
    ends_at: Mono,
    /// The SRC has refused an UPDATE.
    by_invite: bool,
}

/// What the answer to this request says of session timers (§9). `running` is what holds: it goes on when the SRC does not
/// mention timers in a request that is about something else.
pub fn agree(
    request: &Message,
    running: Option<&SessionTimer>,
    terms: &Terms,
) -> Result<Option<Agreed>, Refusal> {
    let has_tag = |field| request.tokens(field).any(|tag| tag.eq_ignore_ascii_case("timer"));
    let heeds = has_tag(HeaderName::Supported) || has_tag(HeaderName::Require);
    let least = request.min_se().unwrap_or(0).max(whole_seconds(MIN_SE));
    let Some(asked) = request.session_expires() else { return Ok(unasked(heeds, least, running, terms)) };
    let ours = whole_seconds(terms.min_se);
    if asked.seconds < ours && heeds {
        let refusal = Refusal::new(422, RefuseCause::Interval, "session interval too small");
        return Err(refusal.field("Min-SE", ours.to_string()));
    }
    // Of an SRC that knows nothing of timers a proxy has asked, and 422 would reach nobody who could ask for more.
    let sound = asked.seconds >= whole_seconds(MIN_SE);
    let refresher = if heeds { asked.refresher.unwrap_or(Refresher::Uac) } else { Refresher::Uas };
    Ok(sound.then_some(Agreed { seconds: asked.seconds, refresher, heeds }))
}

/// The SRC asks for nothing. What we ask for instead, we do ourselves.
fn unasked(heeds: bool, least: u32, running: Option<&SessionTimer>, terms: &Terms) -> Option<Agreed> {
    match running {
        Some(timer) if heeds && !timer.ours => {
            Some(Agreed { seconds: timer.seconds, refresher: Refresher::Uac, heeds })
        }
        Some(timer) => Some(Agreed { seconds: timer.seconds, refresher: Refresher::Uas, heeds }),
        None if heeds => {
            let seconds = whole_seconds(terms.session_expires?).max(least);
            Some(Agreed { seconds, refresher: Refresher::Uas, heeds })
        }
        None => None,
    }
}

fn whole_seconds(time: Duration) -> u32 {
    u32::try_from(time.as_secs()).unwrap_or(u32::MAX)
}

impl Agreed {
    /// The fields of the 200.
    pub fn fields(&self) -> Vec<(&'static str, String)> {
        let refresher = self.refresher.text();
        let expires = ("Session-Expires", format!("{};refresher={refresher}", self.seconds));
        let require = self.heeds.then(|| ("Require", "timer".to_owned()));
        [expires].into_iter().chain(require).collect()
    }

    /// The 200 has been sent.
    pub fn begin(&self, now: Mono, before: Option<&SessionTimer>) -> SessionTimer {
        SessionTimer::new(now, self.seconds, self.refresher == Refresher::Uas, before)
    }
}

impl SessionTimer {
    fn new(now: Mono, seconds: u32, ours: bool, before: Option<&SessionTimer>) -> SessionTimer {
        let interval = Duration::from_secs(seconds.into());
        SessionTimer {
            seconds,
            ours,
            refresh_at: ours.then_some(now + interval / 2),
            ends_at: now + (interval - SESSION_END_AHEAD.min(interval / 3)),
            by_invite: before.is_some_and(|before| before.by_invite),
        }
    }

    /// A refresh of ours waits for its answer.
    fn under_way(&self) -> bool {
        self.ours && self.refresh_at.is_none()
    }

    pub fn due(&self) -> Mono {
        self.refresh_at.map_or(self.ends_at, |at| at.min(self.ends_at))
    }
}

impl Sessions {
    /// What the session timer asks for by now.
    pub(super) fn session_timeout(&mut self, now: Now, key: RecordingKey, out: &mut Vec<Command>) {
        let Some(timer) = self.slots.get_mut(key).and_then(|recording| recording.timer.as_mut()) else {
            return;
        };
        if timer.ends_at <= now.mono {
            self.counters.sessions_expired.add(1);
            return self.hang_up(now, key, EndCause::SessionExpired, None, out);
        }
        if timer.refresh_at.is_some_and(|at| at <= now.mono) {
            timer.refresh_at = None;
            self.refresh(now, key, out);
        }
    }

    /// Refreshes the session (§7.4). Where it cannot now, it tries again a little later, and at last the timer ends it.
    fn refresh(&mut self, now: Now, key: RecordingKey, out: &mut Vec<Command>) {
        let Some(recording) = self.slots.get(key) else { return };
        let Some(timer) = recording.timer else { return };
        let by_invite = timer.by_invite || recording.dialog.allows_update == Some(false);
        let fields = vec![
            ("Contact", contact(recording.dialog.secure, recording.flow)),
            ("Allow", ALLOW.to_owned()),
            ("Supported", "timer".to_owned()),
            ("Session-Expires", format!("{};refresher=uac", timer.seconds)),
        ];
        let quiet = recording.established() && matches!(recording.awaited, Awaited::Nothing);
        let busy = recording.unacknowledged.is_some() || !quiet;
        if by_invite && busy {
            return self.refresh_later(now, key, REFRESH_AGAIN);
        }
        let offer = by_invite.then(|| ("application/sdp", recording.session.answer.clone()));
        let method = if by_invite { Method::Invite } else { Method::Update };
        self.counters.refreshes_sent.add(1);
        let ask = Ask { method, purpose: Purpose::Refresh, fields, body: offer };
        if !self.ask(now, key, ask, out) {
            return self.refresh_later(now, key, REFRESH_AGAIN);
        }
        if let Some(recording) = self.slots.get_mut(key) {
            recording.inviting = by_invite;
            recording.timer = Some(SessionTimer { by_invite, ..timer });
        }
    }

    fn refresh_later(&mut self, now: Now, key: RecordingKey, wait: Duration) {
        let timer = self.slots.get_mut(key).and_then(|recording| recording.timer.as_mut());
        if let Some(timer) = timer.filter(|timer| timer.ours) {
            timer.refresh_at = Some(now.mono + wait);
        }
        self.rearm(key);
    }

    /// The answer to our refresh; `message` is `None` when there was none in time.
    pub(super) fn refreshed(
        &mut self,
        now: Now,
        key: RecordingKey,
        code: u16,
        message: Option<&Message>,
        out: &mut Vec<Command>,
    ) {
        let Some(recording) = self.slots.get_mut(key).filter(|recording| recording.established()) else {
            return;
        };
        let offered = std::mem::take(&mut recording.inviting);
        let accepted = message.filter(|_| (200..300).contains(&code));
        if let Some(accepted) = accepted {
            recording.dialog.refresh(accepted);
        }
        let answer = accepted.filter(|_| offered).and_then(|accepted| sdp::parse(accepted.body()).ok());
        if let Some(answer) = answer {
            let mut session = recording.session.clone();
            if session.answered(&answer) {
                self.adopt(now, key, session);
            }
        }
        let Some(recording) = self.slots.get_mut(key) else { return };
        let expires = message.and_then(Message::session_expires);
        let renewed = message.is_none() && !recording.timer.is_some_and(|timer| timer.under_way());
        if !(200..300).contains(&code) {
            recording.errors.note(now.wall, "refresh_failed", &format!("our refresh was answered {code}"));
        }
        match code {
            200..300 => recording.keep_alive(now, expires),
            // No answer, but meanwhile a request of the SRC that has agreed on the timer anew: it is not gone.
            _ if renewed => self.counters.refreshes_failed.add(1),
            // The SRC does not know the session any more, or is gone (RFC 3261 §12.2.1.2).
            408 | 481 => {
                self.counters.refreshes_failed.add(1);
                return self.hang_up(now, key, EndCause::RefreshFailed, None, out);
            }
            _ => {
                self.counters.refreshes_failed.add(1);
                let wait = self.refresh_refused(key, code, message);
                if let Some(wait) = wait {
                    self.slots.get_mut(key).into_iter().for_each(|recording| recording.errors.retry());
                    self.refresh_later(now, key, wait);
                }
            }
        }
        self.rearm(key);
    }

    /// When to try again what the SRC has refused; `None`: not at all, and the timer runs out.
    fn refresh_refused(
        &mut self,
        key: RecordingKey,
        code: u16,
        message: Option<&Message>,
    ) -> Option<Duration> {
        let timer = self.slots.get_mut(key)?.timer.as_mut()?;
        let retry_after = message.and_then(Message::retry_after);
        match code {
            422 => {
                let least = message.and_then(Message::min_se).filter(|least| *least > timer.seconds)?;
                timer.seconds = least;
                Some(Duration::ZERO)
            }
            // Two offers have met; we are not who chose the Call-ID (RFC 3261 §14.1).
            491 => Some(Duration::from_millis(10 * self.rng.random_range(0..=200))),
            500..600 if retry_after.is_some() => retry_after.map(|wait| wait.max(REFRESH_AGAIN)),
            _ if !timer.by_invite => {
                timer.by_invite = true;
                Some(Duration::ZERO)
            }
            _ => None,
        }
    }
}

impl Recording {
    /// Our refresh was accepted: on what the 2xx says, and on nothing where it says nothing (§7.2).
    fn keep_alive(&mut self, now: Now, expires: Option<SessionExpires>) {
        let before = self.timer;
        let sound = expires.filter(|expires| expires.seconds >= whole_seconds(MIN_SE));
        self.timer = sound.map(|expires| {
            let ours = expires.refresher != Some(Refresher::Uas);
            SessionTimer::new(now.mono, expires.seconds, ours, before.as_ref())
        });
        self.events.push(Event::new(now.wall, EventKind::Refreshed));
    }
}

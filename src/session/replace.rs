//! A recording in the place of another: the SRC says so (Replaces, RFC 3891), or the metadata does (the same communication
//! session again).

use super::send::{Refusal, Request};
use super::state::State;
use super::{Command, RecordingKey, Sessions};
use crate::clock::Now;
use crate::counters::{EndCause, RefuseCause};
use crate::proto::sip::{HeaderName, Replaces};

impl Sessions {
    /// The recording that this INVITE is to take the place of (RFC 3891 §3). Whoever knows both tags and the Call-ID may.
    pub(super) fn replaced(&self, request: &Request) -> Result<Option<RecordingKey>, Refusal> {
        let mut fields = request.message.all(HeaderName::Replaces);
        let Some(value) = fields.next() else { return Ok(None) };
        let refuse = |code, why| Refusal::new(code, RefuseCause::Replaces, why);
        let replaces = Replaces::parse(value)
            .filter(|_| fields.next().is_none())
            .ok_or_else(|| refuse(400, "Replaces that names no dialog, or more than one"))?;
        let (key, state) = self
            .dialog_named(&replaces)
            .ok_or_else(|| refuse(481, "Replaces names a dialog that is not here"))?;
        match state {
            State::Active | State::Paused if replaces.early_only => {
                Err(refuse(486, "the dialog to be replaced is established already"))
            }
            State::Active | State::Paused => Ok(Some(key)),
            // Early, and not begun by us.
            State::Connecting | State::Recovering => {
                Err(refuse(481, "the dialog to be replaced is not established"))
            }
            State::Ending | State::Ended | State::Failed => {
                Err(refuse(603, "the dialog to be replaced has ended"))
            }
        }
    }

    fn dialog_named(&self, replaces: &Replaces) -> Option<(RecordingKey, State)> {
        let key = *self.dialogs.get(&u64::from_str_radix(replaces.to_tag, 16).ok()?)?;
        let recording = self.slots.get(key)?;
        let dialog = &recording.dialog;
        let names = dialog.local_tag == replaces.to_tag
            && dialog.remote_tag == replaces.from_tag
            && dialog.call_id == replaces.call_id;
        names.then_some((key, recording.state()))
    }

    /// The 200 is out: the recording that this one replaces ends (RFC 3891 §3).
    pub(super) fn take_place(&mut self, now: Now, key: RecordingKey, out: &mut Vec<Command>) {
        let Some(old) = self.slots.get_mut(key).and_then(|recording| recording.replaces.take()) else {
            return;
        };
        let Some(id) = self.slots.get(old).filter(|old| old.established()).map(|old| old.id) else { return };
        if let Some(recording) = self.slots.get_mut(key) {
            recording.continues = Some(id);
        }
        self.hang_up(now, old, EndCause::Replaced, None, out);
    }

    /// What the metadata says of the communication session: another recording of it that goes on, or was lost.
    pub(super) fn continue_session(&mut self, now: Now, key: RecordingKey) {
        let Some(recording) = self.slots.get_mut(key).filter(|recording| recording.established()) else {
            return;
        };
        let sessions = recording.history.communication_sessions();
        let known = std::mem::replace(&mut recording.sessions_begun, sessions.len());
        let before = self.continuity.begins(now.mono, recording.id, &sessions, known);
        recording.continues = recording.continues.or(before);
    }
}

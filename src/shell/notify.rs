//! What the service manager is told (sd_notify(3)). Without `NOTIFY_SOCKET` nobody is listening, and nothing is sent.

use std::time::Duration;

use sd_notify::NotifyState;

/// Everything is armed: an INVITE sent now is answered.
pub fn ready(status: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The drain has begun and takes at most `within`, which may be longer than the unit's `TimeoutStopSec`.
pub fn stopping(status: &str, within: Duration) {
    let extend = format!("EXTEND_TIMEOUT_USEC={}", within.as_micros());
    send(&[NotifyState::Stopping, NotifyState::Custom(&extend), NotifyState::Status(status)]);
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager could not be told {states:?}");
    }
}

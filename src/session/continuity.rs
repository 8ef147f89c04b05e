//! Which recording was of which communication session: an SRC that has lost its recording session begins another one, and
//! the new recording names the one that it continues.

use std::collections::{HashMap, VecDeque};

use super::id::Id;
use crate::clock::Mono;
use crate::limits::{CONTINUED_WITHIN, CONTINUITY_ENDED_MAX, CONTINUITY_ID_MAX, CONTINUITY_SESSIONS_MAX};

/// The newest recording of each communication session that goes on here, or was lost not long ago.
#[derive(Debug, Default)]
pub struct Continuity {
    newest: HashMap<String, Newest>,
    /// Those that were lost, oldest first; some have been continued since.
    lost: VecDeque<(Mono, String, Id)>,
}

#[derive(Debug)]
struct Newest {
    recording: Id,
    lost: bool,
}

impl Continuity {
    /// This recording has these communication sessions now, and had the first `known` of them before. Returns the one that it
    /// continues. What it had before makes it continue nobody: if another recording has that now, then that one continues it.
    pub fn begins(&mut self, now: Mono, recording: Id, sessions: &[String], known: usize) -> Option<Id> {
        self.expire(now);
        let known = remembered(&sessions[..known.min(sessions.len())]).count();
        let mut continued = None;
        for (index, session) in remembered(sessions).enumerate() {
            let goes_on_elsewhere =
                self.newest.get(session).is_some_and(|newest| !newest.lost && newest.recording != recording);
            if index < known && goes_on_elsewhere {
                continue;
            }
            let new = Newest { recording, lost: false };
            let before = self.newest.insert(session.clone(), new).map(|before| before.recording);
            continued = continued.or(before.filter(|before| index >= known && *before != recording));
        }
        continued
    }

    /// The recording has ended: by the SRC's own BYE, or it was lost to it.
    pub fn ends(&mut self, now: Mono, recording: Id, sessions: &[String], lost: bool) {
        self.expire(now);
        for session in remembered(sessions) {
            let Some(newest) = self.newest.get_mut(session).filter(|newest| newest.recording == recording)
            else {
                continue; // continued by another one already
            };
            if lost {
                newest.lost = true;
                self.lost.push_back((now, session.clone(), recording));
            } else {
                self.newest.remove(session);
            }
        }
    }

    fn expire(&mut self, now: Mono) {
        while let Some((since, ..)) = self.lost.front() {
            if self.lost.len() <= CONTINUITY_ENDED_MAX && now.since(*since) <= CONTINUED_WITHIN {
                break;
            }
            let Some((_, session, recording)) = self.lost.pop_front() else { break };
            if self.newest.get(&session).is_some_and(|newest| newest.lost && newest.recording == recording) {
                self.newest.remove(&session);
            }
        }
    }
}

/// What is remembered of one recording is bounded, whatever its metadata says.
fn remembered(sessions: &[String]) -> impl Iterator<Item = &String> {
    sessions.iter().filter(|id| !id.is_empty() && id.len() <= CONTINUITY_ID_MAX).take(CONTINUITY_SESSIONS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const NOW: Mono = Mono(1_000_000_000);

    fn sessions(ids: &[&str]) -> Vec<String> {
        ids.iter().map(|id| id.to_string()).collect()
    }

    #[test]
    fn a_recording_continues_the_newest_one_that_was_lost_or_goes_on() {
        let mut continuity = Continuity::default();
        let cs = sessions(&["cs"]);
        assert_eq!(continuity.begins(NOW, Id(1), &cs, 0), None);
        assert_eq!(continuity.begins(NOW, Id(1), &cs, 0), None, "its own metadata again");
        assert_eq!(continuity.begins(NOW, Id(2), &cs, 0), Some(Id(1)), "still there");
        assert_eq!(continuity.begins(NOW, Id(1), &cs, 1), None, "a message in the dialog of the older one");
        continuity.ends(NOW, Id(1), &cs, false);
        continuity.ends(NOW, Id(2), &cs, true);
        assert_eq!(
            continuity.begins(NOW + Duration::from_secs(5), Id(3), &sessions(&["x", "cs"]), 0),
            Some(Id(2))
        );
        continuity.ends(NOW, Id(3), &sessions(&["x", "cs"]), false);
        assert_eq!(continuity.begins(NOW, Id(4), &cs, 0), None, "ended by its SRC, so this is another story");
    }

    #[test]
    fn what_was_lost_long_ago_is_forgotten() {
        let mut continuity = Continuity::default();
        let cs = sessions(&["cs"]);
        continuity.begins(NOW, Id(1), &cs, 0);
        continuity.ends(NOW, Id(1), &cs, true);
        let later = NOW + CONTINUED_WITHIN + Duration::from_nanos(1);
        assert_eq!(continuity.begins(later, Id(2), &cs, 0), None);
        continuity.ends(later, Id(2), &cs, false);
        assert!(continuity.newest.is_empty() && continuity.lost.is_empty());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut continuity = Continuity::default();
        for n in 0..CONTINUITY_ENDED_MAX as u128 * 2 {
            let cs = sessions(&[&n.to_string()]);
            continuity.begins(NOW, Id(n), &cs, 0);
            continuity.ends(NOW, Id(n), &cs, true);
        }
        assert!(continuity.newest.len() <= CONTINUITY_ENDED_MAX + 1);
        assert_eq!(continuity.newest.len(), continuity.lost.len());
        let many: Vec<String> = (0..1_000).map(|n| format!("many{n}")).chain(["x".repeat(10_000)]).collect();
        let before = continuity.newest.len();
        continuity.begins(NOW, Id(u128::MAX), &many, 0);
        assert!(continuity.newest.len() <= before + CONTINUITY_SESSIONS_MAX);
    }
}

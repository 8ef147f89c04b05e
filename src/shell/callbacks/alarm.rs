//! What an operator is woken for: raised once, repeated while it goes on, cleared when it has been quiet. Pure.

use serde::{Deserialize, Serialize};

use crate::clock::{Mono, Now, Wall};
use crate::limits::{ALARM_QUIET, ALARM_REPEAT};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Alarm {
    DiskErrors,
    PacketsLost,
    NoRoom,
    CallbacksLost,
    Draining,
}

impl Alarm {
    pub const ALL: [Alarm; 5] =
        [Alarm::DiskErrors, Alarm::PacketsLost, Alarm::NoRoom, Alarm::CallbacksLost, Alarm::Draining];

    /// Its stable name.
    pub const fn text(self) -> &'static str {
        match self {
            Alarm::DiskErrors => "disk_errors",
            Alarm::PacketsLost => "packets_lost",
            Alarm::NoRoom => "no_room",
            Alarm::CallbacksLost => "callbacks_lost",
            Alarm::Draining => "draining",
        }
    }

    /// What is counted, in words.
    pub const fn meaning(self) -> &'static str {
        match self {
            Alarm::DiskErrors => "writes or commits failed; the log names file and error",
            Alarm::PacketsLost => "media packets were received, or came to this host, and are not on disk",
            Alarm::NoRoom => "sessions were refused: no port, or as many sessions as are allowed",
            Alarm::CallbacksLost => "events were lost before every endpoint had them",
            Alarm::Draining => "the recorder is ending and takes no new sessions",
        }
    }
}

/// What each alarm is raised by: counters that only rise, in the order of [`Alarm::ALL`].
pub type Reading = [u64; Alarm::ALL.len()];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    Raised,
    Continues,
    Cleared,
}

impl Step {
    pub const fn text(self) -> &'static str {
        match self {
            Step::Raised => "raised",
            Step::Continues => "continues",
            Step::Cleared => "cleared",
        }
    }
}

/// News of an alarm.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Change {
    pub alarm: Alarm,
    pub step: Step,
    pub since: Wall,
    /// How often since it was raised.
    pub count: u64,
}

/// An alarm that is raised, for the stats.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Raised {
    pub alarm: String,
    /// RFC 3339 UTC.
    pub since: String,
    pub count: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    seen: u64,
    raised: Option<Since>,
}

#[derive(Clone, Copy, Debug)]
struct Since {
    wall: Wall,
    /// The counter before.
    base: u64,
    happened: Mono,
    told: Mono,
}

#[derive(Clone, Debug, Default)]
pub struct Alarms([State; Alarm::ALL.len()]);

impl Alarms {
    pub fn look(&mut self, now: Now, reading: &Reading) -> Vec<Change> {
        let states = Alarm::ALL.into_iter().zip(&mut self.0).zip(reading);
        states.filter_map(|((alarm, state), count)| state.look(alarm, now, *count)).collect()
    }

    /// The alarms that are raised.
    pub fn raised(&self) -> Vec<Raised> {
        let one = |(alarm, state): (Alarm, &State)| {
            let since = state.raised?;
            let count = state.seen - since.base;
            Some(Raised { alarm: alarm.text().into(), since: since.wall.to_string(), count })
        };
        Alarm::ALL.into_iter().zip(&self.0).filter_map(one).collect()
    }
}

impl State {
    fn look(&mut self, alarm: Alarm, now: Now, count: u64) -> Option<Change> {
        let before = std::mem::replace(&mut self.seen, count);
        let happens = count > before;
        let step = match &mut self.raised {
            None if happens => Step::Raised,
            None => return None,
            Some(since) => {
                if happens {
                    since.happened = now.mono;
                }
                if now.mono.since(since.happened) >= ALARM_QUIET {
                    Step::Cleared
                } else if now.mono.since(since.told) >= ALARM_REPEAT {
                    Step::Continues
                } else {
                    return None;
                }
            }
        };
        let fresh = Since { wall: now.wall, base: before, happened: now.mono, told: now.mono };
        let since = self.raised.get_or_insert(fresh);
        since.told = now.mono;
        let change = Change { alarm, step, since: since.wall, count: count - since.base };
        if step == Step::Cleared {
            self.raised = None;
        }
        Some(change)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Now {
        Now { mono: Mono(seconds * 1_000_000_000), wall: Wall(seconds * 1_000_000_000) }
    }

    fn disk(errors: u64) -> Reading {
        [errors, 0, 0, 0, 0]
    }

    #[test]
    fn raised_once_repeated_cleared_and_raised_again() {
        let mut alarms = Alarms::default();
        assert_eq!(alarms.look(at(0), &disk(0)), []);
        let change = |step, since, count| {
            vec![Change { alarm: Alarm::DiskErrors, step, since: at(since).wall, count }]
        };
        assert_eq!(alarms.look(at(1), &disk(3)), change(Step::Raised, 1, 3));
        // An error a second for eleven minutes: two events, not 660.
        let mut events = Vec::new();
        for second in 2..660 {
            events.extend(alarms.look(at(second), &disk(second)));
        }
        assert_eq!(events, change(Step::Continues, 1, 601));
        assert_eq!(
            alarms.raised()[0],
            Raised { alarm: "disk_errors".into(), since: "1970-01-01T00:00:01.000000Z".into(), count: 659 }
        );
        assert_eq!(alarms.look(at(718), &disk(659)), []);
        assert_eq!(alarms.look(at(719), &disk(659)), change(Step::Cleared, 1, 659));
        assert_eq!(alarms.look(at(800), &disk(659)), []);
        assert_eq!(alarms.raised(), []);
        assert_eq!(alarms.look(at(801), &disk(660)), change(Step::Raised, 801, 1));
    }

    #[test]
    fn alarms_do_not_mix() {
        let mut alarms = Alarms::default();
        let changes = alarms.look(at(1), &[0, 5, 0, 0, 1]);
        let names: Vec<&str> = changes.iter().map(|change| change.alarm.text()).collect();
        assert_eq!(names, ["packets_lost", "draining"]);
        assert_eq!(changes[0].count, 5);
    }

    #[test]
    fn names_and_words_differ() {
        for (n, alarm) in Alarm::ALL.iter().enumerate() {
            assert_eq!(*alarm as usize, n, "the order of a reading");
            let others = Alarm::ALL.iter().filter(|other| *other != alarm);
            assert!(
                others
                    .clone()
                    .all(|other| other.text() != alarm.text() && other.meaning() != alarm.meaning())
            );
        }
    }
}

//! The states of a recording session, and every way from one to another: [`TABLE`] is the whole of it.
//!
//! ```text
//! connecting ─────────▶ active ⇄ paused ──▶ ending ──▶ ended
//!    │  └─▶ recovering ──┘                  (dialog over, media being written out)
//!    └──────────┴─▶ failed                  (refused, cancelled, no files: no recording comes of it)
//! ```

use super::state::State::{Active, Connecting, Ended, Ending, Failed, Paused, Recovering};
use crate::clock::Wall;
use crate::proto::manifest;

/// Where a recording session stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum State {
    /// The INVITE is being answered: files are opened, ports armed.
    Connecting,
    /// The same a second time: the files could not be opened in the first place, and are in another.
    Recovering,
    /// Media is expected.
    Active,
    /// Every stream is held, or there is none (RFC 7866 §7.1.1.1): no media is expected.
    Paused,
    /// The dialog is over. What was on its way is being written.
    Ending,
    /// Ports and slot are given back.
    Ended,
    /// No recording comes of it. What was made for it is being removed.
    Failed,
}

/// Every transition there is. What is not here is refused and counted.
pub const TABLE: [(State, &[State]); 7] = [
    (Connecting, &[Recovering, Active, Paused, Failed]),
    (Recovering, &[Active, Paused, Failed]),
    (Active, &[Paused, Ending]),
    (Paused, &[Active, Ending]),
    (Ending, &[Ended]),
    (Ended, &[]),
    (Failed, &[]),
];

impl State {
    pub const ALL: [State; 7] = [Connecting, Recovering, Active, Paused, Ending, Ended, Failed];

    pub fn allows(self, to: State) -> bool {
        TABLE[self as usize].1.contains(&to)
    }

    /// The name under which the manifest, the stats socket and the log show it.
    pub const fn text(self) -> &'static str {
        match self {
            Connecting => "connecting",
            Recovering => "recovering",
            Active => "active",
            Paused => "paused",
            Ending => "ending",
            Ended => "ended",
            Failed => "failed",
        }
    }

    /// The INVITE that began it waits for its answer.
    pub fn opening(self) -> bool {
        matches!(self, Connecting | Recovering)
    }

    /// Requests in its dialog are taken.
    pub fn established(self) -> bool {
        matches!(self, Active | Paused)
    }
}

/// The table has no such transition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoTransition;

/// A session's state, and when what was heard of it.
#[derive(Debug)]
pub struct Life {
    state: State,
    /// The last transition, or the last change of its streams or metadata.
    pub updated: Wall,
    pub last_signalling: Wall,
    /// `None` until there was some, as far as the engine has said.
    pub last_media: Option<Wall>,
}

impl Life {
    pub fn new(at: Wall) -> Life {
        Life { state: Connecting, updated: at, last_signalling: at, last_media: None }
    }

    pub fn state(&self) -> State {
        self.state
    }

    pub fn manifest(&self) -> manifest::Session {
        let Life { updated, last_signalling, last_media, .. } = *self;
        manifest::Session { updated, last_signalling, last_media }
    }

    /// Goes to `to`, and says from where.
    pub fn enter(&mut self, to: State, at: Wall) -> Result<State, NoTransition> {
        let from = self.state;
        if !from.allows(to) {
            return Err(NoTransition);
        }
        self.state = to;
        self.updated = at;
        Ok(from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_row_for_each_state_in_order() {
        for (index, state) in State::ALL.into_iter().enumerate() {
            assert_eq!((TABLE[index].0, state as usize), (state, index));
            assert!(!state.allows(state), "{state:?}");
        }
    }

    #[test]
    fn every_state_is_reached_and_every_way_ends() {
        for state in &State::ALL[1..] {
            assert!(TABLE.iter().any(|(from, to)| from != state && to.contains(state)), "{state:?}");
        }
        let ends: Vec<State> = State::ALL.into_iter().filter(|s| TABLE[*s as usize].1.is_empty()).collect();
        assert_eq!(ends, [Ended, Failed]);
    }

    #[test]
    fn what_the_table_has_not_is_refused() {
        let mut life = Life::new(Wall(1));
        assert_eq!(life.enter(Ending, Wall(2)), Err(NoTransition));
        assert_eq!(life.enter(Active, Wall(3)), Ok(Connecting));
        assert_eq!(life.enter(Active, Wall(4)), Err(NoTransition));
        assert_eq!((life.state(), life.updated), (Active, Wall(3)));
    }
}

//! What changed in one recording, in order, for its manifest. Whoever changes something says so here.

use crate::limits::{EVENTS_PER_RECORDING_BYTES, EVENTS_PER_RECORDING_MAX};
use crate::proto::manifest::Event;

#[derive(Debug, Default)]
pub struct Events {
    list: Vec<Event>,
    /// Bytes of their texts.
    text: usize,
    not_kept: u64,
}

impl Events {
    pub fn push(&mut self, event: Event) {
        let text = self.text + event.text();
        if self.list.len() == EVENTS_PER_RECORDING_MAX || text > EVENTS_PER_RECORDING_BYTES {
            self.not_kept += 1;
            return;
        }
        self.text = text;
        self.list.push(event);
    }

    pub fn list(&self) -> Vec<Event> {
        self.list.clone()
    }

    /// What the manifest has to say about it in words.
    pub fn problems(&self) -> Vec<String> {
        let sentence = || format!("{} changes are not listed: there were too many", self.not_kept);
        (self.not_kept > 0).then(sentence).into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Wall;
    use crate::proto::manifest::EventKind;

    #[test]
    fn neither_their_number_nor_their_bytes_are_without_end() {
        let mut events = Events::default();
        for _ in 0..EVENTS_PER_RECORDING_MAX + 2 {
            events.push(Event::new(Wall(1), EventKind::Refreshed));
        }
        assert_eq!(events.list().len(), EVENTS_PER_RECORDING_MAX);
        assert_eq!(events.problems(), ["2 changes are not listed: there were too many"]);
        let mut events = Events::default();
        for _ in 0..3 {
            let long = "x".repeat(EVENTS_PER_RECORDING_BYTES / 2);
            events.push(Event::new(Wall(1), EventKind::SessionStarted).session(long));
        }
        assert_eq!(events.list().len(), 2);
        assert_eq!(events.problems().len(), 1);
    }
}

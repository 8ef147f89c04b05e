//! Which findings about metadata are logged: of each code one a minute, because a trunk has the same fault in every call.

use crate::clock::Wall;
use crate::limits::{FINDING_CODES_MAX, FINDING_LOG_INTERVAL};
use crate::proto::metadata::Finding;

#[derive(Debug, Default)]
pub struct FindingLog {
    /// By code: when it was logged last, and how often it was found since.
    codes: Vec<(Option<Wall>, u64)>,
}

impl FindingLog {
    /// `Some`: it is to be logged, and so many were not since the last time.
    pub fn due(&mut self, at: Wall, finding: &Finding) -> Option<u64> {
        self.codes.resize(FINDING_CODES_MAX, (None, 0));
        let (last, unlogged) = &mut self.codes[finding.code as usize];
        // The wall clock may be set back.
        let recent = |last: Wall| u128::from(at.0.abs_diff(last.0)) < FINDING_LOG_INTERVAL.as_nanos();
        if last.is_some_and(recent) {
            *unlogged += u64::from(finding.times);
            return None;
        }
        *last = Some(at);
        Some(std::mem::take(unlogged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::metadata::Code;

    #[test]
    fn each_code_has_its_minute() {
        let mut log = FindingLog::default();
        let mut due = |seconds: u64, code| {
            log.due(Wall(seconds * 1_000_000_000), &Finding::new(code, String::new(), ""))
        };
        assert_eq!(due(1_000, Code::MissingAor), Some(0));
        assert_eq!(due(1_001, Code::Syntax), Some(0));
        assert_eq!([due(1_030, Code::MissingAor), due(1_059, Code::MissingAor)], [None, None]);
        assert_eq!(due(1_060, Code::MissingAor), Some(2));
        assert_eq!(due(900, Code::MissingAor), Some(0), "the clock was set back");
    }
}

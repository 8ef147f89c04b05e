//! What a check has found: one value, for people and for programs.

use serde::Serialize;

/// How bad it is, the worst last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    /// Worth knowing; nothing has to be done for the recorder to work.
    Note,
    /// Will cost capacity, or packets under load.
    Warn,
    /// Will fail, or lose packets.
    Fail,
}

impl Level {
    pub fn text(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Note => "note",
            Level::Warn => "warn",
            Level::Fail => "FAIL",
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// Stable, dotted: `net.rmem_max`.
    pub name: &'static str,
    pub level: Level,
    /// What is, with its figures.
    pub found: String,
    /// What it means, or what will hurt; empty where nothing does.
    pub meaning: String,
    /// What to do; empty where there is nothing to do.
    pub remedy: String,
}

impl Finding {
    pub fn ok(name: &'static str, found: impl Into<String>) -> Finding {
        Finding::new(name, Level::Ok, found, "", "")
    }

    pub fn new(
        name: &'static str,
        level: Level,
        found: impl Into<String>,
        meaning: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Finding {
        Finding { name, level, found: found.into(), meaning: meaning.into(), remedy: remedy.into() }
    }

    /// What could not be looked at is worth knowing, and no more.
    pub fn unknown(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding::new(name, Level::Note, found, "it could not be judged", remedy)
    }

    /// `ok` when it is, else this.
    pub fn unless(
        fine: bool,
        name: &'static str,
        level: Level,
        found: impl Into<String>,
        meaning: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Finding {
        if fine { Finding::ok(name, found) } else { Finding::new(name, level, found, meaning, remedy) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_ordered() {
        assert!(Level::Ok < Level::Note && Level::Note < Level::Warn && Level::Warn < Level::Fail);
    }

    #[test]
    fn what_is_fine_asks_for_nothing() {
        let fine = Finding::unless(true, "a.b", Level::Fail, "5", "hurts", "do");
        assert_eq!(fine, Finding::ok("a.b", "5"));
        assert_eq!(Finding::unless(false, "a.b", Level::Fail, "5", "hurts", "do").remedy, "do");
    }
}

//! All findings together: printed for people, as JSON, and as an exit code.

use std::fmt::Write as _;

use serde::Serialize;

use super::finding::{Finding, Level};

/// The box, and what was assumed of the recorder.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Machine {
    pub kernel: String,
    pub cpus: usize,
    pub memory_mib: u64,
    /// CPUs to record on, as `--cores` takes them.
    pub cores: String,
    pub dir: String,
    pub media_ports: String,
    /// Streams of which the checks assume that they come at once.
    pub streams: u64,
    pub interfaces: Vec<String>,
    /// The recorder that runs.
    pub recorder_pid: Option<u32>,
}

#[derive(Debug, Serialize)]
pub struct Report {
    pub machine: Machine,
    pub worst: Level,
    pub fail: usize,
    pub warn: usize,
    pub note: usize,
    pub ok: usize,
    /// The worst first.
    pub findings: Vec<Finding>,
}

impl Report {
    pub fn new(machine: Machine, mut findings: Vec<Finding>) -> Report {
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.level));
        let count = |level| findings.iter().filter(|finding| finding.level == level).count();
        let worst = findings.first().map_or(Level::Ok, |finding| finding.level);
        let [fail, warn, note, ok] = [Level::Fail, Level::Warn, Level::Note, Level::Ok].map(count);
        Report { machine, worst, fail, warn, note, ok, findings }
    }

    /// 0: nothing worse than a note; 1: warnings; 2: something will fail or lose packets.
    pub fn exit_code(&self) -> u8 {
        match self.worst {
            Level::Ok | Level::Note => 0,
            Level::Warn => 1,
            Level::Fail => 2,
        }
    }

    pub fn json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("texts and numbers are always JSON");
        text.push('\n');
        text
    }

    /// A line for each, what to do about it below, and what was assumed.
    pub fn page(&self) -> String {
        let width = self.findings.iter().map(|finding| finding.name.len()).max().unwrap_or(0);
        let mut page = String::new();
        // Writing to a String cannot fail.
        for Finding { name, level, found, meaning, remedy } in &self.findings {
            let colon = if meaning.is_empty() { "" } else { ": " };
            let _ = writeln!(page, "{:<5} {name:<width$}  {found}{colon}{meaning}", level.text());
            if !remedy.is_empty() {
                let _ = writeln!(page, "{:<5} {:<width$}    > {remedy}", "", "");
            }
        }
        let Machine { kernel, cpus, memory_mib, cores, dir, media_ports, streams, .. } = &self.machine;
        let _ = writeln!(
            page,
            "\n{} fail, {} warn, {} note, {} ok; Linux {kernel}, {cpus} CPUs, {memory_mib} MiB; for {streams} streams on media \
             ports {media_ports}, reactors on CPU {cores}, recordings in {dir}",
            self.fail, self.warn, self.note, self.ok
        );
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(levels: &[Level]) -> Report {
        let finding = |level: &Level| Finding::new("net.x", *level, "found", "it hurts", "do this");
        Report::new(Machine::default(), levels.iter().map(finding).collect())
    }

    #[test]
    fn the_worst_decides() {
        assert_eq!(report(&[]).exit_code(), 0);
        assert_eq!(report(&[Level::Ok, Level::Note]).exit_code(), 0);
        assert_eq!(report(&[Level::Note, Level::Warn, Level::Ok]).exit_code(), 1);
        assert_eq!(report(&[Level::Warn, Level::Fail]).exit_code(), 2);
    }

    #[test]
    fn for_people_the_worst_first() {
        let machine = Machine {
            kernel: "6.12".into(),
            cpus: 8,
            media_ports: "20000-39999".into(),
            ..Machine::default()
        };
        let findings = vec![
            Finding::ok("net.softnet", "0 dropped"),
            Finding::new("dir.space", Level::Fail, "1 GiB free", "a full disk", "a larger disk"),
        ];
        let page = Report::new(machine, findings).page();
        let expected = "\
FAIL  dir.space    1 GiB free: a full disk
                     > a larger disk
ok    net.softnet  0 dropped

1 fail, 0 warn, 0 note, 1 ok; Linux 6.12, 8 CPUs, 0 MiB; for 0 streams on media ports 20000-39999, reactors on CPU ";
        assert!(page.starts_with(expected), "{page}");
    }

    #[test]
    fn for_programs_the_same_fields() {
        let json: serde_json::Value = serde_json::from_str(&report(&[Level::Warn]).json()).unwrap();
        assert_eq!((&json["worst"], &json["warn"]), (&"warn".into(), &1.into()));
        let finding = &json["findings"][0];
        let fields =
            ["name", "level", "found", "meaning", "remedy"].map(|field| finding[field].as_str().unwrap());
        assert_eq!(fields, ["net.x", "warn", "found", "it hurts", "do this"]);
    }
}

//! The engine as the session layer sees it: slow, failing now and then, and strict about what it may rely on.

use rand::Rng;
use rand::rngs::StdRng;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sipreel::clock::Mono;
use sipreel::proto::manifest::Manifest;
use sipreel::session::{Change, Close, Event, Failure, Open, OpenStream, RecordingKey, SmallFile};

use crate::report::{Report, Rule};

/// How it does its work in this world.
#[derive(Clone, Copy, Debug)]
pub struct Temper {
    /// Share of opens and changes that fail, and of opens that take longer than anybody waits.
    pub fails: f64,
    pub stuck: f64,
    /// Milliseconds of the slowest usual open.
    pub slowest: u64,
    pub commits_fail: f64,
}

pub struct Engine {
    pub temper: Temper,
    cooldown: Duration,
    recordings: BTreeMap<u32, Recording>,
    /// When each RTP port was let go.
    rested: BTreeMap<u16, Mono>,
    ids: BTreeSet<String>,
    /// Recordings whose commit is not reported, and those that are.
    pub committing: u64,
    pub committed: u64,
    pub commits_failed: u64,
}

#[derive(Debug)]
struct Recording {
    key: RecordingKey,
    opened: bool,
    closed: bool,
    /// Port of each stream that is armed; and what a change under way will add and remove.
    armed: BTreeMap<u8, u16>,
    changing: Option<(BTreeMap<u8, u16>, Vec<u8>)>,
    /// Ports of all streams there ever were, by index.
    streams: BTreeMap<u8, u16>,
    files: usize,
    /// Its directory ends in its id.
    path: String,
    /// When its files were there; when something came for it last, and from when on nothing does.
    since: Mono,
    heard: Mono,
    silent_from: Mono,
}

const ERRNOS: [i32; 4] = [28, 13, 5, 24];

impl Engine {
    pub fn new(temper: Temper, cooldown: Duration) -> Engine {
        Engine {
            temper,
            cooldown,
            recordings: BTreeMap::new(),
            rested: BTreeMap::new(),
            ids: BTreeSet::new(),
            committing: 0,
            committed: 0,
            commits_failed: 0,
        }
    }

    // ---- commands -----------------------------------------------------------------------------------------------

    /// What it will report, and after how many milliseconds.
    pub fn open(&mut self, rng: &mut StdRng, open: &Open, report: &mut Report) -> (u64, Event) {
        let (key, taken) = (open.key, self.recordings.contains_key(&open.key.slot));
        report.hold(!taken, Rule::Engine, || format!("slot {} is opened while it is in use", key.slot));
        report.hold(self.ids.insert(open.path.clone()), Rule::Engine, || format!("{} twice", open.path));
        report.hold(!open.streams.is_empty(), Rule::Engine, || format!("{key:?} has no stream"));
        let mut recording = Recording {
            key,
            opened: false,
            closed: false,
            armed: BTreeMap::new(),
            changing: None,
            streams: BTreeMap::new(),
            files: 0,
            path: open.path.clone(),
            since: report.now,
            heard: report.now,
            silent_from: report.now + Duration::from_millis(rng.random_range(1_000..150_000)),
        };
        let mut labels = BTreeSet::new();
        for (index, stream) in open.streams.iter().enumerate() {
            report.hold(usize::from(stream.stream) == index, Rule::Engine, || {
                format!("{stream:?} is number {index}")
            });
            report
                .hold(labels.insert(&stream.label), Rule::Engine, || format!("label {} twice", stream.label));
            self.check_free(key, stream, report);
            recording.armed.insert(stream.stream, stream.ports.rtp);
        }
        recording.streams.clone_from(&recording.armed);
        for file in &open.files {
            recording.file(file, report);
        }
        self.recordings.insert(key.slot, recording);
        let delay = if rng.random_bool(self.temper.stuck) {
            25_000
        } else {
            rng.random_range(0..=self.temper.slowest)
        };
        let event = match rng.random_bool(self.temper.fails) {
            true => Event::OpenFailed { key, failure: failure(rng) },
            false => Event::Opened { key },
        };
        (delay, event)
    }

    pub fn change(&mut self, rng: &mut StdRng, change: &Change, report: &mut Report) -> (u64, Event) {
        let key = change.key;
        for stream in &change.add {
            self.check_free(key, stream, report);
        }
        let Some(recording) = self.open_one(key, "Change", report) else {
            return (0, Event::Changed { key });
        };
        report.hold(recording.changing.is_none(), Rule::Engine, || format!("{key:?}: two changes at once"));
        report.hold(!(change.add.is_empty() && change.remove.is_empty()), Rule::Engine, || {
            "an empty Change".to_owned()
        });
        let mut added = BTreeMap::new();
        for stream in &change.add {
            let known = recording.streams.insert(stream.stream, stream.ports.rtp);
            let reused = known.is_some() && recording.armed.contains_key(&stream.stream);
            report.hold(!reused, Rule::Engine, || format!("{key:?}: stream {} again", stream.stream));
            added.insert(stream.stream, stream.ports.rtp);
        }
        for stream in &change.remove {
            let armed = recording.armed.contains_key(stream);
            report.hold(armed, Rule::Engine, || {
                format!("{key:?}: stream {stream} is removed and is not there")
            });
        }
        recording.changing = Some((added, change.remove.clone()));
        let event = match rng.random_bool(self.temper.fails) {
            true => Event::ChangeFailed { key, failure: failure(rng) },
            false => Event::Changed { key },
        };
        (rng.random_range(0..=self.temper.slowest), event)
    }

    pub fn file(&mut self, key: RecordingKey, file: &SmallFile, report: &mut Report) {
        if let Some(recording) = self.open_one(key, "File", report) {
            recording.file(file, report);
        }
    }

    pub fn signal(&mut self, key: RecordingKey, report: &mut Report) {
        self.open_one(key, "Signal", report);
    }

    /// What it will report: that the slot is free, and with a manifest the commit.
    pub fn close(&mut self, rng: &mut StdRng, close: &Close, report: &mut Report) -> Vec<(u64, Event)> {
        let key = close.key;
        let Some(recording) = self.open_one(key, "Close", report) else { return Vec::new() };
        recording.closed = true;
        if let Some(manifest) = &close.manifest {
            recording.check_manifest(manifest, report);
        }
        // Changes under way are reported before, if they are reported at all.
        let free = 100 + self.temper.slowest + rng.random_range(0..500);
        let mut events = vec![(free, Event::Closed { key })];
        if let Some(manifest) = &close.manifest {
            self.committing += 1;
            let id = manifest.id.clone();
            let event = match rng.random_bool(self.temper.commits_fail) {
                true => Event::CommitFailed { id, failure: failure(rng) },
                false => Event::Committed { id, path: String::new(), incomplete: rng.random_bool(0.1) },
            };
            events.push((free + rng.random_range(0..3_000), event));
        }
        events
    }

    // ---- events -------------------------------------------------------------------------------------------------

    /// What it reports, it has done. `false`: it has nothing to report any more.
    pub fn reports(&mut self, now: Mono, event: &Event) -> bool {
        match event {
            Event::Opened { key } => match self.recordings.get_mut(&key.slot) {
                Some(recording) => {
                    recording.opened = true;
                    (recording.since, recording.heard) = (now, now);
                }
                None => return false,
            },
            Event::OpenFailed { key, .. } | Event::Closed { key } => {
                let Some(recording) = self.recordings.remove(&key.slot) else { return false };
                let changing = recording.changing.map(|(added, _)| added).unwrap_or_default();
                let ports = recording.armed.into_values().chain(changing.into_values());
                self.rested.extend(ports.map(|port| (port, now)));
            }
            Event::Changed { key } | Event::ChangeFailed { key, .. } => {
                return self.change_over(now, *key, matches!(event, Event::Changed { .. }));
            }
            Event::Committed { .. } => {
                self.committing -= 1;
                self.committed += 1;
            }
            Event::CommitFailed { .. } => {
                self.committing -= 1;
                self.commits_failed += 1;
            }
            _ => {}
        }
        true
    }

    /// The answer to a change is left out when the recording has been closed meanwhile.
    fn change_over(&mut self, now: Mono, key: RecordingKey, done: bool) -> bool {
        let recording = self.recordings.get_mut(&key.slot).filter(|recording| recording.key == key);
        let Some(recording) = recording.filter(|recording| !recording.closed) else { return false };
        let Some((added, removed)) = recording.changing.take() else { return false };
        if done {
            recording.armed.extend(added);
            let ports = removed.iter().filter_map(|stream| recording.armed.remove(stream));
            self.rested.extend(ports.map(|port| (port, now)));
        } else {
            for stream in added.keys() {
                recording.streams.remove(stream);
            }
            self.rested.extend(added.into_values().map(|port| (port, now)));
        }
        true
    }

    // ---- what others ask ----------------------------------------------------------------------------------------

    /// Pairs that somebody may send to, or soon may.
    pub fn pairs_held(&self) -> usize {
        let changing =
            |recording: &Recording| recording.changing.as_ref().map_or(0, |(added, _)| added.len());
        self.recordings.values().map(|recording| recording.armed.len() + changing(recording)).sum()
    }

    pub fn slots_held(&self) -> usize {
        self.recordings.len()
    }

    /// Files exist, and this port of the recording is armed; of a port 0, that the files exist.
    pub fn armed(&self, key: RecordingKey, port: u16) -> bool {
        let recording = self.recordings.get(&key.slot).filter(|recording| recording.key == key);
        let Some(recording) = recording.filter(|recording| recording.opened) else { return false };
        port == 0 || recording.armed.values().any(|armed| *armed == port)
    }

    /// Something comes for the recording. `false`: it is over, or silent from now on.
    pub fn hears(&mut self, now: Mono, key: RecordingKey) -> bool {
        let recording = self.recordings.get_mut(&key.slot).filter(|recording| recording.key == key);
        let Some(recording) = recording.filter(|recording| !recording.closed && now < recording.silent_from)
        else {
            return false;
        };
        recording.heard = now;
        true
    }

    /// How long the recording has been there, and for how long nothing has come.
    pub fn ages(&self, now: Mono, key: RecordingKey) -> (Duration, Duration) {
        let recording = self.recordings.get(&key.slot).filter(|recording| recording.key == key);
        recording.map_or_else(Default::default, |recording| {
            (now.since(recording.since), now.since(recording.heard))
        })
    }

    /// Ids of the recordings in memory.
    pub fn ids(&self) -> Vec<String> {
        let id = |recording: &Recording| recording.path.rsplit('/').next().unwrap_or_default().to_owned();
        self.recordings.values().map(id).collect()
    }

    pub fn open_keys(&self) -> Vec<RecordingKey> {
        self.recordings.values().map(|recording| recording.key).collect()
    }

    fn open_one(&mut self, key: RecordingKey, what: &str, report: &mut Report) -> Option<&mut Recording> {
        let recording = self.recordings.get_mut(&key.slot).filter(|recording| recording.key == key);
        let Some(recording) = recording else {
            report.broken(Rule::Engine, format!("{what} of {key:?}, which nobody opened or which has gone"));
            return None;
        };
        let usable = recording.opened && !recording.closed;
        report.hold(usable, Rule::Engine, || {
            let state = if recording.closed { "closed" } else { "not open yet" };
            format!("{what} of {key:?}, which is {state}")
        });
        usable.then_some(recording)
    }

    fn check_free(&self, key: RecordingKey, stream: &OpenStream, report: &mut Report) {
        let port = stream.ports.rtp;
        report.hold(stream.ports.reactor == key.reactor, Rule::Engine, || {
            format!("port {port} is another reactor's")
        });
        let used = |recording: &Recording| {
            let changing = recording.changing.as_ref();
            recording
                .armed
                .values()
                .chain(changing.iter().flat_map(|(added, _)| added.values()))
                .any(|used| *used == port)
        };
        let taken = self.recordings.values().any(used);
        report.hold(!taken, Rule::Engine, || format!("port {port} is in use already"));
        let rest = self.rested.get(&port).map(|since| report.now.since(*since));
        let warm = rest.is_some_and(|rest| rest < self.cooldown);
        report.hold(!warm, Rule::Engine, || format!("port {port} has rested for {rest:?} only"));
    }
}

impl Recording {
    fn file(&mut self, file: &SmallFile, report: &mut Report) {
        // The first manifest is made anew where files could be opened only at the second attempt.
        if file.name == "recording.json" {
            return;
        }
        self.files += 1;
        let due = format!("metadata-{:04}.xml", self.files);
        report.hold(file.name == due, Rule::Engine, || format!("{} where {due} was to come", file.name));
    }

    /// The manifest and the engine speak of the same streams and files.
    fn check_manifest(&self, manifest: &Manifest, report: &mut Report) {
        let said: Vec<u16> = manifest.streams.iter().map(|stream| stream.local_rtp_port).collect();
        let known: Vec<u16> = self.streams.values().copied().collect();
        report.hold(said == known, Rule::Manifest, || {
            format!("streams on {said:?}, the engine knows {known:?}")
        });
        let bodies = manifest.metadata.len();
        report
            .hold(bodies == self.files, Rule::Manifest, || format!("{bodies} bodies, {} files", self.files));
    }
}

fn failure(rng: &mut StdRng) -> Failure {
    let errno = ERRNOS[rng.random_range(0..ERRNOS.len())];
    Failure { what: "open file", path: "2026/11/22/08/x.part".to_owned(), errno }
}

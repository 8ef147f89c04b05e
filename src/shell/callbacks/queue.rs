//! The events on disk, and the newest of them in memory too: one log for all endpoints, each of which reads on from where it
//! stands. So an endpoint that is dead costs the others nothing.
//!
//! ```text
//! DIR/lock                            held while a recorder uses the directory
//! DIR/00000000000000000001.events     lines (`record`); the name is the sequence of the first
//! DIR/00000000000000001507.events
//! ```
//!
//! An event is written before anybody gets it, so that no sequence is ever given twice. A write that fails loses nothing
//! while the process runs: what tells of the full disk must get out although the disk is full. Files are taken away when every
//! endpoint has what is in them, or, the oldest first, when there are too many bytes.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::record::{self, Entry};
use crate::clock::Wall;
use crate::limits::{CALLBACK_BATCH, CALLBACK_RECENT, CALLBACK_SEGMENT};

#[derive(Debug)]
pub struct Queue {
    dir: PathBuf,
    bytes_max: u64,
    state: Mutex<State>,
    /// Events before this sequence have made room for newer ones.
    kept_from: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// The last one is written to, if it can be.
    segments: VecDeque<Segment>,
    /// Consecutive, up to `last`.
    recent: VecDeque<Arc<Entry>>,
    recent_bytes: usize,
    last: u64,
    /// Events that could not be written.
    unsaved: u64,
}

/// A file of the queue. `last` is at least the sequence of its last event, and less than the next one's `first`.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Segment {
    first: u64,
    last: u64,
    bytes: u64,
}

/// What an endpoint reads at once.
#[derive(Debug, Default)]
pub struct Batch {
    pub entries: Vec<Arc<Entry>>,
    /// There is nothing else up to here.
    pub up_to: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Size {
    pub files: usize,
    pub bytes: u64,
    pub last: u64,
    pub unsaved: u64,
}

/// Why the directory cannot be used.
#[derive(Debug)]
pub enum Unusable {
    /// Another recorder holds it.
    Taken,
    Failed(io::Error),
}

impl From<io::Error> for Unusable {
    fn from(error: io::Error) -> Unusable {
        Unusable::Failed(error)
    }
}

/// The only one that adds events.
#[derive(Debug)]
pub struct Writer {
    queue: Arc<Queue>,
    file: Option<File>,
    unsynced: bool,
    _lock: File,
}

/// Takes the directory, which is made if it is missing. `delivered`: the furthest that any endpoint has got.
pub fn open(
    dir: &Path,
    bytes_max: u64,
    delivered: impl FnOnce(&Path) -> u64,
) -> Result<(Arc<Queue>, Writer), Unusable> {
    fs::create_dir_all(dir)?;
    let lock = File::create(dir.join("lock"))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => return Err(Unusable::Taken),
        Err(fs::TryLockError::Error(error)) => return Err(error.into()),
    }
    let segments = segments(dir)?;
    let last = segments.back().map_or(0, |segment| segment.last).max(delivered(dir));
    let state = Mutex::new(State { segments, last, ..State::default() });
    let queue = Arc::new(Queue { dir: dir.to_owned(), bytes_max, state, kept_from: AtomicU64::new(0) });
    let writer = Writer { queue: queue.clone(), file: None, unsynced: false, _lock: lock };
    Ok((queue, writer))
}

/// What another process has left, the oldest first. Only the last file is read: it alone can end before its time.
fn segments(dir: &Path) -> io::Result<VecDeque<Segment>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let first = name.to_str().and_then(|name| name.strip_suffix(".events")?.parse().ok());
        if let Some(first) = first {
            segments.push(Segment { first, last: first, bytes: entry.metadata()?.len() });
        }
    }
    segments.sort_by_key(|segment| segment.first);
    for n in 1..segments.len() {
        segments[n - 1].last = segments[n].first - 1;
    }
    if let Some(last) = segments.last_mut() {
        let decoded = record::decode(&fs::read(path(dir, last.first))?);
        last.last = decoded.entries.last().map_or(last.first - 1, |entry| entry.sequence);
    }
    Ok(segments.into())
}

fn path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:020}.events"))
}

impl Queue {
    /// The newest sequence.
    pub fn last(&self) -> u64 {
        self.state().last
    }

    /// Events before this one have made room for newer ones.
    pub fn kept_from(&self) -> u64 {
        self.kept_from.load(Ordering::Relaxed)
    }

    /// Some of the events after this one, the oldest first, from memory where they are there.
    pub fn fetch(&self, after: u64) -> Batch {
        let segment = {
            let state = self.state();
            let segment = state.segments.iter().find(|segment| segment.last > after);
            let recent = state.recent.front().map(|entry| entry.sequence);
            match (segment, recent) {
                (Some(segment), recent)
                    if recent.is_none_or(|recent| segment.first.max(after + 1) < recent) =>
                {
                    segment.clone()
                }
                (_, Some(recent)) => return state.recent_after(after, recent),
                _ => return Batch { entries: Vec::new(), up_to: state.last.max(after) },
            }
        };
        let mut entries = self.read(&segment);
        entries.retain(|entry| entry.sequence > after && entry.sequence <= segment.last);
        Batch { entries, up_to: segment.last }
    }

    fn read(&self, segment: &Segment) -> Vec<Arc<Entry>> {
        let path = path(&self.dir, segment.first);
        let mut bytes = Vec::with_capacity(segment.bytes as usize);
        // Whoever wrote more into it was not us.
        let limit = segment.bytes.max(CALLBACK_SEGMENT) * 2;
        let read = File::open(&path).and_then(|file| file.take(limit).read_to_end(&mut bytes));
        if let Err(error) = read {
            tracing::error!(path = %path.display(), "events of the callback queue cannot be read back: {error}");
        }
        let decoded = record::decode(&bytes);
        if decoded.damaged > 0 {
            let lines = decoded.damaged;
            tracing::error!(path = %path.display(), lines, "events of the callback queue are damaged and left out");
        }
        decoded.entries
    }

    /// Takes away the files of which every endpoint has everything.
    pub fn forget(&self, delivered: u64) {
        loop {
            let mut state = self.state();
            // The file that is written to stays.
            let spare = state.segments.len() > 1 && state.segments[0].last <= delivered;
            let Some(segment) = spare.then(|| state.segments.pop_front()).flatten() else { return };
            drop(state);
            self.remove(&segment);
        }
    }

    fn remove(&self, segment: &Segment) {
        let path = path(&self.dir, segment.first);
        if let Err(error) = fs::remove_file(&path) {
            tracing::warn!(path = %path.display(), "a file of the callback queue cannot be removed: {error}");
        }
    }

    pub fn size(&self) -> Size {
        let state = self.state();
        Size { files: state.segments.len(), bytes: state.bytes(), last: state.last, unsaved: state.unsaved }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    fn recent_after(&self, after: u64, first: u64) -> Batch {
        let skip = (after + 1).saturating_sub(first) as usize;
        let entries: Vec<Arc<Entry>> = self.recent.iter().skip(skip).take(CALLBACK_BATCH).cloned().collect();
        let up_to = entries.last().map_or(after, |entry| entry.sequence);
        Batch { entries, up_to }
    }

    fn remember(&mut self, entry: Arc<Entry>) {
        self.last = entry.sequence;
        self.recent_bytes += entry.body.len();
        self.recent.push_back(entry);
        while self.recent_bytes > CALLBACK_RECENT {
            let Some(oldest) = self.recent.pop_front() else { break };
            self.recent_bytes -= oldest.body.len();
        }
    }
}

impl Writer {
    /// Adds one event; `body` is told its sequence. It is written, not yet synced.
    pub fn append(&mut self, at: Wall, key: u32, body: impl FnOnce(u64) -> Bytes) -> Arc<Entry> {
        let sequence = self.queue.last() + 1;
        let entry = Arc::new(Entry { sequence, at, key, body: body(sequence) });
        let line = record::encode(&entry);
        let written = self.write(sequence, &line);
        let mut state = self.queue.state();
        match written {
            Ok(()) => {
                if let Some(segment) = state.segments.back_mut() {
                    segment.last = sequence;
                    segment.bytes += line.len() as u64;
                }
            }
            Err(error) => {
                if state.unsaved == 0 {
                    tracing::error!("an event for the callbacks cannot be written, only sent: {error}");
                }
                state.unsaved += 1;
                // What came of the line is unknown, so nothing is written behind it.
                self.file = None;
                // Nor is a file begun for each: there may be as many as there are inodes before the disk has room again.
                if let Some(empty) = state.segments.pop_back_if(|segment| segment.bytes == 0) {
                    let _ = fs::remove_file(path(&self.queue.dir, empty.first));
                }
            }
        }
        state.remember(entry.clone());
        drop(state);
        self.make_room();
        entry
    }

    fn write(&mut self, sequence: u64, line: &[u8]) -> io::Result<()> {
        let full = self.queue.state().segments.back().is_none_or(|segment| segment.bytes >= CALLBACK_SEGMENT);
        if full || self.file.is_none() {
            self.begin(sequence)?;
        }
        let Some(file) = &mut self.file else { return Err(io::ErrorKind::NotFound.into()) };
        file.write_all(line)?;
        self.unsynced = true;
        Ok(())
    }

    /// A new file. One of the same name holds no whole event: its first would have had this sequence.
    fn begin(&mut self, first: u64) -> io::Result<()> {
        self.sync();
        self.file = None;
        self.file = Some(File::create(path(&self.queue.dir, first))?);
        let mut state = self.queue.state();
        if state.segments.back().is_some_and(|segment| segment.first == first) {
            state.segments.pop_back();
        }
        state.segments.push_back(Segment { first, last: first - 1, bytes: 0 });
        Ok(())
    }

    fn make_room(&self) {
        loop {
            let mut state = self.queue.state();
            if state.bytes() <= self.queue.bytes_max || state.segments.len() < 2 {
                return;
            }
            let Some(segment) = state.segments.pop_front() else { return };
            drop(state);
            self.queue.kept_from.store(segment.last + 1, Ordering::Relaxed);
            self.queue.remove(&segment);
        }
    }

    /// Makes sure that a power failure takes nothing of what is there.
    pub fn sync(&mut self) {
        let Some(file) = self.file.as_ref().filter(|_| self.unsynced) else { return };
        self.unsynced = false;
        if let Err(error) = file.sync_data().and_then(|()| File::open(&self.queue.dir)?.sync_all()) {
            tracing::error!("the callback queue cannot be synced: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reopened(dir: &Path) -> (Arc<Queue>, Writer) {
        open(dir, 1 << 30, |_| 0).unwrap()
    }

    fn append(writer: &mut Writer, n: usize, size: usize) {
        for _ in 0..n {
            writer.append(Wall(1), 7, |_| "x".repeat(size).into());
        }
    }

    /// Everything after this sequence, as an endpoint reads it; all that is missing counted.
    fn all(queue: &Queue, mut after: u64) -> (Vec<u64>, u64) {
        let (mut found, begin) = (Vec::new(), after);
        while after < queue.last() {
            let batch = queue.fetch(after);
            assert!(batch.up_to > after);
            assert!(
                batch.entries.iter().all(|entry| entry.sequence > after && entry.sequence <= batch.up_to)
            );
            found.extend(batch.entries.iter().map(|entry| entry.sequence));
            after = batch.up_to;
        }
        let missing = queue.last() - begin - found.len() as u64;
        (found, missing)
    }

    #[test]
    fn a_full_disk_is_not_filled_with_empty_files() {
        let dir = tempfile::tempdir().unwrap();
        let (queue, mut writer) = reopened(dir.path());
        for sequence in 1..4 {
            std::os::unix::fs::symlink("/dev/full", path(dir.path(), sequence)).unwrap();
        }
        append(&mut writer, 3, 10);
        assert_eq!((queue.size().files, queue.size().unsaved, queue.last()), (0, 3, 3));
        assert_eq!(segments(dir.path()).unwrap().len(), 0);
        append(&mut writer, 1, 10);
        assert_eq!((queue.size().files, queue.size().unsaved, queue.last()), (1, 3, 4));
    }

    #[test]
    fn what_one_process_leaves_the_next_one_sends() {
        let dir = tempfile::tempdir().unwrap();
        let (queue, mut writer) = reopened(dir.path());
        append(&mut writer, 3, 10);
        assert_eq!(all(&queue, 0), (vec![1, 2, 3], 0));
        drop((queue, writer));
        let (queue, mut writer) = reopened(dir.path());
        assert_eq!(all(&queue, 1), (vec![2, 3], 0));
        append(&mut writer, 2, 10);
        assert_eq!(all(&queue, 0), (vec![1, 2, 3, 4, 5], 0));
        assert_eq!(queue.size().files, 2);
    }

    /// As a process leaves it that is killed in the middle of its last write, at each byte of it.
    #[test]
    fn a_torn_tail_is_passed_over_and_its_sequence_given_again() {
        let written = tempfile::tempdir().unwrap();
        let (_, mut writer) = reopened(written.path());
        append(&mut writer, 3, 10);
        drop(writer);
        let whole = fs::read(path(written.path(), 1)).unwrap();
        let third = whole.len() - whole.len() / 3;
        for length in (0..whole.len()).filter(|length| *length <= 3 || *length > third - 3) {
            let dir = tempfile::tempdir().unwrap();
            fs::write(path(dir.path(), 1), &whole[..length]).unwrap();
            let (queue, mut writer) = reopened(dir.path());
            let left = queue.last();
            assert_eq!(left, record::decode(&whole[..length]).entries.len() as u64);
            append(&mut writer, 2, 10);
            drop((queue, writer));
            let (queue, _writer) = reopened(dir.path());
            assert_eq!(all(&queue, 0), ((1..=left + 2).collect(), 0), "{length}");
        }
    }

    #[test]
    fn old_events_come_from_files_and_new_ones_from_memory() {
        let dir = tempfile::tempdir().unwrap();
        let (queue, mut writer) = reopened(dir.path());
        let size = 60_000;
        append(&mut writer, 120, size);
        let recent = CALLBACK_RECENT / size;
        assert_eq!(queue.state().recent.len(), recent);
        assert!(queue.size().files > 5);
        assert_eq!(all(&queue, 0), ((1..=120).collect(), 0));
        fs::remove_file(path(dir.path(), 1)).unwrap();
        let (found, missing) = all(&queue, 0);
        assert!(missing > 10 && found.len() as u64 == 120 - missing && found.ends_with(&[119, 120]));
        assert_eq!(all(&queue, 100), ((101..=120).collect(), 0));
    }

    #[test]
    fn the_oldest_make_room() {
        let dir = tempfile::tempdir().unwrap();
        let (queue, mut writer) = open(dir.path(), 3 << 20, |_| 0).unwrap();
        append(&mut writer, 200, 100_000);
        let size = queue.size();
        assert!(size.bytes <= 3 << 20 && size.files <= 4, "{size:?}");
        let on_disk = fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().metadata().unwrap().len());
        assert_eq!(on_disk.sum::<u64>(), size.bytes);
        let (found, missing) = all(&queue, 0);
        assert_eq!(found.len() as u64 + missing, 200);
        assert!(missing > 100 && found[0] <= queue.kept_from());
        assert_eq!(*found.last().unwrap(), 200, "the newest are there");
    }

    #[test]
    fn what_everybody_has_is_taken_away() {
        let dir = tempfile::tempdir().unwrap();
        let (queue, mut writer) = reopened(dir.path());
        append(&mut writer, 100, 60_000);
        let files = queue.size().files;
        queue.forget(10);
        assert_eq!(queue.size().files, files, "the first file has more than that");
        queue.forget(40);
        assert_eq!(all(&queue, 40), ((41..=100).collect(), 0));
        assert!(queue.size().files < files);
        queue.forget(100);
        assert_eq!(queue.size().files, 1, "the one that is written to");
        assert_eq!(queue.kept_from(), 0, "nothing was lost");
        append(&mut writer, 1, 10);
        drop((queue, writer));
        let (queue, mut writer) = reopened(dir.path());
        append(&mut writer, 1, 10);
        queue.forget(102);
        assert_eq!((queue.size().files, queue.last()), (1, 102));
    }

    /// All files gone, the cursors still know: a sequence that an endpoint has is never given to another event.
    #[test]
    fn sequences_go_on_from_what_was_delivered() {
        let dir = tempfile::tempdir().unwrap();
        let (queue, mut writer) = open(dir.path(), 1 << 30, |_| 41).unwrap();
        append(&mut writer, 1, 10);
        assert_eq!(all(&queue, 41), (vec![42], 0));
    }

    #[test]
    fn a_full_disk_loses_nothing_while_the_process_runs() {
        // Every write to this one fails for want of space.
        let dir = tempfile::tempdir().unwrap();
        let (queue, mut writer) = reopened(dir.path());
        append(&mut writer, 2, 10);
        writer.file = Some(File::options().write(true).open("/dev/full").unwrap());
        append(&mut writer, 1, 10);
        append(&mut writer, 1, 10);
        assert_eq!(all(&queue, 0), (vec![1, 2, 3, 4], 0));
        assert_eq!(queue.size().unsaved, 1);
        drop((queue, writer));
        let (queue, _writer) = reopened(dir.path());
        assert_eq!(all(&queue, 0), (vec![1, 2, 4], 1), "what was not written is missed");
    }

    #[test]
    fn a_directory_has_one_recorder() {
        let dir = tempfile::tempdir().unwrap();
        let first = reopened(dir.path());
        assert!(matches!(open(dir.path(), 1 << 30, |_| 0), Err(Unusable::Taken)));
        drop(first);
        reopened(dir.path());
        assert!(matches!(open(Path::new("/dev/null/x"), 1, |_| 0), Err(Unusable::Failed(_))));
    }
}

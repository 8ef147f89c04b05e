//! The stats socket: one command a line, one reply each, plain threads.
//!
//! A client can be slow, silent, or many; it costs a thread and some kilobytes for a bounded time, and never the recorder.

use std::fs;
use std::io::{self, BufRead, BufReader, BufWriter, ErrorKind, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam::channel::bounded;
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use super::config::StatsSocket;
use crate::clock::Mono;
use crate::engine::cpu;
use crate::limits::{NOTE_MAX, STATS_CLIENTS, STATS_LINE_MAX, STATS_TIMEOUT};

/// The recorder's user and group may ask; nobody else.
const MODE: u32 = 0o660;
/// What is gathered of a reply before it is sent.
const REPLY_BUFFER: usize = 64 * 1024;
/// Rest after an accept that failed, most likely for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Every command of the socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Query {
    Stats,
    Sessions,
    Help,
    /// End the session of this recording.
    End {
        id: String,
        /// Printable, at most [`NOTE_MAX`] characters.
        note: Option<String>,
    },
}

impl Query {
    fn parse(line: &[u8]) -> Option<Query> {
        match line.trim_ascii() {
            b"stats" => Some(Query::Stats),
            b"sessions" => Some(Query::Sessions),
            b"help" => Some(Query::Help),
            line => Query::end(str::from_utf8(line).ok()?),
        }
    }
}

impl Query {
    /// `end ID`, and what the operator says of it.
    fn end(line: &str) -> Option<Query> {
        let (id, note) =
            line.strip_prefix("end ")?.trim_start().split_once(' ').unwrap_or((line.get(4..)?.trim(), ""));
        let note: String = note.trim().chars().filter(|c| !c.is_control()).take(NOTE_MAX).collect();
        (!id.is_empty())
            .then(|| Query::End { id: id.to_owned(), note: Some(note).filter(|note| !note.is_empty()) })
    }
}

/// Writes the reply to a query, its end included.
pub type Answer = dyn Fn(Query, &mut dyn Write) -> io::Result<()> + Send + Sync;

/// Why there is no socket. Each displays as one sentence that says what to change.
#[derive(Debug)]
pub enum Unavailable {
    /// Another recorder answers there.
    Taken(PathBuf),
    /// Something that is not a socket has the name.
    NotASocket(PathBuf),
    Failed {
        path: PathBuf,
        error: io::Error,
    },
}

/// The socket's name, held until it is dropped.
#[derive(Debug)]
pub struct Server {
    listener: Arc<UnixListener>,
    path: PathBuf,
    /// Device and inode: the name is removed only while it is still ours.
    identity: (u64, u64),
}

#[derive(Debug)]
pub enum Claim {
    Ours(Server),
    /// None of the default places can be written, and why.
    Nowhere(String),
}

/// Takes the path that was given, or else the first default place that can be had.
pub fn claim(place: &StatsSocket) -> Result<Claim, Unavailable> {
    let paths = match place {
        StatsSocket::Given(path) => return Server::bind(path).map(Claim::Ours),
        StatsSocket::Default(paths) => paths,
    };
    let mut failures = Vec::new();
    for path in paths {
        match Server::bind(path) {
            Ok(server) => return Ok(Claim::Ours(server)),
            // Two recorders under one name would hide one of them from the operator.
            Err(taken @ Unavailable::Taken(_)) => return Err(taken),
            Err(failure) => failures.push(failure.to_string()),
        }
    }
    Ok(Claim::Nowhere(failures.join("; ")))
}

impl Server {
    /// Takes the name. A socket file that a dead recorder left is replaced, a directory that is missing is made.
    pub fn bind(path: &Path) -> Result<Server, Unavailable> {
        let failed = |error| Unavailable::Failed { path: path.to_path_buf(), error };
        if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty() && !dir.exists()) {
            fs::create_dir(dir).map_err(failed)?;
        }
        remove_stale(path)?;
        let listener = UnixListener::bind(path).map_err(failed)?;
        fs::set_permissions(path, fs::Permissions::from_mode(MODE)).map_err(failed)?;
        let file = fs::symlink_metadata(path).map_err(failed)?;
        Ok(Server {
            listener: Arc::new(listener),
            path: path.to_path_buf(),
            identity: (file.dev(), file.ino()),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Starts to answer, in threads of its own. Clients that came since the socket was bound have waited.
    pub fn serve(&self, answer: Arc<Answer>) -> io::Result<()> {
        self.serve_within(answer, STATS_TIMEOUT)
    }

    fn serve_within(&self, answer: Arc<Answer>, patience: Duration) -> io::Result<()> {
        let listener = Arc::clone(&self.listener);
        thread::Builder::new().name("stats".into()).spawn(move || accept(&listener, &answer, patience))?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let ours =
            fs::symlink_metadata(&self.path).is_ok_and(|file| (file.dev(), file.ino()) == self.identity);
        if ours {
            // It may be gone in this very moment; there is nothing left to do then.
            let _ = fs::remove_file(&self.path);
        }
        // Wakes the accepting thread, which then ends.
        let _ = SockRef::from(&*self.listener).shutdown(std::net::Shutdown::Both);
    }
}

/// Frees the name if nobody listens there any more.
fn remove_stale(path: &Path) -> Result<(), Unavailable> {
    let failed = |error| Unavailable::Failed { path: path.to_path_buf(), error };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
        Ok(file) if !file.file_type().is_socket() => Err(Unavailable::NotASocket(path.to_path_buf())),
        Ok(_) if answers(path).map_err(failed)? => Err(Unavailable::Taken(path.to_path_buf())),
        Ok(_) => fs::remove_file(path).map_err(failed),
    }
}

/// Whether a process listens on this socket file. It does not wait: a full backlog is a listener too.
fn answers(path: &Path) -> io::Result<bool> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(false),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Err(error),
        _ => Ok(true),
    }
}

/// Ends when the listener is shut down.
fn accept(listener: &UnixListener, answer: &Arc<Answer>, patience: Duration) {
    // One token per client; without one left, further clients wait in the backlog.
    let (enter, leave) = bounded::<()>(STATS_CLIENTS);
    while enter.send(()).is_ok() {
        let client = match listener.accept() {
            Ok((client, _)) => client,
            Err(error) if error.kind() == ErrorKind::InvalidInput => return,
            Err(error) => {
                tracing::warn!(%error, "a client of the stats socket could not be accepted");
                thread::sleep(ACCEPT_PAUSE);
                let _ = leave.recv();
                continue;
            }
        };
        let (answer, done) = (Arc::clone(answer), leave.clone());
        let spawned = thread::Builder::new().name("stats-client".into()).spawn(move || {
            if let Err(error) = converse(&client, &*answer, patience) {
                tracing::debug!(%error, "a client of the stats socket was closed");
            }
            let _ = done.recv();
        });
        if spawned.is_err() {
            let _ = leave.recv();
        }
    }
}

/// Answers line by line until the client goes, is too slow, or sends a line that is too long.
fn converse(client: &UnixStream, answer: &Answer, patience: Duration) -> io::Result<()> {
    let mut commands = BufReader::new(Timed::new(client, patience));
    let mut line = Vec::with_capacity(STATS_LINE_MAX);
    loop {
        commands.get_mut().start();
        line.clear();
        let length = commands.by_ref().take(STATS_LINE_MAX as u64 + 1).read_until(b'\n', &mut line)?;
        if length == 0 {
            return Ok(());
        }
        let mut reply = BufWriter::with_capacity(REPLY_BUFFER, Timed::new(client, patience));
        if length > STATS_LINE_MAX {
            return refuse(&mut reply, &format!("a command has at most {STATS_LINE_MAX} bytes"));
        }
        match Query::parse(&line) {
            Some(query) => answer(query, &mut reply)?,
            None => refuse(&mut reply, "unknown command; the commands are: stats, sessions, end, help")?,
        }
        reply.flush()?;
    }
}

/// Text of ours: no character of it needs to be escaped in JSON.
fn refuse(reply: &mut impl Write, why: &str) -> io::Result<()> {
    writeln!(reply, "{{\"error\":\"{why}\"}}")?;
    reply.flush()
}

/// A client's stream with one deadline for a whole command or a whole reply, however small the pieces.
struct Timed<'a> {
    stream: &'a UnixStream,
    patience: Duration,
    deadline: Mono,
}

impl<'a> Timed<'a> {
    fn new(stream: &'a UnixStream, patience: Duration) -> Timed<'a> {
        Timed { stream, patience, deadline: cpu::now().mono + patience }
    }

    fn start(&mut self) {
        self.deadline = cpu::now().mono + self.patience;
    }

    fn left(&self) -> io::Result<Option<Duration>> {
        match self.deadline.since(cpu::now().mono) {
            Duration::ZERO => Err(ErrorKind::TimedOut.into()),
            left => Ok(Some(left)),
        }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(buf)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl std::fmt::Display for Unavailable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Unavailable::Taken(path) => write!(
                f,
                "a recorder is already running with the stats socket {}: stop it, or give this one its own --stats-socket",
                path.display()
            ),
            Unavailable::NotASocket(path) => {
                write!(f, "{} exists and is not a socket: give another --stats-socket", path.display())
            }
            Unavailable::Failed { path, error } => write!(
                f,
                "the stats socket {} cannot be made ({error}): give a --stats-socket in a directory that this user can write",
                path.display()
            ),
        }
    }
}

impl std::error::Error for Unavailable {}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer() -> Arc<Answer> {
        Arc::new(|query, reply: &mut dyn Write| match query {
            Query::Stats => writeln!(reply, "{{}}"),
            // More than any socket buffer holds.
            Query::Sessions => (0..100_000)
                .try_for_each(|i| writeln!(reply, "{{\"session\":{i}}}"))
                .and_then(|()| writeln!(reply)),
            Query::Help => writeln!(reply, "help\n"),
            Query::End { id, note } => writeln!(reply, "{id} {}", note.as_deref().unwrap_or("-")),
        })
    }

    struct Served {
        server: Server,
        dir: tempfile::TempDir,
    }

    fn served(patience: Duration) -> Served {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::bind(&dir.path().join("s.sock")).unwrap();
        server.serve_within(answer(), patience).unwrap();
        Served { server, dir }
    }

    impl Served {
        fn connect(&self) -> UnixStream {
            let stream = UnixStream::connect(self.server.path()).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            stream
        }

        fn ask(&self, command: &str) -> String {
            let mut stream = self.connect();
            stream.write_all(command.as_bytes()).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut reply = String::new();
            stream.read_to_string(&mut reply).unwrap();
            reply
        }
    }

    #[test]
    fn one_reply_per_command() {
        let served = served(STATS_TIMEOUT);
        assert_eq!(served.ask("stats\n"), "{}\n");
        assert_eq!(served.ask("stats"), "{}\n", "the last line needs no end");
        assert_eq!(served.ask(" stats \r\nhelp\nstats\n"), "{}\nhelp\n\n{}\n");
        assert_eq!(served.ask(""), "");
        let sessions = served.ask("sessions\n");
        assert_eq!(sessions.lines().count(), 100_001);
        assert!(sessions.ends_with("{\"session\":99999}\n\n"));
    }

    #[test]
    fn an_order_has_an_id_and_perhaps_a_note() {
        let served = served(STATS_TIMEOUT);
        assert_eq!(served.ask("end a\n"), "a -\n");
        assert_eq!(served.ask("end  a  \n"), "a -\n");
        assert_eq!(served.ask("end a no  consent\u{1b} \n"), "a no  consent\n");
        assert!(served.ask(&format!("end a {}\n", "x".repeat(900))).len() <= NOTE_MAX + 3);
        for bad in ["end", "end ", "ending a"] {
            assert!(served.ask(&format!("{bad}\n")).contains("unknown command"), "{bad}");
        }
    }

    #[test]
    fn unknown_commands_get_an_error_and_the_next_is_answered() {
        let served = served(STATS_TIMEOUT);
        for bad in ["\n", "STATS\n", "stats now\n", "\u{0}\n", "{\"cmd\":\"stats\"}\n"] {
            let reply = served.ask(&format!("{bad}stats\n"));
            assert!(
                reply.starts_with("{\"error\":\"unknown command") && reply.ends_with("\n{}\n"),
                "{bad:?}: {reply}"
            );
        }
    }

    #[test]
    fn a_line_that_is_too_long_closes_the_client() {
        let served = served(STATS_TIMEOUT);
        let mut longest = " ".repeat(STATS_LINE_MAX - 6);
        longest.push_str("stats\n");
        assert_eq!(served.ask(&longest), "{}\n");
        let mut stream = served.connect();
        stream.write_all(&vec![b'x'; STATS_LINE_MAX + 1]).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        assert!(reply.contains("at most 1024 bytes"), "{reply}");
    }

    #[test]
    fn a_client_that_dribbles_is_closed() {
        let served = served(Duration::from_millis(100));
        let mut stream = served.connect();
        // Each byte comes in time, the line never does: the read below ends when the server closes.
        let mut dribble = stream.try_clone().unwrap();
        let dribbling = thread::spawn(move || {
            while dribble.write_all(b"s").is_ok() {
                thread::sleep(Duration::from_millis(20));
            }
        });
        assert!(matches!(stream.read(&mut [0; 64]), Ok(0) | Err(_)));
        dribbling.join().unwrap();
    }

    #[test]
    fn a_client_that_does_not_read_is_closed() {
        let served = served(Duration::from_millis(100));
        let mut stream = served.connect();
        stream.write_all(b"sessions\n").unwrap();
        // Without the deadline this would never end: nobody reads, and the reply is larger than the socket's buffer.
        while stream.write_all(b"stats\n").is_ok() {
            thread::sleep(Duration::from_millis(20));
        }
        let mut reply = Vec::new();
        let _ = stream.read_to_end(&mut reply);
        assert!(!reply.is_empty() && !reply.ends_with(b"\n\n"), "the reply was cut off");
    }

    #[test]
    fn more_clients_than_threads_wait_for_their_turn() {
        let served = served(STATS_TIMEOUT);
        let idle: Vec<UnixStream> = (0..STATS_CLIENTS).map(|_| served.connect()).collect();
        let mut late = served.connect();
        late.write_all(b"stats\n").unwrap();
        late.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        assert!(late.read(&mut [0; 8]).is_err(), "all places are taken");
        drop(idle);
        late.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut reply = [0; 3];
        late.read_exact(&mut reply).unwrap();
        assert_eq!(&reply, b"{}\n");
    }

    #[test]
    fn only_user_and_group_may_ask() {
        let served = served(STATS_TIMEOUT);
        assert_eq!(fs::metadata(served.server.path()).unwrap().permissions().mode() & 0o777, 0o660);
    }

    #[test]
    fn a_living_recorder_keeps_its_socket() {
        let served = served(STATS_TIMEOUT);
        let refused = Server::bind(served.server.path()).unwrap_err();
        assert!(matches!(refused, Unavailable::Taken(_)) && refused.to_string().contains("--stats-socket"));
        assert_eq!(served.ask("stats\n"), "{}\n");
        let place =
            StatsSocket::Default(vec![served.server.path().into(), served.dir.path().join("other.sock")]);
        assert!(matches!(claim(&place), Err(Unavailable::Taken(_))));
    }

    #[test]
    fn a_dead_recorder_leaves_its_socket_to_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(Server::bind(&path).unwrap());
        assert!(!path.exists(), "removed on exit");
    }

    #[test]
    fn a_file_that_is_not_a_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes.txt");
        fs::write(&path, "notes").unwrap();
        assert!(matches!(Server::bind(&path), Err(Unavailable::NotASocket(_))));
        assert_eq!(fs::read(&path).unwrap(), b"notes");
    }

    #[test]
    fn a_successor_keeps_the_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let first = Server::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let second = Server::bind(&path).unwrap();
        drop(first);
        assert!(path.exists(), "the first removes only its own");
        drop(second);
    }

    #[test]
    fn default_places_are_tried_in_order_and_may_all_fail() {
        let dir = tempfile::tempdir().unwrap();
        let (bad, good) = (PathBuf::from("/dev/null/s.sock"), dir.path().join("made/s.sock"));
        let place = StatsSocket::Default(vec![bad.clone(), good.clone()]);
        assert!(matches!(claim(&place), Ok(Claim::Ours(server)) if server.path() == good));
        let place = StatsSocket::Default(vec![bad.clone()]);
        assert!(matches!(claim(&place), Ok(Claim::Nowhere(why)) if why.contains("/dev/null/s.sock")));
        assert!(matches!(claim(&StatsSocket::Given(bad)), Err(Unavailable::Failed { .. })));
    }

    #[test]
    fn dropping_the_server_ends_its_thread() {
        let served = served(STATS_TIMEOUT);
        let listener = Arc::downgrade(&served.server.listener);
        drop(served);
        let ended = (0..1_000).any(|_| {
            thread::sleep(Duration::from_millis(5));
            listener.strong_count() == 0
        });
        assert!(ended);
    }
}

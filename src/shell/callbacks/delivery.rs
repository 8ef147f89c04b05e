//! One endpoint: its place in the queue, its requests, its retries. Threads of its own, so that it delays nobody else.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use ureq::http::{Response, StatusCode, Uri};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::event::CONTENT_TYPE;
use super::lanes::Lanes;
use super::queue::Queue;
use super::record::{self, Entry};
use super::signature::{self, Secrets};
use super::{Endpoints, Url};
use crate::clock::{Mono, Wall};
use crate::engine::cpu;
use crate::limits::{
    CALLBACK_BODY_MAX, CALLBACK_CONNECT_TIMEOUT, CALLBACK_HEAD_MAX, CALLBACK_LANES, CALLBACK_REFUSALS,
    CALLBACK_REST_MAX, CALLBACK_RETRY, CALLBACK_RETRY_MAX, CALLBACK_TIMEOUT,
};

/// Why an attempt failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// The name has no address.
    Resolve,
    /// No connection, or it ended too early.
    Connection,
    Tls,
    Timeout,
    /// What came back is not HTTP, or too long.
    Protocol,
    /// 3xx: a callback goes where the operator said and nowhere else.
    Redirect,
    /// 400, 413, 415, 422: the receiver has read the event and does not want it.
    Refused,
    /// 410: the receiver wants no event any more.
    Gone,
    /// Any other 4xx.
    ClientError,
    ServerError,
}

impl Cause {
    pub const ALL: [Cause; 10] = [
        Cause::Resolve,
        Cause::Connection,
        Cause::Tls,
        Cause::Timeout,
        Cause::Protocol,
        Cause::Redirect,
        Cause::Refused,
        Cause::Gone,
        Cause::ClientError,
        Cause::ServerError,
    ];

    /// Its stable name in the stats.
    pub const fn text(self) -> &'static str {
        match self {
            Cause::Resolve => "resolve",
            Cause::Connection => "connection",
            Cause::Tls => "tls",
            Cause::Timeout => "timeout",
            Cause::Protocol => "protocol",
            Cause::Redirect => "redirect",
            Cause::Refused => "refused",
            Cause::Gone => "gone",
            Cause::ClientError => "client_error",
            Cause::ServerError => "server_error",
        }
    }
}

#[derive(PartialEq, Eq, Debug)]
struct Failure {
    cause: Cause,
    why: String,
    /// Retry-After.
    after: Option<Duration>,
}

/// What one endpoint has got and not got.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Figures {
    /// Without the query, which may hold what is nobody's business.
    pub url: String,
    /// Events that wait for it.
    pub queued: u64,
    pub delivered: u64,
    /// Attempts beyond an event's first.
    pub retried: u64,
    pub failed_total: u64,
    /// Attempts by cause.
    pub failed: std::collections::BTreeMap<String, u64>,
    /// Events given up because the receiver would not have them.
    pub refused: u64,
    /// Events that made room for newer ones, or could not be read back.
    pub dropped: u64,
    /// Age of the oldest event that waits; 0 when none does.
    pub oldest_seconds: f64,
    /// The last failure, while the endpoint fails.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failing: Option<String>,
}

pub struct Endpoint {
    url: Url,
    agent: Agent,
    secrets: Secrets,
    queue: Arc<Queue>,
    state: Mutex<State>,
    /// One for each lane.
    changed: Vec<Condvar>,
    cursor: File,
}

struct State {
    lanes: Lanes,
    refilling: bool,
    stopped: bool,
    written: u64,
    delivered: u64,
    retried: u64,
    failed: [u64; Cause::ALL.len()],
    refused: u64,
    dropped: u64,
    failing: Option<String>,
    /// When the log was told so, and whether it has to be told of the end.
    told: Option<Mono>,
    announced: bool,
}

/// Where in `dir` it is kept how far the endpoint has got.
fn cursor_path(dir: &Path, uri: &Uri) -> PathBuf {
    let digest = Sha256::digest(uri.to_string().as_bytes());
    let name: String = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    dir.join(format!("{name}.cursor"))
}

/// The furthest that any endpoint has got, those of earlier flags included.
pub fn furthest(dir: &Path) -> u64 {
    cursors(dir).iter().filter_map(|path| record::decode_cursor(&fs::read(path).ok()?)).max().unwrap_or(0)
}

fn cursors(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.extension().is_some_and(|extension| extension == "cursor")).collect()
}

/// Endpoints that are not configured any more wait for nothing.
pub fn forget_others(dir: &Path, urls: &[Url]) {
    let known: Vec<PathBuf> = urls.iter().map(|url| cursor_path(dir, &url.0)).collect();
    for path in cursors(dir).into_iter().filter(|path| !known.contains(path)) {
        tracing::info!(path = %path.display(), "a callback endpoint is not configured any more; what waited for it is left out");
        if let Err(error) = fs::remove_file(&path) {
            tracing::warn!(path = %path.display(), "the file cannot be removed: {error}");
        }
    }
}

fn agent(endpoints: &Endpoints) -> Agent {
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::Specific(endpoints.roots.clone()))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build();
    let config = Agent::config_builder()
        .tls_config(tls)
        // An answer of any status is one to look at, and none of them says where to go.
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .proxy(None)
        .user_agent(concat!("sipreel/", env!("CARGO_PKG_VERSION")))
        .accept("*/*")
        .timeout_global(Some(CALLBACK_TIMEOUT))
        .timeout_connect(Some(CALLBACK_CONNECT_TIMEOUT))
        .max_response_header_size(CALLBACK_HEAD_MAX)
        .max_idle_connections(CALLBACK_LANES)
        .max_idle_connections_per_host(CALLBACK_LANES)
        .build();
    config.into()
}

impl Endpoint {
    /// Goes on where the last process ended; an endpoint that is new begins with the next event.
    pub fn open(url: Url, endpoints: &Endpoints, queue: Arc<Queue>) -> io::Result<Endpoint> {
        let path = cursor_path(&endpoints.dir, &url.0);
        let begin = match fs::read(&path) {
            // What cannot be read means everything that is left: twice is better than never.
            Ok(text) => record::decode_cursor(&text).unwrap_or(0),
            Err(error) if error.kind() == io::ErrorKind::NotFound => queue.last(),
            Err(error) => return Err(error),
        };
        let begin = begin.max(queue.kept_from().saturating_sub(1));
        let cursor = File::options().create(true).truncate(false).write(true).open(&path)?;
        cursor.write_all_at(record::encode_cursor(begin).as_bytes(), 0)?;
        Ok(Endpoint {
            agent: agent(endpoints),
            url,
            secrets: endpoints.secrets.clone(),
            queue,
            state: Mutex::new(State {
                lanes: Lanes::new(CALLBACK_LANES, begin),
                refilling: false,
                stopped: false,
                written: begin,
                delivered: 0,
                retried: 0,
                failed: [0; Cause::ALL.len()],
                refused: 0,
                dropped: 0,
                failing: None,
                told: None,
                announced: false,
            }),
            changed: (0..CALLBACK_LANES).map(|_| Condvar::new()).collect(),
            cursor,
        })
    }

    pub fn start(self: &Arc<Self>, index: usize) -> io::Result<()> {
        for lane in 0..CALLBACK_LANES {
            let endpoint = Arc::clone(self);
            thread::Builder::new()
                .name(format!("callback-{index}.{lane}"))
                .spawn(move || endpoint.deliver(lane, &mut StdRng::from_os_rng()))?;
        }
        Ok(())
    }

    /// A new event. An endpoint that is behind takes it from the queue when it has come so far.
    pub fn offer(&self, entry: &Arc<Entry>) {
        let mut state = self.state();
        let next = state.lanes.fetched() + 1 == entry.sequence;
        if next && state.lanes.hungry() && !state.refilling {
            let lane = state.lanes.push(entry.clone());
            self.changed[lane].notify_one();
        }
    }

    /// Everything up to this sequence is done with.
    pub fn delivered(&self) -> u64 {
        self.state().lanes.delivered()
    }

    /// Events that were lost for it.
    pub fn lost(&self) -> u64 {
        let state = self.state();
        state.dropped + state.refused + state.lanes.missing()
    }

    /// Nothing waits, or waiting is of no use.
    pub fn idle(&self) -> bool {
        let state = self.state();
        state.failing.is_some() || state.lanes.open() == 0 && state.lanes.fetched() >= self.queue.last()
    }

    pub fn stop(&self) {
        self.state().stopped = true;
        self.changed.iter().for_each(Condvar::notify_all);
    }

    pub fn figures(&self, now: Wall) -> Figures {
        let state = self.state();
        let behind = self.queue.last().saturating_sub(state.lanes.fetched());
        let oldest = state.lanes.oldest().map_or(0, |entry| now.0.saturating_sub(entry.at.0));
        Figures {
            url: self.url.shown(),
            queued: state.lanes.open() as u64 + behind,
            delivered: state.delivered,
            retried: state.retried,
            failed_total: state.failed.iter().sum(),
            failed: Cause::ALL.iter().map(|cause| cause.text().to_owned()).zip(state.failed).collect(),
            refused: state.refused,
            dropped: state.dropped + state.lanes.missing(),
            oldest_seconds: Duration::from_nanos(oldest).as_secs_f64(),
            failing: state.failing.clone(),
        }
    }

    /// One lane, until the recorder ends.
    fn deliver(&self, lane: usize, rng: &mut StdRng) {
        let mut attempts = 0;
        while let Some(entry) = self.next(lane) {
            if entry.sequence < self.queue.kept_from() {
                self.done(lane, |state| state.dropped += 1);
                attempts = 0;
                continue;
            }
            match self.attempt(&entry, attempts) {
                Ok(()) => {
                    self.done(lane, |state| state.delivered += 1);
                    attempts = 0;
                }
                Err(failure) if failure.cause == Cause::Refused && attempts + 1 >= CALLBACK_REFUSALS => {
                    let (url, sequence) = (self.url.shown(), entry.sequence);
                    tracing::error!(
                        url,
                        sequence,
                        "a callback is given up, its receiver refuses it: {}",
                        failure.why
                    );
                    self.done(lane, |state| state.refused += 1);
                    attempts = 0;
                }
                Err(failure) => {
                    attempts += 1;
                    let fraction = rng.random();
                    self.rest(
                        lane,
                        cpu::now().mono + pause(failure.cause, attempts, failure.after, fraction),
                    );
                }
            }
        }
    }

    /// Waits for the lane's next event; `None`: the end.
    fn next(&self, lane: usize) -> Option<Arc<Entry>> {
        let mut state = self.state();
        loop {
            if state.stopped {
                return None;
            }
            if state.lanes.hungry() && !state.refilling && state.lanes.fetched() < self.queue.last() {
                state = self.refill(state);
                continue;
            }
            if let Some(entry) = state.lanes.head(lane) {
                return Some(entry.clone());
            }
            state = self.changed[lane].wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Reads on in the queue, which nobody has to wait for meanwhile.
    fn refill<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        state.refilling = true;
        let after = state.lanes.fetched();
        drop(state);
        let batch = self.queue.fetch(after);
        let mut state = self.state();
        state.refilling = false;
        for entry in batch.entries {
            let lane = state.lanes.push(entry);
            self.changed[lane].notify_one();
        }
        state.lanes.pass(batch.up_to);
        state
    }

    fn done(&self, lane: usize, count: impl FnOnce(&mut State)) {
        let mut state = self.state();
        state.lanes.done(lane);
        count(&mut state);
        let delivered = state.lanes.delivered();
        if delivered != state.written {
            state.written = delivered;
            if let Err(error) = self.cursor.write_all_at(record::encode_cursor(delivered).as_bytes(), 0) {
                tracing::error!("how far a callback endpoint has got cannot be written: {error}");
            }
        }
    }

    fn rest(&self, lane: usize, until: Mono) {
        let mut state = self.state();
        while !state.stopped {
            let left = until.since(cpu::now().mono);
            if left.is_zero() {
                return;
            }
            let waited = self.changed[lane].wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn attempt(&self, entry: &Entry, attempts: u32) -> Result<(), Failure> {
        let signature = self.secrets.sign(cpu::now().wall, &entry.body);
        let request = self.agent.post(&self.url.0);
        let sent = request
            .header("Content-Type", CONTENT_TYPE)
            .header(signature::HEADER, signature)
            .send(&entry.body[..]);
        let result = match sent {
            Ok(response) => answered(response),
            Err(error) => Err(unanswered(&error)),
        };
        self.account(attempts, result.as_ref().err());
        result
    }

    fn account(&self, attempts: u32, failure: Option<&Failure>) {
        let (url, now) = (self.url.shown(), cpu::now().mono);
        let mut state = self.state();
        state.retried += u64::from(attempts > 0);
        let Some(failure) = failure else {
            state.failing = None;
            if std::mem::take(&mut state.announced) {
                tracing::info!(url, "callbacks are taken again");
            }
            return;
        };
        state.failed[failure.cause as usize] += 1;
        state.failing = Some(failure.why.clone());
        // One that fails now and then is no news every time.
        if state.told.is_none_or(|told| now.since(told) >= CALLBACK_RETRY_MAX) {
            state.told = Some(now);
            state.announced = true;
            tracing::warn!(url, cause = failure.cause.text(), "callbacks fail: {}", failure.why);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// 2xx is a delivery, whatever comes behind it.
fn answered(mut response: Response<Body>) -> Result<(), Failure> {
    let status = response.status();
    let after = response.headers().get("Retry-After").and_then(|value| value.to_str().ok()?.parse().ok());
    let after = after.map(Duration::from_secs);
    // A body that is read to its end leaves the connection to the next request; a longer one is not worth that.
    let mut body = response.body_mut().as_reader().take(CALLBACK_BODY_MAX);
    let mut sink = [0; 1_024];
    while matches!(body.read(&mut sink), Ok(1..)) {}
    match cause(status) {
        None => Ok(()),
        Some(cause) => Err(Failure { cause, why: format!("answered {status}"), after }),
    }
}

fn cause(status: StatusCode) -> Option<Cause> {
    match status.as_u16() {
        200..300 => None,
        300..400 => Some(Cause::Redirect),
        400 | 413 | 415 | 422 => Some(Cause::Refused),
        410 => Some(Cause::Gone),
        400..500 => Some(Cause::ClientError),
        500.. => Some(Cause::ServerError),
        _ => Some(Cause::Protocol),
    }
}

fn unanswered(error: &ureq::Error) -> Failure {
    let cause = match error {
        ureq::Error::HostNotFound => Cause::Resolve,
        ureq::Error::Timeout(_) => Cause::Timeout,
        ureq::Error::Tls(_) | ureq::Error::Pem(_) | ureq::Error::Rustls(_) => Cause::Tls,
        ureq::Error::Io(error) if error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) => {
            Cause::Tls
        }
        ureq::Error::Io(error) if error.kind() == io::ErrorKind::TimedOut => Cause::Timeout,
        ureq::Error::Io(_) | ureq::Error::ConnectionFailed => Cause::Connection,
        _ => Cause::Protocol,
    };
    Failure { cause, why: error.to_string(), after: None }
}

/// How long to rest after so many attempts of one event: between half and all of a time that doubles (`fraction`: 0 to 1), so
/// that those who failed together do not come back together.
fn pause(cause: Cause, attempts: u32, after: Option<Duration>, fraction: f64) -> Duration {
    if cause == Cause::Gone {
        return CALLBACK_REST_MAX;
    }
    let doubled = CALLBACK_RETRY.saturating_mul(1 << attempts.saturating_sub(1).min(16));
    let rest = doubled.min(CALLBACK_RETRY_MAX).mul_f64(0.5 + fraction / 2.0);
    rest.max(after.unwrap_or_default().min(CALLBACK_REST_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_double_up_to_a_minute_and_differ() {
        let rests: Vec<Duration> = (1..40).map(|n| pause(Cause::Connection, n, None, 1.0)).collect();
        assert_eq!(rests[..3], [500, 1_000, 2_000].map(Duration::from_millis));
        assert!(rests.is_sorted() && *rests.last().unwrap() == CALLBACK_RETRY_MAX);
        assert_eq!(pause(Cause::Connection, 3, None, 0.0), Duration::from_secs(1));
    }

    #[test]
    fn a_receiver_may_ask_for_more_time_but_not_for_ever() {
        let after = |seconds| pause(Cause::ServerError, 1, Some(Duration::from_secs(seconds)), 0.5);
        assert_eq!(after(7), Duration::from_secs(7));
        assert_eq!(after(0), CALLBACK_RETRY.mul_f64(0.75));
        assert_eq!(after(u64::MAX), CALLBACK_REST_MAX);
        assert_eq!(pause(Cause::Gone, 1, None, 0.0), CALLBACK_REST_MAX);
    }

    #[test]
    fn only_success_is_a_delivery() {
        for (status, expected) in [
            (200, None),
            (204, None),
            (301, Some(Cause::Redirect)),
            (307, Some(Cause::Redirect)),
            (400, Some(Cause::Refused)),
            (404, Some(Cause::ClientError)),
            (410, Some(Cause::Gone)),
            (429, Some(Cause::ClientError)),
            (503, Some(Cause::ServerError)),
            (999, Some(Cause::ServerError)),
        ] {
            assert_eq!(cause(StatusCode::from_u16(status).unwrap()), expected, "{status}");
        }
        let names: std::collections::BTreeSet<&str> = Cause::ALL.iter().map(|cause| cause.text()).collect();
        assert_eq!(names.len(), Cause::ALL.len());
        assert!(Cause::ALL.iter().enumerate().all(|(n, cause)| *cause as usize == n));
    }

    #[test]
    fn an_endpoint_has_its_own_cursor() {
        let dir = tempfile::tempdir().unwrap();
        let urls: Vec<Url> =
            ["http://a/x", "http://b/x"].iter().map(|url| Url::parse(url).unwrap()).collect();
        for (n, url) in urls.iter().enumerate() {
            fs::write(cursor_path(dir.path(), &url.0), record::encode_cursor(10 + n as u64)).unwrap();
        }
        assert_eq!(furthest(dir.path()), 11);
        forget_others(dir.path(), &urls[..1]);
        assert_eq!(furthest(dir.path()), 10);
        assert_eq!(furthest(Path::new("/nowhere")), 0);
    }
}

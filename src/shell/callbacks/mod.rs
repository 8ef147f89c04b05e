//! Callbacks: what happens to recordings, and what an operator is to know, sent to HTTP endpoints as CloudEvents.
//!
//! ```text
//! control ─try_send─▶ events (one thread) ─▶ queue on disk ─▶ lanes of endpoint 1 ─▶ POST, again until it is taken
//! counters ─once a second─▶ alarms ─┘                     └─▶ lanes of endpoint 2 …
//! ```
//!
//! Nobody waits for anything to the right of him: control counts what finds no room, and an endpoint reads the queue at its
//! own pace. Without an endpoint there is no queue, and alarms are for log and stats.

mod alarm;
mod delivery;
mod event;
mod lanes;
mod queue;
mod record;
mod settings;
mod signature;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

pub use alarm::Raised;
pub use settings::{Endpoints, Refusal, Typed, Url};

use alarm::{Alarm, Alarms, Change, Reading, Step};
use delivery::Endpoint;
use event::{Happening, Source};
use queue::{Queue, Unusable, Writer};

use crate::clock::Wall;
use crate::counters::{DropCause, RefuseCause};
use crate::engine::{Gauges, Noticed, cpu};
use crate::limits::{CALLBACK_GRACE, CALLBACK_SYNC, NOTICES_MAX};
use crate::proto::manifest::Resource;

/// How often the end looks whether the last event is delivered.
const GRACE_LOOK: Duration = Duration::from_millis(10);

/// Opened: what an earlier process left is there, and nothing runs yet.
pub struct Callbacks {
    /// Where the engine puts its notices.
    pub listener: Sender<Noticed>,
    notices: Receiver<Noticed>,
    queue: Option<(Arc<Queue>, Writer)>,
    endpoints: Vec<Arc<Endpoint>>,
}

/// Threads run.
pub struct Running {
    pub state: Arc<State>,
    events: JoinHandle<()>,
}

/// What the stats socket reads.
pub struct State {
    queue: Option<Arc<Queue>>,
    endpoints: Vec<Arc<Endpoint>>,
    raised: Mutex<Vec<Raised>>,
    draining: AtomicBool,
    gauges: Gauges,
}

/// The part of the stats that is about callbacks.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Figures {
    /// Events since the queue was made; the sequence of the newest.
    pub events: u64,
    /// Notices that never became events: they came faster than they could be written.
    pub overflow: u64,
    /// Events that could only be sent, not written.
    pub unsaved: u64,
    pub queue_files: u64,
    pub queue_bytes: u64,
    pub endpoints: Vec<delivery::Figures>,
}

impl Callbacks {
    /// The error is a sentence that says what to change.
    pub fn open(endpoints: Option<&Endpoints>) -> Result<Callbacks, String> {
        let (listener, notices) = bounded(NOTICES_MAX);
        let mut callbacks = Callbacks { listener, notices, queue: None, endpoints: Vec::new() };
        let Some(settings) = endpoints else { return Ok(callbacks) };
        let dir = settings.dir.display();
        let failed = |error| {
            format!(
                "--callback-queue {dir} cannot be used ({error}): give a directory that this user can write"
            )
        };
        let (queue, writer) = queue::open(&settings.dir, settings.bytes_max, delivery::furthest).map_err(
            |error| match error {
                Unusable::Taken => {
                    format!("--callback-queue {dir} is that of a recorder that runs: give this one its own")
                }
                Unusable::Failed(error) => failed(error),
            },
        )?;
        delivery::forget_others(&settings.dir, &settings.urls);
        for url in &settings.urls {
            let endpoint = Endpoint::open(url.clone(), settings, queue.clone()).map_err(failed)?;
            callbacks.endpoints.push(Arc::new(endpoint));
        }
        callbacks.queue = Some((queue, writer));
        Ok(callbacks)
    }

    /// `resource`: the recorder, as receivers know it.
    pub fn start(self, gauges: Gauges, resource: &Resource) -> io::Result<Running> {
        let Callbacks { listener, notices, queue, endpoints } = self;
        // The engine has its own, which ends with control.
        drop(listener);
        let (queue, writer) = queue.unzip();
        let state = Arc::new(State {
            queue,
            endpoints,
            raised: Mutex::default(),
            draining: AtomicBool::new(false),
            gauges,
        });
        for (index, endpoint) in state.endpoints.iter().enumerate() {
            endpoint.start(index)?;
        }
        let events = Events {
            notices,
            writer,
            state: state.clone(),
            alarms: Alarms::default(),
            draining: 0,
            source: Source {
                uri: event::uri(&resource.id),
                region: resource.region.clone(),
                group: resource.group.clone(),
            },
            rng: StdRng::from_os_rng(),
        };
        let events = thread::Builder::new().name("events".into()).spawn(move || events.run())?;
        Ok(Running { state, events })
    }
}

impl Running {
    pub fn drain(&self) {
        self.state.draining.store(true, Ordering::Relaxed);
    }

    /// When control has ended: the last events are written, and get a moment to be delivered. What is left goes out at the
    /// next start.
    pub fn finish(self) {
        let _ = self.events.join();
        let endpoints = &self.state.endpoints;
        let end = cpu::now().mono + CALLBACK_GRACE;
        while cpu::now().mono < end && !endpoints.iter().all(|endpoint| endpoint.idle()) {
            thread::sleep(GRACE_LOOK);
        }
        endpoints.iter().for_each(|endpoint| endpoint.stop());
        let now = cpu::now().wall;
        for figures in
            endpoints.iter().map(|endpoint| endpoint.figures(now)).filter(|figures| figures.queued > 0)
        {
            tracing::warn!(
                url = figures.url,
                queued = figures.queued,
                "callbacks are left for the next start"
            );
        }
    }
}

impl State {
    pub fn figures(&self, now: Wall) -> Figures {
        let size = self.queue.as_ref().map(|queue| queue.size()).unwrap_or_default();
        Figures {
            events: size.last,
            overflow: self.gauges.session.notices_dropped.get(),
            unsaved: size.unsaved,
            queue_files: size.files as u64,
            queue_bytes: size.bytes,
            endpoints: self.endpoints.iter().map(|endpoint| endpoint.figures(now)).collect(),
        }
    }

    /// The alarms that are raised now.
    pub fn raised(&self) -> Vec<Raised> {
        self.raised.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// In the order of [`Alarm::ALL`].
    fn reading(&self, draining: u64) -> Reading {
        let Gauges { session, reactors, .. } = &self.gauges;
        let refused = |causes: &[RefuseCause]| -> u64 {
            causes.iter().map(|cause| session.refused[*cause as usize].get()).sum()
        };
        let (mut disk, mut lost) = (session.commits_failed.get() + refused(&[RefuseCause::OpenFailed]), 0);
        for reactor in reactors {
            disk += reactor.disk_errors.get();
            lost += reactor.kernel_dropped.get();
            for cause in
                [DropCause::NoBlock, DropCause::QueueFull, DropCause::WriteFailed, DropCause::Unreadable]
            {
                lost += reactor.dropped[cause as usize].get();
            }
        }
        let room = refused(&[RefuseCause::NoSlot, RefuseCause::NoPort]);
        let events = self.endpoints.iter().map(|endpoint| endpoint.lost()).sum::<u64>();
        [disk, lost, room, events + session.notices_dropped.get(), draining]
    }
}

/// The thread that makes events.
struct Events {
    notices: Receiver<Noticed>,
    writer: Option<Writer>,
    state: Arc<State>,
    alarms: Alarms,
    /// Looks since the drain began.
    draining: u64,
    source: Source,
    rng: StdRng,
}

impl Events {
    /// Until control has ended and its last notice is written.
    fn run(mut self) {
        let now = cpu::now();
        // Whatever the last process ended with, this one takes sessions.
        let ready = Change { alarm: Alarm::Draining, step: Step::Cleared, since: now.wall, count: 0 };
        self.tell(now.wall, &event::alarm(&ready));
        let mut next = now.mono + CALLBACK_SYNC;
        loop {
            match self.notices.recv_timeout(next.since(cpu::now().mono)) {
                Ok((at, notice)) => {
                    if let Some(happening) = event::notice(&notice) {
                        self.tell(at, &happening);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if next <= cpu::now().mono {
                self.look();
                next = cpu::now().mono + CALLBACK_SYNC;
            }
        }
        self.look();
    }

    fn tell(&mut self, at: Wall, happening: &Happening) {
        let Some(writer) = &mut self.writer else { return };
        let id = format!("{:032x}", self.rng.random::<u128>());
        let entry =
            writer.append(at, happening.key(), |sequence| happening.event(&self.source, &id, sequence, at));
        for endpoint in &self.state.endpoints {
            endpoint.offer(&entry);
        }
    }

    /// What is due once a second.
    fn look(&mut self) {
        let now = cpu::now();
        self.draining += u64::from(self.state.draining.load(Ordering::Relaxed));
        let changes = self.alarms.look(now, &self.state.reading(self.draining));
        for change in &changes {
            log(change);
            self.tell(now.wall, &event::alarm(change));
        }
        *self.state.raised.lock().unwrap_or_else(PoisonError::into_inner) = self.alarms.raised();
        if let Some(writer) = &mut self.writer {
            writer.sync();
        }
        if let Some(queue) = &self.state.queue {
            let delivered = self.state.endpoints.iter().map(|endpoint| endpoint.delivered()).min();
            queue.forget(delivered.unwrap_or(0));
        }
    }
}

fn log(change: &Change) {
    let Change { alarm, step, since, count } = change;
    let (name, meaning) = (alarm.text(), alarm.meaning());
    match step {
        Step::Cleared => tracing::info!(alarm = name, %since, count, "alarm cleared"),
        // The drain has its own line.
        _ if *alarm == Alarm::Draining => {}
        step => tracing::warn!(alarm = name, %since, count, "alarm {}: {meaning}", step.text()),
    }
}

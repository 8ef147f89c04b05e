//! STUB for building the shell alone. At a merge take the other side.
//!
//! It keeps the shape of the contract: it listens nowhere, records nothing, and ends when it is drained.

pub mod cpu;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};
use hdrhistogram::Histogram;

use crate::counters::{ReactorCounters, SessionCounters};
use crate::proto::manifest::Format;
use crate::session::table::Table;

#[derive(Clone, Debug)]
pub struct Settings {
    pub dir: PathBuf,
    pub sip_udp: Vec<SocketAddr>,
    pub sip_tcp: Vec<SocketAddr>,
    pub media_ip: Option<IpAddr>,
    pub media_ports: (u16, u16),
    pub port_cooldown: Duration,
    pub cores: Vec<usize>,
    pub sessions_max: Option<usize>,
    pub format: Format,
    pub flush_interval: Duration,
    pub product: String,
}

#[derive(Debug)]
pub struct StartError(String);

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StartError {}

#[derive(Debug, Default)]
pub struct Outcome {
    pub committed: u64,
    pub failed: u64,
    pub incomplete: u64,
}

pub struct Recorder {
    pub sip_udp: Vec<SocketAddr>,
    pub sip_tcp: Vec<SocketAddr>,
    pub port_pairs: usize,
    pub sessions_max: usize,
    pub warnings: Vec<String>,
    pub gauges: Gauges,
    drained: (Sender<Duration>, Receiver<Duration>),
}

impl Recorder {
    pub fn start(settings: &Settings) -> Result<Recorder, StartError> {
        let (lo, hi) = settings.media_ports;
        let port_pairs = (usize::from(hi - lo) + 1) / 2;
        Ok(Recorder {
            sip_udp: settings.sip_udp.clone(),
            sip_tcp: settings.sip_tcp.clone(),
            port_pairs,
            sessions_max: settings.sessions_max.unwrap_or(port_pairs),
            warnings: Vec::new(),
            gauges: Gauges {
                reactors: settings.cores.iter().map(|_| Arc::default()).collect(),
                session: Arc::default(),
                table: Arc::new(Table::new(settings.sessions_max.unwrap_or(port_pairs))),
            },
            drained: bounded(1),
        })
    }

    pub fn drain(&self, grace: Duration) {
        let _ = self.drained.0.try_send(grace);
    }

    pub fn wait(self) -> Outcome {
        let grace = self.drained.1.recv().unwrap_or_default();
        std::thread::sleep(grace);
        Outcome::default()
    }
}

#[derive(Clone)]
pub struct Gauges {
    pub reactors: Vec<Arc<ReactorCounters>>,
    pub session: Arc<SessionCounters>,
    pub table: Arc<Table>,
}

impl Gauges {
    pub fn write_latency(&self) -> Histogram<u64> {
        Histogram::new(3).expect("3 digits is in range")
    }

    pub fn setup(&self) -> Histogram<u64> {
        Histogram::new(3).expect("3 digits is in range")
    }

    pub fn batch(&self) -> Histogram<u64> {
        Histogram::new(3).expect("3 digits is in range")
    }
}

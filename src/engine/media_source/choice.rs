//! Which source it is to be, and why not a better one.

use std::fmt;
use std::net::IpAddr;

use super::super::bpf::Link;
use super::super::bpf::redirect::Redirect;
use super::super::bpf::steer::Steering;
use super::super::capability::{self, Capability};
use socket2::Socket;

use super::super::ring::Ring;
use super::MediaSource;
use super::sockets::{self, Sockets};
use super::steered::{self, Steerage, Steered};
use super::watch::Watch;
use super::xdp::{self, Attachment, Xdp};
use crate::clock::Mono;
use crate::session::PortPair;

/// What the operator asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Kind {
    /// The best that is possible here.
    Auto,
    /// A UDP socket for each media port.
    Sockets,
    /// One UDP socket per core, to which a BPF program steers all its ports.
    Steered,
    /// AF_XDP on the interfaces given.
    Xdp,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Auto => "auto",
            Kind::Sockets => "sockets",
            Kind::Steered => "steered",
            Kind::Xdp => "xdp",
        })
    }
}

/// What the sources of all reactors are made from.
pub struct Request<'a> {
    pub kind: Kind,
    pub interfaces: &'a [String],
    /// The one address of this host at which media is taken; without it, all.
    pub ip: Option<IpAddr>,
    /// First (even) and last (odd) port.
    pub ports: (u16, u16),
    /// Pairs of which `sockets` may bind so many; the other sources need no descriptor for a port.
    pub pairs_of_sockets: usize,
    pub reactors: usize,
    /// Until when ports that are taken are waited for.
    pub deadline: Mono,
}

/// The sources of all reactors, bound but not armed.
pub struct Media {
    /// Not `Auto`.
    pub kind: Kind,
    /// For the log: which it is, and why it is no better one.
    pub account: String,
    pub parts: Vec<Part>,
    pub pairs: Vec<PortPair>,
    /// RTP ports of pairs that are somebody else's.
    pub taken: Vec<u16>,
    pub warnings: Vec<String>,
    pub attached: Attached,
    pub watch: Option<Watch>,
}

/// Programs that are attached as long as this lives.
#[derive(Default)]
pub struct Attached {
    _steering: Option<Steering>,
    /// Ports that are ours and would be given to others.
    _held: Vec<Socket>,
    _programs: Vec<(Redirect, Link)>,
}

/// The source of one reactor before it has a ring.
pub enum Part {
    Sockets(sockets::Bound),
    Steered(steered::Bound),
    Xdp(xdp::Bound),
}

impl Part {
    /// Places in the ring's table that its sockets take, from 0 on.
    pub fn files(&self) -> usize {
        match self {
            Part::Sockets(bound) => bound.rtp_ports.len() * 2,
            Part::Steered(_) | Part::Xdp(_) => Steered::FILES,
        }
    }

    pub fn arm(self, ring: &mut Ring) -> Result<MediaSource, String> {
        Ok(match self {
            Part::Sockets(bound) => MediaSource::Sockets(Sockets::arm(bound, ring)?),
            Part::Steered(bound) => MediaSource::Steered(Steered::arm(bound, ring)?),
            Part::Xdp(bound) => MediaSource::Xdp(Xdp::arm(bound, ring)?),
        })
    }
}

impl Request<'_> {
    /// Makes the source that was asked for, or with `Auto` the best one that can be made. The error says what to change.
    pub fn make(&self) -> Result<Media, String> {
        let mut media = match self.kind {
            Kind::Sockets => self.sockets()?,
            Kind::Steered => self.steered()?,
            Kind::Xdp => self.xdp()?,
            Kind::Auto => return self.best(),
        };
        media.account = format!("media source {}, as asked for{}", media.kind, media.account);
        Ok(media)
    }

    fn best(&self) -> Result<Media, String> {
        let mut why_not = String::new();
        for kind in [Kind::Xdp, Kind::Steered] {
            let attempt = if kind == Kind::Xdp { self.xdp() } else { self.steered() };
            match attempt {
                Ok(mut media) => {
                    media.account = format!("media source {}{}{why_not}", media.kind, media.account);
                    return Ok(media);
                }
                Err(why) => why_not.push_str(&format!("; not {kind}: {why}")),
            }
        }
        let mut media = self.sockets()?;
        media.account = format!("media source sockets{why_not}");
        Ok(media)
    }

    fn sockets(&self) -> Result<Media, String> {
        let (first, last) = self.ports;
        let mut media = Media::of(Kind::Sockets);
        let mut next = u32::from(first);
        for reactor in 0..self.reactors {
            let wanted = self.pairs_of_sockets / self.reactors
                + usize::from(reactor < self.pairs_of_sockets % self.reactors);
            let ports = (next..u32::from(last)).step_by(2).map(|port| port as u16);
            let (bound, taken) = sockets::bind(self.ip, ports, wanted, self.deadline).map_err(|e| {
                format!("binding media ports failed ({e}): check --media-ip and --media-ports")
            })?;
            next += (bound.rtp_ports.len() + taken.len()) as u32 * 2;
            media.pairs.extend(bound.rtp_ports.iter().enumerate().map(|(index, &rtp)| PortPair {
                reactor: reactor as u8,
                index: index as u16,
                rtp,
            }));
            media.taken.extend(taken);
            media.parts.push(Part::Sockets(bound));
        }
        Ok(media)
    }

    fn steered(&self) -> Result<Media, String> {
        capable(&[Capability::Bpf, Capability::NetAdmin])?;
        let mut media = Media::of(Kind::Steered);
        let bound = self.steer(&mut media)?.0;
        media.parts = bound.into_iter().map(Part::Steered).collect();
        Ok(media)
    }

    fn xdp(&self) -> Result<Media, String> {
        if self.interfaces.is_empty() {
            return Err("no --xdp-interface is given".into());
        }
        capable(&[Capability::Bpf, Capability::NetAdmin, Capability::NetRaw])?;
        let mut media = Media::of(Kind::Xdp);
        let (bound, table) = self.steer(&mut media)?;
        let attachment = Attachment::new(self.interfaces, self.ip, &table, self.reactors)?;
        let Attachment { sockets, programs, addresses, interfaces, modes } = attachment;
        media.account = format!(" on {}", modes.join(", "));
        let idle = sockets.iter().filter(|sockets| sockets.is_empty()).count();
        if idle > 0 {
            media.warnings.push(format!(
                "{idle} of {} cores have no receive queue: set as many with ethtool -L, or name fewer --cores",
                self.reactors
            ));
        }
        for down in interfaces.iter().filter(|interface| !interface.up) {
            media.warnings.push(format!("the interface {} is down: ip link set {0} up", down.name));
        }
        media.attached._programs = programs;
        media.watch = Some(Watch::new(interfaces, addresses, self.ip.is_none()));
        let parts = bound.into_iter().zip(sockets);
        media.parts = parts.map(|(rest, sockets)| Part::Xdp(xdp::Bound { rest, sockets })).collect();
        Ok(media)
    }

    fn steer(
        &self,
        media: &mut Media,
    ) -> Result<(Vec<steered::Bound>, super::super::bpf::ports::PortTable), String> {
        let Steerage { bound, steering, table, pairs, taken, held, others } =
            Steerage::attach(self.ip, self.ports, self.reactors, self.pairs_of_sockets, self.deadline)?;
        if others > 0 {
            media.warnings.push(format!(
                "{others} other sk_lookup programs are attached to this network namespace, which may take packets first: \
                 see bpftool net"
            ));
        }
        let index = |rtp: u16| (rtp - self.ports.0) / 2;
        media.pairs =
            pairs.iter().map(|&(reactor, rtp)| PortPair { reactor, index: index(rtp), rtp }).collect();
        media.taken = taken;
        media.attached._steering = Some(steering);
        media.attached._held = held;
        Ok((bound, table))
    }
}

impl Media {
    fn of(kind: Kind) -> Media {
        Media {
            kind,
            account: String::new(),
            parts: Vec::new(),
            pairs: Vec::new(),
            taken: Vec::new(),
            warnings: Vec::new(),
            attached: Attached::default(),
            watch: None,
        }
    }
}

fn capable(needed: &[Capability]) -> Result<(), String> {
    let missing: Vec<&str> =
        needed.iter().filter(|&&one| !capability::has(one)).map(|one| one.name()).collect();
    match missing.is_empty() {
        true => Ok(()),
        false => Err(format!("{} missing (systemd: AmbientCapabilities)", missing.join(" and "))),
    }
}

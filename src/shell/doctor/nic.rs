//! Network interfaces: link, driver, queues, how packets are spread over them, what is attached.

use super::finding::{Finding, Level};
use super::host::Host;
use super::wanted::Wanted;
use crate::engine::ethtool::{Hash, Interface, Rules};
use crate::engine::link::{XdpMode, XdpProgram};

/// Drivers that hand frames to AF_XDP without a copy, in kernels from 6.1 on.
const ZERO_COPY: &[&str] = &[
    "atlantic",
    "bnxt_en",
    "ena",
    "gve",
    "i40e",
    "iavf",
    "ice",
    "idpf",
    "igb",
    "igc",
    "ixgbe",
    "mlx5_core",
    "nfp",
    "qede",
    "sfc",
    "stmmac",
];
/// Packets of a receive ring below which a burst at a million packets a second outruns an interrupt (2 ms).
const RING_WANTED: u32 = 2_048;
/// Lost of received packets from which it is no longer a trace of some moment long ago: one in a hundred thousand.
const LOSS: u64 = 100_000;

/// An interface and what was asked of it.
pub struct Asked {
    pub name: String,
    pub interface: Interface,
    pub xdp: Option<XdpProgram>,
}

/// The interfaces that were named, else those of hardware that are up.
pub fn interfaces(host: &Host, wanted: &Wanted) -> Vec<String> {
    if wanted.xdp() {
        return wanted.interfaces.clone();
    }
    let of_hardware = |name: &String| host.exists(&format!("/sys/class/net/{name}/device"));
    host.names("/sys/class/net")
        .into_iter()
        .filter(|name| of_hardware(name) && state(host, name) == "up")
        .collect()
}

pub fn check(host: &Host, wanted: &Wanted, asked: &[Asked]) -> Vec<Finding> {
    let mut findings: Vec<Finding> = asked.iter().flat_map(|asked| one(host, wanted, asked)).collect();
    if asked.is_empty() {
        findings.push(Finding::unknown(
            "nic.link",
            "no interface of hardware is up",
            "name one with --xdp-interface to look at it",
        ));
    }
    findings.push(irqbalance(host));
    findings
}

fn one(host: &Host, wanted: &Wanted, asked: &Asked) -> Vec<Finding> {
    if !host.exists(&format!("/sys/class/net/{}", asked.name)) {
        return vec![Finding::new(
            "nic.link",
            Level::Fail,
            format!("{}: there is no such interface", asked.name),
            "the recorder cannot receive on it",
            "see: ip link",
        )];
    }
    let mut findings = vec![link(host, wanted, &asked.name), driver(wanted, asked), queues(wanted, asked)];
    findings.extend(hash(wanted, asked));
    findings.extend([rules(wanted, asked), program(wanted, asked), losses(host, &asked.name)]);
    findings.extend(ring(asked));
    findings
}

fn state(host: &Host, name: &str) -> String {
    host.read(&format!("/sys/class/net/{name}/operstate")).unwrap_or_default()
}

fn link(host: &Host, wanted: &Wanted, name: &str) -> Finding {
    // Interfaces without a carrier of their own are `unknown`, and work.
    let state = state(host, name);
    // Virtual ones have no speed: the file says -1 or cannot be read.
    let speed =
        host.number(&format!("/sys/class/net/{name}/speed")).filter(|speed| (1..1 << 20).contains(speed));
    let of_speed = speed.map_or("speed not told".into(), |speed| format!("{speed} Mbit/s"));
    let found = format!("{name}: {state}, {of_speed}");
    if state != "up" && state != "unknown" {
        return Finding::new(
            "nic.link",
            Level::Fail,
            found,
            "nothing arrives on it",
            format!("ip link set {name} up"),
        );
    }
    // RTP, UDP, IP and Ethernet with preamble and gap: 172 + 8 + 20 + 38 bytes, fifty times a second.
    let megabits = wanted.streams() * 238 * 50 * 8 / 1_000_000;
    Finding::unless(
        speed.is_none_or(|speed| speed >= megabits),
        "nic.link",
        Level::Warn,
        found,
        format!("{} G.711 streams are {megabits} Mbit/s", wanted.streams()),
        "a faster link, or --max-sessions that fits it",
    )
}

fn driver(wanted: &Wanted, asked: &Asked) -> Finding {
    let driver = asked.interface.driver.as_deref().unwrap_or("not told");
    Finding::unless(
        !wanted.xdp() || ZERO_COPY.contains(&driver),
        "nic.driver",
        Level::Note,
        format!("{}: driver {driver}", asked.name),
        "AF_XDP may have to copy each frame here, which costs the kernel's side more",
        "the recorder's first lines say which mode it got",
    )
}

fn queues(wanted: &Wanted, asked: &Asked) -> Finding {
    let cores = wanted.cores.len() as u32;
    let name = &asked.name;
    let Some(channels) = asked.interface.channels else {
        let meaning =
            Finding::unknown("nic.queues", format!("{name}: the driver does not tell its queues"), "");
        return Finding { remedy: format!("see: ls /sys/class/net/{name}/queues"), ..meaning };
    };
    let found = format!(
        "{name}: receive queues {} of at most {}, reactors {cores}",
        channels.receive, channels.receive_max
    );
    let more = cores.min(channels.receive_max);
    let remedy = match channels.receive < more {
        true => format!("ethtool -L {name} combined {more}"),
        false => "an interface with a queue for each reactor, or one reactor for each queue (--cores)".into(),
    };
    Finding::unless(
        channels.receive >= cores,
        "nic.queues",
        if wanted.xdp() { Level::Warn } else { Level::Note },
        found,
        "the kernel receives on as many cores as there are queues, the other reactors wait for them",
        remedy,
    )
}

/// The SBC is one address: a hash over addresses alone puts all of its calls on one core.
fn hash(wanted: &Wanted, asked: &Asked) -> Option<Finding> {
    let name = &asked.name;
    if asked.interface.channels.is_none_or(|channels| channels.receive < 2) {
        return None;
    }
    let (v4, v6) = (asked.interface.udp4_hash, asked.interface.udp6_hash);
    let found = format!("{name}: receive hash of UDP: {} (IPv4), {} (IPv6)", said(v4), said(v6));
    let set = format!("ethtool -N {name} rx-flow-hash udp4 sdfn; ethtool -N {name} rx-flow-hash udp6 sdfn");
    Some(match (v4, v6) {
        (Some(Hash::Addresses), _) | (None, Some(Hash::Addresses)) => Finding::new(
            "nic.rss",
            if wanted.cores.len() > 1 { Level::Warn } else { Level::Note },
            found,
            "all calls of one SBC arrive on one queue, so on one core, however many there are",
            set,
        ),
        (Some(Hash::Ports), Some(Hash::Addresses)) => {
            Finding::new("nic.rss", Level::Note, found, "calls over IPv6 all arrive on one queue", set)
        }
        (None, None) => {
            Finding::unknown("nic.rss", found, format!("watch the queues: ethtool -S {name} | grep rx"))
        }
        _ => Finding::ok("nic.rss", found),
    })
}

fn said(hash: Option<Hash>) -> &'static str {
    match hash {
        Some(Hash::Addresses) => "addresses only",
        Some(Hash::Ports) => "addresses and ports",
        None => "not told",
    }
}

fn rules(wanted: &Wanted, asked: &Asked) -> Finding {
    let name = &asked.name;
    let level = if wanted.xdp() { Level::Note } else { Level::Ok };
    let why = "a stream is received by the reactor on whose queue it happens to arrive";
    match asked.interface.rules {
        Rules::On => Finding::ok("nic.ntuple", format!("{name}: rules can send ports to queues")),
        Rules::Off => Finding::unless(
            level == Level::Ok,
            "nic.ntuple",
            level,
            format!("{name}: rules that send ports to queues are switched off"),
            why,
            format!("ethtool -K {name} ntuple on, then: perf/tune --interface {name} --apply --only rules"),
        ),
        Rules::Unsupported => Finding::unless(
            level == Level::Ok,
            "nic.ntuple",
            level,
            format!("{name}: the driver has no rules that send ports to queues"),
            why,
            "nothing: ownership of a stream moves once, at its first packet",
        ),
    }
}

fn program(wanted: &Wanted, asked: &Asked) -> Finding {
    let name = &asked.name;
    let Some(XdpProgram { mode, id }) = asked.xdp else {
        return Finding::ok("nic.xdp", format!("{name}: no XDP program attached"));
    };
    let mode = match mode {
        XdpMode::Native => "native",
        XdpMode::Generic => "generic",
        XdpMode::Offloaded => "offloaded",
        XdpMode::Several => "several at once",
    };
    let found = format!("{name}: XDP program {id} attached ({mode})");
    if wanted.running.is_some() {
        return Finding::new(
            "nic.xdp",
            Level::Note,
            found,
            "the running recorder's, or another's",
            format!("see: bpftool prog show id {id}"),
        );
    }
    Finding::new(
        "nic.xdp",
        if wanted.xdp() { Level::Fail } else { Level::Note },
        found,
        "AF_XDP cannot be used on this interface while it is there",
        format!("see whose it is: bpftool prog show id {id}; take it off: ip link set dev {name} xdp off"),
    )
}

fn losses(host: &Host, name: &str) -> Finding {
    let statistic = |file| host.number(&format!("/sys/class/net/{name}/statistics/{file}")).unwrap_or(0);
    let received = statistic("rx_packets");
    let (missed, fifo, dropped) =
        (statistic("rx_missed_errors"), statistic("rx_fifo_errors"), statistic("rx_dropped"));
    let lost = missed.max(fifo);
    let found = format!(
        "{name}: {received} packets received since it came up, {lost} lost in the card, {dropped} thrown away by the kernel"
    );
    let level = if lost.saturating_mul(LOSS) > received { Level::Warn } else { Level::Note };
    Finding::unless(
        lost == 0,
        "nic.losses",
        level,
        found,
        "the card found no room in its ring: packets are lost before any counter of the recorder",
        format!(
            "ethtool -G {name} rx {RING_WANTED}, and the card's interrupts on cores that have time for them"
        ),
    )
}

fn ring(asked: &Asked) -> Option<Finding> {
    let ring = asked.interface.rx_ring.filter(|ring| ring.size > 0)?;
    let name = &asked.name;
    let want = RING_WANTED.min(ring.max);
    Some(Finding::unless(
        ring.size >= want,
        "nic.ring",
        Level::Warn,
        format!("{name}: a receive ring holds {} packets of at most {}", ring.size, ring.max),
        "a burst is lost in the card while its core is busy",
        format!("ethtool -G {name} rx {want}"),
    ))
}

fn irqbalance(host: &Host) -> Finding {
    Finding::unless(
        !host.runs("irqbalance"),
        "nic.irqbalance",
        Level::Note,
        if host.runs("irqbalance") { "irqbalance runs" } else { "irqbalance does not run" },
        "it moves the card's interrupts between cores, away from what was set and onto the reactors",
        "systemctl disable --now irqbalance, then: perf/tune --interface NAME --cores LIST --apply --only irq",
    )
}

#[cfg(test)]
mod tests {
    use super::super::host::tests::{Fixture, host};
    use super::super::wanted::tests::wanted;
    use super::*;
    use crate::engine::ethtool::{Channels, RxRing};

    fn eth0(state: &str, speed: &str, missed: &str) -> Fixture {
        host(&[
            ("/sys/class/net/eth0/operstate", state),
            ("/sys/class/net/eth0/device/vendor", "0x8086"),
            ("/sys/class/net/eth0/speed", speed),
            ("/sys/class/net/eth0/statistics/rx_packets", "1000000"),
            ("/sys/class/net/eth0/statistics/rx_missed_errors", missed),
            ("/sys/class/net/veth7/operstate", "up"),
            ("/sys/class/net/lo/operstate", "unknown"),
        ])
    }

    fn asked(interface: Interface) -> Asked {
        Asked { name: "eth0".into(), interface, xdp: None }
    }

    fn good() -> Interface {
        Interface {
            driver: Some("ice".into()),
            channels: Some(Channels { receive: 2, receive_max: 16 }),
            rx_ring: Some(RxRing { size: 4_096, max: 8_160 }),
            udp4_hash: Some(Hash::Ports),
            udp6_hash: Some(Hash::Ports),
            rules: Rules::On,
        }
    }

    fn xdp() -> Wanted {
        Wanted { interfaces: vec!["eth0".into()], ..wanted() }
    }

    #[test]
    fn a_good_card_is_fine() {
        let f = eth0("up", "25000", "0");
        let findings = check(&f.host, &xdp(), &[asked(good())]);
        assert!(findings.iter().all(|finding| finding.level == Level::Ok), "{findings:#?}");
        assert_eq!(findings.len(), 9);
    }

    #[test]
    fn hardware_that_is_up_is_looked_at() {
        assert_eq!(interfaces(&eth0("up", "1", "0").host, &wanted()), ["eth0"]);
        assert!(interfaces(&eth0("down", "1", "0").host, &wanted()).is_empty());
        let named = Wanted { interfaces: vec!["veth7".into()], ..wanted() };
        assert_eq!(interfaces(&eth0("up", "1", "0").host, &named), ["veth7"]);
        assert_eq!(check(&host(&[]).host, &wanted(), &[])[0].level, Level::Note);
    }

    #[test]
    fn links() {
        let level = |state, speed| link(&eth0(state, speed, "0").host, &wanted(), "eth0").level;
        assert_eq!(level("up", "-1"), Level::Ok, "virtual");
        assert_eq!(level("up", "1000"), Level::Ok, "10,000 streams are 952 Mbit/s");
        assert_eq!(level("up", "100"), Level::Warn);
        assert_eq!(level("down", "1000"), Level::Fail);
        let absent = Asked { name: "eth9".into(), interface: good(), xdp: None };
        assert_eq!(one(&eth0("up", "1", "0").host, &wanted(), &absent)[0].level, Level::Fail);
    }

    #[test]
    fn too_few_queues() {
        let one_queue =
            |max| Interface { channels: Some(Channels { receive: 1, receive_max: max }), ..good() };
        let can_grow = queues(&xdp(), &asked(one_queue(8)));
        assert_eq!((can_grow.level, can_grow.remedy.as_str()), (Level::Warn, "ethtool -L eth0 combined 2"));
        let cannot = queues(&wanted(), &asked(one_queue(1)));
        assert!(cannot.level == Level::Note && cannot.remedy.contains("--cores"), "{cannot:?}");
        assert!(hash(&wanted(), &asked(one_queue(1))).is_none(), "one queue has nothing to hash for");
    }

    #[test]
    fn a_hash_that_puts_an_sbc_on_one_core() {
        let by =
            |v4, v6| hash(&wanted(), &asked(Interface { udp4_hash: v4, udp6_hash: v6, ..good() })).unwrap();
        let bad = by(Some(Hash::Addresses), Some(Hash::Addresses));
        assert!(bad.level == Level::Warn && bad.remedy.contains("rx-flow-hash udp4 sdfn"), "{bad:?}");
        assert_eq!(by(Some(Hash::Ports), Some(Hash::Addresses)).level, Level::Note);
        assert_eq!(by(None, None).level, Level::Note);
        assert_eq!(by(Some(Hash::Ports), Some(Hash::Ports)).level, Level::Ok);
    }

    #[test]
    fn programs_of_others() {
        let occupied = Asked { xdp: Some(XdpProgram { mode: XdpMode::Generic, id: 7 }), ..asked(good()) };
        assert_eq!(program(&xdp(), &occupied).level, Level::Fail);
        assert_eq!(program(&wanted(), &occupied).level, Level::Note);
        let running = Wanted { running: Some(Box::default()), ..xdp() };
        assert_eq!(program(&running, &occupied).level, Level::Note, "it is the recorder's own");
    }

    #[test]
    fn packets_lost_in_the_card() {
        assert_eq!(losses(&eth0("up", "1", "0").host, "eth0").level, Level::Ok);
        assert_eq!(losses(&eth0("up", "1", "5").host, "eth0").level, Level::Note);
        assert_eq!(losses(&eth0("up", "1", "50").host, "eth0").level, Level::Warn);
        let small = Interface { rx_ring: Some(RxRing { size: 256, max: 4_096 }), ..good() };
        assert_eq!(ring(&asked(small)).unwrap().remedy, "ethtool -G eth0 rx 2048");
        let fixed = Interface { rx_ring: Some(RxRing { size: 256, max: 256 }), ..good() };
        assert_eq!(ring(&asked(fixed)).unwrap().level, Level::Ok, "there is nothing to set");
    }

    #[test]
    fn rules_and_interrupts() {
        let off = |wanted: &Wanted, rules| super::rules(wanted, &asked(Interface { rules, ..good() })).level;
        assert_eq!(off(&xdp(), Rules::Off), Level::Note);
        assert_eq!(off(&xdp(), Rules::Unsupported), Level::Note);
        assert_eq!(off(&wanted(), Rules::Off), Level::Ok, "sockets have no use for them");
        assert_eq!(irqbalance(&host(&[("/proc/77/comm", "irqbalance\n")]).host).level, Level::Note);
        assert_eq!(irqbalance(&host(&[]).host).level, Level::Ok);
    }
}

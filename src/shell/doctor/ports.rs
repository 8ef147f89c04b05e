//! Ports: who else has, or may take, one of the recorder's.

use std::collections::BTreeMap;

use super::finding::{Finding, Level};
use super::host::Host;
use super::wanted::Wanted;
use crate::shell::cli::SIP_PORT;

/// The state of a listening socket in /proc/net/tcp.
const LISTENING: &str = "0A";

pub fn check(host: &Host, wanted: &Wanted) -> Vec<Finding> {
    vec![ephemeral(host, wanted), media(host, wanted), sip(host, wanted)]
}

/// A socket as /proc/net/udp and /proc/net/tcp list it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Bound {
    port: u16,
    state: String,
    uid: u32,
    inode: u64,
}

/// Whether an outgoing socket of any program may be given a media port.
fn ephemeral(host: &Host, wanted: &Wanted) -> Finding {
    let name = "ports.ephemeral";
    let [low, high] = host.numbers("/proc/sys/net/ipv4/ip_local_port_range")[..] else {
        return Finding::unknown(name, "net.ipv4.ip_local_port_range cannot be read", "");
    };
    let text = host.read("/proc/sys/net/ipv4/ip_local_reserved_ports").unwrap_or_default();
    let reserved = ranges(&text);
    let (first, last) = (u64::from(wanted.media_ports.first), u64::from(wanted.media_ports.last));
    let open = (first.max(low)..=last.min(high))
        .filter(|port| !reserved.iter().any(|(low, high)| (low..=high).contains(&port)))
        .count();
    let all = match text.is_empty() {
        true => format!("{first}-{last}"),
        false => format!("{text},{first}-{last}"),
    };
    Finding::unless(
        open == 0,
        name,
        Level::Warn,
        format!(
            "outgoing sockets take ports {low}-{high}, reserved are {}; {open} media ports are to be had by them",
            if text.is_empty() { "none" } else { &text }
        ),
        "any program may hold a media port when the recorder starts: that pair is left out",
        format!("sysctl -w net.ipv4.ip_local_reserved_ports={all}"),
    )
}

/// `20000-39999,50000`
fn ranges(text: &str) -> Vec<(u64, u64)> {
    let range = |item: &str| {
        let (low, high) = item.split_once('-').unwrap_or((item, item));
        Some((low.trim().parse().ok()?, high.trim().parse().ok()?))
    };
    text.split(',').filter_map(range).collect()
}

fn media(host: &Host, wanted: &Wanted) -> Finding {
    let name = "ports.media";
    let mut taken: BTreeMap<u16, Bound> = BTreeMap::new();
    for bound in sockets(host, "udp").into_iter().filter(|bound| wanted.holds(bound.port)) {
        taken.entry(bound.port).or_insert(bound);
    }
    if let Some(stats) = &wanted.running {
        return of_the_running(wanted, taken.len() as u64, stats.recorder.port_pairs);
    }
    let range = wanted.media_ports;
    let Some(first) = taken.values().next() else {
        return Finding::ok(name, format!("no socket is bound in {range}"));
    };
    Finding::new(
        name,
        Level::Warn,
        format!("{} UDP ports of {range} are taken, the first is {}", taken.len(), described(host, first)),
        "pairs with such a port are left out at the start; steered sockets would take its packets away",
        "end that program, or give another --media-ports",
    )
}

/// The recorder's own sockets cannot be told from others' by their number alone, but there should be no more of them.
fn of_the_running(wanted: &Wanted, taken: u64, pairs: u64) -> Finding {
    let asked = (u64::from(wanted.media_ports.last) - u64::from(wanted.media_ports.first)).div_ceil(2);
    let found =
        format!("{taken} UDP ports of {} are taken, the recorder has {pairs} pairs", wanted.media_ports);
    Finding::unless(
        taken <= pairs * 2 && pairs >= asked,
        "ports.media",
        Level::Warn,
        found,
        if taken > pairs * 2 {
            "other programs have some of them"
        } else {
            "it could not bind all pairs of the range"
        },
        "see its first log lines, and: ss -ulnp",
    )
}

fn sip(host: &Host, wanted: &Wanted) -> Finding {
    let name = "ports.sip";
    if wanted.running.is_some() {
        return Finding::ok(name, "the recorder that runs has its SIP ports");
    }
    let listening =
        sockets(host, "tcp").into_iter().filter(|bound| bound.state == LISTENING).map(|b| ("TCP", b));
    let mut taken = sockets(host, "udp").into_iter().map(|bound| ("UDP", bound)).chain(listening);
    match taken.find(|(_, bound)| bound.port == SIP_PORT) {
        None => Finding::ok(name, format!("port {SIP_PORT} is free, UDP and TCP")),
        Some((transport, bound)) => Finding::new(
            name,
            Level::Fail,
            format!("{transport} port {} is taken", described(host, &bound)),
            "the recorder does not start there",
            "end that program, or give another --sip-udp and --sip-tcp",
        ),
    }
}

fn described(host: &Host, bound: &Bound) -> String {
    let Bound { port, uid, inode, .. } = bound;
    match host.owner_of_socket(*inode) {
        Some(owner) => format!("{port} ({owner}, uid {uid})"),
        None => format!("{port} (uid {uid}, inode {inode})"),
    }
}

/// Sockets of both families.
fn sockets(host: &Host, transport: &str) -> Vec<Bound> {
    let tables = [format!("/proc/net/{transport}"), format!("/proc/net/{transport}6")];
    tables.iter().filter_map(|path| host.read(path)).flat_map(|text| rows(&text)).collect()
}

fn rows(text: &str) -> Vec<Bound> {
    text.lines().skip(1).filter_map(row).collect()
}

/// `sl local remote state queues timer retransmissions uid timeout inode …`, addresses and state in hexadecimal.
fn row(line: &str) -> Option<Bound> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (_, port) = words.get(1)?.rsplit_once(':')?;
    Some(Bound {
        port: u16::from_str_radix(port, 16).ok()?,
        state: (*words.get(3)?).to_owned(),
        uid: words.get(7)?.parse().ok()?,
        inode: words.get(9)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::host::tests::host;
    use super::super::wanted::tests::wanted;
    use super::*;
    use crate::shell::stats::Stats;

    const TITLE: &str =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

    fn socket(port: u16, state: &str) -> String {
        format!(
            "  1: 0100007F:{port:04X} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000  104  0 4711 2 0 0\n"
        )
    }

    #[test]
    fn ephemeral_ports() {
        let of = |range, reserved| {
            let f = host(&[
                ("/proc/sys/net/ipv4/ip_local_port_range", range),
                ("/proc/sys/net/ipv4/ip_local_reserved_ports", reserved),
            ]);
            ephemeral(&f.host, &wanted())
        };
        let usual = of("32768\t60999", "\n");
        assert!(usual.level == Level::Warn && usual.found.contains("7232 media ports"), "{usual:?}");
        assert!(usual.remedy.ends_with("=20000-39999"), "{usual:?}");
        assert_eq!(of("32768\t60999", "20000-39999").level, Level::Ok);
        let partly = of("32768 60999", "20000-38999,50000");
        assert!(
            partly.found.contains("1000 media ports") && partly.remedy.contains("50000,20000"),
            "{partly:?}"
        );
        assert_eq!(of("40000 60999", "").level, Level::Ok);
        assert_eq!(of("", "").level, Level::Note);
    }

    #[test]
    fn ports_that_others_have() {
        let table = format!("{TITLE}{}{}{}", socket(20_002, "07"), socket(20_002, "07"), socket(53, "07"));
        let f = host(&[("/proc/net/udp", &table)]);
        let finding = media(&f.host, &wanted());
        assert_eq!(finding.level, Level::Warn);
        assert!(finding.found.starts_with("1 UDP ports of 20000-39999"), "{finding:?}");
        assert!(finding.found.ends_with("20002 (uid 104, inode 4711)"), "{finding:?}");
        let six = host(&[("/proc/net/udp6", &format!("{TITLE}{}", socket(30_000, "07")))]);
        assert_eq!(media(&six.host, &wanted()).level, Level::Warn);
        assert_eq!(media(&host(&[("/proc/net/udp", TITLE)]).host, &wanted()).level, Level::Ok);
    }

    #[test]
    fn ports_of_the_recorder_that_runs() {
        let table = format!("{TITLE}{}{}", socket(20_002, "07"), socket(20_003, "07"));
        let f = host(&[("/proc/net/udp", &table)]);
        let level = |pairs| {
            let mut stats = Box::<Stats>::default();
            stats.recorder.port_pairs = pairs;
            let ports = crate::shell::cli::Ports { first: 20_000, last: 20_003 };
            media(&f.host, &Wanted { running: Some(stats), media_ports: ports, ..wanted() }).level
        };
        assert_eq!((level(2), level(1), level(0)), (Level::Ok, Level::Warn, Level::Warn));
        assert_eq!(sip(&f.host, &Wanted { running: Some(Box::default()), ..wanted() }).level, Level::Ok);
    }

    #[test]
    fn sip_ports() {
        let of = |transport, state| {
            let table = format!("{TITLE}{}", socket(5_060, state));
            sip(&host(&[(&format!("/proc/net/{transport}"), &table)]).host, &wanted()).level
        };
        assert_eq!((of("udp", "07"), of("tcp6", "0A")), (Level::Fail, Level::Fail));
        assert_eq!(of("tcp", "01"), Level::Ok, "a connection, not a listener");
        assert_eq!(row("nonsense"), None);
    }
}

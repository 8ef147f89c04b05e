//! What the kernel's network stack keeps and drops: buffers, backlog, connection tracking.

use super::finding::{Finding, Level};
use super::host::Host;
use super::wanted::Wanted;
use crate::limits;

/// As systemd/60-sipreel.conf asks for.
const BACKLOG_WANTED: u64 = 4_096;
/// What a packet of 200 bytes takes of a socket's buffer: the kernel counts its own bookkeeping.
const TRUESIZE: u64 = 768;
/// A stall of the receiver that the kernel has to bridge, and what would be comfortable.
const STALL_MS: u64 = 200;
const STALL_WANTED_MS: u64 = 1_000;
/// Lost of received packets from which it is no longer a trace of some moment long ago.
const LOSS: u64 = 100_000;

pub fn check(host: &Host, wanted: &Wanted) -> Vec<Finding> {
    vec![
        rmem_max(host),
        udp_mem(host, wanted),
        backlog(host),
        softnet(host),
        udp_drops(host),
        conntrack(host, wanted),
    ]
}

fn rmem_max(host: &Host) -> Finding {
    let name = "net.rmem_max";
    let Some(max) = host.number("/proc/sys/net/core/rmem_max") else {
        return Finding::unknown(
            name,
            "net.core.rmem_max cannot be read here",
            "look at it outside of the container",
        );
    };
    let default = host.number("/proc/sys/net/core/rmem_default").map_or("not told".into(), |n| n.to_string());
    let found = format!("net.core.rmem_max is {max} (rmem_default {default})");
    let (sip, media) = (limits::SIP_RCVBUF as u64, limits::MEDIA_RCVBUF as u64);
    let meaning = match max < media {
        true => {
            "receive buffers of media and SIP are cut: media is lost when the recorder stalls, INVITEs in a burst"
        }
        false => {
            "the receive buffer of SIP is cut: a burst of INVITEs over UDP is lost, and comes again later"
        }
    };
    Finding::unless(
        max >= sip,
        name,
        Level::Warn,
        found,
        meaning,
        format!("sysctl -w net.core.rmem_max={sip}"),
    )
}

/// What all UDP sockets together may hold, as the time for which it holds every stream.
fn udp_mem(host: &Host, wanted: &Wanted) -> Finding {
    let name = "net.udp_mem";
    let [_, _, pages] = host.numbers("/proc/sys/net/ipv4/udp_mem")[..] else {
        return Finding::unknown(
            name,
            "net.ipv4.udp_mem cannot be read here",
            "look at it outside of the container",
        );
    };
    let a_second = wanted.streams() * 50 * TRUESIZE;
    let milliseconds = pages.saturating_mul(4_096_000) / a_second.max(1);
    let found = format!(
        "net.ipv4.udp_mem lets UDP hold {} MiB: {} streams for {milliseconds} ms",
        pages / 256,
        wanted.streams()
    );
    let level = if milliseconds < STALL_MS { Level::Warn } else { Level::Note };
    let want = a_second.div_ceil(4_096) * STALL_WANTED_MS / 1_000;
    Finding::unless(
        milliseconds >= STALL_WANTED_MS,
        name,
        level,
        found,
        "a longer stall loses packets, however large the buffer of each socket is",
        format!("sysctl -w net.ipv4.udp_mem='{} {} {want}'", want / 2, want * 3 / 4),
    )
}

fn backlog(host: &Host) -> Finding {
    let name = "net.backlog";
    let Some(backlog) = host.number("/proc/sys/net/core/netdev_max_backlog") else {
        return Finding::unknown(
            name,
            "net.core.netdev_max_backlog cannot be read here",
            "look at it outside of the container",
        );
    };
    Finding::unless(
        backlog >= BACKLOG_WANTED,
        name,
        Level::Warn,
        format!("net.core.netdev_max_backlog is {backlog}"),
        "a burst on veth, loopback or with RPS is lost before any socket, and no counter of the recorder sees it",
        format!("sysctl -w net.core.netdev_max_backlog={BACKLOG_WANTED}"),
    )
}

/// Each CPU has a line of hexadecimal numbers: processed, dropped, out of time, …
fn softnet(host: &Host) -> Finding {
    let name = "net.softnet";
    let Some(text) = host.read("/proc/net/softnet_stat") else {
        return Finding::unknown(name, "/proc/net/softnet_stat cannot be read", "");
    };
    let column = |n: usize| {
        let numbers =
            text.lines().filter_map(|line| u64::from_str_radix(line.split_whitespace().nth(n)?, 16).ok());
        numbers.sum::<u64>()
    };
    let (processed, dropped, squeezed) = (column(0), column(1), column(2));
    Finding::unless(
        dropped == 0,
        name,
        loss(dropped, processed),
        format!(
            "{processed} packets since boot, {dropped} dropped from the backlog, {squeezed} times out of time"
        ),
        "packets were lost before any socket, and no counter of the recorder saw it",
        format!("sysctl -w net.core.netdev_max_backlog={BACKLOG_WANTED}; receive queues on more cores"),
    )
}

/// /proc/net/snmp has a line of names and one of numbers for UDP.
fn udp_drops(host: &Host) -> Finding {
    let name = "net.udp_drops";
    let text = host.read("/proc/net/snmp").unwrap_or_default();
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (Some(names), Some(numbers)) = (lines.next(), lines.next()) else {
        return Finding::unknown(name, "/proc/net/snmp has no line of UDP", "");
    };
    let counter = |wanted: &str| {
        let mut pairs = names.split_whitespace().zip(numbers.split_whitespace());
        pairs.find(|(name, _)| *name == wanted).and_then(|(_, number)| number.parse().ok()).unwrap_or(0u64)
    };
    let (received, full, memory) = (counter("InDatagrams"), counter("RcvbufErrors"), counter("MemErrors"));
    Finding::unless(
        full + memory == 0,
        name,
        loss(full + memory, received),
        format!(
            "{received} datagrams since boot, {full} lost to full sockets, {memory} to udp_mem (all programs)"
        ),
        "some receiver of this host was too slow for its buffer",
        "for the recorder's own share see kernel_dropped in: sipreel stats",
    )
}

fn loss(lost: u64, received: u64) -> Level {
    if lost.saturating_mul(LOSS) > received { Level::Warn } else { Level::Note }
}

fn conntrack(host: &Host, wanted: &Wanted) -> Finding {
    let name = "net.conntrack";
    let Some(count) = host.number("/proc/sys/net/netfilter/nf_conntrack_count") else {
        return Finding::ok(name, "connection tracking is not loaded");
    };
    let max = host.number("/proc/sys/net/netfilter/nf_conntrack_max").unwrap_or(u64::MAX);
    let found = format!("connection tracking is loaded, {count} connections of at most {max}");
    let (first, last) = (wanted.media_ports.first, wanted.media_ports.last);
    let remedy = format!(
        "unless `nft list ruleset` or `iptables -t raw -S` has it already: nft add table inet sipreel; nft add chain inet \
         sipreel early '{{ type filter hook prerouting priority raw; }}'; nft add rule inet sipreel early udp dport \
         {first}-{last} notrack"
    );
    if count == 0 {
        return Finding::new(name, Level::Note, found, "nothing is tracked until a rule asks for it", remedy);
    }
    match count + wanted.streams() * 2 > max {
        true => Finding::new(
            name,
            Level::Fail,
            found,
            "when the table is full the kernel drops new streams",
            remedy,
        ),
        false => Finding::new(
            name,
            Level::Warn,
            found,
            "a look-up and an entry for each stream, paid per packet",
            remedy,
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::host::tests::host;
    use super::super::wanted::tests::wanted;
    use super::*;

    fn level(check: fn(&Host) -> Finding, path: &str, text: &str) -> Level {
        check(&host(&[(path, text)]).host).level
    }

    #[test]
    fn buffers_of_a_socket() {
        let path = "/proc/sys/net/core/rmem_max";
        assert_eq!(level(rmem_max, path, "4194304"), Level::Ok);
        let finding =
            rmem_max(&host(&[(path, "212992"), ("/proc/sys/net/core/rmem_default", "212992")]).host);
        assert!(finding.level == Level::Warn && finding.meaning.contains("media and SIP"), "{finding:?}");
        let finding = rmem_max(&host(&[(path, "1048576")]).host);
        assert!(finding.level == Level::Warn && finding.meaning.contains("buffer of SIP"), "{finding:?}");
        assert_eq!(rmem_max(&host(&[]).host).level, Level::Note);
    }

    #[test]
    fn memory_of_all_sockets() {
        let of = |text| udp_mem(&host(&[("/proc/sys/net/ipv4/udp_mem", text)]).host, &wanted());
        assert_eq!(of("100000\t200000\t300000").level, Level::Ok);
        assert_eq!(of("10000 20000 50000").level, Level::Note);
        let small = of("1000 2000 3000");
        assert!(small.level == Level::Warn && small.found.contains("for 32 ms"), "{small:?}");
        assert!(small.remedy.ends_with("93750'"), "{small:?}");
        assert_eq!(of("nonsense").level, Level::Note);
    }

    #[test]
    fn packets_between_card_and_socket() {
        let path = "/proc/sys/net/core/netdev_max_backlog";
        assert_eq!(level(backlog, path, "1000"), Level::Warn);
        assert_eq!(level(backlog, path, "4096"), Level::Ok);
        let path = "/proc/net/softnet_stat";
        assert_eq!(
            level(softnet, path, "00ffffff 00000000 00000003\n00000010 00000000 00000000\n"),
            Level::Ok
        );
        assert_eq!(level(softnet, path, "00ffffff 00000002 00000000\n"), Level::Note);
        let finding =
            softnet(&host(&[(path, "00ffffff 00000100 00000000\n00000001 00000001 00000007\n")]).host);
        assert!(finding.level == Level::Warn && finding.found.contains("257 dropped"), "{finding:?}");
        assert!(finding.found.contains("7 times"), "{finding:?}");
    }

    #[test]
    fn datagrams_that_found_a_full_socket() {
        let snmp = |full: u64| {
            let text = format!(
                "Ip: Forwarding\nIp: 1\nUdp: InDatagrams NoPorts RcvbufErrors MemErrors\nUdp: 1000000 3 {full} 0\n"
            );
            udp_drops(&host(&[("/proc/net/snmp", &text)]).host).level
        };
        assert_eq!([snmp(0), snmp(10), snmp(11)], [Level::Ok, Level::Note, Level::Warn]);
        assert_eq!(udp_drops(&host(&[]).host).level, Level::Note);
    }

    #[test]
    fn connection_tracking() {
        let of = |count, max| {
            let f = host(&[
                ("/proc/sys/net/netfilter/nf_conntrack_count", count),
                ("/proc/sys/net/netfilter/nf_conntrack_max", max),
            ]);
            conntrack(&f.host, &wanted())
        };
        assert_eq!(conntrack(&host(&[]).host, &wanted()).level, Level::Ok);
        assert_eq!(of("0", "262144").level, Level::Note);
        assert_eq!(of("100", "262144").level, Level::Warn);
        let full = of("100", "16384");
        assert!(
            full.level == Level::Fail && full.remedy.contains("udp dport 20000-39999 notrack"),
            "{full:?}"
        );
    }
}

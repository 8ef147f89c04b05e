//! What the process may have and do: descriptors, locked memory, capabilities.

use super::finding::{Finding, Level};
use super::host::Host;
use super::wanted::Wanted;
use crate::limits;

/// linux/capability.h.
const CAP_NET_ADMIN: u32 = 12;
const CAP_NET_RAW: u32 = 13;
const CAP_IPC_LOCK: u32 = 14;
const CAP_BPF: u32 = 39;
/// What a ring and its buffer rings take of RLIMIT_MEMLOCK since Linux 6.14: submission and completion entries of 64+4 and 16
/// bytes, and 16 for each receive buffer.
const LOCKED_PER_REACTOR: u64 = limits::SQ_ENTRIES as u64 * 68
    + limits::CQ_ENTRIES as u64 * 16
    + (limits::MEDIA_BUFFERS as u64 + limits::SIP_BUFFERS as u64 + limits::TCP_BUFFERS as u64) * 16;

pub fn check(host: &Host, wanted: &Wanted) -> Vec<Finding> {
    vec![descriptors(host, wanted), locked_memory(host, wanted), capabilities(host, wanted)]
}

/// Two sockets a pair, and a ring's table that holds a reactor's sockets and files.
fn descriptors(host: &Host, wanted: &Wanted) -> Finding {
    let name = "process.nofile";
    let Some(limit) = hard_limit(host, "Max open files") else {
        return Finding::unknown(name, "/proc/self/limits cannot be read", "look at: ulimit -Hn");
    };
    let pairs = wanted.streams();
    let need = (pairs * 2 + limits::DESCRIPTORS_RESERVED as u64)
        .max(pairs * 5 / 2 / wanted.cores.len().max(1) as u64);
    let usable = limit.saturating_sub((limits::DESCRIPTORS_RESERVED as u64).min(limit / 4)) / 2;
    Finding::unless(
        limit >= need,
        name,
        if wanted.xdp() { Level::Note } else { Level::Warn },
        format!(
            "RLIMIT_NOFILE is {}, {pairs} port pairs with a socket for each port need {need}",
            amount(limit)
        ),
        format!("with sockets some {} of {pairs} pairs can be used, the rest is left out", usable.min(pairs)),
        format!(
            "LimitNOFILE={} in the unit, or: ulimit -Hn {}",
            need.next_power_of_two(),
            need.next_power_of_two()
        ),
    )
}

fn locked_memory(host: &Host, wanted: &Wanted) -> Finding {
    let name = "process.memlock";
    let Some(limit) = hard_limit(host, "Max locked memory") else {
        return Finding::unknown(name, "/proc/self/limits cannot be read", "look at: ulimit -Hl");
    };
    let exempt = has(host, CAP_IPC_LOCK);
    let need = wanted.cores.len() as u64 * LOCKED_PER_REACTOR;
    let found = format!(
        "RLIMIT_MEMLOCK is {}{}, the rings of {} reactors take {} KiB of it",
        amount(limit),
        if exempt { ", from which CAP_IPC_LOCK exempts" } else { "" },
        wanted.cores.len(),
        need / 1_024
    );
    let remedy = "LimitMEMLOCK=infinity in the unit, or: ulimit -Hl unlimited";
    if exempt || limit == u64::MAX {
        return Finding::ok(name, found);
    }
    match limit < need {
        true => {
            Finding::new(name, Level::Fail, found, "from Linux 6.14 on the recorder does not start", remedy)
        }
        false => Finding::unless(
            !wanted.xdp(),
            name,
            Level::Warn,
            found,
            "frames and maps of AF_XDP are locked memory too, and may not fit",
            remedy,
        ),
    }
}

fn capabilities(host: &Host, wanted: &Wanted) -> Finding {
    let name = "process.capabilities";
    if wanted.running.is_some() {
        return Finding::ok(
            name,
            "the recorder that runs has dropped them; its first log lines say what it could use",
        );
    }
    let of_them = [("CAP_NET_ADMIN", CAP_NET_ADMIN), ("CAP_BPF", CAP_BPF), ("CAP_NET_RAW", CAP_NET_RAW)];
    let missing: Vec<&str> =
        of_them.iter().filter(|(_, bit)| !has(host, *bit)).map(|(name, _)| *name).collect();
    if missing.is_empty() {
        return Finding::ok(name, "CAP_NET_ADMIN, CAP_BPF and CAP_NET_RAW, for steered sockets and AF_XDP");
    }
    let (level, meaning) = match wanted.xdp() {
        true => (Level::Fail, "AF_XDP cannot be used, nor steered sockets"),
        false => (
            Level::Note,
            "steered sockets and AF_XDP cannot be used; a socket for each port needs none of them",
        ),
    };
    Finding::new(
        name,
        level,
        format!("{} missing", missing.join(", ")),
        meaning,
        "AmbientCapabilities= and CapabilityBoundingSet= with all three in the unit; the recorder drops them after its start",
    )
}

/// The hard limit of a line of /proc/PID/limits; the recorder raises the soft one to it.
fn hard_limit(host: &Host, name: &str) -> Option<u64> {
    let limits = host.process("limits")?;
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    match line.split_whitespace().nth(1)? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

fn amount(limit: u64) -> String {
    if limit == u64::MAX { "unlimited".into() } else { limit.to_string() }
}

fn has(host: &Host, capability: u32) -> bool {
    let status = host.process("status").unwrap_or_default();
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).is_some_and(|set| set >> capability & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::super::host::tests::{Fixture, host};
    use super::super::wanted::tests::wanted;
    use super::*;

    fn process(nofile: &str, memlock: &str, capabilities: &str) -> Fixture {
        let limits = format!(
            "Limit                     Soft Limit           Hard Limit           Units     \n\
             Max locked memory         65536                {memlock}              bytes     \n\
             Max open files            1024                 {nofile}                files     \n"
        );
        let status = format!("Name:\tsipreel\nCapEff:\t{capabilities}\n");
        host(&[("/proc/self/limits", &limits), ("/proc/self/status", &status)])
    }

    #[test]
    fn descriptors_for_every_port() {
        let f = process("131072", "8388608", "0");
        assert_eq!(descriptors(&f.host, &wanted()).level, Level::Ok);
        let f = process("20000", "8388608", "0");
        let few = descriptors(&f.host, &wanted());
        assert_eq!(few.level, Level::Warn);
        assert!(few.meaning.contains("8976 of 10000") && few.remedy.contains("32768"), "{few:?}");
        let xdp = Wanted { interfaces: vec!["eth0".into()], ..wanted() };
        assert_eq!(descriptors(&f.host, &xdp).level, Level::Note, "AF_XDP has no socket for each port");
        assert_eq!(descriptors(&process("unlimited", "1", "0").host, &wanted()).level, Level::Ok);
        assert_eq!(descriptors(&host(&[]).host, &wanted()).level, Level::Note);
    }

    #[test]
    fn locked_memory_for_the_rings() {
        assert_eq!(locked_memory(&process("1", "8388608", "0").host, &wanted()).level, Level::Ok);
        assert_eq!(locked_memory(&process("1", "65536", "0").host, &wanted()).level, Level::Fail);
        assert_eq!(
            locked_memory(&process("1", "65536", "4000").host, &wanted()).level,
            Level::Ok,
            "CAP_IPC_LOCK"
        );
        let xdp = Wanted { interfaces: vec!["eth0".into()], ..wanted() };
        assert_eq!(locked_memory(&process("1", "8388608", "0").host, &xdp).level, Level::Warn);
        assert_eq!(locked_memory(&process("1", "unlimited", "0").host, &xdp).level, Level::Ok);
    }

    #[test]
    fn capabilities_for_more_than_sockets() {
        let all = format!("{:016x}", 1u64 << CAP_NET_ADMIN | 1 << CAP_NET_RAW | 1 << CAP_BPF);
        assert_eq!(capabilities(&process("1", "1", &all).host, &wanted()).level, Level::Ok);
        let none = process("1", "1", "0000000000000000");
        assert_eq!(capabilities(&none.host, &wanted()).level, Level::Note);
        let xdp = Wanted { interfaces: vec!["eth0".into()], ..wanted() };
        let missing = capabilities(&none.host, &xdp);
        assert_eq!(missing.level, Level::Fail);
        assert!(missing.found.starts_with("CAP_NET_ADMIN, CAP_BPF, CAP_NET_RAW"), "{missing:?}");
        let running = Wanted { running: Some(Box::default()), ..xdp };
        assert_eq!(capabilities(&none.host, &running).level, Level::Ok, "a recorder keeps none");
    }
}

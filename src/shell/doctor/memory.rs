//! Memory: what the write blocks need of it, and in pages of which size.

use super::finding::{Finding, Level};
use super::host::Host;
use super::wanted::Wanted;
use crate::engine::blocks;
use crate::limits::BLOCK_SIZE;

pub fn check(host: &Host, wanted: &Wanted) -> Vec<Finding> {
    vec![blocks(host, wanted), pages(host, wanted)]
}

/// A block for each file, and some to spare for each reactor.
fn blocks(host: &Host, wanted: &Wanted) -> Finding {
    let name = "memory.blocks";
    let Some(available) = meminfo(host, "MemAvailable") else {
        return Finding::unknown(name, "/proc/meminfo cannot be read", "see: free");
    };
    let cores = wanted.cores.len().max(1);
    let files = (wanted.streams() as usize).div_ceil(cores);
    let count = (cores * blocks::wanted(files, BLOCK_SIZE, wanted.xdp() && cores > 1)) as u64;
    let need = (count * BLOCK_SIZE as u64) >> 20;
    let available = available >> 10;
    let found =
        format!("{need} MiB for {count} write blocks, all of it from the start, {available} MiB available");
    if wanted.running.is_some() {
        return Finding::ok(name, format!("{found}; the recorder that runs has its share already"));
    }
    let remedy = "lower --max-sessions, fewer --media-ports, or more memory";
    match need > available {
        true => Finding::new(name, Level::Fail, found, "the recorder does not start", remedy),
        false => Finding::unless(
            need * 2 <= available,
            name,
            Level::Warn,
            found,
            "little is left for the page cache, which takes what the disk is late with",
            remedy,
        ),
    }
}

fn pages(host: &Host, wanted: &Wanted) -> Finding {
    let transparent = host.read("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    let free = meminfo(host, "HugePages_Free").unwrap_or(0);
    let chosen = transparent.split(['[', ']']).nth(1).unwrap_or("not there");
    let level = if wanted.xdp() { Level::Note } else { Level::Ok };
    Finding::unless(
        free > 0 || matches!(chosen, "always" | "madvise") || level == Level::Ok,
        "memory.huge_pages",
        level,
        format!("{free} huge pages free, transparent ones: {chosen}"),
        "frames and blocks lie in small pages: more memory is spent on finding memory",
        "perf/tune --apply --only hugepages",
    )
}

/// The number of a line of /proc/meminfo: KiB, or pages.
fn meminfo(host: &Host, name: &str) -> Option<u64> {
    let text = host.read("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::host::tests::host;
    use super::super::wanted::tests::wanted;
    use super::*;

    fn of(available: u64) -> Finding {
        let text = format!("MemTotal: 1 kB\nMemAvailable:  {available} kB\nHugePages_Free: 3\n");
        blocks(&host(&[("/proc/meminfo", &text)]).host, &wanted())
    }

    #[test]
    fn blocks_that_fit() {
        assert_eq!(of(16 << 20).level, Level::Ok);
        assert!(of(16 << 20).found.starts_with("1079 MiB for 17274 write blocks"), "{:?}", of(16 << 20));
        assert_eq!(of(2 << 20).level, Level::Warn);
        assert_eq!(of(512 << 10).level, Level::Fail);
        assert_eq!(blocks(&host(&[]).host, &wanted()).level, Level::Note);
    }

    #[test]
    fn pages_of_a_size() {
        let thp = "/sys/kernel/mm/transparent_hugepage/enabled";
        let xdp = Wanted { interfaces: vec!["eth0".into()], ..wanted() };
        assert_eq!(pages(&host(&[(thp, "always [madvise] never")]).host, &xdp).level, Level::Ok);
        let never = host(&[(thp, "always madvise [never]"), ("/proc/meminfo", "HugePages_Free: 0\n")]);
        assert_eq!(
            (pages(&never.host, &xdp).level, pages(&never.host, &wanted()).level),
            (Level::Note, Level::Ok)
        );
        let reserved = host(&[("/proc/meminfo", "HugePages_Free:   64\n")]);
        assert_eq!(pages(&reserved.host, &xdp).level, Level::Ok);
    }
}

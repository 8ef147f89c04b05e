//! The directory: file system, mount options, room in minutes, and how fast it takes recordings.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::finding::{Finding, Level};
use super::host::Host;
use super::wanted::{STREAM_BYTES_PER_SECOND, Wanted};
use crate::engine::disk_probe::Speed;
use crate::engine::probe::Room;
use crate::limits;

/// Minutes of room below which it is tight, and hopeless.
const MINUTES_WANTED: u64 = 120;
const MINUTES_NEEDED: u64 = 10;
/// Directory, media file, manifest and metadata of a call of two streams, which lasts three minutes.
const INODES_PER_STREAM_MINUTE: f64 = 4.0 / 2.0 / 3.0;
/// A write that takes longer than this at every hundredth time keeps blocks from being there when they are needed.
const WRITE_WANTED: Duration = Duration::from_millis(100);

/// What was found out about a directory by asking and by trying.
pub struct Looked {
    /// The directory, or the nearest one above it that exists.
    pub existing: PathBuf,
    pub room: io::Result<Room>,
    pub calibration: Calibration,
}

pub enum Calibration {
    /// Why.
    LeftOut(&'static str),
    Done(io::Result<Speed>),
}

pub fn check(host: &Host, wanted: &Wanted, looked: &Looked) -> Vec<Finding> {
    let mut findings = vec![file_system(host, looked)];
    findings.extend(mount_options(host, looked));
    match &looked.room {
        Ok(room) => {
            findings.extend([writable(wanted, looked, room), space(wanted, room), inodes(wanted, room)])
        }
        Err(error) => findings.push(Finding::new(
            "dir.write",
            Level::Fail,
            format!("{}: {error}", looked.existing.display()),
            "the recorder does not start",
            "give a --dir that exists and can be written",
        )),
    }
    findings.extend(speed(wanted, &looked.calibration));
    findings
}

fn writable(wanted: &Wanted, looked: &Looked, room: &Room) -> Finding {
    let found = match looked.existing == wanted.dir {
        true => format!("{}", wanted.dir.display()),
        false => format!("{} is to be made in {}", wanted.dir.display(), looked.existing.display()),
    };
    Finding::unless(
        room.writable,
        "dir.write",
        Level::Fail,
        found,
        "this user cannot write there: the recorder does not start",
        "chown it to the recorder's user, or run doctor as that user",
    )
}

/// A line of /proc/self/mountinfo.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Mount {
    point: String,
    kind: String,
    source: String,
    /// Of the mount and of the file system.
    options: Vec<String>,
}

impl Mount {
    fn has(&self, option: &str) -> bool {
        self.options.iter().any(|given| given == option)
    }
}

/// The mount that a directory is on: the longest that leads to it, the last where several do.
fn mount(host: &Host, directory: &Path) -> Option<Mount> {
    let text = host.read("/proc/self/mountinfo")?;
    let mounts = text.lines().filter_map(parse_mount);
    mounts.filter(|mount| directory.starts_with(&mount.point)).max_by_key(|mount| mount.point.len())
}

/// `36 35 98:0 / /srv rw,noatime shared:1 - xfs /dev/nvme0n1 rw,lazytime`
fn parse_mount(line: &str) -> Option<Mount> {
    let (mount, file_system) = line.split_once(" - ")?;
    let words: Vec<&str> = mount.split(' ').collect();
    let mut of_file_system = file_system.split(' ');
    let (kind, source) = (of_file_system.next()?, of_file_system.next()?);
    let options = words.get(5)?.split(',').chain(of_file_system.next().unwrap_or_default().split(','));
    Some(Mount {
        point: words.get(4)?.replace("\\040", " "),
        kind: kind.into(),
        source: source.into(),
        options: options.map(String::from).collect(),
    })
}

fn file_system(host: &Host, looked: &Looked) -> Finding {
    let name = "dir.filesystem";
    let Some(mount) = mount(host, &looked.existing) else {
        return Finding::unknown(
            name,
            "its mount cannot be found",
            format!("see: findmnt -T {}", looked.existing.display()),
        );
    };
    let found = format!("{} from {} at {}", mount.kind, mount.source, mount.point);
    let (level, meaning) = match mount.kind.as_str() {
        "tmpfs" | "ramfs" => {
            (Level::Warn, "recordings are gone with the next boot, and take the recorder's memory")
        }
        "nfs" | "nfs4" | "cifs" | "smb3" | "ceph" | "9p" | "virtiofs" => {
            (Level::Warn, "a slow network or server stops the disk writes, and then packets are lost")
        }
        "overlay" | "fuse" | "fuseblk" => (Level::Warn, "each file and write goes through another layer"),
        "zfs" | "btrfs" => {
            (Level::Note, "it writes each block anew, and more than that: measure it with the load tool")
        }
        _ if mount.point == "/" => (Level::Note, "recordings that fill it stop the rest of the host"),
        _ => (Level::Ok, ""),
    };
    Finding::unless(
        level == Level::Ok,
        name,
        level,
        found,
        meaning,
        "a local xfs or ext4 of its own for --dir",
    )
}

fn mount_options(host: &Host, looked: &Looked) -> Option<Finding> {
    let mount = mount(host, &looked.existing)?;
    let name = "dir.mount";
    let found = format!("mounted with {}", mount.options.join(","));
    if mount.has("ro") {
        return Some(Finding::new(name, Level::Fail, found, "nothing can be written", "mount it read-write"));
    }
    if mount.has("sync") || mount.has("dirsync") {
        let remedy = "mount it without sync and dirsync";
        return Some(Finding::new(name, Level::Warn, found, "each write waits for the device", remedy));
    }
    let missing: Vec<&str> =
        ["noatime", "lazytime"].into_iter().filter(|option| !mount.has(option)).collect();
    Some(Finding::unless(
        missing.is_empty(),
        name,
        Level::Note,
        found,
        "each write also dirties the file's inode for its time",
        format!("mount -o remount,{} {}, and in /etc/fstab", missing.join(","), mount.point),
    ))
}

fn space(wanted: &Wanted, room: &Room) -> Finding {
    let rate = wanted.bytes_per_second().max(1);
    let minutes = room.free / rate / 60;
    let found = format!(
        "{} of {} GiB free: {minutes} minutes of {} G.711 streams ({:.1} MB/s)",
        room.free >> 30,
        room.total >> 30,
        wanted.streams(),
        rate as f64 / 1e6
    );
    let level = if minutes < MINUTES_NEEDED { Level::Fail } else { Level::Warn };
    Finding::unless(
        minutes >= MINUTES_WANTED,
        "dir.space",
        level,
        found,
        "a full disk ends every recording",
        "a larger disk, earlier moving away of what is whole, or --max-sessions that fits",
    )
}

fn inodes(wanted: &Wanted, room: &Room) -> Finding {
    let name = "dir.inodes";
    let Some(free) = room.inodes_free else {
        return Finding::ok(name, "the file system has no limit of files");
    };
    let minutes = (free as f64 / (wanted.streams().max(1) as f64 * INODES_PER_STREAM_MINUTE)) as u64;
    let level = if minutes < MINUTES_NEEDED { Level::Fail } else { Level::Warn };
    Finding::unless(
        minutes >= MINUTES_WANTED,
        name,
        level,
        format!("{free} files can be made: {minutes} minutes of calls of 3 minutes on all ports"),
        "no file can be made then, whatever the space: INVITEs get 503",
        "make the file system with more inodes (mkfs.ext4 -i 65536 has fewer, -i 16384 more), or use xfs",
    )
}

fn speed(wanted: &Wanted, calibration: &Calibration) -> Vec<Finding> {
    let name = "disk.speed";
    match calibration {
        Calibration::LeftOut(why) => {
            vec![Finding::unknown(
                name,
                format!("not measured: {why}"),
                "run it before the recorder, without --no-disk",
            )]
        }
        Calibration::Done(Err(error)) => vec![Finding::new(
            name,
            Level::Fail,
            format!("writing failed: {error}"),
            "recordings would fail in the same way",
            "see the kernel's log for the device, and dir.space",
        )],
        Calibration::Done(Ok(speed)) => vec![rate(wanted, speed), latency(speed)],
    }
}

fn rate(wanted: &Wanted, speed: &Speed) -> Finding {
    let streams = speed.bytes_per_second() / STREAM_BYTES_PER_SECOND;
    let found = format!(
        "{} MB/s in {} KiB writes to {} files by {} writers, {} the page cache as the recorder writes, then synced: \
         {streams} G.711 streams as pcap",
        speed.bytes_per_second() / 1_000_000,
        limits::BLOCK_SIZE >> 10,
        limits::DISK_PROBE_FILES,
        limits::DISK_WORKERS,
        if speed.direct { "past" } else { "through" }
    );
    let remedy =
        format!("--max-sessions {} for calls of two streams, or a faster disk", (streams / 2).max(1));
    let ports = wanted.streams();
    if streams < ports {
        let meaning = format!("{ports} streams are let in: packets are lost before that");
        return Finding::new("disk.speed", Level::Warn, found, meaning, remedy);
    }
    Finding::unless(
        streams >= ports * 2,
        "disk.speed",
        Level::Note,
        found,
        format!("{ports} streams leave little for hashing, and for whoever reads recordings"),
        remedy,
    )
}

fn latency(speed: &Speed) -> Finding {
    let ms = |time: Duration| format!("{:.2} ms", time.as_secs_f64() * 1e3);
    let spare = (limits::SPARE_BYTES_PER_FILE / 2) as f64 / STREAM_BYTES_PER_SECOND as f64;
    Finding::unless(
        speed.p99 <= WRITE_WANTED,
        "disk.latency",
        Level::Warn,
        format!(
            "a write takes {} at the median, {} at p99, {} at worst, with the disk busy",
            ms(speed.p50),
            ms(speed.p99),
            ms(speed.max)
        ),
        format!(
            "while it waits packets gather in blocks: a recording has the rest of its own, and a share of the spare ones for \
             {spare:.1} s"
        ),
        "a disk that is not shared, xfs, vm.dirty_bytes as in systemd/60-sipreel.conf",
    )
}

#[cfg(test)]
mod tests {
    use super::super::host::tests::host;
    use super::super::wanted::tests::wanted;
    use super::*;

    const ROOM: Room = Room { free: 4 << 40, total: 8 << 40, inodes_free: Some(1 << 30), writable: true };

    fn looked(existing: &str) -> Looked {
        Looked { existing: existing.into(), room: Ok(ROOM), calibration: Calibration::LeftOut("--no-disk") }
    }

    fn on(line: &str) -> [Finding; 2] {
        let text = format!("22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n{line}\n");
        let f = host(&[("/proc/self/mountinfo", &text)]);
        let looked = looked("/srv/recordings");
        [file_system(&f.host, &looked), mount_options(&f.host, &looked).unwrap()]
    }

    #[test]
    fn the_mount_of_a_directory() {
        let [kind, options] =
            on("36 22 98:0 / /srv rw,noatime,lazytime shared:1 - xfs /dev/nvme0n1 rw,attr2");
        assert_eq!((kind.level, options.level), (Level::Ok, Level::Ok), "{kind:?} {options:?}");
        assert_eq!(kind.found, "xfs from /dev/nvme0n1 at /srv");
        let [kind, options] = on("36 22 98:0 / /srv2 rw - xfs /dev/nvme0n1 rw");
        assert_eq!((kind.level, kind.found.as_str()), (Level::Note, "ext4 from /dev/vda at /"));
        assert!(options.remedy.starts_with("mount -o remount,noatime,lazytime /"), "{options:?}");
        let [kind, _] = on("36 22 98:0 / /srv/rec\\040ordings rw - xfs /dev/x rw");
        assert_eq!(kind.found, "ext4 from /dev/vda at /", "a name with a blank");
        assert_eq!(parse_mount("nonsense - x"), None);
        assert_eq!(file_system(&host(&[]).host, &looked("/srv")).level, Level::Note);
    }

    #[test]
    fn file_systems_that_hurt() {
        for kind in ["tmpfs", "nfs4", "overlay"] {
            assert_eq!(on(&format!("36 22 0:9 / /srv rw - {kind} x rw"))[0].level, Level::Warn, "{kind}");
        }
        assert_eq!(on("36 22 0:9 / /srv ro - xfs /dev/x rw")[1].level, Level::Fail);
        assert_eq!(on("36 22 0:9 / /srv rw,noatime - ext4 /dev/x rw,sync")[1].level, Level::Warn);
    }

    #[test]
    fn room_in_minutes() {
        let of = |free| space(&wanted(), &Room { free, ..ROOM });
        // 10,000 streams of 11,500 bytes/s: 6.9 GB a minute.
        assert!(
            of(4 << 40).level == Level::Ok && of(4 << 40).found.contains("637 minutes"),
            "{:?}",
            of(4 << 40)
        );
        assert_eq!((of(690_000_000_000).level, of(60_000_000_000).level), (Level::Warn, Level::Fail));
        let of = |inodes_free| inodes(&wanted(), &Room { inodes_free, ..ROOM }).level;
        assert_eq!(
            (of(None), of(Some(1 << 30)), of(Some(600_000)), of(Some(60_000))),
            (Level::Ok, Level::Ok, Level::Warn, Level::Fail)
        );
    }

    #[test]
    fn directories_that_cannot_be_used() {
        let f = host(&[]);
        let closed = Looked { room: Ok(Room { writable: false, ..ROOM }), ..looked("/srv") };
        let findings = check(&f.host, &wanted(), &closed);
        let write = findings.iter().find(|finding| finding.name == "dir.write").unwrap();
        assert!(write.level == Level::Fail && write.found.contains("to be made in /srv"), "{write:?}");
        let absent = Looked { room: Err(io::ErrorKind::NotFound.into()), ..looked("/srv") };
        assert!(check(&f.host, &wanted(), &absent).iter().any(|finding| finding.level == Level::Fail));
    }

    #[test]
    fn speed_as_streams() {
        let of = |bytes, p99| {
            let (time, p99) = (Duration::from_secs(2), Duration::from_millis(p99));
            let speed = Speed { bytes, time, direct: true, p50: Duration::from_micros(90), p99, max: p99 };
            super::speed(&wanted(), &Calibration::Done(Ok(speed)))
        };
        let fast = of(4_000_000_000, 3);
        assert!(fast[0].level == Level::Ok && fast[0].found.contains("2000 MB/s"), "{fast:?}");
        assert!(fast[0].found.contains("173913 G.711 streams"), "{fast:?}");
        assert_eq!(fast[1].level, Level::Ok);
        assert_eq!(of(300_000_000, 3)[0].level, Level::Note);
        let slow = of(115_000_000, 400);
        assert!(
            slow[0].level == Level::Warn && slow[0].remedy.starts_with("--max-sessions 2500"),
            "{slow:?}"
        );
        assert_eq!(slow[1].level, Level::Warn);
        let broken = super::speed(&wanted(), &Calibration::Done(Err(io::ErrorKind::StorageFull.into())));
        assert_eq!(broken[0].level, Level::Fail);
        assert_eq!(super::speed(&wanted(), &Calibration::LeftOut("--no-disk"))[0].level, Level::Note);
    }
}

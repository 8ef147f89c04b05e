//! The kernel: its release, and what it lets a process do, by the answers of `engine::probe`.

use std::io;

use super::finding::{Finding, Level};
use super::host::Host;
use super::wanted::Wanted;

/// The first release with all that a reactor needs of io_uring, and the first that also wakes by count or time.
const NEEDED: (u32, u32) = (6, 1);
const WANTED: (u32, u32) = (6, 12);

/// What was tried, and what the kernel said.
pub struct Answers {
    pub io_uring: Result<(), String>,
    pub sk_lookup: io::Result<()>,
    pub af_xdp: io::Result<()>,
}

pub fn check(host: &Host, wanted: &Wanted, answers: &Answers) -> Vec<Finding> {
    vec![
        release(host),
        io_uring(host, &answers.io_uring),
        program("kernel.sk_lookup", "steered sockets", "CONFIG_BPF_SYSCALL", &answers.sk_lookup, Level::Note),
        program(
            "kernel.af_xdp",
            "AF_XDP",
            "CONFIG_XDP_SOCKETS",
            &answers.af_xdp,
            if wanted.xdp() { Level::Fail } else { Level::Note },
        ),
    ]
}

fn release(host: &Host) -> Finding {
    let name = "kernel.release";
    let release = host.read("/proc/sys/kernel/osrelease").unwrap_or_default();
    let Some(version) = version(&release) else {
        return Finding::unknown(name, format!("{release:?} is no release"), "look at: uname -r");
    };
    let found = format!("Linux {release}");
    if version < NEEDED {
        return Finding::new(
            name,
            Level::Fail,
            found,
            "the recorder does not start",
            "use Linux 6.1 or newer",
        );
    }
    Finding::unless(
        version >= WANTED,
        name,
        Level::Note,
        found,
        "reactors cannot wait for a count and a time at once: a quiet one wakes more often",
        "use Linux 6.12 or newer",
    )
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(['.', '-', '+']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn io_uring(host: &Host, answer: &Result<(), String>) -> Finding {
    let name = "kernel.io_uring";
    match (answer, host.number("/proc/sys/kernel/io_uring_disabled")) {
        // What this process may, a service's user without privileges may not.
        (Ok(()), Some(1)) => Finding::new(
            name,
            Level::Warn,
            "allowed to this process, and sysctl kernel.io_uring_disabled is 1",
            "a recorder that is not root and not in kernel.io_uring_group does not start",
            "sysctl -w kernel.io_uring_disabled=0, or name the recorder's group in kernel.io_uring_group",
        ),
        (Ok(()), _) => Finding::ok(name, "a ring as the reactors use it can be made"),
        (Err(sentence), disabled) => Finding::new(
            name,
            Level::Fail,
            sentence,
            "the recorder does not start",
            match disabled {
                Some(1 | 2) => "sysctl -w kernel.io_uring_disabled=0",
                _ => {
                    "allow io_uring_setup, io_uring_enter and io_uring_register in the container's seccomp profile"
                }
            },
        ),
    }
}

fn program(name: &'static str, what: &str, option: &str, answer: &io::Result<()>, level: Level) -> Finding {
    let Err(error) = answer else { return Finding::ok(name, format!("{what}: a program can be loaded")) };
    let permitted = !matches!(error.kind(), io::ErrorKind::PermissionDenied);
    let remedy = match permitted {
        true => format!("a kernel with {option}; see /boot/config-$(uname -r) or /proc/config.gz"),
        false => {
            "CAP_BPF, CAP_NET_ADMIN and CAP_NET_RAW, and bpf(2) in the container's seccomp profile".into()
        }
    };
    let meaning = match level {
        Level::Fail => "the interfaces that were named cannot be used",
        _ => "it cannot be used; a socket for each port takes its place, at a higher price per packet",
    };
    Finding::new(name, level, format!("{what}: {error}"), meaning, remedy)
}

#[cfg(test)]
mod tests {
    use super::super::host::tests::host;
    use super::super::wanted::tests::wanted;
    use super::*;

    fn of(release: &str) -> Finding {
        super::release(&host(&[("/proc/sys/kernel/osrelease", release)]).host)
    }

    #[test]
    fn releases() {
        assert_eq!(of("6.18.44-fc-v657\n").level, Level::Ok);
        assert_eq!(of("6.1.0-26-amd64").level, Level::Note);
        assert_eq!(of("5.14.0-427.el9.x86_64").level, Level::Fail);
        assert_eq!(of("7.0-rc1").level, Level::Ok);
        assert_eq!(of("plan9").level, Level::Note);
    }

    #[test]
    fn rings_that_are_forbidden() {
        let refused = Err("io_uring is not available".into());
        let f = host(&[("/proc/sys/kernel/io_uring_disabled", "2")]);
        let finding = io_uring(&f.host, &refused);
        assert_eq!(finding.level, Level::Fail);
        assert!(finding.remedy.contains("io_uring_disabled=0"));
        let container = io_uring(&host(&[]).host, &refused);
        assert!(container.remedy.contains("seccomp"), "{container:?}");
        assert_eq!(io_uring(&host(&[]).host, &Ok(())).level, Level::Ok);
        let f = host(&[("/proc/sys/kernel/io_uring_disabled", "1")]);
        assert_eq!(io_uring(&f.host, &Ok(())).level, Level::Warn, "root may, the service may not");
    }

    #[test]
    fn programs_that_are_refused() {
        let answers = |errno| Answers {
            io_uring: Ok(()),
            sk_lookup: Err(io::Error::from_raw_os_error(errno)),
            af_xdp: Err(io::Error::from_raw_os_error(errno)),
        };
        let f = host(&[]);
        let findings = check(&f.host, &wanted(), &answers(libc::EPERM));
        assert!(findings[2].remedy.contains("CAP_BPF") && findings[2].level == Level::Note);
        let xdp = Wanted { interfaces: vec!["eth0".into()], ..wanted() };
        let findings = check(&f.host, &xdp, &answers(libc::EAFNOSUPPORT));
        assert!(findings[3].remedy.contains("CONFIG_XDP_SOCKETS") && findings[3].level == Level::Fail);
        assert_eq!(findings[2].level, Level::Note, "AF_XDP does without");
    }
}

//! `perf/tune`: what it would do on a box that is a tree of files and a card that is a script, and what it does in a network
//! namespace of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

const TUNE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/perf/tune");
const CONF: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/systemd/60-sipreel.conf");

/// A card of eight queues with four in use, as ethtool shows it: hashing by addresses, rules switched off.
const ETHTOOL: &str = r#"#!/bin/sh
log=$(dirname "$0")/asked
case "$1 $3" in
"-l ") printf 'Channel parameters for eth0:\nPre-set maximums:\nRX:\t\tn/a\nTX:\t\tn/a\nOther:\t\t1\nCombined:\t8\nCurrent hardware settings:\nRX:\t\tn/a\nTX:\t\tn/a\nOther:\t\t1\nCombined:\t2\n' ;;
"-g ") printf 'Ring parameters for eth0:\nPre-set maximums:\nRX:\t\t8160\nRX Mini:\tn/a\nTX:\t\t8160\nCurrent hardware settings:\nRX:\t\t512\nRX Mini:\tn/a\nTX:\t\t512\n' ;;
"-c ") printf 'Coalesce parameters for eth0:\nAdaptive RX: on  TX: on\nrx-usecs:\t50\nrx-usecs-irq:\tn/a\n' ;;
"-k ") printf 'Features for eth0:\nntuple-filters: off\nreceive-hashing: on\n' ;;
"-n ") printf '8 RX rings available\nTotal 1 rules\n\nFilter: 7\n\tRule Type: UDP over IPv4\n\tSrc port: 0 mask: 0xffff\n\tDest port: 2 mask: 0xfff9\n\tAction: Direct to queue 1\n' ;;
"-n rx-flow-hash") printf 'UDP over IPV4 flows use these fields for computing Hash flow key:\nIP SA\nIP DA\n' ;;
*) echo "$*" >> "$log" ;;
esac
"#;

struct Tree(tempfile::TempDir);

impl Tree {
    /// The box: four cores of which one is slow to wake, a card with two interrupts, everything as a distribution leaves it.
    fn new() -> Tree {
        let tree = Tree(tempfile::tempdir().unwrap());
        for (path, text) in [
            ("proc/sys/net/core/rmem_max", "212992\n"),
            ("proc/sys/net/core/netdev_max_backlog", "8192\n"),
            ("proc/sys/net/ipv4/ip_local_reserved_ports", "\n"),
            ("proc/sys/net/ipv4/udp_mem", "1000\t2000\t3000\n"),
            ("proc/sys/vm/nr_hugepages", "0\n"),
            (
                "proc/interrupts",
                "  CPU0 CPU1\n 40: 1 2 PCI-MSIX 0-edge eth0\n 41: 1 2 PCI-MSIX 1-edge eth0-TxRx-0\n 42: 1 2 PCI-MSIX 2-edge eth0-TxRx-1\n",
            ),
            ("proc/irq/41/smp_affinity_list", "0-3\n"),
            ("proc/irq/42/smp_affinity_list", "2\n"),
            ("proc/77/comm", "irqbalance\n"),
            ("proc/self/mountinfo", "22 1 254:0 / / rw,relatime - ext4 /dev/vda rw,lazytime\n"),
            ("sys/class/net/eth0/device/msi_irqs/41", "msix\n"),
            ("sys/class/net/eth0/device/msi_irqs/42", "msix\n"),
            ("sys/class/net/eth0/queues/rx-0/rps_cpus", "00000000,0000000f\n"),
            ("sys/devices/system/cpu/online", "0-3\n"),
            ("sys/devices/system/cpu/cpu1/cpufreq/scaling_governor", "powersave\n"),
            ("sys/devices/system/cpu/cpu1/cpuidle/state1/latency", "2\n"),
            ("sys/devices/system/cpu/cpu1/cpuidle/state2/latency", "600\n"),
            ("sys/devices/system/cpu/cpu1/cpuidle/state2/name", "C6\n"),
            ("sys/devices/system/cpu/cpu1/cpuidle/state2/disable", "0\n"),
            ("sys/dev/block/254:0/queue/rotational", "0\n"),
            ("sys/dev/block/254:0/queue/scheduler", "none [mq-deadline]\n"),
            ("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n"),
            ("bin/ethtool", ETHTOOL),
        ] {
            let path = tree.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        fs::set_permissions(tree.0.path().join("bin/ethtool"), fs::Permissions::from_mode(0o755)).unwrap();
        tree
    }

    fn tune(&self, arguments: &str) -> Output {
        let path = format!("{}/bin:{}", self.0.path().display(), std::env::var("PATH").unwrap());
        Command::new(TUNE)
            .args(arguments.split_whitespace())
            .env("SIPREEL_TUNE_ROOT", self.0.path())
            .env("PATH", path)
            .output()
            .unwrap()
    }

    /// The plan: what is printed for each step and name, blanks squeezed.
    #[track_caller]
    fn plan(&self, arguments: &str) -> Vec<String> {
        let output = self.tune(arguments);
        assert!(output.status.success(), "{output:?}");
        squeezed(&output)
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.0.path().join(path)).unwrap().trim().to_owned()
    }
}

fn squeezed(output: &Output) -> Vec<String> {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

#[track_caller]
fn has(plan: &[String], begin: &str) {
    assert!(plan.iter().any(|line| line.starts_with(begin)), "{begin:?} is not in\n{}", plan.join("\n"));
}

#[test]
fn the_shell_can_read_it() {
    let output = Command::new("sh").args(["-n", TUNE]).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

/// Every key of the file for /etc/sysctl.d, so that the two cannot part.
#[test]
fn sysctls_are_those_of_the_unit() {
    let tree = Tree::new();
    let plan = tree.plan("--only sysctl");
    let conf = fs::read_to_string(CONF).unwrap();
    let keys: Vec<&str> = conf
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| Some(line.split_once(" = ")?.0))
        .collect();
    assert!(keys.len() >= 5, "{keys:?}");
    for key in keys {
        assert_eq!(
            plan.iter().filter(|line| line.starts_with(&format!("sysctl {key} "))).count(),
            1,
            "{key}: {plan:#?}"
        );
    }
    has(&plan, "sysctl net.core.rmem_max 212992 4194304 would: echo '4194304' > ");
    has(&plan, "sysctl net.core.netdev_max_backlog 8192 8192 ok");
    has(&plan, "sysctl net.ipv4.ip_local_reserved_ports none 20000-39999 would:");
    has(&plan, "sysctl net.ipv4.udp_mem 1000 2000 3000 46875 70312 93750 would:");
    has(&plan, "sysctl vm.dirty_bytes - 1073741824 skipped: cannot be read here");
    let other = tree.plan("--only sysctl/net.ipv4.ip_local_reserved_ports --media-ports 30000-30999");
    has(&other, "sysctl net.ipv4.ip_local_reserved_ports none 30000-30999 would:");
    assert_eq!(other.len(), 3, "a title, one line, a sum: {other:?}");
}

#[test]
fn the_card() {
    let plan = Tree::new().plan("--interface eth0 --cores 0-3");
    has(&plan, "channels eth0 2 4 would: ethtool -L eth0 combined 4");
    has(&plan, "ring eth0 512 4096 would: ethtool -G eth0 rx 4096");
    has(&plan, "coalesce eth0:adaptive-rx on off would: ethtool -C eth0 adaptive-rx off");
    has(&plan, "coalesce eth0:rx-usecs 50 100 would: ethtool -C eth0 rx-usecs 100");
    has(&plan, "rss eth0:udp4 sd sdfn would: ethtool -N eth0 rx-flow-hash udp4 sdfn");
    has(&plan, "rules eth0:ntuple off on would: ethtool -K eth0 ntuple on");
    has(&plan, "irq eth0:queue-0 (irq 41) 0-3 0 would:");
    has(&plan, "irq eth0:queue-1 (irq 42) 2 1 would:");
    has(&plan, "irq eth0:rx-0 rps_cpus 000000000000000f 0 would:");
    has(&plan, "irq irqbalance running stopped would: systemctl disable --now irqbalance");
    let apart = Tree::new().plan("--interface eth0 --cores 0-1 --irq-cores 2-3 --only irq");
    has(&apart, "irq eth0:queue-0 (irq 41) 0-3 2 would:");
    has(&apart, "irq eth0:queue-1 (irq 42) 2 3 would:");
}

/// Queue = ((port − lo) / 2) mod queues, checked by applying the rules that it prints to every port of the range.
#[test]
fn rules_by_port_bits() {
    for (first, queues) in [(20_000u32, 4u32), (20_002, 4), (30_006, 8), (20_000, 2)] {
        let last = first + 1_999;
        let cores = format!("0-{}", queues - 1);
        let plan = Tree::new().plan(&format!(
            "--interface eth0 --cores {cores} --media-ports {first}-{last} --only channels --only rules"
        ));
        let rules: Vec<(u32, u32, u32)> = plan.iter().filter_map(|line| rule(line)).collect();
        let there =
            plan.iter().filter(|line| line.starts_with("rules eth0:udp4") && line.ends_with("ok")).count();
        assert_eq!(rules.len() + there, queues as usize, "{plan:#?}");
        for port in first..=last {
            let of_rules = rules.iter().find(|(value, ignored, _)| port & !ignored & 0xffff == *value);
            if let Some((.., queue)) = of_rules {
                assert_eq!(*queue, (port - first) / 2 % queues, "port {port} of {first}, {queues} queues");
            } else {
                assert!(there == 1 && port & 0x6 == 2, "no rule for {port}: {plan:#?}");
            }
        }
    }
    let plan = Tree::new().plan("--interface eth0 --cores 0-3 --only channels --only rules");
    has(&plan, "rules eth0:udp4 port bits 2 queue 1 queue 1 ok");
    let plan = Tree::new().plan("--interface eth0 --cores 0-2 --only channels --only rules");
    has(&plan, "rules eth0 - - skipped: 3 queues are no power of two");
}

/// `… would: ethtool -N eth0 flow-type udp4 dst-port 2 m 0xfff9 action 1`: port, ignored bits, queue.
fn rule(line: &str) -> Option<(u32, u32, u32)> {
    let words: Vec<&str> = line.split_once("flow-type udp4 dst-port ")?.1.split(' ').collect();
    let [port, "m", mask, "action", queue] = words[..] else { panic!("{line}") };
    Some((port.parse().ok()?, u32::from_str_radix(mask.strip_prefix("0x")?, 16).ok()?, queue.parse().ok()?))
}

#[test]
fn cores_memory_and_disk() {
    let dir = tempfile::tempdir().unwrap();
    let plan = Tree::new().plan(&format!("--cores 1 --dir {}", dir.path().display()));
    has(&plan, "cpu cpu1 governor powersave performance would:");
    has(&plan, "cpu cpu1 sleep C6 (600 us) disable=0 disable=1 would:");
    assert_eq!(
        plan.iter().filter(|line| line.starts_with("cpu ")).count(),
        2,
        "a shallow sleep stays: {plan:#?}"
    );
    has(&plan, "hugepages transparent never madvise would:");
    has(&plan, "hugepages vm.nr_hugepages 0 32 would:");
    has(&plan, "disk / noatime absent present would: mount -o remount,noatime /");
    has(&plan, "disk / lazytime present present ok");
    has(&plan, "disk /dev/vda scheduler mq-deadline none would:");
    has(&plan, "disk / file system ext4 ext4 ok");
    assert!(!plan.iter().any(|line| line.starts_with("channels")), "no interface was named: {plan:#?}");
}

#[test]
fn what_is_applied_is_there_and_is_not_done_twice() {
    let tree = Tree::new();
    let only = "--apply --cores 1 --only sysctl --only cpu --only hugepages/vm.nr_hugepages";
    let first = tree.plan(only);
    has(&first, "cpu cpu1 governor powersave performance done:");
    assert_eq!(tree.read("sys/devices/system/cpu/cpu1/cpufreq/scaling_governor"), "performance");
    assert_eq!(tree.read("proc/sys/net/core/rmem_max"), "4194304");
    assert_eq!(tree.read("proc/sys/vm/nr_hugepages"), "32");
    assert!(!tree.0.path().join("proc/sys/vm/dirty_bytes").exists(), "what cannot be read is not written");
    assert_eq!(tree.plan(only).last().unwrap(), "nothing to do");
    tree.plan("--apply --interface eth0 --cores 0-3 --only ring --only rules/eth0:ntuple");
    assert_eq!(tree.read("bin/asked"), "-G eth0 rx 4096\n-K eth0 ntuple on");
}

#[test]
fn what_fails_is_said_and_the_rest_is_done() {
    let tree = Tree::new();
    fs::write(tree.0.path().join("bin/systemctl"), "#!/bin/sh\necho no bus >&2\nexit 1\n").unwrap();
    fs::set_permissions(tree.0.path().join("bin/systemctl"), fs::Permissions::from_mode(0o755)).unwrap();
    let output = tree.tune("--apply --cores 1 --only irq --only cpu");
    assert_eq!(output.status.code(), Some(1));
    let lines = squeezed(&output);
    has(&lines, "irq irqbalance running stopped FAILED: systemctl disable --now irqbalance: no bus");
    has(&lines, "cpu cpu1 governor powersave performance done:");
    assert_eq!(lines.last().unwrap(), "1 could not be set");
}

#[test]
fn arguments_that_cannot_work_are_refused_before_anything_is_done() {
    let tree = Tree::new();
    for arguments in [
        "--interface eth9",
        "--interface ../../etc",
        "--cores 0-x",
        "--cores",
        "--media-ports 20001-30000",
        "--media-ports 20000-70000",
        "--dir /nowhere/at/all",
        "--only everything",
        "--force",
    ] {
        let output = tree.tune(&format!("--apply {arguments}"));
        assert_eq!(output.status.code(), Some(2), "{arguments}");
        assert!(output.stdout.is_empty(), "{arguments}");
        assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1, "{arguments}");
    }
    assert_eq!(tree.read("proc/sys/net/core/rmem_max"), "212992");
}

/// In a network namespace with a veth pair, and /sys as seen from it: a real kernel, and nothing of it is the host's. Skipped
/// where no namespace can be made, unless `SIPREEL_REQUIRE_PEERS` says that it must be possible.
#[test]
fn a_namespace_of_its_own() {
    let script = format!(
        "mount -t sysfs sysfs /sys && ip link add tune0 type veth peer name tune1 && {TUNE} --interface tune0 --cores 0 && echo ==== && \
         {TUNE} --apply --only {RESERVED} && echo ==== && cat {FILE} && echo ==== && {TUNE} --apply --only {RESERVED}",
    );
    let output = Command::new("unshare").args(["-n", "-m", "sh", "-c", &script]).output();
    let Some(output) = output.ok().filter(|output| output.status.success()) else {
        assert!(!required(), "unshare -n, ip, ethtool or a veth pair is not to be had here");
        return eprintln!("skipped: unshare -n, ip, ethtool or a veth pair is not to be had here");
    };
    let lines = squeezed(&output);
    let parts: Vec<&[String]> = lines.split(|line| line == "====").collect();
    let [plan, first, file, second] = parts[..] else { panic!("{lines:#?}") };
    has(plan, "channels tune0 ");
    has(plan, "ring tune0 ");
    has(plan, "irq tune0 - - skipped: it has no interrupts of its own");
    has(plan, "sysctl net.ipv4.ip_local_reserved_ports none 20000-39999 would:");
    has(first, "sysctl net.ipv4.ip_local_reserved_ports none 20000-39999 done:");
    assert_eq!(file, ["20000-39999"]);
    has(second, "sysctl net.ipv4.ip_local_reserved_ports 20000-39999 20000-39999 ok");
    assert_eq!(second.last().unwrap(), "nothing to do");
}

const RESERVED: &str = "sysctl/net.ipv4.ip_local_reserved_ports";
const FILE: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

fn required() -> bool {
    std::env::var("SIPREEL_REQUIRE_PEERS").is_ok_and(|value| value == "1")
}

#[test]
fn the_script_is_executable() {
    assert_eq!(fs::metadata(Path::new(TUNE)).unwrap().permissions().mode() & 0o111, 0o111);
}

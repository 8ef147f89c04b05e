"""What perf/compare and perf/profile share: the lab, processes pinned to a core in it, and what /proc says of them.

Python 3.9 or newer, nothing but its standard library.
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECORDER_IP = "10.99.0.2"
INTERFACE = "lab0"
SIP_PORT = 5_060
SIP = f"{RECORDER_IP}:{SIP_PORT}"
"""Of the media: where the recorder's own default begins, unless that leaves too few."""
USUAL_FIRST_PORT, LOWEST_FIRST_PORT = 20_000, SIP_PORT + 2
"""Packets a second of a stream: 20 ms each."""
STREAM_RATE = 50
"""The recorder's core and the generator's, which also has whatever watches."""
RECORDER_CPU, LOAD_CPU = 0, 1
TICK = 1.0 / os.sysconf("SC_CLK_TCK")
"""Seconds between two looks at a process: for a short run, and for one of a minute or longer. Looking costs time on the load's core."""
SAMPLES = (0.1, 0.5)


class Failure(Exception):
    """Something could not be done; the text says what, to what, and what to change."""


def first_port(streams):
    """The lowest media port for so many streams, two ports each."""
    return USUAL_FIRST_PORT if streams <= (65_536 - USUAL_FIRST_PORT) // 2 else LOWEST_FIRST_PORT


def installed(program):
    """The path of a program, also of those in root's directories."""
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin:/usr/local/sbin")


def prepare():
    """Room for a descriptor a socket, and this script away from the recorder's core."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.sched_setaffinity(0, {cpu(LOAD_CPU)})


def cpu(wanted):
    """A machine with one core has both on it."""
    return min(wanted, os.cpu_count() - 1)


def binaries(bin_dir):
    """Where sipreel, sipreel-load and sipreel-peers are; builds the release ones when no place is given."""
    if bin_dir is not None:
        return Path(bin_dir).resolve()
    # On all cores, unlike what comes after.
    command = ["taskset", "-c", f"0-{os.cpu_count() - 1}", "cargo", "build", "--release", "--bins"]
    if subprocess.run(command, cwd=ROOT).returncode != 0:
        raise Failure("the release build failed; its messages are above")
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve() / "release"


class Lab:
    """The two namespaces, for the time of a `with`."""

    def __init__(self, name):
        self.name = name

    def __enter__(self):
        done = subprocess.run([ROOT / "perf/lab", "up", "--name", self.name], capture_output=True, text=True)
        if done.returncode != 0:
            raise Failure(done.stderr.strip())
        return self

    def __exit__(self, *_):
        subprocess.run([ROOT / "perf/lab", "down", "--name", self.name], check=False)

    def inside(self, end, core, *command):
        """The arguments that run a command at one end and on one core. It keeps the process id of what is started."""
        lab = [str(ROOT / "perf/lab"), "exec", "--name", self.name, end]
        return [*lab, "taskset", "-c", str(core), *map(str, command)]

    def drop_media(self):
        """Media ends at the interface, behind packet sockets and before IP: no port is refused, no ICMP is sent."""
        hook = f'type filter hook ingress device "{INTERFACE}" priority 0; policy accept;'
        rules = f"table netdev perf {{ chain media {{\n{hook}\n"
        # A large INVITE comes in fragments, and all but the first have anything where a port would be.
        rules += f"ip frag-off & 0x1fff != 0 accept;\nudp dport {LOWEST_FIRST_PORT}-65535 drop;\n}}\n}}\n"
        nft = installed("nft")
        if nft is None:
            raise Failure("nft is not installed (Debian package nftables)")
        command = self.inside("recorder", cpu(LOAD_CPU), nft, "-f", "-")
        done = subprocess.run(command, input=rules, text=True, capture_output=True)
        if done.returncode != 0:
            raise Failure(f"nft: {done.stderr.strip()}")


class Process:
    """A program of ours, with its output in files. Ended at the end of a `with`, whatever happens."""

    def __init__(self, name, command, home):
        self.name = name
        self.command = [str(word) for word in command]
        self.out, self.err = Path(home) / f"{name}.out", Path(home) / f"{name}.err"
        with open(self.out, "wb") as out, open(self.err, "wb") as err:
            self.child = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        self.pid = self.child.pid

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.child.poll() is None:
            self.child.kill()
            self.child.wait()

    def said(self):
        return self.out.read_text(errors="replace") + self.err.read_text(errors="replace")

    def wait_for(self, what, holds, patience=60):
        deadline = time.monotonic() + patience
        while not holds():
            if self.child.poll() is not None:
                raise Failure(f"{self.name} ended with {self.child.returncode}: {self.said()[-2000:].strip()}")
            if time.monotonic() > deadline:
                raise Failure(f"{self.name}: {what} is not so after {patience} s: {self.said()[-2000:].strip()}")
            time.sleep(0.02)

    def wait_said(self, text):
        self.wait_for(f"“{text}” in its output", lambda: text in self.said())

    def wait_packet_socket(self):
        """Every capture program has a packet socket when it captures."""
        sockets = Path(f"/proc/{self.pid}/net/packet")
        self.wait_for("a packet socket", lambda: len(sockets.read_text().splitlines()) > 1)
        time.sleep(0.3)

    def stop(self, number=signal.SIGTERM, patience=120):
        """Its exit code; negative: the signal that ended it."""
        if self.child.poll() is None:
            self.child.send_signal(number)
        try:
            return self.child.wait(patience)
        except subprocess.TimeoutExpired:
            raise Failure(f"{self.name} does not end {patience} s after {signal.Signals(number).name}") from None


@dataclass
class Sample:
    """Totals since the start of the process, the machine, the interface."""

    at: float
    process_cpu: float
    machine_busy: float
    packets: int
    bytes: int


def process_tree(pid):
    """The process and its living descendants."""
    found = [pid]
    for parent in found:
        try:
            for children in Path(f"/proc/{parent}/task").glob("*/children"):
                found.extend(int(child) for child in children.read_text().split())
        except OSError:
            pass
    return found


def process_cpu(pid):
    """Seconds on the CPU of all living threads of a tree, to the scheduler's nanosecond; those of a contender live throughout."""
    total = 0
    for member in process_tree(pid):
        for thread in Path(f"/proc/{member}/task").glob("*/schedstat"):
            try:
                total += int(thread.read_text().split()[0])
            except OSError:
                pass
    return total / 1e9


def busy_seconds(text):
    """Seconds of all CPUs together from the text of /proc/stat, all but idle, iowait, and what is counted twice or elsewhere."""
    user, nice, system, _idle, _iowait, irq, softirq = map(int, text.split("\n", 1)[0].split()[1:8])
    return (user + nice + system + irq + softirq) * TICK


def interface_counts(text):
    """Bytes and packets received from the text of /proc/PID/net/dev."""
    for line in text.splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == INTERFACE:
            fields = counts.split()
            return int(fields[0]), int(fields[1])
    raise Failure(f"no interface {INTERFACE} in /proc/PID/net/dev")


class Sampler(threading.Thread):
    """Looks at a process, the machine and the wire again and again, some hundred times in a run of `duration` seconds."""

    def __init__(self, pid, duration=0):
        super().__init__(daemon=True)
        self.pid = pid
        self.period = min(max(duration / 100, SAMPLES[0]), SAMPLES[1])
        self.samples = []
        self.peak_memory = 0
        self.done = threading.Event()

    def sample(self):
        received, packets = interface_counts(Path(f"/proc/{self.pid}/net/dev").read_text())
        busy = busy_seconds(Path("/proc/stat").read_text())
        return Sample(time.monotonic(), process_cpu(self.pid), busy, packets, received)

    def run(self):
        while not self.done.wait(self.period):
            try:
                self.samples.append(self.sample())
                self.peak_memory = max(self.peak_memory, peak_memory(self.pid))
            except OSError:
                return

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.join()


def peak_memory(pid):
    """Largest resident set so far, in bytes, of the processes of a tree together."""
    total = 0
    for member in process_tree(pid):
        for line in Path(f"/proc/{member}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                total += int(line.split()[1]) * 1024
    return total


def process_io(pid):
    """Write calls, and bytes that were made dirty, so far. io_uring's writes are bytes here, but not calls."""
    try:
        fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    except OSError:
        return {"write_calls": None, "dirtied_bytes": None}
    return {"write_calls": int(fields["syscw"]), "dirtied_bytes": int(fields["write_bytes"])}


def disk_writes(path):
    """Write requests completed and bytes written by the device below a directory, all processes together; None: no such device."""
    device = os.stat(path).st_dev
    for line in Path("/proc/diskstats").read_text().splitlines():
        fields = line.split()
        if (int(fields[0]), int(fields[1])) == (os.major(device), os.minor(device)):
            return int(fields[7]), int(fields[9]) * 512
    return None


def idle_rate(samples):
    """CPU seconds a second of a machine on which nothing of ours happens."""
    if len(samples) < 2:
        raise Failure("it ended before the load began")
    span = samples[-1].at - samples[0].at
    return (samples[-1].machine_busy - samples[0].machine_busy) / span


def steady(samples, rate):
    """First and last sample of the time in which all streams were sent: packets came at nine tenths of the rate or more. Where they
    never did, the middle four fifths of the packets, and False."""
    fast = []
    for before, after in zip(samples, samples[1:]):
        if after.packets - before.packets >= 0.9 * rate * (after.at - before.at):
            fast.append((before, after))
    if fast and fast[-1][1].at - fast[0][0].at >= 5 * SAMPLES[0]:
        return fast[0][0], fast[-1][1], True
    total = samples[-1].packets - samples[0].packets
    middle = [s for s in samples if 0.1 * total <= s.packets - samples[0].packets <= 0.9 * total]
    if len(middle) < 2 or middle[-1].packets == middle[0].packets:
        raise Failure("no packets came over the wire")
    return middle[0], middle[-1], False


def load_command(lab, directory, streams, duration, engine):
    """sipreel-load with two streams a call. All calls are set up within the first fifth of the duration of one."""
    calls = max(streams // 2, 1)
    rate = max(100.0, calls / (duration / 5))
    command = [directory / "sipreel-load", "--target", SIP, "--calls", calls, "--rate", f"{rate:.0f}"]
    command += ["--duration", duration, "--streams", 2, "--json"]
    if engine == "xdp":
        command += ["--engine", "xdp", "--xdp-interface", INTERFACE]
    return lab.inside("load", cpu(LOAD_CPU), *command)


def run_load(command, home, duration):
    """Runs it to its end and returns its report."""
    with Process("load", command, home) as load:
        try:
            load.child.wait(duration * 2 + 120)
        except subprocess.TimeoutExpired:
            raise Failure(f"the load did not end: {load.said()[-2000:]}") from None
        try:
            return json.loads(load.out.read_text())
        except ValueError:
            raise Failure(f"the load failed: {load.said()[-2000:].strip()}") from None


def sipreel_command(lab, directory, recordings, streams, kind, form):
    """One reactor on the recorder's core. `kind`: sockets, steered, xdp, or None for a build that has only sockets."""
    command = [directory / "sipreel", "record", "--cores", cpu(RECORDER_CPU), "--format", form]
    command += ["--sip-udp", SIP, "--sip-tcp", "none", "--media-ip", RECORDER_IP]
    command += ["--media-ports", f"{first_port(streams)}-{first_port(streams) + 2 * streams - 1}", "--dir", recordings / "recordings"]
    command += ["--stats-socket", recordings / "stats.sock", "--log-format", "json"]
    # Two streams a call: no more recordings, and no more memory for them.
    command += ["--max-sessions", str(max(1, streams // 2))]
    if kind is not None:
        command += ["--media-source-kind", kind]
    if kind == "xdp":
        command += ["--xdp-interface", INTERFACE]
    return lab.inside("recorder", cpu(RECORDER_CPU), *command)


def source_kinds(directory):
    """The kinds of media source that this build knows; None: it knows no other than sockets, and no flag."""
    done = subprocess.run([directory / "sipreel", "record", "--help"], capture_output=True, text=True)
    return ["sockets", "steered", "xdp"] if "--media-source-kind" in done.stdout else None


def machine():
    """What a reader of figures has to know of where they were made."""
    model = "unknown"
    flags = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            model = value.strip()
        if key.strip() == "flags":
            flags = value.split()
    memory = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "virtual": "hypervisor" in flags,
        "memory_bytes": memory,
        "kernel": os.uname().release,
        "commit": commit.stdout.strip() or "unknown",
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "load_average": os.getloadavg()[0],
    }

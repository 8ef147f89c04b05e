"""What perf/compare, perf/profile and perf/calls compute, on literal input: python3 -m unittest discover --start-directory perf"""

import importlib.util
import json
import tempfile
import unittest
import xml.dom.minidom
from importlib.machinery import SourceFileLoader
from pathlib import Path

import plot
import rig


def program(name):
    """A script without a suffix, as a module."""
    loader = SourceFileLoader(name, str(Path(__file__).parent / name))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    loader.exec_module(module)
    return module


compare, profile, calls = program("compare"), program("profile"), program("calls")


def samples(packets):
    """Ten a second; the process has a tenth of a CPU, the machine half of one."""
    return [rig.Sample(n / 10, n / 100, n / 20, count, count * 200) for n, count in enumerate(packets)]


class Proc(unittest.TestCase):
    def test_busy_is_all_but_idle_and_iowait(self):
        text = "cpu  100 20 30 4000 500 6 7 8 9 10\ncpu0 1 1 1 1 1 1 1 1 1 1\n"
        self.assertAlmostEqual(rig.busy_seconds(text), 163 * rig.TICK)

    def test_the_interface_is_found_by_its_name(self):
        text = "Inter-|   Receive\n face |bytes    packets\n    lo: 1 2 0\n  lab0: 3000 15 0 0\n"
        self.assertEqual(rig.interface_counts(text), (3000, 15))
        with self.assertRaises(rig.Failure):
            rig.interface_counts("    lo: 1 2\n")

    def test_this_process_has_used_the_cpu_and_memory(self):
        self.assertGreater(rig.process_cpu(rig.os.getpid()), 0)
        self.assertGreater(rig.peak_memory(rig.os.getpid()), 1 << 20)


class Calls(unittest.TestCase):
    def row(self, **changed):
        row = {"problems": [], "placed": 100, "calls": 100, "failed": 0, "retransmissions": 0, "whole": 100, "asked_rate": 10, "rate": 10.0}
        return {**row, "setup_ms": {"p99": 5.0}, **changed}

    def test_quantiles_are_values_that_were_there(self):
        values = list(range(1, 201))
        self.assertEqual([calls.quantile(values, share) for share in (50, 99, 100)], [100, 198, 200])
        self.assertEqual((calls.quantile([7], 1), calls.quantile([], 50)), (7, None))

    def test_a_rate_is_good_when_nothing_is_wrong_with_it(self):
        self.assertEqual(calls.judged(self.row()), [])
        self.assertEqual(calls.judged(self.row(whole=None)), [])
        wrong = [{"failed": 1}, {"whole": 99}, {"retransmissions": 1}, {"rate": 9.0}, {"placed": 90}, {"setup_ms": {"p99": 20.0}}]
        for changed in wrong:
            self.assertEqual(len(calls.judged(self.row(**changed))), 1, changed)

    def test_a_recording_is_whole_when_its_manifest_is_right(self):
        with tempfile.TemporaryDirectory() as home:
            directory = Path(home)
            (directory / "call.pcap").write_bytes(b"abc")
            sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
            manifest = {"end_cause": "bye", "problems": [], "streams": [{}, {}]}
            manifest["files"] = [{"name": "call.pcap", "size": 3, "sha256": sha256}]
            (directory / "recording.json").write_text(json.dumps(manifest))
            self.assertIsNone(calls.check_recording(directory))
            (directory / "call.pcap").write_bytes(b"abd")
            self.assertIn("call.pcap", calls.check_recording(directory))
            (directory / "call.pcap").write_bytes(b"abc")
            (directory / "more").touch()
            self.assertIn("does not name", calls.check_recording(directory))


class Window(unittest.TestCase):
    def test_ramps_are_outside(self):
        packets = [0, 0, 30, 90] + [90 + 100 * n for n in range(1, 11)] + [1_110, 1_120]
        first, last, is_steady = rig.steady(samples(packets), 1_000)
        self.assertTrue(is_steady)
        self.assertEqual((first.packets, last.packets), (90, 1_090))

    def test_a_rate_that_is_never_reached_is_told(self):
        first, last, is_steady = rig.steady(samples([50 * n for n in range(21)]), 1_000)
        self.assertFalse(is_steady)
        self.assertEqual((first.packets, last.packets), (100, 900))

    def test_silence_is_a_failure(self):
        with self.assertRaises(rig.Failure):
            rig.steady(samples([5] * 20), 1_000)

    def test_figures_are_of_the_window_and_above_idle(self):
        sampler = rig.Sampler(1)
        sampler.samples = samples([100 * n for n in range(21)])
        figures = compare.figures(sampler, 0.1, 1_000)
        self.assertAlmostEqual(figures["process_ns"], 1e8 / 1_000)
        self.assertAlmostEqual(figures["machine_ns"], 4e8 / 1_000)
        self.assertIsNone(compare.figures(sampler, rig.os.cpu_count() / 2, 1_000)["machine_ns"])


def row(name, lost, process=1_000.0, machine=2_000.0):
    return {"name": name, "lost": lost, "sent": 1_000, "process_ns": process, "machine_ns": machine, "problems": [], "counted": "files"}


class Verdict(unittest.TestCase):
    def test_every_sipreel_that_was_asked_for_has_to_lose_nothing(self):
        sockets = compare.Sipreel("sockets", "pcap", "flag")
        asked = [sockets, compare.Tcpdump()]
        self.assertTrue(compare.passed([row("sipreel-sockets", 0), row("tcpdump", 5)], asked, {}, {}))
        self.assertFalse(compare.passed([row("sipreel-sockets", 1)], asked, {}, {}))
        self.assertFalse(compare.passed([row("sipreel-sockets", 0)], asked, {"sipreel-sockets": "?"}, {}))
        self.assertFalse(compare.passed([], asked, {}, {"sipreel-sockets": ["?"]}))
        self.assertFalse(compare.passed([row("sipreel-sockets", 0) | {"problems": ["?"]}], asked, {}, {}))

    def test_a_build_without_the_flag_has_sockets_only(self):
        absent = compare.present(compare.contenders(None))[1]
        self.assertNotIn("sipreel-sockets", absent)
        self.assertIn("sipreel-xdp-raw", absent)
        self.assertFalse([name for name in compare.present(compare.contenders(["sockets", "steered", "xdp"]))[1] if "sipreel" in name])


class Plots(unittest.TestCase):
    def test_bars_are_as_long_as_their_figures(self):
        svg = plot.bars([row("tcpdump", 3, 500.0), row("sipreel-xdp", 0, 250.0, None), row("nobody", None)], "<t>", "w")
        document = xml.dom.minidom.parseString(svg)
        widths = [float(r.getAttribute("width")) for r in document.getElementsByTagName("rect") if r.getAttribute("height") == "18"]
        self.assertAlmostEqual(widths[1], 2 * widths[0], 1)
        self.assertIn("3 lost (0.30%)", svg)

    def test_ticks_are_round(self):
        self.assertEqual([plot.step(n) for n in (7, 9, 900, 5_000)], [1, 2, 200, 1_000])

    def test_frames_are_as_wide_as_their_share(self):
        svg = plot.flame({("thread a", "f", "g_[k]"): 3, ("thread a", "h"): 1}, "t", "w", "samples")
        widths = {}
        for group in xml.dom.minidom.parseString(svg).getElementsByTagName("g"):
            title = group.getElementsByTagName("title")[0].firstChild.data
            widths[title] = float(group.getElementsByTagName("rect")[0].getAttribute("width"))
        self.assertAlmostEqual(widths["g: 3 samples, 75.0%"], 3 * widths["h: 1 samples, 25.0%"], 1)
        self.assertAlmostEqual(widths["all: 4 samples, 100.0%"], plot.FLAME_WIDTH - 24)


ON = """reactor-0 77 12.5:    1001001 cpu-clock:ppp: 
\tffffffff81000001 udp_recvmsg+0x1f ([kernel.kallsyms])
\t          5641aa sipreel::engine::reactor::Reactor::run::h0123456789abcdef+0x3 (/x/sipreel)
\t          5641ab std::sys::backtrace::__rust_begin_short_backtrace+0x3 (/x/sipreel)
\t          5641ac clone3+0x3 (/lib/libc.so.6)

reactor-0 77 12.6:    1001001 cpu-clock:ppp: 
\tffffffff81000001 udp_recvmsg+0x2a ([kernel.kallsyms])
\t          5641aa sipreel::engine::reactor::Reactor::run::h0123456789abcdef+0x9 (/x/sipreel)
\t          5641ab std::sys::backtrace::__rust_begin_short_backtrace+0x3 (/x/sipreel)

iou-wrk-2077 2078 12.7:    1001001 cpu-clock:ppp: 
\tffffffff81000001 io_write+0x1 ([kernel.kallsyms])
\t               0 [unknown] ([unknown])

"""
OFF = """reactor-0 77/77 [001] 12.000100: sched:sched_switch: prev_comm=reactor-0 prev_state=S ==> next_comm=x
\tffffffff81000001 __schedule+0x1 ([kernel.kallsyms])
\tffffffff81000001 io_schedule_timeout+0x1 ([kernel.kallsyms])
\tffffffff81000001 io_cqring_wait+0x1 ([kernel.kallsyms])

reactor-0 77/77 [001] 12.000101: PERF_RECORD_SWITCH OUT
reactor-0 77/77 [001] 12.000400: PERF_RECORD_SWITCH IN
reactor-0 77/77 [001] 12.000500: sched:sched_switch: prev_comm=reactor-0 prev_state=R+ ==> next_comm=x
\tffffffff81000001 __schedule+0x1 ([kernel.kallsyms])
\tffffffff81000001 exc_page_fault+0x1 ([kernel.kallsyms])

reactor-0 77/77 [001] 12.000550: PERF_RECORD_SWITCH IN
"""


class Folding(unittest.TestCase):
    def test_samples_of_one_stack_are_one(self):
        run = "sipreel::engine::reactor::Reactor::run"
        expected = {("thread reactor-0", run, "udp_recvmsg_[k]"): 2, ("thread iou-wrk", "[unknown]", "io_write_[k]"): 1}
        self.assertEqual(dict(profile.fold_on_cpu(ON)), expected)

    def test_time_off_the_cpu_is_from_switch_to_switch(self):
        waits = ("thread reactor-0", "io_cqring_wait_[k]")
        preempted = ("thread reactor-0", "exc_page_fault_[k]", "(preempted)")
        self.assertEqual(dict(profile.fold_off_cpu(OFF)), {waits: 300, preempted: 50})


if __name__ == "__main__":
    unittest.main()

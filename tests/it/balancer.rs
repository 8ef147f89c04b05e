//! Kamailio as a balancer in front of two recorders (tests/fixtures/kamailio): one dies in the middle of a run, one is drained.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};

use serde_json::Value;
use tempfile::TempDir;

use crate::load::{sipreel_load, verify};
use crate::peers;
use crate::recorder::{Recorder, Setup, eventually, number};
use crate::sipp::free_port;

struct Balancer {
    child: Child,
    home: TempDir,
    address: SocketAddr,
}

impl Balancer {
    fn start(recorders: [&Recorder; 2]) -> Balancer {
        let home = tempfile::tempdir().unwrap();
        let ip = recorders[0].udp.ip();
        let address = SocketAddr::new(ip, free_port(ip));
        let list = recorders.map(|recorder| format!("1 sip:{}\n", recorder.udp)).concat();
        let file = |name: &str, text: &str| {
            let path = home.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        file("dispatcher.list", &list);
        let config = include_str!("../fixtures/kamailio/dispatcher.cfg")
            .replace("LISTEN", &address.to_string())
            .replace("DIRECTORY", home.path().to_str().unwrap());
        let config = file("kamailio.cfg", &config);
        let child = Command::new("kamailio")
            .args(["-DD", "-m", "64", "-M", "8", "-f"])
            .arg(config)
            .args(["-P".as_ref(), home.path().join("pid").as_os_str()])
            .args(["-Y".as_ref(), home.path().as_os_str()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(home.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let balancer = Balancer { child, home, address };
        for recorder in recorders {
            recorder.stats_when("the balancer asks whether there is room", |stats| options(stats) > 0);
        }
        balancer
    }

    /// A run of calls through it, in the background: exit code and report.
    fn calls(&self, calls: u32, rate: u32, seconds: u32, seed: u32) -> JoinHandle<(Option<i32>, Value)> {
        let arguments = [
            ("--target", self.address.to_string()),
            ("--calls", calls.to_string()),
            ("--rate", rate.to_string()),
            ("--duration", seconds.to_string()),
            ("--seed", seed.to_string()),
        ];
        thread::spawn(move || {
            let arguments: Vec<&str> =
                arguments.iter().flat_map(|(name, value)| [*name, value.as_str()]).collect();
            sipreel_load(&arguments)
        })
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        // It ends its children too, which a kill would not.
        let pid = self.child.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("kamailio: {}", fs::read_to_string(self.home.path().join("log")).unwrap_or_default());
        }
    }
}

fn options(stats: &Value) -> u64 {
    number(&stats["sip"]["requests"], "OPTIONS")
}

fn total(recorder: &Recorder) -> u64 {
    number(&recorder.stats()["sessions"], "total")
}

/// Every recording of this directory is proved packet by packet. What its runs lack is with the other recorder.
#[track_caller]
fn all_whole(recorder: &Recorder, recordings: usize) {
    for recording in recorder.committed(recordings) {
        recording.check_whole();
    }
    let (_, report) = verify(recorder);
    assert_eq!(number(&report, "recordings"), recordings as u64, "{report:#}");
    let elsewhere = number(&report, "calls_without_recording");
    assert_eq!(number(&report, "findings_total"), elsewhere, "{report:#}");
}

fn ready() -> bool {
    peers::installed(&["kamailio"]) && Path::new("/dev/shm").exists()
}

#[test]
fn when_one_recorder_dies_the_other_takes_the_calls() {
    if !ready() {
        return;
    }
    let (mut mortal, mut other) = (Setup::new().pairs(160).start(), Setup::new().pairs(160).start());
    let balancer = Balancer::start([&mortal, &other]);
    let run = balancer.calls(60, 30, 2, 1);
    eventually("calls are up at both", || (total(&mortal) >= 10 && total(&other) >= 10).then_some(()));
    let before = total(&mortal);
    mortal.signal("KILL");
    mortal.exit();
    let (_, report) = run.join().unwrap();

    // No call was refused, whatever the recorder that it met first; those of the dead one have nobody to answer their BYE.
    let calls = &report["calls"];
    assert_eq!(number(calls, "established"), 60, "{report:#}");
    let lost = mortal.parts().len() + mortal.recordings().len();
    assert!(
        lost as u64 >= before && lost < 40,
        "{before} calls were up at the dead recorder, {lost} left there"
    );
    let kept = total(&other);
    assert!(kept + lost as u64 >= 60 && kept >= 30, "{kept} calls at the other, {lost} at the dead one");
    let failures = calls["failures"].as_object().unwrap();
    assert!(failures.keys().all(|cause| cause.starts_with("bye_")), "{failures:?}");
    all_whole(&other, kept as usize);
    other.stop();
}

#[test]
fn a_recorder_that_drains_gets_no_new_calls_and_keeps_its_own() {
    if !ready() {
        return;
    }
    let mut leaving = Setup::new().flag("--drain-timeout", "8s").start();
    let mut staying = Setup::new().start();
    let balancer = Balancer::start([&leaving, &staying]);
    let first = balancer.calls(8, 50, 6, 1);
    eventually("calls are up at both", || (total(&leaving) + total(&staying) == 8).then_some(()));
    let (own, before) = (total(&leaving), total(&staying));
    assert_eq!((own, before), (4, 4));
    leaving.signal("TERM");
    leaving.logged("draining");
    let told = |stats: &Value| stats["sip"]["responses"]["503"].as_u64().unwrap_or(0) > 0;
    leaving.stats_when("OPTIONS are answered 503", told);

    let (code, report) = balancer.calls(10, 50, 1, 2).join().unwrap();
    assert_eq!(code, Some(0), "{report:#}");
    assert_eq!((total(&leaving), total(&staying)), (own, before + 10));
    let (code, report) = first.join().unwrap();
    assert_eq!(code, Some(0), "{report:#}");
    assert_eq!(leaving.exit().code(), Some(0), "{:?}", leaving.log());
    all_whole(&leaving, 4);
    all_whole(&staying, 14);
    for recording in leaving.recordings() {
        assert_eq!(recording.manifest["end_cause"], "bye");
    }
    staying.stop();
}

//! Callbacks: a real receiver, good, bad, late or gone, and calls that must not notice.

use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::peers;
use crate::receiver::{Authority, Manner, Receiver, Request};
use crate::recorder::{Recorder, Setup, eventually, number};
use crate::src::{Call, two_streams};

const SECRET: &str = "a secret of twenty bytes";

/// What outlives a recorder: its secret and its queue.
struct Place(TempDir);

impl Place {
    fn new() -> Place {
        let place = Place(TempDir::new().unwrap());
        fs::write(place.secret(), format!("{SECRET}\n")).unwrap();
        place
    }

    fn secret(&self) -> PathBuf {
        self.0.path().join("secret")
    }

    fn queue(&self) -> PathBuf {
        self.0.path().join("queue")
    }

    fn setup(&self, urls: &[String]) -> Setup {
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        let setup = Setup::new()
            .flag("--callback-secret-file", &text(self.secret()))
            .flag("--callback-queue", &text(self.queue()));
        urls.iter().fold(setup, |setup, url| setup.flag("--callback", url))
    }
}

/// One call, from INVITE to its recording.
fn call(recorder: &Recorder) {
    let before = recorder.recordings().len();
    let mut call = Call::udp(recorder.udp);
    call.establish();
    call.hang_up();
    recorder.committed(before + 1);
}

fn reoffer(call: &mut Call, attributes: &'static str) {
    call.cseq += 1;
    call.lines = two_streams();
    call.lines.iter_mut().for_each(|line| line.attributes = attributes);
    assert_eq!(call.invite().code(), 200);
    call.ack();
}

/// The command of the README, as a receiver would run it.
fn verify(request: &Request, place: &Path) {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let command = readme.lines().find(|line| line.contains("openssl dgst")).unwrap();
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("body.json"), &request.body).unwrap();
    fs::copy(place, dir.path().join("secret")).unwrap();
    let output = peers::output(
        Command::new("sh").args(["-c", command]).env("signature", &request.signature).current_dir(dir.path()),
    );
    let made = output.trim();
    assert_eq!(made.len(), "v1=".len() + 64, "{output}");
    assert!(request.signature.split(',').any(|part| part == made), "{made} is not in {}", request.signature);
}

fn endpoint(stats: &Value, url: &str) -> Value {
    let endpoints = stats["callbacks"]["endpoints"].as_array().unwrap();
    endpoints.iter().find(|endpoint| endpoint["url"] == url).unwrap().clone()
}

#[test]
fn the_events_of_a_call_in_their_order() {
    let (receiver, place) = (Receiver::start(Manner::Take), Place::new());
    let url = receiver.url("/events?key=k");
    let setup = place.setup(std::slice::from_ref(&url)).flag("--resource-id", "rec-1").flag("--region", "eu");
    let mut recorder = setup.start();
    let mut call = Call::tcp(recorder.tcp);
    call.establish();
    reoffer(&mut call, "a=rtpmap:0 PCMU/8000\r\na=inactive\r\n");
    reoffer(&mut call, "a=rtpmap:0 PCMU/8000\r\na=sendonly\r\n");
    call.hang_up();
    receiver.when("recording.whole", 1);
    let names = receiver.names();
    let states: Vec<&String> = names.iter().filter(|name| *name != "session.updated").collect();
    let wanted = ["session.started", "session.paused", "session.resumed", "session.ended", "recording.whole"];
    assert_eq!(states, wanted, "{names:?}");

    let recording = recorder.recording();
    let requests = receiver.requests();
    let ids: BTreeSet<&str> = requests.iter().map(|request| request.event["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), requests.len(), "no id twice");
    for request in &requests {
        let Request { target, content_type, event, .. } = request;
        assert_eq!(
            (target.as_str(), content_type.as_str()),
            ("/events?key=k", "application/cloudevents+json; charset=utf-8")
        );
        assert_eq!(
            (&event["specversion"], &event["datacontenttype"]),
            (&"1.0".into(), &"application/json".into())
        );
        assert_eq!((&event["source"], &event["region"]), (&"rec-1".into(), &"eu".into()));
        if request.name() != "alarm" {
            assert_eq!(event["subject"], recording.manifest["id"]);
            assert_eq!(event["data"]["recording"], event["subject"]);
        }
        if request.name().starts_with("session.") {
            assert_eq!(event["data"]["call_id"], call.call_id);
        }
        if peers::installed(&["openssl", "sh"]) {
            verify(request, &place.secret());
        }
    }
    let whole = requests.iter().find(|request| request.name() == "recording.whole").unwrap();
    let path = recorder.dir().join(whole.event["data"]["path"].as_str().unwrap());
    assert!(path.join("recording.json").is_file(), "{}", path.display());

    let shown = receiver.url("/events");
    let stats = recorder.stats_when("all is delivered", |stats| {
        let figures = endpoint(stats, &shown);
        figures["queued"] == 0 && figures["delivered"] == stats["callbacks"]["events"]
    });
    let figures = endpoint(&stats, &shown);
    assert_eq!((&figures["retried"], &figures["failed_total"]), (&0.into(), &0.into()));
    assert_eq!((&figures["dropped"], &stats["callbacks"]["overflow"]), (&0.into(), &0.into()));
    recorder.stop();
    let last = receiver.requests().pop().unwrap();
    assert_eq!(
        (&last.event["data"]["alarm"], &last.event["data"]["state"]),
        (&"draining".into(), &"raised".into())
    );
}

/// An address of which nobody answers.
fn nowhere() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// The events of so many calls, each in its order; between calls there is none.
#[track_caller]
fn each_in_order(receiver: &Receiver, calls: usize) {
    let requests = receiver.requests();
    let subjects: BTreeSet<&str> =
        requests.iter().filter_map(|request| request.event["subject"].as_str()).collect();
    assert_eq!(subjects.len(), calls);
    for subject in subjects {
        let events: Vec<&Request> =
            requests.iter().filter(|request| request.event["subject"] == subject).collect();
        let names: Vec<String> = events.iter().map(|request| request.name()).collect();
        assert_eq!(names, ["session.started", "session.ended", "recording.whole"], "{subject}");
        let sequences = events.iter().map(|request| request.event["sequence"].as_str().unwrap());
        assert!(sequences.is_sorted(), "{subject}");
    }
}

/// The recorder is killed, or ends in good order, before anybody has taken an event; the next one delivers all of them.
#[test]
fn events_survive_the_recorder_and_wait_for_the_receiver() {
    for signal in ["KILL", "TERM"] {
        let (address, place) = (nowhere(), Place::new());
        let url = format!("http://{address}/x");
        let mut first = place.setup(std::slice::from_ref(&url)).start();
        call(&first);
        first.stats_when("it cannot be delivered", |stats| {
            let figures = endpoint(stats, &url);
            number(&figures["failed"], "connection") > 0 && number(&figures, "queued") >= 4
        });
        first.signal(signal);
        first.exit();

        let receiver = Receiver::at(address);
        let mut second = place.setup(std::slice::from_ref(&url)).start();
        call(&second);
        receiver.when("recording.whole", 2);
        each_in_order(&receiver, 2);
        second.stop();
    }
}

#[test]
fn a_receiver_that_was_down_gets_everything_when_it_is_up() {
    let (address, place) = (nowhere(), Place::new());
    let url = format!("http://{address}/x");
    let mut recorder = place.setup(std::slice::from_ref(&url)).start();
    for _ in 0..3 {
        call(&recorder);
    }
    recorder.stats_when("attempts fail", |stats| number(&endpoint(stats, &url), "retried") > 0);
    let receiver = Receiver::at(address);
    receiver.when("recording.whole", 3);
    each_in_order(&receiver, 3);
    let stats = recorder.stats();
    assert_eq!(endpoint(&stats, &url)["dropped"], 0);
    recorder.stop();
}

/// Each is bad in its own way; the good one beside them and the calls do not notice.
#[test]
fn bad_receivers_hurt_nobody_else() {
    let place = Place::new();
    let (good, elsewhere) = (Receiver::start(Manner::Take), Receiver::start(Manner::Take));
    let manners = [
        (Manner::Hang, None),
        (Manner::Garbage, Some("protocol")),
        (Manner::Status(500), Some("server_error")),
        (Manner::Status(410), Some("gone")),
        (Manner::Redirect(elsewhere.url("/taken")), Some("redirect")),
        (Manner::Break, Some("connection")),
    ];
    let bad: Vec<(Receiver, Option<&str>)> =
        manners.into_iter().map(|(manner, cause)| (Receiver::start(manner), cause)).collect();
    let huge = Receiver::start(Manner::Huge);
    let mut urls: Vec<String> = bad.iter().map(|(receiver, _)| receiver.url("/x")).collect();
    urls.extend([good.url("/x"), huge.url("/x")]);
    let recorder = place.setup(&urls).start();
    for _ in 0..10 {
        call(&recorder);
    }
    good.when("recording.whole", 10);
    huge.when("recording.whole", 10);
    for (receiver, cause) in &bad {
        let Some(cause) = cause else { continue };
        let stats = recorder.stats_when(cause, |stats| {
            let figures = endpoint(stats, &receiver.url("/x"));
            figures["failed"][*cause].as_u64().unwrap() > 0
        });
        let figures = endpoint(&stats, &receiver.url("/x"));
        assert_eq!(figures["failed"][*cause], figures["failed_total"], "{figures}");
        assert_eq!(figures["delivered"], 0);
        assert!(number(&figures, "queued") > 0 && figures["failing"].is_string(), "{figures}");
    }
    assert!(elsewhere.requests().is_empty(), "a redirect is not followed");
    let stats = recorder.stats();
    assert_eq!(endpoint(&stats, &huge.url("/x"))["failed_total"], 0);
    assert!(number(&stats["setup_ns"], "max") < 2_000_000_000, "{}", stats["setup_ns"]);

    // What they did not take they get when they are mended.
    for (receiver, cause) in &bad {
        if matches!(cause, Some("server_error" | "redirect" | "protocol" | "connection")) {
            receiver.behave(Manner::Take);
        }
    }
    for (receiver, cause) in &bad {
        if matches!(cause, Some("server_error" | "redirect" | "protocol" | "connection")) {
            eventually("all is delivered", || {
                let figures = endpoint(&recorder.stats(), &receiver.url("/x"));
                (figures["queued"] == 0).then_some(())
            });
        }
    }
}

#[test]
fn https_with_an_authority_of_our_own() {
    let place = Place::new();
    let (known, unknown) = (Authority::new(), Authority::new());
    let (trusted, stranger) = (Receiver::tls(&known), Receiver::tls(&unknown));
    let ca = place.0.path().join("ca.pem");
    fs::write(&ca, &known.certificate).unwrap();
    let urls = [
        format!("https://localhost:{}/x", trusted.address.port()),
        format!("https://{}/x", stranger.address),
    ];
    let mut recorder = place.setup(&urls).flag("--callback-ca", ca.to_str().unwrap()).start();
    call(&recorder);
    trusted.when("recording.whole", 1);
    recorder.stats_when("the certificate of a stranger is refused", |stats| {
        number(&endpoint(stats, &urls[1])["failed"], "tls") > 0
    });
    assert!(stranger.requests().is_empty());
    recorder.stop();
}

#[test]
fn alarms_are_raised_and_shown() {
    let (receiver, place) = (Receiver::start(Manner::Take), Place::new());
    let url = receiver.url("/x");
    let mut recorder = place.setup(std::slice::from_ref(&url)).flag("--max-sessions", "1").start();
    let mut first = Call::udp(recorder.udp);
    first.establish();
    let mut second = Call::udp(recorder.udp);
    assert!(second.invite().code() >= 400);
    let alarm = eventually("the alarm", || {
        let requests = receiver.requests();
        requests.into_iter().find(|request| request.event["data"]["alarm"] == "no_room")
    });
    assert_eq!((&alarm.event["data"]["state"], &alarm.event["data"]["count"]), (&"raised".into(), &1.into()));
    let raised = &recorder.stats()["alarms"][0];
    assert_eq!((&raised["alarm"], &raised["count"]), (&"no_room".into(), &1.into()));
    first.hang_up();
    recorder.stop();
}

#[test]
fn two_recorders_do_not_share_a_queue() {
    let (receiver, place) = (Receiver::start(Manner::Take), Place::new());
    let url = receiver.url("/x");
    let mut first = place.setup(std::slice::from_ref(&url)).start();
    let (code, sentence) = place.setup(std::slice::from_ref(&url)).refused();
    assert_eq!(code, Some(2));
    assert!(sentence.starts_with("--callback-queue "), "{sentence}");
    first.stop();
}

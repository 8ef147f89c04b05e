//! What is refused, with which code and which field: SIPp asks for what cannot be had.

use std::thread;

use crate::peers;
use crate::recorder::{Recorder, Setup, number};
use crate::scenario::Scenario;
use crate::sipp::Sipp;
use crate::vendor::{Body, Offerer, TEMPLATES, Template};

fn rfc7866() -> &'static Template {
    &TEMPLATES[0]
}

fn offer() -> Body {
    Offerer::new(rfc7866()).first()
}

fn plain_sdp() -> Body {
    ("application/sdp".to_owned(), Offerer::new(rfc7866()).sdp())
}

/// An INVITE that is changed so, its refusal, and the ACK of that.
fn invite(body: Body, change: impl FnOnce(String) -> String, code: u16, patterns: &[&str]) -> Scenario {
    let mut scenario = Scenario::new(rfc7866());
    scenario.send_as("INVITE", Some(body), change).expect(code, patterns).ack(false);
    scenario
}

/// A request other than INVITE, outside of a dialog.
fn request(method: &str, code: u16, patterns: &[&str]) -> Scenario {
    let mut scenario = Scenario::new(rfc7866());
    scenario.send(method, None).expect(code, patterns);
    scenario
}

fn after(line: &str) -> impl FnOnce(String) -> String {
    let line = format!("\n{line}\nCall-ID:");
    move |text| text.replacen("\nCall-ID:", &line, 1)
}

fn uri(uri: &str) -> impl FnOnce(String) -> String {
    let start = format!("INVITE {uri} SIP/2.0\n");
    move |text| start + text.split_once('\n').unwrap().1
}

/// Each refusal by its name, and whether it is one on UDP and on TCP.
fn refusals() -> Vec<(&'static str, Scenario)> {
    let none = |text: String| text;
    let srtp = ("application/sdp".to_owned(), plain_sdp().1.replace("RTP/AVP", "RTP/SAVP"));
    let image = ("image/png".to_owned(), "no image".to_owned());
    let mut list = vec![
        ("400-multipart", invite(("multipart/mixed".to_owned(), "--x".to_owned()), none, 400, &[])),
        (
            "403",
            invite(
                plain_sdp(),
                |text| text.replace("Require: siprec\n", "").replace(";+sip.src", ""),
                403,
                &["Warning: 399 "],
            ),
        ),
        ("405", request("SUBSCRIBE", 405, &["Allow: .*INVITE.*BYE"])),
        ("415-type", invite(image, none, 415, &["Accept: .*application/sdp"])),
        (
            "415-encoding",
            invite(offer(), after("Content-Encoding: gzip"), 415, &["Accept-Encoding: identity"]),
        ),
        ("416", invite(offer(), uri("http://recorder.example"), 416, &[])),
        ("420", invite(offer(), after("Require: holography"), 420, &["Unsupported: holography"])),
        ("422", invite(offer(), after("Supported: timer\nSession-Expires: 60"), 422, &["Min-SE: 90"])),
        ("481-bye", request("BYE", 481, &[])),
        ("481-cancel", request("CANCEL", 481, &[])),
        ("488-srtp", invite(srtp, none, 488, &["Warning: 305 "])),
        ("501", request("FROBNICATE", 501, &["Allow: .*INVITE"])),
        ("505", invite(offer(), |text| text.replacen(" SIP/2.0\n", " SIP/3.0\n", 1), 505, &[])),
    ];
    list.extend(in_dialogs());
    list
}

/// Refusals within a recording that goes on.
fn in_dialogs() -> Vec<(&'static str, Scenario)> {
    let established = || {
        let mut scenario = Scenario::new(rfc7866());
        scenario.cseq(10).establish(offer(), &[]);
        scenario
    };
    let mut low = established();
    low.cseq(5).send("OPTIONS", None).expect(500, &[]).cseq(20).bye(None);
    let mut bad_offer = established();
    let srtp = ("application/sdp".to_owned(), plain_sdp().1.replace("RTP/AVP", "RTP/SAVP"));
    bad_offer.send("INVITE", Some(srtp)).expect(488, &["Warning: "]).ack(false).bye(None);
    let mut extension = established();
    extension.send_as("UPDATE", None, after("Require: holography")).expect(420, &["Unsupported"]).bye(None);
    vec![("500-cseq", low), ("488-reinvite", bad_offer), ("420-update", extension)]
}

fn run(recorder: &Recorder, name: &str, scenario: &Scenario, tcp: bool) {
    let path = recorder.home().join(format!("{name}.xml"));
    std::fs::write(&path, scenario.finish()).unwrap();
    Sipp::start_file(recorder, name, &path, tcp, 1).finish();
}

fn every_refusal(tcp: bool) {
    if !peers::installed(&["sipp"]) {
        return;
    }
    let mut recorder = Setup::new().start();
    let list = refusals();
    thread::scope(|scope| {
        for (name, scenario) in &list {
            let recorder = &recorder;
            scope.spawn(move || run(recorder, name, scenario, tcp));
        }
    });
    // The dialogs in which something was refused were recorded to their end.
    for recording in recorder.committed(in_dialogs().len()) {
        recording.check_whole();
        assert_eq!(recording.manifest["end_cause"], "bye");
    }
    let stats = recorder.pool_whole();
    let refused = |text: &String| text.contains("\nINVITE ") && !text.contains("response=\"200\"");
    let refused = list.iter().map(|(_, scenario)| scenario.finish()).filter(refused).count();
    assert_eq!(number(&stats["sessions"], "refused_total"), refused as u64);
    recorder.stop();
}

#[test]
fn every_refusal_over_udp() {
    every_refusal(false);
}

#[test]
fn every_refusal_over_tcp() {
    every_refusal(true);
}

/// 503 with Retry-After: no slot, and when that is free again a recording.
#[test]
fn a_full_recorder_says_when_to_come_back() {
    if !peers::installed(&["sipp"]) {
        return;
    }
    let mut recorder = Setup::new().flag("--max-sessions", "1").start();
    let mut held = crate::src::Call::udp(recorder.udp);
    held.establish();
    let scenario = invite(offer(), |text| text, 503, &["Retry-After: [0-9]+"]);
    run(&recorder, "503-full", &scenario, false);
    let options = {
        let mut scenario = Scenario::new(rfc7866());
        scenario.send("OPTIONS", None).expect(503, &["Retry-After: [0-9]+"]);
        scenario
    };
    run(&recorder, "503-options", &options, false);
    assert_eq!(number(&recorder.stats()["sessions"]["refused"], "max_sessions"), 1);
    held.hang_up();
    recorder.recording().check_whole();
    recorder.stop();
}

//! SIPp in the manner of the vendors: each opens a recording, changes it as its kind does, and ends it.

use std::thread;

use crate::peers;
use crate::recorder::{Recorder, Setup, number};
use crate::scenario::Scenario;
use crate::sipp::Sipp;
use crate::vendor::{Change, Offerer, TEMPLATES, Template};

/// A call of this SRC, and how many metadata bodies it has brought at its end.
fn scenario(template: &'static Template) -> (String, usize) {
    let mut offerer = Offerer::new(template);
    let mut scenario = Scenario::new(template);
    scenario.establish(offerer.first(), &["\\+sip\\.srs", "a=(recvonly|inactive)"]);
    let mut bodies = 1;
    for change in template.profile.changes {
        let (method, body) = offerer.change(*change);
        let metadata = body.as_ref().is_some_and(|(_, text)| text.contains("<recording"));
        bodies += usize::from(metadata);
        // Media that is offered is answered, whatever the request.
        let answer =
            matches!(method, "INVITE") || *change == Change::UpdateSdp || *change == Change::UpdateLines;
        scenario.send(method, body).expect(200, if answer { &["m=audio [0-9]+ RTP/AVP"] } else { &[] });
        if method == "INVITE" {
            scenario.ack(true);
        }
    }
    let farewell = offerer.farewell();
    bodies += usize::from(farewell.is_some());
    scenario.bye(farewell);
    (scenario.finish(), bodies)
}

fn call(recorder: &Recorder, template: &'static Template, tcp: bool) {
    let (text, _) = scenario(template);
    let name = template.profile.name;
    let path = recorder.home().join(format!("{name}.xml"));
    std::fs::write(&path, text).unwrap();
    Sipp::start_file(recorder, name, &path, tcp, 1).finish();
}

fn every_profile(tcp: bool) {
    if !peers::installed(&["sipp"]) {
        return;
    }
    let mut recorder = Setup::new().pairs(96).start();
    thread::scope(|scope| {
        for template in TEMPLATES.iter() {
            let recorder = &recorder;
            scope.spawn(move || call(recorder, template, tcp));
        }
    });
    let recordings = recorder.committed(TEMPLATES.len());
    for template in TEMPLATES.iter() {
        let name = template.profile.name;
        let user_agent = |recording: &&crate::recording::Recording| {
            recording.manifest["sip"]["call_id"].as_str().is_some_and(|id| id.starts_with(name))
        };
        let found: Vec<_> = recordings.iter().filter(user_agent).collect();
        let [recording] = found[..] else { panic!("{} recordings of {name}", found.len()) };
        recording.check_whole();
        let manifest = &recording.manifest;
        let bodies = scenario(template).1;
        assert_eq!(manifest["metadata"].as_array().unwrap().len(), bodies, "{name}");
        assert_eq!(manifest["metadata"][0]["understood"], true, "{name}");
        assert_ne!(manifest["participants"], serde_json::json!([]), "{name}");
        assert_eq!(manifest["end_cause"], "bye", "{name}");
        assert_eq!(manifest["sip"]["transport"], if tcp { "tcp" } else { "udp" }, "{name}");
        let streams = manifest["streams"].as_array().unwrap();
        let adds = template.profile.changes.iter();
        let added = adds.filter(|change| matches!(change, Change::AddLine | Change::UpdateLines)).count();
        assert!(streams.len() > added, "{name}: {} streams, {added} of them added", streams.len());
    }
    let stats = recorder.pool_whole();
    assert_eq!(number(&stats["sessions"], "refused_total"), 0);
    recorder.stop();
}

#[test]
fn every_profile_over_udp() {
    every_profile(false);
}

#[test]
fn every_profile_over_tcp() {
    every_profile(true);
}

//! Reading and merging.

use super::reader::{DRAFT_NAMESPACES, NAMESPACE};
use super::*;
use crate::limits::{METADATA_AORS_MAX, METADATA_ATTRIBUTES_MAX, METADATA_DEPTH_MAX};
use crate::proto::fixtures::{invite, invites};
use proptest::prelude::*;
use std::time::{Duration, Instant};

const RFC7865_PARTIAL: &[u8] = include_bytes!("../../../tests/fixtures/metadata/rfc7865-partial.xml");
const AVAYA_UPDATE: &[u8] = include_bytes!("../../../tests/fixtures/metadata/avaya-sbce-update.xml");

fn fixture(name: &str) -> Metadata {
    parse(&invite(name).metadata()).unwrap().metadata
}

/// The content of a recording element of RFC 7865.
fn recording(content: &str) -> Metadata {
    parse(format!("<recording xmlns='urn:ietf:params:xml:ns:recording:1'>{content}</recording>").as_bytes())
        .unwrap()
        .metadata
}

fn problem(body: &[u8]) -> Problem {
    parse(body).unwrap_err().problem
}

fn senders<'a>(metadata: &'a Metadata, label: &str) -> Vec<&'a str> {
    metadata.senders_of_label(label).iter().map(|participant| participant.aors[0].as_str()).collect()
}

#[test]
fn a_document_of_rfc_7865() {
    let metadata = fixture("rfc7866");
    assert_eq!(metadata.mode, Mode::Complete);
    let session = CommunicationSession {
        id: "hVpd7YQgRW2nD22h7q60JQ==".into(),
        sip_session_ids: vec![
            "ab30317f1a784dc48ff824d0d3715d86;remote=47755a9de7794ba387653f2099600ef2".into(),
        ],
        reasons: vec![],
        group_id: Some("7+OTCyoxTmqmqyA/1weDAg==".into()),
        start_time: Some("2026-11-22T08:00:00Z".into()),
        stop_time: None,
    };
    assert_eq!(metadata.sessions, [session]);
    let ada = Participant {
        id: "srfBElmCRp2QB23b7Mpk0w==".into(),
        aors: vec!["sip:ada@example.com".into()],
        name: Some("Ada & Co".into()),
    };
    assert_eq!(metadata.participants.len(), 2);
    assert_eq!(metadata.participants[0], ada);
    let stream = Stream {
        id: "UAAMm5GRQKSCMVvLyl4rFw==".into(),
        session_id: Some("hVpd7YQgRW2nD22h7q60JQ==".into()),
        label: Some("1".into()),
        mode: None,
    };
    assert_eq!(metadata.streams.len(), 4);
    assert_eq!(metadata.streams[0], stream);
    assert_eq!(metadata.associations[0].sends, ["i1Pz3to5hGk8fuXl+PbwCw==", "UAAMm5GRQKSCMVvLyl4rFw=="]);
    assert_eq!(metadata.associations[0].receives, ["8zc6e0lYTlWIINA6GR+3ag==", "EiXGlc+4TruqqoDaNE76ag=="]);
    assert_eq!(metadata.senders_of_label("2"), [&ada]);
    assert!(metadata.senders_of_label("9").is_empty());
}

#[test]
fn senders_by_source() {
    for (name, label, expected) in [
        ("broadworks", "1", &["2405550101@as.example.com"][..]),
        ("broadworks", "2", &["tel:+12405550199"]),
        ("metaswitch", "1", &["sip:+12025550111@example.net;user=phone", "tel:+12025550122"]),
        ("avaya-sbce", "10", &["sip:3001@example.com"]),
        // A stream without an id is nobody's.
        ("avaya-sbce", "30", &[]),
        // One association is empty, the other names a participant that does not exist.
        ("cisco-cube", "1", &[]),
        ("cisco-cube", "2", &[]),
        ("oracle", "218103814", &["sip:sipp@203.0.113.70"]),
        ("sonus", "2", &["sip:+14165550144@example.com"]),
        ("audiocodes-lf", "1", &["4930555011@203.0.113.100"]),
        ("opensips", "0", &["sip:+40215550155@example.org"]),
        ("sems", "b_leg", &["sip:kurt@example.com"]),
        ("dynamics-srtp", "inbound", &["230908"]),
        ("netsapiens", "1", &[]),
    ] {
        assert_eq!(senders(&fixture(name), label), expected, "{name} {label}");
    }
}

#[test]
fn names_and_times_are_not_taken_from_extensions() {
    let names = |name| fixture(name).participants.into_iter().map(|p| p.name).collect::<Vec<_>>();
    assert_eq!(names("oracle"), [Some("sipp".to_owned()), Some("sut".to_owned())]);
    assert_eq!(names("sonus"), [Some("+14165550133".to_owned()), None]);
    assert_eq!(fixture("netsapiens").participants.len(), 2);
    assert_eq!(fixture("oracle").sessions[0].start_time.as_deref(), Some("2026-11-22T08:00:00"));
    assert_eq!(fixture("opensips").sessions[0].start_time, None);
}

#[test]
fn any_namespace_is_taken_for_ours_when_the_root_has_it() {
    for root in [
        "recording xmlns='urn:ietf:params:xml:ns:recording:2'",
        "recording",
        "recording_metadata xmlns='urn:ietf:params:xml:ns:siprec'",
        "Recording xmlns:x='urn:x'",
    ] {
        let name = root.split(' ').next().unwrap();
        let body = format!("<{root}><participant id='p'/><e:participant id='q' xmlns:e='urn:e'/></{name}>");
        assert_eq!(parse(body.as_bytes()).unwrap().metadata.participants.len(), 1, "{root}");
    }
    let body = "<t:recording><t:participant id='p'/><u:participant id='q'/></t:recording>";
    assert_eq!(
        parse(body.as_bytes()).unwrap().metadata.participants.len(),
        1,
        "prefixes without a namespace"
    );
}

#[test]
fn ids_come_from_either_attribute() {
    let metadata = recording(
        "<participant id='x' participant_id='p1' xmlns:id='urn:id'/><participant id='p2'/><stream session='s' id='t1'/><stream stream_id='t2' session_id='s2'/>",
    );
    assert_eq!(metadata.participants.iter().map(|p| p.id.as_str()).collect::<Vec<_>>(), ["p1", "p2"]);
    let streams: Vec<_> = metadata.streams.iter().map(|s| (s.id.as_str(), s.session_id.as_deref())).collect();
    assert_eq!(streams, [("t1", Some("s")), ("t2", Some("s2"))]);
}

#[test]
fn nested_elements_belong_to_what_is_around_them() {
    let metadata = recording(
        "<session id='s'><participants><participant id='p'><aor>sip:a@x</aor><aor>tel:1</aor><send>t</send></participant></participants><stream id='t'><label> main </label><start-time>no</start-time></stream><stop-time>later</stop-time></session>",
    );
    assert_eq!(metadata.streams[0].session_id.as_deref(), Some("s"));
    assert_eq!(metadata.participants[0].aors, ["sip:a@x", "tel:1"]);
    assert_eq!(senders(&metadata, "main"), ["sip:a@x"]);
    assert_eq!(
        (&metadata.sessions[0].start_time, metadata.sessions[0].stop_time.as_deref()),
        (&None, Some("later"))
    );
}

#[test]
fn one_id_twice_is_one_participant() {
    let metadata = recording(
        "<participant id='p'><nameID aor='sip:a@x'><name xml:lang='it'>Uno</name><name>One</name></nameID></participant><participant id='p'><nameID aor='sip:a@x'/><nameID aor='sip:b@x'/></participant>",
    );
    assert_eq!(metadata.participants.len(), 1);
    assert_eq!(metadata.participants[0].aors, ["sip:a@x", "sip:b@x"]);
    assert_eq!(metadata.participants[0].name.as_deref(), Some("Uno"));
}

#[test]
fn participants_without_an_id_stay_apart_and_send_nothing() {
    let metadata = recording(
        "<participant><nameID aor='a'/><send>t</send></participant><participant><nameID aor='b'/></participant><stream id='t'><label>1</label></stream>",
    );
    assert_eq!(metadata.participants.len(), 2);
    assert!(metadata.senders_of_label("1").is_empty());
}

#[test]
fn text_is_put_together_from_its_pieces() {
    let metadata = recording(
        "<participant id='p'><nameID aor='sip:&quot;&#65;&quot;@x'><name>\r\n  A&lt;<!-- no -->&#x42;<![CDATA[<&]]>&amp;C \r\n</name></nameID></participant>",
    );
    assert_eq!(metadata.participants[0].aors, ["sip:\"A\"@x"]);
    assert_eq!(metadata.participants[0].name.as_deref(), Some("A<B<&&C"));
}

#[test]
fn prologs_and_what_follows_the_root() {
    for body in [
        "\u{feff}<?xml version='1.0'?><recording/>",
        "\r\n <?xml version='1.0' encoding='ISO-8859-1'?>\r\n<!-- x --><recording></recording>\r\n",
        "<recording/>\0\0 not XML <",
    ] {
        assert_eq!(parse(body.as_bytes()).unwrap().metadata, Metadata::default(), "{body:?}");
    }
}

#[test]
fn modes() {
    assert_eq!(recording("").mode, Mode::Complete);
    assert_eq!(recording("<dataMode> Partial </dataMode>").mode, Mode::Partial);
    assert_eq!(recording("<datamode>complete</datamode>").mode, Mode::Complete);
}

#[test]
fn a_complete_update_replaces_everything() {
    let mut metadata = fixture("rfc7866");
    metadata.merge(fixture("sonus")).unwrap();
    assert_eq!(metadata, fixture("sonus"));
}

#[test]
fn a_partial_update_adds_and_restates() {
    let mut metadata = fixture("rfc7866");
    metadata.merge(parse(RFC7865_PARTIAL).unwrap().metadata).unwrap();
    assert_eq!(metadata.mode, Mode::Complete);
    assert_eq!(metadata.participants.len(), 3);
    assert_eq!(metadata.participants[1].name.as_deref(), Some("Grace"));
    assert_eq!(metadata.streams.len(), 5);
    assert_eq!(senders(&metadata, "5"), ["sip:linus@example.org"]);
    assert_eq!(senders(&metadata, "1"), ["sip:ada@example.com"]);
    // Restated without send: not sending any more.
    assert!(metadata.senders_of_label("3").is_empty());
}

#[test]
fn an_update_by_avaya() {
    let mut metadata = fixture("avaya-sbce");
    metadata.merge(parse(AVAYA_UPDATE).unwrap().metadata).unwrap();
    assert_eq!(senders(&metadata, "10"), ["sip:3002@example.com"]);
    assert_eq!(senders(&metadata, "20"), ["sip:+13035550144@example.com"]);
}

#[test]
fn a_partial_update_keeps_what_it_does_not_say() {
    let mut metadata = recording(
        "<participant id='p'><nameID aor='a'><name>N</name></nameID></participant><stream id='t' session='s'/>",
    );
    let update = "<datamode>partial</datamode><participant id='p'><nameID aor='b'/></participant><stream id='t'><label>1</label></stream>";
    metadata.merge(recording(update)).unwrap();
    assert_eq!(metadata.participants[0].aors, ["b"]);
    assert_eq!(metadata.participants[0].name.as_deref(), Some("N"));
    assert_eq!(metadata.streams[0].session_id.as_deref(), Some("s"));
    assert_eq!(metadata.streams[0].label.as_deref(), Some("1"));
}

#[test]
fn merging_stops_growing() {
    let partial = |from: usize, count: usize, text: &str| {
        let participants: String =
            (from..from + count).map(|id| format!("<participant id='{id}{text}'/>")).collect();
        recording(&format!("<datamode>partial</datamode>{participants}"))
    };
    let mut metadata = Metadata::default();
    metadata.merge(partial(0, METADATA_ELEMENTS_MAX - 3, "")).unwrap();
    let before = metadata.clone();
    let error = metadata.merge(partial(20_000, 4, "")).unwrap_err();
    assert_eq!(error.problem, Problem::TooManyElements);
    assert_eq!(metadata, before);
    let long = "x".repeat(METADATA_MAX / 2);
    let mut metadata = partial(0, 1, &long);
    assert_eq!(metadata.merge(partial(1, 1, &long)).unwrap_err().problem, Problem::TooLarge);
    assert_eq!(metadata.participants.len(), 1);
}

/// Hostile input is answered with an error before anybody notices. It takes milliseconds; a busy machine may add some.
fn quick_problem(body: &[u8]) -> Problem {
    #[allow(clippy::disallowed_methods)]
    let start = Instant::now();
    let problem = problem(body);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    problem
}

#[test]
fn billion_laughs() {
    let entities: String =
        (1..10).map(|i| format!("<!ENTITY l{i} '{}'>", format!("&l{};", i - 1).repeat(10))).collect();
    let body =
        format!("<?xml version='1.0'?><!DOCTYPE r [<!ENTITY l0 'ha'>{entities}]><recording>&l9;</recording>");
    assert_eq!(quick_problem(body.as_bytes()), Problem::DocumentType);
    assert_eq!(problem(b"<recording>&l9;</recording>"), Problem::Syntax("malformed or unknown entity"));
    let external = "<!DOCTYPE r SYSTEM 'file:///etc/passwd'><recording/>";
    assert_eq!(quick_problem(external.as_bytes()), Problem::DocumentType);
}

#[test]
fn depth_100_000() {
    let body = "<recording>".to_owned() + &"<a>".repeat(80_000);
    assert_eq!(quick_problem(body.as_bytes()), Problem::TooDeep);
    assert_eq!(quick_problem("<recording>".repeat(100_000).as_bytes()), Problem::TooLarge);
    let deep =
        |depth: usize| recording_text(&format!("{}{}", "<a>".repeat(depth - 1), "</a>".repeat(depth - 1)));
    assert!(parse(deep(METADATA_DEPTH_MAX).as_bytes()).is_ok());
    assert_eq!(problem(deep(METADATA_DEPTH_MAX + 1).as_bytes()), Problem::TooDeep);
}

fn recording_text(content: &str) -> String {
    format!("<recording>{content}</recording>")
}

#[test]
fn attributes_20_000() {
    let attributes =
        |count: usize, name: &str| (0..count).map(|i| format!(" {name}{i}='u'")).collect::<String>();
    let element = |count, name| recording_text(&format!("<a{}/>", attributes(count, name)));
    assert_eq!(quick_problem(element(20_000, "a").as_bytes()), Problem::TooManyAttributes);
    assert_eq!(
        quick_problem(element(15_000, "xmlns:a").as_bytes()),
        Problem::Syntax("malformed or too many namespaces")
    );
    assert!(parse(element(METADATA_ATTRIBUTES_MAX, "a").as_bytes()).is_ok());
    assert_eq!(problem(element(METADATA_ATTRIBUTES_MAX + 1, "a").as_bytes()), Problem::TooManyAttributes);
}

#[test]
fn elements_and_bytes_without_end() {
    assert!(parse(recording_text(&"<a/>".repeat(METADATA_ELEMENTS_MAX - 1)).as_bytes()).is_ok());
    let body = recording_text(&"<a/>".repeat(METADATA_ELEMENTS_MAX));
    assert_eq!(quick_problem(body.as_bytes()), Problem::TooManyElements);
    assert_eq!(quick_problem(&vec![b' '; METADATA_MAX + 1]), Problem::TooLarge);
    assert_eq!(quick_problem(&vec![b' '; METADATA_MAX]), Problem::NotRecording);
    assert_eq!(quick_problem(&vec![b'<'; METADATA_MAX]), Problem::Syntax("markup without its end"));
    assert_eq!(quick_problem(&vec![b'&'; METADATA_MAX]), Problem::Syntax("tags that do not match"));
}

#[test]
fn many_equal_labels_and_ids_are_quick_too() {
    let content: String = (0..2_000).map(|i| format!("<stream id='{i}'><label>1</label></stream><participantstreamassoc participant_id='{i}'><send>{i}</send></participantstreamassoc>")).collect();
    let metadata = recording(&content);
    #[allow(clippy::disallowed_methods)]
    let start = Instant::now();
    assert!(metadata.senders_of_label("1").is_empty());
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!(metadata.associations.len(), 2_000);
}

/// They are compared with each other, so there must not be many.
#[test]
fn the_addresses_of_a_participant_are_bounded() {
    let addresses: String = (0..9_000).map(|i| format!("<aor>sip:{i}</aor>")).collect();
    let metadata = recording(&format!("<participant id='p'>{addresses}</participant>"));
    assert_eq!(metadata.participants[0].aors.len(), METADATA_AORS_MAX);
    assert_eq!(metadata.participants[0].aors[1], "sip:1");
}

#[test]
fn truncated() {
    let body = invite("rfc7866").metadata();
    let whole = body.trim_ascii_end().len();
    for length in 0..whole {
        let problem = problem(&body[..length]);
        let expected = matches!(problem, Problem::Truncated | Problem::NotRecording | Problem::Syntax(_));
        assert!(expected, "{length}: {problem:?}");
    }
    assert!(parse(&body[..whole]).is_ok());
    assert_eq!(problem(b"<recording><session"), Problem::Syntax("markup without its end"));
    assert_eq!(problem(b"<recording><session>"), Problem::Truncated);
}

#[test]
fn binary_and_invalid_utf_8() {
    let binary: Vec<u8> = (0..=255).cycle().take(64 * 1024).collect();
    assert_eq!(quick_problem(&binary), Problem::Encoding);
    let error = parse(b"<recording><name>\xc3\x28</name></recording>").unwrap_err();
    assert_eq!(error, MetadataError { problem: Problem::Encoding, at: 17 });
    let utf_16: Vec<u8> = "<recording/>".encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert!(parse(&utf_16).is_err());
}

#[test]
fn other_documents() {
    assert_eq!(problem(b""), Problem::NotRecording);
    assert_eq!(problem(b"v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\n"), Problem::NotRecording);
    assert_eq!(problem(b"<html><recording/></html>"), Problem::NotRecording);
    assert_eq!(problem(b"<recording></recordinG>"), Problem::Syntax("tags that do not match"));
    assert_eq!(problem(b"<recording><participant id=p></recording>"), Problem::Syntax("malformed attribute"));
}

#[test]
fn errors_say_what_and_where() {
    let error = parse(b"<recording><a></b></recording>").unwrap_err();
    assert_eq!(error.to_string(), "tags that do not match at byte 14");
}

/// Every value of these attributes of the elements with this name, as roxmltree reads them.
fn oracle(document: &roxmltree::Document<'_>, element: &str, attributes: &[&str]) -> Vec<String> {
    let known = |node: &roxmltree::Node<'_, '_>| {
        node.tag_name().name() == element
            && node
                .tag_name()
                .namespace()
                .is_none_or(|namespace| namespace == NAMESPACE || DRAFT_NAMESPACES.contains(&namespace))
    };
    let value = |node: roxmltree::Node<'_, '_>| {
        let found = attributes.iter().find_map(|name| node.attribute(*name).map(str::to_owned));
        found.or_else(|| node.text().map(|text| text.trim().to_owned())).unwrap_or_default()
    };
    document.descendants().filter(known).map(value).filter(|value| !value.is_empty()).collect()
}

#[test]
fn roxmltree_finds_the_same_ids_and_addresses() {
    let mut bodies: Vec<(&str, Vec<u8>)> = invites().map(|i| (i.name, i.metadata().to_vec())).collect();
    bodies.push(("rfc7865-partial", RFC7865_PARTIAL.to_vec()));
    bodies.push(("avaya-sbce-update", AVAYA_UPDATE.to_vec()));
    for (name, body) in bodies {
        let metadata = parse(&body).unwrap().metadata;
        let text = std::str::from_utf8(&body).unwrap();
        let document = roxmltree::Document::parse(text.trim()).unwrap();
        let ids =
            |list: Vec<&String>| list.into_iter().filter(|id| !id.is_empty()).cloned().collect::<Vec<_>>();
        assert_eq!(
            ids(metadata.participants.iter().map(|p| &p.id).collect()),
            oracle(&document, "participant", &["participant_id", "id"]),
            "{name}"
        );
        assert_eq!(
            ids(metadata.streams.iter().map(|s| &s.id).collect()),
            oracle(&document, "stream", &["stream_id", "id"]),
            "{name}"
        );
        assert_eq!(
            ids(metadata.sessions.iter().map(|s| &s.id).collect()),
            oracle(&document, "session", &["session_id", "id"]),
            "{name}"
        );
        let labels: Vec<_> = metadata.streams.iter().filter_map(|s| s.label.clone()).collect();
        assert_eq!(labels, oracle(&document, "label", &[]), "{name}");
        let mut aors = oracle(&document, "nameID", &["aor"]);
        aors.extend(oracle(&document, "aor", &[]));
        assert_eq!(
            metadata.participants.iter().flat_map(|p| p.aors.clone()).collect::<Vec<_>>(),
            aors,
            "{name}"
        );
        let sends: usize = metadata.associations.iter().map(|a| a.sends.len()).sum();
        assert_eq!(sends, oracle(&document, "send", &[]).len(), "{name}");
    }
}

proptest! {
    #[test]
    fn a_damaged_document_is_read_or_refused(
        which in 0usize..12, cut in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let xml = invites().nth(which).unwrap().metadata();
        let mut body = xml.to_vec();
        let at = at.index(body.len());
        body[at] = byte;
        if let Ok(body_read) = parse(&body) {
            prop_assert!(body_read.metadata.text() <= body.len() * 2);
        }
        body.truncate(cut.index(xml.len()));
        if let Err(error) = parse(&body) {
            prop_assert!(error.at <= body.len());
        }
    }
}

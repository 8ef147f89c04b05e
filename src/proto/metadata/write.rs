//! Metadata that the recorder writes: what its answers say, and what it asks for.

use std::fmt::Write;

use super::Metadata;
use super::reader::NAMESPACE;

/// The sessions, participants and streams as RFC 7865 has them, for an SRC that expects metadata in the answer. Elements without
/// an id are left out.
pub fn answer(metadata: &Metadata) -> String {
    let mut xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\r\n<recording xmlns=\"{NAMESPACE}\">\r\n<datamode>complete</datamode>\r\n"
    );
    for session in metadata.sessions.iter().filter(|session| !session.id.is_empty()) {
        element(&mut xml, format_args!("<session session_id=\"{}\"/>", Escaped(&session.id)));
    }
    for participant in metadata.participants.iter().filter(|participant| !participant.id.is_empty()) {
        let _ = write!(xml, "<participant participant_id=\"{}\">", Escaped(&participant.id));
        for aor in &participant.aors {
            let _ = write!(xml, "<nameID aor=\"{}\"/>", Escaped(aor));
        }
        element(&mut xml, format_args!("</participant>"));
    }
    for stream in metadata.streams.iter().filter(|stream| !stream.id.is_empty()) {
        let session = Escaped(stream.session_id.as_deref().unwrap_or_default());
        let _ = write!(xml, "<stream stream_id=\"{}\" session_id=\"{session}\">", Escaped(&stream.id));
        if let Some(label) = &stream.label {
            let _ = write!(xml, "<label>{}</label>", Escaped(label));
        }
        element(&mut xml, format_args!("</stream>"));
    }
    xml.push_str("</recording>\r\n");
    xml
}

fn element(xml: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing into a String cannot fail.
    let _ = write!(xml, "{text}\r\n");
}

/// RFC 7866 §9.2, RFC 7865 §7: asks for a complete description.
pub fn snapshot_request(reason: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\r\n<requestsnapshot xmlns=\"{NAMESPACE}\">\r\n\
         <requestreason xml:lang=\"en\">{}</requestreason>\r\n</requestsnapshot>\r\n",
        Escaped(reason)
    )
}

struct Escaped<'a>(&'a str);

impl std::fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&quick_xml::escape::escape(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::fixtures::invites;
    use crate::proto::metadata::{Metadata, Participant, parse};

    #[test]
    fn what_is_written_is_read_again() {
        for invite in invites() {
            let said = parse(&invite.metadata()).unwrap().metadata;
            let written = parse(answer(&said).as_bytes()).unwrap();
            assert_eq!(written.form.namespace, NAMESPACE);
            let again = written.metadata;
            let named = |metadata: &Metadata| -> Vec<Participant> {
                let named = metadata.participants.iter().filter(|participant| !participant.id.is_empty());
                named.map(|participant| Participant { name: None, ..participant.clone() }).collect()
            };
            assert_eq!(named(&again), named(&said), "{}", invite.name);
            let streams = said.streams.iter().filter(|stream| !stream.id.is_empty()).count();
            assert_eq!(again.streams.len(), streams, "{}", invite.name);
        }
    }

    #[test]
    fn nothing_breaks_out_of_its_place() {
        let id = "<&\"'>".to_owned();
        let participants = vec![Participant { id: id.clone(), aors: vec![id.clone()], name: None }];
        let metadata = Metadata { participants, ..Metadata::default() };
        assert_eq!(parse(answer(&metadata).as_bytes()).unwrap().metadata.participants[0].aors, [id]);
        assert!(snapshot_request("a < b").contains("a &lt; b"));
    }
}

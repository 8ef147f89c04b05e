//! SIPp scenarios written by the tests: one generator in the place of a file for each vendor and each refusal.

use std::fmt::Write;

use crate::vendor::{Body, Own, Template};

/// The words of SIPp in a request of a template.
const WORDS: Own = Own {
    method: "INVITE",
    transport: "[transport]",
    address: "[local_ip]:[local_port]",
    rport: false,
    branch: "",
    from_tag: "[pid]SIPp[call_number]",
    to_tag: "",
    call_id: "[call_id]",
    cseq: 1,
    length: Some("[len]"),
};

pub struct Scenario {
    template: &'static Template,
    steps: String,
    cseq: u32,
    branches: u32,
    /// Of the newest request.
    branch: String,
    variables: u32,
    established: bool,
}

impl Scenario {
    pub fn new(template: &'static Template) -> Scenario {
        let steps = String::new();
        Scenario {
            template,
            steps,
            cseq: 0,
            branches: 0,
            branch: String::new(),
            variables: 0,
            established: false,
        }
    }

    /// A request of the call, changed before it is sent.
    pub fn send_as(
        &mut self,
        method: &str,
        body: Option<Body>,
        change: impl FnOnce(String) -> String,
    ) -> &mut Scenario {
        self.cseq += 1;
        self.branches += 1;
        self.branch = format!("z9hG4bK-[pid]-[call_number]-{}", self.branches);
        let text = change(self.text(method, body));
        self.step("<send retrans=\"500\">", &text)
    }

    pub fn send(&mut self, method: &str, body: Option<Body>) -> &mut Scenario {
        self.send_as(method, body, |text| text)
    }

    /// ACK of a 2xx, or of a refusal.
    pub fn ack(&mut self, accepted: bool) -> &mut Scenario {
        if accepted {
            self.branches += 1;
            self.branch = format!("z9hG4bK-[pid]-[call_number]-{}", self.branches);
        }
        let mut text = self.text("ACK", None);
        if !accepted && !self.established {
            // A refusal has a tag of its own.
            text = text.replacen("\nCall-ID", "[peer_tag_param]\nCall-ID", 1);
        }
        self.step("<send>", &text)
    }

    /// The answer, and what each of these regular expressions must find in it.
    pub fn expect(&mut self, code: u16, patterns: &[&str]) -> &mut Scenario {
        self.steps += "  <recv response=\"100\" optional=\"true\"/>\n";
        writeln!(self.steps, "  <recv response=\"{code}\"><action>").unwrap();
        let mut names = Vec::new();
        for pattern in patterns {
            self.variables += 1;
            let name = format!("found{}", self.variables);
            writeln!(
                self.steps,
                "    <ereg regexp=\"{pattern}\" search_in=\"msg\" check_it=\"true\" assign_to=\"{name}\"/>"
            )
            .unwrap();
            names.push(name);
        }
        self.steps += "  </action></recv>\n";
        if !names.is_empty() {
            writeln!(self.steps, "  <Reference variables=\"{}\"/>", names.join(",")).unwrap();
        }
        self
    }

    /// INVITE, 200, ACK.
    pub fn establish(&mut self, body: Body, patterns: &[&str]) -> &mut Scenario {
        self.send("INVITE", Some(body)).expect(200, patterns);
        self.established = true;
        self.ack(true)
    }

    pub fn bye(&mut self, body: Option<Body>) -> &mut Scenario {
        self.send("BYE", body).expect(200, &[])
    }

    /// The next requests have this CSeq number, and the ones after.
    pub fn cseq(&mut self, next: u32) -> &mut Scenario {
        self.cseq = next - 1;
        self
    }

    fn text(&self, method: &str, body: Option<Body>) -> String {
        let to_tag = if self.established { "[peer_tag_param]" } else { "" };
        let own = Own { method, branch: &self.branch, cseq: self.cseq, to_tag, ..WORDS };
        self.template.request(&own, body).replace("\r\n", "\n")
    }

    fn step(&mut self, begin: &str, text: &str) -> &mut Scenario {
        writeln!(self.steps, "  {begin}<![CDATA[\n{text}\n]]></send>").unwrap();
        self
    }

    pub fn finish(&self) -> String {
        let name = self.template.profile.name;
        format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<!DOCTYPE scenario SYSTEM \"sipp.dtd\">\n\
             <scenario name=\"{name}\">\n{}</scenario>\n",
            self.steps
        )
    }
}

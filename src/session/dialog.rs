//! The dialog that an INVITE establishes, seen from its UAS (RFC 3261 §12).

use bytes::Bytes;
use std::net::{IpAddr, SocketAddr};

use super::{Flow, client, contact_host, secure};
use crate::proto::sip::{Checked, HeaderName, Message, Method, NameAddr, RequestBuilder, SipUri, request};

#[derive(Debug)]
pub struct Dialog {
    pub call_id: String,
    pub local_tag: String,
    /// Empty when the peer's From has no tag (§12.1.1).
    pub remote_tag: String,
    local_uri: String,
    remote_uri: String,
    /// Where our requests go: the peer's newest Contact.
    target: String,
    /// Record-Route of the INVITE, in its order (§12.1.1).
    routes: Vec<String>,
    remote_cseq: u32,
    local_cseq: u32,
    /// It is one of SIPS, and so are our Contacts in it.
    pub secure: bool,
    /// Whether UPDATE is among what the peer's newest Allow names; `None`: it has sent none.
    pub allows_update: Option<bool>,
}

/// The CSeq of a request is lower than the one before (§12.2.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutOfOrder;

impl Dialog {
    pub fn new(invite: &Message, checked: &Checked, local_tag: String) -> Dialog {
        Dialog {
            call_id: checked.call_id.to_owned(),
            local_tag,
            remote_tag: checked.from_tag.to_owned(),
            local_uri: checked.to.uri.to_owned(),
            remote_uri: checked.from.uri.to_owned(),
            target: checked.contact.map_or(checked.from.uri, |contact| contact.uri).to_owned(),
            routes: invite.record_routes().map(str::to_owned).collect(),
            remote_cseq: checked.cseq.number,
            local_cseq: 0,
            secure: secure(invite),
            allows_update: allows_update(invite),
        }
    }

    /// Whether the request is in this dialog; the local tag has been compared already.
    pub fn matches(&self, checked: &Checked) -> bool {
        self.call_id == checked.call_id && self.remote_tag == checked.from_tag
    }

    /// Takes the CSeq of a new request. An equal one passes: some SRCs send BYE with the number of their INVITE, and a
    /// BYE that is refused leaves a recording without an end.
    pub fn receive(&mut self, cseq: u32) -> Result<(), OutOfOrder> {
        if cseq < self.remote_cseq {
            return Err(OutOfOrder);
        }
        self.remote_cseq = cseq;
        Ok(())
    }

    /// INVITE, UPDATE and the 2xx to ours refresh the target (§12.2).
    pub fn refresh(&mut self, message: &Message) {
        if let Ok(Some(contact)) = message.contact() {
            contact.uri.clone_into(&mut self.target);
        }
        self.allows_update = allows_update(message).or(self.allows_update);
    }

    /// A request of ours, and where it goes (§12.2.1.1). `flow` is that of the dialog's newest request; `branch` a new
    /// number; `fields` adds what this method needs.
    pub fn request(
        &mut self,
        method: &str,
        flow: Flow,
        branch: u64,
        fields: impl FnOnce(RequestBuilder) -> RequestBuilder,
    ) -> (Flow, Bytes) {
        self.local_cseq += 1;
        let request = self.begin(method, flow, branch, self.local_cseq);
        (self.destination(flow), fields(request).finish())
    }

    /// The ACK of the final response to our INVITE of this CSeq number. `branch` is that of the INVITE for a failure
    /// (§17.1.1.3), and a new number for a 2xx (§13.2.2.4).
    pub fn ack(&self, flow: Flow, branch: u64, cseq: u32) -> (Flow, Bytes) {
        (self.destination(flow), self.begin("ACK", flow, branch, cseq).finish())
    }

    fn begin(&self, method: &str, flow: Flow, branch: u64, cseq: u32) -> RequestBuilder {
        let (uri, routes) = self.request_uri_and_routes();
        let via = format!(
            "SIP/2.0/{} {};branch={};rport",
            flow.transport.via(),
            contact_host(flow.local),
            client::branch(branch)
        );
        let mut request = request(method, uri).header("Via", via).header("Max-Forwards", "70");
        for route in &routes {
            request = request.header("Route", route);
        }
        request
            .header("From", format!("<{}>;tag={}", self.local_uri, self.local_tag))
            .header("To", self.remote())
            .header("Call-ID", &self.call_id)
            .header("CSeq", format!("{cseq} {method}"))
    }

    fn remote(&self) -> String {
        match self.remote_tag.as_str() {
            "" => format!("<{}>", self.remote_uri),
            tag => format!("<{}>;tag={tag}", self.remote_uri),
        }
    }

    /// A first route without `lr` is a strict router: it is the Request-URI, and the target the last route.
    fn request_uri_and_routes(&self) -> (&str, Vec<String>) {
        let Some(first) = self.routes.first().and_then(|route| NameAddr::parse(route.as_bytes()).ok()) else {
            return (&self.target, Vec::new());
        };
        if first.uri_param("lr").is_some() {
            return (&self.target, self.routes.clone());
        }
        let rest = self.routes[1..].iter().cloned();
        (first.uri, rest.chain([format!("<{}>", self.target)]).collect())
    }

    /// The address of the first route, or of the target, where it is an IP literal of the flow's kind; else where the
    /// dialog's newest request came from. On a stream the flow's connection is used whatever the URI says.
    fn destination(&self, flow: Flow) -> Flow {
        if flow.transport.reliable() {
            return flow;
        }
        let first = self.routes.first().and_then(|route| NameAddr::parse(route.as_bytes()).ok());
        let peer = ip_literal(first.map_or(&self.target, |route| route.uri))
            .filter(|peer| peer.is_ipv4() == flow.local.is_ipv4() && !peer.ip().is_unspecified());
        Flow { peer: peer.map_or(flow.peer, |peer| on_link(peer, flow.peer)), ..flow }
    }
}

fn allows_update(message: &Message) -> Option<bool> {
    message.first(HeaderName::Allow)?;
    Some(message.tokens(HeaderName::Allow).any(|method| method == Method::Update.text()))
}

/// No URI names the zone of a link-local IPv6 address (RFC 6874 never came to SIP): it is the link of what came.
fn on_link(mut address: SocketAddr, from: SocketAddr) -> SocketAddr {
    if let (SocketAddr::V6(address), SocketAddr::V6(from)) = (&mut address, from) {
        address.set_scope_id(from.scope_id());
    }
    address
}

/// `None` for a host name, and for a URI that asks for another transport than UDP.
fn ip_literal(uri: &str) -> Option<SocketAddr> {
    let uri = SipUri::parse(uri)?;
    if uri.param("transport").is_some_and(|transport| !transport.eq_ignore_ascii_case("udp")) {
        return None;
    }
    let ip: IpAddr = uri.host.parse().ok()?;
    Some(SocketAddr::new(ip, uri.port.unwrap_or(5060)))
}

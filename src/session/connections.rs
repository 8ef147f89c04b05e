//! The connections that the control plane has heard of: which are gone, who is behind one, and which leads to a peer now.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::{ConnectionKey, Flow, Transport};
use crate::proto::manifest::PeerCertificate;

/// Never more than there are connections, and one generation for each slot that ever had one.
#[derive(Default)]
pub struct Connections {
    /// The newest generation that is gone, for each slot of each reactor.
    gone: HashMap<(u8, u32), u32>,
    certificates: HashMap<(u8, ConnectionKey), Arc<PeerCertificate>>,
    /// The connection over which each host has spoken last.
    newest: HashMap<(IpAddr, Transport), Flow>,
}

impl Connections {
    /// A message has come.
    pub fn heard(&mut self, flow: Flow) {
        if flow.transport.reliable() {
            self.newest.insert((flow.peer.ip(), flow.transport), flow);
        }
    }

    pub fn secured(&mut self, flow: Flow, certificate: Arc<PeerCertificate>) {
        if let Some(connection) = flow.connection {
            self.certificates.insert((flow.reactor, connection), certificate);
        }
    }

    pub fn disconnected(&mut self, reactor: u8, connection: ConnectionKey) {
        self.gone.insert((reactor, connection.slot), connection.generation);
        self.certificates.remove(&(reactor, connection));
        self.newest.retain(|_, flow| flow.reactor != reactor || flow.connection != Some(connection));
    }

    /// Who has proved to be at the other end of this flow's connection.
    pub fn certificate(&self, flow: Flow) -> Option<&Arc<PeerCertificate>> {
        self.certificates.get(&(flow.reactor, flow.connection?))
    }

    /// How a request of ours gets to the peer of this flow: over its connection, or over a newer one of the same host and, with
    /// certificates, of the same owner. `None`: not at all.
    pub fn way(&self, flow: Flow, owner: Option<&PeerCertificate>) -> Option<Flow> {
        if self.open(flow) {
            return Some(flow);
        }
        let newer = *self.newest.get(&(flow.peer.ip(), flow.transport))?;
        (self.open(newer) && self.certificate(newer).map(|held| &**held) == owner).then_some(newer)
    }

    fn open(&self, flow: Flow) -> bool {
        flow.connection.is_none_or(|connection| {
            self.gone.get(&(flow.reactor, connection.slot)).is_none_or(|generation| {
                // Generations wrap: the connection is newer when it is less than half a turn ahead.
                connection.generation.wrapping_sub(generation.wrapping_add(1)) < u32::MAX / 2
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(slot: u32, generation: u32, peer: &str) -> Flow {
        let connection = Some(ConnectionKey { slot, generation });
        let [local, peer] = ["192.0.2.10:5061", peer].map(|text| text.parse().unwrap());
        Flow { reactor: 0, transport: Transport::Tls, local, peer, listener: 0, connection }
    }

    fn named(name: &str) -> Arc<PeerCertificate> {
        Arc::new(PeerCertificate { names: vec![name.to_owned()], sha256: String::new() })
    }

    #[test]
    fn the_connection_itself_then_the_host_s_newest_then_none() {
        let (old, new) = (flow(1, 0, "198.51.100.1:40000"), flow(2, 7, "198.51.100.1:40001"));
        let other = flow(3, 0, "198.51.100.2:40000");
        let mut connections = Connections::default();
        [old, new, other].into_iter().for_each(|flow| connections.heard(flow));
        assert_eq!(connections.way(old, None), Some(old));
        connections.disconnected(0, old.connection.unwrap());
        assert_eq!(connections.way(old, None), Some(new));
        assert_eq!(connections.way(Flow { transport: Transport::Tcp, ..old }, None), None, "TLS is no TCP");
        connections.disconnected(0, new.connection.unwrap());
        assert_eq!(connections.way(old, None), None);
        assert_eq!(connections.newest.len(), 1);
        // The slot has a new owner.
        assert_eq!(connections.way(flow(1, 1, "198.51.100.9:1"), None), Some(flow(1, 1, "198.51.100.9:1")));
    }

    #[test]
    fn another_owner_at_the_same_address_is_not_spoken_to() {
        let (old, new) = (flow(1, 0, "198.51.100.1:40000"), flow(2, 0, "198.51.100.1:40001"));
        let mut connections = Connections::default();
        connections.secured(old, named("DNS:a.example.com"));
        connections.secured(new, named("DNS:b.example.com"));
        [old, new].into_iter().for_each(|flow| connections.heard(flow));
        assert_eq!(connections.certificate(old).unwrap().names, ["DNS:a.example.com"]);
        connections.disconnected(0, old.connection.unwrap());
        assert_eq!(connections.certificate(old), None);
        assert_eq!(connections.way(old, Some(&named("DNS:a.example.com"))), None);
        assert_eq!(connections.way(old, Some(&named("DNS:b.example.com"))), Some(new));
    }
}

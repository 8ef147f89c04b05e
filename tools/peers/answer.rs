//! SIP for programs that have none: for a capture program ports of a range, one pair after the other, where nobody listens; for
//! rtpengine the ports that it gives.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::ng::Rtpengine;
use super::sip::{Media, Server};

#[derive(clap::Args)]
pub struct Options {
    /// Where SIP is answered; media is to go to the same address
    #[arg(long, value_name = "ADDR:PORT")]
    sip: SocketAddr,
    /// Ports to send the load to
    #[arg(long, value_name = "LO-HI", default_value = "20000-65535", value_parser = super::port_range)]
    media_ports: (u16, u16),
    /// Have rtpengine record the calls: the address of its ng control socket
    #[arg(long, value_name = "ADDR:PORT")]
    ng: Option<SocketAddr>,
}

pub fn run(options: &Options) -> super::Outcome {
    let server = Server::bind(options.sip)?;
    match options.ng {
        Some(ng) => serve(server, Rtpengine::connect(ng, options.sip.ip())?),
        None => serve(server, Pairs::new(options.media_ports)),
    }
}

fn serve(mut server: Server, mut media: impl Media) -> super::Outcome {
    let stop = super::stop_flag()?;
    server.socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    super::say(&serde_json::json!({ "ready": server.local().to_string() }))?;
    while !stop.load(Ordering::Relaxed) {
        server.serve(&mut media)?;
    }
    Ok(())
}

/// Hands out a range from its beginning; nothing comes back.
pub struct Pairs {
    next: u32,
    last: u16,
}

impl Pairs {
    pub fn new((first, last): (u16, u16)) -> Pairs {
        Pairs { next: first.into(), last }
    }

    pub fn take(&mut self, streams: usize) -> io::Result<Vec<u16>> {
        let end = self.next + 2 * streams as u32;
        if end > u32::from(self.last) + 1 {
            return Err(io::Error::other("more streams than --media-ports has pairs"));
        }
        let ports = (self.next..end).step_by(2).map(|port| port as u16).collect();
        self.next = end;
        Ok(ports)
    }
}

impl Media for Pairs {
    fn open(&mut self, _: &str, streams: usize) -> io::Result<Vec<u16>> {
        self.take(streams)
    }

    fn close(&mut self, _: &str) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_handed_out_to_its_end() {
        let mut pairs = Pairs::new((65_530, 65_535));
        assert_eq!(pairs.take(2).unwrap(), [65_530, 65_532]);
        assert!(pairs.take(2).is_err());
        assert_eq!(pairs.take(1).unwrap(), [65_534]);
        assert!(pairs.take(1).is_err());
    }
}

//! What a network interface says of itself through SIOCETHTOOL (linux/ethtool.h): driver, queues, rings, receive hash, rules.

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

/// Commands of linux/ethtool.h.
const GET_DRIVER: u32 = 0x03;
const GET_RINGS: u32 = 0x10;
const GET_FLAGS: u32 = 0x25;
const GET_HASH: u32 = 0x29;
const GET_RULE_COUNT: u32 = 0x2e;
const GET_CHANNELS: u32 = 0x3c;
/// Flow types of the receive hash.
const UDP_V4: u32 = 0x02;
const UDP_V6: u32 = 0x06;
/// Fields of the receive hash.
const HASH_SOURCE_PORT: u64 = 1 << 6;
const HASH_DESTINATION_PORT: u64 = 1 << 7;
const FLAG_NTUPLE: u32 = 1 << 27;
/// 32-bit words of the largest structure asked for (ethtool_rxnfc has 192 bytes), with room.
const RULES_WORDS: usize = 64;

/// Everything that could be read; a driver that does not know a question leaves `None`.
#[derive(Clone, Debug, Default)]
pub struct Interface {
    pub driver: Option<String>,
    pub channels: Option<Channels>,
    pub rx_ring: Option<RxRing>,
    /// Whether the receive hash of UDP covers the ports, over IPv4 and over IPv6.
    pub udp4_hash: Option<Hash>,
    pub udp6_hash: Option<Hash>,
    pub rules: Rules,
}

/// Receive queues now, and the most that the device offers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Channels {
    pub receive: u32,
    pub receive_max: u32,
}

/// Descriptors of one receive ring now, and the most that the device offers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RxRing {
    pub size: u32,
    pub max: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hash {
    /// All packets between two addresses go to one queue.
    Addresses,
    Ports,
}

/// Rules that send a flow to a queue (ntuple filters).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Rules {
    #[default]
    Unsupported,
    Off,
    On,
}

/// Asks for everything. `Err` only when there is no socket to ask through; what a driver refuses is absent.
pub fn interface(name: &str) -> io::Result<Interface> {
    let socket = UdpSocket::bind("0.0.0.0:0").or_else(|_| UdpSocket::bind("[::]:0"))?;
    let questions = Questions { socket, name };
    Ok(Interface {
        driver: questions.driver().ok(),
        channels: questions.channels().ok(),
        rx_ring: questions.rx_ring().ok(),
        udp4_hash: questions.hash(UDP_V4).ok().flatten(),
        udp6_hash: questions.hash(UDP_V6).ok().flatten(),
        rules: questions.rules(),
    })
}

struct Questions<'a> {
    socket: UdpSocket,
    name: &'a str,
}

impl Questions<'_> {
    fn driver(&self) -> io::Result<String> {
        // ethtool_drvinfo: the driver's name is in the 32 bytes behind the command.
        let reply = self.ask::<RULES_WORDS>(GET_DRIVER, 0)?;
        let bytes: Vec<u8> = reply[1..9].iter().flat_map(|word| word.to_ne_bytes()).collect();
        let name = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(String::from_utf8_lossy(name).into_owned())
    }

    fn channels(&self) -> io::Result<Channels> {
        // ethtool_channels: command, then max of rx, tx, other, combined, then as many present.
        let [_, max_rx, _, _, max_combined, rx, _, _, combined] = self.ask::<9>(GET_CHANNELS, 0)?;
        Ok(Channels {
            receive: rx.saturating_add(combined),
            receive_max: max_rx.max(max_combined).max(rx.saturating_add(combined)),
        })
    }

    fn rx_ring(&self) -> io::Result<RxRing> {
        // ethtool_ringparam: command, then max of rx, mini, jumbo, tx, then as many present.
        let reply = self.ask::<9>(GET_RINGS, 0)?;
        Ok(RxRing { size: reply[5], max: reply[1] })
    }

    /// `None`: nothing is hashed, as drivers with one queue answer.
    fn hash(&self, flow: u32) -> io::Result<Option<Hash>> {
        let reply = self.ask::<RULES_WORDS>(GET_HASH, flow)?;
        Ok(hash_of(u64_at(&reply, 2)))
    }

    fn rules(&self) -> Rules {
        if self.ask::<RULES_WORDS>(GET_RULE_COUNT, 0).is_err() {
            return Rules::Unsupported;
        }
        match self.ask::<2>(GET_FLAGS, 0) {
            Ok([_, flags]) if flags & FLAG_NTUPLE == 0 => Rules::Off,
            _ => Rules::On,
        }
    }

    /// The structure of a command, all words zero but the first two.
    fn ask<const WORDS: usize>(&self, command: u32, second: u32) -> io::Result<[u32; WORDS]> {
        // The kernel writes up to 196 bytes for a driver's description, 192 for rules, 36 and 8 for the others.
        let mut structure = [0u32; WORDS];
        (structure[0], structure[1]) = (command, second);
        // SAFETY: a zeroed ifreq is a valid one.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        let name = self.name.as_bytes();
        if name.is_empty() || name.len() >= request.ifr_name.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        request.ifr_name.iter_mut().zip(name).for_each(|(to, from)| *to = *from as libc::c_char);
        request.ifr_ifru.ifru_data = structure.as_mut_ptr().cast();
        // SAFETY: the request points to a structure at least as large as what this command reads and writes, and both live
        // until the call returns.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCETHTOOL as _, &mut request) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(structure) }
    }
}

fn u64_at(words: &[u32], at: usize) -> u64 {
    let [a, b] = [words[at].to_ne_bytes(), words[at + 1].to_ne_bytes()];
    u64::from_ne_bytes([a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]])
}

fn hash_of(fields: u64) -> Option<Hash> {
    match fields {
        0 => None,
        fields if fields & (HASH_SOURCE_PORT | HASH_DESTINATION_PORT) != 0 => Some(Hash::Ports),
        _ => Some(Hash::Addresses),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_has_no_queues_rules_or_hash() {
        let lo = interface("lo").unwrap();
        assert!(lo.channels.is_none() && lo.rx_ring.is_none() && lo.udp4_hash.is_none());
        assert_eq!(lo.rules, Rules::Unsupported);
    }

    #[test]
    fn names_that_no_interface_can_have_are_refused() {
        let questions = Questions { socket: UdpSocket::bind("127.0.0.1:0").unwrap(), name: "" };
        assert_eq!(questions.driver().unwrap_err().kind(), io::ErrorKind::InvalidInput);
        let long = Questions { name: "an-interface-name-too-long", ..questions };
        assert_eq!(long.driver().unwrap_err().kind(), io::ErrorKind::InvalidInput);
        let absent = Questions { name: "no-such-one", ..long };
        assert_eq!(absent.driver().unwrap_err().raw_os_error(), Some(libc::ENODEV));
    }

    #[test]
    fn hash_fields() {
        assert_eq!(hash_of(0), None);
        assert_eq!(hash_of(0x30), Some(Hash::Addresses));
        assert_eq!(hash_of(0xf0), Some(Hash::Ports));
        assert_eq!(u64_at(&[0, 0xf0, 0], 1), u64::from_ne_bytes([0xf0, 0, 0, 0, 0, 0, 0, 0]));
    }
}

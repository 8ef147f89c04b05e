//! Whether an XDP program is attached to a network interface: RTM_GETLINK over a route socket (linux/if_link.h, IFLA_XDP).

use std::io::{self, Read, Write};

use socket2::{Domain, Protocol, Socket, Type};

/// linux/netlink.h, linux/rtnetlink.h, linux/if_link.h.
const NETLINK_ROUTE: i32 = 0;
const GET_LINK: u16 = 18;
const NEW_LINK: u16 = 16;
const REQUEST: u16 = 1;
const ERROR: u16 = 2;
const ATTRIBUTE_XDP: u16 = 43;
const XDP_ATTACHED: u16 = 2;
const XDP_PROGRAM_ID: u16 = 4;
/// The upper bits of an attribute's type say how it is nested and ordered.
const TYPE_MASK: u16 = 0x3fff;
/// nlmsghdr and ifinfomsg.
const HEADER: usize = 16;
const LINK: usize = 16;
/// One reply: an interface with many virtual functions needs some kilobytes.
const REPLY: usize = 64 * 1024;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct XdpProgram {
    pub mode: XdpMode,
    /// As `bpftool prog show id` takes it; 0 where several are attached.
    pub id: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum XdpMode {
    Native,
    Generic,
    Offloaded,
    Several,
}

/// The program on the interface with this index (`/sys/class/net/NAME/ifindex`).
pub fn xdp_program(index: u32) -> io::Result<Option<XdpProgram>> {
    let route = Protocol::from(NETLINK_ROUTE);
    let mut socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW.cloexec(), Some(route))?;
    socket.write_all(&request(index))?;
    let mut reply = vec![0; REPLY];
    let length = socket.read(&mut reply)?;
    program(&reply[..length])
}

fn request(index: u32) -> [u8; HEADER + LINK] {
    let mut message = [0; HEADER + LINK];
    message[..4].copy_from_slice(&((HEADER + LINK) as u32).to_ne_bytes());
    message[4..6].copy_from_slice(&GET_LINK.to_ne_bytes());
    message[6..8].copy_from_slice(&REQUEST.to_ne_bytes());
    message[HEADER + 4..HEADER + 8].copy_from_slice(&index.to_ne_bytes());
    message
}

fn program(reply: &[u8]) -> io::Result<Option<XdpProgram>> {
    match u16_at(reply, 4) {
        Some(NEW_LINK) => Ok(reply.get(HEADER + LINK..).and_then(attached)),
        Some(ERROR) => Err(io::Error::from_raw_os_error(u32_at(reply, HEADER).map_or(0, |e| -(e as i32)))),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn attached(attributes: &[u8]) -> Option<XdpProgram> {
    let xdp = attribute(attributes, ATTRIBUTE_XDP)?;
    let mode = match attribute(xdp, XDP_ATTACHED)?.first()? {
        0 => return None,
        1 => XdpMode::Native,
        2 => XdpMode::Generic,
        3 => XdpMode::Offloaded,
        _ => XdpMode::Several,
    };
    let id = attribute(xdp, XDP_PROGRAM_ID).and_then(|id| u32_at(id, 0)).unwrap_or(0);
    Some(XdpProgram { mode, id })
}

/// The value of the first attribute of this type.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16_at(attributes, 0)?);
        let value = attributes.get(4..length)?;
        if u16_at(attributes, 2)? & TYPE_MASK == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_type(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = ((value.len() + 4) as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn reply(xdp: &[u8]) -> Vec<u8> {
        let mut message = vec![0; HEADER + LINK];
        message[4..6].copy_from_slice(&NEW_LINK.to_ne_bytes());
        message.extend(of_type(3, b"eth0\0"));
        message.extend(of_type(ATTRIBUTE_XDP | 0x8000, xdp));
        message
    }

    #[test]
    fn loopback_has_none_and_an_absent_interface_is_an_error() {
        assert_eq!(xdp_program(1).unwrap(), None);
        assert_eq!(xdp_program(0x7fff_fff0).unwrap_err().raw_os_error(), Some(libc::ENODEV));
    }

    #[test]
    fn modes_as_the_kernel_says_them() {
        for (byte, mode) in [(1, XdpMode::Native), (2, XdpMode::Generic), (3, XdpMode::Offloaded)] {
            let xdp = [of_type(XDP_ATTACHED, &[byte]), of_type(XDP_PROGRAM_ID, &77u32.to_ne_bytes())];
            assert_eq!(program(&reply(&xdp.concat())).unwrap(), Some(XdpProgram { mode, id: 77 }));
        }
        assert_eq!(program(&reply(&of_type(XDP_ATTACHED, &[0]))).unwrap(), None);
        let several = program(&reply(&of_type(XDP_ATTACHED, &[4]))).unwrap();
        assert_eq!(several, Some(XdpProgram { mode: XdpMode::Several, id: 0 }));
    }

    #[test]
    fn replies_that_break_off_are_no_program() {
        let whole = reply(&of_type(XDP_ATTACHED, &[1]));
        for length in HEADER..whole.len() - 4 {
            assert_eq!(program(&whole[..length]).unwrap(), None, "{length}");
        }
        assert!(program(&whole[..5]).is_err());
        assert_eq!(attribute(&[0, 0, 0, 0, 0, 0], 7), None, "an attribute of no length ends the search");
    }
}

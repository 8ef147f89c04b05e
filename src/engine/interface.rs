//! Network interfaces of the network namespace that the calling thread is in.

use std::ffi::{CStr, CString};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;

use socket2::{Domain, Socket, Type};

/// linux/sockios.h and linux/ethtool.h.
const SIOCETHTOOL: libc::Ioctl = 0x8946;
const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GCHANNELS: u32 = 0x3c;

/// struct ethtool_drvinfo.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    rest: [u8; 160],
}

/// struct ethtool_channels. A combined channel has a receive queue, too.
#[repr(C)]
#[derive(Default)]
struct Channels {
    command: u32,
    max: [u32; 4],
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

/// An interface as it was when it was looked up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface {
    pub name: String,
    pub index: u32,
    /// `ixgbe`, `veth`, …; `None` where the kernel does not say.
    pub driver: Option<String>,
    /// Receive queues in use, at least one.
    pub rx_queues: u32,
    pub mtu: u32,
    /// Set up by its administrator, and with a carrier.
    pub up: bool,
}

impl Interface {
    /// Looks up an interface. The error names it and says what to do.
    pub fn named(name: &str) -> Result<Interface, String> {
        let index = index(name).ok_or_else(|| {
            let there = names().join(", ");
            format!("there is no network interface {name:?}: give one of {there}")
        })?;
        Asked::new(name)
            .and_then(|mut asked| {
                let flags = i32::from(asked.flags()?);
                Ok(Interface {
                    name: name.to_owned(),
                    index,
                    mtu: asked.mtu()?,
                    up: flags & libc::IFF_UP != 0 && flags & libc::IFF_RUNNING != 0,
                    driver: asked.driver(),
                    rx_queues: asked.rx_queues(),
                })
            })
            .map_err(|e| {
                format!("the network interface {name} cannot be read ({e}): see ip link show {name}")
            })
    }
}

fn index(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    // SAFETY: the name is a string that ends in a zero.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    (index != 0).then_some(index)
}

/// All interfaces.
fn names() -> Vec<String> {
    let mut names = Vec::new();
    let _ = each(|name, _| {
        let name = name.to_string_lossy().into_owned();
        if !names.contains(&name) {
            names.push(name);
        }
    });
    names
}

/// Addresses of all interfaces, in the kernel's order.
pub fn addresses() -> io::Result<Vec<IpAddr>> {
    let mut addresses = Vec::new();
    each(|_, address| addresses.extend(address))?;
    Ok(addresses)
}

/// Every address of every interface. The one of its link layer, which each interface has, is shown as `None`.
fn each(mut show: impl FnMut(&CStr, Option<IpAddr>)) -> io::Result<()> {
    let mut list = ptr::null_mut();
    // SAFETY: the call stores the head of a list in a local.
    if unsafe { libc::getifaddrs(&mut list) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut entry: *const libc::ifaddrs = list;
    // SAFETY: an entry of the list is valid until the list is freed below, its next one too, and its name is a string.
    while let Some(interface) = unsafe { entry.as_ref() } {
        // SAFETY: as above; the address is null or as long as its family says.
        unsafe { show(CStr::from_ptr(interface.ifa_name), address(interface.ifa_addr)) };
        entry = interface.ifa_next;
    }
    // SAFETY: the list came from getifaddrs, and nothing refers to it any more.
    unsafe { libc::freeifaddrs(list) };
    Ok(())
}

/// # Safety
/// `address` is null or points to a socket address as long as its family says.
unsafe fn address(address: *const libc::sockaddr) -> Option<IpAddr> {
    // SAFETY: by the caller's promise. The reads need no alignment.
    unsafe {
        match i32::from(address.as_ref()?.sa_family) {
            libc::AF_INET => {
                let v4 = address.cast::<libc::sockaddr_in>().read_unaligned();
                Some(Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr)).into())
            }
            libc::AF_INET6 => {
                let v6 = address.cast::<libc::sockaddr_in6>().read_unaligned();
                Some(Ipv6Addr::from(v6.sin6_addr.s6_addr).into())
            }
            _ => None,
        }
    }
}

/// Questions about one interface, through a socket of any kind.
struct Asked {
    socket: OwnedFd,
    request: libc::ifreq,
}

impl Asked {
    /// `name`: of an interface that there is, so it fits.
    fn new(name: &str) -> io::Result<Asked> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM.cloexec(), None)?;
        // SAFETY: a request of zeroes is one of an empty name and no value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        let room = request.ifr_name.len() - 1;
        for (to, &from) in request.ifr_name[..room].iter_mut().zip(name.as_bytes()) {
            *to = from as libc::c_char;
        }
        Ok(Asked { socket: socket.into(), request })
    }

    fn flags(&mut self) -> io::Result<i16> {
        self.ask(libc::SIOCGIFFLAGS)?;
        // SAFETY: the kernel has filled in this variant.
        Ok(unsafe { self.request.ifr_ifru.ifru_flags })
    }

    fn mtu(&mut self) -> io::Result<u32> {
        self.ask(libc::SIOCGIFMTU)?;
        // SAFETY: the kernel has filled in this variant.
        Ok(unsafe { self.request.ifr_ifru.ifru_mtu } as u32)
    }

    fn driver(&mut self) -> Option<String> {
        let mut info = DriverInfo { command: ETHTOOL_GDRVINFO, driver: [0; _], rest: [0; _] };
        self.request.ifr_ifru.ifru_data = (&raw mut info).cast();
        self.ask(SIOCETHTOOL).ok()?;
        let name = CStr::from_bytes_until_nul(&info.driver).ok()?.to_str().ok()?;
        (!name.is_empty()).then(|| name.to_owned())
    }

    /// A driver that does not say has one.
    fn rx_queues(&mut self) -> u32 {
        let mut channels = Channels { command: ETHTOOL_GCHANNELS, ..Channels::default() };
        self.request.ifr_ifru.ifru_data = (&raw mut channels).cast();
        match self.ask(SIOCETHTOOL) {
            Ok(()) => (channels.rx + channels.combined).max(1),
            Err(_) => 1,
        }
    }

    fn ask(&mut self, what: libc::Ioctl) -> io::Result<()> {
        // SAFETY: the request names an interface and has room for the answer; where it holds a pointer, that is to a local
        // of the caller which is as large as its command says.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), what, &raw mut self.request) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::namespace::{self, ip};
    use super::*;

    #[test]
    fn an_interface_is_found_with_its_queues() {
        namespace::run(|| {
            ip(
                "link add far numrxqueues 3 numtxqueues 3 mtu 1400 type veth peer name near numrxqueues 2 numtxqueues 2",
            );
            let far = Interface::named("far").unwrap();
            assert_eq!((far.name.as_str(), far.driver.as_deref(), far.rx_queues), ("far", Some("veth"), 3));
            assert_eq!((far.mtu, far.up), (1_400, false));
            let near = Interface::named("near").unwrap();
            assert_eq!((near.rx_queues, near.mtu), (2, 1_500));
            assert_ne!(far.index, near.index);
            ip("link set far up");
            assert!(!Interface::named("far").unwrap().up, "it has no carrier yet");
            ip("link set near up");
            // The kernel tells of a carrier when it comes to it, up to a second later.
            let up = || {
                ip("link show far");
                Interface::named("far").unwrap().up
            };
            assert!((0..2_000).any(|_| up()));
        });
    }

    #[test]
    fn loopback_has_no_channels_and_counts_as_one_queue() {
        namespace::run(|| {
            let lo = Interface::named("lo").unwrap();
            assert_eq!((lo.index, lo.rx_queues, lo.up), (1, 1, true));
        });
    }

    #[test]
    fn an_error_names_what_there_is() {
        namespace::run(|| {
            ip("link add far type veth peer name near");
            for name in ["eth7", "", "a\0", "0123456789abcdef0123456789abcdef"] {
                let error = Interface::named(name).unwrap_err();
                assert_eq!(
                    error,
                    format!("there is no network interface {name:?}: give one of lo, near, far")
                );
            }
        });
    }

    #[test]
    fn addresses_are_those_of_all_interfaces() {
        namespace::run(|| {
            ip("link add far type veth peer name near");
            ip("addr add 10.1.2.3/24 dev far");
            ip("addr add 10.1.2.4/24 dev far");
            ip("addr add 2001:db8::5/64 dev near");
            let mut found = addresses().unwrap();
            found.sort();
            let wanted = ["10.1.2.3", "10.1.2.4", "127.0.0.1", "::1", "2001:db8::5"];
            assert_eq!(found, wanted.map(|address| address.parse::<IpAddr>().unwrap()));
        });
    }
}

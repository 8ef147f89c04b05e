//! Which media ports are ours, and whose: a table that every program reads and we write.

use std::io;

use super::insn::Function::MapLookup;
use super::insn::Register::{R0, R1, R2, R10};
use super::insn::{Line, add, call, if_eq, if_gt, if_lt, if_null, load_map, load32, mov, store32};
use super::{Map, MapKind};

/// The ports `first..=last`. A port that is not ours is left to the kernel's own lookup: somebody else may have bound it.
pub struct PortTable {
    /// By port - first: 0 for not ours, n + 1 for reactor n.
    map: Map<u32, u32>,
    first: u16,
    last: u16,
}

impl PortTable {
    /// A table in which no port is ours yet.
    pub fn new((first, last): (u16, u16)) -> Result<PortTable, String> {
        if last < first {
            return Err(format!("the media ports {first}-{last} are none: give the lower one first"));
        }
        let map = Map::new(MapKind::Array, "sipreel_ports", u32::from(last - first) + 1)?;
        Ok(PortTable { map, first, last })
    }

    /// Gives a port to a reactor or, with `None`, back to the kernel. Takes effect with the next packet. A port outside of
    /// the range is `InvalidInput`.
    pub fn set(&self, port: u16, reactor: Option<u8>) -> io::Result<()> {
        if !(self.first..=self.last).contains(&port) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.map.set(u32::from(port - self.first), reactor.map_or(0, |reactor| u32::from(reactor) + 1))
    }

    /// Lines that turn the port in R2 (host order) into R0 = the address of its value, which is not zero; if it is, or the port
    /// is outside of the range, they jump. They use R1, R2 and the four bytes of the stack at `scratch`.
    pub(super) fn find(&self, scratch: i16, otherwise: &'static str) -> [Line; 11] {
        let first = u32::from(self.first);
        [
            if_lt(R2, first, otherwise),
            if_gt(R2, u32::from(self.last), otherwise),
            add(R2, -(first as i32)),
            store32(R10, scratch, R2),
            load_map(R1, &self.map),
            mov(R2, R10),
            add(R2, i32::from(scratch)),
            call(MapLookup),
            if_null(R0, otherwise),
            load32(R1, R0, 0),
            if_eq(R1, 0, otherwise),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::namespace::NEEDED;
    use super::*;
    use crate::engine::capability::granted;

    #[test]
    fn a_port_belongs_to_one_reactor_or_to_none() {
        if !granted(&NEEDED) {
            return;
        }
        let table = PortTable::new((40_000, 40_003)).unwrap();
        table.set(40_000, Some(0)).unwrap();
        table.set(40_001, Some(63)).unwrap();
        table.set(40_003, Some(1)).unwrap();
        table.set(40_003, None).unwrap();
        let values = (0..4).map(|key| table.map.lookup(key).unwrap());
        assert_eq!(values.collect::<Vec<_>>(), [Some(1), Some(64), Some(0), Some(0)]);
        for port in [39_999, 40_004] {
            assert_eq!(table.set(port, Some(0)).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
        assert!(PortTable::new((40_001, 40_000)).err().unwrap().contains("40001-40000"));
        PortTable::new((0, u16::MAX)).unwrap().set(u16::MAX, Some(0)).unwrap();
    }
}

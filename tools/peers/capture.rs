//! Reading what capture programs write: pcap with microseconds or nanoseconds (draft-ietf-opsawg-pcap), and the files of
//! stenotype, which are the kernel's blocks of packet(7) with TPACKET_V3, one after the other.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

const MAGIC_MICROSECONDS: u32 = 0xa1b2_c3d4;
const MAGIC_NANOSECONDS: u32 = 0xa1b2_3c4d;
pub const ETHERNET: u32 = 1;
/// Records are IP packets, without a header of the link. The second is what old libpcap called it.
pub const RAW_IP: [u32; 2] = [101, 12];
/// Larger than any frame, and than any snap length that is asked for.
const RECORD_MAX: usize = 512 * 1024;
/// stenotype's block, and `struct tpacket_block_desc` before its packets.
const BLOCK: usize = 1024 * 1024;
const TPACKET_V3: u32 = 2;

/// One frame of a file.
pub struct Captured<'a> {
    pub link: u32,
    pub bytes: &'a [u8],
    /// Bytes it had on the wire: more than were kept when it was cut.
    pub original: usize,
}

/// Gives every frame of the file to `each`. A file that ends inside a record ends before it: its writer may have been stopped.
pub fn frames(path: &Path, each: &mut dyn FnMut(Captured<'_>)) -> io::Result<()> {
    let mut input = BufReader::with_capacity(1024 * 1024, File::open(path)?);
    let mut magic = [0; 4];
    if !filled(&mut input, &mut magic)? {
        return Ok(());
    }
    match u32::from_le_bytes(magic) {
        MAGIC_MICROSECONDS | MAGIC_NANOSECONDS => pcap(&mut input, each),
        TPACKET_V3 => blocks(magic, &mut input, each),
        other => Err(io::Error::other(format!("neither pcap nor stenotype's (begins with {other:#010x})"))),
    }
}

fn pcap(input: &mut impl Read, each: &mut dyn FnMut(Captured<'_>)) -> io::Result<()> {
    let mut rest = [0; 20];
    if !filled(input, &mut rest)? {
        return Ok(());
    }
    let link = word(&rest, 16) & 0x0fff_ffff;
    let (mut header, mut bytes) = ([0; 16], Vec::new());
    while filled(input, &mut header)? {
        let (kept, original) = (word(&header, 8) as usize, word(&header, 12) as usize);
        if kept > RECORD_MAX {
            return Err(io::Error::other(format!("a record of {kept} bytes")));
        }
        bytes.resize(kept, 0);
        if !filled(input, &mut bytes)? {
            break;
        }
        each(Captured { link, bytes: &bytes, original });
    }
    Ok(())
}

fn blocks(magic: [u8; 4], input: &mut impl Read, each: &mut dyn FnMut(Captured<'_>)) -> io::Result<()> {
    let mut block = vec![0; BLOCK];
    block[..4].copy_from_slice(&magic);
    let mut whole = filled(input, &mut block[4..])?;
    // What was allocated ahead and never written is zero.
    while whole && word(&block, 0) == TPACKET_V3 {
        packets(&block, each).ok_or_else(|| io::Error::other("a block whose packets are not inside it"))?;
        whole = filled(input, &mut block)?;
    }
    Ok(())
}

/// `struct tpacket_block_desc`: version, private area, status, packets, offset of the first. `struct tpacket3_hdr`: offset of the
/// next, seconds, nanoseconds, bytes kept, bytes on the wire, status, 16 bits of offset to the frame.
fn packets(block: &[u8], each: &mut dyn FnMut(Captured<'_>)) -> Option<()> {
    let mut at = word(block, 16) as usize;
    for _ in 0..word(block, 12) {
        let header = block.get(at..at + 28)?;
        let frame = at + usize::from(u16::from_le_bytes([header[24], header[25]]));
        let bytes = block.get(frame..frame + word(header, 12) as usize)?;
        each(Captured { link: ETHERNET, bytes, original: word(header, 16) as usize });
        at += word(header, 0) as usize;
    }
    Some(())
}

/// `false`: the file has ended before.
fn filled(input: &mut impl Read, out: &mut [u8]) -> io::Result<bool> {
    match input.read_exact(out) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
pub mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> io::Result<Vec<(u32, Vec<u8>, usize)>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let mut found = Vec::new();
        let mut keep = |frame: Captured<'_>| found.push((frame.link, frame.bytes.to_vec(), frame.original));
        frames(file.path(), &mut keep).map(|()| found)
    }

    /// A pcap of these records, each cut to what it has of `original` bytes.
    pub fn pcap_of(link: u32, records: &[(&[u8], usize)]) -> Vec<u8> {
        let mut file = MAGIC_MICROSECONDS.to_le_bytes().to_vec();
        file.extend([2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0]);
        file.extend(link.to_le_bytes());
        for (bytes, original) in records {
            file.extend([0; 8]);
            file.extend((bytes.len() as u32).to_le_bytes());
            file.extend((*original as u32).to_le_bytes());
            file.extend(*bytes);
        }
        file
    }

    #[test]
    fn pcap_is_read_to_its_end_and_not_beyond() {
        let whole = pcap_of(101, &[(b"abc", 3), (b"de", 9)]);
        let both = [(101, b"abc".to_vec(), 3), (101, b"de".to_vec(), 9)];
        assert_eq!(read(&whole).unwrap(), both);
        assert_eq!(read(&whole[..whole.len() - 1]).unwrap(), both[..1]);
        assert_eq!(read(&whole[..20]).unwrap(), []);
        assert_eq!(read(b"").unwrap(), []);
        assert!(read(b"\x0a\x0d\x0d\x0a").is_err());
    }

    #[test]
    fn stenotypes_blocks_are_read() {
        let mut block = vec![0; BLOCK];
        let mut put = |at: usize, value: u32| block[at..at + 4].copy_from_slice(&value.to_le_bytes());
        put(0, TPACKET_V3);
        put(12, 2);
        put(16, 48);
        for (at, next, len) in [(48, 96, 3), (144, 0, 2)] {
            put(at, next);
            put(at + 12, len);
            put(at + 16, 3);
            put(at + 24, 82);
        }
        block[130..133].copy_from_slice(b"abc");
        block[226..228].copy_from_slice(b"de");
        let frames = [(ETHERNET, b"abc".to_vec(), 3), (ETHERNET, b"de".to_vec(), 3)];
        assert_eq!(read(&block).unwrap(), frames);
        let ahead: Vec<u8> = [block.clone(), vec![0; BLOCK]].concat();
        assert_eq!(read(&ahead).unwrap(), frames);
        block[48 + 14] = 0xff;
        assert!(read(&block).is_err());
    }
}

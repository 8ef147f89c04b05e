//! Reading back what is on disk, without the recorder's own code.

use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};

/// A recording's directory and its manifest.
pub struct Recording {
    pub path: PathBuf,
    pub manifest: Value,
}

impl Recording {
    pub fn open(path: PathBuf) -> Recording {
        let text = fs::read(path.join("recording.json")).unwrap();
        Recording { manifest: serde_json::from_slice(&text).unwrap(), path }
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.file(name)).unwrap()
    }

    pub fn pcap(&self) -> Pcap {
        Pcap::read(&self.file("call.pcap"))
    }

    #[track_caller]
    pub fn stream(&self, label: &str) -> &Value {
        let streams = self.manifest["streams"].as_array().unwrap();
        streams.iter().find(|stream| stream["label"] == label).unwrap()
    }

    /// Names, sizes and hashes of the manifest are those of the directory, and the directory has nothing else.
    #[track_caller]
    pub fn check_files(&self) {
        let listed: HashMap<String, &Value> = self.manifest["files"]
            .as_array()
            .unwrap()
            .iter()
            .map(|file| (file["name"].as_str().unwrap().to_owned(), file))
            .collect();
        let mut names: Vec<String> = fs::read_dir(&self.path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "recording.json")
            .collect();
        names.sort();
        let mut expected: Vec<String> = listed.keys().cloned().collect();
        expected.sort();
        assert_eq!(names, expected);
        for (name, file) in listed {
            let bytes = self.read(&name);
            assert_eq!(file["size"], bytes.len(), "{name}");
            assert_eq!(file["sha256"], sha256(&bytes), "{name}");
        }
    }

    /// Every file is as listed, and nothing is missing.
    #[track_caller]
    pub fn check_whole(&self) {
        assert_eq!(self.manifest["state"], "ended");
        assert_eq!(self.manifest["problems"], Value::Array(Vec::new()), "{}", self.path.display());
        self.check_files();
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The UDP datagrams of a capture file, and how many records it has in all.
pub struct Pcap {
    pub records: usize,
    pub datagrams: Vec<Datagram>,
}

#[derive(Clone, Debug)]
pub struct Datagram {
    /// Nanoseconds since 1970.
    pub at: u64,
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub payload: Vec<u8>,
    /// The frame around it, with what stands behind the datagram.
    pub frame: Vec<u8>,
}

impl Datagram {
    /// Its frame was addressed to the recorder's end of a lab; one that the recorder has made up was not.
    pub fn is_from_wire(&self) -> bool {
        self.frame[..6] == [2, 0, 0, 0, 0x99, 2]
    }
}

impl Pcap {
    /// Nanosecond pcap, little endian, Ethernet. It must end at the end of a record.
    #[track_caller]
    pub fn read(path: &Path) -> Pcap {
        let bytes = fs::read(path).unwrap();
        assert_eq!(bytes[..4], 0xa1b2_3c4d_u32.to_le_bytes(), "not a nanosecond pcap");
        assert_eq!(bytes[20..24], 1_u32.to_le_bytes(), "not Ethernet");
        let mut pcap = Pcap { records: 0, datagrams: Vec::new() };
        let mut rest = &bytes[24..];
        while !rest.is_empty() {
            assert!(rest.len() >= 16, "{} bytes after the last record", rest.len());
            let word = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
            let (seconds, nanos, length) = (u64::from(word(0)), u64::from(word(4)), word(8) as usize);
            assert!(rest.len() >= 16 + length, "the last record is cut short");
            pcap.records += 1;
            pcap.datagrams.extend(udp(seconds * 1_000_000_000 + nanos, &rest[16..16 + length]));
            rest = &rest[16 + length..];
        }
        pcap
    }

    /// Datagrams to this port, in the order of the file.
    pub fn to_port(&self, port: u16) -> Vec<&Datagram> {
        self.datagrams.iter().filter(|datagram| datagram.to.port() == port).collect()
    }

    pub fn payloads_to(&self, port: u16) -> Vec<Vec<u8>> {
        self.to_port(port).into_iter().map(|datagram| datagram.payload.clone()).collect()
    }
}

/// Behind any VLAN tags and IPv4 options. What the frame has behind the datagram is padding.
fn udp(at: u64, frame: &[u8]) -> Option<Datagram> {
    let mut start = 14;
    while matches!(frame[start - 2..start], [0x81, 0x00] | [0x88, 0xa8]) {
        start += 4;
    }
    let (kind, packet) = (&frame[start - 2..start], &frame[start..]);
    let (from, to, protocol, header): (IpAddr, IpAddr, u8, usize) = match kind {
        [0x08, 0x00] => {
            let address = |at: usize| Ipv4Addr::from(<[u8; 4]>::try_from(&packet[at..at + 4]).unwrap());
            (address(12).into(), address(16).into(), packet[9], usize::from(packet[0] & 0x0f) * 4)
        }
        _ => {
            let address = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).unwrap());
            (address(8).into(), address(24).into(), packet[6], 40)
        }
    };
    let word = |at: usize| u16::from_be_bytes([packet[header + at], packet[header + at + 1]]);
    (protocol == 17).then(|| Datagram {
        at,
        from: SocketAddr::new(from, word(0)),
        to: SocketAddr::new(to, word(2)),
        payload: packet[header + 8..header + usize::from(word(4))].to_vec(),
        frame: frame.to_vec(),
    })
}

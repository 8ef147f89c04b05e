//! The codecs that can be offered, as SDP and RTP know them.

use serde::Serialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    Pcmu,
    Pcma,
    G722,
    Opus,
}

/// What the payloads are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Audio {
    /// Random bytes: any change of any bit shows.
    Random,
    /// Speech-like tones that can be listened to; PCMU and PCMA only.
    Tone,
    /// 16 bytes that tell every packet from all others, then a pattern that all share: cheap to make and to check.
    Tagged,
}

impl Codec {
    /// RFC 3551 §6; Opus has a dynamic type.
    pub fn payload_type(self) -> u8 {
        match self {
            Codec::Pcmu => 0,
            Codec::Pcma => 8,
            Codec::G722 => 9,
            Codec::Opus => 111,
        }
    }

    /// RTP clock. That of G.722 is 8,000 by historical accident (RFC 3551 §4.5.2).
    pub fn clock_rate(self) -> u32 {
        match self {
            Codec::Opus => 48_000,
            _ => 8_000,
        }
    }

    /// `None`: the codec's frames vary in size.
    pub fn bytes_per_ms(self) -> Option<usize> {
        match self {
            Codec::Opus => None,
            _ => Some(8),
        }
    }

    pub fn rtpmap(self) -> &'static str {
        match self {
            Codec::Pcmu => "PCMU/8000",
            Codec::Pcma => "PCMA/8000",
            Codec::G722 => "G722/8000",
            Codec::Opus => "opus/48000/2",
        }
    }

    /// Encoding name as SDP writes it.
    pub fn encoding(self) -> &'static str {
        self.rtpmap().split('/').next().unwrap_or_default()
    }

    /// Ending of a raw file that holds the codec's bytes; `None`: rtpdump.
    pub fn raw_extension(self) -> Option<&'static str> {
        match self {
            Codec::Pcmu => Some("ulaw"),
            Codec::Pcma => Some("alaw"),
            Codec::G722 => Some("g722"),
            Codec::Opus => None,
        }
    }

    /// What fills gaps of a raw file. That of G.722 has the smallest step in both bands (ITU-T G.722, tables 9 and 14).
    pub fn silence(self) -> u8 {
        match self {
            Codec::Pcmu => 0xff,
            Codec::Pcma => 0xd5,
            Codec::G722 => 0xfd,
            // Its files are rtpdump.
            Codec::Opus => 0,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Codec::Pcmu => "pcmu",
            Codec::Pcma => "pcma",
            Codec::G722 => "g722",
            Codec::Opus => "opus",
        }
    }

    pub fn from_name(name: &str) -> Option<Codec> {
        [Codec::Pcmu, Codec::Pcma, Codec::G722, Codec::Opus].into_iter().find(|codec| codec.name() == name)
    }
}

impl Audio {
    pub fn name(self) -> &'static str {
        match self {
            Audio::Random => "random",
            Audio::Tone => "tone",
            Audio::Tagged => "tagged",
        }
    }

    pub fn from_name(name: &str) -> Option<Audio> {
        [Audio::Random, Audio::Tone, Audio::Tagged].into_iter().find(|audio| audio.name() == name)
    }
}

//! Speech-like G.711 made by arithmetic: a voice per stream, syllables, and the two sides taking turns. Every sample is a pure
//! function of (call, stream, sample index), in integers, so that any machine makes the same bytes.

use super::codec::Codec;
use super::plan::{StreamPlan, mix};

const RATE: u32 = 8_000;
/// One side speaks, then the other.
const TURN_SAMPLES: u64 = 2 * RATE as u64;
const SYLLABLE_SAMPLES: u64 = RATE as u64 / 4;
/// Loudest sample: 12 dB below full scale.
const PEAK: i64 = 8_000;

/// Fills `out` with the samples from `first_sample` on, encoded.
pub fn tone(codec: Codec, stream: &StreamPlan, first_sample: u64, out: &mut [u8]) {
    let encode = if codec == Codec::Pcma { alaw } else { ulaw };
    for (sample, byte) in (first_sample..).zip(out) {
        *byte = encode(voice(stream.call, stream.stream, sample));
    }
}

/// One linear sample, 16 bits.
fn voice(call: u32, stream: u32, sample: u64) -> i16 {
    let speaker = (sample / TURN_SAMPLES) % 2;
    if speaker != u64::from(stream % 2) {
        return 0;
    }
    let who = mix(u64::from(call) << 32 | u64::from(stream));
    let syllable = mix(who ^ (sample / SYLLABLE_SAMPLES));
    let base = if stream.is_multiple_of(2) { 110 } else { 190 };
    let pitch = base + (who % 40) as u32 + (syllable % 25) as u32;
    let within = sample % SYLLABLE_SAMPLES;
    let vowel = harmonics(pitch, within, syllable >> 32);
    (vowel * envelope(within) / 32_768) as i16
}

/// A fundamental and three overtones, in the shares that this syllable's vowel has.
fn harmonics(pitch: u32, within: u64, vowel: u64) -> i64 {
    let shares: [i64; 4] = [4, 1 + (vowel % 4) as i64, 1 + (vowel / 4 % 4) as i64, (vowel / 16 % 3) as i64];
    let total: i64 = shares.iter().sum();
    let sum: i64 = (1u64..)
        .zip(shares)
        .map(|(overtone, share)| {
            share * sine((u64::from(pitch) * overtone * within * 65_536 / u64::from(RATE)) as u32)
        })
        .sum();
    sum * PEAK / (32_768 * total)
}

/// 0 at both ends of a syllable, 32,768 in its middle.
fn envelope(within: u64) -> i64 {
    sine((within * 32_768 / SYLLABLE_SAMPLES) as u32)
}

/// Sine of a phase in 1/65,536 turns, ±32,768: Bhaskara's rational approximation, good to 0.2 %.
fn sine(phase: u32) -> i64 {
    let x = i64::from(phase % 32_768);
    let product = x * (32_768 - x);
    let half = 32_768 * (4 * product) / (5 * 32_768 * 32_768 / 4 - product);
    if phase % 65_536 < 32_768 { half } else { -half }
}

/// ITU-T G.711 µ-law.
pub fn ulaw(linear: i16) -> u8 {
    let sign = if linear < 0 { 0x80 } else { 0 };
    let magnitude = i32::from(linear).abs().min(32_635) + 0x84;
    let exponent = 31 - magnitude.leading_zeros() as i32 - 7;
    let mantissa = (magnitude >> (exponent + 3)) & 0x0f;
    !(sign | (exponent << 4) as u8 | mantissa as u8)
}

/// ITU-T G.711 A-law.
pub fn alaw(linear: i16) -> u8 {
    let sign = if linear >= 0 { 0x80 } else { 0 };
    let magnitude = (i32::from(linear) ^ (i32::from(linear) >> 31)) >> 4;
    let code = match magnitude {
        0..=15 => magnitude,
        _ => {
            let exponent = 31 - magnitude.leading_zeros() as i32 - 3;
            (exponent << 4) | (magnitude >> (exponent - 1)) & 0x0f
        }
    };
    (sign | code as u8) ^ 0x55
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::plan::tests::plan;

    #[test]
    fn g711_golden_values() {
        assert_eq!([0, 1_000, -1_000, 32_767, -32_768].map(ulaw), [0xff, 0xce, 0x4e, 0x80, 0x00]);
        assert_eq!([0, 1_000, -1_000, 32_767, -32_768].map(alaw), [0xd5, 0xfa, 0x7a, 0xaa, 0x2a]);
    }

    #[test]
    fn sine_is_one() {
        assert_eq!([0, 16_384, 32_768, 49_152].map(sine), [0, 32_768, 0, -32_768]);
        assert!((sine(8_192) - 23_170).abs() < 60);
    }

    #[test]
    fn a_tone_does_not_depend_on_how_it_is_cut() {
        let stream = plan().stream(1, 0);
        let (mut whole, mut parts) = ([0u8; 480], [0u8; 480]);
        tone(Codec::Pcmu, &stream, 1_000, &mut whole);
        for (i, part) in parts.chunks_mut(80).enumerate() {
            tone(Codec::Pcmu, &stream, 1_000 + i as u64 * 80, part);
        }
        assert_eq!(whole, parts);
        assert!(whole.iter().any(|byte| *byte != 0xff));
    }

    #[test]
    fn the_two_sides_take_turns() {
        let loud = |stream, from: u64| (from..from + TURN_SAMPLES).any(|s| voice(0, stream, s).abs() > 2_000);
        assert!(loud(0, 0) && !loud(1, 0));
        assert!(loud(1, TURN_SAMPLES) && !loud(0, TURN_SAMPLES));
    }
}

//! Times as RFC 7865 §6.9 wants them: RFC 3339 §5.6.

/// Seconds since 1970-01-01T00:00:00Z, and nanoseconds.
pub type Instant = (i64, u32);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TimeError {
    /// Right but for the offset from UTC, which is not there.
    NoZone,
    Syntax,
}

/// `2026-11-22T08:00:00.123Z`, `2026-11-22T09:00:00+01:00`.
pub fn parse(text: &str) -> Result<Instant, TimeError> {
    let bytes = text.as_bytes();
    if bytes.len() < 19 || !bytes.is_ascii() {
        return Err(TimeError::Syntax);
    }
    let separators = [(4, b'-'), (7, b'-'), (13, b':'), (16, b':')];
    let separated = separators.iter().all(|(at, byte)| bytes[*at] == *byte) && b"Tt".contains(&bytes[10]);
    let field = |at: usize, length: usize| number(&bytes[at..at + length]).ok_or(TimeError::Syntax);
    let (year, month, day) = (field(0, 4)?, field(5, 2)?, field(8, 2)?);
    let (hour, minute, second) = (field(11, 2)?, field(14, 2)?, field(17, 2)?);
    let date = (1..=12).contains(&month) && (1..=days_of(year, month)).contains(&day);
    // A leap second is 60.
    if !separated || !date || hour > 23 || minute > 59 || second > 60 {
        return Err(TimeError::Syntax);
    }
    let (nanos, zone) = fraction(&bytes[19..])?;
    let offset = offset(zone)?;
    let seconds = days_from_1970(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second;
    Ok((seconds - offset, nanos))
}

fn number(digits: &[u8]) -> Option<i64> {
    let digit = |byte: &u8| byte.is_ascii_digit().then(|| i64::from(byte - b'0'));
    digits.iter().try_fold(0, |sum, byte| Some(sum * 10 + digit(byte)?))
}

fn fraction(rest: &[u8]) -> Result<(u32, &[u8]), TimeError> {
    let Some(digits) = rest.strip_prefix(b".") else { return Ok((0, rest)) };
    let length = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if length == 0 {
        return Err(TimeError::Syntax);
    }
    let nanos = (0..9).fold(0, |sum, place| {
        let digit = digits[..length].get(place).map_or(0, |byte| u32::from(byte - b'0'));
        sum * 10 + digit
    });
    Ok((nanos, &digits[length..]))
}

/// Seconds east of UTC.
fn offset(zone: &[u8]) -> Result<i64, TimeError> {
    match zone {
        [] => Err(TimeError::NoZone),
        b"Z" | b"z" => Ok(0),
        [sign @ (b'+' | b'-'), hours @ .., b':', m1, m2] if hours.len() == 2 => {
            let hours = number(hours).filter(|hours| *hours < 24).ok_or(TimeError::Syntax)?;
            let minutes = number(&[*m1, *m2]).filter(|minutes| *minutes < 60).ok_or(TimeError::Syntax)?;
            let offset = hours * 3_600 + minutes * 60;
            Ok(if *sign == b'-' { -offset } else { offset })
        }
        _ => Err(TimeError::Syntax),
    }
}

fn days_of(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// In the proleptic Gregorian calendar, years counted from 1 March.
fn days_from_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Wall;
    use proptest::prelude::*;

    #[test]
    fn times() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", (0, 0)),
            ("2026-11-22T08:30:45Z", (1_795_336_245, 0)),
            ("2026-11-22t09:30:45.123456789123+01:00", (1_795_336_245, 123_456_789)),
            ("2026-11-22T00:30:45.5-08:00", (1_795_336_245, 500_000_000)),
            ("2024-02-29T23:59:60Z", (1_709_251_200, 0)),
        ] {
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_none() {
        for text in ["2026-11-22T08:30:45", "2026-11-22T08:30:45.5"] {
            assert_eq!(parse(text), Err(TimeError::NoZone), "{text}");
        }
        for text in [
            "",
            "later",
            "2026-11-22",
            "2026-11-22 08:30:45Z",
            "2026-02-29T08:30:45Z",
            "2026-13-01T08:30:45Z",
            "2026-11-22T24:30:45Z",
            "2026-11-22T08:30:45+0000",
            "2026-11-22T08:30:45.Z",
            "2026-11-22T08:30:45+25:00",
            "2026-11-22T08:30:4\u{e9}Z",
        ] {
            assert_eq!(parse(text), Err(TimeError::Syntax), "{text}");
        }
    }

    proptest! {
        #[test]
        fn the_clock_writes_what_is_read_here(nanos in 0..4_000_000_000_000_000_000u64) {
            let micros = nanos / 1_000 * 1_000;
            let read = parse(&Wall(micros).to_string()).unwrap();
            prop_assert_eq!(read, ((micros / 1_000_000_000) as i64, (micros % 1_000_000_000) as u32));
        }

        #[test]
        fn whatever_comes(text in ".{0,40}") {
            let _ = parse(&text);
        }
    }
}

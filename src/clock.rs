//! Time as a value. Nothing below the engine reads a clock: every entry point takes [`Now`].

use std::fmt;
use std::time::Duration;

/// Nanoseconds of the monotonic clock. Only differences mean anything.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Mono(pub u64);

impl Mono {
    pub const MAX: Mono = Mono(u64::MAX);

    /// Time from `earlier` to `self`; zero when `earlier` is later.
    pub fn since(self, earlier: Mono) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::Add<Duration> for Mono {
    type Output = Mono;
    fn add(self, rhs: Duration) -> Mono {
        Mono(self.0.saturating_add(u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// Nanoseconds since 1970-01-01T00:00:00Z. Displays as RFC 3339 UTC with microseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Wall(pub u64);

/// One reading of both clocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Now {
    pub mono: Mono,
    pub wall: Wall,
}

/// A civil UTC date and time, to the second.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Civil {
    pub year: i64,
    pub month: u8,
    pub day: u8,
    pub hour: u8,
    pub minute: u8,
    pub second: u8,
}

impl Wall {
    pub fn civil(self) -> Civil {
        let secs = (self.0 / 1_000_000_000) as i64;
        let (days, rest) = (secs.div_euclid(86_400), secs.rem_euclid(86_400));
        // Days to civil date in the proleptic Gregorian calendar, years counted from 1 March.
        let z = days + 719_468;
        let era = z.div_euclid(146_097);
        let day_of_era = z.rem_euclid(146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        Civil {
            year: year_of_era + era * 400 + i64::from(month <= 2),
            month: month as u8,
            day: (day_of_year - (153 * shifted_month + 2) / 5 + 1) as u8,
            hour: (rest / 3_600) as u8,
            minute: (rest / 60 % 60) as u8,
            second: (rest % 60) as u8,
        }
    }

    /// `2026/11/22/07`: the directory of the hour in which a recording starts.
    /// What [`Wall`] displays, and no other way to write a time.
    pub fn parse(text: &str) -> Option<Wall> {
        let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<u64>().ok();
        let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
        // Months are counted from March, so that the leap day is the last of its year.
        let shifted = (month + 9) % 12;
        let year_of_march = year.checked_sub(u64::from(month < 3))?;
        let leap_days = year_of_march / 4 - year_of_march / 100 + year_of_march / 400;
        let days = (year_of_march * 365 + leap_days + (shifted * 153 + 2) / 5 + day).checked_sub(719_469)?;
        let seconds = days * 86_400 + number(11..13)? * 3_600 + number(14..16)? * 60 + number(17..19)?;
        let wall = Wall(seconds * 1_000_000_000 + number(20..26)? * 1_000);
        (wall.to_string() == text).then_some(wall)
    }

    pub fn hour_path(self) -> String {
        let c = self.civil();
        format!("{:04}/{:02}/{:02}/{:02}", c.year, c.month, c.day, c.hour)
    }
}

impl fmt::Display for Wall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let c = self.civil();
        let micros = self.0 % 1_000_000_000 / 1_000;
        let Civil { year, month, day, hour, minute, second } = c;
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
    }
}

impl serde::Serialize for Wall {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_displayed_time_comes_back() {
        for seconds in [0, 951_782_400, 951_868_800, 1_709_164_800, 1_795_336_245, 4_107_542_400] {
            let wall = Wall(seconds * 1_000_000_000 + 123_456_000);
            assert_eq!(Wall::parse(&wall.to_string()), Some(wall));
        }
        for bad in ["", "2026-11-22", "2026-13-22T08:30:45.000000Z", "2026-02-30T08:30:45.000000Z", "é"] {
            assert_eq!(Wall::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn wall_displays_as_rfc_3339() {
        for (secs, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (1_795_336_245, "2026-11-22T08:30:45.000000Z"),
            (4_107_542_399, "2100-02-28T23:59:59.000000Z"),
        ] {
            assert_eq!(Wall(secs * 1_000_000_000).to_string(), text);
        }
        assert_eq!(Wall(1_795_336_245_123_456_789).to_string(), "2026-11-22T08:30:45.123456Z");
        assert_eq!(Wall(1_795_336_245_000_000_000).hour_path(), "2026/11/22/08");
    }

    #[test]
    fn differences_saturate() {
        assert_eq!(Mono(5).since(Mono(9)), Duration::ZERO);
        assert_eq!(Mono::MAX + Duration::from_secs(1), Mono::MAX);
    }
}

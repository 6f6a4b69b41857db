//! Moments and ages, as people write them and as people read them.

use crate::clock::Timestamp;
use std::str::FromStr;
use std::time::Duration;

/// A moment given on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// RFC 3339, or a day.
    At(Timestamp),
    /// So long before now.
    Ago(Duration),
}

impl When {
    /// The moment, seen from `now`.
    pub fn from(self, now: Timestamp) -> Timestamp {
        match self {
            When::At(time) => time,
            When::Ago(age) => now.minus(age),
        }
    }
}

impl FromStr for When {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<When, &'static str> {
        let day = || Timestamp::parse(&format!("{text}T00:00:00Z"));
        let ago = || humantime::parse_duration(text).ok().map(When::Ago);
        Timestamp::parse(text)
            .or_else(day)
            .map(When::At)
            .or_else(ago)
            .ok_or("write a time in UTC such as 2026-01-02T03:04:05Z or 2026-01-02, or how long ago: 2h, 30d")
    }
}

/// A span for people: its two largest units at most.
pub fn age(span: Duration) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")];
    let seconds = span.as_secs();
    let Some(i) = UNITS.iter().position(|(unit, _)| seconds >= *unit) else { return "0 s".to_owned() };
    let (unit, name) = UNITS[i];
    let rest = UNITS.get(i + 1).map(|(next, name)| (seconds % unit / next, name)).filter(|(n, _)| *n > 0);
    match rest {
        Some((n, next)) => format!("{} {name} {n} {next}", seconds / unit),
        None => format!("{} {name}", seconds / unit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_time_a_day_or_an_age() {
        let now = Timestamp::parse("2026-01-02T03:04:05Z").unwrap();
        for (text, want) in [
            ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z"),
            ("2026-01-01", "2026-01-01T00:00:00Z"),
            ("2h", "2026-01-02T01:04:05Z"),
            ("30d", "2025-12-03T03:04:05Z"),
        ] {
            assert_eq!(text.parse::<When>().unwrap().from(now).to_string(), want, "{text}");
        }
        for text in ["", "yesterday", "2", "-2h", "2026-13-01"] {
            assert!(text.parse::<When>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_age_has_two_units_at_most() {
        for (seconds, want) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (61, "1 min 1 s"),
            (7_322, "2 h 2 min"),
            (86_459, "1 d"),
            (180_000, "2 d 2 h"),
        ] {
            assert_eq!(age(Duration::from_secs(seconds)), want);
        }
    }
}

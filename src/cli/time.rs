//! Times and durations as people write and read them.

use crate::clock::Timestamp;
use std::str::FromStr;
use std::time::Duration;

/// A time given on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeArgument {
    /// RFC 3339, or a day.
    At(Timestamp),
    /// A duration before now.
    Ago(Duration),
}

impl TimeArgument {
    /// The time, where an age counts back from `now`.
    pub fn resolve(self, now: Timestamp) -> Timestamp {
        match self {
            TimeArgument::At(time) => time,
            TimeArgument::Ago(age) => now.minus(age),
        }
    }
}

impl FromStr for TimeArgument {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<TimeArgument, &'static str> {
        let day = || Timestamp::parse(&format!("{text}T00:00:00Z"));
        let ago = || humantime::parse_duration(text).ok().map(TimeArgument::Ago);
        Timestamp::parse(text).or_else(day).map(TimeArgument::At).or_else(ago).ok_or(
            "give a time in UTC, such as 2026-01-02T03:04:05Z or 2026-01-02, or an age, such as 2h or 30d",
        )
    }
}

const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")];

/// A duration in its largest unit and the next smaller one: `2 h 5 min`.
pub fn duration_text(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let Some(i) = UNITS.iter().position(|(unit, _)| seconds >= *unit) else { return "0 s".to_owned() };
    let (unit, name) = UNITS[i];
    let rest = UNITS.get(i + 1).map(|(next, name)| (seconds % unit / next, name)).filter(|(n, _)| *n > 0);
    match rest {
        Some((n, next)) => format!("{} {name} {n} {next}", seconds / unit),
        None => format!("{} {name}", seconds / unit),
    }
}

/// A duration in its largest unit alone, for a narrow column: `2 h`.
pub fn short_duration_text(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (unit, name) = UNITS.into_iter().find(|(unit, _)| seconds >= *unit).unwrap_or((1, "s"));
    format!("{} {name}", seconds / unit)
}

/// A time and its age: `2026-01-02T03:04:05Z, 2 h 5 min ago`.
pub fn time_and_age(at: Timestamp, now: Timestamp) -> String {
    format!("{at}, {} ago", duration_text(now.since(at)))
}

/// The time until the next try: `next try in 56 s`, or `trying now`.
pub fn next_try_text(wait: Duration) -> String {
    match wait.as_secs() {
        0 => "trying now".to_owned(),
        _ => format!("next try in {}", duration_text(wait)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_argument_is_a_time_a_day_or_an_age() {
        let now = Timestamp::parse("2026-01-02T03:04:05Z").unwrap();
        for (text, want) in [
            ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z"),
            ("2026-01-01", "2026-01-01T00:00:00Z"),
            ("2h", "2026-01-02T01:04:05Z"),
            ("30d", "2025-12-03T03:04:05Z"),
        ] {
            assert_eq!(text.parse::<TimeArgument>().unwrap().resolve(now).to_string(), want, "{text}");
        }
        for text in ["", "yesterday", "2", "-2h", "2026-13-01"] {
            assert!(text.parse::<TimeArgument>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_duration_has_two_units_at_most() {
        for (seconds, want, short) in [
            (0, "0 s", "0 s"),
            (59, "59 s", "59 s"),
            (60, "1 min", "1 min"),
            (61, "1 min 1 s", "1 min"),
            (7_322, "2 h 2 min", "2 h"),
            (86_459, "1 d", "1 d"),
            (180_000, "2 d 2 h", "2 d"),
        ] {
            assert_eq!(duration_text(Duration::from_secs(seconds)), want);
            assert_eq!(short_duration_text(Duration::from_secs(seconds)), short);
        }
    }
}

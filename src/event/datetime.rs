//! The date-time that Segment's destination accepts: `date-time` of ajv-formats, which is RFC 3339 with an optional
//! zone and more spellings. A crate for RFC 3339 would refuse events that Segment passes.
//!
//! Other spellings of one moment are completed. Those that name several, such as a day, are not: a moment that is made up
//! could not be told from a real one later.

use super::json::is_js_space;
use crate::clock::Timestamp;

/// Whether `text` is a day that exists (`YYYY-MM-DD`), then `T`, `t` or one white space of JavaScript's, then
/// `HH:MM:SS` with an optional fraction of any length and an optional zone, whose range is not checked.
pub fn is_valid(text: &str) -> bool {
    let mut cursor = Cursor { rest: text };
    date(&mut cursor).is_some()
        && cursor.eat(is_separator).is_some()
        && time(&mut cursor).is_some()
        && cursor.rest.is_empty()
}

/// The text in RFC 3339, if it names one moment in another spelling: without seconds, with a comma before the fraction,
/// with white space around it or before its zone, with a zone that is `UTC` or `GMT` or has its name behind it in brackets,
/// or as the time since 1970. A text without a zone stays without one.
pub fn completed(text: &str) -> Option<String> {
    let text = text.trim_matches(is_js_space);
    if let Some(timestamp) = since_1970(text) {
        return Some(timestamp.to_millis_string());
    }
    let mut cursor = Cursor { rest: text };
    date(&mut cursor)?;
    let day = text.get(..10)?;
    cursor.eat(is_separator)?;
    cursor.skip_spaces();
    let hour = cursor.digits(2)?;
    let minute = cursor.eat(|c| c == ':').and_then(|()| cursor.digits(2))?;
    let second = if cursor.eat(|c| c == ':').is_some() { cursor.digits(2)? } else { 0 };
    let is_time = is_leap_second(hour, minute, second) || hour <= 23 && minute <= 59 && second <= 59;
    let mut fraction = String::new();
    if cursor.eat(|c| matches!(c, '.' | ',')).is_some() {
        let digits = cursor.take_while(|c| c.is_ascii_digit());
        fraction = Some(format!(".{digits}")).filter(|_| !digits.is_empty())?;
    }
    cursor.skip_spaces();
    let zone = zone(&mut cursor)?;
    is_time.then(|| format!("{day}T{hour:02}:{minute:02}:{second:02}{fraction}{zone}"))
}

/// The zone at the end of the text, in RFC 3339; empty if there is none.
fn zone(cursor: &mut Cursor) -> Option<String> {
    if cursor.rest.is_empty() {
        return Some(String::new());
    }
    let zone = match cursor.take_while(|c| c.is_ascii_alphabetic()) {
        "" => {
            let sign = if cursor.eat(|c| c == '+').is_some() { '+' } else { '-' };
            if sign == '-' {
                cursor.eat(|c| c == '-')?;
            }
            let hours = cursor.digits(2)?;
            let has_colon = cursor.eat(|c| c == ':').is_some();
            let minutes = cursor.digits(2).or((!has_colon).then_some(0))?;
            (hours <= 23 && minutes <= 59).then(|| format!("{sign}{hours:02}:{minutes:02}"))?
        }
        name => {
            ["Z", "UTC", "GMT"].iter().any(|utc| utc.eq_ignore_ascii_case(name)).then(|| "Z".to_owned())?
        }
    };
    cursor.skip_spaces();
    if cursor.eat(|c| c == '[').is_some() {
        cursor.take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '/' | '_' | '-' | '+'));
        cursor.eat(|c| c == ']')?;
    }
    cursor.rest.is_empty().then_some(zone)
}

/// The moment that is a number of seconds, or of parts of a second, since 1970. The size tells the unit: as seconds, the
/// number is a time between 2001 and 2286. A date without separators, such as 20260102030405, is no such number.
fn since_1970(text: &str) -> Option<Timestamp> {
    let number: f64 = text.parse().ok().filter(|_| text.starts_with(|c: char| c.is_ascii_digit()))?;
    let seconds = [1.0, 1e3, 1e6, 1e9].map(|units| number / units);
    let seconds = seconds.into_iter().find(|seconds| (1e9..1e10).contains(seconds))?;
    Some(Timestamp((seconds * 1e3).round() as i64))
}

/// What is wrong with a text that is no date-time, where its author may not see it.
pub fn why_invalid(text: &str) -> Option<&'static str> {
    let mut cursor = Cursor { rest: text.trim_matches(is_js_space) };
    date(&mut cursor)?;
    match cursor.rest {
        "" => Some("is a day without a time"),
        rest if rest.get(1..).is_some_and(|time| time.starts_with("24:00")) => {
            Some("has the hour 24: write 00:00 of the next day")
        }
        _ => None,
    }
}

fn date(cursor: &mut Cursor) -> Option<()> {
    let year = cursor.digits(4)?;
    let month = cursor.eat(|c| c == '-').and_then(|()| cursor.digits(2))?;
    let day = cursor.eat(|c| c == '-').and_then(|()| cursor.digits(2))?;
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let last_day = match month {
        2 if is_leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    (1..=last_day).contains(&day).then_some(())
}

fn time(cursor: &mut Cursor) -> Option<()> {
    let hour = cursor.digits(2)?;
    let minute = cursor.eat(|c| c == ':').and_then(|()| cursor.digits(2))?;
    let second = cursor.eat(|c| c == ':').and_then(|()| cursor.digits(2))?;
    if cursor.eat(|c| c == '.').is_some() {
        cursor.digits(1)?;
        while cursor.digits(1).is_some() {}
    }
    if cursor.eat(|c| matches!(c, 'Z' | 'z')).is_none() && cursor.eat(|c| matches!(c, '+' | '-')).is_some() {
        cursor.digits(2)?;
        if cursor.eat(|c| c == ':').is_some() || !cursor.rest.is_empty() {
            cursor.digits(2)?;
        }
    }
    (is_leap_second(hour, minute, second) || hour <= 23 && minute <= 59 && second <= 59).then_some(())
}

fn is_leap_second(hour: u32, minute: u32, second: u32) -> bool {
    (hour, minute, second) == (23, 59, 60)
}

fn is_separator(c: char) -> bool {
    matches!(c, 'T' | 't') || is_js_space(c)
}

/// The part of the text that is still to be read.
struct Cursor<'a> {
    rest: &'a str,
}

impl<'a> Cursor<'a> {
    fn eat(&mut self, want: impl Fn(char) -> bool) -> Option<()> {
        let mut chars = self.rest.chars();
        chars.next().filter(|&c| want(c))?;
        self.rest = chars.as_str();
        Some(())
    }

    fn take_while(&mut self, is_wanted: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|c| !is_wanted(c)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        taken
    }

    fn skip_spaces(&mut self) {
        self.take_while(is_js_space);
    }

    fn digits(&mut self, count: usize) -> Option<u32> {
        let (digits, rest) = self.rest.split_at_checked(count)?;
        let number = digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())??;
        self.rest = rest;
        Some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn real_moments_pass_in_every_spelling() {
        for text in [
            "2024-03-05T14:07:09Z",
            "2024-03-05t14:07:09z",
            "2024-03-05 14:07:09",
            "2024-03-05\t14:07:09",
            "2024-03-05\u{a0}14:07:09",
            "2024-03-05\u{feff}14:07:09",
            "2024-03-05T14:07:09.1",
            "2024-03-05T14:07:09.123456789012345678901234567890Z",
            "2024-03-05T14:07:09+02:00",
            "2024-03-05T14:07:09-0230",
            "2024-03-05T14:07:09-0099",
            "2024-03-05T14:07:09+02",
            "2024-03-05T14:07:09.5+99:99",
            "2024-02-29T00:00:00Z",
            "2000-02-29T00:00:00Z",
            "0000-01-01T00:00:00Z",
            "9999-12-31T23:59:59Z",
            "2016-12-31T23:59:60Z",
            "2024-04-30T23:59:60+05:00",
        ] {
            assert!(is_valid(text), "{text}");
        }
    }

    #[test]
    fn days_that_do_not_exist_and_other_spellings_are_refused() {
        for text in [
            "",
            "noon",
            "1709647629123",
            "2024-03-05",
            "2024-03-05T",
            "2024-03-05T14:07Z",
            "2024-03-05T24:00:00Z",
            "2024-03-05T14:60:00Z",
            "2024-03-05T14:07:60Z",
            "2024-03-05T23:59:61Z",
            "2024-02-30T00:00:00Z",
            "2023-02-29T00:00:00Z",
            "1900-02-29T00:00:00Z",
            "2024-04-31T00:00:00Z",
            "2024-00-05T00:00:00Z",
            "2024-13-05T00:00:00Z",
            "2024-03-00T00:00:00Z",
            "2024-03-32T00:00:00Z",
            "2024-3-5T14:07:09Z",
            "20240305T140709Z",
            "+2024-03-05T14:07:09Z",
            "2024-03-05  14:07:09Z",
            "2024-03-05_14:07:09Z",
            "2024-03-05\u{85}14:07:09Z",
            " 2024-03-05T14:07:09Z",
            "2024-03-05T14:07:09Z ",
            "2024-03-05T14:07:09.Z",
            "2024-03-05T14:07:09,5Z",
            "2024-03-05T14:07:09 Z",
            "2024-03-05T14:07:09+2",
            "2024-03-05T14:07:09+02:",
            "2024-03-05T14:07:09+020",
            "2024-03-05T14:07:09+02:00Z",
            "2024-03-05T14:07:09ZZ",
            "2024-03-05T+1:07:09Z",
            "2024-03-05T14:07:0é",
            "２０２４-03-05T14:07:09Z",
        ] {
            assert!(!is_valid(text), "{text}");
        }
    }

    #[test]
    fn other_spellings_of_one_moment_are_completed() {
        for (text, want) in [
            ("2026-03-27T09:53Z", "2026-03-27T09:53:00Z"),
            ("2026-03-27 09:53", "2026-03-27T09:53:00"),
            ("2026-03-27T09:53:59.996+01:00[Europe/Paris]", "2026-03-27T09:53:59.996+01:00"),
            ("2026-03-27T09:53:59Z[UTC]", "2026-03-27T09:53:59Z"),
            ("2026-03-27T09:53-0330 [America/St_Johns]", "2026-03-27T09:53:00-03:30"),
            ("2026-03-27 09:53:59 +0100", "2026-03-27T09:53:59+01:00"),
            ("2026-03-27 09:53:59 -05", "2026-03-27T09:53:59-05:00"),
            ("2026-03-27T09:53:59,996Z", "2026-03-27T09:53:59.996Z"),
            ("2026-03-27 09:53:59 UTC", "2026-03-27T09:53:59Z"),
            ("2026-03-27 09:53:59.1234567 gmt", "2026-03-27T09:53:59.1234567Z"),
            (" 2026-03-27T09:53:59Z\n", "2026-03-27T09:53:59Z"),
            ("2026-03-27  09:53:59", "2026-03-27T09:53:59"),
            ("2016-12-31T23:59:60,5Z", "2016-12-31T23:59:60.5Z"),
            ("1774601639996", "2026-03-27T08:53:59.996Z"),
            ("1774601639.996", "2026-03-27T08:53:59.996Z"),
            ("1774601639", "2026-03-27T08:53:59.000Z"),
            ("1.774601639996e12", "2026-03-27T08:53:59.996Z"),
            ("1774601639996123", "2026-03-27T08:53:59.996Z"),
            ("1774601639996123456", "2026-03-27T08:53:59.996Z"),
        ] {
            assert!(!is_valid(text), "{text}");
            assert_eq!(completed(text).as_deref(), Some(want), "{text}");
            assert!(is_valid(want), "{want}");
        }
    }

    #[test]
    fn a_text_that_names_no_moment_or_several_is_not_completed() {
        for (text, why) in [
            ("2026-03-27", Some("is a day without a time")),
            ("2026-03-27T24:00:00Z", Some("has the hour 24: write 00:00 of the next day")),
            ("2026-03-27T25:00:00Z", None),
            ("2026-02-30T09:53Z", None),
            ("2026-03-27T09Z", None),
            ("2026-03-27T09:53:59,Z", None),
            ("2026-03-27T09:53 CET", None),
            ("2026-03-27T09:53+1", None),
            ("2026-03-27T09:53+01:", None),
            ("2026-03-27T09:53+24:00", None),
            ("2026-03-27T09:53[Europe/Paris]", None),
            ("2026-03-27T09:53Z[Europe", None),
            ("2026-03-27T09:53Z[a b]", None),
            ("27.03.2026 09:53", None),
            ("20260327", None),
            ("202603270953", None),
            ("20260327095359", None),
            ("20260327095359996", None),
            ("0", None),
            ("999999999", None),
            ("-1774601639", None),
            ("inf", None),
            ("Invalid date", None),
            ("", None),
        ] {
            assert_eq!(completed(text), None, "{text}");
            assert_eq!(why_invalid(text), why, "{text}");
        }
    }
}

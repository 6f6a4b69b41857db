//! The date-time that Segment's destination accepts: `date-time` of ajv-formats, which is RFC 3339 with an optional
//! zone and more spellings. A crate for RFC 3339 would refuse events that Segment passes.

use super::json::is_js_space;

/// Whether `text` is a day that exists (`YYYY-MM-DD`), then `T`, `t` or one white space of JavaScript's, then
/// `HH:MM:SS` with an optional fraction of any length and an optional zone, whose range is not checked.
pub fn is_valid(text: &str) -> bool {
    let mut cursor = Cursor { rest: text };
    date(&mut cursor).is_some()
        && cursor.eat(is_separator).is_some()
        && time(&mut cursor).is_some()
        && cursor.rest.is_empty()
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
    let is_leap_second = (hour, minute, second) == (23, 59, 60);
    (is_leap_second || hour <= 23 && minute <= 59 && second <= 59).then_some(())
}

fn is_separator(c: char) -> bool {
    matches!(c, 'T' | 't') || is_js_space(c)
}

/// The part of the text that is still to be read.
struct Cursor<'a> {
    rest: &'a str,
}

impl Cursor<'_> {
    fn eat(&mut self, want: impl Fn(char) -> bool) -> Option<()> {
        let mut chars = self.rest.chars();
        chars.next().filter(|&c| want(c))?;
        self.rest = chars.as_str();
        Some(())
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
}

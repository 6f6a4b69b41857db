//! The filters that format a date, as liquidjs does in UTC, where Segment's servers run.
//!
//! A crate for calendars would add its own reading of texts and formats to JavaScript's, which alone counts here: a few
//! lines of arithmetic stand in its place.

use super::value::Value;

/// The format if a template gives none.
const DEFAULT_FORMAT: &str = "%A, %B %-e, %Y at %-l:%M %P %z";

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

const DAY_MS: i64 = 86_400_000;
/// The widest padding of a number that makes sense.
const MAX_WIDTH: usize = 100;

/// `date`: the format and the offset from UTC are optional.
pub fn date(value: &Value, arguments: &[Value]) -> Result<Value, String> {
    let format = match arguments.first() {
        Some(format) if !format.is_nil() => format.print(),
        _ => DEFAULT_FORMAT.to_owned(),
    };
    let offset = match arguments.get(1) {
        None => 0,
        Some(Value::Number(minutes)) if minutes.fract() == 0.0 && minutes.abs() <= 1440.0 => *minutes as i64,
        Some(_) => return Err("the offset must be a number of minutes, such as -60 for UTC+1".to_owned()),
    };
    formatted(value, &format, offset)
}

/// `date_to_xmlschema`
pub fn date_to_xmlschema(value: &Value, _: &[Value]) -> Result<Value, String> {
    formatted(value, "%Y-%m-%dT%H:%M:%S%:z", 0)
}

/// `date_to_rfc822`
pub fn date_to_rfc822(value: &Value, _: &[Value]) -> Result<Value, String> {
    formatted(value, "%a, %d %b %Y %H:%M:%S %z", 0)
}

/// `date_to_string`
pub fn date_to_string(value: &Value, arguments: &[Value]) -> Result<Value, String> {
    formatted(value, &day_format("%b", arguments), 0)
}

/// `date_to_long_string`
pub fn date_to_long_string(value: &Value, arguments: &[Value]) -> Result<Value, String> {
    formatted(value, &day_format("%B", arguments), 0)
}

fn day_format(month: &str, arguments: &[Value]) -> String {
    let is = |n: usize, text: &str| matches!(arguments.get(n), Some(Value::Text(it)) if it == text);
    match (is(0, "ordinal"), is(1, "US")) {
        (true, true) => format!("{month} %-d%q, %Y"),
        (true, false) => format!("%-d%q {month} %Y"),
        (false, _) => format!("%d {month} %Y"),
    }
}

/// A value that is no date stays as it is.
fn formatted(value: &Value, format: &str, offset: i64) -> Result<Value, String> {
    match milliseconds(value)? {
        Some(ms) => Ok(Value::Text(Moment::new(ms, offset)?.format(format)?)),
        None => Ok(value.clone()),
    }
}

/// The milliseconds since 1970 of a number of seconds or of a date in text, as JavaScript reads it; `None` if it reads none.
fn milliseconds(value: &Value) -> Result<Option<i64>, String> {
    // Beyond this JavaScript has no date.
    let of_seconds = |seconds: f64| (seconds.abs() <= 8.64e12).then_some((seconds * 1000.0) as i64);
    match value {
        Value::Undefined | Value::Null | Value::Nil => Ok(None),
        Value::Number(seconds) => Ok(of_seconds(*seconds)),
        Value::Text(text) if text == "now" || text == "today" => {
            Err("the current time is not supported; write timestamp".to_owned())
        }
        Value::Text(text) if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => {
            Ok(text.parse().ok().and_then(of_seconds))
        }
        // JavaScript finds no date in a text without a digit; it guesses one in many others.
        Value::Text(text) if !text.contains(|c: char| c.is_ascii_digit()) => Ok(None),
        Value::Text(text) => {
            let uncertain = || "it is not certain which date JavaScript reads there".to_owned();
            parse(text).map(Some).ok_or_else(uncertain)
        }
        _ => Err("it is neither a text nor a number".to_owned()),
    }
}

/// The milliseconds since 1970 of a day, alone or with a time, in the spellings that every version of JavaScript reads alike.
/// A time without a zone is in UTC.
fn parse(text: &str) -> Option<i64> {
    let number = |digits: &str| digits.parse().ok().filter(|_| digits.bytes().all(|b| b.is_ascii_digit()));
    let (day, time) = text.split_at_checked(10).filter(|_| text.is_ascii())?;
    let year: i64 = number(&day[..4])?;
    let (month, day_of_month): (i64, i64) = (number(day.get(5..7)?)?, number(day.get(8..)?)?);
    let is_day = day.as_bytes()[4] == b'-' && day.as_bytes()[7] == b'-';
    if !is_day || year < 1000 || !(1..=12).contains(&month) || !(1..=31).contains(&day_of_month) {
        return None;
    }
    let midnight = days_since_1970(year, month, day_of_month) * DAY_MS;
    if time.is_empty() {
        return Some(midnight);
    }
    let time = time.strip_prefix(['T', 't', ' '])?;
    let (hour, minute): (i64, i64) = (number(time.get(..2)?)?, number(time.get(3..5)?)?);
    let (mut second, mut fraction, mut zone) = (0, 0, time.get(5..)?);
    if let Some(rest) = zone.strip_prefix(':') {
        second = number(rest.get(..2)?)?;
        zone = &rest[2..];
        if let Some(rest) = zone.strip_prefix('.') {
            let digits = &rest[..rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len())];
            fraction = number(&format!("{digits:0<3}")[..3]).filter(|_| !digits.is_empty())?;
            zone = &rest[digits.len()..];
        }
    }
    if time.as_bytes()[2] != b':' || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let ahead = match zone {
        "" | "Z" | "z" => 0,
        zone => {
            let minutes = zone.get(3..)?;
            let minutes = minutes.strip_prefix(':').unwrap_or(minutes);
            let minutes: i64 = number(minutes).filter(|_| minutes.len() == 2)?;
            let hours: i64 = number(zone.get(1..3)?)?;
            let sign = if zone.starts_with('+') { 1 } else { -1 };
            (zone.starts_with(['+', '-']) && hours <= 23 && minutes <= 59)
                .then_some(sign * (hours * 60 + minutes))?
        }
    };
    Some(midnight + ((hour * 60 + minute - ahead) * 60 + second) * 1000 + fraction)
}

/// The days from 1970-01-01 to a day. One beyond the end of its month is in the next, as in JavaScript.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let before_year = |year: i64| 365 * (year - 1) + (year - 1) / 4 - (year - 1) / 100 + (year - 1) / 400;
    let in_year: i64 = (1..month).map(|month| days_in_month(year, month)).sum();
    before_year(year) - before_year(1970) + in_year + day - 1
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// The year, month and day that is so many days after 1970-01-01, within four digits of a year.
fn date_of_days(days: i64) -> Option<(i64, i64, i64)> {
    let days_after = |year, month| days - days_since_1970(year, month, 1);
    // The mean year has 365.2425 days, so the year is this one or one beside it.
    let mean = 1970 + (days.saturating_mul(400)).div_euclid(146_097);
    let year = (mean - 1..=mean + 1).rev().find(|year| days_after(*year, 1) >= 0)?;
    let month = (1..=12).rev().find(|month| days_after(year, *month) >= 0)?;
    (1..=9999).contains(&year).then(|| (year, month, days_after(year, month) + 1))
}

/// A moment, split into the numbers of the calendar.
struct Moment {
    /// The milliseconds since 1970 in UTC.
    ms: i64,
    /// The minutes by which UTC is ahead, as JavaScript counts them.
    offset: i64,
    year: i64,
    /// From 0.
    month: usize,
    day: i64,
    /// The day of the year, from 1.
    day_of_year: i64,
    /// From Sunday, 0.
    weekday: usize,
    hour: i64,
    minute: i64,
    second: i64,
    millisecond: i64,
}

impl Moment {
    fn new(ms: i64, offset: i64) -> Result<Moment, String> {
        let local = ms.saturating_sub(offset * 60_000);
        let (days, in_day) = (local.div_euclid(DAY_MS), local.rem_euclid(DAY_MS));
        let (year, month, day) = date_of_days(days).ok_or("a year outside 1 to 9999 is not supported")?;
        Ok(Moment {
            ms,
            offset,
            year,
            month: month as usize - 1,
            day,
            day_of_year: days - days_since_1970(year, 1, 1) + 1,
            weekday: (days + 4).rem_euclid(7) as usize,
            hour: in_day / 3_600_000,
            minute: in_day / 60_000 % 60,
            second: in_day / 1000 % 60,
            millisecond: in_day % 1000,
        })
    }

    /// `strftime`: `%`, flags, a width, a letter. What is no such code stays as it is.
    fn format(&self, format: &str) -> Result<String, String> {
        let mut out = String::new();
        let mut rest = format;
        while let Some(at) = rest.find('%') {
            out.push_str(&rest[..at]);
            let code = &rest[at..];
            let after_flags = code[1..].trim_start_matches(['-', '_', '0', '^', '#', ':']);
            let flags = &code[1..code.len() - after_flags.len()];
            let after_width = after_flags.trim_start_matches(|c: char| c.is_ascii_digit());
            let width = &after_flags[..after_flags.len() - after_width.len()];
            let letters = after_width.strip_prefix(['E', 'O']).unwrap_or(after_width);
            let converted = match letters.chars().next() {
                Some(letter) => self.converted(letter, flags)?.map(|text| (text, letter)),
                None => None,
            };
            match converted {
                Some((text, letter)) => {
                    out += &padded(text, letter, flags, width)?;
                    rest = &letters[letter.len_utf8()..];
                }
                None => {
                    out.push('%');
                    rest = &code[1..];
                }
            }
        }
        Ok(out + rest)
    }

    /// The text of a code before its padding; `None` if there is no such code.
    fn converted(&self, letter: char, flags: &str) -> Result<Option<String>, String> {
        let name = |names: &[&'static str], n: usize| names.get(n).copied().unwrap_or_default();
        let hour_12 = (self.hour + 11) % 12 + 1;
        Ok(Some(match letter {
            'a' => name(&WEEKDAYS, self.weekday)[..3].to_owned(),
            'A' => name(&WEEKDAYS, self.weekday).to_owned(),
            'b' | 'h' => name(&MONTHS, self.month)[..3].to_owned(),
            'B' => name(&MONTHS, self.month).to_owned(),
            'C' => (self.year / 100).to_string(),
            'd' | 'e' => self.day.to_string(),
            'H' | 'k' => self.hour.to_string(),
            'I' | 'l' => hour_12.to_string(),
            'j' => self.day_of_year.to_string(),
            'L' => self.millisecond.to_string(),
            'm' => (self.month + 1).to_string(),
            'M' => self.minute.to_string(),
            'p' => if self.hour < 12 { "AM" } else { "PM" }.to_owned(),
            'P' => if self.hour < 12 { "am" } else { "pm" }.to_owned(),
            'q' => match (self.day, self.day % 10) {
                (11..=13, _) => "th",
                (_, 1) => "st",
                (_, 2) => "nd",
                (_, 3) => "rd",
                _ => "th",
            }
            .to_owned(),
            // Before 10.30 liquidjs rounded half a second up.
            's' if self.ms >= 0 && self.offset == 0 => (self.ms / 1000).to_string(),
            'S' => self.second.to_string(),
            'u' => if self.weekday == 0 { 7 } else { self.weekday }.to_string(),
            'w' => self.weekday.to_string(),
            'y' => (self.year % 100).to_string(),
            'Y' => self.year.to_string(),
            'z' => {
                let (sign, offset) = (if self.offset > 0 { '-' } else { '+' }, self.offset.abs());
                let colon = if flags.contains(':') { ":" } else { "" };
                format!("{sign}{:02}{colon}{:02}", offset / 60, offset % 60)
            }
            't' => "\t".to_owned(),
            'n' => "\n".to_owned(),
            '%' => "%".to_owned(),
            'c' | 'N' | 's' | 'U' | 'W' | 'x' | 'X' | 'Z' => {
                return Err(format!("the result of %{letter} is not certain"));
            }
            _ => return Ok(None),
        }))
    }
}

fn padded(text: String, letter: char, flags: &str, width: &str) -> Result<String, String> {
    let default = match letter {
        'j' | 'L' => 3,
        'Y' => 4,
        'C' | 'd' | 'e' | 'H' | 'I' | 'k' | 'l' | 'm' | 'M' | 'S' | 'y' => 2,
        _ => 0,
    };
    let width = match width.parse() {
        Ok(0) | Err(_) if width.trim_start_matches('0').is_empty() => default,
        Ok(width) if width <= MAX_WIDTH => width,
        _ => return Err(format!("a width of more than {MAX_WIDTH} is not supported")),
    };
    let width = if flags.contains('-') { 0 } else { width };
    let text = match (flags.contains('^'), flags.contains('#')) {
        (true, _) => text.to_uppercase(),
        (false, true) if text.contains(|c: char| c.is_ascii_lowercase()) => text.to_uppercase(),
        (false, true) => text.to_lowercase(),
        (false, false) => text,
    };
    let is_spaced = match (flags.contains('_'), flags.contains('0')) {
        (true, _) => true,
        (false, true) => false,
        (false, false) => "aAbBceklpP".contains(letter),
    };
    Ok(if is_spaced { format!("{text:>width$}") } else { format!("{text:0>width$}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn formatted_text(text: &str, format: &str) -> Result<String, String> {
        date(&Value::Text(text.to_owned()), &[Value::Text(format.to_owned())]).map(|value| value.print())
    }

    /// Liquidjs 10.25.7 and 10.30.1 both gave these in UTC.
    #[test]
    fn dates_are_formatted_as_by_liquidjs() {
        let codes = "%a %A %b %B %h %C %d %e %H %I %j %k %l %L %m %M %p %P %q %s %S %u %w %y %Y %z %:z %%";
        for (text, format, want) in [
            (
                "2024-03-05T04:07:09.123Z",
                codes,
                "Tue Tuesday Mar March Mar 20 05  5 04 04 065  4  4 123 03 07 AM am th 1709611629 09 2 2 24 2024 \
                 +0000 +00:00 %",
            ),
            ("1970-01-01", "%j %u %s %I%p", "001 4 0 12AM"),
            ("1969-07-20 20:17:40", "%d.%m.%Y %l %P %L", "20.07.1969  8 pm 000"),
            ("2000-02-29", "%-d/%-m %j %A", "29/2 060 Tuesday"),
            ("2023-12-31T23:59:59.9-01:00", "%Y-%m-%d %H:%M:%S", "2024-01-01 00:59:59"),
            ("2024-02-30", "%F %Y-%m-%d", "%F 2024-03-01"),
            ("1709611629", "%-e%q %b", "5th Mar"),
            ("2024-03-21", "%-e%q %^b %#p %#B %_m %05d %3Y %E", "21st MAR am MARCH  3 00021 2024 %E"),
            ("2024-03-05 14:07", "%5", "%5"),
            ("noon", "%Y", "noon"),
            ("", "%Y", ""),
        ] {
            assert_eq!(formatted_text(text, format).as_deref(), Ok(want), "{text} {format}");
        }
        let seconds = Value::Number(1_709_611_629.5);
        for (arguments, want) in [
            (&[][..], "Tuesday, March 5, 2024 at 4:07 am +0000"),
            (&[Value::Text("%H:%M %z".to_owned()), Value::Number(-330.0)], "09:37 +0530"),
            (&[Value::Text("%d %H %:z".to_owned()), Value::Number(300.0)], "04 23 -05:00"),
        ] {
            assert_eq!(date(&seconds, arguments), Ok(Value::Text(want.to_owned())));
        }
        assert_eq!(date(&Value::Null, &[]), Ok(Value::Null));
        assert_eq!(date_to_xmlschema(&seconds, &[]), Ok(Value::Text("2024-03-05T04:07:09+00:00".to_owned())));
    }

    #[test]
    fn a_date_whose_reading_is_not_certain_is_refused() {
        for (text, format) in [
            ("now", "%Y"),
            ("5 March 2024", "%Y"),
            ("2024-3-5", "%Y"),
            ("2024-03-05T14", "%Y"),
            ("2024-03-05T14:07+02:0", "%Y"),
            ("Ünïcode 4 ☃", "%Y"),
            ("2024-03-05", "%c"),
            ("2024-03-05", "%N"),
            ("1969-12-31", "%s"),
            ("2024-03-05", "%999d"),
        ] {
            assert!(formatted_text(text, format).is_err(), "{text} {format}");
        }
    }
}

//! What counts as a date-time: the rule of Segment's destination, which is wider than RFC 3339.

/// Whether `text` is a real calendar day, `T`, `t` or one white space, and a time of that day, with an
/// optional fraction of any length and an optional zone that is not range-checked.
pub(super) fn is_date_time(text: &str) -> bool {
    day(text).and_then(time).and_then(fraction).is_some_and(zone)
}

fn day(text: &str) -> Option<&str> {
    let (year, text) = number(text, 4)?;
    let (month, text) = number(text.strip_prefix('-')?, 2)?;
    let (day, text) = number(text.strip_prefix('-')?, 2)?;
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        _ => return None,
    };
    (1..=days).contains(&day).then_some(text)
}

fn time(text: &str) -> Option<&str> {
    let text = text.strip_prefix(|c: char| matches!(c, 'T' | 't') || c.is_whitespace())?;
    let (hour, text) = number(text, 2)?;
    let (minute, text) = number(text.strip_prefix(':')?, 2)?;
    let (second, text) = number(text.strip_prefix(':')?, 2)?;
    let ordinary = hour < 24 && minute < 60 && second < 60;
    let leap = (hour, minute, second) == (23, 59, 60);
    (ordinary || leap).then_some(text)
}

fn fraction(text: &str) -> Option<&str> {
    match text.strip_prefix('.') {
        None => Some(text),
        Some(text) => {
            let rest = text.trim_start_matches(|c: char| c.is_ascii_digit());
            (rest.len() < text.len()).then_some(rest)
        }
    }
}

fn zone(text: &str) -> bool {
    let Some(offset) = text.strip_prefix(['+', '-']) else { return matches!(text, "" | "Z" | "z") };
    let Some((_, minutes)) = number(offset, 2) else { return false };
    let minutes = minutes.strip_prefix(':').unwrap_or(minutes);
    offset.len() == 2 || number(minutes, 2).is_some_and(|(_, rest)| rest.is_empty())
}

fn number(text: &str, digits: usize) -> Option<(u32, &str)> {
    let (number, rest) = text.split_at_checked(digits)?;
    let all_digits = number.bytes().all(|b| b.is_ascii_digit());
    all_digits.then(|| number.parse().ok()).flatten().map(|number| (number, rest))
}

#[cfg(test)]
mod tests {
    use super::is_date_time;

    #[test]
    fn a_date_time_is_a_real_day_and_a_time_of_it() {
        for good in [
            "2024-03-05T14:07:09Z",
            "2024-02-29t14:07:09z",
            "2000-02-29 14:07:09",
            "2024-03-05\u{a0}14:07:09",
            "2024-03-05T14:07:09.123456789012345678901+00:00",
            "2024-03-05T14:07:09-0099",
            "2024-03-05T14:07:09+99",
            "2016-12-31T23:59:60Z",
        ] {
            assert!(is_date_time(good), "{good}");
        }
        for bad in [
            "",
            "yesterday",
            "2024-03-05",
            "2023-02-29T14:07:09Z",
            "1900-02-29T14:07:09Z",
            "2024-13-05T14:07:09Z",
            "2024-04-31T14:07:09Z",
            "2024-03-00T14:07:09Z",
            "2024-03-05  14:07:09Z",
            "2024-03-05T24:07:09Z",
            "2024-03-05T14:60:09Z",
            "2024-03-05T14:07:60Z",
            "2024-03-05T14:07Z",
            "2024-03-05T14:07:09.Z",
            "2024-03-05T14:07:09+1",
            "2024-03-05T14:07:09+01:",
            "2024-03-05T14:07:09+010",
            "2024-03-05T14:07:09ZZ",
            "2024-03-05T14:07:09Z ",
            "+024-03-05T14:07:09Z",
            "2024-03-05T14:07:0é",
        ] {
            assert!(!is_date_time(bad), "{bad}");
        }
    }
}

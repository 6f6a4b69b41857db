//! The time of an event: its `timestamp`, else its `originalTimestamp`.
//!
//! A time in another spelling is completed when the event is read, not when it is stored: the stored bytes stay the
//! producer's, so that an event that comes again is a duplicate, and a better reading applies to events that wait.

use super::json::{self, JsonType, Raw};
use super::{Event, datetime};
use std::borrow::Cow;

/// The time of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventTime<'a> {
    /// The time as a JSON string: the event's own bytes where they are valid.
    pub json: Cow<'a, str>,
    /// The change to what the event says, in words, if there is one.
    pub note: Option<String>,
}

impl<'a> EventTime<'a> {
    /// Reads the time of an event; `None` if the event has none. A `timestamp` that names no moment counts as missing
    /// beside an `originalTimestamp` that names one.
    ///
    /// # Errors
    /// A clause that names the member and says what is wrong with it.
    pub fn of(event: &Event<'a>) -> Result<Option<EventTime<'a>>, String> {
        let mut fault = None;
        for name in ["timestamp", "originalTimestamp"] {
            let Some(value) = event.non_blank(name) else { continue };
            match EventTime::read(name, value) {
                Ok(time) if fault.is_none() => return Ok(Some(time)),
                Ok(EventTime { json, note }) => {
                    let note = note.map(|note| format!("; {note}")).unwrap_or_default();
                    let note = format!("timestamp names no moment, so originalTimestamp is used{note}");
                    return Ok(Some(EventTime { json, note: Some(note) }));
                }
                Err(text) => fault = fault.or(Some(text)),
            }
        }
        fault.map_or(Ok(None), Err)
    }

    /// Reads the value of the member or field `name`.
    ///
    /// # Errors
    /// The errors of [`EventTime::of`].
    pub fn read(name: &str, value: Raw<'a>) -> Result<EventTime<'a>, String> {
        let Some(json) = json::coerce_to_string(value) else {
            return Err(fault(name, Some(&format!("is {}", JsonType::of(value.get())))));
        };
        let text = json::decode(&json).unwrap_or_default();
        if datetime::is_valid(&text) {
            return Ok(EventTime { json, note: None });
        }
        match datetime::completed(&text) {
            Some(completed) => {
                let note = Some(format!("{name} {} is completed to {completed}", value.get()));
                Ok(EventTime { json: json::quote(&completed).into(), note })
            }
            None => Err(fault(name, datetime::why_invalid(&text))),
        }
    }
}

fn fault(name: &str, why: Option<&str>) -> String {
    let why = why.map(|why| format!(", and {why}")).unwrap_or_default();
    format!("{name} must be a date and time such as 2026-01-02T03:04:05Z{why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_the_first_member_that_names_a_moment() {
        let valid = r#""2026-01-02 03:04:05""#;
        let not_a_time = "timestamp must be a date and time such as 2026-01-02T03:04:05Z";
        for (timestamp, original, want, note) in [
            (valid, "null", Ok(Some(valid)), None),
            (r#"["2026-01-02 03:04:05"]"#, "null", Ok(Some(valid)), None),
            (r#""""#, valid, Ok(Some(valid)), None),
            ("null", r#""""#, Ok(None), None),
            (
                r#""2026-01-02T03:04Z""#,
                valid,
                Ok(Some(r#""2026-01-02T03:04:00Z""#)),
                Some(r#"timestamp "2026-01-02T03:04Z" is completed to 2026-01-02T03:04:00Z"#),
            ),
            (
                r#""Invalid date""#,
                valid,
                Ok(Some(valid)),
                Some("timestamp names no moment, so originalTimestamp is used"),
            ),
            (
                "{}",
                "1774601639996",
                Ok(Some(r#""2026-03-27T08:53:59.996Z""#)),
                Some(
                    "timestamp names no moment, so originalTimestamp is used; originalTimestamp 1774601639996 is \
                     completed to 2026-03-27T08:53:59.996Z",
                ),
            ),
            (r#""noon""#, r#""noon""#, Err(not_a_time.to_owned()), None),
            (r#""noon""#, "null", Err(not_a_time.to_owned()), None),
            ("[1,2]", "null", Err(format!("{not_a_time}, and is an array")), None),
            (r#""2026-01-02""#, "null", Err(format!("{not_a_time}, and is a day without a time")), None),
        ] {
            let event = format!(r#"{{"timestamp":{timestamp},"originalTimestamp":{original}}}"#);
            let got = EventTime::of(&Event::parse(&event).unwrap());
            assert_eq!(
                got.clone().map(|time| time.map(|time| time.json)),
                want.map(|json| json.map(Cow::from))
            );
            assert_eq!(got.ok().flatten().and_then(|time| time.note).as_deref(), note, "{event}");
        }
    }
}

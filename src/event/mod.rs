//! Events: one JSON object each, in Segment's form, with the rules for ids, digests and missing members.
//!
//! An [`Event`] borrows its text and parses one level of it. Nested values keep their bytes, to the last digit of a
//! number; parsed into `serde_json::Value`, they would not.

pub mod datetime;
mod envelope;
mod id;
pub(crate) mod json;
mod time;

use crate::reason::Code;
pub use envelope::{EnvelopeCommon, merge_envelope};
pub use id::{Digest, MessageId, MessageIdError};
pub use json::Raw;
use json::{JsonType, Object, WHITESPACE};
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use std::borrow::Cow;
use thiserror::Error;
pub use time::EventTime;

/// The maximum nesting depth of an event, its own object included. Common parsers stop at 127 (serde_json) or 128, and
/// a request adds two levels; real events nest less than ten deep.
pub const MAX_DEPTH: usize = 120;

/// Segment's limit for a messageId, in characters.
pub const MAX_MESSAGE_ID: usize = 100;

/// The reason why a text is not an event, and the position. It quotes nothing of the text, which may hold personal data.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("line {line}, column {column}: {text}")]
pub struct Flaw {
    /// `not_json`, `too_deep` or `not_an_event`.
    pub code: Code,
    /// The explanation for people.
    pub text: String,
    /// The line, from 1.
    pub line: usize,
    /// The column in bytes, from 1.
    pub column: usize,
    /// The text ends too early: it may be an event that is still being written.
    pub incomplete: bool,
}

impl Flaw {
    /// A flaw at the byte `offset` of `text`.
    pub fn at(text: &str, offset: usize, code: Code, explanation: impl Into<String>) -> Flaw {
        let before = &text.as_bytes()[..offset];
        let line_start = memchr::memrchr(b'\n', before).map_or(0, |newline| newline + 1);
        Flaw {
            code,
            text: explanation.into(),
            line: 1 + memchr::memchr_iter(b'\n', before).count(),
            column: 1 + offset - line_start,
            incomplete: false,
        }
    }

    fn syntax(text: &str, error: &serde_json::Error) -> Flaw {
        let message = error.to_string();
        let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message);
        let end = Flaw::at(text, text.len(), Code::NotJson, "the text ends before the event does");
        // serde_json reports a number that is cut by the end of the text as invalid, not as EOF.
        let is_cut_number = message == "invalid number"
            && text.ends_with(['-', '+', '.', 'e', 'E'])
            && (error.line(), error.column() + 1) >= (end.line, end.column);
        if error.is_eof() || is_cut_number {
            return Flaw { incomplete: true, ..end };
        }
        // serde_json reports the column before a control character, but the column of any other error itself.
        let before = usize::from(message.starts_with("control character"));
        let (line, column) = (error.line().max(1), error.column().max(1 - before) + before);
        Flaw { code: Code::NotJson, text: plain_text(message).into(), line, column, incomplete: false }
    }
}

/// The message of serde_json in words for people who write JSON, not parsers.
fn plain_text(message: &str) -> &str {
    match message {
        "expected ident" => "not a JSON value: true, false and null are written out in lower case",
        "expected value" => "a value is missing here, or a text lacks its quotes",
        "key must be a string" => "a name of a member lacks its quotes",
        other => other,
    }
}

/// One event, parsed one level deep.
#[derive(Debug, Clone)]
pub struct Event<'a> {
    text: &'a str,
    object: Object<'a>,
}

impl<'a> Event<'a> {
    /// Parses one object, nested at most [`MAX_DEPTH`] deep, with nothing but white space around it.
    ///
    /// The depth is checked first: a recursive parser that reads the text later cannot overflow its stack.
    pub fn parse(json: &'a str) -> Result<Event<'a>, Flaw> {
        check_depth(json)?;
        Event::parse_shallow(json)
    }

    /// Checks that the event nests at most [`MAX_DEPTH`] deep.
    ///
    /// # Errors
    /// The flaw `too_deep`, at the first bracket beyond that.
    pub fn check_depth(&self) -> Result<(), Flaw> {
        check_depth(self.text)
    }

    /// Parses one object of any nesting depth. For callers that read only its top-level members.
    pub fn parse_shallow(json: &'a str) -> Result<Event<'a>, Flaw> {
        match serde_json::from_str(json) {
            Ok(object) => Ok(Event { text: json, object }),
            Err(error) if error.is_data() => Err(match serde_json::from_str::<&RawValue>(json) {
                Ok(value) => {
                    let text = format!("an event is an object but this is {}", JsonType::of(value.get()));
                    Flaw::at(json, offset(json, value.get()), Code::NotAnEvent, text)
                }
                Err(error) => Flaw::syntax(json, &error),
            }),
            Err(error) => Err(Flaw::syntax(json, &error)),
        }
    }

    /// The object as it came, without the white space around it.
    pub fn raw(&self) -> &'a str {
        self.text.trim_matches(WHITESPACE)
    }

    /// The top-level member `name`; the last of duplicates, as in `JSON.parse`.
    #[inline]
    pub fn get(&self, name: &str) -> Option<Raw<'a>> {
        self.object.get(name)
    }

    /// The top-level member `name`, unless it is null or the empty string: both count as missing.
    #[inline]
    pub fn non_blank(&self, name: &str) -> Option<Raw<'a>> {
        self.get(name).filter(|value| !matches!(value.get(), "null" | "\"\""))
    }

    /// The top-level members in order, duplicates included.
    pub fn members(&self) -> impl Iterator<Item = (&str, Raw<'a>)> {
        self.object.0.iter().map(|m| (m.name.as_ref(), m.value))
    }

    /// The event's `type`, if it is a string.
    pub fn kind(&self) -> Option<Cow<'a, str>> {
        json::decode(self.get("type")?.get())
    }

    /// The name of a track's event for display: its `event`, if that is a scalar and not missing.
    pub fn name(&self) -> Option<Cow<'a, str>> {
        let event = self.non_blank("event").filter(|_| self.kind().as_deref() == Some("track"))?;
        (!matches!(JsonType::of(event.get()), JsonType::Array | JsonType::Object))
            .then(|| json::to_text(event.get()))
    }

    /// The event's messageId, `None` if it is missing. A number or a boolean, alone or as the only element of an array,
    /// counts as its text, as it does for Segment. A flaw has the code `not_an_event`.
    pub fn message_id(&self) -> Result<Option<MessageId>, Flaw> {
        let Some(value) = self.non_blank("messageId") else { return Ok(None) };
        let flaw = |text| Flaw::at(self.text, offset(self.text, value.get()), Code::NotAnEvent, text);
        let json = json::coerce_to_string(value).ok_or_else(|| {
            flaw(format!("messageId must be a string but is {}", JsonType::of(value.get())))
        })?;
        let text = json::decode(&json)
            .ok_or_else(|| flaw("messageId is not valid Unicode: it has an unpaired surrogate".into()))?;
        match MessageId::new(text.into_owned()) {
            Err(MessageIdError::Empty) => Ok(None),
            id => id.map(Some).map_err(|error| flaw(error.to_string())),
        }
    }

    /// The digest of the event's content.
    pub fn digest(&self) -> Digest {
        self.compact().1
    }

    /// The object without white space outside strings, and the digest of its content.
    pub fn compact(&self) -> (String, Digest) {
        Digest::of_compact(self)
    }
}

fn check_depth(json: &str) -> Result<(), Flaw> {
    match json::deeper_than(MAX_DEPTH, json) {
        Some(at) => Err(Flaw::at(json, at, Code::TooDeep, format!("nested more than {MAX_DEPTH} deep"))),
        None => Ok(()),
    }
}

/// The elements of the array in `json`, each as written.
pub fn elements(json: &str) -> Result<Elements<'_>, Flaw> {
    let counted: Vec<IgnoredAny> = serde_json::from_str(json).map_err(|error| Flaw::syntax(json, &error))?;
    Ok(Elements {
        rest: json.trim_start_matches(WHITESPACE).strip_prefix('[').unwrap_or(json),
        remaining: counted.len(),
    })
}

/// The elements of an array, found one by one: a list of all positions would be larger than an array of short elements.
#[derive(Debug, Clone)]
pub struct Elements<'a> {
    /// The valid JSON that follows the last element returned.
    rest: &'a str,
    remaining: usize,
}

impl<'a> Elements<'a> {
    /// A single element, without an array around it.
    pub fn one(json: &'a str) -> Elements<'a> {
        Elements { rest: json, remaining: 1 }
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        self.remaining = self.remaining.checked_sub(1)?;
        let end = json::value_end(self.rest.as_bytes());
        let element = self.rest[..end].trim_matches(WHITESPACE);
        self.rest = self.rest.get(end + 1..).unwrap_or_default();
        Some(element)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.remaining, Some(self.remaining))
    }
}

impl ExactSizeIterator for Elements<'_> {}

/// The position of `part`, a slice of `text`, within it.
fn offset(text: &str, part: &str) -> usize {
    part.as_ptr().addr().saturating_sub(text.as_ptr().addr()).min(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flaw(json: &str) -> (Code, usize, usize, bool) {
        let flaw = Event::parse(json).unwrap_err();
        (flaw.code, flaw.line, flaw.column, flaw.incomplete)
    }

    fn nested(depth: usize) -> String {
        format!("{{\"a\":\n{}{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1))
    }

    #[test]
    fn a_text_that_is_not_an_event_is_refused_with_its_position() {
        for (json, want) in [
            ("", (Code::NotJson, 1, 1, true)),
            (" \n", (Code::NotJson, 2, 1, true)),
            ("{\"a\":1,\n \"b\"", (Code::NotJson, 2, 5, true)),
            (r#"{"a":"x"#, (Code::NotJson, 1, 8, true)),
            ("{\"a\":\n-", (Code::NotJson, 2, 2, true)),
            (r#"{"a":1.0e"#, (Code::NotJson, 1, 10, true)),
            (r#"{"a":-x,"b":1e"#, (Code::NotJson, 1, 7, false)),
            ("{\"a\":1,\n  b:2}", (Code::NotJson, 2, 3, false)),
            (r#"{"a":01}"#, (Code::NotJson, 1, 7, false)),
            (r#"{"a":1} {}"#, (Code::NotJson, 1, 9, false)),
            ("{\"a\":\"x\0\"}", (Code::NotJson, 1, 8, false)),
            ("{\"a\":1,\n\"\n\"}", (Code::NotJson, 2, 2, false)),
            ("[1,2", (Code::NotJson, 1, 5, true)),
            ("[1 2]", (Code::NotJson, 1, 4, false)),
            ("\n [{}]", (Code::NotAnEvent, 2, 2, false)),
            ("12", (Code::NotAnEvent, 1, 1, false)),
            ("null", (Code::NotAnEvent, 1, 1, false)),
            (&nested(MAX_DEPTH + 1), (Code::TooDeep, 2, MAX_DEPTH, false)),
            (&"[".repeat(100_000), (Code::TooDeep, 1, MAX_DEPTH + 1, false)),
        ] {
            assert_eq!(flaw(json), want, "{:.20}", json);
        }
        assert!(Event::parse(&nested(MAX_DEPTH)).is_ok());
    }

    #[test]
    fn elements_keep_their_bytes() {
        for (array, want) in [
            ("[]", &[][..]),
            (" [ ] ", &[]),
            ("[1]", &["1"]),
            (
                "\n[ {\"a,\":[1,{}]} ,\t\"]\\\",\", -1.0\r,[[],[ ]]]",
                &["{\"a,\":[1,{}]}", "\"]\\\",\"", "-1.0", "[[],[ ]]"],
            ),
        ] {
            let elements = elements(array).unwrap();
            assert_eq!(elements.len(), want.len());
            assert_eq!(elements.collect::<Vec<_>>(), want);
        }
        assert!(elements("[1,]").is_err() && elements("[1").unwrap_err().incomplete);
    }

    #[test]
    fn a_flaw_quotes_nothing_of_the_text() {
        let flaw = Event::parse(r#"{"secret":tru}"#).unwrap_err();
        assert_eq!(
            flaw.to_string(),
            "line 1, column 14: not a JSON value: true, false and null are written out in lower case"
        );
    }

    #[test]
    fn members_keep_their_bytes() {
        let event = Event::parse(" {\"n\": 9007199254740993, \"x\":[1.0 ,1e21],\"n\":-0}\n").unwrap();
        assert_eq!(event.raw(), "{\"n\": 9007199254740993, \"x\":[1.0 ,1e21],\"n\":-0}");
        assert_eq!(event.get("n").unwrap().get(), "-0");
        let members: Vec<_> = event.members().map(|(name, value)| (name, value.get())).collect();
        assert_eq!(members, [("n", "9007199254740993"), ("x", "[1.0 ,1e21]"), ("n", "-0")]);
    }

    #[test]
    fn null_and_the_empty_string_count_as_missing() {
        let event = Event::parse(r#"{"a":null,"b":"","c":0,"d":" "}"#).unwrap();
        assert_eq!(
            ["a", "b", "c", "d", "e"].map(|n| event.non_blank(n).is_some()),
            [false, false, true, true, false]
        );
    }

    #[test]
    fn type_and_name_are_read_if_they_are_text() {
        for (json, kind, name) in [
            (r#"{"type":"tr\u0061ck","event":"Größe \"x\""}"#, Some("track"), Some("Größe \"x\"")),
            (r#"{"type":"track","event":404}"#, Some("track"), Some("404")),
            (r#"{"type":"track","event":{}}"#, Some("track"), None),
            (r#"{"type":"track","event":""}"#, Some("track"), None),
            (r#"{"type":"page","event":"x"}"#, Some("page"), None),
            (r#"{"type":1,"event":"x"}"#, None, None),
        ] {
            let event = Event::parse(json).unwrap();
            assert_eq!((event.kind().as_deref(), event.name().as_deref()), (kind, name), "{json}");
        }
    }

    #[test]
    fn a_message_id_is_text_or_missing_or_a_flaw() {
        let long = format!("\"{}\"", "x".repeat(101));
        for (json, want) in [
            (r#""m-\u0031""#, Ok(Some("m-1"))),
            ("123456", Ok(Some("123456"))),
            ("1.0", Ok(Some("1.0"))),
            ("true", Ok(Some("true"))),
            (r#"["m"]"#, Ok(Some("m"))),
            ("null", Ok(None)),
            (r#""""#, Ok(None)),
            (r#"[""]"#, Ok(None)),
            ("[null]", Ok(None)),
            ("{}", Err("messageId must be a string but is an object")),
            ("[1,2]", Err("messageId must be a string but is an array")),
            (r#""\ud800""#, Err("messageId is not valid Unicode: it has an unpaired surrogate")),
            (&long, Err("messageId has 101 characters, more than the 100 allowed")),
        ] {
            let text = format!("{{\n\"messageId\": {json}}}");
            let got = Event::parse(&text).unwrap().message_id();
            match want {
                Ok(id) => assert_eq!(got.unwrap().as_ref().map(MessageId::as_str), id, "{json}"),
                Err(what) => {
                    let flaw = got.unwrap_err();
                    assert_eq!((flaw.code, flaw.line, flaw.column), (Code::NotAnEvent, 2, 14));
                    assert_eq!(flaw.text, what);
                }
            }
        }
        assert_eq!(Event::parse("{}").unwrap().message_id(), Ok(None));
    }
}

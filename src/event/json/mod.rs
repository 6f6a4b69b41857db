//! JSON one level deep: the members of one object, each value in the bytes it came in.
//!
//! Values are not parsed into `serde_json::Value`, which rounds long numbers and loses member order and spelling.

mod scan;
mod scanner;

use memchr::memchr;
use scan::{compact_into, members};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

pub(crate) use scan::{compact, compact_len, deeper_than, find_members, pretty, value_end};
pub(crate) use scanner::{Scanned, ValueScanner};

/// The white space of JSON.
pub(super) const WHITESPACE: [char; 4] = [' ', '\n', '\r', '\t'];

/// An owned copy of a JSON value.
///
/// # Errors
/// `json` is not valid JSON.
pub(crate) fn to_raw_value(json: &str) -> Result<Box<RawValue>, serde_json::Error> {
    RawValue::from_string(json.to_owned())
}

/// The type of a JSON value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JsonType {
    Null,
    Boolean,
    Number,
    String,
    Array,
    Object,
}

impl JsonType {
    /// The type of a valid JSON value: its first byte decides.
    #[inline]
    pub fn of(json: &str) -> JsonType {
        match json.as_bytes().first() {
            Some(b'n') => JsonType::Null,
            Some(b't' | b'f') => JsonType::Boolean,
            Some(b'"') => JsonType::String,
            Some(b'[') => JsonType::Array,
            Some(b'{') => JsonType::Object,
            _ => JsonType::Number,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            JsonType::Null => "null",
            JsonType::Boolean => "boolean",
            JsonType::Number => "number",
            JsonType::String => "string",
            JsonType::Array => "array",
            JsonType::Object => "object",
        }
    }
}

/// Shows the type with its article, as in "an object".
impl fmt::Display for JsonType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let article = match self {
            JsonType::Null => "",
            JsonType::Array | JsonType::Object => "an ",
            JsonType::Boolean | JsonType::Number | JsonType::String => "a ",
        };
        write!(f, "{article}{}", self.as_str())
    }
}

/// A valid JSON value in the bytes it came in, without white space around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Raw<'a>(&'a str);

impl<'a> Raw<'a> {
    /// A text that is known to be valid JSON without white space around it.
    pub(crate) fn of_valid(json: &'a str) -> Raw<'a> {
        Raw(json)
    }

    /// The JSON text.
    #[inline]
    pub fn get(self) -> &'a str {
        self.0
    }
}

impl<'a> From<&'a RawValue> for Raw<'a> {
    fn from(value: &'a RawValue) -> Raw<'a> {
        Raw(value.get())
    }
}

/// One member of an [`Object`].
#[derive(Debug, Clone)]
pub(crate) struct Member<'a> {
    /// The decoded name. A name with an unpaired surrogate cannot be decoded and stays as written, with its quotes.
    pub name: Cow<'a, str>,
    /// The name as written, with its quotes.
    pub key: &'a str,
    pub value: Raw<'a>,
}

/// The members of one object, in order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Object<'a>(pub Vec<Member<'a>>);

impl<'a> Member<'a> {
    fn new(key: &'a str, value: Raw<'a>) -> Member<'a> {
        Member { name: to_text(key), key, value }
    }

    /// The name as JSON in one canonical spelling, whatever escapes it was written with.
    pub fn canonical_key(&self) -> Cow<'_, str> {
        match &self.name {
            Cow::Borrowed(_) => Cow::Borrowed(self.key),
            Cow::Owned(name) => Cow::Owned(quote(name)),
        }
    }
}

impl<'a> Object<'a> {
    /// The members of `value`; `None` unless it is an object.
    pub fn from_raw(value: Raw<'a>) -> Option<Object<'a>> {
        if JsonType::of(value.get()) != JsonType::Object {
            return None;
        }
        let mut list = Vec::with_capacity(16);
        list.extend(members(value.0).map(|(key, value)| Member::new(key, Raw(value))));
        Some(Object(list))
    }

    /// The value of the member `name`; the last of duplicates, as in `JSON.parse`.
    #[inline]
    pub fn get(&self, name: &str) -> Option<Raw<'a>> {
        self.0.iter().rev().find(|m| m.name == name).map(|m| m.value)
    }

    /// The value of the member `name`, unless it is null.
    #[inline]
    pub fn non_null(&self, name: &str) -> Option<Raw<'a>> {
        self.get(name).filter(|v| v.get() != "null")
    }

    /// The object as JSON without insignificant white space.
    pub fn compact(&self) -> String {
        let mut out = ObjectWriter::with_capacity(self.max_compact_len());
        for m in &self.0 {
            out.member_with_key(m.key, m.value.get());
        }
        out.finish()
    }

    /// The object without the members called `name`.
    pub fn without(mut self, name: &str) -> Object<'a> {
        self.0.retain(|m| m.name != name);
        self
    }

    /// The object with `value` in place of the values of its members called `name`.
    pub fn with_replaced(mut self, name: &str, value: Raw<'a>) -> Object<'a> {
        self.0.iter_mut().filter(|m| m.name == name).for_each(|m| m.value = value);
        self
    }

    /// The object as JSON with `name` set to `json`: in place if the member exists, else at the end.
    pub fn with(&self, name: &str, json: &str) -> String {
        let mut out = ObjectWriter::with_capacity(self.max_compact_len() + name.len() + json.len() + 4);
        let place = self.0.iter().position(|m| m.name == name);
        for (i, m) in self.0.iter().enumerate() {
            if Some(i) == place {
                out.member(name, json);
            } else if m.name != name {
                out.member_with_key(m.key, m.value.get());
            }
        }
        if place.is_none() {
            out.member(name, json);
        }
        out.finish()
    }

    /// An upper bound of the length of [`Object::compact`].
    fn max_compact_len(&self) -> usize {
        2 + self.0.iter().map(|m| m.key.len() + m.value.get().len() + 2).sum::<usize>()
    }
}

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = Object<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object<'de>, A::Error> {
                let mut members = Vec::with_capacity(16);
                while let Some((key, value)) = map.next_entry::<&'de RawValue, &'de RawValue>()? {
                    members.push(Member::new(key.get(), value.into()));
                }
                Ok(Object(members))
            }
        }

        deserializer.deserialize_map(Members)
    }
}

/// Writes one JSON object member by member, without insignificant white space.
#[derive(Debug)]
pub(crate) struct ObjectWriter(String);

impl ObjectWriter {
    pub fn new() -> ObjectWriter {
        ObjectWriter(String::from("{"))
    }

    pub fn with_capacity(bytes: usize) -> ObjectWriter {
        let mut text = String::with_capacity(bytes);
        text.push('{');
        ObjectWriter(text)
    }

    /// Writes a member; `name` must need no escapes.
    pub fn member(&mut self, name: &str, json: &str) {
        self.begin(name);
        compact_into(&mut self.0, json);
    }

    /// Writes a member whose value has no insignificant white space.
    pub fn compact_member(&mut self, name: &str, json: &str) {
        self.begin(name);
        self.0.push_str(json);
    }

    /// Writes a member whose value is an object.
    pub fn object_member(&mut self, name: &str, object: &Object) {
        self.begin(name);
        let mut opener = '{';
        for member in &object.0 {
            self.0.push(opener);
            self.0.push_str(member.key);
            self.0.push(':');
            compact_into(&mut self.0, member.value.get());
            opener = ',';
        }
        self.0.push_str(if object.0.is_empty() { "{}" } else { "}" });
    }

    /// Writes a member if it has a value.
    pub fn optional_member(&mut self, name: &str, json: Option<&str>) {
        if let Some(json) = json {
            self.member(name, json);
        }
    }

    /// Writes a member whose name is already JSON, with its quotes.
    pub fn member_with_key(&mut self, key: &str, json: &str) {
        self.placed_member(key, json);
    }

    /// As [`ObjectWriter::member_with_key`]; returns where the value stands.
    pub fn placed_member(&mut self, key: &str, json: &str) -> Range<usize> {
        self.begin_with_key(key);
        let start = self.0.len();
        compact_into(&mut self.0, json);
        start..self.0.len()
    }

    /// Writes a member whose name is already JSON, and whose value has no insignificant white space.
    pub fn compact_member_with_key(&mut self, key: &str, json: &str) {
        self.begin_with_key(key);
        self.0.push_str(json);
    }

    pub fn finish(mut self) -> String {
        self.0.push('}');
        self.0
    }

    #[inline]
    fn begin(&mut self, name: &str) {
        self.separate();
        self.0.push('"');
        self.0.push_str(name);
        self.0.push_str("\":");
    }

    fn begin_with_key(&mut self, key: &str) {
        self.separate();
        self.0.push_str(key);
        self.0.push(':');
    }

    #[inline]
    fn separate(&mut self) {
        if self.0.len() > 1 {
            self.0.push(',');
        }
    }
}

/// The text of a JSON string; `None` for any other value and for a string with an unpaired surrogate.
#[inline]
pub(crate) fn decode(json: &str) -> Option<Cow<'_, str>> {
    let inner = json.strip_prefix('"')?.strip_suffix('"')?;
    match has_escapes(inner) {
        false => Some(Cow::Borrowed(inner)),
        true => serde_json::from_str(json).ok().map(Cow::Owned),
    }
}

/// Short strings are searched byte by byte: for them a call of `memchr` takes longer than the search itself.
#[inline]
fn has_escapes(inner: &str) -> bool {
    const SHORT: usize = 32;
    match inner.len() {
        ..SHORT => inner.bytes().any(|byte| byte == b'\\'),
        _ => memchr(b'\\', inner.as_bytes()).is_some(),
    }
}

/// The value as text: a string decoded; any other value, and a string that cannot be decoded, as written.
#[inline]
pub(crate) fn to_text(json: &str) -> Cow<'_, str> {
    decode(json).unwrap_or(Cow::Borrowed(json))
}

/// `text` as a JSON string.
pub(crate) fn quote(text: &str) -> String {
    match text.bytes().any(|byte| byte < b' ' || matches!(byte, b'"' | b'\\')) {
        true => serde_json::Value::from(text).to_string(),
        false => ["\"", text, "\""].concat(),
    }
}

/// The value as a JSON string, coerced as Segment coerces a string field: a scalar, or an array of one scalar; `None`
/// for any other value. A number keeps its spelling.
pub(crate) fn coerce_to_string(value: Raw<'_>) -> Option<Cow<'_, str>> {
    match JsonType::of(value.get()) {
        JsonType::Null => None,
        JsonType::Array => match serde_json::from_str::<(&RawValue,)>(value.get()).ok()? {
            (one,) if JsonType::of(one.get()) == JsonType::Null => Some(Cow::Borrowed("\"\"")),
            (one,) if JsonType::of(one.get()) == JsonType::Array => None,
            (one,) => coerce_to_string(one.into()),
        },
        JsonType::Object => None,
        JsonType::String => Some(Cow::Borrowed(value.get())),
        JsonType::Boolean | JsonType::Number => Some(Cow::Owned(format!("\"{}\"", value.get()))),
    }
}

/// Whether JavaScript counts the character as white space: unlike Unicode, it includes U+FEFF and excludes U+0085.
pub(crate) fn is_js_space(c: char) -> bool {
    c == '\u{feff}' || c.is_whitespace() && c != '\u{85}'
}

/// Whether the value is truthy in JavaScript.
pub(crate) fn is_truthy(json: &str) -> bool {
    match json {
        "null" | "false" | "\"\"" => false,
        // Every value that does not parse as a number is truthy here. "inf" and "nan" would parse, but are not JSON.
        _ => json.parse::<f64>() != Ok(0.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(text: &str) -> Object<'_> {
        serde_json::from_str(text).unwrap()
    }

    fn raw(text: &str) -> Raw<'_> {
        serde_json::from_str::<&RawValue>(text).unwrap().into()
    }

    #[test]
    fn the_last_of_duplicate_members_wins_whatever_its_spelling() {
        assert_eq!(object(r#"{"a":1,"b":2,"\u0061":3}"#).get("a").unwrap().get(), "3");
    }

    #[test]
    fn a_name_that_cannot_be_decoded_stays_as_written() {
        let text = r#"{"\ud800":1,"b":2}"#;
        assert_eq!(object(text).without("x").compact(), text);
    }

    #[test]
    fn members_are_replaced_in_place_and_removed() {
        for (text, with, without) in [
            (r#"{}"#, r#"{"s":0}"#, r#"{}"#),
            (r#"{"a": 1.0}"#, r#"{"a":1.0,"s":0}"#, r#"{"a":1.0}"#),
            (r#"{"s":{},"a":[1, 2]}"#, r#"{"s":0,"a":[1,2]}"#, r#"{"a":[1,2]}"#),
            (r#"{"\u0073":1,"a":1,"s":2}"#, r#"{"s":0,"a":1}"#, r#"{"a":1}"#),
        ] {
            assert_eq!(
                (object(text).with("s", "0"), object(text).without("s").compact()),
                (with.into(), without.into())
            );
        }
    }

    #[test]
    fn a_string_field_takes_scalars_and_arrays_of_one_scalar() {
        for (json, want) in [
            (r#""a\u0041""#, Some(r#""a\u0041""#)),
            ("1.0", Some(r#""1.0""#)),
            ("9007199254740993", Some(r#""9007199254740993""#)),
            ("true", Some(r#""true""#)),
            (r#"[ "a" ]"#, Some(r#""a""#)),
            ("[1e21]", Some(r#""1e21""#)),
            ("[null]", Some(r#""""#)),
            ("null", None),
            ("[]", None),
            ("[1,2]", None),
            ("[[1]]", None),
            ("[{}]", None),
            ("{}", None),
        ] {
            assert_eq!(coerce_to_string(raw(json)).as_deref(), want, "{json}");
        }
    }

    #[test]
    fn truthiness_is_that_of_javascript() {
        for falsy in ["null", "false", "0", "-0", "-0.0", "0e9", "1e-400", r#""""#] {
            assert!(!is_truthy(falsy), "{falsy}");
        }
        for truthy in ["true", "1", "-1e-5", "1e999", r#""0""#, r#"" ""#, r#""false""#, "[]", "{}", "[0]"] {
            assert!(is_truthy(truthy), "{truthy}");
        }
    }
}

//! JSON seen shallowly: one object's members, each value in the bytes it came in.
//!
//! Nothing here turns a number into a float or a value into a tree: numbers, member order and spelling survive.

use super::scan::{compact_into, members};
use memchr::memchr;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

pub(crate) use super::scan::{compact, pretty};

/// The value of that text, on its own.
///
/// # Errors
/// It is no JSON.
pub(crate) fn owned(json: &str) -> Result<Box<RawValue>, serde_json::Error> {
    RawValue::from_string(json.to_owned())
}

/// A value in the bytes it came in: known to be JSON, without white space around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Raw<'a>(&'a str);

impl<'a> Raw<'a> {
    /// Its text.
    pub fn get(self) -> &'a str {
        self.0
    }
}

impl<'a> From<&'a RawValue> for Raw<'a> {
    fn from(value: &'a RawValue) -> Raw<'a> {
        Raw(value.get())
    }
}

/// One member of an object.
#[derive(Debug, Clone)]
pub(crate) struct Member<'a> {
    /// The decoded name; as written, quotes included, where no decoder can make text of it (half a surrogate pair).
    pub name: Cow<'a, str>,
    /// The name as written, quotes included.
    pub key: &'a str,
    pub value: Raw<'a>,
}

/// The members of one object, in order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Object<'a>(pub Vec<Member<'a>>);

impl<'a> Member<'a> {
    fn new(key: &'a str, value: Raw<'a>) -> Member<'a> {
        Member { name: text(key), key, value }
    }

    /// The name as JSON in one spelling only, whatever escapes it was written with.
    pub fn plain_key(&self) -> Cow<'_, str> {
        match &self.name {
            Cow::Borrowed(_) => Cow::Borrowed(self.key),
            Cow::Owned(name) => Cow::Owned(quote(name)),
        }
    }
}

impl<'a> Object<'a> {
    /// The object that `value` is, if it is one.
    pub fn of(value: Raw<'a>) -> Option<Object<'a>> {
        if !matches!(Shape::of(value), Shape::Object) {
            return None;
        }
        let mut all = Vec::with_capacity(16);
        all.extend(members(value.0).map(|(key, value)| Member::new(key, Raw(value))));
        Some(Object(all))
    }

    /// The value of that name; of duplicates the last, as in `JSON.parse`.
    pub fn get(&self, name: &str) -> Option<Raw<'a>> {
        self.0.iter().rev().find(|m| m.name == name).map(|m| m.value)
    }

    /// The value of that name, unless it is null.
    pub fn non_null(&self, name: &str) -> Option<Raw<'a>> {
        self.get(name).filter(|v| v.get() != "null")
    }

    /// The object's text without insignificant white space.
    pub fn compact(&self) -> String {
        let mut out = Writer::with_capacity(self.length());
        self.0.iter().for_each(|m| out.entry(m.key, m.value.get()));
        out.finish()
    }

    /// The object without the members of that name.
    pub fn without(mut self, name: &str) -> Object<'a> {
        self.0.retain(|m| m.name != name);
        self
    }

    /// The object's text with `name` set to `json`: in its old place if it had one, else last.
    pub fn with(&self, name: &str, json: &str) -> String {
        let mut out = Writer::with_capacity(self.length() + name.len() + json.len() + 4);
        let place = self.0.iter().position(|m| m.name == name);
        for (i, m) in self.0.iter().enumerate() {
            if Some(i) == place {
                out.member(name, json);
            } else if m.name != name {
                out.entry(m.key, m.value.get());
            }
        }
        if place.is_none() {
            out.member(name, json);
        }
        out.finish()
    }

    /// The most bytes of its text without insignificant white space.
    fn length(&self) -> usize {
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

/// Writes one object member by member, without insignificant white space.
#[derive(Debug)]
pub(crate) struct Writer(String);

impl Writer {
    pub fn new() -> Writer {
        Writer(String::from("{"))
    }

    pub fn with_capacity(bytes: usize) -> Writer {
        let mut text = String::with_capacity(bytes);
        text.push('{');
        Writer(text)
    }

    /// A member under a name that needs no escapes.
    pub fn member(&mut self, name: &str, json: &str) {
        self.name(name);
        compact_into(&mut self.0, json);
    }

    /// The same, of a value that has no insignificant white space.
    pub fn compacted(&mut self, name: &str, json: &str) {
        self.name(name);
        self.0.push_str(json);
    }

    /// The same, of an object.
    pub fn object(&mut self, name: &str, object: &Object) {
        self.name(name);
        let mut before = '{';
        for member in &object.0 {
            self.0.push(before);
            self.0.push_str(member.key);
            self.0.push(':');
            compact_into(&mut self.0, member.value.get());
            before = ',';
        }
        self.0.push_str(if object.0.is_empty() { "{}" } else { "}" });
    }

    /// The member, if there is one.
    pub fn optional(&mut self, name: &str, json: Option<&str>) {
        if let Some(json) = json {
            self.member(name, json);
        }
    }

    /// A member whose name is already JSON.
    pub fn entry(&mut self, key: &str, json: &str) {
        self.comma();
        self.0.push_str(key);
        self.0.push(':');
        compact_into(&mut self.0, json);
    }

    pub fn finish(mut self) -> String {
        self.0.push('}');
        self.0
    }

    fn name(&mut self, name: &str) {
        self.comma();
        self.0.push('"');
        self.0.push_str(name);
        self.0.push_str("\":");
    }

    fn comma(&mut self) {
        if self.0.len() > 1 {
            self.0.push(',');
        }
    }
}

/// What a value is, told from its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Null,
    Boolean,
    Number,
    String,
    Array,
    Object,
}

impl Shape {
    pub fn of(value: Raw) -> Shape {
        match value.get().as_bytes().first() {
            Some(b'n') => Shape::Null,
            Some(b't' | b'f') => Shape::Boolean,
            Some(b'"') => Shape::String,
            Some(b'[') => Shape::Array,
            Some(b'{') => Shape::Object,
            _ => Shape::Number,
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Shape::Null => "null",
            Shape::Boolean => "a boolean",
            Shape::Number => "a number",
            Shape::String => "a string",
            Shape::Array => "an array",
            Shape::Object => "an object",
        })
    }
}

/// The text of a JSON string; `None` for what is no string or cannot be decoded (half a surrogate pair).
pub(crate) fn decode(json: &str) -> Option<Cow<'_, str>> {
    let inner = json.strip_prefix('"')?.strip_suffix('"')?;
    match has_escapes(inner) {
        false => Some(Cow::Borrowed(inner)),
        true => serde_json::from_str(json).ok().map(Cow::Owned),
    }
}

/// Most strings are names and short values, for which a call of `memchr` takes longer than the search.
fn has_escapes(inner: &str) -> bool {
    const SHORT: usize = 32;
    match inner.len() {
        ..SHORT => inner.bytes().any(|byte| byte == b'\\'),
        _ => memchr(b'\\', inner.as_bytes()).is_some(),
    }
}

/// A value as text: a string's decoded, anything else and what cannot be decoded as written.
pub(crate) fn text(json: &str) -> Cow<'_, str> {
    decode(json).unwrap_or(Cow::Borrowed(json))
}

/// `text` as a JSON string.
pub(crate) fn quote(text: &str) -> String {
    match text.bytes().any(|byte| byte < b' ' || matches!(byte, b'"' | b'\\')) {
        true => serde_json::Value::from(text).to_string(),
        false => ["\"", text, "\""].concat(),
    }
}

/// A scalar, or an array of one, as the JSON text of a string, the way Segment reads a string field;
/// `None` for any other value. A number keeps its spelling.
pub(crate) fn as_string(value: Raw<'_>) -> Option<Cow<'_, str>> {
    match Shape::of(value) {
        Shape::Null => None,
        Shape::Array => match serde_json::from_str::<(&RawValue,)>(value.get()).ok()? {
            (one,) if Shape::of(one.into()) == Shape::Null => Some(Cow::Borrowed("\"\"")),
            (one,) if Shape::of(one.into()) == Shape::Array => None,
            (one,) => as_string(one.into()),
        },
        Shape::Object => None,
        Shape::String => Some(Cow::Borrowed(value.get())),
        Shape::Boolean | Shape::Number => Some(Cow::Owned(format!("\"{}\"", value.get()))),
    }
}

/// Whether JavaScript would take the value for true.
pub(crate) fn truthy(json: &str) -> bool {
    match json {
        "null" | "false" | "\"\"" => false,
        // What is no number is a string, true, an array or an object; "inf" and "nan" are never JSON.
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
    fn the_last_of_duplicate_names_counts_however_it_is_spelt() {
        assert_eq!(object(r#"{"a":1,"b":2,"\u0061":3}"#).get("a").unwrap().get(), "3");
    }

    #[test]
    fn a_name_that_cannot_be_decoded_is_carried_as_written() {
        let text = r#"{"\ud800":1,"b":2}"#;
        assert_eq!(object(text).without("x").compact(), text);
    }

    #[test]
    fn members_are_set_in_place_and_left_out() {
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
    fn string_fields_take_scalars_and_arrays_of_one() {
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
            assert_eq!(as_string(raw(json)).as_deref(), want, "{json}");
        }
    }

    #[test]
    fn truth_is_javascripts() {
        for falsy in ["null", "false", "0", "-0", "-0.0", "0e9", "1e-400", r#""""#] {
            assert!(!truthy(falsy), "{falsy}");
        }
        for true_one in ["true", "1", "-1e-5", "1e999", r#""0""#, r#"" ""#, r#""false""#, "[]", "{}", "[0]"] {
            assert!(truthy(true_one), "{true_one}");
        }
    }
}

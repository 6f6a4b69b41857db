//! Values of JSON as JavaScript finds and writes them: what a path reaches, `String(x)`, `Number(x)`,
//! `JSON.stringify(x)`.

use crate::event::elements;
use crate::event::json::{self, Object};
use std::borrow::Cow;

/// What stands at a path.
#[derive(Debug, Clone, PartialEq)]
pub enum Found<'a> {
    Missing,
    /// JSON.
    Json(Cow<'a, str>),
    /// What every text, number or array has in JavaScript beside its value.
    Function,
}

/// What a value is in JavaScript.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    Null,
    Bool,
    Number,
    Text,
    Array,
    Object,
}

impl Type {
    pub fn of(json: &str) -> Type {
        match json.as_bytes().first() {
            Some(b'"') => Type::Text,
            Some(b'{') => Type::Object,
            Some(b'[') => Type::Array,
            Some(b't' | b'f') => Type::Bool,
            Some(b'n') => Type::Null,
            _ => Type::Number,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Type::Null => "null",
            Type::Bool => "boolean",
            Type::Number => "number",
            Type::Text => "string",
            Type::Array => "array",
            Type::Object => "object",
        }
    }
}

/// What a path leads to from a value. What is false in JavaScript stands for all that is sought inside it.
pub fn follow<'a, 'k>(from: Found<'a>, keys: impl IntoIterator<Item = &'k str>) -> Found<'a> {
    let mut found = from;
    for key in keys {
        found = match found {
            Found::Json(json) if !json::truthy(&json) => return Found::Json(json),
            Found::Json(Cow::Borrowed(json)) => inside(json, key),
            Found::Json(Cow::Owned(json)) => match inside(&json, key) {
                Found::Missing => Found::Missing,
                Found::Function => Found::Function,
                Found::Json(json) => Found::Json(Cow::Owned(json.into_owned())),
            },
            Found::Missing => return Found::Missing,
            Found::Function => Found::Missing,
        };
    }
    found
}

fn inside<'a>(json: &'a str, key: &str) -> Found<'a> {
    let method = |methods: &[&str]| if methods.contains(&key) { Found::Function } else { Found::Missing };
    let length = |n: usize| Found::Json(Cow::Owned(n.to_string()));
    match Type::of(json) {
        Type::Object => match serde_json::from_str::<Object>(json).ok().and_then(|o| o.get(key)) {
            Some(value) => Found::Json(value.get().into()),
            None => Found::Missing,
        },
        Type::Array => {
            let Ok(mut items) = elements(json) else { return Found::Missing };
            match index(key) {
                Some(n) => items.nth(n).map_or(Found::Missing, |item| Found::Json(item.into())),
                None if key == "length" => length(items.len()),
                None => method(ARRAY_METHODS),
            }
        }
        Type::Text => {
            let Some(text) = json::decode(json) else { return Found::Missing };
            match index(key) {
                // Half of a pair is no text here.
                Some(n) => match text.encode_utf16().nth(n).and_then(|unit| char::from_u32(unit.into())) {
                    Some(c) => Found::Json(Cow::Owned(json::quote(c.encode_utf8(&mut [0; 4])))),
                    None => Found::Missing,
                },
                None if key == "length" => length(text.encode_utf16().count()),
                None => method(TEXT_METHODS),
            }
        }
        Type::Number => method(NUMBER_METHODS),
        Type::Null | Type::Bool => Found::Missing,
    }
}

/// A key that is an index, as JavaScript writes it.
fn index(key: &str) -> Option<usize> {
    let digits = key.bytes().all(|b| b.is_ascii_digit()) && (key == "0" || !key.starts_with('0'));
    if digits { key.parse().ok() } else { None }
}

/// What every object has in JavaScript; a path through one of these is refused.
pub const OBJECT_METHODS: &[&str] = &[
    "constructor",
    "hasOwnProperty",
    "isPrototypeOf",
    "propertyIsEnumerable",
    "toLocaleString",
    "toString",
    "valueOf",
    "__proto__",
    "__defineGetter__",
    "__defineSetter__",
    "__lookupGetter__",
    "__lookupSetter__",
];

pub const NUMBER_METHODS: &[&str] = &["toExponential", "toFixed", "toPrecision"];

#[rustfmt::skip]
pub const TEXT_METHODS: &[&str] = &[
    "anchor", "at", "big", "blink", "bold", "charAt", "charCodeAt", "codePointAt", "concat", "endsWith", "fixed",
    "fontcolor", "fontsize", "includes", "indexOf", "isWellFormed", "italics", "lastIndexOf", "link", "localeCompare",
    "match", "matchAll", "normalize", "padEnd", "padStart", "repeat", "replace", "replaceAll", "search", "slice",
    "small", "split", "startsWith", "strike", "sub", "substr", "substring", "sup", "toLocaleLowerCase",
    "toLocaleUpperCase", "toLowerCase", "toUpperCase", "toWellFormed", "trim", "trimEnd", "trimLeft", "trimRight",
    "trimStart",
];

#[rustfmt::skip]
pub const ARRAY_METHODS: &[&str] = &[
    "at", "concat", "copyWithin", "entries", "every", "fill", "filter", "find", "findIndex", "findLast",
    "findLastIndex", "flat", "flatMap", "forEach", "includes", "indexOf", "join", "keys", "lastIndexOf", "map", "pop",
    "push", "reduce", "reduceRight", "reverse", "shift", "slice", "some", "sort", "splice", "toReversed", "toSorted",
    "toSpliced", "unshift", "values", "with",
];

/// `String(value)`.
pub fn text_of(json: &str) -> String {
    match Type::of(json) {
        Type::Text => json::decode(json).map(Cow::into_owned).unwrap_or_default(),
        Type::Number => json.parse().map_or_else(|_| json.to_owned(), number_text),
        Type::Array => {
            let Ok(items) = elements(json) else { return String::new() };
            let texts = items.map(|item| if item == "null" { String::new() } else { text_of(item) });
            texts.collect::<Vec<_>>().join(",")
        }
        Type::Object => "[object Object]".to_owned(),
        Type::Null | Type::Bool => json.to_owned(),
    }
}

/// `String(number)`.
pub fn number_text(number: f64) -> String {
    if number == 0.0 {
        return "0".to_owned();
    }
    if !number.is_finite() {
        return if number.is_nan() {
            "NaN"
        } else if number > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        }
        .to_owned();
    }
    let shortest = format!("{number:e}");
    let (digits, exponent) = shortest.split_once('e').unwrap_or((&shortest, "0"));
    let sign = if digits.starts_with('-') { "-" } else { "" };
    let digits: String = digits.chars().filter(char::is_ascii_digit).collect();
    // The decimal point stands after so many digits.
    let point = exponent.parse::<i32>().unwrap_or(0) + 1;
    let count = digits.len() as i32;
    let zeros = |n: i32| "0".repeat(n.max(0) as usize);
    let body = match point {
        _ if count <= point && point <= 21 => digits + &zeros(point - count),
        1..=21 => format!("{}.{}", &digits[..point as usize], &digits[point as usize..]),
        -5..=0 => format!("0.{}{digits}", zeros(-point)),
        _ => {
            let (first, rest) = digits.split_at(1);
            let dot = if rest.is_empty() { "" } else { "." };
            format!("{first}{dot}{rest}e{:+}", point - 1)
        }
    };
    sign.to_owned() + &body
}

/// `Number(text)`.
pub fn number_of(text: &str) -> f64 {
    let text = trim(text);
    let based = |digits: &str, base: u32| {
        let all = !digits.is_empty() && digits.chars().all(|c| c.is_digit(base));
        let value = |sum: f64, c: char| sum * f64::from(base) + f64::from(c.to_digit(base).unwrap_or(0));
        if all { digits.chars().fold(0.0, value) } else { f64::NAN }
    };
    match text.get(..2) {
        Some("0x" | "0X") => return based(&text[2..], 16),
        Some("0o" | "0O") => return based(&text[2..], 8),
        Some("0b" | "0B") => return based(&text[2..], 2),
        _ => {}
    }
    match text.strip_prefix(['+', '-']).unwrap_or(text) {
        "" if text.is_empty() => 0.0,
        "Infinity" if text.starts_with('-') => f64::NEG_INFINITY,
        "Infinity" => f64::INFINITY,
        digits if digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') => {
            text.parse().unwrap_or(f64::NAN)
        }
        _ => f64::NAN,
    }
}

/// JavaScript's white space has U+FEFF where Unicode's has U+0085.
pub fn is_space(c: char) -> bool {
    c == '\u{feff}' || c.is_whitespace() && c != '\u{85}'
}

pub fn trim(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// The members of an object in JavaScript's order: indices first, of one name the last value in the first's place.
pub fn members<'a>(object: &Object<'a>) -> Vec<(String, &'a str)> {
    let mut members: Vec<(String, &str)> = Vec::with_capacity(object.0.len());
    let mut places = std::collections::HashMap::new();
    for member in &object.0 {
        match places.get(member.name.as_ref()) {
            Some(&place) => members[place] = (member.name.clone().into_owned(), member.value.get()),
            None => {
                places.insert(member.name.clone(), members.len());
                members.push((member.name.clone().into_owned(), member.value.get()));
            }
        }
    }
    // A stable sort: what is no index stays in its order.
    members.sort_by_key(|(name, _)| index(name).filter(|n| *n < u32::MAX as usize).unwrap_or(usize::MAX));
    members
}

/// `JSON.stringify(value)`; an event nests no deeper than its reader allows.
pub fn stringify(json: &str) -> String {
    match Type::of(json) {
        Type::Text => json::decode(json).map_or_else(|| json.to_owned(), |text| json::quote(&text)),
        Type::Number => json.parse().map_or_else(|_| json.to_owned(), number_text),
        Type::Array => {
            let items = elements(json).into_iter().flatten().map(stringify);
            format!("[{}]", items.collect::<Vec<_>>().join(","))
        }
        Type::Object => {
            let object: Object = serde_json::from_str(json).unwrap_or_default();
            let members = members(&object);
            let texts =
                members.iter().map(|(name, value)| format!("{}:{}", json::quote(name), stringify(value)));
            format!("{{{}}}", texts.collect::<Vec<_>>().join(","))
        }
        Type::Null | Type::Bool => json.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_in_javascript() {
        for (json, want) in [
            ("7", "7"),
            ("1.50", "1.5"),
            ("0.1", "0.1"),
            ("-0.0", "0"),
            ("1e21", "1e+21"),
            ("123456789012345680000", "123456789012345680000"),
            ("9007199254740993", "9007199254740992"),
            ("1e-7", "1e-7"),
            ("0.000001", "0.000001"),
            ("0.0000012", "0.0000012"),
            ("-42.125", "-42.125"),
            ("1.2345e-9", "1.2345e-9"),
            ("5e-324", "5e-324"),
            ("1.7976931348623157e308", "1.7976931348623157e+308"),
            ("100000", "100000"),
            ("123456.789", "123456.789"),
        ] {
            assert_eq!(text_of(json), want, "{json}");
        }
    }

    #[test]
    fn texts_are_read_as_numbers_as_in_javascript() {
        for (text, want) in [
            ("12", 12.0),
            (" -0.5\n", -0.5),
            ("+1e3", 1000.0),
            (".5", 0.5),
            ("5.", 5.0),
            ("", 0.0),
            ("0x10", 16.0),
            ("0b11", 3.0),
            ("-Infinity", f64::NEG_INFINITY),
        ] {
            assert_eq!(number_of(text), want, "{text:?}");
        }
        for text in ["ten", "1_000", "0x", "--1", "inf", "nan", "1e", "-0x10", "1 2"] {
            assert!(number_of(text).is_nan(), "{text:?}");
        }
    }

    #[test]
    fn members_stand_in_javascripts_order() {
        assert_eq!(
            stringify(r#" {"b":1.0,"2":[ ],"a":{"x":"\u00e9\/"},"1":null,"b":2} "#.trim()),
            r#"{"1":null,"2":[],"b":2,"a":{"x":"é/"}}"#
        );
        assert_eq!(text_of("[1,[2,null],{},\"x\"]"), "1,2,,[object Object],x");
    }
}

//! JSON values with the semantics of JavaScript, which Segment's own code runs in: member access, `String(x)`,
//! `Number(x)`, `JSON.stringify(x)`.

use crate::event::elements;
use crate::event::json::{self, JsonType, Object, is_js_space};
use std::borrow::Cow;

/// The result of a member access.
#[derive(Debug, Clone, PartialEq)]
pub enum JsValue<'a> {
    Undefined,
    /// A value, as JSON.
    Json(Cow<'a, str>),
    /// A method that every string, number or array has in JavaScript, by its name.
    Function(&'static str),
}

/// The value at a path. As in Segment's code, a falsy value on the way is the result.
pub fn get_path<'a, 'k>(root: JsValue<'a>, keys: impl IntoIterator<Item = &'k str>) -> JsValue<'a> {
    let mut value = root;
    for key in keys {
        value = match value {
            JsValue::Json(json) if !json::is_truthy(&json) => return JsValue::Json(json),
            JsValue::Json(Cow::Borrowed(json)) => get_member(json, key),
            JsValue::Json(Cow::Owned(json)) => match get_member(&json, key) {
                JsValue::Undefined => JsValue::Undefined,
                JsValue::Function(name) => JsValue::Function(name),
                JsValue::Json(json) => JsValue::Json(Cow::Owned(json.into_owned())),
            },
            JsValue::Undefined => return JsValue::Undefined,
            JsValue::Function(_) => JsValue::Undefined,
        };
    }
    value
}

fn get_member<'a>(json: &'a str, key: &str) -> JsValue<'a> {
    let method = |methods: &[&'static str]| {
        methods.iter().find(|name| **name == key).map_or(JsValue::Undefined, |name| JsValue::Function(name))
    };
    let length = |n: usize| JsValue::Json(Cow::Owned(n.to_string()));
    match JsonType::of(json) {
        JsonType::Object => match serde_json::from_str::<Object>(json).ok().and_then(|o| o.get(key)) {
            Some(value) => JsValue::Json(value.get().into()),
            None => JsValue::Undefined,
        },
        JsonType::Array => {
            let Ok(mut items) = elements(json) else { return JsValue::Undefined };
            match array_index(key) {
                Some(n) => items.nth(n).map_or(JsValue::Undefined, |item| JsValue::Json(item.into())),
                None if key == "length" => length(items.len()),
                None => method(ARRAY_METHODS),
            }
        }
        JsonType::String => {
            let Some(text) = json::decode(json) else { return JsValue::Undefined };
            match array_index(key) {
                // An unpaired surrogate cannot be a text here and reads as undefined.
                Some(n) => match text.encode_utf16().nth(n).and_then(|unit| char::from_u32(unit.into())) {
                    Some(c) => JsValue::Json(Cow::Owned(json::quote(c.encode_utf8(&mut [0; 4])))),
                    None => JsValue::Undefined,
                },
                None if key == "length" => length(text.encode_utf16().count()),
                None => method(STRING_METHODS),
            }
        }
        JsonType::Number => method(NUMBER_METHODS),
        JsonType::Null | JsonType::Boolean => JsValue::Undefined,
    }
}

/// The array index that `key` spells in JavaScript's canonical form, if it does.
pub fn array_index(key: &str) -> Option<usize> {
    let is_canonical = key.bytes().all(|b| b.is_ascii_digit()) && (key == "0" || !key.starts_with('0'));
    if is_canonical { key.parse().ok() } else { None }
}

/// The members that every object has in JavaScript. A path that names one is refused.
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

const NUMBER_METHODS: &[&str] = &["toExponential", "toFixed", "toPrecision"];

#[rustfmt::skip]
const STRING_METHODS: &[&str] = &[
    "anchor", "at", "big", "blink", "bold", "charAt", "charCodeAt", "codePointAt", "concat", "endsWith", "fixed",
    "fontcolor", "fontsize", "includes", "indexOf", "isWellFormed", "italics", "lastIndexOf", "link", "localeCompare",
    "match", "matchAll", "normalize", "padEnd", "padStart", "repeat", "replace", "replaceAll", "search", "slice",
    "small", "split", "startsWith", "strike", "sub", "substr", "substring", "sup", "toLocaleLowerCase",
    "toLocaleUpperCase", "toLowerCase", "toUpperCase", "toWellFormed", "trim", "trimEnd", "trimLeft", "trimRight",
    "trimStart",
];

#[rustfmt::skip]
const ARRAY_METHODS: &[&str] = &[
    "at", "concat", "copyWithin", "entries", "every", "fill", "filter", "find", "findIndex", "findLast",
    "findLastIndex", "flat", "flatMap", "forEach", "includes", "indexOf", "join", "keys", "lastIndexOf", "map", "pop",
    "push", "reduce", "reduceRight", "reverse", "shift", "slice", "some", "sort", "splice", "toReversed", "toSorted",
    "toSpliced", "unshift", "values", "with",
];

/// `String(method)`.
pub fn function_to_js_string(name: &str) -> String {
    let name = match name {
        "trimLeft" => "trimStart",
        "trimRight" => "trimEnd",
        name => name,
    };
    format!("function {name}() {{ [native code] }}")
}

/// `String(value)`.
pub fn to_js_string(json: &str) -> String {
    match JsonType::of(json) {
        JsonType::String => json::decode(json).map(Cow::into_owned).unwrap_or_default(),
        JsonType::Number => json.parse().map_or_else(|_| json.to_owned(), number_to_js_string),
        JsonType::Array => {
            let Ok(items) = elements(json) else { return String::new() };
            let texts = items.map(|item| if item == "null" { String::new() } else { to_js_string(item) });
            texts.collect::<Vec<_>>().join(",")
        }
        JsonType::Object => "[object Object]".to_owned(),
        JsonType::Null | JsonType::Boolean => json.to_owned(),
    }
}

/// `String(number)`.
pub fn number_to_js_string(number: f64) -> String {
    ryu_js::Buffer::new().format(number).to_owned()
}

/// `Number(text)`.
pub fn to_js_number(text: &str) -> f64 {
    let text = trim(text);
    let parse_digits = |digits: &str, base: u32| {
        let is_number = !digits.is_empty() && digits.chars().all(|c| c.is_digit(base));
        let value = |sum: f64, c: char| sum * f64::from(base) + f64::from(c.to_digit(base).unwrap_or(0));
        if is_number { digits.chars().fold(0.0, value) } else { f64::NAN }
    };
    match text.get(..2) {
        Some("0x" | "0X") => return parse_digits(&text[2..], 16),
        Some("0o" | "0O") => return parse_digits(&text[2..], 8),
        Some("0b" | "0B") => return parse_digits(&text[2..], 2),
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

pub fn trim(text: &str) -> &str {
    text.trim_matches(is_js_space)
}

/// The members of an object in JavaScript's order: indices first; a duplicate has the last value in the first place.
pub fn members_in_js_order<'a>(object: &Object<'a>) -> Vec<(String, &'a str)> {
    let mut members: Vec<(String, &str)> = Vec::with_capacity(object.0.len());
    let mut positions = std::collections::HashMap::new();
    for member in &object.0 {
        match positions.get(member.name.as_ref()) {
            Some(&position) => members[position] = (member.name.clone().into_owned(), member.value.get()),
            None => {
                positions.insert(member.name.clone(), members.len());
                members.push((member.name.clone().into_owned(), member.value.get()));
            }
        }
    }
    // The sort is stable, so names that are not indices keep their order.
    members
        .sort_by_key(|(name, _)| array_index(name).filter(|n| *n < u32::MAX as usize).unwrap_or(usize::MAX));
    members
}

/// `JSON.stringify(value)`. The recursion is bounded by an event's maximum nesting depth.
pub fn json_stringify(json: &str) -> String {
    match JsonType::of(json) {
        JsonType::String => json::decode(json).map_or_else(|| json.to_owned(), |text| json::quote(&text)),
        JsonType::Number => json.parse().map_or_else(|_| json.to_owned(), number_to_js_string),
        JsonType::Array => {
            let items = elements(json).into_iter().flatten().map(json_stringify);
            format!("[{}]", items.collect::<Vec<_>>().join(","))
        }
        JsonType::Object => {
            let object: Object = serde_json::from_str(json).unwrap_or_default();
            let members = members_in_js_order(&object);
            let texts = members
                .iter()
                .map(|(name, value)| format!("{}:{}", json::quote(name), json_stringify(value)));
            format!("{{{}}}", texts.collect::<Vec<_>>().join(","))
        }
        JsonType::Null | JsonType::Boolean => json.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_formatted_as_in_javascript() {
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
            ("1658206780088562.25", "1658206780088562.2"),
        ] {
            assert_eq!(to_js_string(json), want, "{json}");
        }
    }

    #[test]
    fn strings_are_parsed_as_numbers_as_in_javascript() {
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
            assert_eq!(to_js_number(text), want, "{text:?}");
        }
        for text in ["ten", "1_000", "0x", "--1", "inf", "nan", "1e", "-0x10", "1 2"] {
            assert!(to_js_number(text).is_nan(), "{text:?}");
        }
    }

    #[test]
    fn members_are_in_javascripts_order() {
        assert_eq!(
            json_stringify(r#" {"b":1.0,"2":[ ],"a":{"x":"\u00e9\/"},"1":null,"b":2} "#.trim()),
            r#"{"1":null,"2":[],"b":2,"a":{"x":"é/"}}"#
        );
        assert_eq!(to_js_string("[1,[2,null],{},\"x\"]"), "1,2,,[object Object],x");
    }
}

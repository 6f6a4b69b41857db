//! The value at a path of an event, as JavaScript finds it.

use crate::event::Event;
use crate::event::json::{self, Object};
use serde_json::value::RawValue;

/// A value, as far as a condition looks at it.
#[derive(Debug, Clone, Copy)]
pub enum Value<'a> {
    Missing,
    Null,
    Bool(bool),
    /// As JSON.
    Number(&'a str),
    /// As JSON, quotes included.
    Text(&'a str),
    /// The length of a text or an array.
    Length(usize),
    /// Something that no literal is equal to.
    Other(&'a RawValue),
    /// What every text, number or array has in JavaScript beside its value: a function.
    Function,
}

impl<'a> Value<'a> {
    fn of(value: Option<&'a RawValue>) -> Value<'a> {
        let Some(value) = value else { return Value::Missing };
        let json = value.get();
        match json.as_bytes().first() {
            Some(b'"') => Value::Text(json),
            Some(b'{' | b'[') => Value::Other(value),
            Some(b't') => Value::Bool(true),
            Some(b'f') => Value::Bool(false),
            Some(b'n') => Value::Null,
            _ => Value::Number(json),
        }
    }

    /// What is false in JavaScript stands for all that is sought inside it.
    fn is_falsy(self) -> bool {
        match self {
            Value::Missing | Value::Null | Value::Bool(false) | Value::Length(0) | Value::Text("\"\"") => {
                true
            }
            Value::Number(json) => json.parse::<f64>() == Ok(0.0),
            _ => false,
        }
    }

    fn inside(self, key: &str) -> Value<'a> {
        let method = |methods: &[&str]| if methods.contains(&key) { Value::Function } else { Value::Missing };
        match self {
            Value::Other(value) => match Object::of(value) {
                Some(object) => Value::of(object.get(key)),
                None if key == "length" => {
                    Value::Length(crate::event::elements(value.get()).map_or(0, |e| e.len()))
                }
                None => method(ARRAY_METHODS),
            },
            Value::Text(json) if key == "length" => {
                Value::Length(json::decode(json).map_or(0, |text| text.encode_utf16().count()))
            }
            Value::Text(_) => method(TEXT_METHODS),
            Value::Number(_) | Value::Length(_) => method(NUMBER_METHODS),
            _ => Value::Missing,
        }
    }
}

/// The value at a path, which is not empty.
pub fn at<'a>(event: &Event<'a>, path: &[String]) -> Value<'a> {
    let Some((member, keys)) = path.split_first() else { return Value::Missing };
    let mut value = Value::of(event.get(member));
    for key in keys {
        if value.is_falsy() {
            break;
        }
        value = value.inside(key);
    }
    value
}

/// What every object has in JavaScript; a path with one of these is refused.
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

const TEXT_METHODS: &[&str] = &[
    "anchor",
    "at",
    "big",
    "blink",
    "bold",
    "charAt",
    "charCodeAt",
    "codePointAt",
    "concat",
    "endsWith",
    "fixed",
    "fontcolor",
    "fontsize",
    "includes",
    "indexOf",
    "isWellFormed",
    "italics",
    "lastIndexOf",
    "link",
    "localeCompare",
    "match",
    "matchAll",
    "normalize",
    "padEnd",
    "padStart",
    "repeat",
    "replace",
    "replaceAll",
    "search",
    "slice",
    "small",
    "split",
    "startsWith",
    "strike",
    "sub",
    "substr",
    "substring",
    "sup",
    "toLocaleLowerCase",
    "toLocaleUpperCase",
    "toLowerCase",
    "toUpperCase",
    "toWellFormed",
    "trim",
    "trimEnd",
    "trimLeft",
    "trimRight",
    "trimStart",
];

const ARRAY_METHODS: &[&str] = &[
    "at",
    "concat",
    "copyWithin",
    "entries",
    "every",
    "fill",
    "filter",
    "find",
    "findIndex",
    "findLast",
    "findLastIndex",
    "flat",
    "flatMap",
    "forEach",
    "includes",
    "indexOf",
    "join",
    "keys",
    "lastIndexOf",
    "map",
    "pop",
    "push",
    "reduce",
    "reduceRight",
    "reverse",
    "shift",
    "slice",
    "some",
    "sort",
    "splice",
    "toReversed",
    "toSorted",
    "toSpliced",
    "unshift",
    "values",
    "with",
];

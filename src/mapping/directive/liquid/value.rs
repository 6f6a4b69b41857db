//! Values of Liquid, with the habits that they have in JavaScript.

use crate::event::json::{self, Object};
use crate::event::{Raw, elements};
use crate::mapping::lookup::{Type, members, number_of, number_text, stringify, text_of};

/// A value that Liquid works with.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// JavaScript's undefined.
    Missing,
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    /// An array or an object, as JSON.
    Json(String),
    List(Vec<Value>),
    /// The literals of these names, which know how to be compared.
    Nil,
    Empty,
    Blank,
}

impl Value {
    pub fn of(json: &str) -> Value {
        match Type::of(json) {
            Type::Null => Value::Null,
            Type::Bool => Value::Bool(json == "true"),
            Type::Number => Value::Number(json.parse().unwrap_or(f64::NAN)),
            Type::Text => json::decode(json).map_or(Value::Missing, |text| Value::Text(text.into_owned())),
            Type::Array | Type::Object => Value::Json(json.to_owned()),
        }
    }

    pub fn is_nil(&self) -> bool {
        matches!(self, Value::Missing | Value::Null | Value::Nil)
    }

    /// Bytes of it, about.
    pub fn size(&self) -> usize {
        match self {
            Value::Text(text) | Value::Json(text) => text.len(),
            Value::List(items) => items.iter().map(|item| size_of::<Value>() + item.size()).sum(),
            _ => 0,
        }
    }

    /// Only false and nil are false: not 0, and not the empty text.
    pub fn is_true(&self) -> bool {
        !self.is_nil() && *self != Value::Bool(false)
    }

    /// The elements of an array.
    pub fn elements(&self) -> Option<Vec<Value>> {
        match self {
            Value::List(items) => Some(items.clone()),
            Value::Json(json) if Type::of(json) == Type::Array => {
                Some(elements(json).into_iter().flatten().map(Value::of).collect())
            }
            _ => None,
        }
    }

    fn object(&self) -> Option<Object<'_>> {
        match self {
            Value::Json(json) if Type::of(json) == Type::Object => serde_json::from_str(json).ok(),
            _ => None,
        }
    }

    /// What is printed: nothing for nil, arrays without anything between their elements.
    pub fn print(&self) -> String {
        match self {
            Value::Missing | Value::Null | Value::Nil | Value::Empty | Value::Blank => String::new(),
            Value::Bool(b) => b.to_string(),
            Value::Number(n) => number_text(*n),
            Value::Text(text) => text.clone(),
            Value::Json(json) => match self.elements() {
                Some(items) => items.iter().map(Value::print).collect(),
                None => text_of(json),
            },
            Value::List(items) => items.iter().map(Value::print).collect(),
        }
    }

    /// `String(value)` within an array that is joined.
    pub fn joined(&self) -> String {
        match self {
            Value::Json(json) => text_of(json),
            Value::List(items) => items.iter().map(Value::joined).collect::<Vec<_>>().join(","),
            other => other.print(),
        }
    }

    /// `Number(value)`.
    pub fn number(&self) -> f64 {
        match self {
            Value::Missing => f64::NAN,
            Value::Null | Value::Nil | Value::Empty | Value::Blank => 0.0,
            Value::Bool(b) => f64::from(u8::from(*b)),
            Value::Number(n) => *n,
            Value::Text(text) => number_of(text),
            Value::Json(_) | Value::List(_) => number_of(&self.joined()),
        }
    }

    /// `JSON.stringify(value)`.
    pub fn json(&self) -> Option<String> {
        Some(match self {
            Value::Missing => return None,
            Value::Null | Value::Nil => "null".to_owned(),
            Value::Number(n) if !n.is_finite() => "null".to_owned(),
            Value::Bool(_) | Value::Number(_) => self.print(),
            Value::Empty | Value::Blank | Value::Text(_) => json::quote(&self.print()),
            Value::Json(json) => stringify(json),
            Value::List(items) => {
                let items = items.iter().map(|item| item.json().unwrap_or("null".to_owned()));
                format!("[{}]", items.collect::<Vec<_>>().join(","))
            }
        })
    }

    /// A member or an element. Inside nil there is nothing but nil.
    pub fn member(&self, key: &Value) -> Value {
        if self.is_nil() {
            return self.clone();
        }
        if let (Some(items), Value::Number(n)) = (self.elements(), key) {
            let at = if *n < 0.0 { items.len() as f64 + n } else { *n };
            let found = (at >= 0.0 && at.fract() == 0.0).then(|| items.get(at as usize).cloned()).flatten();
            return found.unwrap_or(Value::Missing);
        }
        let name = key.joined();
        match self {
            Value::Json(_) | Value::List(_) => match self.elements() {
                Some(items) => match name.as_str() {
                    "size" | "length" => Value::Number(items.len() as f64),
                    "first" => items.first().cloned().unwrap_or(Value::Missing),
                    "last" => items.last().cloned().unwrap_or(Value::Missing),
                    name => index(name).and_then(|n| items.get(n).cloned()).unwrap_or(Value::Missing),
                },
                None => {
                    let object = self.object().unwrap_or_default();
                    match object.get(&name).map(Raw::get) {
                        Some(json) => Value::of(json),
                        None if name == "size" => Value::Number(members(&object).len() as f64),
                        None => Value::Missing,
                    }
                }
            },
            Value::Text(text) => match name.as_str() {
                "size" | "length" => Value::Number(text.encode_utf16().count() as f64),
                name => {
                    let unit = index(name).and_then(|n| text.encode_utf16().nth(n));
                    // Half of a pair is no text here.
                    let c = unit.and_then(|unit| char::from_u32(unit.into()));
                    c.map_or(Value::Missing, |c| Value::Text(c.to_string()))
                }
            },
            _ => Value::Missing,
        }
    }

    /// `==`
    ///
    /// # Errors
    /// Two arrays or two objects, which are equal for some and not for others.
    pub fn equals(&self, other: &Value) -> Result<bool, String> {
        Ok(match (self, other) {
            (Value::Nil, other) | (other, Value::Nil) => other.is_nil(),
            (Value::Blank, Value::Bool(false)) | (Value::Bool(false), Value::Blank) => true,
            (Value::Blank, value) | (value, Value::Blank) if value.is_nil() => true,
            (Value::Blank, Value::Text(text)) | (Value::Text(text), Value::Blank) => {
                text.chars().all(crate::mapping::lookup::is_space)
            }
            (Value::Empty | Value::Blank, value) | (value, Value::Empty | Value::Blank) => value.is_empty(),
            (Value::Number(a), Value::Number(b)) => a == b,
            (Value::Json(_) | Value::List(_), Value::Json(_) | Value::List(_)) => {
                return Err("two arrays or objects cannot be compared".to_owned());
            }
            (a, b) => a == b,
        })
    }

    fn is_empty(&self) -> bool {
        match self {
            Value::Text(text) => text.is_empty(),
            Value::Json(_) | Value::List(_) => match self.elements() {
                Some(items) => items.is_empty(),
                None => self.object().is_some_and(|object| object.0.is_empty()),
            },
            _ => false,
        }
    }

    /// Which is less, if that can be told: texts by their UTF-16, the rest as numbers.
    pub fn order(&self, other: &Value) -> Option<std::cmp::Ordering> {
        let special = |value: &Value| matches!(value, Value::Nil | Value::Empty | Value::Blank);
        if special(self) || special(other) {
            return None;
        }
        let text = |value: &Value| matches!(value, Value::Text(_) | Value::Json(_) | Value::List(_));
        match text(self) && text(other) {
            true => Some(self.joined().encode_utf16().cmp(other.joined().encode_utf16())),
            false => self.number().partial_cmp(&other.number()),
        }
    }

    /// `contains`
    ///
    /// # Errors
    /// As [`Value::equals`].
    pub fn contains(&self, other: &Value) -> Result<bool, String> {
        if let Some(items) = self.elements() {
            for item in items {
                if item.equals(other)? {
                    return Ok(true);
                }
            }
            return Ok(false);
        }
        match (self, other) {
            (Value::Text(_), Value::Missing | Value::Null | Value::Nil) => {
                Err("contains asks for nothing here".to_owned())
            }
            (Value::Text(text), other) => Ok(text.contains(&other.joined())),
            _ => Ok(false),
        }
    }
}

fn index(name: &str) -> Option<usize> {
    let digits = name.bytes().all(|b| b.is_ascii_digit()) && (name == "0" || !name.starts_with('0'));
    if digits { name.parse().ok() } else { None }
}

//! Liquid values with the semantics of JavaScript, in which liquidjs runs.

use crate::event::json::{self, JsonType, Object, is_js_space};
use crate::event::{Raw, elements};
use crate::mapping::javascript::{
    array_index, json_stringify, members_in_js_order, number_to_js_string, to_js_number, to_js_string,
};

/// A value in a Liquid template.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// JavaScript's undefined.
    Undefined,
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    /// An array or an object, as JSON.
    Json(String),
    List(Vec<Value>),
    /// The literals `nil`, `empty` and `blank`, which have comparison rules of their own.
    Nil,
    Empty,
    Blank,
}

impl Value {
    pub fn from_json(json: &str) -> Value {
        match JsonType::of(json) {
            JsonType::Null => Value::Null,
            JsonType::Boolean => Value::Bool(json == "true"),
            JsonType::Number => Value::Number(json.parse().unwrap_or(f64::NAN)),
            JsonType::String => {
                json::decode(json).map_or(Value::Undefined, |text| Value::Text(text.into_owned()))
            }
            JsonType::Array | JsonType::Object => Value::Json(json.to_owned()),
        }
    }

    pub fn is_nil(&self) -> bool {
        matches!(self, Value::Undefined | Value::Null | Value::Nil)
    }

    /// The approximate size in memory, in bytes.
    pub fn memory_size(&self) -> usize {
        match self {
            Value::Text(text) | Value::Json(text) => text.len(),
            Value::List(items) => items.iter().map(|item| size_of::<Value>() + item.memory_size()).sum(),
            _ => 0,
        }
    }

    /// Whether the value counts as true: all values but false and nil do, also 0 and the empty string.
    pub fn is_truthy(&self) -> bool {
        !self.is_nil() && *self != Value::Bool(false)
    }

    /// The elements, if the value is an array.
    pub fn elements(&self) -> Option<Vec<Value>> {
        match self {
            Value::List(items) => Some(items.clone()),
            Value::Json(json) if JsonType::of(json) == JsonType::Array => {
                Some(elements(json).into_iter().flatten().map(Value::from_json).collect())
            }
            _ => None,
        }
    }

    fn object(&self) -> Option<Object<'_>> {
        match self {
            Value::Json(json) if JsonType::of(json) == JsonType::Object => serde_json::from_str(json).ok(),
            _ => None,
        }
    }

    /// The output of `{{ value }}`: nothing for nil; the elements of an array without a separator.
    pub fn print(&self) -> String {
        match self {
            Value::Undefined | Value::Null | Value::Nil | Value::Empty | Value::Blank => String::new(),
            Value::Bool(b) => b.to_string(),
            Value::Number(n) => number_to_js_string(*n),
            Value::Text(text) => text.clone(),
            Value::Json(json) => match self.elements() {
                Some(items) => items.iter().map(Value::print).collect(),
                None => to_js_string(json),
            },
            Value::List(items) => items.iter().map(Value::print).collect(),
        }
    }

    /// `String(value)`, except that nil is the empty string, as in a joined array.
    pub fn to_js_string(&self) -> String {
        match self {
            Value::Json(json) => to_js_string(json),
            Value::List(items) => items.iter().map(Value::to_js_string).collect::<Vec<_>>().join(","),
            other => other.print(),
        }
    }

    /// `Number(value)`.
    pub fn to_js_number(&self) -> f64 {
        match self {
            Value::Undefined => f64::NAN,
            Value::Null | Value::Nil | Value::Empty | Value::Blank => 0.0,
            Value::Bool(b) => f64::from(u8::from(*b)),
            Value::Number(n) => *n,
            Value::Text(text) => to_js_number(text),
            Value::Json(_) | Value::List(_) => to_js_number(&self.to_js_string()),
        }
    }

    /// `JSON.stringify(value)`.
    pub fn to_json(&self) -> Option<String> {
        Some(match self {
            Value::Undefined => return None,
            Value::Null => "null".to_owned(),
            // The literals are objects in liquidjs.
            Value::Nil | Value::Empty | Value::Blank => "{}".to_owned(),
            Value::Number(n) if !n.is_finite() => "null".to_owned(),
            Value::Bool(_) | Value::Number(_) => self.print(),
            Value::Text(text) => json::quote(text),
            Value::Json(json) => json_stringify(json),
            Value::List(items) => {
                let items = items.iter().map(|item| item.to_json().unwrap_or("null".to_owned()));
                format!("[{}]", items.collect::<Vec<_>>().join(","))
            }
        })
    }

    /// A member of an object or an element of an array. A member of nil is nil.
    pub fn member(&self, key: &Value) -> Value {
        if self.is_nil() {
            return self.clone();
        }
        if let (Some(items), Value::Number(n)) = (self.elements(), key) {
            let at = if *n < 0.0 { items.len() as f64 + n } else { *n };
            let found = (at >= 0.0 && at.fract() == 0.0).then(|| items.get(at as usize).cloned()).flatten();
            return found.unwrap_or(Value::Undefined);
        }
        let name = key.to_js_string();
        match self {
            Value::Json(_) | Value::List(_) => match self.elements() {
                Some(items) => match name.as_str() {
                    "size" | "length" => Value::Number(items.len() as f64),
                    "first" => items.first().cloned().unwrap_or(Value::Undefined),
                    "last" => items.last().cloned().unwrap_or(Value::Undefined),
                    name => array_index(name).and_then(|n| items.get(n).cloned()).unwrap_or(Value::Undefined),
                },
                None => {
                    let object = self.object().unwrap_or_default();
                    match object.get(&name).map(Raw::get) {
                        Some(json) => Value::from_json(json),
                        None if name == "size" => Value::Number(members_in_js_order(&object).len() as f64),
                        None => Value::Undefined,
                    }
                }
            },
            Value::Text(text) => match name.as_str() {
                "size" | "length" => Value::Number(text.encode_utf16().count() as f64),
                name => {
                    let unit = array_index(name).and_then(|n| text.encode_utf16().nth(n));
                    // An unpaired surrogate cannot be a text here.
                    let c = unit.and_then(|unit| char::from_u32(unit.into()));
                    c.map_or(Value::Undefined, |c| Value::Text(c.to_string()))
                }
            },
            _ => Value::Undefined,
        }
    }

    /// `==`
    ///
    /// # Errors
    /// Two arrays or objects, whose comparison is not certain.
    pub fn equals(&self, other: &Value) -> Result<bool, String> {
        Ok(match (self, other) {
            (Value::Nil, other) | (other, Value::Nil) => other.is_nil(),
            (Value::Blank, Value::Bool(false)) | (Value::Bool(false), Value::Blank) => true,
            (Value::Blank, value) | (value, Value::Blank) if value.is_nil() => true,
            (Value::Blank, Value::Text(text)) | (Value::Text(text), Value::Blank) => {
                text.chars().all(is_js_space)
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

    /// The order of two values, if they have one: strings by UTF-16, all others as numbers.
    pub fn order(&self, other: &Value) -> Option<std::cmp::Ordering> {
        let is_special = |value: &Value| matches!(value, Value::Nil | Value::Empty | Value::Blank);
        if is_special(self) || is_special(other) {
            return None;
        }
        let is_text = |value: &Value| matches!(value, Value::Text(_) | Value::Json(_) | Value::List(_));
        match is_text(self) && is_text(other) {
            true => Some(self.to_js_string().encode_utf16().cmp(other.to_js_string().encode_utf16())),
            false => self.to_js_number().partial_cmp(&other.to_js_number()),
        }
    }

    /// `contains`
    ///
    /// # Errors
    /// The errors of [`Value::equals`].
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
            (Value::Text(_), Value::Undefined | Value::Null | Value::Nil) => {
                Err("contains needs a value to look for".to_owned())
            }
            (Value::Text(text), other) => Ok(text.contains(&other.to_js_string())),
            _ => Ok(false),
        }
    }
}

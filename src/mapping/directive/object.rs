//! Objects and arrays that directives build, as JSON text.

use crate::event::elements;
use crate::event::json::{self, JsonType, Object, ObjectWriter};
use crate::mapping::javascript::members_in_js_order;
use std::borrow::Cow;
use std::collections::HashMap;

/// The members of an object in the order in which their names were first set. `None` is JavaScript's undefined: the
/// member is not written, but overrides another object's in a merge.
#[derive(Default)]
pub struct Members<'a> {
    list: Vec<(String, Option<Cow<'a, str>>)>,
    positions: HashMap<String, usize>,
}

impl<'a> Members<'a> {
    pub fn set(&mut self, name: String, value: Option<Cow<'a, str>>) {
        match self.positions.get(&name) {
            Some(&position) => self.list[position].1 = value,
            None => {
                self.positions.insert(name.clone(), self.list.len());
                self.list.push((name, value));
            }
        }
    }

    /// Sets all members of `other`.
    pub fn merge(&mut self, other: Members<'a>) {
        other.list.into_iter().for_each(|(name, value)| self.set(name, value));
    }

    /// The members with undefined for each null, at any depth of objects.
    pub fn without_nulls(self) -> Members<'a> {
        let list = self.list.into_iter().map(|(name, value)| match value {
            Some(json) if json == "null" => (name, None),
            Some(json) if JsonType::of(&json) == JsonType::Object => {
                (name, Some(without_nulls(&json).into()))
            }
            value => (name, value),
        });
        Members { list: list.collect(), positions: self.positions }
    }

    pub fn into_owned<'b>(self) -> Members<'b> {
        let own = |value: Option<Cow<str>>| value.map(|json| Cow::Owned(json.into_owned()));
        let list = self.list.into_iter().map(|(name, value)| (name, own(value)));
        Members { list: list.collect(), positions: self.positions }
    }

    pub fn to_json(&self) -> String {
        let mut out = ObjectWriter::new();
        for (name, value) in &self.list {
            if let Some(value) = value {
                out.member_with_key(&json::quote(name), value);
            }
        }
        out.finish()
    }
}

pub fn array_json(items: &[Cow<'_, str>]) -> String {
    format!("[{}]", items.join(","))
}

/// The object without members that are null, at any depth of objects.
pub fn without_nulls(json: &str) -> String {
    let object: Object = serde_json::from_str(json).unwrap_or_default();
    let mut out = ObjectWriter::new();
    for (name, value) in members_in_js_order(&object).iter().filter(|(_, value)| *value != "null") {
        match JsonType::of(value) {
            JsonType::Object => out.member_with_key(&json::quote(name), &without_nulls(value)),
            _ => out.member_with_key(&json::quote(name), value),
        }
    }
    out.finish()
}

/// The value without the member at `path`; in arrays, without that member of each element.
pub fn without_path(json: &str, path: &[&str]) -> String {
    let Some((name, rest)) = path.split_first() else { return json.to_owned() };
    match JsonType::of(json) {
        JsonType::Array => {
            let elements = elements(json).into_iter().flatten();
            array_json(&elements.map(|element| without_path(element, path).into()).collect::<Vec<_>>())
        }
        JsonType::Object => {
            let object: Object = serde_json::from_str(json).unwrap_or_default();
            let mut out = ObjectWriter::new();
            for member in &object.0 {
                match (member.name == *name, rest.is_empty()) {
                    (true, true) => {}
                    (true, false) => out.member_with_key(member.key, &without_path(member.value.get(), rest)),
                    (false, _) => out.member_with_key(member.key, member.value.get()),
                }
            }
            out.finish()
        }
        _ => json.to_owned(),
    }
}

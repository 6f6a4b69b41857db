//! What a definition makes of an event. A value is JSON; `None` is JavaScript's undefined, which vanishes from objects
//! and is null in arrays.

use super::path::Path;
use super::template::Template;
use super::{Field, HashKey, MAX_OUTPUT, Node, Told};
use crate::event::json::{self, Object};
use crate::event::{Raw, elements};
use crate::mapping::lookup::{Found, Type, follow, members, stringify, text_of};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::value::RawValue;
use sha2::Sha256;
use std::borrow::Cow;
use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;

/// Bytes that one field may read and write of values, about a tenth of a second: directives within directives can
/// multiply what they are given.
const MAX_WORK: usize = 64 << 20;
const TOO_LARGE: &str = "the value is larger than 1 MiB";
/// What a step costs at least, in bytes.
const STEP: usize = 64;

type Json<'a> = Cow<'a, str>;
type Resolved<'a> = Result<Option<Json<'a>>, String>;

/// What definitions are resolved against.
pub struct Source<'a> {
    json: &'a str,
    /// Its members, where it is an object: most directives ask for one.
    object: Option<Object<'a>>,
    key: Option<&'a HashKey>,
    /// What may still be worked; shared by the sources that one field is resolved against.
    work: Rc<Cell<usize>>,
}

impl<'a> Source<'a> {
    /// A value of JSON, and the key for `@hash`.
    pub fn new(json: &'a str, key: Option<&'a HashKey>) -> Source<'a> {
        Source::with(json, key, Rc::new(Cell::new(MAX_WORK)))
    }

    fn with(json: &'a str, key: Option<&'a HashKey>, work: Rc<Cell<usize>>) -> Source<'a> {
        let object = (Type::of(json) == Type::Object).then(|| serde_json::from_str(json).ok()).flatten();
        Source { json, object, key, work }
    }

    /// A value that a directive has made of this one.
    fn made<'b>(&self, json: &'b str) -> Source<'b>
    where
        'a: 'b,
    {
        Source::with(json, self.key, self.work.clone())
    }

    /// Counts a step with so many bytes.
    fn spend(&self, bytes: usize) -> Result<(), String> {
        let left = self.work.get().checked_sub(bytes + STEP);
        self.work.set(left.ok_or("the definition makes too much of this event; make it simpler")?);
        Ok(())
    }

    fn find(&self, path: &Path) -> Found<'a> {
        let mut names = path.names();
        let Some(object) = &self.object else { return follow(Found::Json(self.json.into()), names) };
        match names.next() {
            None => Found::Json(self.json.into()),
            Some(name) => {
                let member = object.get(name).map(Raw::get);
                // To follow a path is to read what it leads through.
                let read = member.filter(|_| path.0.len() > 1).map_or(0, str::len);
                self.work.set(self.work.get().saturating_sub(read));
                follow(member.map_or(Found::Missing, |json| Found::Json(json.into())), names)
            }
        }
    }
}

impl Field {
    /// The field's value as JSON, if there is one.
    ///
    /// # Errors
    /// A clause that names the directive: the event has no value that it can work on.
    pub fn resolve<'a>(&'a self, source: &Source<'a>) -> Result<Option<Cow<'a, str>>, String> {
        source.work.set(MAX_WORK);
        self.0.resolve(source)
    }
}

impl Node {
    fn resolve<'a>(&'a self, source: &Source<'a>) -> Resolved<'a> {
        let value = self.value(source)?;
        let size = value.as_deref().map_or(0, str::len);
        if size > MAX_OUTPUT {
            return Err(TOO_LARGE.to_owned());
        }
        source.spend(size)?;
        Ok(value)
    }

    fn value<'a>(&'a self, source: &Source<'a>) -> Resolved<'a> {
        match self {
            Node::Raw(json) => Ok(Some(json.as_str().into())),
            Node::Object(_) | Node::Merge(_) => Ok(self.members(source)?.map(|m| object_of(&m).into())),
            Node::Array(nodes) => {
                let mut items = Vec::with_capacity(nodes.len());
                for node in nodes {
                    items.push(node.resolve(source)?.unwrap_or("null".into()));
                }
                Ok(Some(array_of(&items).into()))
            }
            Node::Path(told) => {
                let by;
                let path = match told {
                    Told::Fixed(path) => path,
                    Told::By(node) => {
                        by = Path::parse(&text(node.resolve(source)?, "@path")?)?;
                        &by
                    }
                };
                Ok(json_of(source.find(path)))
            }
            Node::Template(told) => {
                let by;
                let template = match told {
                    Told::Fixed(template) => template,
                    Told::By(node) => {
                        by = Template::parse(&text(node.resolve(source)?, "@template")?)?;
                        &by
                    }
                };
                let text = template.render(|path| source.find(path)).ok_or(TOO_LARGE)?;
                Ok(Some(json::quote(&text).into()))
            }
            Node::Liquid(liquid) => {
                let text = liquid.render(source.object.as_ref(), &|bytes| source.spend(bytes));
                let text = text.map_err(|why| format!("@liquid: {why}"))?;
                Ok(Some(json::quote(&text).into()))
            }
            Node::If(parts) => {
                let value = parts.value.resolve(source)?;
                let there = value.is_some_and(|json| json != "null" && !(parts.blank && is_empty(&json)));
                match if there { &parts.then } else { &parts.otherwise } {
                    Some(node) => node.resolve(source),
                    None => Ok(None),
                }
            }
            Node::Case { upper, value } => {
                let Some(value) = value else { return Ok(None) };
                let cased = |text: &str| if *upper { text.to_uppercase() } else { text.to_lowercase() };
                Ok(value.resolve(source)?.map(|json| match json::decode(&json) {
                    Some(text) if Type::of(&json) == Type::Text => json::quote(&cased(&text)).into(),
                    _ => json,
                }))
            }
            Node::Replace(replace) => {
                if replace.value == Node::Raw("\"\"".to_owned()) {
                    return Ok(None);
                }
                let value = replace.value.resolve(source)?;
                let scalar =
                    value.filter(|json| matches!(Type::of(json), Type::Text | Type::Number | Type::Bool));
                let text = scalar.map_or_else(String::new, |json| text_of(&json));
                let replaced = replace.patterns.iter().try_fold(text, |text, pattern| pattern.apply(&text));
                Ok(Some(json::quote(&replaced.ok_or(TOO_LARGE)?).into()))
            }
            Node::ArrayPath { root, shape } => {
                let Some(root) = root.resolve(source)? else { return Ok(None) };
                let Some(shape) = shape else { return Ok(Some(root)) };
                let items: Vec<&str> = match Type::of(&root) {
                    Type::Array => elements(&root).into_iter().flatten().collect(),
                    Type::Object => vec![&root],
                    _ => return Ok(Some(root)),
                };
                let mut shaped = Vec::with_capacity(items.len());
                for item in items {
                    let item = source.made(item);
                    shaped.push(
                        shape.resolve(&item)?.map_or("null".into(), |json| Cow::Owned(json.into_owned())),
                    );
                }
                Ok(Some(array_of(&shaped).into()))
            }
            Node::Transform { apply, mapping } => {
                let applied = apply.resolve(source)?.unwrap_or("{}".into());
                let inner = source.made(&applied);
                Ok(mapping.resolve(&inner)?.map(|json| Cow::Owned(json.into_owned())))
            }
            Node::Flatten { value, separator, omit_arrays } => {
                let separator = text(separator.resolve(source)?, "@flatten")?;
                let value = value.resolve(source)?;
                let whole = value.filter(|json| matches!(Type::of(json), Type::Object | Type::Array));
                let Some(whole) = whole else {
                    return Err("@flatten: there is no object to flatten".to_owned());
                };
                let mut flat = Members::default();
                flatten(&whole, "", &separator, *omit_arrays, &mut flat, source)?;
                Ok(Some(object_of(&flat).into()))
            }
            Node::Encode(value) => {
                Ok(value.resolve(source)?.map(|json| json::quote(&stringify(&json)).into()))
            }
            Node::Decode(value) => Ok(value.resolve(source)?.map(|json| {
                let text = Some(&json)
                    .filter(|json| Type::of(json) == Type::Text)
                    .and_then(|json| json::decode(json));
                let decoded = text.filter(|text| serde_json::from_str::<&RawValue>(text).is_ok());
                decoded.map(|text| Cow::Owned(json::compact(&text))).unwrap_or(json)
            })),
            Node::ExcludeWhenNull(value) => {
                Ok(value.resolve(source)?.filter(|json| json != "null").map(|json| match Type::of(&json) {
                    Type::Object => without_nulls(&json).into(),
                    _ => json,
                }))
            }
            Node::Hash(value) => {
                let value = value.resolve(source)?.filter(|json| json != "null");
                let Some(json) = value else { return Ok(None) };
                if matches!(Type::of(&json), Type::Object | Type::Array) {
                    return Err(format!("@hash: expected string, got {}", Type::of(&json).as_str()));
                }
                let key = source.key.ok_or("@hash: there is no key for it")?;
                let mut mac =
                    Hmac::<Sha256>::new_from_slice(key.bytes()).map_err(|e| format!("@hash: {e}"))?;
                // A number in the spelling that it has.
                mac.update(json::decode(&json).as_deref().unwrap_or(&json).as_bytes());
                let hex: String = mac.finalize().into_bytes().iter().map(|b| format!("{b:02x}")).collect();
                Ok(Some(json::quote(&hex).into()))
            }
            Node::Omit { value, keys } => {
                let Some(mut json) = value.resolve(source)? else { return Ok(None) };
                for key in keys {
                    source.spend(json.len())?;
                    let names: Vec<&str> = key.names().collect();
                    json = Cow::Owned(without(&json, &names));
                }
                Ok(Some(json))
            }
        }
    }

    /// The members of an object, among them those that are undefined: they take the place of others in a merge.
    fn members<'a>(&'a self, source: &Source<'a>) -> Result<Option<Members<'a>>, String> {
        let mut members = Members::default();
        match self {
            Node::Object(nodes) => {
                for (name, node) in nodes {
                    members.set(name.clone(), node.resolve(source)?);
                }
            }
            Node::Merge(nodes) => {
                for node in nodes {
                    for (name, value) in node.members(source)?.into_iter().flat_map(|m| m.list) {
                        members.set(name, value);
                    }
                }
            }
            Node::If(parts)
                if [&parts.then, &parts.otherwise].iter().any(|p| matches!(p, Some(Node::Object(_)))) =>
            {
                let value = parts.value.resolve(source)?;
                let there = value.is_some_and(|json| json != "null" && !(parts.blank && is_empty(&json)));
                return match if there { &parts.then } else { &parts.otherwise } {
                    Some(node) => node.members(source),
                    None => Ok(None),
                };
            }
            _ => {
                let Some(json) = self.resolve(source)? else { return Ok(None) };
                match Type::of(&json) {
                    Type::Object => {
                        let object: Object = serde_json::from_str(&json).unwrap_or_default();
                        for (name, value) in crate::mapping::lookup::members(&object) {
                            members.set(name, Some(Cow::Owned(value.to_owned())));
                        }
                    }
                    Type::Text | Type::Array => {
                        return Err(format!("@merge: expected object, got {}", Type::of(&json).as_str()));
                    }
                    Type::Null | Type::Bool | Type::Number => return Ok(None),
                }
            }
        }
        Ok(Some(members))
    }
}

/// Members by name, in the order in which their names came.
#[derive(Default)]
struct Members<'a> {
    list: Vec<(String, Option<Json<'a>>)>,
    places: HashMap<String, usize>,
}

impl<'a> Members<'a> {
    fn set(&mut self, name: String, value: Option<Json<'a>>) {
        match self.places.get(&name) {
            Some(&place) => self.list[place].1 = value,
            None => {
                self.places.insert(name.clone(), self.list.len());
                self.list.push((name, value));
            }
        }
    }
}

fn object_of(members: &Members) -> String {
    let mut out = json::Writer::new();
    for (name, value) in &members.list {
        if let Some(value) = value {
            out.entry(&json::quote(name), value);
        }
    }
    out.finish()
}

fn array_of(items: &[Json]) -> String {
    format!("[{}]", items.join(","))
}

fn json_of(found: Found<'_>) -> Option<Json<'_>> {
    match found {
        Found::Json(json) => Some(json),
        Found::Missing | Found::Function => None,
    }
}

/// The text that a directive made.
fn text(json: Option<Json>, name: &str) -> Result<String, String> {
    let kind = json.as_deref().map_or("undefined", |json| Type::of(json).as_str());
    let text = json.as_deref().filter(|json| Type::of(json) == Type::Text).and_then(json::decode);
    text.map(Cow::into_owned).ok_or_else(|| format!("{name}: expected string, got {kind}"))
}

/// What JavaScript takes for the empty text: `value == ''`.
fn is_empty(json: &str) -> bool {
    match Type::of(json) {
        Type::Bool => json == "false",
        Type::Number => json.parse() == Ok(0.0),
        Type::Text => json == "\"\"",
        Type::Array => text_of(json).is_empty(),
        Type::Null | Type::Object => false,
    }
}

fn flatten(
    json: &str,
    prefix: &str,
    separator: &str,
    omit_arrays: bool,
    flat: &mut Members,
    source: &Source,
) -> Result<(), String> {
    source.spend(json.len())?;
    let put = |name: &str, value: &str, flat: &mut Members| {
        let name = format!("{prefix}{name}");
        let inner = match Type::of(value) {
            Type::Object => true,
            Type::Array => !omit_arrays,
            _ => false,
        };
        source.spend(name.len())?;
        if inner {
            return flatten(value, &(name + separator), separator, omit_arrays, flat, source);
        }
        flat.set(name, Some(Cow::Owned(value.to_owned())));
        Ok(())
    };
    match Type::of(json) {
        Type::Array => elements(json)
            .into_iter()
            .flatten()
            .enumerate()
            .try_for_each(|(n, v)| put(&n.to_string(), v, flat)),
        _ => {
            let object: Object = serde_json::from_str(json).unwrap_or_default();
            members(&object).iter().try_for_each(|(name, value)| put(name, value, flat))
        }
    }
}

fn without_nulls(json: &str) -> String {
    let object: Object = serde_json::from_str(json).unwrap_or_default();
    let mut out = json::Writer::new();
    for (name, value) in members(&object).iter().filter(|(_, value)| *value != "null") {
        match Type::of(value) {
            Type::Object => out.entry(&json::quote(name), &without_nulls(value)),
            _ => out.entry(&json::quote(name), value),
        }
    }
    out.finish()
}

/// The value without what stands at the path; of arrays each element.
fn without(json: &str, path: &[&str]) -> String {
    let Some((name, rest)) = path.split_first() else { return json.to_owned() };
    match Type::of(json) {
        Type::Array => {
            let items: Vec<Json> =
                elements(json).into_iter().flatten().map(|v| without(v, path).into()).collect();
            array_of(&items)
        }
        Type::Object => {
            let object: Object = serde_json::from_str(json).unwrap_or_default();
            let mut out = json::Writer::new();
            for member in &object.0 {
                match (member.name == *name, rest.is_empty()) {
                    (true, true) => {}
                    (true, false) => out.entry(member.key, &without(member.value.get(), rest)),
                    (false, _) => out.entry(member.key, member.value.get()),
                }
            }
            out.finish()
        }
        _ => json.to_owned(),
    }
}

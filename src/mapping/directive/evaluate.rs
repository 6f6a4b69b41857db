//! Evaluates definitions. A value is JSON; `None` is JavaScript's undefined, which vanishes from objects and becomes null
//! in arrays.

use super::object::{Members, array_json, without_nulls, without_path};
use super::path::Path;
use super::template::Template;
use super::{Argument, HashKey, If, MAX_OUTPUT, Node};
use crate::event::json::{self, JsonType, Object};
use crate::event::{Raw, elements};
use crate::mapping::javascript::{JsValue, get_path, json_stringify, members_in_js_order, to_js_string};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::cell::Cell;
use std::rc::Rc;

/// The bytes of values that one field may read and write, about a tenth of a second: nested directives can multiply the
/// size of their input.
const MAX_WORK: usize = 64 << 20;
/// The minimum cost of one step, in bytes.
const STEP: usize = 64;
const TOO_LARGE: &str = "the value is larger than 1 MiB";

type Json<'a> = Cow<'a, str>;
type Evaluated<'a> = Result<Option<Json<'a>>, String>;

/// Evaluates nodes against one JSON value, the event or a value computed from it.
pub struct Evaluator<'a> {
    json: &'a str,
    /// The members of the value if it is an object, parsed once because most directives read one.
    object: Option<Object<'a>>,
    key: Option<&'a HashKey>,
    /// The rest of [`MAX_WORK`], shared by all evaluators of one field.
    work: Rc<Cell<usize>>,
}

impl<'a> Evaluator<'a> {
    /// An evaluator for an event, with the key for `@hash`.
    pub fn new(event: &'a str, key: Option<&'a HashKey>) -> Evaluator<'a> {
        Evaluator::with_work(event, key, Rc::new(Cell::new(MAX_WORK)))
    }

    fn with_work(json: &'a str, key: Option<&'a HashKey>, work: Rc<Cell<usize>>) -> Evaluator<'a> {
        let is_object = JsonType::of(json) == JsonType::Object;
        let object = is_object.then(|| serde_json::from_str(json).ok()).flatten();
        Evaluator { json, object, key, work }
    }

    /// An evaluator for a value that a directive has computed.
    fn nested<'b>(&self, json: &'b str) -> Evaluator<'b>
    where
        'a: 'b,
    {
        Evaluator::with_work(json, self.key, self.work.clone())
    }

    /// Charges one step on `bytes` bytes.
    fn charge(&self, bytes: usize) -> Result<(), String> {
        let left = self.work.get().checked_sub(bytes + STEP);
        self.work.set(left.ok_or("the definition computes too much from this event; make it simpler")?);
        Ok(())
    }

    fn find(&self, path: &Path) -> JsValue<'a> {
        let mut names = path.names();
        let Some(object) = &self.object else { return get_path(JsValue::Json(self.json.into()), names) };
        match names.next() {
            None => JsValue::Json(self.json.into()),
            Some(name) => {
                let member = object.get(name).map(Raw::get);
                // A longer path is found by parsing the member.
                let parsed = member.filter(|_| path.0.len() > 1).map_or(0, str::len);
                self.work.set(self.work.get().saturating_sub(parsed));
                get_path(member.map_or(JsValue::Undefined, |json| JsValue::Json(json.into())), names)
            }
        }
    }

    /// The value of a whole field, with the full amount of work.
    pub(super) fn field(&self, node: &'a Node) -> Evaluated<'a> {
        self.work.set(MAX_WORK);
        self.node(node)
    }

    fn node(&self, node: &'a Node) -> Evaluated<'a> {
        let value = self.value(node)?;
        let size = value.as_deref().map_or(0, str::len);
        if size > MAX_OUTPUT {
            return Err(TOO_LARGE.to_owned());
        }
        self.charge(size)?;
        Ok(value)
    }

    fn value(&self, node: &'a Node) -> Evaluated<'a> {
        match node {
            Node::Literal(json) => Ok(Some(json.as_str().into())),
            Node::Object(_) | Node::Merge(_) => Ok(self.members(node)?.map(|m| m.to_json().into())),
            Node::Array(nodes) => {
                let mut items = Vec::with_capacity(nodes.len());
                for node in nodes {
                    items.push(self.node(node)?.unwrap_or("null".into()));
                }
                Ok(Some(array_json(&items).into()))
            }
            Node::Path(path) => match self.find(&*self.argument(path, "@path", Path::parse)?) {
                JsValue::Json(json) => Ok(Some(json)),
                JsValue::Undefined | JsValue::Function => Ok(None),
            },
            Node::Template(template) => {
                let template = self.argument(template, "@template", Template::parse)?;
                let text = template.render(|path| self.find(path)).ok_or(TOO_LARGE)?;
                Ok(Some(json::quote(&text).into()))
            }
            Node::Liquid(liquid) => {
                let text = liquid.render(self.object.as_ref(), &|bytes| self.charge(bytes));
                let text = text.map_err(|why| format!("@liquid: {why}"))?;
                Ok(Some(json::quote(&text).into()))
            }
            Node::If(condition) => match self.branch(condition)? {
                Some(node) => self.node(node),
                None => Ok(None),
            },
            Node::Case { upper, value } => {
                let Some(value) = value else { return Ok(None) };
                let convert = |text: &str| if *upper { text.to_uppercase() } else { text.to_lowercase() };
                Ok(self.node(value)?.map(|json| match json::decode(&json) {
                    Some(text) => json::quote(&convert(&text)).into(),
                    None => json,
                }))
            }
            Node::Replace(replace) => {
                if replace.value == Node::Literal("\"\"".to_owned()) {
                    return Ok(None);
                }
                let is_scalar = |json: &Json| {
                    matches!(JsonType::of(json), JsonType::String | JsonType::Number | JsonType::Boolean)
                };
                let scalar = self.node(&replace.value)?.filter(is_scalar);
                let text = scalar.map_or_else(String::new, |json| to_js_string(&json));
                let replaced = replace.patterns.iter().try_fold(text, |text, pattern| pattern.apply(&text));
                Ok(Some(json::quote(&replaced.ok_or(TOO_LARGE)?).into()))
            }
            Node::ArrayPath { root, shape } => {
                let Some(root) = self.node(root)? else { return Ok(None) };
                let Some(shape) = shape else { return Ok(Some(root)) };
                let items: Vec<&str> = match JsonType::of(&root) {
                    JsonType::Array => elements(&root).into_iter().flatten().collect(),
                    JsonType::Object => vec![&root],
                    _ => return Ok(Some(root)),
                };
                let mut shaped = Vec::with_capacity(items.len());
                for item in items {
                    let value = self.nested(item).node(shape)?;
                    shaped.push(value.map_or("null".into(), |json| Cow::Owned(json.into_owned())));
                }
                Ok(Some(array_json(&shaped).into()))
            }
            Node::Transform { apply, mapping } => {
                let applied = self.node(apply)?.unwrap_or("{}".into());
                let value = self.nested(&applied).node(mapping)?;
                Ok(value.map(|json| Cow::Owned(json.into_owned())))
            }
            Node::Flatten { value, separator, omit_arrays } => {
                let separator = expect_string(self.node(separator)?, "@flatten")?;
                let is_nested =
                    |json: &Json| matches!(JsonType::of(json), JsonType::Object | JsonType::Array);
                let Some(value) = self.node(value)?.filter(is_nested) else {
                    return Err("@flatten: there is no object to flatten".to_owned());
                };
                let mut flat = Members::default();
                self.flatten(&value, "", &separator, *omit_arrays, &mut flat)?;
                Ok(Some(flat.to_json().into()))
            }
            Node::Encode(value) => {
                Ok(self.node(value)?.map(|json| json::quote(&json_stringify(&json)).into()))
            }
            Node::Decode(value) => Ok(self.node(value)?.map(|json| {
                let is_json = |text: &Json| serde_json::from_str::<&RawValue>(text).is_ok();
                let decoded = json::decode(&json).filter(is_json).map(|text| json::compact(&text));
                decoded.map(Cow::Owned).unwrap_or(json)
            })),
            Node::ExcludeWhenNull(value) => {
                Ok(self.node(value)?.filter(|json| json != "null").map(|json| match JsonType::of(&json) {
                    JsonType::Object => without_nulls(&json).into(),
                    _ => json,
                }))
            }
            Node::Hash(value) => {
                let Some(json) = self.node(value)?.filter(|json| json != "null") else { return Ok(None) };
                let kind = JsonType::of(&json);
                if matches!(kind, JsonType::Object | JsonType::Array) {
                    return Err(format!("@hash: expected string, got {}", kind.as_str()));
                }
                let key = self.key.ok_or("@hash: there is no key for it")?;
                // A number is hashed in the spelling that it has.
                Ok(Some(json::quote(&key.hash(&json::to_text(&json))?).into()))
            }
            Node::Omit { value, keys } => {
                let Some(mut json) = self.node(value)? else { return Ok(None) };
                for key in keys {
                    self.charge(json.len())?;
                    json = Cow::Owned(without_path(&json, &key.names().collect::<Vec<_>>()));
                }
                Ok(Some(json))
            }
        }
    }

    /// An argument's value; a dynamic one is computed and then parsed.
    fn argument<T: Clone>(
        &self,
        argument: &'a Argument<T>,
        directive: &str,
        parse: fn(&str) -> Result<T, String>,
    ) -> Result<Cow<'a, T>, String> {
        match argument {
            Argument::Literal(value) => Ok(Cow::Borrowed(value)),
            Argument::Dynamic(node) => parse(&expect_string(self.node(node)?, directive)?).map(Cow::Owned),
        }
    }

    /// The branch that the condition selects, if it has one.
    fn branch(&self, condition: &'a If) -> Result<Option<&'a Node>, String> {
        let value = self.node(&condition.value)?;
        let holds =
            value.is_some_and(|json| json != "null" && !(condition.is_blank && equals_empty_string(&json)));
        Ok(if holds { condition.then.as_ref() } else { condition.otherwise.as_ref() })
    }

    /// The members of an object, those that are undefined included, because they override others in a merge.
    fn members(&self, node: &'a Node) -> Result<Option<Members<'a>>, String> {
        let mut members = Members::default();
        match node {
            Node::Object(nodes) => {
                for (name, node) in nodes {
                    members.set(name.clone(), self.node(node)?);
                }
            }
            Node::Merge(nodes) => {
                for node in nodes {
                    members.merge(self.members(node)?.unwrap_or_default());
                }
            }
            Node::If(condition)
                if [&condition.then, &condition.otherwise]
                    .iter()
                    .any(|b| matches!(b, Some(Node::Object(_)))) =>
            {
                return match self.branch(condition)? {
                    Some(node) => self.members(node),
                    None => Ok(None),
                };
            }
            _ => {
                let Some(json) = self.node(node)? else { return Ok(None) };
                match JsonType::of(&json) {
                    JsonType::Object => {
                        let object: Object = serde_json::from_str(&json).unwrap_or_default();
                        for (name, value) in members_in_js_order(&object) {
                            members.set(name, Some(Cow::Owned(value.to_owned())));
                        }
                    }
                    kind @ (JsonType::String | JsonType::Array) => {
                        return Err(format!("@merge: expected object, got {}", kind.as_str()));
                    }
                    JsonType::Null | JsonType::Boolean | JsonType::Number => return Ok(None),
                }
            }
        }
        Ok(Some(members))
    }

    /// Adds the scalars within `json` to `flat`, each under its path of names joined by `separator`.
    fn flatten(
        &self,
        json: &str,
        prefix: &str,
        separator: &str,
        omit_arrays: bool,
        flat: &mut Members,
    ) -> Result<(), String> {
        self.charge(json.len())?;
        let add = |name: &str, value: &str, flat: &mut Members| {
            let name = format!("{prefix}{name}");
            let is_flattened = match JsonType::of(value) {
                JsonType::Object => true,
                JsonType::Array => !omit_arrays,
                _ => false,
            };
            self.charge(name.len())?;
            if is_flattened {
                return self.flatten(value, &(name + separator), separator, omit_arrays, flat);
            }
            flat.set(name, Some(Cow::Owned(value.to_owned())));
            Ok(())
        };
        if JsonType::of(json) == JsonType::Array {
            let mut elements = elements(json).into_iter().flatten().enumerate();
            return elements.try_for_each(|(n, value)| add(&n.to_string(), value, flat));
        }
        let object: Object = serde_json::from_str(json).unwrap_or_default();
        members_in_js_order(&object).iter().try_for_each(|(name, value)| add(name, value, flat))
    }
}

/// The text of a value that must be a string.
fn expect_string(json: Option<Json>, directive: &str) -> Result<String, String> {
    let kind = json.as_deref().map_or("undefined", |json| JsonType::of(json).as_str());
    let text = json.as_deref().and_then(json::decode).map(Cow::into_owned);
    text.ok_or_else(|| format!("{directive}: expected string, got {kind}"))
}

/// JavaScript's `value == ''`.
fn equals_empty_string(json: &str) -> bool {
    match JsonType::of(json) {
        JsonType::Boolean => json == "false",
        JsonType::Number => json.parse() == Ok(0.0),
        JsonType::String => json == "\"\"",
        JsonType::Array => to_js_string(json).is_empty(),
        JsonType::Null | JsonType::Object => false,
    }
}

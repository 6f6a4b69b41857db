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
    /// The value; `None` for undefined.
    json: Option<&'a str>,
    /// The members of the value if it is an object, parsed once because most directives read one.
    object: Option<Object<'a>>,
    key: Option<&'a HashKey>,
    /// The rest of [`MAX_WORK`], shared by all evaluators of one field.
    work: Rc<Cell<usize>>,
}

impl<'a> Evaluator<'a> {
    /// An evaluator for an event, with the key for `@hash`.
    pub fn new(event: &'a str, key: Option<&'a HashKey>) -> Evaluator<'a> {
        Evaluator::with_work(Some(event), key, Rc::new(Cell::new(MAX_WORK)))
    }

    fn with_work(json: Option<&'a str>, key: Option<&'a HashKey>, work: Rc<Cell<usize>>) -> Evaluator<'a> {
        let object = json.filter(|json| JsonType::of(json) == JsonType::Object);
        let object = object.and_then(|json| serde_json::from_str(json).ok());
        Evaluator { json, object, key, work }
    }

    /// An evaluator for a value that a directive has computed.
    fn nested<'b>(&self, json: Option<&'b str>) -> Evaluator<'b>
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
        let Some(json) = self.json else { return JsValue::Undefined };
        let Some(object) = &self.object else { return get_path(JsValue::Json(json.into()), names) };
        match names.next() {
            None => JsValue::Json(json.into()),
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
            Node::Path(path) => match self.path(path)? {
                JsValue::Json(json) => Ok(Some(json)),
                // A function vanishes like undefined when the value is written as JSON.
                JsValue::Undefined | JsValue::Function(_) => Ok(None),
            },
            Node::Template(template) => {
                let template = self.argument(template, "@template", Template::parse)?;
                // For Segment's templates the whole of undefined is an object.
                let find = |path: &Path| match self.find(path) {
                    JsValue::Undefined if path.0.is_empty() => JsValue::Json("{}".into()),
                    value => value,
                };
                let text = template.render(find).ok_or(TOO_LARGE)?;
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
                let Some(value) = &replace.value else { return Ok(None) };
                let is_scalar = |json: &Json| {
                    matches!(JsonType::of(json), JsonType::String | JsonType::Number | JsonType::Boolean)
                };
                let scalar = self.node(value)?.filter(is_scalar);
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
                    let value = self.nested(Some(item)).node(shape)?;
                    shaped.push(value.map_or("null".into(), |json| Cow::Owned(json.into_owned())));
                }
                Ok(Some(array_json(&shaped).into()))
            }
            Node::Transform { apply, mapping } => {
                let applied = self.applied(apply)?;
                let value = self.nested(applied.as_deref()).node(mapping)?;
                Ok(value.map(|json| Cow::Owned(json.into_owned())))
            }
            Node::Flatten { value, separator, omit_arrays } => {
                let mut flat = Members::default();
                let mut add = |name: &str, value: &'a Node| match self.node(value)? {
                    Some(value) => self.flatten(name, &value, separator, *omit_arrays, &mut flat),
                    None => Ok(()),
                };
                match &**value {
                    // An element that is undefined would be null in the array's JSON.
                    Node::Array(nodes) if !omit_arrays => {
                        nodes.iter().enumerate().try_for_each(|(n, node)| add(&n.to_string(), node))?;
                    }
                    value => add("", value)?,
                }
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

    fn path(&self, path: &'a Argument<Path>) -> Result<JsValue<'a>, String> {
        Ok(self.find(&*self.argument(path, "@path", Path::parse)?))
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

    /// The value of the `apply` of `@transform`, which Segment evaluates only against an object.
    fn applied(&self, apply: &'a Node) -> Evaluated<'a> {
        match self.json.map(JsonType::of) {
            None | Some(JsonType::Object) => self.node(apply),
            Some(kind) => Err(format!("@transform: expected object, got {}", kind.as_str())),
        }
    }

    /// The branch that the condition selects, if it has one.
    fn branch(&self, condition: &'a If) -> Result<Option<&'a Node>, String> {
        let exists = |json: Json| json != "null" && !(condition.is_blank && equals_empty_string(&json));
        let holds = match &condition.value {
            // A method of a text, a number or an array exists, although its value vanishes.
            Node::Path(path) => match self.path(path)? {
                JsValue::Json(json) => exists(json),
                JsValue::Undefined => false,
                JsValue::Function(_) => true,
            },
            node => self.node(node)?.is_some_and(exists),
        };
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
            Node::If(condition) => {
                return match self.branch(condition)? {
                    Some(node) => self.members(node),
                    None => Ok(None),
                };
            }
            Node::ExcludeWhenNull(value) => return Ok(self.members(value)?.map(Members::without_nulls)),
            Node::Transform { apply, mapping } => {
                let applied = self.applied(apply)?;
                let members = self.nested(applied.as_deref()).members(mapping)?;
                return Ok(members.map(Members::into_owned));
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
                    JsonType::String if json == "\"\"" => return Ok(None),
                    JsonType::Array if elements(&json).is_ok_and(|items| items.len() == 0) => {
                        return Ok(None);
                    }
                    // Segment would merge its characters or elements, by their numbers.
                    kind @ (JsonType::String | JsonType::Array) => {
                        return Err(format!("@merge: expected object, got {}", kind.as_str()));
                    }
                    JsonType::Null | JsonType::Boolean | JsonType::Number => return Ok(None),
                }
            }
        }
        Ok(Some(members))
    }

    /// Adds the scalars within `json`, which is called `name`, to `flat`, each under the names on the way to it joined by
    /// `separator`. An empty name joins nothing, as in Segment's code; a scalar that is no member has that name.
    fn flatten(
        &self,
        name: &str,
        json: &str,
        separator: &str,
        omit_arrays: bool,
        flat: &mut Members,
    ) -> Result<(), String> {
        self.charge(json.len() + name.len())?;
        let add = |key: &str, value: &str, flat: &mut Members| match name {
            "" => self.flatten(key, value, separator, omit_arrays, flat),
            name => self.flatten(&[name, separator, key].concat(), value, separator, omit_arrays, flat),
        };
        match JsonType::of(json) {
            JsonType::Object => {
                let object: Object = serde_json::from_str(json).unwrap_or_default();
                members_in_js_order(&object).iter().try_for_each(|(key, value)| add(key, value, flat))
            }
            JsonType::Array if !omit_arrays => {
                let mut elements = elements(json).into_iter().flatten().enumerate();
                elements.try_for_each(|(n, value)| add(&n.to_string(), value, flat))
            }
            _ => {
                flat.set(name.to_owned(), Some(Cow::Owned(json.to_owned())));
                Ok(())
            }
        }
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

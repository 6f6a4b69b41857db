//! From the JSON of a definition to its parts. All that is wrong is told, not the first alone.

use super::liquid::Liquid;
use super::path::Path;
use super::replace::{MAX_LENGTH, Pattern};
use super::template::Template;
use super::{FieldError, If, Node, Replace, Told};
use crate::event::elements;
use crate::event::json::{self, Object};
use crate::mapping::lookup::{Type, members};

/// Deeper than a person nests directives.
const MAX_DEPTH: usize = 32;

/// A directive by another name, which only Segment's service can follow.
const SEGMENTS_OWN: &str = "__segment_internal_directive";

const DIRECTIVES: &str = "@path, @template, @literal, @if, @case, @replace, @merge, @transform, @arrayPath, @flatten, \
                          @json, @excludeWhenNull, @liquid, @hash, @omit";

pub fn parse(json: &str) -> Result<Node, Vec<FieldError>> {
    if let Err(e) = serde_json::from_str::<&serde_json::value::RawValue>(json) {
        return Err(vec![FieldError { path: String::new(), text: format!("it is no JSON: {e}") }]);
    }
    let mut parser = Parser { path: Vec::new(), errors: Vec::new() };
    let node = parser.node(&json::compact(json));
    match (node, parser.errors.is_empty()) {
        (Some(node), true) => Ok(node),
        _ => Err(parser.errors),
    }
}

struct Parser {
    path: Vec<String>,
    errors: Vec<FieldError>,
}

/// The options of a directive.
struct Options<'a>(Vec<(String, &'a str)>);

impl<'a> Options<'a> {
    fn get(&self, name: &str) -> Option<&'a str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| *value)
    }
}

impl Parser {
    /// Notes what is wrong here.
    fn wrong<T>(&mut self, text: impl Into<String>) -> Option<T> {
        let path = self.path.iter().map(|name| format!("/{name}")).collect();
        self.errors.push(FieldError { path, text: text.into() });
        None
    }

    fn within<T>(&mut self, name: &str, read: impl FnOnce(&mut Parser) -> Option<T>) -> Option<T> {
        self.path.push(name.to_owned());
        let read = read(self);
        self.path.pop();
        read
    }

    /// A directive or a value as it is.
    fn node(&mut self, json: &str) -> Option<Node> {
        if self.path.len() > MAX_DEPTH {
            return self.wrong(format!("it nests more than {MAX_DEPTH} deep"));
        }
        match Type::of(json) {
            Type::Object => {
                let object: Object = serde_json::from_str(json).ok()?;
                let members = members(&object);
                if members.iter().any(|(name, _)| name == SEGMENTS_OWN) {
                    return self
                        .wrong(format!("{SEGMENTS_OWN} means something to Segment alone; leave it out"));
                }
                if members.iter().any(|(name, _)| name.starts_with('@')) {
                    return self.directive(&members);
                }
                self.object(&members)
            }
            Type::Array => {
                let items: Vec<&str> = elements(json).into_iter().flatten().collect();
                let nodes = self.all(items.iter().enumerate().map(|(n, item)| (n.to_string(), *item)))?;
                let nodes: Vec<Node> = nodes.into_iter().map(|(_, node)| node).collect();
                let is_raw = nodes.iter().all(|node| matches!(node, Node::Raw(_)));
                Some(if is_raw { Node::Raw(json.to_owned()) } else { Node::Array(nodes) })
            }
            _ => Some(Node::Raw(json.to_owned())),
        }
    }

    fn object(&mut self, members: &[(String, &str)]) -> Option<Node> {
        self.all(members.iter().map(|(name, value)| (name.clone(), *value))).map(Node::Object)
    }

    /// Each of them, and all that is wrong with any.
    fn all<'a>(&mut self, parts: impl Iterator<Item = (String, &'a str)>) -> Option<Vec<(String, Node)>> {
        let mut sound = true;
        let mut nodes = Vec::new();
        for (name, value) in parts {
            match self.within(&name, |parser| parser.node(value)) {
                Some(node) => nodes.push((name, node)),
                None => sound = false,
            }
        }
        sound.then_some(nodes)
    }

    fn directive(&mut self, members: &[(String, &str)]) -> Option<Node> {
        let beside = members.iter().filter(|(name, _)| name != "_metadata").count();
        let (name, value) = members.iter().find(|(name, _)| name.starts_with('@'))?;
        if beside > 1 {
            let names: Vec<&str> = members.iter().map(|(name, _)| name.as_str()).collect();
            return self.wrong(format!("a directive stands alone, and here are {}", names.join(", ")));
        }
        self.within(name, |parser| parser.value_of(name, value))
    }

    fn value_of(&mut self, name: &str, json: &str) -> Option<Node> {
        match name {
            "@path" => self.told(json, Path::parse).map(Node::Path),
            "@template" => self.told(json, Template::parse).map(Node::Template),
            "@literal" => self.node(json),
            "@if" => self.condition(json),
            "@case" => self.case(json),
            "@replace" => self.replace(json),
            "@merge" => self.merge(json),
            "@transform" => {
                let options = self.options(json, &["apply", "mapping"])?;
                let apply = self.required(&options, "apply", Parser::plain_object);
                let mapping = self.required(&options, "mapping", Parser::object_or_directive);
                Some(Node::Transform { apply: apply?.into(), mapping: mapping?.into() })
            }
            "@arrayPath" => self.array_path(json),
            "@flatten" => {
                let options = self.options(json, &["value", "separator", "omitArrays"])?;
                let value = self.required(&options, "value", Parser::node);
                let separator = self.required(&options, "separator", Parser::text_or_directive);
                let omit_arrays = self.flag(&options, "omitArrays", false);
                Some(Node::Flatten {
                    value: value?.into(),
                    separator: separator?.into(),
                    omit_arrays: omit_arrays?,
                })
            }
            "@json" => {
                let options = self.options(json, &["mode", "value"])?;
                let value = self.required(&options, "value", Parser::node);
                let mode = options.get("mode").and_then(json::decode);
                match mode.as_deref() {
                    Some("encode") => Some(Node::Encode(value?.into())),
                    Some("decode") => Some(Node::Decode(value?.into())),
                    _ => self.wrong("mode must be \"encode\" or \"decode\""),
                }
            }
            "@excludeWhenNull" => Some(Node::ExcludeWhenNull(self.node(json)?.into())),
            "@hash" => Some(Node::Hash(self.text_or_directive(json)?.into())),
            "@omit" => self.omit(json),
            "@liquid" => match json::decode(json).filter(|_| Type::of(json) == Type::Text) {
                Some(text) => match Liquid::parse(&text) {
                    Ok(liquid) => Some(Node::Liquid(liquid)),
                    Err(text) => self.wrong(text),
                },
                None => self.wrong(format!("it must be a text, and is {}", article(Type::of(json)))),
            },
            _ => self.wrong(format!("there is no directive {name}; there are {DIRECTIVES}")),
        }
    }

    /// Something told by a text here, or by one that a directive makes.
    fn told<T>(&mut self, json: &str, parse: fn(&str) -> Result<T, String>) -> Option<Told<T>> {
        match Type::of(json) {
            Type::Text => match self.text(json).map(|text| parse(&text))? {
                Ok(told) => Some(Told::Fixed(told)),
                Err(text) => self.wrong(text),
            },
            Type::Object => Some(Told::By(self.only_directive(json)?.into())),
            other => self.wrong(format!("it must be a text or a directive, and is {}", article(other))),
        }
    }

    fn only_directive(&mut self, json: &str) -> Option<Node> {
        let object: Object = serde_json::from_str(json).ok()?;
        let members = members(&object);
        match members.iter().any(|(name, _)| name.starts_with('@')) {
            true => self.directive(&members),
            false => self.wrong("it must be a directive, such as {\"@path\": \"$.event\"}"),
        }
    }

    fn text_or_directive(&mut self, json: &str) -> Option<Node> {
        match Type::of(json) {
            Type::Text => Some(Node::Raw(json.to_owned())),
            Type::Object => self.only_directive(json),
            other => self.wrong(format!("it must be a text or a directive, and is {}", article(other))),
        }
    }

    fn object_or_directive(&mut self, json: &str) -> Option<Node> {
        match Type::of(json) {
            Type::Object => self.node(json),
            other => self.wrong(format!("it must be an object or a directive, and is {}", article(other))),
        }
    }

    fn plain_object(&mut self, json: &str) -> Option<Node> {
        match self.object_or_directive(json)? {
            node @ Node::Object(_) => Some(node),
            _ => self.wrong("it must be an object without a directive of its own"),
        }
    }

    /// The options of a directive, none of which is unknown.
    fn options<'a>(&mut self, json: &'a str, known: &[&str]) -> Option<Options<'a>> {
        if Type::of(json) != Type::Object {
            return self.wrong(format!("it must be an object with {}", known.join(", ")));
        }
        let object: Object = serde_json::from_str(json).ok()?;
        let members = members(&object);
        match members.iter().find(|(name, _)| !known.contains(&name.as_str())) {
            Some((name, _)) => self.wrong(format!("it has no option {name:?}, but {}", known.join(", "))),
            None => Some(Options(members)),
        }
    }

    fn required<T>(
        &mut self,
        options: &Options,
        name: &str,
        read: fn(&mut Parser, &str) -> Option<T>,
    ) -> Option<T> {
        match options.get(name) {
            Some(json) => self.within(name, |parser| read(parser, json)),
            None => self.wrong(format!("{name} is missing")),
        }
    }

    fn flag(&mut self, options: &Options, name: &str, absent: bool) -> Option<bool> {
        match options.get(name) {
            None => Some(absent),
            Some("true") => Some(true),
            Some("false") => Some(false),
            Some(_) => self.wrong(format!("{name} must be true or false")),
        }
    }

    fn condition(&mut self, json: &str) -> Option<Node> {
        let options = self.options(json, &["exists", "blank", "then", "else"])?;
        let of = |name| options.get(name).filter(|json| json::truthy(json));
        let (blank, name, value) = match (of("exists"), of("blank")) {
            (Some(_), Some(_)) => return self.wrong("it must have exists or blank, not both"),
            (Some(value), None) => (false, "exists", value),
            (None, Some(value)) => (true, "blank", value),
            (None, None) => {
                return self.wrong("exists is missing: what must be there, as {\"@path\": \"$.email\"}");
            }
        };
        let value = self.within(name, |parser| parser.node(value));
        let branch = |parser: &mut Parser, name: &str, json: Option<&str>| match json {
            Some(json) => parser.within(name, |parser| parser.node(json)).map(Some),
            None => Some(None),
        };
        let then = branch(self, "then", options.get("then"));
        // Segment drops what is false in JavaScript.
        let otherwise = branch(self, "else", of("else"));
        Some(Node::If(Box::new(If { blank, value: value?, then: then?, otherwise: otherwise? })))
    }

    fn case(&mut self, json: &str) -> Option<Node> {
        let options = self.options(json, &["operator", "value"])?;
        let value = match options.get("value").filter(|json| *json != "\"\"") {
            Some(json) => {
                self.within("value", |parser| parser.text_or_directive(json)).map(|v| Some(v.into()))
            }
            None => Some(None),
        };
        let operator = options.get("operator").and_then(json::decode);
        match operator.as_deref() {
            Some("lower") => Some(Node::Case { upper: false, value: value? }),
            Some("upper") => Some(Node::Case { upper: true, value: value? }),
            _ => self.wrong("operator must be \"lower\" or \"upper\""),
        }
    }

    fn replace(&mut self, json: &str) -> Option<Node> {
        let known = ["value", "pattern", "replacement", "pattern2", "replacement2", "ignorecase", "global"];
        let options = self.options(json, &known)?;
        let value = self.required(&options, "value", Parser::text_or_directive);
        let ignore_case = self.flag(&options, "ignorecase", false);
        let global = self.flag(&options, "global", true);
        let first = self.required(&options, "pattern", Parser::short_text);
        let mut short = |name: &str| match options.get(name) {
            Some(json) => self.within(name, |parser| parser.short_text(json)),
            None => Some(String::new()),
        };
        let (put, second, put2) = (short("replacement"), short("pattern2"), short("replacement2"));
        let first = first?;
        if first.is_empty() {
            return self.wrong("pattern is empty; write what is to be replaced");
        }
        let (ignore_case, global) = (ignore_case?, global?);
        let pattern =
            |pattern: String, replacement: String| Pattern { pattern, replacement, ignore_case, global };
        let second = Some(second?).filter(|pattern| !pattern.is_empty());
        let patterns = [Some(pattern(first, put?)), second.zip(put2).map(|(what, put)| pattern(what, put))];
        Some(Node::Replace(Box::new(Replace {
            value: value?,
            patterns: patterns.into_iter().flatten().collect(),
        })))
    }

    fn text(&mut self, json: &str) -> Option<String> {
        match json::decode(json) {
            Some(text) => Some(text.into_owned()),
            None => self.wrong("it is no text: half a surrogate pair stands in it"),
        }
    }

    fn short_text(&mut self, json: &str) -> Option<String> {
        if Type::of(json) != Type::Text {
            return self.wrong(format!("it must be a text, and is {}", article(Type::of(json))));
        }
        let text = self.text(json)?;
        if text.encode_utf16().count() > MAX_LENGTH {
            return self
                .wrong(format!("it is longer than {MAX_LENGTH} characters, which is Segment's limit"));
        }
        Some(text)
    }

    fn merge(&mut self, json: &str) -> Option<Node> {
        let options = self.options(json, &["objects", "direction"])?;
        let Some(objects) = options.get("objects").filter(|json| Type::of(json) == Type::Array) else {
            return self.wrong("objects is missing: a list of objects and directives");
        };
        let items: Vec<&str> = elements(objects).into_iter().flatten().collect();
        let mut nodes: Vec<Option<Node>> = Vec::new();
        for (n, item) in items.into_iter().enumerate() {
            nodes.push(self.within("objects", |p| p.within(&n.to_string(), |p| p.object_or_directive(item))));
        }
        let direction = options.get("direction").and_then(json::decode);
        match direction.as_deref() {
            Some("right") => {}
            Some("left") => nodes.reverse(),
            _ => return self.wrong("direction must be \"left\" or \"right\""),
        }
        nodes.into_iter().collect::<Option<Vec<Node>>>().map(Node::Merge)
    }

    fn array_path(&mut self, json: &str) -> Option<Node> {
        let items: Vec<&str> = match Type::of(json) {
            Type::Array => elements(json).into_iter().flatten().collect(),
            other => {
                return self
                    .wrong(format!("it must be a list of a path and a shape, and is {}", article(other)));
            }
        };
        let (root, shape) = match items.as_slice() {
            [root] => (root, None),
            [root, shape] => (root, Some(*shape)),
            _ => return self.wrong("it must be a list of a path and a shape"),
        };
        let root = self.within("0", |parser| match Type::of(root) {
            Type::Text => parser.told(root, Path::parse).map(Node::Path),
            _ => parser.text_or_directive(root),
        });
        // Segment passes over a shape that says nothing.
        let shape = match shape.filter(|shape| Type::of(shape) == Type::Object && *shape != "{}") {
            Some(shape) => self.within("1", |parser| parser.node(shape)).map(|node| Some(node.into())),
            None => Some(None),
        };
        Some(Node::ArrayPath { root: root?.into(), shape: shape? })
    }

    fn omit(&mut self, json: &str) -> Option<Node> {
        let options = self.options(json, &["value", "keys"])?;
        let value = self.required(&options, "value", Parser::object_or_directive);
        let keys = self.required(&options, "keys", |parser, json| {
            let names = serde_json::from_str::<Vec<String>>(json);
            let Ok(names) = names else {
                return parser.wrong("it must be a list of texts, such as [\"phone\", \"address.street\"]");
            };
            let paths =
                names.iter().map(|name| Path::parse(name).or_else(|text| parser.wrong(text).ok_or(())));
            let paths: Result<Vec<Path>, ()> = paths.collect();
            paths.ok()
        });
        Some(Node::Omit { value: value?.into(), keys: keys? })
    }
}

fn article(kind: Type) -> String {
    let name = kind.as_str();
    match kind {
        Type::Null => name.to_owned(),
        Type::Array | Type::Object => format!("an {name}"),
        _ => format!("a {name}"),
    }
}

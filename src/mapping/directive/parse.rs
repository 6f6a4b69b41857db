//! Parses definitions. All mistakes are reported, not only the first.

use super::liquid::Liquid;
use super::object::array_json;
use super::path::Path;
use super::replace::{MAX_LENGTH, Pattern};
use super::template::Template;
use super::{Argument, FieldError, If, Node, Replace};
use crate::event::elements;
use crate::event::json::{self, JsonType, Object};
use crate::mapping::javascript::members_in_js_order;
use std::borrow::Cow;

/// The maximum nesting of a definition; people nest directives less deeply.
const MAX_DEPTH: usize = 32;

/// The member by which Segment marks directives that only its own service can evaluate.
const SEGMENT_INTERNAL: &str = "__segment_internal_directive";

const DIRECTIVES: &str = "@path, @template, @literal, @if, @case, @replace, @merge, @transform, @arrayPath, @flatten, \
                          @json, @excludeWhenNull, @liquid, @hash, @omit";

pub fn parse(json: &str) -> Result<Node, Vec<FieldError>> {
    if let Err(e) = serde_json::from_str::<&serde_json::value::RawValue>(json) {
        return Err(vec![FieldError { path: String::new(), text: format!("it is not valid JSON: {e}") }]);
    }
    let mut parser = DefinitionParser { path: Vec::new(), errors: Vec::new() };
    let node = parser.node(&json::compact(json));
    match (node, parser.errors.is_empty()) {
        (Some(node), true) => Ok(node),
        _ => Err(parser.errors),
    }
}

struct DefinitionParser {
    /// The position of the node that is being parsed.
    path: Vec<String>,
    errors: Vec<FieldError>,
}

/// The options of a directive by name.
struct DirectiveOptions<'a>(Vec<(String, &'a str)>);

impl<'a> DirectiveOptions<'a> {
    fn get(&self, name: &str) -> Option<&'a str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| *value)
    }
}

impl DefinitionParser {
    /// Adds an error at the current position.
    fn error<T>(&mut self, text: impl Into<String>) -> Option<T> {
        let path = self.path.iter().map(|name| format!("/{name}")).collect();
        self.errors.push(FieldError { path, text: text.into() });
        None
    }

    fn within<T>(&mut self, name: &str, parse: impl FnOnce(&mut DefinitionParser) -> Option<T>) -> Option<T> {
        self.path.push(name.to_owned());
        let parsed = parse(self);
        self.path.pop();
        parsed
    }

    /// Parses a directive or a literal value.
    fn node(&mut self, json: &str) -> Option<Node> {
        if self.path.len() > MAX_DEPTH {
            return self.error(format!("it is nested more than {MAX_DEPTH} deep"));
        }
        match JsonType::of(json) {
            JsonType::Object => {
                let object: Object = serde_json::from_str(json).ok()?;
                let members = members_in_js_order(&object);
                if members.iter().any(|(name, _)| name == SEGMENT_INTERNAL) {
                    return self.error(format!("{SEGMENT_INTERNAL} works only at Segment; remove it"));
                }
                if members.iter().any(|(name, _)| name.starts_with('@')) {
                    return self.directive(&members);
                }
                self.object(&members)
            }
            JsonType::Array => {
                let items: Vec<&str> = elements(json).into_iter().flatten().collect();
                let nodes = self.members(items.iter().enumerate().map(|(n, item)| (n.to_string(), *item)))?;
                let nodes: Vec<Node> = nodes.into_iter().map(|(_, node)| node).collect();
                // An element may be a literal by @literal, which is no part of the value.
                let literal = |node: &Node| match node {
                    Node::Literal(json) => Some(Cow::Owned(json.clone())),
                    _ => None,
                };
                let literals: Option<Vec<Cow<str>>> = nodes.iter().map(literal).collect();
                Some(literals.map_or(Node::Array(nodes), |items| Node::Literal(array_json(&items))))
            }
            _ => Some(Node::Literal(json.to_owned())),
        }
    }

    fn object(&mut self, members: &[(String, &str)]) -> Option<Node> {
        self.members(members.iter().map(|(name, value)| (name.clone(), *value))).map(Node::Object)
    }

    /// Parses all values, to report the mistakes in each.
    fn members<'a>(
        &mut self,
        members: impl Iterator<Item = (String, &'a str)>,
    ) -> Option<Vec<(String, Node)>> {
        let mut is_valid = true;
        let mut nodes = Vec::new();
        for (name, value) in members {
            match self.within(&name, |parser| parser.node(value)) {
                Some(node) => nodes.push((name, node)),
                None => is_valid = false,
            }
        }
        is_valid.then_some(nodes)
    }

    fn directive(&mut self, members: &[(String, &str)]) -> Option<Node> {
        let count = members.iter().filter(|(name, _)| name != "_metadata").count();
        let (name, value) = members.iter().find(|(name, _)| name.starts_with('@'))?;
        if count > 1 {
            let names: Vec<&str> = members.iter().map(|(name, _)| name.as_str()).collect();
            return self
                .error(format!("a directive must be the only member, but here are {}", names.join(", ")));
        }
        self.within(name, |parser| parser.directive_value(name, value))
    }

    fn directive_value(&mut self, name: &str, json: &str) -> Option<Node> {
        match name {
            "@path" => self.argument(json, Path::parse).map(Node::Path),
            "@template" => self.argument(json, Template::parse).map(Node::Template),
            "@literal" => self.node(json),
            "@if" => self.condition(json),
            "@case" => self.case(json),
            "@replace" => self.replace(json),
            "@merge" => self.merge(json),
            "@transform" => {
                let options = self.options(json, &["apply", "mapping"])?;
                let apply = self.required(&options, "apply", DefinitionParser::object_or_directive);
                let mapping = self.required(&options, "mapping", DefinitionParser::object_or_directive);
                Some(Node::Transform { apply: apply?.into(), mapping: mapping?.into() })
            }
            "@arrayPath" => self.array_path(json),
            "@flatten" => {
                let options = self.options(json, &["value", "separator", "omitArrays"])?;
                let value = self.required(&options, "value", DefinitionParser::node);
                let separator = self.required(&options, "separator", DefinitionParser::separator);
                let omit_arrays = self.flag(&options, "omitArrays", false);
                Some(Node::Flatten { value: value?.into(), separator: separator?, omit_arrays: omit_arrays? })
            }
            "@json" => {
                let options = self.options(json, &["mode", "value"])?;
                let value = self.required(&options, "value", DefinitionParser::truthy_node);
                let mode = options.get("mode").and_then(json::decode);
                match mode.as_deref() {
                    Some("encode") => Some(Node::Encode(value?.into())),
                    Some("decode") => Some(Node::Decode(value?.into())),
                    _ => self.error("mode must be \"encode\" or \"decode\""),
                }
            }
            "@excludeWhenNull" => Some(Node::ExcludeWhenNull(self.node(json)?.into())),
            "@hash" => Some(Node::Hash(self.string_or_directive(json)?.into())),
            "@omit" => self.omit(json),
            "@liquid" => match json::decode(json).filter(|_| JsonType::of(json) == JsonType::String) {
                Some(text) => match Liquid::parse(&text) {
                    Ok(liquid) => Some(Node::Liquid(liquid)),
                    Err(text) => self.error(text),
                },
                None => self.error(format!("it must be a string, and is {}", JsonType::of(json))),
            },
            _ => self.error(format!("there is no directive {name}; there are {DIRECTIVES}")),
        }
    }

    /// Parses an argument: a literal string, or a directive that computes one.
    fn argument<T>(&mut self, json: &str, parse: fn(&str) -> Result<T, String>) -> Option<Argument<T>> {
        match JsonType::of(json) {
            JsonType::String => match self.string(json).map(|text| parse(&text))? {
                Ok(value) => Some(Argument::Literal(value)),
                Err(text) => self.error(text),
            },
            JsonType::Object => Some(Argument::Dynamic(self.directive_only(json)?.into())),
            other => self.error(format!("it must be a string or a directive, and is {other}")),
        }
    }

    fn directive_only(&mut self, json: &str) -> Option<Node> {
        let object: Object = serde_json::from_str(json).ok()?;
        let members = members_in_js_order(&object);
        match members.iter().any(|(name, _)| name.starts_with('@')) {
            true => self.directive(&members),
            false => self.error("it must be a directive, such as {\"@path\": \"$.event\"}"),
        }
    }

    fn string_or_directive(&mut self, json: &str) -> Option<Node> {
        match JsonType::of(json) {
            JsonType::String => Some(Node::Literal(json.to_owned())),
            JsonType::Object => self.directive_only(json),
            other => self.error(format!("it must be a string or a directive, and is {other}")),
        }
    }

    fn object_or_directive(&mut self, json: &str) -> Option<Node> {
        match JsonType::of(json) {
            JsonType::Object => self.node(json),
            other => self.error(format!("it must be an object or a directive, and is {other}")),
        }
    }

    /// Parses the options of a directive; an unknown option is a mistake.
    fn options<'a>(&mut self, json: &'a str, known: &[&str]) -> Option<DirectiveOptions<'a>> {
        if JsonType::of(json) != JsonType::Object {
            return self.error(format!("it must be an object with {}", known.join(", ")));
        }
        let object: Object = serde_json::from_str(json).ok()?;
        let members = members_in_js_order(&object);
        match members.iter().find(|(name, _)| !known.contains(&name.as_str())) {
            Some((name, _)) => self.error(format!("it has no option {name:?}, but {}", known.join(", "))),
            None => Some(DirectiveOptions(members)),
        }
    }

    fn required<T>(
        &mut self,
        options: &DirectiveOptions,
        name: &str,
        parse: fn(&mut DefinitionParser, &str) -> Option<T>,
    ) -> Option<T> {
        match options.get(name) {
            Some(json) => self.within(name, |parser| parse(parser, json)),
            None => self.error(format!("{name} is missing")),
        }
    }

    fn flag(&mut self, options: &DirectiveOptions, name: &str, default: bool) -> Option<bool> {
        match options.get(name) {
            None => Some(default),
            Some("true") => Some(true),
            Some("false") => Some(false),
            Some(_) => self.error(format!("{name} must be true or false")),
        }
    }

    fn condition(&mut self, json: &str) -> Option<Node> {
        let options = self.options(json, &["exists", "blank", "then", "else"])?;
        let (is_blank, name) = match (options.get("exists"), options.get("blank")) {
            (Some(_), Some(_)) => return self.error("it must have exists or blank, not both"),
            (_, None) => (false, "exists"),
            (None, Some(_)) => (true, "blank"),
        };
        let value = self.required(&options, name, DefinitionParser::truthy_node);
        let branch = |parser: &mut DefinitionParser, name: &str, json: Option<&str>| match json {
            Some(json) => parser.within(name, |parser| parser.node(json)).map(Some),
            None => Some(None),
        };
        let then = branch(self, "then", options.get("then"));
        // Segment ignores a falsy else.
        let otherwise = branch(self, "else", options.get("else").filter(|json| json::is_truthy(json)));
        Some(Node::If(Box::new(If { is_blank, value: value?, then: then?, otherwise: otherwise? })))
    }

    fn case(&mut self, json: &str) -> Option<Node> {
        let options = self.options(json, &["operator", "value"])?;
        let value = match options.get("value").filter(|json| *json != "\"\"") {
            Some(json) => {
                self.within("value", |parser| parser.string_or_directive(json)).map(|v| Some(v.into()))
            }
            None => Some(None),
        };
        let operator = options.get("operator").and_then(json::decode);
        match operator.as_deref() {
            Some("lower") => Some(Node::Case { upper: false, value: value? }),
            Some("upper") => Some(Node::Case { upper: true, value: value? }),
            _ => self.error("operator must be \"lower\" or \"upper\""),
        }
    }

    fn replace(&mut self, json: &str) -> Option<Node> {
        let known = ["value", "pattern", "replacement", "pattern2", "replacement2", "ignorecase", "global"];
        let options = self.options(json, &known)?;
        // Segment replaces nothing in an empty constant.
        let value = match options.get("value") {
            Some("\"\"") => Some(None),
            _ => self.required(&options, "value", DefinitionParser::string_or_directive).map(Some),
        };
        let ignore_case = self.flag(&options, "ignorecase", false);
        let global = self.flag(&options, "global", true);
        let first = self.required(&options, "pattern", DefinitionParser::short_string);
        let mut optional = |name: &str| match options.get(name) {
            Some(json) => self.within(name, |parser| parser.short_string(json)),
            None => Some(String::new()),
        };
        let (replacement, second, replacement2) =
            (optional("replacement"), optional("pattern2"), optional("replacement2"));
        let first = first?;
        if first.is_empty() {
            return self.error("pattern is empty; write the text to replace");
        }
        let (ignore_case, global) = (ignore_case?, global?);
        let pattern =
            |pattern: String, replacement: String| Pattern { pattern, replacement, ignore_case, global };
        let second = Some(second?).filter(|pattern| !pattern.is_empty());
        let patterns = [
            Some(pattern(first, replacement?)),
            second.zip(replacement2).map(|(text, new)| pattern(text, new)),
        ];
        Some(Node::Replace(Box::new(Replace {
            value: value?,
            patterns: patterns.into_iter().flatten().collect(),
        })))
    }

    /// Parses an option for which Segment takes a falsy constant as a missing one.
    fn truthy_node(&mut self, json: &str) -> Option<Node> {
        match json::is_truthy(json) {
            true => self.node(json),
            false => {
                self.error(format!("{json} counts as missing: write a value, as {{\"@path\": \"$.email\"}}"))
            }
        }
    }

    fn separator(&mut self, json: &str) -> Option<String> {
        match JsonType::of(json) {
            JsonType::String if json != "\"\"" => self.string(json),
            _ => self.error("it must be a text that is not empty, such as \".\""),
        }
    }

    fn string(&mut self, json: &str) -> Option<String> {
        match json::decode(json) {
            Some(text) => Some(text.into_owned()),
            None => self.error("it is not valid Unicode: it has an unpaired surrogate"),
        }
    }

    fn short_string(&mut self, json: &str) -> Option<String> {
        if JsonType::of(json) != JsonType::String {
            return self.error(format!("it must be a string, and is {}", JsonType::of(json)));
        }
        let text = self.string(json)?;
        if text.encode_utf16().count() > MAX_LENGTH {
            return self
                .error(format!("it is longer than {MAX_LENGTH} characters, which is Segment's limit"));
        }
        Some(text)
    }

    fn merge(&mut self, json: &str) -> Option<Node> {
        let options = self.options(json, &["objects", "direction"])?;
        let Some(objects) = options.get("objects").filter(|json| JsonType::of(json) == JsonType::Array)
        else {
            return self.error("objects is missing: a list of objects and directives");
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
            _ => return self.error("direction must be \"left\" or \"right\""),
        }
        nodes.into_iter().collect::<Option<Vec<Node>>>().map(Node::Merge)
    }

    fn array_path(&mut self, json: &str) -> Option<Node> {
        let items: Vec<&str> = match JsonType::of(json) {
            JsonType::Array => elements(json).into_iter().flatten().collect(),
            other => {
                return self.error(format!("it must be a list of a path and a shape, and is {other}"));
            }
        };
        let (root, shape) = match items.as_slice() {
            [root] => (root, None),
            [root, shape] => (root, Some(*shape)),
            _ => return self.error("it must be a list of a path and a shape"),
        };
        let root = self.within("0", |parser| match JsonType::of(root) {
            JsonType::String => parser.argument(root, Path::parse).map(Node::Path),
            _ => parser.string_or_directive(root),
        });
        // Segment ignores a shape without members.
        let shape = match shape.filter(|shape| JsonType::of(shape) == JsonType::Object && *shape != "{}") {
            Some(shape) => self.within("1", |parser| parser.node(shape)).map(|node| Some(node.into())),
            None => Some(None),
        };
        Some(Node::ArrayPath { root: root?.into(), shape: shape? })
    }

    fn omit(&mut self, json: &str) -> Option<Node> {
        let options = self.options(json, &["value", "keys"])?;
        let value = self.required(&options, "value", DefinitionParser::object_or_directive);
        let keys = self.required(&options, "keys", |parser, json| {
            let names = serde_json::from_str::<Vec<String>>(json);
            let Ok(names) = names else {
                return parser.error("it must be a list of strings, such as [\"phone\", \"address.street\"]");
            };
            let paths =
                names.iter().map(|name| Path::parse(name).or_else(|text| parser.error(text).ok_or(())));
            let paths: Result<Vec<Path>, ()> = paths.collect();
            paths.ok()
        });
        Some(Node::Omit { value: value?.into(), keys: keys? })
    }
}

//! The fields of mappings in Segment's mapping language: a literal value, or a directive that computes one from the
//! event.
//!
//! The result is that of Segment's `mapping-kit`. A definition whose result would differ or is not certain is refused
//! when it is parsed. A value that is copied from an event keeps its spelling; a value that is computed (by a template,
//! a replacement, encoded JSON) is written as JavaScript writes it. `@hash` and `@omit` are this agent's own directives.

mod evaluate;
mod hash;
mod liquid;
mod object;
mod parse;
mod path;
mod replace;
mod template;

use std::borrow::Cow;
use std::fmt;

pub use evaluate::Evaluator;
pub use hash::{HashKey, WeakKey};

/// The largest value in bytes: no request accepts more.
const MAX_OUTPUT: usize = 1 << 20;

/// The definition of one field, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Field(Node);

/// A mistake in a definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// The position in the definition, as in `/@if/exists`; empty for the whole.
    pub path: String,
    /// The mistake and the fix.
    pub text: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.text)
    }
}

impl Field {
    /// Parses a definition.
    ///
    /// # Errors
    /// All mistakes in it.
    pub fn parse(json: &str) -> Result<Field, Vec<FieldError>> {
        parse::parse(json).map(Field)
    }

    /// The value as JSON, if the definition is a literal.
    pub fn literal(&self) -> Option<&str> {
        match &self.0 {
            Node::Literal(json) => Some(json),
            _ => None,
        }
    }

    /// Whether the definition uses `@hash`.
    pub fn hashes(&self) -> bool {
        self.0.any(&|node| matches!(node, Node::Hash(_)))
    }

    /// The field's value as JSON, if it has one.
    ///
    /// # Errors
    /// A clause that names the directive: it cannot work on the event's values.
    pub fn evaluate<'a>(&'a self, evaluator: &Evaluator<'a>) -> Result<Option<Cow<'a, str>>, String> {
        evaluator.field(&self.0)
    }
}

/// The syntax tree of a definition.
#[derive(Debug, Clone, PartialEq)]
enum Node {
    /// JSON without a directive.
    Literal(String),
    Object(Vec<(String, Node)>),
    Array(Vec<Node>),
    Path(Argument<path::Path>),
    Template(Argument<template::Template>),
    Liquid(liquid::Liquid),
    If(Box<If>),
    Case {
        upper: bool,
        value: Option<Box<Node>>,
    },
    Replace(Box<Replace>),
    ArrayPath {
        root: Box<Node>,
        shape: Option<Box<Node>>,
    },
    /// Members of later objects win.
    Merge(Vec<Node>),
    Transform {
        apply: Box<Node>,
        mapping: Box<Node>,
    },
    Flatten {
        value: Box<Node>,
        separator: String,
        omit_arrays: bool,
    },
    Encode(Box<Node>),
    Decode(Box<Node>),
    ExcludeWhenNull(Box<Node>),
    Hash(Box<Node>),
    Omit {
        value: Box<Node>,
        keys: Vec<path::Path>,
    },
}

/// The argument of a directive: literal, or computed by another directive.
#[derive(Debug, Clone, PartialEq)]
enum Argument<T> {
    Literal(T),
    Dynamic(Box<Node>),
}

#[derive(Debug, Clone, PartialEq)]
struct If {
    value: Node,
    /// `blank` instead of `exists`: the empty string counts as missing too.
    is_blank: bool,
    then: Option<Node>,
    otherwise: Option<Node>,
}

#[derive(Debug, Clone, PartialEq)]
struct Replace {
    value: Option<Node>,
    patterns: Vec<replace::Pattern>,
}

impl Node {
    fn any(&self, predicate: &dyn Fn(&Node) -> bool) -> bool {
        predicate(self) || self.children().into_iter().any(|child| child.any(predicate))
    }

    fn children(&self) -> Vec<&Node> {
        match self {
            Node::Literal(_)
            | Node::Path(Argument::Literal(_))
            | Node::Template(Argument::Literal(_))
            | Node::Liquid(_) => Vec::new(),
            Node::Object(members) => members.iter().map(|(_, node)| node).collect(),
            Node::Array(nodes) | Node::Merge(nodes) => nodes.iter().collect(),
            Node::Path(Argument::Dynamic(node)) | Node::Template(Argument::Dynamic(node)) => vec![node],
            Node::If(condition) => {
                let branches = [condition.then.as_ref(), condition.otherwise.as_ref()];
                std::iter::once(&condition.value).chain(branches.into_iter().flatten()).collect()
            }
            Node::Case { value, .. } => value.as_deref().into_iter().collect(),
            Node::Replace(replace) => replace.value.iter().collect(),
            Node::ArrayPath { root, shape } => std::iter::once(&**root).chain(shape.as_deref()).collect(),
            Node::Transform { apply, mapping } => vec![apply, mapping],
            Node::Encode(node) | Node::Decode(node) | Node::ExcludeWhenNull(node) | Node::Hash(node) => {
                vec![node]
            }
            Node::Flatten { value, .. } | Node::Omit { value, .. } => vec![value],
        }
    }
}

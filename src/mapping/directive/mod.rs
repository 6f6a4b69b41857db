//! The fields of mappings, in Segment's mapping language: a value as it is, or a directive that makes one from the
//! event.
//!
//! The answer is Segment's, whose `mapping-kit` decides every one of them, or the field is refused when it is read.
//! What is taken from an event as it is keeps the text it was written in; what is made of it (a template, a
//! replacement, encoded JSON) is written as JavaScript writes it. Two directives are this agent's own: `@hash` and
//! `@omit`.

mod key;
mod liquid;
mod parse;
mod path;
mod replace;
mod resolve;
mod template;

use std::fmt;

pub use key::{HashKey, WeakKey};
pub use resolve::Source;

/// The largest value, in bytes: no request takes more.
const MAX_OUTPUT: usize = 1 << 20;

/// One field's definition, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Field(Node);

/// What is wrong with a definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// Where in it, as in `/@if/exists`; empty for the whole.
    pub path: String,
    /// What is wrong, and the fix.
    pub text: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.text)
    }
}

/// A definition, taken apart.
#[derive(Debug, Clone, PartialEq)]
enum Node {
    /// JSON as it is.
    Raw(String),
    /// Members by name.
    Object(Vec<(String, Node)>),
    Array(Vec<Node>),
    Path(Told<path::Path>),
    Template(Told<template::Template>),
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
    /// Later ones win.
    Merge(Vec<Node>),
    Transform {
        apply: Box<Node>,
        mapping: Box<Node>,
    },
    Flatten {
        value: Box<Node>,
        separator: Box<Node>,
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

/// Something that is read from the definition, or from a value that a directive makes.
#[derive(Debug, Clone, PartialEq)]
enum Told<T> {
    Fixed(T),
    By(Box<Node>),
}

#[derive(Debug, Clone, PartialEq)]
struct If {
    /// `blank` instead of `exists`: the empty text does not meet it either.
    blank: bool,
    value: Node,
    then: Option<Node>,
    otherwise: Option<Node>,
}

#[derive(Debug, Clone, PartialEq)]
struct Replace {
    value: Node,
    patterns: Vec<replace::Pattern>,
}

impl Field {
    /// The definition in `json`.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn parse(json: &str) -> Result<Field, Vec<FieldError>> {
        parse::parse(json).map(Field)
    }

    /// The JSON that it gives whatever the event is, where that is written so.
    pub fn fixed(&self) -> Option<&str> {
        match &self.0 {
            Node::Raw(json) => Some(json),
            _ => None,
        }
    }

    /// Whether a value of it is hashed.
    pub fn hashes(&self) -> bool {
        self.0.any(&|node| matches!(node, Node::Hash(_)))
    }
}

impl Node {
    fn any(&self, is: &dyn Fn(&Node) -> bool) -> bool {
        is(self) || self.parts().into_iter().any(|part| part.any(is))
    }

    /// The nodes that it is made of.
    fn parts(&self) -> Vec<&Node> {
        match self {
            Node::Raw(_) | Node::Path(Told::Fixed(_)) | Node::Template(Told::Fixed(_)) | Node::Liquid(_) => {
                Vec::new()
            }
            Node::Object(members) => members.iter().map(|(_, node)| node).collect(),
            Node::Array(nodes) | Node::Merge(nodes) => nodes.iter().collect(),
            Node::Path(Told::By(node)) | Node::Template(Told::By(node)) => vec![node],
            Node::If(parts) => [Some(&parts.value), parts.then.as_ref(), parts.otherwise.as_ref()]
                .into_iter()
                .flatten()
                .collect(),
            Node::Case { value, .. } => value.as_deref().into_iter().collect(),
            Node::Replace(replace) => vec![&replace.value],
            Node::ArrayPath { root, shape } => {
                [Some(&**root), shape.as_deref()].into_iter().flatten().collect()
            }
            Node::Transform { apply, mapping } => vec![apply, mapping],
            Node::Flatten { value, separator, .. } => vec![value, separator],
            Node::Encode(node) | Node::Decode(node) | Node::ExcludeWhenNull(node) | Node::Hash(node) => {
                vec![node]
            }
            Node::Omit { value, .. } => vec![value],
        }
    }
}

//! Triggers: which events a mapping takes, in the part of Segment's Filter Query Language that its destinations know.
//!
//! The answer is Segment's, whose `destination-subscriptions` decides every one of them, or the trigger is refused
//! when it is read. Nested groups are the one thing that is taken beyond it.

mod parse;

use super::lookup::{Found, Type, follow};
use crate::event::Event;
use crate::event::json;
use std::fmt;
use std::sync::Arc;

/// A trigger: a condition that an event meets or not.
#[derive(Debug, Clone, PartialEq)]
pub struct Trigger {
    text: Arc<str>,
    root: Node,
}

/// Why a trigger is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TriggerError {
    /// Where, in characters from 1.
    pub column: usize,
    /// What is wrong, and the way to write it.
    pub text: String,
}

impl fmt::Display for TriggerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "column {}: {}", self.column, self.text)
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Node {
    All(Vec<Node>),
    Any(Vec<Node>),
    Test(Test),
}

/// One comparison, with its place in the text.
#[derive(Debug, Clone, PartialEq)]
struct Test {
    /// The member of the event, and those inside it.
    path: Vec<String>,
    op: Op,
    span: (usize, usize),
}

#[derive(Debug, Clone, PartialEq)]
enum Op {
    Is(String),
    IsNot(String),
    Equals(f64),
    Differs(f64),
    Less(f64),
    AtMost(f64),
    More(f64),
    AtLeast(f64),
    IsBool(bool),
    Exists,
    Missing,
    /// A text that has this in it, or with `false` one that has not.
    Contains(String, bool),
    StartsWith(String, bool),
    EndsWith(String, bool),
}

impl Trigger {
    /// The trigger of that text.
    ///
    /// # Errors
    /// It is not FQL, or Segment would read it otherwise than it looks.
    pub fn parse(text: &str) -> Result<Trigger, TriggerError> {
        Ok(Trigger { root: parse::parse(text)?, text: text.into() })
    }

    /// Whether the event meets it.
    pub fn matches(&self, event: &Event<'_>) -> bool {
        self.root.first_unmet(event).is_none()
    }

    /// The first condition that the event does not meet, as it is written; of several that would each do, the last.
    pub fn unmet(&self, event: &Event<'_>) -> Option<&str> {
        let (from, to) = self.root.first_unmet(event)?.span;
        self.text.get(from..to)
    }

    /// Why no event can ever meet it: two conditions that must both hold and cannot.
    pub fn never(&self) -> Option<String> {
        let Node::All(nodes) = &self.root else { return None };
        let tests: Vec<&Test> = nodes
            .iter()
            .filter_map(|node| match node {
                Node::Test(test) => Some(test),
                _ => None,
            })
            .collect();
        let (one, other) = tests.iter().enumerate().find_map(|(i, one)| {
            let clash =
                tests[i + 1..].iter().find(|other| one.path == other.path && one.op.excludes(&other.op));
            clash.map(|other| (one, other))
        })?;
        let text = |test: &Test| self.text.get(test.span.0..test.span.1).unwrap_or_default();
        Some(format!("{} and {} never hold both", text(one), text(other)))
    }
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Node {
    fn first_unmet(&self, event: &Event<'_>) -> Option<&Test> {
        match self {
            Node::All(nodes) => nodes.iter().find_map(|node| node.first_unmet(event)),
            Node::Any(nodes) => {
                let mut last = None;
                for node in nodes {
                    last = Some(node.first_unmet(event)?);
                }
                last
            }
            Node::Test(test) => (!test.holds(event)).then_some(test),
        }
    }
}

impl Test {
    /// As JavaScript compares: a text is never a number.
    fn holds(&self, event: &Event<'_>) -> bool {
        let found = self.find(event);
        let value = match &found {
            Found::Json(json) => Some(json.as_ref()),
            Found::Missing | Found::Function => None,
        };
        let of = |kind: Type| value.filter(|json| Type::of(json) == kind);
        let text = || of(Type::Text).and_then(json::decode);
        let compare = |holds: fn(&f64, &f64) -> bool, with: &f64| {
            of(Type::Number).and_then(|json| json.parse().ok()).is_some_and(|n| holds(&n, with))
        };
        let search = |found: fn(&str, &str) -> bool, what: &str, wanted: bool| {
            text().is_some_and(|text| found(&text, what) == wanted)
        };
        let exists = || found != Found::Missing && value != Some("null");
        match &self.op {
            Op::Is(want) => text().as_deref() == Some(want),
            Op::IsNot(want) => text().as_deref() != Some(want),
            Op::Equals(want) => compare(|a, b| a == b, want),
            Op::Differs(want) => compare(|a, b| a != b, want),
            Op::Less(than) => compare(|a, b| a < b, than),
            Op::AtMost(most) => compare(|a, b| a <= b, most),
            Op::More(than) => compare(|a, b| a > b, than),
            Op::AtLeast(least) => compare(|a, b| a >= b, least),
            Op::IsBool(want) => value == Some(if *want { "true" } else { "false" }),
            Op::Exists => exists(),
            Op::Missing => !exists(),
            Op::Contains(what, wanted) => search(|text, what| text.contains(what), what, *wanted),
            Op::StartsWith(what, wanted) => search(|text, what| text.starts_with(what), what, *wanted),
            Op::EndsWith(what, wanted) => search(|text, what| text.ends_with(what), what, *wanted),
        }
    }

    fn find<'a>(&self, event: &Event<'a>) -> Found<'a> {
        let Some((member, keys)) = self.path.split_first() else { return Found::Missing };
        let member = event.get(member).map_or(Found::Missing, |value| Found::Json(value.get().into()));
        follow(member, keys.iter().map(String::as_str))
    }
}

impl Op {
    /// Whether no value meets both.
    fn excludes(&self, other: &Op) -> bool {
        match (self, other) {
            (Op::Is(a), Op::Is(b)) => a != b,
            (Op::Is(a), Op::IsNot(b)) | (Op::IsNot(a), Op::Is(b)) => a == b,
            (Op::Equals(a), Op::Equals(b)) => a != b,
            (Op::IsBool(a), Op::IsBool(b)) => a != b,
            (Op::Missing, Op::IsNot(_)) | (Op::IsNot(_), Op::Missing) => false,
            (Op::Missing, Op::Missing) => false,
            (Op::Missing, _) | (_, Op::Missing) => true,
            _ => false,
        }
    }
}

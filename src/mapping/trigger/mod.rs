//! Triggers: which events a mapping takes, in the part of Segment's Filter Query Language that its destinations know.
//!
//! The answer is Segment's, whose `destination-subscriptions` decides every one of them, or the trigger is refused
//! when it is read. Nested groups are the one thing that is taken beyond it.

mod parse;
mod value;

use crate::event::Event;
use crate::event::json;
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use value::{Value, at};

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
        let value = at(event, &self.path);
        let text = || match value {
            Value::Text(json) => json::decode(json),
            _ => None,
        };
        let number = || match value {
            Value::Number(json) => json.parse::<f64>().ok(),
            Value::Length(n) => Some(n as f64),
            _ => None,
        };
        let compare = |holds: fn(&f64, &f64) -> bool, with: &f64| number().is_some_and(|n| holds(&n, with));
        let search = |found: fn(&str, &str) -> bool, what: &str, wanted: bool| {
            text().is_some_and(|text: Cow<'_, str>| found(&text, what) == wanted)
        };
        match &self.op {
            Op::Is(want) => text().as_deref() == Some(want),
            Op::IsNot(want) => text().as_deref() != Some(want),
            Op::Equals(want) => compare(|a, b| a == b, want),
            Op::Differs(want) => compare(|a, b| a != b, want),
            Op::Less(than) => compare(|a, b| a < b, than),
            Op::AtMost(most) => compare(|a, b| a <= b, most),
            Op::More(than) => compare(|a, b| a > b, than),
            Op::AtLeast(least) => compare(|a, b| a >= b, least),
            Op::IsBool(want) => matches!(value, Value::Bool(is) if is == *want),
            Op::Exists => !matches!(value, Value::Missing | Value::Null),
            Op::Missing => matches!(value, Value::Missing | Value::Null),
            Op::Contains(what, wanted) => search(|text, what| text.contains(what), what, *wanted),
            Op::StartsWith(what, wanted) => search(|text, what| text.starts_with(what), what, *wanted),
            Op::EndsWith(what, wanted) => search(|text, what| text.ends_with(what), what, *wanted),
        }
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

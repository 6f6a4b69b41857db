//! Triggers: the conditions by which mappings select events, in the part of Segment's Filter Query Language (FQL) that
//! its destinations support.
//!
//! A trigger matches exactly as with Segment's `destination-subscriptions`. A trigger that would match differently is
//! refused when it is parsed. Nested groups are the only extension.

mod parse;

use super::javascript::{JsValue, get_path};
use crate::event::Event;
use crate::event::json::{self, JsonType};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// A condition on events.
#[derive(Debug, Clone, PartialEq)]
pub struct Trigger {
    text: Arc<str>,
    root: Condition,
}

/// A mistake in a trigger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TriggerError {
    /// The column in characters, from 1.
    pub column: usize,
    /// The mistake and the fix.
    pub text: String,
}

impl fmt::Display for TriggerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "column {}: {}", self.column, self.text)
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Condition {
    All(Vec<Condition>),
    Any(Vec<Condition>),
    Compare(Comparison),
}

/// One comparison with its position in the trigger's text.
#[derive(Debug, Clone, PartialEq)]
struct Comparison {
    /// The path of the member: its name in the event, then the names within.
    path: Vec<String>,
    op: Op,
    span: Range<usize>,
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
    /// Holds for a string that contains the text; with `false`, for a string that does not.
    Contains(String, bool),
    StartsWith(String, bool),
    EndsWith(String, bool),
}

impl Trigger {
    /// Parses a trigger.
    ///
    /// # Errors
    /// The text is not FQL, or Segment reads it differently than it looks.
    pub fn parse(text: &str) -> Result<Trigger, TriggerError> {
        Ok(Trigger { root: parse::parse(text)?, text: text.into() })
    }

    /// Whether the event meets the trigger.
    pub fn matches(&self, event: &Event<'_>) -> bool {
        self.root.first_unmet(event).is_none()
    }

    /// The first comparison that the event does not meet, as written; of alternatives that all fail, the last.
    pub fn unmet(&self, event: &Event<'_>) -> Option<&str> {
        self.root.first_unmet(event).map(|comparison| self.source(comparison))
    }

    /// Two comparisons that must both hold and contradict each other, if there are two: then no event meets the trigger.
    pub fn contradiction(&self) -> Option<String> {
        let Condition::All(conditions) = &self.root else { return None };
        let comparisons: Vec<&Comparison> = conditions
            .iter()
            .filter_map(|condition| match condition {
                Condition::Compare(comparison) => Some(comparison),
                _ => None,
            })
            .collect();
        let (one, other) = comparisons.iter().enumerate().find_map(|(i, one)| {
            let mut rest = comparisons[i + 1..].iter();
            rest.find(|other| one.path == other.path && one.op.excludes(&other.op)).map(|other| (one, other))
        })?;
        Some(format!("{} and {} never both hold", self.source(one), self.source(other)))
    }

    /// The comparison as written.
    fn source(&self, comparison: &Comparison) -> &str {
        self.text.get(comparison.span.clone()).unwrap_or_default()
    }
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Condition {
    fn first_unmet(&self, event: &Event<'_>) -> Option<&Comparison> {
        match self {
            Condition::All(conditions) => {
                conditions.iter().find_map(|condition| condition.first_unmet(event))
            }
            Condition::Any(conditions) => {
                let mut last = None;
                for condition in conditions {
                    last = Some(condition.first_unmet(event)?);
                }
                last
            }
            Condition::Compare(comparison) => (!comparison.holds(event)).then_some(comparison),
        }
    }
}

impl Comparison {
    /// Whether the comparison holds by JavaScript's rules: a string never equals a number.
    fn holds(&self, event: &Event<'_>) -> bool {
        let js_value = self.find(event);
        let value = match &js_value {
            JsValue::Json(json) => Some(json.as_ref()),
            JsValue::Undefined | JsValue::Function(_) => None,
        };
        let number = || value.filter(|json| JsonType::of(json) == JsonType::Number)?.parse::<f64>().ok();
        let text = || value.and_then(json::decode);
        let compare =
            |holds: fn(&f64, &f64) -> bool, with: &f64| number().is_some_and(|number| holds(&number, with));
        let search = |holds: fn(&str, &str) -> bool, part: &str, wanted: bool| {
            text().is_some_and(|text| holds(&text, part) == wanted)
        };
        let exists = || js_value != JsValue::Undefined && value != Some("null");
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
            Op::Contains(part, wanted) => search(|text, part| text.contains(part), part, *wanted),
            Op::StartsWith(start, wanted) => search(|text, start| text.starts_with(start), start, *wanted),
            Op::EndsWith(end, wanted) => search(|text, end| text.ends_with(end), end, *wanted),
        }
    }

    fn find<'a>(&self, event: &Event<'a>) -> JsValue<'a> {
        let Some((member, keys)) = self.path.split_first() else { return JsValue::Undefined };
        let member = event.get(member).map_or(JsValue::Undefined, |value| JsValue::Json(value.get().into()));
        get_path(member, keys.iter().map(String::as_str))
    }
}

impl Op {
    /// Whether the operator is written as a call, `contains(…)` or `match(…)`.
    fn is_call(&self) -> bool {
        matches!(self, Op::Contains(..) | Op::StartsWith(..) | Op::EndsWith(..))
    }

    /// Whether no value can meet both operators.
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

//! From event to items, by mappings: a trigger says which events one takes, an action what it makes of them, fields
//! what goes into that. Without any there are the presets of Segment's own destination, "Track Calls" and
//! "Identify Calls".
//!
//! Segment's order: map, clean, check, skip. An event that is wrong is told so even where it would be skipped.
//! Where this departs from Segment, it is on purpose: values keep the text they were written in, an event is
//! completed rather than refused, its `integrations` are obeyed here, a null context is none, `context.source`
//! names this agent, and RudderStack's `ko_profile_id` serves where profile_id is absent.

mod account;
mod datetime;
mod definition;
pub mod directive;
mod fields;
mod lookup;
mod person;
pub mod trigger;

pub use definition::{Action, Definition, Flaw};

use crate::clock::Timestamp;
use crate::event::json::{self, Object};
use crate::event::{Event, MessageId};
use crate::item::Item;
use crate::reason::{Code, Reason};
use directive::{Field, Source};
use fields::Given;
use std::borrow::Cow;
use std::sync::Arc;
use trigger::Trigger;

/// The name of this destination in an event's `integrations`; `Koala` alone is the browser's, another thing.
const INTEGRATION: &str = "Koala (Cloud)";

/// Segment's own limit for one destination.
pub const MAX_MAPPINGS: usize = 50;

/// What becomes of an event under one mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// This item is sent.
    Send(Box<Item>),
    /// There is nothing to send, and nothing wrong.
    Skip(Reason),
    /// No request can be made of it: code `invalid_field`, every fault in the text.
    Invalid(Reason),
}

/// What one mapping that takes an event makes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapped {
    /// The mapping's name.
    pub mapping: Arc<str>,
    /// What it makes of the event.
    pub outcome: Outcome,
}

/// The mappings in force, in order; each has a name of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Mappings(Vec<Mapping>);

/// One mapping, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Mapping {
    name: Arc<str>,
    trigger: Trigger,
    action: Action,
    /// The fields that are not the preset's, by their names.
    fields: Vec<(&'static str, Field)>,
}

impl Mapping {
    /// What people call it.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Which events it takes.
    pub fn trigger(&self) -> &Trigger {
        &self.trigger
    }

    /// What it makes of them.
    pub fn action(&self) -> Action {
        self.action
    }

    /// What it makes of an event that it takes.
    fn outcome(&self, event: &Event, message_id: &MessageId, timestamp: Timestamp) -> Outcome {
        let given = match self.given(event, message_id, timestamp) {
            Ok(given) => given,
            Err(fault) => return Outcome::Invalid(Reason::new(Code::InvalidField, fault)),
        };
        let kind = self.action.item_kind();
        match self.action {
            Action::Track | Action::Identify => person::outcome(event, kind, message_id, timestamp, &given),
            Action::AccountTrack | Action::AccountIdentify => {
                account::outcome(event, kind, message_id, timestamp, &given)
            }
        }
    }

    /// The values of the mapping's own fields.
    fn given(&self, event: &Event, message_id: &MessageId, timestamp: Timestamp) -> Result<Given, String> {
        if self.fields.is_empty() {
            return Ok(Given::default());
        }
        let text = completed(event, message_id, timestamp);
        let source = Source::new(&text, None);
        let resolve = |(name, field): &(&'static str, Field)| {
            let value = field.resolve(&source).map_err(|fault| format!("{name}: {fault}"))?;
            let value =
                value.map(|json| json::owned(&json)).transpose().map_err(|e| format!("{name}: {e}"))?;
            Ok((*name, value))
        };
        Ok(Given(self.fields.iter().map(resolve).collect::<Result<_, String>>()?))
    }
}

impl Mappings {
    /// The presets, "Track Calls" and "Identify Calls".
    pub fn presets() -> Mappings {
        Mappings(definition::presets())
    }

    /// These.
    ///
    /// # Errors
    /// What is wrong with each of the definitions, and two of one name.
    pub fn new(definitions: &[Definition]) -> Result<Mappings, Vec<Flaw>> {
        definition::mappings(definitions).map(Mappings)
    }

    /// In order.
    pub fn iter(&self) -> impl Iterator<Item = &Mapping> {
        self.0.iter()
    }

    /// What is sent for `event`, under its own messageId or the one it was given; `timestamp` is when it happened if
    /// neither its `timestamp` nor its `originalTimestamp` says so. One outcome for each mapping that takes it.
    ///
    /// # Errors
    /// Why no mapping takes it: then it is skipped.
    pub fn map(
        &self,
        event: &Event,
        message_id: &MessageId,
        timestamp: Timestamp,
    ) -> Result<Vec<Mapped>, Reason> {
        if turned_off(event) {
            return Err(Reason::new(
                Code::IntegrationsOff,
                "the event's integrations turn Koala (Cloud) off",
            ));
        }
        let mapped: Vec<Mapped> = self
            .iter()
            .filter(|mapping| mapping.trigger.matches(event))
            .map(|mapping| Mapped {
                mapping: mapping.name.clone(),
                outcome: mapping.outcome(event, message_id, timestamp),
            })
            .collect();
        match (mapped.is_empty(), event.kind()) {
            (false, _) => Ok(mapped),
            (true, Some(_)) => Err(Reason::new(Code::NoMapping, "no mapping takes events of this type")),
            (true, None) => Err(Reason::new(Code::NoMapping, "no mapping takes an event without a type")),
        }
    }

    /// What the mapping of that name makes of an event now, if it still takes it; of the empty name the first that
    /// does.
    pub fn map_by(&self, name: &str, event: &Event, message_id: &MessageId, timestamp: Timestamp) -> Outcome {
        let named = |mapping: &&Mapping| name.is_empty() || *mapping.name == *name;
        match self.iter().filter(named).find(|mapping| mapping.trigger.matches(event)) {
            Some(mapping) => mapping.outcome(event, message_id, timestamp),
            None => {
                skip(Code::NoMapping, "the mapping that took it when it was stored does not take it any more")
            }
        }
    }
}

fn skip(code: Code, text: &str) -> Outcome {
    Outcome::Skip(Reason::new(code, text))
}

/// Only `false` turns a destination off; its own name goes before `All`.
fn turned_off(event: &Event) -> bool {
    let Some(integrations) = event.get("integrations").and_then(Object::of) else { return false };
    let setting = integrations.non_null(INTEGRATION).or_else(|| integrations.non_null("All"));
    setting.is_some_and(|on| on.get() == "false")
}

/// The event with the messageId and the timestamp that it was given, where it has none: so Segment's API completes it
/// before a mapping sees it.
fn completed<'a>(event: &Event<'a>, message_id: &MessageId, timestamp: Timestamp) -> Cow<'a, str> {
    let mut text = Cow::Borrowed(event.raw());
    let mut add = |name: &str, json: &str| {
        let empty = text[1..].trim_start().starts_with('}');
        let text = text.to_mut();
        text.pop();
        // At the end: of two members of one name the last counts, and a null may stand there.
        text.extend([if empty { "\"" } else { ",\"" }, name, "\":", json, "}"]);
    };
    if event.present("messageId").is_none() {
        add("messageId", &json::quote(message_id.as_str()));
    }
    if event.present("timestamp").is_none() {
        match event.present("originalTimestamp") {
            Some(at) => add("timestamp", at.get()),
            None => add("timestamp", &json::quote(&timestamp.to_millis_string())),
        }
    }
    text
}

/// The id that a mapping gives, else the event's own.
fn message_id(given: Option<&str>, own: &MessageId) -> Result<MessageId, Reason> {
    let Some(given) = given.and_then(json::decode) else { return Ok(own.clone()) };
    MessageId::new(given.into_owned())
        .map_err(|e| Reason::new(Code::InvalidField, format!("message_id: {e}")))
}

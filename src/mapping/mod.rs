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
mod lint;
mod lookup;
mod person;
pub mod trigger;

pub use definition::{Action, Definition, Flaw};

use crate::clock::Timestamp;
use crate::event::json::{self, Object};
use crate::event::{Event, MessageId};
use crate::item::{Disposition, Item, Person};
use crate::reason::{Code, Reason};
pub use directive::HashKey;
use directive::{Field, Source};
use fields::Given;
use std::borrow::Cow;
use std::sync::Arc;
use trigger::Trigger;

/// The name of this destination in an event's `integrations`; `Koala` alone is the browser's, another thing.
const INTEGRATION: &str = "Koala (Cloud)";

/// Segment's own limit for one destination.
pub const MAX_MAPPINGS: usize = 50;

/// What one mapping that takes an event makes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapped<T = Box<Item>> {
    /// The mapping's name.
    pub mapping: Arc<str>,
    /// What it makes of the event.
    pub disposition: Disposition<T>,
}

/// An item of which it is known whose it is, and which can be written.
enum Draft<'a> {
    Person(Box<person::Draft<'a>>),
    Account(Box<Item>),
}

fn item_of(draft: Draft<'_>) -> Box<Item> {
    match draft {
        Draft::Person(draft) => Box::new(draft.item()),
        Draft::Account(item) => item,
    }
}

fn person_of(draft: Draft<'_>) -> Person {
    match draft {
        Draft::Person(draft) => draft.person,
        Draft::Account(item) => item.person,
    }
}

/// The mappings in force, in order, each with a name of its own; and what holds for all of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Mappings {
    list: Vec<Mapping>,
    hash_key: Option<HashKey>,
    consent_categories: Vec<String>,
}

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

    /// Whether it hashes anything.
    pub fn hashes(&self) -> bool {
        self.fields.iter().any(|(_, field)| field.hashes())
    }

    /// What it makes of an event that it takes, finished so.
    fn disposition<T>(
        &self,
        event: &Event,
        message_id: &MessageId,
        timestamp: Timestamp,
        key: Option<&HashKey>,
        finish: fn(Draft<'_>) -> T,
    ) -> Disposition<T> {
        let given = match self.given(event, message_id, timestamp, key) {
            Ok(given) => given,
            Err(fault) => return Disposition::Fail(Reason::new(Code::InvalidField, fault)),
        };
        let kind = self.action.item_kind();
        let draft = match self.action {
            Action::Track | Action::Identify => person::outcome(event, kind, message_id, timestamp, &given),
            Action::AccountTrack | Action::AccountIdentify => {
                account::outcome(event, kind, message_id, timestamp, &given)
            }
        };
        draft.map(finish)
    }

    /// The values of the mapping's own fields.
    fn given(
        &self,
        event: &Event,
        message_id: &MessageId,
        timestamp: Timestamp,
        key: Option<&HashKey>,
    ) -> Result<Given, String> {
        if self.fields.is_empty() {
            return Ok(Given::default());
        }
        let text = completed(event, message_id, timestamp);
        let source = Source::new(&text, key);
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
        Mappings::of(definition::presets())
    }

    fn of(list: Vec<Mapping>) -> Mappings {
        Mappings { list, hash_key: None, consent_categories: Vec::new() }
    }

    /// These.
    ///
    /// # Errors
    /// What is wrong with each of the definitions, and two of one name.
    pub fn new(definitions: &[Definition]) -> Result<Mappings, Vec<Flaw>> {
        definition::mappings(definitions).map(Mappings::of)
    }

    /// The same, with the key for `@hash`.
    pub fn with_hash_key(self, key: HashKey) -> Mappings {
        Mappings { hash_key: Some(key), ..self }
    }

    /// The same, for people who have refused none of these.
    pub fn with_consent(self, categories: Vec<String>) -> Mappings {
        Mappings { consent_categories: categories, ..self }
    }

    /// In order.
    pub fn iter(&self) -> impl Iterator<Item = &Mapping> {
        self.list.iter()
    }

    /// Each mapping, and the condition of its trigger that the event does not meet, if it does not take it.
    pub fn judge(&self, event: &Event) -> impl Iterator<Item = (&Mapping, Option<&str>)> {
        self.iter().map(|mapping| (mapping, mapping.trigger.unmet(event)))
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
        self.map_to(event, message_id, timestamp, item_of)
    }

    /// The same, told only whose each item is: which takes half of the work.
    ///
    /// # Errors
    /// As [`Mappings::map`].
    pub fn persons(
        &self,
        event: &Event,
        message_id: &MessageId,
        timestamp: Timestamp,
    ) -> Result<Vec<Mapped<Person>>, Reason> {
        self.map_to(event, message_id, timestamp, person_of)
    }

    fn map_to<T>(
        &self,
        event: &Event,
        message_id: &MessageId,
        timestamp: Timestamp,
        finish: fn(Draft<'_>) -> T,
    ) -> Result<Vec<Mapped<T>>, Reason> {
        self.allowed(event)?;
        let key = self.hash_key.as_ref();
        let mapped: Vec<Mapped<T>> = self
            .iter()
            .filter(|mapping| mapping.trigger.matches(event))
            .map(|mapping| Mapped {
                mapping: mapping.name.clone(),
                disposition: mapping.disposition(event, message_id, timestamp, key, finish),
            })
            .collect();
        match (mapped.is_empty(), event.kind()) {
            (false, _) => Ok(mapped),
            (true, Some(_)) => Err(Reason::new(Code::NoMapping, "no mapping takes an event like this")),
            (true, None) => Err(Reason::new(Code::NoMapping, "no mapping takes an event without a type")),
        }
    }

    /// What the mapping of that name makes of an event now, if it still takes it; of the empty name the first that
    /// does.
    pub fn map_by(
        &self,
        name: &str,
        event: &Event,
        message_id: &MessageId,
        timestamp: Timestamp,
    ) -> Disposition<Box<Item>> {
        if let Err(reason) = self.allowed(event) {
            return Disposition::Skip(reason);
        }
        let named = |mapping: &&Mapping| name.is_empty() || *mapping.name == *name;
        match self.iter().filter(named).find(|mapping| mapping.trigger.matches(event)) {
            Some(mapping) => {
                mapping.disposition(event, message_id, timestamp, self.hash_key.as_ref(), item_of)
            }
            None => {
                skip(Code::NoMapping, "the mapping that took it when it was stored does not take it any more")
            }
        }
    }

    /// Whether the event itself and the person's consent let it be sent at all.
    fn allowed(&self, event: &Event) -> Result<(), Reason> {
        if turned_off(event) {
            let text = "the event's integrations turn Koala (Cloud) off";
            return Err(Reason::new(Code::IntegrationsOff, text));
        }
        match refused(event, &self.consent_categories) {
            Some(category) => {
                Err(Reason::new(Code::NoConsent, format!("the person refuses the category {category:?}")))
            }
            None => Ok(()),
        }
    }
}

fn skip<T>(code: Code, text: &str) -> Disposition<T> {
    Disposition::Skip(Reason::new(code, text))
}

/// Only `false` turns a destination off; its own name goes before `All`.
fn turned_off(event: &Event) -> bool {
    let Some(integrations) = event.get("integrations").and_then(Object::of) else { return false };
    let setting = integrations.non_null(INTEGRATION).or_else(|| integrations.non_null("All"));
    setting.is_some_and(|on| on.get() == "false")
}

/// The first of the categories that the person has refused: Segment notes it in `context.consent`.
fn refused<'a>(event: &Event, categories: &'a [String]) -> Option<&'a str> {
    if categories.is_empty() {
        return None;
    }
    let context = event.get("context").and_then(Object::of)?;
    let consent = context.get("consent").and_then(Object::of)?;
    let preferences = consent.get("categoryPreferences").and_then(Object::of)?;
    let refuses = |category: &&String| preferences.get(category).is_some_and(|given| given.get() == "false");
    categories.iter().find(refuses).map(String::as_str)
}

/// Whether the event's `integrations` turn off `Koala`, which is the browser's destination: nothing is turned off here,
/// and its author may have meant otherwise.
pub fn names_the_browsers(event: &Event) -> bool {
    let Some(integrations) = event.get("integrations").and_then(Object::of) else { return false };
    integrations.get("Koala").is_some_and(|on| on.get() == "false") && !turned_off(event)
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
    if event.non_blank("messageId").is_none() {
        add("messageId", &json::quote(message_id.as_str()));
    }
    if event.non_blank("timestamp").is_none() {
        match event.non_blank("originalTimestamp") {
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

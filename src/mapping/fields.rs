//! An event's members as a mapping maps them: cleaned (null and "" are dropped), then checked.

use super::datetime;
use crate::clock::Timestamp;
use crate::event::json::{self, Object, Shape};
use crate::event::{Event, Raw};
use crate::item::ItemKind;
use serde_json::value::RawValue;
use std::borrow::Cow;

/// The fields that a mapping's own definitions made of an event; `None`: there is nothing.
#[derive(Default)]
pub struct Given(pub Vec<(&'static str, Option<Box<RawValue>>)>);

impl Given {
    /// The field, if the mapping defines it.
    pub fn get(&self, field: &str) -> Option<Option<Raw<'_>>> {
        self.0.iter().find(|(name, _)| *name == field).map(|(_, value)| value.as_deref().map(Raw::from))
    }
}

/// The mapped fields. Scalars are the JSON text of a string.
pub struct Fields<'a> {
    pub email: Option<Cow<'a, str>>,
    /// There for a track.
    pub event: Option<Cow<'a, str>>,
    /// A track's.
    pub properties: Option<Object<'a>>,
    /// A track's `context.traits`, an identify's own.
    pub traits: Option<Object<'a>>,
    pub sent_at: Cow<'a, str>,
    pub context: Option<Object<'a>>,
    pub device_ip: Option<Cow<'a, str>>,
    /// The mapping's own; `None`: the event's.
    pub message_id: Option<Cow<'a, str>>,
}

impl<'a> Fields<'a> {
    /// The fields: those that are given, and the preset's for the rest; or every fault of the event in one sentence
    /// for a person.
    pub fn read(
        event: &Event<'a>,
        kind: ItemKind,
        timestamp: Timestamp,
        given: &'a Given,
    ) -> Result<Fields<'a>, String> {
        let mut check = Checks::default();
        let object = |check: &mut Checks, field, preset, value| match given.get(field) {
            Some(value) => check.object(field, value),
            None => check.object(preset, value),
        };
        let context = object(&mut check, "context", "context", event.get("context"));
        let unmapped =
            given.get("context").and_then(|_| non_blank(event.get("context"))).and_then(Object::of);
        let own_context = if given.get("context").is_some() { &unmapped } else { &context };
        let in_context = |name| own_context.as_ref().and_then(|c| c.get(name));
        let (name, properties, traits) = if kind.is_identify() {
            (None, None, object(&mut check, "traits", "traits", event.get("traits")))
        } else {
            let name = check.required("event", given.get("event").unwrap_or(event.get("event")));
            let properties = object(&mut check, "properties", "properties", event.get("properties"));
            (name, properties, object(&mut check, "traits", "context.traits", in_context("traits")))
        };
        let own_traits = event.get("traits").and_then(Object::of);
        let email = match (given.get("email"), own_traits.and_then(|t| t.non_null("email"))) {
            (Some(email), _) => check.string("email", email),
            (None, Some(email)) => check.string("traits.email", Some(email)),
            (None, None) => check.string("email", event.get("email")),
        };
        let sent_at = match given.get("sent_at") {
            Some(value) => check.required("sent_at", value).map(|_| check.date_time("sent_at", value)),
            None => Some(check.sent_at(event, timestamp)),
        };
        let device_ip = match given.get("device_ip") {
            Some(ip) => check.string("device_ip", ip),
            None => check.string("context.ip", in_context("ip")),
        };
        let message_id = given.get("message_id").and_then(|id| check.required("message_id", id));
        match (sent_at, check.faults.is_empty()) {
            (Some(sent_at), true) => {
                Ok(Fields { email, event: name, properties, traits, sent_at, context, device_ip, message_id })
            }
            _ => Err(check.faults.join("; ")),
        }
    }
}

/// Collects what is wrong; a faulty field reads as missing, and the event is given up in the end.
#[derive(Default)]
pub struct Checks {
    pub faults: Vec<String>,
}

impl Checks {
    pub fn object<'a>(&mut self, name: &str, value: Option<Raw<'a>>) -> Option<Object<'a>> {
        let value = non_blank(value)?;
        let object = Object::of(value);
        if object.is_none() {
            self.faults.push(format!("{name} must be an object but is {}", Shape::of(value)));
        }
        object
    }

    pub fn string<'a>(&mut self, name: &str, value: Option<Raw<'a>>) -> Option<Cow<'a, str>> {
        let value = non_blank(value)?;
        let string = json::as_string(value);
        if string.is_none() {
            self.faults.push(format!("{name} must be a string but is {}", Shape::of(value)));
        }
        string
    }

    pub fn required<'a>(&mut self, name: &str, value: Option<Raw<'a>>) -> Option<Cow<'a, str>> {
        if non_blank(value).is_none() {
            self.faults.push(format!("{name} is missing"));
        }
        self.string(name, value)
    }

    /// When the event happened, by its own word or by the time that it was given.
    pub fn sent_at<'a>(&mut self, event: &Event<'a>, timestamp: Timestamp) -> Cow<'a, str> {
        match ["timestamp", "originalTimestamp"].iter().find_map(|at| Some((at, event.non_blank(at)?))) {
            Some((at, value)) => self.date_time(at, Some(value)),
            None => Cow::Owned(json::quote(&timestamp.to_millis_string())),
        }
    }

    pub fn date_time<'a>(&mut self, name: &str, value: Option<Raw<'a>>) -> Cow<'a, str> {
        let string = value.and_then(json::as_string).unwrap_or_default();
        if !json::decode(&string).is_some_and(|text| datetime::is_valid(&text)) {
            self.faults.push(format!("{name} must be a date and time such as 2026-01-02T03:04:05Z"));
        }
        string
    }
}

pub fn non_blank(value: Option<Raw<'_>>) -> Option<Raw<'_>> {
    value.filter(|v| !matches!(v.get(), "null" | "\"\""))
}

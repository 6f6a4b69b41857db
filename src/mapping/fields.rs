//! An event's members as a preset maps them: cleaned (null and "" are dropped), then checked.

use super::datetime;
use crate::clock::Timestamp;
use crate::event::Event;
use crate::event::json::{self, Object, Shape};
use crate::item::ItemKind;
use serde_json::value::RawValue;
use std::borrow::Cow;

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
}

impl<'a> Fields<'a> {
    /// The fields, or every fault of the event in one sentence for a person.
    pub fn read(event: &Event<'a>, kind: ItemKind, timestamp: Timestamp) -> Result<Fields<'a>, String> {
        let mut check = Checks::default();
        let context = check.object("context", event.get("context"));
        let in_context = |name| context.as_ref().and_then(|c| c.get(name));
        let (name, properties, traits) = match kind {
            ItemKind::Track => (
                check.required("event", event.get("event")),
                check.object("properties", event.get("properties")),
                check.object("context.traits", in_context("traits")),
            ),
            ItemKind::Identify => (None, None, check.object("traits", event.get("traits"))),
        };
        let own_traits = event.get("traits").and_then(Object::of);
        let email = match own_traits.and_then(|t| t.non_null("email")) {
            Some(email) => check.string("traits.email", Some(email)),
            None => check.string("email", event.get("email")),
        };
        let sent_at =
            match ["timestamp", "originalTimestamp"].iter().find_map(|at| Some((at, event.present(at)?))) {
                Some((at, value)) => check.date_time(at, value),
                None => Cow::Owned(json::quote(&timestamp.to_millis_string())),
            };
        let device_ip = check.string("context.ip", in_context("ip"));
        match check.faults.is_empty() {
            true => Ok(Fields { email, event: name, properties, traits, sent_at, context, device_ip }),
            false => Err(check.faults.join("; ")),
        }
    }
}

/// Collects what is wrong; a faulty field reads as missing, and the event is given up in the end.
#[derive(Default)]
struct Checks {
    faults: Vec<String>,
}

impl Checks {
    fn object<'a>(&mut self, name: &str, value: Option<&'a RawValue>) -> Option<Object<'a>> {
        let value = present(value)?;
        let object = Object::of(value);
        if object.is_none() {
            self.faults.push(format!("{name} must be an object but is {}", Shape::of(value)));
        }
        object
    }

    fn string<'a>(&mut self, name: &str, value: Option<&'a RawValue>) -> Option<Cow<'a, str>> {
        let value = present(value)?;
        let string = json::as_string(value);
        if string.is_none() {
            self.faults.push(format!("{name} must be a string but is {}", Shape::of(value)));
        }
        string
    }

    fn required<'a>(&mut self, name: &str, value: Option<&'a RawValue>) -> Option<Cow<'a, str>> {
        if present(value).is_none() {
            self.faults.push(format!("{name} is missing"));
        }
        self.string(name, value)
    }

    fn date_time<'a>(&mut self, name: &str, value: &'a RawValue) -> Cow<'a, str> {
        let string = json::as_string(value).unwrap_or_default();
        if !json::decode(&string).is_some_and(|text| datetime::is_valid(&text)) {
            self.faults.push(format!("{name} must be a date and time such as 2026-01-02T03:04:05Z"));
        }
        string
    }
}

fn present(value: Option<&RawValue>) -> Option<&RawValue> {
    value.filter(|v| !matches!(v.get(), "null" | "\"\""))
}

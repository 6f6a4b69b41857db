//! The members of an event as a mapping takes them: cleaned (null and "" count as missing), then type-checked.

use crate::clock::Timestamp;
use crate::event::json::{self, JsonType, Object};
use crate::event::{Event, EventTime, Raw};
use crate::item::ItemKind;
use serde_json::value::RawValue;
use std::borrow::Cow;

/// The fields that a mapping configures, with their values for one event; `None`: no value.
#[derive(Default)]
pub struct Overrides(pub Vec<(&'static str, Option<Box<RawValue>>)>);

impl Overrides {
    /// The field's value, if the mapping configures the field.
    pub fn get(&self, field: &str) -> Option<Option<Raw<'_>>> {
        self.0.iter().find(|(name, _)| *name == field).map(|(_, value)| value.as_deref().map(Raw::from))
    }
}

/// The field names of an action.
pub fn field_names(action: ItemKind) -> &'static [&'static str] {
    match action {
        ItemKind::Track => {
            &["email", "event", "properties", "traits", "sent_at", "context", "device_ip", "message_id"]
        }
        ItemKind::Identify => &["email", "traits", "sent_at", "context", "device_ip", "message_id"],
        ItemKind::AccountTrack => &["domain", "account_id", "event", "properties", "sent_at", "message_id"],
        ItemKind::AccountIdentify => &["domain", "account_id", "group_id", "traits"],
    }
}

/// The fields of an item about a person. Scalars are JSON strings.
pub struct PersonFields<'a> {
    pub email: Option<Cow<'a, str>>,
    /// Always present in a track.
    pub event: Option<Cow<'a, str>>,
    /// Only in a track.
    pub properties: Option<Object<'a>>,
    /// The event's `context.traits` in a track, its `traits` in an identify.
    pub traits: Option<Object<'a>>,
    pub sent_at: Cow<'a, str>,
    pub context: Option<Object<'a>>,
    pub device_ip: Option<Cow<'a, str>>,
    /// Present only if the mapping configures it.
    pub message_id: Option<Cow<'a, str>>,
}

impl<'a> PersonFields<'a> {
    /// Reads the fields: the overrides, and the preset's members of the event for the rest.
    ///
    /// # Errors
    /// All faults of the event in one sentence.
    pub fn read(
        event: &Event<'a>,
        kind: ItemKind,
        timestamp: Timestamp,
        overrides: &'a Overrides,
    ) -> Result<PersonFields<'a>, String> {
        let mut checks = FieldChecks::default();
        let object = |checks: &mut FieldChecks, field, preset, value| match overrides.get(field) {
            Some(value) => checks.object(field, value),
            None => checks.object(preset, value),
        };
        let context = object(&mut checks, "context", "context", event.get("context"));
        let unmapped =
            overrides.get("context").and_then(|_| non_blank(event.get("context"))).and_then(Object::from_raw);
        let own_context = if overrides.get("context").is_some() { &unmapped } else { &context };
        let in_context = |name| own_context.as_ref().and_then(|c| c.get(name));
        let (name, properties, traits) = if kind.is_identify() {
            (None, None, object(&mut checks, "traits", "traits", event.get("traits")))
        } else {
            let name = checks.required("event", overrides.get("event").unwrap_or(event.get("event")));
            let properties = object(&mut checks, "properties", "properties", event.get("properties"));
            (name, properties, object(&mut checks, "traits", "context.traits", in_context("traits")))
        };
        // As in Segment's code, traits that are "", 0 or false are what is found at traits.email.
        let found = event.get("traits").and_then(|traits| match json::is_truthy(traits.get()) {
            true => Object::from_raw(traits)?.get("email"),
            false => Some(traits),
        });
        let email = match (overrides.get("email"), found.filter(|email| email.get() != "null")) {
            (Some(email), _) => checks.string("email", email),
            (None, Some(email)) => checks.string("traits.email", Some(email)),
            (None, None) => checks.string("email", event.get("email")),
        };
        let sent_at = match overrides.get("sent_at") {
            Some(value) => checks.required_time("sent_at", value),
            None => checks.sent_at(event, timestamp),
        };
        let device_ip = match overrides.get("device_ip") {
            Some(ip) => checks.string("device_ip", ip),
            None => checks.string("context.ip", in_context("ip")),
        };
        let message_id = overrides.get("message_id").and_then(|id| checks.required("message_id", id));
        match checks.faults.is_empty() {
            true => Ok(PersonFields {
                email,
                event: name,
                properties,
                traits,
                sent_at,
                context,
                device_ip,
                message_id,
            }),
            false => Err(checks.faults.join("; ")),
        }
    }
}

/// Checks the types of fields and collects all faults. A faulty field reads as missing until the faults are reported.
#[derive(Default)]
pub struct FieldChecks {
    pub faults: Vec<String>,
}

impl FieldChecks {
    pub fn object<'a>(&mut self, name: &str, value: Option<Raw<'a>>) -> Option<Object<'a>> {
        self.typed(name, value, "an object", Object::from_raw)
    }

    pub fn string<'a>(&mut self, name: &str, value: Option<Raw<'a>>) -> Option<Cow<'a, str>> {
        self.typed(name, value, "a string", json::coerce_to_string)
    }

    fn typed<'a, T>(
        &mut self,
        name: &str,
        value: Option<Raw<'a>>,
        wanted: &str,
        read: impl Fn(Raw<'a>) -> Option<T>,
    ) -> Option<T> {
        let value = non_blank(value)?;
        let typed = read(value);
        if typed.is_none() {
            self.faults.push(format!("{name} must be {wanted} but is {}", JsonType::of(value.get())));
        }
        typed
    }

    pub fn required<'a>(&mut self, name: &str, value: Option<Raw<'a>>) -> Option<Cow<'a, str>> {
        if non_blank(value).is_none() {
            self.faults.push(format!("{name} is missing"));
        }
        self.string(name, value)
    }

    /// The time of the event: its own, else `timestamp`.
    pub fn sent_at<'a>(&mut self, event: &Event<'a>, timestamp: Timestamp) -> Cow<'a, str> {
        match EventTime::of(event) {
            Ok(Some(time)) => time.json,
            Ok(None) => Cow::Owned(json::quote(&timestamp.to_millis_string())),
            Err(fault) => self.fault(fault),
        }
    }

    /// The time that a mapping's field gives.
    pub fn required_time<'a>(&mut self, name: &str, value: Option<Raw<'a>>) -> Cow<'a, str> {
        match non_blank(value).map(|value| EventTime::read(name, value)) {
            Some(Ok(time)) => time.json,
            Some(Err(fault)) => self.fault(fault),
            None => self.fault(format!("{name} is missing")),
        }
    }

    fn fault<T: Default>(&mut self, fault: String) -> T {
        self.faults.push(fault);
        T::default()
    }
}

pub fn non_blank(value: Option<Raw<'_>>) -> Option<Raw<'_>> {
    value.filter(|v| !matches!(v.get(), "null" | "\"\""))
}

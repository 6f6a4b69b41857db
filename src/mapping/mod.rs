//! Mappings from an event to items: a trigger selects events, an action says which kind of item to make, and fields
//! give the item's values. Without configured mappings, the presets "Track Calls" and "Identify Calls" of Segment's own
//! destination apply.
//!
//! The order is Segment's: map, clean, check, skip. An invalid event is therefore reported as invalid even if it would
//! be skipped. The differences from Segment are on purpose: values keep their spelling, an incomplete event is completed
//! rather than refused, the event's `integrations` are obeyed here, a null context counts as missing, `context.source`
//! names this agent, and RudderStack's `ko_profile_id` is used if profile_id is absent.

mod account;
mod definition;
pub mod directive;
mod fields;
mod javascript;
mod mappings;
mod person;
mod shown_name;
pub mod trigger;

pub use definition::{Definition, DefinitionError};
pub use directive::HashKey;
pub use mappings::{MAX_MAPPINGS, Mapped, Mappings, turns_off_only_browser};
pub use shown_name::shown_name;

use crate::clock::Timestamp;
use crate::event::json::{self, JsonType};
use crate::event::{Event, EventTime, MessageId, Raw};
use crate::item::{Disposition, Item, ItemKind, Person};
use crate::reason::{Code, Reason};
use directive::{Evaluator, Field};
use fields::Overrides;
use person::PersonDraft;
use std::borrow::Cow;
use std::sync::Arc;
use trigger::Trigger;

/// One mapping, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Mapping {
    name: Arc<str>,
    trigger: Trigger,
    action: ItemKind,
    /// The configured fields by name; all others are the preset's.
    fields: Vec<(&'static str, Field)>,
}

impl Mapping {
    /// The name, unique among the mappings.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The condition on events.
    pub fn trigger(&self) -> &Trigger {
        &self.trigger
    }

    /// The kind of item that the mapping makes.
    pub fn action(&self) -> ItemKind {
        self.action
    }

    /// Whether a field uses `@hash`, so that a key is needed.
    pub fn hashes(&self) -> bool {
        self.fields.iter().any(|(_, field)| field.hashes())
    }

    /// The mapping's decision about an event that meets its trigger; `finish` makes the result of the draft.
    fn disposition<T>(
        &self,
        event: &Event,
        message_id: &MessageId,
        timestamp: Timestamp,
        key: Option<&HashKey>,
        finish: fn(DraftItem<'_>) -> T,
    ) -> Disposition<T> {
        let overrides = match self.overrides(event, message_id, timestamp, key) {
            Ok(overrides) => overrides,
            Err(fault) => return Disposition::Fail(Reason::new(Code::InvalidField, fault)),
        };
        let draft = match self.action {
            ItemKind::Track | ItemKind::Identify => {
                person::draft(event, self, message_id, timestamp, &overrides)
            }
            ItemKind::AccountTrack | ItemKind::AccountIdentify => {
                account::draft(event, self.action, message_id, timestamp, &overrides)
            }
        };
        draft.map(finish)
    }

    /// The values of the configured fields.
    fn overrides(
        &self,
        event: &Event,
        message_id: &MessageId,
        timestamp: Timestamp,
        key: Option<&HashKey>,
    ) -> Result<Overrides, String> {
        if self.fields.is_empty() {
            return Ok(Overrides::default());
        }
        let event = completed(event, message_id, timestamp);
        let evaluator = Evaluator::new(&event, key);
        let evaluate = |(name, field): &(&'static str, Field)| {
            let value = field.evaluate(&evaluator).map_err(|fault| format!("{name}: {fault}"))?;
            let value = value
                .map(|json| json::to_raw_value(&json))
                .transpose()
                .map_err(|e| format!("{name}: {e}"))?;
            Ok((*name, value))
        };
        Ok(Overrides(self.fields.iter().map(evaluate).collect::<Result<_, String>>()?))
    }

    /// The mistakes that can be seen without an event, a clause each: a trigger that no event meets, a field with which
    /// no request can be made.
    pub fn lint(&self) -> Vec<String> {
        let never = self.trigger.contradiction().map(|why| format!("it never matches: {why}"));
        never.into_iter().chain(self.fields.iter().filter_map(|(name, _)| self.lint_field(name))).collect()
    }

    fn lint_field(&self, name: &str) -> Option<String> {
        let is_blank = self.is_always_blank(name);
        let is_account = matches!(self.action, ItemKind::AccountTrack | ItemKind::AccountIdentify);
        match name {
            "event" | "sent_at" | "message_id" if is_blank => {
                let action = self.action.action_name();
                Some(format!("its field {name} is always empty, and {action} needs it"))
            }
            "message_id" => {
                self.literal(name)?;
                let text =
                    "its field message_id is the same for every event: Koala would take all of them for one";
                Some(text.to_owned())
            }
            "sent_at" => {
                let time = EventTime::read(name, Raw::of_valid(self.literal(name)?));
                time.is_err().then(|| "its field sent_at is not a date and time".to_owned())
            }
            "properties" | "traits" | "context" if !is_blank => {
                let kind = JsonType::of(self.literal(name)?);
                (kind != JsonType::Object)
                    .then(|| format!("its field {name} must be an object, and is {kind}"))
            }
            "domain" if is_account && is_blank => {
                let has_id = self.fields.iter().any(|(field, _)| *field == "account_id")
                    && !self.is_always_blank("account_id");
                (!has_id).then(|| "neither domain nor account_id says which account it is".to_owned())
            }
            _ => None,
        }
    }

    /// The value of a field that is configured as a literal.
    fn literal(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| *field == name).and_then(|(_, field)| field.literal())
    }

    fn is_always_blank(&self, name: &str) -> bool {
        self.literal(name).is_some_and(|json| matches!(json, "null" | "\"\""))
    }
}

/// An item whose person is known but whose body is not written yet: at intake only the person is needed.
enum DraftItem<'a> {
    Person(Box<PersonDraft<'a>>),
    Account(Box<Item>),
}

impl DraftItem<'_> {
    fn into_item(self) -> Box<Item> {
        match self {
            DraftItem::Person(draft) => Box::new(draft.into_item()),
            DraftItem::Account(item) => item,
        }
    }

    fn into_person(self) -> Person {
        match self {
            DraftItem::Person(draft) => draft.person,
            DraftItem::Account(item) => item.person,
        }
    }
}

/// The event with a messageId and a timestamp where it has none, as Segment's API completes it before a mapping, and with
/// its time in RFC 3339.
fn completed<'a>(event: &Event<'a>, message_id: &MessageId, timestamp: Timestamp) -> Cow<'a, str> {
    let mut completed = Cow::Borrowed(event.raw());
    let mut add = |name: &str, json: &str| {
        let is_empty = completed[1..].trim_start().starts_with('}');
        let text = completed.to_mut();
        text.pop();
        // Added at the end: the last of two members of one name wins, and the event may have the member as null.
        text.extend([if is_empty { "\"" } else { ",\"" }, name, "\":", json, "}"]);
    };
    if event.non_blank("messageId").is_none() {
        add("messageId", &json::quote(message_id.as_str()));
    }
    match (EventTime::of(event), event.non_blank("timestamp")) {
        (Ok(Some(EventTime { note: None, .. })), Some(_)) | (Err(_), Some(_)) => {}
        (Ok(Some(time)), _) => add("timestamp", &time.json),
        (Ok(None), _) => add("timestamp", &json::quote(&timestamp.to_millis_string())),
        // The fault is reported where a field takes the time.
        (Err(_), None) => event.get("originalTimestamp").iter().for_each(|at| add("timestamp", at.get())),
    }
    completed
}

/// The messageId that a mapping's field gives, else the event's own.
fn message_id(overriding: Option<&str>, own: &MessageId) -> Result<MessageId, Reason> {
    let Some(id) = overriding.and_then(json::decode) else { return Ok(own.clone()) };
    MessageId::new(id.into_owned()).map_err(|e| Reason::new(Code::InvalidField, format!("message_id: {e}")))
}

//! From event to items: the two presets of Segment's own destination, "Track Calls" and "Identify Calls".
//!
//! Segment's order: map, clean, check, skip. An event that is wrong is told so even where it would be skipped.
//! Where this departs from Segment, it is on purpose: values keep the text they were written in, an event is
//! completed rather than refused, its `integrations` are obeyed here, a null context is none, `context.source`
//! names this agent, and RudderStack's `ko_profile_id` serves where profile_id is absent.

mod datetime;
mod fields;

use crate::clock::Timestamp;
use crate::event::json::{self, Object, Writer};
use crate::event::{Event, MessageId};
use crate::item::{Item, ItemKind, Person};
use crate::reason::{Code, Reason};
use fields::Fields;
use serde_json::value::RawValue;

/// The name of this destination in an event's `integrations`; `Koala` alone is the browser's, another thing.
const INTEGRATION: &str = "Koala (Cloud)";

/// The library of the browser, whose tracks the pixel beside it has sent already.
const BROWSER_LIBRARY: &str = "analytics.js";

/// What an identify's `context.source` says.
const SOURCE: &str = "\"koala-agent\"";

/// RudderStack's spelling of profile_id.
const KO_PROFILE_ID: &str = "ko_profile_id";

/// What becomes of an event under the mappings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// This item is sent.
    Send(Box<Item>),
    /// There is nothing to send, and nothing wrong.
    Skip(Reason),
    /// No request can be made of it: code `invalid_field`, every fault in the text.
    Invalid(Reason),
}

/// What is sent for `event`, under its own messageId or the one it was given; `timestamp` is when it happened if
/// neither its `timestamp` nor its `originalTimestamp` says so.
pub fn map(event: &Event, message_id: &MessageId, timestamp: Timestamp) -> Outcome {
    if turned_off(event) {
        return skip(Code::IntegrationsOff, "the event's integrations turn Koala (Cloud) off");
    }
    let kind = match event.kind().as_deref() {
        Some("track") => ItemKind::Track,
        Some("identify") => ItemKind::Identify,
        Some(_) => return skip(Code::NoMapping, "no mapping takes events of this type"),
        None => return skip(Code::NoMapping, "no mapping takes an event without a type"),
    };
    let fields = match Fields::read(event, kind, timestamp) {
        Ok(fields) => fields,
        Err(faults) => return Outcome::Invalid(Reason::new(Code::InvalidField, faults)),
    };
    if kind == ItemKind::Track && from_browser(&fields) {
        return skip(
            Code::BrowserLibrary,
            "analytics.js made the event, so the browser has sent it to Koala",
        );
    }
    match item(kind, fields, message_id) {
        Some(item) => Outcome::Send(Box::new(item)),
        None => skip(Code::NoIdentity, "neither a profile_id nor an email says whose event it is"),
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

fn from_browser(fields: &Fields) -> bool {
    let library = fields.context.as_ref().and_then(|c| c.get("library")).and_then(Object::of);
    let name = library.and_then(|l| l.get("name")).and_then(|name| json::decode(name.get()));
    name.as_deref() == Some(BROWSER_LIBRARY)
}

/// The item, unless nobody can be told from it.
fn item(kind: ItemKind, fields: Fields, message_id: &MessageId) -> Option<Item> {
    let Fields { email, event, properties, traits, sent_at, context, device_ip } = fields;
    let about = match kind {
        ItemKind::Track => properties.as_ref(),
        ItemKind::Identify => traits.as_ref(),
    };
    let own_profile = about.and_then(|a| a.get("profile_id"));
    let lent_profile = about.filter(|_| own_profile.is_none()).and_then(|a| a.get(KO_PROFILE_ID));
    let profile_id = own_profile.or(lent_profile).map(|id| json::compact(id.get()));

    // Null falls through like absence, but the last of a chain counts even when it is null.
    let property = properties.as_ref().and_then(|p| p.non_null("email"));
    let inner_email = property.or_else(|| traits.as_ref()?.get("email")).map(RawValue::get);
    let top_email = email.as_deref().or(inner_email).map(json::compact);
    let ip =
        about.and_then(|a| a.non_null("ip")).map(RawValue::get).or(device_ip.as_deref()).map(json::compact);
    let person = Person::of(profile_id.as_deref(), top_email.as_deref())?;

    let sent = |object: &Object, of: ItemKind| match lent_profile {
        Some(_) if of == kind => object.without(KO_PROFILE_ID),
        _ => object.compact(),
    };
    let properties = properties.as_ref().map(|p| sent(p, ItemKind::Track));
    let traits = traits.as_ref().map(|t| sent(t, ItemKind::Identify));

    let mut body = Writer::new();
    body.member("type", &json::quote(kind.as_str()));
    body.optional("email", email.as_deref());
    match kind {
        ItemKind::Track => {
            body.optional("event", event.as_deref());
            body.optional("properties", properties.as_deref());
            body.member("sent_at", &sent_at);
            body.optional("context", context.map(|c| c.compact()).as_deref());
            body.optional("traits", traits.as_deref());
        }
        ItemKind::Identify => {
            body.optional("traits", traits.as_deref());
            body.member("sent_at", &sent_at);
            body.member("context", &context.unwrap_or_default().with("source", SOURCE));
        }
    }
    body.optional("device_ip", device_ip.as_deref());
    body.member("message_id", &json::quote(message_id.as_str()));
    Some(Item {
        kind,
        person,
        profile_id,
        email: top_email,
        ip,
        traits: traits.unwrap_or_else(|| "{}".into()),
        body: body.finish(),
        message_id: message_id.clone(),
    })
}

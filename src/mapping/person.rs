//! Items about a person: the two actions of Segment's own destination.

use super::fields::{Overrides, PersonFields};
use super::{DraftItem, Mapping};
use crate::clock::Timestamp;
use crate::event::json::{self, JsonType, Object, ObjectWriter};
use crate::event::{Event, MessageId, Raw};
use crate::item::{Disposition, Identifiers, Item, ItemKind, Person};
use crate::reason::{Code, Reason};
use std::borrow::Cow;

/// The browser's library. Koala's pixel on the same page has already sent the tracks that it makes.
const BROWSER_LIBRARY: &str = "analytics.js";

/// The `context.source` of an identify.
const SOURCE: &str = "\"koala-agent\"";

/// RudderStack's name for profile_id.
const KO_PROFILE_ID: &str = "ko_profile_id";

/// Drafts the item, or decides to skip or to fail the event.
pub(super) fn draft<'a>(
    event: &Event<'a>,
    mapping: &Mapping,
    own_id: &MessageId,
    timestamp: Timestamp,
    overrides: &'a Overrides,
) -> Disposition<DraftItem<'a>> {
    let kind = mapping.action();
    let fields = match PersonFields::read(event, kind, timestamp, overrides) {
        Ok(fields) => fields,
        Err(faults) => return Disposition::Fail(Reason::new(Code::InvalidField, faults)),
    };
    if kind == ItemKind::Track && is_from_browser(&fields) {
        let text = "analytics.js made the event, so the browser has sent it to Koala";
        return Disposition::Skip(Reason::new(Code::BrowserLibrary, text));
    }
    match PersonDraft::new(kind, event.raw().len(), fields, own_id) {
        Ok(Some(draft)) => Disposition::Send(DraftItem::Person(Box::new(draft))),
        Ok(None) => {
            let mut text = "the event has neither a profile_id nor an email".to_owned();
            if let Some((member, place)) = unread_identity(event) {
                let name = mapping.name();
                text = format!(
                    "{member} is in {place}, which {name} does not read; koala-agent-mappings(7) has a mapping that does"
                );
            }
            Disposition::Skip(Reason::new(Code::NoIdentity, text))
        }
        Err(reason) => Disposition::Fail(reason),
    }
}

/// A member that would say who the person is, and where in the event it is, if a mapping that found nobody read it there.
fn unread_identity(event: &Event) -> Option<(&'static str, &'static str)> {
    let context = event.get("context").and_then(Object::from_raw);
    let places = [
        ("context.traits", context.and_then(|context| context.get("traits"))),
        ("traits", event.get("traits")),
        ("properties", event.get("properties")),
        ("the event itself", Some(Raw::of_valid(event.raw()))),
    ];
    places.into_iter().find_map(|(place, object)| {
        let object = object.and_then(Object::from_raw)?;
        let is_there = |name: &&str| object.get(name).is_some_and(|id| json::is_truthy(id.get()));
        ["email", "profile_id", KO_PROFILE_ID].into_iter().find(is_there).map(|name| (name, place))
    })
}

fn is_from_browser(fields: &PersonFields) -> bool {
    let library = fields.context.as_ref().and_then(|c| c.get("library")).and_then(Object::from_raw);
    let name = library.and_then(|l| l.get("name")).and_then(|name| json::decode(name.get()));
    name.as_deref() == Some(BROWSER_LIBRARY)
}

/// An item about a person, before its body is written.
pub(super) struct PersonDraft<'a> {
    pub(super) person: Person,
    kind: ItemKind,
    /// An estimate of the body's size in bytes.
    estimated_size: usize,
    fields: PersonFields<'a>,
    profile_id: Option<Cow<'a, str>>,
    email: Option<Cow<'a, str>>,
    ip: Option<Cow<'a, str>>,
    /// Where the profile_id came under RudderStack's name, which is removed from the item.
    ko_profile_id: Option<KoProfileId>,
    message_id: MessageId,
}

#[derive(Clone, Copy, PartialEq)]
enum KoProfileId {
    /// In the properties of a track, in the traits of an identify.
    InAttributes,
    InContextTraits,
}

impl<'a> PersonDraft<'a> {
    /// Drafts the item; `None` if the fields identify no person.
    fn new(
        kind: ItemKind,
        estimated_size: usize,
        fields: PersonFields<'a>,
        own_id: &MessageId,
    ) -> Result<Option<PersonDraft<'a>>, Reason> {
        let PersonFields { properties, traits, .. } = &fields;
        let attributes = if kind.is_identify() { traits.as_ref() } else { properties.as_ref() };
        let profile_id = attributes.and_then(|a| a.get("profile_id"));
        let context_traits = || fields.context.as_ref()?.get("traits").and_then(Object::from_raw);
        let ko_profile_id = match profile_id {
            Some(_) => None,
            None => attributes
                .and_then(|a| Some((KoProfileId::InAttributes, a.get(KO_PROFILE_ID)?)))
                .or_else(|| Some((KoProfileId::InContextTraits, context_traits()?.get(KO_PROFILE_ID)?))),
        };
        let profile_id = profile_id.or(ko_profile_id.map(|(_, id)| id)).map(compact);

        // A null falls through to the next source, except in the last one, traits.email, where it counts.
        let property = properties.as_ref().and_then(|p| p.non_null("email"));
        let fallback_email = || property.or_else(|| traits.as_ref()?.get("email")).map(compact);
        let email = fields.email.clone().or_else(fallback_email);
        let ip = attributes.and_then(|a| a.non_null("ip")).map(compact).or_else(|| fields.device_ip.clone());
        let Some(person) = Person::of(profile_id.as_deref(), email.as_deref()) else { return Ok(None) };
        let message_id = super::message_id(fields.message_id.as_deref(), own_id)?;
        Ok(Some(PersonDraft {
            person,
            kind,
            estimated_size,
            fields,
            profile_id,
            email,
            ip,
            ko_profile_id: ko_profile_id.map(|(place, _)| place),
            message_id,
        }))
    }

    /// Writes the item.
    pub(super) fn into_item(self) -> Item {
        let PersonFields { email, event, properties, traits, sent_at, context, device_ip, message_id: _ } =
            self.fields;
        let strip =
            |object: Object<'a>, is_wanted| if is_wanted { object.without(KO_PROFILE_ID) } else { object };
        let is_in_attributes = self.ko_profile_id == Some(KoProfileId::InAttributes);
        let is_in_context = self.ko_profile_id == Some(KoProfileId::InContextTraits);
        let properties = properties.map(|p| strip(p, is_in_attributes));
        // The traits of a track are those of its context.
        let is_in_traits = if self.kind.is_identify() { is_in_attributes } else { is_in_context };
        let traits = traits.map(|t| strip(t, is_in_traits).compact());
        let context_traits = context.as_ref().filter(|_| is_in_context).and_then(|c| c.get("traits"));
        let context_traits = context_traits.and_then(Object::from_raw).map(|t| strip(t, true).compact());
        let context = match &context_traits {
            Some(traits) => context.map(|c| c.with_replaced("traits", Raw::of_valid(traits))),
            None => context,
        };

        let mut body = ObjectWriter::with_capacity(self.estimated_size);
        body.member("type", &json::quote(self.kind.wire_type()));
        body.optional_member("email", email.as_deref());
        match self.kind {
            ItemKind::Identify => {
                traits.iter().for_each(|traits| body.compact_member("traits", traits));
                body.member("sent_at", &sent_at);
                body.compact_member("context", &context.unwrap_or_default().with("source", SOURCE));
            }
            _ => {
                body.optional_member("event", event.as_deref());
                properties.iter().for_each(|properties| body.object_member("properties", properties));
                body.member("sent_at", &sent_at);
                context.iter().for_each(|context| body.object_member("context", context));
                traits.iter().for_each(|traits| body.compact_member("traits", traits));
            }
        }
        body.optional_member("device_ip", device_ip.as_deref());
        body.member("message_id", &json::quote(self.message_id.as_str()));
        let identifiers = Identifiers {
            profile_id: self.profile_id.map(Cow::into_owned),
            email: self.email.map(Cow::into_owned),
            ip: self.ip.map(Cow::into_owned),
            ..Identifiers::default()
        };
        let traits = Some(traits.unwrap_or_else(|| "{}".into()));
        Item {
            kind: self.kind,
            person: self.person,
            identifiers,
            traits,
            body: body.finish(),
            message_id: self.message_id,
        }
    }
}

/// The value without insignificant white space.
fn compact(value: Raw<'_>) -> Cow<'_, str> {
    match JsonType::of(value.get()) {
        JsonType::Array | JsonType::Object => Cow::Owned(json::compact(value.get())),
        _ => Cow::Borrowed(value.get()),
    }
}

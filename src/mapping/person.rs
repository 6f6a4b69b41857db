//! What is told of a person: Segment's own two actions of this destination.

use super::fields::{Fields, Given};
use super::skip;
use crate::clock::Timestamp;
use crate::event::json::{self, Object, Shape, Writer};
use crate::event::{Event, MessageId, Raw};
use crate::item::{Disposition, Item, ItemKind, Names, Person};
use crate::reason::{Code, Reason};
use std::borrow::Cow;

/// The library of the browser, whose tracks the pixel beside it has sent already.
const BROWSER_LIBRARY: &str = "analytics.js";

/// What an identify's `context.source` says.
const SOURCE: &str = "\"koala-agent\"";

/// RudderStack's spelling of profile_id.
const KO_PROFILE_ID: &str = "ko_profile_id";

pub(super) fn outcome<'a>(
    event: &Event<'a>,
    kind: ItemKind,
    own_id: &MessageId,
    timestamp: Timestamp,
    given: &'a Given,
) -> Disposition<super::Draft<'a>> {
    let fields = match Fields::read(event, kind, timestamp, given) {
        Ok(fields) => fields,
        Err(faults) => return Disposition::Fail(Reason::new(Code::InvalidField, faults)),
    };
    if kind == ItemKind::Track && from_browser(&fields) {
        return skip(
            Code::BrowserLibrary,
            "analytics.js made the event, so the browser has sent it to Koala",
        );
    }
    match Draft::of(kind, event.raw().len(), fields, own_id) {
        Ok(Some(draft)) => Disposition::Send(super::Draft::Person(Box::new(draft))),
        Ok(None) => skip(Code::NoIdentity, "neither a profile_id nor an email says whose event it is"),
        Err(reason) => Disposition::Fail(reason),
    }
}

fn from_browser(fields: &Fields) -> bool {
    let library = fields.context.as_ref().and_then(|c| c.get("library")).and_then(Object::of);
    let name = library.and_then(|l| l.get("name")).and_then(|name| json::decode(name.get()));
    name.as_deref() == Some(BROWSER_LIBRARY)
}

/// An item that is about to be written.
pub(super) struct Draft<'a> {
    pub(super) person: Person,
    kind: ItemKind,
    /// About so many bytes.
    size: usize,
    fields: Fields<'a>,
    profile_id: Option<Cow<'a, str>>,
    email: Option<Cow<'a, str>>,
    ip: Option<Cow<'a, str>>,
    /// The profile_id came under RudderStack's name, which is left out of what is sent inside.
    is_lent: bool,
    message_id: MessageId,
}

impl<'a> Draft<'a> {
    /// The draft, unless nobody can be told from the fields.
    fn of(
        kind: ItemKind,
        size: usize,
        fields: Fields<'a>,
        own_id: &MessageId,
    ) -> Result<Option<Draft<'a>>, Reason> {
        let Fields { properties, traits, .. } = &fields;
        let about = if kind.is_identify() { traits.as_ref() } else { properties.as_ref() };
        let own_profile = about.and_then(|a| a.get("profile_id"));
        let lent_profile = about.filter(|_| own_profile.is_none()).and_then(|a| a.get(KO_PROFILE_ID));
        let profile_id = own_profile.or(lent_profile).map(compact);

        // Null falls through like absence, but the last of a chain counts even when it is null.
        let property = properties.as_ref().and_then(|p| p.non_null("email"));
        let inner_email = || property.or_else(|| traits.as_ref()?.get("email")).map(compact);
        let email = fields.email.clone().or_else(inner_email);
        let ip = about.and_then(|a| a.non_null("ip")).map(compact).or_else(|| fields.device_ip.clone());
        let Some(person) = Person::of(profile_id.as_deref(), email.as_deref()) else { return Ok(None) };
        let message_id = super::message_id(fields.message_id.as_deref(), own_id)?;
        let is_lent = lent_profile.is_some();
        Ok(Some(Draft { person, kind, size, fields, profile_id, email, ip, is_lent, message_id }))
    }

    pub(super) fn item(self) -> Item {
        let Draft { person, kind, size, fields, profile_id, email: top_email, ip, is_lent, message_id } =
            self;
        let Fields { email, event, properties, traits, sent_at, context, device_ip, message_id: _ } = fields;
        let sent = |object: Object<'a>, of: ItemKind| match is_lent && of == kind {
            true => object.without(KO_PROFILE_ID),
            false => object,
        };
        let properties = properties.map(|p| sent(p, ItemKind::Track));
        let traits = traits.map(|t| sent(t, ItemKind::Identify).compact());

        let mut body = Writer::with_capacity(size);
        body.member("type", &json::quote(kind.as_str()));
        body.optional("email", email.as_deref());
        match kind {
            ItemKind::Identify => {
                traits.iter().for_each(|traits| body.compacted("traits", traits));
                body.member("sent_at", &sent_at);
                body.compacted("context", &context.unwrap_or_default().with("source", SOURCE));
            }
            _ => {
                body.optional("event", event.as_deref());
                properties.iter().for_each(|properties| body.object("properties", properties));
                body.member("sent_at", &sent_at);
                context.iter().for_each(|context| body.object("context", context));
                traits.iter().for_each(|traits| body.compacted("traits", traits));
            }
        }
        body.optional("device_ip", device_ip.as_deref());
        body.member("message_id", &json::quote(message_id.as_str()));
        let names = Names {
            profile_id: profile_id.map(Cow::into_owned),
            email: top_email.map(Cow::into_owned),
            ip: ip.map(Cow::into_owned),
            ..Names::default()
        };
        let traits = Some(traits.unwrap_or_else(|| "{}".into()));
        Item { kind, person, names, traits, body: body.finish(), message_id }
    }
}

/// A value without insignificant white space.
fn compact(value: Raw<'_>) -> Cow<'_, str> {
    match Shape::of(value) {
        Shape::Array | Shape::Object => Cow::Owned(json::compact(value.get())),
        _ => Cow::Borrowed(value.get()),
    }
}

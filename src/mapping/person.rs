//! What is told of a person: Segment's own two actions of this destination.

use super::fields::{Fields, Given};
use super::{Outcome, skip};
use crate::clock::Timestamp;
use crate::event::json::{self, Object, Writer};
use crate::event::{Event, MessageId, Raw};
use crate::item::{Item, ItemKind, Names, Person};
use crate::reason::{Code, Reason};

/// The library of the browser, whose tracks the pixel beside it has sent already.
const BROWSER_LIBRARY: &str = "analytics.js";

/// What an identify's `context.source` says.
const SOURCE: &str = "\"koala-agent\"";

/// RudderStack's spelling of profile_id.
const KO_PROFILE_ID: &str = "ko_profile_id";

pub fn outcome(
    event: &Event,
    kind: ItemKind,
    message_id: &MessageId,
    timestamp: Timestamp,
    given: &Given,
) -> Outcome {
    let fields = match Fields::read(event, kind, timestamp, given) {
        Ok(fields) => fields,
        Err(faults) => return Outcome::Invalid(Reason::new(Code::InvalidField, faults)),
    };
    if kind == ItemKind::Track && from_browser(&fields) {
        return skip(
            Code::BrowserLibrary,
            "analytics.js made the event, so the browser has sent it to Koala",
        );
    }
    match item(kind, event.raw().len(), fields, message_id) {
        Ok(Some(item)) => Outcome::Send(Box::new(item)),
        Ok(None) => skip(Code::NoIdentity, "neither a profile_id nor an email says whose event it is"),
        Err(reason) => Outcome::Invalid(reason),
    }
}

fn from_browser(fields: &Fields) -> bool {
    let library = fields.context.as_ref().and_then(|c| c.get("library")).and_then(Object::of);
    let name = library.and_then(|l| l.get("name")).and_then(|name| json::decode(name.get()));
    name.as_deref() == Some(BROWSER_LIBRARY)
}

/// The item, of about `size` bytes, unless nobody can be told from it.
fn item<'a>(
    kind: ItemKind,
    size: usize,
    fields: Fields<'a>,
    own_id: &MessageId,
) -> Result<Option<Item>, Reason> {
    let Fields { email, event, properties, traits, sent_at, context, device_ip, message_id } = fields;
    let about = match kind {
        ItemKind::Identify => traits.as_ref(),
        _ => properties.as_ref(),
    };
    let own_profile = about.and_then(|a| a.get("profile_id"));
    let lent_profile = about.filter(|_| own_profile.is_none()).and_then(|a| a.get(KO_PROFILE_ID));
    let profile_id = own_profile.or(lent_profile).map(|id| json::compact(id.get()));

    // Null falls through like absence, but the last of a chain counts even when it is null.
    let property = properties.as_ref().and_then(|p| p.non_null("email"));
    let inner_email = property.or_else(|| traits.as_ref()?.get("email")).map(Raw::get);
    let top_email = email.as_deref().or(inner_email).map(json::compact);
    let ip = about.and_then(|a| a.non_null("ip")).map(Raw::get).or(device_ip.as_deref()).map(json::compact);
    let Some(person) = Person::of(profile_id.as_deref(), top_email.as_deref()) else { return Ok(None) };

    let has_lent = lent_profile.is_some();
    let sent = |object: Object<'a>, of: ItemKind| match has_lent && of == kind {
        true => object.without(KO_PROFILE_ID),
        false => object,
    };
    let properties = properties.map(|p| sent(p, ItemKind::Track));
    let traits = traits.map(|t| sent(t, ItemKind::Identify).compact());
    let message_id = super::message_id(message_id.as_deref(), own_id)?;

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
    Ok(Some(Item {
        kind,
        person,
        names: Names { profile_id, email: top_email, ip, ..Names::default() },
        traits: Some(traits.unwrap_or_else(|| "{}".into())),
        body: body.finish(),
        message_id,
    }))
}

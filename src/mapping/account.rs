//! Items about an account, a company. Segment's own destination has no such actions.

use super::DraftItem;
use super::fields::{FieldChecks, Overrides};
use crate::clock::Timestamp;
use crate::event::json::{self, Object, ObjectWriter};
use crate::event::{Event, MessageId};
use crate::item::{Disposition, Identifiers, Item, ItemKind, Person};
use crate::reason::{Code, Reason};
use std::borrow::Cow;

/// The largest public mail providers: an address there says nothing about a company.
const MAIL_PROVIDERS: &[&str] = &[
    "gmail.com",
    "googlemail.com",
    "yahoo.com",
    "hotmail.com",
    "outlook.com",
    "live.com",
    "msn.com",
    "icloud.com",
    "me.com",
    "aol.com",
    "proton.me",
    "protonmail.com",
    "gmx.de",
    "gmx.net",
    "web.de",
    "mail.ru",
    "yandex.ru",
    "qq.com",
    "163.com",
    "126.com",
];

/// Makes the item, or decides to skip or to fail the event.
pub(super) fn draft<'a>(
    event: &Event,
    kind: ItemKind,
    own_id: &MessageId,
    timestamp: Timestamp,
    overrides: &Overrides,
) -> Disposition<DraftItem<'a>> {
    match item(event, kind, own_id, timestamp, overrides) {
        Ok(Some(item)) => Disposition::Send(DraftItem::Account(Box::new(item))),
        Ok(None) => {
            let text = "neither a domain nor an account_id says which account it is";
            Disposition::Skip(Reason::new(Code::NoIdentity, text))
        }
        Err(reason) => Disposition::Fail(reason),
    }
}

fn item(
    event: &Event,
    kind: ItemKind,
    own_id: &MessageId,
    timestamp: Timestamp,
    overrides: &Overrides,
) -> Result<Option<Item>, Reason> {
    let mut checks = FieldChecks::default();
    let traits = match overrides.get("traits") {
        Some(traits) => checks.object("traits", traits),
        None => checks.object("traits", event.get("traits")),
    };
    let domain = match overrides.get("domain") {
        Some(domain) => checks.string("domain", domain),
        None => domain_of(event, traits.as_ref()).map(|domain| json::quote(&domain).into()),
    };
    let account_id = overrides.get("account_id").and_then(|id| checks.string("account_id", id));
    let mut body = ObjectWriter::new();
    body.member("type", &json::quote(kind.wire_type()));
    let mut message_id = None;
    if kind == ItemKind::AccountIdentify {
        let group_id = overrides.get("group_id").unwrap_or(event.get("groupId"));
        let group_id = checks.string("group_id", group_id);
        let traits = traits.unwrap_or_default();
        body.member(
            "traits",
            &match group_id {
                Some(id) => traits.with("group_id", &id),
                None => traits.compact(),
            },
        );
    } else {
        message_id = overrides.get("message_id").and_then(|id| checks.required("message_id", id));
        let name = checks.required("event", overrides.get("event").unwrap_or(event.get("event")));
        let properties = overrides.get("properties").unwrap_or(event.get("properties"));
        let properties = checks.object("properties", properties);
        let sent_at = match overrides.get("sent_at") {
            Some(value) => checks.required_time("sent_at", value),
            None => checks.sent_at(event, timestamp),
        };
        body.optional_member("event", name.as_deref());
        properties.iter().for_each(|properties| body.object_member("properties", properties));
        body.member("sent_at", &sent_at);
    }
    if !checks.faults.is_empty() {
        return Err(Reason::new(Code::InvalidField, checks.faults.join("; ")));
    }
    let message_id = super::message_id(message_id.as_deref(), own_id)?;
    if kind == ItemKind::AccountTrack {
        body.member("message_id", &json::quote(message_id.as_str()));
    }
    let Some(person) = Person::of_account(domain.as_deref(), account_id.as_deref()) else { return Ok(None) };
    let identifiers = Identifiers {
        domain: domain.map(Cow::into_owned),
        account_id: account_id.map(Cow::into_owned),
        ..Identifiers::default()
    };
    Ok(Some(Item { kind, person, identifiers, traits: None, body: body.finish(), message_id }))
}

/// The company's domain: `traits.domain`, else the host of `traits.website`, else the domain of the email, unless that
/// is a public mail provider's.
fn domain_of(event: &Event, traits: Option<&Object>) -> Option<String> {
    if let Some(domain) = ["domain", "website"].iter().find_map(|name| host(&string_member(traits, name)?)) {
        return Some(domain);
    }
    let context = event.get("context").and_then(Object::from_raw);
    let context_traits = context.as_ref().and_then(|c| c.get("traits")).and_then(Object::from_raw);
    let email = string_member(traits, "email").or_else(|| string_member(context_traits.as_ref(), "email"))?;
    let (_, domain) = email.rsplit_once('@')?;
    host(domain).filter(|domain| !MAIL_PROVIDERS.contains(&domain.as_str()))
}

fn string_member<'a>(object: Option<&Object<'a>>, name: &str) -> Option<Cow<'a, str>> {
    json::decode(object?.non_null(name)?.get())
}

/// The host of an address such as `https://www.acme.dev/about`, in lower case and without `www.`.
fn host(address: &str) -> Option<String> {
    let rest = address.trim().split_once("://").map_or(address.trim(), |(_, rest)| rest);
    let rest = rest.split(['/', '?', '#']).next()?;
    let rest = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    let host = rest.split(':').next()?.trim_end_matches('.').to_lowercase();
    let host = host.strip_prefix("www.").unwrap_or(&host);
    let is_host = host.contains('.') && host.chars().all(|c| c.is_alphanumeric() || matches!(c, '.' | '-'));
    is_host.then(|| host.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_found_in_every_form_of_an_address() {
        for (address, want) in [
            ("acme.dev", Some("acme.dev")),
            (" https://WWW.Acme.dev:8080/about?x#y ", Some("acme.dev")),
            ("http://user@shop.acme.co.uk.", Some("shop.acme.co.uk")),
            ("münchen.de", Some("münchen.de")),
            ("localhost", None),
            ("not a host.", None),
            ("", None),
        ] {
            assert_eq!(host(address).as_deref(), want, "{address}");
        }
    }
}

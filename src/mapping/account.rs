//! What is told of an account, a company: Koala's accounts, which Segment's own destination does not reach.

use super::fields::{Checks, Given, non_blank};
use super::{Draft, skip};
use crate::clock::Timestamp;
use crate::event::json::{self, Object, Writer};
use crate::event::{Event, MessageId};
use crate::item::{Disposition, Item, ItemKind, Names, Person};
use crate::reason::{Code, Reason};
use std::borrow::Cow;

/// Domains under which mail is given to anybody: an address there says nothing of a company. The largest by users.
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

pub(super) fn outcome<'a>(
    event: &Event,
    kind: ItemKind,
    own_id: &MessageId,
    timestamp: Timestamp,
    given: &Given,
) -> Disposition<Draft<'a>> {
    match item(event, kind, own_id, timestamp, given) {
        Ok(Some(item)) => Disposition::Send(Draft::Account(Box::new(item))),
        Ok(None) => skip(Code::NoIdentity, "neither a domain nor an account_id says which account it is"),
        Err(reason) => Disposition::Fail(reason),
    }
}

fn item(
    event: &Event,
    kind: ItemKind,
    own_id: &MessageId,
    timestamp: Timestamp,
    given: &Given,
) -> Result<Option<Item>, Reason> {
    let mut check = Checks::default();
    let traits = match given.get("traits") {
        Some(traits) => check.object("traits", traits),
        None => check.object("traits", event.get("traits")),
    };
    let domain = match given.get("domain") {
        Some(domain) => check.string("domain", domain),
        None => domain_of(event, traits.as_ref()).map(|domain| json::quote(&domain).into()),
    };
    let account_id = given.get("account_id").and_then(|id| check.string("account_id", id));
    let mut body = Writer::new();
    body.member("type", &json::quote(kind.as_str()));
    let mut message_id = None;
    if kind == ItemKind::AccountIdentify {
        let group_id = given.get("group_id").unwrap_or(event.get("groupId"));
        let group_id = check.string("group_id", group_id);
        let traits = traits.unwrap_or_default();
        body.member(
            "traits",
            &match group_id {
                Some(id) => traits.with("group_id", &id),
                None => traits.compact(),
            },
        );
    } else {
        message_id = given.get("message_id").and_then(|id| check.required("message_id", id));
        let name = check.required("event", given.get("event").unwrap_or(event.get("event")));
        let properties = given.get("properties").unwrap_or(event.get("properties"));
        let properties = check.object("properties", properties);
        let sent_at = match given.get("sent_at") {
            Some(value) if non_blank(value).is_none() => check.required("sent_at", value).unwrap_or_default(),
            Some(value) => check.date_time("sent_at", value),
            None => check.sent_at(event, timestamp),
        };
        body.optional("event", name.as_deref());
        properties.iter().for_each(|properties| body.object("properties", properties));
        body.member("sent_at", &sent_at);
    }
    if !check.faults.is_empty() {
        return Err(Reason::new(Code::InvalidField, check.faults.join("; ")));
    }
    let message_id = super::message_id(message_id.as_deref(), own_id)?;
    if kind == ItemKind::AccountTrack {
        body.member("message_id", &json::quote(message_id.as_str()));
    }
    let Some(person) = Person::of_account(domain.as_deref(), account_id.as_deref()) else { return Ok(None) };
    let names = Names {
        domain: domain.map(Cow::into_owned),
        account_id: account_id.map(Cow::into_owned),
        ..Names::default()
    };
    Ok(Some(Item { kind, person, names, traits: None, body: body.finish(), message_id }))
}

/// The company's domain: `traits.domain`, else the host of `traits.website`, else the domain of the email, unless
/// that is a provider of mail.
fn domain_of(event: &Event, traits: Option<&Object>) -> Option<String> {
    if let Some(domain) = ["domain", "website"].iter().find_map(|name| host(&text(traits, name)?)) {
        return Some(domain);
    }
    let context = event.get("context").and_then(Object::of);
    let known = context.as_ref().and_then(|c| c.get("traits")).and_then(Object::of);
    let email = text(traits, "email").or_else(|| text(known.as_ref(), "email"))?;
    let (_, domain) = email.rsplit_once('@')?;
    host(domain).filter(|domain| !MAIL_PROVIDERS.contains(&domain.as_str()))
}

fn text<'a>(object: Option<&Object<'a>>, name: &str) -> Option<Cow<'a, str>> {
    json::decode(object?.non_null(name)?.get())
}

/// The host of an address such as `https://www.acme.dev/about`, in lower case and without `www.`.
fn host(address: &str) -> Option<String> {
    let rest = address.trim().split_once("://").map_or(address.trim(), |(_, rest)| rest);
    let rest = rest.split(['/', '?', '#']).next()?;
    let rest = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    let host = rest.split(':').next()?.trim_end_matches('.').to_lowercase();
    let host = host.strip_prefix("www.").unwrap_or(&host);
    let fits = host.contains('.') && host.chars().all(|c| c.is_alphanumeric() || matches!(c, '.' | '-'));
    fits.then(|| host.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_told_from_an_address_however_it_is_written() {
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

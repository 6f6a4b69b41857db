//! Items: the part of a request that one mapping makes of one event, and the person or account that it is about.

use crate::event::MessageId;
use crate::event::json;
use crate::reason::Reason;
use sha2::{Digest as _, Sha256};
use std::fmt;

/// Koala's limit of `identifies`, and of `events`, in one request, from its documentation of `/batch`.
pub const MAX_OF_A_KIND: usize = 30;

/// The decision about an event, or about the item that one mapping makes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disposition<T> {
    /// Send this.
    Send(T),
    /// Send nothing, on purpose.
    Skip(Reason),
    /// No request can be made of the event.
    Fail(Reason),
}

impl<T> Disposition<T> {
    /// Applies `f` to the value to be sent.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Disposition<U> {
        match self {
            Disposition::Send(value) => Disposition::Send(f(value)),
            Disposition::Skip(reason) => Disposition::Skip(reason),
            Disposition::Fail(reason) => Disposition::Fail(reason),
        }
    }
}

/// The kind of an item; in a mapping's configuration it is called the action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ItemKind {
    /// Something that a person did, in a request's `events`.
    Track,
    /// Traits of a person, in a request's `identifies`.
    Identify,
    /// Something that somebody at a company did, in the `events` of an account's request.
    AccountTrack,
    /// Traits of a company, in the `identifies` of an account's request.
    AccountIdentify,
}

impl ItemKind {
    /// All kinds.
    pub const ALL: [ItemKind; 4] =
        [ItemKind::Track, ItemKind::Identify, ItemKind::AccountTrack, ItemKind::AccountIdentify];

    /// The action's name in a configuration.
    pub fn action_name(self) -> &'static str {
        match self {
            ItemKind::Track => "track",
            ItemKind::Identify => "identify",
            ItemKind::AccountTrack => "account_track",
            ItemKind::AccountIdentify => "account_identify",
        }
    }

    /// The item's `type` on the wire.
    pub fn wire_type(self) -> &'static str {
        match self {
            ItemKind::Track | ItemKind::AccountTrack => "track",
            ItemKind::Identify | ItemKind::AccountIdentify => "identify",
        }
    }

    /// Whether the item belongs to the request's `identifies`, not to its `events`.
    pub fn is_identify(self) -> bool {
        matches!(self, ItemKind::Identify | ItemKind::AccountIdentify)
    }

    /// The endpoint that takes requests with such items.
    pub fn endpoint(self) -> Endpoint {
        match self {
            ItemKind::Track | ItemKind::Identify => Endpoint::People,
            ItemKind::AccountTrack | ItemKind::AccountIdentify => Endpoint::Accounts,
        }
    }
}

/// An endpoint of the receiver for events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Endpoint {
    /// Items about people.
    People,
    /// Items about accounts.
    Accounts,
}

impl Endpoint {
    /// All endpoints.
    pub const ALL: [Endpoint; 2] = [Endpoint::People, Endpoint::Accounts];

    /// The endpoint's path below the project's path.
    pub fn path(self) -> &'static str {
        match self {
            Endpoint::People => "batch",
            Endpoint::Accounts => "accounts/batch",
        }
    }
}

/// The identifiers at the top level of a request, each JSON of any type.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identifiers {
    /// A person's `profile_id`.
    pub profile_id: Option<String>,
    /// A person's `email`.
    pub email: Option<String>,
    /// A person's `ip`.
    pub ip: Option<String>,
    /// An account's `domain`.
    pub domain: Option<String>,
    /// An account's `account_id`.
    pub account_id: Option<String>,
}

/// One event's part of a request. Its JSON is as the event has it, without insignificant white space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The kind of the item.
    pub kind: ItemKind,
    /// The person or account that the item is about, as the identifiers tell it.
    pub person: Person,
    /// The identifiers at the top level of the request.
    pub identifiers: Identifiers,
    /// The `traits` at the top level of the request, an object; `None` for an account.
    pub traits: Option<String>,
    /// The item itself, an object with the event's messageId.
    pub body: String,
    /// The messageId in the body.
    pub message_id: MessageId,
}

/// The person or account that an item is about, compared byte by byte: a person by profile_id, else by email; an account
/// by domain, else by account_id.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Person {
    kind: IdentifierKind,
    text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum IdentifierKind {
    Profile,
    Email,
    Domain,
    Account,
}

impl Person {
    /// The person of a request with these values, both JSON: `profile_id` if it is truthy, else `email` if it is.
    pub fn of(profile_id: Option<&str>, email: Option<&str>) -> Option<Person> {
        let (kind, json) = match profile_id.filter(|p| json::is_truthy(p)) {
            Some(profile_id) => (IdentifierKind::Profile, profile_id),
            None => (IdentifierKind::Email, email.filter(|e| json::is_truthy(e))?),
        };
        Some(Person { kind, text: json::to_text(json).into_owned() })
    }

    /// The account of a request with these values, both JSON: `domain` if it is truthy, else `account_id` if it is.
    pub fn of_account(domain: Option<&str>, account_id: Option<&str>) -> Option<Person> {
        let (kind, json) = match domain.filter(|d| json::is_truthy(d)) {
            Some(domain) => (IdentifierKind::Domain, domain),
            None => (IdentifierKind::Account, account_id.filter(|a| json::is_truthy(a))?),
        };
        Some(Person { kind, text: json::to_text(json).into_owned() })
    }

    /// The identifier as text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The identifier as text, if it is a `profile_id`.
    pub fn profile_id(&self) -> Option<&str> {
        matches!(self.kind, IdentifierKind::Profile).then_some(&self.text)
    }

    /// The key under which the person's events are sent in order. It is the same in every process and version.
    pub fn ordering_key(&self) -> OrderingKey {
        let mut hash = Sha256::new_with_prefix(match self.kind {
            IdentifierKind::Profile => b"koala-agent ordering key of a profile_id\0".as_slice(),
            IdentifierKind::Email => b"koala-agent ordering key of an email\0",
            IdentifierKind::Domain => b"koala-agent ordering key of a domain\0",
            IdentifierKind::Account => b"koala-agent ordering key of an account_id\0",
        });
        hash.update(&self.text);
        let [a, b, c, d, e, f, g, h, ..]: [u8; 32] = hash.finalize().into();
        OrderingKey(i64::from_be_bytes([a, b, c, d, e, f, g, h]))
    }
}

impl fmt::Display for Person {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A hash of a person, under which their events are ordered. Two persons with the same hash only wait for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OrderingKey(pub i64);

/// Names the mappings by which ordering keys were computed: one number for equal mappings in every process, as long as
/// the agent's version is the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Keying(pub i64);

impl Keying {
    /// The name of what is described by this text.
    pub fn of(description: &str) -> Keying {
        let mut hash = Sha256::new_with_prefix(b"koala-agent keying\0");
        // Another version may read the same mapping in another way.
        hash.update(env!("CARGO_PKG_VERSION"));
        hash.update(description);
        let [a, b, c, d, e, f, g, h, ..]: [u8; 32] = hash.finalize().into();
        Keying(i64::from_be_bytes([a, b, c, d, e, f, g, h]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_is_a_truthy_profile_id_else_a_truthy_email() {
        for (profile_id, email, want) in [
            (Some(r#""ko-1""#), Some(r#""a@b.co""#), Some("ko-1")),
            (Some("42"), None, Some("42")),
            (Some("0"), Some(r#""a@b.co""#), Some("a@b.co")),
            (Some("null"), Some("4711"), Some("4711")),
            (Some(r#""""#), Some("false"), None),
            (None, Some(r#""""#), None),
            (None, None, None),
        ] {
            assert_eq!(Person::of(profile_id, email).as_ref().map(Person::as_str), want);
        }
    }

    #[test]
    fn a_person_is_the_same_in_every_json_spelling_and_differs_by_case_and_kind() {
        let person = Person::of(None, Some(r#""ana@acme.dev""#)).unwrap();
        let same = Person::of(None, Some(r#""\u0061na@acme.dev""#)).unwrap();
        assert_eq!((&same, same.ordering_key()), (&person, person.ordering_key()));
        for other in [
            Person::of(None, Some(r#""Ana@acme.dev""#)).unwrap(),
            Person::of(Some(r#""ana@acme.dev""#), None).unwrap(),
        ] {
            assert_ne!(other, person);
            assert_ne!(other.ordering_key(), person.ordering_key());
        }
    }

    #[test]
    fn an_ordering_key_stays_the_same_across_versions() {
        assert_eq!(
            Person::of(None, Some(r#""ana@acme.dev""#)).unwrap().ordering_key(),
            OrderingKey(6_039_780_644_300_733_556)
        );
    }
}

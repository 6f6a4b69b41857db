//! One event's part of a request, and whose it is: what mappings make and requests are made of.

use crate::event::MessageId;
use crate::event::json;
use crate::reason::Reason;
use sha2::{Digest as _, Sha256};
use std::fmt;

/// What is to become of an event, or of what one mapping makes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disposition<T> {
    /// This is to be sent.
    Send(T),
    /// There is nothing to send.
    Skip(Reason),
    /// No request can be made of it.
    Fail(Reason),
}

impl<T> Disposition<T> {
    /// The same decision with `f` applied to what is to be sent.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Disposition<U> {
        match self {
            Disposition::Send(value) => Disposition::Send(f(value)),
            Disposition::Skip(reason) => Disposition::Skip(reason),
            Disposition::Fail(reason) => Disposition::Fail(reason),
        }
    }
}

/// Where in a request an item stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ItemKind {
    /// In `events`: something that a person did.
    Track,
    /// In `identifies`: something about a person.
    Identify,
    /// In `events` of an account: something that somebody of a company did.
    AccountTrack,
    /// In `identifies` of an account: something about a company.
    AccountIdentify,
}

impl ItemKind {
    /// The item's `type` on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            ItemKind::Track | ItemKind::AccountTrack => "track",
            ItemKind::Identify | ItemKind::AccountIdentify => "identify",
        }
    }

    /// Whether the item stands among the request's `identifies`.
    pub fn is_identify(self) -> bool {
        matches!(self, ItemKind::Identify | ItemKind::AccountIdentify)
    }

    /// Where requests of such items go.
    pub fn endpoint(self) -> Endpoint {
        match self {
            ItemKind::Track | ItemKind::Identify => Endpoint::People,
            ItemKind::AccountTrack | ItemKind::AccountIdentify => Endpoint::Accounts,
        }
    }
}

/// Where a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// What persons did and what is known of them.
    People,
    /// The same of companies.
    Accounts,
}

impl Endpoint {
    /// Its path below the project's.
    pub fn path(self) -> &'static str {
        match self {
            Endpoint::People => "batch",
            Endpoint::Accounts => "accounts/batch",
        }
    }
}

/// Whom a request names at its top level: JSON of any type.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
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

/// One event's part of a request. The texts are JSON as it was written, without insignificant white space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Where the item stands.
    pub kind: ItemKind,
    /// Whose event it is, told from the names.
    pub person: Person,
    /// Whom the request names.
    pub names: Names,
    /// The request's `traits`: an object; an account's request has none.
    pub traits: Option<String>,
    /// The item itself, an object with the event's messageId.
    pub body: String,
    /// The messageId that stands in the body.
    pub message_id: MessageId,
}

impl Item {
    /// Whose event it is.
    pub fn person(&self) -> &Person {
        &self.person
    }
}

/// Whose an event is, compared as text and byte for byte: a person by profile_id, else by email; an account by domain,
/// else by account_id.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Person {
    by: By,
    text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum By {
    Profile,
    Email,
    Domain,
    Account,
}

impl Person {
    /// The person whom a request of this `profile_id` and `email` is about, both JSON: profile_id if JavaScript
    /// takes it for true, else email if so, else nobody.
    pub fn of(profile_id: Option<&str>, email: Option<&str>) -> Option<Person> {
        let (by, json) = match profile_id.filter(|p| json::truthy(p)) {
            Some(profile_id) => (By::Profile, profile_id),
            None => (By::Email, email.filter(|e| json::truthy(e))?),
        };
        Some(Person { by, text: json::text(json).into_owned() })
    }

    /// The account that a request of this `domain` and `account_id` is about, both JSON: domain if JavaScript takes it
    /// for true, else account_id if so, else none.
    pub fn of_account(domain: Option<&str>, account_id: Option<&str>) -> Option<Person> {
        let (by, json) = match domain.filter(|d| json::truthy(d)) {
            Some(domain) => (By::Domain, domain),
            None => (By::Account, account_id.filter(|a| json::truthy(a))?),
        };
        Some(Person { by, text: json::text(json).into_owned() })
    }

    /// What names them, as text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The same, without the person.
    pub fn into_text(self) -> String {
        self.text
    }

    /// The ordering key that the person's events wait in.
    pub fn ordering_key(&self) -> OrderingKey {
        let mut hash = Sha256::new_with_prefix(match self.by {
            By::Profile => b"koala-agent ordering key of a profile_id\0".as_slice(),
            By::Email => b"koala-agent ordering key of an email\0",
            By::Domain => b"koala-agent ordering key of a domain\0",
            By::Account => b"koala-agent ordering key of an account_id\0",
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

/// A person as a number that tells nothing about them. Two persons in one ordering key by chance only wait for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OrderingKey(pub i64);

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
            assert_eq!(Person::of(profile_id, email).as_ref().map(Person::text), want);
        }
    }

    #[test]
    fn spellings_of_one_text_are_one_person_and_nothing_else_is() {
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
    fn an_ordering_key_outlives_the_process() {
        assert_eq!(
            Person::of(None, Some(r#""ana@acme.dev""#)).unwrap().ordering_key(),
            OrderingKey(6_039_780_644_300_733_556)
        );
    }
}

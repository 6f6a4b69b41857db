//! One event's part of a request, and whose it is: what mappings make and requests are made of.

use crate::event::MessageId;
use crate::event::json;
use sha2::{Digest as _, Sha256};
use std::fmt;

/// Where in a request an item stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ItemKind {
    /// In `events`: something that a person did.
    Track,
    /// In `identifies`: something about a person.
    Identify,
}

impl ItemKind {
    /// The item's `type` on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            ItemKind::Track => "track",
            ItemKind::Identify => "identify",
        }
    }
}

/// One event's part of a request. The texts are JSON as it was written, without insignificant white space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Where the item stands.
    pub kind: ItemKind,
    /// Whose event it is, told from the two members below.
    pub person: Person,
    /// The request's `profile_id`, of any type.
    pub profile_id: Option<String>,
    /// The request's `email`, of any type.
    pub email: Option<String>,
    /// The request's `ip`, of any type.
    pub ip: Option<String>,
    /// The request's `traits`: an object.
    pub traits: String,
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

/// Whose an event is: its profile_id, else its email, compared as text and byte for byte.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Person {
    by: By,
    text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum By {
    Profile,
    Email,
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

    /// The profile_id or email as text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The lane that the person's events wait in.
    pub fn lane(&self) -> Lane {
        let mut hash = Sha256::new_with_prefix(match self.by {
            By::Profile => b"koala-agent lane of a profile_id\0".as_slice(),
            By::Email => b"koala-agent lane of an email\0",
        });
        hash.update(&self.text);
        let [a, b, c, d, e, f, g, h, ..]: [u8; 32] = hash.finalize().into();
        Lane(i64::from_be_bytes([a, b, c, d, e, f, g, h]))
    }
}

impl fmt::Display for Person {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A person as a number that tells nothing about them. Two persons in one lane by chance only wait for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane(pub i64);

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
        assert_eq!((&same, same.lane()), (&person, person.lane()));
        for other in [
            Person::of(None, Some(r#""Ana@acme.dev""#)).unwrap(),
            Person::of(Some(r#""ana@acme.dev""#), None).unwrap(),
        ] {
            assert_ne!(other, person);
            assert_ne!(other.lane(), person.lane());
        }
    }

    #[test]
    fn a_lane_outlives_the_process() {
        assert_eq!(
            Person::of(None, Some(r#""ana@acme.dev""#)).unwrap().lane(),
            Lane(-3_383_292_204_977_717_726)
        );
    }
}

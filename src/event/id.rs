//! What an event is known by: its messageId, and a digest that tells a repetition from a reuse.

use super::json::Writer;
use super::{Event, MAX_MESSAGE_ID};
use sha2::{Digest as _, Sha256};
use std::fmt;
use thiserror::Error;

/// The members that belong to an attempt to send or to the pipe it came through, not to the event.
const NOT_CONTENT: [&str; 3] = ["sentAt", "receivedAt", "_metadata"];

/// An event's messageId: text, not empty, of at most [`MAX_MESSAGE_ID`] characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(String);

/// Why a text is no messageId.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MessageIdError {
    /// There is nothing in it.
    #[error("messageId is empty")]
    Empty,
    /// It has more characters than Segment allows.
    #[error("messageId has {0} characters, more than the {MAX_MESSAGE_ID} allowed")]
    TooLong(usize),
}

impl MessageId {
    /// The messageId of that text.
    pub fn new(text: String) -> Result<MessageId, MessageIdError> {
        match text.chars().count() {
            0 => Err(MessageIdError::Empty),
            n if n > MAX_MESSAGE_ID => Err(MessageIdError::TooLong(n)),
            _ => Ok(MessageId(text)),
        }
    }

    /// A messageId that went through [`MessageId::new`] before it was written down.
    pub fn from_stored(text: String) -> MessageId {
        MessageId(text)
    }

    /// The messageId of an event that came without one: a UUID (version 8) of the file's identity, the event's
    /// place in it and the event's bytes. The same three give the same id, so a file read twice sends once.
    pub fn derived(identity: &[u8], place: u64, bytes: &[u8]) -> MessageId {
        let mut hash = Sha256::new_with_prefix(b"koala-agent messageId\0");
        hash.update((identity.len() as u64).to_le_bytes());
        hash.update(identity);
        hash.update(place.to_le_bytes());
        hash.update(bytes);
        MessageId(uuid::Uuid::new_v8(first(hash.finalize().into())).to_string())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A digest of an event's content: equal for two texts of one event, different for two events.
///
/// The order and spelling of the top-level names, white space, and `sentAt`, `receivedAt` and `_metadata` do not
/// count; of duplicate names the last does. Nested values count as they are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 16]);

impl Digest {
    pub(super) fn of(event: &Event) -> Digest {
        let mut members: Vec<_> =
            event.object.0.iter().filter(|m| !NOT_CONTENT.contains(&m.name.as_ref())).collect();
        members.sort_by(|a, b| a.name.cmp(&b.name));
        let mut content = Writer::with_capacity(event.raw().len());
        for (i, member) in members.iter().enumerate() {
            if members.get(i + 1).is_none_or(|next| next.name != member.name) {
                content.entry(&member.plain_key(), member.value.get());
            }
        }
        Digest(first(Sha256::digest(content.finish()).into()))
    }

    /// The digest that was kept as these bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Digest {
        Digest(bytes)
    }

    /// The digest as bytes to be kept.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0
    }
}

/// Half of a SHA-256: 128 bits, where a chance collision needs 2^64 events.
fn first(hash: [u8; 32]) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&hash[..16]);
    half
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(json: &str) -> Digest {
        Event::parse(json).unwrap().digest()
    }

    #[test]
    fn a_derived_id_is_a_uuid_of_all_three_and_stays_the_same() {
        let id = MessageId::derived(b"a.json", 7, b"{}");
        assert_eq!(id.as_str(), "656c85cc-6f6d-8cb5-872e-3cc58177367b");
        for other in [
            MessageId::derived(b"b.json", 7, b"{}"),
            MessageId::derived(b"a.json", 8, b"{}"),
            MessageId::derived(b"a.json", 7, b"{ }"),
        ] {
            assert_ne!(id, other);
        }
    }

    #[test]
    fn an_id_has_one_to_a_hundred_characters() {
        assert_eq!(MessageId::new(String::new()), Err(MessageIdError::Empty));
        assert!(MessageId::new("ü".repeat(100)).is_ok());
        assert_eq!(MessageId::new("x".repeat(101)), Err(MessageIdError::TooLong(101)));
    }

    #[test]
    fn repetitions_of_an_event_have_its_digest() {
        let event = digest(r#"{"messageId":"m","type":"track","properties":{"n":1.0}}"#);
        for same in [
            "  {\"type\" : \"track\",\n\"properties\":{ \"n\": 1.0 },\"messageId\":\"m\"}\n",
            r#"{"messageId":"m","type":"track","properties":{"n":1.0},"sentAt":1,"receivedAt":2,"_metadata":{}}"#,
            r#"{"messageId":"x","m\u0065ssageId":"m","t\u0079pe":"track","properties":{"n":1.0}}"#,
        ] {
            assert_eq!(digest(same), event, "{same}");
        }
    }

    #[test]
    fn another_content_has_another_digest() {
        let event = digest(r#"{"messageId":"m","type":"track","properties":{"n":1.0}}"#);
        for other in [
            r#"{"messageId":"m","type":"track","properties":{"n":1}}"#,
            r#"{"messageId":"m","type":"track","properties":{"n":1.0},"timestamp":null}"#,
            r#"{"messageId":"m","type":"track","properties":{"n":1.0,"sentAt":1}}"#,
            r#"{"messageId":"m","type":"track"}"#,
            "{}",
        ] {
            assert_ne!(digest(other), event, "{other}");
        }
    }
}

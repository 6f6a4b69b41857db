//! The identity of an event: its messageId, and a digest of its content. An equal id with an equal digest is a
//! duplicate; an equal id with another digest is a reuse.

use super::json::ObjectWriter;
use super::{Event, MAX_MESSAGE_ID};
use sha2::{Digest as _, Sha256};
use std::fmt;
use thiserror::Error;

/// Members that describe one attempt to send the event, not the event itself.
const NOT_CONTENT: [&str; 3] = ["sentAt", "receivedAt", "_metadata"];

/// An event's messageId: a text that is not empty and has at most [`MAX_MESSAGE_ID`] characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(String);

/// The reason why a text is not a messageId.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MessageIdError {
    /// The text is empty.
    #[error("messageId is empty")]
    Empty,
    /// The text has more characters than Segment allows.
    #[error("messageId has {0} characters, more than the {MAX_MESSAGE_ID} allowed")]
    TooLong(usize),
}

impl MessageId {
    /// Checks a text that came from outside.
    pub fn new(text: String) -> Result<MessageId, MessageIdError> {
        match text.chars().count() {
            0 => Err(MessageIdError::Empty),
            n if n > MAX_MESSAGE_ID => Err(MessageIdError::TooLong(n)),
            _ => Ok(MessageId(text)),
        }
    }

    /// A messageId that was checked by [`MessageId::new`] before it was stored.
    pub fn from_stored(text: String) -> MessageId {
        MessageId(text)
    }

    /// The messageId of an event that came without one: a UUID (version 8) of the file's identity, the event's
    /// position in the file and the event's bytes. A file that is read twice yields the same ids, so its events are sent
    /// once.
    pub fn derived(identity: &[u8], position: u64, bytes: &[u8]) -> MessageId {
        let mut hash = Sha256::new_with_prefix(b"koala-agent messageId\0");
        hash.update((identity.len() as u64).to_le_bytes());
        hash.update(identity);
        hash.update(position.to_le_bytes());
        hash.update(bytes);
        MessageId(uuid::Uuid::new_v8(first_half(hash.finalize().into())).to_string())
    }

    /// The messageId as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A digest of an event's content.
///
/// Two texts have the same digest if they differ only in white space, in the order and spelling of the top-level names,
/// or in `sentAt`, `receivedAt` and `_metadata`. The last of duplicate names counts. Nested values count as written.
///
/// Only events of one id are compared, so 64 bits of a SHA-256 tell them apart: two that differ have the same digest once in
/// 2^64 times. It is kept of every delivered event, and each byte counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 8]);

impl Digest {
    /// The event as one compact text, and its digest. Both in one go: each value is searched for white space once.
    pub(super) fn of_compact(event: &Event) -> (String, Digest) {
        let all = &event.object.0;
        let mut compact = ObjectWriter::with_capacity(event.raw().len());
        let mut members = Vec::with_capacity(all.len());
        for member in all {
            let value = compact.placed_member(member.key, member.value.get());
            members.push((member, value));
        }
        let compact = compact.finish();
        members.retain(|(member, _)| !NOT_CONTENT.contains(&member.name.as_ref()));
        members.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
        let mut content = ObjectWriter::with_capacity(compact.len());
        for (i, (member, value)) in members.iter().enumerate() {
            if members.get(i + 1).is_none_or(|(next, _)| next.name != member.name) {
                content.compact_member_with_key(&member.canonical_key(), &compact[value.clone()]);
            }
        }
        let mut digest = [0; 8];
        digest.copy_from_slice(&Sha256::digest(content.finish())[..8]);
        (compact, Digest(digest))
    }

    /// A digest that was stored by [`Digest::to_bytes`].
    pub fn from_bytes(bytes: [u8; 8]) -> Digest {
        Digest(bytes)
    }

    /// The digest as bytes to be stored.
    pub fn to_bytes(self) -> [u8; 8] {
        self.0
    }
}

/// The first half of a SHA-256: with 128 bits, a chance collision needs 2^64 events.
fn first_half(hash: [u8; 32]) -> [u8; 16] {
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
    fn a_derived_id_depends_on_file_position_and_bytes_and_stays_the_same() {
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
    fn a_message_id_has_one_to_a_hundred_characters() {
        assert_eq!(MessageId::new(String::new()), Err(MessageIdError::Empty));
        assert!(MessageId::new("ü".repeat(100)).is_ok());
        assert_eq!(MessageId::new("x".repeat(101)), Err(MessageIdError::TooLong(101)));
    }

    #[test]
    fn duplicates_of_an_event_have_the_same_digest() {
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
    fn different_content_has_a_different_digest() {
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

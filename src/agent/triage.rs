//! What is to become of an event under the mapping in force: asked when it is stored, and when it is retried.

use crate::clock::Timestamp;
use crate::event::{Event, MessageId};
use crate::mapping::{Outcome, map};
use crate::outbox::Fate;

/// The fate of an event that is known by that id and came at that time.
pub fn triage(event: &Event<'_>, message_id: &MessageId, spooled_at: Timestamp) -> Fate {
    match map(event, message_id, spooled_at) {
        Outcome::Send(item) => {
            Fate::Send { lane: item.person().lane(), person: item.person().text().to_owned() }
        }
        Outcome::Skip(reason) => Fate::Skip(reason),
        Outcome::Invalid(reason) => Fate::Fail(reason),
    }
}

//! What a row of the outbox can be, and what it can become. Pure.

use crate::clock::Timestamp;
use crate::event::{Digest, MessageId};
use crate::item::{Disposition, OrderingKey};
use serde::Serialize;
use std::sync::Arc;

/// The state of an event; the names are part of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Waits, in order, for as long as it takes.
    Pending,
    /// The receiver has accepted it.
    Delivered,
    /// No mapping wants it, or the rules say that there is nothing to send.
    Skipped,
    /// No request can be made of it, or the receiver refused this very event.
    Failed,
    /// Given up by hand.
    Discarded,
}

impl State {
    /// All states, in the order in which people read them.
    pub const ALL: [State; 5] =
        [State::Pending, State::Delivered, State::Skipped, State::Failed, State::Discarded];

    /// The name in the database, in JSON and on the screen.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Pending => "pending",
            State::Delivered => "delivered",
            State::Skipped => "skipped",
            State::Failed => "failed",
            State::Discarded => "discarded",
        }
    }

    /// The state of that name.
    pub fn parse(name: &str) -> Option<State> {
        State::ALL.into_iter().find(|s| s.as_str() == name)
    }

    /// Whether an event may go from this state to that one: every legal arrow stands here, and the schema
    /// holds the same by keeping `pending` apart from the rest.
    pub fn may_become(self, next: State) -> bool {
        use State::*;
        match (self, next) {
            // settled by the agent, or by hand
            (Pending, Delivered | Skipped | Failed | Discarded) => true,
            // `retry`, while the body is kept
            (Delivered | Skipped | Failed, Pending) => true,
            // `discard` of what will not be retried
            (Skipped | Failed, Discarded) => true,
            _ => false,
        }
    }
}

/// What one mapping makes of an event of which there is something to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewItem {
    /// The mapping's name.
    pub mapping: Arc<str>,
    /// What is to become of the item.
    pub disposition: Disposition<Addressee>,
}

/// Whose an item is that is to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addressee {
    /// Items of one ordering key are sent in order, one request at a time.
    pub ordering_key: OrderingKey,
    /// As people know them: an email, a profile id, a domain.
    pub person: String,
}

/// An event on its way into the outbox.
#[derive(Debug, Clone)]
pub struct NewEvent {
    /// Unique among all that the outbox remembers.
    pub message_id: MessageId,
    /// Tells a duplicate from another event under the same id.
    pub digest: Digest,
    /// Segment's `type`.
    pub kind: Option<String>,
    /// The `event` of a track.
    pub name: Option<String>,
    /// The spool file that it came in.
    pub file: Arc<str>,
    /// The line of an NDJSON file or the index in an array, from 1; 0 for a file that is one event.
    pub place: u64,
    /// The file's modification time: the event's timestamp where it has none.
    pub spooled_at: Timestamp,
    /// The event's text as it came.
    pub body: String,
    /// What is to become of it.
    pub disposition: Disposition<Vec<NewItem>>,
}

/// A pending item as the sender reads it: what one mapping makes of an event.
#[derive(Debug, Clone)]
pub struct PendingItem<'a> {
    /// Its place in the order of the spool.
    pub seq: i64,
    /// Whether it is all that is made of its event.
    pub is_alone: bool,
    /// The mapping that makes it; empty: the first that takes the event.
    pub mapping: &'a str,
    /// Unique among all that the outbox remembers.
    pub message_id: MessageId,
    /// The file's modification time: the event's timestamp where it has none.
    pub spooled_at: Timestamp,
    /// The event's text as it came.
    pub body: &'a str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_has_a_name_of_its_own() {
        assert_eq!(State::ALL.map(State::as_str), ["pending", "delivered", "skipped", "failed", "discarded"]);
        assert_eq!(State::ALL.map(|state| State::parse(state.as_str())), State::ALL.map(Some));
        assert_eq!(State::parse("Pending"), None);
    }

    #[test]
    fn a_settled_event_moves_only_by_hand_and_a_discarded_one_never() {
        use State::*;
        let legal: Vec<(State, State)> = State::ALL
            .into_iter()
            .flat_map(|a| State::ALL.into_iter().map(move |b| (a, b)))
            .filter(|(a, b)| a.may_become(*b))
            .collect();
        assert_eq!(
            legal,
            [
                (Pending, Delivered),
                (Pending, Skipped),
                (Pending, Failed),
                (Pending, Discarded),
                (Delivered, Pending),
                (Skipped, Pending),
                (Skipped, Discarded),
                (Failed, Pending),
                (Failed, Discarded),
            ]
        );
    }
}

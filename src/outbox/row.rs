//! The rows of the outbox: the states of an event and the legal changes between them, and what is written and read.

use crate::clock::Timestamp;
use crate::event::{Digest, MessageId};
use crate::item::{Disposition, Keying, OrderingKey, Person};
use crate::reason::{Code, Reason};
use crate::subject::NamingParts;
use rusqlite::Row;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The state of an event. The names are part of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The event waits, in order, for as long as it takes.
    Pending,
    /// The receiver has accepted the event.
    Delivered,
    /// No mapping takes the event, or the rules say that there is nothing to send.
    Skipped,
    /// No request can be made of the event, or the receiver refused this very event.
    Failed,
    /// A person has dropped the event for good.
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

    /// Whether an event may go from this state to the next. Every legal change stands here; the schema enforces the
    /// same by keeping `pending` apart from `settled`.
    pub fn may_become(self, next: State) -> bool {
        use State::*;
        match (self, next) {
            // settled by the agent, or by hand
            (Pending, Delivered | Skipped | Failed | Discarded) => true,
            // `retry`, while the body is kept
            (Delivered | Skipped | Failed, Pending) => true,
            // `discard` of an event that will not be retried
            (Skipped | Failed, Discarded) => true,
            _ => false,
        }
    }
}

/// How a pending event or item was settled. A [`Disposition`] is decided beforehand and may be to send; this is the
/// end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    /// The receiver accepted it.
    Delivered,
    /// Nothing was to be sent.
    Skipped(Reason),
    /// No request can be made of it, or the receiver refused it.
    Failed(Reason),
    /// A person has dropped it for good.
    Discarded,
}

impl Settled {
    /// The state of an event that is settled like this.
    pub fn state(&self) -> State {
        match self {
            Settled::Delivered => State::Delivered,
            Settled::Skipped(_) => State::Skipped,
            Settled::Failed(_) => State::Failed,
            Settled::Discarded => State::Discarded,
        }
    }

    /// The reason's code and text, both empty where there is no reason.
    pub(super) fn code_and_text(&self) -> (&'static str, &str) {
        match self {
            Settled::Skipped(reason) | Settled::Failed(reason) => (reason.code.as_str(), &reason.text),
            Settled::Delivered | Settled::Discarded => ("", ""),
        }
    }
}

/// The item that one mapping makes of an event that is to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewItem {
    /// The mapping's name.
    pub mapping: Arc<str>,
    /// Whether the item is to be sent, and about whom.
    pub disposition: Disposition<Addressee>,
}

/// Whom an item that is to be sent is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addressee {
    /// Items of one ordering key are sent in order, one request at a time.
    pub ordering_key: OrderingKey,
    /// The mappings by which the ordering key was computed.
    pub keying: Keying,
    /// The person or account.
    pub person: Person,
}

/// An event on its way into the outbox.
#[derive(Debug, Clone)]
pub struct NewEvent {
    /// Unique among all events of which the outbox still has the id.
    pub message_id: MessageId,
    /// Tells a duplicate from another event under the same id.
    pub digest: Digest,
    /// Segment's `type`.
    pub kind: Option<String>,
    /// The `event` of a track.
    pub name: Option<String>,
    /// The spool file that the event came in.
    pub file: Arc<str>,
    /// The line of an NDJSON file or the index in an array, from 1; 0 for a file that is one event.
    pub place: u64,
    /// The uid of the file's owner.
    pub owner: Option<u32>,
    /// The file's modification time: the event's timestamp where it has none.
    pub spooled_at: Timestamp,
    /// The event's text as it came.
    pub body: String,
    /// Whether the event is to be sent, as which items.
    pub disposition: Disposition<Vec<NewItem>>,
}

impl NewEvent {
    /// Whether the event is without its content, because its person was erased.
    pub(super) fn is_redacted(&self) -> bool {
        matches!(&self.disposition, Disposition::Skip(reason) if reason.code == Code::Erased)
    }

    /// The parts that may name a person.
    pub(super) fn naming_parts(&self) -> NamingParts<'_> {
        let mut texts = vec![self.message_id.as_str(), self.name.as_deref().unwrap_or_default()];
        let mut profile_ids = Vec::new();
        match &self.disposition {
            Disposition::Skip(reason) | Disposition::Fail(reason) => texts.push(&reason.text),
            Disposition::Send(items) => items.iter().for_each(|item| match &item.disposition {
                Disposition::Skip(reason) | Disposition::Fail(reason) => texts.push(&reason.text),
                Disposition::Send(Addressee { person, .. }) => {
                    texts.push(person.as_str());
                    profile_ids.extend(person.profile_id());
                }
            }),
        }
        NamingParts { body: Some(&self.body), file: &self.file, texts, profile_ids }
    }
}

/// An item that waits, as far as its turn depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueuedItem {
    /// The item's place in the order of the spool.
    pub seq: i64,
    /// The ordering key of its person.
    pub key: OrderingKey,
    /// The uid of the owner of its file.
    pub owner: Option<u32>,
}

/// A pending item as the sender reads it: what one mapping makes of an event.
#[derive(Debug, Clone)]
pub struct PendingItem<'a> {
    /// The item's place in the order of the spool.
    pub seq: i64,
    /// Whether the item is all that is made of its event.
    pub is_alone: bool,
    /// The mapping that makes the item; empty: the first that takes the event.
    pub mapping: &'a str,
    /// The event's id.
    pub message_id: MessageId,
    /// The file's modification time: the event's timestamp where it has none.
    pub spooled_at: Timestamp,
    /// The event's text as it came.
    pub body: &'a str,
}

impl<'a> PendingItem<'a> {
    /// The item of a row whose first columns are these: seq, whether the item is alone, mapping, message_id, spooled_at,
    /// body.
    pub(super) fn from_row(row: &'a Row<'_>) -> Result<PendingItem<'a>, rusqlite::Error> {
        Ok(PendingItem {
            seq: row.get(0)?,
            is_alone: row.get(1)?,
            mapping: row.get_ref(2)?.as_str()?,
            message_id: MessageId::from_stored(row.get(3)?),
            spooled_at: Timestamp(row.get(4)?),
            body: row.get_ref(5)?.as_str()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_has_its_own_name() {
        assert_eq!(State::ALL.map(State::as_str), ["pending", "delivered", "skipped", "failed", "discarded"]);
        assert_eq!(State::ALL.map(|state| State::parse(state.as_str())), State::ALL.map(Some));
        assert_eq!(State::parse("Pending"), None);
    }

    #[test]
    fn only_a_person_changes_a_settled_event_and_nobody_a_discarded_one() {
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

//! What the scheduler and the sender tell each other: the next action, a request to be built and one in flight, and what
//! an answer changes.

use super::in_flight::Lane;
use super::suspicion::Evidence;
use crate::clock::{Mono, Timestamp};
use crate::item::{Endpoint, OrderingKey};
use crate::outbox::Settled;
use crate::reason::Reason;
use crate::status::DestinationState;

/// The next action of the sender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NextAction {
    /// Build the request of `Scheduler::events`; if it may be sent (`Scheduler::may_send`), send it and call
    /// `Scheduler::sent`, else `Scheduler::settled_unsent` or `Scheduler::nothing_sent`.
    Start(BatchPlan),
    /// Search the outbox for pending events, then call `Scheduler::discovered` and `Scheduler::set_exhausted`.
    Discover,
    /// Ask `/auth`, then call `Scheduler::auth_answered`.
    AskAuth,
    /// Wait for an answer, a commit or an event, or until this moment.
    Wait(Option<Mono>),
}

/// A request to be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchPlan {
    /// The ordering key of the events.
    pub key: OrderingKey,
    /// Which of its events.
    pub selection: Selection,
    pub(super) lane: Lane,
    pub(super) started_at: Mono,
}

#[cfg(test)]
impl BatchPlan {
    /// A plan that no scheduler has made.
    pub fn unscheduled(key: OrderingKey, selection: Selection) -> BatchPlan {
        BatchPlan { key, selection, lane: Lane::Suspect, started_at: Mono::ZERO }
    }
}

/// Which of an ordering key's pending events are planned for the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selection {
    /// The oldest, at most this many.
    First(usize),
    /// The one with so many before it, alone: it may show that the receiver accepts another event than the oldest, where
    /// no other person's does.
    Witness(usize),
}

/// A request in flight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InFlight {
    pub(super) plan: BatchPlan,
    pub(super) endpoint: Endpoint,
    /// The events in it.
    pub seqs: Vec<i64>,
    pub(super) size: usize,
    /// The connections that it was sent over.
    pub(super) connections: u64,
    pub(super) sent_at: Mono,
    /// The destination's pauses when it was sent, and what the path had shown by then.
    pub(super) pause_count: u64,
    pub(super) evidence: Evidence,
    pub(super) receiver: u64,
}

/// The changes that an answer makes to the outbox, in one commit; after that, call `Scheduler::settled`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AnswerEffects {
    /// Events that are settled.
    pub rows: Vec<(i64, Settled)>,
    /// The ordering keys of those events; nothing of them is sent before the commit.
    pub keys: Vec<OrderingKey>,
    /// Events that stay pending, and the answer to be noted with them.
    pub noted: Option<(Vec<i64>, Reason)>,
}

/// A path's state as `status` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathView<'a> {
    /// The state.
    pub state: DestinationState,
    /// The time since which it has this state.
    pub since: Timestamp,
    /// The reason of the state.
    pub reason: Option<&'a Reason>,
    /// The time of the next try, while the path waits.
    pub retry_at: Option<Timestamp>,
}

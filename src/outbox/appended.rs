//! The result of an append.

use super::row::QueuedItem;
use crate::clock::Timestamp;

/// The result of [`Writer::append`](super::Writer::append).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Appended {
    /// All events are on the disk, duplicates since an earlier append.
    Stored {
        /// Events that are new.
        stored: u64,
        /// Events that were stored before.
        duplicates: u64,
        /// The items that wait now.
        enqueued: Enqueued,
    },
    /// Nothing is stored: these events carry the id of an earlier event of other content.
    Reused(Vec<ReusedId>),
    /// Nothing is stored: a person was suppressed while the append was on its way. Append the same events again.
    Outdated,
}

/// The items that an append has made pending, so that the sender need not search for them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Enqueued {
    /// The lowest number that no event had before the append.
    pub from: i64,
    /// The lowest number that no event has after it.
    pub to: i64,
    /// In the order of the spool.
    pub items: Vec<QueuedItem>,
    /// Some were mapped by other mappings than those in force, so the ordering keys are to be renewed first.
    pub is_stale: bool,
}

/// An event whose id an earlier event of other content has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReusedId {
    /// The event's index in the append.
    pub index: usize,
    /// The first event of that id; `None`: only its id is remembered.
    pub first: Option<FirstEvent>,
}

/// The event that had an id first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirstEvent {
    /// When it was stored.
    pub at: Timestamp,
    /// Its spool file.
    pub file: String,
    /// The uid of the owner of that file.
    pub owner: Option<u32>,
}

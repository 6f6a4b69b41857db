//! The search through the outbox for items that wait.
//!
//! Items that were stored just now are known without it. Everything else is found by reading the queue from its start:
//! what waited when the agent started, what a command has put back, and what did not fit into the scheduler's window. An
//! index of what is known would be as large as the queue; one number tells how far the search has come.

use super::scheduler::Scheduler;
use crate::outbox::{Enqueued, OutboxError, QueueReader};
use std::collections::BTreeSet;

/// Pending items read in one step.
const DISCOVER_LIMIT: usize = 1_000;

/// How far the outbox is searched, and what the search must pass over.
#[derive(Debug, Default)]
pub struct QueueSearch {
    /// The outbox is searched up to this item.
    searched_to: i64,
    /// The first sequence number that was free after the last commit of new items.
    stored_to: Option<i64>,
    /// The greatest `searched_to` of all searches.
    known_to: i64,
    /// Delivered items whose rows the present search may still find.
    delivered: BTreeSet<i64>,
}

/// What a step of the search has met behind the items that it has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Met {
    /// Items, or the end of the queue.
    Queue,
    /// Ordering keys that may be stale. None of these items is known yet.
    StaleKeys,
    /// Ordering keys that may be stale, of items that are known already and may be in flight.
    StaleKnownKeys,
}

impl QueueSearch {
    /// Begins at the start of the outbox, where events may have been put back.
    ///
    /// # Errors
    /// SQLite's.
    pub fn restart(&mut self, queue: &mut QueueReader, scheduler: &mut Scheduler) -> Result<(), OutboxError> {
        self.delivered = queue.acked()?;
        let last = self.delivered.last().copied().unwrap_or(0);
        self.known_to = self.known_to.max(self.searched_to).max(last);
        self.searched_to = 0;
        scheduler.set_exhausted(false);
        Ok(())
    }

    /// Adds items that were stored right behind all known ones; any others are left to the search.
    pub fn add_stored(&mut self, waiting: Enqueued, scheduler: &mut Scheduler) {
        let is_next = self.stored_to.replace(waiting.to).is_none_or(|to| to == waiting.from);
        if !is_next || waiting.is_stale || !scheduler.knows_all() {
            return scheduler.set_exhausted(false);
        }
        for item in waiting.items {
            // The search may have found the item before it was told of.
            if item.seq > self.searched_to {
                self.searched_to = item.seq;
                scheduler.discovered(item);
            }
        }
    }

    /// Makes one step.
    ///
    /// # Errors
    /// SQLite's.
    pub fn step(&mut self, queue: &mut QueueReader, scheduler: &mut Scheduler) -> Result<Met, OutboxError> {
        let found = queue.discover(self.searched_to, DISCOVER_LIMIT)?;
        scheduler.set_exhausted(found.len() < DISCOVER_LIMIT);
        for item in found {
            self.searched_to = item.seq;
            if !self.delivered.contains(&item.seq) {
                scheduler.discovered(item);
            }
        }
        if let (_, Some(stale)) = queue.keys()?.keying()? {
            scheduler.set_exhausted(false);
            let is_known = stale.start <= self.searched_to.max(self.known_to);
            return Ok(if is_known { Met::StaleKnownKeys } else { Met::StaleKeys });
        }
        if self.searched_to >= self.known_to {
            self.delivered = BTreeSet::new();
        }
        Ok(Met::Queue)
    }

    /// Notes items as delivered: their rows may still be there when the search arrives at them.
    pub fn settled(&mut self, seqs: Vec<i64>) {
        if self.searched_to < self.known_to {
            self.delivered.extend(seqs);
        }
    }

    /// Delivered items whose rows the search may still find.
    pub fn delivered(&self) -> &BTreeSet<i64> {
        &self.delivered
    }
}

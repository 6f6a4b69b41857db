//! The search through the outbox for items that wait.
//!
//! Items that were stored or put back just now are known without it. Everything else is found by reading the queue from
//! its start: what waited when the agent started, and what did not fit into the scheduler's window. An
//! index of what is known would be as large as the queue; one number tells how far the search has come.

use super::scheduler::Scheduler;
use crate::outbox::{Enqueued, OutboxError, QueueReader, QueuedItem};
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
    /// Items that were put back while their ordering keys were busy. The outbox may have them back before the scheduler
    /// has heard of the commit that settled them: it still knows them then, and is about to forget them.
    put_off: Vec<QueuedItem>,
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
    /// Begins at the start of the outbox, because all that is known is forgotten, or did not fit into the window.
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

    /// Begins at the start of the outbox, because the scheduler has forgotten everything, and nothing is in flight.
    ///
    /// # Errors
    /// SQLite's.
    pub fn begin_anew(
        &mut self,
        queue: &mut QueueReader,
        scheduler: &mut Scheduler,
    ) -> Result<(), OutboxError> {
        // The search finds them, under ordering keys that may have changed.
        self.put_off = Vec::new();
        self.restart(queue, scheduler)
    }

    /// Adds items that were stored right behind all known ones; any others are left to the search.
    pub fn add_stored(&mut self, waiting: Enqueued, scheduler: &mut Scheduler) {
        let is_next = self.stored_to.replace(waiting.to).is_none_or(|to| to == waiting.from);
        if !is_next || waiting.is_stale || !(scheduler.is_exhausted() && scheduler.has_window()) {
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

    /// Adds settled items that were put back; those whose ordering keys are busy wait for [`QueueSearch::add_put_off`].
    ///
    /// # Errors
    /// SQLite's.
    pub fn add_requeued(
        &mut self,
        waiting: Enqueued,
        queue: &mut QueueReader,
        scheduler: &mut Scheduler,
    ) -> Result<(), OutboxError> {
        if waiting.is_stale {
            // Their ordering keys are renewed, and everything is searched for anew then.
            return self.restart(queue, scheduler);
        }
        self.put_off.extend(waiting.items);
        self.add_put_off(queue, scheduler)
    }

    /// Adds the items whose turn was put off and whose ordering keys are ready. To be called between two steps of the
    /// sender, before a next request can make such a key busy again.
    ///
    /// # Errors
    /// SQLite's.
    pub fn add_put_off(
        &mut self,
        queue: &mut QueueReader,
        scheduler: &mut Scheduler,
    ) -> Result<(), OutboxError> {
        if self.put_off.is_empty() {
            return Ok(());
        }
        let (busy, ready) =
            std::mem::take(&mut self.put_off).into_iter().partition(|item| scheduler.is_busy(item.key));
        self.put_off = busy;
        self.add_back(ready, queue, scheduler)
    }

    /// Adds pending items where they stand, before or behind what is searched.
    ///
    /// # Errors
    /// SQLite's.
    pub fn add_back(
        &mut self,
        items: Vec<QueuedItem>,
        queue: &mut QueueReader,
        scheduler: &mut Scheduler,
    ) -> Result<(), OutboxError> {
        if !items.is_empty() && !scheduler.has_window() {
            return self.restart(queue, scheduler);
        }
        for item in items {
            // An item that was delivered before is delivered no more.
            self.delivered.remove(&item.seq);
            match item.seq <= self.searched_to {
                true => scheduler.discovered(item),
                // The search is still to come there.
                false => scheduler.set_exhausted(false),
            }
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::destination::Destination;
    use crate::agent::scheduler::{BatchPlan, InFlight, NextAction};
    use crate::clock::{Clock, Moment, Mono, Timestamp};
    use crate::config::Concurrency;
    use crate::item::{Endpoint, OrderingKey};
    use crate::koala::Verdict;
    use crate::outbox::{Outbox, Reader, fixture};

    const NOW: Moment = Moment { wall: Timestamp(0), mono: Mono::ZERO };
    const ITEM: QueuedItem = QueuedItem { seq: 1, key: OrderingKey(7), owner: None };

    fn start(scheduler: &mut Scheduler) -> Option<(BatchPlan, Vec<i64>)> {
        match scheduler.next(NOW) {
            NextAction::Start(plan) => Some((plan, scheduler.events(plan))),
            _ => None,
        }
    }

    fn send(scheduler: &mut Scheduler, plan: BatchPlan, seqs: Vec<i64>) -> InFlight {
        scheduler.sent(plan, Endpoint::People, seqs, 100, 0, NOW.mono)
    }

    /// A retry may follow the commit of a delivery at once, and reach the sender before it.
    #[test]
    fn an_item_that_is_put_back_before_its_settlement_is_known_is_sent_again() {
        let dir = tempfile::tempdir().unwrap();
        let config = fixture::config(dir.path());
        let outbox = Outbox::open(&config, Clock::system()).unwrap();
        let reader = Reader::open_in_process(outbox.path()).unwrap();
        let mut queue = QueueReader::new(reader, outbox.writer.stats()).unwrap();
        let rng = fastrand::Rng::with_seed(1);
        let mut scheduler = Scheduler::new(Destination::new(Concurrency::Fixed(4), None, NOW, rng));
        let mut search = QueueSearch { searched_to: 9, known_to: 20, ..QueueSearch::default() };
        scheduler.set_exhausted(true);
        scheduler.discovered(ITEM);
        let (plan, seqs) = start(&mut scheduler).unwrap();
        let in_flight = send(&mut scheduler, plan, seqs);
        let settled = scheduler.answered(in_flight, Verdict::Accepted, NOW);

        let back = Enqueued { items: vec![ITEM], ..Enqueued::default() };
        search.add_requeued(back, &mut queue, &mut scheduler).unwrap();
        search.add_put_off(&mut queue, &mut scheduler).unwrap();
        assert_eq!(start(&mut scheduler), None);
        scheduler.settled(&settled.keys, &[ITEM.seq]);
        search.settled(vec![ITEM.seq]);
        search.add_put_off(&mut queue, &mut scheduler).unwrap();
        let (_, seqs) = start(&mut scheduler).unwrap();
        assert_eq!(seqs, [ITEM.seq]);
        assert!(search.put_off.is_empty() && search.delivered.is_empty());
        outbox.close();
    }
}

//! The ordering keys with pending events, and whether each is ready, busy or waiting. Pure bookkeeping.

use crate::clock::Mono;
use crate::item::OrderingKey;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

/// The memory of an event, and of an ordering key without its events. The tables may be half empty.
const EVENT_BYTES: usize = 12;
const KEY_BYTES: usize = 200;

/// The ordering keys that are known to have pending events.
#[derive(Debug, Default)]
pub struct OrderingKeys {
    queues: HashMap<OrderingKey, KeyQueue>,
    /// The few ordering keys with failures or refusals.
    records: HashMap<OrderingKey, FailureRecord>,
    event_count: usize,
    /// The oldest event of each ready ordering key.
    ready: BTreeMap<i64, OrderingKey>,
    waiting: BTreeSet<(Mono, OrderingKey)>,
}

/// The pending events of an ordering key.
#[derive(Debug)]
struct KeyQueue {
    readiness: KeyReadiness,
    /// The pending events, oldest first; empty only while the ordering key is busy.
    events: VecDeque<i64>,
}

/// Failures and refusals of an ordering key.
#[derive(Debug, Default)]
struct FailureRecord {
    /// The number of oldest events that were refused together, so that at least one of them is to blame.
    bisect_range: usize,
    /// Failures since the ordering key's last acceptance.
    failures: u32,
    /// The number of accepted requests, of all ordering keys, at the last counted failure.
    failed_at: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeyReadiness {
    /// The oldest event may be sent.
    Ready,
    /// A request is planned, in flight or being settled, or an isolation holds the ordering key.
    Busy,
    /// The ordering key waits after failures of its own.
    Waiting,
}

impl OrderingKeys {
    /// Adds a pending event. The events of an ordering key may come in any order, and more than once.
    pub fn discovered(&mut self, seq: i64, key: OrderingKey) {
        let queue = self
            .queues
            .entry(key)
            .or_insert_with(|| KeyQueue { readiness: KeyReadiness::Ready, events: VecDeque::new() });
        let oldest = queue.events.front().copied();
        match queue.events.back() {
            Some(newest) if *newest >= seq => match queue.events.binary_search(&seq) {
                Ok(_) => return,
                Err(at) => queue.events.insert(at, seq),
            },
            _ => queue.events.push_back(seq),
        }
        self.event_count += 1;
        if queue.readiness == KeyReadiness::Ready && oldest.is_none_or(|oldest| seq < oldest) {
            if let Some(oldest) = oldest {
                self.ready.remove(&oldest);
            }
            self.ready.insert(seq, key);
        }
    }

    /// The memory of all ordering keys and their events, in bytes, about.
    pub fn bytes(&self) -> usize {
        self.event_count * EVENT_BYTES + self.queues.len() * KEY_BYTES
    }

    /// The ordering key's pending events, oldest first.
    pub fn events(&self, key: OrderingKey) -> impl Iterator<Item = i64> {
        self.queues.get(&key).into_iter().flat_map(|queue| queue.events.iter().copied())
    }

    pub fn pending_count(&self, key: OrderingKey) -> usize {
        self.queues.get(&key).map_or(0, |queue| queue.events.len())
    }

    /// Removes events of a busy ordering key that are not pending any more.
    pub fn remove_events(&mut self, key: OrderingKey, seqs: &[i64]) {
        let Some(queue) = self.queues.get_mut(&key) else { return };
        for seq in seqs {
            // Removed events are the oldest, as a rule.
            let removed = if queue.events.front() == Some(seq) {
                queue.events.pop_front()
            } else {
                queue.events.binary_search(seq).ok().and_then(|at| queue.events.remove(at))
            };
            self.event_count -= usize::from(removed.is_some());
        }
    }

    /// Makes the ordering keys ready whose wait is over.
    pub fn wake(&mut self, now: Mono) {
        while let Some(&(until, key)) = self.waiting.first().filter(|(until, _)| *until <= now) {
            self.waiting.remove(&(until, key));
            if self.queues.get(&key).is_some_and(|queue| queue.readiness == KeyReadiness::Waiting) {
                self.set_ready(key);
            }
        }
    }

    /// When the next wait is over.
    pub fn next_wake(&self) -> Option<Mono> {
        self.waiting.first().map(|(until, _)| *until)
    }

    /// The ready ordering key with the oldest event.
    pub fn oldest_ready(&self) -> Option<OrderingKey> {
        self.ready.values().next().copied()
    }

    /// The ready ordering key with the oldest event after `seq`.
    pub fn oldest_ready_after(&self, seq: i64) -> Option<OrderingKey> {
        self.ready.range(seq + 1..).next().map(|(_, key)| *key)
    }

    /// The ready ordering key with the oldest event of those without a refused event; one without failures comes first.
    pub fn canary(&self) -> Option<OrderingKey> {
        let unrefused = || self.ready.values().filter(|key| self.bisect_range(**key) == 0);
        let unfailed = |key: &&OrderingKey| self.records.get(*key).is_none_or(|record| record.failures == 0);
        unrefused().find(unfailed).or_else(|| unrefused().next()).copied()
    }

    /// The number of the ordering key's oldest events that were refused together; 0: none were.
    pub fn bisect_range(&self, key: OrderingKey) -> usize {
        self.records.get(&key).map_or(0, |record| record.bisect_range)
    }

    /// Makes the ordering key busy. Returns its oldest event if it was ready.
    pub fn set_busy(&mut self, key: OrderingKey) -> Option<i64> {
        let queue = self.queues.get_mut(&key)?;
        let was_ready = std::mem::replace(&mut queue.readiness, KeyReadiness::Busy) == KeyReadiness::Ready;
        let oldest = queue.events.front().copied().filter(|_| was_ready)?;
        self.ready.remove(&oldest);
        Some(oldest)
    }

    /// Makes the ordering key ready; without a pending event it is forgotten.
    pub fn set_ready(&mut self, key: OrderingKey) {
        let Some(queue) = self.queues.get_mut(&key) else { return };
        match queue.events.front() {
            Some(oldest) => {
                queue.readiness = KeyReadiness::Ready;
                self.ready.insert(*oldest, key);
            }
            None => {
                self.queues.remove(&key);
                self.records.remove(&key);
            }
        }
    }

    /// Makes the ordering key ready, and notes that its `count` oldest events were refused together.
    pub fn set_bisect_range(&mut self, key: OrderingKey, count: usize) {
        if self.queues.contains_key(&key) {
            self.records.entry(key).or_default().bisect_range = count;
        }
        self.set_ready(key);
    }

    /// Notes that the `count` oldest events of the ordering key are settled, and forgets its failures.
    pub fn forget_failures(&mut self, key: OrderingKey, count: usize) {
        if let Entry::Occupied(mut entry) = self.records.entry(key) {
            let record = entry.get_mut();
            record.failures = 0;
            record.bisect_range = record.bisect_range.saturating_sub(count);
            if record.bisect_range == 0 {
                entry.remove();
            }
        }
    }

    /// Counts a failure of the ordering key, unless no request of anybody was accepted since its last one: `accepted`
    /// is their number. Returns the number of failures.
    pub fn count_failure(&mut self, key: OrderingKey, accepted: u64) -> u32 {
        if !self.queues.contains_key(&key) {
            return 0;
        }
        let record = self.records.entry(key).or_default();
        if record.failures == 0 || record.failed_at < accepted {
            record.failures = record.failures.saturating_add(1);
            record.failed_at = accepted;
        }
        record.failures
    }

    /// Has the ordering key wait by itself.
    pub fn set_waiting(&mut self, key: OrderingKey, until: Mono) {
        if let Some(queue) = self.queues.get_mut(&key) {
            queue.readiness = KeyReadiness::Waiting;
            self.waiting.insert((until, key));
        }
    }
}

//! Where each person's events stand: ready, in flight, held, or waiting alone. Pure bookkeeping.

use crate::clock::Mono;
use crate::item::OrderingKey;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

/// What an event takes, and an ordering key beside its events: in tables that are half empty at worst.
const EVENT_BYTES: usize = 12;
const KEY_BYTES: usize = 200;

/// The ordering keys that are known to have pending events, and which.
#[derive(Debug, Default)]
pub struct OrderingKeys {
    states: HashMap<OrderingKey, State>,
    /// What is held against few of them.
    records: HashMap<OrderingKey, Record>,
    /// Events in all of them.
    known: usize,
    /// The oldest event of each ordering key that is ready.
    ready: BTreeMap<i64, OrderingKey>,
    waiting: BTreeSet<(Mono, OrderingKey)>,
}

#[derive(Debug)]
struct State {
    place: Place,
    /// Its pending events, oldest first; never empty, but for a busy ordering key.
    events: VecDeque<i64>,
}

/// What is held against an ordering key.
#[derive(Debug, Default)]
struct Record {
    /// So many of the oldest events hold one that was refused in their company.
    bisect_range: usize,
    /// Troubles since the ordering key's last acceptance, and how many requests of anybody had been accepted at the last.
    failures: u32,
    failed_at: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Its oldest event may be sent.
    Ready,
    /// In flight, being marked, or held back.
    Busy,
    /// Waits alone.
    Waiting,
}

impl OrderingKeys {
    /// A pending event was found. Events of one ordering key may come in any order, and more than once.
    pub fn discovered(&mut self, seq: i64, key: OrderingKey) {
        let state =
            self.states.entry(key).or_insert_with(|| State { place: Place::Ready, events: VecDeque::new() });
        let oldest = state.events.front().copied();
        match state.events.back() {
            Some(newest) if *newest >= seq => match state.events.binary_search(&seq) {
                Ok(_) => return,
                Err(at) => state.events.insert(at, seq),
            },
            _ => state.events.push_back(seq),
        }
        self.known += 1;
        if state.place == Place::Ready && oldest.is_none_or(|oldest| seq < oldest) {
            if let Some(oldest) = oldest {
                self.ready.remove(&oldest);
            }
            self.ready.insert(seq, key);
        }
    }

    /// The memory that all of them take, in bytes, about.
    pub fn bytes(&self) -> usize {
        self.known * EVENT_BYTES + self.states.len() * KEY_BYTES
    }

    /// The ordering key's pending events, oldest first.
    pub fn events(&self, key: OrderingKey) -> impl Iterator<Item = i64> {
        self.states.get(&key).into_iter().flat_map(|state| state.events.iter().copied())
    }

    /// How many those are.
    pub fn count(&self, key: OrderingKey) -> usize {
        self.states.get(&key).map_or(0, |state| state.events.len())
    }

    /// These events of the ordering key, which is busy, wait no more.
    pub fn gone(&mut self, key: OrderingKey, seqs: &[i64]) {
        let Some(state) = self.states.get_mut(&key) else { return };
        for seq in seqs {
            // They are the oldest, as a rule.
            let gone = if state.events.front() == Some(seq) {
                state.events.pop_front()
            } else {
                state.events.binary_search(seq).ok().and_then(|at| state.events.remove(at))
            };
            self.known -= usize::from(gone.is_some());
        }
    }

    /// The ordering keys whose wait is over are ready.
    pub fn wake(&mut self, now: Mono) {
        while let Some(&(until, key)) = self.waiting.first().filter(|(until, _)| *until <= now) {
            self.waiting.remove(&(until, key));
            if self.states.get(&key).is_some_and(|state| state.place == Place::Waiting) {
                self.ready(key);
            }
        }
    }

    /// When the next wait is over.
    pub fn next_wake(&self) -> Option<Mono> {
        self.waiting.first().map(|(until, _)| *until)
    }

    /// The ready ordering key with the oldest event.
    pub fn oldest(&self) -> Option<OrderingKey> {
        self.ready.values().next().copied()
    }

    /// The ready ordering key with the oldest event after that one.
    pub fn after(&self, seq: i64) -> Option<OrderingKey> {
        self.ready.range(seq + 1..).next().map(|(_, key)| *key)
    }

    /// The ready ordering key with the oldest event among those in which nothing was refused; rather one that was not in
    /// trouble either.
    pub fn canary(&self) -> Option<OrderingKey> {
        let unsuspected = || self.ready.values().filter(|key| self.bisect_range(**key) == 0);
        let spotless = |key: &&OrderingKey| self.records.get(*key).is_none_or(|record| record.failures == 0);
        unsuspected().find(spotless).or_else(|| unsuspected().next()).copied()
    }

    /// So many of the ordering key's oldest events hold one that was refused in their company.
    pub fn bisect_range(&self, key: OrderingKey) -> usize {
        self.records.get(&key).map_or(0, |record| record.bisect_range)
    }

    /// The ordering key is busy; returns its oldest event if it was ready.
    pub fn begin(&mut self, key: OrderingKey) -> Option<i64> {
        let state = self.states.get_mut(&key)?;
        let was_ready = std::mem::replace(&mut state.place, Place::Busy) == Place::Ready;
        let oldest = state.events.front().copied().filter(|_| was_ready)?;
        self.ready.remove(&oldest);
        Some(oldest)
    }

    /// The ordering key is not busy any more, and may be asked for its oldest event; without one it is forgotten.
    pub fn ready(&mut self, key: OrderingKey) {
        let Some(state) = self.states.get_mut(&key) else { return };
        match state.events.front() {
            Some(oldest) => {
                state.place = Place::Ready;
                self.ready.insert(*oldest, key);
            }
            None => {
                self.states.remove(&key);
                self.records.remove(&key);
            }
        }
    }

    /// The ordering key is ready, and its oldest `count` events hold one that was refused.
    pub fn set_bisect_range(&mut self, key: OrderingKey, count: usize) {
        if self.states.contains_key(&key) {
            self.records.entry(key).or_default().bisect_range = count;
        }
        self.ready(key);
    }

    /// So many of the ordering key's oldest events are settled: what was held against them is forgotten.
    pub fn clear(&mut self, key: OrderingKey, count: usize) {
        if let Entry::Occupied(mut entry) = self.records.entry(key) {
            let record = entry.get_mut();
            record.failures = 0;
            record.bisect_range = record.bisect_range.saturating_sub(count);
            if record.bisect_range == 0 {
                entry.remove();
            }
        }
    }

    /// Counts a trouble against the ordering key; each counts once for all that anybody had `accepted` before it.
    /// Returns how many there are.
    pub fn count_failure(&mut self, key: OrderingKey, accepted: u64) -> u32 {
        if !self.states.contains_key(&key) {
            return 0;
        }
        let record = self.records.entry(key).or_default();
        if record.failures == 0 || record.failed_at < accepted {
            record.failures = record.failures.saturating_add(1);
            record.failed_at = accepted;
        }
        record.failures
    }

    /// The ordering key waits alone.
    pub fn wait(&mut self, key: OrderingKey, until: Mono) {
        if let Some(state) = self.states.get_mut(&key) {
            state.place = Place::Waiting;
            self.waiting.insert((until, key));
        }
    }
}

//! Where each person's events stand: ready, in flight, held, or waiting alone. Pure bookkeeping.

use crate::clock::Mono;
use crate::item::Lane;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

/// What an event takes, and a lane beside its events: in tables that are half empty at worst.
const EVENT_BYTES: usize = 12;
const LANE_BYTES: usize = 200;

/// The lanes that are known to have pending events, and which.
#[derive(Debug, Default)]
pub struct Lanes {
    states: HashMap<Lane, State>,
    /// What is held against few of them.
    records: HashMap<Lane, Record>,
    /// Events in all of them.
    known: usize,
    /// The oldest event of each lane that is ready.
    ready: BTreeMap<i64, Lane>,
    waiting: BTreeSet<(Mono, Lane)>,
}

#[derive(Debug)]
struct State {
    place: Place,
    /// Its pending events, oldest first; never empty, but for a busy lane.
    events: VecDeque<i64>,
}

/// What is held against a lane.
#[derive(Debug, Default)]
struct Record {
    /// So many of the oldest events hold one that was refused in their company.
    suspects: usize,
    /// Troubles since the lane's last acceptance, and how many requests of anybody had been accepted at the last.
    strikes: u32,
    struck_at: u64,
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

impl Lanes {
    /// A pending event was found. Events of one lane may come in any order, and more than once.
    pub fn discovered(&mut self, seq: i64, lane: Lane) {
        let state =
            self.states.entry(lane).or_insert_with(|| State { place: Place::Ready, events: VecDeque::new() });
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
            self.ready.insert(seq, lane);
        }
    }

    /// The memory that all of them take, in bytes, about.
    pub fn bytes(&self) -> usize {
        self.known * EVENT_BYTES + self.states.len() * LANE_BYTES
    }

    /// The lane's pending events, oldest first.
    pub fn events(&self, lane: Lane) -> impl Iterator<Item = i64> {
        self.states.get(&lane).into_iter().flat_map(|state| state.events.iter().copied())
    }

    /// How many those are.
    pub fn count(&self, lane: Lane) -> usize {
        self.states.get(&lane).map_or(0, |state| state.events.len())
    }

    /// These events of the lane, which is busy, wait no more.
    pub fn gone(&mut self, lane: Lane, seqs: &[i64]) {
        let Some(state) = self.states.get_mut(&lane) else { return };
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

    /// The lanes whose wait is over are ready.
    pub fn wake(&mut self, now: Mono) {
        while let Some(&(until, lane)) = self.waiting.first().filter(|(until, _)| *until <= now) {
            self.waiting.remove(&(until, lane));
            if self.states.get(&lane).is_some_and(|state| state.place == Place::Waiting) {
                self.ready(lane);
            }
        }
    }

    /// When the next wait is over.
    pub fn next_wake(&self) -> Option<Mono> {
        self.waiting.first().map(|(until, _)| *until)
    }

    /// The ready lane with the oldest event.
    pub fn oldest(&self) -> Option<Lane> {
        self.ready.values().next().copied()
    }

    /// The ready lane with the oldest event after that one.
    pub fn after(&self, seq: i64) -> Option<Lane> {
        self.ready.range(seq + 1..).next().map(|(_, lane)| *lane)
    }

    /// The ready lane with the oldest event among those in which nothing was refused; rather one that was not in
    /// trouble either.
    pub fn control(&self) -> Option<Lane> {
        let unsuspected = || self.ready.values().filter(|lane| self.suspects(**lane) == 0);
        let spotless = |lane: &&Lane| self.records.get(*lane).is_none_or(|record| record.strikes == 0);
        unsuspected().find(spotless).or_else(|| unsuspected().next()).copied()
    }

    /// So many of the lane's oldest events hold one that was refused in their company.
    pub fn suspects(&self, lane: Lane) -> usize {
        self.records.get(&lane).map_or(0, |record| record.suspects)
    }

    /// The lane is busy; returns its oldest event if it was ready.
    pub fn begin(&mut self, lane: Lane) -> Option<i64> {
        let state = self.states.get_mut(&lane)?;
        let was_ready = std::mem::replace(&mut state.place, Place::Busy) == Place::Ready;
        let oldest = state.events.front().copied().filter(|_| was_ready)?;
        self.ready.remove(&oldest);
        Some(oldest)
    }

    /// The lane is not busy any more, and may be asked for its oldest event; without one it is forgotten.
    pub fn ready(&mut self, lane: Lane) {
        let Some(state) = self.states.get_mut(&lane) else { return };
        match state.events.front() {
            Some(oldest) => {
                state.place = Place::Ready;
                self.ready.insert(*oldest, lane);
            }
            None => {
                self.states.remove(&lane);
                self.records.remove(&lane);
            }
        }
    }

    /// The lane is ready, and its oldest `count` events hold one that was refused.
    pub fn suspect(&mut self, lane: Lane, count: usize) {
        if self.states.contains_key(&lane) {
            self.records.entry(lane).or_default().suspects = count;
        }
        self.ready(lane);
    }

    /// So many of the lane's oldest events are settled: what was held against them is forgotten.
    pub fn clear(&mut self, lane: Lane, count: usize) {
        if let Entry::Occupied(mut entry) = self.records.entry(lane) {
            let record = entry.get_mut();
            record.strikes = 0;
            record.suspects = record.suspects.saturating_sub(count);
            if record.suspects == 0 {
                entry.remove();
            }
        }
    }

    /// Counts a trouble against the lane; each counts once for all that anybody had `accepted` before it.
    /// Returns how many there are.
    pub fn strike(&mut self, lane: Lane, accepted: u64) -> u32 {
        if !self.states.contains_key(&lane) {
            return 0;
        }
        let record = self.records.entry(lane).or_default();
        if record.strikes == 0 || record.struck_at < accepted {
            record.strikes = record.strikes.saturating_add(1);
            record.struck_at = accepted;
        }
        record.strikes
    }

    /// The lane waits alone.
    pub fn wait(&mut self, lane: Lane, until: Mono) {
        if let Some(state) = self.states.get_mut(&lane) {
            state.place = Place::Waiting;
            self.waiting.insert((until, lane));
        }
    }
}

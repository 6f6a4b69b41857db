//! Where each person's events stand: ready, in flight, held, or waiting alone. Pure bookkeeping.

use crate::clock::Mono;
use crate::item::Lane;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

/// The lanes that are known to have pending events, and which.
#[derive(Debug, Default)]
pub struct Lanes {
    states: HashMap<Lane, State>,
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
        let state = self.states.entry(lane).or_insert_with(|| State {
            place: Place::Ready,
            events: VecDeque::new(),
            suspects: 0,
            strikes: 0,
            struck_at: 0,
        });
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

    /// How many pending events are known.
    pub fn known(&self) -> usize {
        self.known
    }

    /// The lane's pending events, oldest first.
    pub fn events(&self, lane: Lane) -> impl Iterator<Item = i64> {
        self.states.get(&lane).into_iter().flat_map(|state| state.events.iter().copied())
    }

    /// These events of the lane, which is busy, wait no more.
    pub fn gone(&mut self, lane: Lane, seqs: &[i64]) {
        if let Some(state) = self.states.get_mut(&lane) {
            let before = state.events.len();
            state.events.retain(|seq| !seqs.contains(seq));
            self.known -= before - state.events.len();
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
        let spotless = |lane: &&Lane| self.states.get(*lane).is_some_and(|state| state.strikes == 0);
        unsuspected().find(spotless).or_else(|| unsuspected().next()).copied()
    }

    /// So many of the lane's oldest events hold one that was refused in their company.
    pub fn suspects(&self, lane: Lane) -> usize {
        self.states.get(&lane).map_or(0, |state| state.suspects)
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
            }
        }
    }

    /// The lane is ready, and its oldest `count` events hold one that was refused.
    pub fn suspect(&mut self, lane: Lane, count: usize) {
        if let Some(state) = self.states.get_mut(&lane) {
            state.suspects = count;
        }
        self.ready(lane);
    }

    /// So many of the lane's oldest events are settled: what was held against them is forgotten.
    pub fn clear(&mut self, lane: Lane, count: usize) {
        if let Some(state) = self.states.get_mut(&lane) {
            state.strikes = 0;
            state.suspects = state.suspects.saturating_sub(count);
        }
    }

    /// Counts a trouble against the lane; each counts once for all that anybody had `accepted` before it.
    /// Returns how many there are.
    pub fn strike(&mut self, lane: Lane, accepted: u64) -> u32 {
        let Some(state) = self.states.get_mut(&lane) else { return 0 };
        if state.strikes == 0 || state.struck_at < accepted {
            state.strikes = state.strikes.saturating_add(1);
            state.struck_at = accepted;
        }
        state.strikes
    }

    /// The lane waits alone.
    pub fn wait(&mut self, lane: Lane, until: Mono) {
        if let Some(state) = self.states.get_mut(&lane) {
            state.place = Place::Waiting;
            self.waiting.insert((until, lane));
        }
    }
}

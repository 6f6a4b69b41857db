//! Where each person's events stand: ready, in flight, held, or waiting alone. Pure bookkeeping.

use crate::clock::Mono;
use crate::item::Lane;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The lanes that are known to have pending events.
#[derive(Debug, Default)]
pub struct Lanes {
    states: HashMap<Lane, State>,
    /// The oldest event of each lane that is ready.
    ready: BTreeMap<i64, Lane>,
    waiting: BTreeSet<(Mono, Lane)>,
}

#[derive(Debug)]
struct State {
    place: Place,
    /// So many of the oldest events hold one that was refused in their company.
    suspects: usize,
    /// Troubles since the lane's last acceptance, and how many requests of anybody had been accepted at the last.
    strikes: u32,
    struck_at: u64,
    /// An event was found while the lane was busy.
    more: Option<i64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Its oldest event is this one, and may be sent.
    Ready(i64),
    /// In flight, being marked, or held back.
    Busy,
    /// Waits alone.
    Waiting(Mono, i64),
}

impl Lanes {
    /// A pending event was found. Events of one lane may come in any order.
    pub fn discovered(&mut self, seq: i64, lane: Lane) {
        let Some(state) = self.states.get_mut(&lane) else {
            let state = State { place: Place::Ready(seq), suspects: 0, strikes: 0, struck_at: 0, more: None };
            self.states.insert(lane, state);
            self.ready.insert(seq, lane);
            return;
        };
        match state.place {
            Place::Ready(oldest) if seq < oldest => self.ready(lane, seq),
            Place::Ready(_) | Place::Waiting(..) => {}
            Place::Busy => state.more = Some(state.more.map_or(seq, |more| more.min(seq))),
        }
    }

    /// The lanes whose wait is over are ready.
    pub fn wake(&mut self, now: Mono) {
        while let Some(&(until, lane)) = self.waiting.first().filter(|(until, _)| *until <= now) {
            self.waiting.remove(&(until, lane));
            if let Some(Place::Waiting(_, seq)) = self.states.get(&lane).map(|state| state.place) {
                self.ready(lane, seq);
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
        state.more = None;
        let place = std::mem::replace(&mut state.place, Place::Busy);
        let Place::Ready(seq) = place else { return None };
        self.ready.remove(&seq);
        Some(seq)
    }

    /// The lane may be asked for its oldest event, which is this one.
    pub fn ready(&mut self, lane: Lane, seq: i64) {
        let Some(state) = self.states.get_mut(&lane) else { return };
        if let Place::Ready(old) = state.place {
            self.ready.remove(&old);
        }
        state.place = Place::Ready(seq);
        self.ready.insert(seq, lane);
    }

    /// The lane is ready, and its oldest `count` events, from `first` on, hold one that was refused.
    pub fn suspect(&mut self, lane: Lane, first: i64, count: usize) {
        if let Some(state) = self.states.get_mut(&lane) {
            state.suspects = count;
        }
        self.ready(lane, first);
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

    /// The lane waits alone; then its oldest event is this one.
    pub fn wait(&mut self, lane: Lane, until: Mono, seq: i64) {
        if let Some(state) = self.states.get_mut(&lane) {
            state.place = Place::Waiting(until, seq);
            self.waiting.insert((until, lane));
        }
    }

    /// The lane is not busy any more. `next`: the oldest event that it still has.
    pub fn release(&mut self, lane: Lane, next: Option<i64>) {
        let Some(state) = self.states.get_mut(&lane) else { return };
        match [next, state.more.take()].into_iter().flatten().min() {
            Some(seq) => self.ready(lane, seq),
            None => {
                self.states.remove(&lane);
            }
        }
    }
}

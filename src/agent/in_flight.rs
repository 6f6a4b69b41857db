//! The requests in flight, counted by the width that each takes a part of. Pure.
//!
//! A request that hangs must not stop the others until its time-out: as soon as one that was sent later is accepted, it is
//! counted among the suspects' requests, which are beside the others. Its age alone says nothing: a receiver may be slow.

use super::limiter::SUSPECTS;
use super::ordering_keys::Side;
use crate::clock::Mono;
use crate::item::{Endpoint, OrderingKey};
use std::collections::BTreeSet;
use std::time::Duration;

/// The time without an answer after which a request may hang.
const PATIENCE: Duration = Duration::from_secs(2);

/// The width that a request takes a part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Of a person that was never tried, from that end of the order.
    Untried(Side),
    Suspect,
    /// Of a round on that path.
    Round(Endpoint),
}

/// The requests that were planned and not answered.
#[derive(Debug, Default)]
pub struct InFlightCounts {
    from_oldest: usize,
    from_newest: usize,
    suspects: usize,
    /// The requests of untried persons by the time of their start, without those that hang.
    at_work: BTreeSet<(Mono, OrderingKey)>,
    /// When the last request was started or answered.
    silent_since: Mono,
}

impl Lane {
    pub fn is_untried(self) -> bool {
        matches!(self, Lane::Untried(_))
    }
}

impl InFlightCounts {
    pub fn start(&mut self, lane: Lane, key: OrderingKey, now: Mono) {
        *self.count(lane) += 1;
        self.silent_since = now;
        if lane.is_untried() {
            self.at_work.insert((now, key));
        }
    }

    /// Notes that a request of that lane, started at `started`, has ended.
    pub fn end(&mut self, lane: Lane, key: OrderingKey, started: Mono) {
        *self.count(lane) -= 1;
        self.at_work.remove(&(started, key));
    }

    /// Notes an answer to a request that was started at `started`. If it was accepted, those from well before it hang.
    pub fn answered(&mut self, is_accepted: bool, started: Mono, now: Mono) {
        self.silent_since = now;
        while let Some((at, _)) = self.at_work.first().copied()
            && is_accepted
            && at < started
            && now >= at + PATIENCE
            && self.hanging() < SUSPECTS
        {
            self.at_work.pop_first();
        }
    }

    pub fn untried(&self) -> usize {
        self.from_oldest + self.from_newest
    }

    /// The requests of untried persons that do not hang. Where nothing is answered at all, one of them may.
    pub fn untried_at_work(&self, now: Mono) -> usize {
        self.at_work.len() - usize::from(self.is_silent(now) && !self.at_work.is_empty())
    }

    pub fn suspects(&self) -> usize {
        self.suspects
    }

    pub fn all(&self) -> usize {
        self.untried() + self.suspects
    }

    /// The requests of untried persons that hang.
    pub fn hanging(&self) -> usize {
        self.untried() - self.at_work.len()
    }

    /// The end of the order with fewer requests; `None`: both have the same number.
    pub fn smaller_side(&self) -> Option<Side> {
        match self.from_oldest.cmp(&self.from_newest) {
            std::cmp::Ordering::Less => Some(Side::Oldest),
            std::cmp::Ordering::Equal => None,
            std::cmp::Ordering::Greater => Some(Side::Newest),
        }
    }

    /// Whether nothing was answered for a while, so that what is in flight may hang.
    pub fn is_silent(&self, now: Mono) -> bool {
        now >= self.silent_since + PATIENCE
    }

    /// When it will be, if something is in flight and it is not yet.
    pub fn silent_at(&self, now: Mono) -> Option<Mono> {
        (self.all() > 0 && !self.is_silent(now)).then_some(self.silent_since + PATIENCE)
    }

    fn count(&mut self, lane: Lane) -> &mut usize {
        match lane {
            Lane::Untried(Side::Oldest) => &mut self.from_oldest,
            Lane::Untried(Side::Newest) => &mut self.from_newest,
            Lane::Suspect | Lane::Round(_) => &mut self.suspects,
        }
    }
}

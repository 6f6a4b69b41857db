//! The state of one path of the receiver, and whether requests go there. Pure.
//!
//! ```text
//!            six new suspects in a row, or nobody else is left      accepted
//!   open ────────────────────────────────────────────────▶ concluded ───────▶ open
//! ```
//!
//! Trouble is everybody's by proof only: six different persons became suspects since anything was accepted, or all that
//! wait if they are fewer. Who was a suspect before that, beside acceptances, proves nothing: a few bad persons that are
//! tried again and again would shut the path for everybody else. Then rounds of a few persons find out whether anybody is
//! accepted, and `/auth` tells whether the receiver is well. If it is, the rounds grow, since the good ones are to be found
//! behind any number of bad ones; if not, one person a round is enough. Rounds are better than a growing wait for
//! everybody: a wait finds a receiver that is back, but not the one good person behind two hundred.

use super::suspicion::{Evidence, backoff, fruitless_wait};
use crate::clock::{Moment, Mono, Timestamp};
use crate::item::OrderingKey;
use crate::reason::{Code, Reason, SUSPENDED};
use crate::status::DestinationState;
use std::collections::BTreeSet;
use std::time::Duration;

/// Persons in a row whose trouble is everybody's: less could be chance, where one request in ten fails.
const EVERYBODY: usize = 6;
/// The time between two rounds while persons wait that were never tried.
const ROUND_INTERVAL: Duration = Duration::from_secs(5);
/// The largest round is two to this power.
const LARGEST_ROUND: u32 = 5;
/// The time between two rounds of one person each after that: 32 in a quarter of an hour.
const SINGLE_INTERVAL: Duration = Duration::from_secs(15 * 60 / 32);
/// The longest first wait for a receiver that is not well, and the longest of all: one that is back is found within a
/// minute.
pub const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));

/// Whether requests go to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathGate {
    /// Everybody's, each person by their own wait.
    Open,
    /// One person's, of the present round.
    Round,
    /// None, until `/auth` has been asked.
    AskAuth,
    /// None before this moment; `None`: the answer of `/auth` is awaited.
    ShutUntil(Option<Mono>),
}

/// The state of a path.
#[derive(Debug)]
pub struct Path {
    state: DestinationState,
    since: Timestamp,
    reason: Option<Reason>,
    pub evidence: Evidence,
    /// The persons that met trouble since the last acceptance.
    met: BTreeSet<OrderingKey>,
    /// Those of them that were no suspects before it.
    new_suspects: usize,
    /// The state and the reason that the last trouble would lead to.
    last_trouble: Option<(DestinationState, Reason)>,
    rounds: Option<Rounds>,
}

/// Rounds of tries on a path whose trouble is everybody's.
#[derive(Debug)]
struct Rounds {
    /// What `/auth` said last.
    is_well: Option<bool>,
    is_asked: bool,
    /// Persons still to be tried in the present round.
    left: usize,
    /// When the present round began, and the wait from then to the next one.
    began: Mono,
    wait: Duration,
    /// Rounds since `is_well` changed.
    count: u32,
}

impl Path {
    pub fn new(now: Timestamp) -> Path {
        Path {
            state: DestinationState::Unknown,
            since: now,
            reason: None,
            evidence: Evidence::default(),
            met: BTreeSet::new(),
            new_suspects: 0,
            last_trouble: None,
            rounds: None,
        }
    }

    /// Notes an accepted request. Returns the persons whose trouble was everybody's.
    pub fn accepted(&mut self, now: Moment) -> BTreeSet<OrderingKey> {
        self.evidence.accepted += 1;
        self.evidence.well += 1;
        let met = std::mem::take(&mut self.met);
        let was_concluded = self.is_concluded();
        (self.new_suspects, self.last_trouble, self.rounds) = (0, None, None);
        self.enter(DestinationState::Online, None, now);
        if was_concluded { met } else { BTreeSet::new() }
    }

    /// Notes that an event is proven to be at fault: what was concluded from suspects like it does not hold.
    pub fn trouble_explained(&mut self, now: Moment) {
        if self.is_concluded() && self.rounds.is_none() {
            self.met.clear();
            self.new_suspects = 0;
            self.enter(DestinationState::Online, None, now);
        }
    }

    /// Notes the trouble of a person, and the state and reason that it leads to if it is everybody's.
    pub fn met_trouble(
        &mut self,
        key: OrderingKey,
        was_suspect: bool,
        trouble: (DestinationState, Reason),
        now: Moment,
    ) {
        self.new_suspects += usize::from(self.met.insert(key) && !was_suspect);
        self.last_trouble = Some(trouble);
        if self.is_concluded() || self.new_suspects >= EVERYBODY {
            self.conclude(self.new_suspects >= EVERYBODY, now);
        }
    }

    /// Whether so many persons are all that met trouble since the last acceptance.
    pub fn have_all_met_trouble(&self, persons: usize) -> bool {
        !self.met.is_empty() && self.met.len() >= persons
    }

    /// Concludes that the last trouble is everybody's. `has_rounds`: rounds begin, unless some are under way.
    pub fn conclude(&mut self, has_rounds: bool, now: Moment) {
        let Some((state, mut reason)) = self.last_trouble.take() else { return };
        if matches!(reason.code, Code::Refused | Code::TooLarge) {
            reason.code = Code::RefusesAll;
            if reason.text.contains(SUSPENDED) {
                reason =
                    reason.and(": the hosted service is shut down, set koala.endpoint to another receiver");
            }
        }
        self.enter(state, Some(reason), now);
        if has_rounds && self.rounds.is_none() {
            self.rounds = Some(Rounds::new(None, now.mono));
        }
    }

    /// Notes that `/auth` is being asked.
    pub fn auth_asked(&mut self) {
        if let Some(rounds) = &mut self.rounds {
            rounds.is_asked = true;
        }
    }

    /// Notes what `/auth` says, and begins the round that waited for it. `persons` wait on this path; fewer than six are
    /// tried by their own waits while the receiver is well.
    pub fn auth_answered(
        &mut self,
        is_well: bool,
        persons: usize,
        has_untried: bool,
        now: Mono,
        rng: &mut fastrand::Rng,
    ) {
        self.evidence.well += u64::from(is_well);
        let is_backoff = self.state == DestinationState::Backoff;
        if !self.is_concluded() || (is_well && persons < EVERYBODY) {
            self.rounds = None;
            return;
        }
        let rounds = self.rounds.get_or_insert_with(|| Rounds { is_asked: true, ..Rounds::new(None, now) });
        if std::mem::take(&mut rounds.is_asked) {
            rounds.begin(is_well, has_untried, is_backoff, now, rng);
        }
    }

    /// Whether requests go to the path. `has_untried`: whether persons wait that are no suspects.
    pub fn gate(&self, has_untried: bool, now: Mono) -> PathGate {
        match &self.rounds {
            None => PathGate::Open,
            Some(rounds) if rounds.left > 0 => PathGate::Round,
            Some(rounds) if rounds.is_asked => PathGate::ShutUntil(None),
            Some(rounds) => match rounds.next_at(has_untried) {
                at if at <= now => PathGate::AskAuth,
                at => PathGate::ShutUntil(Some(at)),
            },
        }
    }

    /// When the next round begins, or was to begin.
    pub fn next_round_at(&self, has_untried: bool) -> Option<Mono> {
        self.rounds.as_ref().map(|rounds| rounds.next_at(has_untried))
    }

    /// Persons to be tried in the present round.
    pub fn left_in_round(&self) -> usize {
        self.rounds.as_ref().map_or(0, |rounds| rounds.left)
    }

    /// Counts a person of the present round as tried; `all`: nobody is left to be tried.
    pub fn tried_in_round(&mut self, all: bool) {
        if let Some(rounds) = &mut self.rounds {
            rounds.left = if all { 0 } else { rounds.left.saturating_sub(1) };
        }
    }

    /// Begins the rounds anew, with one that tries a person whatever `/auth` says.
    pub fn retry_now(&mut self, now: Mono) {
        if let Some(rounds) = &mut self.rounds {
            *rounds = Rounds { is_asked: rounds.is_asked, ..Rounds::new(Some(false), now) };
        }
    }

    /// Whether trouble was concluded to be everybody's.
    pub fn is_concluded(&self) -> bool {
        matches!(self.state, DestinationState::Backoff | DestinationState::Refused)
    }

    /// Whether the path accepts nothing as far as is known: persons that were not tried tell more than suspects.
    pub fn is_in_doubt(&self) -> bool {
        self.new_suspects > 0
    }

    /// Whether persons are tried in rounds.
    pub fn has_rounds(&self) -> bool {
        self.rounds.is_some()
    }

    pub fn state(&self) -> (DestinationState, Timestamp, Option<&Reason>) {
        (self.state, self.since, self.reason.as_ref())
    }

    fn enter(&mut self, state: DestinationState, reason: Option<Reason>, now: Moment) {
        if self.state != state {
            (self.state, self.since) = (state, now.wall);
        }
        self.reason = reason;
    }
}

impl Rounds {
    fn new(is_well: Option<bool>, now: Mono) -> Rounds {
        Rounds { is_well, is_asked: false, left: 0, began: now, wait: Duration::ZERO, count: 0 }
    }

    fn begin(
        &mut self,
        is_well: bool,
        has_untried: bool,
        is_backoff: bool,
        now: Mono,
        rng: &mut fastrand::Rng,
    ) {
        let before = self.is_well.replace(is_well);
        if before == Some(!is_well) {
            self.count = 0;
        }
        self.began = now;
        (self.left, self.wait) = match is_well {
            true if has_untried => (1 << self.count.min(LARGEST_ROUND), SINGLE_INTERVAL),
            true => (1, SINGLE_INTERVAL),
            // Right after six persons a seventh tells nothing new.
            false => (
                usize::from(before.is_some()),
                match is_backoff {
                    true => backoff(BACKOFF, self.count, rng),
                    false => fruitless_wait(self.count as usize, rng),
                },
            ),
        };
        self.count += 1;
    }

    fn next_at(&self, has_untried: bool) -> Mono {
        match self.is_well {
            Some(true) if has_untried => self.began + ROUND_INTERVAL,
            _ => self.began + self.wait,
        }
    }
}

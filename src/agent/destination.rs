//! The state of the destination: of each of its paths, and of all it is reached by. Pure: what decides takes the time and
//! returns data.
//!
//! A receiver that cannot be reached, or that asks for a pause, is everybody's trouble at once: the destination waits as a
//! whole, and then one request finds out. Whatever else a receiver answers is one person's trouble first, and a path's by
//! proof (`path`).

use super::in_flight::InFlightCounts;
use super::limiter::ConcurrencyLimiter;
use super::path::{BACKOFF, Path};
use super::suspicion::backoff;
use crate::clock::{Moment, Mono, Timestamp};
use crate::config::Concurrency;
use crate::item::Endpoint;
use crate::koala::MAX_RETRY_AFTER;
use crate::reason::{Code, Reason};
use crate::status::DestinationState;
use std::time::Duration;

/// The state of the destination.
#[derive(Debug)]
pub struct Destination {
    paths: [Path; 2],
    pause: Option<Pause>,
    /// Pauses so far, to tell which answers are older than the present one.
    pause_count: u64,
    /// The end of the pause that the receiver asked for; nothing cuts it short.
    retry_after_deadline: Mono,
    failures: u32,
    /// Whether one request at a time is sent, because none was accepted since the start or the last pause.
    is_narrow: bool,
    /// Whether anything was ever accepted at this address with this key.
    pub has_ever_accepted: bool,
    pub(super) limiter: ConcurrencyLimiter,
    pub(super) rng: fastrand::Rng,
}

/// A wait of the destination as a whole.
#[derive(Debug)]
struct Pause {
    until: Mono,
    since: Timestamp,
    reason: Reason,
}

impl Destination {
    /// A destination that nothing was sent to yet. `retry_after_deadline` is the one from before a restart.
    pub fn new(
        concurrency: Concurrency,
        retry_after_deadline: Option<Timestamp>,
        now: Moment,
        rng: fastrand::Rng,
    ) -> Destination {
        let mut destination = Destination {
            paths: [Path::new(now.wall), Path::new(now.wall)],
            pause: None,
            pause_count: 0,
            retry_after_deadline: Mono::ZERO,
            failures: 0,
            is_narrow: true,
            has_ever_accepted: false,
            limiter: ConcurrencyLimiter::new(concurrency),
            rng,
        };
        // A wall clock that was set back must not turn an hour into years.
        let pause = retry_after_deadline.map_or(Duration::ZERO, |at| at.since(now.wall)).min(MAX_RETRY_AFTER);
        if !pause.is_zero() {
            let reason =
                Reason::new(Code::RateLimited, "the receiver asked for a pause before the last stop");
            destination.pause(reason, Some(pause), 0, now);
        }
        destination
    }

    /// The state of a path, apart from a pause of the whole.
    pub(super) fn path(&self, path: Endpoint) -> &Path {
        &self.paths[path as usize]
    }

    /// Like [`Destination::path`].
    pub(super) fn path_mut(&mut self, path: Endpoint) -> &mut Path {
        &mut self.paths[path as usize]
    }

    /// The end of the present pause, if that is in the future.
    pub fn paused_until(&self, now: Mono) -> Option<Mono> {
        self.pause.as_ref().map(|pause| pause.until).filter(|until| *until > now)
    }

    /// Pauses so far.
    pub fn pause_count(&self) -> u64 {
        self.pause_count
    }

    /// Whether one more request may be in flight beside those: see [`ConcurrencyLimiter::has_room`].
    pub(super) fn has_room(&self, in_flight: &InFlightCounts, is_suspect: bool, now: Mono) -> bool {
        let suspects = in_flight.suspects();
        if self.is_narrow && in_flight.all() > 0 && !in_flight.is_silent(now) {
            return false;
        }
        // A configured limit holds whatever the requests in flight do.
        let untried =
            if self.limiter.is_fixed() { in_flight.untried() } else { in_flight.untried_at_work(now) };
        self.limiter.has_room(untried, suspects, is_suspect)
    }

    /// Notes an accepted request. The destination goes on, unless it has asked for a pause meanwhile.
    pub fn accepted(&mut self, now: Moment) {
        self.has_ever_accepted = true;
        self.reached(now.mono);
        if self.pause.is_none() {
            (self.is_narrow, self.failures) = (false, 0);
        }
    }

    /// Notes that the receiver was reached, whatever it answered.
    pub fn reached(&mut self, now: Mono) {
        if now >= self.retry_after_deadline {
            self.pause = None;
        }
    }

    /// Notes that the receiver is out of reach or asks for a pause: the next wait is twice as long. The trouble of a
    /// request that was sent before the present pause (`pause_count` then) only adds the pause that it asks for.
    pub fn pause(&mut self, reason: Reason, retry_after: Option<Duration>, pause_count: u64, now: Moment) {
        let is_current = pause_count == self.pause_count;
        match self.pause.is_some() && is_current {
            true => self.limiter.probe_failed(),
            false => self.limiter.trouble(),
        }
        if let Some(pause) = retry_after {
            self.retry_after_deadline = self.retry_after_deadline.max(now.mono + pause);
        }
        if is_current || (retry_after.is_some() && self.pause.is_none()) {
            let until = now.mono + backoff(BACKOFF, self.failures, &mut self.rng);
            let since = self.pause.take().map_or(now.wall, |pause| pause.since);
            self.pause = Some(Pause { until, since, reason });
            self.pause_count += 1;
            self.failures += 1;
            self.is_narrow = true;
        }
        if let Some(pause) = &mut self.pause {
            pause.until = pause.until.max(self.retry_after_deadline);
        }
    }

    /// Notes what `/auth` says, for a path on which so many persons wait.
    pub fn auth_answered(
        &mut self,
        path: Endpoint,
        is_well: bool,
        persons: usize,
        has_untried: bool,
        now: Mono,
    ) {
        self.paths[path as usize].auth_answered(is_well, persons, has_untried, now, &mut self.rng);
    }

    /// Ends the present wait and begins all rounds anew, on SIGHUP, `retry` and a new key. A person expects an answer
    /// now, so the waits after it begin small again.
    pub fn retry_now(&mut self, now: Mono) {
        if let Some(pause) = &mut self.pause {
            pause.until = self.retry_after_deadline;
        }
        self.failures = 0;
        self.paths.iter_mut().for_each(|path| path.retry_now(now));
    }

    /// Forgets what another receiver has shown.
    pub fn receiver_replaced(&mut self, now: Moment) {
        self.paths = [Path::new(now.wall), Path::new(now.wall)];
        (self.is_narrow, self.has_ever_accepted) = (true, false);
        self.pause_count += 1;
    }

    /// Sets how many requests may be in flight at once, and forgets what was measured.
    pub fn set_concurrency(&mut self, concurrency: Concurrency) {
        self.limiter = ConcurrencyLimiter::new(concurrency);
    }

    /// The state of a path, the time since which it has it, and the reason. A pause is a state of all paths.
    pub fn state(&self, path: Endpoint) -> (DestinationState, Timestamp, Option<&Reason>) {
        match &self.pause {
            Some(pause) => (DestinationState::Backoff, pause.since, Some(&pause.reason)),
            None => self.path(path).state(),
        }
    }

    /// The states of all paths.
    pub fn states(&self) -> [DestinationState; 2] {
        Endpoint::ALL.map(|path| self.state(path).0)
    }

    /// The end of the present pause, even if it is over.
    pub fn pause_end(&self) -> Option<Mono> {
        self.pause.as_ref().map(|pause| pause.until)
    }

    /// The end of the pause that the receiver asked for, if that is in the future.
    pub fn retry_after_deadline(&self, now: Moment) -> Option<Timestamp> {
        (self.retry_after_deadline > now.mono).then(|| now.wall.plus(self.retry_after_deadline - now.mono))
    }
}

#[cfg(test)]
mod tests {
    use super::super::in_flight::Lane;
    use super::super::ordering_keys::Side;
    use super::*;
    use crate::item::OrderingKey;

    fn at(seconds: u64) -> Moment {
        Moment { wall: Timestamp(1_000_000 * seconds as i64), mono: Duration::from_secs(seconds) }
    }

    fn new(retry_after_deadline: Option<Timestamp>) -> Destination {
        Destination::new(Concurrency::Fixed(8), retry_after_deadline, at(0), fastrand::Rng::with_seed(7))
    }

    /// Whether there is room beside so many requests of untried persons.
    fn has_room(d: &Destination, in_flight: i64) -> bool {
        let mut counts = InFlightCounts::default();
        let lane = Lane::Untried(Side::Oldest);
        (0..in_flight).for_each(|n| counts.start(lane, OrderingKey(n), Mono::ZERO));
        d.has_room(&counts, false, Mono::ZERO)
    }

    fn reason() -> Reason {
        Reason::new(Code::Connect, "as the test says")
    }

    #[test]
    fn one_request_at_a_time_is_sent_until_one_is_accepted() {
        let mut d = new(None);
        assert!(has_room(&d, 0) && !has_room(&d, 1));
        d.accepted(at(1));
        assert!(has_room(&d, 7) && !has_room(&d, 8));
        d.pause(reason(), None, d.pause_count(), at(2));
        assert!(d.paused_until(at(2).mono).is_some() && d.paused_until(at(3).mono).is_none());
        assert_eq!(d.state(Endpoint::Accounts).0, DestinationState::Backoff);
        assert!(!has_room(&d, 1));
        d.accepted(at(3));
        assert!(has_room(&d, 7));
        assert_eq!(d.state(Endpoint::People).0, DestinationState::Unknown);
    }

    #[test]
    fn what_was_sent_before_a_pause_makes_no_longer_one() {
        let mut d = new(None);
        for _ in 0..50 {
            d.pause(reason(), None, 0, at(0));
        }
        assert_eq!((d.failures, d.pause_count()), (1, 1));
        d.pause(reason(), Some(Duration::from_secs(20)), 0, at(0));
        assert_eq!(d.paused_until(at(1).mono), Some(at(20).mono));
    }

    #[test]
    fn a_retry_now_does_not_shorten_the_pause_that_the_receiver_asked_for() {
        let mut d = new(None);
        d.pause(reason(), Some(Duration::from_secs(7)), 0, at(0));
        d.retry_now(at(0).mono);
        assert_eq!(d.paused_until(at(6).mono), Some(at(7).mono));
        d.pause(reason(), Some(Duration::from_secs(20)), 0, at(6));
        d.accepted(at(7));
        assert_eq!(d.paused_until(at(25).mono), Some(at(26).mono));
        assert_eq!(d.paused_until(at(26).mono), None);
    }

    #[test]
    fn a_pause_outlives_a_restart_and_is_capped_when_the_clock_was_set_back() {
        let d = new(Some(at(0).wall.plus(Duration::from_secs(30))));
        assert_eq!(d.paused_until(at(0).mono), Some(at(30).mono));
        let d = new(Some(Timestamp(i64::MAX)));
        assert_eq!(d.paused_until(at(0).mono), Some(at(3600).mono));
        assert_eq!(new(Some(at(0).wall)).paused_until(Mono::ZERO), None);
    }
}

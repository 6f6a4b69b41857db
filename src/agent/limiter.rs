//! Limits the requests in flight, to a configured number or to one measured as TCP measures its window: the limit grows
//! by one a round trip and shrinks by half the share of answers that were trouble (as DCTCP, RFC 8257, does), so that a
//! receiver that fails at random is not taken for an overloaded one. Waiting after trouble is the destination's task, and
//! so is probing. Pure.

use crate::config::Concurrency;
use std::time::Duration;

/// The first limit. Slow answers alone do not take it lower; trouble does.
const INITIAL_LIMIT: usize = 8;
/// The requests of suspects that may be in flight beside the others.
pub const SUSPECTS: usize = 32;
/// A mean round trip this many times the best one says that requests queue up at the receiver.
const SLOW_FACTOR: u32 = 2;
/// The round-trip time that a busy machine adds by itself.
const RTT_TOLERANCE: Duration = Duration::from_millis(10);
/// Rounds after which the best round trip is measured again, at a limit where nothing queues up, because the receiver
/// may have become slower for good.
const REMEASURE_ROUNDS: u32 = 100;

/// The limit of requests in flight. It is adjusted once a round, which is as many answers as the limit allows in flight:
/// about one round trip.
#[derive(Debug)]
pub struct ConcurrencyLimiter {
    is_fixed: bool,
    limit: usize,
    /// Accepted requests of this round.
    accepted: u32,
    /// Requests of this round that met trouble.
    troubled: u32,
    /// The sum of the round trips of the accepted requests.
    round_trips: Duration,
    /// Whether the limit was reached in this round.
    was_full: bool,
    /// The shortest mean round trip of a round; `None`: this round measures it.
    best_mean: Option<Duration>,
    /// Rounds since the measurement.
    rounds: u32,
    /// The limit after the measurement.
    limit_after: usize,
}

impl ConcurrencyLimiter {
    pub fn new(concurrency: Concurrency) -> ConcurrencyLimiter {
        let (is_fixed, limit) = match concurrency {
            Concurrency::Fixed(n) => (true, n),
            Concurrency::Auto => (false, INITIAL_LIMIT),
        };
        ConcurrencyLimiter {
            is_fixed,
            limit,
            accepted: 0,
            troubled: 0,
            round_trips: Duration::ZERO,
            was_full: false,
            best_mean: None,
            rounds: 0,
            limit_after: limit,
        }
    }

    /// The number of requests that may be in flight, at least one.
    #[cfg(test)]
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Whether the limit is configured.
    pub fn is_fixed(&self) -> bool {
        self.is_fixed
    }

    /// Whether one more request may be in flight beside so many of untried persons and of suspects. Suspects have a width
    /// of their own, so that those who hang take nothing from the others; a configured limit is for both, and they get
    /// half of it.
    pub fn has_room(&self, untried: usize, suspects: usize, is_suspect: bool) -> bool {
        match (self.is_fixed, is_suspect) {
            (true, _) if untried + suspects >= self.limit => false,
            (true, true) => suspects < self.limit.div_ceil(2),
            (true, false) => true,
            (false, true) => suspects < SUSPECTS,
            (false, false) => untried < self.limit,
        }
    }

    /// Notes the round trip of an accepted request, and how many were in flight when it was answered.
    pub fn accepted(&mut self, round_trip: Duration, in_flight: usize) {
        // A request that was sent under a greater limit says nothing about this one.
        if self.is_fixed || in_flight > self.limit {
            return;
        }
        self.accepted += 1;
        self.round_trips += round_trip;
        self.was_full |= in_flight == self.limit;
        self.end_round();
    }

    /// Notes that the receiver was in trouble with a request.
    pub fn trouble(&mut self) {
        self.troubled += 1;
        self.end_round();
    }

    /// Notes that the receiver was still in trouble when it was probed: after the trouble, the limit begins where it began
    /// at first.
    pub fn probe_failed(&mut self) {
        if !self.is_fixed {
            let limit_after = if self.best_mean.is_some() { self.limit } else { self.limit_after };
            self.measure_again(limit_after.min(INITIAL_LIMIT));
            self.begin_round();
        }
    }

    fn end_round(&mut self) {
        let (accepted, all) = (self.accepted, self.accepted + self.troubled);
        if self.is_fixed || (all as usize) < self.limit {
            return;
        }
        let share = f64::from(self.troubled) / f64::from(all);
        // A round without an accepted request has no mean.
        let mean = self.round_trips.checked_div(accepted);
        match (mean, self.best_mean) {
            (Some(mean), None) => {
                self.best_mean = Some(mean);
                self.limit = self.limit_after;
            }
            (Some(mean), Some(best)) if mean > best * SLOW_FACTOR + RTT_TOLERANCE => {
                self.limit = (self.limit - self.limit.div_ceil(10)).max(INITIAL_LIMIT.min(self.limit));
            }
            (Some(mean), Some(best)) => {
                self.best_mean = Some(best.min(mean));
                self.limit += usize::from(self.was_full);
            }
            (None, _) => {}
        }
        let fewer = (self.limit as f64 * share / 2.0).round() as usize;
        self.limit = (self.limit - fewer).clamp(1, Concurrency::MOST);
        self.rounds += 1;
        if self.rounds == REMEASURE_ROUNDS {
            self.measure_again(self.limit);
        }
        self.begin_round();
    }

    fn measure_again(&mut self, limit_after: usize) {
        (self.best_mean, self.rounds, self.limit_after) = (None, 0, limit_after);
        self.limit = limit_after.min(INITIAL_LIMIT);
    }

    fn begin_round(&mut self) {
        (self.accepted, self.troubled, self.round_trips, self.was_full) = (0, 0, Duration::ZERO, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The limit after `requests` accepted requests, of which `wanted` are in flight if the limit allows. `takes` says how
    /// long a receiver takes for a number in flight.
    fn after(
        limiter: &mut ConcurrencyLimiter,
        requests: usize,
        wanted: usize,
        takes: impl Fn(usize) -> u64,
    ) -> usize {
        for _ in 0..requests {
            let in_flight = limiter.limit().min(wanted);
            limiter.accepted(Duration::from_millis(takes(in_flight)), in_flight);
        }
        limiter.limit()
    }

    #[test]
    fn the_limit_grows_to_the_most_for_a_distant_receiver() {
        let mut limiter = ConcurrencyLimiter::new(Concurrency::Auto);
        assert_eq!((limiter.limit(), after(&mut limiter, 3_000, 99, |_| 50)), (8, 64));
    }

    #[test]
    fn the_limit_stays_near_the_number_that_the_receiver_works_at() {
        // The receiver works at twenty requests at a time, 50 ms each.
        let takes = |in_flight: usize| 50 * in_flight.max(20) as u64 / 20;
        let mut limiter = ConcurrencyLimiter::new(Concurrency::Auto);
        for _ in 0..200 {
            let found = after(&mut limiter, 100, 99, takes);
            assert!((8..=50).contains(&found), "{found}");
        }
        assert!(limiter.limit() >= 20);
    }

    #[test]
    fn the_limit_does_not_grow_while_it_is_not_reached() {
        let mut limiter = ConcurrencyLimiter::new(Concurrency::Auto);
        assert_eq!(after(&mut limiter, 3_000, 3, |_| 50), 8);
    }

    #[test]
    fn the_limit_shrinks_by_half_the_share_of_trouble() {
        let full = || {
            let mut limiter = ConcurrencyLimiter::new(Concurrency::Auto);
            after(&mut limiter, 3_000, 99, |_| 50);
            limiter.begin_round();
            limiter
        };
        let mut limiter = full();
        (0..64).for_each(|_| limiter.trouble());
        assert_eq!(limiter.limit(), 32, "all of a round");
        let mut limiter = full();
        for _ in 0..100 {
            limiter.trouble();
            after(&mut limiter, 9, 99, |_| 50);
        }
        assert!((20..=32).contains(&limiter.limit()), "a tenth of all rounds: {}", limiter.limit());
    }

    #[test]
    fn after_an_outage_the_limit_begins_small() {
        let mut limiter = ConcurrencyLimiter::new(Concurrency::Auto);
        after(&mut limiter, 3_000, 99, |_| 50);
        (0..9).for_each(|_| limiter.probe_failed());
        assert_eq!((limiter.limit(), after(&mut limiter, 3_000, 99, |_| 50)), (8, 64));
    }

    #[test]
    fn the_limit_recovers_for_a_receiver_that_has_become_slower_for_good() {
        let mut limiter = ConcurrencyLimiter::new(Concurrency::Auto);
        after(&mut limiter, 3_000, 99, |_| 50);
        assert!(after(&mut limiter, 500, 99, |_| 500) < 32);
        assert!((0..9_000).any(|_| after(&mut limiter, 1, 99, |_| 500) == 64));
    }

    #[test]
    fn a_configured_limit_stays() {
        let mut limiter = ConcurrencyLimiter::new(Concurrency::Fixed(3));
        (0..9).for_each(|_| limiter.trouble());
        limiter.probe_failed();
        assert_eq!(after(&mut limiter, 100, 99, |_| 1), 3);
    }
}

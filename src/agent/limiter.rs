//! How many requests may be in flight: a number that was set, or one that is found by trying, as TCP finds its window:
//! one more a round trip, and fewer by half the share of the answers that were trouble (as DCTCP, RFC 8257, does). So a
//! receiver that fails at random is not taken for one that is overloaded. That everything waits after trouble, and that
//! one request finds out whether it is over, is the destination's affair. Pure.

use crate::config::Concurrency;
use std::time::Duration;

/// Where the search begins; slow answers alone do not take it lower, trouble does.
const INITIAL_LIMIT: usize = 8;
/// Answers that take so many times as long as they did at best say that requests queue up at the receiver.
const SLOWER: u32 = 2;
/// What a busy machine adds to a round trip by itself.
const RTT_TOLERANCE: Duration = Duration::from_millis(10);
/// Rounds after which the best time is found anew, at a width where nothing queues up: the receiver may have become
/// slower for good.
const RELEARN: u32 = 100;

/// The width of the way to the receiver, in requests.
///
/// It is looked at once a round, which is as many answers as requests may be in flight: so about once a round trip.
#[derive(Debug)]
pub struct ConcurrencyLimiter {
    is_fixed: bool,
    now: usize,
    /// Accepted requests of this round.
    answers: u32,
    /// Requests of this round that met trouble.
    troubled: u32,
    took: Duration,
    /// As many were in flight as may be, at some time of this round.
    was_full: bool,
    /// The shortest mean of a round; `None`: this round finds it.
    best: Option<Duration>,
    /// Rounds since it was found.
    rounds: u32,
    /// The width to go on with once it is found.
    back: usize,
}

impl ConcurrencyLimiter {
    /// The width that was set, or the first to be tried.
    pub fn new(concurrency: Concurrency) -> ConcurrencyLimiter {
        let (is_fixed, now) = match concurrency {
            Concurrency::Fixed(n) => (true, n),
            Concurrency::Auto => (false, INITIAL_LIMIT),
        };
        ConcurrencyLimiter {
            is_fixed,
            now,
            answers: 0,
            troubled: 0,
            took: Duration::ZERO,
            was_full: false,
            best: None,
            rounds: 0,
            back: now,
        }
    }

    /// So many requests may be in flight; at least one.
    pub fn get(&self) -> usize {
        self.now
    }

    /// A request was accepted after so long, when so many were in flight with it.
    pub fn accepted(&mut self, took: Duration, in_flight: usize) {
        // What was sent at a greater width tells nothing of this one.
        if self.is_fixed || in_flight > self.now {
            return;
        }
        self.answers += 1;
        self.took += took;
        self.was_full |= in_flight == self.now;
        self.end_round();
    }

    /// The receiver was in trouble with a request.
    pub fn trouble(&mut self) {
        self.troubled += 1;
        self.end_round();
    }

    /// It was still in trouble when it was asked again: where that is over, the search begins where it began at first.
    pub fn probe_failed(&mut self) {
        if !self.is_fixed {
            let back = if self.best.is_some() { self.now } else { self.back };
            self.relearn(back.min(INITIAL_LIMIT));
            self.begin();
        }
    }

    fn end_round(&mut self) {
        let (answers, all) = (self.answers, self.answers + self.troubled);
        if self.is_fixed || (all as usize) < self.now {
            return;
        }
        let share = f64::from(self.troubled) / f64::from(all);
        // Of a round without an acceptance nothing else is known.
        let mean = self.took.checked_div(answers);
        match (mean, self.best) {
            (Some(mean), None) => {
                self.best = Some(mean);
                self.now = self.back;
            }
            (Some(mean), Some(best)) if mean > best * SLOWER + RTT_TOLERANCE => {
                self.now = (self.now - self.now.div_ceil(10)).max(INITIAL_LIMIT.min(self.now));
            }
            (Some(mean), Some(best)) => {
                self.best = Some(best.min(mean));
                self.now += usize::from(self.was_full);
            }
            (None, _) => {}
        }
        let fewer = (self.now as f64 * share / 2.0).round() as usize;
        self.now = (self.now - fewer).clamp(1, Concurrency::MOST);
        self.rounds += 1;
        if self.rounds == RELEARN {
            self.relearn(self.now);
        }
        self.begin();
    }

    fn relearn(&mut self, back: usize) {
        (self.best, self.rounds, self.back) = (None, 0, back);
        self.now = back.min(INITIAL_LIMIT);
    }

    fn begin(&mut self) {
        (self.answers, self.troubled, self.took, self.was_full) = (0, 0, Duration::ZERO, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The width after so many accepted requests, each of which took what a receiver takes for so many in flight.
    fn after(
        width: &mut ConcurrencyLimiter,
        requests: usize,
        wanted: usize,
        takes: impl Fn(usize) -> u64,
    ) -> usize {
        for _ in 0..requests {
            let in_flight = width.get().min(wanted);
            width.accepted(Duration::from_millis(takes(in_flight)), in_flight);
        }
        width.get()
    }

    #[test]
    fn a_distant_receiver_is_sent_as_much_as_may_be() {
        let mut width = ConcurrencyLimiter::new(Concurrency::Auto);
        assert_eq!((width.get(), after(&mut width, 3_000, 99, |_| 50)), (8, 64));
    }

    #[test]
    fn a_receiver_that_makes_them_wait_is_not_sent_more_than_it_works_at() {
        // It works at twenty at a time, 50 ms each.
        let takes = |in_flight: usize| 50 * in_flight.max(20) as u64 / 20;
        let mut width = ConcurrencyLimiter::new(Concurrency::Auto);
        for _ in 0..200 {
            let found = after(&mut width, 100, 99, takes);
            assert!((8..=50).contains(&found), "{found}");
        }
        assert!(width.get() >= 20);
    }

    #[test]
    fn it_does_not_widen_where_there_is_nothing_to_send() {
        let mut width = ConcurrencyLimiter::new(Concurrency::Auto);
        assert_eq!(after(&mut width, 3_000, 3, |_| 50), 8);
    }

    #[test]
    fn it_narrows_by_the_share_of_trouble() {
        let full = || {
            let mut width = ConcurrencyLimiter::new(Concurrency::Auto);
            after(&mut width, 3_000, 99, |_| 50);
            width.begin();
            width
        };
        let mut width = full();
        (0..64).for_each(|_| width.trouble());
        assert_eq!(width.get(), 32, "all of a round");
        let mut width = full();
        for _ in 0..100 {
            width.trouble();
            after(&mut width, 9, 99, |_| 50);
        }
        assert!((20..=32).contains(&width.get()), "a tenth of all rounds: {}", width.get());
    }

    #[test]
    fn after_an_outage_it_is_found_anew() {
        let mut width = ConcurrencyLimiter::new(Concurrency::Auto);
        after(&mut width, 3_000, 99, |_| 50);
        (0..9).for_each(|_| width.probe_failed());
        assert_eq!((width.get(), after(&mut width, 3_000, 99, |_| 50)), (8, 64));
    }

    #[test]
    fn a_receiver_that_has_become_slower_for_good_is_got_used_to() {
        let mut width = ConcurrencyLimiter::new(Concurrency::Auto);
        after(&mut width, 3_000, 99, |_| 50);
        assert!(after(&mut width, 500, 99, |_| 500) < 32);
        assert!((0..9_000).any(|_| after(&mut width, 1, 99, |_| 500) == 64));
    }

    #[test]
    fn what_was_set_stays() {
        let mut width = ConcurrencyLimiter::new(Concurrency::Fixed(3));
        (0..9).for_each(|_| width.trouble());
        width.probe_failed();
        assert_eq!(after(&mut width, 100, 99, |_| 1), 3);
    }
}

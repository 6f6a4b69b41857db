//! Compares this machine's wall clock with the receiver's, by the `Date` of its answers.
//!
//! Events carry times, and a clock that is years off gives all of them wrong ones without any other sign. The receiver is
//! asked anyway, so no other server needs to be known for this. It cannot be told which of the two clocks is wrong, so
//! nothing is corrected by it.

use crate::clock::{Moment, Timestamp};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A smaller difference is not worth a word: clocks drift, and an answer may be on its way for seconds.
const TOLERATED: Duration = Duration::from_secs(300);
/// Answers in a row that differ before a clock that agreed is told to be wrong: one of several machines behind the
/// receiver's address may have a wrong clock.
const NEEDED: u32 = 3;
/// A change of the difference below this is not noted.
const RESOLUTION: Duration = Duration::from_secs(60);

/// The comparison with a receiver's clock. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct ReceiverClock(Arc<Mutex<Comparison>>);

#[derive(Debug, Default)]
struct Comparison {
    /// The wall clock minus the receiver's, in milliseconds, if they differ.
    ahead: Option<i64>,
    /// Whether any answer agreed.
    has_agreed: bool,
    /// Answers in a row that did not.
    differing: u32,
}

impl ReceiverClock {
    /// By how many seconds the wall clock is ahead of the receiver's (negative: behind), if that is more than five minutes;
    /// `None`: less, or not known.
    pub fn seconds_ahead(&self) -> Option<i64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).ahead.map(|ms| ms / 1_000)
    }

    /// Notes the date of an answer that came at `answered` to a request sent at `sent`. The receiver has written it at some
    /// time in between.
    pub(super) fn note(&self, date: Timestamp, sent: Moment, answered: Moment) {
        let half = answered.mono.saturating_sub(sent.mono) / 2;
        let ahead = answered.wall.minus(half).0.saturating_sub(date.0);
        let is_tolerated = ahead.unsigned_abs() <= (TOLERATED + half).as_millis() as u64;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).note(ahead, is_tolerated);
    }
}

impl Comparison {
    fn note(&mut self, ahead: i64, is_tolerated: bool) {
        if is_tolerated {
            *self = Comparison { has_agreed: true, ..Comparison::default() };
            return;
        }
        self.differing = self.differing.saturating_add(1);
        let is_new =
            self.ahead.is_none_or(|before| u128::from(before.abs_diff(ahead)) >= RESOLUTION.as_millis());
        if is_new && (!self.has_agreed || self.differing >= NEEDED) {
            self.ahead = Some(ahead);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_told_at_once_or_after_three_answers_in_a_row_and_ends_with_one_that_agrees() {
        const YEAR: i64 = 365 * 86_400;
        let clock = ReceiverClock::default();
        let now = Timestamp(1_800_000_000_000);
        for (line, (took, receiver_ahead, want)) in [
            // A wrong clock from the start.
            (0, 10 * YEAR, Some(-10 * YEAR)),
            (1, 10 * YEAR + 30, Some(-10 * YEAR)),
            (0, 10 * YEAR + 90, Some(-10 * YEAR - 90)),
            (0, 299, None),
            (0, -299, None),
            // One machine of several.
            (0, YEAR, None),
            (0, YEAR, None),
            (0, 0, None),
            (0, YEAR, None),
            (0, YEAR, None),
            (0, YEAR, Some(-YEAR)),
            (0, -YEAR, Some(YEAR)),
            (0, 0, None),
            // A request that was on its way for ten minutes: the date is of any time in between.
            (600, -590, None),
            (600, 200, None),
            (600, 0, None),
        ]
        .into_iter()
        .enumerate()
        {
            let at = |seconds: u64| Moment {
                wall: now.plus(Duration::from_secs(seconds)),
                mono: Duration::from_secs(seconds),
            };
            let (sent, answered) = (at(0), at(took));
            let middle = now.0 + took as i64 * 500;
            clock.note(Timestamp(middle + receiver_ahead * 1_000), sent, answered);
            assert_eq!(clock.seconds_ahead(), want, "line {line}");
        }
    }
}

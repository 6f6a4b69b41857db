//! Keeps one kind of line from filling the log: whoever drops files decides how many there are. Pure.

use crate::clock::Mono;
use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

/// Lines of a kind that are logged one by one: enough to see what is wrong.
const FIRST_LINES: u32 = 10;
/// The interval of the lines after those.
const INTERVAL: Duration = Duration::from_secs(60);
/// A kind of which nothing came for so long begins anew.
const FORGET_AFTER: Duration = Duration::from_secs(3600);

/// How much of each kind was logged.
#[derive(Debug)]
pub struct LogLimiter<K>(HashMap<K, KindCount>);

#[derive(Debug, Default)]
struct KindCount {
    logged: u32,
    last_logged: Mono,
    last_seen: Mono,
    /// Lines left out since the last one.
    left_out: u64,
}

impl<K: Hash + Eq + Copy> LogLimiter<K> {
    pub fn new() -> LogLimiter<K> {
        LogLimiter(HashMap::new())
    }

    /// Whether to log a line now, and how many of its kind were left out before it.
    pub fn line(&mut self, kind: K, now: Mono) -> Option<LeftOut> {
        let count = self.0.entry(kind).or_default();
        if now.saturating_sub(count.last_seen) >= FORGET_AFTER {
            count.logged = 0;
        }
        count.last_seen = now;
        if count.logged >= FIRST_LINES && now.saturating_sub(count.last_logged) < INTERVAL {
            count.left_out += 1;
            return None;
        }
        (count.logged, count.last_logged) = (count.logged.saturating_add(1), now);
        Some(LeftOut(std::mem::take(&mut count.left_out)))
    }

    /// A kind of which lines were left out and none has followed for an interval, and how many.
    pub fn overdue(&mut self, now: Mono) -> Option<(K, u64)> {
        let is_overdue =
            |count: &KindCount| count.left_out > 0 && now.saturating_sub(count.last_logged) >= INTERVAL;
        let (kind, count) = self.0.iter_mut().find(|(_, count)| is_overdue(count))?;
        count.last_logged = now;
        Some((*kind, std::mem::take(&mut count.left_out)))
    }
}

/// How many lines of a kind were left out; its text goes behind the line that tells of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeftOut(pub u64);

impl std::fmt::Display for LeftOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0 == 0 { Ok(()) } else { write!(f, " (and {} more of this kind)", self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_ten_lines_of_a_kind_one_a_minute_tells_how_many_there_were() {
        let second = Duration::from_secs;
        let mut limiter = LogLimiter::new();
        for n in 0..10 {
            assert_eq!(limiter.line('a', second(n)), Some(LeftOut(0)));
        }
        for (at, kind, want) in [
            (10, 'a', None),
            (10, 'b', Some(LeftOut(0))),
            (68, 'a', None),
            (69, 'a', Some(LeftOut(2))),
            (70, 'a', None),
            (129, 'a', Some(LeftOut(1))),
            // After an hour without any, ten again.
            (129 + 3_600, 'a', Some(LeftOut(0))),
            (129 + 3_601, 'a', Some(LeftOut(0))),
        ] {
            assert_eq!(limiter.line(kind, second(at)), want, "{kind} at {at} s");
        }
        assert_eq!(limiter.overdue(second(9_999)), None);
    }

    #[test]
    fn the_last_lines_of_a_flood_are_told_of_too() {
        let second = Duration::from_secs;
        let mut limiter = LogLimiter::new();
        for _ in 0..15 {
            limiter.line('a', second(1));
        }
        assert_eq!(limiter.overdue(second(60)), None);
        assert_eq!(limiter.overdue(second(61)), Some(('a', 5)));
        assert_eq!(limiter.overdue(second(999)), None);
    }
}

//! Time, in one place: the wall clock for what people read, a monotonic one for every wait.
//!
//! A wait never depends on the wall clock, so a step of the wall clock can neither prolong nor skip one.
//! Tests own a [`Clock::manual`] and move it by hand.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// A moment of the wall clock: milliseconds since 1970 in UTC. Shown, and kept in JSON, as RFC 3339.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// The last moment that RFC 3339 can write: the end of the year 9999.
    const LAST_MS: i64 = 253_402_300_799_999;

    /// The moment of a file's time stamp or any other system time; before 1970 counts as 1970.
    pub fn from_system(time: SystemTime) -> Timestamp {
        let ms = time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis());
        Timestamp(i64::try_from(ms).unwrap_or(Self::LAST_MS).min(Self::LAST_MS))
    }

    /// The moment `d` later.
    pub fn plus(self, d: Duration) -> Timestamp {
        Timestamp(self.0.saturating_add(i64::try_from(d.as_millis()).unwrap_or(i64::MAX)).min(Self::LAST_MS))
    }

    /// The moment `d` earlier.
    pub fn minus(self, d: Duration) -> Timestamp {
        Timestamp(self.0.saturating_sub(i64::try_from(d.as_millis()).unwrap_or(i64::MAX)))
    }

    /// The moment to the second, for the names of files: `20260102T030405Z`.
    pub fn compact(self) -> String {
        self.to_string().chars().filter(|c| !matches!(c, '-' | ':')).collect()
    }

    /// How long ago `earlier` was; zero if it is not earlier.
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_millis(u64::try_from(self.0 - earlier.0).unwrap_or(0))
    }

    /// The moment that an RFC 3339 text names.
    pub fn parse(text: &str) -> Option<Timestamp> {
        humantime::parse_rfc3339_weak(text).ok().map(Timestamp::from_system)
    }

    /// RFC 3339 in UTC with milliseconds, as Segment's own clients write it.
    pub fn to_millis_string(self) -> String {
        humantime::format_rfc3339_millis(self.system()).to_string()
    }

    fn system(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(u64::try_from(self.0.min(Self::LAST_MS)).unwrap_or(0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339_seconds(self.system()).fmt(f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        Timestamp::parse(&text)
            .ok_or_else(|| serde::de::Error::custom(format!("{text:?} is not an RFC 3339 time")))
    }
}

/// A point of the monotonic clock, counted from the start of the process.
pub type Mono = Duration;

/// One moment on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// For people.
    pub wall: Timestamp,
    /// For waits.
    pub mono: Mono,
}

/// The clock that everything with a wait in it is handed.
#[derive(Debug, Clone)]
pub struct Clock(Kind);

#[derive(Debug, Clone)]
enum Kind {
    System { start: Instant },
    Manual(Arc<watch::Sender<(Timestamp, Mono)>>),
}

impl Clock {
    /// The machine's clocks.
    pub fn system() -> Clock {
        Clock(Kind::System { start: Instant::now() })
    }

    /// A clock that stands still until it is moved with [`Clock::advance`].
    pub fn manual(start: Timestamp) -> Clock {
        Clock(Kind::Manual(Arc::new(watch::Sender::new((start, Duration::ZERO)))))
    }

    /// The wall clock's time.
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Kind::System { .. } => Timestamp::from_system(SystemTime::now()),
            Kind::Manual(tx) => tx.borrow().0,
        }
    }

    /// The monotonic clock's time.
    pub fn mono(&self) -> Mono {
        match &self.0 {
            Kind::System { start } => start.elapsed(),
            Kind::Manual(tx) => tx.borrow().1,
        }
    }

    /// Both at once.
    pub fn moment(&self) -> Moment {
        Moment { wall: self.now(), mono: self.mono() }
    }

    /// Returns once the monotonic clock has reached `at`.
    pub async fn sleep_until(&self, at: Mono) {
        match &self.0 {
            Kind::System { start } => tokio::time::sleep_until((*start + at).into()).await,
            Kind::Manual(tx) => {
                let mut rx = tx.subscribe();
                // An error means that the clock is gone, and with it the test.
                let _ = rx.wait_for(|(_, mono)| *mono >= at).await;
            }
        }
    }

    /// Moves a manual clock forward, wall and monotonic time alike; the machine's clocks stay as they are.
    pub fn advance(&self, by: Duration) {
        if let Kind::Manual(tx) = &self.0 {
            tx.send_modify(|(wall, mono)| {
                *wall = wall.plus(by);
                *mono += by;
            });
        }
    }

    /// Sets a manual clock's wall time alone, as an administrator or NTP steps it.
    pub fn step(&self, to: Timestamp) {
        if let Kind::Manual(tx) = &self.0 {
            tx.send_modify(|(wall, _)| *wall = to);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc3339_in_utc_and_read_back() {
        let t = Timestamp(1_767_323_045_678);
        assert_eq!(t.to_string(), "2026-01-02T03:04:05Z");
        assert_eq!(t.to_millis_string(), "2026-01-02T03:04:05.678Z");
        assert_eq!(Timestamp::parse(&t.to_millis_string()), Some(t));
        assert_eq!(Timestamp(i64::MAX).plus(Duration::MAX).to_string(), "9999-12-31T23:59:59Z");
        assert_eq!(Timestamp(-5).to_string(), "1970-01-01T00:00:00Z");
    }

    #[test]
    fn a_step_of_the_wall_clock_leaves_the_monotonic_one_alone() {
        let clock = Clock::manual(Timestamp(1_000));
        clock.advance(Duration::from_secs(5));
        clock.step(Timestamp(0));
        assert_eq!((clock.now(), clock.mono()), (Timestamp(0), Duration::from_secs(5)));
    }
}

//! Time, in one place: the wall clock for what people read, a monotonic one for every wait.
//!
//! No wait depends on the wall clock, so that a step of it neither prolongs nor skips one. Tests use a [`Clock::manual`]
//! and move it themselves.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// A moment of the wall clock: milliseconds since 1970 in UTC. Its text, also in JSON, is RFC 3339.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// The last moment that RFC 3339 can express: the end of the year 9999.
    const LAST_MS: i64 = 253_402_300_799_999;

    /// The moment of a system time. A time before 1970 counts as 1970.
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

    /// The time from `earlier` to this moment; zero if `earlier` is later.
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_millis(u64::try_from(self.0 - earlier.0).unwrap_or(0))
    }

    /// Parses RFC 3339.
    pub fn parse(text: &str) -> Option<Timestamp> {
        humantime::parse_rfc3339_weak(text).ok().map(Timestamp::from_system)
    }

    /// Parses a date in one of the three forms of HTTP (RFC 9110, 5.6.7). The zone may have any of the usual names of UTC,
    /// which many libraries write in place of GMT.
    pub fn parse_http_date(text: &str) -> Option<Timestamp> {
        let text = text.trim();
        let zones = [" UTC", " UT", " Z", " +0000", " -0000"];
        let in_gmt = zones.iter().find_map(|zone| text.strip_suffix(zone)).map(|rest| format!("{rest} GMT"));
        httpdate::parse_http_date(in_gmt.as_deref().unwrap_or(text)).ok().map(Timestamp::from_system)
    }

    /// The date as HTTP writes it, to the second.
    pub fn to_http_date(self) -> String {
        httpdate::fmt_http_date(self.system())
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

/// The time on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// The time for people.
    pub wall: Timestamp,
    /// The time for waits.
    pub mono: Mono,
}

/// The clock of everything that waits or notes the time.
#[derive(Debug, Clone)]
pub struct Clock(TimeSource);

#[derive(Debug, Clone)]
enum TimeSource {
    System { start: Instant },
    Manual(Arc<watch::Sender<(Timestamp, Mono)>>),
}

impl Clock {
    /// The machine's clocks.
    pub fn system() -> Clock {
        Clock(TimeSource::System { start: Instant::now() })
    }

    /// A clock that stands still until it is moved with [`Clock::advance`].
    pub fn manual(start: Timestamp) -> Clock {
        Clock(TimeSource::Manual(Arc::new(watch::Sender::new((start, Duration::ZERO)))))
    }

    /// The time of the wall clock.
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            TimeSource::System { .. } => Timestamp::from_system(SystemTime::now()),
            TimeSource::Manual(tx) => tx.borrow().0,
        }
    }

    /// The time of the monotonic clock.
    pub fn mono(&self) -> Mono {
        match &self.0 {
            TimeSource::System { start } => start.elapsed(),
            TimeSource::Manual(tx) => tx.borrow().1,
        }
    }

    /// The time that has passed since some moment of the past, whether the machine ran or slept: no step of the wall clock
    /// changes it.
    pub fn passed(&self) -> Duration {
        #[cfg(target_os = "linux")]
        if let TimeSource::System { .. } = &self.0 {
            use nix::time::{ClockId, clock_gettime};
            // The monotonic clock stands still while the machine sleeps.
            if let Ok(passed) = clock_gettime(ClockId::CLOCK_BOOTTIME) {
                return passed.into();
            }
        }
        self.mono()
    }

    /// The time of both clocks.
    pub fn moment(&self) -> Moment {
        Moment { wall: self.now(), mono: self.mono() }
    }

    /// Returns once the monotonic clock has reached `at`.
    pub async fn sleep_until(&self, at: Mono) {
        match &self.0 {
            TimeSource::System { start } => tokio::time::sleep_until((*start + at).into()).await,
            TimeSource::Manual(tx) => {
                let mut rx = tx.subscribe();
                // An error means that the clock was dropped, and the test has ended.
                let _ = rx.wait_for(|(_, mono)| *mono >= at).await;
            }
        }
    }

    /// Moves both times of a manual clock forward; does nothing to the machine's clocks.
    pub fn advance(&self, by: Duration) {
        if let TimeSource::Manual(tx) = &self.0 {
            tx.send_modify(|(wall, mono)| {
                *wall = wall.plus(by);
                *mono += by;
            });
        }
    }

    /// Sets the wall time of a manual clock alone, as an administrator or NTP does.
    pub fn step(&self, to: Timestamp) {
        if let TimeSource::Manual(tx) = &self.0 {
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
    fn dates_of_http_are_read_in_all_forms_and_written_in_the_first() {
        let at = Timestamp(784_111_777_000);
        assert_eq!(at.to_http_date(), "Sun, 06 Nov 1994 08:49:37 GMT");
        for text in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            " Sun, 06 Nov 1994 08:49:37 UTC",
            "Sun, 06 Nov 1994 08:49:37 +0000",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
        ] {
            assert_eq!(Timestamp::parse_http_date(text), Some(at), "{text}");
        }
        for text in
            ["", "today", "Sun, 06 Nov 1994 08:49:37 CET", "Sun, 06 Nov 1994 09:49:37 +0100", "784111777"]
        {
            assert_eq!(Timestamp::parse_http_date(text), None, "{text}");
        }
        assert_eq!(Timestamp(i64::MAX).to_http_date(), "Fri, 31 Dec 9999 23:59:59 GMT");
    }

    #[test]
    fn a_step_of_the_wall_clock_leaves_the_monotonic_one_alone() {
        let clock = Clock::manual(Timestamp(1_000));
        clock.advance(Duration::from_secs(5));
        clock.step(Timestamp(0));
        assert_eq!((clock.now(), clock.mono()), (Timestamp(0), Duration::from_secs(5)));
    }
}

//! The state of the destination, and when it may be tried again. Pure: what decides takes the time and returns data.
//!
//! ```text
//!              accepted                    trouble
//!   unknown ───────────▶ online ◀────────▶ backoff      one backoff for the destination as a whole
//!      │                   │    accepted      │
//!      └───────────────────┴──── refused ◀────┘         the key, the address, or everybody is refused
//! ```

use super::limiter::ConcurrencyLimiter;
use crate::clock::{Moment, Mono, Timestamp};
use crate::config::Concurrency;
use crate::koala::MAX_RETRY_AFTER;
use crate::reason::{Code, Reason};
use crate::status::DestinationState;
use std::time::Duration;

/// The longest first wait after trouble. It is short, so that a tenth of failing requests does not become a standstill.
const BACKOFF_BASE: Duration = Duration::from_millis(100);
/// The longest wait after trouble: a receiver that is back is found within a minute.
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// Minutes between probes of a receiver that refuses, which a person has to fix. The last number repeats.
const REFUSED_MINUTES: [u64; 5] = [1, 2, 4, 8, 15];

/// A wait drawn evenly from nothing to a bound that doubles with each failure (full jitter), so that many agents that
/// lost one receiver do not all come back to it at once.
pub fn backoff(failures: u32, rng: &mut fastrand::Rng) -> Duration {
    BACKOFF_BASE.saturating_mul(1 << failures.min(16)).min(BACKOFF_MAX).mul_f64(rng.f64())
}

/// Whether a request may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// Yes, and this many may be in flight.
    Open(usize),
    /// Only one, to find out whether the receiver has recovered.
    Probe,
    /// Not before this moment.
    ShutUntil(Mono),
}

/// The state of the destination.
#[derive(Debug)]
pub struct Destination {
    state: DestinationState,
    since: Timestamp,
    reason: Option<Reason>,
    until: Mono,
    /// The end of the pause that the receiver asked for; nothing cuts it short.
    retry_after_deadline: Mono,
    failures: u32,
    refusals: usize,
    limiter: ConcurrencyLimiter,
    last_delivery: Option<Timestamp>,
    rng: fastrand::Rng,
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
            state: DestinationState::Unknown,
            since: now.wall,
            reason: None,
            until: Mono::ZERO,
            retry_after_deadline: Mono::ZERO,
            failures: 0,
            refusals: 0,
            limiter: ConcurrencyLimiter::new(concurrency),
            last_delivery: None,
            rng,
        };
        // A wall clock that was set back must not turn an hour into years.
        let pause = retry_after_deadline.map_or(Duration::ZERO, |at| at.since(now.wall)).min(MAX_RETRY_AFTER);
        if !pause.is_zero() {
            let reason =
                Reason::new(Code::RateLimited, "the receiver asked for a pause before the last stop");
            destination.trouble(reason, Some(pause), true, now);
        }
        destination
    }

    /// Whether a request may be sent now.
    pub fn gate(&self, now: Mono) -> Gate {
        match self.state {
            DestinationState::Online => Gate::Open(self.limiter.limit()),
            DestinationState::Unknown => Gate::Open(1),
            DestinationState::Backoff | DestinationState::Refused if now < self.until => {
                Gate::ShutUntil(self.until)
            }
            DestinationState::Backoff | DestinationState::Refused => Gate::Probe,
        }
    }

    /// Notes an accepted request. If it was sent since the state last changed (`is_current`), the destination is online,
    /// unless it has asked for a pause meanwhile. Returns whether the state has changed.
    pub fn accepted(&mut self, is_current: bool, now: Moment) -> bool {
        self.last_delivery = Some(now.wall);
        if !is_current || now.mono < self.retry_after_deadline {
            return false;
        }
        let has_changed = self.state != DestinationState::Online;
        self.enter(DestinationState::Online, None, now);
        (self.failures, self.refusals) = (0, 0);
        has_changed
    }

    /// Notes that the receiver failed or is unreachable: the next wait is twice as long. The trouble of a request that
    /// was sent before the state last changed (not `is_current`) only adds the pause that the receiver asks for. Returns
    /// whether a new wait has begun.
    pub fn trouble(
        &mut self,
        reason: Reason,
        retry_after: Option<Duration>,
        is_current: bool,
        now: Moment,
    ) -> bool {
        let is_waiting = matches!(self.state, DestinationState::Backoff | DestinationState::Refused);
        let begins_wait = is_current || (retry_after.is_some() && !is_waiting);
        match is_waiting && is_current {
            true => self.limiter.probe_failed(),
            false => self.limiter.trouble(),
        }
        if begins_wait {
            self.until = now.mono + backoff(self.failures, &mut self.rng);
            self.failures += 1;
            self.enter(DestinationState::Backoff, Some(reason), now);
        }
        if let Some(pause) = retry_after {
            self.retry_after_deadline = self.retry_after_deadline.max(now.mono + pause);
        }
        self.until = self.until.max(self.retry_after_deadline);
        begins_wait
    }

    /// Notes that the receiver refuses, which a person has to fix.
    pub fn refuse(&mut self, reason: Reason, now: Moment) {
        let minutes = REFUSED_MINUTES[self.refusals.min(REFUSED_MINUTES.len() - 1)];
        let wait = Duration::from_secs(60 * minutes).mul_f64(1.0 + 0.1 * self.rng.f64());
        self.refusals += 1;
        self.enter(DestinationState::Refused, Some(reason), now);
        self.until = (now.mono + wait).max(self.retry_after_deadline);
    }

    /// Notes that the receiver answers, and that nothing more is known of it: one request at a time is sent.
    pub fn reopen(&mut self, now: Moment) {
        self.retry_now();
        if now.mono >= self.retry_after_deadline {
            self.enter(DestinationState::Unknown, None, now);
        }
    }

    /// Ends the present wait, on SIGHUP, `retry` and a new key. A person expects an answer now, so the waits after it
    /// begin small again.
    pub fn retry_now(&mut self) {
        self.until = self.retry_after_deadline;
        self.failures = 0;
    }

    /// Sets how many requests may be in flight at once, and forgets what was measured.
    pub fn set_concurrency(&mut self, concurrency: Concurrency) {
        self.limiter = ConcurrencyLimiter::new(concurrency);
    }

    /// Notes the round-trip time of an accepted request, and how many were in flight when it was answered.
    pub fn record_round_trip(&mut self, round_trip: Duration, in_flight: usize) {
        self.limiter.accepted(round_trip, in_flight);
    }

    fn enter(&mut self, state: DestinationState, reason: Option<Reason>, now: Moment) {
        if self.state != state {
            self.since = now.wall;
            self.state = state;
        }
        self.reason = reason;
    }

    /// The state.
    pub fn state(&self) -> DestinationState {
        self.state
    }

    /// When the state began.
    pub fn since(&self) -> Timestamp {
        self.since
    }

    /// The reason of the state.
    pub fn reason(&self) -> Option<&Reason> {
        self.reason.as_ref()
    }

    /// Whether the receiver refuses the key, the address or everybody.
    pub fn refuses(&self) -> bool {
        self.state == DestinationState::Refused
    }

    /// Whether the receiver refuses everybody's events.
    pub fn refuses_all(&self) -> bool {
        self.refuses() && self.reason.as_ref().is_some_and(|r| r.code == Code::RefusesAll)
    }

    /// When the receiver is tried again.
    pub fn retry_at(&self, now: Moment) -> Option<Timestamp> {
        matches!(self.state, DestinationState::Backoff | DestinationState::Refused)
            .then(|| now.wall.plus(self.until.saturating_sub(now.mono)))
    }

    /// The end of the pause that the receiver asked for, if that is in the future.
    pub fn retry_after_deadline(&self, now: Moment) -> Option<Timestamp> {
        (self.retry_after_deadline > now.mono).then(|| now.wall.plus(self.retry_after_deadline - now.mono))
    }

    /// When the receiver last accepted a request.
    pub fn last_delivery(&self) -> Option<Timestamp> {
        self.last_delivery
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment { wall: Timestamp(1_000_000 * seconds as i64), mono: Duration::from_secs(seconds) }
    }

    fn new(retry_after_deadline: Option<Timestamp>) -> Destination {
        Destination::new(Concurrency::Fixed(8), retry_after_deadline, at(0), fastrand::Rng::with_seed(7))
    }

    fn reason(code: Code) -> Reason {
        Reason::new(code, "as the test says")
    }

    #[test]
    fn waits_double_up_to_a_minute_and_are_drawn_from_nothing_to_that() {
        let mut rng = fastrand::Rng::with_seed(1);
        for (failures, most) in [(0, 0.1), (1, 0.2), (5, 3.2), (9, 51.2), (10, 60.0), (4_000_000, 60.0)] {
            let waits: Vec<f64> = (0..1000).map(|_| backoff(failures, &mut rng).as_secs_f64()).collect();
            let longest = waits.iter().copied().fold(0.0, f64::max);
            let mean = waits.iter().sum::<f64>() / 1000.0;
            assert!(longest <= most && longest > 0.95 * most, "{failures}: {longest}");
            assert!((0.45..0.55).contains(&(mean / most)), "{failures}: {mean}");
        }
    }

    #[test]
    fn one_accepted_probe_opens_the_gate() {
        let mut d = new(None);
        assert_eq!(d.gate(Mono::ZERO), Gate::Open(1));
        d.accepted(true, at(1));
        assert_eq!((d.gate(at(1).mono), d.state()), (Gate::Open(8), DestinationState::Online));
        d.trouble(reason(Code::Http5xx), None, true, at(2));
        assert!(matches!(d.gate(at(2).mono), Gate::ShutUntil(_)));
        assert_eq!(d.gate(at(3).mono), Gate::Probe);
        d.accepted(false, at(3));
        assert_eq!(d.state(), DestinationState::Backoff);
        d.accepted(true, at(3));
        assert_eq!(d.gate(at(3).mono), Gate::Open(8));
    }

    #[test]
    fn a_retry_now_does_not_shorten_the_pause_that_the_receiver_asked_for() {
        let mut d = new(None);
        d.trouble(reason(Code::RateLimited), Some(Duration::from_secs(7)), true, at(0));
        d.retry_now();
        assert_eq!(d.gate(at(6).mono), Gate::ShutUntil(at(7).mono));
        d.trouble(reason(Code::RateLimited), Some(Duration::from_secs(20)), false, at(6));
        d.accepted(true, at(7));
        assert_eq!(d.gate(at(25).mono), Gate::ShutUntil(at(26).mono));
        assert_eq!(d.gate(at(26).mono), Gate::Probe);
    }

    #[test]
    fn a_pause_outlives_a_restart_and_is_capped_when_the_clock_was_set_back() {
        let d = new(Some(at(0).wall.plus(Duration::from_secs(30))));
        assert_eq!(d.gate(at(0).mono), Gate::ShutUntil(at(30).mono));
        let d = new(Some(Timestamp(i64::MAX)));
        assert_eq!(d.gate(at(0).mono), Gate::ShutUntil(at(3600).mono));
        assert_eq!(new(Some(at(0).wall)).gate(Mono::ZERO), Gate::Open(1));
    }

    #[test]
    fn a_receiver_that_refuses_is_probed_a_few_times_an_hour() {
        let mut d = new(None);
        let (mut now, mut probes) = (at(0), Vec::new());
        while now.mono < at(3600).mono {
            d.refuse(reason(Code::KeyRefused), now);
            let Gate::ShutUntil(until) = d.gate(now.mono) else { panic!() };
            probes.push((until - now.mono).as_secs_f64() / 60.0);
            now = Moment { wall: now.wall.plus(until - now.mono), mono: until };
        }
        for (wait, minutes) in probes.iter().zip([1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]) {
            assert!((minutes..=1.1 * minutes).contains(wait), "{probes:?}");
        }
        assert!(probes.len() <= 7, "{probes:?}");
    }
}

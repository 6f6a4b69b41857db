//! The time by which events expire.
//!
//! ```text
//!   wall clock     ──────────┐ set forward by 400 days
//!                            └──────────────────────────────────────────────▶
//!   retention time ─────────────────────────────────┐ after the longest keep_… setting
//!                                                   └───────────────────────▶
//! ```
//!
//! It is the wall clock's time, less what that was set forward. So it passes no faster than time really does, whatever the
//! wall clock is set to: nothing expires because of a step. Once every row is older than any setting keeps it, the step
//! makes no difference any more, and the two agree again.
//!
//! While the agent does not run, nobody knows how much time passes: at most a day is believed.
//!
//! The rows have the wall clock's times, and not a time of the outbox's own: people read them.

use crate::clock::Timestamp;
use crate::status::Incident;
use serde::{Deserialize, Serialize};
use std::time::Duration;

const DAY: Duration = Duration::from_secs(86_400);
/// The smallest step that is noticed. Smaller ones are the corrections of ordinary clocks.
const MIN_STEP: Duration = Duration::from_secs(300);
/// The time that may have passed while the agent did not run.
const MAX_STOP: Duration = DAY;
/// The interval at which the state is stored; a crash makes a stop look longer by that.
const SAVE_INTERVAL: Duration = Duration::from_secs(3_600);

/// The clock of retention.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RetentionClock {
    state: State,
    /// The time that had passed since some moment of this process.
    passed: Duration,
    unsaved: Duration,
}

/// A step that the wall clock was set by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ClockStep {
    /// Negative: back.
    pub seconds: i64,
    /// The step, to be shown for a while.
    pub incident: Incident,
}

impl ClockStep {
    fn new(at: Timestamp, millis: i64, what: &str) -> ClockStep {
        let text = format!("{what}; nothing expires because of it");
        ClockStep { seconds: millis / 1_000, incident: Incident { at, text, files: None } }
    }
}

/// The part of it that is stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    /// The wall clock's time when it was last looked at, milliseconds.
    wall: i64,
    /// The milliseconds by which the retention time is behind it.
    lag: i64,
    /// The milliseconds that have passed since the last step forward.
    since_step: i64,
}

impl RetentionClock {
    /// Goes on from the stored state, or begins with a time that the outbox has seen. Also returns the step that the wall
    /// clock was set by meanwhile.
    pub(super) fn resume(
        saved: Option<State>,
        newest: Option<Timestamp>,
        wall: Timestamp,
        passed: Duration,
    ) -> (RetentionClock, Option<ClockStep>) {
        let before = saved.unwrap_or(State { wall: newest.unwrap_or(wall).0, ..State::default() });
        let mut clock =
            RetentionClock { state: State { wall: wall.0, ..before }, passed, unsaved: SAVE_INTERVAL };
        let stopped = wall.0.saturating_sub(before.wall);
        let step = match stopped {
            back if back <= -millis(MIN_STEP) => back,
            forward => forward.saturating_sub(millis(MAX_STOP)).max(0),
        };
        clock.add(step, stopped.clamp(0, millis(MAX_STOP)));
        let told = (step != 0).then(|| {
            let text = match step > 0 {
                true => format!(
                    "by the clock, {} have passed since the agent last ran: if they have not, set the clock right",
                    rough(stopped)
                ),
                false => format!("the clock was set back by {} while the agent was not running", rough(stopped)),
            };
            ClockStep::new(wall, step, &text)
        });
        (clock, told)
    }

    /// Follows the wall clock. Returns the step that it was set by. `longest`: the longest time for which anything is
    /// kept.
    pub(super) fn advance(
        &mut self,
        wall: Timestamp,
        passed: Duration,
        longest: Duration,
    ) -> Option<ClockStep> {
        let real = passed.saturating_sub(self.passed);
        self.passed = passed;
        self.unsaved += real;
        let jump = wall.0.saturating_sub(self.state.wall).saturating_sub(millis(real));
        self.state.wall = wall.0;
        let step = if jump.unsigned_abs() >= MIN_STEP.as_millis() as u64 { jump } else { 0 };
        self.add(step, millis(real));
        if self.state.since_step >= millis(longest) {
            self.state.lag = 0;
        }
        if step == 0 {
            return None;
        }
        self.unsaved = SAVE_INTERVAL;
        let direction = if step > 0 { "forward" } else { "back" };
        Some(ClockStep::new(wall, step, &format!("the clock was set {direction} by {}", rough(step))))
    }

    /// The time by which events expire.
    pub(super) fn now(&self) -> Timestamp {
        Timestamp(self.state.wall.saturating_sub(self.state.lag))
    }

    /// The state, if it is time to store it.
    pub(super) fn unsaved(&self) -> Option<State> {
        (self.unsaved >= SAVE_INTERVAL).then_some(self.state)
    }

    /// Notes that the state is stored.
    pub(super) fn is_saved(&mut self) {
        self.unsaved = Duration::ZERO;
    }

    /// The state, for the end.
    pub(super) fn state(&self) -> State {
        self.state
    }

    fn add(&mut self, step: i64, real: i64) {
        self.state.since_step = if step > 0 { 0 } else { self.state.since_step.saturating_add(real) };
        // A clock that is set back takes away what it was ahead.
        self.state.lag = self.state.lag.saturating_add(step).max(0);
    }
}

fn millis(d: Duration) -> i64 {
    i64::try_from(d.as_millis()).unwrap_or(i64::MAX)
}

/// A length of time in days, hours or minutes.
fn rough(millis: i64) -> String {
    let minutes = millis.unsigned_abs() / 60_000;
    let (number, unit) = match minutes {
        2_880.. => (minutes / 1_440, "days"),
        120.. => (minutes / 60, "hours"),
        _ => (minutes, "minutes"),
    };
    format!("{number} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGAN: Timestamp = Timestamp(1_800_000_000_000);
    const KEEP: Duration = Duration::from_secs(90 * 86_400);

    fn days(n: f64) -> i64 {
        (n * DAY.as_millis() as f64) as i64
    }

    /// What a row that is stored at a wall clock's time is aged by then: the days by which it expires.
    fn age(clock: &RetentionClock, stored: Timestamp) -> f64 {
        (clock.now().0 - stored.0) as f64 / DAY.as_millis() as f64
    }

    fn after(wall: i64) -> Timestamp {
        Timestamp(BEGAN.0 + wall)
    }

    fn passed(days: f64) -> Duration {
        DAY.mul_f64(days)
    }

    #[test]
    fn no_step_of_a_running_agents_clock_makes_anything_older() {
        for step in [1.0, -1.0, 400.0, -400.0, 3_650.0, -3_650.0, 0.01, -0.01] {
            let (mut clock, incident) = RetentionClock::resume(None, None, BEGAN, passed(0.0));
            assert_eq!((clock.now(), incident), (BEGAN, None));
            assert_eq!(clock.advance(after(days(2.0)), passed(2.0), KEEP), None);
            assert_eq!(age(&clock, BEGAN), 2.0);

            let told = clock.advance(after(days(3.0 + step)), passed(3.0), KEEP).unwrap();
            let direction = if step > 0.0 { "set forward by " } else { "set back by " };
            assert!(told.incident.text.contains(direction), "{step}: {told:?}");
            assert!((told.seconds - days(step) / 1_000).abs() <= 1, "{step}: {told:?}");
            assert!(age(&clock, BEGAN) <= 3.01, "{step}: {}", age(&clock, BEGAN));
            // Rows of the time after the step age as well.
            let new = after(days(3.0 + step));
            assert_eq!(clock.advance(after(days(13.0 + step)), passed(13.0), KEEP), None);
            assert!(age(&clock, BEGAN) <= 13.01 && age(&clock, new) <= 10.01, "{step}");
            // And back: as if nothing had been.
            assert!(clock.advance(after(days(14.0)), passed(14.0), KEEP).is_some());
            assert!(age(&clock, BEGAN) <= 14.01 && age(&clock, new) <= 11.01, "{step}");
            // In the end everything expires: no row of before is younger than the longest setting.
            for day in 15..=105 {
                assert_eq!(clock.advance(after(days(f64::from(day))), passed(f64::from(day)), KEEP), None);
            }
            assert_eq!(clock.now(), after(days(105.0)), "{step}");
        }
    }

    #[test]
    fn over_a_stop_a_day_passes_at_most() {
        for (stopped, believed, told) in [
            (0.0, 0.0, None),
            (0.5, 0.5, None),
            (1.0, 1.0, None),
            (1.1, 1.0, Some("by the clock, 26 hours have passed since")),
            (400.0, 1.0, Some("by the clock, 400 days have passed since")),
            (3_650.0, 1.0, Some("by the clock, 3650 days have passed since")),
            (-0.001, -0.001, None),
            (-1.0, -1.0, Some("the clock was set back by 24 hours while")),
            (-3_650.0, -3_650.0, Some("the clock was set back by 3650 days while")),
        ] {
            let saved = State { wall: BEGAN.0, ..State::default() };
            let at = after(days(stopped));
            let (clock, incident) = RetentionClock::resume(Some(saved), None, at, passed(7.0));
            assert!((age(&clock, BEGAN) - believed).abs() < 1e-6, "{stopped}: {}", age(&clock, BEGAN));
            assert_eq!(
                incident.as_ref().map(|i| told.is_some_and(|told| i.incident.text.contains(told))),
                told.map(|_| true)
            );
            // Without a stored state, the newest row is what is known.
            let (again, told) = RetentionClock::resume(None, Some(BEGAN), at, passed(7.0));
            assert_eq!((again, told), (clock, incident));
        }
    }

    #[test]
    fn a_step_of_before_a_stop_is_not_forgotten_by_it() {
        let (mut clock, _) = RetentionClock::resume(None, None, BEGAN, passed(0.0));
        clock.advance(after(days(400.0)), passed(0.0), KEEP);
        let (clock, incident) =
            RetentionClock::resume(Some(clock.state()), None, after(days(400.5)), passed(0.0));
        assert_eq!((age(&clock, BEGAN), incident), (0.5, None));
        let (clock, incident) =
            RetentionClock::resume(Some(clock.state()), None, after(days(1.0)), passed(0.0));
        assert!(age(&clock, BEGAN) <= 1.0 && incident.is_some());
    }

    #[test]
    fn the_state_is_stored_at_the_start_every_hour_and_after_a_step() {
        let (mut clock, _) = RetentionClock::resume(None, None, BEGAN, passed(0.0));
        let minute = |n: u64| (BEGAN.plus(Duration::from_secs(60 * n)), Duration::from_secs(60 * n));
        let mut stored = Vec::new();
        for n in 0..=130 {
            let (wall, passed) = minute(n);
            let wall = if n >= 100 { wall.plus(DAY) } else { wall };
            clock.advance(wall, passed, KEEP);
            if clock.unsaved().is_some() {
                stored.push(n);
                clock.is_saved();
            }
        }
        assert_eq!(stored, [0, 60, 100]);
    }
}

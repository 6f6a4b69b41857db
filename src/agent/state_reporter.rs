//! What is told of the destination: all of it for the status, and what has changed for longer than a moment in the log.

use crate::clock::Timestamp;
use crate::reason::Reason;
use crate::status::{Destination, DestinationState};
use std::sync::mpsc::Sender;
use std::time::Duration;
use tokio::sync::watch;

/// Trouble that passes sooner is not told: a receiver that fails a tenth of its requests would fill the log with
/// it, a line a request. What waits for longer than that is worth a line.
const MIN_REPORTED: Duration = Duration::from_secs(5);

/// Tells it.
#[derive(Debug)]
pub struct StateReporter {
    shown: watch::Sender<Destination>,
    /// Has the status published at once: whoever reads the line in the log, or has just sent an event, looks there next.
    notify: Sender<()>,
    last_reported: LastReported,
}

impl StateReporter {
    /// Nothing was told yet but what `shown` holds.
    pub fn new(shown: watch::Sender<Destination>, notify: Sender<()>) -> StateReporter {
        StateReporter { shown, notify, last_reported: LastReported::default() }
    }

    /// The state that was told last.
    pub fn state(&self) -> DestinationState {
        self.shown.borrow().state
    }

    /// Another receiver stands at this address.
    pub fn move_to(&self, endpoint: String) {
        self.shown.send_modify(|shown| shown.endpoint = endpoint);
    }

    /// Tells how the destination is; its kind and its address stay.
    pub fn report(&mut self, now_shown: Destination, now: Timestamp) {
        let (last_reported, notify) = (&mut self.last_reported, &self.notify);
        self.shown.send_if_modified(|shown| {
            let (kind, endpoint) = (shown.kind.clone(), shown.endpoint.clone());
            let now_shown = Destination { kind, endpoint, ..now_shown };
            if last_reported.is_reportable(&now_shown, now) {
                log(&now_shown);
                // Nobody publishes any more where the agent ends.
                let _ = notify.send(());
            }
            let changed = *shown != now_shown;
            *shown = now_shown;
            changed
        });
    }
}

fn log(shown: &Destination) {
    let why = shown.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
    let endpoint = &shown.endpoint;
    match shown.state {
        DestinationState::Online => tracing::info!("{endpoint} takes events"),
        DestinationState::Refused => {
            tracing::error!("{endpoint} refuses{why}: events wait unharmed until somebody acts");
        }
        DestinationState::Backoff => {
            tracing::warn!("{endpoint} is in trouble{why}: events wait, it is tried again by itself");
        }
        DestinationState::Unknown => tracing::warn!("nothing is sent{why}"),
    }
}

/// What the log was told last.
#[derive(Debug, Default)]
struct LastReported(Option<(DestinationState, Option<Reason>)>);

impl LastReported {
    fn is_reportable(&mut self, shown: &Destination, now: Timestamp) -> bool {
        let reporter = match shown.state {
            DestinationState::Online => self.state() != Some(DestinationState::Online),
            DestinationState::Backoff => {
                let until = shown.retry_at.map_or(now, |at| at.max(now));
                self.state() != Some(DestinationState::Backoff)
                    && shown.since.is_some_and(|since| until.since(since) >= MIN_REPORTED)
            }
            DestinationState::Unknown if shown.reason.is_none() => false,
            DestinationState::Unknown | DestinationState::Refused => {
                self.0.as_ref() != Some(&(shown.state, shown.reason.clone()))
            }
        };
        if reporter {
            self.0 = Some((shown.state, shown.reason.clone()));
        }
        reporter
    }

    fn state(&self) -> Option<DestinationState> {
        self.0.as_ref().map(|(state, _)| *state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reason::Code;

    #[test]
    fn trouble_is_told_when_it_lasts_and_a_recovery_when_trouble_was_told() {
        use DestinationState::*;
        let destination = |state, since, reason, retry_at| Destination {
            kind: "koala".to_owned(),
            endpoint: "https://koala.test".to_owned(),
            state,
            since,
            reason,
            retry_at,
            last_delivery: None,
        };
        let (shown, seen) = watch::channel(destination(Unknown, None, None, None));
        let (notify, rung) = std::sync::mpsc::channel();
        let mut reporter = StateReporter::new(shown, notify);
        for (at, state, since, retry_at, code, last_reported) in [
            (0, Unknown, 0, None, None, false),
            (1, Backoff, 1, Some(2), Some(Code::Connect), false),
            (4, Backoff, 1, Some(5), Some(Code::Connect), false),
            (5, Backoff, 1, Some(8), Some(Code::Connect), true),
            (8, Backoff, 1, Some(20), Some(Code::Dns), false),
            (20, Online, 20, None, None, true),
            (21, Backoff, 21, Some(22), Some(Code::Http5xx), false),
            (22, Online, 22, None, None, false),
            (23, Backoff, 23, Some(3600), Some(Code::RateLimited), true),
            (3600, Refused, 3600, Some(3660), Some(Code::KeyRefused), true),
            (3660, Refused, 3600, Some(3800), Some(Code::KeyRefused), false),
            (3670, Unknown, 3670, None, None, false),
            (3671, Refused, 3671, Some(3800), Some(Code::KeyRefused), false),
            (3800, Refused, 3671, Some(3900), Some(Code::NotFound), true),
            (3801, Unknown, 3801, None, Some(Code::NoKey), true),
            (3900, Online, 3900, None, None, true),
        ] {
            let second = |s: i64| Timestamp(s * 1000);
            let reason = code.map(|code| Reason::new(code, ""));
            let now = destination(state, Some(second(since)), reason, retry_at.map(second));
            let unaddressed = Destination { kind: String::new(), endpoint: String::new(), ..now.clone() };
            reporter.report(unaddressed, second(at));
            assert_eq!(rung.try_recv().is_ok(), last_reported, "{state:?} at {at} s");
            assert_eq!(*seen.borrow(), now);
        }
    }
}

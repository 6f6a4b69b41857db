//! Reports the state of the destination: all of it for the status, and in the log what lasts longer than a moment.

use super::scheduler::{PathView, Scheduler};
use crate::clock::{Moment, Timestamp};
use crate::item::Endpoint;
use crate::reason::Reason;
use crate::status::{DestinationState, DestinationStatus, PathStatus, backoff_word};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;
use tokio::sync::watch;

/// The log does not tell of trouble that is over sooner: a receiver that fails a tenth of its requests would fill the log
/// with a line a request.
const MIN_REPORTED: Duration = Duration::from_secs(5);

/// Reports to the status and the log.
#[derive(Debug)]
pub struct StateReporter {
    destination: watch::Sender<DestinationStatus>,
    /// Has the status published at once, because whoever reads the line in the log looks there next.
    changed: Sender<()>,
    last_logged: LastLogged,
}

/// Where the reports arrive.
pub struct Reported {
    /// The destination as it was last reported.
    pub destination: watch::Receiver<DestinationStatus>,
    /// A message for each change that was logged.
    pub changed: Receiver<()>,
}

impl StateReporter {
    /// A reporter about a receiver at `endpoint` that nothing was sent to.
    pub fn new(endpoint: String) -> (StateReporter, Reported) {
        let (destination, reported) = watch::channel(DestinationStatus::unknown(endpoint));
        let (notify, changed) = channel();
        let reporter = StateReporter { destination, changed: notify, last_logged: LastLogged::default() };
        (reporter, Reported { destination: reported, changed })
    }

    /// Notes that the receiver has another address.
    pub fn move_to(&self, endpoint: String) {
        self.destination.send_modify(|destination| destination.endpoint = endpoint);
    }

    /// Reports the state of the destination; its kind and its address stay.
    pub fn report(&mut self, new: DestinationStatus, now: Timestamp) {
        let (last_logged, changed) = (&mut self.last_logged, &self.changed);
        self.destination.send_if_modified(|current| {
            let new =
                DestinationStatus { kind: current.kind.clone(), endpoint: current.endpoint.clone(), ..new };
            if last_logged.is_worth_logging(&new, now) {
                log(&new);
                // The publisher is gone when the agent ends.
                let _ = changed.send(());
            }
            for path in
                new.paths.iter().filter(|new| current.paths.iter().all(|path| path.state != new.state))
            {
                log_path(&new.endpoint, path);
                let _ = changed.send(());
            }
            let has_changed = *current != new;
            *current = new;
            has_changed
        });
    }
}

/// The destination as `status` shows it, without its address, and the last delivery, which the outbox knows.
pub fn status_of(scheduler: &Scheduler, no_client: Option<&Reason>, now: Moment) -> DestinationStatus {
    let PathView { state, since, reason, retry_at } = scheduler.path_view(Endpoint::People, now);
    let accounts = scheduler.path_view(Endpoint::Accounts, now);
    let is_apart = accounts.reason.is_some() && accounts.reason != reason;
    let mut status = DestinationStatus {
        state,
        since: Some(since),
        reason: reason.cloned(),
        paths: is_apart.then(|| path_status(Endpoint::Accounts, accounts)).into_iter().collect(),
        retry_at,
        ..DestinationStatus::unknown(String::new())
    };
    if let Some(reason) = no_client {
        status.state = DestinationState::Unknown;
        status.reason = Some(reason.clone());
        status.retry_at = None;
        status.paths.clear();
    }
    status
}

fn path_status(path: Endpoint, view: PathView<'_>) -> PathStatus {
    PathStatus {
        path: format!("/{}", path.path()),
        state: view.state,
        since: view.since,
        reason: view.reason.cloned(),
        retry_at: view.retry_at,
    }
}

/// Logs a state, at the level that its weight asks for.
macro_rules! log_state {
    ($level:ident, $endpoint:expr, $state:expr, $reason:expr, $($text:tt)+) => {{
        let code = $reason.as_ref().map(|reason| reason.code.as_str());
        tracing::$level!(
            notice = "destination_state",
            endpoint = $endpoint,
            state = $state.as_str(),
            code,
            $($text)+
        );
    }};
}

fn log(DestinationStatus { endpoint, state, reason, .. }: &DestinationStatus) {
    let why = why(reason.as_ref());
    match state {
        DestinationState::Online => log_state!(info, endpoint, state, reason, "{endpoint} accepts events"),
        DestinationState::Refused => log_state!(
            error,
            endpoint,
            state,
            reason,
            "{endpoint} refuses events{why}: they are kept until somebody fixes the cause"
        ),
        DestinationState::Backoff => log_state!(
            warn,
            endpoint,
            state,
            reason,
            "{endpoint} is {}{why}: events are kept and sent again automatically",
            backoff_word(reason.as_ref())
        ),
        DestinationState::Unknown => log_state!(warn, endpoint, state, reason, "nothing is sent{why}"),
    }
}

fn log_path(endpoint: &str, PathStatus { path, state, reason, .. }: &PathStatus) {
    let why = why(reason.as_ref());
    log_state!(
        warn,
        endpoint,
        state,
        reason,
        path,
        "{endpoint} takes no events at {path}{why}: those are kept, and others go on"
    );
}

fn why(reason: Option<&Reason>) -> String {
    reason.map(|reason| format!(" ({reason})")).unwrap_or_default()
}

/// The state and the reason that were logged last.
#[derive(Debug, Default)]
struct LastLogged(Option<(DestinationState, Option<Reason>)>);

impl LastLogged {
    fn is_worth_logging(&mut self, new: &DestinationStatus, now: Timestamp) -> bool {
        let is_worth_logging = match new.state {
            DestinationState::Online => self.state() != Some(DestinationState::Online),
            DestinationState::Backoff => {
                let until = new.retry_at.map_or(now, |at| at.max(now));
                self.state() != Some(DestinationState::Backoff)
                    && new.since.is_some_and(|since| until.since(since) >= MIN_REPORTED)
            }
            DestinationState::Unknown if new.reason.is_none() => false,
            DestinationState::Unknown | DestinationState::Refused => {
                self.0.as_ref() != Some(&(new.state, new.reason.clone()))
            }
        };
        if is_worth_logging {
            self.0 = Some((new.state, new.reason.clone()));
        }
        is_worth_logging
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
    fn trouble_is_logged_when_it_lasts_and_a_recovery_when_trouble_was_logged() {
        use DestinationState::*;
        let (mut reporter, reported) = StateReporter::new("https://koala.test".to_owned());
        for (at, state, since, retry_at, code, is_logged) in [
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
            let now = DestinationStatus {
                state,
                since: Some(second(since)),
                reason: code.map(|code| Reason::new(code, "")),
                retry_at: retry_at.map(second),
                ..DestinationStatus::unknown("https://koala.test".to_owned())
            };
            let unaddressed =
                DestinationStatus { kind: String::new(), endpoint: String::new(), ..now.clone() };
            reporter.report(unaddressed, second(at));
            assert_eq!(reported.changed.try_recv().is_ok(), is_logged, "{state:?} at {at} s");
            assert_eq!(*reported.destination.borrow(), now);
        }
    }
}

//! Tells in the log which events have failed. A line is written only once the commit holds the failure: after a commit that
//! did not succeed, the event is pending as before.

use crate::clock::Mono;
use crate::event::MessageId;
use crate::reason::{Code, Reason};
use crate::telemetry::LogLimiter;

/// The events that have failed in the open transaction.
pub(super) struct FailureLog {
    failed: Vec<(MessageId, Reason)>,
    limiter: LogLimiter<Code>,
}

impl Default for FailureLog {
    fn default() -> FailureLog {
        FailureLog { failed: Vec::new(), limiter: LogLimiter::new() }
    }
}

impl FailureLog {
    /// Notes that an event has failed.
    pub(super) fn add(&mut self, id: MessageId, reason: &Reason) {
        // The receiver's own words may repeat what it was sent.
        self.failed.push((id, reason.public()));
    }

    /// The number of failures noted since the last commit.
    pub(super) fn len(&self) -> usize {
        self.failed.len()
    }

    /// Forgets the failures noted after the first `len`.
    pub(super) fn undo_to(&mut self, len: usize) {
        self.failed.truncate(len);
    }

    /// Logs what was noted, now that it is committed, and what was left out before.
    pub(super) fn committed(&mut self, now: Mono) {
        for (id, reason) in self.failed.drain(..) {
            let Some(left_out) = self.limiter.line(reason.code, now) else { continue };
            tracing::warn!(
                notice = "event_failed",
                code = %reason.code,
                message_id = id.as_str(),
                "an event failed ({reason}){left_out}"
            );
        }
        while let Some((code, count)) = self.limiter.overdue(now) {
            tracing::warn!("{count} more events failed ({code}); koala-agent list --state failed shows them");
        }
    }
}

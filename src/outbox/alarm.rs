//! The alarm: the outbox can be used no longer.

use super::OutboxError;
use std::sync::Arc;
use tokio::sync::watch;

/// Raised once the outbox can be used no longer; nothing is committed from then on.
#[derive(Debug, Clone)]
pub(super) struct Alarm(watch::Sender<Option<Arc<OutboxError>>>);

impl Alarm {
    pub(super) fn new() -> Alarm {
        Alarm(watch::Sender::new(None))
    }

    pub(super) fn raise(&self, error: impl Into<Arc<OutboxError>>) {
        self.0.send_replace(Some(error.into()));
    }

    pub(super) fn is_raised(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Why the alarm is raised.
    pub(super) fn error(&self) -> Option<Arc<OutboxError>> {
        self.0.borrow().clone()
    }

    pub(super) fn watch(&self) -> watch::Receiver<Option<Arc<OutboxError>>> {
        self.0.subscribe()
    }
}

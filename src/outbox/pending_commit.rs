//! The answer of the writer to one of its callers.

use super::OutboxError;
use std::sync::Arc;
use tokio::sync::oneshot;

/// The writer's end of it.
pub(super) type Reply<T> = oneshot::Sender<Result<T, Arc<OutboxError>>>;

/// A commit that has not been answered yet. The sender awaits it; the intake's thread blocks on it.
#[derive(Debug)]
pub struct PendingCommit<T>(oneshot::Receiver<Result<T, Arc<OutboxError>>>);

impl<T> PendingCommit<T> {
    pub(super) fn of(answer: oneshot::Receiver<Result<T, Arc<OutboxError>>>) -> PendingCommit<T> {
        PendingCommit(answer)
    }

    /// Waits without blocking the thread.
    ///
    /// # Errors
    /// The errors of the transaction; [`OutboxError::Closed`] when the writer has ended.
    pub async fn wait(self) -> Result<T, Arc<OutboxError>> {
        self.0.await.unwrap_or_else(|_| Err(Arc::new(OutboxError::Closed)))
    }

    /// Blocks the thread; not to be called on a thread that runs tasks.
    ///
    /// # Errors
    /// As [`PendingCommit::wait`].
    pub fn block(self) -> Result<T, Arc<OutboxError>> {
        self.0.blocking_recv().unwrap_or_else(|_| Err(Arc::new(OutboxError::Closed)))
    }
}

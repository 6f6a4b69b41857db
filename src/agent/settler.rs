//! Settles what was answered, however long the outbox has no room for that. Nothing is sent meanwhile that could not be
//! recorded as delivered.

use crate::outbox::{OutboxError, Settlement, Writer};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// The wait before a commit is tried again that a full or locked outbox refused.
const COMMIT_RETRY: Duration = Duration::from_secs(1);

/// Settles items. Clones count together.
#[derive(Clone)]
pub struct Settler {
    writer: Writer,
    /// The number of commits that the outbox refuses for now.
    stalled: watch::Sender<usize>,
}

impl Settler {
    pub fn new(writer: Writer) -> Settler {
        Settler { writer, stalled: watch::Sender::new(0) }
    }

    /// Whether the outbox refuses a commit for now.
    pub fn is_stalled(&self) -> bool {
        *self.stalled.borrow() > 0
    }

    /// Makes a settlement. When this returns `Ok`, it is on the disk.
    ///
    /// # Errors
    /// The outbox failed in a way that waiting does not fix.
    pub async fn settle(&self, settlement: Settlement) -> Result<(), Arc<OutboxError>> {
        let mut is_stalled = false;
        let committed = loop {
            match self.writer.settle(settlement.clone()).wait().await {
                Err(e) if e.is_transient() => {
                    if !is_stalled {
                        let mut is_first = false;
                        self.stalled.send_modify(|n| {
                            *n += 1;
                            is_first = *n == 1;
                        });
                        if is_first {
                            tracing::warn!("{e}; nothing more is sent until deliveries can be recorded");
                        }
                        is_stalled = true;
                    }
                    tokio::time::sleep(COMMIT_RETRY).await;
                }
                committed => break committed,
            }
        };
        if is_stalled {
            self.stalled.send_modify(|n| *n -= 1);
        }
        committed
    }
}

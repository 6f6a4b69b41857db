//! Proof of life: a loop that still turns says so when it is asked, and one that hangs does not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tokio::sync::Notify;

/// Shared by a loop, which beats once a round, and by the watchdog, which asks and looks.
#[derive(Debug, Clone, Default)]
pub struct Heartbeat(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    ticks: AtomicU64,
    question: Notify,
}

impl Heartbeat {
    /// The loop has come round.
    pub fn tick(&self) {
        self.0.ticks.fetch_add(1, Relaxed);
    }

    /// How often it has.
    pub fn ticks(&self) -> u64 {
        self.0.ticks.load(Relaxed)
    }

    /// Asks the loop to come round once, though it may have nothing to do.
    pub fn ping(&self) {
        self.0.question.notify_one();
    }

    /// Returns when the loop is asked.
    pub async fn pinged(&self) {
        self.0.question.notified().await;
    }
}

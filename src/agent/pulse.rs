//! Proof of life: a loop that still turns says so when it is asked, and one that hangs does not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tokio::sync::Notify;

/// Shared by a loop, which beats once a round, and by the watchdog, which asks and looks.
#[derive(Debug, Clone, Default)]
pub struct Pulse(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    beats: AtomicU64,
    question: Notify,
}

impl Pulse {
    /// The loop has come round.
    pub fn beat(&self) {
        self.0.beats.fetch_add(1, Relaxed);
    }

    /// How often it has.
    pub fn beats(&self) -> u64 {
        self.0.beats.load(Relaxed)
    }

    /// Asks the loop to come round once, though it may have nothing to do.
    pub fn ask(&self) {
        self.0.question.notify_one();
    }

    /// Returns when the loop is asked.
    pub async fn asked(&self) {
        self.0.question.notified().await;
    }
}

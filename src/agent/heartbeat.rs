//! Heartbeats: proof that the loops still come round. A loop that waits for work comes round when it is pinged; one that
//! hangs does not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tokio::sync::Notify;

/// The heartbeat of one loop. The loop ticks once a round; the watchdog pings it and compares the ticks.
#[derive(Debug, Clone, Default)]
pub struct Heartbeat(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    ticks: AtomicU64,
    ping: Notify,
}

impl Heartbeat {
    pub fn tick(&self) {
        self.0.ticks.fetch_add(1, Relaxed);
    }

    pub fn ticks(&self) -> u64 {
        self.0.ticks.load(Relaxed)
    }

    /// Returns when the loop is pinged.
    pub async fn pinged(&self) {
        self.0.ping.notified().await;
    }
}

/// The heartbeats of all loops, by name.
#[derive(Debug, Default)]
pub struct Heartbeats(Vec<(&'static str, Heartbeat)>);

impl Heartbeats {
    /// The heartbeat of a loop of that name.
    pub fn register(&mut self, name: &'static str) -> Heartbeat {
        let heartbeat = Heartbeat::default();
        self.0.push((name, heartbeat.clone()));
        heartbeat
    }

    /// The ticks of each loop, in the order of registration.
    pub fn ticks(&self) -> Vec<(&'static str, u64)> {
        self.0.iter().map(|(name, heartbeat)| (*name, heartbeat.ticks())).collect()
    }

    /// Asks every loop that waits for [`Heartbeat::pinged`] to come round.
    pub fn ping(&self) {
        self.0.iter().for_each(|(_, heartbeat)| heartbeat.0.ping.notify_one());
    }
}

//! Withdrawals: events that a command is about to settle, until nothing of them is in flight any more.
//!
//! An ordering key that is ready has neither a request nor a commit ahead of it, and no later request has events that are
//! withdrawn. So one look at each key between two steps of the sender is enough, and no request need know of it.

use super::scheduler::Scheduler;
use crate::outbox::QueuedItem;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// The wait for the commit behind the last answer.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(2);

/// What a withdrawal has come upon.
#[derive(Debug, Default)]
pub struct Withdrawn {
    /// Items whose request has ended without an answer, so that the receiver may have them.
    pub unanswered: Vec<i64>,
    /// Items that are still in flight, or whose settlement is not durable.
    pub in_flight: Vec<i64>,
}

struct Withdrawal {
    /// Items whose ordering keys were not ready since.
    waiting: Vec<QueuedItem>,
    unanswered: Vec<i64>,
    reply: oneshot::Sender<Withdrawn>,
    until: Instant,
}

/// The withdrawals that wait.
#[derive(Default)]
pub struct Withdrawals(Vec<Withdrawal>);

impl Withdrawals {
    /// Waits for what is in flight of these items, which no new request has; at most for a request's time-out.
    pub fn begin(&mut self, items: Vec<QueuedItem>, reply: oneshot::Sender<Withdrawn>, timeout: Duration) {
        let until = Instant::now() + timeout + COMMIT_TIMEOUT;
        self.0.push(Withdrawal { waiting: items, unanswered: Vec::new(), reply, until });
    }

    /// Notes that a request with these items has ended without an answer.
    pub fn unanswered(&mut self, seqs: &[i64]) {
        for withdrawal in &mut self.0 {
            let items = withdrawal.waiting.iter().map(|item| item.seq);
            withdrawal.unanswered.extend(items.filter(|seq| seqs.contains(seq)));
        }
    }

    /// When the first of them gives up.
    pub fn until(&self) -> Option<Instant> {
        self.0.iter().map(|withdrawal| withdrawal.until).min()
    }

    /// Replies to those of which nothing is in flight any more, and to those whose time is over.
    pub fn end(&mut self, scheduler: &Scheduler) {
        if self.0.is_empty() {
            return;
        }
        let now = Instant::now();
        for mut withdrawal in std::mem::take(&mut self.0) {
            withdrawal.waiting.retain(|item| scheduler.is_busy(item.key));
            if !withdrawal.waiting.is_empty() && withdrawal.until > now && !withdrawal.reply.is_closed() {
                self.0.push(withdrawal);
                continue;
            }
            let in_flight = withdrawal.waiting.iter().map(|item| item.seq).collect();
            // An executor that is gone needs no reply.
            let _ = withdrawal.reply.send(Withdrawn { unanswered: withdrawal.unanswered, in_flight });
        }
    }
}

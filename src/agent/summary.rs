//! What an hour came to: one line in the log, where there would otherwise be one a request, or silence.

use crate::clock::Mono;
use crate::outbox::Flow;
use std::time::Duration;

/// Often enough to see in the journal when a day went wrong, seldom enough to read a week of it.
const EVERY: Duration = Duration::from_secs(3600);

/// What was said last.
#[derive(Debug)]
pub struct Summary {
    since: Mono,
    flow: Flow,
}

impl Summary {
    /// Begins the first hour of an outbox that was just opened.
    pub fn new(now: Mono) -> Summary {
        Summary { since: now, flow: Flow::default() }
    }

    /// The line, once an hour; none for an hour in which nothing moved: what stands still was told when it
    /// began to.
    pub fn due(&mut self, now: Mono, flow: Flow, pending: u64) -> Option<String> {
        if now.saturating_sub(self.since) < EVERY {
            return None;
        }
        let before = std::mem::replace(self, Summary { since: now, flow }).flow;
        let taken = flow.taken - before.taken;
        let delivered = flow.delivered - before.delivered;
        let failed = flow.failed - before.failed;
        if (taken, delivered, failed) == (0, 0, 0) {
            return None;
        }
        let mut line = format!("events of the last hour: {taken} taken, {delivered} delivered");
        if failed > 0 {
            line.push_str(&format!(", {failed} failed"));
        }
        line.push_str(&format!("; {pending} pending"));
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_in_which_something_moved_makes_one_line() {
        const MINUTE: Duration = Duration::from_secs(60);
        let flow = |taken, delivered, failed| Flow { taken, delivered, failed };
        let mut summary = Summary::new(Mono::ZERO);
        for (minutes, flow, pending, want) in [
            (59, flow(10, 7, 0), 3, None),
            (60, flow(10, 7, 0), 3, Some("events of the last hour: 10 taken, 7 delivered; 3 pending")),
            (61, flow(11, 7, 0), 4, None),
            (
                120,
                flow(11, 10, 1),
                0,
                Some("events of the last hour: 1 taken, 3 delivered, 1 failed; 0 pending"),
            ),
            (180, flow(11, 10, 1), 0, None),
            (240, flow(12, 10, 1), 1, Some("events of the last hour: 1 taken, 0 delivered; 1 pending")),
            (300, flow(12, 10, 1), 1, None),
        ] {
            assert_eq!(summary.due(MINUTE * minutes, flow, pending).as_deref(), want, "after {minutes} min");
        }
    }
}

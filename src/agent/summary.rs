//! The hourly line in the log. A line for each request would fill the log, and no line would look like a dead agent.

use crate::clock::Mono;
use crate::outbox::Throughput;
use std::time::Duration;

/// Short enough to see in the journal when a day went wrong, long enough to read a week of it.
const INTERVAL: Duration = Duration::from_secs(3600);

/// The figures of the last line.
#[derive(Debug)]
pub struct Summary {
    since: Mono,
    throughput: Throughput,
}

impl Summary {
    /// Begins the first hour of an outbox that was just opened.
    pub fn new(now: Mono) -> Summary {
        Summary { since: now, throughput: Throughput::default() }
    }

    /// The line, once an hour; none for an hour without any event: the log has told of a standstill when it began.
    pub fn due(&mut self, now: Mono, throughput: Throughput, pending: u64) -> Option<String> {
        if now.saturating_sub(self.since) < INTERVAL {
            return None;
        }
        let before = std::mem::replace(self, Summary { since: now, throughput }).throughput;
        let ingested = throughput.ingested - before.ingested;
        let delivered = throughput.delivered - before.delivered;
        let failed = throughput.failed - before.failed;
        if (ingested, delivered, failed) == (0, 0, 0) {
            return None;
        }
        let mut line = format!("events of the last hour: {ingested} ingested, {delivered} delivered");
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
    fn an_hour_with_events_makes_one_line() {
        const MINUTE: Duration = Duration::from_secs(60);
        let throughput = |ingested, delivered, failed| Throughput { ingested, delivered, failed };
        let mut summary = Summary::new(Mono::ZERO);
        for (minutes, throughput, pending, want) in [
            (59, throughput(10, 7, 0), 3, None),
            (
                60,
                throughput(10, 7, 0),
                3,
                Some("events of the last hour: 10 ingested, 7 delivered; 3 pending"),
            ),
            (61, throughput(11, 7, 0), 4, None),
            (
                120,
                throughput(11, 10, 1),
                0,
                Some("events of the last hour: 1 ingested, 3 delivered, 1 failed; 0 pending"),
            ),
            (180, throughput(11, 10, 1), 0, None),
            (
                240,
                throughput(12, 10, 1),
                1,
                Some("events of the last hour: 1 ingested, 0 delivered; 1 pending"),
            ),
            (300, throughput(12, 10, 1), 1, None),
        ] {
            assert_eq!(
                summary.due(MINUTE * minutes, throughput, pending).as_deref(),
                want,
                "after {minutes} min"
            );
        }
    }
}

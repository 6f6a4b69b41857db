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

    /// The events of the hour, once an hour; none for an hour without any event: the log has told of a standstill when it
    /// began.
    pub fn due(&mut self, now: Mono, throughput: Throughput) -> Option<Throughput> {
        if now.saturating_sub(self.since) < INTERVAL {
            return None;
        }
        let before = std::mem::replace(self, Summary { since: now, throughput }).throughput;
        let hour = Throughput {
            ingested: throughput.ingested - before.ingested,
            delivered: throughput.delivered - before.delivered,
            failed: throughput.failed - before.failed,
        };
        (hour != Throughput::default()).then_some(hour)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_with_events_is_told_of_once() {
        const MINUTE: Duration = Duration::from_secs(60);
        let throughput = |ingested, delivered, failed| Throughput { ingested, delivered, failed };
        let mut summary = Summary::new(Mono::ZERO);
        for (minutes, now, want) in [
            (59, throughput(10, 7, 0), None),
            (60, throughput(10, 7, 0), Some(throughput(10, 7, 0))),
            (61, throughput(11, 7, 0), None),
            (120, throughput(11, 10, 1), Some(throughput(1, 3, 1))),
            (180, throughput(11, 10, 1), None),
            (240, throughput(12, 10, 1), Some(throughput(1, 0, 0))),
            (300, throughput(12, 10, 1), None),
        ] {
            assert_eq!(summary.due(MINUTE * minutes, now), want, "after {minutes} min");
        }
    }
}

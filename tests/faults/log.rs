//! The log of an agent when all goes well.

use crate::common::agent::TestAgent;
use crate::common::setup::KEY;
use crate::runner::{Outcome, Scale};
use koala_agent::receiver::Faults;
use std::time::Duration;

/// Lines of the log in an hour: of the start, of the receiver, of the hour, of the stop.
const LINES: usize = 10;

/// Fifty requests become one line in the hour, and nobody is named.
pub fn hour(_: &Scale) -> Outcome {
    let mut agent = TestAgent::driven(Faults::default());
    agent.start();
    agent.drop_events(50, 50);
    agent.until_status("all are settled", |status| status.outbox.delivered == 50);
    agent.advance(Duration::from_secs(3600));
    let summary = "events of the last hour: 50 ingested, 50 delivered; 0 pending";
    agent.until("the hour is summed up", |agent| agent.log().contains(summary));
    let figures = agent.end_settled();
    let log = agent.log();
    assert!(log.lines().count() < LINES, "{log}");
    assert!(!log.contains("acme.dev") && !log.contains(KEY), "{log}");
    figures.into()
}

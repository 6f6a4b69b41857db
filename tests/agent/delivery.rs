//! The way of an event from a file in the spool to the receiver.

use crate::common::agent::TestAgent;
use crate::common::events::track;
use crate::common::setup::names_in;
use koala_agent::receiver::Faults;
use koala_agent::status::Status;
use std::time::Duration;

/// Ten seconds on an idle machine.
const SOON: Duration = Duration::from_secs(50);

#[test]
fn an_event_in_the_spool_is_delivered_once_and_its_file_is_removed() {
    let mut agent = TestAgent::in_process(Faults::default());
    agent.start();
    agent.drop_track("m-1", "ana@acme.dev");
    agent.until_held(1);
    agent.until_status("it is acknowledged", |status| status.outbox.delivered == 1);
    agent.until("the file is gone", |agent| names_in(&agent.spool()) == [".removing", "rejected"]);
    agent.stop();
    agent.start();
    agent.drop_file("again.json", track("m-1", "ana@acme.dev"));
    agent.until_status("the duplicate is counted", |status| status.spool.duplicates == 1);
    let status = agent.status();
    assert_eq!((status.outbox.pending, status.outbox.delivered), (0, 1));
    agent.stop();
    assert_eq!(agent.receiver.stats().events, 1);
}

#[test]
fn a_rejected_file_shows_in_the_published_status_at_once() {
    let mut agent = TestAgent::in_process(Faults::default());
    agent.start();
    agent.drop_track("m-1", "ana@acme.dev");
    agent.until_held(1);
    let until_published = |agent: &mut TestAgent, fact: &str, rejected| {
        agent.until_within(SOON, fact, |agent| {
            let spool = Status::read(&agent.config().status_file).unwrap().spool;
            (spool.rejected_files, spool.waiting_files) == (rejected, 0)
        });
    };
    until_published(&mut agent, "nothing waits", 0);
    agent.drop_file("broken.json", "7");
    until_published(&mut agent, "one is rejected", 1);
    agent.drop_file("reused.json", track("m-1", "bob@acme.dev"));
    until_published(&mut agent, "two are rejected", 2);
    agent.stop();
}

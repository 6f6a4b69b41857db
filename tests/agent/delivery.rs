//! The way of an event from a file in the spool to the receiver.

use crate::common::agent::TestAgent;
use crate::common::events::track;
use crate::common::setup::names_in;
use koala_agent::clock::Clock;
use koala_agent::receiver::{Faults, Receiver, ReceiverOptions};
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
            (spool.rejected_files, spool.waiting_files) == (Some(rejected), Some(0))
        });
    };
    until_published(&mut agent, "nothing waits", 0);
    agent.drop_file("broken.json", "7");
    until_published(&mut agent, "one is rejected", 1);
    agent.drop_file("reused.json", track("m-1", "bob@acme.dev"));
    until_published(&mut agent, "two are rejected", 2);
    agent.stop();
}

#[test]
fn a_clock_that_differs_from_the_receivers_is_told_until_they_agree() {
    let mut agent = TestAgent::program(Faults::default());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let now = agent.clock.now();
    let clock = Clock::manual(now.plus(Duration::from_secs(10 * 365 * 86_400)));
    let options = ReceiverOptions { clock: clock.clone(), ..ReceiverOptions::default() };
    let receiver = runtime.block_on(Receiver::start("127.0.0.1:0".parse().unwrap(), options)).unwrap();
    agent.set(&format!("koala.endpoint = \"{}\"", receiver.endpoint()));
    agent.start_and_wait();
    assert_eq!(agent.status().clock_ahead_seconds, None);
    agent.drop_track("m-1", "ana@acme.dev");
    agent.until_status("it is told", |status| {
        status.clock_ahead_seconds.is_some_and(|ahead| ahead < -300_000_000)
    });
    agent.drop_track("m-2", "ana@acme.dev");
    agent.until("both are delivered", |_| receiver.stats().held == 2);
    let text = agent.run(&["status"]).out;
    assert!(text.contains("clock") && text.contains("behind the receiver's"), "{text}");
    assert!(text.contains("set the clock, or have it set: timedatectl set-ntp true"), "{text}");
    clock.step(now);
    agent.drop_track("m-3", "ana@acme.dev");
    agent.until_status("they agree", |status| status.clock_ahead_seconds.is_none());
    agent.until("the log tells it", |agent| agent.log_lines_with(&["info", "clock", "agree again"]) == 1);
    let told =
        agent.log_lines_with(&["warning", "3649 days behind the receiver's", "timedatectl set-ntp true"]);
    assert_eq!(told, 1, "{}", agent.log());
    assert!(!agent.run(&["status"]).out.contains("the receiver's"));
    agent.stop();
    runtime.block_on(receiver.stop());
}

#[test]
fn a_restart_forgets_no_delivery_and_shows_no_count_before_it_has_counted() {
    let mut agent = TestAgent::in_process(Faults::default());
    agent.start();
    let text = agent.run(&["status"]).out;
    assert!(text.contains("nothing delivered yet"), "{text}");
    agent.drop_track("m-1", "ana@acme.dev");
    agent.drop_file("broken.json", "7");
    agent.until_status("it is delivered", |status| status.outbox.delivered == 1);
    agent.until_status("one is rejected", |status| status.spool.rejected_files == Some(1));
    // A published time is exact to the second.
    let last_delivery = |status: &Status| status.destination.last_delivery.map(|at| at.to_string());
    let last = last_delivery(&agent.status());
    assert!(last.is_some());
    agent.stop();
    agent.receiver.set_faults(Faults { offline: true, ..Faults::default() });
    agent.start();
    agent.until("the rejected file is counted again", |agent| {
        let published = Status::read(&agent.config().status_file).unwrap();
        assert_eq!(last_delivery(&published), last);
        let rejected = published.spool.rejected_files;
        assert!(matches!(rejected, None | Some(1)), "{rejected:?}");
        rejected.is_some()
    });
    let text = agent.run(&["status"]).out;
    assert!(text.contains("no delivery since 20") && text.contains("last delivery 20"), "{text}");
    agent.stop();
    assert_eq!(last_delivery(&agent.status()), last);
}

#[test]
fn the_history_of_an_event_ends_with_the_answer_that_accepted_it() {
    let mut agent = TestAgent::in_process(Faults { status: Some(503), ..Faults::default() });
    agent.start();
    agent.drop_track("m-1", "ana@acme.dev");
    agent.until("it was answered", |agent| agent.receiver.stats().refused_requests > 0);
    agent.receiver.set_faults(Faults::default());
    agent.until_status("it is delivered", |status| status.outbox.delivered == 1);
    let answers = |agent: &TestAgent| {
        let shown = agent.run(&["show", "m-1", "--json"]).json();
        let history = shown["history"].as_array().unwrap().clone();
        let text = agent.run(&["show", "m-1"]).out;
        assert!(text.contains("accepted: the receiver answered 204"), "{text}");
        history.iter().map(|answer| (answer["code"].clone(), answer["text"].clone())).collect::<Vec<_>>()
    };
    let seen = answers(&agent);
    assert_eq!(seen.first().unwrap().0, "http_5xx");
    assert_eq!(*seen.last().unwrap(), ("accepted".into(), "the receiver answered 204".into()));
    agent.stop();
    assert_eq!(answers(&agent), seen, "its row has moved");
}

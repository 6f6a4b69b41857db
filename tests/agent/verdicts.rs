//! The effect of the receiver's answers on pending events; over hours and in bulk, `faults/receiver/` shows it.

use crate::common::agent::TestAgent;
use crate::common::events::track;
use crate::common::proxy::{Proxy, treat};
use koala_agent::reason::Code;
use koala_agent::receiver::Faults;
use koala_agent::status::DestinationState::Refused;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

const STEP: Duration = Duration::from_secs(10);

/// `count` events of `people` persons in turn, in one NDJSON file.
fn flood(agent: &TestAgent, name: &str, count: usize, people: usize) {
    let lines: Vec<String> =
        (0..count).map(|n| track(&format!("e-{n:06}"), &format!("p{}@acme.dev", n % people))).collect();
    agent.drop_file(name, lines.join("\n"));
}

#[test]
fn a_refused_event_fails_only_after_another_is_accepted() {
    let mut agent = TestAgent::in_process(Faults { poison: Some("poison".into()), ..Faults::default() });
    agent.start();
    agent.drop_track("poison-1", "ana@acme.dev");
    agent.until("it was refused", |agent| agent.receiver.stats().refused_requests == 1);
    agent.drop_track("m-2", "ben@acme.dev");
    agent.until_held(1);
    agent.until_status("the next to arrive was the control", |status| status.outbox.failed == 1);
    assert_eq!(agent.status().outbox.pending, 0);
    agent.stop();
}

#[test]
fn a_refused_batch_of_one_person_is_bisected_and_the_next_event_is_the_canary() {
    let mut agent = TestAgent::in_process(Faults { poison: Some("poison".into()), ..Faults::default() });
    let ids = ["a", "b", "poison", "c", "d", "e"];
    agent.drop_file("one.jsonl", ids.map(|id| track(id, "ana@acme.dev")).join("\n"));
    agent.start();
    agent.until_held(5);
    agent.until_status("the poisoned one has failed", |status| status.outbox.failed == 1);
    let took: Vec<String> = agent.receiver.events().iter().map(|h| h.message_id.to_string()).collect();
    assert_eq!(took, ["a", "b", "c", "d", "e"]);
    agent.stop();
}

#[test]
fn a_single_refused_event_shows_in_the_status_and_is_retried() {
    let refuse = Faults { refuse_all: Some("Koala ingest suspended".into()), ..Faults::default() };
    let mut agent = TestAgent::on_manual_clock(refuse);
    agent.drop_track("m-1", "ana@acme.dev");
    agent.start();
    agent.until_status("it is refused", |status| status.destination.state == Refused);
    let reason = agent.status().destination.reason.unwrap();
    let answer = r#"the receiver answered 400: {"error":"Koala ingest suspended"}"#;
    assert_eq!((reason.code, reason.text.as_str()), (Code::RefusesAll, answer));
    agent.receiver.set_faults(Faults::default());
    agent.pass(Duration::from_secs(70), STEP);
    agent.until_held(1);
    agent.stop();
}

#[test]
fn requests_of_different_people_are_in_flight_together() {
    let mut agent = TestAgent::in_process(Faults { latency_ms: 200, ..Faults::default() });
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (in_flight, at_most) = (now.clone(), most.clone());
    let count = treat(move |exchange| {
        let request = exchange.request()?;
        at_most.fetch_max(in_flight.fetch_add(1, Relaxed) + 1, Relaxed);
        let answer = exchange.forward(&request);
        in_flight.fetch_sub(1, Relaxed);
        exchange.stream.write_all(&answer?)
    });
    let proxy = Proxy::before(agent.receiver.addr(), count);
    agent.set(&format!("koala.endpoint = \"{}\"", proxy.endpoint()));
    flood(&agent, "flood.jsonl", 80, 80);
    agent.start();
    agent.until_held(80);
    let most = most.load(Relaxed);
    assert!(most >= 8, "{most} requests at once");
    agent.stop();
}

#[test]
fn a_changed_endpoint_applies_to_pending_events() {
    let mut agent = TestAgent::in_process(Faults { status: Some(404), ..Faults::default() });
    flood(&agent, "flood.jsonl", 100, 10);
    agent.start();
    agent.until_status("it is refused", |status| status.destination.state == Refused);
    let mut other = TestAgent::in_process(Faults::default());
    let mut config = agent.config();
    config.koala.endpoint = other.receiver.endpoint();
    agent.reload(config);
    other.until_held(100);
    assert_eq!(agent.receiver.stats().held, 0);
    agent.until_status("it is told", |status| status.destination.endpoint == other.receiver.endpoint());
    agent.stop();
}

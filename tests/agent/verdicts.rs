//! The effect of the receiver's answers on pending events; over hours and in bulk, `faults/receiver/` shows it.

use crate::common::agent::TestAgent;
use crate::common::events::track;
use crate::common::proxy::{Proxy, treat};
use koala_agent::reason::Code;
use koala_agent::receiver::Faults;
use koala_agent::status::DestinationState::{Online, Refused};
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

/// A minute and a half: seven refusals of one event, and what comes before and after.
const PROOF: Duration = Duration::from_secs(90);

fn poisoned() -> Faults {
    Faults { poison: Some("poison".into()), ..Faults::default() }
}

#[test]
fn a_refused_event_fails_by_seven_refusals_over_a_minute_beside_an_acceptance() {
    let mut agent = TestAgent::on_manual_clock(poisoned());
    agent.start();
    agent.drop_track("poison-1", "ana@acme.dev");
    agent.until("it was refused", |agent| agent.receiver.stats().refused_requests == 1);
    agent.drop_track("m-2", "ben@acme.dev");
    agent.until_held(1);
    agent.pass(Duration::from_secs(55), STEP / 10);
    assert_eq!((agent.status().outbox.pending, agent.status().outbox.failed), (1, 0));
    let took = agent.pass_until("it has failed", |agent| agent.status().outbox.failed == 1);
    assert!(took < PROOF, "{took:?}");
    let refused = agent.receiver.stats().refused_requests;
    assert!((7..=9).contains(&refused), "{refused} refusals");
    agent.stop();
}

#[test]
fn an_event_left_alone_stays_pending_and_its_history_blames_nobody() {
    let mut agent = TestAgent::on_manual_clock(poisoned());
    agent.drop_track("poison-1", "ana@acme.dev");
    agent.start();
    agent.until("it was refused", |agent| agent.receiver.stats().refused_requests == 1);
    agent.pass(Duration::from_secs(1_800), STEP);
    assert_eq!((agent.status().outbox.pending, agent.status().outbox.failed), (1, 0));
    let requests = agent.receiver.stats().requests;
    assert!(requests < 40, "{requests} requests in half an hour");
    let show = agent.command("show").args(["poison-1", "--json"]).output().unwrap();
    let shown: serde_json::Value = serde_json::from_slice(&show.stdout).unwrap();
    let last = shown["history"].as_array().unwrap().last().unwrap();
    assert_eq!(last["code"], "suspect", "{shown}");
    assert!(last["text"].as_str().unwrap().contains("not blamed yet"), "{shown}");
    agent.drop_track("m-2", "ben@acme.dev");
    let took = agent.pass_until("it has failed", |agent| agent.status().outbox.failed == 1);
    assert!(took < Duration::from_secs(60), "{took:?} after an acceptance");
    agent.stop();
}

#[test]
fn a_refused_batch_of_one_person_is_split_and_the_next_event_is_the_witness() {
    let mut agent = TestAgent::on_manual_clock(poisoned());
    let ids = ["a", "b", "poison", "c", "d", "e"];
    agent.drop_file("one.jsonl", ids.map(|id| track(id, "ana@acme.dev")).join("\n"));
    agent.start();
    let took = agent.pass_until("the poisoned one has failed", |agent| agent.status().outbox.failed == 1);
    assert!(took < PROOF, "{took:?}");
    agent.until_held(5);
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
    let answer = r#"the receiver answered 400: {"error":"Koala ingest suspended"}: the hosted service is shut down, set koala.endpoint to another receiver"#;
    assert_eq!((reason.code, reason.text.as_str()), (Code::RefusesAll, answer));
    agent.receiver.set_faults(Faults::default());
    agent.pass(Duration::from_secs(70), STEP);
    agent.until_held(1);
    agent.stop();
}

/// A proxy that gives this answer to the requests with that text, and passes on all others.
fn proxy_answering(agent: &TestAgent, text: &'static str, answer: &'static str) -> Proxy {
    let answering = treat(move |exchange| {
        let request = exchange.request()?;
        let answer = match memchr::memmem::find(&request, text.as_bytes()) {
            Some(_) => format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n").into_bytes(),
            None => exchange.forward(&request)?,
        };
        exchange.stream.write_all(&answer)
    });
    Proxy::before(agent.receiver.addr(), answering)
}

#[test]
fn an_event_that_the_receiver_has_already_is_delivered_beside_an_acceptance() {
    let mut agent = TestAgent::on_manual_clock(Faults::default());
    let proxy = proxy_answering(&agent, "known", "409 Conflict");
    agent.set(&format!("koala.endpoint = \"{}\"", proxy.endpoint()));
    let ids = ["a", "known"];
    agent.drop_file("one.jsonl", ids.map(|id| track(id, "ana@acme.dev")).join("\n"));
    agent.start();
    agent.until_status("the first is delivered", |status| status.outbox.delivered == 1);
    agent.pass(STEP, STEP);
    assert_eq!(agent.status().outbox.delivered, 1, "delivered by a conflict alone");
    agent.drop_track("m-2", "ben@acme.dev");
    agent.pass_until("all are delivered", |agent| agent.status().outbox.delivered == 3);
    assert_eq!(agent.held_ids().len(), 2);
    agent.stop();
}

#[test]
fn an_event_that_a_firewall_dislikes_stops_nobody_else() {
    let mut agent = TestAgent::on_manual_clock(Faults::default());
    let proxy = proxy_answering(&agent, "poison", "403 Forbidden");
    agent.set(&format!("koala.endpoint = \"{}\"", proxy.endpoint()));
    agent.start();
    agent.drop_track("m-1", "ana@acme.dev");
    agent.until_held(1);
    agent.drop_track("poison", "eve@acme.dev");
    flood(&agent, "flood.jsonl", 1_000, 100);
    agent.until_held(1_001);
    let took = agent.pass_until("it has failed", |agent| {
        // The trickle of others is what proves it.
        agent.status().outbox.failed == 1
    });
    assert!(took < PROOF, "{took:?}");
    assert_eq!(agent.status().destination.state, Online);
    agent.stop();
}

#[test]
fn a_missing_accounts_path_stops_accounts_alone_and_shows_in_the_status() {
    let mut agent = TestAgent::on_manual_clock(Faults::default());
    let proxy = proxy_answering(&agent, "/accounts/batch", "404 Not Found");
    agent.set(&format!("koala.endpoint = \"{}\"", proxy.endpoint()));
    agent.set(
        "mapping = [{ name = \"Users\", trigger = 'type = \"track\"', action = \"track\" }, \
         { name = \"Groups\", trigger = 'type = \"group\"', action = \"account_identify\", \
         fields = { domain = { \"@path\" = \"$.traits.domain\" } } }]",
    );
    let group = |n| format!(r#"{{"type":"group","messageId":"g-{n}","traits":{{"domain":"d{n}.dev"}}}}"#);
    agent.drop_file("1.jsonl", (0..20).map(group).collect::<Vec<_>>().join("\n"));
    flood(&agent, "2.jsonl", 500, 50);
    agent.start();
    agent.until_held(500);
    agent.pass_until("the path is refused", |agent| !agent.status().destination.paths.is_empty());
    let status = agent.status();
    let path = &status.destination.paths[0];
    assert_eq!((path.path.as_str(), path.state), ("/accounts/batch", Refused));
    assert_eq!(path.reason.as_ref().unwrap().code, Code::NotFound);
    assert_eq!(status.destination.state, Online);
    agent.until_status("the others are delivered", |status| status.outbox.pending == 20);
    agent.stop();
}

/// Requests until `refused` before a receiver that answers 404 to everybody.
fn requests_until_refused(agent: &mut TestAgent) -> u64 {
    agent.receiver.set_faults(Faults { status: Some(404), ..Faults::default() });
    let before = agent.receiver.stats().requests;
    for n in 0..50 {
        agent.drop_track(&format!("m-{before}-{n}"), &format!("p{n}@acme.dev"));
    }
    agent.start();
    agent.until_status("it is refused", |status| status.destination.state == Refused);
    let minute = Duration::from_secs(59);
    agent.until("/auth has answered", |agent| agent.next_attempt_in().is_some_and(|wait| wait > minute));
    agent.receiver.stats().requests - before
}

#[test]
fn a_receiver_that_never_accepted_is_refused_by_one_answer_and_the_others_are_remembered() {
    let mut agent = TestAgent::on_manual_clock(Faults::default());
    assert_eq!(requests_until_refused(&mut agent), 1 + 1, "one person, and /auth");
    agent.stop();
    agent.receiver.set_faults(Faults::default());
    agent.start();
    agent.until_held(50);
    agent.until_status("all are delivered", |status| status.outbox.pending == 0);
    agent.stop();
    assert_eq!(requests_until_refused(&mut agent), 6 + 1, "six persons, and /auth");
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

//! What answers do: hours on a clock that the test owns, against a real HTTP server.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod common;

use common::{World, track};
use koala_agent::reason::Code;
use koala_agent::receiver::Faults;
use koala_agent::status::DestinationState::{Backoff, Online, Refused};
use std::collections::BTreeMap;
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);
const STEP: Duration = Duration::from_secs(10);

/// `count` events of `people` persons in turn, in one NDJSON file.
fn flood(world: &World, name: &str, count: usize, people: usize) {
    let lines: Vec<String> =
        (0..count).map(|n| track(&format!("e-{n:06}"), &format!("p{}@acme.dev", n % people))).collect();
    world.drop_file(name, lines.join("\n"));
}

/// For each person, the events in the order in which the receiver first took them, is the order of their ids.
fn assert_in_order(world: &World) {
    let mut last: BTreeMap<String, String> = BTreeMap::new();
    for held in world.receiver.events() {
        let person = held.top("email").unwrap().to_owned();
        let id = held.message_id.to_string();
        if let Some(before) = last.insert(person, id.clone()) {
            assert!(before < id, "{before} came before {id}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_refuses_everybody_costs_nobody_an_event() {
    let refuse = Faults { refuse_all: Some("Koala ingest suspended".into()), ..Faults::default() };
    let mut world = World::manual(refuse).await;
    flood(&world, "flood.jsonl", 10_000, 500);
    world.start().await;
    world.until("all are stored", |w| w.status().outbox.pending == 10_000).await;
    world.until("it is refused", |w| w.status().destination.state == Refused).await;
    world.pass(HOUR, STEP).await;

    let status = world.status();
    assert_eq!((status.outbox.pending, status.outbox.failed), (10_000, 0));
    let reason = status.destination.reason.unwrap();
    assert_eq!(reason.code, Code::RefusesAll);
    assert!(reason.text.contains(r#"400: {"error":"Koala ingest suspended"}"#), "{}", reason.text);
    assert!(reason.text.contains("koala.endpoint"), "{}", reason.text);
    let asked = world.receiver.stats().requests;
    assert!((3..=20).contains(&asked), "{asked}");

    world.receiver.set_faults(Faults::default());
    world.pass(Duration::from_secs(17 * 60), STEP).await;
    world.until_held(10_000).await;
    world.until("all are marked", |w| w.status().outbox.delivered == 10_000).await;
    assert_eq!(world.status().destination.state, Online);
    assert_in_order(&world);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_thousand_events_with_one_poisoned_exactly_that_one_fails() {
    let mut world = World::new(Faults { poison: Some("poison".into()), ..Faults::default() }).await;
    // Twenty people with fifty events each, one of them poisoned, in the midst of a request.
    let lines: Vec<String> = (0..1000)
        .map(|n| {
            let id = if n == 517 { format!("e-{n:06}-poison") } else { format!("e-{n:06}") };
            track(&id, &format!("p{}@acme.dev", n % 20))
        })
        .collect();
    world.drop_file("flood.jsonl", lines.join("\n"));
    world.start().await;
    world.until_held(999).await;
    world.until("the poisoned one has failed", |w| w.status().outbox.failed == 1).await;
    world.until("all are marked", |w| w.status().outbox.pending == 0).await;
    let status = world.status();
    assert_eq!((status.outbox.pending, status.outbox.delivered), (0, 999));
    assert_eq!((status.reasons[0].state.as_str(), status.reasons[0].code.as_str()), ("failed", "refused"));
    assert_in_order(&world);
    let refused = world.receiver.stats().refused_requests;
    assert!(refused <= 6, "{refused}");
    let requests = world.receiver.stats().requests;
    // Forty full requests (30 and 20 of each person), the control, and the split of 30.
    assert!(requests <= 40 + 11, "{requests}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_event_without_another_to_compare_with_waits_in_doubt() {
    let mut world = World::new(Faults { poison: Some("poison".into()), ..Faults::default() }).await;
    world.start().await;
    world.track("poison-1", "ana@acme.dev");
    world.until("it was refused", |w| w.receiver.stats().refused_requests == 1).await;
    world.track("m-2", "ben@acme.dev");
    world.until_held(1).await;
    world.until("the next to arrive was the control", |w| w.status().outbox.failed == 1).await;
    assert_eq!(world.status().outbox.pending, 0);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_alone_is_split_and_the_next_event_is_the_control() {
    let mut world = World::new(Faults { poison: Some("poison".into()), ..Faults::default() }).await;
    let ids = ["a", "b", "poison", "c", "d", "e"];
    world.drop_file("one.jsonl", ids.map(|id| track(id, "ana@acme.dev")).join("\n"));
    world.start().await;
    world.until_held(5).await;
    world.until("the poisoned one has failed", |w| w.status().outbox.failed == 1).await;
    let took: Vec<String> = world.receiver.events().iter().map(|h| h.message_id.to_string()).collect();
    assert_eq!(took, ["a", "b", "c", "d", "e"]);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_address_or_service_waits_for_a_person_and_goes_on_by_itself() {
    for (faults, code) in [
        (Faults { status: Some(401), ..Faults::default() }, Code::KeyRefused),
        (Faults { status: Some(403), ..Faults::default() }, Code::KeyRefused),
        (Faults { status: Some(404), ..Faults::default() }, Code::NotFound),
        (Faults { status: Some(410), ..Faults::default() }, Code::NotFound),
        (Faults { status: Some(302), ..Faults::default() }, Code::Redirect),
        (Faults { html: true, ..Faults::default() }, Code::NotTheReceiver),
    ] {
        let mut world = World::manual(faults).await;
        flood(&world, "flood.jsonl", 300, 50);
        world.start().await;
        world.until("it is refused", |w| w.status().destination.state == Refused).await;
        world.pass(HOUR, STEP).await;
        let status = world.status();
        assert_eq!((status.outbox.pending, status.outbox.failed), (300, 0), "{code}");
        assert_eq!(status.destination.reason.unwrap().code, code);
        let asked = world.receiver.stats().requests;
        assert!((2..=12).contains(&asked), "{code}: {asked}");
        world.receiver.set_faults(Faults::default());
        world.pass(Duration::from_secs(17 * 60), STEP).await;
        world.until_held(300).await;
        world.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trouble_backs_off_as_a_whole_and_nobody_fails() {
    for status in [500, 502, 503, 504, 408, 425, 429] {
        let mut world = World::manual(Faults { status: Some(status), ..Faults::default() }).await;
        flood(&world, "flood.jsonl", 300, 50);
        world.start().await;
        world.until("it backs off", |w| w.status().destination.state == Backoff).await;
        world.pass(HOUR, Duration::from_secs(5)).await;
        let seen = world.status();
        assert_eq!((seen.outbox.pending, seen.outbox.failed), (300, 0), "{status}");
        assert_eq!(seen.destination.state, Backoff);
        let asked = world.receiver.stats().requests;
        // A minute at the longest, half of that on average.
        assert!((20..=400).contains(&asked), "{status}: {asked}");
        world.receiver.set_faults(Faults::default());
        world.pass(Duration::from_secs(61), Duration::from_secs(1)).await;
        world.until_held(300).await;
        world.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_is_kept_and_outlives_a_restart() {
    let faults = Faults { status: Some(429), retry_after: Some("600".into()), ..Faults::default() };
    let mut world = World::manual(faults).await;
    world.track("m-1", "ana@acme.dev");
    world.start().await;
    world.until("it was asked once", |w| w.receiver.stats().requests == 1).await;
    world.until("it backs off", |w| w.status().destination.state == Backoff).await;
    world.receiver.set_faults(Faults::default());
    world.pass(Duration::from_secs(290), STEP).await;
    world.stop().await;
    world.start().await;
    world.pass(Duration::from_secs(300), STEP).await;
    assert_eq!(world.receiver.stats().requests, 1);
    world.pass(Duration::from_secs(20), STEP).await;
    world.until_held(1).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_too_large_is_made_smaller_and_the_size_is_learnt() {
    let mut world = World::new(Faults { too_large: Some(2_000), ..Faults::default() }).await;
    flood(&world, "flood.jsonl", 300, 10);
    world.start().await;
    world.until_held(300).await;
    let refused = world.receiver.stats().refused_requests;
    assert!((1..=12).contains(&refused), "{refused}");
    assert_in_order(&world);
    world.until("none failed", |w| w.status().outbox.delivered == 300).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_accepted_request_whose_answer_is_lost_is_sent_again_under_the_same_ids() {
    let mut world = World::new(Faults { drop_after_accept: 0.3, ..Faults::default() }).await;
    flood(&world, "flood.jsonl", 500, 50);
    world.start().await;
    world.until_held(500).await;
    world.until("all are marked", |w| w.status().outbox.delivered == 500).await;
    assert_in_order(&world);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn order_holds_through_a_quarter_of_faults() {
    let faults = Faults { fail_share: 0.1, rate_limited: 0.05, drop_after_accept: 0.1, ..Faults::default() };
    let mut world = World::new(faults).await;
    flood(&world, "flood.jsonl", 20_000, 100);
    world.start().await;
    world.until_held(20_000).await;
    assert_in_order(&world);
    world.until("all are marked", |w| w.status().outbox.delivered == 20_000).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn poisoned_events_of_different_people_fail_alone_wherever_they_stand() {
    // The very oldest; two of different people in the midst; the last.
    for poisoned in [vec![0], vec![0, 40], vec![41, 60], vec![399]] {
        let mut world = World::new(Faults { poison: Some("poison".into()), ..Faults::default() }).await;
        let lines: Vec<String> = (0..400)
            .map(|n| {
                let poison = if poisoned.contains(&n) { "-poison" } else { "" };
                track(&format!("e-{n:06}{poison}"), &format!("p{}@acme.dev", n % 20))
            })
            .collect();
        world.drop_file("flood.jsonl", lines.join("\n"));
        world.start().await;
        world.until_held(400 - poisoned.len()).await;
        if poisoned == [399] {
            // The last of all may have nobody beside it.
            world.track("z-1", "zoe@acme.dev");
        }
        world.until("the poisoned have failed", |w| w.status().outbox.failed == poisoned.len() as u64).await;
        assert_in_order(&world);
        world.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_event_that_stands_alone_is_told_in_the_status_and_asked_again() {
    let refuse = Faults { refuse_all: Some("Koala ingest suspended".into()), ..Faults::default() };
    let mut world = World::manual(refuse).await;
    world.track("m-1", "ana@acme.dev");
    world.start().await;
    world.until("it is refused", |w| w.status().destination.state == Refused).await;
    let reason = world.status().destination.reason.unwrap();
    assert!(reason.text.contains("koala.endpoint"), "{}", reason.text);
    world.receiver.set_faults(Faults::default());
    world.pass(Duration::from_secs(70), STEP).await;
    world.until_held(1).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_calls_everything_too_large_is_no_reason_to_hurry() {
    let mut world = World::manual(Faults { too_large: Some(1), ..Faults::default() }).await;
    flood(&world, "flood.jsonl", 300, 10);
    world.start().await;
    world.until("it is refused", |w| w.status().destination.state == Refused).await;
    world.pass(HOUR, STEP).await;
    assert_eq!((world.status().outbox.pending, world.status().outbox.failed), (300, 0));
    let asked = world.receiver.stats().requests;
    assert!(asked <= 30, "{asked}");
    world.receiver.set_faults(Faults::default());
    world.pass(Duration::from_secs(17 * 60), STEP).await;
    world.until_held(300).await;
    assert_in_order(&world);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn people_are_served_side_by_side() {
    let mut world = World::new(Faults { latency_ms: 200, ..Faults::default() }).await;
    flood(&world, "flood.jsonl", 80, 80);
    let began = std::time::Instant::now();
    world.start().await;
    world.until_held(80).await;
    // One after the other they would take sixteen seconds, eight at once two.
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_endpoint_applies_to_what_waits() {
    let mut world = World::new(Faults { status: Some(404), ..Faults::default() }).await;
    flood(&world, "flood.jsonl", 100, 10);
    world.start().await;
    world.until("it is refused", |w| w.status().destination.state == Refused).await;
    let other = World::new(Faults::default()).await;
    let mut config = world.config();
    config.koala.endpoint = other.receiver.endpoint();
    world.agent().reload(config).unwrap();
    other.until_held(100).await;
    assert_eq!(world.receiver.stats().held, 0);
    world.until("it is told", |w| w.status().destination.endpoint == other.receiver.endpoint()).await;
    world.stop().await;
}

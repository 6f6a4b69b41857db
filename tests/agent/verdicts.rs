//! What answers do to those who wait. What they do over hours, and in bulk, is in `faults/receiver/`.

use crate::common::world::{World, track};
use koala_agent::receiver::Faults;
use koala_agent::status::DestinationState::Refused;
use std::time::Duration;

const STEP: Duration = Duration::from_secs(10);

/// `count` events of `people` persons in turn, in one NDJSON file.
fn flood(world: &World, name: &str, count: usize, people: usize) {
    let lines: Vec<String> =
        (0..count).map(|n| track(&format!("e-{n:06}"), &format!("p{}@acme.dev", n % people))).collect();
    world.drop_file(name, lines.join("\n"));
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

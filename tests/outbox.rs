//! What the outbox remembers of an event, and for how long.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

#[path = "cli/world.rs"]
mod world;

use koala_agent::outbox::State;
use world::{World, event};

#[test]
fn what_is_known_already_is_not_counted_as_taken() {
    let world = World::new();
    let outbox = world.agent();
    let events = || ["a", "b"].map(|id| event(id, r#"{"type":"track","event":"E"}"#, "a.json")).to_vec();
    for _ in 0..2 {
        outbox.writer.append(events(), vec![]).block().unwrap();
    }
    assert_eq!(outbox.writer.gauge().flow().taken, 2);
    outbox.close();
    assert_eq!(world.reader().counts().unwrap().duplicates, 2);
}

#[test]
fn a_person_is_a_hash_once_the_body_is_gone_and_not_before() {
    let world = World::with_events();
    let person = |id| world.reader().show(id).unwrap().unwrap().row.person.unwrap();
    assert!(["delivered", "discarded"].map(person).iter().all(|person| person.starts_with("hash:")));
    assert_eq!(["waiting", "refused"].map(person), ["ana@acme.dev", "bob@acme.dev"]);
}

#[test]
fn the_counters_follow_a_retry() {
    let world = World::with_events();
    let count = |state| world.reader().counts().unwrap().states.get(&state).copied().unwrap_or_default();
    let before = [State::Pending, State::Failed].map(count);
    assert_eq!(world.run(&["retry", "refused"]).code, 0);
    assert_eq!([State::Pending, State::Failed].map(count), [before[0] + 1, before[1] - 1]);
}

#[test]
fn what_the_producer_kept_from_koala_is_erased_at_once_and_any_other_skipped_body_is_kept() {
    let world = World::new();
    let outbox = world.agent();
    let off = r#"{"type":"track","event":"E","email":"ana@acme.dev","integrations":{"All":false}}"#;
    let events =
        vec![event("off", off, "a.json"), event("nobody", r#"{"type":"track","event":"E"}"#, "a.json")];
    outbox.writer.append(events, vec![]).block().unwrap();
    outbox.close();
    let body = |id| world.reader().show(id).unwrap().unwrap().body;
    assert_eq!((body("off"), body("nobody").is_some()), (None, true));
}

//! The outbox as the commands read it.

use crate::common::events::new_event;
use crate::common::setup::Setup;
use koala_agent::outbox::State;

#[test]
fn the_person_becomes_a_hash_when_the_body_is_erased() {
    let setup = Setup::with_events();
    let person = |id| setup.reader().events().show(id).unwrap().unwrap().row.person.unwrap();
    assert!(["delivered", "discarded"].map(person).iter().all(|person| person.starts_with("hash:")));
    assert_eq!(["waiting", "refused"].map(person), ["ana@acme.dev", "bob@acme.dev"]);
}

#[test]
fn the_counters_follow_a_retry() {
    let setup = Setup::with_events();
    let count = |state| setup.reader().counts().unwrap().states.get(&state).copied().unwrap_or_default();
    let before = [State::Pending, State::Failed].map(count);
    assert_eq!(setup.run(&["retry", "refused"]).code, 0);
    assert_eq!([State::Pending, State::Failed].map(count), [before[0] + 1, before[1] - 1]);
}

#[test]
fn the_body_of_an_event_turned_off_is_erased_at_once_and_other_skipped_bodies_are_kept() {
    let setup = Setup::new();
    let outbox = setup.open_outbox();
    let off = r#"{"type":"track","event":"E","email":"ana@acme.dev","integrations":{"All":false}}"#;
    let events = vec![
        new_event("off", off, "a.json"),
        new_event("nobody", r#"{"type":"track","event":"E"}"#, "a.json"),
    ];
    outbox.writer.append(events, vec![]).block().unwrap();
    outbox.close();
    let body = |id| setup.reader().events().show(id).unwrap().unwrap().body;
    assert_eq!((body("off"), body("nobody").is_some()), (None, true));
}

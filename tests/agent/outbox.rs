//! The outbox as the commands read it.

use crate::common::agent::TestAgent;
use crate::common::events::new_event;
use crate::common::setup::Setup;
use koala_agent::outbox::State;
use koala_agent::receiver::Faults;

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

/// An outbox of 2 MiB, through which several times as much goes.
#[test]
fn what_is_delivered_or_skipped_never_keeps_out_what_is_not() {
    const EVENTS: usize = 15_000;
    let mut agent = TestAgent::program(Faults::default());
    agent.set("outbox.max_bytes = \"2MiB\"");
    agent.start_and_wait();
    let event = |n: usize, email: &str| {
        format!("{{\"type\":\"track\",\"event\":\"E\",\"messageId\":\"m-{n}\",\"properties\":{{{email}}}}}\n")
    };
    for file in 0..EVENTS / 1_000 {
        let numbers = file * 1_000..(file + 1) * 1_000;
        let lines: String =
            numbers.map(|n| event(n, &format!("\"email\":\"p{}@acme.dev\"", n % 50))).collect();
        agent.drop_file(format!("{file}.jsonl"), lines);
        // Of nobody, so skipped.
        agent.drop_file(
            format!("{file}-skipped.jsonl"),
            "{\"type\":\"track\",\"event\":\"E\"}\n".repeat(1_000),
        );
        // So that what waits never fills it.
        agent.until_held((file + 1) * 1_000);
    }
    // Beside what waits: a quarter of the limit for history, a tenth for skipped events, and the ids.
    agent.until_status("nothing waits, and history keeps to its budget", |status| {
        let outbox = &status.outbox;
        outbox.pending == 0
            && status.spool.waiting_files == Some(0)
            && outbox.bytes < outbox.max_bytes / 4 + outbox.max_bytes / 10 + 2 * 40 * EVENTS as u64
    });
    let status = agent.status();
    assert!(!agent.log().contains("the intake is blocked"), "{}", agent.log());
    let (delivered, skipped) = (status.outbox.delivered as usize, status.outbox.skipped as usize);
    assert!((1_000..EVENTS - 1_000).contains(&delivered) && skipped < EVENTS - 1_000, "{status:?}");
    assert!(status.outbox.history_since.is_some(), "{status:?}");
    // All ids are remembered still.
    assert_eq!(status.outbox.ids_remembered_since, None);
    for n in [0, EVENTS / 2, EVENTS - 1] {
        agent.drop_file(format!("again-{n}.jsonl"), event(n, &format!("\"email\":\"p{}@acme.dev\"", n % 50)));
    }
    agent.until_status("they are duplicates", |status| status.spool.duplicates == 3);
    let shown = agent.command("show").arg("m-0").output().unwrap();
    let said = String::from_utf8_lossy(&shown.stderr);
    assert!(said.contains("the event m-0 was delivered or skipped, and only its id is left"), "{said}");
    agent.stop();
    assert_eq!(agent.receiver.stats().events as usize, EVENTS);
}

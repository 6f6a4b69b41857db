//! Several mappings for one event, from the spool to the receiver: nothing of it is lost, and nothing sent twice.

use crate::common::agent::TestAgent;
use crate::common::events::track;
use crate::common::kills::Kill;
use koala_agent::clock::Timestamp;
use koala_agent::outbox::Reader;
use koala_agent::receiver::{Faults, HeldItem, HeldKind, Receiver};
use koala_agent::status::Status;
use nix::sys::signal::Signal;
use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

/// Each makes an item of a track, under an id of its own.
const THREE: &str = r#"
[[mapping]]
preset = "Track Calls"

[[mapping]]
name = "Leads"
trigger = 'type = "track"'
action = "identify"
fields = { traits = { email = { "@path" = "$.properties.email" } }, message_id = { "@template" = "{{messageId}}-lead" } }

[[mapping]]
name = "Companies"
trigger = 'type = "track"'
action = "account_track"
fields = { domain = "acme.dev", message_id = { "@template" = "{{messageId}}-company" } }
"#;

/// The ids at the receiver, each with how often it came again.
fn held(receiver: &Receiver) -> BTreeMap<String, u64> {
    receiver.events().iter().map(|held| (held.message_id.to_string(), held.repeats)).collect()
}

fn once<const N: usize>(ids: [&str; N]) -> BTreeMap<String, u64> {
    ids.map(|id| (id.to_owned(), 0)).into()
}

/// Runs a command beside the agent; it succeeds.
fn command(agent: &TestAgent, arguments: &[&str]) {
    let ran = agent.run(arguments);
    assert_eq!(ran.code, 0, "{arguments:?}: {ran:?}");
}

/// The state of an event, and the reason in words.
fn state(agent: &TestAgent, id: &str) -> (String, String) {
    let shown = Reader::open(&agent.outbox()).unwrap().events().show(id).unwrap();
    shown.map(|detail| (detail.row.state, detail.row.reason.unwrap_or_default())).unwrap_or_default()
}

fn with(mappings: &str, faults: Faults) -> TestAgent {
    let mut agent = TestAgent::in_process(faults);
    agent.set_tables(mappings);
    agent.start();
    agent
}

#[test]
fn an_event_is_delivered_with_the_last_of_its_items() {
    let mut agent = with(THREE, Faults::default());
    agent.drop_file(
        "1.ndjson",
        format!("{}\n{}\n", track("m-1", "ana@acme.dev"), track("m-2", "bob@acme.dev")),
    );
    agent.until_status("both are delivered", |status| status.outbox.delivered == 2);
    let ids = ["m-1", "m-1-lead", "m-1-company", "m-2", "m-2-lead", "m-2-company"];
    assert_eq!(held(&agent.receiver), once(ids));
    agent.stop();
    agent.start();
    agent.drop_file("2.json", track("m-1", "ana@acme.dev"));
    agent.until_status("it is a duplicate", |status| status.spool.duplicates == 1);
    agent.stop();
    assert_eq!(held(&agent.receiver), once(ids));
}

/// An agent with an event of which one of three items was refused; another person's was accepted.
fn refused_in_part() -> TestAgent {
    let mut agent =
        TestAgent::on_manual_clock(Faults { poison: Some("m-1-lead".into()), ..Faults::default() });
    // Commands run by the machine's clock.
    agent.step_clock(Timestamp::from_system(SystemTime::now()));
    agent.set_tables(THREE);
    agent.start();
    agent.drop_file("1.json", track("m-1", "ana@acme.dev"));
    agent.until("the item is refused", |agent| agent.receiver.stats().refused_requests > 0);
    agent.drop_file("2.json", track("m-2", "bob@acme.dev"));
    agent.pass_until("the event has failed", |agent| agent.status().outbox.failed == 1);
    agent.until_status("the other is delivered", |status| status.outbox.delivered == 1);
    let taken = ["m-1", "m-1-company", "m-2", "m-2-lead", "m-2-company"];
    assert_eq!(held(&agent.receiver), once(taken));
    agent
}

#[test]
fn an_event_fails_with_one_item_and_a_retry_sends_only_that() {
    let mut agent = refused_in_part();
    let (state, reason) = state(&agent, "m-1");
    assert_eq!(state, "failed");
    assert!(reason.starts_with("Leads: ") && reason.contains("poisoned"), "{reason}");
    agent.receiver.set_faults(Faults::default());
    let before = agent.receiver.requests().len();
    command(&agent, &["retry", "m-1"]);
    agent.until_status("the event is delivered", |status| status.outbox.delivered == 2);
    let ids: Vec<_> = agent.receiver.requests().drain(before..).flat_map(|it| it.message_ids).collect();
    assert_eq!(ids, ["m-1-lead"]);
    agent.stop();
    assert_eq!(agent.receiver.stats().repeats, 0);
}

#[test]
fn a_partly_delivered_event_can_be_discarded() {
    let mut agent = refused_in_part();
    agent.receiver.set_faults(Faults { poison: Some("-lead".into()), ..Faults::default() });
    // Failed, and while one of its items still waits.
    command(&agent, &["discard", "m-1"]);
    agent.drop_file("3.json", track("m-3", "cy@acme.dev"));
    agent.until("two items are delivered", |agent| agent.receiver.stats().held == 7);
    agent.until_status("one waits", |status| status.outbox.pending == 1);
    command(&agent, &["discard", "m-3"]);
    agent.receiver.set_faults(Faults::default());
    agent.drop_file("4.json", track("m-4", "cy@acme.dev"));
    agent.pass_until("what came later is delivered", |agent| state(agent, "m-4").0 == "delivered");
    for id in ["m-1", "m-3"] {
        assert_eq!(state(&agent, id).0, "discarded");
    }
    let outbox = agent.status().outbox;
    assert_eq!((outbox.pending, outbox.delivered, outbox.failed, outbox.discarded), (0, 2, 0, 2));
    agent.stop();
    let held = held(&agent.receiver);
    assert!(!held.contains_key("m-1-lead") && !held.contains_key("m-3-lead"), "{held:?}");
    assert_eq!(agent.receiver.stats().repeats, 0);
}

const ACCOUNTS: &str = r#"
[[mapping]]
preset = "Group Calls"

[[mapping]]
name = "Usage"
trigger = 'type = "track" and event = "Used"'
action = "account_track"
[mapping.fields]
domain = { "@path" = "$.context.domain" }
account_id = { "@path" = "$.context.groupId" }
"#;

#[test]
fn accounts_are_sent_in_their_own_requests() {
    let mut agent = with(ACCOUNTS, Faults::default());
    let events = [
        r#"{"type":"group","messageId":"g-1","groupId":"g-7","traits":{"website":"https://www.Acme.dev/x","plan":"pro"}}"#,
        r#"{"type":"track","messageId":"u-1","event":"Used","timestamp":"2026-01-02T03:04:05Z","properties":{"n":1.0},"context":{"domain":"acme.dev","groupId":7}}"#,
        r#"{"type":"group","messageId":"g-2","groupId":"g-8","traits":{"email":"ana@gmail.com"}}"#,
        r#"{"type":"track","messageId":"u-2","event":"Signed Up","properties":{"email":"ana@acme.dev"}}"#,
    ];
    agent.drop_file("1.ndjson", events.join("\n"));
    agent.until("all are settled", |agent| {
        let outbox = agent.status().outbox;
        (outbox.delivered, outbox.skipped) == (2, 2)
    });
    let paths: BTreeSet<_> = agent.receiver.requests().into_iter().map(|request| request.path).collect();
    assert_eq!(paths, ["/web/projects/<public_key>/accounts/batch".to_owned()].into());
    let told: BTreeSet<_> = agent
        .receiver
        .events()
        .iter()
        .map(|held| {
            let item = held.item.get().to_owned();
            (
                held.kind == HeldKind::Identify,
                held.top("domain").map(str::to_owned),
                held.top("account_id").map(str::to_owned),
                item,
            )
        })
        .collect();
    let of = |is_identify, account_id: Option<&str>, item: &str| {
        (is_identify, Some("\"acme.dev\"".to_owned()), account_id.map(str::to_owned), item.to_owned())
    };
    assert_eq!(
        told,
        BTreeSet::from([
            of(
                true,
                None,
                r#"{"type":"identify","traits":{"website":"https://www.Acme.dev/x","plan":"pro","group_id":"g-7"}}"#
            ),
            of(
                false,
                Some("\"7\""),
                r#"{"type":"track","event":"Used","properties":{"n":1.0},"sent_at":"2026-01-02T03:04:05Z","message_id":"u-1"}"#
            ),
        ])
    );
    assert_eq!(state(&agent, "g-2").0, "skipped");
    agent.stop();
}

/// The real program with these mappings.
fn program(mappings: &str, faults: Faults) -> TestAgent {
    let mut agent = TestAgent::program(faults);
    agent.set_tables(mappings);
    agent
}

/// The items that are settled, each by its event and its mapping, with its state and code. No view and no command shows
/// single items, so this looks at their table.
fn settled_items(agent: &TestAgent) -> BTreeMap<(String, String), String> {
    let sql = "SELECT e.message_id, i.mapping, i.state || ' ' || i.code
                 FROM items i JOIN outbox_events e ON e.seq = i.seq";
    let outbox = agent.database();
    let mut rows = outbox.prepare(sql).unwrap();
    let rows = rows.query_map([], |r| Ok(((r.get(0)?, r.get(1)?), r.get(2)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

/// How many events are in that state.
fn count(agent: &TestAgent, state: &str) -> i64 {
    let sql = "SELECT coalesce(sum(events), 0) FROM outbox_status WHERE state = ?";
    agent.database().query_row(sql, [state], |r| r.get(0)).unwrap()
}

fn item_id(event: &str, mapping: &str) -> String {
    match mapping {
        "Leads" => format!("{event}-lead"),
        "Companies" => format!("{event}-company"),
        _ => event.to_owned(),
    }
}

#[test]
fn a_crash_between_two_items_loses_and_repeats_nothing() {
    let mut agent = program(THREE, Faults { poison: Some("-lead".into()), ..Faults::default() });
    agent.start();
    agent.drop_file("1.json", track("m-1", "ana@acme.dev"));
    agent.until("two items are acknowledged", |agent| {
        agent.outbox().exists() && agent.receiver.stats().held == 2 && settled_items(agent).len() == 2
    });
    agent.kill();
    agent.receiver.set_faults(Faults::default());
    agent.start();
    agent.until("the third follows", |agent| count(agent, "delivered") == 1);
    assert_eq!(held(&agent.receiver), once(["m-1", "m-1-lead", "m-1-company"]));
    agent.stop();
}

#[test]
fn crashes_at_any_moment_lose_no_item_and_repeat_none_that_was_acknowledged() {
    const EVENTS: usize = 200;
    let mut agent = program(THREE, Faults { latency_ms: 5, ..Faults::default() });
    let lines: Vec<_> =
        (0..EVENTS).map(|n| track(&format!("m-{n}"), &format!("p{}@acme.dev", n % 40))).collect();
    agent.drop_file("1.ndjson", lines.join("\n"));
    let mut marked: BTreeMap<String, u64> = BTreeMap::new();
    for round in 1..=6 {
        agent.start();
        let goal = EVENTS * 3 * round / 8;
        agent.until("some more are held", |agent| agent.receiver.stats().held >= goal);
        agent.kill();
        Kill::of(&agent);
        let now = held(&agent.receiver);
        for (event, mapping) in settled_items(&agent).into_keys() {
            let id = item_id(&event, &mapping);
            marked.entry(id.clone()).or_insert(now[&id]);
        }
    }
    agent.start();
    agent.until("all are delivered", |agent| count(agent, "delivered") == EVENTS as i64);
    let held = held(&agent.receiver);
    assert_eq!(held.len(), EVENTS * 3);
    assert!(marked.len() > 100, "{} were acknowledged before a kill", marked.len());
    for (id, repeats) in marked {
        assert_eq!(held[&id], repeats, "{id} was sent again after it was acknowledged");
    }
    agent.stop();
}

#[test]
fn pending_items_of_a_renamed_or_removed_mapping_are_skipped() {
    let mut agent = program(THREE, Faults { offline: true, ..Faults::default() });
    agent.start();
    agent.drop_file("1.json", track("m-1", "ana@acme.dev"));
    agent.until("it waits", |agent| agent.outbox().exists() && agent.pending_ids().len() == 1);
    let (_, rest) = THREE.split_once("name = \"Leads\"").unwrap();
    agent.set_tables(&format!(
        "\n[[mapping]]\npreset = \"Track Calls\"\nname = \"Tracked\"\n[[mapping]]\nname = \"Leads\"{}",
        rest.split("[[").next().unwrap()
    ));
    // Changed once no request by the old mappings is in flight.
    let keying = |agent: &TestAgent| -> Option<i64> {
        let sql = "SELECT keying FROM destinations";
        agent.database().query_row(sql, [], |r| r.get(0)).ok()
    };
    agent.until("the first mappings are in force", |agent| keying(agent).is_some());
    let before = keying(&agent);
    agent.signal(Signal::SIGHUP);
    agent.until("the new mappings are in force", |agent| keying(agent) != before);
    agent.receiver.set_faults(Faults::default());
    agent.until("it is settled", |agent| count(agent, "pending") == 0);
    let item = |mapping: &str| settled_items(&agent)[&("m-1".to_owned(), mapping.to_owned())].clone();
    assert_eq!(item("Leads"), "delivered ");
    assert_eq!(item("Track Calls"), "skipped no_mapping");
    assert_eq!(item("Companies"), "skipped no_mapping");
    assert_eq!(count(&agent, "delivered"), 1);
    assert_eq!(held(&agent.receiver), once(["m-1-lead"]));
    agent.stop();
}

/// Two mappings of tracks; `odd` is the field in which that of the odd ones finds the person.
fn odd_and_even(odd: &str) -> String {
    let mapping = |name: &str, email: &str| {
        format!(
            "\n[[mapping]]\nname = \"{name}\"\npreset = \"Track Calls\"\ntrigger = 'event = \"{name}\"'\n\
             fields = {{ email = {{ \"@path\" = \"$.properties.{email}\" }} }}\n"
        )
    };
    mapping("Odd", odd) + &mapping("Even", "email")
}

/// So many tracks by Ana, who has another name in the odd ones, with their numbers.
fn ana(count: usize) -> String {
    let line = |n: usize| {
        let name = if n % 2 == 1 { "Odd" } else { "Even" };
        format!(
            r#"{{"type":"track","messageId":"m-{n:05}","event":"{name}","properties":{{"alias":"ana@home.dev","email":"ana@acme.dev"}}}}"#
        )
    };
    (0..count).map(line).collect::<Vec<_>>().join("\n")
}

/// The ids at the receiver from the first odd one on that was sent as Ana's, in the order of acceptance.
fn held_as_one_person(agent: &TestAgent) -> Vec<String> {
    let is_odd = |id: &str| id.ends_with(['1', '3', '5', '7', '9']);
    let held = agent.receiver.events();
    let is_first =
        |held: &HeldItem| is_odd(&held.message_id) && held.top("email") == Some("\"ana@acme.dev\"");
    let first = held.iter().position(is_first).expect("the mappings have changed before the last event");
    held[first..].iter().map(|held| held.message_id.to_string()).collect()
}

#[test]
fn two_keys_that_become_one_by_a_change_of_mappings_are_sent_in_order() {
    let mut agent = with(&odd_and_even("alias"), Faults { latency_ms: 50, ..Faults::default() });
    agent.drop_file("1.ndjson", ana(800));
    agent.until("some are delivered", |agent| agent.receiver.stats().held > 100);
    agent.set_tables(&odd_and_even("email"));
    agent.reload(agent.config());
    agent.until_held(800);
    let ids = held_as_one_person(&agent);
    assert!(ids.is_sorted(), "{ids:?}");
    assert!(ids.len() > 400, "{} were left when the mappings changed", ids.len());
    assert_eq!(agent.receiver.stats().repeats, 0);
    agent.stop();
}

#[test]
fn events_of_a_file_that_was_opened_before_a_change_of_mappings_are_sent_in_order() {
    const EVENTS: usize = 20_000;
    let mut agent = with(&odd_and_even("alias"), Faults::default());
    agent.drop_file("1.ndjson", ana(EVENTS));
    let stored = |status: &Status| status.outbox.pending + status.outbox.delivered;
    agent.until_status("some are stored", |status| stored(status) > 0);
    agent.set_tables(&odd_and_even("email"));
    agent.reload(agent.config());
    let before = stored(&agent.status());
    assert!(before < EVENTS as u64, "the whole file was read before the change");
    agent.until_held(EVENTS);
    let ids = held_as_one_person(&agent);
    assert!(ids.is_sorted() && ids.len() > EVENTS / 4, "{} of {ids:?}", ids.len());
    assert_eq!(agent.receiver.stats().repeats, 0);
    agent.stop();
}

#[test]
fn a_change_of_mappings_goes_on_after_a_crash_amid_it() {
    const EVENTS: usize = 20_000;
    let mut agent = program(&odd_and_even("alias"), Faults { offline: true, ..Faults::default() });
    agent.start();
    agent.drop_file("1.ndjson", ana(EVENTS));
    agent
        .until("all are stored", |agent| agent.outbox().exists() && count(agent, "pending") == EVENTS as i64);
    agent.set_tables(&odd_and_even("email"));
    agent.signal(Signal::SIGHUP);
    let stale = |agent: &TestAgent| -> Option<i64> {
        let sql = "SELECT stale_keys_from FROM destinations";
        agent.database().query_row(sql, [], |r| r.get(0)).ok().flatten()
    };
    while stale(&agent).is_none_or(|from| from == 1) {}
    agent.kill();
    assert!(stale(&agent).is_some_and(|from| 1 < from && from < EVENTS as i64), "{:?}", stale(&agent));
    agent.receiver.set_faults(Faults::default());
    agent.start();
    agent.until_held(EVENTS);
    assert_eq!(stale(&agent), None);
    agent.until("the log tells it", |agent| agent.log_lines_with(&["ordered by the mappings in force"]) == 1);
    assert_eq!(agent.log_lines_with(&["the mappings have changed: nothing is sent"]), 2, "once in each run");
    let ids = held_as_one_person(&agent);
    assert!(ids.len() >= EVENTS - 1 && ids.is_sorted(), "{} of {ids:?}", ids.len());
    agent.stop();
}

#[test]
fn an_event_that_is_retried_under_mappings_that_are_not_in_force_yet_is_sent_under_those_that_are() {
    let mut agent =
        with(&odd_and_even("alias"), Faults { poison: Some("m-00001".into()), ..Faults::default() });
    agent.drop_file("1.ndjson", ana(4));
    agent.until_status("one has failed", |status| status.outbox.failed == 1);
    agent.receiver.set_faults(Faults::default());
    agent.set_tables(&odd_and_even("email"));
    command(&agent, &["retry", "m-00001"]);
    agent.until_held(4);
    let held = agent.receiver.events();
    let last = held.last().unwrap();
    assert_eq!((&*last.message_id, last.top("email")), ("m-00001", Some("\"ana@home.dev\"")));
    agent.stop();
}

#[test]
fn too_many_mappings_and_two_of_one_name_are_refused() {
    let fifty_one: String =
        (1..=51).map(|n| format!("[[mapping]]\npreset = \"Track Calls\"\nname = \"n{n}\"\n")).collect();
    let twins = "[[mapping]]\npreset = \"Track Calls\"\n".repeat(2);
    for (mappings, said) in [
        (fifty_one, "there are 51 mappings; at most 50 are allowed"),
        (twins, "there is another mapping \"Track Calls\""),
    ] {
        let agent = program(&mappings, Faults::default());
        let ran = agent.command("run").output().unwrap();
        assert_eq!(ran.status.code(), Some(78), "{ran:?}");
        let said_there = String::from_utf8_lossy(&ran.stderr);
        assert!(said_there.contains(said), "{said_there}");
    }
}

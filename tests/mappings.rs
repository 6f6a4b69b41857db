//! Several mappings for one event, from the spool to the receiver: nothing of it is lost, and nothing sent twice.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

mod common;
#[path = "common/daemon.rs"]
mod daemon;
#[path = "common/kills.rs"]
#[allow(dead_code, reason = "no test needs all of it")]
mod kills;

use common::{World, track};
use daemon::Daemon;
use kills::Kill;
use koala_agent::outbox::Reader;
use koala_agent::receiver::{Faults, Kind, Options, Receiver};
use nix::sys::signal::Signal;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

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

/// The real program on the files of a world.
fn command(world: &World, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_koala-agent"));
    let output =
        command.env_clear().arg("--config").arg(world.config_file()).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    output
}

/// The state of an event, and the reason in words.
fn state(world: &World, id: &str) -> (String, String) {
    let shown = Reader::open(&world.outbox()).unwrap().events().show(id).unwrap();
    shown.map(|detail| (detail.row.state, detail.row.reason.unwrap_or_default())).unwrap_or_default()
}

async fn with(mappings: &str, faults: Faults) -> World {
    let mut world = World::new(faults).await;
    world.set(mappings);
    world.start().await;
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn each_mapping_makes_its_item_and_the_event_is_delivered_with_the_last() {
    let mut world = with(THREE, Faults::default()).await;
    world.drop_file(
        "1.ndjson",
        format!("{}\n{}\n", track("m-1", "ana@acme.dev"), track("m-2", "bob@acme.dev")),
    );
    world.until("both are delivered", |w| w.status().outbox.delivered == 2).await;
    let ids = ["m-1", "m-1-lead", "m-1-company", "m-2", "m-2-lead", "m-2-company"];
    assert_eq!(held(&world.receiver), once(ids));
    world.stop().await;
    world.start().await;
    world.drop_file("2.json", track("m-1", "ana@acme.dev"));
    world.until("it is a duplicate", |w| w.status().spool.duplicates == 1).await;
    world.stop().await;
    assert_eq!(held(&world.receiver), once(ids));
}

/// One of three items is refused; the control is another person's event.
async fn refused_in_part() -> World {
    let world = with(THREE, Faults { poison: Some("m-1-lead".into()), ..Faults::default() }).await;
    world.drop_file("1.json", track("m-1", "ana@acme.dev"));
    world.until("the item is refused", |w| w.receiver.stats().refused_requests > 0).await;
    world.drop_file("2.json", track("m-2", "bob@acme.dev"));
    world.until("the event has failed", |w| w.status().outbox.failed == 1).await;
    world.until("the other is delivered", |w| w.status().outbox.delivered == 1).await;
    let taken = ["m-1", "m-1-company", "m-2", "m-2-lead", "m-2-company"];
    assert_eq!(held(&world.receiver), once(taken));
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_fails_with_one_item_and_a_retry_sends_that_alone() {
    let mut world = refused_in_part().await;
    let (state, reason) = state(&world, "m-1");
    assert_eq!(state, "failed");
    assert!(reason.starts_with("Leads: ") && reason.contains("poisoned"), "{reason}");
    world.receiver.set_faults(Faults::default());
    let before = world.receiver.requests().len();
    command(&world, &["retry", "m-1"]);
    world.until("the event is delivered", |w| w.status().outbox.delivered == 2).await;
    let ids: Vec<_> = world.receiver.requests().drain(before..).flat_map(|it| it.message_ids).collect();
    assert_eq!(ids, ["m-1-lead"]);
    world.stop().await;
    assert_eq!(world.receiver.stats().repeats, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_delivered_in_part_can_be_given_up() {
    let mut world = refused_in_part().await;
    world.receiver.set_faults(Faults { poison: Some("-lead".into()), ..Faults::default() });
    // Failed, and while one of its items still waits.
    command(&world, &["discard", "m-1"]);
    world.drop_file("3.json", track("m-3", "cy@acme.dev"));
    world.until("two items are delivered", |w| w.receiver.stats().held == 7).await;
    world.until("one waits", |w| w.status().outbox.pending == 1).await;
    command(&world, &["discard", "m-3"]);
    world.receiver.set_faults(Faults::default());
    world.drop_file("4.json", track("m-4", "cy@acme.dev"));
    world.until("what came later is delivered", |w| state(w, "m-4").0 == "delivered").await;
    for id in ["m-1", "m-3"] {
        assert_eq!(state(&world, id).0, "discarded");
    }
    let outbox = world.status().outbox;
    assert_eq!((outbox.pending, outbox.delivered, outbox.failed, outbox.discarded), (0, 2, 0, 2));
    world.stop().await;
    let held = held(&world.receiver);
    assert!(!held.contains_key("m-1-lead") && !held.contains_key("m-3-lead"), "{held:?}");
    assert_eq!(world.receiver.stats().repeats, 0);
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

#[tokio::test(flavor = "multi_thread")]
async fn accounts_have_requests_of_their_own() {
    let mut world = with(ACCOUNTS, Faults::default()).await;
    let events = [
        r#"{"type":"group","messageId":"g-1","groupId":"g-7","traits":{"website":"https://www.Acme.dev/x","plan":"pro"}}"#,
        r#"{"type":"track","messageId":"u-1","event":"Used","timestamp":"2026-01-02T03:04:05Z","properties":{"n":1.0},"context":{"domain":"acme.dev","groupId":7}}"#,
        r#"{"type":"group","messageId":"g-2","groupId":"g-8","traits":{"email":"ana@gmail.com"}}"#,
        r#"{"type":"track","messageId":"u-2","event":"Signed Up","properties":{"email":"ana@acme.dev"}}"#,
    ];
    world.drop_file("1.ndjson", events.join("\n"));
    world
        .until("all are settled", |w| {
            let outbox = w.status().outbox;
            (outbox.delivered, outbox.skipped) == (2, 2)
        })
        .await;
    let paths: BTreeSet<_> = world.receiver.requests().into_iter().map(|request| request.path).collect();
    assert_eq!(paths, ["/web/projects/<public_key>/accounts/batch".to_owned()].into());
    let told: BTreeSet<_> = world
        .receiver
        .events()
        .iter()
        .map(|held| {
            let item = held.item.get().to_owned();
            (
                held.kind == Kind::Identify,
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
    assert_eq!(state(&world, "g-2").0, "skipped");
    world.stop().await;
}

/// The program as a process of its own, and a receiver in this one.
struct Place {
    daemon: Daemon,
    receiver: Receiver,
    runtime: tokio::runtime::Runtime,
}

impl Place {
    fn new(mappings: &str, faults: Faults) -> Place {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let options = Options { faults, seed: Some(1), ..Options::default() };
        let receiver = runtime.block_on(Receiver::start("127.0.0.1:0".parse().unwrap(), options)).unwrap();
        let mut daemon = Daemon::new(&receiver.endpoint());
        daemon.set(mappings);
        Place { daemon, receiver, runtime }
    }

    fn drop_file(&self, name: &str, content: &str) {
        let aside = self.daemon.spool().join(".next");
        fs::write(&aside, content).unwrap();
        fs::rename(aside, self.daemon.spool().join(name)).unwrap();
    }

    fn until(&self, fact: &str, holds: impl Fn(&Place) -> bool) {
        let began = Instant::now();
        while !holds(self) {
            assert!(began.elapsed() < common::PATIENCE, "not in time: {fact}\n{}", self.daemon.log());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The items that are settled, each by its event and its mapping, with its state and code.
    fn items(&self) -> BTreeMap<(String, String), String> {
        let sql = "SELECT e.message_id, i.mapping, i.state || ' ' || i.code
                     FROM settled_items i JOIN outbox_events e ON e.seq = i.seq";
        let outbox = self.daemon.database();
        let mut rows = outbox.prepare(sql).unwrap();
        let rows = rows.query_map([], |r| Ok(((r.get(0)?, r.get(1)?), r.get(2)?))).unwrap();
        rows.map(Result::unwrap).collect()
    }

    /// How many events are in that state.
    fn count(&self, state: &str) -> i64 {
        let sql = "SELECT coalesce(sum(events), 0) FROM outbox_status WHERE state = ?";
        self.daemon.database().query_row(sql, [state], |r| r.get(0)).unwrap()
    }

    fn end(mut self) {
        self.daemon.stop();
        self.runtime.block_on(self.receiver.stop());
    }
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
    let mut place = Place::new(THREE, Faults { poison: Some("-lead".into()), ..Faults::default() });
    place.daemon.start();
    place.drop_file("1.json", &track("m-1", "ana@acme.dev"));
    place.until("two items are marked", |p| {
        p.daemon.outbox().exists() && p.receiver.stats().held == 2 && p.items().len() == 2
    });
    place.daemon.kill();
    place.receiver.set_faults(Faults::default());
    place.daemon.start();
    place.until("the third follows", |p| p.count("delivered") == 1);
    assert_eq!(held(&place.receiver), once(["m-1", "m-1-lead", "m-1-company"]));
    place.end();
}

#[test]
fn crashes_at_any_moment_lose_no_item_and_repeat_none_that_was_marked() {
    const EVENTS: usize = 200;
    let mut place = Place::new(THREE, Faults { latency_ms: 5, ..Faults::default() });
    let lines: Vec<_> =
        (0..EVENTS).map(|n| track(&format!("m-{n}"), &format!("p{}@acme.dev", n % 40))).collect();
    place.drop_file("1.ndjson", &lines.join("\n"));
    let mut marked: BTreeMap<String, u64> = BTreeMap::new();
    for round in 1..=6 {
        place.daemon.start();
        let goal = EVENTS * 3 * round / 8;
        place.until("some more are held", |p| p.receiver.stats().held >= goal);
        place.daemon.kill();
        Kill::of(&place.daemon, &place.receiver);
        let now = held(&place.receiver);
        for (event, mapping) in place.items().into_keys() {
            let id = item_id(&event, &mapping);
            marked.entry(id.clone()).or_insert(now[&id]);
        }
    }
    place.daemon.start();
    place.until("all are delivered", |p| p.count("delivered") == EVENTS as i64);
    let held = held(&place.receiver);
    assert_eq!(held.len(), EVENTS * 3);
    assert!(marked.len() > 100, "{} were marked before a kill", marked.len());
    for (id, repeats) in marked {
        assert_eq!(held[&id], repeats, "{id} was sent again after it was marked");
    }
    place.end();
}

#[test]
fn items_of_a_mapping_that_is_renamed_or_removed_while_they_wait_are_skipped() {
    let mut place = Place::new(THREE, Faults { offline: true, ..Faults::default() });
    place.daemon.start();
    place.drop_file("1.json", &track("m-1", "ana@acme.dev"));
    place.until("it waits", |p| p.daemon.outbox().exists() && p.daemon.pending().len() == 1);
    let (_, rest) = THREE.split_once("name = \"Leads\"").unwrap();
    place.daemon.set(&format!(
        "\n[[mapping]]\npreset = \"Track Calls\"\nname = \"Tracked\"\n[[mapping]]\nname = \"Leads\"{}",
        rest.split("[[").next().unwrap()
    ));
    let before = place.daemon.log().len();
    place.daemon.signal(Signal::SIGHUP);
    place.until("the new mappings are in force", |p| p.daemon.log()[before..].contains("is in force"));
    place.receiver.set_faults(Faults::default());
    place.until("it is settled", |p| p.count("pending") == 0);
    let item = |mapping: &str| place.items()[&("m-1".to_owned(), mapping.to_owned())].clone();
    assert_eq!(item("Leads"), "delivered ");
    assert_eq!(item("Track Calls"), "skipped no_mapping");
    assert_eq!(item("Companies"), "skipped no_mapping");
    assert_eq!(place.count("delivered"), 1);
    assert_eq!(held(&place.receiver), once(["m-1-lead"]));
    place.end();
}

#[test]
fn too_many_mappings_and_two_of_one_name_are_refused() {
    let fifty_one: String =
        (1..=51).map(|n| format!("[[mapping]]\npreset = \"Track Calls\"\nname = \"n{n}\"\n")).collect();
    let twins = "[[mapping]]\npreset = \"Track Calls\"\n".repeat(2);
    for (mappings, said) in [
        (fifty_one, "there are 51 mappings; at most 50 may be"),
        (twins, "there is another mapping \"Track Calls\""),
    ] {
        let place = Place::new(&format!("\n{mappings}"), Faults::default());
        let ran = place.daemon.command("run").output().unwrap();
        assert_eq!(ran.status.code(), Some(78), "{ran:?}");
        let said_there = String::from_utf8_lossy(&ran.stderr);
        assert!(said_there.contains(said), "{said_there}");
    }
}

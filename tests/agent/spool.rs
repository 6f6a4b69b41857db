//! The spool's promises, in one process: what is taken, what is set aside and why, and nothing twice or lost.

use crate::common::world::{World, names, track};
use flate2::{Compression, write::GzEncoder};
use koala_agent::agent::Agent;
use koala_agent::clock::Timestamp;
use koala_agent::receiver::Faults;
use koala_agent::spool::Spool;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::time::{Duration, SystemTime};

fn packed(text: &str) -> Vec<u8> {
    let mut gz = GzEncoder::new(Vec::new(), Compression::default());
    gz.write_all(text.as_bytes()).unwrap();
    gz.finish().unwrap()
}

/// A track without a messageId; `what` tells it from others.
fn nameless(what: &str) -> String {
    format!(r#"{{"type":"track","event":"{what}","properties":{{"email":"ana@acme.dev"}}}}"#)
}

fn lines(events: impl IntoIterator<Item = String>) -> String {
    events.into_iter().map(|e| e + "\n").collect()
}

/// Code, line and column of what is set aside.
type Place = (String, u64, u64);

type Reasons = Vec<(&'static str, Place)>;

/// What is in `rejected/`, by name.
fn rejected(world: &World) -> BTreeMap<String, Place> {
    let folder = world.spool().join("rejected");
    let files = names(&folder).into_iter().filter(|n| !n.ends_with(".why") && !n.starts_with('.'));
    let why = |name: &str| -> Value {
        serde_json::from_slice(&fs::read(folder.join(format!("{name}.why"))).unwrap()).unwrap()
    };
    let place = |w: Value| {
        (w["code"].as_str().unwrap().to_owned(), w["line"].as_u64().unwrap(), w["column"].as_u64().unwrap())
    };
    files.map(|n| (n.clone(), place(why(&n)))).collect()
}

fn left(world: &World) -> Vec<String> {
    names(&world.spool()).into_iter().filter(|n| n != "rejected" && n != ".removing").collect()
}

async fn started(settings: &[&str]) -> World {
    let mut world = World::new(Faults::default()).await;
    for line in ["spool.scan_interval = \"200ms\"", "spool.settle = \"100ms\""].iter().chain(settings) {
        world.set(line);
    }
    world.start().await;
    world
}

/// Waits until nothing is left in the folder and all that is stored is delivered.
async fn until_taken(world: &World) {
    world
        .until("the spool is empty", |w| left(w).is_empty() && names(&w.spool().join(".removing")).is_empty())
        .await;
    world.until("all is delivered", |w| w.status().outbox.pending == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_form_is_taken_packed_or_not() {
    let mut world = started(&[]).await;
    let event = |id: &str| track(id, "ana@acme.dev");
    let forms = |n: u32| {
        [
            ("one.json", event(&format!("{n}-one"))),
            ("array.json", format!("[{}, {}]\n", event(&format!("{n}-a1")), event(&format!("{n}-a2")))),
            ("envelope.json", format!("{{\"batch\":[{}],\"context\":null}}", event(&format!("{n}-b")))),
            (
                "lines.jsonl",
                format!("\u{feff}{}\r\n\n{}", event(&format!("{n}-l1")), event(&format!("{n}-l2"))),
            ),
            ("lines.ndjson", lines([event(&format!("{n}-n"))])),
        ]
    };
    for (name, text) in forms(1) {
        world.drop_file(name, text);
    }
    for (name, text) in forms(2) {
        world.drop_file(&format!("{name}.gz"), packed(&text));
    }
    // Two packed files one after the other are one text.
    world.drop_file("cat.jsonl.gz", [packed(&lines([event("c1")])), packed(&lines([event("c2")]))].concat());
    world.until_held(16).await;
    until_taken(&world).await;
    assert!(rejected(&world).is_empty());
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_whole_of_files_that_were_there_before_the_agent_is_taken_at_once() {
    let mut world = World::manual(Faults::default()).await;
    world.set("spool.settle = \"1h\"");
    let event = |id: &str| track(id, "ana@acme.dev");
    let last = event("l3");
    let (begun, rest) = last.split_at(30);
    world.drop_file("1.json", format!("[{},\n{}]", event("a1"), event("a2")));
    world.drop_file("2.json.gz", packed(&event("b")));
    world.drop_file("3.jsonl", format!("{}\n{}\n{begun}", event("l1"), event("l2")));
    world.drop_file("4.json", event("behind"));
    world.clock.step(Timestamp::from_system(SystemTime::now() + Duration::from_secs(1)));
    world.start().await;
    world.until_held(5).await;
    world.until("they are removed", |world| left(world) == ["3.jsonl", "4.json"]).await;
    // Whoever writes them says that they are finished.
    for (name, rest) in [("3.jsonl", rest), ("4.json", "\n")] {
        let mut file = File::options().append(true).open(world.spool().join(name)).unwrap();
        file.write_all(rest.as_bytes()).unwrap();
    }
    world.until_held(7).await;
    until_taken(&world).await;
    assert!(rejected(&world).is_empty());
    let ids: Vec<_> = world.receiver.events().into_iter().map(|held| held.message_id).collect();
    assert_eq!(ids.join(" "), "a1 a2 b l1 l2 l3 behind");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_taken_is_set_aside_with_line_and_column() {
    let mut world =
        started(&["spool.max_file_bytes = \"100KiB\"", "spool.incomplete_after = \"300ms\""]).await;
    let good = |id: &str| track(id, "ana@acme.dev");
    let code = |code: &str, line, column| (code.to_owned(), line, column);
    let cases: [(&str, Vec<u8>, Reasons); 16] = [
        ("a.json", b"{\"type\":\n tru}".into(), vec![("a.json", code("not_json", 2, 5))]),
        ("b.json", b"7".into(), vec![("b.json", code("not_an_event", 1, 1))]),
        ("c.json", b"{\"a\":\"\xff\"}".into(), vec![("c.json", code("not_json", 1, 7))]),
        ("d.json", "[".repeat(100_000).into(), vec![("d.json", code("not_json", 1, 100_001))]),
        (
            "e.json",
            format!("{{\"a\":\"{}\"}}", "x".repeat(40_000)).into(),
            vec![("e.json", code("too_large", 1, 1))],
        ),
        (
            "f.json",
            format!("{{\"a\":{}{}}}", "[".repeat(200), "]".repeat(200)).into(),
            vec![("f.json", code("too_deep", 1, 125))],
        ),
        ("g.json", " ".repeat(200_000).into(), vec![("g.json", code("too_large", 1, 1))]),
        ("h.json.gz", packed(&" ".repeat(9_000_000)), vec![("h.json.gz", code("too_large", 1, 1))]),
        ("i.jsonl.gz", b"no gzip".into(), vec![("i.jsonl.gz", code("not_json", 1, 1))]),
        ("j.txt", good("j").into(), vec![("j.txt", code("not_json", 1, 1))]),
        ("k.why", good("k").into(), vec![("k.why_", code("not_json", 1, 1))]),
        (
            "l.json",
            format!("[{},\n  7,\n{}]", good("l1"), good("l3")).into(),
            vec![("l.2.json", code("not_an_event", 2, 3))],
        ),
        (
            "m.jsonl",
            format!("{}\n{{\"a\":}}\n{}\n{{\"a\":", good("m1"), good("m3")).into(),
            vec![("m.2.jsonl", code("not_json", 2, 6)), ("m.4.jsonl", code("not_json", 4, 6))],
        ),
        (
            "n.json",
            track(&"x".repeat(101), "ana@acme.dev").into(),
            vec![("n.json", code("not_an_event", 1, 49))],
        ),
        (
            "o.jsonl",
            lines([good("o"), track("o", "bob@acme.dev")]).into(),
            vec![("o.2.jsonl", code("message_id_reused", 2, 1))],
        ),
        ("p.json", track("o", "eve@acme.dev").into(), vec![("p.json", code("message_id_reused", 1, 1))]),
    ];
    let mut want = BTreeMap::new();
    for (name, text, reasons) in cases {
        world.drop_file(name, text);
        want.extend(reasons.into_iter().map(|(name, why)| (name.to_owned(), why)));
    }
    world.until_held(5).await;
    until_taken(&world).await;
    assert_eq!(rejected(&world), want);
    world.until("they are counted", |w| w.status().spool.rejected_files == want.len() as u64).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_grows_whole_after_it_was_set_aside_is_taken_once() {
    let mut world = started(&["spool.incomplete_after = \"200ms\""]).await;
    // Written in two parts, so that the lines of the first can be read before the second is there.
    let (first, second) = (packed(&lines([nameless("1"), nameless("2")])), packed(&lines([nameless("3")])));
    let mut events = File::create(world.spool().join("events.jsonl.gz")).unwrap();
    let mut one = File::create(world.spool().join("one.json")).unwrap();
    events.write_all(&first).unwrap();
    events.write_all(&second[..12]).unwrap();
    one.write_all(&nameless("4").as_bytes()[..30]).unwrap();
    world.until("both are set aside", |w| rejected(w).len() == 2).await;
    world.until_held(2).await;
    events.write_all(&second[12..]).unwrap();
    one.write_all(&nameless("4").as_bytes()[30..]).unwrap();
    drop((events, one));
    world.until_held(4).await;
    until_taken(&world).await;
    assert_eq!((world.receiver.stats().events, rejected(&world).len()), (4, 0));
    assert_eq!(world.status().spool.duplicates, 0);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_a_crash_left_half_removed_keeps_its_ids_when_its_name_is_used_again() {
    let mut world = started(&[]).await;
    let day = lines([nameless("1"), nameless("2"), nameless("3")]);
    let (first, rest) = day.split_at(day.len() - 20);
    world.drop_file("day.jsonl", first);
    world.until_held(2).await;
    world.stop().await;
    let aside = world.spool().join(".removing/day.jsonl");
    fs::rename(world.spool().join("day.jsonl"), &aside).unwrap();
    File::options().append(true).open(&aside).unwrap().write_all(rest.as_bytes()).unwrap();
    world.drop_file("day.jsonl", lines([nameless("1")]));
    world.start().await;
    world.until_held(4).await;
    until_taken(&world).await;
    assert_eq!((world.receiver.stats().events, world.status().spool.duplicates), (4, 0));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_renamed_over_a_bad_one_is_read_and_not_blamed() {
    let mut world = started(&[]).await;
    for n in 0..300 {
        world.drop_file("day.json", if n % 2 == 0 { "{bad".to_owned() } else { nameless(&n.to_string()) });
        tokio::time::sleep(Duration::from_millis(n % 7 * 10)).await;
    }
    until_taken(&world).await;
    for name in rejected(&world).keys() {
        assert_eq!(fs::read(world.spool().join("rejected").join(name)).unwrap(), b"{bad", "{name}");
    }
    assert!(world.receiver.stats().held > 0);
    assert_eq!(world.status().spool.duplicates, 0);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_may_finish_its_file_under_a_name_of_its_own_or_link_it_to_its_place() {
    let mut world = World::new(Faults::default()).await;
    world.set("spool.scan_interval = \"10m\"");
    world.set("spool.settle = \"300ms\"");
    world.start().await;
    let at = |name: &str| world.spool().join(name);
    for n in 0..20 {
        let (own, its) = (at(&format!("{n}.json.part")), at(&format!("{n}.json")));
        fs::write(&own, nameless(&n.to_string())).unwrap();
        tokio::time::sleep(Duration::from_millis(n)).await;
        fs::rename(own, its).unwrap();
        let (own, its) = (at(&format!(".{n}")), at(&format!("{n}-linked.json")));
        fs::write(&own, nameless(&format!("{n}-linked"))).unwrap();
        fs::hard_link(&own, its).unwrap();
        tokio::time::sleep(Duration::from_millis(n)).await;
        fs::remove_file(own).unwrap();
    }
    world.until_held(40).await;
    until_taken(&world).await;
    assert_eq!(rejected(&world).len(), 0);
    world.stop().await;
}

#[test]
fn nothing_is_stamped_with_less_than_the_time_that_the_spool_told() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path()).unwrap();
    let written = |content: &str| {
        fs::write(dir.path().join("a.json"), content).unwrap();
        spool.entry("a.json".as_ref()).unwrap()
    };
    let mut told_apart = 0;
    while told_apart < 500 {
        let first = written("1");
        let time = spool.time().unwrap();
        if first.changed >= time {
            // Its tick is not over.
            continue;
        }
        let changed = written("2");
        assert!(changed.changed >= time && !changed.is_as_read(&first), "{changed:?} {first:?} {time}");
        // Another file often has the inode of one that has just gone.
        fs::remove_file(dir.path().join("a.json")).unwrap();
        let other = written("3");
        assert!(other.changed >= time && other.identity.key() != first.identity.key(), "{other:?} {first:?}");
        told_apart += 1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_file_goes_once_the_database_was_taken_from_under_the_agent() {
    let mut world = World::new(Faults { offline: true, ..Faults::default() }).await;
    let mut agent = Agent::start(world.config(), world.clock.clone()).await.unwrap();
    fs::remove_file(world.dir.path().join("state/outbox.db")).unwrap();
    world.track("m-1", "ana@acme.dev");
    assert!(agent.failed().await.to_string().contains("outbox.db"));
    assert_eq!(left(&world).len(), 1);
}

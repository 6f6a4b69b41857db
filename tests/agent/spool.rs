//! The spool's promises, in one process: what is taken, what is rejected and why, and nothing twice or lost.

use crate::common::agent::TestAgent;
use crate::common::events::{gzip, track};
use crate::common::setup::names_in;
use koala_agent::clock::Timestamp;
use koala_agent::receiver::Faults;
use koala_agent::spool::{Removal, Spool};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// A track without a messageId; `what` tells it from others.
fn nameless(what: &str) -> String {
    format!(r#"{{"type":"track","event":"{what}","properties":{{"email":"ana@acme.dev"}}}}"#)
}

fn lines(events: impl IntoIterator<Item = String>) -> String {
    events.into_iter().map(|e| e + "\n").collect()
}

/// Code, line and column of what is rejected.
type Place = (String, u64, u64);

type Reasons = Vec<(&'static str, Place)>;

/// The files in `rejected/` by name, each with its reason.
fn rejected(agent: &TestAgent) -> BTreeMap<String, Place> {
    let folder = agent.spool().join("rejected");
    let files = names_in(&folder).into_iter().filter(|n| !n.ends_with(".why") && !n.starts_with('.'));
    let why = |name: &str| -> Value {
        serde_json::from_slice(&fs::read(folder.join(format!("{name}.why"))).unwrap()).unwrap()
    };
    let place = |w: Value| {
        (w["code"].as_str().unwrap().to_owned(), w["line"].as_u64().unwrap(), w["column"].as_u64().unwrap())
    };
    files.map(|n| (n.clone(), place(why(&n)))).collect()
}

fn left(agent: &TestAgent) -> Vec<String> {
    names_in(&agent.spool()).into_iter().filter(|n| n != "rejected" && n != ".removing").collect()
}

fn started(settings: &[&str]) -> TestAgent {
    let mut agent = TestAgent::in_process(Faults::default());
    for line in ["spool.scan_interval = \"200ms\"", "spool.settle = \"100ms\""].iter().chain(settings) {
        agent.set(line);
    }
    agent.start();
    agent
}

/// The names of the files on their way out of the spool.
fn leaving(agent: &TestAgent) -> Vec<String> {
    names_in(&agent.spool().join(".removing")).into_iter().filter(|n| !n.starts_with('.')).collect()
}

/// Waits until nothing is left in the folder and all that is stored is delivered.
fn until_taken(agent: &mut TestAgent) {
    agent.until("the spool is empty", |agent| left(agent).is_empty() && leaving(agent).is_empty());
    agent.until_status("all is delivered", |status| status.outbox.pending == 0);
}

#[test]
fn every_format_is_ingested_compressed_or_not() {
    let mut agent = started(&[]);
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
        agent.drop_file(name, text);
    }
    for (name, text) in forms(2) {
        agent.drop_file(format!("{name}.gz"), gzip(text));
    }
    // Two packed files one after the other are one text.
    agent.drop_file("cat.jsonl.gz", [gzip(lines([event("c1")])), gzip(lines([event("c2")]))].concat());
    agent.until_held(16);
    until_taken(&mut agent);
    assert!(rejected(&agent).is_empty());
    agent.stop();
}

#[test]
fn files_from_before_the_start_are_ingested_at_once_as_far_as_they_are_complete() {
    let mut agent = TestAgent::on_manual_clock(Faults::default());
    agent.set("spool.settle = \"1h\"");
    let event = |id: &str| track(id, "ana@acme.dev");
    let last = event("l3");
    let (begun, rest) = last.split_at(30);
    agent.drop_file("1.json", format!("[{},\n{}]", event("a1"), event("a2")));
    agent.drop_file("2.json.gz", gzip(event("b")));
    agent.drop_file("3.jsonl", format!("{}\n{}\n{begun}", event("l1"), event("l2")));
    agent.drop_file("4.json", event("behind"));
    agent.clock.step(Timestamp::from_system(SystemTime::now() + Duration::from_secs(1)));
    agent.start();
    agent.until_held(6);
    agent.until("they are removed", |agent| left(agent) == ["3.jsonl"]);
    let mut file = File::options().append(true).open(agent.spool().join("3.jsonl")).unwrap();
    file.write_all(rest.as_bytes()).unwrap();
    drop(file);
    agent.until_held(7);
    until_taken(&mut agent);
    assert!(rejected(&agent).is_empty());
    let ids: Vec<_> = agent.receiver.events().into_iter().map(|held| held.message_id).collect();
    assert_eq!(ids.join(" "), "a1 a2 b l1 l2 behind l3");
    agent.stop();
}

#[test]
fn a_file_is_ingested_when_its_writer_has_closed_it_however_long_it_pauses() {
    let mut agent = started(&["spool.incomplete_after = \"100ms\""]);
    let event = |id: &str| track(id, "ana@acme.dev") + "\n";
    let mut plain = File::create(agent.spool().join("plain.jsonl")).unwrap();
    let mut packed = File::create(agent.spool().join("packed.jsonl.gz")).unwrap();
    let second = event("p2");
    let (half, other_half) = second.split_at(40);
    plain.write_all((event("p1") + half).as_bytes()).unwrap();
    packed.write_all(&gzip(event("z1"))).unwrap();
    // They hold the others back for no longer than `settle`.
    for n in 0..20 {
        agent.drop_file(format!("{n}.json"), event(&format!("other-{n}")));
        std::thread::sleep(Duration::from_millis(50));
    }
    agent.until_held(20);
    assert_eq!(left(&agent), ["packed.jsonl.gz", "plain.jsonl"]);
    plain.write_all(other_half.as_bytes()).unwrap();
    packed.write_all(&gzip(event("z2"))).unwrap();
    drop((plain, packed));
    agent.until_held(24);
    until_taken(&mut agent);
    assert!(rejected(&agent).is_empty());
    agent.stop();
}

#[test]
fn a_name_without_a_known_ending_is_left_alone_and_counted() {
    let mut agent = started(&[]);
    let event = |id: &str| track(id, "ana@acme.dev");
    let names = ["up.jsonl.filepart", "up.jsonl.H23ad4E1", "notes.txt"];
    for name in names {
        agent.drop_file(name, event(name));
    }
    agent.drop_file("good.json", event("good"));
    agent.until_held(1);
    agent.until_status("they are counted", |status| status.spool.unknown_files == Some(3));
    agent.until("they are left", |agent| {
        left(agent) == ["notes.txt", "up.jsonl.H23ad4E1", "up.jsonl.filepart"]
    });
    agent.until_status("they do not wait", |status| status.spool.waiting_files == Some(0));
    fs::rename(agent.spool().join("up.jsonl.filepart"), agent.spool().join("up.jsonl")).unwrap();
    agent.until_held(2);
    agent.until("it is removed", |agent| left(agent) == ["notes.txt", "up.jsonl.H23ad4E1"]);
    assert!(rejected(&agent).is_empty());
    agent.stop();
}

#[test]
fn bad_input_is_rejected_with_line_and_column() {
    let mut agent = started(&["spool.max_file_bytes = \"100KiB\"", "spool.incomplete_after = \"300ms\""]);
    let good = |id: &str| track(id, "ana@acme.dev");
    let code = |code: &str, line, column| (code.to_owned(), line, column);
    let cases: [(&str, Vec<u8>, Reasons); 14] = [
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
        ("h.json.gz", gzip(" ".repeat(9_000_000)), vec![("h.json.gz", code("too_large", 1, 1))]),
        ("i.jsonl.gz", b"no gzip".into(), vec![("i.jsonl.gz", code("not_json", 1, 1))]),
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
        agent.drop_file(name, text);
        want.extend(reasons.into_iter().map(|(name, why)| (name.to_owned(), why)));
    }
    agent.until_held(5);
    until_taken(&mut agent);
    assert_eq!(rejected(&agent), want);
    agent.until_status("they are counted", |status| status.spool.rejected_files == Some(want.len() as u64));
    agent.stop();
}

#[test]
fn a_rejected_file_that_becomes_complete_is_ingested_once() {
    let mut agent = started(&["spool.incomplete_after = \"200ms\""]);
    // Written in two parts, so that the lines of the first can be read before the second is there.
    let (first, second) = (gzip(lines([nameless("1"), nameless("2")])), gzip(lines([nameless("3")])));
    let mut events = File::create(agent.spool().join("events.jsonl.gz")).unwrap();
    let mut one = File::create(agent.spool().join("one.json")).unwrap();
    events.write_all(&first).unwrap();
    events.write_all(&second[..12]).unwrap();
    one.write_all(&nameless("4").as_bytes()[..30]).unwrap();
    drop((events, one));
    agent.until("both are rejected", |agent| rejected(agent).len() == 2);
    agent.until_held(2);
    // Whoever may write there, or where the system does not tell that a file is open.
    for (name, rest) in [("events.jsonl.gz", &second[12..]), ("one.json", &nameless("4").as_bytes()[30..])] {
        let path = agent.spool().join("rejected").join(name);
        File::options().append(true).open(path).unwrap().write_all(rest).unwrap();
    }
    agent.until_held(4);
    until_taken(&mut agent);
    assert_eq!((agent.receiver.stats().events, rejected(&agent).len()), (4, 0));
    assert_eq!(agent.status().spool.duplicates, 0);
    agent.stop();
}

#[test]
fn a_half_removed_file_keeps_its_ids_when_its_name_is_used_again() {
    let mut agent = started(&[]);
    let day = lines([nameless("1"), nameless("2"), nameless("3")]);
    let (first, rest) = day.split_at(day.len() - 20);
    agent.drop_file("day.jsonl", first);
    agent.until_held(2);
    agent.stop();
    let aside = agent.spool().join(".removing/day.jsonl");
    fs::rename(agent.spool().join("day.jsonl"), &aside).unwrap();
    File::options().append(true).open(&aside).unwrap().write_all(rest.as_bytes()).unwrap();
    agent.drop_file("day.jsonl", lines([nameless("1")]));
    agent.start();
    agent.until_held(4);
    until_taken(&mut agent);
    assert_eq!((agent.receiver.stats().events, agent.status().spool.duplicates), (4, 0));
    agent.stop();
}

#[test]
fn a_file_renamed_over_a_bad_one_is_ingested_and_not_rejected() {
    let mut agent = started(&[]);
    for n in 0..300 {
        agent.drop_file("day.json", if n % 2 == 0 { "{bad".to_owned() } else { nameless(&n.to_string()) });
        agent.sleep(Duration::from_millis(n % 7 * 10));
    }
    until_taken(&mut agent);
    for name in rejected(&agent).keys() {
        assert_eq!(fs::read(agent.spool().join("rejected").join(name)).unwrap(), b"{bad", "{name}");
    }
    assert!(agent.receiver.stats().held > 0);
    assert_eq!(agent.status().spool.duplicates, 0);
    agent.stop();
}

#[test]
fn a_file_may_be_renamed_or_linked_to_its_final_name() {
    let mut agent = TestAgent::in_process(Faults::default());
    agent.set("spool.scan_interval = \"10m\"");
    agent.set("spool.settle = \"300ms\"");
    agent.start();
    let at = |name: &str| agent.spool().join(name);
    for n in 0..20 {
        let (own, its) = (at(&format!("{n}.json.part")), at(&format!("{n}.json")));
        fs::write(&own, nameless(&n.to_string())).unwrap();
        agent.sleep(Duration::from_millis(n));
        fs::rename(own, its).unwrap();
        let (own, its) = (at(&format!(".{n}")), at(&format!("{n}-linked.json")));
        fs::write(&own, nameless(&format!("{n}-linked"))).unwrap();
        fs::hard_link(&own, its).unwrap();
        agent.sleep(Duration::from_millis(n));
        fs::remove_file(own).unwrap();
    }
    agent.until_held(40);
    until_taken(&mut agent);
    assert_eq!(rejected(&agent).len(), 0);
    agent.stop();
}

#[test]
fn no_file_changes_at_an_earlier_time_than_the_file_system_has_shown() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path()).unwrap();
    let written = |content: &str| {
        fs::write(dir.path().join("a.json"), content).unwrap();
        spool.entry("a.json".as_ref()).unwrap()
    };
    let mut told_apart = 0;
    while told_apart < 500 {
        let first = written("1");
        let time = spool.file_system_time().unwrap();
        if first.changed >= time {
            // The tick of the file system's clock is not over.
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

/// Writes a file anew in place, and puts its modification time back.
fn overwrite(path: &Path, content: &str, modified: SystemTime) -> std::io::Result<()> {
    let mut file = File::options().write(true).truncate(true).open(path)?;
    file.write_all(content.as_bytes())?;
    file.set_modified(modified)
}

#[test]
fn only_the_file_that_was_read_leaves_the_spool() {
    let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let rename = |dir: &Path| fs::rename(dir.join("a.json"), dir.join("b.json"));
    type Change<'a> = &'a dyn Fn(&Path) -> std::io::Result<()>;
    // Each row: what a producer does after the file was read, the result of the removal, and what is then in the folder.
    let rows: [(&str, Change<'_>, Removal, &[&str]); 6] = [
        ("nothing", &|_| Ok(()), Removal::Removed, &[]),
        ("deletes it", &|dir| fs::remove_file(dir.join("a.json")), Removal::Missing, &[]),
        ("renames it", &rename, Removal::Missing, &["b.json"]),
        (
            "uses its name again",
            &|dir| rename(dir).and_then(|()| fs::write(dir.join("a.json"), "2")),
            Removal::Missing,
            &["a.json", "b.json"],
        ),
        ("writes to it", &|dir| fs::write(dir.join("a.json"), "12"), Removal::Changed, &["a.json"]),
        (
            "overwrites it and puts the time back",
            &|dir| overwrite(&dir.join("a.json"), "2", modified),
            Removal::Changed,
            &["a.json"],
        ),
    ];
    for (what, change, want, left) in rows {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path()).unwrap();
        fs::write(dir.path().join("a.json"), "1").unwrap();
        overwrite(&dir.path().join("a.json"), "1", modified).unwrap();
        let read = spool.entry("a.json".as_ref()).unwrap();
        // The tick of the file system's clock has to be over.
        while spool.file_system_time().unwrap() <= read.changed {}
        change(dir.path()).unwrap();
        assert_eq!(spool.remove(&read).unwrap(), want, "{what}");
        let mut names = names_in(dir.path());
        names.retain(|name| name != "rejected" && name != ".removing");
        assert_eq!(names, left, "{what}");
    }
}

#[test]
fn a_file_renamed_while_it_is_ingested_keeps_its_ids() {
    let mut agent = started(&[]);
    for n in 0..200 {
        let path = agent.spool().join(format!("{n}.json"));
        fs::write(&path, nameless(&n.to_string())).unwrap();
        agent.sleep(Duration::from_micros(n * 7_919 % 30_000));
        // It may have been taken already.
        let _ = fs::rename(&path, agent.spool().join(format!("{n}-renamed.json")));
    }
    agent.until_held(200);
    until_taken(&mut agent);
    assert_eq!(agent.receiver.stats().events, 200);
    agent.stop();
}

#[test]
fn an_event_written_over_another_with_its_size_and_time_is_ingested() {
    let mut agent = started(&[]);
    let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let mut written = 0;
    for n in 0..200 {
        let path = agent.spool().join(format!("{n}.json"));
        fs::write(&path, nameless(&format!("first-{n:03}"))).unwrap();
        let _ = File::options().write(true).open(&path).and_then(|file| file.set_modified(modified));
        agent.sleep(Duration::from_micros(4_000 + n * 7_919 % 16_000));
        written += u64::from(overwrite(&path, &nameless(&format!("again-{n:03}")), modified).is_ok());
    }
    until_taken(&mut agent);
    let held = agent.receiver.events();
    let again = held.iter().filter(|event| event.item.get().contains("again-")).count() as u64;
    assert_eq!((again, agent.receiver.stats().events), (written, held.len() as u64));
    agent.stop();
}

#[test]
fn no_file_is_removed_once_the_database_is_gone() {
    let mut agent = TestAgent::in_process(Faults { offline: true, ..Faults::default() });
    agent.start();
    fs::remove_file(agent.outbox()).unwrap();
    agent.drop_track("m-1", "ana@acme.dev");
    assert!(agent.wait_for_failure().contains("outbox.db"));
    assert_eq!(left(&agent).len(), 1);
}

//! Whatever stands in a file of the spool: values in a row, over several lines, with padding behind them, bad ones by the
//! ten thousand, and documents that are made to need more than they have.

use crate::common::agent::TestAgent;
use crate::common::events::{gzip, track};
use crate::common::setup::{Setup, assert_says, names_in};
use koala_agent::receiver::Faults;
use serde_json::Value;
use std::fs;
use std::path::PathBuf;

/// Inputs that were seen to be lost or refused.
const CASES: [(&str, &[u8], &[&str]); 5] = [
    ("s4-zeros.jsonl.gz", include_bytes!("cases/s4-zeros.jsonl.gz"), &["1", "2"]),
    ("s4-garbage.jsonl.gz", include_bytes!("cases/s4-garbage.jsonl.gz"), &["3", "4"]),
    ("s5-firehose.jsonl", include_bytes!("cases/s5-firehose.jsonl"), &["1", "2", "3"]),
    ("s5-pretty.jsonl", include_bytes!("cases/s5-pretty.jsonl"), &["6", "7"]),
    ("s6-pretty-60k.json", include_bytes!("cases/s6-pretty-60k.json"), &["f1"]),
];
/// The memory that the agent may have, whatever is in a file.
const MAX_MEMORY: u64 = 150 << 20;

fn rejected(agent: &TestAgent) -> Vec<String> {
    names_in(&agent.spool().join("rejected"))
}

fn started(settings: &[&str]) -> TestAgent {
    let mut agent = TestAgent::program(Faults::default());
    for line in ["spool.scan_interval = \"200ms\"", "spool.incomplete_after = \"1s\""].iter().chain(settings)
    {
        agent.set(line);
    }
    agent.start_and_wait();
    agent
}

/// Drops a file and waits until it has left the spool.
fn take(agent: &mut TestAgent, name: &str, content: &[u8]) {
    agent.drop_file(name, content);
    let paths = [name.to_owned(), format!(".removing/{name}")].map(|name| agent.spool().join(name));
    agent.until(name, |_| !paths.iter().any(|path| path.exists()));
}

#[test]
fn every_event_of_files_as_programs_write_them_is_delivered_once() {
    let mut agent = started(&[]);
    for (name, content, ids) in CASES {
        let held: Vec<_> = agent.receiver.events().into_iter().map(|held| held.message_id).collect();
        let before = agent.receiver.stats().held;
        take(&mut agent, name, content);
        // Two of the files have ids that came in another.
        let new = ids.iter().filter(|id| !held.iter().any(|held| **held == ***id)).count();
        agent.until_held(before + new);
    }
    let event = |id: &str| track(id, "ana@acme.dev");
    let padded = [event("padded").as_bytes(), b"\n", &[0; 100_000]].concat();
    take(&mut agent, "padded.jsonl", &padded);
    take(&mut agent, "row.json", format!("{}{}\n[{}]", event("r1"), event("r2"), event("r3")).as_bytes());
    agent.until_status("all is delivered", |status| {
        status.outbox.pending == 0 && status.outbox.delivered == 11
    });
    assert_eq!(rejected(&agent), Vec::<String>::new());
    assert!(
        agent.log().contains("s4-garbage.jsonl.gz: the bytes that follow the compressed data are ignored")
    );
    agent.stop();
}

#[test]
fn send_and_map_read_what_the_agent_reads() {
    let setup = Setup::new();
    for (name, content, ids) in CASES {
        let path = setup.path(name);
        fs::write(&path, content).unwrap();
        let ran = setup.run(&["send", path.to_str().unwrap()]);
        assert_eq!((ran.code, ran.out.lines().collect::<Vec<_>>()), (0, ids.to_vec()), "{name}: {ran:?}");
        let mapped = setup.run(&["map", path.to_str().unwrap()]);
        let mapped: Vec<Value> = mapped.lines();
        assert_eq!(mapped.iter().map(|line| line["message_id"].as_str().unwrap()).collect::<Vec<_>>(), ids);
    }
    let pretty = "{\n  \"type\": \"track\",\n  \"messageId\": \"p1\"\n}\n{\n  \"type\": \"track\"\n}\n";
    assert_eq!(setup.run_with(&["send"], pretty).out.lines().count(), 2);
    let ran = setup.run(&["send", setup.path("s4-garbage.jsonl.gz").to_str().unwrap()]);
    assert_says(&ran.err, &["s4-garbage.jsonl.gz: the bytes that follow the compressed data are ignored"]);
}

#[test]
fn what_is_stored_has_no_white_space_outside_strings() {
    let mut agent = started(&[]);
    let (spaced, compact) = (
        b"{ \"type\" : \"track\",\n \"messageId\": \"spaced\", \"event\": \"a b\" }\n",
        br#"{"type":"track","messageId":"spaced","event":"a b"}"#,
    );
    take(&mut agent, "spaced.json", spaced);
    // It has no person, so it is skipped and its body stays.
    agent.until_status("it is stored", |status| status.outbox.skipped == 1);
    let files =
        ["state/outbox.db", "state/outbox.db-wal"].map(|name| fs::read(agent.path(name)).unwrap_or_default());
    assert!(files.iter().any(|file| memchr::memmem::find(file, compact).is_some()));
    agent.stop();
}

#[test]
fn of_ten_thousands_of_bad_lines_a_hundred_are_rejected_one_by_one() {
    let mut agent = started(&[]);
    let bad = format!("{{\"a\"}}\n{}\n", track("good", "ana@acme.dev"));
    let lines = format!("{bad}{}", "{\"a\"}\n".repeat(50_000));
    take(&mut agent, "bad.jsonl.gz", &gzip(&lines));
    agent.until_held(1);
    let files: Vec<String> = rejected(&agent).into_iter().filter(|name| !name.ends_with(".why")).collect();
    assert_eq!(files.len(), 101, "{files:?}");
    let rest = fs::read_to_string(agent.spool().join("rejected/bad.rest.jsonl")).unwrap();
    assert_eq!(rest.lines().count(), 50_001 - 100);
    let why: Value =
        serde_json::from_slice(&fs::read(agent.spool().join("rejected/bad.rest.jsonl.why")).unwrap())
            .unwrap();
    assert_eq!((why["code"].as_str(), why["line"].as_u64()), (Some("not_json"), Some(102)));
    assert_eq!(why["rest"]["parts"].as_u64(), Some(50_001 - 100));
    agent.until_status("they are counted", |status| status.spool.rejected_files == Some(101));
    agent.stop();
}

#[test]
fn beyond_max_rejected_bad_files_stay_where_they_are() {
    let mut agent = started(&["spool.max_rejected = \"1MiB\""]);
    let bad = "x".repeat(300_000);
    for n in 0..4 {
        agent.drop_file(format!("{n}.json"), &bad);
    }
    agent.drop_file("good.json", track("good", "ana@acme.dev"));
    agent.until_held(1);
    let in_spool = |agent: &TestAgent| {
        names_in(&agent.spool()).into_iter().filter(|name| name.ends_with(".json")).collect::<Vec<_>>()
    };
    agent.until("two are rejected", |agent| in_spool(agent).len() == 2);
    assert_says(
        &agent.log(),
        &["may have 768 KiB", "koala-agent list --rejected", "it stays until there is room"],
    );
    for name in rejected(&agent) {
        fs::remove_file(agent.spool().join("rejected").join(name)).unwrap();
    }
    agent.until("the others are rejected", |agent| in_spool(agent).is_empty());
    agent.stop();
}

#[test]
fn what_cannot_be_rejected_holds_up_nothing_else() {
    let mut agent = started(&[]);
    // No reason can be written where a folder stands.
    let in_the_way = agent.spool().join("rejected/.why.tmp");
    // Its outbox shows that it runs before it has opened the spool.
    agent.until("the folder is there", |_| fs::create_dir(&in_the_way).is_ok());
    agent.drop_file("a.json", "{bad");
    agent.drop_file(
        "b.jsonl",
        format!("{}\n{{bad}}\n{}\n", track("b1", "ana@acme.dev"), track("b2", "ana@acme.dev")),
    );
    agent.drop_file("good.json", track("good", "ana@acme.dev"));
    agent.until_held(2);
    assert_says(&agent.log(), &["a.json: cannot reject", "b.jsonl: cannot reject", "is tried again"]);
    assert_eq!((rejected(&agent), agent.receiver.stats().events), (vec![".why.tmp".to_owned()], 2));
    fs::remove_dir(&in_the_way).unwrap();
    agent.until_held(3);
    agent.until("both are rejected", |agent| {
        rejected(agent) == ["a.json", "a.json.why", "b.2.jsonl", "b.2.jsonl.why"]
    });
    assert_eq!((agent.receiver.stats().events, agent.status().spool.duplicates), (3, 0));
    agent.stop();
}

#[test]
fn bad_lines_of_a_file_that_is_written_anew_are_all_kept() {
    let mut agent = started(&["spool.incomplete_after = \"60s\""]);
    let path = agent.spool().join("a.jsonl");
    let lines = |word: &str| (0..150).map(|n| format!("{{{word}-{n}\n")).collect::<String>();
    // The last line is not complete, so that the file waits for it.
    fs::write(&path, format!("{}{}\n{{\"type\":", lines("first"), track("1", "ana@acme.dev"))).unwrap();
    agent.until_held(1);
    fs::write(&path, format!("{}{}\n", lines("second"), track("2", "ana@acme.dev"))).unwrap();
    agent.until_held(2);
    agent.until("the file is gone", |agent| !agent.spool().join("a.jsonl").exists());
    let folder = agent.spool().join("rejected");
    let files = rejected(&agent).into_iter().filter(|name| !name.ends_with(".why"));
    let text: String = files.map(|name| fs::read_to_string(folder.join(name)).unwrap()).collect();
    let mut found: Vec<&str> = text.lines().collect();
    let want = lines("first") + &lines("second");
    let mut want: Vec<&str> = want.lines().collect();
    found.sort_unstable();
    want.sort_unstable();
    assert_eq!(found, want);
    agent.stop();
}

#[test]
fn no_file_needs_more_memory_than_the_agent_may_have() {
    let mut agent = started(&["spool.incomplete_after = \"0s\""]);
    let mib = 1 << 20;
    let members = [b"{\"\":0".to_vec(), b",\"\":0".repeat(12 * mib), b"}".to_vec()].concat();
    let context = format!(
        "{{\"batch\":[{}{{}}],\"context\":{{\"a\":\"{}\"}}}}",
        "{},".repeat(99_999),
        "x".repeat(50 * mib)
    );
    let element = format!("[{{}},{{\"a\":\"{}\"}},{{}}]", "x".repeat(60 * mib));
    let spread = format!("[{}{{}}]", format!("{{\"a\":\"{}\"}},", "x".repeat(20 * mib)).repeat(3));
    let empty = [b"[".to_vec(), b"{},".repeat(100_000), b"{}]".to_vec()].concat();
    let cases: [(&str, Vec<u8>); 9] = [
        ("members.json.gz", gzip(&members)),
        ("members.jsonl.gz", gzip([&members[..], b"\n"].concat())),
        ("context.json.gz", gzip(&context)),
        ("context.jsonl.gz", gzip(context + "\n")),
        ("element.json.gz", gzip(element)),
        ("spread.json.gz", gzip(spread)),
        ("deep.json.gz", gzip(vec![b'['; 64 * mib - 1])),
        ("newlines.jsonl.gz", gzip(vec![b'\n'; 20 * mib])),
        ("empty.json.gz", gzip(empty)),
    ];
    for (name, content) in cases {
        take(&mut agent, name, &content);
        let peak = agent.process().peak_memory();
        assert!(peak <= MAX_MEMORY, "{name}: {} MiB", peak >> 20);
    }
    agent.drop_file("good.json", track("good", "ana@acme.dev"));
    agent.until_held(1);
    let reason = |name: &str| -> PathBuf { agent.spool().join(format!("rejected/{name}.why")) };
    for (name, code) in [
        ("members.json.gz", "too_large"),
        ("members.1.jsonl", "too_large"),
        ("context.json.gz", "too_large"),
        ("context.1.jsonl", "too_large"),
        ("element.2.json", "too_large"),
        ("deep.json.gz", "not_json"),
    ] {
        let why = fs::read_to_string(reason(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_says(&why, &[code]);
    }
    agent.stop();
}

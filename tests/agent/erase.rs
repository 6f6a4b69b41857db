//! A person is erased: the real program, and a search through every byte that it keeps.

use crate::common::agent::TestAgent;
use crate::common::setup::{Setup, assert_says};
use koala_agent::receiver::Faults;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const ANA: &str = "ana@acme.dev";

fn event(id: &str, email: &str, pad: usize) -> Value {
    json!({"type": "track", "event": "Seen", "messageId": id, "userId": format!("u-{email}"),
           "properties": {"email": email, "pad": "x".repeat(pad)}})
}

fn lines(events: impl IntoIterator<Item = Value>) -> String {
    events.into_iter().map(|event| format!("{event}\n")).collect()
}

fn erase(agent: &TestAgent, arguments: &[&str]) -> (i32, Value) {
    let output = agent.command("erase").args(arguments).arg("--json").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let receipt = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    (output.status.code().unwrap(), receipt)
}

/// The files below a folder in which the text stands, in whatever case.
fn holding(folder: &Path, text: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            found.extend(holding(&path, text));
        } else if path.to_string_lossy().contains(text)
            || memchr::memmem::find(&fs::read(&path).unwrap().to_ascii_lowercase(), text.as_bytes()).is_some()
        {
            found.push(path);
        }
    }
    found
}

fn kept(agent: &TestAgent) -> Vec<PathBuf> {
    let folders = [agent.state(), agent.spool()];
    folders.iter().flat_map(|folder| holding(folder, ANA)).collect()
}

fn state(agent: &TestAgent, id: &str) -> Option<(String, Option<String>)> {
    if !agent.status().agent.running && !agent.outbox().exists() {
        return None;
    }
    let sql = "SELECT state, reason_code FROM outbox_events WHERE message_id = ?";
    agent.database().query_row(sql, [id], |r| Ok((r.get(0)?, r.get(1)?))).ok()
}

#[test]
fn erase_leaves_nothing_of_a_person_and_everything_of_others() {
    let mut agent = TestAgent::program(Faults::default());
    agent.set("outbox.keep_bodies = \"1h\"");
    agent.start();
    let mut rng = fastrand::Rng::with_seed(7);
    let mut who = |n: usize| match n % 10 {
        0 => ANA.to_owned(),
        1 => ANA.to_uppercase(),
        _ => format!("p{}@acme.dev", rng.usize(..200)),
    };
    // Some are delivered and keep their bodies, some without, some wait.
    let some = |from: usize, who: &mut dyn FnMut(usize) -> String| {
        lines((from..from + 1_000).map(|n| event(&format!("m-{n}"), &who(n), n * 37 % 900)))
    };
    agent.drop_file("a.jsonl", some(0, &mut who));
    agent.until("the first are delivered", |agent| agent.status().outbox.delivered == 1_000);
    agent.stop();
    agent.set("outbox.keep_bodies = \"0s\"");
    agent.start();
    agent.drop_file("b.jsonl", some(1_000, &mut who));
    agent.until("others are delivered", |agent| agent.status().outbox.delivered == 2_000);
    agent.receiver.set_faults(Faults { offline: true, ..Faults::default() });
    agent.drop_file("c.jsonl", some(2_000, &mut who));
    agent.drop_file("ana@acme.dev.json", event("named", "x@acme.dev", 1).to_string());
    agent.drop_file("refused.json", r#"{"type":"track","properties":{"email":"ana@acme.dev"}, half"#);
    agent.drop_file(
        "invited.json",
        json!({"type": "track", "event": "Invited", "messageId": "invited",
        "properties": {"email": "bo@acme.dev", "guests": ["Ana <ana@acme.dev>"]}})
        .to_string(),
    );
    agent.until("the rest waits", |agent| {
        agent.status().outbox.pending == 1_002 && agent.status().spool.rejected_files == Some(1)
    });
    assert!(!kept(&agent).is_empty());

    let (code, receipt) = erase(&agent, &["--email", "Ana@acme.dev"]);
    assert_eq!(code, 0, "{receipt}");
    assert_eq!(kept(&agent), [] as [PathBuf; 0]);
    let events = receipt["events"].as_array().unwrap();
    let of = |state: &str| events.iter().filter(|event| event["state"] == state).count();
    // A receiver that is offline breaks connections: it may have what was tried.
    let waited = of("pending") + of("in_flight");
    assert_eq!((of("delivered"), waited, events.len()), (400, 202, 602), "{receipt}");
    assert!(events.iter().all(|event| (event["state"] == "delivered") == event["settled_at"].is_string()));
    assert_eq!((&receipt["rejected"], &receipt["left"]), (&json!(["refused.json"]), &json!([])));
    let outbox = agent.status().outbox;
    assert_eq!((outbox.pending, outbox.delivered), (800, 1_600));

    // A late file does not bring the person back, and takes nobody else's event along.
    agent.drop_file("late.jsonl", lines([event("late", ANA, 5), event("late-2", "p1@acme.dev", 5)]));
    agent.until("the late file is taken", |agent| state(agent, "late-2").is_some());
    assert_eq!(state(&agent, "late"), Some(("skipped".to_owned(), Some("erased".to_owned()))));
    let (code, _) = erase(&agent, &["--email", ANA]);
    assert_eq!((code, kept(&agent)), (0, vec![]));

    agent.receiver.set_faults(Faults::default());
    agent.until("what was left is delivered", |agent| agent.status().outbox.pending == 0);
    let (code, _) = erase(&agent, &["--email", ANA, "--may-return"]);
    assert_eq!(code, 0);
    agent.drop_file("back.json", event("back", ANA, 5).to_string());
    agent.until("the person is back", |agent| {
        state(agent, "back").is_some_and(|(state, _)| state == "delivered")
    });
    agent.stop();
    let stats = agent.receiver.stats();
    // All but those of the person that waited, and none twice.
    assert_eq!((stats.events, stats.repeats), (2_000 + 800 + 2, 0));
}

/// Whenever a request was lost, not only while the command waits: the receipt is what a request to Koala is made from.
#[test]
fn an_event_whose_answer_was_lost_long_ago_may_be_at_koala() {
    let mut agent = TestAgent::program(Faults { drop_after_accept: 1.0, ..Faults::default() });
    agent.start_and_wait();
    for (id, email) in [("a", ANA), ("b", "bo@acme.dev")] {
        agent.drop_file(format!("{id}.json"), event(id, email, 9).to_string());
    }
    agent.until_status("both are stored", |status| status.outbox.pending == 2);
    let noted = "SELECT count(DISTINCT seq) FROM attempts WHERE code = 'connect'";
    agent.until("both answers are lost", |agent| {
        agent.database().query_row(noted, [], |row| row.get::<_, i64>(0)).unwrap() == 2
    });
    agent.receiver.set_faults(Faults { status: Some(503), ..Faults::default() });
    let refused = "SELECT count(DISTINCT seq) FROM attempts WHERE code = 'http_5xx'";
    agent.until("the next attempts are refused", |agent| {
        agent.database().query_row(refused, [], |row| row.get::<_, i64>(0)).unwrap() == 2
    });
    let (code, receipt) = erase(&agent, &["--email", ANA]);
    assert_eq!((code, &receipt["events"][0]["state"]), (0, &"in_flight".into()), "{receipt}");
    let discarded = agent.command("discard").arg("b").output().unwrap();
    assert!(String::from_utf8_lossy(&discarded.stdout).contains("Koala may have it"), "{discarded:?}");
    agent.stop();
}

#[test]
fn erase_without_an_agent_ingests_the_spool_and_sends_nothing() {
    let mut agent = TestAgent::program(Faults::default());
    agent.drop_file("both.jsonl", lines([event("a", ANA, 9), event("b", "bo@acme.dev", 9)]));
    agent.drop_file("ana.json", event("c", ANA, 9).to_string());
    let (code, receipt) = erase(&agent, &["--user-id", "u-ana@acme.dev"]);
    assert_eq!((code, receipt["events"].as_array().unwrap().len()), (0, 2), "{receipt}");
    assert_eq!(kept(&agent), [] as [PathBuf; 0]);
    assert_eq!(state(&agent, "b").unwrap().0, "pending");
    assert_eq!(agent.receiver.stats().requests, 0);
    agent.start();
    agent.until("the other is delivered", |agent| agent.status().outbox.delivered == 1);
    agent.drop_file("late.json", event("d", ANA, 9).to_string());
    agent.until("the late one is skipped", |agent| {
        state(agent, "d").is_some_and(|(state, _)| state == "skipped")
    });
    // Its file is removed after the commit.
    agent.until("nothing of the person is kept", |agent| kept(agent).is_empty());
    agent.stop();
    assert_eq!(agent.receiver.stats().events, 1);
}

/// As where the system does not tell whether a file is open: its events are stored, and it is kept for a while.
#[test]
fn erase_tells_of_a_file_that_its_writer_may_have_open() {
    let mut agent = TestAgent::program(Faults::default());
    agent.start();
    agent.until_status("it runs", |status| status.agent.running);
    agent.stop();
    let file = agent.spool().join(".removing/up.jsonl");
    fs::write(&file, lines([event("a", ANA, 9)])).unwrap();
    let (code, receipt) = erase(&agent, &["--email", ANA]);
    let left = receipt["left"][0].as_str().unwrap();
    assert_eq!(code, 75, "{receipt}");
    assert!(left.starts_with(&*file.to_string_lossy()) && left.contains("for 10 minutes"), "{left}");
    fs::remove_file(file).unwrap();
    assert_eq!(erase(&agent, &["--email", ANA]).0, 0);
}

#[test]
fn list_shows_everything_that_is_kept_about_a_person() {
    let mut agent = TestAgent::program(Faults { offline: true, ..Faults::default() });
    agent.start_and_wait();
    let invited = json!({"type": "page", "messageId": "page", "properties": {"guest": ANA}});
    agent.drop_file("a.jsonl", lines([event("a", ANA, 1), event("b", "bo@acme.dev", 1), invited]));
    agent.until("they are stored", |agent| state(agent, "page").is_some());
    let mut list = agent.command("list");
    let output = list.args(["--person", ANA, "--json", "--bodies"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ids: Vec<&str> = rows.iter().filter_map(|row| row["message_id"].as_str()).collect();
    assert_eq!(ids, ["page", "a"]);
    assert_eq!(rows[1]["body"]["properties"]["email"], ANA);
    agent.stop();
}

#[test]
fn a_dry_run_changes_nothing_and_the_list_tells_who_is_kept_out() {
    let mut agent = TestAgent::program(Faults { offline: true, ..Faults::default() });
    agent.start_and_wait();
    agent.drop_file("a.jsonl", lines([event("a", ANA, 9), event("b", "bo@acme.dev", 9)]));
    agent.until_status("both are stored", |status| status.outbox.pending == 2);
    agent.drop_file("bad.json", format!("{{{ANA}"));
    agent.until_status("it is rejected", |status| status.spool.rejected_files == Some(1));
    let (code, receipt) = erase(&agent, &["--email", ANA, "--dry-run"]);
    assert_eq!(
        (code, &receipt["dry_run"], &receipt["rejected"]),
        (0, &true.into(), &vec!["bad.json"].into())
    );
    assert_eq!(receipt["events"][0]["message_id"], "a");
    assert_eq!(agent.status().outbox.pending, 2);
    assert!(agent.spool().join("rejected/bad.json").exists());
    let list = |arguments: &[&str]| {
        let output = agent.command("erase").arg("--list").args(arguments).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(list(&[]), (0, "nobody is kept out\n".to_owned()));
    let (code, receipt) = erase(&agent, &["--email", ANA]);
    assert_eq!((code, &receipt["dry_run"]), (0, &false.into()), "{receipt}");
    let (code, all) = list(&[]);
    assert!(code == 0 && all.lines().count() == 1 && !all.contains("ana"), "{all}");
    assert_eq!(list(&["--email", "Ana@acme.dev"]), (0, all));
    assert_eq!(list(&["--email", "bo@acme.dev"]), (66, "bo@acme.dev is not kept out\n".to_owned()));
    agent.stop();
}

/// Whatever stands in rejected/, a search takes little memory, and what it could not look at is told.
#[test]
fn erase_looks_at_any_file_in_bounded_memory() {
    let agent = TestAgent::program(Faults::default());
    let folder = agent.spool().join("rejected");
    fs::create_dir(&folder).unwrap();
    let sparse = fs::File::create(folder.join("sparse.txt")).unwrap();
    sparse.set_len(640 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b" ana@acme.dev ", (640 << 20) - 14).unwrap();
    fs::write(folder.join("damaged.json.gz"), b"\x1f\x8b\x08\0damaged").unwrap();
    let mut command = agent.command("erase");
    command.args(["--email", ANA, "--json"]);
    let mut limited = Command::new("prlimit");
    limited.arg(format!("--as={}", 512u64 << 20)).arg(command.get_program()).args(command.get_args());
    let output = limited.output().unwrap();
    let receipt: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (output.status.code(), &receipt["rejected"]),
        (Some(75), &vec!["sparse.txt"].into()),
        "{receipt}"
    );
    let left = receipt["left"].as_array().unwrap();
    assert!(
        left.len() == 1 && left[0].as_str().unwrap().contains("damaged.json.gz cannot be read"),
        "{receipt}"
    );
}

#[test]
fn a_wrong_command_line_of_erase_says_what_is_wanted() {
    let setup = Setup::new();
    for (arguments, said) in [
        (&["--email", "ana"][..], "a name, an @ and a domain"),
        (&["--email", "@"], "a name, an @ and a domain"),
        (&["--email", "ana@"], "a name, an @ and a domain"),
        (&["--email", "ana bo@acme.dev"], "a name, an @ and a domain"),
        (&["--list", "--dry-run"], "cannot be used with"),
        (&[], "required"),
        (&["--email", ANA, "--user-id", "7"], "cannot be used with"),
    ] {
        let ran = setup.run(&[&["erase"], arguments].concat());
        assert_eq!(ran.code, 64);
        assert_says(&ran.err, &[said]);
    }
}

#[test]
fn without_a_spool_and_an_outbox_nothing_is_created() {
    let setup = Setup::new();
    fs::remove_dir(setup.spool()).unwrap();
    for _ in 0..2 {
        let ran = setup.run(&["erase", "--email", ANA]);
        assert_eq!(ran.code, 73, "{ran:?}");
        assert_says(&ran.err, &["there is no spool folder"]);
        assert!(!setup.outbox().exists());
    }
}

//! A person is erased: the real program, and a search through every byte that it keeps.

use crate::common::daemon::Daemon;
use koala_agent::receiver::{Faults, Options, Receiver};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const ANA: &str = "ana@acme.dev";
const PATIENCE: Duration = Duration::from_secs(30);

fn receiver() -> (tokio::runtime::Runtime, Receiver) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let started = runtime.block_on(Receiver::start("127.0.0.1:0".parse().unwrap(), Options::default()));
    (runtime, started.unwrap())
}

fn event(id: &str, email: &str, pad: usize) -> Value {
    json!({"type": "track", "event": "Seen", "messageId": id, "userId": format!("u-{email}"),
           "properties": {"email": email, "pad": "x".repeat(pad)}})
}

fn drop_file(daemon: &Daemon, name: &str, content: impl AsRef<[u8]>) {
    let aside = daemon.path("aside").join(name);
    fs::write(&aside, content).unwrap();
    fs::rename(aside, daemon.spool().join(name)).unwrap();
}

fn lines(events: impl IntoIterator<Item = Value>) -> String {
    events.into_iter().map(|event| format!("{event}\n")).collect()
}

fn until(fact: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "never: {fact}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn erase(daemon: &Daemon, arguments: &[&str]) -> (i32, Value) {
    let output = daemon.command("erase").args(arguments).arg("--json").output().unwrap();
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

fn kept(daemon: &Daemon) -> Vec<PathBuf> {
    let folders = [daemon.outbox().parent().unwrap().to_owned(), daemon.spool()];
    folders.iter().flat_map(|folder| holding(folder, ANA)).collect()
}

fn state(daemon: &Daemon, id: &str) -> Option<(String, Option<String>)> {
    if !daemon.status().agent.running && !daemon.outbox().exists() {
        return None;
    }
    let sql = "SELECT state, reason_code FROM outbox_events WHERE message_id = ?";
    daemon.database().query_row(sql, [id], |r| Ok((r.get(0)?, r.get(1)?))).ok()
}

#[test]
fn nothing_of_a_person_is_left_and_nobody_else_loses_anything() {
    let (_runtime, receiver) = receiver();
    let mut daemon = Daemon::new(&receiver.endpoint());
    daemon.set("outbox.keep_bodies = \"1h\"");
    daemon.start();
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
    drop_file(&daemon, "a.jsonl", some(0, &mut who));
    until("the first are delivered", || daemon.status().outbox.delivered == 1_000);
    daemon.stop();
    daemon.set("outbox.keep_bodies = \"0s\"");
    daemon.start();
    drop_file(&daemon, "b.jsonl", some(1_000, &mut who));
    until("others are delivered", || daemon.status().outbox.delivered == 2_000);
    receiver.set_faults(Faults { offline: true, ..Faults::default() });
    drop_file(&daemon, "c.jsonl", some(2_000, &mut who));
    drop_file(&daemon, "ana@acme.dev.json", event("named", "x@acme.dev", 1).to_string());
    drop_file(&daemon, "refused.json", r#"{"type":"track","properties":{"email":"ana@acme.dev"}} half"#);
    drop_file(
        &daemon,
        "invited.json",
        json!({"type": "track", "event": "Invited", "messageId": "invited",
        "properties": {"email": "bo@acme.dev", "guests": ["Ana <ana@acme.dev>"]}})
        .to_string(),
    );
    until("the rest waits", || {
        daemon.status().outbox.pending == 1_002 && daemon.status().spool.rejected_files == 1
    });
    assert!(!kept(&daemon).is_empty());

    let (code, receipt) = erase(&daemon, &["--email", "Ana@acme.dev"]);
    assert_eq!(code, 0, "{receipt}");
    assert_eq!(kept(&daemon), [] as [PathBuf; 0]);
    let events = receipt["events"].as_array().unwrap();
    let of = |state: &str| events.iter().filter(|event| event["state"] == state).count();
    assert_eq!((of("delivered"), of("pending"), events.len()), (400, 202, 602), "{receipt}");
    assert!(events.iter().all(|event| (event["state"] == "delivered") == event["settled_at"].is_string()));
    assert_eq!((&receipt["rejected"], &receipt["left"]), (&json!(["refused.json"]), &json!([])));
    let outbox = daemon.status().outbox;
    assert_eq!((outbox.pending, outbox.delivered), (800, 1_600));

    // A late file does not bring the person back, and takes nobody else's event along.
    drop_file(&daemon, "late.jsonl", lines([event("late", ANA, 5), event("late-2", "p1@acme.dev", 5)]));
    until("the late file is taken", || state(&daemon, "late-2").is_some());
    assert_eq!(state(&daemon, "late"), Some(("skipped".to_owned(), Some("erased".to_owned()))));
    let (code, _) = erase(&daemon, &["--email", ANA]);
    assert_eq!((code, kept(&daemon)), (0, vec![]));

    receiver.set_faults(Faults::default());
    until("what was left is delivered", || daemon.status().outbox.pending == 0);
    let (code, _) = erase(&daemon, &["--email", ANA, "--may-return"]);
    assert_eq!(code, 0);
    drop_file(&daemon, "back.json", event("back", ANA, 5).to_string());
    until("the person is back", || state(&daemon, "back").is_some_and(|(state, _)| state == "delivered"));
    daemon.stop();
    let stats = receiver.stats();
    // All but those of the person that waited, and none twice.
    assert_eq!((stats.events, stats.repeats), (2_000 + 800 + 2, 0));
}

#[test]
fn without_an_agent_the_spool_is_taken_in_and_nothing_is_sent() {
    let (_runtime, receiver) = receiver();
    let mut daemon = Daemon::new(&receiver.endpoint());
    drop_file(&daemon, "both.jsonl", lines([event("a", ANA, 9), event("b", "bo@acme.dev", 9)]));
    drop_file(&daemon, "ana.json", event("c", ANA, 9).to_string());
    let (code, receipt) = erase(&daemon, &["--user-id", "u-ana@acme.dev"]);
    assert_eq!((code, receipt["events"].as_array().unwrap().len()), (0, 2), "{receipt}");
    assert_eq!(kept(&daemon), [] as [PathBuf; 0]);
    assert_eq!(state(&daemon, "b").unwrap().0, "pending");
    assert_eq!(receiver.stats().requests, 0);
    daemon.start();
    until("the other is delivered", || daemon.status().outbox.delivered == 1);
    drop_file(&daemon, "late.json", event("d", ANA, 9).to_string());
    until("the late one is skipped", || state(&daemon, "d").is_some_and(|(state, _)| state == "skipped"));
    assert_eq!(kept(&daemon), [] as [PathBuf; 0]);
    daemon.stop();
    assert_eq!(receiver.stats().events, 1);
}

#[test]
fn a_person_is_shown_all_that_is_kept_of_them() {
    let (_runtime, receiver) = receiver();
    receiver.set_faults(Faults { offline: true, ..Faults::default() });
    let mut daemon = Daemon::new(&receiver.endpoint());
    daemon.start();
    let invited = json!({"type": "page", "messageId": "page", "properties": {"guest": ANA}});
    drop_file(&daemon, "a.jsonl", lines([event("a", ANA, 1), event("b", "bo@acme.dev", 1), invited]));
    until("they are stored", || state(&daemon, "page").is_some());
    let mut list = daemon.command("list");
    let output = list.args(["--person", ANA, "--json", "--bodies"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ids: Vec<&str> = rows.iter().filter_map(|row| row["message_id"].as_str()).collect();
    assert_eq!(ids, ["page", "a"]);
    assert_eq!(rows[1]["body"]["properties"]["email"], ANA);
    daemon.stop();
}

#[test]
fn a_wrong_command_line_says_what_is_wanted() {
    let daemon = Daemon::new("http://127.0.0.1:9");
    for (arguments, said) in [
        (&["--email", "ana"][..], "an email address has an @"),
        (&[], "required"),
        (&["--email", ANA, "--user-id", "7"], "cannot be used with"),
    ] {
        let output = daemon.command("erase").args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(64));
        assert!(String::from_utf8_lossy(&output.stderr).contains(said), "{output:?}");
    }
}

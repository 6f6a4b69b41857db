//! status, list and show: who asks where an event is.

use crate::common::events::new_event;
use crate::common::setup::{Setup, assert_says};
use koala_agent::clock::{Clock, Timestamp};
use koala_agent::event::Flaw;
use koala_agent::outbox::{NewEvent, Outbox, Settled, Settlement};
use koala_agent::reason::{Code, Reason};
use koala_agent::spool::{RejectionWriter, Spool};
use koala_agent::status::{DestinationState, DestinationStatus, IntakeState, IntakeStatus, Status};
use serde_json::{Value, json};
use std::fs;
use std::process::Stdio;
use std::time::Duration;

/// Publishes the status that an agent of this process would.
fn published(setup: &Setup, change: impl FnOnce(&mut Status)) {
    let mut status: Status = serde_json::from_value(setup.run(&["status", "--json"]).json()).unwrap();
    status.now = Timestamp::from_system(std::time::SystemTime::now());
    status.agent.running = true;
    status.agent.pid = Some(std::process::id());
    status.agent.since = Timestamp::parse("2026-01-02T00:00:00Z");
    change(&mut status);
    status.write(&setup.config().status_file, 0o644).unwrap();
}

#[test]
fn the_status_before_the_first_run_is_all_zeros() {
    let setup = Setup::new();
    let status = setup.run(&["status", "--json"]);
    assert_eq!(status.code, 0);
    let status = status.json();
    assert_eq!(
        status["agent"],
        json!({"version": "0.1.0", "running": false, "pid": null, "since": null, "log_lines_dropped": 0, "waits_to_start": false})
    );
    assert_eq!((&status["config_in_force"], &status["clock_step"]), (&Value::Null, &Value::Null));
    assert_eq!(
        (&status["reasons"], &status["intake"]),
        (&json!([]), &json!({"state": "open", "reason": null}))
    );
    assert_eq!(status["destination"]["state"], "unknown");
    assert_eq!(
        (&status["outbox"]["pending"], &status["outbox"]["oldest_pending"]),
        (&json!(0), &Value::Null)
    );
    let spool = &status["spool"];
    let unknown = ["unreadable_files", "scanned_at"].map(|name| &spool[name]);
    assert_eq!(unknown, [&Value::Null; 2], "no scan has counted them");
    assert_eq!(spool["unknown_files"], 0);
    let text = setup.run(&["status"]);
    assert_eq!(text.code, 0);
    let config = setup.config_file().display().to_string();
    assert_says(
        &text.out,
        &["never started", &config, "0 pending", &format!("koala-agent --config {config} run")],
    );
}

#[test]
fn the_status_of_a_stopped_agent_counts_the_outbox() {
    let setup = Setup::with_events();
    published(&setup, |status| {
        status.agent.running = false;
        status.agent.pid = None;
        status.outbox.pending = 99;
    });
    fs::write(setup.path("spool/new.json"), "{}").unwrap();
    let status = setup.run(&["status", "--json"]).json();
    let outbox = &status["outbox"];
    let counts =
        ["pending", "delivered", "skipped", "failed", "discarded"].map(|state| outbox[state].clone());
    assert_eq!(counts, [2, 1, 1, 2, 1]);
    assert!(outbox["bytes"].as_u64().unwrap() > 0 && outbox["disk_free"].as_u64().unwrap() > 0);
    assert!(outbox["oldest_pending"].is_string() && outbox["oldest_pending_seconds"].is_u64());
    assert_eq!(
        status["reasons"],
        json!([
            {"state": "failed", "code": "invalid_field", "events": 1},
            {"state": "failed", "code": "refused", "events": 1},
            {"state": "skipped", "code": "no_identity", "events": 1},
        ])
    );
    assert_eq!(
        (&status["spool"]["waiting_files"], &status["spool"]["waiting_bytes"]),
        (&json!(1), &json!(2))
    );
    assert_eq!((&status["agent"]["running"], &status["agent"]["pid"]), (&json!(false), &Value::Null));
    assert!(status["agent"]["since"].is_string());
    assert_says(
        &setup.run(&["status"]).out,
        &[
            "not running since",
            "1 failed: refused (the receiver refused the event but accepts others)",
            "list --state failed",
        ],
    );
}

#[test]
fn the_status_names_the_persons_that_have_waited_longest() {
    let setup = Setup::new();
    let now = Clock::system().now();
    let clock = Clock::manual(now.minus(Duration::from_secs(7_500)));
    let outbox = Outbox::open(&setup.config().outbox, clock.clone()).unwrap();
    let event = |id: &str, person: &str| {
        let json =
            format!(r#"{{"type":"track","event":"Paid","properties":{{"email":"{person}@acme.dev"}}}}"#);
        new_event(id, &json, "a.jsonl")
    };
    let append = |events: Vec<NewEvent>| outbox.writer.append(events, vec![]).block().unwrap();
    append((0..14).map(|n| event(&format!("m-{n}"), &format!("p{}", n % 7))).collect());
    let seq = |id: &str| setup.reader().events().show(id).unwrap().unwrap().row.seq;
    let trouble = Reason::new(Code::Http5xx, "the receiver answered 500");
    let settlement = Settlement {
        rows: [1, 8, 2].map(|n| (seq(&format!("m-{n}")), Settled::Delivered)).to_vec(),
        attempts: vec![(vec![seq("m-0")], trouble)],
        ..Settlement::default()
    };
    outbox.writer.settle(settlement).block().unwrap();
    clock.step(now);
    append(vec![event("m-14", "fresh")]);
    outbox.close();
    let longest = &setup.run(&["status", "--json"]).json()["longest_waiting"];
    let persons: Vec<&Value> = longest.as_array().unwrap().iter().map(|waiting| &waiting["person"]).collect();
    assert_eq!(persons, ["p0@acme.dev", "p3@acme.dev", "p4@acme.dev", "p5@acme.dev", "p6@acme.dev"]);
    assert!(longest[0]["seconds"].as_u64().unwrap() >= 7_500, "{longest}");
    assert_eq!(
        (&longest[0]["reason"], &longest[0]["owner"], &longest[1]["reason"]),
        (&json!({"code": "http_5xx", "text": "the receiver answered 500"}), &json!(0), &Value::Null)
    );
    let text = setup.run(&["status"]).out;
    assert_says(
        &text,
        &["waiting", "p0@acme.dev: 2 h 5 min, file of root; http_5xx: the receiver answered 500"],
    );
    assert!(!text.contains("fresh"), "{text}");
}

#[test]
fn a_missing_spool_is_reported_with_its_remedy() {
    let setup = Setup::with_events();
    let spool = setup.spool();
    fs::remove_dir_all(&spool).unwrap();
    let says = [&format!("there is no spool folder {}", spool.display()), "blocked", "mkdir -p"];
    let outbox = setup.open_outbox();
    published(&setup, |status| {
        let text = format!("{}: create it, or set spool.dir", says[0]);
        status.intake =
            IntakeStatus { state: IntakeState::Blocked, reason: Some(Reason::new(Code::Unreadable, text)) };
    });
    let running = setup.run(&["status"]).out;
    assert_says(&running, &says);
    assert!(!running.contains("chmod g+r"), "{running}");
    outbox.close();
    published(&setup, |status| {
        status.agent.running = false;
        status.intake = IntakeStatus { state: IntakeState::Open, reason: None };
    });
    let status = setup.run(&["status", "--json"]).json();
    assert_eq!(
        (&status["intake"]["state"], &status["intake"]["reason"]["code"]),
        (&json!("blocked"), &json!("unreadable"))
    );
    assert_says(&setup.run(&["status"]).out, &says);
}

#[test]
fn the_status_says_why_events_wait_and_what_to_do() {
    let setup = Setup::with_events();
    let outbox = setup.open_outbox();
    let now = Timestamp::from_system(std::time::SystemTime::now());
    published(&setup, |status| {
        status.spool.rejected_files = Some(3);
        status.spool.unreadable_files = Some(1);
        status.intake = IntakeStatus {
            state: IntakeState::Blocked,
            reason: Some(Reason::new(Code::MaxBytes, "the outbox has reached its limit")),
        };
        status.destination = DestinationStatus {
            state: DestinationState::Refused,
            since: Timestamp::parse("2026-01-02T03:04:05Z"),
            reason: Some(Reason::new(Code::KeyRefused, "the receiver answered 401: \u{1b}[31mno")),
            retry_at: Some(now.plus(std::time::Duration::from_secs(100))),
            ..status.destination.clone()
        };
    });
    let status = setup.run(&["status", "--json"]).json();
    assert_eq!(
        (&status["agent"]["running"], &status["agent"]["pid"]),
        (&json!(true), &json!(std::process::id()))
    );
    assert_eq!(status["destination"]["reason"]["code"], "key_refused");
    let text = setup.run(&["status"]).out;
    let key = setup.path("key").display().to_string();
    assert_says(
        &text,
        &[
            "running since 2026-01-02T00:00:00Z",
            &format!("(pid {})", std::process::id()),
            "blocked: files wait in the spool",
            "max_bytes: the outbox has reached its limit",
            "raise outbox.max_bytes",
            "refuses events since 2026-01-02T03:04:05Z",
            "events wait, nothing is lost",
            "key_refused: the receiver answered 401: \\u001b[31mno",
            &format!("put the right public key into {key}"),
            "next try in 1 min",
            "3 rejected",
            "1 of them unreadable",
            "list --rejected",
            "list --state failed",
        ],
    );
    assert!(!text.contains('\u{1b}'), "colours in a pipe, or a stranger's: {text:?}");
    outbox.close();
    assert_eq!(setup.run(&["status", "--json"]).json()["agent"]["running"], false);
}

#[test]
fn a_full_outbox_is_reported_before_a_file_has_to_wait() {
    let setup = Setup::with_events();
    let _agent = setup.open_outbox();
    published(&setup, |status| status.outbox.max_bytes = 1);
    let text = setup.run(&["status"]).out;
    assert_says(
        &text,
        &[
            "the outbox is full: new files will wait in the spool",
            "wait until events have been delivered, or raise outbox.max_bytes",
            &format!("kill -HUP {}", std::process::id()),
        ],
    );
}

#[test]
fn only_of_koalas_own_address_is_it_said_that_the_service_is_shut_down() {
    let mut setup = Setup::with_events();
    let _agent = setup.open_outbox();
    for (endpoint, says, says_not) in [
        (
            "https://api2.getkoala.com",
            "hosted service is shut down: set koala.endpoint in",
            "refuses all events",
        ),
        ("http://127.0.0.1:9", "http://127.0.0.1:9 refuses all events: set koala.endpoint in", "shut down"),
    ] {
        setup.set(&format!("koala.endpoint = \"{endpoint}\""));
        published(&setup, |status| {
            status.destination.state = DestinationState::Refused;
            status.destination.reason = Some(Reason::new(Code::RefusesAll, "the receiver answered 400"));
        });
        let text = setup.run(&["status"]).out;
        assert_says(&text, &[says]);
        assert!(!text.contains(says_not), "{text}");
    }
}

#[test]
fn list_filters_and_shows_the_newest_first() {
    let setup = Setup::with_events();
    for (arguments, want) in [
        (&["--limit", "2"][..], &["invalid", "nobody"][..]),
        (&["--state", "failed"], &["invalid", "refused"]),
        (&["--state", "failed,skipped", "--reason", "no_identity"], &["nobody"]),
        (&["--person", "ana@acme.dev"], &["behind", "waiting", "delivered"]),
        (&["--type", "identify"], &["behind"]),
        (&["--event", "Paid"], &["waiting"]),
        (&["--since", "1h", "--event", "Paid"], &["waiting"]),
        (&["--until", "1h"], &[]),
        (&["--since", "2999-01-01"], &[]),
    ] {
        let ran = setup.run(&[&["list", "--json"], arguments].concat());
        let rows = ran.lines();
        let ids: Vec<_> = rows.iter().map(|row| row["message_id"].as_str().unwrap()).collect();
        assert_eq!((ran.code, ids.as_slice()), (0, want), "{arguments:?}");
    }
    let row = &setup.run(&["list", "--json", "--event", "Paid"]).lines()[0];
    let names: Vec<_> = row.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "attempts",
            "event",
            "file",
            "message_id",
            "owner",
            "person",
            "place",
            "reason",
            "reason_code",
            "received_at",
            "seq",
            "settled_at",
            "state",
            "type"
        ]
    );
}

#[test]
fn list_says_how_many_more_there_are() {
    let setup = Setup::with_events();
    let text = setup.run(&["list", "--limit", "4"]).out;
    assert_eq!(text.lines().count(), 6);
    assert_says(
        &text,
        &["MESSAGE ID", "… and 3 more", "bob@acme.dev", "refused: the receiver answered 400: no\\u001b[2J"],
    );
    assert_eq!(setup.run(&["list", "--event", "None"]).out, "no events\n");
}

#[test]
fn rejected_files_are_listed_with_their_reasons() {
    let setup = Setup::new();
    assert_eq!(setup.run(&["list", "--rejected"]).out, "no rejected files\n");
    let spool = Spool::open(&setup.spool()).unwrap();
    fs::write(setup.path("spool/bad.json"), "{\"messageId\":\"lost-1\",}").unwrap();
    let entry = spool.entry("bad.json".as_ref()).unwrap();
    let flaw =
        Flaw { code: Code::NotJson, text: "trailing comma".into(), line: 1, column: 23, incomplete: false };
    let now = Timestamp::parse("2026-01-02T03:04:05Z").unwrap();
    RejectionWriter::new(spool.rejected_folder()).reject_file(&spool, &entry, &flaw, now).unwrap();
    assert_says(
        &setup.run(&["list", "--rejected"]).out,
        &["2026-01-02T03:04:05Z", "bad.json", "1:23", "not_json: trailing comma"],
    );
    let row = &setup.run(&["list", "--rejected", "--json"]).lines()[0];
    assert_eq!(
        (&row["name"], &row["code"], &row["line"], &row["owner"]),
        (&json!("bad.json"), &json!("not_json"), &json!(1), &json!(entry.owner))
    );

    setup.open_outbox().close();
    let ran = setup.run(&["show", "lost-1"]);
    assert_eq!(ran.code, 66);
    assert_says(&ran.err, &["lost-1", "rejected/bad.json", "trailing comma"]);

    let ran = setup.run(&["retry", "--rejected", "bad.json"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(setup.path("spool/bad.json").exists());
    assert_eq!(setup.run(&["retry", "--rejected", "bad.json"]).code, 66);
    for name in ["", ".", "..", "../rejected"] {
        assert_eq!(setup.run(&["retry", "--rejected", name]).code, 64, "{name:?}");
    }
    std::fs::create_dir(setup.path("spool/rejected/folder.json")).unwrap();
    assert_eq!(setup.run(&["retry", "--rejected", "folder.json"]).code, 66);
    assert!(setup.path("spool/rejected/folder.json").exists());
}

#[test]
fn show_prints_the_history_and_the_request_of_an_event() {
    let setup = Setup::with_events();
    let shown = setup.run(&["show", "behind", "--json"]).json();
    assert_eq!((&shown["state"], &shown["file"]), (&json!("pending"), &json!("a.jsonl")));
    assert_eq!(shown["owner"], 0);
    assert_says(
        shown["next"]["text"].as_str().unwrap(),
        &["after 1 older event of the same person", "agent runs again"],
    );
    assert_eq!(shown["spooled_at"], "2026-01-02T03:04:05Z");

    let ran = setup.run(&["show", "refused", "--json"]);
    let shown = ran.json();
    assert_eq!((&shown["next"], shown["history"].as_array().unwrap().len()), (&Value::Null, 2));
    assert_eq!(shown["history"][1]["code"], "refused");
    assert_eq!(shown["requests"][0]["path"], "/web/projects/<public_key>/batch");
    assert_eq!(shown["requests"][0]["body"]["email"], "bob@acme.dev");
    assert_eq!(shown["body"]["event"], "Odd");

    for (id, pieces) in [
        (
            "refused",
            &["track \"Odd\"", "failed since", "a.jsonl, line 1, written 2026-01-02", "attempts     2"][..],
        ),
        ("waiting", &["\"sum\": 1.0", "POST /web/projects/<public_key>/batch", "next"]),
        ("delivered", &["delivered since", "not kept any more"]),
        ("nobody", &["skipped", "no request: skipped", "no_identity"]),
        ("invalid", &["failed", "no request can be made", "invalid_field"]),
    ] {
        let ran = setup.run(&["show", id]);
        assert_eq!(ran.code, 0);
        assert_says(&ran.out, pieces);
        assert!(!ran.out.contains('\u{1b}'));
    }
    assert_eq!(setup.run(&["show", "unknown"]).code, 66);
}

#[test]
fn a_closed_pipe_ends_a_command_quietly() {
    let setup = Setup::new();
    let outbox = setup.open_outbox();
    let json = r#"{"type":"track","event":"x","properties":{"email":"ana@acme.dev"}}"#;
    let events = (0..2000).map(|n| new_event(&format!("e-{n}"), json, "a")).collect::<Vec<_>>();
    outbox.writer.append(events, vec![]).block().unwrap();
    let mut child = setup.program();
    let child =
        child.args(["list", "--json", "--limit", "2000"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = child.spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
    outbox.close();
}

//! send and map: events from any form of input.

use crate::common::events::new_event;
use crate::common::setup::{Setup, assert_says};
use koala_agent::outbox::{NewEvent, Settled};
use koala_agent::reason::{Code, Reason};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

const ANA: &str = r#"{"type":"track","event":"Signed Up","properties":{"email":"ana@acme.dev"}}"#;

/// The files in the spool: names and contents.
fn spooled(setup: &Setup) -> Vec<(String, String)> {
    let files = fs::read_dir(setup.spool()).unwrap().map(Result::unwrap);
    files.map(|f| (f.file_name().into_string().unwrap(), fs::read_to_string(f.path()).unwrap())).collect()
}

#[test]
fn send_stores_events_as_they_came_each_with_an_id() {
    let setup = Setup::new();
    let text = "{\"type\":\"track\", \"n\": 9007199254740993,\n \"messageId\":null,\"event\":\"a\\nb\"}";
    let ran = setup.run_with(&["send"], text);
    assert_eq!(ran.code, 0, "{ran:?}");
    let id = ran.out.trim();
    assert_eq!(id.len(), 36);
    let files = spooled(&setup);
    let (name, content) = &files[0];
    assert!(name.starts_with("send-") && name.ends_with(".jsonl"), "{name}");
    assert_eq!(
        *content,
        format!(
            "{{\"type\":\"track\",\"n\":9007199254740993,\"messageId\":null,\"event\":\"a\\nb\",\"messageId\":\"{id}\"}}\n"
        )
    );
    let mode = fs::metadata(setup.spool().join(name)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
    let spool = setup.spool().display().to_string();
    assert_says(
        &ran.err,
        &[
            "1 event stored in the spool",
            &spool,
            "config.toml",
            "warning: 1 event will be skipped",
            "no_identity",
        ],
    );
}

#[test]
fn send_writes_every_format_of_input_to_one_file() {
    let setup = Setup::new();
    fs::write(setup.path("a.json"), format!("{{\"batch\":[{ANA},{ANA}],\"context\":{{\"ip\":\"::1\"}}}}"))
        .unwrap();
    fs::write(
        setup.path("b.ndjson"),
        format!(
            "{}\n\n{ANA}\n",
            ANA.replace('{', "{\"messageId\":\"m-1\",").replacen(
                "\"properties\":{\"messageId\":\"m-1\",",
                "\"properties\":{",
                1
            )
        ),
    )
    .unwrap();
    let (a, b) = (setup.path("a.json"), setup.path("b.ndjson"));
    let ran = setup.run_with(&["send", a.to_str().unwrap(), b.to_str().unwrap(), "-"], &format!("[{ANA}]"));
    assert_eq!((ran.code, ran.out.lines().count()), (0, 5), "{ran:?}");
    assert_eq!(ran.out.lines().nth(2), Some("m-1"));
    let files = spooled(&setup);
    assert_eq!((files.len(), files[0].1.lines().count()), (1, 5));
    assert!(files[0].1.lines().next().unwrap().contains(r#""context":{"ip":"::1"}"#));
}

#[test]
fn send_names_the_line_of_a_bad_event_and_stores_nothing() {
    let setup = Setup::new();
    let long = format!("{ANA}\n{}", ANA.replace("Signed", &"x".repeat(33_000)));
    for (input, code, said) in [
        (format!("{ANA}\n{{\"type\":}}\n"), 65, "stdin:2:9: "),
        (
            format!("[{ANA},\n  7]"),
            65,
            "stdin:2:3: an event is an object but this is a number (not_an_event)",
        ),
        (long, 65, "stdin:2:1: the event is larger than spool.max_event_bytes, 32 KiB: leave out"),
        (
            "{\"messageId\":\"m\",\"a\":1}\n{\"messageId\":\"m\",\"a\":2}\n".into(),
            65,
            "stdin:2:1: an earlier event",
        ),
        ("7\n".repeat(12), 65, "… and 2 more"),
        ("x\n".repeat(12), 65, "stdin:1:1: a value is missing here, or a text lacks its quotes (not_json)"),
        (String::new(), 65, "there is no event in the input"),
    ] {
        let ran = setup.run_with(&["send"], &input);
        assert_eq!((ran.code, ran.out.as_str()), (code, ""), "{input:.80}");
        assert_says(&ran.err, &[said, "nothing is stored"]);
    }
    assert_eq!(spooled(&setup), []);
    assert_eq!(setup.run(&["send", "/nonexistent.json"]).code, 66);
    fs::remove_dir(setup.spool()).unwrap();
    let ran = setup.run_with(&["send"], ANA);
    assert_eq!(ran.code, 73);
    assert_says(&ran.err, &["there is no spool folder", "spool.dir"]);
}

#[test]
fn send_waits_until_its_events_are_settled() {
    let refused = || Settled::Failed(Reason::new(Code::Refused, "the receiver answered 400: no"));
    for (settled, code, said) in [
        (Some(Settled::Delivered), 0, "1 event stored in the spool"),
        (Some(refused()), 65, "answered 400: no"),
        (None, 75, "is pending"),
    ] {
        let setup = Setup::new();
        let outbox = setup.open_outbox();
        let limit = if settled.is_some() { "--wait=30s" } else { "--wait=1s" };
        let ran = std::thread::scope(|scope| {
            let sending = scope.spawn(|| setup.run_with(&["send", limit], ANA));
            let (name, content) =
                soon(|| spooled(&setup).into_iter().find(|(name, _)| !name.starts_with('.')));
            let body: Value = serde_json::from_str(&content).unwrap();
            let id = body["messageId"].as_str().unwrap();
            let new = NewEvent { body: content.clone(), ..new_event(id, content.trim(), &name) };
            outbox.writer.append(vec![new], vec![]).block().unwrap();
            fs::remove_file(setup.spool().join(name)).unwrap();
            if let Some(settled) = settled {
                let seq = setup.reader().events().show(id).unwrap().unwrap().row.seq;
                outbox.writer.settle(vec![(seq, settled)]).block().unwrap();
            }
            sending.join().unwrap()
        });
        assert_eq!(ran.code, code, "{ran:?}");
        assert_says(&ran.err, &[said]);
        outbox.close();
    }
    let ran = Setup::new().run_with(&["send", "--wait=100ms"], ANA);
    assert_eq!(ran.code, 75);
    assert_says(&ran.err, &["the events wait in the spool", "the agent is not running"]);
}

fn soon<T>(mut find: impl FnMut() -> Option<T>) -> T {
    let since = Instant::now();
    loop {
        if let Some(found) = find() {
            return found;
        }
        assert!(since.elapsed() < Duration::from_secs(60), "not in time");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn map_prints_a_line_for_each_event_in_order() {
    let setup = Setup::new();
    let input = [
        r#"{"type":"track","event":"A","messageId":"m-1","timestamp":"2026-01-02T03:04:05Z","properties":{"email":"ana@acme.dev","n":1e21}}"#,
        "oops",
        r#"{"type":"page","messageId":"m-2"}"#,
        r#"{"type":"track","messageId":"m-3"}"#,
        ANA,
    ]
    .join("\n");
    let ran = setup.run_with(&["map"], &input);
    assert_eq!(ran.code, 0);
    let lines = ran.lines();
    assert_eq!(
        ran.out.lines().next().unwrap(),
        concat!(
            r#"{"message_id":"m-1","requests":[{"method":"POST","path":"/web/projects/<public_key>/batch","body":"#,
            r#"{"email":"ana@acme.dev","traits":{},"events":[{"type":"track","event":"A","properties":"#,
            r#"{"email":"ana@acme.dev","n":1e21},"sent_at":"2026-01-02T03:04:05Z","message_id":"m-1"}]},"mapping":"Track Calls"}],"mappings":[{"mapping":"Track Calls","matched":true},"#,
            r#"{"mapping":"Identify Calls","matched":false,"why":"type = \"identify\" does not hold"}]}"#
        )
    );
    assert_eq!(lines[1]["message_id"], Value::Null);
    assert_eq!(lines[1]["invalid"]["code"], "not_json");
    assert_says(lines[1]["invalid"]["text"].as_str().unwrap(), &["line 2, column 1"]);
    assert_eq!(
        (&lines[2]["message_id"], &lines[2]["skipped"]["code"]),
        (&json!("m-2"), &json!("no_mapping"))
    );
    assert_eq!(
        (&lines[3]["message_id"], &lines[3]["invalid"]["code"]),
        (&json!("m-3"), &json!("invalid_field"))
    );
    assert_eq!(lines[4]["message_id"], lines[4]["requests"][0]["body"]["events"][0]["message_id"]);
    assert_eq!(setup.run_with(&["map"], &input).lines()[4]["message_id"], lines[4]["message_id"]);
    assert_eq!(setup.run(&["map", "/nonexistent.json"]).code, 66);
    assert!(!setup.outbox().exists());
}

const MAPPINGS: &str = r#"
[[mapping]]
preset = "Track Calls"
name = "Pricing"
trigger = 'type = "track" and event = "Pricing Viewed"'

[[mapping]]
preset = "Group Calls"
fields = { domain = { "@path" = "$.traits.website" } }
"#;

fn with_mappings(text: &str) -> Setup {
    let mut setup = Setup::new();
    setup.set_tables(text);
    setup
}

#[test]
fn map_says_which_mappings_match_and_why_the_others_do_not() {
    let setup = with_mappings(MAPPINGS);
    let events = r#"{"type":"track","event":"Pricing Viewed","messageId":"a","properties":{"email":"ana@acme.dev"}}
{"type":"track","event":"Other","messageId":"b","integrations":{"Koala":false}}
{"type":"group","messageId":"c","groupId":"g","traits":{"website":{"no":"text"}}}
"#;
    let ran = setup.run_with(&["map"], events);
    let lines = ran.lines();
    assert_eq!(lines[0]["requests"][0]["mapping"], "Pricing");
    assert_eq!(lines[0]["mappings"][0]["matched"], true);
    assert_eq!(lines[0]["mappings"][1]["why"], "type = \"group\" does not hold");
    assert_eq!(lines[1]["mappings"][0]["why"], "event = \"Pricing Viewed\" does not hold");
    assert_eq!(lines[1]["skipped"]["code"], "no_mapping");
    assert_eq!(lines[2]["mappings"][1]["invalid"]["code"], "invalid_field");
    assert_eq!(lines[2]["invalid"]["code"], "invalid_field");
    assert!(lines[1]["warning"].as_str().unwrap().contains("Koala (Cloud)"));
    assert_says(&ran.err, &["warning: 1 event, first b: ", "which is not this one"]);
}

#[test]
fn map_compares_with_expected_output() {
    let setup = with_mappings(MAPPINGS);
    let event = |email: &str| {
        format!(
            r#"{{"type":"track","event":"Pricing Viewed","messageId":"a","timestamp":"2026-01-02T03:04:05Z","properties":{{"email":"{email}"}}}}"#
        )
    };
    let expected = setup.path("expected.jsonl");
    let expect = ["map", "--expect", expected.to_str().unwrap()];
    std::fs::write(&expected, setup.run_with(&["map"], &event("ana@acme.dev")).out).unwrap();
    let ran = setup.run_with(&expect, &event("ana@acme.dev"));
    assert_eq!((ran.code, ran.out.as_str()), (0, "1 event as expected\n"));
    let ran = setup.run_with(&expect, &event("bo@acme.dev"));
    assert_eq!(ran.code, 1);
    assert_says(
        &ran.out,
        &["line 1, a: requests[0].body", "-   \"email\": \"ana@acme.dev\"", "+   \"email\": \"bo@"],
    );
    std::fs::write(&expected, "\n{half").unwrap();
    let ran = setup.run_with(&expect, &event("ana@acme.dev"));
    assert_eq!(ran.code, 65);
    assert_says(&ran.err, &["expected.jsonl:2: not JSON"]);
    let ran = setup.run_with(&["map", "--expect", "/none"], "");
    assert_eq!(ran.code, 66, "{ran:?}");
}

#[test]
fn check_names_mappings_that_can_never_work() {
    let ran = with_mappings(MAPPINGS).run(&["check", "--config-only"]);
    assert_says(&ran.out, &["mappings", "Pricing, Group Calls"]);
    let text = r#"
[[mapping]]
preset = "Track Calls"
name = "Never"
trigger = 'event = "a" and event = "b"'

[[mapping]]
preset = "Track Calls"
fields = { event = "", message_id = "one", properties = "text" }

[[mapping]]
preset = "Group Calls"
fields = { domain = "" }
"#;
    let ran = with_mappings(text).run(&["check", "--config-only"]);
    assert_eq!(ran.code, 1);
    assert_says(
        &ran.out,
        &[
            "\"Never\": it never matches: event = \"a\" and event = \"b\" never both hold",
            "its field event is always empty, and track needs it",
            "its field message_id is the same for every event",
            "its field properties must be an object, and is a string",
            "neither domain nor account_id says which account it is",
        ],
    );
}

#[test]
fn a_duration_without_its_equals_sign_is_explained() {
    let setup = Setup::new();
    let ran = setup.run(&["send", "--wait", "5s", "events.jsonl"]);
    assert_eq!(ran.code, 66, "{ran:?}");
    assert_says(&ran.err, &["cannot read 5s", "write --wait=5s"]);
}

#[test]
fn warnings_come_in_the_order_of_the_input() {
    let setup = Setup::new();
    let events = r#"{"type":"track","properties":{"email":"ana@acme.dev"}}
{"type":"trak"}
{"type":"track","properties":{"email":"bob@acme.dev"}}
"#;
    let ran = setup.run_with(&["send"], events);
    assert_eq!(ran.code, 0, "{ran:?}");
    let failing = ran.err.find("2 events will fail (the first is stdin:1)").unwrap();
    let skipped = ran.err.find("1 event will be skipped (stdin:2): no_mapping: no mapping selects").unwrap();
    assert!(failing < skipped, "{}", ran.err);
}

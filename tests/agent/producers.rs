//! Events in the spellings and shapes of other producers: what is sent of them, and what people are told.

use crate::common::agent::TestAgent;
use crate::common::setup::{Setup, assert_says};
use koala_agent::receiver::Faults;
use serde_json::{Value, json};
use std::fs;

const TIMESTAMPS: &str = include_str!("cases/m2-producer-timestamps.jsonl");
const RUDDERSTACK: &str = include_str!("cases/m6-rudder-identify.jsonl");

/// What `map` prints of events under these mappings, a line each.
fn mapped(mappings: &str, events: &str) -> Vec<Value> {
    let setup = Setup::new();
    fs::write(setup.config_file(), mappings).unwrap();
    let ran = setup.run_with(&["map"], events);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    ran.lines()
}

#[test]
fn a_time_in_another_spelling_is_completed_and_said_so() {
    let must = "timestamp must be a date and time such as 2026-01-02T03:04:05Z";
    let lines = mapped("", TIMESTAMPS);
    let wanted = [
        ("p1", Ok("2026-03-27T09:53:00Z"), Some("is completed to 2026-03-27T09:53:00Z")),
        ("p2", Ok("2026-03-27T09:53:59.996+01:00"), Some("is completed to")),
        ("p3", Ok("2026-03-27T09:53:59+01:00"), Some("is completed to")),
        ("p4", Ok("2026-03-27T08:53:59.996Z"), Some("timestamp 1774601639996 is completed to")),
        ("p5", Ok("2026-03-27T08:53:59.996Z"), Some("timestamp 1774601639.996 is completed to")),
        ("p6", Err(format!("{must}, and is a day without a time")), None),
        ("p7", Ok("2026-03-27T09:53:59.996Z"), Some("is completed to")),
        ("p8", Err(format!("{must}, and has the hour 24: write 00:00 of the next day")), None),
        ("p9", Ok("2026-03-27T09:53:59Z"), Some("originalTimestamp is used")),
        ("p10", Ok("2026-03-27T09:53:59Z"), Some("is completed to")),
        ("p11", Ok("2026-03-27T09:53:59Z"), Some("is completed to")),
    ];
    assert_eq!(lines.len(), wanted.len());
    for (line, (id, want, note)) in lines.iter().zip(wanted) {
        assert_eq!(line["message_id"], id);
        match want {
            Ok(at) => assert_eq!(line["requests"][0]["body"]["events"][0]["sent_at"], at, "{line}"),
            Err(text) => assert_eq!(line["invalid"], json!({"code": "invalid_field", "text": text})),
        }
        match note {
            Some(note) => assert_says(line["note"].as_str().unwrap(), &[note]),
            None => assert_eq!(line["note"], Value::Null, "{line}"),
        }
    }
}

/// A mapping's directives see the completed time too.
#[test]
fn a_mapping_takes_the_completed_time() {
    let mapping = r#"
[[mapping]]
preset = "Track Calls"
[mapping.fields]
sent_at = { "@path" = "$.timestamp" }
properties = { email = "a@x.test", at = { "@path" = "$.timestamp" } }
"#;
    let event = r#"{"type":"track","event":"E","messageId":"p4","timestamp":1774601639996}"#;
    let item = &mapped(mapping, event)[0]["requests"][0]["body"]["events"][0];
    let at = "2026-03-27T08:53:59.996Z";
    assert_eq!((&item["sent_at"], &item["properties"]["at"]), (&json!(at), &json!(at)));
}

#[test]
fn show_says_how_the_time_was_completed() {
    let mut agent = TestAgent::in_process(Faults { offline: true, ..Faults::default() });
    agent.start();
    agent.drop_file("1.jsonl", TIMESTAMPS);
    agent.until_status("all are stored", |status| status.outbox.pending + status.outbox.failed == 11);
    assert_eq!(agent.status().outbox.failed, 2);
    let shown = agent.run(&["show", "p1"]);
    let note = r#"timestamp "2026-03-27T09:53Z" is completed to 2026-03-27T09:53:00Z"#;
    assert_says(&shown.out, &["note", note, r#""sent_at": "2026-03-27T09:53:00Z""#]);
    let shown: Value = serde_json::from_str(&agent.run(&["show", "--json", "p1"]).out).unwrap();
    assert_eq!(shown["note"], note);
    assert_eq!(shown["body"]["timestamp"], "2026-03-27T09:53Z");
    agent.receiver.set_faults(Faults::default());
    agent.until_status("the others are delivered", |status| status.outbox.delivered == 9);
    agent.stop();
}

#[test]
fn rudderstacks_shape_is_told_what_would_take_it() {
    let lines = mapped("", RUDDERSTACK);
    let said: Vec<&Value> = lines.iter().map(|line| &line["skipped"]["text"]).collect();
    let profile = "7b1ab1d6-5b0f-4a7b-9b63-1f2f3a4b5c6d";
    assert_says(
        said[0].as_str().unwrap(),
        &["email is in context.traits, which Identify Calls does not read", "koala-agent-mappings(7)"],
    );
    for (n, context) in
        [(1, json!({"traits": {"email": "ana@x.test"}, "source": "koala-agent"})), (2, json!({"traits": {}}))]
    {
        let body = &lines[n]["requests"][0]["body"];
        let item = if n == 1 { &body["identifies"][0] } else { &body["events"][0] };
        assert_eq!((&body["profile_id"], &item["context"]), (&json!(profile), &context));
        assert!(!body.to_string().contains("ko_profile_id"), "{body}");
    }
    assert_says(said[3].as_str().unwrap(), &["type is 'Identify': write it in lower case"]);
    assert_says(said[4].as_str().unwrap(), &["type is 'TRACK': write it in lower case"]);
}

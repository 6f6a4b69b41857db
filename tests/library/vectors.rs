//! Eighty events with the results of Segment's own destination. Where the results here differ, this file names the
//! departure, vector by vector; everything else must agree.

use crate::common::vectors::{COMPLETED, Expect, bodies, body, outcome, vectors};
use koala_agent::item::Disposition;
use koala_agent::reason::Code;
use serde_json::{Value, json};

/// Departure 1: the event is completed first. Such a vector is invalid at Segment; here it becomes this.
fn completed(name: &str) -> Result<Value, Code> {
    let identify = |message_id, sent_at| {
        json!({"email": "ida@acme.dev", "traits": {"email": "ida@acme.dev"}, "identifies": [{
            "type": "identify", "email": "ida@acme.dev", "traits": {"email": "ida@acme.dev"},
            "sent_at": sent_at, "context": {"source": "koala-agent"}, "message_id": message_id}]})
    };
    let track = |sent_at| {
        json!({"email": "a@acme.dev", "traits": {}, "events": [{
            "type": "track", "email": "a@acme.dev", "event": "Workspace Created",
            "sent_at": sent_at, "message_id": "msg-t1"}]})
    };
    match name {
        "identify-missing-messageId" => Ok(identify("completed", "2024-03-05T14:07:09.123Z")),
        "identify-missing-timestamp" => Ok(identify("msg-i1", "2024-03-05T14:07:09.123Z")),
        "track-missing-timestamp" => Ok(track("2024-03-05T14:07:09.123Z")),
        // 1709647629123 and "2024-03-05T14:07Z" in RFC 3339.
        "ts-epoch-millis-number-invalid" => Ok(track("2024-03-05T14:07:09.123Z")),
        "ts-minutes-only-invalid" => Ok(track("2024-03-05T14:07:00Z")),
        "track-analytics-js-but-invalid-is-invalid" => Err(Code::BrowserLibrary),
        "track-missing-messageId-no-identity-still-invalid" => Err(Code::NoIdentity),
        _ => panic!("{name} is not completed"),
    }
}

/// Departure 4: an identify's `context.source` is this agent's.
fn with_own_source(mut body: Value) -> Value {
    for item in body.get_mut("identifies").and_then(Value::as_array_mut).into_iter().flatten() {
        let source = &mut item["context"]["source"];
        assert_eq!(source, "segment-cloud");
        *source = "koala-agent".into();
    }
    body
}

#[test]
fn every_vector_agrees_except_the_named_departures() {
    let (mut same, mut departed) = (0, 0);
    for vector in vectors() {
        let name = vector.name.as_str();
        let got = outcome(vector.event);
        if COMPLETED.contains(&name) {
            let want = completed(name);
            assert!(matches!(vector.expect, Expect::Invalid(_)), "{name}");
            match (want, got) {
                (Ok(want), Disposition::Send(_)) => assert_eq!(body(vector.event), want, "{name}"),
                (Err(want), Disposition::Skip(reason)) => assert_eq!(reason.code, want, "{name}"),
                (_, got) => panic!("{name}: {got:?}"),
            }
            departed += 1;
            continue;
        }
        match (vector.expect, got) {
            // Departure 3, in a test of its own.
            (Expect::Requests(_), Disposition::Send(_)) if name.starts_with("jsnum-") => departed += 1,
            (Expect::Requests(requests), Disposition::Send(_)) => {
                assert_eq!(requests.len(), 1, "{name}");
                assert_eq!(requests[0].path, "/web/projects/pk_test_123/batch");
                let want = requests.into_iter().next().unwrap().body;
                assert_eq!(body(vector.event), with_own_source(want), "{name}");
                same += 1;
            }
            (Expect::Skipped(true), Disposition::Skip(_)) => same += 1,
            (Expect::Invalid(_), Disposition::Fail(reason)) => {
                assert_eq!(reason.code, Code::InvalidField);
                same += 1;
            }
            (want, got) => panic!("{name}: {got:?} instead of {want:?}"),
        }
    }
    println!("{same} vectors agree, {departed} depart by name");
    assert_eq!((same, departed), (72, 8));
}

#[test]
fn numbers_keep_their_text_where_javascript_would_change_it() {
    let vectors = vectors();
    let floats = vectors.iter().find(|v| v.name == "jsnum-floats").unwrap();
    let want = concat!(
        r#"{"email":"n@acme.dev","traits":{},"events":[{"type":"track","email":"n@acme.dev","event":"Numbers","#,
        r#""properties":{"a":1.50,"b":1.0,"c":-0.25,"d":1e3,"e":1E-7,"f":123456789.125,"g":0.1},"#,
        r#""sent_at":"2024-03-05T14:07:09Z","message_id":"m-n"}]}"#
    );
    assert_eq!(bodies(outcome(floats.event)), [want]);
}

#[test]
fn every_error_of_an_invalid_vector_names_the_member() {
    let said: Vec<_> = vectors()
        .iter()
        .filter_map(|v| match outcome(v.event) {
            Disposition::Fail(reason) => Some((v.name.clone(), reason.text)),
            _ => None,
        })
        .collect();
    let date_time = "timestamp must be a date and time such as 2026-01-02T03:04:05Z";
    let day = format!("{date_time}, and is a day without a time");
    let hour_24 = format!("{date_time}, and has the hour 24: write 00:00 of the next day");
    let all = format!("event is missing; email must be a string but is an object; {date_time}");
    let want = [
        ("track-email-object-in-traits-invalid", "traits.email must be a string but is an object"),
        ("track-email-two-element-array-invalid", "traits.email must be a string but is an array"),
        ("track-missing-event-name", "event is missing"),
        ("track-empty-event-name", "event is missing"),
        ("track-event-name-object-invalid", "event must be a string but is an object"),
        ("track-missing-everything", "event is missing"),
        ("track-properties-string-invalid", "properties must be an object but is a string"),
        ("track-context-array-invalid", "context must be an object but is an array"),
        ("ts-date-only-invalid", &day),
        ("ts-feb-30-invalid", date_time),
        ("ts-hour-24-invalid", &hour_24),
        ("track-missing-event-and-bad-email-and-bad-timestamp", &all),
    ];
    assert_eq!(said, want.map(|(name, text)| (name.to_string(), text.to_string())));
}

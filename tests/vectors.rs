//! What Segment's own destination made of eighty events, and what is made of them here. Where the two differ it is
//! by a departure that this file names, vector by vector; everything else must agree.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test")]

mod common;
#[path = "common/mapped.rs"]
mod mapped;

use common::World;
use koala_agent::clock::Timestamp;
use koala_agent::event::{Event, MessageId};
use koala_agent::item::{Disposition, Item};
use koala_agent::koala::batch::Batch;
use koala_agent::reason::Code;
use koala_agent::receiver::{Faults, HeldItem, HeldKind};
use mapped::map;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::io::Write;
use std::process::{Command, Stdio};

#[derive(Deserialize)]
struct Vector<'a> {
    name: String,
    #[serde(borrow)]
    event: &'a RawValue,
    expect: Expect,
}

#[derive(Deserialize, Debug)]
#[serde(rename_all = "lowercase")]
enum Expect {
    Requests(Vec<Request>),
    Skipped(bool),
    /// Segment's words, which the faults here are not told in.
    Invalid(IgnoredAny),
}

#[derive(Deserialize, Debug)]
struct Request {
    path: String,
    body: Value,
}

fn vectors() -> Vec<Vector<'static>> {
    include_str!("vectors/koala.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The moment that a completed event has.
const COMPLETED: Timestamp = Timestamp(1_709_647_629_123);

fn outcome(event: &RawValue) -> Disposition<Box<Item>> {
    let event = Event::parse(event.get()).unwrap();
    let id = event.message_id().unwrap().unwrap_or_else(|| MessageId::new("completed".into()).unwrap());
    map(&event, &id, COMPLETED)
}

/// The requests' bodies, one event a request, as they go out.
fn bodies(outcome: Disposition<Box<Item>>) -> Vec<String> {
    let Disposition::Send(item) = outcome else { panic!("nothing to send: {outcome:?}") };
    vec![Batch::new(*item).body()]
}

fn body(event: &RawValue) -> Value {
    let bodies = bodies(outcome(event));
    assert_eq!(bodies.len(), 1);
    serde_json::from_str(&bodies[0]).unwrap()
}

/// Departure 1: the event is completed first. Such a vector is invalid at Segment; here it becomes this.
fn completed(name: &str) -> Option<Result<Value, Code>> {
    let identify = |message_id, sent_at| {
        json!({"email": "ida@acme.dev", "traits": {"email": "ida@acme.dev"}, "identifies": [{
            "type": "identify", "email": "ida@acme.dev", "traits": {"email": "ida@acme.dev"},
            "sent_at": sent_at, "context": {"source": "koala-agent"}, "message_id": message_id}]})
    };
    Some(match name {
        "identify-missing-messageId" => Ok(identify("completed", "2024-03-05T14:07:09.123Z")),
        "identify-missing-timestamp" => Ok(identify("msg-i1", "2024-03-05T14:07:09.123Z")),
        "track-missing-timestamp" => Ok(json!({"email": "a@acme.dev", "traits": {}, "events": [{
            "type": "track", "email": "a@acme.dev", "event": "Workspace Created",
            "sent_at": "2024-03-05T14:07:09.123Z", "message_id": "msg-t1"}]})),
        "track-analytics-js-but-invalid-is-invalid" => Err(Code::BrowserLibrary),
        "track-missing-messageId-no-identity-still-invalid" => Err(Code::NoIdentity),
        _ => return None,
    })
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
fn the_vectors_agree_but_for_the_departures() {
    let (mut same, mut departed) = (0, 0);
    for vector in vectors() {
        let name = vector.name.as_str();
        let got = outcome(vector.event);
        if let Some(want) = completed(name) {
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
    assert_eq!((same, departed), (74, 6));
}

#[test]
fn numbers_keep_the_text_that_javascript_would_change() {
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
fn every_fault_of_an_invalid_vector_is_told_by_the_events_own_member() {
    let said: Vec<_> = vectors()
        .iter()
        .filter_map(|v| match outcome(v.event) {
            Disposition::Fail(reason) => Some((v.name.clone(), reason.text)),
            _ => None,
        })
        .collect();
    let date_time = "timestamp must be a date and time such as 2026-01-02T03:04:05Z";
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
        ("ts-date-only-invalid", date_time),
        ("ts-epoch-millis-number-invalid", date_time),
        ("ts-feb-30-invalid", date_time),
        ("ts-hour-24-invalid", date_time),
        ("ts-minutes-only-invalid", date_time),
        ("track-missing-event-and-bad-email-and-bad-timestamp", &all),
    ];
    assert_eq!(said, want.map(|(name, text)| (name.to_string(), text.to_string())));
}

/// A request's body as the receiver got it, from the one item in it.
fn received(held: &HeldItem) -> Value {
    let mut body = serde_json::Map::new();
    for name in ["profile_id", "email", "traits", "ip"] {
        if let Some(json) = held.top(name) {
            body.insert(name.into(), serde_json::from_str(json).unwrap());
        }
    }
    let items = if held.kind == HeldKind::Identify { "identifies" } else { "events" };
    body.insert(items.into(), json!([serde_json::from_str::<Value>(held.item.get()).unwrap()]));
    Value::Object(body)
}

/// What the daemon makes of an event must be what the mapping makes of it: the body at the receiver, or the state
/// and the code. The id and the time by which an event is completed are the daemon's own.
#[tokio::test(flavor = "multi_thread")]
async fn the_vectors_come_out_of_the_daemon_as_the_mapping_makes_them() {
    for vector in vectors() {
        let name = vector.name.as_str();
        let mut world = World::new(Faults::default()).await;
        world.start().await;
        world.drop_file(&format!("{name}.json"), vector.event.get());
        world.until(name, |w| w.status().reasons.len() + w.receiver.events().len() > 0).await;
        match outcome(vector.event) {
            Disposition::Send(_) => {
                world.until(name, |w| w.status().outbox.delivered == 1).await;
                let (mut got, mut want) = (received(&world.receiver.events()[0]), body(vector.event));
                for body in [&mut got, &mut want] {
                    for items in ["events", "identifies"] {
                        let Some(item) = body.get_mut(items).map(|items| &mut items[0]) else { continue };
                        if name.contains("missing-messageId") {
                            item["message_id"].take();
                        }
                        if name.contains("missing-timestamp") {
                            item["sent_at"].take();
                        }
                    }
                }
                assert_eq!(got, want, "{name}");
            }
            Disposition::Skip(reason) | Disposition::Fail(reason) => {
                let skipped = matches!(outcome(vector.event), Disposition::Skip(_));
                let found = &world.status().reasons[0];
                let state = if skipped { "skipped" } else { "failed" };
                assert_eq!(
                    (found.state.as_str(), found.code.as_str()),
                    (state, reason.code.as_str()),
                    "{name}"
                );
            }
        }
        assert_eq!(world.status().spool.rejected_files, 0, "{name}");
        world.stop().await;
    }
}

/// `map` says the same, one line an event in the order of the input, without key or database.
#[test]
fn the_vectors_come_out_of_the_map_command_as_the_mapping_makes_them() {
    let lines: String = vectors().iter().map(|vector| format!("{}\n", vector.event.get())).collect();
    let mut command = Command::new(env!("CARGO_BIN_EXE_koala-agent"));
    let mut child =
        command.env_clear().arg("map").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::spawn(move || stdin.write_all(lines.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let said: Vec<Value> =
        output.stdout.split_inclusive(|b| *b == b'\n').map(|l| serde_json::from_slice(l).unwrap()).collect();
    assert_eq!(said.len(), vectors().len());
    for (vector, said) in vectors().into_iter().zip(said) {
        let name = vector.name.as_str();
        match outcome(vector.event) {
            Disposition::Send(_) => {
                assert_eq!(said["requests"][0]["method"], "POST");
                assert_eq!(said["requests"][0]["path"], "/web/projects/<public_key>/batch");
                assert_eq!(said["requests"].as_array().unwrap().len(), 1);
                if completed(name).is_none() {
                    assert_eq!(said["requests"][0]["body"], body(vector.event), "{name}");
                }
            }
            Disposition::Skip(reason) => assert_eq!(said["skipped"]["code"], reason.code.as_str(), "{name}"),
            Disposition::Fail(reason) => assert_eq!(said["invalid"]["text"], reason.text, "{name}"),
        }
    }
}

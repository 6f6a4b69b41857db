//! Segment's vectors through the whole agent and through the command `map`.

use crate::common::agent::TestAgent;
use crate::common::setup::Setup;
use crate::common::vectors::{COMPLETED, body, outcome, vectors};
use koala_agent::item::Disposition;
use koala_agent::receiver::{Faults, HeldItem, HeldKind};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;

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

/// The agent makes of an event exactly what the mapping makes of it: the body at the receiver, or the state
/// and the code. The id and the time by which an event is completed are the agent's own.
#[test]
fn the_agent_sends_every_vector_as_the_mapping_makes_it() {
    for vector in vectors() {
        let name = vector.name.as_str();
        let mut agent = TestAgent::in_process(Faults::default());
        agent.start();
        agent.drop_file(format!("{name}.json"), vector.event.get());
        agent.until(name, |agent| agent.status().reasons.len() + agent.receiver.events().len() > 0);
        match outcome(vector.event) {
            Disposition::Send(_) => {
                agent.until(name, |agent| agent.status().outbox.delivered == 1);
                let (mut got, mut want) = (received(&agent.receiver.events()[0]), body(vector.event));
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
                let found = &agent.status().reasons[0];
                let state = if skipped { "skipped" } else { "failed" };
                assert_eq!(
                    (found.state.as_str(), found.code.as_str()),
                    (state, reason.code.as_str()),
                    "{name}"
                );
            }
        }
        assert_eq!(agent.status().spool.rejected_files, Some(0), "{name}");
        agent.stop();
    }
}

/// `map` says the same, one line an event in the order of the input, without key or database.
#[test]
fn map_prints_every_vector_as_the_mapping_makes_it() {
    let lines: String = vectors().iter().map(|vector| format!("{}\n", vector.event.get())).collect();
    let ran = Setup::new().run_with(&["map"], &lines);
    assert_eq!(ran.code, 0, "{ran:?}");
    let said = ran.lines();
    assert_eq!(said.len(), vectors().len());
    for (vector, said) in vectors().into_iter().zip(said) {
        let name = vector.name.as_str();
        match outcome(vector.event) {
            Disposition::Send(_) => {
                assert_eq!(said["requests"][0]["method"], "POST");
                assert_eq!(said["requests"][0]["path"], "/web/projects/<public_key>/batch");
                assert_eq!(said["requests"].as_array().unwrap().len(), 1);
                if !COMPLETED.contains(&name) {
                    assert_eq!(said["requests"][0]["body"], body(vector.event), "{name}");
                }
            }
            Disposition::Skip(reason) => assert_eq!(said["skipped"]["code"], reason.code.as_str(), "{name}"),
            Disposition::Fail(reason) => assert_eq!(said["invalid"]["text"], reason.text, "{name}"),
        }
    }
}

/// The fields of mappings that Segment's code was run on, in a mapping as Segment exports it; the traps are refused.
#[test]
fn map_fills_every_field_as_segment_does() {
    const VECTORS: &str = include_str!("../vectors/mapping-more.jsonl");
    let vectors = || VECTORS.lines().map(parsed);
    let is_trap = |vector: &Value| vector["name"].as_str().unwrap().starts_with("quirk-");
    let is_taken = |vector: &Value| vector["expect"].is_object() && !is_trap(vector);
    let definition =
        |vector: Value| (vector["name"].as_str().unwrap().to_owned(), vector["mapping"]["v"].clone());
    let mapping = |fields: Vec<(String, Value)>| {
        let settings = json!({"properties": Value::from_iter(fields), "email": "ana@acme.dev"});
        json!([{"name": "all", "trigger": "type = \"track\"", "actionSlug": "track", "settings": settings}])
    };
    let with = |mapping: Value| {
        let mut setup = Setup::new();
        fs::write(setup.path("mappings.json"), mapping.to_string()).unwrap();
        setup.set("mappings_file = \"mappings.json\"");
        setup
    };
    // As written: a Value would sort its members. Every vector has the same.
    let members: BTreeMap<&str, &RawValue> = serde_json::from_str(VECTORS.lines().next().unwrap()).unwrap();
    let event = members["event"].get();
    let setup = with(mapping(vectors().filter(is_taken).map(definition).collect()));
    let ran = setup.run_with(&["map"], event);
    assert_eq!(ran.code, 0, "{ran:?}");
    let properties = &ran.lines()[0]["requests"][0]["body"]["events"][0]["properties"];
    for vector in vectors().filter(is_taken) {
        let name = vector["name"].as_str().unwrap();
        assert_eq!(properties[name], vector["expect"]["v"], "{name}");
    }
    for vector in vectors().filter(|vector| !is_taken(vector)) {
        let setup = with(mapping(vec![definition(vector.clone())]));
        let ran = setup.run_with(&["map"], event);
        let is_invalid = ran.code == 0 && ran.lines()[0]["invalid"]["code"] == "invalid_field";
        assert!(ran.code == 78 || is_invalid, "{}: {ran:?}", vector["name"]);
    }
}

fn parsed(json: &str) -> Value {
    serde_json::from_str(json).unwrap()
}

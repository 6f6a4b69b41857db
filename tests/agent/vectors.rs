//! Segment's vectors through the whole agent and through the command `map`.

use crate::common::vectors::{COMPLETED, body, outcome, vectors};
use crate::common::world::World;
use koala_agent::mapping::Outcome;
use koala_agent::receiver::{Faults, Held, Kind};
use serde_json::{Value, json};
use std::io::Write;
use std::process::{Command, Stdio};

/// A request's body as the receiver got it, from the one item in it.
fn received(held: &Held) -> Value {
    let mut body = serde_json::Map::new();
    for name in ["profile_id", "email", "traits", "ip"] {
        if let Some(json) = held.top(name) {
            body.insert(name.into(), serde_json::from_str(json).unwrap());
        }
    }
    let items = if held.kind == Kind::Identify { "identifies" } else { "events" };
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
            Outcome::Send(_) => {
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
            Outcome::Skip(reason) | Outcome::Invalid(reason) => {
                let skipped = matches!(outcome(vector.event), Outcome::Skip(_));
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
            Outcome::Send(_) => {
                assert_eq!(said["requests"][0]["method"], "POST");
                assert_eq!(said["requests"][0]["path"], "/web/projects/<public_key>/batch");
                assert_eq!(said["requests"].as_array().unwrap().len(), 1);
                if !COMPLETED.contains(&name) {
                    assert_eq!(said["requests"][0]["body"], body(vector.event), "{name}");
                }
            }
            Outcome::Skip(reason) => assert_eq!(said["skipped"]["code"], reason.code.as_str(), "{name}"),
            Outcome::Invalid(reason) => assert_eq!(said["invalid"]["text"], reason.text, "{name}"),
        }
    }
}

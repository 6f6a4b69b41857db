//! What Segment's own code makes of a hundred and twenty-one mappings, and what is made of them here: the same, or a
//! refusal where the mapping is a trap or wrong.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test")]

use koala_agent::mapping::directive::{Field, Source};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use serde_json::value::RawValue;

#[derive(Deserialize)]
struct Vector<'a> {
    name: String,
    #[serde(borrow)]
    mapping: &'a RawValue,
    #[serde(borrow, alias = "event")]
    payload: &'a RawValue,
    expect: Option<Value>,
    /// Segment's words, which the faults here are not told in.
    #[allow(dead_code)]
    invalid: Option<IgnoredAny>,
    stage: Option<String>,
}

#[test]
fn the_answer_is_segments_or_a_refusal() {
    let (mut same, mut refused, mut failed) = (0, 0, 0);
    for line in include_str!("vectors/mapping.jsonl").lines() {
        let vector: Vector = serde_json::from_str(line).unwrap();
        let name = &vector.name;
        let field = match Field::parse(vector.mapping.get()) {
            Ok(field) => field,
            Err(errors) => {
                assert!(vector.expect.is_none() || name.starts_with("quirk-"), "{name}: {errors:?}");
                println!("{name}: {}", errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "));
                refused += 1;
                continue;
            }
        };
        match (field.resolve(&Source::new(vector.payload.get(), None)), vector.expect) {
            (Ok(json), Some(want)) => {
                let value: Value = serde_json::from_str(&json.unwrap()).unwrap();
                assert_eq!(value, want, "{name}");
                same += 1;
            }
            // What depends on the event can only be told of the event.
            (Err(fault), None) => {
                assert_eq!(vector.stage.as_deref(), Some("resolve"), "{name} is taken and fails: {fault}");
                println!("{name}: {fault}");
                failed += 1;
            }
            (Ok(json), None) => panic!("{name} is taken: {json:?}"),
            (Err(fault), Some(_)) => panic!("{name} fails: {fault}"),
        }
    }
    println!("{same} the same, {refused} refused, {failed} fail as at Segment");
    assert_eq!(same + refused + failed, 121);
}

//! A hundred and ninety-seven mappings with the results of Segment's own code: the results here are the same, or an
//! error where the mapping is a trap or wrong.
//!
//! `mapping-more.jsonl` was made by running `@segment/actions-core` 3.170.0 in UTC, with liquidjs 10.25.7 and 10.30.1, the
//! oldest and the newest that it takes; their results differ only where a name begins with `quirk-liquid-`.

use koala_agent::mapping::directive::{Evaluator, Field};
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
fn the_result_is_segments_or_an_error() {
    let (mut same, mut refused, mut failed) = (0, 0, 0);
    let all = [include_str!("../vectors/mapping.jsonl"), include_str!("../vectors/mapping-more.jsonl")];
    for line in all.iter().flat_map(|vectors| vectors.lines()) {
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
        match (field.evaluate(&Evaluator::new(vector.payload.get(), None)), vector.expect) {
            (Ok(json), Some(want)) => {
                let value: Value = serde_json::from_str(&json.unwrap()).unwrap();
                assert_eq!(value, want, "{name}");
                same += 1;
            }
            // An error that depends on the event shows only when the event is mapped.
            (Err(fault), Some(_)) if name.starts_with("quirk-") => {
                println!("{name}: {fault}");
                failed += 1;
            }
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
    assert_eq!(same + refused + failed, 121 + 76);
}

/// Each would fill the memory, or go on for minutes.
#[test]
fn a_mapping_that_multiplies_an_event_fails() {
    let long = "a".repeat(32_000);
    let leaves: Vec<String> = (0..20_000).map(|n| format!("\"{n}\":0")).collect();
    let event = format!(
        r#"{{"a":"{long}","deep":{{"{long}":{{{leaves}}}}},"list":[{list}],"braces":"{braces}}}"}}"#,
        leaves = leaves.join(","),
        list = vec!["0"; 200_000].join(","),
        braces = "{".repeat(1 << 19),
    );
    let times = |n: usize, definition: &str| vec![definition; n].join(",");
    let doubled = (0..9).fold(r#"{"@path":"$.a"}"#.to_owned(), |inner, _| {
        let twice = r#"{"@template":"{{v}}{{v}}"}"#;
        format!(r#"{{"@transform":{{"apply":{{"v":{inner}}},"mapping":{twice}}}}}"#)
    });
    for definition in [
        r#"{"@replace":{"value":{"@path":"$.a"},"pattern":"a","replacement":"$`$`$'"}}"#.to_owned(),
        format!(r#"{{"@template":"{}"}}"#, "{{a}}".repeat(100_000)),
        format!("[{}]", times(100_000, r#"{"@path":"$.a"}"#)),
        r#"{"@flatten":{"value":{"@path":"$.deep"},"separator":"."}}"#.to_owned(),
        format!(r#"{{"@arrayPath":["$.list",{{"x":[{}]}}]}}"#, times(500, r#"{"@path":"$.y"}"#)),
        doubled,
    ] {
        let began = std::time::Instant::now();
        let field = Field::parse(&definition).unwrap();
        let fault = field.evaluate(&Evaluator::new(&event, None)).expect_err("it is given up");
        assert!(fault.contains("1 MiB") || fault.contains("simpler"), "{fault}");
        assert!(began.elapsed().as_secs() < 60, "{:?} for {:.60}", began.elapsed(), definition);
    }
    let told = Field::parse(r#"{"@template":{"@path":"$.braces"}}"#).unwrap();
    assert!(told.evaluate(&Evaluator::new(&event, None)).is_ok());
}

/// Were it refused without a word, the preset's field would stand in its place.
#[test]
fn half_a_surrogate_pair_in_a_mapping_is_an_error() {
    for definition in [
        r#"{"@path":"$.a\ud800"}"#,
        r#"{"a":{"@template":"{{a}}\udfff"}}"#,
        r#"{"@replace":{"value":"a","pattern":"\ud800"}}"#,
    ] {
        let errors = Field::parse(definition).unwrap_err();
        assert!(errors[0].text.contains("surrogate"), "{definition}: {errors:?}");
    }
}

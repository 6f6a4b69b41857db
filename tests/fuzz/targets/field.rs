//! The definition of a field, then after a NUL the event that it is resolved against.

#![no_main]

use koala_agent::event::Event;
use koala_agent::mapping::directive::{Evaluator, Field, HashKey};
use libfuzzer_sys::fuzz_target;
use serde_json::value::RawValue;

/// For an input that has no event.
const EVENT: &str =
    r#"{"event":"A","properties":{"t":"b","n":-1.5,"o":{"p":[1,{"q":"r"}]},"z":null,"j":"[1]","e":""}}"#;
/// No value is larger.
const MAX_OUTPUT: usize = 1 << 20;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (definition, event) = text.split_once('\0').unwrap_or((text, EVENT));
    let field = match Field::parse(definition) {
        Ok(field) => field,
        Err(errors) => {
            return assert!(errors.iter().all(|error| !error.text.is_empty()) && !errors.is_empty());
        }
    };
    let event = Event::parse(event).unwrap_or_else(|_| Event::parse(EVENT).unwrap());
    let key = HashKey::new(b"0123456789abcdef").unwrap();
    match field.evaluate(&Evaluator::new(event.raw(), Some(&key))) {
        Ok(Some(json)) => {
            assert!(json.len() <= MAX_OUTPUT);
            serde_json::from_str::<&RawValue>(&json).expect("a value that is no JSON");
        }
        Ok(None) => {}
        Err(fault) => assert!(!fault.is_empty()),
    }
});

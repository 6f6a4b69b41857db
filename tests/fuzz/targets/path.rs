//! A path, then after a NUL the event that it is followed in; alone, in a template, and told by the event itself.

#![no_main]

use koala_agent::event::Event;
use koala_agent::mapping::directive::{Evaluator, Field};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

/// For an input that has no event.
const EVENT: &str = r#"{"a":{"b":["c",{"d e":"f","0":"g"}],"n":1e3,"z":null},"event":"A","$x":"y","":"h"}"#;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (path, event) = text.split_once('\0').unwrap_or((text, EVENT));
    let event = Event::parse(event).unwrap_or_else(|_| Event::parse(EVENT).unwrap());
    let found = value(&json!({ "@path": path }), &event);
    value(&json!({ "@template": path }), &event);
    let template = value(&json!({ "@template": format!("{{{{{path}}}}}") }), &event);
    if let (Some(Some(Value::String(found))), Some(Some(template))) = (&found, &template)
        && is_plain(path)
    {
        assert_eq!(Some(found.as_str()), template.as_str(), "the same path leads elsewhere in a template");
    }
    // What is read from the definition, and what a directive makes, is the same path.
    let made = value(&json!({ "@path": { "@literal": { "@template": path } } }), &event);
    if is_plain(path) {
        assert_eq!(found.flatten(), made.flatten());
    }
});

/// Whether a template takes the text between its braces as it is.
fn is_plain(path: &str) -> bool {
    !path.contains(['{', '}']) && !path.starts_with('$') && path.bytes().all(|b| b.is_ascii_graphic())
}

/// What the definition makes of the event; `None`: it is refused, or fails.
fn value(definition: &Value, event: &Event) -> Option<Option<Value>> {
    let field = Field::parse(&definition.to_string()).ok()?;
    let json = field.evaluate(&Evaluator::new(event.raw(), None)).ok()?;
    Some(json.map(|json| serde_json::from_str(&json).unwrap_or(Value::Null)))
}

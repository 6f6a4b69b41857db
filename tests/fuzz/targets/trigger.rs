//! A trigger, then after a NUL the event that it is asked about.

#![no_main]

use koala_agent::event::Event;
use koala_agent::mapping::trigger::Trigger;
use libfuzzer_sys::fuzz_target;

/// For an input that has no event.
const EVENT: &str =
    r#"{"type":"track","event":"A","userId":"u","properties":{"a":"b","n":-1.5,"o":{"p":[]},"z":null}}"#;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (text, event) = text.split_once('\0').unwrap_or((text, EVENT));
    let trigger = match Trigger::parse(text) {
        Ok(trigger) => trigger,
        Err(error) => {
            assert!((1..=text.chars().count() + 1).contains(&error.column), "{error}");
            assert!(!error.text.is_empty());
            return;
        }
    };
    assert_eq!(trigger.to_string(), text);
    let event = Event::parse(event).unwrap_or_else(|_| Event::parse(EVENT).unwrap());
    let unmet = trigger.unmet(&event);
    assert_eq!(trigger.matches(&event), unmet.is_none());
    assert!(unmet.is_none_or(|condition| !condition.is_empty() && text.contains(condition)), "{unmet:?}");
    if let Some(why) = trigger.contradiction() {
        assert!(unmet.is_some(), "it never matches, and does: {why}");
    }
});

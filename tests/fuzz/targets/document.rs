//! A document of the spool, from its bytes to the request that it makes, as the intake and the sender go.

#![no_main]

use koala_agent::agent::disposition;
use koala_agent::clock::Timestamp;
use koala_agent::event::{Event, Flaw, MessageId};
use koala_agent::item::Disposition;
use koala_agent::koala::batch::Batch;
use koala_agent::mapping::Mappings;
use koala_agent::spool::{Format, ReadEnd, ReadLimits, ReadPosition, ReadStep, Text, Values};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use serde_json::value::RawValue;
use std::io::Cursor;

const LIMITS: ReadLimits = ReadLimits { max_value: 1 << 20, max_event: 32 << 10, max_over_lines: 32 << 10 };

fuzz_target!(|bytes: &[u8]| {
    let text = Text::new(Box::new(Cursor::new(bytes.to_vec())), false);
    let mut values =
        Values::new(text, Some(bytes.len() as u64), Format::Document, LIMITS, ReadPosition::default());
    loop {
        let step = values.next_step(|event, _| {
            agrees(event, event.raw());
            judge(event.raw());
            Ok(())
        });
        match step {
            ReadStep::Event(()) | ReadStep::NoEvent(_) => {}
            ReadStep::Reject(part) | ReadStep::RejectUnlessGrowing(part) => placed(&part.flaw, bytes),
            ReadStep::End(ReadEnd::Unusable(flaw) | ReadEnd::UnusableRest(flaw)) => {
                return placed(&flaw, bytes);
            }
            ReadStep::End(_) => return,
        }
    }
});

/// A person who looks where a flaw points finds a place in the text.
fn placed(flaw: &Flaw, text: &[u8]) {
    let lines: Vec<&[u8]> = text.split(|b| *b == b'\n').collect();
    assert!((1..=lines.len()).contains(&flaw.line), "{flaw} of {} lines", lines.len());
    // At most the place after the line's end.
    assert!((1..=lines[flaw.line - 1].len() + 2).contains(&flaw.column), "{flaw}");
    assert!(!flaw.text.chars().any(char::is_control), "{flaw:?}");
}

/// Another reader of JSON sees the same members.
fn agrees(event: &Event, item: &str) {
    let Ok(Value::Object(members)) = serde_json::from_str(item) else { return };
    for (name, value) in &members {
        let ours: Value = serde_json::from_str(event.get(name).unwrap().get()).unwrap();
        assert_eq!(&ours, value, "{name}");
    }
}

fn judge(text: &str) {
    // A merge can only make it deeper by what an envelope adds, which is judged like any event's text.
    let Ok(event) = Event::parse(text) else { return };
    assert_eq!(event.digest(), Event::parse(event.raw()).unwrap().digest());
    let given = event.message_id().ok().flatten();
    let id = given.unwrap_or_else(|| MessageId::derived(b"name", 1, event.raw().as_bytes()));
    let at = Timestamp(1_800_000_000_000);
    let mappings = Mappings::presets();
    disposition(&mappings, &event, &id, at);
    for mapped in mappings.map(&event, &id, at).into_iter().flatten() {
        let Disposition::Send(item) = mapped.disposition else { continue };
        let batch = Batch::new(*item);
        let body = batch.body();
        assert_eq!(body.len(), batch.size());
        serde_json::from_str::<&RawValue>(&body).expect("a request that is no JSON");
    }
}

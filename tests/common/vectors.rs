//! Segment's vectors for Koala: events, and what Segment's own destination made of them.

use koala_agent::clock::Timestamp;
use koala_agent::event::{Event, MessageId};
use koala_agent::item::{Disposition, Item};
use koala_agent::koala::batch::Batch;
use koala_agent::mapping::Mappings;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use serde_json::value::RawValue;

/// Maps an event by the presets; no event is for two of them.
pub fn map(event: &Event, message_id: &MessageId, timestamp: Timestamp) -> Disposition<Box<Item>> {
    match Mappings::presets().map(event, message_id, timestamp) {
        Ok(mut mapped) => mapped.remove(0).disposition,
        Err(reason) => Disposition::Skip(reason),
    }
}

/// The vectors that are invalid at Segment because the messageId or the timestamp is missing, or because the timestamp is
/// in a spelling that Segment does not know. The agent completes such an event first.
pub const COMPLETED: [&str; 7] = [
    "identify-missing-messageId",
    "identify-missing-timestamp",
    "track-missing-timestamp",
    "track-analytics-js-but-invalid-is-invalid",
    "track-missing-messageId-no-identity-still-invalid",
    "ts-epoch-millis-number-invalid",
    "ts-minutes-only-invalid",
];

#[derive(Deserialize)]
pub struct Vector<'a> {
    pub name: String,
    #[serde(borrow)]
    pub event: &'a RawValue,
    pub expect: Expect,
}

#[derive(Deserialize, Debug)]
#[serde(rename_all = "lowercase")]
pub enum Expect {
    Requests(Vec<Request>),
    Skipped(bool),
    /// Segment's words, which the faults here are not told in.
    Invalid(IgnoredAny),
}

#[derive(Deserialize, Debug)]
pub struct Request {
    pub path: String,
    pub body: Value,
}

pub fn vectors() -> Vec<Vector<'static>> {
    include_str!("../vectors/koala.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The moment that a completed event has.
pub const COMPLETED_AT: Timestamp = Timestamp(1_709_647_629_123);

pub fn outcome(event: &RawValue) -> Disposition<Box<Item>> {
    let event = Event::parse(event.get()).unwrap();
    let id = event.message_id().unwrap().unwrap_or_else(|| MessageId::new("completed".into()).unwrap());
    map(&event, &id, COMPLETED_AT)
}

/// The requests' bodies, one event a request, as they go out.
pub fn bodies(outcome: Disposition<Box<Item>>) -> Vec<String> {
    let Disposition::Send(item) = outcome else { panic!("nothing to send: {outcome:?}") };
    vec![Batch::new(*item).body()]
}

pub fn body(event: &RawValue) -> Value {
    let bodies = bodies(outcome(event));
    assert_eq!(bodies.len(), 1);
    serde_json::from_str(&bodies[0]).unwrap()
}

//! What would be sent of an event, as `map` and `show` tell it: one event a request, the key left out.

use crate::clock::Timestamp;
use crate::event::{Event, MessageId};
use crate::koala::batch::Batch;
use crate::mapping::{Outcome, map};
use crate::reason::{Code, Reason};
use serde::Serialize;
use serde_json::value::RawValue;

/// The path of a request for people; the key's place stands there as written.
const PATH: &str = "/web/projects/<public_key>/batch";

/// The outcome of the mapping in force.
#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Prospect {
    /// These requests are made.
    Requests(Vec<Request>),
    /// There is nothing to send.
    Skipped(Reason),
    /// No request can be made.
    Invalid(Reason),
}

/// A request.
#[derive(Debug, Serialize)]
pub struct Request {
    /// `POST`.
    pub method: &'static str,
    /// Below the endpoint.
    pub path: &'static str,
    /// In the bytes that would be sent.
    pub body: Box<RawValue>,
}

/// What becomes of an event that is known by that id and was written at that time.
pub fn prospect(event: &Event<'_>, message_id: &MessageId, written: Timestamp) -> Prospect {
    match map(event, message_id, written) {
        Outcome::Send(item) => match RawValue::from_string(Batch::new(*item).body()) {
            Ok(body) => Prospect::Requests(vec![Request { method: "POST", path: PATH, body }]),
            Err(e) => Prospect::Invalid(Reason::new(Code::NotJson, e.to_string())),
        },
        Outcome::Skip(reason) => Prospect::Skipped(reason),
        Outcome::Invalid(reason) => Prospect::Invalid(reason),
    }
}

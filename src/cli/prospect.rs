//! What would be sent of an event, as `map` and `show` tell it: one event a request, the key left out.

use crate::clock::Timestamp;
use crate::event::{Event, MessageId};
use crate::koala::batch::Batch;
use crate::mapping::{Mappings, Outcome};
use crate::reason::{Code, Reason};
use serde::Serialize;
use serde_json::value::RawValue;

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
    /// Below the endpoint; the key's place stands there as written.
    pub path: String,
    /// In the bytes that would be sent.
    pub body: Box<RawValue>,
}

/// What becomes of an event that is known by that id and was written at that time.
pub fn prospect(
    mappings: &Mappings,
    event: &Event<'_>,
    message_id: &MessageId,
    written: Timestamp,
) -> Prospect {
    let mapped = match mappings.map(event, message_id, written) {
        Ok(mapped) => mapped,
        Err(reason) => return Prospect::Skipped(reason),
    };
    let (mut requests, mut skipped, mut invalid) = (Vec::new(), None, None);
    for outcome in mapped.into_iter().map(|mapped| mapped.outcome) {
        match outcome {
            Outcome::Send(item) => {
                let batch = Batch::new(*item);
                let path = format!("/web/projects/<public_key>/{}", batch.endpoint().path());
                match RawValue::from_string(batch.body()) {
                    Ok(body) => requests.push(Request { method: "POST", path, body }),
                    Err(e) => invalid = Some(Reason::new(Code::NotJson, e.to_string())),
                }
            }
            Outcome::Skip(reason) => skipped = skipped.or(Some(reason)),
            Outcome::Invalid(reason) => invalid = invalid.or(Some(reason)),
        }
    }
    match (invalid, skipped) {
        (Some(reason), _) if requests.is_empty() => Prospect::Invalid(reason),
        (None, Some(reason)) if requests.is_empty() => Prospect::Skipped(reason),
        _ => Prospect::Requests(requests),
    }
}

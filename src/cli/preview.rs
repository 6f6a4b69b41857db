//! What would be sent of an event, as `map` and `show` tell it: one event a request, the key left out.

use crate::clock::Timestamp;
use crate::event::{Event, MessageId};
use crate::item::Disposition;
use crate::koala::batch::Batch;
use crate::mapping::{Mapped, Mapping, Mappings, turns_off_only_browser};
use crate::reason::{Code, Reason};
use serde::Serialize;
use serde_json::value::RawValue;

/// The outcome of the mapping in force.
#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Preview {
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
    /// The mapping that makes it.
    pub mapping: String,
}

/// What one mapping has to do with an event.
#[derive(Debug, Serialize)]
pub struct MappingTraces {
    /// Its name.
    pub mapping: String,
    /// Whether it takes the event.
    pub matched: bool,
    /// The condition that the event does not meet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// It takes the event, and there is nothing to send.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<Reason>,
    /// It takes the event, and no request can be made of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub invalid: Option<Reason>,
}

/// An event under the mappings in force.
#[derive(Debug, Serialize)]
pub struct MappingTrace {
    /// What becomes of it.
    #[serde(flatten)]
    pub prospect: Preview,
    /// How that came about; empty where the event's own word or the person's consent keeps it here.
    pub mappings: Vec<MappingTraces>,
    /// What its author may have meant otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warning: Option<&'static str>,
}

/// What is to be said of an event that turns off `Koala` in its integrations.
pub const BROWSERS: &str = "integrations.Koala is the browser's destination and turns nothing off here; \"Koala (Cloud)\": false does";

/// What becomes of an event that is known by that id and was written at that time.
pub fn prospect(
    mappings: &Mappings,
    event: &Event<'_>,
    message_id: &MessageId,
    written: Timestamp,
) -> MappingTrace {
    let warning = turns_off_only_browser(event).then_some(BROWSERS);
    let judge = |(mapping, unmet): (&Mapping, Option<&str>)| MappingTraces {
        mapping: mapping.name().to_string(),
        matched: unmet.is_none(),
        why: unmet.map(|condition| format!("{condition} does not hold")),
        skipped: None,
        invalid: None,
    };
    let mut judged: Vec<MappingTraces> = mappings.unmet_conditions(event).map(judge).collect();
    let mapped = match mappings.map(event, message_id, written) {
        Ok(mapped) => mapped,
        Err(reason) => {
            if reason.code != Code::NoMapping {
                judged.clear();
            }
            return MappingTrace { prospect: Preview::Skipped(reason), mappings: judged, warning };
        }
    };
    let mut requests = Vec::new();
    for Mapped { mapping, disposition } in mapped {
        let mut judged = judged.iter_mut().find(|judged| *judged.mapping == *mapping);
        let (skipped, invalid) = match disposition {
            Disposition::Send(item) => {
                let batch = Batch::new(*item);
                let path = format!("/web/projects/<public_key>/{}", batch.endpoint().path());
                match RawValue::from_string(batch.body()) {
                    Ok(body) => {
                        requests.push(Request { mapping: mapping.to_string(), method: "POST", path, body });
                        (None, None)
                    }
                    Err(e) => (None, Some(Reason::new(Code::NotJson, e.to_string()))),
                }
            }
            Disposition::Skip(reason) => (Some(reason), None),
            Disposition::Fail(reason) => (None, Some(reason)),
        };
        if let Some(judged) = &mut judged {
            (judged.skipped, judged.invalid) = (skipped, invalid);
        }
    }
    let first = |of: fn(&MappingTraces) -> Option<&Reason>| judged.iter().find_map(of).cloned();
    let prospect = match (first(|j| j.invalid.as_ref()), first(|j| j.skipped.as_ref())) {
        (Some(reason), _) if requests.is_empty() => Preview::Invalid(reason),
        (None, Some(reason)) if requests.is_empty() => Preview::Skipped(reason),
        _ => Preview::Requests(requests),
    };
    MappingTrace { prospect, mappings: judged, warning }
}

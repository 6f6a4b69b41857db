//! The requests that an event makes under the mappings in force, as `map` and `show` print them: one event a
//! request, without the key.

use crate::clock::Timestamp;
use crate::event::{Event, EventTime, MessageId};
use crate::item::{Disposition, Item};
use crate::koala::batch::Batch;
use crate::mapping::{Mapped, Mappings, turns_off_only_browser};
use crate::reason::{Code, Reason};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

/// A request as it would be sent.
#[derive(Debug, Serialize)]
pub struct PreviewRequest {
    /// `POST`.
    pub method: &'static str,
    /// The path below the endpoint, with `<public_key>` in place of the key.
    pub path: String,
    /// The bytes that would be sent.
    pub body: Box<RawValue>,
    /// The mapping that makes the request.
    pub mapping: String,
}

/// The decisions of one mapping about an event.
#[derive(Debug, Serialize)]
pub struct MappingTrace {
    /// The mapping's name.
    pub mapping: String,
    /// Whether its trigger matches the event.
    pub matched: bool,
    /// The condition of the trigger that the event does not meet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Why a matching mapping sends nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<Reason>,
    /// Why a matching mapping cannot make a request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub invalid: Option<Reason>,
}

/// An event under all mappings in force.
#[derive(Debug, Serialize)]
pub struct EventPreview {
    /// The requests, or why there are none. In JSON it is a member `requests`, `skipped` or `invalid`.
    #[serde(flatten, serialize_with = "disposition_member")]
    pub disposition: Disposition<Vec<PreviewRequest>>,
    /// A trace of each mapping; empty where the event itself or the person's consent forbids sending it.
    pub mappings: Vec<MappingTrace>,
    /// A setting of the event that its author may have misunderstood.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warning: Option<&'static str>,
    /// How the event's time was completed before it was mapped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

fn disposition_member<S: Serializer>(
    disposition: &Disposition<Vec<PreviewRequest>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match disposition {
        Disposition::Send(requests) => {
            serializer.serialize_newtype_variant("Disposition", 0, "requests", requests)
        }
        Disposition::Skip(reason) => {
            serializer.serialize_newtype_variant("Disposition", 1, "skipped", reason)
        }
        Disposition::Fail(reason) => {
            serializer.serialize_newtype_variant("Disposition", 2, "invalid", reason)
        }
    }
}

/// The warning for an event that turns off `Koala` in its integrations.
pub const BROWSER_INTEGRATION_WARNING: &str = "\"Koala\": false in integrations turns off Koala's browser destination, which is not this one; \
     \"Koala (Cloud)\": false turns this one off";

impl EventPreview {
    /// The preview of a text that is not an event.
    pub fn invalid(reason: Reason) -> EventPreview {
        let disposition = Disposition::Fail(reason);
        EventPreview { disposition, mappings: Vec::new(), warning: None, note: None }
    }

    /// The preview of an event with that id, written at that time.
    pub fn of(
        mappings: &Mappings,
        event: &Event<'_>,
        message_id: &MessageId,
        written: Timestamp,
    ) -> EventPreview {
        let warning = turns_off_only_browser(event).then_some(BROWSER_INTEGRATION_WARNING);
        let note = EventTime::of(event).ok().flatten().and_then(|time| time.note);
        let trace = |(mapping, unmet): (&crate::mapping::Mapping, Option<&str>)| MappingTrace {
            mapping: mapping.name().to_string(),
            matched: unmet.is_none(),
            why: unmet.map(|condition| format!("{condition} does not hold")),
            skipped: None,
            invalid: None,
        };
        let mut traces: Vec<MappingTrace> = mappings.unmet_conditions(event).map(trace).collect();
        let mapped = match mappings.map(event, message_id, written) {
            Ok(mapped) => mapped,
            Err(reason) => {
                if reason.code != Code::NoMapping {
                    traces.clear();
                }
                let disposition = Disposition::Skip(reason);
                return EventPreview { disposition, mappings: traces, warning, note: None };
            }
        };
        let mut requests = Vec::new();
        for Mapped { mapping, disposition } in mapped {
            let (skipped, invalid) = match request(&mapping, disposition) {
                Disposition::Send(request) => {
                    requests.push(request);
                    (None, None)
                }
                Disposition::Skip(reason) => (Some(reason), None),
                Disposition::Fail(reason) => (None, Some(reason)),
            };
            if let Some(trace) = traces.iter_mut().find(|trace| *trace.mapping == *mapping) {
                (trace.skipped, trace.invalid) = (skipped, invalid);
            }
        }
        let first = |reason: fn(&MappingTrace) -> Option<&Reason>| traces.iter().find_map(reason).cloned();
        let disposition = match (first(|t| t.invalid.as_ref()), first(|t| t.skipped.as_ref())) {
            (Some(reason), _) if requests.is_empty() => Disposition::Fail(reason),
            (None, Some(reason)) if requests.is_empty() => Disposition::Skip(reason),
            _ => Disposition::Send(requests),
        };
        EventPreview { disposition, mappings: traces, warning, note }
    }
}

/// The request of one mapping.
fn request(mapping: &str, disposition: Disposition<Box<Item>>) -> Disposition<PreviewRequest> {
    let batch = match disposition {
        Disposition::Send(item) => Batch::new(*item),
        Disposition::Skip(reason) => return Disposition::Skip(reason),
        Disposition::Fail(reason) => return Disposition::Fail(reason),
    };
    let path = format!("/web/projects/<public_key>/{}", batch.endpoint().path());
    match RawValue::from_string(batch.body()) {
        Ok(body) => {
            Disposition::Send(PreviewRequest { method: "POST", path, body, mapping: mapping.to_owned() })
        }
        Err(e) => Disposition::Fail(Reason::new(Code::NotJson, e.to_string())),
    }
}

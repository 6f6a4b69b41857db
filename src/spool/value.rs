//! What one JSON value of a file is: an event, events, or nothing that can be taken. Pure.
//!
//! A value's length decides before its members are collected: the list of the members of `{"":0,"":0,…}` is many times as
//! large as its text.

use crate::config::Bytes;
use crate::event::{EnvelopeCommon, Event, Flaw, json, merge_envelope};
use crate::reason::Code;
use serde_json::value::RawValue;

/// The most brackets that are open in text that is parsed to see what is wrong with it: the parser needs a byte for each.
const MAX_PARSED_DEPTH: usize = 1 << 20;

/// The sizes that a file may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadLimits {
    /// The largest text of one value, in bytes: it is in memory.
    pub max_value: u64,
    /// The most content of an event: its bytes, white space outside strings not counted.
    pub max_event: u64,
    /// The most content of a value that goes over several lines of a file of lines. If a line is cut, this is how far its
    /// rest is looked for.
    pub max_over_lines: u64,
}

/// Where an event stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventPlace {
    /// The number of the event: in a file of lines the line in which it begins, unless that number is taken by another
    /// event of the line; in a document the number of the element. 0 for the event with which a document begins.
    pub place: u64,
    /// The line in which it begins, from 1.
    pub line: u64,
}

/// Makes of an event what the reader's caller wants. The error is placed within the event's text.
pub trait MakeEvent<T>: FnMut(&Event<'_>, EventPlace) -> Result<T, Flaw> {}

impl<T, F: FnMut(&Event<'_>, EventPlace) -> Result<T, Flaw>> MakeEvent<T> for F {}

/// What one value is.
pub(super) enum Judged<T> {
    Event(T),
    /// An array of events, which begins at this byte of the value.
    Elements(usize, Common),
    /// Valid JSON that cannot be taken.
    Flawed(Flaw),
    /// No JSON.
    Invalid(Flaw),
}

/// What an envelope says for all its elements: valid JSON without white space outside strings.
#[derive(Debug, Default)]
pub(super) struct Common {
    context: Option<String>,
    integrations: Option<String>,
}

/// Judges a text that is one value with so much content.
pub(super) fn judge<T>(
    text: &[u8],
    content: usize,
    place: EventPlace,
    limits: &ReadLimits,
    make: &mut impl MakeEvent<T>,
) -> Judged<T> {
    let text = match utf8_text(text) {
        Ok(text) => text,
        Err(flaw) => return Judged::Invalid(flaw),
    };
    match text.as_bytes().first() {
        Some(b'[') => Judged::Elements(0, Common::default()),
        Some(b'{') if content as u64 <= limits.max_event => match Event::parse_shallow(text) {
            Ok(event) => judge_object(&event, place, limits, make),
            Err(flaw) => Judged::Invalid(flaw),
        },
        Some(b'{') => {
            let names = ["type", "batch", "context", "integrations"];
            envelope(text, json::find_members(text, names), limits)
                .unwrap_or_else(|| Judged::Flawed(too_large(limits.max_event)))
        }
        _ => match invalid_flaw(text.as_bytes()) {
            flaw if flaw.code == Code::NotJson => Judged::Invalid(flaw),
            flaw => Judged::Flawed(flaw),
        },
    }
}

/// Judges an object that is no larger than an event may be.
pub(super) fn judge_object<T>(
    event: &Event<'_>,
    place: EventPlace,
    limits: &ReadLimits,
    make: &mut impl MakeEvent<T>,
) -> Judged<T> {
    let member = |name| event.get(name).map(|value| value.get());
    // Almost no event has such a member, and then the others need not be looked for.
    if let Some(batch) = member("batch") {
        let members = [member("type"), Some(batch), member("context"), member("integrations")];
        if let Some(judged) = envelope(event.raw(), members, limits) {
            return judged;
        }
    }
    match event.check_depth().and_then(|()| make(event, place)) {
        Ok(made) => Judged::Event(made),
        Err(flaw) => Judged::Flawed(flaw),
    }
}

/// Judges an object with these members (`type`, `batch`, `context`, `integrations`); `None`: it is no envelope.
fn envelope<T>(text: &str, members: [Option<&str>; 4], limits: &ReadLimits) -> Option<Judged<T>> {
    let [kind, batch, context, integrations] = members;
    let batch = batch.filter(|batch| kind.is_none() && batch.starts_with('['))?;
    let offset = |part: &str| part.as_ptr().addr().saturating_sub(text.as_ptr().addr()).min(text.len());
    let common = |name: &str, value: Option<&str>| {
        let Some(value) = value else { return Ok(None) };
        if json::compact_len(value) as u64 > limits.max_event {
            let limit = Bytes(limits.max_event);
            let what = format!("the {name} of the batch is larger than spool.max_event_bytes, {limit}");
            return Err(Judged::Flawed(Flaw::at(text, offset(value), Code::TooLarge, what)));
        }
        if serde_json::from_str::<&RawValue>(value).is_err() {
            let what = format!("the {name} of the batch is not JSON");
            return Err(Judged::Invalid(Flaw::at(text, offset(value), Code::NotJson, what)));
        }
        Ok(Some(json::compact(value)))
    };
    Some(match (common("context", context), common("integrations", integrations)) {
        (Ok(context), Ok(integrations)) => Judged::Elements(offset(batch), Common { context, integrations }),
        (Err(judged), _) | (_, Err(judged)) => judged,
    })
}

impl Common {
    /// Makes an element's event.
    ///
    /// # Errors
    /// It is none, or too large with what the envelope adds.
    pub fn make<T>(
        &self,
        element: &[u8],
        place: EventPlace,
        limits: &ReadLimits,
        make: &mut impl MakeEvent<T>,
    ) -> Result<T, Flaw> {
        let text = utf8_text(element)?;
        fits(text, limits.max_event)?;
        let event = Event::parse(text)?;
        let common =
            EnvelopeCommon { context: self.context.as_deref(), integrations: self.integrations.as_deref() };
        if common.context.is_none() && common.integrations.is_none() {
            return make(&event, place);
        }
        // A flaw of the messageId is placed in the element as it came; merging moves the text behind `context`.
        event.message_id()?;
        let Some(merged) = merge_envelope(&event, &common) else { return make(&event, place) };
        let made = fits(&merged, limits.max_event)
            .and_then(|()| Event::parse(&merged))
            .and_then(|event| make(&event, place));
        made.map_err(|flaw| Flaw { line: 1, column: 1, ..flaw })
    }
}

/// Checks the size of an event: white space outside strings is no content.
///
/// # Errors
/// The flaw `too_large`.
pub fn fits(event: &str, max_event: u64) -> Result<(), Flaw> {
    match event.len() as u64 > max_event && json::compact_len(event) as u64 > max_event {
        true => Err(too_large(max_event)),
        false => Ok(()),
    }
}

fn too_large(max_event: u64) -> Flaw {
    let what = format!(
        "the event is larger than spool.max_event_bytes, {}: leave out what Koala does not need",
        Bytes(max_event)
    );
    Flaw::at("", 0, Code::TooLarge, what)
}

/// The reason why the text is not one event; another code than `not_json` if it is JSON.
pub(super) fn invalid_flaw(text: &[u8]) -> Flaw {
    let text = match utf8_text(text) {
        Ok(text) => text,
        Err(flaw) => return flaw,
    };
    if let Some(at) = json::deeper_than(MAX_PARSED_DEPTH, text) {
        return Flaw::at(text, at, Code::NotJson, format!("nested more than {MAX_PARSED_DEPTH} deep"));
    }
    match Event::parse_shallow(text) {
        Err(flaw) => flaw,
        Ok(_) => Flaw::at("", 0, Code::NotAnEvent, "it is an event"),
    }
}

/// The text in `bytes`, which must be UTF-8.
///
/// # Errors
/// The position of the first byte that is not UTF-8. The flaw is `incomplete` if the text ends within a character.
fn utf8_text(bytes: &[u8]) -> Result<&str, Flaw> {
    std::str::from_utf8(bytes).map_err(|e| {
        let valid = std::str::from_utf8(&bytes[..e.valid_up_to()]).unwrap_or_default();
        let what = "not UTF-8: write the file as UTF-8";
        Flaw { incomplete: e.error_len().is_none(), ..Flaw::at(valid, valid.len(), Code::NotJson, what) }
    })
}

//! Texts of events, packed files, and events as the outbox takes them.

use flate2::{Compression, write::GzEncoder};
use koala_agent::agent::disposition;
use koala_agent::clock::Timestamp;
use koala_agent::event::{Event, MessageId};
use koala_agent::mapping::Mappings;
use koala_agent::outbox::NewEvent;
use std::io::Write;

/// A track of that id by that person.
pub fn track(id: &str, email: &str) -> String {
    format!(
        r#"{{"type":"track","event":"Signed Up","messageId":"{id}","timestamp":"2026-01-02T03:04:05Z","properties":{{"email":"{email}"}}}}"#
    )
}

/// The bytes as a `.gz` file.
pub fn gzip(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(bytes.as_ref()).unwrap();
    packed.finish().unwrap()
}

/// The ids and texts of the events of [`super::setup::Setup::with_events`]; the mapping settles the last two of them.
pub const EVENTS: [(&str, &str); 7] = [
    ("delivered", r#"{"type":"track","event":"Signed Up","properties":{"email":"ana@acme.dev"}}"#),
    ("waiting", r#"{"type":"track","event":"Paid","properties":{"email":"ana@acme.dev","sum":1.0}}"#),
    ("behind", r#"{"type":"identify","traits":{"email":"ana@acme.dev"}}"#),
    ("refused", r#"{"type":"track","event":"Odd","properties":{"email":"bob@acme.dev"}}"#),
    ("discarded", r#"{"type":"track","event":"Odd","properties":{"email":"bob@acme.dev"}}"#),
    ("nobody", r#"{"type":"track","event":"Seen","properties":{}}"#),
    ("invalid", r#"{"type":"track","properties":{"email":"bob@acme.dev"}}"#),
];

/// The modification time of every file that [`new_event`] names.
pub const SPOOLED_AT: &str = "2026-01-02T03:04:05Z";

/// An event as the intake hands it to the outbox, mapped by the presets.
pub fn new_event(id: &str, json: &str, file: &str) -> NewEvent {
    let parsed = Event::parse(json).unwrap();
    let message_id = MessageId::new(id.to_owned()).unwrap();
    let spooled_at = Timestamp::parse(SPOOLED_AT).unwrap();
    let disposition = disposition(&Mappings::presets(), &parsed, &message_id, spooled_at);
    NewEvent {
        digest: parsed.digest(),
        kind: parsed.kind().map(Into::into),
        name: parsed.name().map(Into::into),
        message_id,
        file: file.into(),
        place: 1,
        owner: Some(0),
        spooled_at,
        body: json.to_owned(),
        disposition,
    }
}

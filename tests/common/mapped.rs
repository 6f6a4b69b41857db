//! What the presets make of an event.

use koala_agent::clock::Timestamp;
use koala_agent::event::{Event, MessageId};
use koala_agent::mapping::{Mappings, Outcome};

/// No event is for two presets.
pub fn map(event: &Event, message_id: &MessageId, timestamp: Timestamp) -> Outcome {
    match Mappings::presets().map(event, message_id, timestamp) {
        Ok(mut mapped) => mapped.remove(0).outcome,
        Err(reason) => Outcome::Skip(reason),
    }
}

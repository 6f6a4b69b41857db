//! What the presets make of an event.

use koala_agent::clock::Timestamp;
use koala_agent::event::{Event, MessageId};
use koala_agent::item::{Disposition, Item};
use koala_agent::mapping::Mappings;

/// No event is for two presets.
pub fn map(event: &Event, message_id: &MessageId, timestamp: Timestamp) -> Disposition<Box<Item>> {
    match Mappings::presets().map(event, message_id, timestamp) {
        Ok(mut mapped) => mapped.remove(0).disposition,
        Err(reason) => Disposition::Skip(reason),
    }
}

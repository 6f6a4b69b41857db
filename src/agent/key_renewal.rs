//! Renews the ordering keys of waiting events after the mappings have changed: whom an event is about may then be another
//! person, and several keys may become one.
//!
//! The keys are not renewed when a request is built, one event at a time: by then, later events of the same person may
//! have been sent under another key. Nor does the intake wait for it: the outbox knows which keys are stale.

use super::new_event::addressee;
use crate::event::Event;
use crate::item::{Disposition, Item};
use crate::mapping::Mappings;
use crate::outbox::{Addressee, KeyRenewal, OutboxError, PendingItem, QueueReader};
use std::collections::BTreeSet;

/// Items renewed in one step. A step takes some ten milliseconds, in which no command is obeyed.
const RENEWED_AT_ONCE: usize = 500;

/// The next step by which all keys become those of these mappings; `None`: they are. Items in `delivered` stay as they
/// are.
///
/// # Errors
/// SQLite's.
pub fn next_step(
    queue: &mut QueueReader,
    mappings: &Mappings,
    delivered: &BTreeSet<i64>,
) -> Result<Option<KeyRenewal>, OutboxError> {
    let keys = queue.keys()?;
    let (keying, stale) = keys.keying()?;
    if keying != Some(mappings.keying()) {
        return Ok(Some(KeyRenewal::Begin(mappings.keying())));
    }
    let Some(stale) = stale else { return Ok(None) };
    let mut items = Vec::new();
    let next = keys.read(&stale, RENEWED_AT_ONCE, |item, key| {
        let renewed = addressee_of(item, mappings).filter(|addressee| addressee.ordering_key != key);
        items.extend(
            renewed.filter(|_| !delivered.contains(&item.seq)).map(|addressee| (item.seq, addressee)),
        );
    })?;
    Ok(Some(KeyRenewal::Renewed { items, next }))
}

/// Whom an item is about; `None`: nothing is sent of it.
fn addressee_of(item: &PendingItem<'_>, mappings: &Mappings) -> Option<Addressee> {
    let event = Event::parse_shallow(item.body).ok()?;
    match mappings.map_by(item.mapping, &event, &item.message_id, item.spooled_at) {
        Disposition::Send(mapped) => {
            let Item { person, .. } = *mapped;
            Some(addressee(person, mappings.keying()))
        }
        Disposition::Skip(_) | Disposition::Fail(_) => None,
    }
}

//! What is to become of an event under the mappings in force: asked when it is stored, and when it is retried.

use crate::clock::Timestamp;
use crate::event::{Event, MessageId};
use crate::item::{Disposition, Person};
use crate::mapping::{Mapped, Mappings};
use crate::outbox::{Addressee, NewItem};
use crate::reason::{Code, Reason};

/// The disposition of an event that is known by that id and came at that time. Where nothing of it is sent it failed if a
/// mapping found it wrong, else it is skipped.
pub fn disposition(
    mappings: &Mappings,
    event: &Event<'_>,
    message_id: &MessageId,
    spooled_at: Timestamp,
) -> Disposition<Vec<NewItem>> {
    let items: Vec<NewItem> = match mappings.persons(event, message_id, spooled_at) {
        Ok(mapped) => mapped.into_iter().map(new_item).collect(),
        Err(reason) => return Disposition::Skip(reason),
    };
    if items.iter().any(|item| matches!(item.disposition, Disposition::Send(_))) {
        return Disposition::Send(items);
    }
    let failed = items.iter().find_map(|item| match &item.disposition {
        Disposition::Fail(reason) => Some(Disposition::Fail(reason.clone())),
        _ => None,
    });
    let skipped = || {
        items.iter().find_map(|item| match &item.disposition {
            Disposition::Skip(reason) => Some(Disposition::Skip(reason.clone())),
            _ => None,
        })
    };
    failed
        .or_else(skipped)
        .unwrap_or_else(|| Disposition::Skip(Reason::new(Code::NoMapping, "no mapping takes it")))
}

fn new_item(mapped: Mapped<Person>) -> NewItem {
    let addressee =
        |person: Person| Addressee { ordering_key: person.ordering_key(), person: person.into_text() };
    NewItem { mapping: mapped.mapping, disposition: mapped.disposition.map(addressee) }
}

//! What is to become of an event under the mappings in force: asked when it is stored, and when it is retried.

use crate::clock::Timestamp;
use crate::event::{Event, MessageId};
use crate::item::Person;
use crate::mapping::{Mapped, Mappings, Outcome};
use crate::outbox::{Fate, ItemFate, NewItem};
use crate::reason::{Code, Reason};

/// The fate of an event that is known by that id and came at that time. Where nothing of it is sent it failed if a
/// mapping found it wrong, else it is skipped.
pub fn disposition(
    mappings: &Mappings,
    event: &Event<'_>,
    message_id: &MessageId,
    spooled_at: Timestamp,
) -> Fate {
    let items: Vec<NewItem> = match mappings.persons(event, message_id, spooled_at) {
        Ok(mapped) => mapped.into_iter().map(new_item).collect(),
        Err(reason) => return Fate::Skip(reason),
    };
    if items.iter().any(|item| matches!(item.fate, ItemFate::Send { .. })) {
        return Fate::Send(items);
    }
    let failed = items.iter().find_map(|item| match &item.fate {
        ItemFate::Fail(reason) => Some(Fate::Fail(reason.clone())),
        _ => None,
    });
    let skipped = || {
        items.iter().find_map(|item| match &item.fate {
            ItemFate::Skip(reason) => Some(Fate::Skip(reason.clone())),
            _ => None,
        })
    };
    failed.or_else(skipped).unwrap_or_else(|| Fate::Skip(Reason::new(Code::NoMapping, "no mapping takes it")))
}

fn new_item(mapped: Mapped<Person>) -> NewItem {
    let fate = match mapped.outcome {
        Outcome::Send(person) => {
            ItemFate::Send { ordering_key: person.ordering_key(), person: person.into_text() }
        }
        Outcome::Skip(reason) => ItemFate::Skip(reason),
        Outcome::Invalid(reason) => ItemFate::Fail(reason),
    };
    NewItem { mapping: mapped.mapping, fate }
}

//! Makes of the text of an event what the outbox stores: its id, its origin, and its disposition under the mappings in
//! force.

use super::append_batch::SourceFile;
use crate::clock::Timestamp;
use crate::config::Config;
use crate::event::{Event, Flaw, MessageId};
use crate::item::{Disposition, Keying, Person};
use crate::mapping::{Mapped, Mappings};
use crate::outbox::{Addressee, NewEvent, NewItem};
use crate::reason::{Code, Reason};
use std::sync::Arc;

/// The settings by which files are read.
#[derive(Debug, Clone)]
pub struct ReadRules {
    pub max_file_bytes: u64,
    pub max_event_bytes: u64,
    pub mappings: Arc<Mappings>,
}

impl From<&Config> for ReadRules {
    fn from(config: &Config) -> ReadRules {
        ReadRules {
            max_file_bytes: config.spool.max_file_bytes,
            max_event_bytes: config.spool.max_event_bytes,
            mappings: config.mappings.clone(),
        }
    }
}

/// The event as the outbox stores it; `place` is its place in the file.
///
/// # Errors
/// It has no usable messageId.
pub fn new_event(
    event: &Event<'_>,
    place: u64,
    source: &SourceFile,
    rules: &ReadRules,
) -> Result<NewEvent, Flaw> {
    let message_id = match event.message_id()? {
        Some(id) => id,
        None => derived_id(event, place, source),
    };
    let spooled_at = Timestamp(source.progress.identity.modified.max(0) / 1_000_000);
    let (body, digest) = event.compact();
    Ok(NewEvent {
        digest,
        kind: event.kind().map(Into::into),
        name: event.name().map(Into::into),
        file: source.name.clone(),
        place,
        owner: Some(source.entry.owner),
        spooled_at,
        body,
        disposition: disposition(&rules.mappings, event, &message_id, spooled_at),
        message_id,
    })
}

/// The messageId of an event that has none: of the file's identity as first seen, the event's place in it, and the bytes
/// as they came. The time of birth tells a copy from the file before it, which may have had its name, inode and time.
fn derived_id(event: &Event<'_>, place: u64, source: &SourceFile) -> MessageId {
    let identity = source.progress.identity;
    let mut first_seen = source.progress.name.clone();
    first_seen.push(0);
    first_seen.extend(identity.inode.to_le_bytes());
    first_seen.extend(identity.modified.to_le_bytes());
    if identity.born != 0 {
        first_seen.extend(identity.born.to_le_bytes());
    }
    MessageId::derived(&first_seen, place, event.raw().as_bytes())
}

/// The disposition of an event under these mappings; asked when the event is stored and when it is retried. An event of
/// which nothing is sent fails if any mapping failed on it, and is skipped otherwise.
pub fn disposition(
    mappings: &Mappings,
    event: &Event<'_>,
    message_id: &MessageId,
    spooled_at: Timestamp,
) -> Disposition<Vec<NewItem>> {
    let items: Vec<NewItem> = match mappings.persons(event, message_id, spooled_at) {
        Ok(mapped) => mapped.into_iter().map(|mapped| new_item(mapped, mappings.keying())).collect(),
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
        .unwrap_or_else(|| Disposition::Skip(Reason::new(Code::NoMapping, "no mapping selects the event")))
}

fn new_item(mapped: Mapped<Person>, keying: Keying) -> NewItem {
    let addressee = |person| addressee(person, keying);
    NewItem { mapping: mapped.mapping, disposition: mapped.disposition.map(addressee) }
}

/// The person as the outbox stores it.
pub fn addressee(person: Person, keying: Keying) -> Addressee {
    Addressee { ordering_key: person.ordering_key(), keying, person }
}

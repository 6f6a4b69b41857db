//! What the tests of the outbox and of those who read it begin with.

use super::{Addressee, NewEvent, NewItem};
use crate::clock::Timestamp;
use crate::config::{self, ConfigOptions, Environment, load};
use crate::event::{Digest, MessageId};
use crate::item::{Disposition, OrderingKey};
use std::path::Path;

/// The settings of an outbox in that folder.
pub(crate) fn settings(dir: &Path) -> config::OutboxConfig {
    let file = dir.join("config.toml");
    std::fs::write(&file, format!("outbox.path = \"{}/outbox.db\"", dir.display())).unwrap();
    load(&ConfigOptions { config: Some(file), user: false }, &Environment::default()).unwrap().outbox
}

/// An event that is to be sent.
pub(crate) fn event(id: String, body: String) -> NewEvent {
    NewEvent {
        message_id: MessageId::from_stored(id),
        digest: Digest::from_bytes([0; 16]),
        kind: None,
        name: None,
        file: "a.ndjson".into(),
        place: 1,
        spooled_at: Timestamp(0),
        body,
        disposition: to_send(OrderingKey(0), "p"),
    }
}

/// It is sent as this person's.
pub(crate) fn to_send(ordering_key: OrderingKey, person: &str) -> Disposition<Vec<NewItem>> {
    Disposition::Send(vec![NewItem {
        mapping: "Track Calls".into(),
        disposition: Disposition::Send(Addressee { ordering_key, person: person.to_owned() }),
    }])
}

//! Configuration and events for unit tests with an outbox.

use super::tables::Tables;
use super::{Addressee, Counts, NewEvent, NewItem, State, recovery};
use crate::clock::Timestamp;
use crate::config::{ConfigOptions, Environment, load};
use crate::event::{Digest, MessageId};
use crate::item::{Disposition, Keying, OrderingKey, Person};
use std::path::Path;

/// The configuration of an outbox in that folder.
pub(crate) fn config(dir: &Path) -> crate::config::OutboxConfig {
    let file = dir.join("config.toml");
    std::fs::write(&file, format!("outbox.path = \"{}/outbox.db\"", dir.display())).unwrap();
    load(&ConfigOptions::with_file(file), &Environment::default()).unwrap().outbox
}

/// Opens the store in that folder, and creates it if there is none.
pub(super) fn tables(dir: &Path) -> Tables {
    let config = config(dir);
    if !config.path.exists() {
        recovery::create_database(&config, |_| Ok(())).unwrap();
    }
    Tables::open(&config).unwrap()
}

/// The steps in which SQLite runs a query, one a line.
pub(super) fn query_plan(tables: &Tables, sql: &str) -> String {
    let mut plan = tables.store.conn.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
    let parameters = vec![rusqlite::types::Null; plan.parameter_count()];
    let steps = plan.query_map(rusqlite::params_from_iter(parameters), |r| r.get::<_, String>(3)).unwrap();
    steps.map(Result::unwrap).collect::<Vec<_>>().join("\n")
}

/// What came in is pending or settled, and nothing else.
pub(super) fn assert_balanced(counts: &Counts) {
    let totals = &counts.totals;
    let settled: u64 = totals.settled.iter().map(|count| count.events).sum();
    assert_eq!(totals.created + totals.requeued, counts.of(State::Pending) + settled, "{counts:#?}");
}

/// An event with the id `m-n` that is to be sent.
pub(super) fn numbered_event(n: u32) -> NewEvent {
    event(format!("m-{n}"), "{}".to_owned())
}

/// An event that is to be sent.
pub(crate) fn event(id: String, body: String) -> NewEvent {
    NewEvent {
        message_id: MessageId::from_stored(id),
        digest: Digest::from_bytes([0; 8]),
        kind: None,
        name: None,
        file: "a.ndjson".into(),
        place: 1,
        owner: Some(1001),
        spooled_at: Timestamp(0),
        body,
        disposition: to_send(OrderingKey(0), "p"),
    }
}

/// The person of that email.
pub(crate) fn person(email: &str) -> Person {
    Person::of(None, Some(&format!("\"{email}\""))).unwrap()
}

/// The decision to send one item, about that person.
pub(crate) fn to_send(ordering_key: OrderingKey, person: &str) -> Disposition<Vec<NewItem>> {
    Disposition::Send(vec![NewItem {
        mapping: "Track Calls".into(),
        disposition: Disposition::Send(Addressee {
            ordering_key,
            keying: Keying::default(),
            person: self::person(person),
        }),
    }])
}

//! What is counted: events in each state by reason code, and the bytes of disk that they take. Counting rows would take as
//! long as the outbox is large, so each transaction that changes a row also changes the table `counters`.
//!
//! Rows expire, so the table also has totals that only grow: the items that were created, settled and requeued. Each is
//! counted where that happens, not computed from the others, so that their balance with the pending ones proves the
//! code: created = pending + settled − requeued.

use super::destinations::KOALA;
use super::meta::{self, HISTORY_SINCE, IDS_REMEMBERED_SINCE};
use super::pages::record::{OVERFLOW_ROOM, PAGE_SIZE, local_length};
use super::row::State;
use crate::clock::Timestamp;
use crate::reason::Code;
use crate::status::{ItemTotals, ReasonCount, Status};
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::BTreeMap;

/// The counter of duplicates, which have no rows.
pub(super) const DUPLICATES: &str = "duplicate";
/// When the receiver last accepted an event, in milliseconds since 1970. It stands here and not in `meta`: another table
/// would cost each commit another page.
const LAST_DELIVERY: &str = "last_delivery";
/// The total of items that have come in.
const CREATED: &str = "created";
/// The total of items that were made pending again.
const REQUEUED: &str = "requeued";
/// The totals of items that were settled: the state follows, and the reason is their code.
const SETTLED: &str = "settled_";
/// The total of items that were lost with a damaged database.
const SETTLED_LOST: &str = "settled_lost";
/// The counters of bytes in the queue, with the uid of the owner as their code.
const OWNER: &str = "owner";
/// The counters of the bytes of settled events and of what is kept of them, with the state as their code.
const KEPT: &str = "kept";
/// Counters that are not by destination.
const OF_EVENTS: i64 = 0;

/// The bytes of disk that an event takes beside its body: its rows in `events` and in `queue` or `settled`. Without them, an
/// owner of many small events would seem to hold little of what they fill.
const ROW_BYTES: i64 = 210;

/// The bytes of a leaf for rows: a page without its header.
const LEAF: usize = PAGE_SIZE - 8;
/// Of a row in `bodies` beside the body: its length, number, header, place on the page, and the person's name.
const BODY_COLUMNS: usize = 24;

/// The bytes of disk that an event with a body of that length takes; 0: its body is not kept.
pub(super) fn event_bytes(body: i64) -> i64 {
    if body == 0 {
        return ROW_BYTES;
    }
    let row = body as usize + BODY_COLUMNS;
    let local = local_length(row, true);
    let overflow = (row - local).div_ceil(OVERFLOW_ROOM) * PAGE_SIZE;
    // Rows of half a page and more waste what they leave of it.
    ROW_BYTES + (PAGE_SIZE / (LEAF / local).max(1) + overflow) as i64
}

/// The counters, and the oldest pending event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events by state.
    pub states: BTreeMap<State, u64>,
    /// Settled events by state and reason code.
    pub reasons: Vec<(State, String, u64)>,
    /// Events that were dropped because they were stored before.
    pub duplicates: u64,
    /// When the oldest pending event was stored.
    pub oldest_pending: Option<Timestamp>,
    /// When the receiver last accepted an event.
    pub last_delivery: Option<Timestamp>,
    /// When the newest of the failed events failed, exact to a minute.
    pub last_failed: Option<Timestamp>,
    /// When the newest event came of which only the id is remembered, for want of room.
    pub history_since: Option<Timestamp>,
    /// When the newest event came whose id was forgotten before its time, for want of room.
    pub ids_remembered_since: Option<Timestamp>,
    /// What has happened to items since the outbox was created.
    pub totals: ItemTotals,
    bytes: ByteCounts,
}

/// Found by the index by age, which is by minute.
const LAST_FAILED: &str = "SELECT settled_at FROM settled WHERE state = 'failed' AND state <> 'delivered'
                            ORDER BY settled_at / 60000 DESC LIMIT 1";
const OLDEST_PENDING: &str =
    "SELECT e.received_at FROM queue q CROSS JOIN events e ON e.seq = coalesce(q.seq, q.id)
                               ORDER BY q.id LIMIT 1";

impl Counts {
    /// Puts the counts into the status.
    pub fn show_in(self, status: &mut Status) {
        let outbox = &mut status.outbox;
        outbox.pending = self.of(State::Pending);
        outbox.delivered = self.of(State::Delivered);
        outbox.skipped = self.of(State::Skipped);
        outbox.failed = self.of(State::Failed);
        outbox.discarded = self.of(State::Discarded);
        outbox.oldest_pending = self.oldest_pending;
        outbox.oldest_pending_seconds = self.oldest_pending.map(|at| status.now.since(at).as_secs());
        outbox.last_failed = self.last_failed;
        outbox.history_since = self.history_since;
        outbox.ids_remembered_since = self.ids_remembered_since;
        outbox.needed_bytes = self.bytes.needed();
        outbox.totals = Some(self.totals);
        status.spool.duplicates = self.duplicates;
        status.destination.last_delivery = self.last_delivery;
        let reasons = self.reasons.into_iter();
        status.reasons = reasons
            .map(|(state, code, events)| ReasonCount { state: state.as_str().to_owned(), code, events })
            .collect();
    }

    /// The number of events in that state.
    pub fn of(&self, state: State) -> u64 {
        self.states.get(&state).copied().unwrap_or(0)
    }

    /// Reads all of it from one snapshot: that of the transaction in which it is called, or one of its own.
    pub(super) fn read(conn: &Connection) -> Result<Counts, rusqlite::Error> {
        let _snapshot = conn.is_autocommit().then(|| conn.unchecked_transaction()).transpose()?;
        let time = |sql| conn.query_row(sql, [], |r| Ok(Timestamp(r.get(0)?))).optional();
        let fact = |name| Ok::<_, rusqlite::Error>(meta::get(conn, name)?.map(Timestamp));
        let mut counts = Counts {
            oldest_pending: time(OLDEST_PENDING)?,
            last_failed: time(LAST_FAILED)?,
            history_since: fact(HISTORY_SINCE)?,
            ids_remembered_since: fact(IDS_REMEMBERED_SINCE)?,
            ..Counts::default()
        };
        each_counter(conn, |name, code, value| {
            let events = value as u64;
            match State::parse(name) {
                Some(state) => {
                    *counts.states.entry(state).or_default() += events;
                    if !code.is_empty() && events > 0 {
                        counts.reasons.push((state, code.to_owned(), events));
                    }
                }
                None if name == DUPLICATES => counts.duplicates = events,
                None if name == LAST_DELIVERY => counts.last_delivery = Some(Timestamp(value)),
                None if name == CREATED => counts.totals.created = events,
                None if name == REQUEUED => counts.totals.requeued = events,
                None => {
                    if let Some(state) = name.strip_prefix(SETTLED) {
                        let (state, code) = (state.to_owned(), code.to_owned());
                        counts.totals.settled.push(ReasonCount { state, code, events });
                    }
                    counts.bytes.set(name, code, value);
                }
            }
        })?;
        if counts.of(State::Pending) == 0 {
            // The item was accepted, and is not compacted yet.
            counts.oldest_pending = None;
        }
        Ok(counts)
    }
}

/// Calls `each` with the name, code and value of every counter, in their order.
fn each_counter(conn: &Connection, mut each: impl FnMut(&str, &str, i64)) -> Result<(), rusqlite::Error> {
    let mut counters = conn.prepare_cached("SELECT name, code, value FROM counters ORDER BY name, code")?;
    let mut rows = counters.query([])?;
    while let Some(row) = rows.next()? {
        each(row.get_ref(0)?.as_str()?, row.get_ref(1)?.as_str()?, row.get(2)?);
    }
    Ok(())
}

/// The changes of the counters within a transaction, which are written at its end.
#[derive(Debug, Default)]
pub(super) struct CounterChanges {
    values: BTreeMap<(&'static str, &'static str), i64>,
    bytes: ByteCounts,
    last_delivery: Option<Timestamp>,
}

impl CounterChanges {
    /// Notes that the receiver has accepted an event.
    pub(super) fn delivered(&mut self, now: Timestamp) {
        self.last_delivery = Some(now);
    }

    pub(super) fn add(&mut self, state: State, code: &'static str, events: i64) {
        self.add_named(state.as_str(), code, events);
    }

    pub(super) fn add_duplicates(&mut self, events: i64) {
        self.add_named(DUPLICATES, "", events);
    }

    fn add_named(&mut self, name: &'static str, code: &'static str, value: i64) {
        *self.values.entry((name, code)).or_default() += value;
    }

    /// Counts items that have come in.
    pub(super) fn create(&mut self, items: i64) {
        self.add_named(CREATED, "", items);
    }

    /// Counts an item that has left the queue, or came in and never was in it.
    pub(super) fn settle(&mut self, state: State, code: &'static str) {
        self.add_named(settled_name(state), code, 1);
    }

    /// Counts an item that has come back to the queue.
    pub(super) fn requeue(&mut self) {
        self.add_named(REQUEUED, "", 1);
    }

    /// Takes over a total from the counters of a damaged database; others are left.
    pub(super) fn recover_total(&mut self, name: &str, code: &str, items: i64) {
        let settled = [State::Delivered, State::Skipped, State::Failed, State::Discarded].map(settled_name);
        let names = settled.into_iter().chain([CREATED, REQUEUED, SETTLED_LOST]);
        // A damaged number is not taken for a total.
        let is_credible = (0..1 << 53).contains(&items);
        if let Some(name) = names.into_iter().find(|known| *known == name).filter(|_| is_credible) {
            // Of two copies of a page, the newer one has the larger number.
            let known = self.values.entry((name, Code::parse(code).map_or("", Code::as_str))).or_default();
            *known = items.max(*known);
        }
    }

    /// Balances totals that were recovered with the items that are pending now. Items that were counted and are in no
    /// table are lost; items in a table that were not counted are counted as created.
    pub(super) fn balance_totals(&mut self, pending: i64) {
        let total = |is_of: fn(&str) -> bool| -> i64 {
            self.values.iter().filter(|((name, _), _)| is_of(name)).map(|(_, value)| value).sum()
        };
        let settled = total(|name| name.starts_with(SETTLED));
        let uncounted = pending + settled - total(|name| name == REQUEUED) - total(|name| name == CREATED);
        match uncounted {
            0.. => self.add_named(CREATED, "", uncounted),
            _ => self.add_named(SETTLED_LOST, "", -uncounted),
        }
    }

    /// Counts one event from one state and reason code into another.
    pub(super) fn change_state(&mut self, from: (State, &'static str), to: (State, &'static str)) {
        self.add(from.0, from.1, -1);
        self.add(to.0, to.1, 1);
    }

    /// Counts bytes that come into the queue, or leave it.
    pub(super) fn add_queued(&mut self, owner: Option<u32>, bytes: i64) {
        *self.bytes.queued.entry(owner).or_default() += bytes;
    }

    /// Counts the bytes of an event that is settled in that state, or leaves it. Delivered and discarded ones are history, of
    /// which nothing but what is left of the database is counted.
    pub(super) fn add_kept(&mut self, state: State, bytes: i64) {
        if matches!(state, State::Failed | State::Skipped) {
            *self.bytes.kept.entry(state).or_default() += bytes;
        }
    }

    pub(super) fn merge(&mut self, other: CounterChanges) {
        for ((name, code), value) in other.values {
            self.add_named(name, code, value);
        }
        self.bytes.add(&other.bytes);
        self.last_delivery = other.last_delivery.or(self.last_delivery);
    }

    pub(super) fn clear(&mut self) {
        *self = CounterChanges::default();
    }

    /// Writes the changes. Returns those of the bytes.
    pub(super) fn write(&mut self, conn: &Connection) -> Result<ByteCounts, rusqlite::Error> {
        let CounterChanges { values, bytes, last_delivery } = std::mem::take(self);
        if let Some(at) = last_delivery {
            let sql = "INSERT INTO counters (name, destination, code, value) VALUES (?, ?, '', ?)
                       ON CONFLICT DO UPDATE SET value = excluded.value";
            conn.prepare_cached(sql)?.execute(params![LAST_DELIVERY, KOALA, at.0.max(0)])?;
        }
        for ((name, code), value) in values {
            add_to(conn, name, code, value)?;
        }
        for (owner, value) in &bytes.queued {
            add_to(conn, OWNER, &owner.map_or_else(String::new, |uid| uid.to_string()), *value)?;
        }
        for (state, value) in &bytes.kept {
            add_to(conn, KEPT, state.as_str(), *value)?;
        }
        Ok(bytes)
    }
}

fn add_to(conn: &Connection, name: &str, code: &str, value: i64) -> Result<(), rusqlite::Error> {
    if value == 0 {
        return Ok(());
    }
    let is_of_items = name == CREATED || name == REQUEUED || name.starts_with(SETTLED);
    let destination = if is_of_items { KOALA } else { OF_EVENTS };
    // A wrong count must not stop the events.
    let mut update = conn.prepare_cached(
        "UPDATE counters SET value = max(value + ?4, 0) WHERE name = ?1 AND destination = ?2 AND code = ?3",
    )?;
    if update.execute(params![name, destination, code, value])? == 0 {
        conn.prepare_cached("INSERT INTO counters (name, destination, code, value) VALUES (?, ?, ?, ?)")?
            .execute(params![name, destination, code, value.max(0)])?;
    }
    Ok(())
}

fn settled_name(state: State) -> &'static str {
    match state {
        State::Delivered => "settled_delivered",
        State::Skipped => "settled_skipped",
        State::Failed => "settled_failed",
        State::Discarded => "settled_discarded",
        // Nothing settles as pending; `Settled` has no such state.
        State::Pending => "",
    }
}

/// The bytes of disk that events take, or changes of them. A delivered event counts as queued until compaction, because it
/// takes up room for as long.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ByteCounts {
    /// In the queue, by the uid of their file's owner.
    queued: BTreeMap<Option<u32>, i64>,
    /// Of settled events, with what is kept of them, by state.
    kept: BTreeMap<State, i64>,
}

impl ByteCounts {
    pub(super) fn load(conn: &Connection) -> Result<ByteCounts, rusqlite::Error> {
        let mut bytes = ByteCounts::default();
        each_counter(conn, |name, code, value| bytes.set(name, code, value))?;
        Ok(bytes)
    }

    /// Takes over a counter, if it is one of bytes.
    fn set(&mut self, name: &str, code: &str, value: i64) {
        if name == OWNER {
            self.queued.insert(code.parse().ok(), value);
        } else if name == KEPT
            && let Some(state) = State::parse(code)
        {
            self.kept.insert(state, value);
        }
    }

    /// Counts the bytes anew, from the rows.
    pub(super) fn recount(conn: &Connection) -> Result<ByteCounts, rusqlite::Error> {
        conn.prepare_cached("DELETE FROM counters WHERE name IN (?, ?)")?.execute([OWNER, KEPT])?;
        let mut changes = CounterChanges::default();
        let mut queue = conn.prepare("SELECT owner, bytes FROM queue")?;
        let mut rows = queue.query([])?;
        while let Some(row) = rows.next()? {
            changes.add_queued(row.get(0)?, row.get(1)?);
        }
        let mut settled = conn.prepare("SELECT state, body_bytes FROM settled WHERE state <> 'delivered'")?;
        let mut rows = settled.query([])?;
        while let Some(row) = rows.next()? {
            if let Some(state) = State::parse(row.get_ref(0)?.as_str()?) {
                changes.add_kept(state, event_bytes(row.get(1)?));
            }
        }
        changes.write(conn)
    }

    /// Applies changes.
    pub(super) fn add(&mut self, changes: &ByteCounts) {
        for (owner, bytes) in &changes.queued {
            *self.queued.entry(*owner).or_default() += bytes;
        }
        for (state, bytes) in &changes.kept {
            *self.kept.entry(*state).or_default() += bytes;
        }
    }

    /// Of pending and failed events.
    pub(super) fn needed(&self) -> u64 {
        let queued: i64 = self.queued.values().sum();
        (queued + self.kept.get(&State::Failed).copied().unwrap_or(0)).max(0) as u64
    }

    /// Of settled events in that state, with what is kept of them.
    pub(super) fn kept(&self, state: State) -> u64 {
        self.kept.get(&state).map_or(0, |bytes| (*bytes).max(0) as u64)
    }

    /// Whether anybody else's events have been counted.
    pub(super) fn has_other(&self, owner: u32) -> bool {
        self.queued.keys().any(|other| *other != Some(owner))
    }

    /// Of events in the queue of that owner.
    pub(super) fn of(&self, owner: u32) -> u64 {
        self.queued.get(&Some(owner)).map_or(0, |bytes| (*bytes).max(0) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::item::OrderingKey;
    use crate::outbox::NewEvent;
    use crate::outbox::append::Append;
    use crate::outbox::fixture;
    use crate::outbox::tables::Tables;

    #[test]
    fn the_bytes_of_an_event_are_those_by_which_the_database_grows() {
        const EVENTS: usize = 2_000;
        let mut wrong = Vec::new();
        for body in [100, 450, 900, 2_100, 4_000, 4_100, 9_000, 30_000] {
            let dir = tempfile::tempdir().unwrap();
            let mut tables = fixture::tables(dir.path());
            let used = |tables: &Tables| tables.store.size().unwrap().bytes as i64;
            let empty = used(&tables);
            for n in 0..EVENTS / 100 {
                let events: Vec<_> = (0..100).map(|m| typical_event(n * 100 + m, body)).collect();
                let at = Timestamp(1_800_000_000_000);
                tables.transaction(|tables| Append::run(tables, &events, &[], at)).unwrap();
            }
            let (grown, counted) = ((used(&tables) - empty) / EVENTS as i64, event_bytes(body as i64));
            assert_eq!(tables.bytes.needed(), (EVENTS as i64 * counted) as u64);
            if (grown - counted).abs() * 100 > grown * 12 {
                wrong.push(format!("{body}: {grown} bytes an event, {counted} by the estimate"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("; "));
    }

    /// An event with names, an id and a person of common lengths.
    fn typical_event(n: usize, body: usize) -> NewEvent {
        NewEvent {
            kind: Some("track".to_owned()),
            name: Some("Order Completed".to_owned()),
            file: "app-20260102T030405-1234.ndjson".into(),
            place: n as u64,
            spooled_at: Timestamp(1_800_000_000_000),
            disposition: fixture::to_send(OrderingKey(n as i64 * 0x0123_4567_89AB), "somebody@example.com"),
            ..fixture::event(format!("{n:08x}-0000-4000-8000-0123456789ab"), "x".repeat(body))
        }
    }

    #[test]
    fn the_newest_failed_event_is_found_by_the_index_by_age() {
        let dir = tempfile::tempdir().unwrap();
        let plan = fixture::query_plan(&fixture::tables(dir.path()), LAST_FAILED);
        assert_eq!(plan, "SEARCH settled USING INDEX settled_by_age (state=?)");
    }
}

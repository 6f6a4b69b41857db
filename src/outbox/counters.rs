//! The number of events in each state, by reason code, and the bytes that each owner has in the queue. Counting rows
//! would take as long as the outbox is large, so each transaction that changes a row also changes the table `counters`.
//!
//! Rows expire, so the table also has totals that only grow: the items that were created, settled and requeued. Each is
//! counted where that happens, not computed from the others, so that their balance with the pending ones proves the
//! code: created = pending + settled − requeued.

use super::meta::{self, IDS_REMEMBERED_SINCE};
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
/// The counters of bytes by owner, with the uid as their code.
const OWNER: &str = "owner";
/// The bytes of disk that a row of `pending` takes beside its body: its other columns and the index of its id. Without
/// them, an owner of many small events would seem to hold little of what they fill.
const ROW_BYTES: i64 = 250;

/// The bytes of disk that a settled event takes at least, its id included.
const HISTORY_ROW_BYTES: u64 = 200;

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
    /// When the newest event came whose id was forgotten before its time, for want of room.
    pub ids_remembered_since: Option<Timestamp>,
    /// What has happened to items since the outbox was created.
    pub totals: ItemTotals,
}

/// Found by the index by age, which is by minute.
const LAST_FAILED: &str = "SELECT settled_at FROM settled WHERE state = 'failed' AND state <> 'delivered'
                            ORDER BY settled_at / 60000 DESC LIMIT 1";

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
        outbox.ids_remembered_since = self.ids_remembered_since;
        outbox.history_bytes = self.history_bytes();
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

    /// The bytes that are given up where room is short: those of delivered and skipped events, without their bodies.
    pub fn history_bytes(&self) -> u64 {
        (self.of(State::Delivered) + self.of(State::Skipped)) * HISTORY_ROW_BYTES
    }

    /// Reads all of it from one snapshot: that of the transaction in which it is called, or one of its own.
    pub(super) fn read(conn: &Connection) -> Result<Counts, rusqlite::Error> {
        let _snapshot = conn.is_autocommit().then(|| conn.unchecked_transaction()).transpose()?;
        let time = |sql| conn.query_row(sql, [], |r| Ok(Timestamp(r.get(0)?))).optional();
        let oldest_pending = time("SELECT received_at FROM pending ORDER BY seq LIMIT 1")?;
        let last_failed = time(LAST_FAILED)?;
        let ids_remembered_since = meta::get(conn, IDS_REMEMBERED_SINCE)?.map(Timestamp);
        let mut counts = Counts { oldest_pending, last_failed, ids_remembered_since, ..Counts::default() };
        let mut statement =
            conn.prepare_cached("SELECT state, code, events FROM counters ORDER BY state, code")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (name, code, events): (String, String, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
            let events = events as u64;
            match State::parse(&name) {
                Some(state) => {
                    *counts.states.entry(state).or_default() += events;
                    if !code.is_empty() && events > 0 {
                        counts.reasons.push((state, code, events));
                    }
                }
                None if name == DUPLICATES => counts.duplicates = events,
                None if name == LAST_DELIVERY => counts.last_delivery = Some(Timestamp(events as i64)),
                None if name == CREATED => counts.totals.created = events,
                None if name == REQUEUED => counts.totals.requeued = events,
                None => {
                    if let Some(state) = name.strip_prefix(SETTLED) {
                        counts.totals.settled.push(ReasonCount { state: state.to_owned(), code, events });
                    }
                }
            }
        }
        if counts.of(State::Pending) == 0 {
            // The row is that of a delivered event, and has not been compacted yet.
            counts.oldest_pending = None;
        }
        Ok(counts)
    }
}

/// The changes of the counters within a transaction, which are written at its end.
#[derive(Debug, Default)]
pub(super) struct CounterChanges {
    events: BTreeMap<(&'static str, &'static str), i64>,
    pending_bytes: BTreeMap<u32, i64>,
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

    fn add_named(&mut self, name: &'static str, code: &'static str, events: i64) {
        *self.events.entry((name, code)).or_default() += events;
    }

    /// Counts items that have come in.
    pub(super) fn create(&mut self, items: i64) {
        self.add_named(CREATED, "", items);
    }

    /// Counts an item that has left `pending`, or came in and never was in it.
    pub(super) fn settle(&mut self, state: State, code: &'static str) {
        self.add_named(settled_name(state), code, 1);
    }

    /// Counts an item that has come back to `pending`.
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
            let known = self.events.entry((name, Code::parse(code).map_or("", Code::as_str))).or_default();
            *known = items.max(*known);
        }
    }

    /// Balances totals that were recovered with the items that are pending now. Items that were counted and are in no
    /// table are lost; items in a table that were not counted are counted as created.
    pub(super) fn balance_totals(&mut self, pending: i64) {
        let total = |is_of: fn(&str) -> bool| -> i64 {
            self.events.iter().filter(|((name, _), _)| is_of(name)).map(|(_, events)| events).sum()
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

    /// Counts a row that comes into `pending`, by the bytes of its body.
    pub(super) fn add_row(&mut self, owner: Option<u32>, body_bytes: i64) {
        self.add_pending_bytes(owner, ROW_BYTES + body_bytes);
    }

    /// Counts a row that leaves `pending`.
    pub(super) fn remove_row(&mut self, owner: Option<u32>, body_bytes: i64) {
        self.add_pending_bytes(owner, -(ROW_BYTES + body_bytes));
    }

    fn add_pending_bytes(&mut self, owner: Option<u32>, bytes: i64) {
        if let Some(owner) = owner {
            *self.pending_bytes.entry(owner).or_default() += bytes;
        }
    }

    pub(super) fn merge(&mut self, other: CounterChanges) {
        for ((name, code), events) in other.events {
            self.add_named(name, code, events);
        }
        for (owner, bytes) in other.pending_bytes {
            self.add_pending_bytes(Some(owner), bytes);
        }
        self.last_delivery = other.last_delivery.or(self.last_delivery);
    }

    pub(super) fn clear(&mut self) {
        *self = CounterChanges::default();
    }

    /// Writes the changes. Returns those of the bytes by owner.
    pub(super) fn write(&mut self, conn: &Connection) -> Result<BTreeMap<u32, i64>, rusqlite::Error> {
        let CounterChanges { events, pending_bytes, last_delivery } = std::mem::take(self);
        if let Some(at) = last_delivery {
            let sql = "INSERT INTO counters (state, code, events) VALUES (?, '', ?)
                       ON CONFLICT DO UPDATE SET events = excluded.events";
            conn.prepare_cached(sql)?.execute(params![LAST_DELIVERY, at.0.max(0)])?;
        }
        let owners = pending_bytes.iter().map(|(owner, bytes)| (OWNER, owner.to_string(), *bytes));
        let events = events.into_iter().map(|((name, code), events)| (name, code.to_owned(), events));
        for (name, code, events) in events.chain(owners) {
            if events == 0 {
                continue;
            }
            // A wrong count must not stop the events.
            let mut update = conn.prepare_cached(
                "UPDATE counters SET events = max(events + ?3, 0) WHERE state = ?1 AND code = ?2",
            )?;
            if update.execute(params![name, code, events])? == 0 {
                conn.prepare_cached("INSERT INTO counters (state, code, events) VALUES (?, ?, ?)")?
                    .execute(params![name, code, events.max(0)])?;
            }
        }
        Ok(pending_bytes)
    }
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

/// The bytes that events take in `pending`, by the uid of their file's owner. A delivered event counts until its row
/// moves, because it takes up room for as long.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct PendingBytes(BTreeMap<u32, i64>);

impl PendingBytes {
    pub(super) fn load(conn: &Connection) -> Result<PendingBytes, rusqlite::Error> {
        let mut rows = conn.prepare_cached("SELECT code, events FROM counters WHERE state = ?")?;
        let rows = rows.query_map([OWNER], |r| Ok((r.get::<_, String>(0)?, r.get(1)?)))?;
        let mut bytes = PendingBytes::default();
        for row in rows {
            let (owner, counted) = row?;
            if let Ok(owner) = owner.parse() {
                bytes.0.insert(owner, counted);
            }
        }
        Ok(bytes)
    }

    /// Counts the bytes of each owner anew, from the rows.
    pub(super) fn recount(conn: &Connection) -> Result<PendingBytes, rusqlite::Error> {
        conn.prepare_cached("DELETE FROM counters WHERE state = ?")?.execute([OWNER])?;
        conn.prepare_cached(
            "INSERT INTO counters
             SELECT ?, owner, sum(octet_length(body) + ?) FROM pending WHERE owner IS NOT NULL GROUP BY owner",
        )?
        .execute(params![OWNER, ROW_BYTES])?;
        PendingBytes::load(conn)
    }

    pub(super) fn apply(&mut self, changes: BTreeMap<u32, i64>) {
        for (owner, bytes) in changes {
            *self.0.entry(owner).or_default() += bytes;
        }
    }

    /// Whether anybody else's events have been counted.
    pub(super) fn has_other(&self, owner: u32) -> bool {
        self.0.keys().any(|other| *other != owner)
    }

    pub(super) fn of(&self, owner: u32) -> u64 {
        self.0.get(&owner).map_or(0, |bytes| u64::try_from(*bytes).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::fixture;

    #[test]
    fn the_newest_failed_event_is_found_by_the_index_by_age() {
        let dir = tempfile::tempdir().unwrap();
        let plan = fixture::query_plan(&fixture::store(dir.path()), LAST_FAILED);
        assert_eq!(plan, "SEARCH settled USING INDEX settled_by_age (state=?)");
    }
}

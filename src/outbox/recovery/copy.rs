//! Copies the rows of a damaged outbox into a new one.

use super::pages::{Pages, StoredRow};
use crate::outbox::ack_log::AckLog;
use crate::outbox::counters::{CounterChanges, DUPLICATES, PendingBytes};
use crate::outbox::dedup::{DedupIndex, hash_id_text};
use crate::outbox::meta::{
    ACCEPTED_BY, IDS_REMEMBERED_SINCE, PERSON_KEY, RETRY_AFTER_DEADLINE, RETRY_REQUESTS, SUPPRESSED,
};
use crate::outbox::row::State;
use crate::outbox::store::Store;
use rusqlite::types::Value;
use rusqlite::{ErrorCode, params_from_iter};
use std::fmt;

/// The number of events that were copied.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Pending events.
    pub pending: i64,
    /// Settled events.
    pub settled: i64,
    /// Events that could not be read, by the old counters; `None`: the counters could not be read either.
    pub missing: Option<i64>,
}

impl fmt::Display for Copied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} events were read from it, {} of them pending; ",
            self.pending + self.settled,
            self.pending
        )?;
        match self.missing {
            Some(0) => write!(f, "none is missing"),
            Some(missing) => write!(f, "{missing} are missing"),
            None => write!(f, "how many are missing is not known"),
        }
    }
}

/// The table of a stored row, recognised by the number and the types of its columns.
enum RowKind {
    Pending,
    Settled,
    Bodies,
    Attempts,
    SettledItems,
    Acks,
    Meta,
    Counters,
}

impl RowKind {
    fn of(row: &StoredRow) -> Option<RowKind> {
        use Value::{Integer, Null, Text};
        // A rowid's own column is stored as NULL.
        match (row.rowid, row.columns.as_slice()) {
            (Some(_), columns @ [Null, ..]) if columns.len() == 15 => Some(RowKind::Pending),
            (Some(_), columns @ [Null, ..]) if columns.len() == 17 => Some(RowKind::Settled),
            (Some(_), [Null, Text(_), Integer(_), Text(_)]) => Some(RowKind::Bodies),
            (Some(_), [Null, Integer(_), Text(seqs), Null | Integer(_)])
                if serde_json::from_str::<Vec<i64>>(seqs).is_ok() =>
            {
                Some(RowKind::Acks)
            }
            (None, [Integer(_), Integer(_), Integer(_), Text(_), Text(_)]) => Some(RowKind::Attempts),
            (None, [Integer(_), Text(_), Text(_), Text(_), Text(_), Integer(_)]) => {
                Some(RowKind::SettledItems)
            }
            (None, [Text(_), _]) => Some(RowKind::Meta),
            (None, [Text(_), Text(_), Integer(_)]) => Some(RowKind::Counters),
            _ => None,
        }
    }
}

/// Copies every row that can be read. The progress of the spool's files is not copied: the files are read again,
/// because an event that is lost here may still be there, and the others are recognised as duplicates. Must be called
/// within [`Store::transaction`], on a new store.
pub fn copy(pages: &Pages, store: &mut Store) -> Result<Copied, rusqlite::Error> {
    let (mut counted, mut duplicates, mut totals) = (None::<i64>, 0, CounterChanges::default());
    // Settled rows come first: an event that is found in both tables is settled.
    pages.each_row(|row| match RowKind::of(&row) {
        Some(RowKind::Settled) => insert(store, "settled", row),
        Some(RowKind::Bodies) => insert(store, "bodies", row),
        Some(RowKind::Attempts) => insert(store, "attempts", row),
        Some(RowKind::SettledItems) => insert(store, "settled_items", row),
        Some(RowKind::Acks) => insert(store, "acks", row),
        Some(RowKind::Meta) => insert_meta(store, &row),
        Some(RowKind::Counters) => {
            if let [Value::Text(name), _, Value::Integer(events)] = row.columns.as_slice() {
                if name == DUPLICATES {
                    duplicates = *events;
                } else if State::parse(name).is_some() {
                    *counted.get_or_insert(0) += events;
                } else if let Value::Text(code) = &row.columns[1] {
                    totals.recover_total(name, code, *events);
                }
            }
            Ok(())
        }
        Some(RowKind::Pending) | None => Ok(()),
    })?;
    pages.each_row(|row| match RowKind::of(&row) {
        Some(RowKind::Pending) => insert(store, "pending", row),
        _ => Ok(()),
    })?;
    store.db.conn.execute_batch(
        "DELETE FROM pending WHERE coalesce(event_seq, seq) IN (SELECT seq FROM settled);
         DELETE FROM bodies WHERE seq NOT IN (SELECT seq FROM settled);
         DELETE FROM attempts WHERE seq NOT IN (SELECT seq FROM settled)
                                AND seq NOT IN (SELECT coalesce(event_seq, seq) FROM pending);
         DELETE FROM settled_items WHERE seq NOT IN (SELECT seq FROM settled)
                                     AND seq NOT IN (SELECT event_seq FROM pending WHERE event_seq IS NOT NULL);",
    )?;
    store.acks = AckLog::load(&store.db.conn)?;
    store.compact_acks()?;
    // All is counted anew below: what these rows changed is no change of that.
    store.counters.clear();
    index_ids(store, "settled", "seq")?;
    index_ids(store, "pending", "coalesce(event_seq, seq)")?;
    store.db.conn.execute_batch(
        "INSERT INTO counters SELECT 'pending', '', count(DISTINCT coalesce(event_seq, seq)) FROM pending
                               HAVING count(*) > 0;
         INSERT INTO counters SELECT state, code, count(*) FROM settled GROUP BY state, code;",
    )?;
    store.pending_bytes = PendingBytes::recount(&store.db.conn)?;
    store.counters.add_duplicates(duplicates);
    let number = |sql: &str| store.db.conn.query_row(sql, [], |r| r.get::<_, i64>(0));
    let pending = number("SELECT count(DISTINCT coalesce(event_seq, seq)) FROM pending")?;
    let settled = number("SELECT count(*) FROM settled")?;
    totals.balance_totals(pending);
    let last_seq = number(
        "SELECT max(coalesce((SELECT max(seq) FROM pending), 0), coalesce((SELECT max(seq) FROM settled), 0))",
    )?;
    store.next_seq = last_seq + 1;
    store.counters.merge(totals);
    DedupIndex::set_merged(&store.db.conn, last_seq)?;
    Ok(Copied { pending, settled, missing: counted.map(|n| (n - pending - settled).max(0)) })
}

/// Inserts a row, unless it breaks a rule of the table: then it is a damaged one.
fn insert(store: &Store, table: &str, row: StoredRow) -> Result<(), rusqlite::Error> {
    let placeholders = vec!["?"; row.columns.len()].join(", ");
    let rowid = row.rowid.map(Value::Integer);
    let skip = usize::from(rowid.is_some());
    let values = rowid.into_iter().chain(row.columns.into_iter().skip(skip));
    let inserted = store
        .cached(&format!("INSERT OR IGNORE INTO {table} VALUES ({placeholders})"))?
        .execute(params_from_iter(values));
    match inserted {
        Err(e) if e.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => Ok(()),
        inserted => inserted.map(|_| ()),
    }
}

/// Inserts a fact, if it is one that outlives the damage.
fn insert_meta(store: &Store, row: &StoredRow) -> Result<(), rusqlite::Error> {
    let is_kept = match row.columns.as_slice() {
        [Value::Text(name), Value::Blob(key)] => name == PERSON_KEY && key.len() == 32,
        [Value::Text(name), Value::Integer(_)] => {
            [RETRY_REQUESTS, RETRY_AFTER_DEADLINE, ACCEPTED_BY, IDS_REMEMBERED_SINCE].contains(&name.as_str())
                || name.starts_with(SUPPRESSED)
        }
        _ => false,
    };
    if is_kept {
        store.cached("INSERT OR REPLACE INTO meta VALUES (?, ?)")?.execute(params_from_iter(&row.columns))?;
    }
    Ok(())
}

/// Indexes the ids of a table's events. `event_seq` is the expression for the event of a row. A row whose id another
/// event has already is deleted: it is a copy of that event.
fn index_ids(store: &Store, table: &str, event_seq: &str) -> Result<(), rusqlite::Error> {
    let mut rows =
        store.db.conn.prepare(&format!("SELECT seq, {event_seq}, message_id FROM {table} ORDER BY seq"))?;
    let mut rows = rows.query([])?;
    let mut copies: Vec<i64> = Vec::new();
    while let Some(row) = rows.next()? {
        let (seq, event, message_id): (i64, i64, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let id = hash_id_text(&message_id);
        let added = store
            .cached("INSERT INTO ids (id, seq) VALUES (?, ?) ON CONFLICT DO NOTHING")?
            .execute((id, event))?;
        if added == 0 && store.dedup.find(&store.db.conn, &id)? != Some(event) {
            copies.push(seq);
        }
    }
    for seq in copies {
        store.cached(&format!("DELETE FROM {table} WHERE seq = ?"))?.execute([seq])?;
    }
    Ok(())
}

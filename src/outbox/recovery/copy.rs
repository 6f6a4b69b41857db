//! Copies the rows of a damaged outbox into a new one.

use super::pages::{Pages, StoredRow};
use crate::outbox::ack_log::AckLog;
use crate::outbox::counters::{ByteCounts, CounterChanges, DUPLICATES};
use crate::outbox::id_index::IdIndex;
use crate::outbox::meta::{HISTORY_SINCE, IDS_REMEMBERED_SINCE, PERSON_KEY};
use crate::outbox::retention::is_hash;
use crate::outbox::row::State;
use crate::outbox::tables::Tables;
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
    /// A table whose rows are copied as they are.
    Copied(&'static str),
    Meta,
    Counters,
    Destination,
}

impl RowKind {
    fn of(row: &StoredRow) -> Option<RowKind> {
        use RowKind::{Copied, Counters, Destination, Meta};
        use Value::{Blob, Integer, Null, Text};
        // A rowid's own column is stored as NULL.
        match (row.rowid, row.columns.as_slice()) {
            (Some(_), [Null, Text(_), .., Integer(_), Integer(_)]) if row.columns.len() == 11 => {
                Some(Copied("events"))
            }
            (Some(_), [Null, Text(_) | Null, Text(_)]) => Some(Copied("bodies")),
            (
                Some(_),
                [Null, Integer(_) | Null, Integer(_), Text(_), Integer(_), _, Integer(_), Integer(_)],
            ) => Some(Copied("queue")),
            (Some(_), [Null, Text(_), Integer(_), Integer(_), Text(_), Text(_), _, Integer(_)]) => {
                Some(Copied("settled"))
            }
            (Some(_), [Null, Integer(_), Text(ids), Null | Integer(_)])
                if serde_json::from_str::<Vec<i64>>(ids).is_ok() =>
            {
                Some(Copied("acks"))
            }
            (None, [Integer(_), Integer(_), Integer(_), Integer(_), Text(_), Text(_)]) => {
                Some(Copied("attempts"))
            }
            (None, [Integer(_), Integer(_), Text(_), Text(_), Text(_), Text(_), Integer(_)]) => {
                Some(Copied("items"))
            }
            (Some(_), [Null, .., Blob(_), Blob(_)]) if row.columns.len() == 9 => Some(Copied("id_segments")),
            (Some(_), [Null, Blob(_)]) => Some(Copied("id_chunks")),
            (Some(1), [Null, Text(_), ..]) if row.columns.len() == 7 => Some(Destination),
            (None, [Text(name), Integer(_)]) if is_hash(name) => Some(Copied("suppressed")),
            (None, [Text(_), _]) => Some(Meta),
            (None, [Text(_), Integer(_), Text(_), Integer(_)]) => Some(Counters),
            _ => None,
        }
    }
}

/// Deletes items of events that are settled, which is what counts if both can be read, and of those that cannot be sent.
const DELETE_STALE: &str = "DELETE FROM queue WHERE coalesce(seq, id) IN (SELECT seq FROM settled)
                                                OR coalesce(seq, id) NOT IN (SELECT seq FROM events)
                                                OR coalesce(seq, id) NOT IN (SELECT seq FROM bodies)";

/// Copies every row that can be read. The progress of the spool's files is not copied: the files are read again,
/// because an event that is lost here may still be there, and the others are recognised as duplicates. Must be called
/// within [`Tables::transaction`], on a new store.
pub fn copy(pages: &Pages, tables: &mut Tables) -> Result<Copied, rusqlite::Error> {
    let (mut counted, mut duplicates, mut totals) = (None::<i64>, 0, CounterChanges::default());
    pages.each_row(|row| match RowKind::of(&row) {
        Some(RowKind::Copied(table)) => insert(tables, table, row),
        Some(RowKind::Meta) => insert_meta(tables, &row),
        Some(RowKind::Destination) => {
            let facts = params_from_iter(&row.columns[2..4]);
            tables
                .cached("UPDATE destinations SET retry_after = ?, accepted_by = ? WHERE id = 1")?
                .execute(facts)?;
            Ok(())
        }
        Some(RowKind::Counters) => {
            if let [Value::Text(name), _, Value::Text(code), Value::Integer(value)] = row.columns.as_slice() {
                if name == DUPLICATES {
                    duplicates = *value;
                } else if State::parse(name).is_some() {
                    *counted.get_or_insert(0) += value;
                } else {
                    totals.recover_total(name, code, *value);
                }
            }
            Ok(())
        }
        None => Ok(()),
    })?;
    tables.store.conn.execute_batch(DELETE_STALE)?;
    // One that was not settled, and whose body is here, waits: its ordering key is
    // computed when the agent starts. Of one without a body nothing can be sent, and its id must not keep it out.
    tables.store.conn.execute_batch(
        "DELETE FROM settled WHERE seq NOT IN (SELECT seq FROM events);
         UPDATE settled SET body_bytes = coalesce((SELECT octet_length(b.body) FROM bodies b WHERE b.seq = settled.seq), 0)
          WHERE body_bytes > 0 OR seq IN (SELECT seq FROM bodies);
         INSERT OR IGNORE INTO queue (id, seq, destination, mapping, ordering_key, owner, bytes, queued_after)
         SELECT e.seq, NULL, 1, '', 0, e.owner, 0, 0 FROM events e JOIN bodies b ON b.seq = e.seq
          WHERE e.seq NOT IN (SELECT seq FROM settled)
            AND e.seq NOT IN (SELECT coalesce(seq, id) FROM queue);
         DELETE FROM events WHERE seq NOT IN (SELECT seq FROM settled)
                              AND seq NOT IN (SELECT coalesce(seq, id) FROM queue);
         DELETE FROM bodies WHERE seq NOT IN (SELECT seq FROM events);
         DELETE FROM attempts WHERE seq NOT IN (SELECT seq FROM events);
         DELETE FROM items WHERE seq NOT IN (SELECT seq FROM events);
         UPDATE destinations SET stale_keys_from = (SELECT min(id) FROM queue),
                                 stale_keys_to = (SELECT max(id) + 1 FROM queue);",
    )?;
    delete_copies(tables)?;
    tables.acks = AckLog::load(&tables.store.conn)?;
    tables.compact_all()?;
    // An ack may have settled an event of which an item waits. And no acks are left: the number of the last one is not
    // copied, so the next ones begin again, and no item may name one before which they would not count.
    tables.store.conn.execute_batch(DELETE_STALE)?;
    tables.store.conn.execute_batch(
        "DELETE FROM acks;
         UPDATE queue SET queued_after = 0 WHERE queued_after > 0;",
    )?;
    // All is counted anew below: what these rows changed is no change of that.
    tables.counters.clear();
    IdIndex::rebuild(&tables.store.conn)?;
    tables.store.conn.execute_batch(
        "INSERT INTO counters SELECT 'pending', 0, '', count(DISTINCT coalesce(seq, id)) FROM queue
                               HAVING count(*) > 0;
         INSERT INTO counters SELECT state, 0, code, count(*) FROM settled GROUP BY state, code;",
    )?;
    tables.bytes = ByteCounts::recount(&tables.store.conn)?;
    tables.counters.add_duplicates(duplicates);
    let number = |sql: &str| tables.store.conn.query_row(sql, [], |r| r.get::<_, i64>(0));
    let pending = number("SELECT count(DISTINCT coalesce(seq, id)) FROM queue")?;
    let settled = number("SELECT count(*) FROM settled")?;
    totals.balance_totals(pending);
    tables.counters.merge(totals);
    Ok(Copied {
        pending,
        settled,
        missing: counted.filter(|_| pages.are_of_one_state()).map(|n| (n - pending - settled).max(0)),
    })
}

/// Inserts a row, unless it breaks a rule of the table: then it is a damaged one.
fn insert(tables: &Tables, table: &str, row: StoredRow) -> Result<(), rusqlite::Error> {
    let placeholders = vec!["?"; row.columns.len()].join(", ");
    let rowid = row.rowid.map(Value::Integer);
    let skip = usize::from(rowid.is_some());
    let values = rowid.into_iter().chain(row.columns.into_iter().skip(skip));
    let inserted = tables
        .cached(&format!("INSERT OR IGNORE INTO {table} VALUES ({placeholders})"))?
        .execute(params_from_iter(values));
    match inserted {
        Err(e) if e.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => Ok(()),
        inserted => inserted.map(|_| ()),
    }
}

/// Inserts a fact, if it is one that outlives the damage.
fn insert_meta(tables: &Tables, row: &StoredRow) -> Result<(), rusqlite::Error> {
    let is_kept = match row.columns.as_slice() {
        [Value::Text(name), Value::Blob(key)] => name == PERSON_KEY && key.len() == 32,
        [Value::Text(name), Value::Integer(_)] => {
            [HISTORY_SINCE, IDS_REMEMBERED_SINCE].contains(&name.as_str())
        }
        _ => false,
    };
    if is_kept {
        tables
            .cached("INSERT OR REPLACE INTO meta VALUES (?, ?)")?
            .execute(params_from_iter(&row.columns))?;
    }
    Ok(())
}

/// Deletes events whose id an earlier event has: each is a copy of that one, from a page that was in use before.
fn delete_copies(tables: &Tables) -> Result<(), rusqlite::Error> {
    tables.store.conn.execute_batch(
        "CREATE TEMP TABLE copies AS
         SELECT seq FROM (SELECT seq, row_number() OVER (PARTITION BY message_id ORDER BY seq) AS n FROM events)
          WHERE n > 1;
         DELETE FROM events WHERE seq IN (SELECT seq FROM copies);
         DELETE FROM bodies WHERE seq IN (SELECT seq FROM copies);
         DELETE FROM queue WHERE coalesce(seq, id) IN (SELECT seq FROM copies);
         DELETE FROM settled WHERE seq IN (SELECT seq FROM copies);
         DELETE FROM items WHERE seq IN (SELECT seq FROM copies);
         DELETE FROM attempts WHERE seq IN (SELECT seq FROM copies);
         DROP TABLE copies;",
    )
}

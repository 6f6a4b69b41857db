//! From the rows of a damaged outbox to a sound one.

use super::pages::{Pages, StoredRow};
use crate::outbox::erase::SUPPRESSED;
use crate::outbox::ids::short_hash;
use crate::outbox::person::PERSON_KEY;
use crate::outbox::row::State;
use crate::outbox::store::{DUPLICATES, RETRY_AFTER_DEADLINE, RETRY_REQUESTS, Store};
use rusqlite::types::Value;
use rusqlite::{ErrorCode, params_from_iter};
use std::fmt;

/// What was taken over.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Events that wait.
    pub pending: i64,
    /// Events that are settled.
    pub settled: i64,
    /// Events that were in it by its own count and could not be read; `None`: the count could not be read either.
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

/// A table of the outbox, known by the shape of its rows.
enum Table {
    Pending,
    Settled,
    Bodies,
    Attempts,
    SettledItems,
    AckLog,
    Meta,
    Counters,
}

impl Table {
    fn of(row: &StoredRow) -> Option<Table> {
        use Value::{Integer, Null, Text};
        match (row.rowid, row.columns.as_slice()) {
            (Some(_), columns @ [Null, ..]) if columns.len() == 14 => Some(Table::Pending),
            (Some(_), columns @ [Null, ..]) if columns.len() == 15 => Some(Table::Settled),
            (Some(_), [Null, Text(_), Integer(_), Text(_)]) => Some(Table::Bodies),
            (Some(_), [Null, Integer(_), Text(seqs)]) if serde_json::from_str::<Vec<i64>>(seqs).is_ok() => {
                Some(Table::AckLog)
            }
            (None, [Integer(_), Integer(_), Integer(_), Text(_), Text(_)]) => Some(Table::Attempts),
            (None, [Integer(_), Text(_), Text(_), Text(_), Text(_), Integer(_)]) => Some(Table::SettledItems),
            (None, [Text(_), _]) => Some(Table::Meta),
            (None, [Text(_), Text(_), Integer(_)]) => Some(Table::Counters),
            _ => None,
        }
    }
}

/// Takes over whatever can be read. How far the files of the spool were taken is not: they are read again, and what is
/// known of them is recognised, while an event that is lost here may still be there. Call it within
/// [`Store::transaction`], on a new store.
pub fn copy(pages: &Pages, store: &mut Store) -> Result<Copied, rusqlite::Error> {
    let (mut counted, mut duplicates) = (None::<i64>, 0);
    // The settled ones first: an event that is found in both is settled.
    pages.rows(|row| match Table::of(&row) {
        Some(Table::Settled) => put(store, "settled", &row),
        Some(Table::Bodies) => put(store, "bodies", &row),
        Some(Table::Attempts) => put(store, "attempts", &row),
        Some(Table::SettledItems) => put(store, "settled_items", &row),
        Some(Table::AckLog) => put(store, "acks", &row),
        Some(Table::Meta) => put_meta(store, &row),
        Some(Table::Counters) => {
            if let [Value::Text(state), _, Value::Integer(n)] = row.columns.as_slice() {
                match state.as_str() {
                    DUPLICATES => duplicates = *n,
                    state if State::parse(state).is_some() => *counted.get_or_insert(0) += n,
                    _ => {}
                }
            }
            Ok(())
        }
        Some(Table::Pending) | None => Ok(()),
    })?;
    pages.rows(|row| match Table::of(&row) {
        Some(Table::Pending) => put(store, "pending", &row),
        _ => Ok(()),
    })?;
    store.conn.execute_batch(
        "DELETE FROM pending WHERE coalesce(event_seq, seq) IN (SELECT seq FROM settled);
         DELETE FROM bodies WHERE seq NOT IN (SELECT seq FROM settled);
         DELETE FROM attempts WHERE seq NOT IN (SELECT seq FROM settled)
                                AND seq NOT IN (SELECT coalesce(event_seq, seq) FROM pending);
         DELETE FROM settled_items WHERE seq NOT IN (SELECT seq FROM settled)
                                     AND seq NOT IN (SELECT event_seq FROM pending WHERE event_seq IS NOT NULL);",
    )?;
    store.read_acks()?;
    store.compact_all()?;
    know_ids(store, "settled", "seq")?;
    know_ids(store, "pending", "coalesce(event_seq, seq)")?;
    store.conn.execute_batch(
        "INSERT INTO counters SELECT 'pending', '', count(DISTINCT coalesce(event_seq, seq)) FROM pending
                               HAVING count(*) > 0;
         INSERT INTO counters SELECT state, code, count(*) FROM settled GROUP BY state, code;",
    )?;
    store.counted.add(DUPLICATES, "", duplicates);
    let count = |what: &str| store.conn.query_row(&format!("SELECT {what}"), [], |r| r.get::<_, i64>(0));
    let pending = count("count(DISTINCT coalesce(event_seq, seq)) FROM pending")?;
    let settled = count("count(*) FROM settled")?;
    store.next_seq = 1 + store.conn.query_row(
        "SELECT max(coalesce((SELECT max(seq) FROM pending), 0), coalesce((SELECT max(seq) FROM settled), 0))",
        [],
        |r| r.get::<_, i64>(0),
    )?;
    store.all_ids_stand(store.next_seq - 1)?;
    Ok(Copied { pending, settled, missing: counted.map(|n| (n - pending - settled).max(0)) })
}

/// Takes a row over, unless it breaks a rule of its table: then it is no row of ours.
fn put(store: &Store, table: &str, row: &StoredRow) -> Result<(), rusqlite::Error> {
    let places = vec!["?"; row.columns.len()].join(", ");
    // The first column is the rowid where there is one, and stands as NULL in the row itself.
    let first = row.rowid.map(Value::Integer);
    let skip = usize::from(first.is_some());
    let values = first.into_iter().chain(row.columns.iter().skip(skip).cloned());
    let put = store
        .cached(&format!("INSERT OR IGNORE INTO {table} VALUES ({places})"))?
        .execute(params_from_iter(values));
    match put {
        Err(e) if e.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => Ok(()),
        put => put.map(|_| ()),
    }
}

fn put_meta(store: &Store, row: &StoredRow) -> Result<(), rusqlite::Error> {
    let known = match row.columns.as_slice() {
        [Value::Text(name), Value::Blob(key)] => name == PERSON_KEY && key.len() == 32,
        [Value::Text(name), Value::Integer(_)] => {
            [RETRY_REQUESTS, RETRY_AFTER_DEADLINE].contains(&name.as_str()) || name.starts_with(SUPPRESSED)
        }
        _ => false,
    };
    if known {
        store.cached("INSERT OR REPLACE INTO meta VALUES (?, ?)")?.execute(params_from_iter(&row.columns))?;
    }
    Ok(())
}

/// Makes the ids of a table's events known; `event_seq` says which event a row is of. One that is known already stands
/// for the same event.
fn know_ids(store: &Store, table: &str, event_seq: &str) -> Result<(), rusqlite::Error> {
    let mut rows =
        store.conn.prepare(&format!("SELECT seq, {event_seq}, message_id FROM {table} ORDER BY seq"))?;
    let mut rows = rows.query([])?;
    let mut again: Vec<i64> = Vec::new();
    while let Some(row) = rows.next()? {
        let (seq, event, message_id): (i64, i64, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let id = short_hash(&message_id);
        let added = store
            .cached("INSERT INTO ids (id, seq) VALUES (?, ?) ON CONFLICT DO NOTHING")?
            .execute((id, event))?;
        if added == 0 && store.seq_of(&id)? != Some(event) {
            again.push(seq);
        }
    }
    for seq in again {
        store.cached(&format!("DELETE FROM {table} WHERE seq = ?"))?.execute([seq])?;
    }
    Ok(())
}

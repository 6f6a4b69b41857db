//! The mappings by which the ordering keys of pending items were computed, and which items still have keys by others.
//!
//! Such items are not found by the sender until their keys are renewed: the events of a person would be sent beside each
//! other if they stood under several keys. The range that may hold some is kept with the destination, in the transaction that makes
//! it, and not worked out by the sender: a file that is read slowly, and a command in a process of its own, may store
//! events under mappings that were changed meanwhile, and a crash may come between any two steps.

use super::destinations::KOALA;
use super::row::{Addressee, PendingItem};
use super::{OutboxError, Reader};
use crate::item::{Keying, OrderingKey};
use rusqlite::{Connection, params};
use std::ops::Range;

/// A step in the renewal of ordering keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyRenewal {
    /// Other mappings are in force: the keys of all items that are pending by now are stale.
    Begin(Keying),
    /// The keys of the items below `next` are renewed.
    Renewed {
        /// The items whose keys are others by the mappings in force.
        items: Vec<(i64, Addressee)>,
        /// The first item that is still to be looked at.
        next: i64,
    },
}

/// The state in memory of the writer, as of the current transaction.
#[derive(Debug, Default)]
pub(super) struct KeyingState {
    keying: Keying,
    /// Items in this range may have stale keys.
    stale: Option<Range<i64>>,
}

impl KeyingState {
    pub(super) fn load(conn: &Connection) -> Result<KeyingState, rusqlite::Error> {
        Ok(KeyingState { keying: keying(conn)?.unwrap_or_default(), stale: stale(conn)? })
    }

    /// Whether a key computed under those mappings is stale when it is stored.
    pub(super) fn is_stale(&self, keying: Keying) -> bool {
        self.keying != keying
    }

    /// Records that these items have, or may have, stale keys.
    pub(super) fn add_stale(&mut self, conn: &Connection, items: Range<i64>) -> Result<(), rusqlite::Error> {
        let all = match self.stale.take() {
            Some(stale) => stale.start.min(items.start)..stale.end.max(items.end),
            None => items,
        };
        self.set_stale(conn, Some(all))
    }

    /// Makes a step; `next_seq`: the lowest number that no item has.
    pub(super) fn renew(
        &mut self,
        conn: &Connection,
        step: &KeyRenewal,
        next_seq: i64,
    ) -> Result<(), rusqlite::Error> {
        match step {
            KeyRenewal::Begin(keying) => {
                self.keying = *keying;
                conn.prepare_cached("UPDATE destinations SET keying = ?2 WHERE id = ?1")?
                    .execute(params![KOALA, keying.0])?;
                let first: Option<i64> =
                    conn.prepare_cached("SELECT min(id) FROM queue")?.query_row([], |r| r.get(0))?;
                self.set_stale(conn, first.map(|first| first..next_seq))
            }
            KeyRenewal::Renewed { items, next } => {
                let mut update = conn.prepare_cached("UPDATE queue SET ordering_key = ?2 WHERE id = ?1")?;
                for (id, addressee) in items {
                    update.execute(params![id, addressee.ordering_key.0])?;
                }
                let left = self.stale.take().map(|stale| stale.start.max(*next)..stale.end);
                self.set_stale(conn, left.filter(|left| !left.is_empty()))
            }
        }
    }

    fn set_stale(&mut self, conn: &Connection, stale: Option<Range<i64>>) -> Result<(), rusqlite::Error> {
        let (from, to) = (stale.as_ref().map(|stale| stale.start), stale.as_ref().map(|stale| stale.end));
        conn.prepare_cached(
            "UPDATE destinations SET stale_keys_from = ?2, stale_keys_to = ?3 WHERE id = ?1",
        )?
        .execute(params![KOALA, from, to])?;
        self.stale = stale;
        Ok(())
    }
}

/// Queries of the keys, over a connection that reads.
#[derive(Debug)]
pub struct KeyQueries<'a> {
    pub(super) reader: &'a Reader,
}

impl KeyQueries<'_> {
    /// The mappings by which keys are computed, if an agent has named any, and the range of the items whose keys may be
    /// stale. The items that a search before this did not return for that are still in it.
    ///
    /// # Errors
    /// SQLite's.
    pub fn keying(&self) -> Result<(Option<Keying>, Option<Range<i64>>), OutboxError> {
        let read = |conn| Ok((keying(conn)?, stale(conn)?));
        read(self.reader.connection()).map_err(|e| self.reader.error("look for stale keys", e))
    }

    /// Reads up to `limit` of these items, oldest first, each with its ordering key. Returns the first item that was not
    /// read.
    ///
    /// # Errors
    /// SQLite's.
    pub fn read(
        &self,
        items: &Range<i64>,
        limit: usize,
        mut each: impl FnMut(&PendingItem<'_>, OrderingKey),
    ) -> Result<i64, OutboxError> {
        let mut read = || {
            let mut statement = self.reader.connection().prepare_cached(
                "SELECT q.id, q.seq IS NULL, q.mapping, e.message_id, e.spooled_at, b.body, q.ordering_key
                   FROM queue q
                  CROSS JOIN events e ON e.seq = coalesce(q.seq, q.id)
                  CROSS JOIN bodies b ON b.seq = e.seq
                  WHERE q.id >= ? AND q.id < ? ORDER BY q.id LIMIT ?",
            )?;
            let mut rows = statement.query(params![items.start, items.end, limit as i64])?;
            let (mut read, mut next) = (0, items.end);
            while let Some(row) = rows.next()? {
                let item = PendingItem::from_row(row)?;
                read += 1;
                if read == limit {
                    next = item.seq + 1;
                }
                each(&item, OrderingKey(row.get(6)?));
            }
            Ok(next)
        };
        read().map_err(|e| self.reader.error("read pending events", e))
    }
}

/// The mappings by which keys are computed; `None`: no agent of this outbox has named any yet.
fn keying(conn: &Connection) -> Result<Option<Keying>, rusqlite::Error> {
    let keying: Option<i64> = conn
        .prepare_cached("SELECT keying FROM destinations WHERE id = ?")?
        .query_row([KOALA], |r| r.get(0))?;
    Ok(keying.map(Keying))
}

/// The range of items that may have stale keys, if there are any.
fn stale(conn: &Connection) -> Result<Option<Range<i64>>, rusqlite::Error> {
    let (from, to): (Option<i64>, Option<i64>) = conn
        .prepare_cached("SELECT stale_keys_from, stale_keys_to FROM destinations WHERE id = ?")?
        .query_row([KOALA], |r| Ok((r.get(0)?, r.get(1)?)))?;
    Ok(from.zip(to).map(|(from, to)| from..to))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::item::Disposition;
    use crate::outbox::append::Append;
    use crate::outbox::appended::Appended;
    use crate::outbox::fixture::{self, event};
    use crate::outbox::tables::Tables;
    use crate::outbox::{NewEvent, NewItem, Reader};

    fn keyed_by(id: &str, key: i64, keying: i64) -> NewEvent {
        let addressee = Addressee {
            ordering_key: OrderingKey(key),
            keying: Keying(keying),
            person: fixture::person("p"),
        };
        let disposition = Disposition::Send(addressee);
        let item = NewItem { mapping: "Track Calls".into(), disposition };
        NewEvent { disposition: Disposition::Send(vec![item]), ..event(id.to_owned(), "{}".to_owned()) }
    }

    /// Stores events; returns whether the sender has to search for them.
    fn append(tables: &mut Tables, events: &[NewEvent]) -> bool {
        match tables.transaction(|tables| Append::run(tables, events, &[], Timestamp(0))).unwrap() {
            Appended::Stored { enqueued, .. } => enqueued.is_stale,
            other => panic!("{other:?}"),
        }
    }

    fn renew(tables: &mut Tables, step: &KeyRenewal) -> Option<Range<i64>> {
        tables.transaction(|tables| tables.renew_keys(step)).unwrap();
        assert_eq!(KeyingState::load(&tables.store.conn).unwrap().stale, tables.keying.stale);
        tables.keying.stale.clone()
    }

    fn keys(tables: &Tables) -> Vec<i64> {
        let mut rows = tables.cached("SELECT ordering_key FROM queue ORDER BY id").unwrap();
        rows.query_map([], |r| r.get(0)).unwrap().map(Result::unwrap).collect()
    }

    #[test]
    fn keys_are_stale_from_a_change_until_they_are_renewed_and_those_stored_late_as_well() {
        let dir = tempfile::tempdir().unwrap();
        let mut tables = fixture::tables(dir.path());
        assert_eq!(renew(&mut tables, &KeyRenewal::Begin(Keying(1))), None, "nothing is pending");
        assert!(!append(&mut tables, &["a", "b", "c"].map(|id| keyed_by(id, 1, 1))));
        assert_eq!(renew(&mut tables, &KeyRenewal::Begin(Keying(2))), Some(1..4));
        assert!(!append(&mut tables, &[keyed_by("d", 2, 2)]));

        let renewed = |seqs: &[i64], next| {
            let addressee = |_| Addressee {
                ordering_key: OrderingKey(2),
                keying: Keying(2),
                person: fixture::person("q"),
            };
            KeyRenewal::Renewed { items: seqs.iter().map(|seq| (*seq, addressee(seq))).collect(), next }
        };
        assert_eq!(renew(&mut tables, &renewed(&[1, 2], 3)), Some(3..4));
        assert!(
            append(&mut tables, &[keyed_by("e", 2, 2), keyed_by("f", 1, 1)]),
            "f was mapped before the change"
        );
        assert_eq!(renew(&mut tables, &renewed(&[3], 4)), Some(4..7));
        assert_eq!(renew(&mut tables, &renewed(&[6], 7)), None);
        assert_eq!(keys(&tables), [2; 6]);

        // Of an append that is refused, nothing is left.
        let mut reused = keyed_by("a", 1, 1);
        reused.digest = crate::event::Digest::from_bytes([9; 8]);
        let events = [keyed_by("g", 1, 1), reused];
        let refused = tables.transaction(|tables| Append::run(tables, &events, &[], Timestamp(0))).unwrap();
        assert!(matches!(refused, Appended::Reused(_)));
        assert_eq!((tables.keying.stale.clone(), stale(&tables.store.conn).unwrap()), (None, None));
    }

    /// A withdrawal waits for the person under whom the item is sent now.
    #[test]
    fn a_waiting_item_is_read_under_its_renewed_key() {
        let dir = tempfile::tempdir().unwrap();
        let mut tables = fixture::tables(dir.path());
        renew(&mut tables, &KeyRenewal::Begin(Keying(1)));
        append(&mut tables, &["a", "b"].map(|id| keyed_by(id, 1, 1)));
        let reader = Reader::open_in_process(&fixture::config(dir.path()).path).unwrap();
        let keys_of = |seqs: &[i64]| {
            let queued = reader.events().queued_items(seqs).unwrap();
            assert_eq!(reader.events().still_pending(seqs).unwrap(), queued);
            queued.iter().map(|item| (item.seq, item.key.0)).collect::<Vec<_>>()
        };
        assert_eq!(keys_of(&[2, 1, 9]), [(2, 1), (1, 1)]);
        let person = fixture::person("q");
        let addressee = Addressee { ordering_key: OrderingKey(2), keying: Keying(2), person };
        renew(&mut tables, &KeyRenewal::Begin(Keying(2)));
        renew(&mut tables, &KeyRenewal::Renewed { items: vec![(2, addressee)], next: 3 });
        assert_eq!(keys_of(&[2, 1, 9]), [(2, 2), (1, 1)]);
    }
}

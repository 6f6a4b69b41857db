//! The mappings by which the ordering keys of pending items were computed, and which items still have keys by others.
//!
//! Such items are not found by the sender until their keys are renewed: the events of a person would be sent beside each
//! other if they stood under several keys. The range that may hold some is kept in `meta`, in the transaction that makes
//! it, and not worked out by the sender: a file that is read slowly, and a command in a process of its own, may store
//! events under mappings that were changed meanwhile, and a crash may come between any two steps.

use super::meta::{self, KEYING, STALE_KEYS_FROM, STALE_KEYS_TO};
use super::row::{Addressee, PendingItem};
use super::{OutboxError, Reader};
use crate::item::{Keying, OrderingKey};
use rusqlite::{Connection, OptionalExtension, params};
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
                meta::set(conn, KEYING, keying.0)?;
                let first: Option<i64> =
                    conn.prepare_cached("SELECT min(seq) FROM pending")?.query_row([], |r| r.get(0))?;
                self.set_stale(conn, first.map(|first| first..next_seq))
            }
            KeyRenewal::Renewed { items, next } => {
                let mut update =
                    conn.prepare_cached("UPDATE pending SET ordering_key = ?2, person = ?3 WHERE seq = ?1")?;
                for (seq, addressee) in items {
                    update.execute(params![seq, addressee.ordering_key.0, addressee.person])?;
                }
                let left = self.stale.take().map(|stale| stale.start.max(*next)..stale.end);
                self.set_stale(conn, left.filter(|left| !left.is_empty()))
            }
        }
    }

    fn set_stale(&mut self, conn: &Connection, stale: Option<Range<i64>>) -> Result<(), rusqlite::Error> {
        match &stale {
            Some(stale) => {
                meta::set(conn, STALE_KEYS_FROM, stale.start)?;
                meta::set(conn, STALE_KEYS_TO, stale.end)?;
            }
            None => {
                meta::remove(conn, STALE_KEYS_FROM)?;
                meta::remove(conn, STALE_KEYS_TO)?;
            }
        }
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
                "SELECT seq, event_seq IS NULL, mapping, message_id, spooled_at, body, ordering_key
                   FROM pending WHERE seq >= ? AND seq < ? ORDER BY seq LIMIT ?",
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
    Ok(meta::get(conn, KEYING)?.map(Keying))
}

/// The range of items that may have stale keys, if there are any.
fn stale(conn: &Connection) -> Result<Option<Range<i64>>, rusqlite::Error> {
    let sql = "SELECT f.value, t.value FROM meta f, meta t WHERE f.name = ? AND t.name = ?";
    conn.prepare_cached(sql)?
        .query_row([STALE_KEYS_FROM, STALE_KEYS_TO], |r| Ok(r.get(0)?..r.get(1)?))
        .optional()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::item::Disposition;
    use crate::outbox::append::{Append, Appended};
    use crate::outbox::fixture::{self, event};
    use crate::outbox::store::Store;
    use crate::outbox::{NewEvent, NewItem};

    fn keyed_by(id: &str, key: i64, keying: i64) -> NewEvent {
        let addressee =
            Addressee { ordering_key: OrderingKey(key), keying: Keying(keying), person: "p".into() };
        let disposition = Disposition::Send(addressee);
        let item = NewItem { mapping: "Track Calls".into(), disposition };
        NewEvent { disposition: Disposition::Send(vec![item]), ..event(id.to_owned(), "{}".to_owned()) }
    }

    /// Stores events; returns whether the sender has to search for them.
    fn append(store: &mut Store, events: &[NewEvent]) -> bool {
        match store.transaction(|store| Append::run(store, events, &[], Timestamp(0))).unwrap() {
            Appended::Stored { enqueued, .. } => enqueued.is_stale,
            reused @ Appended::Reused(_) => panic!("{reused:?}"),
        }
    }

    fn renew(store: &mut Store, step: &KeyRenewal) -> Option<Range<i64>> {
        store.transaction(|store| store.renew_keys(step)).unwrap();
        assert_eq!(KeyingState::load(&store.db.conn).unwrap().stale, store.keying.stale);
        store.keying.stale.clone()
    }

    fn keys(store: &Store) -> Vec<i64> {
        let mut rows = store.cached("SELECT ordering_key FROM pending ORDER BY seq").unwrap();
        rows.query_map([], |r| r.get(0)).unwrap().map(Result::unwrap).collect()
    }

    #[test]
    fn keys_are_stale_from_a_change_until_they_are_renewed_and_those_stored_late_as_well() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = fixture::store(dir.path());
        assert_eq!(renew(&mut store, &KeyRenewal::Begin(Keying(1))), None, "nothing is pending");
        assert!(!append(&mut store, &["a", "b", "c"].map(|id| keyed_by(id, 1, 1))));
        assert_eq!(renew(&mut store, &KeyRenewal::Begin(Keying(2))), Some(1..4));
        assert!(!append(&mut store, &[keyed_by("d", 2, 2)]));

        let renewed = |seqs: &[i64], next| {
            let addressee =
                |_| Addressee { ordering_key: OrderingKey(2), keying: Keying(2), person: "q".into() };
            KeyRenewal::Renewed { items: seqs.iter().map(|seq| (*seq, addressee(seq))).collect(), next }
        };
        assert_eq!(renew(&mut store, &renewed(&[1, 2], 3)), Some(3..4));
        assert!(
            append(&mut store, &[keyed_by("e", 2, 2), keyed_by("f", 1, 1)]),
            "f was mapped before the change"
        );
        assert_eq!(renew(&mut store, &renewed(&[3], 4)), Some(4..7));
        assert_eq!(renew(&mut store, &renewed(&[6], 7)), None);
        assert_eq!(keys(&store), [2; 6]);

        // Of an append that is refused, nothing is left.
        let mut reused = keyed_by("a", 1, 1);
        reused.digest = crate::event::Digest::from_bytes([9; 16]);
        let events = [keyed_by("g", 1, 1), reused];
        let refused = store.transaction(|store| Append::run(store, &events, &[], Timestamp(0))).unwrap();
        assert!(matches!(refused, Appended::Reused(_)));
        assert_eq!((store.keying.stale.clone(), stale(&store.db.conn).unwrap()), (None, None));
    }
}

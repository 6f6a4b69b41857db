//! How events leave `pending` and come back to it: each by a legal change of its state, and counted.

use super::ack_map::Ack;
use super::items::EventItems;
use super::row::{Addressee, NewItem, Settled, State};
use super::store::Store;
use crate::clock::Timestamp;
use crate::item::Disposition;
use crate::reason::{Code, Reason};
use rusqlite::{OptionalExtension, params};

/// Attempts kept for one event. The last ones matter most, and the first cause is seldom older than this many.
const MAX_ATTEMPTS: i64 = 16;

/// The columns of a pending row that decide how it is settled.
struct PendingRow {
    person: String,
    event_seq: Option<i64>,
    mapping: String,
}

/// Changes of state at one time, within a transaction of the store.
pub(super) struct Transitions<'a> {
    pub(super) store: &'a mut Store,
    pub(super) now: Timestamp,
    /// The status of the answer that accepted the events that are delivered, if it is known.
    pub(super) status: Option<u16>,
}

impl Transitions<'_> {
    /// Settles pending items, and with its last item an event. Items that are not pending any more are left as they
    /// are. `is_read_version`: no row was changed since the delivered ones were read as pending and alone, so they need
    /// not be read again.
    pub(super) fn settle(
        &mut self,
        items: &[(i64, Settled)],
        is_read_version: bool,
    ) -> Result<(), rusqlite::Error> {
        for (seq, settled) in items {
            debug_assert!(State::Pending.may_become(settled.state()));
            if *settled == Settled::Delivered {
                self.store.counters.delivered(self.now);
            }
            if is_read_version && *settled == Settled::Delivered {
                self.acknowledge(*seq);
            } else if let Some(row) = self.pending_row(*seq)? {
                self.settle_item(*seq, row, settled)?;
            }
        }
        Ok(())
    }

    /// The row of an item that waits; `None`: it is settled, or delivered and not compacted yet.
    fn pending_row(&self, seq: i64) -> Result<Option<PendingRow>, rusqlite::Error> {
        let row = self
            .store
            .cached("SELECT person, event_seq, mapping FROM pending WHERE seq = ?")?
            .query_row([seq], |r| {
                Ok(PendingRow { person: r.get(0)?, event_seq: r.get(1)?, mapping: r.get(2)? })
            })
            .optional()?;
        Ok(row.filter(|_| !self.store.acks.contains(seq)))
    }

    fn settle_item(&mut self, seq: i64, row: PendingRow, settled: &Settled) -> Result<(), rusqlite::Error> {
        let Some(event_seq) = row.event_seq else {
            if *settled == Settled::Delivered {
                self.acknowledge(seq);
                return Ok(());
            }
            return self.settle_event(seq, row.person, settled);
        };
        let items = EventItems { conn: &self.store.db.conn, seq: event_seq };
        items.settle(&row.mapping, settled, self.now)?;
        if items.others_are_pending(seq)? {
            return delete_pending(self.store, "seq = ?", seq).map(drop);
        }
        let result = items.result()?;
        self.settle_event(seq, row.person, &result)
    }

    /// Records the delivery of an event that is one item; compaction moves its row later.
    fn acknowledge(&mut self, seq: i64) {
        if self.store.acks.add(seq, Ack { at: self.now, status: self.status }) {
            self.store.counters.change_state((State::Pending, ""), (State::Delivered, ""));
            self.store.counters.settle(State::Delivered, "");
        }
    }

    /// Moves the event of a pending row, which is its last, to `settled`.
    fn settle_event(&mut self, seq: i64, person: String, settled: &Settled) -> Result<(), rusqlite::Error> {
        let state = settled.state();
        let keeps_body = self.store.retention.keeps_body(settled);
        let person = if keeps_body { person } else { self.store.retention.person_key.hash(&person) };
        let (code, text) = settled.code_and_text();
        self.store
            .cached(
                "INSERT INTO settled (seq, state, message_id, type, event, person, digest, file, place, owner,
                                      spooled_at, received_at, settled_at, attempts, code, reason, status)
                 SELECT coalesce(event_seq, seq), ?2, message_id, type, event, ?3, digest, file, place, owner,
                        spooled_at, received_at, ?4,
                        (SELECT coalesce(max(n), 0) FROM attempts a WHERE a.seq = coalesce(event_seq, p.seq)) + ?5,
                        ?6, ?7, ?8
                   FROM pending p WHERE seq = ?1",
            )?
            .execute(params![
                seq,
                state.as_str(),
                person,
                self.now.0,
                i64::from(state == State::Delivered),
                code,
                text,
                self.status.filter(|_| state == State::Delivered)
            ])?;
        if let Settled::Failed(reason) = settled {
            self.store.note_failure(seq, reason)?;
        }
        if keeps_body {
            self.store
                .cached(
                    "INSERT INTO bodies (seq, state, settled_at, body)
                     SELECT coalesce(event_seq, seq), ?2, ?3, body FROM pending WHERE seq = ?1",
                )?
                .execute(params![seq, state.as_str(), self.now.0])?;
        }
        delete_pending(self.store, "seq = ?", seq)?;
        self.store.counters.change_state((State::Pending, ""), (state, code));
        self.store.counters.settle(state, code);
        Ok(())
    }

    /// Records an answer other than acceptance with the events of these items.
    pub(super) fn add_attempts(&mut self, items: &[i64], reason: &Reason) -> Result<(), rusqlite::Error> {
        for item in items {
            let event: Option<i64> = self
                .store
                .cached("SELECT coalesce(event_seq, seq) FROM pending WHERE seq = ?")?
                .query_row([item], |r| r.get(0))
                .optional()?;
            let Some(event) = event else { continue };
            self.store
                .cached(
                    "INSERT INTO attempts (seq, n, at, code, reason)
                     SELECT ?1, coalesce((SELECT max(n) FROM attempts WHERE seq = ?1), 0) + 1, ?2, ?3, ?4",
                )?
                .execute(params![event, self.now.0, reason.code.as_str(), reason.text])?;
            self.store
                .cached(
                    "DELETE FROM attempts
                      WHERE seq = ?1 AND n <= (SELECT max(n) FROM attempts WHERE seq = ?1) - ?2",
                )?
                .execute(params![event, MAX_ATTEMPTS])?;
        }
        Ok(())
    }

    /// Makes a settled event pending again whose body is kept: all items of a delivered event, else those that were not
    /// delivered. Returns `false` if that is not possible.
    pub(super) fn requeue(&mut self, seq: i64, items: &[NewItem]) -> Result<bool, rusqlite::Error> {
        let Some((state, code)) = settled_state(self.store, seq)? else { return Ok(false) };
        let has_body: bool = self
            .store
            .cached("SELECT EXISTS (SELECT 1 FROM bodies WHERE seq = ?)")?
            .query_row([seq], |r| r.get(0))?;
        if !state.may_become(State::Pending) || !has_body {
            return Ok(false);
        }
        let event_items = EventItems { conn: &self.store.db.conn, seq };
        event_items.reset(state != State::Delivered)?;
        let undelivered = event_items.undelivered(items)?;
        if !undelivered.iter().any(|item| matches!(item.disposition, Disposition::Send(_))) {
            return Ok(false);
        }
        let event_seq = (items.len() > 1).then_some(seq);
        let mut n = 0;
        for item in undelivered {
            let event_items = EventItems { conn: &self.store.db.conn, seq };
            let Some(Addressee { ordering_key, keying, person }) =
                event_items.settle_unless_sent(item, self.now)?
            else {
                continue;
            };
            let item_seq = self.seq_for_item(seq, seq + n)?;
            n += 1;
            self.store
                .cached(
                    "INSERT INTO pending (seq, event_seq, ordering_key, mapping, message_id, type, event, person,
                                          digest, file, place, owner, spooled_at, received_at, body)
                     SELECT ?2, ?6, ?3, ?5, s.message_id, s.type, s.event, ?4, s.digest, s.file, s.place,
                            s.owner, s.spooled_at, s.received_at, b.body
                       FROM settled s JOIN bodies b ON b.seq = s.seq WHERE s.seq = ?1",
                )?
                .execute(params![seq, item_seq, ordering_key.0, person, &*item.mapping, event_seq])?;
            if self.store.keying.is_stale(*keying) {
                self.store.keying.add_stale(&self.store.db.conn, item_seq..item_seq + 1)?;
            }
            let (owner, bytes) = self
                .store
                .cached("SELECT owner, octet_length(body) FROM pending WHERE seq = ?")?
                .query_row([item_seq], |r| Ok((r.get(0)?, r.get(1)?)))?;
            self.store.counters.add_row(owner, bytes);
        }
        delete(self.store, "settled", seq)?;
        delete(self.store, "bodies", seq)?;
        self.store.counters.change_state((state, code), (State::Pending, ""));
        self.store.counters.requeue();
        Ok(true)
    }

    /// The number for an item that comes back: the wanted one, at or right after its event's, if it is free; else one
    /// at the end of the queue.
    fn seq_for_item(&mut self, event_seq: i64, wanted: i64) -> Result<i64, rusqlite::Error> {
        let items = EventItems { conn: &self.store.db.conn, seq: event_seq };
        if items.can_stand_at(wanted)? && wanted < self.store.next_seq {
            return Ok(wanted);
        }
        self.store.take_seq()
    }

    /// Drops an event for good: its body is erased, and it is never sent. Returns `false` if its state does not allow
    /// that.
    pub(super) fn discard(&mut self, seq: i64) -> Result<bool, rusqlite::Error> {
        match settled_state(self.store, seq)? {
            Some((state, _)) if !state.may_become(State::Discarded) => Ok(false),
            Some((state, code)) => {
                let person: Option<String> = self
                    .store
                    .cached("SELECT person FROM settled WHERE seq = ?")?
                    .query_row([seq], |r| r.get(0))?;
                let person = person.map(|p| self.store.retention.person_key.hash(&p));
                self.store
                    .cached(
                        "UPDATE settled SET state = 'discarded', person = ?2, settled_at = ?3, code = '', reason = ''
                          WHERE seq = ?1",
                    )?
                    .execute(params![seq, person, self.now.0])?;
                delete(self.store, "bodies", seq)?;
                self.store.counters.change_state((state, code), (State::Discarded, ""));
                Ok(true)
            }
            None => {
                self.make_single_item(seq)?;
                self.settle(&[(seq, Settled::Discarded)], false)?;
                Ok(settled_state(self.store, seq)?.is_some())
            }
        }
    }

    /// Leaves one pending row of an event that has several, as if the event were that one item.
    fn make_single_item(&mut self, event_seq: i64) -> Result<(), rusqlite::Error> {
        let all_but_first = "event_seq = ?1 AND seq > (SELECT min(seq) FROM pending WHERE event_seq = ?1)";
        delete_pending(self.store, all_but_first, event_seq)?;
        delete(self.store, "settled_items", event_seq)?;
        self.store
            .cached("UPDATE pending SET seq = event_seq, event_seq = NULL WHERE event_seq = ?")?
            .execute([event_seq])?;
        Ok(())
    }
}

/// Deletes all rows of an event, whatever its state. The totals have one that was pending as skipped.
pub(super) fn erase(store: &mut Store, seq: i64) -> Result<(), rusqlite::Error> {
    let (state, code) = settled_state(store, seq)?.unwrap_or((State::Pending, ""));
    let mut rows = delete_pending(store, "seq = ?1 OR event_seq = ?1", seq)?;
    rows += store.cached("DELETE FROM settled WHERE seq = ?")?.execute([seq])?;
    for table in ["settled_items", "bodies", "attempts"] {
        delete(store, table, seq)?;
    }
    if rows > 0 {
        store.counters.add(state, code, -1);
        if state == State::Pending {
            store.counters.settle(State::Skipped, Code::Erased.as_str());
        }
    }
    Ok(())
}

fn delete(store: &Store, table: &str, seq: i64) -> Result<(), rusqlite::Error> {
    store.cached(&format!("DELETE FROM {table} WHERE seq = ?"))?.execute([seq]).map(drop)
}

/// Deletes the rows of `pending` for which the condition on that number holds. Returns how many there were.
fn delete_pending(store: &mut Store, condition: &str, seq: i64) -> Result<usize, rusqlite::Error> {
    let sql = format!("DELETE FROM pending WHERE {condition} RETURNING owner, octet_length(body)");
    let deleted = store
        .cached(&sql)?
        .query_map([seq], |r| Ok((r.get(0)?, r.get(1)?)))?
        .collect::<Result<Vec<(Option<u32>, i64)>, _>>()?;
    for (owner, bytes) in &deleted {
        store.counters.remove_row(*owner, *bytes);
    }
    Ok(deleted.len())
}

/// The state and reason code of a settled event.
fn settled_state(store: &Store, seq: i64) -> Result<Option<(State, &'static str)>, rusqlite::Error> {
    let row: Option<(String, String)> = store
        .cached("SELECT state, code FROM settled WHERE seq = ?")?
        .query_row([seq], |r| Ok((r.get(0)?, r.get(1)?)))
        .optional()?;
    Ok(row
        .and_then(|(state, code)| Some((State::parse(&state)?, Code::parse(&code).map_or("", Code::as_str)))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::item::{Keying, OrderingKey};
    use crate::outbox::append::Append;
    use crate::outbox::fixture::{self, numbered_event};
    use crate::outbox::{Appended, NewEvent};

    const NOW: Timestamp = Timestamp(1_800_000_000_000);

    fn pending(store: &Store) -> Vec<(i64, Option<i64>, String)> {
        let mut rows = store.cached("SELECT seq, event_seq, mapping FROM pending ORDER BY seq").unwrap();
        let rows = rows.query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?))).unwrap();
        rows.map(Result::unwrap).collect()
    }

    fn state(store: &Store, seq: i64) -> String {
        let sql = "SELECT state FROM outbox_events WHERE seq = ?";
        store.db.conn.query_row(sql, [seq], |r| r.get(0)).unwrap()
    }

    #[test]
    fn a_skipped_event_comes_back_as_several_items_and_is_delivered_with_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = fixture::store(dir.path());
        let skip = Disposition::Skip(Reason::new(Code::NoMapping, "none takes it"));
        let events = [NewEvent { disposition: skip, ..numbered_event(1) }, numbered_event(2)];
        let appended = store.transaction(|store| Append::run(store, &events, &[], NOW)).unwrap();
        assert!(matches!(appended, Appended::Stored { stored: 2, .. }));
        let items = ["Pages", "Accounts"].map(|mapping| NewItem {
            mapping: mapping.into(),
            disposition: Disposition::Send(Addressee {
                ordering_key: OrderingKey(1),
                keying: Keying::default(),
                person: "p".into(),
            }),
        });
        let requeue = |store: &mut Store| Transitions { store, now: NOW, status: None }.requeue(1, &items);
        assert!(store.transaction(requeue).unwrap());
        // The second event stands right behind the first, so one item goes to the end.
        let item = |seq, mapping: &str| (seq, Some(1), mapping.to_owned());
        assert_eq!(pending(&store), [item(1, "Pages"), (2, None, "Track Calls".into()), item(3, "Accounts")]);
        assert!(!store.transaction(requeue).unwrap(), "a pending event was requeued");
        for (seq, expected) in [(3, "pending"), (1, "delivered")] {
            let settle = |store: &mut Store| {
                Transitions { store, now: NOW, status: None }.settle(&[(seq, Settled::Delivered)], false)
            };
            store.transaction(settle).unwrap();
            assert_eq!(state(&store, 1), expected);
        }
        let counts = crate::outbox::Counts::read(&store.db.conn).unwrap();
        assert_eq!(
            (counts.of(State::Pending), counts.of(State::Delivered), counts.of(State::Skipped)),
            (1, 1, 0)
        );
    }
}

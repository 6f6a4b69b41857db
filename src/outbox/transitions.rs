//! How events are settled and come back into the queue: each by a legal change of its state, and counted.

use super::ack_map::Ack;
use super::counters::event_bytes;
use super::items::EventItems;
use super::row::{Addressee, NewItem, QueuedItem, Settled, State};
use super::settled_row::SettledRow;
use super::tables::Tables;
use crate::clock::Timestamp;
use crate::reason::{Code, Reason};
use rusqlite::{OptionalExtension, params};

/// The columns of a row of `queue` that decide how the item is settled.
struct QueueRow {
    seq: Option<i64>,
    mapping: String,
    owner: Option<u32>,
    bytes: i64,
}

/// What has come of the wish to make a settled event pending again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Requeued {
    /// It is pending.
    Done,
    /// It was not settled; nothing has changed.
    NotSettled,
    /// It is in that state, and its body is not kept; nothing has changed.
    BodyGone(State),
    /// It is in that state, and none of the items can be sent, for that reason; nothing has changed.
    Unsendable(State, Reason),
}

/// Changes of state at one time, within a transaction of the store.
pub(super) struct Transitions<'a> {
    pub(super) tables: &'a mut Tables,
    pub(super) now: Timestamp,
    /// The status of the answer that accepted the events that are delivered, if it is known.
    pub(super) status: Option<u16>,
}

impl Transitions<'_> {
    /// Settles pending items, and with its last item an event. Items that are not pending any more are left as they
    /// are. `are_alone`: the delivered ones were read as pending and each alone of its event, so they need not be read
    /// again. Nobody else settles an item that is in flight; one that is erased meanwhile is known.
    pub(super) fn settle(
        &mut self,
        items: &[(i64, Settled)],
        are_alone: bool,
    ) -> Result<(), rusqlite::Error> {
        for (id, settled) in items {
            debug_assert!(State::Pending.may_become(settled.state()));
            if *settled == Settled::Delivered {
                self.tables.counters.delivered(self.now);
            }
            if self.tables.is_removed(*id) {
                continue;
            }
            if are_alone && *settled == Settled::Delivered {
                self.acknowledge(*id);
            } else if let Some(row) = self.queue_row(*id)?.filter(|_| !self.tables.acks.contains(*id)) {
                self.settle_item(*id, row, settled)?;
            }
        }
        Ok(())
    }

    fn queue_row(&self, id: i64) -> Result<Option<QueueRow>, rusqlite::Error> {
        self.tables
            .cached("SELECT seq, mapping, owner, bytes FROM queue WHERE id = ?")?
            .query_row([id], |r| {
                Ok(QueueRow { seq: r.get(0)?, mapping: r.get(1)?, owner: r.get(2)?, bytes: r.get(3)? })
            })
            .optional()
    }

    fn settle_item(&mut self, id: i64, row: QueueRow, settled: &Settled) -> Result<(), rusqlite::Error> {
        let Some(seq) = row.seq else {
            if *settled == Settled::Delivered {
                self.acknowledge(id);
                return Ok(());
            }
            self.leave_queue(id, &row)?;
            return self.settle_event(id, settled);
        };
        let items = EventItems { conn: &self.tables.store.conn, seq };
        items.settle(&row.mapping, settled, self.now)?;
        match items.other_in_queue(id)? {
            Some(other) => {
                // The event takes its room as long as any of its items waits.
                self.tables
                    .cached("UPDATE queue SET bytes = bytes + ?2 WHERE id = ?1")?
                    .execute([other, row.bytes])?;
                delete(self.tables, "queue", "id", id)
            }
            None => {
                let result = items.result()?;
                self.leave_queue(id, &row)?;
                self.settle_event(seq, &result)
            }
        }
    }

    fn leave_queue(&mut self, id: i64, row: &QueueRow) -> Result<(), rusqlite::Error> {
        delete(self.tables, "queue", "id", id)?;
        self.tables.counters.add_queued(row.owner, -row.bytes);
        Ok(())
    }

    /// Records the acceptance of an event that is one item; compaction settles it later.
    fn acknowledge(&mut self, id: i64) {
        if self.tables.acks.add(id, Ack { at: self.now, status: self.status }) {
            self.tables.counters.change_state((State::Pending, ""), (State::Delivered, ""));
            self.tables.counters.settle(State::Delivered, "");
        }
    }

    /// Settles an event at once that is accepted and waits for compaction.
    fn settle_acked(&mut self, seq: i64) -> Result<(), rusqlite::Error> {
        let Some(Ack { at, status }) = self.tables.acks.take(seq) else { return Ok(()) };
        let Some(row) = self.queue_row(seq)? else { return Ok(()) };
        self.leave_queue(seq, &row)?;
        self.write_settled(seq, &Settled::Delivered, at, status)
    }

    /// Settles an event of which no item is left in the queue.
    fn settle_event(&mut self, seq: i64, settled: &Settled) -> Result<(), rusqlite::Error> {
        self.write_settled(seq, settled, self.now, self.status)?;
        if let Settled::Failed(reason) = settled {
            self.tables.note_failure(seq, reason)?;
        }
        let (state, (code, _)) = (settled.state(), settled.code_and_text());
        self.tables.counters.change_state((State::Pending, ""), (state, code));
        self.tables.counters.settle(state, code);
        Ok(())
    }

    /// Writes how an event is settled, and erases its body unless that is kept.
    fn write_settled(
        &mut self,
        seq: i64,
        settled: &Settled,
        at: Timestamp,
        status: Option<u16>,
    ) -> Result<(), rusqlite::Error> {
        let (state, (code, text)) = (settled.state(), settled.code_and_text());
        let is_delivered = state == State::Delivered;
        let keeps_body = self.tables.retention.keeps_body(settled);
        let body = if keeps_body { self.body_bytes(seq)?.unwrap_or(0) } else { 0 };
        self.tables
            .cached(
                "INSERT INTO settled (seq, state, settled_at, attempts, code, reason, status, body_bytes)
                 VALUES (?1, ?2, ?3, (SELECT coalesce(max(n), 0) FROM attempts WHERE seq = ?1) + ?4, ?5, ?6, ?7, ?8)",
            )?
            .execute(params![
                seq,
                state.as_str(),
                at.0,
                i64::from(is_delivered),
                code,
                text,
                status.filter(|_| is_delivered),
                body
            ])?;
        if !keeps_body {
            delete(self.tables, "bodies", "seq", seq)?;
        }
        self.tables.counters.add_kept(state, event_bytes(body));
        Ok(())
    }

    /// The length of an event's body; `None`: it is not kept.
    fn body_bytes(&self, seq: i64) -> Result<Option<i64>, rusqlite::Error> {
        self.tables
            .cached("SELECT octet_length(body) FROM bodies WHERE seq = ?")?
            .query_row([seq], |r| r.get(0))
            .optional()
    }

    /// Makes a settled event pending again whose body is kept: all items of a delivered event, else those that were not
    /// delivered.
    pub(super) fn requeue(&mut self, seq: i64, items: &[NewItem]) -> Result<Requeued, rusqlite::Error> {
        self.settle_acked(seq)?;
        let Some(was) = SettledRow::read(self.tables, seq)? else { return Ok(Requeued::NotSettled) };
        if !was.state.may_become(State::Pending) || was.body_bytes == 0 {
            return Ok(Requeued::BodyGone(was.state));
        }
        let owner: Option<u32> =
            self.tables.cached("SELECT owner FROM events WHERE seq = ?")?.query_row([seq], |r| r.get(0))?;
        let event_items = EventItems { conn: &self.tables.store.conn, seq };
        let keeps_delivered = was.state != State::Delivered;
        let wanted = match event_items.to_send_again(items, keeps_delivered)? {
            Ok(wanted) => wanted,
            Err(reason) => return Ok(Requeued::Unsendable(was.state, reason)),
        };
        event_items.reset(keeps_delivered)?;
        let event_seq = (items.len() > 1).then_some(seq);
        let (mut n, mut bytes) = (0, was.bytes());
        for item in wanted {
            let event_items = EventItems { conn: &self.tables.store.conn, seq };
            let Some(Addressee { ordering_key, keying, person }) =
                event_items.settle_unless_sent(item, self.now)?
            else {
                continue;
            };
            let id = self.id_for_item(seq, seq + n)?;
            // After a crash, an ack of an item that had the number before may still be in memory.
            self.tables.acks.take(id);
            if n == 0 {
                self.tables.set_person(seq, person.as_str())?;
            }
            n += 1;
            let queued = QueuedItem { seq: id, key: *ordering_key, owner };
            let queued_after = self.tables.acks.last_stored();
            self.tables.enqueue(&queued, event_seq, &item.mapping, bytes, queued_after)?;
            bytes = 0;
            if self.tables.keying.is_stale(*keying) {
                self.tables.keying.add_stale(&self.tables.store.conn, id..id + 1)?;
            }
        }
        self.tables.counters.add_kept(was.state, -was.bytes());
        delete(self.tables, "settled", "seq", seq)?;
        self.tables.counters.change_state((was.state, was.code), (State::Pending, ""));
        self.tables.counters.requeue();
        Ok(Requeued::Done)
    }

    /// The number for an item that comes back: the wanted one, at or right after its event's, if it is free; else one
    /// at the end of the queue.
    fn id_for_item(&mut self, event_seq: i64, wanted: i64) -> Result<i64, rusqlite::Error> {
        let items = EventItems { conn: &self.tables.store.conn, seq: event_seq };
        if items.may_have(wanted)? && wanted < self.tables.next_seq && !self.tables.is_removed(wanted) {
            return Ok(wanted);
        }
        self.tables.take_seq()
    }

    /// Drops an event for good: its body is erased, and it is never sent. Returns `false` if its state does not allow
    /// that.
    pub(super) fn discard(&mut self, seq: i64) -> Result<bool, rusqlite::Error> {
        self.settle_acked(seq)?;
        match SettledRow::read(self.tables, seq)? {
            Some(was) if !was.state.may_become(State::Discarded) => Ok(false),
            Some(was) => {
                self.tables.counters.add_kept(was.state, -was.bytes());
                self.tables
                    .cached(
                        "UPDATE settled SET state = 'discarded', settled_at = ?2, code = '', reason = '', body_bytes = 0
                          WHERE seq = ?1",
                    )?
                    .execute(params![seq, self.now.0])?;
                delete(self.tables, "bodies", "seq", seq)?;
                self.tables.counters.change_state((was.state, was.code), (State::Discarded, ""));
                Ok(true)
            }
            None if delete_queued(self.tables, seq)? > 0 => {
                delete(self.tables, "items", "seq", seq)?;
                self.settle_event(seq, &Settled::Discarded)?;
                Ok(true)
            }
            None => Ok(false),
        }
    }
}

/// Deletes all rows of an event, whatever its state. The totals have one that was pending as skipped.
pub(super) fn erase(tables: &mut Tables, seq: i64) -> Result<(), rusqlite::Error> {
    Transitions { tables, now: Timestamp(0), status: None }.settle_acked(seq)?;
    if let Some(was) = SettledRow::read(tables, seq)? {
        tables.counters.add_kept(was.state, -was.bytes());
        tables.counters.add(was.state, was.code, -1);
    } else if delete_queued(tables, seq)? > 0 {
        tables.counters.add(State::Pending, "", -1);
        tables.counters.settle(State::Skipped, Code::Erased.as_str());
    }
    // The event may have the highest number.
    tables.reserve_seqs()?;
    delete_event(tables, seq)
}

/// Deletes the rows of an event that is not in the queue. Its id is left.
pub(super) fn delete_event(tables: &Tables, seq: i64) -> Result<(), rusqlite::Error> {
    ["events", "bodies", "settled", "items", "attempts"]
        .into_iter()
        .try_for_each(|table| delete(tables, table, "seq", seq))
}

fn delete(tables: &Tables, table: &str, key: &str, n: i64) -> Result<(), rusqlite::Error> {
    tables.cached(&format!("DELETE FROM {table} WHERE {key} = ?"))?.execute([n]).map(drop)
}

/// Deletes an event's items from the queue. Returns how many there were.
fn delete_queued(tables: &mut Tables, seq: i64) -> Result<usize, rusqlite::Error> {
    let deleted = tables
        .cached("DELETE FROM queue WHERE seq = ?1 OR seq IS NULL AND id = ?1 RETURNING owner, bytes")?
        .query_map([seq], |r| Ok((r.get(0)?, r.get(1)?)))?
        .collect::<Result<Vec<(Option<u32>, i64)>, _>>()?;
    for (owner, bytes) in &deleted {
        tables.counters.add_queued(*owner, -bytes);
    }
    Ok(deleted.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::item::{Disposition, Keying, OrderingKey};
    use crate::outbox::append::Append;
    use crate::outbox::fixture::{self, numbered_event};
    use crate::outbox::{Appended, NewEvent};

    const NOW: Timestamp = Timestamp(1_800_000_000_000);

    fn queue(tables: &Tables) -> Vec<(i64, Option<i64>, String)> {
        let mut rows = tables.cached("SELECT id, seq, mapping FROM queue ORDER BY id").unwrap();
        let rows = rows.query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?))).unwrap();
        rows.map(Result::unwrap).collect()
    }

    fn state(tables: &Tables, seq: i64) -> String {
        let sql = "SELECT state FROM outbox_events WHERE seq = ?";
        tables.store.conn.query_row(sql, [seq], |r| r.get(0)).unwrap()
    }

    #[test]
    fn a_skipped_event_comes_back_as_several_items_and_is_delivered_with_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let mut tables = fixture::tables(dir.path());
        let skip = Disposition::Skip(Reason::new(Code::NoMapping, "none takes it"));
        let events = [NewEvent { disposition: skip, ..numbered_event(1) }, numbered_event(2)];
        let appended = tables.transaction(|tables| Append::run(tables, &events, &[], NOW)).unwrap();
        assert!(matches!(appended, Appended::Stored { stored: 2, .. }));
        let items = ["Pages", "Accounts"].map(|mapping| NewItem {
            mapping: mapping.into(),
            disposition: Disposition::Send(Addressee {
                ordering_key: OrderingKey(1),
                keying: Keying::default(),
                person: fixture::person("p"),
            }),
        });
        let requeue = |tables: &mut Tables| Transitions { tables, now: NOW, status: None }.requeue(1, &items);
        assert_eq!(tables.transaction(requeue).unwrap(), Requeued::Done);
        // The second event stands right behind the first, so one item goes to the end.
        let item = |seq, mapping: &str| (seq, Some(1), mapping.to_owned());
        assert_eq!(queue(&tables), [item(1, "Pages"), (2, None, "Track Calls".into()), item(3, "Accounts")]);
        assert_eq!(tables.transaction(requeue).unwrap(), Requeued::NotSettled);
        for (seq, expected) in [(3, "pending"), (1, "delivered")] {
            let settle = |tables: &mut Tables| {
                Transitions { tables, now: NOW, status: None }.settle(&[(seq, Settled::Delivered)], false)
            };
            tables.transaction(settle).unwrap();
            assert_eq!(state(&tables, 1), expected);
        }
        let counts = crate::outbox::Counts::read(&tables.store.conn).unwrap();
        assert_eq!(
            (counts.of(State::Pending), counts.of(State::Delivered), counts.of(State::Skipped)),
            (1, 1, 0)
        );
    }
}

//! Acceptances whose items still stand in `queue`, and the compaction that settles those.
//!
//! The acceptances of one commit lie all over the queue, because events of one person are sent one after another. To
//! delete each row at once would rewrite a page or two for it. So a commit appends their numbers to the table `acks`, a
//! few bytes each, and compaction works later in the order of the queue, each page once: a short row comes into `settled`,
//! and those of the item and of the body go. The event's row is not touched.
//!
//! An event that was put back into the queue keeps its number. Its row there names the last ack before that, so that an ack
//! of its first time in the queue, which may still be in the table after a crash, does not count for the second.

use super::ack_map::{Ack, AckMap};
use super::counters::CounterChanges;
use super::meta::{self, LAST_ACK};
use super::retention::Retention;
use super::row::Settled;
use crate::clock::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::BTreeMap;
use std::time::Duration;

/// Acks in memory, some seven bytes each, while older events still wait: as many as the sender reads ahead, so that a
/// queue of that size is compacted once.
const MAX_ACKS: usize = 1_500_000;
/// Time after its delivery that an event's body may stay while older events wait. With the time until the write-ahead log
/// is emptied, it is overwritten within half a minute.
const COMPACT_AFTER: Duration = Duration::from_secs(10);

/// The acks whose items are not settled yet, as of the current transaction.
#[derive(Debug, Default)]
pub(super) struct AckLog {
    acks: AckMap,
    /// Acks of this transaction that are not in the table yet.
    new: Vec<i64>,
    /// Numbers in the table, including those of items that are settled.
    stored: usize,
    /// The time of the oldest ack in the table.
    oldest: Option<Timestamp>,
    /// The number of the last row of the table, or of one before it that was deleted.
    last_n: i64,
    pass: Option<CompactionPass>,
}

/// A pass that settles all accepted items, some in each transaction.
#[derive(Debug, Clone, Copy)]
struct CompactionPass {
    /// The items before this one are settled.
    next: i64,
    /// Rows of the table `acks` up to this one are deleted at the end of the pass.
    upto: i64,
}

impl AckLog {
    pub(super) fn load(conn: &Connection) -> Result<AckLog, rusqlite::Error> {
        let last_n = meta::get(conn, LAST_ACK)?.unwrap_or_default();
        let mut log = AckLog { last_n, ..AckLog::default() };
        let again = queued_again(conn)?;
        each_stored(conn, |n, id, ack| {
            log.stored += 1;
            log.last_n = log.last_n.max(n);
            log.oldest = Some(log.oldest.map_or(ack.at, |oldest| oldest.min(ack.at)));
            if again.get(&id).is_none_or(|after| n > *after) {
                log.acks.insert(id, ack);
            }
        })?;
        Ok(log)
    }

    pub(super) fn contains(&self, id: i64) -> bool {
        self.acks.get(id).is_some()
    }

    /// Takes the ack of an item whose row in the queue is about to be settled otherwise, or was.
    pub(super) fn take(&mut self, id: i64) -> Option<Ack> {
        let ack = self.acks.get(id);
        self.acks.remove(id, id + 1);
        ack
    }

    /// The last row of the table: acks up to it do not count for an item that is queued now; 0: the table is empty.
    pub(super) fn last_stored(&self) -> i64 {
        if self.stored > 0 { self.last_n } else { 0 }
    }

    /// When the receiver accepted that item, while it stands in the queue.
    pub(super) fn at(&self, id: i64) -> Option<Timestamp> {
        self.acks.get(id).map(|ack| ack.at)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.acks.is_empty()
    }

    /// The lowest number above all acks.
    pub(super) fn next_id(&self) -> i64 {
        self.acks.last().map_or(0, |last| last + 1)
    }

    /// The number of acks that this transaction has added.
    pub(super) fn added(&self) -> usize {
        self.new.len()
    }

    /// Whether a pass has begun and is not done.
    pub(super) fn is_compacting(&self) -> bool {
        self.pass.is_some()
    }

    /// Records that a pending item is accepted. Returns whether it was not before.
    pub(super) fn add(&mut self, id: i64, ack: Ack) -> bool {
        let is_new = self.acks.insert(id, ack);
        if is_new {
            self.new.push(id);
        }
        is_new
    }

    /// Appends the acks of this transaction whose items are not settled to the table: a row for each status, which is one as
    /// a rule.
    pub(super) fn append(&mut self, conn: &Connection) -> Result<(), rusqlite::Error> {
        let mut new = std::mem::take(&mut self.new);
        new.sort_unstable();
        let mut by_status: BTreeMap<Option<u16>, (Timestamp, Vec<i64>)> = BTreeMap::new();
        for seq in new {
            if let Some(ack) = self.acks.get(seq) {
                by_status.entry(ack.status).or_insert_with(|| (ack.at, Vec::new())).1.push(seq);
            }
        }
        for (status, (at, seqs)) in by_status {
            let text = serde_json::to_string(&seqs)
                .map_err(|e| rusqlite::Error::ToSqlConversionFailure(e.into()))?;
            self.last_n += 1;
            conn.prepare_cached("INSERT INTO acks (n, at, ids, status) VALUES (?, ?, ?, ?)")?
                .execute(params![self.last_n, at.0, text, status])?;
            self.stored += seqs.len();
            self.oldest.get_or_insert(at);
        }
        Ok(())
    }

    /// Settles accepted items at the head of the queue if that `is_due`; the others only in a pass, which begins when there
    /// are many acks or old ones. Settles about `limit` items, and at most twice as many.
    pub(super) fn compact_some(
        &mut self,
        conn: &Connection,
        retention: &Retention,
        counters: &mut CounterChanges,
        is_due: bool,
        limit: usize,
        now: Timestamp,
    ) -> Result<(), rusqlite::Error> {
        if self.acks.is_empty() {
            return self.clear(conn);
        }
        if is_due {
            self.settle_run(conn, retention, counters, i64::MIN, limit)?;
        }
        let is_old = self.oldest.is_some_and(|oldest| oldest <= now.minus(COMPACT_AFTER));
        if is_old || self.acks.len() > MAX_ACKS || self.stored > 2 * MAX_ACKS {
            self.begin_pass();
        }
        self.continue_pass(conn, retention, counters, limit)
    }

    /// Begins to settle every item that is accepted by now, unless that has begun.
    pub(super) fn begin_pass(&mut self) {
        self.pass.get_or_insert(CompactionPass { next: i64::MIN, upto: self.last_n });
    }

    /// Settles every accepted item; no acks are left.
    pub(super) fn compact_all(
        &mut self,
        conn: &Connection,
        retention: &Retention,
        counters: &mut CounterChanges,
    ) -> Result<(), rusqlite::Error> {
        while let Some(first) = self.acks.first_from(i64::MIN) {
            self.settle_run(conn, retention, counters, first, usize::MAX)?;
        }
        self.clear(conn)
    }

    fn continue_pass(
        &mut self,
        conn: &Connection,
        retention: &Retention,
        counters: &mut CounterChanges,
        limit: usize,
    ) -> Result<(), rusqlite::Error> {
        let Some(mut pass) = self.pass else { return Ok(()) };
        let mut left = limit;
        while let Some(first) = self.acks.first_from(pass.next) {
            if left == 0 {
                self.pass = Some(pass);
                return Ok(());
            }
            let (settled, next) = self.settle_run(conn, retention, counters, first, left)?;
            left -= settled.max(1);
            pass.next = next;
        }
        self.pass = None;
        if self.acks.is_empty() {
            return self.clear(conn);
        }
        conn.prepare_cached("DELETE FROM acks WHERE n <= ?")?.execute([pass.upto])?;
        (self.stored, self.oldest) = conn
            .prepare_cached("SELECT coalesce(sum(json_array_length(ids)), 0), min(at) FROM acks")?
            .query_row([], |r| {
                Ok((r.get::<_, i64>(0)? as usize, r.get::<_, Option<i64>>(1)?.map(Timestamp)))
            })?;
        Ok(())
    }

    fn clear(&mut self, conn: &Connection) -> Result<(), rusqlite::Error> {
        if self.stored > 0 {
            conn.prepare_cached("DELETE FROM acks")?.execute([])?;
            let is_queued_again = conn
                .prepare_cached("SELECT EXISTS (SELECT 1 FROM queue WHERE queued_after > 0)")?
                .query_row([], |r| r.get::<_, bool>(0))?;
            if is_queued_again {
                // The numbers must go on behind those that items in the queue name.
                meta::set(conn, LAST_ACK, self.last_n)?;
            }
        }
        *self = AckLog { last_n: self.last_n, ..AckLog::default() };
        Ok(())
    }

    /// Settles accepted items from the first at or after `from` up to the first that is not accepted, at most `limit`.
    /// Returns how many were settled, and the item at which it stopped.
    fn settle_run(
        &mut self,
        conn: &Connection,
        retention: &Retention,
        counters: &mut CounterChanges,
        from: i64,
        limit: usize,
    ) -> Result<(usize, i64), rusqlite::Error> {
        // Hardly an event has attempts, so they are read only if the table has any rows.
        let has_attempts = conn
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM attempts)")?
            .query_row([], |r| r.get::<_, bool>(0))?;
        let mut attempts = conn.prepare_cached("SELECT coalesce(max(n), 0) FROM attempts WHERE seq = ?")?;
        let mut settle = conn.prepare_cached(
            "INSERT INTO settled (seq, state, settled_at, attempts, code, reason, status, body_bytes)
             VALUES (?, 'delivered', ?, ?, '', '', ?, ?) ON CONFLICT (seq) DO NOTHING",
        )?;
        let keeps_body = retention.keeps_body(&Settled::Delivered);
        let mut body = conn.prepare_cached("SELECT octet_length(body) FROM bodies WHERE seq = ?")?;
        let mut queue =
            conn.prepare_cached("SELECT id, owner, bytes, seq IS NULL FROM queue WHERE id >= ? ORDER BY id")?;
        let (mut rows, mut next) = (queue.query([from])?, i64::MAX);
        // Between two items that follow each other in the queue may stand the bodies of other events.
        let mut runs: Vec<(i64, i64)> = Vec::new();
        let mut count = 0;
        while let Some(row) = rows.next()? {
            let id: i64 = row.get(0)?;
            let Some(Ack { at, status }) = self.acks.get(id).filter(|_| count < limit) else {
                next = id;
                break;
            };
            // An ack is of an event that is one item. After damage there may be an old one, from before the event became
            // several items, or was settled: it is dropped.
            if !row.get::<_, bool>(3)? {
                continue;
            }
            let before: i64 = if has_attempts { attempts.query_row([id], |r| r.get(0))? } else { 0 };
            let kept: Option<i64> =
                if keeps_body { body.query_row([id], |r| r.get(0)).optional()? } else { None };
            if settle.execute(params![id, at.0, before + 1, status, kept.unwrap_or(0)])? == 0 {
                continue;
            }
            counters.add_queued(row.get(1)?, -row.get::<_, i64>(2)?);
            match runs.last_mut() {
                Some((_, last)) if *last == id - 1 => *last = id,
                _ => runs.push((id, id)),
            }
            count += 1;
        }
        drop(rows);
        let mut from_queue = conn.prepare_cached("DELETE FROM queue WHERE id BETWEEN ? AND ?")?;
        let mut from_bodies = conn.prepare_cached("DELETE FROM bodies WHERE seq BETWEEN ? AND ?")?;
        for run in runs {
            from_queue.execute(run)?;
            if !keeps_body {
                from_bodies.execute(run)?;
            }
        }
        // Acks of items that have left the queue otherwise are dropped as well.
        self.acks.remove(from, next);
        Ok((count, next))
    }
}

/// The items that were put back into the queue, and the last ack before that.
fn queued_again(conn: &Connection) -> Result<BTreeMap<i64, i64>, rusqlite::Error> {
    conn.prepare_cached("SELECT id, queued_after FROM queue WHERE queued_after > 0")?
        .query_map([], |r| Ok((r.get(0)?, r.get(1)?)))?
        .collect()
}

/// Calls `each` with every accepted item whose row stands in the queue, or stood there, and its ack.
pub(super) fn each_ack(conn: &Connection, mut each: impl FnMut(i64, Ack)) -> Result<(), rusqlite::Error> {
    let again = queued_again(conn)?;
    each_stored(conn, |n, id, ack| {
        if again.get(&id).is_none_or(|after| n > *after) {
            each(id, ack);
        }
    })
}

/// Calls `each` with every number in the table `acks`, that of its row first.
fn each_stored(conn: &Connection, mut each: impl FnMut(i64, i64, Ack)) -> Result<(), rusqlite::Error> {
    let mut acks = conn.prepare_cached("SELECT n, at, ids, status FROM acks ORDER BY n")?;
    let mut rows = acks.query([])?;
    while let Some(row) = rows.next()? {
        let (n, ack) = (row.get(0)?, Ack { at: Timestamp(row.get(1)?), status: row.get(3)? });
        let ids: Vec<i64> = serde_json::from_str(row.get_ref(2)?.as_str()?).map_err(|e| {
            rusqlite::Error::FromSqlConversionFailure(2, rusqlite::types::Type::Text, Box::new(e))
        })?;
        ids.into_iter().for_each(|id| each(n, id, ack));
    }
    Ok(())
}

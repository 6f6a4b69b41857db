//! Deliveries whose rows still stand in `pending`, and the compaction that moves those rows into `settled`.
//!
//! The deliveries of one commit lie all over the queue, because events of one person are sent one after another. To
//! move each row at once would rewrite a page or two for it. So a commit appends their numbers to the table `acks`, a
//! few bytes each, and the rows move later in the order of the queue, each page once.

use super::ack_map::{Ack, AckMap};
use super::counters::CounterChanges;
use super::retention::Retention;
use super::row::Settled;
use crate::clock::Timestamp;
use rusqlite::types::ToSqlOutput;
use rusqlite::{Connection, ToSql, params};
use std::collections::BTreeMap;
use std::time::Duration;

/// Acks in memory, some seven bytes each, while older events still wait: as many as the sender reads ahead, so that a
/// queue of that size is compacted once.
const MAX_ACKS: usize = 1_500_000;
/// Time after its delivery that a row, with the event's body, may stay in `pending` while older events wait.
const COMPACT_AFTER: Duration = Duration::from_secs(30);

/// The acks whose rows have not moved yet, as of the current transaction.
#[derive(Debug, Default)]
pub(super) struct AckLog {
    acks: AckMap,
    /// Acks of this transaction that are not in the table yet.
    new: Vec<i64>,
    /// Numbers in the table, including those of rows that have moved.
    stored: usize,
    /// The time of the oldest ack in the table.
    oldest: Option<Timestamp>,
    pass: Option<CompactionPass>,
}

/// A pass that moves all delivered rows, some in each transaction.
#[derive(Debug, Clone, Copy)]
struct CompactionPass {
    /// The rows before this one have moved.
    next: i64,
    /// Rows of the table `acks` up to this one are deleted at the end of the pass.
    upto: i64,
}

impl AckLog {
    pub(super) fn load(conn: &Connection) -> Result<AckLog, rusqlite::Error> {
        let mut log = AckLog::default();
        each_ack(conn, |seq, ack| {
            log.stored += 1;
            log.oldest = Some(log.oldest.map_or(ack.at, |oldest| oldest.min(ack.at)));
            log.acks.insert(seq, ack);
        })?;
        Ok(log)
    }

    pub(super) fn contains(&self, seq: i64) -> bool {
        self.acks.get(seq).is_some()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.acks.is_empty()
    }

    /// The lowest number above all acks.
    pub(super) fn next_seq(&self) -> i64 {
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

    /// Records that a pending event is delivered. Returns whether it was not before.
    pub(super) fn add(&mut self, seq: i64, ack: Ack) -> bool {
        let is_new = self.acks.insert(seq, ack);
        if is_new {
            self.new.push(seq);
        }
        is_new
    }

    /// Appends the acks of this transaction whose rows have not moved to the table: a row for each status, which is one as
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
            conn.prepare_cached("INSERT INTO acks (at, seqs, status) VALUES (?, ?, ?)")?
                .execute(params![at.0, text, status])?;
            self.stored += seqs.len();
            self.oldest.get_or_insert(at);
        }
        Ok(())
    }

    /// Moves delivered rows at the head of the queue; the others only in a pass, which begins when there are many acks
    /// or old ones. Moves about `limit` rows, and at most twice as many.
    pub(super) fn compact_some(
        &mut self,
        conn: &Connection,
        retention: &Retention,
        counters: &mut CounterChanges,
        limit: usize,
        now: Timestamp,
    ) -> Result<(), rusqlite::Error> {
        if self.acks.is_empty() {
            return self.clear(conn);
        }
        self.move_run(conn, retention, counters, i64::MIN, limit)?;
        let is_old = self.oldest.is_some_and(|oldest| oldest <= now.minus(COMPACT_AFTER));
        if is_old || self.acks.len() > MAX_ACKS || self.stored > 2 * MAX_ACKS {
            self.begin_pass(conn)?;
        }
        self.continue_pass(conn, retention, counters, limit)
    }

    /// Begins to move every row that is delivered by now, unless that has begun.
    pub(super) fn begin_pass(&mut self, conn: &Connection) -> Result<(), rusqlite::Error> {
        if self.pass.is_none() {
            let upto =
                conn.prepare_cached("SELECT coalesce(max(n), 0) FROM acks")?.query_row([], |r| r.get(0))?;
            self.pass = Some(CompactionPass { next: i64::MIN, upto });
        }
        Ok(())
    }

    /// Moves every delivered row; no acks are left.
    pub(super) fn compact_all(
        &mut self,
        conn: &Connection,
        retention: &Retention,
        counters: &mut CounterChanges,
    ) -> Result<(), rusqlite::Error> {
        while let Some(first) = self.acks.first_from(i64::MIN) {
            self.move_run(conn, retention, counters, first, usize::MAX)?;
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
            let (moved, next) = self.move_run(conn, retention, counters, first, left)?;
            left -= moved.max(1);
            pass.next = next;
        }
        self.pass = None;
        if self.acks.is_empty() {
            return self.clear(conn);
        }
        conn.prepare_cached("DELETE FROM acks WHERE n <= ?")?.execute([pass.upto])?;
        (self.stored, self.oldest) = conn
            .prepare_cached("SELECT coalesce(sum(json_array_length(seqs)), 0), min(at) FROM acks")?
            .query_row([], |r| {
                Ok((r.get::<_, i64>(0)? as usize, r.get::<_, Option<i64>>(1)?.map(Timestamp)))
            })?;
        Ok(())
    }

    fn clear(&mut self, conn: &Connection) -> Result<(), rusqlite::Error> {
        if self.stored > 0 {
            conn.prepare_cached("DELETE FROM acks")?.execute([])?;
        }
        *self = AckLog::default();
        Ok(())
    }

    /// Moves delivered rows from the first at or after `from` up to the first that is not delivered, at most `limit`.
    /// Returns how many have moved, and the row at which it stopped.
    fn move_run(
        &mut self,
        conn: &Connection,
        retention: &Retention,
        counters: &mut CounterChanges,
        from: i64,
        limit: usize,
    ) -> Result<(usize, i64), rusqlite::Error> {
        let keeps_body = retention.keeps_body(&Settled::Delivered);
        // Hardly an event has attempts, so they are read only if the table has any rows.
        let has_attempts = conn
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM attempts)")?
            .query_row([], |r| r.get::<_, bool>(0))?;
        let (mut run, mut next) = (None, i64::MAX);
        let mut moved = 0;
        let mut pending = conn.prepare_cached(
            "SELECT seq, person, message_id, type, event, digest, file, place, owner, spooled_at, received_at,
                    octet_length(body), body
               FROM pending WHERE seq >= ? ORDER BY seq",
        )?;
        let mut attempts = conn.prepare_cached("SELECT coalesce(max(n), 0) FROM attempts WHERE seq = ?")?;
        let mut settled = conn.prepare_cached(
            "INSERT INTO settled (seq, person, message_id, type, event, digest, file, place, owner, spooled_at,
                                  received_at, attempts, state, settled_at, code, reason, status)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'delivered', ?, '', '', ?)",
        )?;
        let mut bodies = conn.prepare_cached(
            "INSERT INTO bodies (seq, state, settled_at, body) VALUES (?, 'delivered', ?, ?)",
        )?;
        let mut rows = pending.query([from])?;
        while let Some(row) = rows.next()? {
            let seq: i64 = row.get(0)?;
            let Some(Ack { at, status }) = self.acks.get(seq).filter(|_| moved < limit) else {
                next = seq;
                break;
            };
            let unchanged = |column| row.get_ref(column).map(ToSqlOutput::Borrowed);
            let hash =
                if keeps_body { None } else { Some(retention.person_key.hash(row.get_ref(1)?.as_str()?)) };
            settled.raw_bind_parameter(1, seq)?;
            match &hash {
                Some(hash) => settled.raw_bind_parameter(2, hash)?,
                None => settled.raw_bind_parameter(2, unchanged(1)?)?,
            }
            for column in 2..11 {
                settled.raw_bind_parameter(column + 1, unchanged(column)?)?;
            }
            let before: i64 = if has_attempts { attempts.query_row([seq], |r| r.get(0))? } else { 0 };
            settled.raw_bind_parameter(12, before + 1)?;
            settled.raw_bind_parameter(13, at.0)?;
            settled.raw_bind_parameter(14, status)?;
            settled.raw_execute()?;
            if keeps_body {
                bodies.execute([&seq as &dyn ToSql, &at.0, &unchanged(12)?])?;
            }
            counters.remove_row(row.get(8)?, row.get(11)?);
            run = Some((run.map_or(seq, |(first, _)| first), seq));
            moved += 1;
        }
        drop(rows);
        if let Some((first, last)) = run {
            conn.prepare_cached("DELETE FROM pending WHERE seq BETWEEN ? AND ?")?.execute([first, last])?;
        }
        // Acks of rows that are gone, because another process has settled them, are dropped as well.
        self.acks.remove(from, next);
        Ok((moved, next))
    }
}

/// Calls `each` with every number in the table `acks` and its ack.
pub(super) fn each_ack(conn: &Connection, mut each: impl FnMut(i64, Ack)) -> Result<(), rusqlite::Error> {
    let mut acks = conn.prepare_cached("SELECT at, seqs, status FROM acks ORDER BY n")?;
    let mut rows = acks.query([])?;
    while let Some(row) = rows.next()? {
        let ack = Ack { at: Timestamp(row.get(0)?), status: row.get(2)? };
        let seqs: Vec<i64> = serde_json::from_str(row.get_ref(1)?.as_str()?).map_err(|e| {
            rusqlite::Error::FromSqlConversionFailure(1, rusqlite::types::Type::Text, Box::new(e))
        })?;
        seqs.into_iter().for_each(|seq| each(seq, ack));
    }
    Ok(())
}

//! Deliveries before their rows move. Those of one commit lie all over the queue: they are noted together, a few bytes
//! each, and their rows move from `pending` to `settled` later and in order, each page once.

use super::ack_map::AckMap;
use super::row::State;
use super::settle::Settled;
use super::store::Store;
use crate::clock::Timestamp;
use rusqlite::types::ToSqlOutput;
use rusqlite::{ToSql, params};
use std::time::Duration;

/// Marks kept in memory, some five bytes each, while the rows before them wait: as many as the sender knows events, so
/// that a queue of that size is moved once.
const MAX_ACKS: usize = 1_500_000;
/// How long a row may stay after its delivery, and the event's body with it, while older ones wait.
const COMPACT_AFTER: Duration = Duration::from_secs(30);

/// The acks whose rows have not moved yet, as they are in the transaction.
#[derive(Debug, Default)]
pub(super) struct AckLog {
    at: AckMap,
    /// Those of this transaction that are not noted yet.
    new: Vec<i64>,
    /// Numbers in the table, those of rows that have moved among them.
    noted: usize,
    /// When the first in the table was made.
    since: Option<Timestamp>,
    pass: Option<CompactionPass>,
}

/// All rows that are marked move, some in each transaction.
#[derive(Debug, Clone, Copy)]
struct CompactionPass {
    /// Up to here they have.
    next: i64,
    /// What was noted up to here is done with at the end.
    upto: i64,
}

impl AckLog {
    pub(super) fn contains(&self, seq: i64) -> bool {
        self.at.get(seq).is_some()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.at.is_empty()
    }

    /// The first number that no mark has, and none after it: a mark must never be taken for one of another event.
    pub(super) fn free_seq(&self) -> i64 {
        self.at.last().map_or(0, |last| last + 1)
    }

    /// How many this transaction has made.
    pub(super) fn made(&self) -> usize {
        self.new.len()
    }

    /// Whether more is to be moved as soon as there is nothing else to do.
    pub(super) fn are_moving(&self) -> bool {
        self.pass.is_some()
    }
}

impl Store {
    /// Reads anew what is marked.
    pub(super) fn read_acks(&mut self) -> Result<(), rusqlite::Error> {
        let mut acks = AckLog::default();
        each_ack(&self.conn, |seq, at| {
            acks.noted += 1;
            acks.since = Some(acks.since.map_or(at, |since| since.min(at)));
            acks.at.insert(seq, at);
        })?;
        self.acks = acks;
        Ok(())
    }

    /// The event is delivered; its row moves later.
    pub(super) fn mark(&mut self, seq: i64, now: Timestamp) {
        if !self.acks.at.insert(seq, now) {
            return;
        }
        self.acks.new.push(seq);
        self.counted.add(State::Pending.as_str(), "", -1);
        self.counted.add(State::Delivered.as_str(), "", 1);
    }

    /// Moves some of what may move: what has nothing before it that waits, and, where there is much of it or it is old,
    /// some of the rest. At most `limit`, and half as much again.
    pub(super) fn compact(&mut self, limit: usize, now: Timestamp) -> Result<(), rusqlite::Error> {
        if self.acks.at.is_empty() {
            return self.forget_acks();
        }
        self.compact_run(i64::MIN, limit)?;
        let is_old = self.acks.since.is_some_and(|since| since <= now.minus(COMPACT_AFTER));
        if is_old || self.acks.at.len() > MAX_ACKS || self.acks.noted > 2 * MAX_ACKS {
            self.begin_pass()?;
        }
        self.go_on_with_pass(limit)
    }

    /// Begins to move every row that is marked now, unless that has begun.
    pub(super) fn begin_pass(&mut self) -> Result<(), rusqlite::Error> {
        if self.acks.pass.is_none() {
            let upto = self.cached("SELECT coalesce(max(n), 0) FROM acks")?.query_row([], |r| r.get(0))?;
            self.acks.pass = Some(CompactionPass { next: i64::MIN, upto });
        }
        Ok(())
    }

    /// Moves every row that is marked. Nothing is marked afterwards.
    pub(super) fn compact_all(&mut self) -> Result<(), rusqlite::Error> {
        while let Some(first) = self.acks.at.first_from(i64::MIN) {
            self.compact_run(first, usize::MAX)?;
        }
        self.forget_acks()
    }

    fn go_on_with_pass(&mut self, limit: usize) -> Result<(), rusqlite::Error> {
        let Some(mut pass) = self.acks.pass else { return Ok(()) };
        let mut left = limit;
        while let Some(first) = self.acks.at.first_from(pass.next) {
            if left == 0 {
                self.acks.pass = Some(pass);
                return Ok(());
            }
            let (moved, next) = self.compact_run(first, left)?;
            left -= moved.max(1);
            pass.next = next;
        }
        self.acks.pass = None;
        if self.acks.at.is_empty() {
            return self.forget_acks();
        }
        self.cached("DELETE FROM acks WHERE n <= ?")?.execute([pass.upto])?;
        (self.acks.noted, self.acks.since) = self
            .cached("SELECT coalesce(sum(json_array_length(seqs)), 0), min(at) FROM acks")?
            .query_row([], |r| {
                Ok((r.get::<_, i64>(0)? as usize, r.get::<_, Option<i64>>(1)?.map(Timestamp)))
            })?;
        Ok(())
    }

    fn forget_acks(&mut self) -> Result<(), rusqlite::Error> {
        if self.acks.noted > 0 {
            self.cached("DELETE FROM acks")?.execute([])?;
        }
        self.acks = AckLog::default();
        Ok(())
    }

    /// Notes what this transaction has marked and not moved.
    pub(super) fn append_ack(&mut self) -> Result<(), rusqlite::Error> {
        let mut new = std::mem::take(&mut self.acks.new);
        new.retain(|seq| self.acks.contains(*seq));
        new.sort_unstable();
        let Some(now) = new.first().and_then(|first| self.acks.at.get(*first)) else {
            return Ok(());
        };
        let seqs =
            serde_json::to_string(&new).map_err(|e| rusqlite::Error::ToSqlConversionFailure(e.into()))?;
        self.cached("INSERT INTO acks (at, seqs) VALUES (?, ?)")?.execute(params![now.0, seqs])?;
        self.acks.noted += new.len();
        self.acks.since.get_or_insert(now);
        Ok(())
    }

    /// Moves the marked rows from the first at `from` or after it up to one that is not marked, at most `limit`. Returns
    /// how many, and where to go on.
    fn compact_run(&mut self, from: i64, limit: usize) -> Result<(usize, i64), rusqlite::Error> {
        let keeps_body = self.keeps_body(&Settled::Delivered);
        // Hardly an event has any: they are looked for one by one only where somebody has.
        let has_attempts =
            self.cached("SELECT EXISTS (SELECT 1 FROM attempts)")?.query_row([], |r| r.get::<_, bool>(0))?;
        let (mut run, mut next) = (None, i64::MAX);
        let mut moved = 0;
        {
            let mut pending = self.cached(
                "SELECT seq, person, message_id, type, event, digest, file, place, spooled_at, received_at, body
                   FROM pending WHERE seq >= ? ORDER BY seq",
            )?;
            let mut attempts = self.cached("SELECT coalesce(max(n), 0) FROM attempts WHERE seq = ?")?;
            let mut settled = self.cached(
                "INSERT INTO settled (seq, person, message_id, type, event, digest, file, place, spooled_at,
                                      received_at, attempts, state, settled_at, code, reason)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'delivered', ?, '', '')",
            )?;
            let mut bodies = self
                .cached("INSERT INTO bodies (seq, state, settled_at, body) VALUES (?, 'delivered', ?, ?)")?;
            let mut rows = pending.query([from])?;
            while let Some(row) = rows.next()? {
                let seq: i64 = row.get(0)?;
                let Some(at) = self.acks.at.get(seq).filter(|_| moved < limit) else {
                    next = seq;
                    break;
                };
                let as_it_is = |column| row.get_ref(column).map(ToSqlOutput::Borrowed);
                let hash =
                    if keeps_body { None } else { Some(self.person_key.hashed(row.get_ref(1)?.as_str()?)) };
                settled.raw_bind_parameter(1, seq)?;
                match &hash {
                    Some(hash) => settled.raw_bind_parameter(2, hash)?,
                    None => settled.raw_bind_parameter(2, as_it_is(1)?)?,
                }
                for column in 2..10 {
                    settled.raw_bind_parameter(column + 1, as_it_is(column)?)?;
                }
                let before: i64 = if has_attempts { attempts.query_row([seq], |r| r.get(0))? } else { 0 };
                settled.raw_bind_parameter(11, before + 1)?;
                settled.raw_bind_parameter(12, at.0)?;
                settled.raw_execute()?;
                if keeps_body {
                    bodies.execute([&seq as &dyn ToSql, &at.0, &as_it_is(10)?])?;
                }
                run = Some((run.map_or(seq, |(first, _)| first), seq));
                moved += 1;
            }
        }
        if let Some((first, last)) = run {
            self.cached("DELETE FROM pending WHERE seq BETWEEN ? AND ?")?.execute([first, last])?;
        }
        // Also those of rows that somebody else has settled.
        self.acks.at.remove(from, next);
        Ok((moved, next))
    }
}

/// Calls `each` with every number that is noted as delivered, and when.
pub(super) fn each_ack(
    conn: &rusqlite::Connection,
    mut each: impl FnMut(i64, Timestamp),
) -> Result<(), rusqlite::Error> {
    let mut rows = conn.prepare_cached("SELECT at, seqs FROM acks ORDER BY n")?;
    let mut rows = rows.query([])?;
    while let Some(row) = rows.next()? {
        let at = Timestamp(row.get(0)?);
        let seqs: Vec<i64> = serde_json::from_str(row.get_ref(1)?.as_str()?).map_err(|e| {
            rusqlite::Error::FromSqlConversionFailure(1, rusqlite::types::Type::Text, Box::new(e))
        })?;
        seqs.into_iter().for_each(|seq| each(seq, at));
    }
    Ok(())
}

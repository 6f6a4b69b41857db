//! Events of which several mappings make something: a row in `pending` for each item that waits. The event is settled
//! with the last of them: failed if one failed, else delivered if one was.

use super::row::{Addressee, NewItem, State};
use super::settle::Settled;
use super::store::{LAST_SEQ, Store};
use crate::clock::Timestamp;
use crate::item::Disposition;
use crate::reason::{Code, Reason};
use rusqlite::params;

impl From<&Disposition<Addressee>> for Settled {
    fn from(disposition: &Disposition<Addressee>) -> Settled {
        match disposition {
            Disposition::Send(_) => Settled::Delivered,
            Disposition::Skip(reason) => Settled::Skipped(reason.clone()),
            Disposition::Fail(reason) => Settled::Failed(reason.clone()),
        }
    }
}

impl Store {
    /// Notes what became of one item of an event that has others.
    pub(super) fn settle_item(
        &self,
        event_seq: i64,
        mapping: &str,
        settled: &Settled,
        now: Timestamp,
    ) -> Result<(), rusqlite::Error> {
        let (code, reason) = settled.reason();
        self.cached(
            "INSERT OR REPLACE INTO settled_items (seq, mapping, state, code, reason, settled_at)
             VALUES (?, ?, ?, ?, ?, ?)",
        )?
        .execute(params![event_seq, mapping, settled.state().as_str(), code, reason, now.0])?;
        Ok(())
    }

    /// Whether an item of the event waits beside the one at `seq`.
    pub(super) fn others_wait(&self, event_seq: i64, seq: i64) -> Result<bool, rusqlite::Error> {
        self.cached("SELECT EXISTS (SELECT 1 FROM pending WHERE event_seq = ? AND seq <> ?)")?
            .query_row([event_seq, seq], |r| r.get(0))
    }

    /// What becomes of an event whose items are all settled.
    pub(super) fn sum_of_items(&self, event_seq: i64) -> Result<Settled, rusqlite::Error> {
        let mut items =
            self.cached("SELECT mapping, state, code, reason FROM settled_items WHERE seq = ?")?;
        let mut items = items.query([event_seq])?;
        let (mut delivered, mut skipped, mut failed) = (false, None, Vec::new());
        while let Some(item) = items.next()? {
            let (mapping, state): (String, String) = (item.get(0)?, item.get(1)?);
            let code = Code::parse(&item.get::<_, String>(2)?).unwrap_or(Code::NoMapping);
            let text: String = item.get(3)?;
            match State::parse(&state) {
                Some(State::Failed) => failed.push((code, format!("{mapping}: {text}"))),
                Some(State::Skipped) => skipped = skipped.or(Some(Reason::new(code, text))),
                _ => delivered = true,
            }
        }
        if let Some((code, _)) = failed.first() {
            let texts: Vec<&str> = failed.iter().map(|(_, text)| text.as_str()).collect();
            return Ok(Settled::Failed(Reason::new(*code, texts.join("; "))));
        }
        Ok(match skipped {
            Some(reason) if !delivered => Settled::Skipped(reason),
            _ => Settled::Delivered,
        })
    }

    /// Of these items of a settled event, those that are not delivered yet.
    pub(super) fn undelivered<'a>(
        &self,
        event_seq: i64,
        items: &'a [NewItem],
    ) -> Result<Vec<&'a NewItem>, rusqlite::Error> {
        let mut delivered = self.cached(
            "SELECT EXISTS (SELECT 1 FROM settled_items WHERE seq = ? AND mapping = ? AND state = 'delivered')",
        )?;
        let mut left = Vec::with_capacity(items.len());
        for item in items {
            if !delivered.query_row(params![event_seq, &*item.mapping], |r| r.get::<_, bool>(0))? {
                left.push(item);
            }
        }
        Ok(left)
    }

    /// A place for an item of an event that comes back: the event's own or one right after it, if nothing is there,
    /// else the end. Within a transaction, so that nobody else takes it.
    pub(super) fn place_for_item(&mut self, event_seq: i64, n: usize) -> Result<i64, rusqlite::Error> {
        let near = event_seq + n as i64;
        let taken: bool = self
            .cached(
                "SELECT EXISTS (SELECT 1 FROM pending WHERE seq = ?1) OR
                        EXISTS (SELECT 1 FROM pending WHERE event_seq = ?1 AND ?1 <> ?2) OR
                        EXISTS (SELECT 1 FROM settled WHERE seq = ?1 AND ?1 <> ?2)",
            )?
            .query_row([near, event_seq], |r| r.get(0))?;
        if !taken && near < self.next_seq {
            return Ok(near);
        }
        self.next_seq += 1;
        // Its row goes when it is settled, and nothing at its place comes after it.
        self.set_meta(LAST_SEQ, self.next_seq - 1)?;
        Ok(self.next_seq - 1)
    }
}

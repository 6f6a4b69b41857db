//! Events of which several mappings make an item each. Each item that waits has a row in `pending`; the event is
//! settled with the last of them: failed if an item failed, else delivered if one was delivered.

use super::row::{Addressee, NewItem, Settled, State};
use crate::clock::Timestamp;
use crate::item::Disposition;
use crate::reason::{Code, Reason};
use rusqlite::{Connection, params};

/// The items of one event that has or had several.
pub(super) struct EventItems<'a> {
    pub(super) conn: &'a Connection,
    /// The event's number.
    pub(super) seq: i64,
}

impl EventItems<'_> {
    /// Records how one item was settled.
    pub(super) fn settle(
        &self,
        mapping: &str,
        settled: &Settled,
        now: Timestamp,
    ) -> Result<(), rusqlite::Error> {
        let (code, reason) = settled.code_and_text();
        self.conn
            .prepare_cached(
                "INSERT OR REPLACE INTO settled_items (seq, mapping, state, code, reason, settled_at)
                 VALUES (?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![self.seq, mapping, settled.state().as_str(), code, reason, now.0])?;
        Ok(())
    }

    /// Returns the addressee of an item that is to be sent, and records any other as settled.
    pub(super) fn settle_unless_sent<'i>(
        &self,
        item: &'i NewItem,
        now: Timestamp,
    ) -> Result<Option<&'i Addressee>, rusqlite::Error> {
        let settled = match &item.disposition {
            Disposition::Send(addressee) => return Ok(Some(addressee)),
            Disposition::Skip(reason) => Settled::Skipped(reason.clone()),
            Disposition::Fail(reason) => Settled::Failed(reason.clone()),
        };
        self.settle(&item.mapping, &settled, now)?;
        Ok(None)
    }

    /// Whether another item than the one at `item_seq` is pending.
    pub(super) fn others_are_pending(&self, item_seq: i64) -> Result<bool, rusqlite::Error> {
        self.conn
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM pending WHERE event_seq = ? AND seq <> ?)")?
            .query_row([self.seq, item_seq], |r| r.get(0))
    }

    /// How the event is settled, now that all its items are.
    pub(super) fn result(&self) -> Result<Settled, rusqlite::Error> {
        let mut items = self
            .conn
            .prepare_cached("SELECT mapping, state, code, reason FROM settled_items WHERE seq = ?")?;
        let mut items = items.query([self.seq])?;
        let (mut is_delivered, mut skipped, mut failed) = (false, None, Vec::new());
        while let Some(item) = items.next()? {
            let (mapping, state): (String, String) = (item.get(0)?, item.get(1)?);
            let code = Code::parse(&item.get::<_, String>(2)?).unwrap_or(Code::NoMapping);
            let text: String = item.get(3)?;
            match State::parse(&state) {
                Some(State::Failed) => failed.push((code, format!("{mapping}: {text}"))),
                Some(State::Skipped) => skipped = skipped.or(Some(Reason::new(code, text))),
                _ => is_delivered = true,
            }
        }
        if let Some((code, _)) = failed.first() {
            let texts: Vec<&str> = failed.iter().map(|(_, text)| text.as_str()).collect();
            return Ok(Settled::Failed(Reason::new(*code, texts.join("; "))));
        }
        Ok(match skipped {
            Some(reason) if !is_delivered => Settled::Skipped(reason),
            _ => Settled::Delivered,
        })
    }

    /// Forgets how the items were settled, so that they can be sent again; with `keep_delivered`, those that were not
    /// delivered.
    pub(super) fn reset(&self, keep_delivered: bool) -> Result<(), rusqlite::Error> {
        let items = if keep_delivered { "state <> 'delivered'" } else { "true" };
        self.conn
            .prepare_cached(&format!("DELETE FROM settled_items WHERE seq = ? AND {items}"))?
            .execute([self.seq])?;
        Ok(())
    }

    /// Selects the items that are not recorded as delivered.
    pub(super) fn undelivered<'i>(&self, items: &'i [NewItem]) -> Result<Vec<&'i NewItem>, rusqlite::Error> {
        let mut is_delivered = self.conn.prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM settled_items WHERE seq = ? AND mapping = ? AND state = 'delivered')",
        )?;
        let mut undelivered = Vec::with_capacity(items.len());
        for item in items {
            if !is_delivered.query_row(params![self.seq, &*item.mapping], |r| r.get::<_, bool>(0))? {
                undelivered.push(item);
            }
        }
        Ok(undelivered)
    }

    /// Whether no row of another event stands at that number, so that an item of this event can be put there.
    pub(super) fn can_stand_at(&self, item_seq: i64) -> Result<bool, rusqlite::Error> {
        let is_taken: bool = self
            .conn
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM pending WHERE seq = ?1) OR
                        EXISTS (SELECT 1 FROM pending WHERE event_seq = ?1 AND ?1 <> ?2) OR
                        EXISTS (SELECT 1 FROM settled WHERE seq = ?1 AND ?1 <> ?2)",
            )?
            .query_row([item_seq, self.seq], |r| r.get(0))?;
        Ok(!is_taken)
    }
}

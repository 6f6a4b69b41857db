//! Events of which several mappings make an item each. Each item that waits has a row in `queue`; the event is
//! settled with the last of them: failed if an item failed, else delivered if one was delivered.

use super::destinations::KOALA;
use super::row::{Addressee, NewItem, QueuedItem, Settled, State};
use crate::clock::Timestamp;
use crate::item::{Disposition, OrderingKey};
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
                "INSERT OR REPLACE INTO items (seq, destination, mapping, state, code, reason, settled_at)
                 VALUES (?, ?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![self.seq, KOALA, mapping, settled.state().as_str(), code, reason, now.0])?;
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

    /// The items in the queue, accepted ones among them.
    pub(super) fn pending(&self) -> Result<Vec<QueuedItem>, rusqlite::Error> {
        self.conn
            .prepare_cached(
                "SELECT id, ordering_key, owner FROM queue WHERE id = ?1 AND seq IS NULL
                 UNION ALL SELECT id, ordering_key, owner FROM queue WHERE seq = ?1",
            )?
            .query_map([self.seq], |r| {
                Ok(QueuedItem { seq: r.get(0)?, key: OrderingKey(r.get(1)?), owner: r.get(2)? })
            })?
            .collect()
    }

    /// The first item of the event in the queue but that one.
    pub(super) fn other_in_queue(&self, id: i64) -> Result<Option<i64>, rusqlite::Error> {
        self.conn
            .prepare_cached("SELECT min(id) FROM queue WHERE seq = ? AND id <> ?")?
            .query_row([self.seq, id], |r| r.get(0))
    }

    /// How the event is settled, now that all its items are.
    pub(super) fn result(&self) -> Result<Settled, rusqlite::Error> {
        let mut items =
            self.conn.prepare_cached("SELECT mapping, state, code, reason FROM items WHERE seq = ?")?;
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
            .prepare_cached(&format!("DELETE FROM items WHERE seq = ? AND {items}"))?
            .execute([self.seq])?;
        Ok(())
    }

    /// The items of a retry, of which at least one can be sent: all, or with `keep_delivered` those that were not
    /// delivered. `Err`: why none can be sent.
    pub(super) fn to_send_again<'i>(
        &self,
        items: &'i [NewItem],
        keep_delivered: bool,
    ) -> Result<Result<Vec<&'i NewItem>, Reason>, rusqlite::Error> {
        let wanted = if keep_delivered { self.undelivered(items)? } else { items.iter().collect() };
        Ok(why_unsendable(&wanted).map_or(Ok(wanted), Err))
    }

    /// Selects the items that are not recorded as delivered.
    fn undelivered<'i>(&self, items: &'i [NewItem]) -> Result<Vec<&'i NewItem>, rusqlite::Error> {
        let mut is_delivered = self.conn.prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM items WHERE seq = ? AND mapping = ? AND state = 'delivered')",
        )?;
        let mut undelivered = Vec::with_capacity(items.len());
        for item in items {
            if !is_delivered.query_row(params![self.seq, &*item.mapping], |r| r.get::<_, bool>(0))? {
                undelivered.push(item);
            }
        }
        Ok(undelivered)
    }

    /// Whether neither another event nor another item has that number, so that an item of this event can have it.
    pub(super) fn may_have(&self, id: i64) -> Result<bool, rusqlite::Error> {
        self.conn
            .prepare_cached(
                "SELECT NOT EXISTS (SELECT 1 FROM queue WHERE id = ?1)
                    AND NOT EXISTS (SELECT 1 FROM events WHERE seq = ?1 AND ?1 <> ?2)",
            )?
            .query_row([id, self.seq], |r| r.get(0))
    }
}

/// Why none of these items can be sent; `None`: one can.
fn why_unsendable(items: &[&NewItem]) -> Option<Reason> {
    let (mut code, mut texts) = (Code::NoMapping, Vec::new());
    for item in items.iter().rev() {
        match &item.disposition {
            Disposition::Send(_) => return None,
            Disposition::Skip(reason) | Disposition::Fail(reason) => {
                code = reason.code;
                texts.insert(0, format!("{}: {}", item.mapping, reason.text));
            }
        }
    }
    if texts.is_empty() {
        texts.push("all mappings that take it now have delivered it before".to_owned());
    }
    Some(Reason::new(code, texts.join("; ")))
}

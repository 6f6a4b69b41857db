//! How long what is settled is remembered.

use super::row::State;
use super::store::{LAST_SEQ, Store, short_hash};
use crate::clock::Timestamp;
use crate::reason::Code;
use rusqlite::params;
use std::time::Duration;

/// A row whose time is up: its event, its id, its code.
type Old = (i64, String, String);

impl Store {
    /// Looks at up to about `limit` rows that may be older than the configuration keeps them, by whole minutes, forgets
    /// those that are, and erases bodies whose time is up. Returns how many rows and bodies went, and whether there may
    /// be more.
    pub(super) fn expire(&mut self, now: Timestamp, limit: usize) -> Result<(usize, bool), rusqlite::Error> {
        let keep = self.settings.clone();
        let (mut gone, mut more) = (0, false);
        let (old, is_all) = self.old_delivered(now.minus(keep.keep_delivered), now, limit)?;
        more |= !is_all;
        gone += self.forget(State::Delivered, old)?;
        for (state, age) in [
            (State::Skipped, keep.keep_delivered.max(keep.keep_skipped)),
            (State::Discarded, keep.keep_delivered),
            (State::Failed, keep.keep_failed),
        ] {
            let old: Vec<Old> = self
                .cached(
                    "SELECT seq, message_id, code FROM settled
                      WHERE state = ? AND state <> 'delivered' AND settled_at / 60000 < ? / 60000
                      ORDER BY settled_at / 60000 LIMIT ?",
                )?
                .query_map(params![state.as_str(), now.minus(age).0, limit as i64], |r| {
                    Ok((r.get(0)?, r.get(1)?, r.get(2)?))
                })?
                .collect::<Result<_, _>>()?;
            more |= old.len() == limit;
            gone += self.forget(state, old)?;
        }
        for (state, age) in [(State::Delivered, keep.keep_bodies), (State::Skipped, keep.keep_skipped)] {
            let bodies = self.erase_bodies(state, now, age, limit)?;
            more |= bodies == limit;
            gone += bodies;
        }
        Ok((gone, more))
    }

    /// Delivered rows that were settled before that, of up to `limit` that are looked at: from where the last look ended,
    /// in the order in which they came, up to the first that came later. And whether that was reached: then the next
    /// look begins at the first again.
    fn old_delivered(
        &mut self,
        before: Timestamp,
        now: Timestamp,
        limit: usize,
    ) -> Result<(Vec<Old>, bool), rusqlite::Error> {
        let (mut old, mut looked_at, mut last, mut is_all) = (Vec::new(), 0, self.expired_to, false);
        {
            let mut settled = self.cached(
                "SELECT seq, message_id, received_at, state = 'delivered' AND settled_at / 60000 < ?2 / 60000
                   FROM settled WHERE seq > ?1 ORDER BY seq LIMIT ?3",
            )?;
            let mut settled = settled.query(params![self.expired_to, before.0, limit as i64])?;
            while let Some(row) = settled.next()? {
                // One that came in the future came while the clock was wrong: it says nothing of those behind it.
                if (before..=now).contains(&Timestamp(row.get(2)?)) {
                    is_all = true;
                    break;
                }
                last = row.get(0)?;
                looked_at += 1;
                if row.get(3)? {
                    old.push((last, row.get(1)?, String::new()));
                }
            }
        }
        is_all |= looked_at < limit;
        self.expired_to = if is_all { 0 } else { last };
        Ok((old, is_all))
    }

    fn forget(&mut self, state: State, old: Vec<Old>) -> Result<usize, rusqlite::Error> {
        let gone = old.len();
        if gone > 0 {
            // The last one may be among them.
            self.set_meta(LAST_SEQ, self.next_seq - 1)?;
        }
        for (seq, message_id, code) in old {
            self.forget_id(&short_hash(&message_id), seq)?;
            for table in ["settled", "bodies", "attempts", "settled_items"] {
                self.cached(&format!("DELETE FROM {table} WHERE seq = ?"))?.execute([seq])?;
            }
            self.counted.add(state.as_str(), Code::parse(&code).map_or("", Code::as_str), -1);
        }
        Ok(gone)
    }

    fn erase_bodies(
        &mut self,
        state: State,
        now: Timestamp,
        age: Duration,
        limit: usize,
    ) -> Result<usize, rusqlite::Error> {
        let old: Vec<(i64, Option<String>)> = self
            .cached(
                "SELECT b.seq, s.person FROM bodies b JOIN settled s ON s.seq = b.seq
                  WHERE b.state = ? AND b.since / 60000 < ? / 60000 ORDER BY b.since / 60000 LIMIT ?",
            )?
            .query_map(params![state.as_str(), now.minus(age).0, limit as i64], |r| {
                Ok((r.get(0)?, r.get(1)?))
            })?
            .collect::<Result<_, _>>()?;
        for (seq, person) in &old {
            let person = person.as_ref().map(|person| self.person_key.hashed(person));
            self.cached("UPDATE settled SET person = ?2 WHERE seq = ?1")?.execute(params![seq, person])?;
            self.cached("DELETE FROM bodies WHERE seq = ?")?.execute([seq])?;
        }
        Ok(old.len())
    }
}

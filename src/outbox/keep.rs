//! How long what is settled is remembered.

use super::row::State;
use super::store::{Store, hashed, short_hash};
use crate::clock::Timestamp;
use crate::reason::Code;
use rusqlite::params;

impl Store {
    /// Forgets up to `limit` rows that are older than the configuration keeps them, by whole minutes, and erases bodies
    /// whose time is up. Returns how many rows and bodies went; less than `limit` means that nothing is left to do.
    pub(super) fn expire(&mut self, now: Timestamp, limit: usize) -> Result<usize, rusqlite::Error> {
        let keep = self.settings.clone();
        let mut gone = 0;
        for (state, age) in [
            (State::Delivered, keep.keep_delivered),
            (State::Skipped, keep.keep_delivered.max(keep.keep_skipped)),
            (State::Discarded, keep.keep_delivered),
            (State::Failed, keep.keep_failed),
        ] {
            let old: Vec<(i64, String, String)> = self
                .cached(
                    "SELECT seq, message_id, code FROM settled WHERE state = ? AND settled_at / 60000 < ? / 60000
                      ORDER BY settled_at / 60000 LIMIT ?",
                )?
                .query_map(params![state.as_str(), now.minus(age).0, limit as i64], |r| {
                    Ok((r.get(0)?, r.get(1)?, r.get(2)?))
                })?
                .collect::<Result<_, _>>()?;
            if !old.is_empty() {
                self.index_all_ids()?;
            }
            for (seq, message_id, code) in old {
                self.forget_id(&short_hash(&message_id), seq)?;
                for table in ["settled", "bodies", "attempts", "settled_items"] {
                    self.cached(&format!("DELETE FROM {table} WHERE seq = ?"))?.execute([seq])?;
                }
                self.counted.add(state.as_str(), Code::parse(&code).map_or("", Code::as_str), -1);
                gone += 1;
            }
        }
        for (state, age) in [(State::Delivered, keep.keep_bodies), (State::Skipped, keep.keep_skipped)] {
            let old: Vec<(i64, Option<String>)> = self
                .cached(
                    "SELECT b.seq, s.person FROM bodies b JOIN settled s ON s.seq = b.seq
                      WHERE b.state = ? AND b.since / 60000 < ? / 60000 ORDER BY b.since / 60000 LIMIT ?",
                )?
                .query_map(params![state.as_str(), now.minus(age).0, limit as i64], |r| {
                    Ok((r.get(0)?, r.get(1)?))
                })?
                .collect::<Result<_, _>>()?;
            for (seq, person) in old {
                let person = person.map(|p| hashed(&self.person_key, &p));
                self.cached("UPDATE settled SET person = ?2 WHERE seq = ?1")?
                    .execute(params![seq, person])?;
                self.cached("DELETE FROM bodies WHERE seq = ?")?.execute([seq])?;
                gone += 1;
            }
        }
        Ok(gone)
    }
}

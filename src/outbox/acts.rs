//! What was done by hand, by whom and when: for as long as history is kept, and without a word of an erased person.

use super::OutboxError;
use super::reader::Reader;
use crate::clock::Timestamp;
use nix::unistd::{Uid, User, getuid};
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};

/// Who asks for a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asker {
    /// The user of the process.
    pub uid: u32,
    /// The name of that user, if there is one.
    pub user: Option<String>,
    /// Who has become that user by sudo: `$SUDO_USER`.
    pub sudo: Option<String>,
}

impl Asker {
    /// The user of this process, who may have come by sudo. To be asked before the process becomes another user.
    pub fn of_process(sudo: Option<String>) -> Asker {
        let uid = getuid();
        let name = |uid: Uid| User::from_uid(uid).ok().flatten().map(|user| user.name);
        Asker { uid: uid.as_raw(), user: name(uid), sudo: sudo.filter(|name| !name.is_empty()) }
    }
}

/// A change by hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Act {
    /// When it was made.
    pub at: Timestamp,
    /// `retry`, `discard`, `erase`, or `let_in`: a person's events are accepted again.
    pub kind: String,
    /// Who has made it.
    #[serde(flatten)]
    pub asker: Asker,
}

impl Act {
    /// The acts on that event, the first one first.
    ///
    /// # Errors
    /// SQLite's.
    pub fn on_event(reader: &Reader, seq: i64) -> Result<Vec<Act>, OutboxError> {
        let read = || {
            reader
                .connection()
                .prepare_cached(
                    "SELECT a.at, a.kind, a.uid, a.user, a.sudo FROM act_events e JOIN acts a ON a.n = e.act
                      WHERE e.seq = ? ORDER BY a.n",
                )?
                .query_map([seq], |r| {
                    let asker = Asker { uid: r.get(2)?, user: r.get(3)?, sudo: r.get(4)? };
                    Ok(Act { at: Timestamp(r.get(0)?), kind: r.get(1)?, asker })
                })?
                .collect::<Result<_, rusqlite::Error>>()
        };
        read().map_err(|e| reader.error("read what was done by hand", e))
    }
}

/// The tables, over the connection that writes.
pub(super) struct Acts<'a>(pub(super) &'a Connection);

impl Acts<'_> {
    /// Records an act on so many more events. Returns its number.
    pub(super) fn add(
        &self,
        act: Option<i64>,
        kind: &str,
        asker: &Asker,
        person: Option<&str>,
        events: u64,
        now: Timestamp,
    ) -> Result<i64, rusqlite::Error> {
        if let Some(n) = act {
            self.0
                .prepare_cached("UPDATE acts SET events = events + ? WHERE n = ?")?
                .execute(params![events as i64, n])?;
            return Ok(n);
        }
        self.0
            .prepare_cached(
                "INSERT INTO acts (at, kind, uid, user, sudo, person, events) VALUES (?, ?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![now.0, kind, asker.uid, asker.user, asker.sudo, person, events as i64])?;
        Ok(self.0.last_insert_rowid())
    }

    /// Records that an act was on these events.
    pub(super) fn add_events(
        &self,
        act: i64,
        events: impl IntoIterator<Item = i64>,
    ) -> Result<(), rusqlite::Error> {
        let mut insert =
            self.0.prepare_cached("INSERT OR IGNORE INTO act_events (seq, act) VALUES (?, ?)")?;
        events.into_iter().try_for_each(|seq| insert.execute([seq, act]).map(drop))
    }

    /// Forgets what was done to an event.
    pub(super) fn forget_event(&self, seq: i64) -> Result<(), rusqlite::Error> {
        self.0.prepare_cached("DELETE FROM act_events WHERE seq = ?")?.execute([seq]).map(drop)
    }

    /// Deletes up to `limit` rows of acts from before that time. Returns how many rows there were.
    pub(super) fn expire(&self, before: Timestamp, limit: usize) -> Result<usize, rusqlite::Error> {
        let deleted = self
            .0
            .prepare_cached(
                "DELETE FROM act_events WHERE (seq, act) IN
                   (SELECT e.seq, e.act FROM acts a JOIN act_events e ON e.act = a.n WHERE a.at < ? LIMIT ?)",
            )?
            .execute(params![before.0, limit as i64])?;
        if deleted > 0 {
            return Ok(deleted);
        }
        self.0
            .prepare_cached("DELETE FROM acts WHERE n IN (SELECT n FROM acts WHERE at < ? LIMIT ?)")?
            .execute(params![before.0, limit as i64])
    }
}

//! Everything that is read from the outbox, by the courier and by the commands. A reader never blocks the
//! writer and never changes the file.

use super::store::{self, BUSY_TIMEOUT};
use super::{OutboxError, PendingItem, State};
use crate::clock::Timestamp;
use crate::event::MessageId;
use crate::item::Lane;
use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, params, params_from_iter};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A read-only connection.
#[derive(Debug)]
pub struct Reader {
    conn: Connection,
    path: PathBuf,
    /// The condition on a pending row that it is an item of the event `?1`.
    of_event: &'static str,
}

/// The counters, and the oldest event that waits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events by state.
    pub states: BTreeMap<State, u64>,
    /// Settled events by state and reason code.
    pub reasons: Vec<(State, String, u64)>,
    /// Events that came again.
    pub duplicates: u64,
    /// When the oldest pending event was stored.
    pub oldest_pending: Option<Timestamp>,
}

impl Counts {
    /// How many events are in that state.
    pub fn of(&self, state: State) -> u64 {
        self.states.get(&state).copied().unwrap_or(0)
    }
}

/// Which rows to list. An empty filter means all.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Any of these states.
    pub states: Vec<State>,
    /// This reason code.
    pub reason: Option<String>,
    /// This person: an email or a profile id.
    pub person: Option<String>,
    /// This `type`.
    pub kind: Option<String>,
    /// This event name.
    pub name: Option<String>,
    /// Stored at or after.
    pub since: Option<Timestamp>,
    /// Stored before.
    pub until: Option<Timestamp>,
    /// Of these places.
    pub seqs: Option<Vec<i64>>,
}

/// A row of the view `outbox_events`: its columns are the members of `list --json`.
#[derive(Debug, Clone, Serialize)]
pub struct Listed {
    /// The order of the spool.
    pub seq: i64,
    /// The event's id.
    pub message_id: String,
    /// Segment's `type`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The `event` of a track.
    pub event: Option<String>,
    /// Its state.
    pub state: String,
    /// An email or a profile id; a keyed hash once the body is gone.
    pub person: Option<String>,
    /// When it was stored.
    pub received_at: String,
    /// When it was settled.
    pub settled_at: Option<String>,
    /// Requests that were answered with it in them.
    pub attempts: i64,
    /// Why it is as it is.
    pub reason_code: Option<String>,
    /// The same for a person.
    pub reason: Option<String>,
    /// The spool file that it came in.
    pub file: String,
    /// The line or element there, from 1; 0: the file is the event.
    pub place: i64,
}

/// A page of rows, newest first.
#[derive(Debug, Clone)]
pub struct Listing {
    /// The rows.
    pub rows: Vec<Listed>,
    /// How many match in all.
    pub total: u64,
}

/// An answer other than acceptance.
#[derive(Debug, Clone, Serialize)]
pub struct Attempt {
    /// When.
    pub at: Timestamp,
    /// What it came to.
    pub code: String,
    /// The same for a person.
    pub text: String,
}

/// Everything that is known of one event.
#[derive(Debug, Clone)]
pub struct Detail {
    /// Its row.
    pub row: Listed,
    /// The spool file's modification time.
    pub spooled_at: Timestamp,
    /// The event as it came, while it is kept.
    pub body: Option<String>,
    /// Answers other than acceptance, oldest first; the last sixteen.
    pub attempts: Vec<Attempt>,
}

impl Reader {
    /// Opens an outbox for reading, whether an agent runs or not; never creates one.
    ///
    /// # Errors
    /// [`OutboxError::Missing`], [`OutboxError::Denied`], [`OutboxError::NewerSchema`], and SQLite's.
    pub fn open(path: &Path) -> Result<Reader, OutboxError> {
        match std::fs::File::open(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(OutboxError::Missing { path: path.to_owned() });
            }
            Err(e) => return Err(OutboxError::io(path, "open the database", &e)),
            // Closing it drops SQLite's locks on it in this process, of which there are none yet: the daemon
            // opens its reader through `Reader::beside`.
            Ok(file) => {
                let meta = file.metadata().map_err(|e| OutboxError::io(path, "open the database", &e))?;
                if meta.is_file() && meta.len() == 0 {
                    // SQLite would delete the log of an empty database, were it only to read it.
                    let (path, text) = (path.to_owned(), "the database is empty".to_owned());
                    return Err(OutboxError::Damaged { path, text });
                }
            }
        }
        match Reader::connect(path, false) {
            // Without its log it can look like one of ours.
            Err(e) if !e.is_not_ours() => Reader::connect(path, true),
            opened => opened,
        }
    }

    /// Opens a second connection in the process that writes the outbox.
    ///
    /// # Errors
    /// SQLite's.
    pub fn beside(path: &Path) -> Result<Reader, OutboxError> {
        Reader::connect(path, false)
    }

    /// `immutable` is for a database that was closed cleanly in a folder that this user may not write.
    fn connect(path: &Path, immutable: bool) -> Result<Reader, OutboxError> {
        let sql = |e| OutboxError::sqlite(path, "open the database", e);
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = if immutable {
            let mut uri = String::from("file:");
            for byte in path.as_os_str().as_encoded_bytes() {
                match byte {
                    b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => {
                        uri.push(*byte as char)
                    }
                    other => uri.push_str(&format!("%{other:02x}")),
                }
            }
            uri.push_str("?immutable=1");
            Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_URI)
        } else {
            Connection::open_with_flags(path, flags)
        }
        .map_err(sql)?;
        conn.busy_timeout(BUSY_TIMEOUT).map_err(sql)?;
        let of_event = super::schema::of_event(super::schema::version_of(&conn, path)?);
        Ok(Reader { conn, path: path.to_owned(), of_event })
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.conn
    }

    pub(super) fn error(&self, deed: &'static str, source: rusqlite::Error) -> OutboxError {
        OutboxError::sqlite(&self.path, deed, source)
    }

    /// Up to `limit` pending events after `after`, in the order of the spool: whose they are.
    ///
    /// # Errors
    /// SQLite's.
    pub fn discover(&self, after: i64, limit: usize) -> Result<Vec<(i64, Lane)>, OutboxError> {
        let read = || {
            self.conn
                .prepare_cached("SELECT seq, lane FROM pending WHERE seq > ? ORDER BY seq LIMIT ?")?
                .query_map(params![after, limit as i64], |r| Ok((r.get(0)?, Lane(r.get(1)?))))?
                .collect::<Result<Vec<_>, rusqlite::Error>>()
        };
        read().map_err(|e| self.error("look for pending events", e))
    }

    /// The oldest pending events of a lane, in order: at most `limit`, and after the first no more than
    /// `max_bytes` of bodies.
    ///
    /// # Errors
    /// SQLite's.
    pub fn gather(
        &self,
        lane: Lane,
        limit: usize,
        max_bytes: usize,
    ) -> Result<Vec<PendingItem>, OutboxError> {
        let read = || {
            let mut statement = self.conn.prepare_cached(
                "SELECT seq, mapping, message_id, spooled_at, body FROM pending WHERE lane = ? ORDER BY seq LIMIT ?",
            )?;
            let mut rows = statement.query(params![lane.0, limit as i64])?;
            let (mut events, mut bytes) = (Vec::new(), 0);
            while let Some(row) = rows.next()? {
                let event = pending_item(row)?;
                bytes += event.body.len();
                if bytes > max_bytes && !events.is_empty() {
                    break;
                }
                events.push(event);
            }
            Ok(events)
        };
        read().map_err(|e| self.error("gather a person's events", e))
    }

    /// The oldest pending event of each of these lanes.
    ///
    /// # Errors
    /// SQLite's.
    pub fn oldest(&self, lanes: &[Lane]) -> Result<Vec<(Lane, Option<i64>)>, OutboxError> {
        let read = || {
            let mut statement = self.conn.prepare_cached("SELECT min(seq) FROM pending WHERE lane = ?")?;
            lanes
                .iter()
                .map(|lane| Ok((*lane, statement.query_row([lane.0], |r| r.get(0))?)))
                .collect::<Result<Vec<_>, rusqlite::Error>>()
        };
        read().map_err(|e| self.error("look for a person's oldest event", e))
    }

    /// The counters.
    ///
    /// # Errors
    /// SQLite's.
    pub fn counts(&self) -> Result<Counts, OutboxError> {
        let read = || {
            let mut counts = Counts {
                oldest_pending: self
                    .conn
                    .query_row("SELECT received_at FROM pending ORDER BY seq LIMIT 1", [], |r| {
                        Ok(Timestamp(r.get(0)?))
                    })
                    .optional()?,
                ..Counts::default()
            };
            let mut statement =
                self.conn.prepare_cached("SELECT state, code, events FROM counters ORDER BY state, code")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let (name, code, n): (String, String, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
                let n = n as u64;
                match State::parse(&name) {
                    Some(state) => {
                        *counts.states.entry(state).or_default() += n;
                        if !code.is_empty() && n > 0 {
                            counts.reasons.push((state, code, n));
                        }
                    }
                    None if name == store::DUPLICATES => counts.duplicates = n,
                    None => {}
                }
            }
            Ok(counts)
        };
        read().map_err(|e| self.error("read the counters", e))
    }

    /// Rows that match, newest first.
    ///
    /// # Errors
    /// SQLite's.
    pub fn list(&self, filter: &Filter, limit: usize) -> Result<Listing, OutboxError> {
        let read = || {
            let (condition, values) = self.condition(filter)?;
            let total: i64 = self.conn.query_row(
                &format!("SELECT count(*) FROM outbox_events e WHERE {condition}"),
                params_from_iter(&values),
                |r| r.get(0),
            )?;
            let rows = self
                .conn
                .prepare(&format!(
                    "SELECT * FROM outbox_events e WHERE {condition} ORDER BY e.seq DESC LIMIT {limit}"
                ))?
                .query_map(params_from_iter(&values), listed)?
                .collect::<Result<_, _>>()?;
            Ok(Listing { rows, total: total as u64 })
        };
        read().map_err(|e| self.error("list its events", e))
    }

    /// The bodies of the events that came last and wait, up to `limit`.
    ///
    /// # Errors
    /// SQLite's.
    pub fn newest_pending(&self, limit: usize) -> Result<Vec<String>, OutboxError> {
        let read = || {
            let mut select = self.conn.prepare("SELECT body FROM pending ORDER BY seq DESC LIMIT ?")?;
            select.query_map([limit as i64], |r| r.get(0))?.collect::<Result<_, _>>()
        };
        read().map_err(|e| self.error("read its newest events", e))
    }

    pub(super) fn condition(&self, filter: &Filter) -> Result<(String, Vec<Value>), rusqlite::Error> {
        let (mut terms, mut values) = (vec!["true".to_owned()], Vec::new());
        if !filter.states.is_empty() {
            let names: Vec<String> = filter.states.iter().map(|s| format!("'{}'", s.as_str())).collect();
            terms.push(format!("e.state IN ({})", names.join(", ")));
        }
        let mut equal = |column: &str, value: &Option<String>| {
            if let Some(value) = value {
                terms.push(format!("{column} = ?"));
                values.push(Value::from(value.clone()));
            }
        };
        equal("e.reason_code", &filter.reason);
        equal("e.type", &filter.kind);
        equal("e.event", &filter.name);
        if let Some(person) = &filter.person {
            let hash = store::read_person_key(&self.conn)?.map(|key| store::hashed(&key, person));
            terms.push("e.person IN (?, ?)".to_owned());
            values.push(Value::from(person.clone()));
            values.push(hash.map_or(Value::Null, Value::from));
        }
        if let Some(seqs) = &filter.seqs {
            let seqs: Vec<String> = seqs.iter().map(i64::to_string).collect();
            terms.push("e.seq IN (SELECT value FROM json_each(?))".to_owned());
            values.push(Value::from(format!("[{}]", seqs.join(","))));
        }
        for (time, comparison) in [(filter.since, ">="), (filter.until, "<")] {
            if let Some(time) = time {
                terms.push(format!("e.received_at {comparison} ?"));
                values.push(Value::from(time.to_string()));
            }
        }
        Ok((terms.join(" AND "), values))
    }

    /// Everything that is known of one event; `None`: no row carries that id.
    ///
    /// # Errors
    /// SQLite's.
    pub fn show(&self, message_id: &str) -> Result<Option<Detail>, OutboxError> {
        let read = || {
            let seq: Option<i64> = self
                .conn
                .query_row("SELECT seq FROM ids WHERE id = ?", [store::short_hash(message_id)], |r| r.get(0))
                .optional()?;
            let Some(seq) = seq else { return Ok(None) };
            let row = self.conn.query_row("SELECT * FROM outbox_events WHERE seq = ?", [seq], listed)?;
            let (spooled_at, body) = self.conn.query_row(
                &format!(
                    "SELECT spooled_at, body FROM pending WHERE seq = ?1
                     UNION ALL
                     SELECT spooled_at, body FROM pending WHERE {}
                     UNION ALL
                     SELECT s.spooled_at, b.body FROM settled s LEFT JOIN bodies b ON b.seq = s.seq WHERE s.seq = ?1
                     LIMIT 1",
                    self.of_event
                ),
                [seq],
                |r| Ok((Timestamp(r.get(0)?), r.get(1)?)),
            )?;
            let attempts = self
                .conn
                .prepare("SELECT at, code, text FROM attempts WHERE seq = ? ORDER BY n")?
                .query_map([seq], |r| {
                    Ok(Attempt { at: Timestamp(r.get(0)?), code: r.get(1)?, text: r.get(2)? })
                })?
                .collect::<Result<_, _>>()?;
            Ok(Some(Detail { row, spooled_at, body, attempts }))
        };
        read().map_err(|e| self.error("look up an event", e))
    }

    /// How many older events of the same person a pending event waits for.
    ///
    /// # Errors
    /// SQLite's.
    pub fn ahead(&self, seq: i64) -> Result<u64, OutboxError> {
        self.conn
            .query_row(
                &format!(
                    "SELECT count(*) FROM pending p JOIN pending q ON q.lane = p.lane AND q.seq < p.seq
                      WHERE p.seq = (SELECT min(seq) FROM pending WHERE seq = ?1 OR {})",
                    self.of_event
                ),
                [seq],
                |r| r.get::<_, i64>(0),
            )
            .map(|n| n as u64)
            .map_err(|e| self.error("count what waits before an event", e))
    }

    /// Bytes of the database in use, free pages aside.
    ///
    /// # Errors
    /// SQLite's.
    pub fn bytes(&self) -> Result<u64, OutboxError> {
        self.conn
            .query_row(
                "SELECT (page_count - freelist_count) * page_size
                   FROM pragma_page_count, pragma_freelist_count, pragma_page_size",
                [],
                |r| r.get::<_, i64>(0),
            )
            .map(|n| n as u64)
            .map_err(|e| self.error("measure it", e))
    }
}

fn pending_item(row: &Row<'_>) -> Result<PendingItem, rusqlite::Error> {
    Ok(PendingItem {
        seq: row.get(0)?,
        mapping: row.get(1)?,
        message_id: MessageId::remembered(row.get(2)?),
        spooled_at: Timestamp(row.get(3)?),
        body: row.get(4)?,
    })
}

fn listed(row: &Row<'_>) -> Result<Listed, rusqlite::Error> {
    Ok(Listed {
        seq: row.get("seq")?,
        message_id: row.get("message_id")?,
        kind: row.get("type")?,
        event: row.get("event")?,
        state: row.get("state")?,
        person: row.get("person")?,
        received_at: row.get("received_at")?,
        settled_at: row.get("settled_at")?,
        attempts: row.get("attempts")?,
        reason_code: row.get("reason_code")?,
        reason: row.get("reason")?,
        file: row.get("file")?,
        place: row.get("place")?,
    })
}

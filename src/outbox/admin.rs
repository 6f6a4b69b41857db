//! What an administrator changes by hand, from a process of its own, whether an agent runs or not.

use super::ids::short_hash;
use super::store::{RETRY_REQUESTS, Store};
use super::{Filter, NewItem, OutboxError, Reader, Settings, State};
use crate::clock::Timestamp;
use crate::config;
use crate::event::MessageId;

/// A connection that may change settled events.
pub struct Admin {
    pub(super) store: Store,
    reader: Reader,
}

/// A settled event whose body is still there, so that it can be tried again.
#[derive(Debug, Clone)]
pub struct Retained {
    /// Its place in the order of the spool.
    pub seq: i64,
    /// Unique among all that the outbox remembers.
    pub message_id: MessageId,
    /// The file's modification time: the event's timestamp where it has none.
    pub spooled_at: Timestamp,
    /// The event's text as it came.
    pub body: String,
    /// Its state.
    pub state: State,
}

impl Admin {
    /// Opens the outbox for changes; never creates it.
    ///
    /// # Errors
    /// [`OutboxError::Missing`], [`OutboxError::Denied`], [`OutboxError::NewerSchema`], and SQLite's.
    pub fn open(config: &config::OutboxConfig) -> Result<Admin, OutboxError> {
        let reader = Reader::open(&config.path)?;
        let mut store = Store::open(&Settings::from(config))?;
        // So that what is looked at stands where it belongs.
        store.transaction(Store::tidy_up)?;
        Ok(Admin { store, reader })
    }

    /// What can be read.
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// The settled event of that id: `Ok(Err(state))` if it has no body any more, or is pending;
    /// `None`: no row carries that id.
    ///
    /// # Errors
    /// SQLite's.
    pub fn kept(&self, message_id: &str) -> Result<Option<Result<Retained, State>>, OutboxError> {
        let Some(detail) = self.reader.show(message_id)? else { return Ok(None) };
        let Some(state) = State::parse(&detail.row.state) else { return Ok(None) };
        let Some(body) = detail.body.filter(|_| state != State::Pending) else { return Ok(Some(Err(state))) };
        Ok(Some(Ok(Retained {
            seq: detail.row.seq,
            message_id: MessageId::from_stored(detail.row.message_id),
            spooled_at: detail.spooled_at,
            body,
            state,
        })))
    }

    /// Settled events that match and whose bodies are still there, oldest first, up to `limit` after `after`.
    ///
    /// # Errors
    /// SQLite's.
    pub fn all_kept(&self, filter: &Filter, after: i64, limit: usize) -> Result<Vec<Retained>, OutboxError> {
        self.reader.kept(filter, after, limit)
    }

    /// Puts events back among the pending, in their old places, and wakes a running agent. Returns how many. What was
    /// delivered of an event that failed is not sent again.
    ///
    /// # Errors
    /// SQLite's; then nothing has changed.
    pub fn requeue(&mut self, events: &[(i64, Vec<NewItem>)], now: Timestamp) -> Result<u64, OutboxError> {
        self.store.transaction(|store| {
            store.tidy_up()?;
            let mut n = 0;
            for (seq, items) in events {
                n += u64::from(store.requeue(*seq, items, now)?);
            }
            store.bump(RETRY_REQUESTS)?;
            Ok(n)
        })
    }

    /// Gives up the event of that id; `None`: no row carries it; `Some(false)`: it may not be given up.
    ///
    /// # Errors
    /// SQLite's; then nothing has changed.
    pub fn discard(&mut self, message_id: &str, now: Timestamp) -> Result<Option<bool>, OutboxError> {
        let id = short_hash(message_id);
        self.store.transaction(|store| {
            store.tidy_up()?;
            let seq = store.seq_of(&id)?;
            seq.map(|seq| store.discard(seq, now)).transpose()
        })
    }
}

impl Reader {
    fn kept(&self, filter: &Filter, after: i64, limit: usize) -> Result<Vec<Retained>, OutboxError> {
        let read = || {
            let (condition, mut values) = self.condition(filter)?;
            values.push(after.into());
            self.connection()
                .prepare(&format!(
                    "SELECT e.seq, e.message_id, s.spooled_at, b.body, e.state
                       FROM outbox_events e JOIN settled s ON s.seq = e.seq JOIN bodies b ON b.seq = e.seq
                      WHERE {condition} AND e.seq > ? ORDER BY e.seq LIMIT {limit}"
                ))?
                .query_map(rusqlite::params_from_iter(&values), |r| {
                    let state: String = r.get(4)?;
                    Ok(Retained {
                        seq: r.get(0)?,
                        message_id: MessageId::from_stored(r.get(1)?),
                        spooled_at: Timestamp(r.get(2)?),
                        body: r.get(3)?,
                        state: State::parse(&state).unwrap_or(State::Failed),
                    })
                })?
                .collect::<Result<Vec<_>, rusqlite::Error>>()
        };
        read().map_err(|e| self.error("read what can be tried again", e))
    }
}

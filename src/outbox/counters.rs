//! The number of events in each state, by reason code. Counting rows would take as long as the history is large, so
//! each transaction that changes a state also changes the table `counters`.

use super::row::State;
use crate::clock::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::BTreeMap;

/// The counter of duplicates, which have no rows.
pub(super) const DUPLICATES: &str = "duplicate";

/// The counters, and the oldest pending event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events by state.
    pub states: BTreeMap<State, u64>,
    /// Settled events by state and reason code.
    pub reasons: Vec<(State, String, u64)>,
    /// Events that were dropped because they were stored before.
    pub duplicates: u64,
    /// When the oldest pending event was stored.
    pub oldest_pending: Option<Timestamp>,
}

impl Counts {
    /// The number of events in that state.
    pub fn of(&self, state: State) -> u64 {
        self.states.get(&state).copied().unwrap_or(0)
    }

    pub(super) fn read(conn: &Connection) -> Result<Counts, rusqlite::Error> {
        let oldest_pending = conn
            .query_row("SELECT received_at FROM pending ORDER BY seq LIMIT 1", [], |r| {
                Ok(Timestamp(r.get(0)?))
            })
            .optional()?;
        let mut counts = Counts { oldest_pending, ..Counts::default() };
        let mut statement =
            conn.prepare_cached("SELECT state, code, events FROM counters ORDER BY state, code")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (name, code, events): (String, String, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
            let events = events as u64;
            match State::parse(&name) {
                Some(state) => {
                    *counts.states.entry(state).or_default() += events;
                    if !code.is_empty() && events > 0 {
                        counts.reasons.push((state, code, events));
                    }
                }
                None if name == DUPLICATES => counts.duplicates = events,
                None => {}
            }
        }
        if counts.of(State::Pending) == 0 {
            // The row is that of a delivered event, and has not been compacted yet.
            counts.oldest_pending = None;
        }
        Ok(counts)
    }
}

/// The changes of the counters within a transaction, which are written at its end.
#[derive(Debug, Default)]
pub(super) struct CounterChanges(BTreeMap<(&'static str, &'static str), i64>);

impl CounterChanges {
    pub(super) fn add(&mut self, state: State, code: &'static str, events: i64) {
        self.add_named(state.as_str(), code, events);
    }

    pub(super) fn add_duplicates(&mut self, events: i64) {
        self.add_named(DUPLICATES, "", events);
    }

    fn add_named(&mut self, name: &'static str, code: &'static str, events: i64) {
        *self.0.entry((name, code)).or_default() += events;
    }

    /// Counts one event from one state and reason code into another.
    pub(super) fn change_state(&mut self, from: (State, &'static str), to: (State, &'static str)) {
        self.add(from.0, from.1, -1);
        self.add(to.0, to.1, 1);
    }

    pub(super) fn merge(&mut self, other: CounterChanges) {
        for ((name, code), events) in other.0 {
            self.add_named(name, code, events);
        }
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn write(&mut self, conn: &Connection) -> Result<(), rusqlite::Error> {
        for ((name, code), events) in std::mem::take(&mut self.0) {
            if events == 0 {
                continue;
            }
            let mut update = conn
                .prepare_cached("UPDATE counters SET events = events + ?3 WHERE state = ?1 AND code = ?2")?;
            if update.execute(params![name, code, events])? == 0 {
                conn.prepare_cached("INSERT INTO counters (state, code, events) VALUES (?, ?, ?)")?
                    .execute(params![name, code, events])?;
            }
        }
        Ok(())
    }
}

//! What is stored of a settled event, as far as it decides what may become of the event.

use super::counters::event_bytes;
use super::row::State;
use super::tables::Tables;
use crate::reason::Code;
use rusqlite::OptionalExtension;

/// The columns of a row of `settled` that decide what may become of the event.
pub(super) struct SettledRow {
    pub(super) state: State,
    pub(super) code: &'static str,
    pub(super) body_bytes: i64,
}

impl SettledRow {
    /// The row of an event; `None`: it is not settled.
    pub(super) fn read(tables: &Tables, seq: i64) -> Result<Option<SettledRow>, rusqlite::Error> {
        tables
            .cached("SELECT state, code, body_bytes FROM settled WHERE seq = ?")?
            .query_row([seq], |r| {
                Ok(SettledRow {
                    // The schema allows no other names.
                    state: State::parse(r.get_ref(0)?.as_str()?).unwrap_or(State::Discarded),
                    code: Code::parse(r.get_ref(1)?.as_str()?).map_or("", Code::as_str),
                    body_bytes: r.get(2)?,
                })
            })
            .optional()
    }

    /// The bytes of disk that the event takes, with its body if that is kept.
    pub(super) fn bytes(&self) -> i64 {
        event_bytes(self.body_bytes)
    }
}

//! The answers other than acceptance that an event has got.

use super::destinations::KOALA;
use super::tables::Tables;
use crate::clock::Timestamp;
use crate::reason::Reason;
use rusqlite::{OptionalExtension, params};

/// Attempts kept for one event. The last ones matter most, and the first cause is seldom older than this many.
const MAX_ATTEMPTS: i64 = 16;

/// Records such an answer with the events of these items.
pub(super) fn add_attempts(
    tables: &Tables,
    items: &[i64],
    reason: &Reason,
    now: Timestamp,
) -> Result<(), rusqlite::Error> {
    for item in items {
        let event: Option<i64> = tables
            .cached("SELECT coalesce(seq, id) FROM queue WHERE id = ?")?
            .query_row([item], |r| r.get(0))
            .optional()?;
        let Some(event) = event else { continue };
        tables
            .cached(
                "INSERT INTO attempts (seq, n, destination, at, code, reason)
                 SELECT ?1, coalesce((SELECT max(n) FROM attempts WHERE seq = ?1), 0) + 1, ?2, ?3, ?4, ?5",
            )?
            .execute(params![event, KOALA, now.0, reason.code.as_str(), reason.text])?;
        tables
            .cached(
                "DELETE FROM attempts
                  WHERE seq = ?1 AND n <= (SELECT max(n) FROM attempts WHERE seq = ?1) - ?2",
            )?
            .execute(params![event, MAX_ATTEMPTS])?;
    }
    Ok(())
}

//! The facts about each destination that outlive a restart, each a column of the table `destinations`.

use crate::clock::Timestamp;
use rusqlite::{Connection, params};

/// The number of the only destination.
pub(super) const KOALA: i64 = 1;

/// What is stored of a destination.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct DestinationFacts {
    /// The receiver asked for no requests before this time.
    pub(super) retry_after: Option<Timestamp>,
    /// A hash of the receiver's address and the key under which it last accepted an event.
    pub(super) accepted_by: Option<i64>,
}

impl DestinationFacts {
    pub(super) fn load(conn: &Connection) -> Result<DestinationFacts, rusqlite::Error> {
        conn.prepare_cached("SELECT retry_after, accepted_by FROM destinations WHERE id = ?")?.query_row(
            [KOALA],
            |r| {
                Ok(DestinationFacts {
                    retry_after: r.get::<_, Option<i64>>(0)?.map(Timestamp),
                    accepted_by: r.get(1)?,
                })
            },
        )
    }
}

pub(super) fn set_retry_after(conn: &Connection, at: Option<Timestamp>) -> Result<(), rusqlite::Error> {
    conn.prepare_cached("UPDATE destinations SET retry_after = ?2 WHERE id = ?1")?
        .execute(params![KOALA, at.map(|at| at.0)])
        .map(drop)
}

pub(super) fn set_accepted_by(conn: &Connection, receiver: i64) -> Result<(), rusqlite::Error> {
    conn.prepare_cached("UPDATE destinations SET accepted_by = ?2 WHERE id = ?1")?
        .execute(params![KOALA, receiver])
        .map(drop)
}

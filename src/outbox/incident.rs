//! What has happened to the outbox that a person should know, kept in the outbox itself.

use super::store::Store;
use super::{OutboxError, Reader};
use crate::clock::Timestamp;
use crate::status::Incident;
use rusqlite::{OptionalExtension, params};
use std::time::Duration;

const NAME: &str = "incident";
/// How long an incident is told of that has left no files to be looked at.
const SHOWN_FOR: Duration = Duration::from_secs(7 * 86_400);

impl Store {
    /// Keeps an incident, in place of the one before.
    pub(super) fn set_incident(&self, incident: &Incident) -> Result<(), rusqlite::Error> {
        let text = serde_json::to_string(incident).unwrap_or_default();
        self.cached("INSERT INTO meta (name, value) VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = ?2")?
            .execute(params![NAME, text])?;
        Ok(())
    }
}

impl Reader {
    /// The last incident, as long as a person should know of it.
    ///
    /// # Errors
    /// SQLite's.
    pub fn incident(&self, now: Timestamp) -> Result<Option<Incident>, OutboxError> {
        let kept: Option<String> = self
            .connection()
            .prepare_cached("SELECT value FROM meta WHERE name = ?")
            .and_then(|mut statement| statement.query_row([NAME], |r| r.get(0)).optional())
            .map_err(|e| self.error("look for incidents", e))?;
        let incident: Option<Incident> = kept.and_then(|text| serde_json::from_str(&text).ok());
        Ok(incident.filter(|incident| match &incident.files {
            Some(files) => files.exists(),
            None => now.since(incident.at) < SHOWN_FOR,
        }))
    }
}

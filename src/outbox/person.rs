//! How a person is remembered whose events' bodies are gone: as a hash, under a key that the outbox was made with.

use super::OutboxError;
use hmac::{Hmac, KeyInit, Mac};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use sha2::Sha256;
use std::path::Path;

/// The name of the key in `meta`.
pub(super) const PERSON_KEY: &str = "person_key";
/// Marks a person that is known by a hash alone.
const HASH_PREFIX: &str = "hash:";

/// The key under which persons are hashed once their events' bodies are gone.
#[derive(Clone)]
pub(super) struct PersonKey(Hmac<Sha256>);

impl PersonKey {
    /// That of this outbox, made with it.
    pub(super) fn of(conn: &Connection, path: &Path) -> Result<PersonKey, OutboxError> {
        let sql = |e| OutboxError::sqlite(path, "read its key for persons", e);
        if let Some(key) = PersonKey::read(conn).map_err(sql)? {
            return Ok(key);
        }
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(|e| OutboxError::Io {
            path: path.to_owned(),
            operation: "make a key for persons",
            text: e.to_string(),
        })?;
        let tx = Transaction::new_unchecked(conn, TransactionBehavior::Immediate).map_err(sql)?;
        tx.execute("INSERT INTO meta (name, value) VALUES (?, ?)", params![PERSON_KEY, key]).map_err(sql)?;
        tx.commit().map_err(sql)?;
        Ok(PersonKey::new(&key))
    }

    /// That of an outbox that is only read, if it has one yet.
    pub(super) fn read(conn: &Connection) -> Result<Option<PersonKey>, rusqlite::Error> {
        let key =
            conn.query_row("SELECT value FROM meta WHERE name = ?", [PERSON_KEY], |r| r.get(0)).optional()?;
        Ok(key.map(|key: [u8; 32]| PersonKey::new(&key)))
    }

    fn new(key: &[u8; 32]) -> PersonKey {
        // HMAC pads a key with zeros to the size of a block.
        let mut block = [0; 64];
        block[..key.len()].copy_from_slice(key);
        PersonKey(Hmac::new(&block.into()))
    }

    /// How a person is remembered once the body is gone: 16 bytes of HMAC-SHA-256 in hexadecimal. An address is the
    /// same in capitals.
    pub(super) fn hashed(&self, person: &str) -> String {
        if person.starts_with(HASH_PREFIX) {
            return person.to_owned();
        }
        let mut mac = self.0.clone();
        match person.contains('@') {
            true => mac.update(person.trim().to_lowercase().as_bytes()),
            false => mac.update(person.as_bytes()),
        }
        let mut text = String::with_capacity(HASH_PREFIX.len() + 32);
        text.push_str(HASH_PREFIX);
        for byte in &mac.finalize().into_bytes()[..16] {
            text.extend(
                [byte >> 4, byte & 15].map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)])),
            );
        }
        text
    }
}

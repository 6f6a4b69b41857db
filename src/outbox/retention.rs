//! The data that is kept of a settled event: its body for a while, and its person as a keyed hash once the body is
//! erased.

use super::OutboxError;
use super::meta::{self, PERSON_KEY};
use super::row::Settled;
use crate::config;
use crate::reason::Code;
use hmac::{Hmac, KeyInit, Mac};
use rusqlite::{Connection, Transaction, TransactionBehavior, params};
use sha2::Sha256;
use std::path::Path;
use std::time::Duration;

/// Marks a person of whom only a hash is kept.
const HASH_PREFIX: &str = "hash:";

/// Whether the text stands for a person of whom only a hash is kept.
pub(super) fn is_hash(text: &str) -> bool {
    text.starts_with(HASH_PREFIX)
}

/// The rules of retention, as configured.
pub(super) struct Retention {
    pub(super) config: config::OutboxConfig,
    pub(super) person_key: PersonKey,
}

impl Retention {
    /// The longest time for which anything settled is kept.
    pub(super) fn longest(&self) -> Duration {
        let keep = &self.config;
        [keep.keep_delivered, keep.keep_bodies, keep.keep_skipped, keep.keep_failed]
            .into_iter()
            .max()
            .unwrap_or_default()
    }

    /// Whether the body of an event that is settled like this stays for a while.
    pub(super) fn keeps_body(&self, settled: &Settled) -> bool {
        match settled {
            Settled::Delivered => !self.config.keep_bodies.is_zero(),
            Settled::Skipped(reason) => {
                // The producer, or the person, has said that this event is none of Koala's business.
                !matches!(reason.code, Code::IntegrationsOff | Code::NoConsent | Code::Erased)
                    && !self.config.keep_skipped.is_zero()
            }
            Settled::Failed(_) => true,
            Settled::Discarded => false,
        }
    }
}

/// The key under which persons are hashed. Each outbox has its own, so hashes of two outboxes cannot be compared.
#[derive(Clone)]
pub(super) struct PersonKey(Hmac<Sha256>);

impl PersonKey {
    /// Reads the key of an outbox, or gives it one.
    pub(super) fn read_or_create(conn: &Connection, path: &Path) -> Result<PersonKey, OutboxError> {
        let sql = |e| OutboxError::sqlite(path, "read the key for hashes of persons", e);
        if let Some(key) = PersonKey::read(conn).map_err(sql)? {
            return Ok(key);
        }
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(|e| OutboxError::Io {
            path: path.to_owned(),
            operation: "create the key for hashes of persons",
            text: e.to_string(),
        })?;
        let tx = Transaction::new_unchecked(conn, TransactionBehavior::Immediate).map_err(sql)?;
        // Not `meta::set`: a key that is there is never replaced.
        tx.execute("INSERT INTO meta (name, value) VALUES (?, ?)", params![PERSON_KEY, key]).map_err(sql)?;
        tx.commit().map_err(sql)?;
        Ok(PersonKey::new(&key))
    }

    /// Reads the key of an outbox that may not have one yet.
    pub(super) fn read(conn: &Connection) -> Result<Option<PersonKey>, rusqlite::Error> {
        let key: Option<[u8; 32]> = meta::get(conn, PERSON_KEY)?;
        Ok(key.map(|key| PersonKey::new(&key)))
    }

    fn new(key: &[u8; 32]) -> PersonKey {
        // HMAC pads a key with zeros to the size of a block.
        let mut block = [0; 64];
        block[..key.len()].copy_from_slice(key);
        PersonKey(Hmac::new(&block.into()))
    }

    /// Hashes a person: 16 bytes of HMAC-SHA-256 in hexadecimal. The case of an email address does not matter. A hash
    /// is returned as it is.
    pub(super) fn hash(&self, person: &str) -> String {
        if person.starts_with(HASH_PREFIX) {
            return person.to_owned();
        }
        let mut mac = self.0.clone();
        match person.contains('@') {
            true => mac.update(person.trim().to_lowercase().as_bytes()),
            false => mac.update(person.as_bytes()),
        }
        let mut hash = String::with_capacity(HASH_PREFIX.len() + 32);
        hash.push_str(HASH_PREFIX);
        for byte in &mac.finalize().into_bytes()[..16] {
            hash.extend(
                [byte >> 4, byte & 15].map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)])),
            );
        }
        hash
    }
}

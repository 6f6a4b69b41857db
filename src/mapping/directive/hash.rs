//! `@hash`: a keyed hash of a text, so that a value can be matched but not read.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::fmt;

/// A shorter key could be guessed, and its hashes then be reversed by hashing candidates.
const MIN_BYTES: usize = 16;

/// The secret key of `@hash`. Its `Debug` output does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct HashKey(Vec<u8>);

impl HashKey {
    /// Makes a key of `bytes`, without the white space around them.
    ///
    /// # Errors
    /// [`WeakKey`] if there are too few bytes.
    pub fn new(bytes: &[u8]) -> Result<HashKey, WeakKey> {
        let bytes = bytes.trim_ascii();
        if bytes.len() < MIN_BYTES { Err(WeakKey) } else { Ok(HashKey(bytes.to_owned())) }
    }

    /// The HMAC-SHA-256 of `text` in hexadecimal.
    pub(in crate::mapping) fn hash(&self, text: &str) -> Result<String, String> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).map_err(|e| format!("@hash: {e}"))?;
        mac.update(text.as_bytes());
        Ok(mac.finalize().into_bytes().iter().map(|b| format!("{b:02x}")).collect())
    }
}

impl fmt::Debug for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashKey(…)")
    }
}

/// The key has fewer bytes than a key must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("its key is shorter than {MIN_BYTES} bytes")]
pub struct WeakKey;

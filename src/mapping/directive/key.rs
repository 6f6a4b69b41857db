//! The key of `@hash`.

use std::fmt;

/// What can be guessed makes hashes that can be undone.
const LEAST_BYTES: usize = 16;

/// A secret; never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct HashKey(Vec<u8>);

impl HashKey {
    /// These bytes, without white space around them.
    ///
    /// # Errors
    /// [`WeakKey`]
    pub fn new(bytes: &[u8]) -> Result<HashKey, WeakKey> {
        let bytes = bytes.trim_ascii();
        if bytes.len() < LEAST_BYTES { Err(WeakKey) } else { Ok(HashKey(bytes.to_owned())) }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashKey(…)")
    }
}

/// Why bytes are no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("its key is shorter than {LEAST_BYTES} bytes")]
pub struct WeakKey;

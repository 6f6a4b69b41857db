//! Why there is no configuration.

use std::io;
use std::path::PathBuf;

/// Why there is no configuration; it quotes no value, so no secret is in it.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file exists and cannot be read: a matter of permissions, and no other file is taken instead.
    #[error("cannot read the configuration {}: {}", path.display(), source.kind())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file that was named does not exist.
    #[error("the configuration {} does not exist; {named_by} names it", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// `--config` or `KOALA_AGENT_CONFIG`.
        named_by: &'static str,
    },
    /// What was read is wrong.
    #[error("{}", problems.join("\n"))]
    Invalid {
        /// A sentence each: of the file in its order, then of the environment, then of keys that disagree.
        problems: Vec<String>,
    },
}

impl ConfigError {
    pub(super) fn one(problem: String) -> ConfigError {
        ConfigError::Invalid { problems: vec![problem] }
    }
}

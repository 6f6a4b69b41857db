//! The settings in force, and where they came from.
//!
//! [`Config`] is what the rest of the program reads: checked, typed, with no option left open. [`load`]
//! reads it from the option, the environment, one file and the defaults, in that order.

mod address;
mod defaults;
mod environment;
mod error;
mod key;
mod load;
mod mappings;
mod settings;
#[cfg(test)]
mod tests;
mod units;
mod value;

pub use environment::Environment;
pub use error::ConfigError;
pub use key::{InvalidKey, PublicKey};
pub use load::{Options, load};
pub use units::{Bytes, Floor};

use crate::mapping::Mappings;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The commented defaults: the file that a package installs, and the documentation of every key.
pub const DEFAULTS: &str = include_str!("../../packaging/config.toml");

/// What the environment variables begin with that set a key: `KOALA_AGENT_SPOOL__DIR` is `spool.dir`.
const PREFIX: &str = "KOALA_AGENT_";

/// The environment variable that names the configuration file.
const VARIABLE: &str = "KOALA_AGENT_CONFIG";

/// Whose agent this is: decides the defaults of all paths, never a mix of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// `/etc/koala-agent/config.toml` and the system's paths.
    System,
    /// The user's own folders.
    User,
    /// A file named by `--config` or `KOALA_AGENT_CONFIG`; its defaults are the system's paths.
    Named,
}

/// Everything that can be set, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Whose agent this is.
    pub scope: Scope,
    /// The file that was read, or that would have been if it existed.
    pub path: PathBuf,
    /// Whether that file exists.
    pub file_exists: bool,
    /// Where the daemon publishes its status for everybody to read.
    pub status_file: PathBuf,
    /// `[spool]`
    pub spool: Spool,
    /// `[outbox]`
    pub outbox: Outbox,
    /// `[koala]`
    pub koala: Koala,
    /// The mappings: the presets, where none are written.
    pub mappings: Arc<Mappings>,
    /// What the mappings lack to do their work, and the fix; the daemon does not run so.
    pub mappings_lack: Option<String>,
    /// Whether the file holds the key and can be read by everybody, which a `check` fails.
    pub key_exposed: bool,
    /// What was odd but no error, a sentence each; the caller shows them.
    pub warnings: Vec<String>,
}

/// `[spool]`: the folder that programs drop files into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spool {
    /// The folder.
    pub dir: PathBuf,
    /// The folder is read this often whatever the watcher says.
    pub scan_interval: Duration,
    /// A file that no event announced as finished is taken when unchanged for so long.
    pub settle: Duration,
    /// An incomplete document unchanged for so long is set aside.
    pub incomplete_after: Duration,
    /// The largest JSON document; NDJSON streams and has no such limit.
    pub max_file_bytes: u64,
    /// The largest event.
    pub max_event_bytes: u64,
}

/// `[outbox]`: the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outbox {
    /// The database file.
    pub path: PathBuf,
    /// The size of the database at which the intake is blocked.
    pub max_bytes: u64,
    /// The free space of its file system below which the intake is blocked.
    pub min_free: Floor,
    /// How long a delivered messageId is remembered.
    pub keep_delivered: Duration,
    /// How long a delivered body is kept.
    pub keep_bodies: Duration,
    /// How long the bodies of skipped events are kept.
    pub keep_skipped: Duration,
    /// How long failed events and files in `rejected/` are kept.
    pub keep_failed: Duration,
}

/// `[koala]`: the destination.
#[derive(Clone, PartialEq, Eq)]
pub struct Koala {
    /// Scheme and host, without a trailing slash or a path.
    pub endpoint: String,
    /// The key; `None` while its file is empty or missing.
    pub public_key: Option<PublicKey>,
    /// Where the key is looked for, in words for a person: a path, `the credential koala-public-key`, ...
    pub key_source: String,
    /// The file that the key comes from; `None` if it stands in the configuration itself.
    pub key_file: Option<PathBuf>,
    /// What is odd about the key's file, a sentence each; for those who need the key, as `run` and `check` do.
    pub key_warnings: Vec<String>,
    /// An event that refuses one of these is skipped.
    pub consent_categories: Vec<String>,
    /// Requests in flight at once.
    pub concurrency: Concurrency,
    /// The longest that one request may take.
    pub timeout: Duration,
    /// The proxy; `None`: as the environment says. It may hold a password, so it is never shown.
    pub proxy: Option<String>,
    /// Certificates to trust beside the system's, a PEM file.
    pub ca_file: Option<PathBuf>,
    /// Whether `http://` may leave the machine.
    pub allow_plain_http: bool,
}

/// How many requests may be in flight at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Concurrency {
    /// As many as the receiver answers well, at most [`Concurrency::MOST`].
    Auto,
    /// So many.
    Fixed(usize),
}

impl Concurrency {
    /// The most of one agent: more connections from one machine would look like an attack, and a crash sends again what
    /// was in flight.
    pub const MOST: usize = 64;
}

impl Config {
    /// The same, if it has all that the daemon needs.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with what the mappings lack.
    pub fn for_daemon(self) -> Result<Config, ConfigError> {
        match self.mappings_lack {
            Some(lack) => Err(ConfigError::one(lack)),
            None => Ok(self),
        }
    }
}

impl Koala {
    /// Whether the endpoint is on this machine: then no proxy is used, and `http://` is as good as `https://`.
    pub fn is_loopback(&self) -> bool {
        address::is_loopback(&self.endpoint)
    }
}

impl fmt::Debug for Koala {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Koala")
            .field("endpoint", &self.endpoint)
            .field("key_source", &self.key_source)
            .field("concurrency", &self.concurrency)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

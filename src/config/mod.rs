//! The settings in force, and where they came from.
//!
//! [`Config`] is the checked and typed result for the rest of the program. [`load()`] reads it from the command line, the
//! environment, one file and the defaults, in that order. The layers are read by hand rather than by a crate such as
//! figment, so that an error names the file, the line and the nearest known key, lists all problems, and quotes no value.

mod address;
mod builder;
mod edit;
mod instance;
mod key;
mod load;
mod mappings;
mod sections;
#[cfg(test)]
mod tests;
mod units;
mod value;

pub use edit::with_endpoint;
pub use instance::{Instance, system_key_file};
pub use key::{InvalidKey, MAX_KEY_FILE_BYTES, PublicKey};
pub use load::{ConfigOptions, FileDigest, digest_of, load, load_before_it_exists};
pub use sections::{Concurrency, KoalaConfig, LogConfig, LogLevel, OutboxConfig, SpoolConfig};
pub use units::{Bytes, MinFree};

use crate::mapping::Mappings;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// The commented defaults: the file that a package installs, and the documentation of every key.
pub const DEFAULTS: &str = include_str!("../../packaging/config.toml");

/// The prefix of environment variables that set a key: `KOALA_AGENT_SPOOL__DIR` is `spool.dir`.
const PREFIX: &str = "KOALA_AGENT_";

/// The environment variable that names the configuration file.
const VARIABLE: &str = "KOALA_AGENT_CONFIG";

/// The kind of place from which the configuration comes. It decides the defaults of all paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// `/etc/koala-agent/config.toml` and the system's paths, or those of an instance.
    System,
    /// The user's own folders.
    User,
    /// A file named by `--config` or `KOALA_AGENT_CONFIG`; its defaults are the system's paths.
    Named,
}

/// All settings, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// The kind of place from which the configuration comes.
    pub scope: Scope,
    /// The instance, if this is one of several agents of the system.
    pub instance: Option<Instance>,
    /// The configuration file, whether it exists or not.
    pub path: PathBuf,
    /// Whether that file exists.
    pub file_exists: bool,
    /// The content of that file; `None` if there is none.
    pub file_digest: Option<FileDigest>,
    /// Whether these are only the settings that could be read of an invalid file.
    pub is_broken: bool,
    /// The file in which the daemon publishes its status for everybody to read.
    pub status_file: PathBuf,
    /// The file beside the outbox in which it publishes the whole of it, for those who may read the outbox.
    pub private_status_file: PathBuf,
    /// `[spool]`
    pub spool: SpoolConfig,
    /// `[outbox]`
    pub outbox: OutboxConfig,
    /// `[koala]`
    pub koala: KoalaConfig,
    /// `[log]`
    pub log: LogConfig,
    /// The mappings; the presets if none are written.
    pub mappings: Arc<Mappings>,
    /// The thing that the mappings lack, and the fix. The daemon does not run without it.
    pub mappings_lack: Option<String>,
    /// Whether everybody can read the key in the configuration file; `check` fails then.
    pub key_exposed: bool,
    /// Warnings, a sentence each, for the caller to show.
    pub warnings: Vec<String>,
}

impl Config {
    /// The unit of the service, as systemctl names it; `None`: no service of the system.
    pub fn unit(&self) -> Option<&str> {
        self.koala.unit.as_deref()
    }

    /// Whether the spool is the folder that the package or the unit makes for this agent of the system.
    pub fn has_packaged_spool(&self) -> bool {
        let packaged = instance::SystemPlaces::of(self.instance.as_ref()).spool;
        self.scope == Scope::System && self.spool.dir == packaged
    }

    /// Returns this configuration if the daemon can run with it.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] if the mappings lack something.
    pub fn for_daemon(self) -> Result<Config, ConfigError> {
        match self.mappings_lack {
            Some(lack) => Err(ConfigError::one(lack)),
            None => Ok(self),
        }
    }
}

/// The environment variables in force, collected once; tests make their own. An empty variable counts as not set, since a
/// shell or a container file may leave one. There is no `Debug`: a value may be the public key.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<OsString, OsString>);

impl Environment {
    /// The variables of this process.
    pub fn of_process() -> Environment {
        std::env::vars_os().collect()
    }

    /// The value of a variable.
    pub fn get(&self, name: &str) -> Option<&OsStr> {
        self.0.get(OsStr::new(name)).map(OsString::as_os_str)
    }

    /// The variables with the agent's prefix. Bytes of a name that are not UTF-8 are replaced.
    fn with_prefix(&self) -> impl Iterator<Item = (String, &OsStr)> {
        let named =
            self.0.iter().map(|(name, value)| (name.to_string_lossy().into_owned(), value.as_os_str()));
        named.filter(|(name, _)| name.starts_with(PREFIX))
    }
}

impl<K: Into<OsString>, V: Into<OsString>> FromIterator<(K, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(variables: I) -> Environment {
        let variables = variables.into_iter().map(|(name, value)| (name.into(), value.into()));
        Environment(variables.filter(|(_, value): &(_, OsString)| !value.is_empty()).collect())
    }
}

/// The reason that a configuration could not be loaded. It quotes no value, so it contains no secret.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file exists but cannot be read. No other file is read instead.
    #[error("cannot read the configuration {}: {}", path.display(), source.kind())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The file that was named does not exist.
    #[error("the configuration {}, named by {named_by}, does not exist; the command init writes it", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// `--config`, `--instance` or `KOALA_AGENT_CONFIG`.
        named_by: &'static str,
    },
    /// The settings are wrong.
    #[error("{}", problems.join("\n"))]
    Invalid {
        /// The problems, a sentence each: first those of the file in its order, then those of the environment, then those
        /// between keys.
        problems: Vec<String>,
        /// The settings as far as they could be read, for commands that an agent with another version of the file lets go
        /// on.
        rest: Option<Box<Config>>,
    },
}

impl ConfigError {
    fn one(problem: String) -> ConfigError {
        ConfigError::Invalid { problems: vec![problem], rest: None }
    }
}

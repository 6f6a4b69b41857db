//! The sections of the configuration, with their defaults: those of the system's agent, as `packaging/config.toml`
//! documents them.

use super::{MinFree, PublicKey, address, key};
use crate::reason::NO_KEY;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// The problem with an address that [`KoalaConfig::is_unencrypted`].
pub(super) const UNENCRYPTED: &str = "would send the key and the events unencrypted; write https://, or set \
                                      koala.allow_plain_http = true";

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// `[spool]`: the folder that programs drop files into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpoolConfig {
    /// The folder.
    pub dir: PathBuf,
    /// The interval of scans of the folder, which happen in addition to what the watcher reports.
    pub scan_interval: Duration,
    /// The time for which a file must be unchanged, if no event announced it as finished.
    pub settle: Duration,
    /// The time after which an unchanged incomplete document is rejected.
    pub incomplete_after: Duration,
    /// The largest JSON value. Values one after another are read as a stream and have no such limit.
    pub max_file_bytes: u64,
    /// The most content of an event: white space outside strings does not count.
    pub max_event_bytes: u64,
    /// The most bytes that files in `rejected/` take on the disk. One owner may have three quarters of it.
    pub max_rejected: u64,
}

impl Default for SpoolConfig {
    fn default() -> SpoolConfig {
        SpoolConfig {
            dir: PathBuf::from("/var/spool/koala-agent"),
            scan_interval: Duration::from_secs(30),
            settle: Duration::from_secs(2),
            incomplete_after: Duration::from_secs(60),
            max_file_bytes: 64 << 20,
            // Segment's own limit for one call.
            max_event_bytes: 32 << 10,
            max_rejected: 1 << 30,
        }
    }
}

/// `[outbox]`: the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxConfig {
    /// The database file.
    pub path: PathBuf,
    /// The size of the database at which the intake is blocked.
    pub max_bytes: u64,
    /// The free space of its file system below which the intake is blocked.
    pub min_free: MinFree,
    /// The time for which a delivered messageId is remembered.
    pub keep_delivered: Duration,
    /// The time for which the body of a delivered event is kept.
    pub keep_bodies: Duration,
    /// The time for which the bodies of skipped events are kept.
    pub keep_skipped: Duration,
    /// The time for which failed events and files in `rejected/` are kept.
    pub keep_failed: Duration,
}

impl Default for OutboxConfig {
    fn default() -> OutboxConfig {
        OutboxConfig {
            path: PathBuf::from("/var/lib/koala-agent/outbox.db"),
            max_bytes: 1 << 30,
            min_free: MinFree::Share(200),
            keep_delivered: 30 * DAY,
            keep_bodies: Duration::ZERO,
            keep_skipped: 7 * DAY,
            keep_failed: 90 * DAY,
        }
    }
}

/// `[koala]`: the destination.
#[derive(Clone, PartialEq, Eq)]
pub struct KoalaConfig {
    /// Scheme and host, without a trailing slash or a path.
    pub endpoint: String,
    /// The key; `None` while its file is empty or missing.
    pub public_key: Option<PublicKey>,
    /// The source of the key in words for a reader: a path, `the credential koala-public-key`, …
    pub key_source: String,
    /// The file that the key comes from; `None` if it stands in the configuration itself.
    pub key_file: Option<PathBuf>,
    /// The unit of an agent as the package installs it, to which systemd hands the key.
    pub unit: Option<String>,
    /// Why the key's file, which is there, gives no key.
    unusable_key: Option<String>,
    /// Warnings about the files of keys, a sentence each, for commands that need the keys.
    pub key_warnings: Vec<String>,
    /// Consent categories. An event that refuses one of them is skipped.
    pub consent_categories: Vec<String>,
    /// Requests in flight at once.
    pub concurrency: Concurrency,
    /// The longest that one request may take.
    pub timeout: Duration,
    /// The proxy; `None`: as the environment says. It may contain a password, so it is never shown.
    pub proxy: Option<String>,
    /// A PEM file of certificates to trust in addition to the system's.
    pub ca_file: Option<PathBuf>,
    /// Whether `http://` is allowed beyond this machine.
    pub allow_plain_http: bool,
}

impl Default for KoalaConfig {
    /// Without a key, and without a file to read it from.
    fn default() -> KoalaConfig {
        KoalaConfig {
            endpoint: "https://api2.getkoala.com".to_owned(),
            public_key: None,
            key_source: String::new(),
            key_file: None,
            unit: None,
            unusable_key: None,
            key_warnings: Vec::new(),
            consent_categories: Vec::new(),
            concurrency: Concurrency::Auto,
            timeout: Duration::from_secs(30),
            proxy: None,
            ca_file: None,
            allow_plain_http: false,
        }
    }
}

impl KoalaConfig {
    /// Whether the endpoint is on this machine. Then no proxy is used, and `http://` is as safe as `https://`.
    pub fn is_loopback(&self) -> bool {
        address::is_loopback(&self.endpoint)
    }

    /// Whether requests would carry the key and the events unencrypted over a network, without anybody having allowed it.
    pub(super) fn is_unencrypted(&self) -> bool {
        address::is_plain(&self.endpoint) && !self.is_loopback() && !self.allow_plain_http
    }

    /// The same destination at another address.
    ///
    /// # Errors
    /// The reason that events cannot be sent there: a clause that follows the name of what holds the address.
    pub fn at(&self, endpoint: &str) -> Result<KoalaConfig, &'static str> {
        let koala = KoalaConfig { endpoint: address::endpoint(endpoint)?, ..self.clone() };
        if koala.is_unencrypted() { Err(UNENCRYPTED) } else { Ok(koala) }
    }

    /// Reads the key and its warnings again, if the key comes from a file.
    pub fn reread_key(&mut self) {
        let Some(file) = &self.key_file else { return };
        let read = key::read_file(file, self.unit.as_deref());
        self.public_key = read.key;
        self.unusable_key = read.warnings.first().cloned().filter(|_| self.public_key.is_none());
        self.key_warnings = read.warnings;
    }

    /// Why there is no key; `None`: there is one.
    pub fn missing_key(&self) -> Option<String> {
        let why = || self.unusable_key.clone().unwrap_or_else(|| NO_KEY.to_owned());
        self.public_key.is_none().then(why)
    }
}

impl fmt::Debug for KoalaConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Koala")
            .field("endpoint", &self.endpoint)
            .field("key_source", &self.key_source)
            .field("concurrency", &self.concurrency)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// The number of requests that may be in flight at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Concurrency {
    /// As many as the receiver answers without trouble, at most [`Concurrency::MOST`].
    Auto,
    /// A fixed number.
    Fixed(usize),
}

impl Concurrency {
    /// The most requests in flight of one agent. More connections from one machine would look like an attack, and all
    /// requests in flight are sent again after a crash.
    pub const MOST: usize = 64;

    /// This number, where the system allows so many connections at most.
    pub fn within(self, connections: usize) -> Concurrency {
        match self {
            Concurrency::Auto if connections >= Self::MOST => Concurrency::Auto,
            Concurrency::Auto => Concurrency::Fixed(connections),
            Concurrency::Fixed(fixed) => Concurrency::Fixed(fixed.min(connections)),
        }
    }
}

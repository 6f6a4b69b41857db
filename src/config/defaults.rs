//! The built-in defaults: the system's paths, and what `packaging/config.toml` says of every key.

use super::{Concurrency, KoalaConfig, MinFree, OutboxConfig, SpoolConfig};
use std::path::PathBuf;
use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

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
        }
    }
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

impl Default for KoalaConfig {
    /// Without a key, and without a file to read it from.
    fn default() -> KoalaConfig {
        KoalaConfig {
            endpoint: "https://api2.getkoala.com".to_owned(),
            public_key: None,
            key_source: String::new(),
            key_file: None,
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

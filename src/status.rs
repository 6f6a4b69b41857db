//! What the agent tells about itself: the answer of `status`, in the form that everybody reads it in.
//!
//! The daemon publishes it in a small file that everybody may read; who may read the outbox as well gets the
//! counts from there, with the daemon up or down.

use crate::clock::Timestamp;
use crate::reason::Reason;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The version of this form; readers ignore members that they do not know.
pub const SCHEMA: u32 = 1;

/// Everything that `status --json` prints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// [`SCHEMA`].
    pub schema: u32,
    /// When this was written.
    pub now: Timestamp,
    /// The configuration in force.
    pub config: PathBuf,
    /// The daemon.
    pub agent: Agent,
    /// The spool folder.
    pub spool: Spool,
    /// Whether files are taken.
    pub intake: Intake,
    /// The database.
    pub outbox: Outbox,
    /// Settled events by state and reason.
    pub reasons: Vec<ReasonCount>,
    /// Where events go.
    pub destination: Destination,
}

/// The daemon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Agent {
    /// The program's version.
    pub version: String,
    /// Whether it runs.
    pub running: bool,
    /// Its process, while it runs.
    pub pid: Option<u32>,
    /// Since when it runs, or does not; `None` before its first run.
    pub since: Option<Timestamp>,
}

/// The spool folder.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Spool {
    /// The folder.
    pub dir: PathBuf,
    /// Files there that are not yet taken.
    pub waiting_files: u64,
    /// Their size.
    pub waiting_bytes: u64,
    /// Files that the agent may not read.
    pub unreadable_files: u64,
    /// Files in `rejected/`.
    pub rejected_files: u64,
    /// Events that came again.
    pub duplicates: u64,
    /// When the folder was last read.
    pub scanned_at: Option<Timestamp>,
}

/// Whether files are taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Intake {
    /// Open or blocked.
    pub state: IntakeState,
    /// Why it is blocked.
    pub reason: Option<Reason>,
}

/// Open or blocked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IntakeState {
    /// Files are taken.
    Open,
    /// Files wait in the spool, unharmed.
    Blocked,
}

/// The database.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Outbox {
    /// The file.
    pub path: PathBuf,
    /// Events that wait.
    pub pending: u64,
    /// Events that the receiver took.
    pub delivered: u64,
    /// Events with nothing to send.
    pub skipped: u64,
    /// Events of which no request can be made, or that the receiver refused.
    pub failed: u64,
    /// Events given up by hand.
    pub discarded: u64,
    /// When the oldest pending event was stored.
    pub oldest_pending: Option<Timestamp>,
    /// How long ago that is.
    pub oldest_pending_seconds: Option<u64>,
    /// Bytes of the database in use.
    pub bytes: u64,
    /// The size at which the intake is blocked.
    pub max_bytes: u64,
    /// Free bytes of its file system.
    pub disk_free: u64,
    /// Bytes of the write-ahead log.
    #[serde(default)]
    pub log_bytes: u64,
    /// Processes whose open transactions keep a log that has grown too large from being emptied.
    #[serde(default)]
    pub log_held_by: Vec<i32>,
    /// What has happened to it that a person should know.
    #[serde(default)]
    pub incident: Option<Incident>,
}

/// Damage to the outbox that was fixed as far as it could be. It is told of until its files are removed, or for a week
/// where it left none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incident {
    /// When it was found.
    pub at: Timestamp,
    /// What it was and what has become of the events.
    pub text: String,
    /// Where the damaged files are kept.
    pub files: Option<PathBuf>,
}

/// A share of the settled events.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReasonCount {
    /// Their state.
    pub state: String,
    /// Their reason.
    pub code: String,
    /// How many.
    pub events: u64,
}

/// Where events go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Destination {
    /// `koala`.
    pub kind: String,
    /// Scheme and host.
    pub endpoint: String,
    /// How it is.
    pub state: DestinationState,
    /// Since when.
    pub since: Option<Timestamp>,
    /// Why.
    pub reason: Option<Reason>,
    /// When it is tried again.
    pub retry_at: Option<Timestamp>,
    /// When it last took something.
    pub last_delivery: Option<Timestamp>,
}

/// How the destination is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DestinationState {
    /// It took what was last sent.
    Online,
    /// In trouble or out of reach: tried again by itself.
    Backoff,
    /// It refuses the key, the address or everybody: a person must act, events wait unharmed.
    Refused,
    /// Nothing was sent yet.
    Unknown,
}

impl Status {
    /// What the daemon last published at `path`; `None` before the first run or for a file of another form.
    pub fn read(path: &Path) -> Option<Status> {
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }

    /// Publishes it for everybody: readers see the old one or this one, never a part.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let mut aside = path.as_os_str().to_owned();
        aside.push(".tmp");
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        std::fs::write(&aside, text)?;
        std::fs::set_permissions(&aside, std::fs::Permissions::from_mode(0o644))?;
        std::fs::rename(&aside, path)
    }
}

//! The status of the agent, as `status --json` prints it.
//!
//! The daemon publishes it in a small file that everybody may read, and in one beside the outbox that has the receiver's
//! words as well. A command whose user may read the outbox takes the counts from there instead, whether the daemon runs or
//! not.

use crate::clock::Timestamp;
use crate::reason::{Code, Reason};
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The version of the format. Readers ignore members that they do not know.
pub const SCHEMA: u32 = 1;

/// The whole output of `status --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The time of writing.
    pub now: Timestamp,
    /// When the agent last published its state; `None` in what it publishes.
    #[serde(default)]
    pub published_at: Option<Timestamp>,
    /// The configuration file.
    pub config: PathBuf,
    /// Whether the agent runs with what stands in that file now; `None` if no agent runs.
    #[serde(default)]
    pub config_in_force: Option<bool>,
    /// The daemon.
    pub agent: AgentStatus,
    /// The spool folder.
    pub spool: SpoolStatus,
    /// The reading of files.
    pub intake: IntakeStatus,
    /// The database.
    pub outbox: OutboxStatus,
    /// The last step of the wall clock, for a week.
    #[serde(default)]
    pub clock_step: Option<Incident>,
    /// By how many seconds the wall clock is ahead of the receiver's (negative: behind), if by more than five minutes.
    #[serde(default)]
    pub clock_ahead_seconds: Option<i64>,
    /// Settled events by state and reason.
    pub reasons: Vec<ReasonCount>,
    /// The destination of the events.
    pub destination: DestinationStatus,
    /// The persons that have waited longest, at most five; only for who may read the outbox, and never published.
    #[serde(default)]
    pub longest_waiting: Vec<WaitingPerson>,
}

/// A person whose events have waited for over a minute.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WaitingPerson {
    /// The person, as `list` shows it.
    pub person: String,
    /// When the person's oldest pending event was stored.
    pub since: Timestamp,
    /// Its age.
    pub seconds: u64,
    /// The reason that its last answer gave.
    pub reason: Option<Reason>,
    /// The uid of the owner of its file.
    pub owner: Option<u32>,
}

/// The status of the daemon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// The program's version.
    pub version: String,
    /// Whether it runs.
    pub running: bool,
    /// Whether it only waits until it can start, because a file cannot be written for now.
    #[serde(default)]
    pub waits_to_start: bool,
    /// The process, while it runs.
    pub pid: Option<u32>,
    /// The time since which it runs or does not run; `None` before the first run.
    pub since: Option<Timestamp>,
    /// Lines of its log that were dropped, because stderr could not be written or stood still.
    #[serde(default)]
    pub log_lines_dropped: u64,
}

/// The status of the spool folder. The numbers of files are not known before the first scan.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SpoolStatus {
    /// The folder.
    pub dir: PathBuf,
    /// Files that have not been ingested yet.
    pub waiting_files: Option<u64>,
    /// The size of those files.
    pub waiting_bytes: Option<u64>,
    /// Files that the agent may not read.
    pub unreadable_files: Option<u64>,
    /// Files whose names do not say a format; they are left alone.
    #[serde(default)]
    pub unknown_files: Option<u64>,
    /// Files in `rejected/`.
    pub rejected_files: Option<u64>,
    /// Duplicate events that were dropped.
    pub duplicates: u64,
    /// The newest rejection whose file is still in `rejected/`.
    #[serde(default)]
    pub last_rejected: Option<Timestamp>,
    /// Files and parts of files that were rejected since the agent started, by reason.
    #[serde(default)]
    pub rejections: Vec<RejectionCount>,
    /// The time of the last scan.
    pub scanned_at: Option<Timestamp>,
    /// Those whose files wait, the most files first; at most 20.
    #[serde(default)]
    pub owners: Vec<OwnerStatus>,
}

/// The number of files and parts of files that were rejected for one reason.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RejectionCount {
    /// The reason code.
    pub code: String,
    /// The number.
    pub rejections: u64,
}

/// The waiting files of one owner.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct OwnerStatus {
    /// The owner's user id.
    pub uid: u32,
    /// Files that have not been ingested yet.
    pub waiting_files: u64,
    /// The size of those files.
    pub waiting_bytes: u64,
    /// Files that the agent may not read.
    pub unreadable_files: u64,
    /// The reason why no files of this owner are ingested for now, though others' are.
    pub reason: Option<Reason>,
}

/// The status of the intake, which reads files into the outbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IntakeStatus {
    /// The state.
    pub state: IntakeState,
    /// The reason if it is blocked.
    pub reason: Option<Reason>,
}

/// The states of the intake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IntakeState {
    /// Files are read.
    Open,
    /// No files are read. They wait in the spool and stay as they are.
    Blocked,
}

impl IntakeState {
    /// Every state.
    pub const ALL: [IntakeState; 2] = [IntakeState::Open, IntakeState::Blocked];

    /// The name, as in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            IntakeState::Open => "open",
            IntakeState::Blocked => "blocked",
        }
    }
}

/// The status of the database.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct OutboxStatus {
    /// The file.
    pub path: PathBuf,
    /// Events that wait for delivery.
    pub pending: u64,
    /// Events that the receiver has accepted.
    pub delivered: u64,
    /// Events for which there is nothing to send.
    pub skipped: u64,
    /// Events for which no request can be made, or that the receiver refused.
    pub failed: u64,
    /// Events dropped by hand.
    pub discarded: u64,
    /// The time when the oldest pending event was stored.
    pub oldest_pending: Option<Timestamp>,
    /// The age of the oldest pending event.
    pub oldest_pending_seconds: Option<u64>,
    /// The time when the newest of the failed events failed, exact to a minute.
    #[serde(default)]
    pub last_failed: Option<Timestamp>,
    /// The time since when all ids are remembered, because earlier ones were forgotten for want of room; `None`: none was.
    #[serde(default)]
    pub ids_remembered_since: Option<Timestamp>,
    /// What has happened to items since the outbox was created; `None`: an agent that did not count it published this.
    #[serde(default)]
    pub totals: Option<ItemTotals>,
    /// When the newest event came of which only the id is remembered, for want of room.
    #[serde(default)]
    pub history_since: Option<Timestamp>,
    /// Bytes of the database in use.
    pub bytes: u64,
    /// Those of them that pending and failed events take.
    #[serde(default)]
    pub needed_bytes: u64,
    /// The limit of `needed_bytes`, at which the intake is blocked.
    pub max_bytes: u64,
    /// Free bytes of the file system of the database; `None`: the system does not say.
    pub disk_free: Option<u64>,
    /// Bytes of the write-ahead log.
    #[serde(default)]
    pub log_bytes: u64,
    /// Processes whose open transactions prevent emptying the log, once it has grown too large or they have done so for long.
    #[serde(default)]
    pub log_held_by: Vec<i32>,
    /// The latest damage of the database, while it is of interest.
    #[serde(default)]
    pub incident: Option<Incident>,
}

/// What has happened to items since the outbox was created. At any moment, created = pending + settled − requeued. While
/// there is one destination, an item is an event.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemTotals {
    /// Items that have come in.
    pub created: u64,
    /// Items that a person has made pending again.
    pub requeued: u64,
    /// Items that were settled, by state and reason. To discard a failed one does not settle it once more.
    pub settled: Vec<ReasonCount>,
}

/// Damage to the outbox that was repaired as far as possible, or a step of the clock. It is part of the status until its
/// files are removed, or for a week if it left none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incident {
    /// The time when the damage was found.
    pub at: Timestamp,
    /// A description of the damage and of what happened to the events.
    pub text: String,
    /// The folder with the damaged files.
    pub files: Option<PathBuf>,
}

impl Incident {
    /// Whether nobody needs to do anything about it any more. Damage that was found at `now`, by whoever made this
    /// status, is not repaired yet; later the damaged files are evidence that somebody has to look at.
    pub fn is_settled(&self, now: Timestamp) -> bool {
        self.files.is_none() && self.at != now
    }
}

/// The number of settled events with one state and reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReasonCount {
    /// The state.
    pub state: String,
    /// The reason code; empty where the state needs none.
    pub code: String,
    /// The number.
    pub events: u64,
}

/// The status of the destination.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DestinationStatus {
    /// `koala`.
    pub kind: String,
    /// Scheme and host.
    pub endpoint: String,
    /// The state.
    pub state: DestinationState,
    /// The time since which it has this state.
    pub since: Option<Timestamp>,
    /// The reason of the state.
    pub reason: Option<Reason>,
    /// The paths other than the people's whose state is one of their own.
    #[serde(default)]
    pub paths: Vec<PathStatus>,
    /// The time of the next try.
    pub retry_at: Option<Timestamp>,
    /// The time of the last delivery, also by an earlier run.
    pub last_delivery: Option<Timestamp>,
    /// Requests with events since the agent started.
    #[serde(default)]
    pub requests: RequestCounts,
}

impl DestinationStatus {
    /// The status of a destination of which nothing is known but its address.
    pub fn unknown(endpoint: String) -> DestinationStatus {
        DestinationStatus {
            kind: "koala".to_owned(),
            endpoint,
            state: DestinationState::Unknown,
            since: None,
            reason: None,
            paths: Vec::new(),
            retry_at: None,
            last_delivery: None,
            requests: RequestCounts::default(),
        }
    }
}

/// The number of requests by the class of the answer's status.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestCounts {
    #[serde(rename = "2xx")]
    success: u64,
    #[serde(rename = "3xx")]
    redirect: u64,
    #[serde(rename = "4xx")]
    refusal: u64,
    #[serde(rename = "5xx")]
    failure: u64,
    network: u64,
}

impl RequestCounts {
    /// Counts a request that was answered with that status; `None`: there was no whole answer.
    pub fn add(&mut self, status: Option<u16>) {
        let count = match status {
            Some(200..=299) => &mut self.success,
            Some(300..=399) => &mut self.redirect,
            Some(400..=499) => &mut self.refusal,
            Some(_) => &mut self.failure,
            None => &mut self.network,
        };
        *count += 1;
    }

    /// The classes and their numbers.
    pub fn by_class(self) -> [(&'static str, u64); 5] {
        let RequestCounts { success, redirect, refusal, failure, network } = self;
        [("2xx", success), ("3xx", redirect), ("4xx", refusal), ("5xx", failure), ("network", network)]
    }
}

/// The word for a destination in backoff: whether the receiver was reached at all.
pub fn backoff_word(reason: Option<&Reason>) -> &'static str {
    use Code::{Connect, Dns, Proxy, Timeout, Tls};
    match reason.map(|reason| reason.code) {
        Some(Dns | Connect | Tls | Timeout | Proxy) => "unreachable",
        _ => "failing",
    }
}

/// The status of one path of the destination.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PathStatus {
    /// The path below the project's: `/accounts/batch`.
    pub path: String,
    /// The state.
    pub state: DestinationState,
    /// The time since which it has this state.
    pub since: Timestamp,
    /// The reason of the state.
    pub reason: Option<Reason>,
    /// The time of the next try.
    pub retry_at: Option<Timestamp>,
}

/// The states of the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DestinationState {
    /// The destination has accepted the latest request.
    Online,
    /// The destination is failing or unreachable; the agent tries again by itself.
    Backoff,
    /// The destination refuses the key, the address or everybody. A person must act; events wait meanwhile.
    Refused,
    /// Nothing has been sent yet.
    Unknown,
}

impl DestinationState {
    /// Every state.
    pub const ALL: [DestinationState; 4] = [
        DestinationState::Online,
        DestinationState::Backoff,
        DestinationState::Refused,
        DestinationState::Unknown,
    ];

    /// The name, as in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            DestinationState::Online => "online",
            DestinationState::Backoff => "backoff",
            DestinationState::Refused => "refused",
            DestinationState::Unknown => "unknown",
        }
    }
}

impl Status {
    /// Reads the status that the daemon last published at `path`; `None` before the first run or for a file in another
    /// format.
    pub fn read(path: &Path) -> Option<Status> {
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }

    /// The status for everybody to read: without the receiver's own words.
    pub fn public(&self) -> Status {
        let mut status = self.clone();
        let reasons = [&mut status.intake.reason, &mut status.destination.reason];
        let of_paths = status.destination.paths.iter_mut().map(|path| &mut path.reason);
        reasons.into_iter().chain(of_paths).flatten().for_each(|reason| *reason = reason.public());
        status
    }

    /// Writes the status to a file of that mode. Readers see the old file or this one, never a part of it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path, mode: u32) -> std::io::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".tmp");
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        let mut file = std::fs::File::create(&temporary)?;
        // Before the content is in it, which may not be for everybody.
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.write_all(&text)?;
        std::fs::rename(&temporary, path)
    }
}

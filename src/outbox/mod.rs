//! The outbox: every event between its spool file and its delivery, in an ordinary SQLite file.
//!
//! ```text
//!   intake ──append──▶ ┌────────┐                        ┌────────┐ ──gather──▶ sender
//!                      │ Writer │──▶ outbox.db (WAL) ──▶ │ Reader │
//!   sender ─settle──▶ └────────┘   one connection       └────────┘ ──list, show──▶ commands
//!                                   that writes
//! ```
//!
//! One thread owns the connection that writes. It takes all that has queued up while the last commit was on
//! its way to the disk, commits once, then answers everybody: so a call that has returned `Ok` is durable,
//! and the load decides how large a commit is. All SQL stands in this module.
//!
//! A commit under load only appends: what belongs at random places is brought there later, many rows at once and in
//! order. Until then deliveries are noted in the order in which they come (`acks`), and new ids are read from their
//! events (`ids`).

mod ack_log;
mod ack_map;
mod admin;
mod append;
mod erase;
mod error;
mod files;
#[cfg(test)]
pub(crate) mod fixture;
mod ids;
mod incident;
mod integrity;
mod items;
mod listing;
mod lock;
mod person;
mod queue_reader;
mod reader;
mod recovery;
mod replaced_files;
mod reserve;
mod retention;
mod row;
mod schema;
mod settle;
mod stats;
mod store;
#[cfg(test)]
mod tests;
mod wal_readers;
mod writer;
mod writer_thread;

pub use admin::{Admin, Retained};
pub use append::{Appended, Reused, Waiting};
pub use erase::EventReference;
pub use error::OutboxError;
pub use files::Progress;
pub use listing::{Attempt, Detail, Filter, Listed, Listing};
pub use lock::holder;
pub use queue_reader::{Gathered, QueueReader};
pub use reader::{Counts, Reader};
pub use row::{Addressee, NewEvent, NewItem, PendingItem, State};
pub use settle::Settled;
pub use stats::{OutboxStats, Throughput};
pub use writer::{Answer, Settlement, Writer};

use crate::clock::{Clock, Timestamp};
use crate::config;
use crate::status::Incident;
use lock::{Before, Lock};
use recovery::Inspection;
use reserve::ReserveFile;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use store::Store;

/// Readable for the group, writable for the owner; SQLite gives its -wal and -shm files the same mode.
pub const FILE_MODE: u32 = 0o640;

/// What the outbox needs of the configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    path: PathBuf,
    keep_delivered: Duration,
    keep_bodies: Duration,
    keep_skipped: Duration,
    keep_failed: Duration,
}

impl From<&config::OutboxConfig> for Settings {
    fn from(c: &config::OutboxConfig) -> Settings {
        Settings {
            path: c.path.clone(),
            keep_delivered: c.keep_delivered,
            keep_bodies: c.keep_bodies,
            keep_skipped: c.keep_skipped,
            keep_failed: c.keep_failed,
        }
    }
}

/// An outbox that is open and owned by this process.
pub struct Outbox {
    /// The handle through which everything is changed.
    pub writer: Writer,
    /// How far the files of the spool had been taken when the outbox was opened.
    pub progress: Vec<Progress>,
    path: PathBuf,
    clock: Clock,
    thread: std::thread::JoinHandle<()>,
    check: Option<rusqlite::InterruptHandle>,
    _lock: Arc<Lock>,
}

impl Outbox {
    /// Opens the outbox and starts its writer; makes the file and its folder if they are not there, and recovers what
    /// can be read of a damaged one. When this returns `Ok`, this process alone writes it.
    ///
    /// # Errors
    /// Held by another agent, a newer schema, another program's file, a network file system, an old SQLite, and the
    /// system's errors.
    pub fn open(config: &config::OutboxConfig, clock: Clock) -> Result<Outbox, OutboxError> {
        refuse_old_sqlite()?;
        let mut settings = Settings::from(config);
        if let Some(folder) = settings.path.parent() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o750)
                .create(folder)
                .map_err(|e| OutboxError::io(folder, "make the folder", &e))?;
            refuse_network(folder, &settings.path)?;
        }
        settings.path = lock::real_path(&settings.path);
        let path = settings.path.clone();
        let (lock, before) = Lock::take(&path)?;
        let lock = Arc::new(lock);
        let mut reserve = ReserveFile::beside(&path);
        let mut store = match open_store(&settings, &lock, before, clock.now()) {
            // Even to open takes room.
            Err(e) if e.is_full() && reserve.release() => open_store(&settings, &lock, before, clock.now())?,
            opened => opened?,
        };
        reserve.make();
        if reserve.missing() > 0 {
            // Nothing is to be sent that could not be marked.
            store.transaction(|store| store.set_meta(store::OPENED, clock.now().0))?;
        }
        let progress = store.progress()?;
        let is_small = store.size()?.0 <= integrity::SMALL;
        let (writer, thread) = writer_thread::start(store, lock.clone(), reserve, clock.clone())?;
        let check =
            if is_small { None } else { Some(integrity::check_in_background(&path, writer.alarm_bell())?) };
        Ok(Outbox { writer, progress, path, clock, thread, check, _lock: lock })
    }

    /// Notes that the outbox is damaged, if that is what the error says: the next [`Outbox::open`] recovers what can be
    /// read.
    pub fn mark_corrupt(&self, why: &OutboxError) {
        if why.is_damage()
            && let Err(e) = recovery::begin(&self.path, &why.damage(), self.clock.now())
        {
            tracing::error!("{e}");
        }
    }

    /// Commits what is queued, empties the write-ahead log and lets the outbox go. Blocks for that long.
    pub fn close(self) {
        if let Some(check) = self.check {
            check.interrupt();
        }
        self.writer.stop();
        // A panic of the writer has been logged by the panic hook; there is nothing to add.
        let _ = self.thread.join();
    }
}

/// Opens what is there, makes what is not, and recovers what is damaged.
fn open_store(
    settings: &Settings,
    lock: &Lock,
    before: Before,
    now: Timestamp,
) -> Result<Store, OutboxError> {
    let path = &settings.path;
    // A recovery has told what became of the log.
    let before = if recovery::go_on(path, settings, lock)? { Before::EmptyLog } else { before };
    let mut incident = None;
    match recovery::inspect(path)? {
        Inspection::Database => {}
        Inspection::WithoutLog if before == Before::Log => {
            incident = Some(
                "its write-ahead log was empty or gone when the agent started: unless another program has copied it \
                 into the database, what was committed only there is lost",
            );
        }
        Inspection::WithoutLog => {}
        Inspection::Damaged(why) => recovery::begin(path, why, now)?,
        Inspection::Nothing => {
            recovery::make(path, settings, |_| Ok(()))?;
            if before != Before::Nobody {
                incident = Some("the outbox that was here is gone, and this is a new one");
            }
        }
    }
    recovery::go_on(path, settings, lock)?;
    let mut store = match open_sound(settings) {
        Err(e) if e.is_damage() => {
            recovery::begin(path, &e.damage(), now)?;
            recovery::go_on(path, settings, lock)?;
            incident = None;
            open_sound(settings)?
        }
        opened => opened?,
    };
    if let Some(text) = incident {
        tracing::warn!("{}: {text}", path.display());
        let incident = Incident { at: now, text: text.to_owned(), files: None };
        match store.transaction(|store| store.set_incident(&incident)) {
            // On a full disk the log alone tells of it.
            Err(e) if !e.is_transient() => return Err(e),
            _ => {}
        }
    }
    Ok(store)
}

/// Opens the database; a small one is looked through first.
fn open_sound(settings: &Settings) -> Result<Store, OutboxError> {
    let store = Store::open(settings)?;
    if store.size()?.0 <= integrity::SMALL {
        integrity::check(&store.conn, &store.path)?;
    }
    Ok(store)
}

/// A file beside the database, named after it.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// SQLite before 3.51.3 can corrupt a WAL database when a checkpoint races with a writer's restart.
fn refuse_old_sqlite() -> Result<(), OutboxError> {
    if rusqlite::version_number() < 3_051_003 {
        return Err(OutboxError::OldSqlite { found: rusqlite::version() });
    }
    Ok(())
}

/// Locks and shared memory are not reliable on network file systems, so a WAL database is not safe there.
fn refuse_network(folder: &Path, path: &Path) -> Result<(), OutboxError> {
    #[cfg(target_os = "linux")]
    {
        // From statfs(2).
        const NETWORK: [(i64, &str); 8] = [
            (0x6969, "NFS"),
            (0x517b, "SMB"),
            (0xff53_4d42, "CIFS"),
            (0xfe53_4d42, "SMB2"),
            (0x0102_1997, "9P"),
            (0x00c3_6400, "Ceph"),
            (0x5346_414f, "AFS"),
            (0x0bd0_0bd0, "Lustre"),
        ];
        let stat = nix::sys::statfs::statfs(folder)
            .map_err(|e| OutboxError::io(folder, "examine the file system", &e.into()))?;
        let found = stat.filesystem_type().0 as i64 & 0xffff_ffff;
        if let Some((_, kind)) = NETWORK.iter().find(|(magic, _)| *magic == found) {
            return Err(OutboxError::NetworkFileSystem { path: path.to_owned(), kind });
        }
    }
    let _ = (folder, path);
    Ok(())
}

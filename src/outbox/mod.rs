//! The outbox: every event between its spool file and its delivery, in an ordinary SQLite file.
//!
//! ```text
//!   intake ──append──▶ ┌────────┐                        ┌────────┐ ──gather──▶ sender
//!                      │ Writer │──▶ outbox.db (WAL) ──▶ │ Reader │
//!   sender ──settle──▶ └────────┘     one connection     └────────┘ ──list, show──▶ commands
//!                                      that writes
//! ```
//!
//! One thread owns the connection that writes ([`Writer`]): a call that has returned `Ok` is durable. All SQL stands in
//! this module.
//!
//! A commit under load only appends. Rows and index entries that belong at random places are written later, many at once
//! and in order: deliveries are appended to a log first (`ack_log`), and new ids are read from their events until they
//! are indexed (`dedup`).

mod ack_log;
mod ack_map;
mod admin;
mod append;
mod counters;
mod database;
mod dedup;
mod error;
mod event_queries;
mod expiry;
mod files;
#[cfg(test)]
pub(crate) mod fixture;
mod integrity;
mod items;
mod keying;
mod lock;
mod maintenance;
mod meta;
mod queue_reader;
mod reader;
mod recovery;
mod replaced_files;
mod reserve;
mod retention;
mod retention_clock;
mod row;
mod schema;
mod spool_progress;
mod stats;
mod store;
mod subject_search;
mod suppression;
mod transitions;
mod wal_keeper;
mod write_limit;
mod writer;
mod writer_thread;

pub use admin::Admin;
pub use append::{Appended, Enqueued, ReusedId};
pub use counters::Counts;
pub use error::OutboxError;
pub use event_queries::{
    Acceptance, Attempt, Detail, EventFilter, EventPage, EventQueries, Listed, Retained, WaitingEvent,
};
pub use keying::{KeyQueries, KeyRenewal};
pub use lock::holder;
pub use queue_reader::{Gathered, QueueReader};
pub use reader::Reader;
pub use row::{Addressee, NewEvent, NewItem, PendingItem, QueuedItem, Settled, State};
pub use spool_progress::FileProgress;
pub use stats::{OutboxStats, Throughput};
pub use subject_search::EventReference;
pub use suppression::SuppressedPerson;
pub use writer::{PendingCommit, Settlement, Writer};

use crate::clock::{Clock, Timestamp};
use crate::config;
use crate::disk;
use crate::status::Incident;
use lock::{Lock, PreviousWal};
use recovery::Inspection;
use reserve::ReserveFile;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::Store;

/// An outbox that is open and owned by this process.
pub struct Outbox {
    /// The handle through which everything is changed.
    pub writer: Writer,
    /// The progress of the files of the spool when the outbox was opened.
    pub progress: Vec<FileProgress>,
    path: PathBuf,
    clock: Clock,
    thread: std::thread::JoinHandle<()>,
    background_check: Option<rusqlite::InterruptHandle>,
    _lock: Arc<Lock>,
}

impl Outbox {
    /// Opens the outbox and starts its writer. Creates the file and its folder if they are missing, and recovers what
    /// can be read of a damaged file. When this returns `Ok`, this process alone writes it.
    ///
    /// # Errors
    /// Held by another agent, an older or a newer schema, another program's file, a network file system, an old SQLite,
    /// and the system's errors.
    pub fn open(config: &config::OutboxConfig, clock: Clock) -> Result<Outbox, OutboxError> {
        refuse_old_sqlite()?;
        if let Some(folder) = config.path.parent() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o750)
                .create(folder)
                .map_err(|e| OutboxError::io(folder, "create the folder", &e))?;
            refuse_network(folder, &config.path)?;
        }
        let config = config::OutboxConfig { path: lock::real_path(&config.path), ..config.clone() };
        let path = config.path.clone();
        let (lock, previous) = Lock::take(&path)?;
        let lock = Arc::new(lock);
        let mut reserve = ReserveFile::of(&path);
        let mut store = match open_or_recover(&config, &lock, previous, clock.now()) {
            // Opening takes room, too.
            Err(e) if e.is_full() && reserve.release() => {
                open_or_recover(&config, &lock, previous, clock.now())?
            }
            opened => opened?,
        };
        reserve.create();
        if reserve.missing() > 0 {
            // Proves that the outbox can be written: nothing may be sent whose delivery cannot be recorded.
            store.transaction(|store| meta::set(&store.db.conn, meta::OPENED, clock.now().0))?;
        }
        let progress = FileProgress::load_all(&store.db.conn)
            .map_err(|e| store.db.error("read how far the spool is ingested", e))?;
        let is_small = store.db.size()?.bytes <= integrity::SMALL;
        let (writer, thread) = writer_thread::start(store, lock.clone(), reserve, clock.clone())?;
        let background_check = match is_small {
            true => None,
            false => Some(integrity::check_in_background(&path, writer.alarm_sender())?),
        };
        Ok(Outbox { writer, progress, path, clock, thread, background_check, _lock: lock })
    }

    /// Records that the outbox is damaged, if that is what the error says: the next [`Outbox::open`] recovers what can
    /// be read.
    pub fn mark_corrupt(&self, error: &OutboxError) {
        if error.is_damage()
            && let Err(e) = recovery::begin(&self.path, &error.damage(), self.clock.now())
        {
            tracing::error!("{e}");
        }
    }

    /// Commits what is queued, empties the write-ahead log and closes the database. Blocks for that long.
    pub fn close(self) {
        if let Some(check) = self.background_check {
            check.interrupt();
        }
        self.writer.stop();
        // A panic of the writer has been logged by the panic hook; there is nothing to add.
        let _ = self.thread.join();
    }
}

/// Opens the database, creates a missing one, and recovers a damaged one.
fn open_or_recover(
    config: &config::OutboxConfig,
    lock: &Lock,
    previous: PreviousWal,
    now: Timestamp,
) -> Result<Store, OutboxError> {
    let path = &config.path;
    // A recovery has reported what became of the log.
    let previous = if recovery::resume(config, lock)? { PreviousWal::Empty } else { previous };
    let mut incident = None;
    match recovery::inspect(path)? {
        Inspection::Database => {}
        Inspection::WithoutWal if previous == PreviousWal::InUse => {
            incident = Some(
                "its write-ahead log was empty or gone when the agent started: unless another program has copied it \
                 into the database, what was committed only there is lost",
            );
        }
        Inspection::WithoutWal => {}
        Inspection::Damaged(why) => recovery::begin(path, why, now)?,
        Inspection::Nothing => {
            recovery::create_database(config, |_| Ok(()))?;
            if previous != PreviousWal::None {
                incident = Some("the outbox that was here is gone, and this is a new one");
            }
        }
    }
    recovery::resume(config, lock)?;
    let mut store = match open_checked(config) {
        Err(e) if e.is_damage() => {
            recovery::begin(path, &e.damage(), now)?;
            recovery::resume(config, lock)?;
            incident = None;
            open_checked(config)?
        }
        opened => opened?,
    };
    if let Some(text) = incident {
        tracing::warn!("{}: {text}", path.display());
        let incident = Incident { at: now, text: text.to_owned(), files: None };
        match store.transaction(|store| meta::set_incident(&store.db.conn, &incident)) {
            // On a full disk only the log has the incident.
            Err(e) if !e.is_transient() => return Err(e),
            _ => {}
        }
    }
    Ok(store)
}

/// Opens the database, and checks the integrity of a small one.
fn open_checked(config: &config::OutboxConfig) -> Result<Store, OutboxError> {
    let store = Store::open(config)?;
    if store.db.size()?.bytes <= integrity::SMALL {
        integrity::check(&store.db.conn, &store.db.path)?;
    }
    Ok(store)
}

/// SQLite before 3.51.3 can corrupt a WAL database when a checkpoint races with a restart of the log by a writer.
fn refuse_old_sqlite() -> Result<(), OutboxError> {
    if rusqlite::version_number() < 3_051_003 {
        return Err(OutboxError::OldSqlite { found: rusqlite::version() });
    }
    Ok(())
}

/// Locks and shared memory are not reliable on network file systems, so a WAL database is not safe there.
fn refuse_network(folder: &Path, path: &Path) -> Result<(), OutboxError> {
    let found = disk::network_file_system(folder)
        .map_err(|e| OutboxError::io(folder, "examine the file system", &e))?;
    match found {
        Some(kind) => Err(OutboxError::NetworkFileSystem { path: path.to_owned(), kind }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;

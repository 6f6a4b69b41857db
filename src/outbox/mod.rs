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
//! this module. No other process changes events: a command that asks for a change adds a row to the table of commands
//! ([`AskedCommand`]), and whoever owns the outbox carries it out.
//!
//! A commit under load only appends. Rows that are deleted at random places are deleted later, many at once and in order:
//! acceptances are appended to a log first (`ack_log`), and new ids are read from their events until they stand in a sorted
//! segment (`id_index`).

mod ack_log;
mod ack_map;
mod acts;
mod alarm;
mod append;
mod appended;
mod asker;
mod attempts;
mod changes;
mod commands;
mod counters;
mod destinations;
mod error;
mod event_queries;
mod expiry;
mod failures;
mod files;
#[cfg(test)]
pub(crate) mod fixture;
mod id_filter;
mod id_index;
mod id_rebuild;
mod id_rewrite;
mod id_segment;
mod integrity;
mod items;
mod keying;
mod lock;
mod log_mark;
mod maintenance;
mod meta;
mod open_files;
mod page_gaps;
mod pages;
mod pending_commit;
mod queue_reader;
mod reader;
mod recovery;
mod replaced_files;
mod reserve;
mod retention;
mod retention_clock;
mod row;
mod schema;
mod settled_row;
mod spool_progress;
mod stats;
mod store;
mod subject_search;
mod suppression;
mod tables;
mod transitions;
mod wal_keeper;
mod writable;
mod write_limit;
mod writer;
mod writer_thread;

pub use acts::{Act, Asker};
pub use appended::{Appended, Enqueued, FirstEvent, ReusedId};
pub use asker::{AskedCommand, CommandWatch, has_commands, open_commands};
pub use changes::{Change, Work};
pub use commands::{
    Applied, ClaimedCommand, Command, Erased, ErasedEvent, Erasure, EventOutcome, EventReport, OpenCommand,
    Progress, Report, Retried, STEP,
};
pub use counters::Counts;
pub use error::OutboxError;
pub use event_queries::{
    Acceptance, Attempt, Detail, EventFilter, EventPage, EventQueries, Listed, Retained, WaitingEvent,
};
pub use keying::{KeyQueries, KeyRenewal};
pub use lock::{holder, is_lock_hidden};
pub use pending_commit::PendingCommit;
pub use queue_reader::QueueReader;
pub use reader::Reader;
pub use row::{Addressee, NewEvent, NewItem, PendingItem, QueuedItem, Settled, State};
pub use spool_progress::FileProgress;
pub use stats::{OutboxStats, Throughput};
pub use subject_search::{EventReference, finished_files};
pub use suppression::SuppressedPerson;
pub use writable::{SERVICE_USER, check_writable};
pub use writer::{Settlement, Writer};

use crate::clock::{Clock, Timestamp};
use crate::config;
use crate::disk;
use crate::status::Incident;
use lock::Lock;
use recovery::Inspection;
use reserve::ReserveFile;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tables::Tables;

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
    maybe_sent_upto: i64,
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
        check_writable(&path)?;
        let lock = Arc::new(Lock::take(&path)?);
        let mut reserve = ReserveFile::of(&path);
        let opened = match begin_session(&config, &lock, clock.now()) {
            // Opening takes room, too.
            Err(e) if e.is_full() && reserve.release() => begin_session(&config, &lock, clock.now()),
            opened => opened,
        };
        let (tables, maybe_sent_upto) = opened.map_err(|e| match e {
            OutboxError::Locked { path, operation, holder: None } => {
                let holder = open_files::lock_holder_at(&path);
                OutboxError::Locked { path, operation, holder }
            }
            e => e,
        })?;
        reserve.create();
        let progress = FileProgress::load_all(&tables.store.conn)
            .map_err(|e| tables.store.error("read how far the spool is ingested", e))?;
        let is_small = tables.store.size()?.bytes <= integrity::SMALL;
        let (writer, thread) = writer_thread::start(tables, lock.clone(), reserve, clock.clone())?;
        let background_check = match is_small {
            true => None,
            false => Some(integrity::check_in_background(&path, writer.alarm_sender())?),
        };
        Ok(Outbox { writer, progress, path, clock, thread, background_check, maybe_sent_upto, _lock: lock })
    }

    /// The database, by its real path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is pending since this outbox was opened may have been sent before, without an answer that anybody remembers: the
    /// events up to this number. 0: the session before has ended in order.
    pub fn maybe_sent_upto(&self) -> i64 {
        self.maybe_sent_upto
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

/// Opens the database and begins a session, which proves that it can be written: nothing may be sent whose delivery cannot
/// be recorded. Returns the tables and [`Outbox::maybe_sent_upto`].
fn begin_session(
    config: &config::OutboxConfig,
    lock: &Lock,
    now: Timestamp,
) -> Result<(Tables, i64), OutboxError> {
    let path = &config.path;
    let (mut tables, found) = open_or_recover(config, lock, now)?;
    let found = found.map(|text| {
        tracing::warn!("{}: {text}", path.display());
        Incident { at: now, text, files: None }
    });
    // The end of the last session was logged when it came.
    let incident = found.or_else(|| replaced_files::noted_incident(path));
    if let Some(incident) = &incident {
        tables.transaction(|tables| meta::set_incident(&tables.store.conn, incident))?;
    }
    let (session, has_ended) = tables.store.begin_session(lock.last_session(), now)?;
    lock.record_session(&session)?;
    replaced_files::remove_note(path);
    // A command names what it is about. Those that are left stand in nobody's way.
    let was_amid_command = asker::drop_unawaited(&mut tables).unwrap_or_else(|e| {
        tracing::warn!("commands that nobody waits for are kept: {e}");
        true
    });
    let maybe_sent_upto = match has_ended && incident.is_none() && !was_amid_command {
        true => 0,
        false => tables.last_event()?,
    };
    Ok((tables, maybe_sent_upto))
}

/// Opens the database, creates a missing one, and recovers a damaged one. Returns what is to be told, too.
fn open_or_recover(
    config: &config::OutboxConfig,
    lock: &Lock,
    now: Timestamp,
) -> Result<(Tables, Option<String>), OutboxError> {
    let path = &config.path;
    let was_recovering = recovery::resume(config)?;
    let inspection = recovery::inspect(path)?;
    let mut incident = inspection.incident(lock.last_session());
    match inspection {
        Inspection::Database(_) | Inspection::LogLost(_) => {}
        Inspection::Damaged(why) => recovery::begin(path, why, now)?,
        Inspection::Nothing => recovery::create_database(config, |_| Ok(()))?,
    }
    recovery::resume(config)?;
    let tables = match open_checked(config) {
        Err(e) if e.is_damage() => {
            recovery::begin(path, &e.damage(), now)?;
            recovery::resume(config)?;
            incident = None;
            open_checked(config)?
        }
        opened => opened?,
    };
    // A recovery has told what became of everything.
    Ok((tables, incident.filter(|_| !was_recovering)))
}

/// What the next start will tell of the files that stand there now, for a command while no agent runs. `None`: nothing.
///
/// # Errors
/// The system's; a file that is no outbox.
pub fn forecast(path: &Path) -> Result<Option<String>, OutboxError> {
    let path = lock::real_path(path);
    let inspection = recovery::inspect(&path)?;
    if let Inspection::Damaged(why) = inspection {
        return Ok(Some(format!(
            "the outbox is damaged ({why}); the agent recovers what can be read when it starts"
        )));
    }
    Ok(inspection.incident(lock::last_session(&path).as_ref()))
}

/// Opens the database, and checks the integrity of a small one.
fn open_checked(config: &config::OutboxConfig) -> Result<Tables, OutboxError> {
    let tables = Tables::open(config)?;
    if tables.store.size()?.bytes <= integrity::SMALL {
        integrity::check(&tables.store.conn, &tables.store.path)?;
    }
    Ok(tables)
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

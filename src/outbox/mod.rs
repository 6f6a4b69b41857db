//! The outbox: every event between its spool file and its delivery, in an ordinary SQLite file.
//!
//! ```text
//!   intake ──append──▶ ┌────────┐                        ┌────────┐ ──gather──▶ courier
//!                      │ Writer │──▶ outbox.db (WAL) ──▶ │ Reader │
//!   courier ─settle──▶ └────────┘   one connection       └────────┘ ──list, show──▶ commands
//!                                   that writes
//! ```
//!
//! One thread owns the connection that writes. It takes all that has queued up while the last commit was on
//! its way to the disk, commits once, then answers everybody: so a call that has returned `Ok` is durable,
//! and the load decides how large a commit is. All SQL stands in this module.

mod admin;
mod append;
mod ballast;
mod error;
mod files;
mod keep;
mod lock;
mod reader;
mod row;
mod schema;
mod settle;
mod store;
mod writer;

pub use admin::{Admin, Kept};
pub use append::{Appended, Reused};
pub use error::OutboxError;
pub use files::Progress;
pub use lock::holder;
pub use reader::{Attempt, Counts, Detail, Filter, Listed, Listing, Reader};
pub use row::{Fate, NewEvent, PendingEvent, State};
pub use settle::Settled;
pub use writer::{Answer, Flow, Gauge, Writer};

use crate::clock::Clock;
use crate::config;
use ballast::Ballast;
use lock::Lock;
use std::fs::{DirBuilder, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

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

impl From<&config::Outbox> for Settings {
    fn from(c: &config::Outbox) -> Settings {
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
#[derive(Debug)]
pub struct Outbox {
    /// The handle through which everything is changed.
    pub writer: Writer,
    /// How far the files of the spool had been taken when the outbox was opened.
    pub progress: Vec<Progress>,
    thread: std::thread::JoinHandle<()>,
    _lock: Lock,
}

impl Outbox {
    /// Opens the outbox and starts its writer; makes the file and its folder if they are not there. When
    /// this returns `Ok`, this process alone writes it.
    ///
    /// # Errors
    /// Held by another agent, a newer schema, a network file system, an old SQLite, and the system's errors.
    pub fn open(config: &config::Outbox, clock: Clock) -> Result<Outbox, OutboxError> {
        refuse_old_sqlite()?;
        let settings = Settings::from(config);
        let path = &settings.path;
        if let Some(folder) = path.parent() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o750)
                .create(folder)
                .map_err(|e| OutboxError::io(folder, "make the folder", &e))?;
            refuse_network(folder, path)?;
        }
        let lock = Lock::take(path)?;
        // Made here and not by SQLite, which would take its mode from the umask.
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(FILE_MODE)
            .open(path)
            .map_err(|e| OutboxError::io(path, "open the database", &e))?;
        let mut ballast = Ballast::beside(path);
        let mut store = match store::Store::open(&settings) {
            // Even to open takes room.
            Err(e) if e.is_full() && ballast.give_up() => store::Store::open(&settings)?,
            opened => opened?,
        };
        ballast.make();
        if ballast.missing() > 0 {
            // Nothing is to be sent that could not be marked.
            store.transaction(|store| store.set_meta(store::OPENED, clock.now().0))?;
        }
        let progress = store.progress()?;
        let (writer, thread) = writer::start(store, ballast, clock)?;
        Ok(Outbox { writer, progress, thread, _lock: lock })
    }

    /// Commits what is queued, empties the write-ahead log and lets the outbox go. Blocks for that long.
    pub fn close(self) {
        self.writer.stop();
        // A panic of the writer has been logged by the panic hook; there is nothing to add.
        let _ = self.thread.join();
    }
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

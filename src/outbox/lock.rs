//! The lock by which one agent at a time owns an outbox.
//!
//! The lock is a POSIX record lock: that kind alone tells others the holder's pid, and the kernel releases it with the
//! process, however that ends. It stands on a file of its own, because closing any descriptor of the database would
//! drop SQLite's locks in this process.
//!
//! Only the owner may open the file: whoever may open it could lock it as well, and keep the agent from starting. So the
//! group that reads the outbox cannot ask for the holder; it learns from the status file whether an agent runs, and that
//! file says which process wrote it and when (`cli::status`). A lock on the database itself, which the group can open,
//! would be dropped whenever SQLite closes one of its connections.
//!
//! The file names the last session that opened the outbox: see [`LogMark`](super::log_mark::LogMark).

use super::OutboxError;
use super::files::{FileId, file_at, with_suffix};
use super::log_mark::Token;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// For the owner alone.
const MODE: u32 = 0o600;
/// The length of the file with the token of a session, and a line break.
const LENGTH: u64 = 17;

/// The right to write the outbox, until it is dropped.
#[derive(Debug)]
pub struct Lock {
    outbox: PathBuf,
    path: PathBuf,
    file: Mutex<File>,
    /// The session that the file named when the lock was taken.
    last_session: Option<Token>,
    /// Whether the file has one byte more: see [`Lock::confirm_commit`].
    is_padded: AtomicBool,
}

impl Lock {
    /// Takes the lock. When this returns `Ok`, no other agent owns the outbox.
    ///
    /// # Errors
    /// [`OutboxError::Held`] with the holder's pid, at once; the system's errors for the lock file.
    pub fn take(outbox: &Path) -> Result<Lock, OutboxError> {
        let path = lock_path(outbox);
        let file = open_and_lock(outbox, &path)?;
        Ok(Lock {
            outbox: outbox.to_owned(),
            path,
            last_session: session_in(&file),
            file: Mutex::new(file),
            is_padded: AtomicBool::new(false),
        })
    }

    /// The last session here before this lock was taken; `None`: there was none, or it is not known.
    pub(super) fn last_session(&self) -> Option<&Token> {
        self.last_session.as_ref()
    }

    /// Names the session that has begun. The name is on the disk when this returns `Ok`.
    pub(super) fn record_session(&self, session: &Token) -> Result<(), OutboxError> {
        let file = self.file();
        file.write_all_at(format!("{}\n", session.as_str()).as_bytes(), 0)
            .and_then(|()| file.set_len(LENGTH))
            .and_then(|()| file.sync_data())
            .map_err(|e| OutboxError::io(&self.path, "name the session", &e))
    }

    /// Checks that the lock still stands where another agent would look for it, and takes it again if its file was removed
    /// or replaced. Returns whether it was.
    ///
    /// # Errors
    /// [`OutboxError::Held`]: another agent has taken it meanwhile; then nothing more may be written.
    pub(super) fn retake(&self) -> Result<bool, OutboxError> {
        let mut file = self.file();
        let held = file.metadata().map_err(|e| OutboxError::io(&self.path, "find the lock", &e))?;
        let held: FileId = (held.dev(), held.ino());
        if file_at(&self.path)?.is_some_and(|(found, _)| found == held) {
            return Ok(false);
        }
        let mut session = vec![0; LENGTH as usize];
        let is_named = file.read_exact_at(&mut session, 0).is_ok();
        let new = open_and_lock(&self.outbox, &self.path)?;
        if is_named {
            new.write_all_at(&session, 0).map_err(|e| OutboxError::io(&self.path, "name the session", &e))?;
        }
        *file = new;
        Ok(true)
    }

    /// Confirms a commit that SQLite has reported as durable: the file system still accepts changes.
    ///
    /// With `errors=remount-ro`, the default of many distributions, ext4 aborts its journal at an error. An fsync that is
    /// under way then can succeed although its data is gone after the next mount: in 150 aborts amid a loop of writes
    /// this happened 22 times (Linux 6.18), and with this confirmation in none of 120. A change of a file's size needs the
    /// journal, so it fails once the journal is aborted; new time stamps do not, and a second fsync costs a flush and
    /// closes the gap only nearly. The file gains and loses a byte at its end, which nobody reads.
    ///
    /// # Errors
    /// The file system has failed: what was committed last may be lost. A full disk is no error here.
    pub fn confirm_commit(&self) -> Result<(), OutboxError> {
        let was_padded = self.is_padded.fetch_xor(true, Relaxed);
        match self.file().set_len(if was_padded { LENGTH } else { LENGTH + 1 }) {
            Err(e) if is_failed_storage(&e) => Err(OutboxError::Io {
                path: self.path.clone(),
                operation: "confirm a commit",
                text: e.to_string(),
            }),
            _ => Ok(()),
        }
    }

    fn file(&self) -> MutexGuard<'_, File> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open_and_lock(outbox: &Path, path: &Path) -> Result<File, OutboxError> {
    let open = || {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).mode(MODE).open(path)?;
        // An earlier version let the group read it.
        if file.metadata()?.permissions().mode() & 0o077 != 0 {
            file.set_permissions(Permissions::from_mode(MODE))?;
        }
        Ok(file)
    };
    let file = open().map_err(|e| OutboxError::io(path, "take the lock", &e))?;
    if fcntl(&file, FcntlArg::F_SETLK(&write_lock(WHOLE_FILE))).is_err() {
        let pid = holder_of(&file, WHOLE_FILE).unwrap_or_default();
        return Err(OutboxError::Held { path: outbox.to_owned(), pid });
    }
    Ok(file)
}

fn is_failed_storage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EROFS | libc::EIO | libc::EUCLEAN))
}

/// The pid of the agent that owns the outbox, found without taking the lock. `None` also for a user who may not open the
/// lock's file.
pub fn holder(outbox: &Path) -> Option<i32> {
    holder_of(&File::open(lock_path(&real_path(outbox))).ok()?, WHOLE_FILE)
}

/// The last session here, read without taking the lock; for a process that does not hold it.
pub(super) fn last_session(outbox: &Path) -> Option<Token> {
    session_in(&File::open(lock_path(outbox)).ok()?)
}

/// The session that the lock's file names.
fn session_in(mut file: &File) -> Option<Token> {
    let mut text = [0; LENGTH as usize - 1];
    file.read_exact(&mut text).ok()?;
    Token::parse(str::from_utf8(&text).ok()?)
}

/// Whether this user may not see who owns the outbox.
pub fn is_lock_hidden(outbox: &Path) -> bool {
    File::open(lock_path(&real_path(outbox))).is_err_and(|e| e.kind() == io::ErrorKind::PermissionDenied)
}

pub(super) fn lock_path(outbox: &Path) -> PathBuf {
    with_suffix(outbox, ".lock")
}

/// The outbox's path without links: two names of one file must not make two locks.
pub fn real_path(outbox: &Path) -> PathBuf {
    let target = std::fs::read_link(outbox).map_or_else(
        |_| outbox.to_owned(),
        // A relative target starts from the link's folder; an absolute one replaces it.
        |target| outbox.parent().unwrap_or(Path::new("")).join(target),
    );
    let in_real_folder = || Some(target.parent()?.canonicalize().ok()?.join(target.file_name()?));
    outbox.canonicalize().ok().or_else(in_real_folder).unwrap_or(target)
}

/// The first byte of a lock and the number of bytes; 0 bytes: to the end of the file.
pub(super) type ByteRange = (libc::off_t, libc::off_t);

const WHOLE_FILE: ByteRange = (0, 0);

/// The pid of a process that holds a lock on these bytes of the file.
pub(super) fn holder_of(file: &File, range: ByteRange) -> Option<i32> {
    probe(file, write_lock(range))
}

/// The pid of a process that holds an exclusive lock on these bytes of the file.
pub(super) fn exclusive_holder_of(file: &File, range: ByteRange) -> Option<i32> {
    probe(file, libc::flock { l_type: libc::F_RDLCK as libc::c_short, ..write_lock(range) })
}

fn probe(file: &File, mut lock: libc::flock) -> Option<i32> {
    fcntl(file, FcntlArg::F_GETLK(&mut lock)).ok()?;
    (i32::from(lock.l_type) != libc::F_UNLCK).then_some(lock.l_pid)
}

fn write_lock((start, len): ByteRange) -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: len,
        l_pid: 0,
    }
}

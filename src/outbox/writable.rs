//! Whether this process may write the files of an outbox, found without opening them.
//!
//! SQLite opens a file that it may not write for reading, and says so only when something is written: an agent that trusted
//! it would run and store nothing. That a session could be begun is the proof that it can write; this finds out why it
//! cannot, and names the file, its owner and the command line that mends it.

use super::OutboxError;
use super::files::with_suffix;
use super::lock::lock_path;
use crate::spool::shell_quoted;
use nix::errno::Errno;
use nix::unistd::{AccessFlags, Gid, Group, Uid, User, faccessat};
use std::fs::{self, Metadata};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// Checks that this process, by its effective user, may write the folder of an outbox and what is there of its files.
///
/// # Errors
/// [`OutboxError::NotWritable`] and [`OutboxError::ReadOnly`], for the first that it may not.
pub fn check_writable(outbox: &Path) -> Result<(), OutboxError> {
    let folder = outbox.parent().unwrap_or(Path::new("."));
    let files =
        [outbox.to_owned(), with_suffix(outbox, "-wal"), with_suffix(outbox, "-shm"), lock_path(outbox)];
    let all = AccessFlags::R_OK | AccessFlags::W_OK;
    let owns = |path: &Path| fs::metadata(path).is_ok_and(|meta| meta.uid() == Uid::effective().as_raw());
    let is_mine = || owns(folder) || files.iter().any(|file| owns(file)) || is_service(Uid::effective());
    may(folder, all | AccessFlags::X_OK, outbox, &is_mine)?;
    files.iter().try_for_each(|file| may(file, all, outbox, &is_mine))
}

fn may(
    path: &Path,
    rights: AccessFlags,
    outbox: &Path,
    is_mine: &dyn Fn() -> bool,
) -> Result<(), OutboxError> {
    let denied = match faccessat(nix::fcntl::AT_FDCWD, path, rights, nix::fcntl::AtFlags::AT_EACCESS) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(()),
        Err(errno) => errno,
    };
    let io = || OutboxError::io(path, "write", &denied.into());
    if denied == Errno::EROFS {
        return Err(io());
    }
    let Ok(meta) = fs::metadata(path) else { return Err(io()) };
    let me = Uid::effective();
    Err(OutboxError::NotWritable {
        path: path.to_owned(),
        owner: names(Uid::from_raw(meta.uid()), Gid::from_raw(meta.gid())),
        mode: meta.permissions().mode() & 0o7777,
        user: user_name(me),
        fix: is_mine().then(|| fix(outbox, &meta, me)),
    })
}

/// The user that the packaged service runs as.
pub const SERVICE_USER: &str = "koala-agent";

fn is_service(me: Uid) -> bool {
    User::from_uid(me).ok().flatten().is_some_and(|user| user.name == SERVICE_USER)
}

/// The command line that lets the user write the folder or the file of that kind.
fn fix(outbox: &Path, meta: &Metadata, me: Uid) -> String {
    let (folder, rights) =
        (outbox.parent().unwrap_or(Path::new(".")), if meta.is_dir() { "rwx" } else { "rw" });
    let files = match meta.is_dir() {
        true => shell_quoted(folder.as_os_str()),
        // All files of the outbox: the others have most likely come in the same way.
        false => format!("{}*", shell_quoted(outbox.as_os_str())),
    };
    let mode = format!("chmod u+{rights} {files}");
    match meta.uid() == me.as_raw() {
        true => mode,
        false => format!("chown {} {files} && {mode}", names(me, Gid::effective())),
    }
}

fn names(uid: Uid, gid: Gid) -> String {
    let group = Group::from_gid(gid).ok().flatten().map_or_else(|| gid.to_string(), |group| group.name);
    format!("{}:{group}", user_name(uid))
}

fn user_name(uid: Uid) -> String {
    User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name)
}

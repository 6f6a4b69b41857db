//! The folder `.removing`, through which a file leaves the spool.
//!
//! Linux cannot unlink or rename by descriptor, and a producer may have renamed another file over the name since the
//! file was read. So the name is moved into this folder, which belongs to the agent alone and where nobody else can open
//! it by name. Only there can it be said that the file is the one that was read, that nobody has it open for writing, and
//! that nobody will: then it is unlinked or rejected. Otherwise it goes back.
//!
//! Where the kernel does not tell who has a file open, the file is kept in this folder until it has been still for
//! [`QUIET_BEFORE_UNLINK`], and goes back if it is written to meanwhile.

use super::folder_lock::LOCK;
use super::in_hand::IN_HAND;
use super::names::{candidate_names, is_finished_name, rename_to_first_free, stem_and_ending};
use super::{Lease, SpoolEntry, SpoolError, irregularity, open_to_read};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The name of the folder in the spool.
pub const REMOVING: &str = ".removing";

/// How long a file of which the kernel does not tell whether it is open must be still before it is unlinked: longer than
/// the pauses of programs that write as they have something to say.
pub const QUIET_BEFORE_UNLINK: Duration = Duration::from_secs(600);

/// The result of removing a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removal {
    /// The file does not exist any more.
    Removed,
    /// The file has its name no more: it was deleted, or has another name. A file that has taken the name is left where it
    /// was.
    Missing,
    /// The file was written to after it was read, or may still be; it is where it was.
    Changed,
    /// The file is out of the spool but may still be open: it is kept, to be looked at by [`super::Spool::check_kept`].
    Kept(KeptFile),
}

/// A file whose events are all durable and that is kept in `.removing`, because somebody may still write to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptFile {
    pub(super) entry: SpoolEntry,
    /// Its name in `.removing`.
    pub(super) kept_as: OsString,
}

impl KeptFile {
    /// The file as it was kept, under the name that it had in the spool.
    pub fn entry(&self) -> &SpoolEntry {
        &self.entry
    }
}

/// The result of [`RemovingFolder::claim`].
pub(super) enum Claim {
    /// The file is out of every producer's reach.
    Claimed {
        /// Where it is now.
        path: PathBuf,
        /// The file as it is now, under the name that it had.
        entry: SpoolEntry,
        /// Whether anybody can still write to it.
        is_free: bool,
        /// Whoever opens the file for writing waits until this is closed.
        lease: Option<File>,
    },
    /// The file cannot be claimed, and this is why.
    Lost(Removal),
}

/// The folder `.removing` of a spool.
#[derive(Debug, Clone)]
pub(super) struct RemovingFolder {
    spool_dir: PathBuf,
    dir: PathBuf,
    /// Files that could not go back, and their names in the spool.
    stranded: Arc<Mutex<Vec<(PathBuf, OsString)>>>,
}

impl RemovingFolder {
    pub fn of_spool(spool_dir: &Path) -> RemovingFolder {
        let dir = spool_dir.join(REMOVING);
        RemovingFolder { spool_dir: spool_dir.to_owned(), dir, stranded: Arc::default() }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Moves the file that was read, and no other, to where no producer reaches it. After a crash the next start puts it
    /// back. A file that is open for writing, or has a second name, stays.
    pub fn claim(&self, read: &SpoolEntry) -> io::Result<Claim> {
        let from = self.spool_dir.join(&read.name);
        let lost = |now: &SpoolEntry| {
            let is_same_file = now.identity.key() == read.identity.key();
            Claim::Lost(if is_same_file { Removal::Changed } else { Removal::Missing })
        };
        let is_missing = |e: &io::Error| e.kind() == io::ErrorKind::NotFound;
        // From here on nobody opens the file for writing without being noticed. What was written before shows in its version,
        // and a write that has put the time back in `changed`: only here, since the renaming changes that as well.
        let (file, lease) = match open_to_read(&from) {
            Ok(file) => {
                let lease = Lease::take(&file);
                (Some(file), lease)
            }
            Err(e) if is_missing(&e) => return Ok(Claim::Lost(Removal::Missing)),
            Err(_) => (None, Lease::Unavailable),
        };
        let meta = match &file {
            Some(file) => file.metadata()?,
            None => fs::symlink_metadata(&from)?,
        };
        let now = SpoolEntry::new(read.name.clone(), &meta);
        if now != *read || irregularity(&meta).is_some() || lease == Lease::OpenForWriting {
            return Ok(lost(&now));
        }
        let path = match rename_to_first_free(&from, &self.dir, own_name_first(&read.name)) {
            Ok(name) => self.dir.join(name),
            // The error is also NotFound if `.removing` is missing.
            Err(e) if is_missing(&e) && fs::symlink_metadata(&from).is_err() => {
                return Ok(Claim::Lost(Removal::Missing));
            }
            Err(e) => return Err(e),
        };
        // Another file may have taken the name before.
        let meta = fs::symlink_metadata(&path).inspect_err(|_| self.give_back(&path, &read.name))?;
        let entry = SpoolEntry::new(read.name.clone(), &meta);
        let is_free = lease == Lease::Free;
        let is_wanted = || is_free && file.as_ref().is_some_and(|file| !Lease::is_held(file));
        if entry.is_as_read(read) && irregularity(&meta).is_none() && !is_wanted() {
            return Ok(Claim::Claimed { path, entry, is_free, lease: file });
        }
        // Before the lease ends, so that who waits for it writes to a file of the spool.
        self.give_back(&path, &read.name);
        Ok(lost(&entry))
    }

    /// Looks at a kept file: puts it back if it was written to, and else unlinks it if `is_quiet`.
    pub fn check_kept(&self, kept: &KeptFile, is_quiet: bool) -> io::Result<Removal> {
        let path = self.dir.join(&kept.kept_as);
        let meta = match fs::symlink_metadata(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Removal::Removed),
            meta => meta?,
        };
        if SpoolEntry::new(kept.entry.name.clone(), &meta) != kept.entry || irregularity(&meta).is_some() {
            return self.put_back(&path, &kept.entry.name).map(|()| Removal::Changed);
        }
        if is_quiet {
            return fs::remove_file(path).map(|()| Removal::Removed);
        }
        Ok(Removal::Kept(kept.clone()))
    }

    /// Puts back the files that a crash left between the two steps of a removal. The outbox knows which of them are
    /// ingested.
    pub fn put_back_all(&self) -> Result<(), SpoolError> {
        let error = |e| SpoolError::new(&self.dir, "put files back", e);
        for item in fs::read_dir(&self.dir).map_err(error)? {
            let item = item.map_err(error)?;
            let name = item.file_name();
            if is_finished_name(&name) {
                self.put_back(&item.path(), &name).map_err(error)?;
            } else if name != LOCK && name != IN_HAND {
                // A file of the spool never has such a name: this one was made to ask for the time.
                fs::remove_file(item.path()).map_err(error)?;
            }
        }
        Ok(())
    }

    /// Puts a claimed file back that cannot leave the spool. If the system refuses that as well, it goes back later.
    pub fn give_back(&self, claimed: &Path, name: &OsStr) {
        if self.put_back(claimed, name).is_err() {
            let mut stranded = self.stranded.lock().unwrap_or_else(PoisonError::into_inner);
            stranded.push((claimed.to_owned(), name.to_owned()));
        }
    }

    /// Puts back the files that could not go back before.
    pub fn give_back_stranded(&self) {
        let stranded = std::mem::take(&mut *self.stranded.lock().unwrap_or_else(PoisonError::into_inner));
        for (claimed, name) in stranded {
            self.give_back(&claimed, &name);
        }
    }

    /// Puts a claimed file back under its name, or under a similar one if a producer has used that again.
    pub fn put_back(&self, claimed: &Path, name: &OsStr) -> io::Result<()> {
        rename_to_first_free(claimed, &self.spool_dir, own_name_first(name)).map(drop)
    }
}

/// The name itself, and similar ones for the case that it is taken.
fn own_name_first(name: &OsStr) -> impl Iterator<Item = OsString> {
    let (stem, ending) = stem_and_ending(name);
    std::iter::once(name.to_owned()).chain(candidate_names(stem, String::new(), ending).skip(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_could_not_go_back_goes_back_later() {
        let folder = tempfile::tempdir().unwrap();
        let (dir, elsewhere) = (folder.path().join("spool"), folder.path().join("elsewhere"));
        let removing = RemovingFolder::of_spool(&dir);
        fs::create_dir_all(removing.dir()).unwrap();
        let claimed = removing.dir().join("a.json");
        fs::write(&claimed, "{").unwrap();
        fs::rename(&dir, &elsewhere).unwrap();
        removing.give_back(&claimed, "a.json".as_ref());
        fs::rename(&elsewhere, &dir).unwrap();
        assert!(claimed.exists());
        removing.give_back_stranded();
        assert!(!claimed.exists() && dir.join("a.json").exists());
    }
}

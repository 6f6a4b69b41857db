//! Taking just the file that was read out of the folder.
//!
//! Linux cannot unlink or rename by descriptor, and a producer may have renamed another file over the name since it
//! was read. So the name is moved into a folder that is the agent's alone, compared there, and only then unlinked or
//! set aside; what turns out to be another file goes back.

use super::names::{is_finished_name, names, rename_to_first_free, rename_to_free_name, stem_and_ending};
use super::{Entry, REMOVING, Spool, SpoolError};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What became of a removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// It is gone.
    Removed,
    /// Another file has taken its name; that one is where it was.
    Replaced,
    /// It was written to after it was read; it is where it was.
    Changed,
}

/// What came of [`Spool::claim`].
pub(super) enum Claim {
    /// The file is out of every producer's reach, at this path.
    Held(PathBuf),
    /// It is not there to be had.
    Lost(Removal),
}

impl Spool {
    /// Removes a file all of whose events are durable: the file that was read, and no other.
    ///
    /// # Errors
    /// The system's; then the file is still in the folder, or half removed and put back at the next start.
    pub fn remove(&self, read: &Entry) -> Result<Removal, SpoolError> {
        let error = |e| SpoolError::new(&self.dir.join(&read.name), "remove a file", e);
        match self.claim(read).map_err(error)? {
            Claim::Held(aside) => fs::remove_file(aside).map(|()| Removal::Removed).map_err(error),
            Claim::Lost(removal) => Ok(removal),
        }
    }

    /// Moves the file that was read, and no other, to where no producer reaches it. A crash after that is fixed at the
    /// next start: the file goes back.
    pub(super) fn claim(&self, read: &Entry) -> io::Result<Claim> {
        let (from, aside) = (self.dir.join(&read.name), self.dir.join(REMOVING).join(&read.name));
        let seen = |at: &Path| fs::symlink_metadata(at).map(|meta| Entry::of(read.name.clone(), &meta));
        let lost = |now: &Entry| {
            let same = now.identity.key() == read.identity.key();
            Claim::Lost(if same { Removal::Changed } else { Removal::Replaced })
        };
        // A producer that waits for its file to be gone must not see another gone that comes back.
        if let Ok(now) = seen(&from)
            && !now.is_as_read(read)
        {
            return Ok(lost(&now));
        }
        if let Err(e) = rename_to_free_name(&from, &aside) {
            // What is missing may as well be the folder that it was to go to.
            let is_gone = e.kind() == io::ErrorKind::NotFound && seen(&from).is_err();
            return if is_gone { Ok(Claim::Lost(Removal::Removed)) } else { Err(e) };
        }
        let now = seen(&aside)?;
        if now.is_as_read(read) {
            return Ok(Claim::Held(aside));
        }
        self.put_back(&aside, &read.name)?;
        Ok(lost(&now))
    }

    /// Files that a crash left between the two steps of a removal go back; the outbox knows which are taken.
    pub(super) fn put_back_half_removed(&self) -> Result<(), SpoolError> {
        let folder = self.dir.join(REMOVING);
        let error = |e| SpoolError::new(&folder, "put files back", e);
        for item in fs::read_dir(&folder).map_err(error)? {
            let item = item.map_err(error)?;
            if !is_finished_name(&item.file_name()) {
                // No file of that name was ever to be removed: it is one by which the time was asked.
                fs::remove_file(item.path()).map_err(error)?;
                continue;
            }
            self.put_back(&item.path(), &item.file_name()).map_err(error)?;
        }
        Ok(())
    }

    /// Under its own name, or, where a producer has used that again, beside it.
    pub(super) fn put_back(&self, aside: &Path, name: &OsStr) -> io::Result<()> {
        let (stem, ending) = stem_and_ending(name);
        let free = std::iter::once(name.to_owned()).chain(names(stem, String::new(), ending).skip(1));
        rename_to_first_free(aside, &self.dir, free).map(drop)
    }
}

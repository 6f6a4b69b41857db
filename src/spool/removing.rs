//! The folder `.removing`, through which a file leaves the spool.
//!
//! Linux cannot unlink or rename by descriptor, and a producer may have renamed another file over the name since the
//! file was read. So the name is moved into this folder, which belongs to the agent alone, compared there, and only then
//! unlinked or rejected. If it turns out to be another file, it goes back.

use super::names::{
    candidate_names, is_finished_name, rename_to_first_free, rename_to_free_name, stem_and_ending,
};
use super::{SpoolEntry, SpoolError};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The name of the folder in the spool.
pub(super) const REMOVING: &str = ".removing";

/// The result of removing a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// The file does not exist any more.
    Removed,
    /// Another file has taken its name; that one is left where it was.
    Replaced,
    /// The file was written to after it was read; it is left where it was.
    Changed,
}

/// The result of [`RemovingFolder::claim`].
pub(super) enum Claim {
    /// The file is out of every producer's reach, at this path.
    Claimed(PathBuf),
    /// The file cannot be claimed, and this is why.
    Lost(Removal),
}

/// The folder `.removing` of a spool.
#[derive(Debug, Clone)]
pub(super) struct RemovingFolder {
    spool_dir: PathBuf,
    dir: PathBuf,
}

impl RemovingFolder {
    pub fn of_spool(spool_dir: &Path) -> RemovingFolder {
        RemovingFolder { spool_dir: spool_dir.to_owned(), dir: spool_dir.join(REMOVING) }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Moves the file that was read, and no other, to where no producer reaches it. After a crash the next start puts it
    /// back.
    pub fn claim(&self, read: &SpoolEntry) -> io::Result<Claim> {
        let (from, claimed) = (self.spool_dir.join(&read.name), self.dir.join(&read.name));
        let entry_at =
            |path: &Path| fs::symlink_metadata(path).map(|meta| SpoolEntry::new(read.name.clone(), &meta));
        let lost = |now: &SpoolEntry| {
            let is_same_file = now.identity.key() == read.identity.key();
            Claim::Lost(if is_same_file { Removal::Changed } else { Removal::Replaced })
        };
        // A producer may wait for its file to disappear; a file that is put back must not disappear first.
        if let Ok(now) = entry_at(&from)
            && !now.is_as_read(read)
        {
            return Ok(lost(&now));
        }
        if let Err(e) = rename_to_free_name(&from, &claimed) {
            // The error is also NotFound if `.removing` is missing.
            let is_gone = e.kind() == io::ErrorKind::NotFound && entry_at(&from).is_err();
            return if is_gone { Ok(Claim::Lost(Removal::Removed)) } else { Err(e) };
        }
        let now = entry_at(&claimed)?;
        if now.is_as_read(read) {
            return Ok(Claim::Claimed(claimed));
        }
        self.put_back(&claimed, &read.name)?;
        Ok(lost(&now))
    }

    /// Puts back the files that a crash left between the two steps of a removal. The outbox knows which of them are
    /// ingested.
    pub fn put_back_all(&self) -> Result<(), SpoolError> {
        let error = |e| SpoolError::new(&self.dir, "put files back", e);
        for item in fs::read_dir(&self.dir).map_err(error)? {
            let item = item.map_err(error)?;
            if is_finished_name(&item.file_name()) {
                self.put_back(&item.path(), &item.file_name()).map_err(error)?;
            } else {
                // A file of the spool never has such a name: this one was made to ask for the time.
                fs::remove_file(item.path()).map_err(error)?;
            }
        }
        Ok(())
    }

    /// Puts a claimed file back under its name, or under a similar one if a producer has used that again.
    pub fn put_back(&self, claimed: &Path, name: &OsStr) -> io::Result<()> {
        let (stem, ending) = stem_and_ending(name);
        let others = candidate_names(stem, String::new(), ending).skip(1);
        rename_to_first_free(claimed, &self.spool_dir, std::iter::once(name.to_owned()).chain(others))
            .map(drop)
    }
}

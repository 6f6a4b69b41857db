//! The folder `rejected/`: files and parts of files that cannot be ingested, each with a reason.
//!
//! The reason, `NAME.why`, is written first. It holds the identity and place of the rejected thing, so that the same
//! rejection after a crash is recognised: nothing in the folder is overwritten, and nothing is rejected twice.

use super::names::{
    WHY, candidate_names, is_finished_name, is_reason_name, rename_to_first_free, rename_to_free_name,
    stem_and_ending,
};
use super::removing::Claim;
use super::{FileIdentity, REJECTED, Spool, SpoolEntry, SpoolError};
use crate::clock::Timestamp;
use crate::event::Flaw;
use crate::reason::Code;
use serde::{Deserialize, Serialize};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The content of `NAME.why`. It quotes nothing of the event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejection {
    /// The reason code.
    pub code: Code,
    /// The reason for a reader.
    pub text: String,
    /// The line in the file as it came, from 1.
    pub line: usize,
    /// The column in that line, in bytes, from 1.
    pub column: usize,
    /// The time of the rejection.
    pub when: Timestamp,
    /// The name of the file in the spool.
    pub file: String,
    /// The number of the rejected line or element, from 1; 0 for the whole file.
    pub place: u64,
    /// The file's inode, which together with `modified` tells it from another file of that name.
    pub inode: u64,
    /// The file's modification time, nanoseconds since 1970.
    pub modified: i64,
    /// Whether the document ended too early. It goes back to the spool if it is written to.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub incomplete: bool,
}

impl Rejection {
    fn new(name: &OsStr, identity: &FileIdentity, place: u64, flaw: &Flaw, when: Timestamp) -> Rejection {
        Rejection {
            code: flaw.code,
            text: flaw.text.clone(),
            line: flaw.line,
            column: flaw.column,
            when,
            file: super::printable(name),
            place,
            inode: identity.inode,
            modified: identity.modified,
            incomplete: flaw.incomplete,
        }
    }

    /// Whether both are about the same part of the same file.
    fn is_about_the_same(&self, other: &Rejection) -> bool {
        (self.place, self.inode, self.modified) == (other.place, other.inode, other.modified)
    }
}

/// A file in `rejected/`.
#[derive(Debug, Clone)]
pub struct RejectedFile {
    /// The name in `rejected/`.
    pub name: OsString,
    /// The reason, if it can still be read.
    pub why: Option<Rejection>,
    /// The size in bytes.
    pub size: u64,
}

/// The folder `rejected/` of a spool.
#[derive(Debug, Clone)]
pub struct RejectedFolder {
    dir: PathBuf,
}

impl RejectedFolder {
    /// The folder at that path, whether it exists or not.
    pub fn new(dir: PathBuf) -> RejectedFolder {
        RejectedFolder { dir }
    }

    /// The folder `rejected/` of the spool at that path.
    pub fn of_spool(spool_dir: &Path) -> RejectedFolder {
        RejectedFolder::new(spool_dir.join(REJECTED))
    }

    /// Rejects a whole file of the spool: the file that was read, and no other. Returns its name in the folder, where its
    /// reason already is. The move is durable after [`RejectedFolder::sync`]; before that, a power failure leaves the file
    /// in one of the two folders. `None`: the file was replaced or written to since, and must be read again.
    ///
    /// # Errors
    /// The system refuses; the file is still in the spool.
    pub fn reject_file(
        &self,
        spool: &Spool,
        entry: &SpoolEntry,
        flaw: &Flaw,
        now: Timestamp,
    ) -> Result<Option<OsString>, SpoolError> {
        let error = |e| SpoolError::new(&spool.dir().join(&entry.name), "reject a file", e);
        let rejection = Rejection::new(&entry.name, &entry.identity, 0, flaw, now);
        // Without room for the reason the file must not move, since a move wakes the intake again.
        self.write_temporary_reason(&rejection).map_err(error)?;
        let Claim::Claimed(claimed) = spool.removing.claim(entry).map_err(error)? else { return Ok(None) };
        let name = self.move_in(&claimed, entry, &rejection);
        if name.is_err() {
            // If this fails as well, the next start puts the file back.
            let _ = spool.removing.put_back(&claimed, &entry.name);
        }
        name.map(Some).map_err(error)
    }

    fn move_in(&self, claimed: &Path, entry: &SpoolEntry, rejection: &Rejection) -> io::Result<OsString> {
        let (stem, ending) = stem_and_ending(&entry.name);
        for name in rejected_names(stem, "", ending, rejection.modified) {
            if !self.reserve(&name, rejection)? {
                continue;
            }
            match rename_to_free_name(claimed, &self.dir.join(&name)) {
                Ok(()) => return Ok(name),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => {
                    let _ = fs::remove_file(self.reason_path(&name));
                    return Err(e);
                }
            }
        }
        Ok(entry.name.clone())
    }

    /// Rejects one line or element of a file; `first_seen` is the file's identity in the outbox. The copy is durable after
    /// [`RejectedFolder::sync`].
    ///
    /// # Errors
    /// The system refuses.
    pub fn reject_part(
        &self,
        entry: &SpoolEntry,
        first_seen: &FileIdentity,
        place: u64,
        content: &[u8],
        flaw: &Flaw,
        now: Timestamp,
    ) -> Result<(), SpoolError> {
        let error = |e| SpoolError::new(&self.dir, "reject a part of a file", e);
        let rejection = Rejection::new(&entry.name, first_seen, place, flaw, now);
        let (stem, ending) = stem_and_ending(&entry.name);
        let ending = ending.strip_suffix(".gz").unwrap_or(ending);
        for name in rejected_names(stem, &format!(".{place}"), ending, rejection.modified) {
            if !self.reserve(&name, &rejection).map_err(error)? {
                continue;
            }
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o640)
                .open(self.dir.join(&name))
                .map_err(error)?;
            return file.write_all(content).and_then(|()| file.write_all(b"\n")).map_err(error);
        }
        Ok(())
    }

    /// Flushes all rejected files to the disk before it returns.
    ///
    /// # Errors
    /// The system refuses.
    pub fn sync(&self) -> io::Result<()> {
        let folder = File::open(&self.dir)?;
        #[cfg(target_os = "linux")]
        nix::unistd::syncfs(&folder)?;
        folder.sync_all()
    }

    /// Reserves a name by writing the reason for it. Returns false if the name belongs to another rejection.
    fn reserve(&self, name: &OsStr, rejection: &Rejection) -> io::Result<bool> {
        let path = self.reason_path(name);
        match fs::read(&path) {
            Ok(text) => {
                let existing = serde_json::from_slice::<Rejection>(&text);
                return Ok(existing.is_ok_and(|existing| existing.is_about_the_same(rejection)));
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        if fs::symlink_metadata(self.dir.join(name)).is_ok() {
            return Ok(false);
        }
        fs::rename(self.write_temporary_reason(rejection)?, &path)?;
        Ok(true)
    }

    /// Writes a reason under a temporary name. Returns its path.
    fn write_temporary_reason(&self, rejection: &Rejection) -> io::Result<PathBuf> {
        let path = self.dir.join(".why.tmp");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(&path)?;
        serde_json::to_writer(&mut file, rejection)?;
        file.write_all(b"\n")?;
        Ok(path)
    }

    /// The rejected files, in the order of their names.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn list(&self) -> io::Result<Vec<RejectedFile>> {
        let mut files = Vec::new();
        for item in fs::read_dir(&self.dir)? {
            let item = item?;
            let name = item.file_name();
            let Ok(meta) = item.metadata() else { continue };
            if is_reason_name(&name) || !is_finished_name(&name) || !meta.is_file() {
                continue;
            }
            files.push(RejectedFile { why: self.why(&name), size: meta.len(), name });
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(files)
    }

    /// The number of rejected files.
    pub fn count_files(&self) -> u64 {
        let Ok(items) = fs::read_dir(&self.dir) else { return 0 };
        items
            .filter_map(Result::ok)
            .map(|item| item.file_name())
            .filter(|name| is_finished_name(name) && !is_reason_name(name))
            .count() as u64
    }

    /// The reason of a rejected file.
    pub fn why(&self, name: &OsStr) -> Option<Rejection> {
        serde_json::from_slice(&fs::read(self.reason_path(name)).ok()?).ok()
    }

    /// Puts a file back into the spool and deletes its reason. The file gets another name if its own is taken. Returns the
    /// name.
    ///
    /// # Errors
    /// There is no such file, or the system refuses.
    pub fn put_back(&self, name: &OsStr) -> Result<OsString, SpoolError> {
        let from = self.dir.join(name);
        let error = |e| SpoolError::new(&from, "put a file back", e);
        if !is_finished_name(name) || is_reason_name(name) || name.as_bytes().contains(&b'/') {
            return Err(error(io::ErrorKind::NotFound.into()));
        }
        let spool = self.dir.parent().unwrap_or(&self.dir);
        let (stem, ending) = stem_and_ending(name);
        let free = rename_to_first_free(&from, spool, candidate_names(stem, String::new(), ending))
            .map_err(error)?;
        let _ = fs::remove_file(self.reason_path(name));
        Ok(free)
    }

    /// Puts back the files that were rejected because they ended too early and that were written to since. Returns their
    /// names.
    pub fn put_back_grown(&self) -> Vec<OsString> {
        let grown = |r: &RejectedFile| {
            let why = r.why.as_ref()?;
            let meta = fs::symlink_metadata(self.dir.join(&r.name)).ok()?;
            let is_written_to = super::identity(&meta).modified != why.modified;
            (why.incomplete && is_written_to).then(|| r.name.clone())
        };
        let files = self.list().unwrap_or_default();
        files.iter().filter_map(grown).filter_map(|name| self.put_back(&name).ok()).collect()
    }

    /// Deletes the files that were rejected before `before`. Returns their number.
    pub fn expire(&self, before: Timestamp) -> u64 {
        let is_old = |r: &RejectedFile| r.why.as_ref().is_some_and(|why| why.when < before);
        let files = self.list().unwrap_or_default();
        let mut deleted = 0;
        for name in files.iter().filter(|r| is_old(r)).map(|r| &r.name) {
            deleted += u64::from(self.remove(name).is_ok());
        }
        deleted
    }

    /// Deletes a rejected file and its reason.
    ///
    /// # Errors
    /// The system refuses; the file is still there.
    pub fn remove(&self, name: &OsStr) -> io::Result<()> {
        fs::remove_file(self.dir.join(name))?;
        // A reason without its file does no harm.
        let _ = fs::remove_file(self.reason_path(name));
        Ok(())
    }

    /// The path of a rejected file.
    pub fn path_of(&self, name: &OsStr) -> PathBuf {
        self.dir.join(name)
    }

    fn reason_path(&self, name: &OsStr) -> PathBuf {
        let mut path = self.dir.join(name).into_os_string();
        path.push(WHY);
        PathBuf::from(path)
    }
}

/// `stem.place.ending`, then names with the file's modification time. The time keeps the search for a free name short: a
/// program that always uses one name may have many rejected files.
fn rejected_names<'a>(
    stem: &'a [u8],
    place: &str,
    ending: &'a str,
    modified: i64,
) -> impl Iterator<Item = OsString> + use<'a> {
    let place_and_time = format!("{place}~{modified}");
    candidate_names(stem, place.to_owned(), ending).take(1).chain(candidate_names(
        stem,
        place_and_time,
        ending,
    ))
}

//! Files and lines that cannot be taken, set aside in `rejected/` beside the reason.
//!
//! `NAME.why` is written first and names the file's identity and place, so that setting the same thing aside
//! again after a crash is recognised: nothing there is overwritten, and nothing is set aside twice.

use super::names::{
    WHY, is_finished_name, is_reason, names, rename_to_first_free, rename_to_free_name, stem_and_ending,
};
use super::remove::Claim;
use super::{Entry, FileIdentity, REJECTED, Spool, SpoolError};
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

/// The content of `NAME.why`; no piece of the body is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejection {
    /// From the closed list of reasons.
    pub code: Code,
    /// For a person.
    pub text: String,
    /// The line in the file as it came, from 1.
    pub line: usize,
    /// The column in that line, in bytes, from 1.
    pub column: usize,
    /// When it was set aside.
    pub when: Timestamp,
    /// The name that the file had in the spool.
    pub file: String,
    /// The line or element of it, from 1; 0: the whole file.
    pub place: u64,
    /// The file's inode, which with `modified` tells it from another of that name.
    pub inode: u64,
    /// The file's modification time, nanoseconds since 1970.
    pub modified: i64,
    /// The document ended too early: it is taken back if it grows whole.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub incomplete: bool,
}

impl Rejection {
    fn is_about_the_same(&self, other: &Rejection) -> bool {
        (self.place, self.inode, self.modified) == (other.place, other.inode, other.modified)
    }
}

/// A file in `rejected/`.
#[derive(Debug, Clone)]
pub struct Rejected {
    /// Its name there.
    pub name: OsString,
    /// Why it is there, where that can still be read.
    pub why: Option<Rejection>,
    /// Its size in bytes.
    pub size: u64,
}

/// The folder `rejected/`.
#[derive(Debug, Clone)]
pub struct RejectedFolder {
    dir: PathBuf,
}

impl RejectedFolder {
    /// The folder at that path, whether it is there or not.
    pub fn new(dir: PathBuf) -> RejectedFolder {
        RejectedFolder { dir }
    }

    /// Sets a whole file of the spool aside: the file that was read, and no other. When this returns its name there,
    /// it is in `rejected/` beside its reason; after [`RejectedFolder::sync`], durably. Until then a power cut leaves it in
    /// the one folder or the other. `None`: it was replaced or written to since it was read, and is to be read again.
    ///
    /// # Errors
    /// The system's; then the file is still in the spool.
    pub fn reject_file(
        &self,
        spool: &Spool,
        entry: &Entry,
        flaw: &Flaw,
        now: Timestamp,
    ) -> Result<Option<OsString>, SpoolError> {
        let error = |e| SpoolError::new(&spool.dir().join(&entry.name), "set a file aside", e);
        let why = why(&entry.name, &entry.identity, 0, flaw, now);
        // Where there is no room for the reason, the file is not touched: that would wake the intake again.
        self.write_aside(&why).map_err(error)?;
        let Claim::Held(from) = spool.claim(entry).map_err(error)? else { return Ok(None) };
        let moved = self.move_aside(&from, entry, &why);
        if moved.is_err() {
            // If this fails as well, the next start does it.
            let _ = spool.put_back(&from, &entry.name);
        }
        moved.map(Some).map_err(error)
    }

    fn move_aside(&self, from: &Path, entry: &Entry, why: &Rejection) -> io::Result<OsString> {
        let (stem, ending) = stem_and_ending(&entry.name);
        for name in names_aside(stem, "", ending, why.modified) {
            if !self.reserve(&name, why)? {
                continue;
            }
            match rename_to_free_name(from, &self.dir.join(&name)) {
                Ok(()) => return Ok(name),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => {
                    let _ = fs::remove_file(self.why_path(&name));
                    return Err(e);
                }
            }
        }
        Ok(entry.name.clone())
    }

    /// Sets one line or element of a file aside; `first_seen` is the file's identity as the outbox knows it. It is
    /// durable after [`RejectedFolder::sync`].
    ///
    /// # Errors
    /// The system's.
    pub fn reject_piece(
        &self,
        entry: &Entry,
        first_seen: &FileIdentity,
        place: u64,
        content: &[u8],
        flaw: &Flaw,
        now: Timestamp,
    ) -> Result<(), SpoolError> {
        let error = |e| SpoolError::new(&self.dir, "set a part of a file aside", e);
        let why = why(&entry.name, first_seen, place, flaw, now);
        let (stem, ending) = stem_and_ending(&entry.name);
        let ending = ending.strip_suffix(".gz").unwrap_or(ending);
        for name in names_aside(stem, &format!(".{place}"), ending, why.modified) {
            if !self.reserve(&name, &why).map_err(error)? {
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

    /// When this returns, all that was set aside is on the disk.
    ///
    /// # Errors
    /// The system's.
    pub fn sync(&self) -> io::Result<()> {
        let folder = File::open(&self.dir)?;
        #[cfg(target_os = "linux")]
        nix::unistd::syncfs(&folder)?;
        folder.sync_all()
    }

    /// Writes the reason under that name, if the name is free or is about the very same thing.
    fn reserve(&self, name: &OsStr, why: &Rejection) -> io::Result<bool> {
        let path = self.why_path(name);
        match fs::read(&path) {
            Ok(text) => {
                return Ok(serde_json::from_slice::<Rejection>(&text).is_ok_and(|w| w.is_about_the_same(why)));
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        if fs::symlink_metadata(self.dir.join(name)).is_ok() {
            return Ok(false);
        }
        fs::rename(self.write_aside(why)?, &path)?;
        Ok(true)
    }

    /// Writes a reason where nobody looks for one yet.
    fn write_aside(&self, why: &Rejection) -> io::Result<PathBuf> {
        let aside = self.dir.join(".why.tmp");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(&aside)?;
        serde_json::to_writer(&mut file, why)?;
        file.write_all(b"\n")?;
        Ok(aside)
    }

    /// Every file there, in the order of their names.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn list(&self) -> io::Result<Vec<Rejected>> {
        let mut files = Vec::new();
        for item in fs::read_dir(&self.dir)? {
            let item = item?;
            let name = item.file_name();
            let Ok(meta) = item.metadata() else { continue };
            if is_reason(&name) || !is_finished_name(&name) || !meta.is_file() {
                continue;
            }
            files.push(Rejected { why: self.why(&name), size: meta.len(), name });
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(files)
    }

    /// How many files are there.
    pub fn count(&self) -> u64 {
        let Ok(items) = fs::read_dir(&self.dir) else { return 0 };
        items
            .filter_map(Result::ok)
            .map(|item| item.file_name())
            .filter(|name| is_finished_name(name) && !is_reason(name))
            .count() as u64
    }

    /// The reason beside a file.
    pub fn why(&self, name: &OsStr) -> Option<Rejection> {
        serde_json::from_slice(&fs::read(self.why_path(name)).ok()?).ok()
    }

    /// Puts a file back into the spool, under its name or beside the one that has it now; its reason goes.
    ///
    /// # Errors
    /// There is no such file, or the system's.
    pub fn put_back(&self, name: &OsStr) -> Result<OsString, SpoolError> {
        let from = self.dir.join(name);
        let error = |e| SpoolError::new(&from, "put a file back", e);
        if !is_finished_name(name) || is_reason(name) || name.as_bytes().contains(&b'/') {
            return Err(error(io::ErrorKind::NotFound.into()));
        }
        let spool = self.dir.parent().unwrap_or(&self.dir);
        let (stem, ending) = stem_and_ending(name);
        let free = rename_to_first_free(&from, spool, names(stem, String::new(), ending)).map_err(error)?;
        let _ = fs::remove_file(self.why_path(name));
        Ok(free)
    }

    /// Puts files back that were set aside because they ended too early and have been written to since.
    /// Returns their names.
    pub fn take_back_grown(&self) -> Vec<OsString> {
        let grown = |r: &Rejected| {
            let why = r.why.as_ref()?;
            let meta = fs::symlink_metadata(self.dir.join(&r.name)).ok()?;
            let changed = super::identity(&meta).modified != why.modified;
            (why.incomplete && changed).then(|| r.name.clone())
        };
        let files = self.list().unwrap_or_default();
        files.iter().filter_map(grown).filter_map(|name| self.put_back(&name).ok()).collect()
    }

    /// Deletes what was set aside before `before`. Returns how many files went.
    pub fn expire(&self, before: Timestamp) -> u64 {
        let old = |r: &Rejected| r.why.as_ref().is_some_and(|why| why.when < before);
        let files = self.list().unwrap_or_default();
        let mut gone = 0;
        for name in files.iter().filter(|r| old(r)).map(|r| &r.name) {
            gone += u64::from(self.remove(name).is_ok());
        }
        gone
    }

    /// Deletes a file that was set aside, and its reason.
    ///
    /// # Errors
    /// The system's; then it is still there.
    pub fn remove(&self, name: &OsStr) -> io::Result<()> {
        fs::remove_file(self.dir.join(name))?;
        // Left behind, it says why something was set aside that is gone: no harm.
        let _ = fs::remove_file(self.why_path(name));
        Ok(())
    }

    /// Where a file of that name stands.
    pub fn path_of(&self, name: &OsStr) -> PathBuf {
        self.dir.join(name)
    }

    fn why_path(&self, name: &OsStr) -> PathBuf {
        let mut path = self.dir.join(name).into_os_string();
        path.push(WHY);
        PathBuf::from(path)
    }
}

/// Where the files of a spool at that path are set aside.
pub fn rejected_beside(spool_dir: &Path) -> RejectedFolder {
    RejectedFolder::new(spool_dir.join(REJECTED))
}

fn why(name: &OsStr, identity: &FileIdentity, place: u64, flaw: &Flaw, when: Timestamp) -> Rejection {
    Rejection {
        code: flaw.code,
        text: flaw.text.clone(),
        line: flaw.line,
        column: flaw.column,
        when,
        file: super::shown(name),
        place,
        inode: identity.inode,
        modified: identity.modified,
        incomplete: flaw.incomplete,
    }
}

/// `stem.place.ending`, then the same beside the file's time: what a program drops that always uses one name is not
/// to be compared with everything bad that it has ever dropped.
fn names_aside<'a>(
    stem: &'a [u8],
    place: &str,
    ending: &'a str,
    modified: i64,
) -> impl Iterator<Item = OsString> + use<'a> {
    let beside = format!("{place}~{modified}");
    names(stem, place.to_owned(), ending).take(1).chain(names(stem, beside, ending))
}

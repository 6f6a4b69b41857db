//! The folder `rejected/`: files and parts of files that cannot be ingested, each with a reason.
//!
//! The reason, `NAME.why`, is written first. It holds the identity and place of the rejected thing, so that the same
//! rejection after a crash is recognised: nothing in the folder is overwritten, and nothing is rejected twice.

use super::names::{
    WHY, candidate_names, is_finished_name, is_reason_name, rename_to_first_free, stem_and_ending,
};
use super::{FileIdentity, REJECTED, SpoolEntry, SpoolError};
use crate::clock::Timestamp;
use crate::event::Flaw;
use crate::reason::Code;
use nix::libc;
use serde::{Deserialize, Serialize};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The most that is read of a reason: names have at most 255 bytes, and the text is one sentence or two.
const MAX_REASON: u64 = 16 << 10;

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
    /// The uid of the owner of the file in the spool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<u32>,
    /// Whether the document ended too early. It goes back to the spool if it is written to.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub incomplete: bool,
    /// Set if the rejected file holds all parts of a file that are not rejected one by one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rest: Option<RestOfFile>,
}

/// The parts of a file that are rejected in one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestOfFile {
    /// The number of parts.
    pub parts: u64,
    /// The place of the last one.
    pub until: u64,
    /// The bytes of all of them. What a crash left behind these is no part.
    pub bytes: u64,
}

impl Rejection {
    pub(super) fn new(
        entry: &SpoolEntry,
        identity: &FileIdentity,
        place: u64,
        flaw: &Flaw,
        when: Timestamp,
    ) -> Rejection {
        Rejection {
            code: flaw.code,
            text: flaw.text.clone(),
            line: flaw.line,
            column: flaw.column,
            when,
            file: super::printable(&entry.name),
            place,
            inode: identity.inode,
            modified: identity.modified,
            owner: Some(entry.owner),
            incomplete: flaw.incomplete,
            rest: None,
        }
    }

    /// Whether both are about the same part of the same file.
    pub(super) fn is_about_the_same(&self, other: &Rejection) -> bool {
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
    /// The bytes that it takes on the disk: a file may be longer than that.
    pub on_disk: u64,
    /// The modification time, nanoseconds since 1970.
    pub modified: i64,
    /// The uid of the owner. A part belongs to the agent: its reason names the owner of the file.
    pub owner: u32,
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

    /// Flushes the names in the folder to the disk before it returns.
    pub(super) fn sync(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    /// Reserves a name by writing the reason for it. Returns that reason's file, which is to be flushed; `None`: the name
    /// belongs to another rejection.
    pub(super) fn reserve(&self, name: &OsStr, rejection: &Rejection) -> io::Result<Option<File>> {
        let path = self.reason_path(name);
        match open_regular(&path) {
            Ok(file) => {
                let existing = serde_json::from_reader::<_, Rejection>(file.take(MAX_REASON));
                return match existing.is_ok_and(|existing| existing.is_about_the_same(rejection)) {
                    true => open_regular(&path).map(Some),
                    false => Ok(None),
                };
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        if fs::symlink_metadata(self.dir.join(name)).is_ok() {
            return Ok(None);
        }
        self.write_reason(name, rejection).map(Some)
    }

    /// Writes the reason of a name. Returns its file, which is to be flushed.
    pub(super) fn write_reason(&self, name: &OsStr, rejection: &Rejection) -> io::Result<File> {
        let (temporary, file) = self.write_temporary_reason(rejection)?;
        fs::rename(temporary, self.reason_path(name))?;
        Ok(file)
    }

    /// Writes a reason under a temporary name. Returns its path.
    pub(super) fn write_temporary_reason(&self, rejection: &Rejection) -> io::Result<(PathBuf, File)> {
        let path = self.dir.join(".why.tmp");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(&path)?;
        let mut text = serde_json::to_vec(rejection)?;
        text.push(b'\n');
        file.write_all(&text)?;
        Ok((path, file))
    }

    /// Creates the file of a name that is reserved; what a crash left of it goes.
    pub(super) fn create(&self, name: &OsStr) -> io::Result<File> {
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(self.dir.join(name))
    }

    pub(super) fn remove_reason(&self, name: &OsStr) {
        // A reason without its file does no harm.
        let _ = fs::remove_file(self.reason_path(name));
    }

    /// The path of the folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The rejected files, one after another, in no order.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn files(&self) -> io::Result<impl Iterator<Item = RejectedFile> + '_> {
        self.files_named(b"")
    }

    /// The rejected files whose names begin so.
    pub(super) fn files_named<'a>(
        &'a self,
        stem: &'a [u8],
    ) -> io::Result<impl Iterator<Item = RejectedFile> + 'a> {
        let items = fs::read_dir(&self.dir)?.filter_map(Result::ok);
        Ok(items.filter_map(move |item| {
            let name = item.file_name();
            if !name.as_bytes().starts_with(stem) || is_reason_name(&name) || !is_finished_name(&name) {
                return None;
            }
            let meta = item.metadata().ok().filter(|meta| meta.is_file())?;
            let modified = super::identity(&meta).modified;
            let on_disk = size_on_disk(&meta);
            Some(RejectedFile {
                why: self.why(&name),
                size: meta.len(),
                on_disk,
                modified,
                owner: meta.uid(),
                name,
            })
        }))
    }

    /// The rejected files, in the order of their names.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn list(&self) -> io::Result<Vec<RejectedFile>> {
        let mut files: Vec<RejectedFile> = self.files()?.collect();
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(files)
    }

    /// The reason of a rejected file.
    pub fn why(&self, name: &OsStr) -> Option<Rejection> {
        serde_json::from_reader(open_regular(&self.reason_path(name)).ok()?.take(MAX_REASON)).ok()
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

    /// Deletes a rejected file and its reason.
    ///
    /// # Errors
    /// The system refuses; the file is still there.
    pub fn remove(&self, name: &OsStr) -> io::Result<()> {
        fs::remove_file(self.dir.join(name))?;
        self.remove_reason(name);
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

/// The bytes that a file takes: a file may be longer than what is on the disk.
pub fn size_on_disk(meta: &fs::Metadata) -> u64 {
    meta.blocks() * 512
}

/// Opens a file of the folder for reading, and nothing else: whoever may write there could have put anything in its place.
fn open_regular(path: &Path) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// `stem.place.ending`, then names with the file's modification time. The time keeps the search for a free name short: a
/// program that always uses one name may have many rejected files.
pub(super) fn rejected_names<'a>(
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

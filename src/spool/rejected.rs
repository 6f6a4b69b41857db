//! The folder `rejected/`: files and parts of files that cannot be ingested, each with a reason.
//!
//! The reason, `NAME.why`, is written first. It holds the key of the file and the place of the rejected thing. A rejection
//! is known if both are the same and the content is: the place alone does not tell, because a producer may write its file
//! anew, and the modification time does not, because a file may grow. So nothing in the folder is overwritten, and nothing
//! is rejected twice.

use super::names::{
    WHY, candidate_names, is_finished_name, is_reason_name, rename_to_first_free, stem_and_ending,
};
use super::{FileIdentity, FileKey, REJECTED, SpoolEntry, SpoolError};
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

/// The room that a file of any size takes at least.
pub(super) const BLOCK: u64 = 4096;

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
    /// The file's inode, which together with `born` tells it from another file of that name.
    pub inode: u64,
    /// The file's time of birth, nanoseconds since 1970; 0 where the file system does not record it.
    #[serde(default)]
    pub born: i64,
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
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestOfFile {
    /// The number of parts.
    pub parts: u64,
    /// The place of the last one.
    pub until: u64,
    /// The bytes of all of them. What a crash left behind these is no part.
    pub bytes: u64,
    /// How far it was when it was flushed before: a reading after a crash begins with a part behind one of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<RestMark>,
}

/// Up to where a rest holds the parts of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RestMark {
    /// The place of the last part.
    pub until: u64,
    /// The bytes up to its end.
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
            born: identity.born,
            modified: identity.modified,
            owner: Some(entry.owner),
            incomplete: flaw.incomplete,
            rest: None,
        }
    }

    /// The key of the rejected file.
    pub(super) fn key(&self) -> FileKey {
        FileIdentity { inode: self.inode, born: self.born, modified: self.modified }.key()
    }

    /// Whether both are about the same place in the same file.
    pub(super) fn is_about_the_same(&self, other: &Rejection) -> bool {
        (self.place, self.key()) == (other.place, other.key())
    }
}

/// What a name in the folder is to a rejection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NameState {
    /// It belongs to nobody.
    Free,
    /// It is this rejection's, and the file has so many bytes of its content: fewer than all after a crash, and none if
    /// there is no file.
    Own(usize),
    /// It belongs to another rejection, or to other content.
    Taken,
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

/// A reason that has no name yet; it goes if it gets none.
#[derive(Debug)]
pub(super) struct TemporaryReason {
    path: Option<PathBuf>,
}

impl TemporaryReason {
    fn rename(mut self, to: &Path) -> io::Result<()> {
        self.path.as_ref().map_or(Ok(()), |path| fs::rename(path, to))?;
        self.path = None;
        Ok(())
    }
}

impl Drop for TemporaryReason {
    fn drop(&mut self) {
        // A temporary file that stays is written anew by the next rejection.
        self.path.as_ref().map(fs::remove_file);
    }
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

    /// What the name is to a rejection of that content. A whole file has no content before it is moved in.
    pub(super) fn state_of(
        &self,
        name: &OsStr,
        rejection: &Rejection,
        content: &[u8],
    ) -> io::Result<NameState> {
        let existing = match open_regular(&self.reason_path(name)) {
            Ok(file) => serde_json::from_reader::<_, Rejection>(file.take(MAX_REASON)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return match fs::symlink_metadata(self.dir.join(name)) {
                    Ok(_) => Ok(NameState::Taken),
                    Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(NameState::Free),
                    Err(e) => Err(e),
                };
            }
            Err(e) => return Err(e),
        };
        if !existing.is_ok_and(|existing| existing.is_about_the_same(rejection)) {
            return Ok(NameState::Taken);
        }
        let mut found = Vec::new();
        match open_regular(&self.dir.join(name)) {
            Ok(file) => file.take(content.len() as u64 + 1).read_to_end(&mut found)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => 0,
            // A file of the producer's that only the producer may read.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Ok(NameState::Taken),
            Err(e) => return Err(e),
        };
        Ok(match content.starts_with(&found) {
            true => NameState::Own(found.len()),
            false => NameState::Taken,
        })
    }

    /// Writes the reason of a name. Returns its file, which is to be flushed.
    pub(super) fn write_reason(&self, name: &OsStr, rejection: &Rejection) -> io::Result<File> {
        let (temporary, file) = self.temporary_reason(rejection)?;
        temporary.rename(&self.reason_path(name))?;
        Ok(file)
    }

    /// Writes a reason under a temporary name.
    pub(super) fn temporary_reason(&self, rejection: &Rejection) -> io::Result<(TemporaryReason, File)> {
        let path = self.dir.join(".why.tmp");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(&path)?;
        let temporary = TemporaryReason { path: Some(path) };
        let mut text = serde_json::to_vec(rejection)?;
        text.push(b'\n');
        file.write_all(&text)?;
        Ok((temporary, file))
    }

    /// Opens a file of the folder and its reason, to be flushed.
    pub(super) fn open_both(&self, name: &OsStr) -> io::Result<[File; 2]> {
        Ok([open_regular(&self.reason_path(name))?, open_regular(&self.dir.join(name))?])
    }

    /// Opens the file of a name, which is created if there is none, to write behind its content.
    pub(super) fn open_to_append(&self, name: &OsStr) -> io::Result<File> {
        let options = &mut OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o640).custom_flags(libc::O_NOFOLLOW);
        options.open(self.dir.join(name))
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
    /// There is no such file (a folder or a link is none), or the system refuses.
    pub fn put_back(&self, name: &OsStr) -> Result<OsString, SpoolError> {
        let from = self.dir.join(name);
        let error = |e| SpoolError::new(&from, "put a file back", e);
        let is_name = is_finished_name(name) && !is_reason_name(name) && !name.as_bytes().contains(&b'/');
        if !is_name || !fs::symlink_metadata(&from).map_err(error)?.is_file() {
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

/// The room that a file of that length takes, as far as its length tells.
pub(super) fn size_of(length: u64) -> u64 {
    length.next_multiple_of(BLOCK)
}

/// The bytes that a file takes: a file may be longer than what is on the disk.
pub fn size_on_disk(meta: &fs::Metadata) -> u64 {
    meta.blocks() * 512
}

/// Opens a file for reading, and nothing else: whoever may write to its folder could have put anything in its place.
///
/// # Errors
/// The system's; `InvalidData`: it is no regular file.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// `stem.place.ending`, then names with the time in the file's key. The time keeps the search for a free name short: a
/// program that always uses one name may have many rejected files.
pub(super) fn rejected_names<'a>(
    stem: &'a [u8],
    place: &str,
    ending: &'a str,
    key: FileKey,
) -> impl Iterator<Item = OsString> + use<'a> {
    let place_and_time = format!("{place}~{}", key.time());
    candidate_names(stem, place.to_owned(), ending).take(1).chain(candidate_names(
        stem,
        place_and_time,
        ending,
    ))
}

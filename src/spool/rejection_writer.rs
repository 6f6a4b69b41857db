//! Writes rejections into the folder `rejected/`, and makes them durable.
//!
//! Of one file at most [`MAX_PARTS`] parts are rejected one by one; all further ones go into one file, `NAME.rest`, with
//! one reason: ten million bad lines must not become ten million files. How much of that file is valid stands in its
//! reason, which is written anew at each sync: what a crash left behind that is cut off, and read again.
//!
//! What was written is flushed file by file. `syncfs` would be one call for all, but it also waits for whatever other
//! programs have written to the file system.

use super::names::{MAX_STEM, rename_to_free_name, stem_and_ending};
use super::rejected::{Rejection, RestOfFile, rejected_names, size_on_disk};
use super::removing::Claim;
use super::{FileIdentity, RejectedFolder, RejectedPart, Spool, SpoolEntry, SpoolError};
use crate::clock::Timestamp;
use crate::event::Flaw;
use crate::reason::Code;
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The parts of one file that are rejected one by one: enough to see what is wrong with the program that writes them.
pub const MAX_PARTS: u64 = 100;
/// Files whose rejected parts are counted in memory. Those of others are counted in the folder.
const MAX_COUNTED: usize = 10_000;
/// Files that are not flushed yet. Each is open.
const MAX_UNSYNCED: usize = 250;
/// The room that a file of any size takes at least.
const BLOCK: u64 = 4096;

/// What a rejected part is: the parts of one kind are rejected in the order of their places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PartKind {
    /// A part that is no event.
    Flawed,
    /// An event whose messageId was used before.
    ReusedId,
}

/// The files and bytes that something takes in `rejected/`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RejectedUsage {
    /// Rejected files, their reasons not counted.
    pub files: u64,
    /// Bytes on the disk, with their reasons.
    pub bytes: u64,
}

impl RejectedUsage {
    /// A rejected file that takes so many bytes.
    pub fn of_file(on_disk: u64) -> RejectedUsage {
        RejectedUsage { files: 1, bytes: on_disk + BLOCK }
    }
}

/// The rejected parts of one file.
#[derive(Debug, Default)]
struct PartsOfFile {
    /// The number of those that are files of their own.
    single: u64,
    /// Parts up to this place may be there from before a crash.
    known_until: u64,
    rest: HashMap<PartKind, Rest>,
    is_used: bool,
}

/// The file that holds all further parts.
#[derive(Debug)]
struct Rest {
    name: OsString,
    why: Rejection,
    /// Of `why.rest` and what was written since.
    state: RestOfFile,
    /// Open since the last sync.
    file: Option<File>,
}

/// A writer of rejections.
#[derive(Debug)]
pub struct RejectionWriter {
    folder: RejectedFolder,
    unsynced: Vec<File>,
    needs_folder_sync: bool,
    /// By the first seen inode and modification time.
    parts: HashMap<(u64, i64), PartsOfFile>,
}

impl RejectionWriter {
    /// A writer that has rejected nothing yet.
    pub fn new(folder: RejectedFolder) -> RejectionWriter {
        RejectionWriter { folder, unsynced: Vec::new(), needs_folder_sync: false, parts: HashMap::new() }
    }

    /// Whether anything may not be durable yet.
    pub fn needs_sync(&self) -> bool {
        self.needs_folder_sync
    }

    /// Rejects a whole file of the spool: the file that was read, and no other. Returns what it takes in the folder, where
    /// its reason already is. The move is durable after [`RejectionWriter::sync`]; before that, a power failure leaves the
    /// file in one of the two folders. `None`: the file was replaced or written to since, and must be read again.
    ///
    /// # Errors
    /// The system refuses; the file is still in the spool.
    pub fn reject_file(
        &mut self,
        spool: &Spool,
        entry: &SpoolEntry,
        flaw: &Flaw,
        now: Timestamp,
    ) -> Result<Option<RejectedUsage>, SpoolError> {
        let error = |e| SpoolError::new(&spool.dir().join(&entry.name), "reject a file", e);
        self.sync_if_many().map_err(error)?;
        let rejection = Rejection::new(entry, &entry.identity, 0, flaw, now);
        // Without room for the reason the file must not move, since a move wakes the intake again.
        self.folder.write_temporary_reason(&rejection).map_err(error)?;
        let Claim::Claimed { path: claimed, .. } = spool.removing.claim(entry).map_err(error)? else {
            return Ok(None);
        };
        match self.move_in(&claimed, entry, &rejection) {
            Ok(usage) => Ok(Some(usage)),
            Err(e) => {
                // If this fails as well, the next start puts the file back.
                let _ = spool.removing.put_back(&claimed, &entry.name);
                Err(error(e))
            }
        }
    }

    fn move_in(
        &mut self,
        claimed: &Path,
        entry: &SpoolEntry,
        rejection: &Rejection,
    ) -> io::Result<RejectedUsage> {
        let (stem, ending) = stem_and_ending(&entry.name);
        for name in rejected_names(stem, "", ending, rejection.modified) {
            let Some(why) = self.folder.reserve(&name, rejection)? else { continue };
            match rename_to_free_name(claimed, &self.folder.path_of(&name)) {
                Ok(()) => {
                    self.note(why);
                    let meta = fs::symlink_metadata(self.folder.path_of(&name))?;
                    return Ok(RejectedUsage::of_file(size_on_disk(&meta)));
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => {
                    self.folder.remove_reason(&name);
                    return Err(e);
                }
            }
        }
        Ok(RejectedUsage::default())
    }

    /// Rejects a part of a file; `first_seen` is the file's identity in the outbox. A part that was rejected before is
    /// recognised, also after a crash. `is_resumed`: the file was read in part before. Returns what is added to the folder.
    /// It is durable after [`RejectionWriter::sync`].
    ///
    /// # Errors
    /// The system refuses.
    pub fn reject_part(
        &mut self,
        entry: &SpoolEntry,
        first_seen: &FileIdentity,
        is_resumed: bool,
        kind: PartKind,
        part: &RejectedPart,
        now: Timestamp,
    ) -> Result<RejectedUsage, SpoolError> {
        let rejection = Rejection::new(entry, first_seen, part.place, &part.flaw, now);
        self.reject(entry, is_resumed, kind, part, rejection)
            .map_err(|e| SpoolError::new(self.folder.dir(), "reject a part of a file", e))
    }

    fn reject(
        &mut self,
        entry: &SpoolEntry,
        is_resumed: bool,
        kind: PartKind,
        part: &RejectedPart,
        rejection: Rejection,
    ) -> io::Result<RejectedUsage> {
        self.sync_if_many()?;
        let key = (rejection.inode, rejection.modified);
        if is_resumed && !self.parts.contains_key(&key) {
            let parts = self.recover(entry, &rejection)?;
            self.parts.insert(key, parts);
        }
        let parts = self.parts.entry(key).or_default();
        parts.is_used = true;
        if parts.single < MAX_PARTS || part.place <= parts.known_until {
            let (stem, ending) = part_stem_and_ending(entry);
            let is_full = parts.single >= MAX_PARTS;
            match self.reject_single(stem, ending, is_full, part, &rejection)? {
                Single::Written(usage) => {
                    let parts = self.parts.entry(key).or_default();
                    parts.single += 1;
                    return Ok(usage);
                }
                Single::Known if !is_resumed && parts_are_new(&self.parts, key) => {
                    // The reading before a crash got further.
                    let parts = self.recover(entry, &rejection)?;
                    self.parts.insert(key, PartsOfFile { is_used: true, ..parts });
                    return Ok(RejectedUsage::default());
                }
                Single::Known => return Ok(RejectedUsage::default()),
                Single::Full => {}
            }
        }
        self.reject_into_rest(entry, kind, part, rejection)
    }

    /// Rejects a part as a file of its own. If the folder has no room for another, only a part that is there is known.
    fn reject_single(
        &mut self,
        stem: &[u8],
        ending: &str,
        is_full: bool,
        part: &RejectedPart,
        rejection: &Rejection,
    ) -> io::Result<Single> {
        for name in rejected_names(stem, &format!(".{}", part.place), ending, rejection.modified) {
            let is_known = self.folder.why(&name).is_some_and(|why| why.is_about_the_same(rejection));
            if is_full && !is_known {
                return Ok(Single::Full);
            }
            let Some(why) = self.folder.reserve(&name, rejection)? else { continue };
            let mut file = self.folder.create(&name)?;
            file.write_all(&part.content)?;
            file.write_all(b"\n")?;
            self.note(why);
            self.note(file);
            return Ok(match is_known {
                true => Single::Known,
                false => Single::Written(RejectedUsage::of_file(size_of(part.content.len() as u64 + 1))),
            });
        }
        Ok(Single::Full)
    }

    fn reject_into_rest(
        &mut self,
        entry: &SpoolEntry,
        kind: PartKind,
        part: &RejectedPart,
        rejection: Rejection,
    ) -> io::Result<RejectedUsage> {
        let key = (rejection.inode, rejection.modified);
        let known = self.parts.get_mut(&key).and_then(|parts| parts.rest.remove(&kind));
        let (mut rest, mut usage) = match known {
            Some(rest) if part.place <= rest.state.until => {
                self.parts.entry(key).or_default().rest.insert(kind, rest);
                return Ok(RejectedUsage::default());
            }
            Some(rest) if rest.file.is_some() || self.is_there(&rest) => (rest, RejectedUsage::default()),
            _ => (self.new_rest(entry, kind, rejection)?, RejectedUsage::of_file(0)),
        };
        let (before, length) = (rest.state, part.content.len() as u64 + 1);
        let written = self.open_rest(&mut rest).and_then(|mut file| {
            file.write_all(&part.content)?;
            file.write_all(b"\n")
        });
        if written.is_ok() {
            let bytes = before.bytes + length;
            rest.state = RestOfFile { parts: before.parts + 1, until: part.place, bytes };
            usage.bytes += size_of(bytes) - size_of(before.bytes);
        }
        self.needs_folder_sync = true;
        self.parts.entry(key).or_default().rest.insert(kind, rest);
        written.map(|()| usage)
    }

    /// Whether the rest is still in the folder: somebody may have put it back into the spool.
    fn is_there(&self, rest: &Rest) -> bool {
        self.folder.why(&rest.name).is_some_and(|why| why.is_about_the_same(&rest.why))
    }

    fn new_rest(&mut self, entry: &SpoolEntry, kind: PartKind, mut why: Rejection) -> io::Result<Rest> {
        let (stem, ending) = part_stem_and_ending(entry);
        let state = RestOfFile { parts: 0, until: 0, bytes: 0 };
        why.text = format!(
            "more than {MAX_PARTS} parts of the file cannot be taken; the first of the rest: {}",
            why.text
        );
        why.rest = Some(state);
        let word = match kind {
            PartKind::Flawed => ".rest",
            PartKind::ReusedId => ".reused",
        };
        for name in rejected_names(stem, word, ending, why.modified) {
            let Some(reason) = self.folder.reserve(&name, &why)? else { continue };
            self.note(reason);
            let file = self.folder.create(&name)?;
            file.set_len(0)?;
            return Ok(Rest { name, why, state, file: None });
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// The file of the rest, cut to what is valid of it. It is opened anew after each sync: somebody may put it back into
    /// the spool meanwhile, where it must not be held open.
    fn open_rest<'a>(&self, rest: &'a mut Rest) -> io::Result<&'a File> {
        if rest.file.is_none() {
            let path = self.folder.path_of(&rest.name);
            let file = OpenOptions::new().create(true).append(true).mode(0o640).open(path)?;
            rest.state.bytes = rest.state.bytes.min(file.metadata()?.len());
            file.set_len(rest.state.bytes)?;
            rest.file = Some(file);
        }
        rest.file.as_ref().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// What the folder has of the file's parts.
    fn recover(&self, entry: &SpoolEntry, of: &Rejection) -> io::Result<PartsOfFile> {
        let mut found = PartsOfFile::default();
        let (stem, _) = stem_and_ending(&entry.name);
        for file in self.folder.files_named(&stem[..stem.len().min(MAX_STEM)])? {
            let Some(why) = file.why.filter(|why| (why.inode, why.modified) == (of.inode, of.modified))
            else {
                continue;
            };
            match why.rest {
                Some(state) => {
                    let kind = match why.code {
                        Code::MessageIdReused => PartKind::ReusedId,
                        _ => PartKind::Flawed,
                    };
                    found.rest.insert(kind, Rest { name: file.name, why, state, file: None });
                }
                None if why.place > 0 => {
                    found.single += 1;
                    found.known_until = found.known_until.max(why.place);
                }
                None => {}
            }
        }
        Ok(found)
    }

    fn note(&mut self, file: File) {
        self.unsynced.push(file);
        self.needs_folder_sync = true;
    }

    fn sync_if_many(&mut self) -> io::Result<()> {
        if self.unsynced.len() < MAX_UNSYNCED {
            return Ok(());
        }
        self.unsynced.drain(..).try_for_each(|file| file.sync_all())
    }

    /// Makes all rejections durable. Returns whether there were any.
    ///
    /// # Errors
    /// The system refuses.
    pub fn sync(&mut self) -> io::Result<bool> {
        if !self.needs_folder_sync {
            return Ok(false);
        }
        self.unsynced.drain(..).try_for_each(|file| file.sync_all())?;
        let folder = &self.folder;
        for rest in self.parts.values_mut().flat_map(|parts| parts.rest.values_mut()) {
            let Some(file) = rest.file.take() else { continue };
            file.sync_data()?;
            rest.why.rest = Some(rest.state);
            folder.write_reason(&rest.name, &rest.why)?.sync_all()?;
        }
        self.folder.sync()?;
        self.needs_folder_sync = false;
        if self.parts.len() > MAX_COUNTED {
            self.parts.retain(|_, parts| parts.is_used);
        }
        self.parts.values_mut().for_each(|parts| parts.is_used = false);
        Ok(true)
    }
}

enum Single {
    Written(RejectedUsage),
    /// It was there before.
    Known,
    /// There are enough of them.
    Full,
}

fn parts_are_new(parts: &HashMap<(u64, i64), PartsOfFile>, key: (u64, i64)) -> bool {
    parts.get(&key).is_none_or(|parts| parts.single == 0 && parts.known_until == 0)
}

/// The name of a part is that of the file, with the part's place; its text is not packed.
fn part_stem_and_ending(entry: &SpoolEntry) -> (&[u8], &str) {
    let (stem, ending) = stem_and_ending(&entry.name);
    (stem, ending.strip_suffix(".gz").unwrap_or(ending))
}

fn size_of(length: u64) -> u64 {
    length.next_multiple_of(BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::REJECTED;

    fn entry(name: &str) -> SpoolEntry {
        let identity = FileIdentity { inode: 7, born: 1, modified: 9 };
        SpoolEntry { name: name.into(), identity, size: 1, owner: 1000, changed: 1 }
    }

    /// Rejects the parts at these places, in an agent that has just started.
    fn reject(
        writer: &mut RejectionWriter,
        is_resumed: bool,
        kind: PartKind,
        places: impl Iterator<Item = u64>,
    ) -> RejectedUsage {
        let mut all = RejectedUsage::default();
        for place in places {
            let flaw = Flaw { line: place as usize, ..Flaw::at("", 0, Code::NotJson, "bad") };
            let flaw = match kind {
                PartKind::Flawed => flaw,
                PartKind::ReusedId => Flaw { code: Code::MessageIdReused, ..flaw },
            };
            let part = RejectedPart { place, content: format!("part {place}").into_bytes(), flaw };
            let entry = entry("bad.jsonl.gz");
            let usage =
                writer.reject_part(&entry, &entry.identity, is_resumed, kind, &part, Timestamp(0)).unwrap();
            all = RejectedUsage { files: all.files + usage.files, bytes: all.bytes + usage.bytes };
        }
        all
    }

    fn folder() -> (tempfile::TempDir, RejectedFolder) {
        let spool = tempfile::tempdir().unwrap();
        fs::create_dir(spool.path().join(REJECTED)).unwrap();
        let folder = RejectedFolder::of_spool(spool.path());
        (spool, folder)
    }

    fn content(folder: &RejectedFolder, name: &str) -> String {
        fs::read_to_string(folder.path_of(name.as_ref())).unwrap()
    }

    fn lines(places: impl Iterator<Item = u64>) -> String {
        places.map(|place| format!("part {place}\n")).collect()
    }

    #[test]
    fn a_file_of_bad_parts_becomes_a_hundred_files_and_one_for_the_rest() {
        let (_spool, folder) = folder();
        let mut writer = RejectionWriter::new(folder.clone());
        let usage = reject(&mut writer, false, PartKind::Flawed, 1..=10_000);
        assert!(writer.sync().unwrap() && !writer.sync().unwrap());
        assert_eq!(usage.files, MAX_PARTS + 1);
        let on_disk: u64 = folder.list().unwrap().iter().map(|file| file.on_disk + BLOCK).sum();
        assert!(usage.bytes.abs_diff(on_disk) <= usage.files * BLOCK, "{usage:?} and {on_disk}");
        assert_eq!(folder.list().unwrap().len() as u64, MAX_PARTS + 1);
        assert_eq!(content(&folder, "bad.1.jsonl"), "part 1\n");
        assert_eq!(content(&folder, "bad.rest.jsonl"), lines(101..=10_000));
        let why = folder.why("bad.rest.jsonl".as_ref()).unwrap();
        assert_eq!((why.code, why.line, why.owner), (Code::NotJson, 101, Some(1000)));
        assert_eq!(why.rest.unwrap().parts, 9_900);
    }

    #[test]
    fn a_crash_neither_begins_the_count_again_nor_rejects_anything_twice() {
        let (_spool, folder) = folder();
        let mut writer = RejectionWriter::new(folder.clone());
        reject(&mut writer, false, PartKind::Flawed, 1..=150);
        writer.sync().unwrap();
        // This much is written, but not flushed when the agent ends.
        reject(&mut writer, true, PartKind::Flawed, 151..=170);
        drop(writer);
        // The reading goes on at some place that was committed, and has the parts behind it once more.
        for from in [1, 60, 120, 151] {
            let mut writer = RejectionWriter::new(folder.clone());
            reject(&mut writer, from > 1, PartKind::Flawed, from..=160);
            writer.sync().unwrap();
            assert_eq!(folder.list().unwrap().len() as u64, MAX_PARTS + 1, "from {from}");
            assert_eq!(content(&folder, "bad.rest.jsonl"), lines(101..=160), "from {from}");
        }
    }

    #[test]
    fn reused_ids_are_found_late_and_have_a_rest_of_their_own() {
        let (_spool, folder) = folder();
        let mut writer = RejectionWriter::new(folder.clone());
        reject(&mut writer, false, PartKind::Flawed, 1..=200);
        // Of events that were read before the last of these parts.
        reject(&mut writer, false, PartKind::ReusedId, [170, 190].into_iter());
        writer.sync().unwrap();
        reject(&mut writer, false, PartKind::Flawed, 201..=210);
        reject(&mut writer, false, PartKind::ReusedId, 205..=206);
        writer.sync().unwrap();
        assert_eq!(content(&folder, "bad.rest.jsonl"), lines(101..=210));
        assert_eq!(content(&folder, "bad.reused.jsonl"), lines([170, 190, 205, 206].into_iter()));
    }

    #[test]
    fn a_rest_that_was_put_back_is_begun_again() {
        let (spool, folder) = folder();
        let mut writer = RejectionWriter::new(folder.clone());
        reject(&mut writer, false, PartKind::Flawed, 1..=150);
        writer.sync().unwrap();
        folder.put_back("bad.rest.jsonl".as_ref()).unwrap();
        reject(&mut writer, true, PartKind::Flawed, 151..=160);
        writer.sync().unwrap();
        assert_eq!(content(&folder, "bad.rest.jsonl"), lines(151..=160));
        let back = fs::read_to_string(spool.path().join("bad.rest.jsonl")).unwrap();
        assert_eq!(back, lines(101..=150));
    }
}

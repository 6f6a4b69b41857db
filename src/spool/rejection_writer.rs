//! Writes rejections into the folder `rejected/`, and makes them durable.
//!
//! Of one file at most [`MAX_PARTS`] parts are rejected one by one; all further ones go into one file, `NAME.rest`, with
//! one reason: ten million bad lines must not become ten million files.
//!
//! What was written is flushed file by file. `syncfs` would be one call for all, but it also waits for whatever other
//! programs have written to the file system.

use super::names::{MAX_STEM, part_stem_and_ending, rename_to_free_name, stem_and_ending};
use super::rejected::{BLOCK, NameState, Rejection, rejected_names, size_of, size_on_disk};
use super::removing::Claim;
use super::rest::{PartKind, Rest};
use super::{FileIdentity, FileKey, RejectedFolder, RejectedPart, Spool, SpoolEntry, SpoolError};
use crate::clock::Timestamp;
use crate::event::Flaw;
use crate::limits;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// The parts of one file that are rejected one by one: enough to see what is wrong with the program that writes them.
pub const MAX_PARTS: u64 = 100;
/// Files whose rejected parts are counted in memory. Those of others are counted in the folder.
const MAX_COUNTED: usize = 10_000;
/// Files that are not flushed yet, where the system lets that many be open.
const MAX_UNSYNCED: usize = 250;
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
    /// Parts up to this place may be files of their own already.
    known_until: u64,
    rest: HashMap<PartKind, Rest>,
    is_used: bool,
    /// Whether the folder has been searched for the file's parts.
    is_recovered: bool,
}

/// A writer of rejections.
#[derive(Debug)]
pub struct RejectionWriter {
    folder: RejectedFolder,
    /// Files that are written and not flushed, and those of the spool of which they hold something. Each is open.
    unsynced: Vec<(FileKey, File)>,
    max_unsynced: usize,
    needs_folder_sync: bool,
    /// Files of the spool of which something could not be flushed.
    failed: Vec<FailedRejection>,
    parts: HashMap<FileKey, PartsOfFile>,
}

/// A file of the spool of which something could not be rejected durably.
#[derive(Debug)]
pub struct FailedRejection {
    /// The key of the file's identity in the outbox.
    pub key: FileKey,
    /// The error of the system.
    pub error: SpoolError,
}

impl RejectionWriter {
    /// A writer that has rejected nothing yet.
    pub fn new(folder: RejectedFolder) -> RejectionWriter {
        RejectionWriter {
            folder,
            unsynced: Vec::new(),
            max_unsynced: limits::max_unflushed(limits::open_files()).min(MAX_UNSYNCED),
            needs_folder_sync: false,
            failed: Vec::new(),
            parts: HashMap::new(),
        }
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
        self.sync_if_many();
        let rejection = Rejection::new(entry, &entry.identity, 0, flaw, now);
        // Without room for the reason the file must not move, since a move wakes the intake again.
        let has_room = |writer: &mut RejectionWriter| writer.folder.temporary_reason(&rejection).map(drop);
        self.with_files(has_room).map_err(error)?;
        let Claim::Claimed { path: claimed, .. } = spool.removing.claim(entry).map_err(error)? else {
            return Ok(None);
        };
        match self.move_in(&claimed, entry, &rejection) {
            Ok(usage) => Ok(Some(usage)),
            Err(e) => {
                spool.removing.give_back(&claimed, &entry.name);
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
        let size = size_on_disk(&fs::symlink_metadata(claimed)?);
        for name in rejected_names(stem, "", ending, rejection.key()) {
            if self.folder.state_of(&name, rejection, b"")? == NameState::Taken {
                continue;
            }
            let why = self.folder.write_reason(&name, rejection)?;
            match rename_to_free_name(claimed, &self.folder.path_of(&name)) {
                Ok(()) => {
                    self.note(rejection.key(), why);
                    return Ok(RejectedUsage::of_file(size));
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => {
                    self.folder.remove_reason(&name);
                    return Err(e);
                }
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Rejects a part of a file; `first_seen` is the file's identity in the outbox. A part that was rejected before is
    /// recognised, also after a crash. `is_resumed`: the file was read in part before. Returns what is added to the folder.
    /// It is durable after [`RejectionWriter::sync`].
    ///
    /// # Errors
    /// The system refuses; the part is not in the folder, and what was rejected before is as it was.
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
        self.sync_if_many();
        self.with_files(|writer| writer.reject(entry, is_resumed, kind, part, &rejection))
            .map_err(|e| part_error(&self.folder, e))
    }

    /// Does something that opens files, and once more if no more can be open: those that are to be flushed are closed then.
    fn with_files<T>(
        &mut self,
        mut operation: impl FnMut(&mut RejectionWriter) -> io::Result<T>,
    ) -> io::Result<T> {
        match operation(self) {
            Err(e) if limits::is_out_of_files(&e) => {
                self.sync_files();
                operation(self)
            }
            done => done,
        }
    }

    fn reject(
        &mut self,
        entry: &SpoolEntry,
        is_resumed: bool,
        kind: PartKind,
        part: &RejectedPart,
        rejection: &Rejection,
    ) -> io::Result<RejectedUsage> {
        let key = rejection.key();
        if is_resumed && !self.parts.contains_key(&key) {
            self.recover(entry, rejection)?;
        }
        let parts = self.parts.entry(key).or_default();
        parts.is_used = true;
        if parts.single < MAX_PARTS || part.place <= parts.known_until {
            let is_new = parts.single == 0 && parts.known_until == 0;
            let is_full = parts.single >= MAX_PARTS;
            match self.reject_single(entry, is_full, part, rejection)? {
                Single::Written(usage) => {
                    let parts = self.parts.entry(key).or_default();
                    parts.single += 1;
                    parts.known_until = parts.known_until.max(part.place);
                    return Ok(usage);
                }
                Single::Known => {
                    if is_new {
                        // The reading before a crash got further.
                        self.recover(entry, rejection)?;
                    }
                    return Ok(RejectedUsage::default());
                }
                Single::Full => {}
            }
        }
        self.reject_into_rest(entry, kind, part, rejection)
    }

    /// Rejects a part as a file of its own. If the folder has no room for another, only a part that is there is known.
    fn reject_single(
        &mut self,
        entry: &SpoolEntry,
        is_full: bool,
        part: &RejectedPart,
        rejection: &Rejection,
    ) -> io::Result<Single> {
        let (stem, ending) = part_stem_and_ending(&entry.name);
        let content = [part.content.as_slice(), b"\n"].concat();
        let key = rejection.key();
        for name in rejected_names(stem, &format!(".{}", part.place), ending, key) {
            let written = match self.folder.state_of(&name, rejection, &content)? {
                NameState::Taken => continue,
                NameState::Own(length) if length == content.len() => {
                    // Nobody knows whether an agent before this one has flushed it.
                    self.folder.open_both(&name)?.into_iter().for_each(|file| self.note(key, file));
                    return Ok(Single::Known);
                }
                NameState::Free if is_full => return Ok(Single::Full),
                NameState::Free => 0,
                NameState::Own(length) => length,
            };
            match self.write_single(&name, &content[written..], rejection) {
                Ok(files) => files.into_iter().for_each(|file| self.note(key, file)),
                Err(e) if written == 0 => {
                    // What there is of it takes room, and would look like a part.
                    let _ = self.folder.remove(&name);
                    self.folder.remove_reason(&name);
                    return Err(e);
                }
                Err(e) => return Err(e),
            }
            return Ok(Single::Written(RejectedUsage::of_file(size_of(content.len() as u64))));
        }
        Ok(Single::Full)
    }

    /// Writes the reason of a part, then what its file lacks. Both are to be flushed.
    fn write_single(&self, name: &OsStr, content: &[u8], rejection: &Rejection) -> io::Result<[File; 2]> {
        let why = self.folder.write_reason(name, rejection)?;
        let mut file = self.folder.open_to_append(name)?;
        file.write_all(content)?;
        Ok([why, file])
    }

    fn reject_into_rest(
        &mut self,
        entry: &SpoolEntry,
        kind: PartKind,
        part: &RejectedPart,
        rejection: &Rejection,
    ) -> io::Result<RejectedUsage> {
        let key = rejection.key();
        let mut known = self.take_rest(key, kind);
        if known.is_none() && self.parts.get(&key).is_none_or(|parts| !parts.is_recovered) {
            self.recover(entry, rejection)?;
            known = self.take_rest(key, kind);
        }
        let content = [part.content.as_slice(), b"\n"].concat();
        let mut usage = RejectedUsage::default();
        if let Some(rest) = known.as_mut().filter(|rest| rest.reaches(part.place)) {
            self.needs_folder_sync = true;
            // If it is not there, the file was written anew, and this rest is complete.
            let is_known = rest.contains(&self.folder, part.place, &content).and_then(|is_known| {
                if !is_known {
                    rest.sync(&self.folder)?;
                }
                Ok(is_known)
            });
            match is_known {
                Ok(false) => known = None,
                is_known => {
                    self.parts.entry(key).or_default().rest.extend(known.map(|rest| (kind, rest)));
                    return is_known.map(|_| usage);
                }
            }
        }
        let mut rest = match known {
            Some(rest) => rest,
            None => {
                usage = RejectedUsage::of_file(0);
                let why = Rejection {
                    text: format!(
                        "more than {MAX_PARTS} parts of the file cannot be taken; the first of the rest: {}",
                        rejection.text
                    ),
                    ..rejection.clone()
                };
                let (rest, reason) = Rest::create(&self.folder, &entry.name, kind, why)?;
                self.note(key, reason);
                rest
            }
        };
        let written = rest.append(&self.folder, part.place, &content);
        if written.is_err() && rest.is_empty() {
            // What there is of it takes room, and would look like a rest.
            rest.remove(&self.folder);
        } else {
            self.needs_folder_sync = true;
            self.parts.entry(key).or_default().rest.insert(kind, rest);
        }
        usage.bytes += written?;
        Ok(usage)
    }

    /// Takes the rest of a file out of what is known, if it is still in the folder: somebody may have put it back into the
    /// spool.
    fn take_rest(&mut self, key: FileKey, kind: PartKind) -> Option<Rest> {
        self.parts.get_mut(&key)?.rest.remove(&kind).filter(|rest| rest.is_there(&self.folder))
    }

    /// Searches the folder for the file's parts. Of several rests of one kind the newest counts: it is of what the file
    /// holds now.
    fn recover(&mut self, entry: &SpoolEntry, of: &Rejection) -> io::Result<()> {
        let (mut single, mut known_until) = (0, 0);
        let mut rests: HashMap<PartKind, Rest> = HashMap::new();
        let (stem, _) = stem_and_ending(&entry.name);
        for file in self.folder.files_named(&stem[..stem.len().min(MAX_STEM)])? {
            let Some(why) = file.why.filter(|why| why.key() == of.key()) else { continue };
            let place = why.place;
            match Rest::found(file.name, why) {
                Some((kind, rest)) if rests.get(&kind).is_none_or(|other| !rest.is_older_than(other)) => {
                    rests.insert(kind, rest);
                }
                None if place > 0 => {
                    single += 1;
                    known_until = known_until.max(place);
                }
                _ => {}
            }
        }
        let parts = self.parts.entry(of.key()).or_default();
        (parts.single, parts.known_until) = (single, known_until);
        (parts.is_used, parts.is_recovered) = (true, true);
        for (kind, rest) in rests {
            parts.rest.entry(kind).or_insert(rest);
        }
        Ok(())
    }

    fn note(&mut self, key: FileKey, file: File) {
        self.unsynced.push((key, file));
        self.needs_folder_sync = true;
    }

    fn sync_if_many(&mut self) {
        if self.unsynced.len() >= self.max_unsynced {
            self.sync_files();
        }
    }

    /// Flushes and closes all files. Those of which it fails are told by the next sync.
    fn sync_files(&mut self) {
        for (key, file) in std::mem::take(&mut self.unsynced) {
            if let Err(e) = file.sync_all() {
                self.failed.push(FailedRejection { key, error: part_error(&self.folder, e) });
            }
        }
        let folder = &self.folder;
        for (key, parts) in &mut self.parts {
            for rest in parts.rest.values_mut() {
                if let Err(e) = rest.sync(folder) {
                    self.failed.push(FailedRejection { key: *key, error: part_error(folder, e) });
                }
            }
        }
    }

    /// Makes all rejections durable. Returns the files of the spool of which it could not: nothing that was read of them
    /// since may be stored. `None`: there were no rejections.
    ///
    /// # Errors
    /// The system refuses to flush the folder.
    pub fn sync(&mut self) -> Result<Option<Vec<FailedRejection>>, SpoolError> {
        if !self.needs_folder_sync {
            return Ok(None);
        }
        self.sync_files();
        self.folder.sync().map_err(|e| part_error(&self.folder, e))?;
        let failed = std::mem::take(&mut self.failed);
        self.needs_folder_sync = false;
        if self.parts.len() > MAX_COUNTED {
            self.parts.retain(|_, parts| parts.is_used);
        }
        self.parts.values_mut().for_each(|parts| parts.is_used = false);
        Ok(Some(failed))
    }
}

fn part_error(folder: &RejectedFolder, error: io::Error) -> SpoolError {
    SpoolError::new(folder.dir(), "reject a part of a file", error)
}

enum Single {
    Written(RejectedUsage),
    /// It was there before.
    Known,
    /// There are enough of them.
    Full,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reason::Code;
    use crate::spool::REJECTED;
    use std::collections::BTreeMap;
    use std::ops::RangeInclusive;

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
        assert!(writer.sync().unwrap().is_some() && writer.sync().unwrap().is_none());
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
        for batch in [1..=120, 121..=150] {
            reject(&mut writer, false, PartKind::Flawed, batch);
            writer.sync().unwrap();
        }
        // This much is written, but not flushed when the agent ends.
        reject(&mut writer, true, PartKind::Flawed, 151..=170);
        drop(writer);
        // The reading goes on at some place that was committed, and has the parts behind it once more.
        for from in [1, 60, 121, 151] {
            let mut writer = RejectionWriter::new(folder.clone());
            reject(&mut writer, from > 1, PartKind::Flawed, from..=160);
            writer.sync().unwrap();
            assert_eq!(folder.list().unwrap().len() as u64, MAX_PARTS + 1, "from {from}");
            assert_eq!(content(&folder, "bad.rest.jsonl"), lines(101..=160), "from {from}");
        }
    }

    /// Rejects bad lines of a file; each number is a line's content and its place.
    fn reject_lines(
        folder: &RejectedFolder,
        identity: FileIdentity,
        word: &str,
        places: RangeInclusive<u64>,
    ) {
        let mut writer = RejectionWriter::new(folder.clone());
        reject_lines_with(&mut writer, identity, word, places);
        assert!(writer.sync().unwrap().is_none_or(|failed| failed.is_empty()));
    }

    fn reject_lines_with(
        writer: &mut RejectionWriter,
        identity: FileIdentity,
        word: &str,
        places: RangeInclusive<u64>,
    ) {
        for place in places {
            let content = format!("{word} {place}").into_bytes();
            let part = RejectedPart { place, content, flaw: Flaw::at("", 0, Code::NotJson, "bad") };
            let entry = SpoolEntry { identity, ..entry("bad.jsonl") };
            writer.reject_part(&entry, &identity, false, PartKind::Flawed, &part, Timestamp(0)).unwrap();
        }
    }

    /// All lines in the folder, each with how often it is there.
    fn all_lines(folder: &RejectedFolder) -> BTreeMap<String, usize> {
        let mut all = BTreeMap::new();
        for file in folder.files().unwrap() {
            for line in content(folder, file.name.to_str().unwrap()).lines() {
                *all.entry(line.to_owned()).or_default() += 1;
            }
        }
        all
    }

    #[test]
    fn every_bad_line_is_there_once_whatever_its_file_has_in_common_with_another() {
        let first = FileIdentity { inode: 7, born: 1, modified: 9 };
        let unborn = FileIdentity { born: 0, ..first };
        // Each row: the second reading, and how many different lines there are then for each place.
        for (shown, before, then, word, want) in [
            ("the same again", first, first, "first", 1),
            ("grown since", first, FileIdentity { modified: 10, ..first }, "first", 1),
            ("written anew in place", first, FileIdentity { modified: 10, ..first }, "second", 2),
            ("written anew with its time set back", first, first, "second", 2),
            (
                "another file with the inode and the time",
                first,
                FileIdentity { born: 2, ..first },
                "second",
                2,
            ),
            ("the same, of no known birth", unborn, unborn, "first", 1),
            ("another, of no known birth", unborn, unborn, "second", 2),
        ] {
            for lines in [1, 100, 102] {
                for is_restarted in [false, true] {
                    let (_spool, folder) = folder();
                    let mut writer = RejectionWriter::new(folder.clone());
                    reject_lines_with(&mut writer, before, "first", 1..=lines);
                    if is_restarted {
                        writer.sync().unwrap();
                        writer = RejectionWriter::new(folder.clone());
                    }
                    reject_lines_with(&mut writer, then, word, 1..=lines);
                    // And once more, as after a commit that failed.
                    reject_lines_with(&mut writer, then, word, 1..=lines);
                    let all = all_lines(&folder);
                    let shown = format!("{shown}, {lines} lines, restarted: {is_restarted}");
                    assert_eq!(all.len() as u64, lines * want, "{shown}");
                    assert!(all.values().all(|times| *times == 1), "{shown}: {all:?}");
                }
            }
        }
    }

    #[test]
    fn what_a_crash_left_of_a_part_is_completed_and_nothing_else_is_touched() {
        let identity = FileIdentity { inode: 7, born: 1, modified: 9 };
        // Each row: the content of the file that is left, and the files after the part has been rejected again.
        for (left, want) in [
            (None, vec!["part 1\n"]),
            (Some(""), vec!["part 1\n"]),
            (Some("par"), vec!["part 1\n"]),
            (Some("part 1\n"), vec!["part 1\n"]),
            (Some("part 1 mended by hand\n"), vec!["part 1 mended by hand\n", "part 1\n"]),
            (Some("\0\0\0\0\0\0\0"), vec!["\0\0\0\0\0\0\0", "part 1\n"]),
        ] {
            let (_spool, folder) = folder();
            reject_lines(&folder, identity, "part", 1..=1);
            let path = folder.path_of("bad.1.jsonl".as_ref());
            match left {
                None => fs::remove_file(&path).unwrap(),
                Some(left) => fs::write(&path, left).unwrap(),
            }
            reject_lines(&folder, identity, "part", 1..=1);
            let names = folder.list().unwrap().into_iter().map(|file| file.name);
            let found: Vec<String> = names.map(|name| content(&folder, name.to_str().unwrap())).collect();
            assert_eq!(found, want, "{left:?}");
        }
    }

    #[test]
    fn a_rejection_that_fails_leaves_nothing_behind() {
        let spool_dir = tempfile::tempdir().unwrap();
        fs::write(spool_dir.path().join("bad.json"), "{").unwrap();
        let spool = Spool::open(spool_dir.path()).unwrap();
        let folder = spool.rejected_folder();
        let entry = spool.entry("bad.json".as_ref()).unwrap();
        let mut writer = RejectionWriter::new(folder.clone());
        // No reason can take a name that a folder has.
        fs::create_dir(folder.path_of("bad.json.why".as_ref())).unwrap();
        let flaw = Flaw::at("", 0, Code::NotJson, "bad");
        assert!(writer.reject_file(&spool, &entry, &flaw, Timestamp(0)).is_err());
        assert!(spool.entry("bad.json".as_ref()).is_some());
        assert!(!folder.path_of(".why.tmp".as_ref()).exists());
    }

    #[test]
    fn a_rest_that_cannot_be_flushed_is_told_and_flushed_later() {
        let identity = FileIdentity { inode: 7, born: 1, modified: 9 };
        let (_spool, folder) = folder();
        let mut writer = RejectionWriter::new(folder.clone());
        reject_lines_with(&mut writer, identity, "part", 1..=102);
        // No reason can be written where a folder stands.
        let in_the_way = folder.path_of(".why.tmp".as_ref());
        fs::create_dir(&in_the_way).unwrap();
        let failed = writer.sync().unwrap().unwrap();
        assert_eq!(failed.into_iter().map(|failed| failed.key).collect::<Vec<_>>(), [identity.key()]);
        fs::remove_dir(&in_the_way).unwrap();
        // What was read since is not stored, and read again.
        reject_lines_with(&mut writer, identity, "part", 1..=102);
        assert!(writer.sync().unwrap().unwrap().is_empty());
        assert_eq!(folder.why("bad.rest.jsonl".as_ref()).unwrap().rest.unwrap().parts, 2);
        assert!(all_lines(&folder).into_values().eq([1; 102]));
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

//! Which file is stored in the outbox how far, and which files are on their way out of the spool. Pure bookkeeping.

use crate::outbox::FileProgress;
use crate::spool::{FileIdentity, FileKey, Removal, SpoolEntry, SpoolError};
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};

/// The removal of a file, and its result.
type RemovalOutcome = (SpoolEntry, Result<Removal, SpoolError>);

/// The progress of every file that is still in the spool, kept beside it, or in `rejected/`.
#[derive(Debug)]
pub struct FileLedger {
    ingested: HashMap<FileKey, FileProgress>,
    /// Files all of which is in a batch or stored, until the remover has answered: by name, and in which version.
    removing: HashMap<OsString, (FileIdentity, u64)>,
    /// Files that have left the spool, whose progress the outbox may forget.
    gone: Vec<FileIdentity>,
    /// Removals that did not end with a removed file; they are left for the next scan.
    unremoved: Vec<RemovalOutcome>,
}

impl FileLedger {
    pub fn new(progress: &[FileProgress]) -> FileLedger {
        FileLedger {
            ingested: progress.iter().map(|p| (p.identity.key(), p.clone())).collect(),
            removing: HashMap::new(),
            gone: Vec::new(),
            unremoved: Vec::new(),
        }
    }

    /// The progress of the file, if any of it is ingested.
    pub fn progress(&self, entry: &SpoolEntry) -> Option<&FileProgress> {
        self.ingested.get(&entry.identity.key())
    }

    /// Notes that the file is stored as far as `progress` says.
    pub fn stored(&mut self, entry: &SpoolEntry, progress: FileProgress) {
        self.ingested.insert(entry.identity.key(), progress);
    }

    /// Has the file read from its start the next time, because less is in it than was ingested of it. If it was only
    /// cut, the events' ids tell what is left of it from what is new.
    pub fn restart(&mut self, entry: &SpoolEntry) {
        if let Some(progress) = self.ingested.get_mut(&entry.identity.key()) {
            (progress.position, progress.place, progress.sum, progress.finished) = (0, 0, None, false);
        }
    }

    /// Notes that all of the file is in a batch: there is nothing more to read in it, and when that is stored it goes.
    pub fn begin_removal(&mut self, entry: &SpoolEntry) {
        self.removing.insert(entry.name.clone(), entry.version());
    }

    /// Notes that the file stays, because its batch is not stored.
    pub fn cancel_removal(&mut self, name: &OsStr) {
        self.removing.remove(name);
    }

    /// Whether a file of that name is on its way out.
    pub fn is_removing(&self, name: &OsStr) -> bool {
        self.removing.contains_key(name)
    }

    /// Whether this very version of the file is on its way out, so that nothing of it is left to read.
    pub fn is_removing_version(&self, entry: &SpoolEntry) -> bool {
        self.removing.get(&entry.name) == Some(&entry.version())
    }

    /// The number and the bytes of those of the files that are on their way out.
    pub fn removing_among<'a>(&self, entries: impl IntoIterator<Item = &'a SpoolEntry>) -> (u64, u64) {
        if self.removing.is_empty() {
            return (0, 0);
        }
        let removing = entries.into_iter().filter(|entry| self.is_removing(&entry.name));
        removing.fold((0, 0), |(files, bytes), entry| (files + 1, bytes + entry.size))
    }

    /// Notes a result of the remover. A file that is where it was is in no listing yet, and no file of
    /// its name may overtake it, so it is left for [`FileLedger::settle_removals`].
    pub fn note_removal(&mut self, entry: SpoolEntry, result: Result<Removal, SpoolError>) {
        match result {
            Ok(Removal::Removed) => {
                self.removing.remove(&entry.name);
                self.left_spool(&entry);
            }
            Ok(Removal::Kept(_)) => drop(self.removing.remove(&entry.name)),
            result => self.unremoved.push((entry, result)),
        }
    }

    /// Lets go of the files that are still in the spool. Returns their names, and the errors of those that the system does
    /// not let go; they are tried again.
    pub fn settle_removals(&mut self) -> Vec<(OsString, Option<SpoolError>)> {
        let mut stay = Vec::new();
        for (entry, result) in std::mem::take(&mut self.unremoved) {
            self.removing.remove(&entry.name);
            if matches!(result, Ok(Removal::Replaced)) {
                self.left_spool(&entry);
            }
            // A file that has changed is read again: the new part is ingested, and the rest is known.
            stay.push((entry.name, result.err()));
        }
        stay
    }

    /// Forgets files that left the spool while no agent ran. `present` is read only if any file is known.
    pub fn forget_missing(&mut self, present: impl Iterator<Item = FileKey>) {
        if self.ingested.is_empty() {
            return;
        }
        let present: HashSet<FileKey> = present.filter(|key| self.ingested.contains_key(key)).collect();
        let missing = self.ingested.extract_if(|key, _| !present.contains(key));
        self.gone.extend(missing.map(|(_, progress)| progress.identity));
    }

    /// The files that have left the spool since the last call.
    pub fn take_gone(&mut self) -> Vec<FileIdentity> {
        std::mem::take(&mut self.gone)
    }

    /// Notes that the file is gone, from the spool and from where it was kept.
    pub fn left_spool(&mut self, entry: &SpoolEntry) {
        if let Some(progress) = self.ingested.remove(&entry.identity.key()) {
            self.gone.push(progress.identity);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn file(name: &str, inode: u64) -> SpoolEntry {
        let identity = FileIdentity { inode, born: 1, modified: 1 };
        SpoolEntry { name: name.into(), identity, size: 10, owner: 0, changed: 1 }
    }

    fn ledger_of(entries: &[&SpoolEntry]) -> FileLedger {
        let progress = |entry: &SpoolEntry| FileProgress {
            finished: true,
            ..FileProgress::none(entry.name.as_encoded_bytes(), entry.identity, (entry.size, 1))
        };
        let mut ledger = FileLedger::new(&[]);
        for entry in entries {
            ledger.stored(entry, progress(entry));
            ledger.begin_removal(entry);
        }
        ledger
    }

    #[test]
    fn a_removal_decides_what_is_known_of_the_file() {
        let failed =
            || Err(SpoolError::new(Path::new("a"), "remove a file", std::io::ErrorKind::Other.into()));
        // Each row: the result; whether the file's progress is then forgotten, when noted and when settled; whether it stays
        // in the spool, and whether that is an error.
        for (result, is_gone_at_once, is_gone_later, stays) in [
            (Ok(Removal::Removed), true, true, None),
            (Ok(Removal::Replaced), false, true, Some(false)),
            (Ok(Removal::Changed), false, false, Some(false)),
            (failed(), false, false, Some(true)),
        ] {
            let entry = file("a", 1);
            let mut ledger = ledger_of(&[&entry]);
            let shown = format!("{result:?}");
            ledger.note_removal(entry.clone(), result);
            assert_eq!(ledger.is_removing_version(&entry), !is_gone_at_once, "{shown}");
            assert_eq!(ledger.take_gone().len(), usize::from(is_gone_at_once), "{shown}");
            let settled: Vec<_> = ledger.settle_removals().iter().map(|(_, error)| error.is_some()).collect();
            assert_eq!(settled, Vec::from_iter(stays), "{shown}");
            assert!(!ledger.is_removing(&entry.name), "{shown}");
            assert_eq!(ledger.progress(&entry).is_none(), is_gone_later, "{shown}");
        }
    }

    #[test]
    fn a_file_written_to_since_it_was_stored_is_not_the_version_on_its_way_out() {
        let entry = file("a", 1);
        let ledger = ledger_of(&[&entry]);
        let grown = SpoolEntry { size: 11, ..entry.clone() };
        assert!(ledger.is_removing(&grown.name) && !ledger.is_removing_version(&grown));
        assert_eq!(ledger.removing_among(&[entry, file("b", 2)]), (1, 10));
    }

    #[test]
    fn files_missing_at_the_start_are_forgotten_and_shortened_ones_read_again() {
        let (kept, missing) = (file("kept", 1), file("missing", 2));
        let mut ledger = ledger_of(&[&kept, &missing]);
        ledger.forget_missing([kept.identity.key()].into_iter());
        assert_eq!(ledger.take_gone(), [missing.identity]);
        ledger.restart(&kept);
        assert!(ledger.progress(&kept).is_some_and(|progress| !progress.finished && progress.position == 0));
        assert!(ledger.progress(&missing).is_none());
    }
}

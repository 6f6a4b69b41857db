//! Which file is stored in the outbox how far, and which files are on their way out of the spool. Pure bookkeeping.
//!
//! A file is known by its key, not by its name: a producer may rename it at any time, and its events must keep their ids.
//! So the progress of a file is forgotten only when the file itself is gone: the agent has unlinked it, or a look at all
//! files of the folder has not found its key. That its name is gone says nothing.

use crate::clock::Mono;
use crate::outbox::FileProgress;
use crate::spool::{FileIdentity, FileKey, Removal, SpoolEntry, SpoolError};
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::time::Duration;

/// How long a file has been missing before all files are looked at for its key. A look may miss a file that is renamed
/// meanwhile, and in a folder of millions it takes seconds.
const MISSING_FOR: Duration = Duration::from_secs(60);

/// The removal of a file, and its result.
type RemovalOutcome = (SpoolEntry, Result<Removal, SpoolError>);

/// The progress of every file that is still in the spool, kept beside it, or in `rejected/`.
#[derive(Debug)]
pub struct FileLedger {
    ingested: HashMap<FileKey, FileProgress>,
    /// Files all of which is in a batch or stored, until the remover has answered: by name, and in which version.
    removing: HashMap<OsString, (FileIdentity, u64)>,
    /// The keys of those files: each may have another name by now.
    removing_keys: HashSet<FileKey>,
    /// Files that did not have their names any more when they were to be removed, and when to look for them.
    missing: HashMap<FileKey, Mono>,
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
            removing_keys: HashSet::new(),
            missing: HashMap::new(),
            gone: Vec::new(),
            unremoved: Vec::new(),
        }
    }

    /// The progress of the file, if any of it is ingested. Where the key alone does not say that it is the same file, it is
    /// one that has kept its name or its content: what was read is compared before anything of it is skipped.
    pub fn progress(&self, entry: &SpoolEntry) -> Option<&FileProgress> {
        let (name, read) = (entry.name.as_encoded_bytes(), (entry.size, entry.identity.modified));
        self.ingested.get(&entry.identity.key()).filter(|known| {
            entry.identity.has_certain_key()
                || known.name == name
                || (known.read.size, known.read.modified) == read
        })
    }

    /// Notes that the file is stored as far as `progress` says.
    pub fn stored(&mut self, entry: &SpoolEntry, progress: FileProgress) {
        let identity = progress.identity;
        let before = self.ingested.insert(entry.identity.key(), progress);
        // The outbox keeps a file by its whole identity as first seen.
        self.gone.extend(before.map(|before| before.identity).filter(|before| *before != identity));
    }

    /// Has the file read from its start the next time, because less is in it than was ingested of it. If it was only
    /// cut, the events' ids tell what is left of it from what is new; where its key may be that of another file, it is
    /// taken for that, and no event of it for one of the file before.
    pub fn restart(&mut self, entry: &SpoolEntry) {
        if !entry.identity.has_certain_key() {
            self.left_spool(entry);
        } else if let Some(progress) = self.ingested.get_mut(&entry.identity.key()) {
            (progress.position, progress.place, progress.sum, progress.finished) = (0, 0, None, false);
        }
    }

    /// Notes that all of the file is in a batch: there is nothing more to read in it, and when that is stored it goes.
    pub fn begin_removal(&mut self, entry: &SpoolEntry) {
        self.removing.insert(entry.name.clone(), entry.version());
        self.removing_keys.insert(entry.identity.key());
    }

    /// Notes that the file stays, because its batch is not stored.
    pub fn cancel_removal(&mut self, name: &OsStr) {
        if let Some((identity, _)) = self.removing.remove(name) {
            self.removing_keys.remove(&identity.key());
        }
    }

    /// Whether a file of that name is on its way out, or this file under any name.
    pub fn is_removing(&self, entry: &SpoolEntry) -> bool {
        self.removing.contains_key(&entry.name) || self.removing_keys.contains(&entry.identity.key())
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
        let removing = entries.into_iter().filter(|entry| self.is_removing(entry));
        removing.fold((0, 0), |(files, bytes), entry| (files + 1, bytes + entry.size))
    }

    /// Notes a result of the remover. A file that is where it was is in no listing yet, and no file of
    /// its name may overtake it, so it is left for [`FileLedger::settle_removals`].
    pub fn note_removal(&mut self, entry: SpoolEntry, result: Result<Removal, SpoolError>) {
        match result {
            Ok(Removal::Removed) => {
                self.cancel_removal(&entry.name);
                self.left_spool(&entry);
            }
            Ok(Removal::Kept(_)) => self.cancel_removal(&entry.name),
            result => self.unremoved.push((entry, result)),
        }
    }

    /// Lets go of the files that may still be in the spool. Returns their names, and the errors of those that the system does
    /// not let go; they are tried again.
    pub fn settle_removals(&mut self, now: Mono) -> Vec<(OsString, Option<SpoolError>)> {
        let mut stay = Vec::new();
        for (entry, result) in std::mem::take(&mut self.unremoved) {
            self.cancel_removal(&entry.name);
            if matches!(result, Ok(Removal::Missing)) {
                self.missing.insert(entry.identity.key(), now + MISSING_FOR);
            }
            // A file that has changed is read again: the new part is ingested, and the rest is known.
            stay.push((entry.name, result.err()));
        }
        stay
    }

    /// Takes every file for missing that is known: each may have left the spool while no agent ran.
    pub fn suspect_all(&mut self) {
        self.missing = self.ingested.keys().map(|key| (*key, Mono::ZERO)).collect();
    }

    /// Forgets the files that have been missing for long, if `for_each_key`, which passes on the keys of all files there
    /// are, does not find them. It is not called if there are none.
    ///
    /// # Errors
    /// Those of `for_each_key`; then nothing is forgotten.
    pub fn forget_missing<E>(
        &mut self,
        now: Mono,
        for_each_key: impl FnOnce(&mut dyn FnMut(FileKey)) -> Result<(), E>,
    ) -> Result<(), E> {
        let due = self.missing.extract_if(|_, look_at| *look_at <= now);
        let mut absent: HashSet<FileKey> = due.map(|(key, _)| key).collect();
        if absent.is_empty() {
            return Ok(());
        }
        let suspects: Vec<FileKey> = absent.iter().copied().collect();
        let looked = for_each_key(&mut |key| {
            absent.remove(&key);
        });
        if looked.is_err() {
            self.missing.extend(suspects.into_iter().map(|key| (key, now + MISSING_FOR)));
            return looked;
        }
        self.gone.extend(absent.iter().filter_map(|key| Some(self.ingested.remove(key)?.identity)));
        Ok(())
    }

    /// The files that have left the spool since the last call.
    pub fn take_gone(&mut self) -> Vec<FileIdentity> {
        std::mem::take(&mut self.gone)
    }

    /// Notes that the file is gone, from the spool and from where it was kept.
    pub fn left_spool(&mut self, entry: &SpoolEntry) {
        self.missing.remove(&entry.identity.key());
        if let Some(progress) = self.ingested.remove(&entry.identity.key()) {
            self.gone.push(progress.identity);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::ContentStamp;
    use std::convert::Infallible;
    use std::path::Path;

    const BORN: i64 = 1;

    fn file(name: &str, inode: u64, born: i64) -> SpoolEntry {
        let identity = FileIdentity { inode, born, modified: 1 };
        SpoolEntry { name: name.into(), identity, size: 10, owner: 0, changed: 1 }
    }

    fn ledger_of(entries: &[&SpoolEntry]) -> FileLedger {
        let progress = |entry: &SpoolEntry| FileProgress {
            finished: true,
            ..FileProgress::none(entry.name.as_encoded_bytes(), entry.identity, entry.stamp())
        };
        let mut ledger = FileLedger::new(&[]);
        for entry in entries {
            ledger.stored(entry, progress(entry));
            ledger.begin_removal(entry);
        }
        ledger
    }

    /// Forgets what is missing; these files are there.
    fn forget_missing(ledger: &mut FileLedger, now: Mono, present: &[&SpoolEntry]) -> Vec<FileIdentity> {
        let keys = |each: &mut dyn FnMut(FileKey)| {
            present.iter().for_each(|entry| each(entry.identity.key()));
            Ok::<_, Infallible>(())
        };
        ledger.forget_missing(now, keys).unwrap();
        ledger.take_gone()
    }

    #[test]
    fn a_removal_decides_what_is_known_of_the_file() {
        let failed =
            || Err(SpoolError::new(Path::new("a"), "remove a file", std::io::ErrorKind::Other.into()));
        // Each row: the result; whether the file's progress is then forgotten, when noted and when no look has found the file
        // for long; whether the file may stay in the spool, and whether that is an error.
        for (result, is_gone_at_once, is_gone_later, stays) in [
            (Ok(Removal::Removed), true, true, None),
            (Ok(Removal::Missing), false, true, Some(false)),
            (Ok(Removal::Changed), false, false, Some(false)),
            (failed(), false, false, Some(true)),
        ] {
            let entry = file("a", 1, BORN);
            let mut ledger = ledger_of(&[&entry]);
            let shown = format!("{result:?}");
            ledger.note_removal(entry.clone(), result);
            assert_eq!(ledger.is_removing_version(&entry), !is_gone_at_once, "{shown}");
            assert_eq!(ledger.take_gone().len(), usize::from(is_gone_at_once), "{shown}");
            let at = Duration::from_secs(5);
            let settled: Vec<_> =
                ledger.settle_removals(at).iter().map(|(_, error)| error.is_some()).collect();
            assert_eq!(settled, Vec::from_iter(stays), "{shown}");
            assert!(!ledger.is_removing(&entry), "{shown}");
            assert_eq!(ledger.progress(&entry).is_none(), is_gone_at_once, "{shown}");
            let soon = forget_missing(&mut ledger, at + MISSING_FOR / 2, &[]);
            assert_eq!(soon, [], "{shown}");
            forget_missing(&mut ledger, at + MISSING_FOR, &[]);
            assert_eq!(ledger.progress(&entry).is_none(), is_gone_later, "{shown}");
        }
    }

    #[test]
    fn a_missing_file_that_is_found_under_another_name_stays_known() {
        let entry = file("a", 1, BORN);
        let renamed = SpoolEntry { name: "b".into(), changed: 2, ..entry.clone() };
        let mut ledger = ledger_of(&[&entry]);
        assert!(ledger.is_removing(&renamed) && !ledger.is_removing_version(&renamed));
        ledger.note_removal(entry.clone(), Ok(Removal::Missing));
        ledger.settle_removals(Mono::ZERO);
        assert!(!ledger.is_removing(&renamed));
        let failing = |_: &mut dyn FnMut(FileKey)| Err("not all files could be looked at");
        assert!(ledger.forget_missing(MISSING_FOR, failing).is_err());
        assert_eq!(forget_missing(&mut ledger, MISSING_FOR * 2, &[&renamed]), []);
        assert!(ledger.progress(&renamed).is_some_and(|progress| progress.finished && progress.name == b"a"));
        assert_eq!(forget_missing(&mut ledger, MISSING_FOR * 4, &[]), [], "it has been found");
    }

    #[test]
    fn a_file_written_to_since_it_was_stored_is_not_the_version_on_its_way_out() {
        let entry = file("a", 1, BORN);
        let ledger = ledger_of(&[&entry]);
        let grown = SpoolEntry { size: 11, ..entry.clone() };
        assert!(ledger.is_removing(&grown) && !ledger.is_removing_version(&grown));
        assert_eq!(ledger.removing_among(&[entry, file("b", 2, BORN)]), (1, 10));
    }

    #[test]
    fn files_missing_at_the_start_are_forgotten_and_shortened_ones_read_again() {
        let (kept, missing) = (file("kept", 1, BORN), file("missing", 2, BORN));
        let mut ledger = ledger_of(&[&kept, &missing]);
        ledger.suspect_all();
        assert_eq!(forget_missing(&mut ledger, Mono::ZERO, &[&kept]), [missing.identity]);
        ledger.restart(&kept);
        assert!(ledger.progress(&kept).is_some_and(|progress| !progress.finished && progress.position == 0));
        assert!(ledger.progress(&missing).is_none());
    }

    #[test]
    fn without_a_time_of_birth_a_file_is_known_by_its_inode_and_its_name_or_content() {
        // Each row: the time of birth; name, size and time of modification of the file that now has the inode; whether it is
        // taken for the file that was stored as "a", with 10 bytes, at the time 1.
        for (born, name, size, modified, is_known) in [
            (BORN, "a", 10, 1, true),
            (BORN, "b", 11, 2, true),
            (0, "a", 10, 1, true),
            (0, "a", 11, 2, true),
            (0, "b", 10, 1, true),
            (0, "b", 11, 1, false),
            (0, "b", 10, 2, false),
        ] {
            let mut ledger = ledger_of(&[&file("a", 1, born)]);
            let identity = FileIdentity { inode: 1, born, modified };
            let now = SpoolEntry { size, identity, ..file(name, 1, born) };
            let shown = format!("{now:?}");
            assert_eq!(ledger.progress(&now).is_some(), is_known, "{shown}");
            if !is_known {
                let stamp = ContentStamp { size, modified, changed: 1 };
                ledger.stored(&now, FileProgress::none(name.as_bytes(), identity, stamp));
                let gone = ledger.take_gone();
                let replaced = FileIdentity { modified: 1, ..identity };
                assert_eq!(gone, Vec::from_iter((modified != 1).then_some(replaced)), "{shown}");
            }
            ledger.restart(&now);
            assert_eq!(ledger.progress(&now).is_some(), born != 0, "{shown}");
        }
    }
}

//! How files leave the spool once they are stored: handed to the remover, kept for a while where that is needed, and
//! forgotten when they are gone.

use super::file_ledger::FileLedger;
use super::kept_files::KeptFiles;
use super::remover::{RemovalTask, Remover};
use super::scan_report::ScanReport;
use crate::clock::Mono;
use crate::spool::{Removal, Spool, SpoolEntry};
use std::ffi::OsString;
use std::time::Duration;

/// The files on their way out.
pub struct Removals {
    kept: KeptFiles,
    remover: Remover,
}

impl Removals {
    /// # Errors
    /// The system has no more threads.
    pub fn start(spool: &Spool) -> std::io::Result<Removals> {
        Ok(Removals { kept: KeptFiles::default(), remover: Remover::start(spool)? })
    }

    /// Has files removed, all of which are stored.
    pub fn remove(&self, entries: Vec<SpoolEntry>) {
        self.remover.remove(entries.into_iter().map(RemovalTask::Remove));
    }

    /// Has those kept files looked at whose time has come.
    pub fn check_kept(&mut self, now: Mono) {
        let due = self.kept.due(now);
        self.remover.remove(due);
    }

    /// The time until the next look at a kept file.
    pub fn time_to_check(&self, now: Mono) -> Option<Duration> {
        self.kept.next_check().map(|at| at.saturating_sub(now))
    }

    /// Notes what has been done since the last call.
    pub fn note(&mut self, ledger: &mut FileLedger, report: &mut ScanReport, now: Mono) {
        for (task, result) in self.remover.results() {
            match (task, result) {
                (RemovalTask::Remove(entry), result) => {
                    if let Ok(Removal::Kept(file)) = &result {
                        self.kept.add(file.clone(), None, now);
                    }
                    ledger.note_removal(entry, result);
                }
                (RemovalTask::Check { file, .. }, Ok(Removal::Removed | Removal::Missing)) => {
                    ledger.left_spool(file.entry());
                }
                // It is back in the spool.
                (RemovalTask::Check { .. }, Ok(Removal::Changed)) => {}
                (RemovalTask::Check { file, since, .. }, Ok(Removal::Kept(_))) => {
                    self.kept.add(file, Some(since), now);
                }
                (RemovalTask::Check { file, since, .. }, Err(error)) => {
                    report.report(&file.entry().name, format_args!("{error}; it is tried again"), now);
                    self.kept.add(file, Some(since), now);
                }
            }
        }
    }

    /// Notes what has been done, and lets go of the files that stay in the spool. Returns their names where they are to be
    /// read again at once.
    pub fn settle(&mut self, ledger: &mut FileLedger, report: &mut ScanReport, now: Mono) -> Vec<OsString> {
        self.note(ledger, report, now);
        let mut back = Vec::new();
        for (name, error) in ledger.settle_removals(now) {
            match error {
                None => back.push(name),
                Some(error) => {
                    let what = format_args!("{error}; its events are stored, the removal is tried again");
                    report.report(&name, what, now);
                }
            }
        }
        back
    }

    /// Waits until all files are removed that were to be.
    pub fn finish(&mut self) {
        self.remover.finish();
    }
}

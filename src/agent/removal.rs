//! How files leave the spool once they are taken, and are forgotten.

use super::intake::Intake;
use super::remover::Done;
use super::scan_report::MAX_REPORTED;
use crate::spool::{Entry, FileIdentity, FileKey, Removal};
use std::collections::HashSet;

impl Intake {
    /// Removes files that are taken whole.
    pub(super) fn remove(&mut self, entries: Vec<Entry>) {
        for entry in &entries {
            self.forget_waiting(entry);
            self.removing.insert(entry.name.clone(), entry.version());
        }
        self.remover.remove(entries);
    }

    /// What has come of removals, before the folder is looked at.
    pub(super) fn collect_removed(&mut self) {
        let done: Vec<Done> = self.not_removed.drain(..).chain(self.remover.done()).collect();
        for (entry, removal) in done {
            self.removing.remove(&entry.name);
            match removal {
                Ok(Removal::Removed | Removal::Replaced) => self.is_gone(&entry),
                // It is read again: what is new in it is taken, the rest is known.
                Ok(Removal::Changed) => {}
                Err(e) => {
                    if self.reported.len() < MAX_REPORTED && self.reported.insert(entry.name) {
                        tracing::warn!("{e}; its events are stored, it is tried again");
                    }
                }
            }
        }
        self.forget_gone();
    }

    /// The same amid a round, for what is simply gone. A file that went back where it was is in no listing yet, and
    /// nothing of its name may overtake it.
    pub(super) fn forget_removed(&mut self) {
        let done: Vec<Done> = self.remover.done().collect();
        for done in done {
            if matches!(done.1, Ok(Removal::Removed)) {
                self.removing.remove(&done.0.name);
                self.is_gone(&done.0);
            } else {
                self.not_removed.push(done);
            }
        }
        self.forget_gone();
    }

    fn is_gone(&mut self, entry: &Entry) {
        if let Some(progress) = self.ingested.remove(&entry.identity.key()) {
            self.gone.push(progress.identity);
        }
    }

    fn forget_gone(&mut self) {
        if !self.gone.is_empty() {
            self.parts.writer.forget(std::mem::take(&mut self.gone));
        }
    }

    /// Forgets files that vanished between their last commit and this start.
    pub(super) fn forget_vanished_files(&mut self) {
        if self.ingested.is_empty() {
            return;
        }
        let there: HashSet<FileKey> =
            self.parts.spool.keys().filter(|key| self.ingested.contains_key(key)).collect();
        let gone: Vec<FileIdentity> = self
            .ingested
            .extract_if(|key, _| !there.contains(key))
            .map(|(_, progress)| progress.identity)
            .collect();
        if !gone.is_empty() {
            self.parts.writer.forget(gone);
        }
    }
}

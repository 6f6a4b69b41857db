//! What cannot be taken: set aside, or left in the folder for as long as it may still be fixed.

use super::append_batch::{REJECTED_PIECE_BYTES, SourceFile};
use super::intake::{Intake, Stop};
use crate::event::Flaw;
use crate::reason::Code;
use crate::spool::{Entry, shown};
use nix::unistd::{Gid, Group, Uid, User};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

impl Intake {
    /// A whole text that is wrong: set aside, unless it only ends too early and may still grow.
    pub(super) fn flawed(&mut self, entry: &Entry, flaw: &Flaw) -> Result<Option<Duration>, Stop> {
        if flaw.incomplete
            && let Some(wait) = self.wait_for_more(entry)
        {
            return Ok(Some(wait));
        }
        self.reject_file(entry, flaw)?;
        Ok(None)
    }

    /// How long a file that ends too early may still stay as it is; `None`: its time is up.
    pub(super) fn wait_for_more(&mut self, entry: &Entry) -> Option<Duration> {
        let now = self.parts.clock.mono();
        let since = match self.incomplete.get(&entry.name) {
            Some((before, since)) if before == entry => *since,
            _ => now,
        };
        let rest = self.config.spool.incomplete_after.saturating_sub(now.saturating_sub(since));
        if rest.is_zero() {
            self.incomplete.remove(&entry.name);
            return None;
        }
        self.incomplete.insert(entry.name.clone(), (entry.clone(), since));
        Some(rest)
    }

    /// The text could not be read to its end.
    pub(super) fn unread(
        &mut self,
        entry: &Entry,
        gz: bool,
        error: &io::Error,
    ) -> Result<Option<Duration>, Stop> {
        let flaw = |what: &str, incomplete| Flaw { incomplete, ..Flaw::at("", 0, Code::NotJson, what) };
        match error.kind() {
            ErrorKind::UnexpectedEof if gz && entry.size > 0 => {
                let flaw = flaw("the packed file ends too early", true);
                if let Some(wait) = self.wait_for_more(entry) {
                    return Ok(Some(wait));
                }
                self.reject_rest(entry, &flaw)
            }
            ErrorKind::UnexpectedEof if gz => self.flawed(entry, &flaw("the packed file is empty", true)),
            ErrorKind::InvalidInput | ErrorKind::InvalidData if gz => {
                self.reject_rest(entry, &flaw("the packed file is damaged, or is not gzip", false))
            }
            // Shorter than what was taken of it.
            ErrorKind::UnexpectedEof => Ok(self.begin_anew(entry)),
            _ => {
                self.report(&entry.name, format_args!("cannot be read: {error}"));
                Ok(None)
            }
        }
    }

    /// What was taken of the file is not in it any more. It is read from its start: what is left of it, if it was
    /// only cut, is told from what is new by the events' ids.
    pub(super) fn begin_anew(&mut self, entry: &Entry) -> Option<Duration> {
        if let Some(progress) = self.ingested.get_mut(&entry.identity.key()) {
            (progress.position, progress.place, progress.sum, progress.finished) = (0, 0, None, false);
        }
        Some(Duration::ZERO)
    }

    /// Sets a file aside of which something may have been taken: that is made durable first.
    pub(super) fn reject_rest(&mut self, entry: &Entry, flaw: &Flaw) -> Result<Option<Duration>, Stop> {
        self.flush()?;
        self.finish_commit()?;
        self.reject_file(entry, flaw)?;
        Ok(None)
    }

    pub(super) fn reject_file(&mut self, entry: &Entry, flaw: &Flaw) -> Result<(), Stop> {
        let now = self.parts.clock.now();
        let aside = match self.rejected_folder.reject_file(&self.parts.spool, entry, flaw, now) {
            // It has no event for those behind it to overtake, and they make room when they are taken.
            Err(e) if e.is_full() => {
                self.report(&entry.name, format_args!("{e}; it is left until there is room"));
                return Ok(());
            }
            done => done?,
        };
        // How far it was taken stays known, should it come back.
        if aside.is_some() {
            self.reject_pending_sync = true;
            self.forget_waiting(entry);
            tracing::warn!("{} set aside ({}): {flaw}", shown(&entry.name), flaw.code);
        }
        Ok(())
    }

    pub(super) fn reject_piece(
        &mut self,
        source: &SourceFile,
        place: u64,
        content: &[u8],
        flaw: &Flaw,
    ) -> Result<(), Stop> {
        let (first_seen, now) = (&source.progress.identity, self.parts.clock.now());
        self.rejected_folder.reject_piece(&source.entry, first_seen, place, content, flaw, now)?;
        self.batch.account_bytes(content.len().max(REJECTED_PIECE_BYTES));
        if !self.reject_pending_sync {
            tracing::warn!("parts of {} set aside ({}): {flaw}", shown(&source.entry.name), flaw.code);
        }
        self.reject_pending_sync = true;
        Ok(())
    }

    pub(super) fn hint_for_unreadable(&self, entry: &Entry, owner: u32) -> String {
        let path = self.parts.spool.dir().join(&entry.name);
        let owner = User::from_uid(Uid::from_raw(owner)).ok().flatten().map_or(owner.to_string(), |u| u.name);
        let group = |path: &std::path::Path| std::fs::symlink_metadata(path).map(|m| m.gid()).ok();
        let (its, spools) = (group(&path), group(self.parts.spool.dir()));
        let quoted = format!("'{}'", shown(&path).replace('\'', r"'\''"));
        let mut remedy = format!("chmod g+r {quoted}");
        if its != spools
            && let Some(gid) = spools
        {
            let name = Group::from_gid(Gid::from_raw(gid)).ok().flatten().map_or(gid.to_string(), |g| g.name);
            remedy = format!("chgrp {name} {quoted} && {remedy}");
        }
        format!("cannot be read, it belongs to {owner}; it is left until it can, by: {remedy}")
    }
}

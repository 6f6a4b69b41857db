//! The files that have been ingested and are kept, because the system does not tell whether they are still open. Pure.

use super::remover::RemovalTask;
use crate::clock::Mono;
use crate::spool::{KeptFile, QUIET_BEFORE_UNLINK};
use std::collections::VecDeque;
use std::time::Duration;

/// Bounds the memory. If there are more, those that have been still the longest go first.
const MAX_KEPT: usize = 100_000;
/// Files looked at in one go, so that the intake's other work goes on.
const MAX_CHECKED: usize = 500;
/// The least time between two looks at a file: what is written into it is ingested about as soon.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// Kept files in the order in which they are looked at.
#[derive(Debug, Default)]
pub struct KeptFiles {
    files: VecDeque<Kept>,
}

#[derive(Debug)]
struct Kept {
    file: KeptFile,
    since: Mono,
    check_at: Mono,
}

impl KeptFiles {
    /// Adds a file that has been still since `since`; `None`: from now on.
    pub fn add(&mut self, file: KeptFile, since: Option<Mono>, now: Mono) {
        self.files.push_back(Kept { file, since: since.unwrap_or(now), check_at: now + CHECK_INTERVAL });
    }

    /// Takes out the files that are to be looked at now.
    pub fn due(&mut self, now: Mono) -> Vec<RemovalTask> {
        let mut due = Vec::new();
        while due.len() < MAX_CHECKED {
            let is_crowded = self.files.len() > MAX_KEPT;
            let Some(kept) = self.files.pop_front_if(|kept| is_crowded || kept.check_at <= now) else {
                break;
            };
            let is_quiet = is_crowded || now.saturating_sub(kept.since) >= QUIET_BEFORE_UNLINK;
            due.push(RemovalTask::Check { file: kept.file, since: kept.since, is_quiet });
        }
        due
    }

    /// The time of the next look.
    pub fn next_check(&self) -> Option<Mono> {
        self.files.front().map(|kept| kept.check_at)
    }
}

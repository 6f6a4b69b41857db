//! One scan of the spool folder.

use super::names::is_finished_name;
use super::{REJECTED, SpoolEntry, SpoolError, irregularity};
use crate::clock::Timestamp;
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// The most files of one listing, the oldest of the folder. Bounds the memory for a folder of millions (about 100 bytes a
/// file) and the time of one round.
pub const MAX_LISTED: usize = 200_000;

/// The most files listed beyond that before the oldest are selected.
const SELECTION_SLACK: usize = MAX_LISTED / 4;

/// The age from which a file is certain to have been in the folder before a scan that is still running, even if the clock
/// of a file server differs.
const SURELY_BEFORE_SCAN: Duration = Duration::from_secs(60);

/// The result of a scan.
#[derive(Debug, Default)]
pub struct SpoolListing {
    /// Files to read, in the order of the spool; at most [`MAX_LISTED`], the oldest.
    pub files: Vec<SpoolEntry>,
    /// Files that are not read, with the reason; at most [`MAX_LISTED`].
    pub irregular: Vec<(OsString, &'static str)>,
    /// The number of all files to read, listed or not.
    pub waiting_files: u64,
    /// The size of all of them.
    pub waiting_bytes: u64,
}

impl SpoolListing {
    /// Scans the folder.
    ///
    /// A scan takes time: it may miss a file that arrives meanwhile and yet find one that arrives later. Therefore a
    /// second scan follows, and the files that it finds in the range of the first are merged in. Then no file is listed
    /// ahead of one that was in the folder before it. No second scan is needed if all files have been there for long.
    pub(super) fn read(dir: &Path, now: Timestamp) -> Result<SpoolListing, SpoolError> {
        let long_ago = now.minus(SURELY_BEFORE_SCAN).0.saturating_mul(1_000_000);
        let mut listing = SpoolListing::scan(dir, |_| true)?;
        if listing.files.iter().all(|e| e.changed < long_ago) {
            return Ok(listing);
        }
        let Some(last) = listing.files.last() else { return Ok(listing) };
        let known: HashSet<&OsStr> = listing.files.iter().map(|e| e.name.as_os_str()).collect();
        let is_missed = |e: &SpoolEntry| e.order() <= last.order() && !known.contains(e.name.as_os_str());
        let missed = SpoolListing::scan(dir, is_missed)?.files;
        if !missed.is_empty() {
            listing.files.extend(missed);
            listing.sort();
        }
        Ok(listing)
    }

    /// Scans once, and lists the files for which `is_wanted` holds.
    fn scan(dir: &Path, is_wanted: impl Fn(&SpoolEntry) -> bool) -> Result<SpoolListing, SpoolError> {
        let mut listing = SpoolListing::default();
        for item in fs::read_dir(dir).map_err(|e| SpoolError::new(dir, "read files", e))? {
            let item = item.map_err(|e| SpoolError::new(dir, "read files", e))?;
            let name = item.file_name();
            if !is_finished_name(&name) || name == REJECTED {
                continue;
            }
            // An error means that the file is gone: a producer may rename or delete its files at any time.
            let Ok(meta) = item.metadata() else { continue };
            if let Some(reason) = irregularity(&meta) {
                if listing.irregular.len() < MAX_LISTED {
                    listing.irregular.push((name, reason));
                }
                continue;
            }
            listing.waiting_files += 1;
            listing.waiting_bytes += meta.len();
            let entry = SpoolEntry::new(name, &meta);
            if is_wanted(&entry) {
                listing.files.push(entry);
                if listing.files.len() >= MAX_LISTED + SELECTION_SLACK {
                    listing.keep_oldest();
                }
            }
        }
        if listing.files.len() > MAX_LISTED {
            listing.keep_oldest();
        }
        listing.sort();
        Ok(listing)
    }

    fn keep_oldest(&mut self) {
        self.files.select_nth_unstable_by(MAX_LISTED, |a, b| a.order().cmp(&b.order()));
        self.files.truncate(MAX_LISTED);
    }

    fn sort(&mut self) {
        self.files.sort_unstable_by(|a, b| a.order().cmp(&b.order()));
    }
}

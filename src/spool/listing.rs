//! One scan of the spool folder.

use super::names::is_finished_name;
use super::{FileKey, REJECTED, SpoolEntry, SpoolError, irregularity};
use crate::clock::Timestamp;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// The most memory of one listing in bytes, for a folder of millions: 140,000 files with names of 40 bytes. If there are
/// more, the owner with the most loses its youngest from the list, so that nobody's files keep another's out.
pub const MAX_LISTED_BYTES: usize = 16_000_000;

/// The most bytes listed beyond that before the oldest files are selected.
const SELECTION_SLACK: usize = MAX_LISTED_BYTES / 4;

/// The age from which a file is certain to have been in the folder before a scan that is still running, even if the clock
/// of a file server differs.
const SURELY_BEFORE_SCAN: Duration = Duration::from_secs(60);

/// Names of one kind of a listing that are not read: enough for whoever looks after them.
const MAX_NAMED: usize = 10_000;

/// The number of files between two calls of `tick`: a millisecond's work.
const TICK_FILES: usize = 1_000;

/// The result of a scan.
#[derive(Debug, Default)]
pub struct SpoolListing {
    /// Files to read, by the uid of their owner; they take at most [`MAX_LISTED_BYTES`] in all.
    pub owners: BTreeMap<u32, OwnerFiles>,
    /// Files that are not read whatever their content, with the reason; at most `MAX_NAMED`.
    pub irregular: Vec<(OsString, &'static str)>,
    /// Files whose names do not say a format, with their owners; at most `MAX_NAMED`.
    pub unknown: Vec<(OsString, u32)>,
    /// The number of all files whose names do not say a format.
    pub unknown_files: u64,
}

/// The files of one owner.
#[derive(Debug, Default)]
pub struct OwnerFiles {
    /// Files to read, in the order of the spool: the oldest, if not all are listed.
    pub files: Vec<SpoolEntry>,
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
    /// ahead of one of its owner that was in the folder before it. No second scan is needed if all files have been there
    /// for long.
    pub(super) fn read(
        dir: &Path,
        now: Timestamp,
        tick: &mut dyn FnMut(),
    ) -> Result<SpoolListing, SpoolError> {
        let long_ago = now.minus(SURELY_BEFORE_SCAN).0.saturating_mul(1_000_000);
        let mut listing = SpoolListing::scan(dir, tick, |_| true, |_| true)?;
        if listing.files().all(|e| e.changed < long_ago) {
            return Ok(listing);
        }
        let known: HashSet<&OsStr> = listing.files().map(|e| e.name.as_os_str()).collect();
        let is_missed = |e: &SpoolEntry| {
            let last = listing.owners.get(&e.owner).and_then(|owner| owner.files.last());
            last.is_some_and(|last| e.order() <= last.order())
        };
        let missed = SpoolListing::scan(dir, tick, |name| !known.contains(name), is_missed)?;
        for (uid, missed) in missed.owners.into_iter().filter(|(_, missed)| !missed.files.is_empty()) {
            let owner = listing.owners.entry(uid).or_default();
            owner.files.extend(missed.files);
            owner.sort();
        }
        Ok(listing)
    }

    /// All listed files.
    pub fn files(&self) -> impl Iterator<Item = &SpoolEntry> {
        self.owners.values().flat_map(|owner| &owner.files)
    }

    /// Drops what is kept of files that are not listed.
    pub fn retain<T>(&self, kept: &mut HashMap<FileKey, T>) {
        if !kept.is_empty() {
            let listed: HashSet<FileKey> = self.files().map(|entry| entry.identity.key()).collect();
            kept.retain(|key, _| listed.contains(key));
        }
    }

    /// Whether every file to read is listed.
    pub fn is_complete(&self) -> bool {
        self.owners.values().all(|owner| owner.files.len() as u64 >= owner.waiting_files)
    }

    /// Scans once, and lists the files for whose names and entries this holds.
    fn scan(
        dir: &Path,
        tick: &mut dyn FnMut(),
        is_wanted_name: impl Fn(&OsStr) -> bool,
        is_wanted: impl Fn(&SpoolEntry) -> bool,
    ) -> Result<SpoolListing, SpoolError> {
        let mut listing = SpoolListing::default();
        let mut listed = 0;
        for (n, item) in fs::read_dir(dir).map_err(|e| SpoolError::new(dir, "read files", e))?.enumerate() {
            if n % TICK_FILES == 0 {
                tick();
            }
            let item = item.map_err(|e| SpoolError::new(dir, "read files", e))?;
            let name = item.file_name();
            if !is_finished_name(&name) || name == REJECTED || !is_wanted_name(&name) {
                continue;
            }
            // An error means that the file is gone: a producer may rename or delete its files at any time.
            let Ok(meta) = item.metadata() else { continue };
            if let Some(reason) = irregularity(&meta) {
                if listing.irregular.len() < MAX_NAMED {
                    listing.irregular.push((name, reason));
                }
                continue;
            }
            let entry = SpoolEntry::new(name, &meta);
            if entry.format().is_none() {
                listing.unknown_files += 1;
                if listing.unknown.len() < MAX_NAMED {
                    listing.unknown.push((entry.name, entry.owner));
                }
                continue;
            }
            let owner = listing.owners.entry(entry.owner).or_default();
            owner.waiting_files += 1;
            owner.waiting_bytes += entry.size;
            if is_wanted(&entry) {
                listed += entry.memory();
                owner.files.push(entry);
                if listed >= MAX_LISTED_BYTES + SELECTION_SLACK {
                    listed = listing.keep_oldest(MAX_LISTED_BYTES);
                }
            }
        }
        listing.keep_oldest(MAX_LISTED_BYTES);
        listing.owners.values_mut().for_each(OwnerFiles::sort);
        Ok(listing)
    }

    /// Drops the youngest files of those owners who have the most, until the list takes at most `limit` bytes. Returns how
    /// many it takes.
    fn keep_oldest(&mut self, limit: usize) -> usize {
        let mut sizes: Vec<usize> = self.owners.values().map(OwnerFiles::memory).collect();
        sizes.sort_unstable();
        let share = fair_share(&sizes, limit);
        self.owners.values_mut().map(|owner| owner.keep_oldest(share)).sum()
    }
}

impl OwnerFiles {
    /// The bytes of memory that the list takes.
    fn memory(&self) -> usize {
        self.files.iter().map(SpoolEntry::memory).sum()
    }

    /// Drops the youngest files until the list takes at most so many bytes, or some fewer. Returns how many it takes.
    fn keep_oldest(&mut self, most: usize) -> usize {
        let mut memory = self.memory();
        while memory > most {
            // If the names of the oldest are longer than those of the others, it takes a few rounds.
            let keep = (self.files.len() as u64).saturating_mul(most as u64) / memory as u64;
            self.files.select_nth_unstable_by(keep as usize, |a, b| a.order().cmp(&b.order()));
            self.files.truncate(keep as usize);
            memory = self.memory();
        }
        memory
    }

    fn sort(&mut self) {
        self.files.sort_unstable_by(|a, b| a.order().cmp(&b.order()));
    }
}

/// The most that each may have, so that all together have `limit` at most and nobody gives up any for one who has more.
/// `counts` is what each has, sorted.
fn fair_share(counts: &[usize], limit: usize) -> usize {
    let mut left = limit;
    for (n, count) in counts.iter().enumerate() {
        let share = left / (counts.len() - n);
        if *count > share {
            return share;
        }
        left -= count;
    }
    usize::MAX
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::FileIdentity;

    fn files(owner: u32, count: usize, name_bytes: usize) -> (u32, OwnerFiles) {
        let file = |n| {
            let identity = FileIdentity { inode: n as u64, born: 1, modified: count as i64 - n as i64 };
            SpoolEntry { name: "n".repeat(name_bytes).into(), identity, size: 1, owner, changed: 1 }
        };
        let files = (0..count).map(file).collect();
        (owner, OwnerFiles { files, ..OwnerFiles::default() })
    }

    #[test]
    fn the_memory_of_a_listing_is_bounded_and_each_owner_keeps_the_oldest_files() {
        for (name_bytes, limit) in [(10, 100_000), (255, 100_000), (255, 300)] {
            let mut listing = SpoolListing {
                owners: [files(1, 20_000, name_bytes), files(2, 10, 30), files(3, 1, 1)].into(),
                ..SpoolListing::default()
            };
            let listed = listing.keep_oldest(limit);
            let shown = format!("{name_bytes} {limit}");
            assert_eq!(listed, listing.files().map(SpoolEntry::memory).sum::<usize>(), "{shown}");
            assert!(listed <= limit, "{shown}: {listed}");
            assert_eq!(listing.owners[&3].files.len(), 1, "{shown}");
            if limit > 1_000 {
                assert!(listed >= limit / 10 * 9, "{shown}: {listed}");
                assert_eq!(listing.owners[&2].files.len(), 10, "{shown}");
            }
            let largest = &mut listing.owners.get_mut(&1).unwrap().files;
            largest.sort_unstable_by_key(|entry| entry.identity.modified);
            let is_oldest = |(n, entry): (usize, &SpoolEntry)| entry.identity.modified == n as i64 + 1;
            assert!(largest.iter().enumerate().all(is_oldest), "{shown}");
        }
    }

    #[test]
    fn those_who_have_the_most_share_what_the_others_leave() {
        for (counts, limit, share) in [
            (vec![], 10, usize::MAX),
            (vec![3, 7], 10, usize::MAX),
            (vec![11], 10, 10),
            (vec![3, 8], 10, 7),
            (vec![1, 90, 100], 11, 5),
            (vec![1, 2, 100, 100], 11, 4),
            (vec![1, 1, 1], 2, 0),
        ] {
            assert_eq!(fair_share(&counts, limit), share, "{counts:?} of {limit}");
        }
    }
}

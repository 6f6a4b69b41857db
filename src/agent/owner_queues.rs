//! Whose file is read next: each owner's files in the order of the spool, and the owners by turns. Pure.
//!
//! One order over all files would be simpler, and is what a folder with one owner gets. With several, one owner's million
//! files, or one huge one, would keep everybody else's out.

use crate::spool::{MAX_LISTED_BYTES, OwnerFiles, SpoolEntry};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

/// The files to read, and for each owner what is left of a file that was begun in an earlier turn: an `R`.
#[derive(Debug)]
pub struct OwnerQueues<R> {
    owners: BTreeMap<u32, OwnerQueue<R>>,
    /// The owner of the last turn.
    last: Option<u32>,
    /// The bytes of memory that the files take.
    memory: usize,
}

#[derive(Debug)]
struct OwnerQueue<R> {
    files: BTreeSet<QueuedFile>,
    begun: Option<R>,
    /// Whether the owner's files wait until the next look at the spool.
    is_held: bool,
}

/// A file in the order of its owner's.
#[derive(Debug, PartialEq, Eq)]
struct QueuedFile {
    /// Whether it comes after all others.
    is_last: bool,
    entry: SpoolEntry,
}

impl Ord for QueuedFile {
    fn cmp(&self, other: &QueuedFile) -> Ordering {
        (self.is_last, self.entry.order()).cmp(&(other.is_last, other.entry.order()))
    }
}

impl PartialOrd for QueuedFile {
    fn partial_cmp(&self, other: &QueuedFile) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<R> OwnerQueues<R> {
    pub fn new() -> OwnerQueues<R> {
        OwnerQueues { owners: BTreeMap::new(), last: None, memory: 0 }
    }

    /// Puts the files of a scan in the place of those from earlier ones. Those for which `is_last` holds are read after
    /// their owner's others.
    pub fn replace(&mut self, listed: BTreeMap<u32, OwnerFiles>, is_last: impl Fn(&SpoolEntry) -> bool) {
        self.owners.values_mut().for_each(|queue| queue.files = BTreeSet::new());
        for (owner, OwnerFiles { files, .. }) in listed {
            self.queue(owner).files =
                files.into_iter().map(|entry| QueuedFile { is_last: is_last(&entry), entry }).collect();
        }
        self.owners.retain(|_, queue| !queue.files.is_empty() || queue.begun.is_some());
        let files = self.owners.values().flat_map(|queue| &queue.files);
        self.memory = files.map(|file| file.entry.memory()).sum();
    }

    /// Adds a file that was found alone. Returns whether there was room; otherwise a later scan finds it.
    pub fn add(&mut self, entry: SpoolEntry, is_last: bool) -> bool {
        if self.memory >= MAX_LISTED_BYTES / 2 * 3 {
            return false;
        }
        let (owner, memory) = (entry.owner, entry.memory());
        if self.queue(owner).files.insert(QueuedFile { is_last, entry }) {
            self.memory += memory;
        }
        true
    }

    /// Takes the owner's next file out.
    pub fn next_file(&mut self, owner: u32) -> Option<SpoolEntry> {
        let entry = self.owners.get_mut(&owner)?.files.pop_first()?.entry;
        self.memory -= entry.memory();
        Some(entry)
    }

    /// The owner whose turn it is: the next after that of the last turn who has something to read and is not held.
    pub fn next_turn(&mut self) -> Option<u32> {
        let has_work = |(_, queue): &(&u32, &OwnerQueue<R>)| queue.has_work();
        let after = self.last.map_or(0, |last| last.saturating_add(1));
        let next = self.owners.range(after..).find(has_work);
        let (owner, _) = next.or_else(|| self.owners.iter().find(has_work))?;
        self.last = Some(*owner);
        self.last
    }

    /// Whether anybody can have a turn.
    pub fn has_work(&self) -> bool {
        self.owners.values().any(OwnerQueue::has_work)
    }

    /// Gives the owner no turn until [`OwnerQueues::release`].
    pub fn hold(&mut self, owner: u32) {
        self.queue(owner).is_held = true;
    }

    /// Ends the hold of all owners.
    pub fn release(&mut self) {
        self.owners.values_mut().for_each(|queue| queue.is_held = false);
    }

    /// Takes out what the owner has begun to read.
    pub fn take_begun(&mut self, owner: u32) -> Option<R> {
        self.owners.get_mut(&owner)?.begun.take()
    }

    /// Keeps what the owner has begun to read; it is the owner's next.
    pub fn keep_begun(&mut self, owner: u32, begun: R) {
        self.queue(owner).begun = Some(begun);
    }

    /// Takes out what was begun and is such.
    pub fn take_begun_if(&mut self, is_such: impl Fn(&R) -> bool) -> Option<R> {
        self.owners.values_mut().find_map(|queue| queue.begun.take_if(|begun| is_such(begun)))
    }

    /// All that was begun.
    pub fn begun_mut(&mut self) -> impl Iterator<Item = &mut R> {
        self.owners.values_mut().filter_map(|queue| queue.begun.as_mut())
    }

    /// Forgets everything; the next scan finds it again.
    pub fn clear(&mut self) {
        *self = OwnerQueues { last: self.last, ..OwnerQueues::new() };
    }

    fn queue(&mut self, owner: u32) -> &mut OwnerQueue<R> {
        let new = || OwnerQueue { files: BTreeSet::new(), begun: None, is_held: false };
        self.owners.entry(owner).or_insert_with(new)
    }
}

impl<R> OwnerQueue<R> {
    fn has_work(&self) -> bool {
        !self.is_held && (self.begun.is_some() || !self.files.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::FileIdentity;

    fn file(owner: u32, name: &str, modified: i64) -> SpoolEntry {
        let identity = FileIdentity { inode: 1, born: 1, modified };
        SpoolEntry { name: name.into(), identity, size: 1, owner, changed: 1 }
    }

    fn queues(files: &[SpoolEntry]) -> OwnerQueues<&'static str> {
        let mut listed: BTreeMap<u32, OwnerFiles> = BTreeMap::new();
        for file in files {
            listed.entry(file.owner).or_default().files.push(file.clone());
        }
        let mut queues = OwnerQueues::new();
        queues.replace(listed, |entry| entry.name == "suspect");
        queues
    }

    /// The names in the order in which they are read, one a turn.
    fn order(queues: &mut OwnerQueues<&'static str>) -> String {
        let mut names = Vec::new();
        while let Some(owner) = queues.next_turn() {
            let begun = queues.take_begun(owner).map(str::to_owned);
            names.extend(begun.or_else(|| Some(queues.next_file(owner)?.name.into_string().unwrap())));
        }
        names.join(" ")
    }

    #[test]
    fn owners_take_turns_and_the_files_of_each_are_in_order() {
        let many = [file(1, "c", 3), file(1, "a", 1), file(1, "b", 1), file(7, "x", 9), file(9, "y", 2)];
        assert_eq!(order(&mut queues(&many)), "a x y b c");
        let mut queues = queues(&many);
        queues.next_turn();
        queues.keep_begun(1, "begun");
        queues.add(file(7, "older", 1), false);
        queues.add(file(8, "new", 99), false);
        assert_eq!(order(&mut queues), "older new y begun x a b c");
        assert!(!queues.has_work());
    }

    #[test]
    fn a_suspect_is_the_last_of_its_owner() {
        let files = [file(1, "suspect", 1), file(1, "a", 2), file(1, "b", 3), file(2, "x", 9)];
        assert_eq!(order(&mut queues(&files)), "a x b suspect");
    }

    #[test]
    fn a_held_owner_has_no_turn_until_it_is_released() {
        let mut queues = queues(&[file(1, "a", 1), file(2, "x", 1)]);
        queues.hold(1);
        assert_eq!(order(&mut queues), "x");
        assert!(!queues.has_work());
        queues.release();
        assert_eq!(order(&mut queues), "a");
    }

    #[test]
    fn a_scan_replaces_the_files_and_leaves_what_was_begun() {
        let mut queues = queues(&[file(1, "a", 1), file(2, "x", 1)]);
        queues.keep_begun(2, "begun");
        queues.replace(BTreeMap::new(), |_| false);
        assert_eq!(order(&mut queues), "begun");
        queues.add(file(3, "z", 1), false);
        queues.clear();
        assert_eq!(order(&mut queues), "");
    }
}

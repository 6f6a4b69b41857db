//! The events that are stored in one commit, and how far that commit brings their files.

use crate::outbox::{FileProgress, NewEvent};
use crate::spool::{FileKey, ReadPosition, SpoolEntry};
use std::collections::HashSet;
use std::sync::Arc;

/// Enough events that the cost of a commit disappears among them, few enough that they are soon on the disk.
const MAX_EVENTS: usize = 2_500;
/// Bytes of text. Two batches are in memory at once: one is read while the other is being committed.
const MAX_BYTES: usize = 2 << 20;
/// The least that a rejected part counts for, because it makes two files.
const REJECTED_PART_BYTES: usize = MAX_BYTES / 1_000;
const MAX_FILES: usize = 500;

/// A file that a batch has events of.
#[derive(Debug, Clone)]
pub struct SourceFile {
    /// The file as it was read.
    pub entry: SpoolEntry,
    pub name: Arc<str>,
    /// The progress of the file once the batch is stored.
    pub progress: FileProgress,
}

impl SourceFile {
    pub fn new(entry: SpoolEntry, progress: FileProgress) -> SourceFile {
        let name = Arc::from(entry.name.to_string_lossy());
        SourceFile { entry, name, progress }
    }

    /// Notes that the file is read as far as that.
    pub fn advance(&mut self, to: ReadPosition) {
        (self.progress.position, self.progress.place, self.progress.sum) = (to.position, to.place, to.sum);
    }
}

/// Events and their files, in the order of the spool.
#[derive(Debug, Default)]
pub struct AppendBatch {
    pub events: Arc<Vec<NewEvent>>,
    /// The index in `sources` of each event's file.
    source_of: Vec<usize>,
    pub sources: Vec<SourceFile>,
    /// Whether anything of the current file was read.
    has_advanced: bool,
    bytes: usize,
}

impl AppendBatch {
    /// Adds a file; the events that follow are of it.
    pub fn begin(&mut self, source: SourceFile) {
        self.has_advanced = false;
        self.sources.push(source);
    }

    /// Adds a file, unless it is the current one already.
    pub fn resume(&mut self, source: &SourceFile) {
        let is_current = |last: &SourceFile| {
            !last.progress.finished && last.entry.identity.key() == source.entry.identity.key()
        };
        if !self.sources.last().is_some_and(is_current) {
            self.begin(source.clone());
        }
    }

    /// Takes the current file out again if nothing of it was read. Returns whether there is nothing of it in the batch.
    pub fn cancel_unread(&mut self) -> bool {
        if self.has_advanced {
            return false;
        }
        self.sources.pop_if(|last| !last.progress.finished);
        true
    }

    pub fn push(&mut self, event: NewEvent) {
        self.bytes += event.body.len();
        self.source_of.push(self.sources.len().saturating_sub(1));
        // The only other owner is the writer, which has not seen this batch yet.
        Arc::make_mut(&mut self.events).push(event);
    }

    /// Counts text without an event, because reading it takes time as well.
    pub fn account_bytes(&mut self, bytes: usize) {
        self.bytes += bytes;
    }

    pub fn account_rejected(&mut self, bytes: usize) {
        self.bytes += bytes.max(REJECTED_PART_BYTES);
    }

    pub fn advance(&mut self, to: ReadPosition) {
        if let Some(source) = self.sources.last_mut() {
            self.has_advanced = true;
            source.advance(to);
        }
    }

    pub fn finish(&mut self) {
        if let Some(source) = self.sources.last_mut() {
            source.progress.finished = true;
        }
        self.has_advanced = false;
    }

    /// Whether the batch is to be stored before more is read. The outbox has room for `room` bytes.
    pub fn is_full(&self, room: usize) -> bool {
        self.events.len() >= MAX_EVENTS
            || self.bytes >= room.min(MAX_BYTES)
            || self.sources.len() >= MAX_FILES
    }

    pub fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    /// The progress of each file once the batch is stored.
    pub fn progress(&self) -> Vec<FileProgress> {
        self.sources.iter().map(|source| source.progress.clone()).collect()
    }

    /// The event at `index`, the index of its file, and the file.
    pub fn event(&self, index: usize) -> (&NewEvent, usize, &SourceFile) {
        let source = self.source_of[index];
        (&self.events[index], source, &self.sources[source])
    }

    /// Takes out events and whole files by their indexes; the others keep their order. Returns the files taken out.
    pub fn take_out(&mut self, events: &HashSet<usize>, files: &HashSet<usize>) -> Vec<SpoolEntry> {
        let AppendBatch { events: all, source_of, sources, .. } = std::mem::take(self);
        let all = Arc::unwrap_or_clone(all).into_iter().zip(source_of).enumerate();
        let mut kept = all.filter(|(index, _)| !events.contains(index)).map(|(_, event)| event).peekable();
        let mut taken_out = Vec::new();
        for (index, source) in sources.into_iter().enumerate() {
            if files.contains(&index) {
                taken_out.push(source.entry);
            } else {
                self.begin(source);
            }
            while let Some((event, _)) = kept.next_if(|(_, source)| *source == index) {
                self.push(event);
            }
        }
        taken_out
    }

    /// Takes out a file with all its events, by the key of its identity in the outbox. Returns it as it was read.
    pub fn take_out_file(&mut self, key: FileKey) -> Option<SpoolEntry> {
        let is_of_file = |source: &SourceFile| source.progress.identity.key() == key;
        let files: HashSet<usize> =
            (0..self.sources.len()).filter(|index| is_of_file(&self.sources[*index])).collect();
        if files.is_empty() {
            return None;
        }
        let events = (0..self.events.len()).filter(|index| files.contains(&self.source_of[*index])).collect();
        self.take_out(&events, &files).pop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::fixture;
    use crate::spool::FileIdentity;

    fn file(name: &str) -> SourceFile {
        let identity = FileIdentity { inode: 1, born: 1, modified: 1 };
        let entry = SpoolEntry { name: name.into(), identity, size: 1, owner: 0, changed: 1 };
        let progress = FileProgress::none(name.as_bytes(), identity, entry.stamp());
        SourceFile::new(entry, progress)
    }

    #[test]
    fn taken_out_events_leave_the_others_in_order_and_with_their_files() {
        let mut batch = AppendBatch::default();
        for (name, ids) in [("a", vec!["1", "2"]), ("b", vec!["3"]), ("c", vec!["4", "5"])] {
            batch.begin(file(name));
            for id in ids {
                batch.push(fixture::event(id.to_owned(), "{}".to_owned()));
            }
        }
        let taken_out = batch.take_out(&[0, 2, 4].into(), &[1].into());
        assert_eq!(taken_out.iter().map(|entry| entry.name.as_os_str()).collect::<Vec<_>>(), ["b"]);
        let left: Vec<_> = (0..batch.events.len())
            .map(|index| batch.event(index))
            .map(|(event, _, source)| (event.message_id.as_str(), source.entry.name.to_str().unwrap()))
            .collect();
        assert_eq!(left, [("2", "a"), ("4", "c")]);
    }

    #[test]
    fn a_file_is_taken_out_with_all_that_the_batch_has_of_it() {
        let mut batch = AppendBatch::default();
        for (inode, id) in [(1, "1"), (2, "2"), (1, "3")] {
            let mut source = file("a");
            source.progress.identity.inode = inode;
            batch.begin(source);
            batch.push(fixture::event(id.to_owned(), "{}".to_owned()));
        }
        let key = |inode| FileIdentity { inode, born: 1, modified: 1 }.key();
        assert!(batch.take_out_file(key(3)).is_none());
        assert!(batch.take_out_file(key(1)).is_some());
        assert_eq!((batch.sources.len(), batch.events.len()), (1, 1));
        assert_eq!(batch.event(0).0.message_id.as_str(), "2");
    }
}

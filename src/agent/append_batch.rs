//! An append batch of the spool: the events that are stored in one commit, and how far that brings their files.

use crate::clock::Timestamp;
use crate::event::Flaw;
use crate::outbox::{FileProgress, NewEvent, ReusedId};
use crate::reason::Code;
use crate::spool::{Entry, Format, RejectedFolder, Spool, SpoolError, shown};
use std::collections::HashSet;
use std::sync::Arc;

/// Events in an append batch: as many as make the cost of a commit disappear, few enough to be on the disk soon.
const MAX_EVENTS: usize = 2_500;
/// Bytes of text in an append batch; two append batches are in memory at once.
const MAX_BYTES: usize = 2 << 20;
/// What a part that is set aside counts for at least: it makes two files.
pub const REJECTED_PIECE_BYTES: usize = MAX_BYTES / 1_000;
/// Files in an append batch.
const MAX_FILES: usize = 500;

/// A file that the append batch takes from.
#[derive(Debug, Clone)]
pub struct SourceFile {
    /// The file as it was read.
    pub entry: Entry,
    /// Its name, for people.
    pub name: Arc<str>,
    /// How far it is taken once the append batch is stored.
    pub progress: FileProgress,
}

impl SourceFile {
    /// That file, taken so far.
    pub fn new(entry: Entry, progress: FileProgress) -> SourceFile {
        let name = Arc::from(entry.name.to_string_lossy());
        SourceFile { entry, name, progress }
    }
}

/// Events and their files, in the order of the spool.
#[derive(Debug, Default)]
pub struct AppendBatch {
    /// The events.
    pub events: Arc<Vec<NewEvent>>,
    /// For each event the index of its file.
    from: Vec<usize>,
    /// The files.
    pub sources: Vec<SourceFile>,
    bytes: usize,
}

impl AppendBatch {
    /// Adds a file; the events that follow are from it.
    pub fn begin(&mut self, source: SourceFile) {
        self.sources.push(source);
    }

    /// Adds an event of the file begun last.
    pub fn push(&mut self, event: NewEvent) {
        self.bytes += event.body.len();
        self.from.push(self.sources.len().saturating_sub(1));
        // The only other owner is the writer, which has not seen this append batch yet.
        Arc::make_mut(&mut self.events).push(event);
    }

    /// Notes text that made no event. To read it, and to set it aside, takes its time all the same.
    pub fn account_bytes(&mut self, bytes: usize) {
        self.bytes += bytes;
    }

    /// The file begun last.
    pub fn current(&mut self) -> Option<&mut SourceFile> {
        self.sources.last_mut()
    }

    /// Whether it is time to store it, where the outbox has room for so many bytes.
    pub fn is_full(&self, room: usize) -> bool {
        self.events.len() >= MAX_EVENTS
            || self.bytes >= room.min(MAX_BYTES)
            || self.sources.len() >= MAX_FILES
    }

    /// Whether there is nothing to store.
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    /// How far the files are taken once it is stored.
    pub fn progress(&self) -> Vec<FileProgress> {
        self.sources.iter().map(|source| source.progress.clone()).collect()
    }

    /// Takes out the events whose ids were used before by others and sets them aside, durably. Returns the files
    /// that went with their only event.
    ///
    /// # Errors
    /// The system's.
    pub fn reject_reused(
        &mut self,
        reused: &[ReusedId],
        spool: &Spool,
        rejected_folder: &RejectedFolder,
        now: Timestamp,
    ) -> Result<Vec<Entry>, SpoolError> {
        let mut whole_files = HashSet::new();
        for ReusedId { index, first_at, first_file } in reused {
            let (event, source) = (&self.events[*index], &self.sources[self.from[*index]]);
            let line_of_file = if matches!(source.entry.format(), Some((Format::Lines, _))) {
                event.place as usize
            } else {
                1
            };
            let flaw = Flaw {
                code: Code::MessageIdReused,
                text: format!(
                    "the messageId came before with other content, {first_at} in {}: \
                     give each event an id of its own",
                    shown(first_file)
                ),
                line: line_of_file,
                column: 1,
                incomplete: false,
            };
            if event.place == 0 {
                // If it was replaced or written to since it was read, the next look reads it.
                rejected_folder.reject_file(spool, &source.entry, &flaw, now)?;
                whole_files.insert(self.from[*index]);
            } else {
                let (first_seen, body) = (&source.progress.identity, event.body.as_bytes());
                rejected_folder.reject_piece(&source.entry, first_seen, event.place, body, &flaw, now)?;
            }
        }
        rejected_folder.sync().map_err(|e| SpoolError::new(spool.dir(), "set events aside", e))?;
        let out: HashSet<usize> = reused.iter().map(|r| r.index).collect();
        let old = std::mem::take(self);
        let events = Arc::unwrap_or_clone(old.events).into_iter().zip(old.from).enumerate();
        let mut left = events.filter(|(index, _)| !out.contains(index)).map(|(_, pair)| pair).peekable();
        let mut gone = Vec::new();
        for (index, source) in old.sources.into_iter().enumerate() {
            if whole_files.contains(&index) {
                gone.push(source.entry);
            } else {
                self.begin(source);
            }
            while let Some((event, _)) = left.next_if(|(_, from)| *from == index) {
                self.push(event);
            }
        }
        Ok(gone)
    }
}

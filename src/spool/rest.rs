//! The rest of a file in `rejected/`: the one file that holds all parts behind those that are rejected one by one.
//!
//! How much of it is valid stands in its reason, which is written anew at each flush: what a crash left behind that is cut
//! off, and read again. The ends of the parts at earlier flushes stand there too, so that a reading that begins again finds
//! its place in the rest without an index of all parts.

use super::RejectedFolder;
use super::names::part_stem_and_ending;
use super::rejected::{NameState, Rejection, RestMark, RestOfFile, rejected_names, size_of};
use crate::reason::Code;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

/// The flushes of a rest that its reason tells of. Between the commit of a batch and the end of a reading there are a
/// handful.
const MAX_MARKS: usize = 8;

/// What a rejected part is: the parts of one kind are rejected in the order of their places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PartKind {
    /// A part that is no event.
    Flawed,
    /// An event whose messageId was used before.
    ReusedId,
}

/// The rest of a file, for the parts of one kind.
#[derive(Debug)]
pub(super) struct Rest {
    name: OsString,
    why: Rejection,
    /// Of `why.rest` and what was written since.
    state: RestOfFile,
    /// The end of the last part that was read once more.
    reread: RestMark,
    /// Open since the last flush.
    file: Option<File>,
}

impl Rest {
    /// Creates an empty rest of the file of that name in the spool. Returns also the file of its reason, which is to be
    /// flushed.
    pub(super) fn create(
        folder: &RejectedFolder,
        file_name: &OsStr,
        kind: PartKind,
        why: Rejection,
    ) -> io::Result<(Rest, File)> {
        let (stem, ending) = part_stem_and_ending(file_name);
        let word = match kind {
            PartKind::Flawed => ".rest",
            PartKind::ReusedId => ".reused",
        };
        let state = RestOfFile::default();
        let why = Rejection { rest: Some(state.clone()), ..why };
        for name in rejected_names(stem, word, ending, why.key()) {
            if folder.state_of(&name, &why, b"")? == NameState::Taken {
                continue;
            }
            let reason = folder.write_reason(&name, &why)?;
            let file = folder.open_to_append(&name).inspect_err(|_| folder.remove_reason(&name))?;
            return Ok((Rest { name, why, state, reread: RestMark::default(), file: Some(file) }, reason));
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// The rest that a reason in the folder tells of; `None`: it is that of something else.
    pub(super) fn found(name: OsString, why: Rejection) -> Option<(PartKind, Rest)> {
        let kind = match why.code {
            Code::MessageIdReused => PartKind::ReusedId,
            _ => PartKind::Flawed,
        };
        let mut rest = Rest { state: why.rest.clone()?, name, why, reread: RestMark::default(), file: None };
        rest.note_flushed();
        Some((kind, rest))
    }

    /// Whether it was begun before the other one.
    pub(super) fn is_older_than(&self, other: &Rest) -> bool {
        self.why.when < other.why.when
    }

    /// Whether it is still in the folder: somebody may have put it back into the spool.
    pub(super) fn is_there(&self, folder: &RejectedFolder) -> bool {
        self.file.is_some() || folder.why(&self.name).is_some_and(|why| why.is_about_the_same(&self.why))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.state.parts == 0
    }

    /// Whether its last part is that at the place, or one behind it.
    pub(super) fn reaches(&self, place: u64) -> bool {
        place <= self.state.until
    }

    /// Whether it holds the part at a place that it reaches.
    pub(super) fn contains(
        &mut self,
        folder: &RejectedFolder,
        place: u64,
        content: &[u8],
    ) -> io::Result<bool> {
        let start = self.start_of(place);
        let mut found = vec![0; content.len()];
        match self.open(folder)?.read_exact_at(&mut found, start) {
            Ok(()) if found == content => {
                self.reread = RestMark { until: place, bytes: start + content.len() as u64 };
                Ok(true)
            }
            Ok(()) => Ok(false),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Appends a part. Returns the bytes that it adds on the disk. After an error, the rest is as before.
    pub(super) fn append(&mut self, folder: &RejectedFolder, place: u64, content: &[u8]) -> io::Result<u64> {
        let before = self.state.bytes;
        if let Err(e) = self.open(folder).and_then(|mut file| file.write_all(content)) {
            // It is cut to what is valid when it is opened again.
            self.file = None;
            return Err(e);
        }
        self.state.parts += 1;
        (self.state.until, self.state.bytes) = (place, before + content.len() as u64);
        self.reread = RestMark::default();
        Ok(size_of(self.state.bytes) - size_of(before))
    }

    /// Removes the rest and its reason.
    pub(super) fn remove(self, folder: &RejectedFolder) {
        let _ = folder.remove(&self.name);
    }

    /// Flushes and closes it, and then tells in its reason how much of it is valid. It is closed after an error too.
    pub(super) fn sync(&mut self, folder: &RejectedFolder) -> io::Result<()> {
        let flushed = self.flush(folder);
        self.file = None;
        flushed
    }

    fn flush(&mut self, folder: &RejectedFolder) -> io::Result<()> {
        if self.why.rest.as_ref().is_none_or(|flushed| flushed.bytes == self.state.bytes) {
            return Ok(());
        }
        self.open(folder)?.sync_data()?;
        let why = Rejection { rest: Some(self.state.clone()), ..self.why.clone() };
        folder.write_reason(&self.name, &why)?.sync_all()?;
        self.why = why;
        self.note_flushed();
        Ok(())
    }

    /// Notes that all of it is flushed.
    fn note_flushed(&mut self) {
        let excess = (self.state.earlier.len() + 1).saturating_sub(MAX_MARKS);
        self.state.earlier.drain(..excess);
        self.state.earlier.push(RestMark { until: self.state.until, bytes: self.state.bytes });
    }

    /// Where the part begins if it is there: behind the last end that is known of an earlier part. A reading begins again
    /// behind a batch that is stored, and the rest was flushed before that.
    fn start_of(&self, place: u64) -> u64 {
        let ends = self.state.earlier.iter().chain([&self.reread]).filter(|end| end.until < place);
        ends.max().map_or(0, |end| end.bytes)
    }

    /// The open file, cut to what is valid of it. It is opened anew after each flush: somebody may put it back into the
    /// spool meanwhile, where it must not be held open.
    fn open(&mut self, folder: &RejectedFolder) -> io::Result<&File> {
        if self.file.is_none() {
            let file = folder.open_to_append(&self.name)?;
            self.state.bytes = self.state.bytes.min(file.metadata()?.len());
            file.set_len(self.state.bytes)?;
            self.file = Some(file);
        }
        self.file.as_ref().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

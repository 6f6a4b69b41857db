//! How the intake reads one file: from its text to the events of an append batch, the bad ones set aside.

use super::append_batch::SourceFile;
use super::disposition;
use super::intake::{Intake, Stop};
use super::readiness::age;
use crate::clock::Timestamp;
use crate::config::Bytes;
use crate::event::{Event, Flaw, MessageId, merge_envelope};
use crate::outbox::{FileProgress, NewEvent};
use crate::reason::Code;
use crate::spool::{Document, Entry, Form, Format, Line, Lines, Places, Unopened, split, text_of, unpacked};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

/// The (unpacked) text of a file, up to so many bytes of it.
fn read_at_most(file: File, gz: bool, size: u64, most: u64) -> io::Result<Vec<u8>> {
    // One of ordinary size in one read and, with room for a byte more, another that finds its end.
    let mut bytes = Vec::with_capacity(usize::try_from(size.min(most)).map_or(0, |size| size + 1));
    unpacked(file, gz).take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl Intake {
    /// Takes what can be taken of a file. Returns when to look at it again, if something of it must wait.
    pub(super) fn ingest(&mut self, entry: Entry) -> Result<Option<Duration>, Stop> {
        let Some((format, gz)) = entry.format() else {
            let what = "the name says nothing of its form: it must end in .json, .jsonl or .ndjson, or one of them and .gz";
            self.reject_file(&entry, &Flaw::at("", 0, Code::NotJson, what))?;
            return Ok(None);
        };
        let file = match self.parts.spool.open_file(&entry) {
            Ok(file) => file,
            Err(Unopened::Changed) => return Ok(Some(self.config.spool.settle)),
            Err(Unopened::Unreadable(owner)) => {
                let hint = self.hint_for_unreadable(&entry, owner);
                self.leave_unreadable(&entry, &hint);
                return Ok(None);
            }
            Err(Unopened::Error(e)) => {
                self.report(&entry.name, format_args!("{e}"));
                return Ok(None);
            }
        };
        self.is_readable(&entry.name);
        let before = self.progress_of(&entry).cloned();
        let read = (entry.size, entry.identity.modified);
        if before.as_ref().is_some_and(|p| p.finished && p.read == read) {
            self.remove(vec![entry]);
            return Ok(None);
        }
        let mut progress =
            before.unwrap_or_else(|| FileProgress::none(entry.name.as_bytes(), entry.identity, read));
        if format == Format::Document && progress.read != read {
            // Written to since: what it holds now is told from what was taken by the events' ids.
            (progress.position, progress.place) = (0, 0);
        }
        (progress.read, progress.finished) = (read, false);
        match format {
            Format::Document => self.ingest_document(file, gz, entry, progress),
            Format::Lines => self.ingest_lines(file, gz, entry, progress, true),
        }
    }

    /// Takes what is whole of a file that may still be written: a document to which nothing could be added, or lines.
    /// Returns whether that is all of it.
    pub(super) fn ingest_whole(&mut self, entry: &Entry) -> Result<bool, Stop> {
        let limit = self.config.spool.max_file_bytes;
        let Some((format, gz)) = entry.format() else { return Ok(false) };
        if self.progress_of(entry).is_some() || (format == Format::Document && entry.size > limit) {
            return Ok(false);
        }
        let Ok(file) = self.parts.spool.open_file(entry) else { return Ok(false) };
        let read = (entry.size, entry.identity.modified);
        let progress = FileProgress::none(entry.name.as_bytes(), entry.identity, read);
        if format == Format::Lines {
            let rest = self.ingest_lines(file, gz, entry.clone(), progress, false)?;
            return Ok(rest.is_none());
        }
        let Ok(bytes) = read_at_most(file, gz, entry.size, limit + 1) else { return Ok(false) };
        if bytes.len() as u64 > limit {
            return Ok(false);
        }
        let Ok(text) = text_of(&bytes) else { return Ok(false) };
        let Ok(document) = split(text) else { return Ok(false) };
        self.ingest_items(text, document, SourceFile::new(entry.clone(), progress))?;
        Ok(true)
    }

    fn ingest_document(
        &mut self,
        file: File,
        gz: bool,
        entry: Entry,
        progress: FileProgress,
    ) -> Result<Option<Duration>, Stop> {
        let limit = self.config.spool.max_file_bytes;
        let too_large = !gz && entry.size > limit;
        let bytes = match read_at_most(file, gz, entry.size, if too_large { 0 } else { limit + 1 }) {
            Ok(bytes) => bytes,
            Err(e) => return self.unread(&entry, gz, &e),
        };
        if too_large || bytes.len() as u64 > limit {
            let what = format!(
                "the document is larger than spool.max_file_bytes, {}: an event a line (.jsonl) has no such limit",
                Bytes(limit)
            );
            self.reject_file(&entry, &Flaw::at("", 0, Code::TooLarge, what))?;
            return Ok(None);
        }
        let text = match text_of(&bytes) {
            Ok(text) => text,
            Err(flaw) => return self.flawed(&entry, &flaw),
        };
        let document = match split(text) {
            Ok(document) => document,
            Err(flaw) => return self.flawed(&entry, &flaw),
        };
        self.incomplete.remove(&entry.name);
        self.ingest_items(text, document, SourceFile::new(entry, progress))?;
        Ok(None)
    }

    /// Takes the items of a document that are not taken yet.
    fn ingest_items(&mut self, text: &str, document: Document<'_>, source: SourceFile) -> Result<(), Stop> {
        let ingested = source.progress.place;
        self.batch.begin(source.clone());
        let (all, mut places) = (document.items.len(), Places::of(text));
        for (item, place) in document.items.zip(1..).skip(usize::try_from(ingested).unwrap_or(usize::MAX)) {
            let single = document.form == Form::Single;
            let admitted = if document.form == Form::Envelope {
                Event::parse(item).and_then(|event| {
                    // Its messageId is looked at before the merge, which moves what stands behind it.
                    event.message_id()?;
                    let merged = merge_envelope(&event, document.context, document.integrations);
                    self.accept(&merged, &source, place)
                })
            } else {
                self.accept(item, &source, if single { 0 } else { place })
            };
            match admitted.map_err(|flaw| places.place(item, flaw)) {
                Ok(event) => self.batch.push(event),
                Err(flaw) if single => {
                    self.batch.sources.pop();
                    return self.reject_file(&source.entry, &flaw);
                }
                Err(flaw) => self.reject_piece(&source, place, item.as_bytes(), &flaw)?,
            }
            self.advance(0, place, None);
            if self.batch.is_full(self.room) && (place as usize) < all {
                self.flush()?;
                self.batch.begin(source.clone());
                self.advance(0, place, None);
            }
        }
        self.finish();
        Ok(())
    }

    /// `is_finished`: else the file may still be written, and is left at the first line that is not a whole event.
    fn ingest_lines(
        &mut self,
        file: File,
        gz: bool,
        entry: Entry,
        progress: FileProgress,
        is_finished: bool,
    ) -> Result<Option<Duration>, Stop> {
        let settle = Ok(Some(self.config.spool.settle));
        let mut lines = Lines::new(unpacked(file, gz), self.config.spool.max_file_bytes);
        while lines.position < progress.position {
            self.sign_of_life()?;
            if let Err(e) = lines.skip_towards(progress.position, progress.place) {
                return self.unread(&entry, gz, &e);
            }
        }
        if progress.sum.is_some_and(|sum| sum != lines.sum()) {
            return Ok(self.begin_anew(&entry));
        }
        let source = SourceFile::new(entry, progress);
        self.batch.begin(source.clone());
        loop {
            let (position, place, sum) = (lines.position, lines.place, lines.sum());
            let (line, ended) = match lines.next_line() {
                Ok(Line::Unended(_) | Line::Endless) | Err(_) if !is_finished => {
                    self.advance(position, place, Some(sum));
                    return settle;
                }
                Ok(Line::Text(line)) => (line, true),
                Ok(Line::Unended(line)) => (line, false),
                Ok(Line::End) if is_finished || self.has_settled(&source.entry) => break,
                Ok(Line::End) => return settle,
                Ok(Line::Endless) => {
                    let what = format!(
                        "line {} goes on for more than spool.max_file_bytes, {}",
                        place + 1,
                        Bytes(self.config.spool.max_file_bytes)
                    );
                    let flaw =
                        Flaw { line: lines.place as usize + 1, ..Flaw::at("", 0, Code::TooLarge, what) };
                    return self.reject_rest(&source.entry, &flaw);
                }
                Err(e) => return self.unread(&source.entry, gz, &e),
            };
            if line.is_empty() {
                self.batch.account_bytes((lines.position - position) as usize);
            } else {
                let admitted = text_of(&line).and_then(|text| self.accept(text, &source, place + 1));
                match admitted {
                    Ok(event) => self.batch.push(event),
                    Err(_) if !is_finished => {
                        self.advance(position, place, Some(sum));
                        return settle;
                    }
                    Err(flaw) => {
                        let flaw = Flaw { line: place as usize + 1, ..flaw };
                        if !ended
                            && flaw.incomplete
                            && let Some(wait) = self.wait_for_more(&source.entry)
                        {
                            self.advance(position, place, Some(sum));
                            return Ok(Some(wait));
                        }
                        let flaw = Flaw { incomplete: false, ..flaw };
                        self.reject_piece(&source, place + 1, &line, &flaw)?;
                    }
                }
            }
            self.advance(lines.position, lines.place, Some(lines.sum()));
            if self.batch.is_full(self.room) {
                self.flush()?;
                self.batch.begin(source.clone());
                self.advance(lines.position, lines.place, Some(lines.sum()));
            }
        }
        self.incomplete.remove(&source.entry.name);
        self.finish();
        Ok(None)
    }

    /// Whether the file is as it was listed, and has been for as long as no file does that is still written.
    fn has_settled(&self, entry: &Entry) -> bool {
        self.parts.spool.entry(&entry.name).is_some_and(|now| now == *entry)
            && age(entry, self.parts.clock.moment()).is_some_and(|age| age >= self.config.spool.settle)
    }

    /// An event of that text, completed and judged.
    fn accept(&self, text: &str, source: &SourceFile, place: u64) -> Result<NewEvent, Flaw> {
        let limit = self.config.spool.max_event_bytes;
        if text.len() as u64 > limit {
            let what = format!(
                "the event is larger than spool.max_event_bytes, {}: leave out what Koala does not need",
                Bytes(limit)
            );
            return Err(Flaw::at(text, 0, Code::TooLarge, what));
        }
        let event = Event::parse(text)?;
        let identity = source.progress.identity;
        let message_id = match event.message_id()? {
            Some(id) => id,
            None => {
                let mut first_seen = source.progress.name.clone();
                first_seen.push(0);
                first_seen.extend(identity.inode.to_le_bytes());
                first_seen.extend(identity.modified.to_le_bytes());
                MessageId::derived(&first_seen, place, event.raw().as_bytes())
            }
        };
        let spooled_at = Timestamp(identity.modified.max(0) / 1_000_000);
        Ok(NewEvent {
            digest: event.digest(),
            kind: event.kind().map(Into::into),
            name: event.name().map(Into::into),
            file: source.name.clone(),
            place,
            spooled_at,
            body: event.raw().to_owned(),
            disposition: disposition(&self.config.mappings, &event, &message_id, spooled_at),
            message_id,
        })
    }

    /// Notes in the append batch how far the current file is taken.
    fn advance(&mut self, position: u64, place: u64, sum: Option<u32>) {
        if let Some(SourceFile { progress, .. }) = self.batch.current() {
            (progress.position, progress.place, progress.sum) = (position, place, sum);
        }
    }

    /// Notes in the append batch that all of the current file is taken.
    fn finish(&mut self) {
        if let Some(source) = self.batch.current() {
            source.progress.finished = true;
        }
    }
}

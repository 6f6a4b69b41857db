//! Turns one file of the spool into a sequence of steps, which the intake acts on: events to store, parts to reject, and
//! how the reading ended.
//!
//! The reader changes nothing and knows neither the outbox nor `rejected/`, so that reading can be tested alone. It returns
//! one step at a time instead of calling the intake for each, because the intake has to be able to leave a file between
//! any two steps.

use super::append_batch::{ReadPosition, SourceFile};
use super::new_event::{ReadRules, new_event};
use super::rejections::RejectedPart;
use crate::config::Bytes;
use crate::event::{Elements, Event, Flaw, Raw, merge_envelope};
use crate::outbox::NewEvent;
use crate::reason::Code;
use crate::spool::{Document, Form, Format, ItemPositions, Line, Lines, unpacked, utf8_text};
use std::fs::File;
use std::io::{self, ErrorKind, Read};

/// Whether the end of the file is the end of its last event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileState {
    /// Nobody writes to the file any more.
    Finished,
    /// The file may still be written, so only whole events of it are read.
    MayGrow,
}

/// The next thing in a file.
#[derive(Debug)]
pub enum ReadStep {
    /// An event to store.
    Event(NewEvent),
    /// A blank line of so many bytes.
    Blank(usize),
    /// A line or element that cannot be ingested.
    Reject(RejectedPart),
    /// The last line, which ends too early: to be rejected, unless the file may still grow.
    RejectUnlessGrowing(RejectedPart),
    /// Nothing more is read.
    End(ReadEnd),
}

/// How the reading of a file ended.
#[derive(Debug)]
pub enum ReadEnd {
    /// All of the file is read.
    Complete,
    /// All lines so far are read of a file that may still grow.
    CompleteSoFar,
    /// The next line may still be written.
    Unsettled,
    /// Nothing of the file can be ingested. A file that only ends too early may still grow.
    Unusable(Flaw),
    /// The rest of the file cannot be ingested. A file that only ends too early may still grow.
    UnusableRest(Flaw),
    /// The file does not begin with the text that was ingested of it: it has to be read from its start.
    Shortened,
    /// The system cannot read the file.
    Failed(io::Error),
}

impl ReadEnd {
    /// The end that an error of reading means for a file of `size` bytes.
    fn by_error(error: io::Error, is_packed: bool, size: u64) -> ReadEnd {
        let flaw = |what: &str, incomplete| Flaw { incomplete, ..Flaw::at("", 0, Code::NotJson, what) };
        match error.kind() {
            ErrorKind::UnexpectedEof if is_packed && size > 0 => {
                ReadEnd::UnusableRest(flaw("the packed file ends too early", true))
            }
            ErrorKind::UnexpectedEof if is_packed => {
                ReadEnd::Unusable(flaw("the packed file is empty", true))
            }
            ErrorKind::InvalidInput | ErrorKind::InvalidData if is_packed => {
                ReadEnd::UnusableRest(flaw("the packed file is damaged, or is not gzip", false))
            }
            ErrorKind::UnexpectedEof => ReadEnd::Shortened,
            _ => ReadEnd::Failed(error),
        }
    }
}

/// A reader of one file.
pub struct FileReader<'a> {
    source: &'a SourceFile,
    rules: ReadRules,
    text: TextReader<'a>,
    position: ReadPosition,
}

enum TextReader<'a> {
    Document(DocumentReader<'a>),
    Lines(LineReader),
}

impl<'a> FileReader<'a> {
    /// Begins to read an open file; `format` is what its name says. A document is read into `buffer` as a whole, lines
    /// are read one by one.
    ///
    /// # Errors
    /// The reading has ended already.
    pub fn open(
        file: File,
        (format, is_packed): (Format, bool),
        state: FileState,
        source: &'a SourceFile,
        rules: ReadRules,
        buffer: &'a mut Vec<u8>,
    ) -> Result<FileReader<'a>, ReadEnd> {
        let (text, place) = match format {
            Format::Document => {
                *buffer = read_document(file, is_packed, source.entry.size, rules.max_file_bytes)?;
                let place = source.progress.place;
                (TextReader::Document(DocumentReader::new(buffer, place)?), place)
            }
            Format::Lines => {
                let lines = Lines::new(unpacked(file, is_packed), rules.max_file_bytes);
                (TextReader::Lines(LineReader { lines, is_packed, state }), 0)
            }
        };
        let position = ReadPosition { place, ..ReadPosition::default() };
        Ok(FileReader { source, rules, text, position })
    }

    /// Passes over text that was ingested before, but not over all of a long one at once. `false`: more is left.
    ///
    /// # Errors
    /// The reading has ended.
    pub fn skip_ingested(&mut self) -> Result<bool, ReadEnd> {
        let TextReader::Lines(reader) = &mut self.text else { return Ok(true) };
        let is_there = reader.skip_ingested(self.source)?;
        self.position = reader.position();
        Ok(is_there)
    }

    /// The position after the steps so far.
    pub fn position(&self) -> ReadPosition {
        self.position
    }

    /// The next step. [`ReadStep::End`] is the last.
    pub fn next_step(&mut self) -> ReadStep {
        let (step, position) = match &mut self.text {
            TextReader::Document(reader) => {
                let place = self.position.place + 1;
                let step = reader.next_step(place, self.source, &self.rules);
                (step, ReadPosition { place, ..self.position })
            }
            TextReader::Lines(reader) => {
                let step = reader.next_step(self.source, &self.rules);
                (step, reader.position())
            }
        };
        if !matches!(step, ReadStep::End(_)) {
            self.position = position;
        }
        step
    }
}

/// The unpacked text of a document of `size` bytes.
fn read_document(file: File, is_packed: bool, size: u64, limit: u64) -> Result<Vec<u8>, ReadEnd> {
    let is_too_large = !is_packed && size > limit;
    let most = if is_too_large { 0 } else { limit + 1 };
    // With room for one byte more, a file of ordinary size takes one read, and another to find its end.
    let mut text = Vec::with_capacity(usize::try_from(size.min(most)).map_or(0, |size| size + 1));
    unpacked(file, is_packed)
        .take(most)
        .read_to_end(&mut text)
        .map_err(|e| ReadEnd::by_error(e, is_packed, size))?;
    if !is_too_large && text.len() as u64 <= limit {
        return Ok(text);
    }
    let what = format!(
        "the document is larger than spool.max_file_bytes, {}: an event a line (.jsonl) has no such limit",
        Bytes(limit)
    );
    Err(ReadEnd::Unusable(Flaw::at("", 0, Code::TooLarge, what)))
}

/// Reads the elements of a document.
struct DocumentReader<'a> {
    form: Form,
    elements: Elements<'a>,
    context: Option<Raw<'a>>,
    integrations: Option<Raw<'a>>,
    positions: ItemPositions<'a>,
}

impl<'a> DocumentReader<'a> {
    /// A reader of all elements but the first `ingested`.
    fn new(text: &'a [u8], ingested: u64) -> Result<DocumentReader<'a>, ReadEnd> {
        let text = utf8_text(text).map_err(ReadEnd::Unusable)?;
        let mut document = Document::parse(text).map_err(ReadEnd::Unusable)?;
        document.items.by_ref().take(usize::try_from(ingested).unwrap_or(usize::MAX)).for_each(drop);
        Ok(DocumentReader {
            form: document.form,
            elements: document.items,
            context: document.context,
            integrations: document.integrations,
            positions: ItemPositions::new(text),
        })
    }

    fn next_step(&mut self, place: u64, source: &SourceFile, rules: &ReadRules) -> ReadStep {
        let Some(element) = self.elements.next() else { return ReadStep::End(ReadEnd::Complete) };
        let event = match self.form {
            Form::Single => new_event(element, 0, source, rules),
            Form::Array => new_event(element, place, source, rules),
            Form::Envelope => self.event_of_envelope(element, place, source, rules),
        };
        match event.map_err(|flaw| self.positions.locate(element, flaw)) {
            Ok(event) => ReadStep::Event(event),
            Err(flaw) if self.form == Form::Single => ReadStep::End(ReadEnd::Unusable(flaw)),
            Err(flaw) => ReadStep::Reject(RejectedPart { place, content: element.into(), flaw }),
        }
    }

    fn event_of_envelope(
        &self,
        element: &str,
        place: u64,
        source: &SourceFile,
        rules: &ReadRules,
    ) -> Result<NewEvent, Flaw> {
        let event = Event::parse(element)?;
        // A flaw of the messageId is placed in the element as it came; merging moves the text behind `context`.
        event.message_id()?;
        new_event(&merge_envelope(&event, self.context, self.integrations), place, source, rules)
    }
}

/// Reads a file line by line.
struct LineReader {
    lines: Lines<Box<dyn Read + Send>>,
    is_packed: bool,
    state: FileState,
}

impl LineReader {
    fn position(&self) -> ReadPosition {
        let Lines { position, place, .. } = self.lines;
        ReadPosition { position, place, sum: Some(self.lines.crc()) }
    }

    fn skip_ingested(&mut self, source: &SourceFile) -> Result<bool, ReadEnd> {
        let progress = &source.progress;
        if self.lines.position < progress.position {
            let skipped = self.lines.skip_towards(progress.position, progress.place);
            if !skipped.map_err(|e| ReadEnd::by_error(e, self.is_packed, source.entry.size))? {
                return Ok(false);
            }
        }
        if progress.sum.is_some_and(|sum| sum != self.lines.crc()) {
            return Err(ReadEnd::Shortened);
        }
        Ok(true)
    }

    fn next_step(&mut self, source: &SourceFile, rules: &ReadRules) -> ReadStep {
        let (start, place) = (self.lines.position, self.lines.place + 1);
        let may_grow = self.state == FileState::MayGrow;
        let (line, is_ended) = match self.lines.next_line() {
            Ok(Line::Unterminated(_) | Line::TooLong) | Err(_) if may_grow => {
                return ReadStep::End(ReadEnd::Unsettled);
            }
            Ok(Line::Text(line)) => (line, true),
            Ok(Line::Unterminated(line)) => (line, false),
            Ok(Line::End) if may_grow => return ReadStep::End(ReadEnd::CompleteSoFar),
            Ok(Line::End) => return ReadStep::End(ReadEnd::Complete),
            Ok(Line::TooLong) => {
                let what = format!(
                    "line {place} goes on for more than spool.max_file_bytes, {}",
                    Bytes(rules.max_file_bytes)
                );
                let flaw = Flaw { line: place as usize, ..Flaw::at("", 0, Code::TooLarge, what) };
                return ReadStep::End(ReadEnd::UnusableRest(flaw));
            }
            Err(e) => return ReadStep::End(ReadEnd::by_error(e, self.is_packed, source.entry.size)),
        };
        if line.is_empty() {
            return ReadStep::Blank((self.lines.position - start) as usize);
        }
        let flaw = match utf8_text(&line).and_then(|text| new_event(text, place, source, rules)) {
            Ok(event) => return ReadStep::Event(event),
            Err(_) if may_grow => return ReadStep::End(ReadEnd::Unsettled),
            Err(flaw) => flaw,
        };
        let is_cut = !is_ended && flaw.incomplete;
        let flaw = Flaw { line: place as usize, incomplete: false, ..flaw };
        let part = RejectedPart { place, content: line, flaw };
        if is_cut { ReadStep::RejectUnlessGrowing(part) } else { ReadStep::Reject(part) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::Mappings;
    use crate::outbox::FileProgress;
    use crate::spool::{FileIdentity, SpoolEntry};
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::{Seek, Write};
    use std::sync::Arc;

    const A: &str = r#"{"type":"track","event":"a","userId":"u"}"#;

    fn source(name: &str, size: usize, ingested: ReadPosition) -> SourceFile {
        let identity = FileIdentity { inode: 1, born: 1, modified: 1 };
        let entry = SpoolEntry { name: name.into(), identity, size: size as u64, changed: 1 };
        let ReadPosition { position, place, sum } = ingested;
        let none = FileProgress::none(name.as_bytes(), identity, (size as u64, 1));
        SourceFile::new(entry, FileProgress { position, place, sum, ..none })
    }

    /// The steps of a file, in short, and the position after the last.
    fn steps(name: &str, content: &[u8], state: FileState, ingested: ReadPosition) -> (String, ReadPosition) {
        let source = source(name, content.len(), ingested);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file.rewind().unwrap();
        let rules =
            ReadRules { max_file_bytes: 200, max_event_bytes: 100, mappings: Arc::new(Mappings::presets()) };
        let (mut buffer, mut shown) = (Vec::new(), Vec::new());
        let format = source.entry.format().unwrap();
        let mut reader = match FileReader::open(file, format, state, &source, rules, &mut buffer) {
            Ok(reader) => reader,
            Err(end) => return (end_in_short(&end), ReadPosition::default()),
        };
        match reader.skip_ingested() {
            Ok(is_there) => assert!(is_there),
            Err(end) => return (end_in_short(&end), ReadPosition::default()),
        }
        loop {
            match reader.next_step() {
                ReadStep::Event(event) => shown.push(format!("event {}", event.place)),
                ReadStep::Blank(bytes) => shown.push(format!("blank {bytes}")),
                ReadStep::Reject(part) => shown.push(format!("reject {}", part.place)),
                ReadStep::RejectUnlessGrowing(part) => shown.push(format!("cut {}", part.place)),
                ReadStep::End(end) => {
                    shown.push(end_in_short(&end));
                    return (shown.join(", "), reader.position());
                }
            }
        }
    }

    fn end_in_short(end: &ReadEnd) -> String {
        match end {
            ReadEnd::Complete => "complete".to_owned(),
            ReadEnd::CompleteSoFar => "complete so far".to_owned(),
            ReadEnd::Unsettled => "unsettled".to_owned(),
            ReadEnd::Unusable(flaw) => format!("unusable{}", if flaw.incomplete { " so far" } else { "" }),
            ReadEnd::UnusableRest(flaw) => {
                format!("rest unusable{}", if flaw.incomplete { " so far" } else { "" })
            }
            ReadEnd::Shortened => "shortened".to_owned(),
            ReadEnd::Failed(e) => panic!("{e}"),
        }
    }

    fn packed(text: &str) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn each_file_is_a_sequence_of_steps() {
        let long = format!(r#"{{"type":"track","event":"{}"}}"#, "x".repeat(100));
        let endless = "x".repeat(300);
        let cut_off = packed(A).len() - 9;
        for (name, content, when_finished, when_it_may_grow) in [
            ("a.json", A.into(), "event 0, complete", "event 0, complete"),
            ("a.json", "[]".into(), "complete", "complete"),
            (
                "a.json",
                format!("[{A}, 7, {A}]"),
                "event 1, reject 2, event 3, complete",
                "event 1, reject 2, event 3, complete",
            ),
            ("a.json", format!("{{\"batch\":[{A}]}}"), "event 1, complete", "event 1, complete"),
            ("a.json", r#"{"type":"#.into(), "unusable so far", "unusable so far"),
            ("a.json", "hello".into(), "unusable", "unusable"),
            ("a.json", long.clone(), "unusable", "unusable"),
            ("a.json", endless.clone(), "unusable", "unusable"),
            ("a.jsonl", "".into(), "complete", "complete so far"),
            (
                "a.jsonl",
                format!("{A}\n\n{A}\n"),
                "event 1, blank 1, event 3, complete",
                "event 1, blank 1, event 3, complete so far",
            ),
            ("a.jsonl", format!("{A}\n{A}"), "event 1, event 2, complete", "event 1, unsettled"),
            ("a.jsonl", format!("7\n{A}\n"), "reject 1, event 2, complete", "unsettled"),
            ("a.jsonl", format!("{A}\n{{\"a"), "event 1, cut 2, complete", "event 1, unsettled"),
            ("a.jsonl", format!("{{\"a\n{A}\n"), "reject 1, event 2, complete", "unsettled"),
            ("a.jsonl", format!("{A}\n{long}\n"), "event 1, reject 2, complete", "event 1, unsettled"),
            ("a.jsonl", format!("{A}\n{endless}"), "event 1, rest unusable", "event 1, unsettled"),
        ] {
            let ingested = ReadPosition::default();
            for (state, want) in
                [(FileState::Finished, when_finished), (FileState::MayGrow, when_it_may_grow)]
            {
                let (shown, _) = steps(name, content.as_bytes(), state, ingested);
                assert_eq!(shown, want, "{name} {state:?} {content}");
                if !want.contains("unusable") {
                    let (shown, _) = steps(&format!("{name}.gz"), &packed(&content), state, ingested);
                    assert_eq!(shown, want, "{name}.gz {state:?} {content}");
                }
            }
        }
        for (name, content, want) in [
            ("a.json.gz", packed(A)[..cut_off].to_vec(), "rest unusable so far"),
            ("a.jsonl.gz", packed(A)[..cut_off].to_vec(), "rest unusable so far"),
            ("a.json.gz", Vec::new(), "unusable so far"),
            ("a.jsonl.gz", A.into(), "rest unusable"),
        ] {
            assert_eq!(steps(name, &content, FileState::Finished, ReadPosition::default()).0, want, "{name}");
        }
    }

    #[test]
    fn a_file_ingested_in_part_is_read_from_there_unless_its_beginning_has_changed() {
        let (first, both) = (format!("{A}\n"), format!("{A}\n{A}\n"));
        let (_, ingested) = steps("a.jsonl", first.as_bytes(), FileState::Finished, ReadPosition::default());
        assert_eq!((ingested.position, ingested.place), (first.len() as u64, 1));
        let again = |content: &str| steps("a.jsonl", content.as_bytes(), FileState::Finished, ingested).0;
        assert_eq!(again(&both), "event 2, complete");
        assert_eq!(again(&both.replace("track", "crack")), "shortened");
        assert_eq!(again(A), "shortened");

        let array = format!("[{A},{A},{A}]");
        let ingested = ReadPosition { place: 2, ..ReadPosition::default() };
        assert_eq!(steps("a.json", array.as_bytes(), FileState::Finished, ingested).0, "event 3, complete");
    }
}

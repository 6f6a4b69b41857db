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
use crate::event::{Event, Flaw, Raw, merge_envelope};
use crate::outbox::{FileProgress, NewEvent};
use crate::reason::Code;
use crate::spool::{Document, Form, Format, ItemPositions, Line, Lines, unpacked, utf8_text};
use serde_json::value::RawValue;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::ops::Range;

/// The next thing in a file.
#[derive(Debug)]
pub enum ReadStep {
    /// An event to store.
    Event(NewEvent),
    /// So many bytes without an event: white space, or text that was ingested before.
    NoEvent(usize),
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

/// A reader of one file. It owns all that it needs, so that it can be kept while other files are read.
pub struct FileReader {
    source: SourceFile,
    rules: ReadRules,
    text: TextReader,
    position: ReadPosition,
}

enum TextReader {
    Document(DocumentReader),
    Lines(LineReader),
}

impl FileReader {
    /// Begins to read an open file; `format` is what its name says.
    ///
    /// # Errors
    /// The reading has ended already.
    pub fn open(
        file: File,
        (format, is_packed): (Format, bool),
        source: SourceFile,
        rules: ReadRules,
    ) -> Result<FileReader, ReadEnd> {
        let text = match format {
            Format::Document => {
                let text = read_document(file, is_packed, source.entry.size, rules.max_file_bytes)?;
                TextReader::Document(DocumentReader::new(text, source.progress.place)?)
            }
            Format::Lines => {
                let lines = Lines::new(unpacked(file, is_packed), rules.max_file_bytes);
                TextReader::Lines(LineReader { lines, is_packed })
            }
        };
        let FileProgress { position, place, sum, .. } = source.progress;
        Ok(FileReader { source, rules, text, position: ReadPosition { position, place, sum } })
    }

    /// The file that is read.
    pub fn source(&self) -> &SourceFile {
        &self.source
    }

    /// The position after the steps so far. It never falls behind the position from which the file was to be read on.
    pub fn position(&self) -> ReadPosition {
        self.position
    }

    /// The bytes of text that the reader holds in memory.
    #[allow(dead_code, reason = "asked by whoever keeps several readers at once")]
    pub fn memory(&self) -> usize {
        match &self.text {
            TextReader::Document(reader) => reader.text.len(),
            TextReader::Lines(reader) => reader.lines.memory(),
        }
    }

    /// The next step. [`ReadStep::End`] is the last.
    pub fn next_step(&mut self) -> ReadStep {
        let (step, position) = match &mut self.text {
            TextReader::Document(reader) => {
                let place = self.position.place + 1;
                let step = reader.next_step(place, &self.source, &self.rules);
                (step, ReadPosition { place, ..self.position })
            }
            TextReader::Lines(reader) => match reader.skip_ingested(&self.source) {
                Ok(0) => (reader.next_step(&self.source, &self.rules), reader.position()),
                Ok(skipped) => return ReadStep::NoEvent(skipped as usize),
                Err(end) => return ReadStep::End(end),
            },
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
struct DocumentReader {
    text: String,
    form: Form,
    elements: std::vec::IntoIter<Range<usize>>,
    context: Option<Range<usize>>,
    integrations: Option<Range<usize>>,
    positions: ItemPositions,
}

impl DocumentReader {
    /// A reader of all elements but the first `ingested`.
    fn new(bytes: Vec<u8>, ingested: u64) -> Result<DocumentReader, ReadEnd> {
        let text = utf8_text(&bytes).map_err(ReadEnd::Unusable)?.to_owned();
        let range = |part: &str| {
            let start = part.as_ptr().addr() - text.as_ptr().addr();
            start..start + part.len()
        };
        let document = Document::parse(&text).map_err(ReadEnd::Unusable)?;
        let elements: Vec<_> =
            document.items.skip(usize::try_from(ingested).unwrap_or(usize::MAX)).map(range).collect();
        Ok(DocumentReader {
            form: document.form,
            elements: elements.into_iter(),
            context: document.context.map(|context| range(context.get())),
            integrations: document.integrations.map(|integrations| range(integrations.get())),
            positions: ItemPositions::default(),
            text,
        })
    }

    fn next_step(&mut self, place: u64, source: &SourceFile, rules: &ReadRules) -> ReadStep {
        let Some(range) = self.elements.next() else { return ReadStep::End(ReadEnd::Complete) };
        let element = &self.text[range];
        let event = match self.form {
            Form::Single => new_event(element, 0, source, rules),
            Form::Array => new_event(element, place, source, rules),
            Form::Envelope => self.event_of_envelope(element, place, source, rules),
        };
        match event.map_err(|flaw| self.positions.locate(&self.text, element, flaw)) {
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
        let raw = |range: &Option<Range<usize>>| {
            range
                .clone()
                .and_then(|range| serde_json::from_str::<&RawValue>(&self.text[range]).ok())
                .map(Raw::from)
        };
        let merged = merge_envelope(&event, raw(&self.context), raw(&self.integrations));
        new_event(&merged, place, source, rules)
    }
}

/// Reads a file line by line.
struct LineReader {
    lines: Lines<Box<dyn Read + Send>>,
    is_packed: bool,
}

impl LineReader {
    fn position(&self) -> ReadPosition {
        let Lines { position, place, .. } = self.lines;
        ReadPosition { position, place, sum: Some(self.lines.crc()) }
    }

    /// Skips a stretch of the text that was ingested before. Returns its bytes, 0 at the end of that text.
    fn skip_ingested(&mut self, source: &SourceFile) -> Result<u64, ReadEnd> {
        let progress = &source.progress;
        let before = self.lines.position;
        if before < progress.position {
            let skipped = self.lines.skip_towards(progress.position, progress.place);
            skipped.map_err(|e| ReadEnd::by_error(e, self.is_packed, source.entry.size))?;
            if self.lines.position == progress.position
                && progress.sum.is_some_and(|sum| sum != self.lines.crc())
            {
                return Err(ReadEnd::Shortened);
            }
        }
        Ok(self.lines.position - before)
    }

    fn next_step(&mut self, source: &SourceFile, rules: &ReadRules) -> ReadStep {
        let (start, place) = (self.lines.position, self.lines.place + 1);
        let (line, is_ended) = match self.lines.next_line() {
            Ok(Line::Text(line)) => (line, true),
            Ok(Line::Unterminated(line)) => (line, false),
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
            return ReadStep::NoEvent((self.lines.position - start) as usize);
        }
        let flaw = match utf8_text(&line).and_then(|text| new_event(text, place, source, rules)) {
            Ok(event) => return ReadStep::Event(event),
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
    fn steps(name: &str, content: &[u8], ingested: ReadPosition) -> (String, ReadPosition) {
        let source = source(name, content.len(), ingested);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file.rewind().unwrap();
        let rules =
            ReadRules { max_file_bytes: 200, max_event_bytes: 100, mappings: Arc::new(Mappings::presets()) };
        let mut shown = Vec::new();
        let format = source.entry.format().unwrap();
        let mut reader = match FileReader::open(file, format, source, rules) {
            Ok(reader) => reader,
            Err(end) => return (end_in_short(&end), ReadPosition::default()),
        };
        loop {
            match reader.next_step() {
                ReadStep::Event(event) => shown.push(format!("event {}", event.place)),
                ReadStep::NoEvent(bytes) => shown.push(format!("blank {bytes}")),
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
        for (name, content, want) in [
            ("a.json", A.into(), "event 0, complete"),
            ("a.json", "[]".into(), "complete"),
            ("a.json", format!("[{A}, 7, {A}]"), "event 1, reject 2, event 3, complete"),
            ("a.json", format!("{{\"batch\":[{A}]}}"), "event 1, complete"),
            ("a.json", r#"{"type":"#.into(), "unusable so far"),
            ("a.json", "hello".into(), "unusable"),
            ("a.json", long.clone(), "unusable"),
            ("a.json", endless.clone(), "unusable"),
            ("a.jsonl", "".into(), "complete"),
            ("a.jsonl", format!("{A}\n\n{A}\n"), "event 1, blank 1, event 3, complete"),
            ("a.jsonl", format!("{A}\n{A}"), "event 1, event 2, complete"),
            ("a.jsonl", format!("7\n{A}\n"), "reject 1, event 2, complete"),
            ("a.jsonl", format!("{A}\n{{\"a"), "event 1, cut 2, complete"),
            ("a.jsonl", format!("{{\"a\n{A}\n"), "reject 1, event 2, complete"),
            ("a.jsonl", format!("{A}\n{long}\n"), "event 1, reject 2, complete"),
            ("a.jsonl", format!("{A}\n{endless}"), "event 1, rest unusable"),
        ] {
            let none = ReadPosition::default();
            assert_eq!(steps(name, content.as_bytes(), none).0, want, "{name} {content}");
            if !want.contains("unusable") {
                let name = format!("{name}.gz");
                assert_eq!(steps(&name, &packed(&content), none).0, want, "{name} {content}");
            }
        }
        for (name, content, want) in [
            ("a.json.gz", packed(A)[..cut_off].to_vec(), "rest unusable so far"),
            ("a.jsonl.gz", packed(A)[..cut_off].to_vec(), "rest unusable so far"),
            ("a.json.gz", Vec::new(), "unusable so far"),
            ("a.jsonl.gz", A.into(), "rest unusable"),
        ] {
            assert_eq!(steps(name, &content, ReadPosition::default()).0, want, "{name}");
        }
    }

    #[test]
    fn a_file_ingested_in_part_is_read_from_there_unless_its_beginning_has_changed() {
        let (first, both) = (format!("{A}\n"), format!("{A}\n{A}\n"));
        let (_, ingested) = steps("a.jsonl", first.as_bytes(), ReadPosition::default());
        assert_eq!((ingested.position, ingested.place), (first.len() as u64, 1));
        let again = |content: &str| steps("a.jsonl", content.as_bytes(), ingested).0;
        assert_eq!(again(&both), "blank 42, event 2, complete");
        assert_eq!(again(&both.replace("track", "crack")), "shortened");
        assert_eq!(again(A), "shortened");

        let array = format!("[{A},{A},{A}]");
        let ingested = ReadPosition { place: 2, ..ReadPosition::default() };
        assert_eq!(steps("a.json", array.as_bytes(), ingested).0, "event 3, complete");
    }
}

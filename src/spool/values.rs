//! Reads the events of one file, in any form: JSON values one after another, each an event, an array of events, or
//! Segment's batch envelope.
//!
//! ```text
//!   Between ──value──▶ Scanning ──end──▶ event, or Elements ──last──▶ Between
//!                          └──bad byte──▶ BadSpan (lines) or BadRest (document)
//! ```
//!
//! A step does a bounded amount of work: it reads at most [`READ_BUFFER`] bytes, or parses one value. Memory holds the
//! text of one value, and is decided by its length: the members of an object that is too large are not collected.
//!
//! The text is not split into lines first, because a value may go over several lines and a line may hold several values.
//! Only the usual case is tried that way: a line that parses alone is parsed once, and the scanner never sees it.

use super::names::Format;
use super::text::{READ_BUFFER, Text};
use crate::config::Bytes;
use crate::event::json::{self, Scanned, ValueScanner};
use crate::event::{EnvelopeCommon, Event, Flaw, merge_envelope};
use crate::reason::Code;
use flate2::Crc;
use serde_json::value::RawValue;
use std::io::{self, ErrorKind, Read};

/// A buffer that grows beyond this grows to the largest value at once: a buffer that is doubled again and again is in
/// memory twice. Pages that are not written to take no memory.
const LARGE_BUFFER: usize = 1 << 20;
/// The byte order mark.
const BOM: &[u8] = b"\xef\xbb\xbf";

/// The sizes that a file may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadLimits {
    /// The largest text of one value, in bytes: it is in memory.
    pub max_value: u64,
    /// The most content of an event: its bytes, white space outside strings not counted.
    pub max_event: u64,
    /// The most content of a value that goes over several lines of a file of lines. If a line is cut, this is how far its
    /// rest is looked for.
    pub max_over_lines: u64,
}

/// A position in the text of a file, up to which it has been read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReadPosition {
    /// The number of bytes of text before it; 0 in a document, whose place says how far it is read.
    pub position: u64,
    /// The place of the last event or rejected part before it.
    pub place: u64,
    /// The CRC-32 of the text before it.
    pub sum: Option<u32>,
}

/// Where an event stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventPlace {
    /// The number of the event: in a file of lines the line in which it begins, unless that number is taken by another
    /// event of the line; in a document the number of the element. 0 for the event with which a document begins.
    pub place: u64,
    /// The line in which it begins, from 1.
    pub line: u64,
}

/// A part of a file that cannot be ingested.
#[derive(Debug, PartialEq, Eq)]
pub struct RejectedPart {
    /// See [`EventPlace::place`]; never 0.
    pub place: u64,
    /// The bytes of the part.
    pub content: Vec<u8>,
    /// Why it cannot be ingested. Line and column are those of the file.
    pub flaw: Flaw,
}

/// The next thing in a file.
#[derive(Debug)]
pub enum ReadStep<T> {
    /// An event.
    Event(T),
    /// So many bytes were read, and they hold no event: white space, a part of a long value, or text that was ingested
    /// before.
    NoEvent(usize),
    /// A part that cannot be ingested.
    Reject(RejectedPart),
    /// The last part, which ends too early: to be rejected, unless the file may still grow.
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

/// A reader of the events of one file.
pub struct Values {
    text: Text,
    /// The size of the file, packed or not, where it is known.
    size: Option<u64>,
    format: Format,
    limits: ReadLimits,
    buffer: Vec<u8>,
    /// The bytes of `buffer` that are consumed.
    start: usize,
    bytes_read: u64,
    is_at_end: bool,
    lines: LineCounter,
    checksum: Crc,
    /// The place of the last event or part.
    place: u64,
    /// Whether any value has been read, be it an array without elements.
    has_value: bool,
    /// Whether only blanks have been read of the current line.
    is_line_start: bool,
    /// The bytes of white space since the last value or, in a file of lines, the last line end.
    blanks: u64,
    /// Where the reading is to go on.
    from: ReadPosition,
    /// The position after the last step in a file of lines.
    settled: ReadPosition,
    stage: Stage,
    /// The first value of a document, which cannot be taken: the whole document is rejected if it is the only one.
    first_flawed: Option<RejectedPart>,
}

#[derive(Debug)]
enum Stage {
    /// Before text that was ingested before.
    Skipping,
    /// Before the next value, or white space.
    Between,
    /// Within a value, of which so many bytes are scanned.
    Scanning { scanner: ValueScanner, scanned: usize, is_over_lines: bool },
    /// Within an array of events.
    Elements(Elements),
    /// Within bad text of a file of lines, of which so many bytes hold no line that begins an object.
    BadSpan { searched: usize },
    /// Within the rest of a document, after an error, which is placed in that rest.
    BadRest { flaw: Flaw },
}

#[derive(Debug)]
struct Elements {
    /// The bytes up to the end of the array or of the envelope around it.
    remaining: usize,
    /// What applies to all elements, if an envelope is around them; compact.
    context: Option<String>,
    integrations: Option<String>,
}

/// The result of a part of a step.
enum Flow<T> {
    Step(ReadStep<T>),
    /// The stage has changed.
    Again,
    /// More text is needed. Not at its end.
    NeedText,
}

/// What one value is.
enum Judged<T> {
    Event(T),
    /// Valid JSON that cannot be taken.
    Flawed(Flaw),
    /// No JSON.
    Invalid(Flaw),
    /// Elements, whose array begins at this byte of the value.
    Elements(usize, Elements),
}

impl Values {
    /// Reads `text` from its beginning, but has no events before `from`.
    pub fn new(
        text: Text,
        size: Option<u64>,
        format: Format,
        limits: ReadLimits,
        from: ReadPosition,
    ) -> Values {
        let is_skipping = format == Format::Lines && (from.position > 0 || from.sum.is_some());
        Values {
            text,
            size,
            format,
            limits,
            buffer: Vec::new(),
            start: 0,
            bytes_read: 0,
            is_at_end: false,
            lines: LineCounter { line: 1, line_start: 0, at: 0 },
            checksum: Crc::new(),
            place: 0,
            has_value: false,
            is_line_start: true,
            blanks: 0,
            from,
            settled: from,
            stage: if is_skipping { Stage::Skipping } else { Stage::Between },
            first_flawed: None,
        }
    }

    /// The position after the steps so far. It never falls behind the position from which the file was to be read on.
    /// Within an array of a file of lines it is the one before the array: whoever goes on there finds the array again.
    pub fn position(&self) -> ReadPosition {
        match self.format {
            Format::Lines => self.settled,
            Format::Document => {
                ReadPosition { position: 0, place: self.place.max(self.from.place), sum: None }
            }
        }
    }

    /// The bytes of text in memory.
    pub fn memory(&self) -> usize {
        self.buffer.len()
    }

    /// Whether bytes follow the packed text that are neither packed text nor padding. Known at the end.
    pub fn has_trailing_bytes(&self) -> bool {
        self.text.has_trailing_bytes()
    }

    /// The next step. [`ReadStep::End`] is the last. `make` makes of an event what the caller wants; its error rejects the
    /// event, with a position within the event's text.
    pub fn next_step<T>(
        &mut self,
        mut make: impl FnMut(&Event<'_>, EventPlace) -> Result<T, Flaw>,
    ) -> ReadStep<T> {
        let mut read = None;
        loop {
            let flow = match &self.stage {
                Stage::Skipping => self.skip(),
                Stage::Between => self.between(&mut make),
                Stage::Scanning { .. } => self.scan(&mut make),
                Stage::Elements(_) => self.element(&mut make),
                Stage::BadSpan { .. } => self.bad_span(),
                Stage::BadRest { .. } => self.bad_rest(),
            };
            match flow {
                Flow::Step(step) => return step,
                Flow::Again => {}
                Flow::NeedText => match read {
                    Some(bytes) => return ReadStep::NoEvent(bytes),
                    None => match self.read_more() {
                        Ok(bytes) => read = Some(bytes),
                        Err(error) => return ReadStep::End(self.end_by_error(error)),
                    },
                },
            }
        }
    }

    fn rest(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    /// Reads once.
    fn read_more(&mut self) -> io::Result<usize> {
        self.buffer.drain(..self.start);
        self.start = 0;
        if self.buffer.capacity() > LARGE_BUFFER && self.buffer.len() < LARGE_BUFFER / 2 {
            self.buffer.shrink_to(LARGE_BUFFER / 2);
        }
        let length = self.buffer.len();
        // With room for one byte more, a file of ordinary size takes one read, and another to find its end.
        let size = self.size.filter(|_| self.bytes_read == 0 && !self.text.is_packed());
        let room = size.map_or(READ_BUFFER, |size| size.saturating_add(1).min(READ_BUFFER as u64) as usize);
        if length + room > LARGE_BUFFER && self.buffer.capacity() < length + room {
            let largest = usize::try_from(self.limits.max_value).unwrap_or(usize::MAX);
            // Where so much cannot be reserved, the buffer grows as buffers do.
            let _ = self.buffer.try_reserve_exact(largest.saturating_add(2 * READ_BUFFER) - length);
        }
        self.buffer.resize(length + room, 0);
        let read = self.text.read(&mut self.buffer[length..]);
        self.buffer.truncate(length + read.as_ref().map_or(0, |bytes| *bytes));
        match read {
            Ok(bytes) => {
                self.is_at_end = bytes == 0;
                self.bytes_read += bytes as u64;
                Ok(bytes)
            }
            // Nothing yet.
            Err(e) if e.kind() == ErrorKind::Interrupted => Ok(0),
            Err(e) => Err(e),
        }
    }

    fn end_by_error(&self, error: io::Error) -> ReadEnd {
        let (is_packed, is_empty) = (self.text.is_packed(), self.size == Some(0));
        let flaw = |what: &str, incomplete| Flaw { incomplete, ..Flaw::at("", 0, Code::NotJson, what) };
        match error.kind() {
            ErrorKind::UnexpectedEof if is_packed && !is_empty => {
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

    /// Passes over the next bytes.
    fn consume(&mut self, bytes: usize) {
        let text = &self.buffer[self.start..self.start + bytes];
        if self.format == Format::Lines {
            self.checksum.update(text);
        }
        self.lines.advance(text);
        self.start += bytes;
    }

    /// Passes over the next bytes and returns them; many of them without a copy.
    fn take(&mut self, bytes: usize) -> Vec<u8> {
        let from = self.start;
        self.consume(bytes);
        if bytes < LARGE_BUFFER {
            return self.buffer[from..self.start].to_vec();
        }
        let rest = self.buffer.split_off(self.start);
        let mut taken = std::mem::replace(&mut self.buffer, rest);
        self.start = 0;
        taken.drain(..from);
        taken.shrink_to_fit();
        taken
    }

    /// The place of the value at which the reading is.
    fn next_place(&self) -> u64 {
        match self.format {
            Format::Lines => self.lines.line.max(self.place + 1),
            Format::Document => self.place + 1,
        }
    }

    /// Whether the next place was ingested before.
    fn is_ingested(&self, place: u64) -> bool {
        self.format == Format::Document && place <= self.from.place
    }

    /// Passes over text that was ingested before.
    fn skip<T>(&mut self) -> Flow<T> {
        let left = self.from.position - self.lines.at;
        self.consume(usize::try_from(left).map_or(self.rest().len(), |left| left.min(self.rest().len())));
        if self.lines.at < self.from.position {
            if self.is_at_end {
                let end = self.end_by_error(ErrorKind::UnexpectedEof.into());
                return Flow::Step(ReadStep::End(end));
            }
            return Flow::NeedText;
        }
        if self.from.sum.is_some_and(|sum| sum != self.checksum.sum()) {
            return Flow::Step(ReadStep::End(ReadEnd::Shortened));
        }
        self.place = self.from.place;
        self.is_line_start = self.lines.at == self.lines.line_start;
        self.stage = Stage::Between;
        Flow::Again
    }

    /// Passes over blanks, then begins the next value.
    fn between<T>(&mut self, make: &mut impl FnMut(&Event<'_>, EventPlace) -> Result<T, Flaw>) -> Flow<T> {
        if let Some(end) = self.pass_blanks() {
            return Flow::Step(ReadStep::End(end));
        }
        self.settle();
        let Some(&first) = self.rest().first() else {
            return if self.is_at_end { Flow::Step(ReadStep::End(self.complete())) } else { Flow::NeedText };
        };
        let rest = self.rest();
        if first == BOM[0] && BOM.starts_with(&rest[..rest.len().min(BOM.len())]) {
            if rest.len() < BOM.len() && !self.is_at_end {
                return Flow::NeedText;
            }
            if rest.len() >= BOM.len() {
                self.consume(BOM.len());
                // The mark is no part of the line.
                self.lines.line_start = self.lines.at;
                return Flow::Again;
            }
        }
        if let Some(part) = self.first_flawed.take() {
            // More follows, so it is a part by itself.
            return if self.is_ingested(part.place) {
                Flow::Again
            } else {
                Flow::Step(ReadStep::Reject(part))
            };
        }
        if self.is_document_read_ahead() {
            return Flow::NeedText;
        }
        if first == b'{'
            && let Some(flow) = self.simple_object(make)
        {
            return flow;
        }
        let scanner = ValueScanner::new();
        self.stage = Stage::Scanning { scanner, scanned: 0, is_over_lines: false };
        Flow::Again
    }

    /// Whether a packed document is read on before anything of it is taken: whether it is damaged is known at its end.
    fn is_document_read_ahead(&self) -> bool {
        self.format == Format::Document
            && self.text.is_packed()
            && self.place == 0
            && !self.is_at_end
            && self.rest().len() as u64 <= self.limits.max_value
    }

    /// The end of a file that has no more values.
    fn complete(&mut self) -> ReadEnd {
        if let Some(part) = self.first_flawed.take() {
            return ReadEnd::Unusable(part.flaw);
        }
        if self.format == Format::Document && !self.has_value {
            return ReadEnd::Unusable(self.located(invalid_flaw(b"")));
        }
        ReadEnd::Complete
    }

    /// Passes over white space and zeros.
    fn pass_blanks(&mut self) -> Option<ReadEnd> {
        let rest = self.rest();
        let text = &rest[..rest.iter().take_while(|byte| is_blank(**byte)).count()];
        // Behind a value, zeros are the padding of a file for which more room was allocated.
        let counted = |text: &[u8]| match self.place {
            0 => text.len() as u64,
            _ => text.iter().filter(|byte| **byte != 0).count() as u64,
        };
        let mut ends_line = false;
        let (mut blanks, mut most, mut from) = (self.blanks, 0, 0);
        if self.format == Format::Lines {
            for newline in memchr::memchr_iter(b'\n', text) {
                most = most.max(blanks + counted(&text[from..newline]));
                (ends_line, blanks, from) = (true, 0, newline + 1);
            }
        }
        blanks += counted(&text[from..]);
        let length = text.len();
        self.is_line_start |= ends_line;
        self.blanks = blanks;
        self.consume(length);
        (most.max(blanks) > self.limits.max_value).then(|| self.too_large())
    }

    /// The end because of a value that is larger than a value may be.
    fn too_large(&self) -> ReadEnd {
        let limit = Bytes(self.limits.max_value);
        let line = self.lines.line;
        match self.format {
            Format::Document => {
                let what = format!(
                    "the document is larger than spool.max_file_bytes, {limit}: events one after another have no such limit"
                );
                let flaw = Flaw::at("", 0, Code::TooLarge, what);
                if self.place == 0 {
                    ReadEnd::Unusable(flaw)
                } else {
                    ReadEnd::UnusableRest(self.located(flaw))
                }
            }
            Format::Lines => {
                let what = format!("line {line} goes on for more than spool.max_file_bytes, {limit}");
                let line = usize::try_from(line).unwrap_or(usize::MAX);
                ReadEnd::UnusableRest(Flaw { line, ..Flaw::at("", 0, Code::TooLarge, what) })
            }
        }
    }

    /// Takes an object that is all of its line or of its document, as almost every object is, with a single parse; `None`: it is no such object.
    fn simple_object<T>(
        &mut self,
        make: &mut impl FnMut(&Event<'_>, EventPlace) -> Result<T, Flaw>,
    ) -> Option<Flow<T>> {
        let (rest, max_event) = (self.rest(), self.limits.max_event);
        let is_all = self.is_at_end || !self.text.is_packed() && self.size == Some(self.bytes_read);
        let end = match self.format {
            Format::Lines if self.is_line_start => match memchr::memchr(b'\n', rest) {
                None if !self.is_at_end && rest.len() as u64 <= max_event => return Some(Flow::NeedText),
                None if !self.is_at_end => return None,
                newline => newline.unwrap_or(rest.len()),
            },
            Format::Document if self.place == 0 && is_all => rest.len(),
            _ => return None,
        };
        let text = trim_blanks_end(&rest[..end]);
        if text.len() as u64 > max_event {
            return None;
        }
        let Ok(text) = std::str::from_utf8(text) else { return None };
        let Ok(event) = Event::parse_shallow(text) else { return None };
        let (length, place) = (text.len(), self.next_place());
        let judged = judge_object(&event, self.event_place(place, false), &self.limits, make);
        Some(self.found(length, place, judged))
    }

    /// How the place is told to whoever makes an event.
    fn event_place(&self, place: u64, is_element: bool) -> EventPlace {
        let is_first = self.format == Format::Document && place == 1 && !is_element;
        EventPlace { place: if is_first { 0 } else { place }, line: self.lines.line }
    }

    /// Scans the value that begins here, as far as its text is there.
    fn scan<T>(&mut self, make: &mut impl FnMut(&Event<'_>, EventPlace) -> Result<T, Flaw>) -> Flow<T> {
        let Values { stage, buffer, start, format, limits, is_at_end, .. } = self;
        let Stage::Scanning { scanner, scanned, is_over_lines } = stage else { return Flow::Again };
        let rest = &buffer[*start..];
        let mut piece = &rest[*scanned..];
        let result = scanner.scan(piece);
        if let Scanned::End(at) = result {
            piece = &piece[..at];
        }
        *is_over_lines |= *format == Format::Lines && memchr::memchr(b'\n', piece).is_some();
        if *is_over_lines && scanner.content() as u64 > limits.max_over_lines {
            *stage = Stage::BadSpan { searched: 0 };
            return Flow::Again;
        }
        match result {
            Scanned::End(at) => {
                let (end, content) = (*scanned + at, scanner.content());
                self.value(end, content, make)
            }
            Scanned::Bad(at) => {
                let bad = *scanned + at;
                let is_inside_character = |byte: &&u8| (0x80..0xc0).contains(*byte);
                let end = bad + 1 + rest[bad + 1..].iter().take_while(is_inside_character).count();
                let flaw = invalid_flaw(&rest[..end]);
                self.invalid(flaw)
            }
            Scanned::Unfinished if *is_at_end && scanner.may_end() => {
                let (end, content) = (rest.len(), scanner.content());
                self.value(end, content, make)
            }
            Scanned::Unfinished if *is_at_end => {
                let flaw = cut_or_invalid_flaw(rest);
                self.invalid(flaw)
            }
            Scanned::Unfinished if rest.len() as u64 > limits.max_value => {
                Flow::Step(ReadStep::End(self.too_large()))
            }
            Scanned::Unfinished => {
                *scanned = rest.len();
                Flow::NeedText
            }
        }
    }

    /// Acts on a value of so many bytes, which is whole.
    fn value<T>(
        &mut self,
        length: usize,
        content: usize,
        make: &mut impl FnMut(&Event<'_>, EventPlace) -> Result<T, Flaw>,
    ) -> Flow<T> {
        if length as u64 > self.limits.max_value {
            return Flow::Step(ReadStep::End(self.too_large()));
        }
        let place = self.next_place();
        let judged = match utf8_text(&self.rest()[..length]) {
            Ok(text) => judge(text, content, self.event_place(place, false), &self.limits, make),
            Err(flaw) => Judged::Invalid(flaw),
        };
        self.found(length, place, judged)
    }

    fn found<T>(&mut self, length: usize, place: u64, judged: Judged<T>) -> Flow<T> {
        let is_container = matches!(self.rest().first(), Some(b'{' | b'['));
        match judged {
            Judged::Event(event) => {
                self.pass_value(length, place);
                if self.is_ingested(place) { Flow::Again } else { Flow::Step(ReadStep::Event(event)) }
            }
            Judged::Elements(begin, elements) => {
                self.consume(begin + 1);
                self.stage = Stage::Elements(Elements { remaining: length - begin - 1, ..elements });
                Flow::Again
            }
            Judged::Flawed(flaw) => self.reject_value(length, place, flaw),
            // What follows a value that is closed is judged by itself.
            Judged::Invalid(flaw) if is_container && self.format == Format::Lines => {
                self.reject_value(length, place, flaw)
            }
            // A word that something follows is not cut.
            Judged::Invalid(flaw) if flaw.incomplete && length < self.rest().len() => {
                self.invalid(Flaw::at("", 0, Code::NotJson, "expected value"))
            }
            Judged::Invalid(flaw) => self.invalid(flaw),
        }
    }

    fn pass_value(&mut self, length: usize, place: u64) {
        self.consume(length);
        self.end_value(place);
    }

    fn end_value(&mut self, place: u64) {
        (self.place, self.has_value) = (place, true);
        (self.blanks, self.is_line_start) = (0, false);
        self.stage = Stage::Between;
        // The line's end belongs to the value: nothing is left to read after the last line.
        let rest = self.rest();
        let blanks = rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\r')).count();
        if self.format == Format::Lines && rest.get(blanks) == Some(&b'\n') {
            self.consume(blanks + 1);
            self.is_line_start = true;
        }
        self.settle();
    }

    /// Notes that the reading can go on here another time.
    fn settle(&mut self) {
        if self.format == Format::Lines {
            let sum = Some(self.checksum.sum());
            self.settled = ReadPosition { position: self.lines.at, place: self.place, sum };
        }
    }

    fn reject_value<T>(&mut self, length: usize, place: u64, flaw: Flaw) -> Flow<T> {
        let part = self.part(length, place, flaw);
        self.end_value(place);
        if self.format == Format::Document && place == 1 {
            self.first_flawed = Some(part);
            return Flow::Again;
        }
        if self.is_ingested(place) { Flow::Again } else { Flow::Step(ReadStep::Reject(part)) }
    }

    /// Passes over so many bytes as a part that is rejected for the flaw, which is placed within them.
    fn part(&mut self, length: usize, place: u64, flaw: Flaw) -> RejectedPart {
        let flaw = Flaw { incomplete: false, ..self.located(flaw) };
        let mut content = self.take(length);
        content.truncate(trim_blanks_end(&content).len());
        RejectedPart { place, content, flaw }
    }

    /// The flaw of text that begins here, placed in the file.
    fn located(&self, flaw: Flaw) -> Flaw {
        let (line, column) = self.lines.position();
        Flaw {
            line: line + flaw.line - 1,
            column: if flaw.line == 1 { column + flaw.column - 1 } else { flaw.column },
            ..flaw
        }
    }

    /// Acts on text that is no JSON; the flaw is placed in it.
    fn invalid<T>(&mut self, flaw: Flaw) -> Flow<T> {
        self.stage = match self.format {
            Format::Lines => Stage::BadSpan { searched: 0 },
            Format::Document if self.place > 0 => Stage::BadRest { flaw },
            Format::Document => {
                return Flow::Step(ReadStep::End(ReadEnd::Unusable(self.located(flaw))));
            }
        };
        Flow::Again
    }

    /// Rejects bad text of a file of lines up to the next line that begins an object: there the writer began anew.
    fn bad_span<T>(&mut self) -> Flow<T> {
        let Stage::BadSpan { searched } = self.stage else { return Flow::Again };
        let rest = self.rest();
        let begins_object = |newline: &usize| rest.get(searched + newline + 1) == Some(&b'{');
        let found = memchr::memchr_iter(b'\n', &rest[searched..]).find(begins_object);
        let length = match found {
            Some(newline) => searched + newline + 1,
            None if self.is_at_end || rest.len() as u64 > self.limits.max_value => rest.len(),
            None => {
                // The last byte may be the end of a line.
                self.stage = Stage::BadSpan { searched: rest.len().saturating_sub(1) };
                return Flow::NeedText;
            }
        };
        if length as u64 > self.limits.max_value {
            return Flow::Step(ReadStep::End(self.too_large()));
        }
        let flaw = match cut_or_invalid_flaw(&rest[..length]) {
            flaw if flaw.code == Code::NotJson => flaw,
            // Only its length is against it.
            _ => {
                let what = format!(
                    "the event goes over several lines and is larger than {}: write it in one line, or name the file .json",
                    Bytes(self.limits.max_over_lines)
                );
                Flaw::at("", 0, Code::TooLarge, what)
            }
        };
        self.reject_span(length, flaw)
    }

    /// Rejects the rest of a document in one.
    fn bad_rest<T>(&mut self) -> Flow<T> {
        let Stage::BadRest { flaw } = &self.stage else { return Flow::Again };
        let (length, flaw) = (self.rest().len(), flaw.clone());
        if length as u64 > self.limits.max_value {
            return Flow::Step(ReadStep::End(ReadEnd::UnusableRest(self.located(flaw))));
        }
        if self.is_at_end { self.reject_span(length, flaw) } else { Flow::NeedText }
    }

    fn reject_span<T>(&mut self, length: usize, flaw: Flaw) -> Flow<T> {
        let (place, is_last) = (self.next_place(), self.is_at_end && length == self.rest().len());
        let is_cut = is_last && flaw.incomplete;
        let part = self.part(length, place, flaw);
        self.end_value(place);
        // A span ends where a line begins.
        self.is_line_start = true;
        if self.is_ingested(place) {
            Flow::Again
        } else if is_cut {
            Flow::Step(ReadStep::RejectUnlessGrowing(part))
        } else {
            Flow::Step(ReadStep::Reject(part))
        }
    }

    /// Acts on the next element of an array.
    fn element<T>(&mut self, make: &mut impl FnMut(&Event<'_>, EventPlace) -> Result<T, Flaw>) -> Flow<T> {
        let mut skipped = 0;
        loop {
            let Stage::Elements(elements) = &self.stage else { return Flow::Again };
            let rest = &self.rest()[..elements.remaining];
            let gap = rest.iter().take_while(|byte| is_white(**byte) || **byte == b',').count();
            if rest.get(gap).is_none_or(|byte| *byte == b']') {
                let all = elements.remaining;
                self.consume(all);
                self.end_value(self.place);
                return Flow::Again;
            }
            let length = trim_white_end(&rest[gap..][..json::value_end(&rest[gap..])]).len();
            self.consume(gap);
            let place = self.next_place();
            let step = if self.is_ingested(place) {
                self.consume(length);
                skipped += gap + length;
                (skipped > READ_BUFFER).then_some(ReadStep::NoEvent(skipped))
            } else {
                Some(match self.make_element(length, place, make) {
                    Ok(event) => {
                        self.consume(length);
                        ReadStep::Event(event)
                    }
                    Err(flaw) => ReadStep::Reject(self.part(length, place, flaw)),
                })
            };
            self.place = place;
            if let Stage::Elements(elements) = &mut self.stage {
                elements.remaining -= gap + length;
            }
            if let Some(step) = step {
                return Flow::Step(step);
            }
        }
    }

    fn make_element<T>(
        &self,
        length: usize,
        place: u64,
        make: &mut impl FnMut(&Event<'_>, EventPlace) -> Result<T, Flaw>,
    ) -> Result<T, Flaw> {
        let Stage::Elements(Elements { context, integrations, .. }) = &self.stage else {
            return Err(invalid_flaw(b""));
        };
        let text = utf8_text(&self.rest()[..length])?;
        let (place, limits) = (self.event_place(place, true), &self.limits);
        fits(text, limits.max_event)?;
        let event = Event::parse(text)?;
        let common = EnvelopeCommon { context: context.as_deref(), integrations: integrations.as_deref() };
        if common.context.is_none() && common.integrations.is_none() {
            return make(&event, place);
        }
        // A flaw of the messageId is placed in the element as it came; merging moves the text behind `context`.
        event.message_id()?;
        let Some(merged) = merge_envelope(&event, &common) else { return make(&event, place) };
        let made = fits(&merged, limits.max_event)
            .and_then(|()| Event::parse(&merged))
            .and_then(|event| make(&event, place));
        made.map_err(|flaw| Flaw { line: 1, column: 1, ..flaw })
    }
}

/// Judges a value, of which the scanner found the end and so much content.
fn judge<T>(
    text: &str,
    content: usize,
    place: EventPlace,
    limits: &ReadLimits,
    make: &mut impl FnMut(&Event<'_>, EventPlace) -> Result<T, Flaw>,
) -> Judged<T> {
    match text.as_bytes().first() {
        Some(b'[') => Judged::Elements(0, Elements { remaining: 0, context: None, integrations: None }),
        Some(b'{') if content as u64 <= limits.max_event => match Event::parse_shallow(text) {
            Ok(event) => judge_object(&event, place, limits, make),
            Err(flaw) => Judged::Invalid(flaw),
        },
        Some(b'{') => {
            let names = ["type", "batch", "context", "integrations"];
            let [kind, batch, context, integrations] = json::find_members(text, names);
            envelope(text, kind, batch, context, integrations, limits)
                .unwrap_or_else(|| Judged::Flawed(too_large_event(limits.max_event)))
        }
        _ => match invalid_flaw(text.as_bytes()) {
            flaw if flaw.code == Code::NotJson => Judged::Invalid(flaw),
            flaw => Judged::Flawed(flaw),
        },
    }
}

fn judge_object<T>(
    event: &Event<'_>,
    place: EventPlace,
    limits: &ReadLimits,
    make: &mut impl FnMut(&Event<'_>, EventPlace) -> Result<T, Flaw>,
) -> Judged<T> {
    let member = |name| event.get(name).map(|value| value.get());
    if let Some(batch) = member("batch") {
        let (kind, context, integrations) = (member("type"), member("context"), member("integrations"));
        if let Some(judged) = envelope(event.raw(), kind, Some(batch), context, integrations, limits) {
            return judged;
        }
    }
    match event.check_depth().and_then(|()| make(event, place)) {
        Ok(made) => Judged::Event(made),
        Err(flaw) => Judged::Flawed(flaw),
    }
}

/// Judges an object with these members; `None`: it is no envelope.
fn envelope<T>(
    text: &str,
    kind: Option<&str>,
    batch: Option<&str>,
    context: Option<&str>,
    integrations: Option<&str>,
    limits: &ReadLimits,
) -> Option<Judged<T>> {
    let batch = batch.filter(|batch| kind.is_none() && batch.starts_with('['))?;
    let offset = |part: &str| part.as_ptr().addr().saturating_sub(text.as_ptr().addr()).min(text.len());
    let common = |name: &str, value: Option<&str>| {
        let Some(value) = value else { return Ok(None) };
        if serde_json::from_str::<&RawValue>(value).is_err() {
            let what = format!("the {name} of the batch is not JSON");
            return Err(Judged::Invalid(Flaw::at(text, offset(value), Code::NotJson, what)));
        }
        let compact = json::compact(value);
        if compact.len() as u64 > limits.max_event {
            let limit = Bytes(limits.max_event);
            let what = format!("the {name} of the batch is larger than spool.max_event_bytes, {limit}");
            return Err(Judged::Flawed(Flaw::at(text, offset(value), Code::TooLarge, what)));
        }
        Ok(Some(compact))
    };
    Some(match (common("context", context), common("integrations", integrations)) {
        (Ok(context), Ok(integrations)) => {
            Judged::Elements(offset(batch), Elements { remaining: 0, context, integrations })
        }
        (Err(judged), _) | (_, Err(judged)) => judged,
    })
}

/// Checks the size of an event: white space outside strings is no content.
///
/// # Errors
/// The flaw `too_large`.
pub fn fits(event: &str, max_event: u64) -> Result<(), Flaw> {
    match event.len() as u64 > max_event && json::compact_len(event) as u64 > max_event {
        true => Err(too_large_event(max_event)),
        false => Ok(()),
    }
}

fn too_large_event(max_event: u64) -> Flaw {
    let what = format!(
        "the event is larger than spool.max_event_bytes, {}: leave out what Koala does not need",
        Bytes(max_event)
    );
    Flaw::at("", 0, Code::TooLarge, what)
}

/// The reason why the text is not one event; another code than `not_json` if it is JSON.
fn invalid_flaw(text: &[u8]) -> Flaw {
    match utf8_text(text).map(Event::parse_shallow) {
        Ok(Err(flaw)) | Err(flaw) => flaw,
        Ok(Ok(_)) => Flaw::at("", 0, Code::NotAnEvent, "an object that goes on"),
    }
}

/// As [`invalid_flaw`]. A text that ends too early does so before the blanks at its end, if it could go on behind them: a
/// line break within a string is an error instead.
fn cut_or_invalid_flaw(text: &[u8]) -> Flaw {
    match invalid_flaw(text) {
        flaw if flaw.incomplete => invalid_flaw(trim_white_end(text)),
        flaw => flaw,
    }
}

/// The text in `bytes`, which must be UTF-8.
///
/// # Errors
/// The position of the first byte that is not UTF-8. The flaw is `incomplete` if the text ends within a character.
fn utf8_text(bytes: &[u8]) -> Result<&str, Flaw> {
    std::str::from_utf8(bytes).map_err(|e| {
        let mut lines = LineCounter { line: 1, line_start: 0, at: 0 };
        lines.advance(&bytes[..e.valid_up_to()]);
        let (line, column) = lines.position();
        let text = "not UTF-8: write the file as UTF-8".to_owned();
        Flaw { code: Code::NotJson, text, line, column, incomplete: e.error_len().is_none() }
    })
}

/// Line and column in text that is passed once.
#[derive(Debug, Clone, Copy)]
struct LineCounter {
    /// The current line, from 1.
    line: u64,
    /// The number of bytes before it.
    line_start: u64,
    /// The number of bytes passed.
    at: u64,
}

impl LineCounter {
    fn advance(&mut self, text: &[u8]) {
        if let Some(last) = memchr::memrchr(b'\n', text) {
            self.line += memchr::memchr_iter(b'\n', text).count() as u64;
            self.line_start = self.at + last as u64 + 1;
        }
        self.at += text.len() as u64;
    }

    /// Line and column of the next byte, both from 1.
    fn position(&self) -> (usize, usize) {
        let column = self.at - self.line_start + 1;
        (usize::try_from(self.line).unwrap_or(usize::MAX), usize::try_from(column).unwrap_or(usize::MAX))
    }
}

fn is_white(byte: u8) -> bool {
    matches!(byte, b' ' | b'\n' | b'\r' | b'\t')
}

/// White space, or the zeros of a file that has more room than text.
fn is_blank(byte: u8) -> bool {
    is_white(byte) || byte == 0
}

fn trim_blanks_end(text: &[u8]) -> &[u8] {
    &text[..text.iter().rposition(|byte| !is_blank(*byte)).map_or(0, |last| last + 1)]
}

fn trim_white_end(text: &[u8]) -> &[u8] {
    &text[..text.iter().rposition(|byte| !is_white(*byte)).map_or(0, |last| last + 1)]
}

#[cfg(test)]
mod tests;

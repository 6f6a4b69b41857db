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
use super::text::{READ_BUFFER, Text, leading_zeros};
use super::text_buffer::TextBuffer;
use super::value::{Common, EventPlace, Judged, MakeEvent, ReadLimits, invalid_flaw, judge, judge_object};
use crate::config::Bytes;
use crate::event::json::{self, Scanned, ValueScanner};
use crate::event::{Event, Flaw};
use crate::reason::Code;
use std::io::{self, ErrorKind};

/// The byte order mark.
const BOM: &[u8] = b"\xef\xbb\xbf";

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
    text: TextBuffer,
    format: Format,
    limits: ReadLimits,
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
    /// Within an array of events. So many bytes remain of it and of the envelope around it.
    Elements { remaining: usize, common: Common },
    /// Within bad text of a file of lines, of which so many bytes hold no line that begins an object.
    BadSpan { searched: usize },
    /// Within the rest of a document, after an error, which is placed in that rest.
    BadRest { flaw: Flaw },
}

/// The result of a part of a step.
enum Flow<T> {
    Step(ReadStep<T>),
    /// The stage has changed.
    Again,
    /// More text is needed. Not at its end.
    NeedText,
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
        let text = TextBuffer::new(text, size, format == Format::Lines, limits.max_value);
        Values {
            text,
            format,
            limits,
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
        self.text.memory()
    }

    /// Whether bytes follow the packed text that are neither packed text nor padding. Known at the end.
    pub fn has_trailing_bytes(&self) -> bool {
        self.text.has_trailing_bytes()
    }

    /// The next step. [`ReadStep::End`] is the last. `make` makes of an event what the caller wants; its error rejects the
    /// event, with a position within the event's text.
    pub fn next_step<T>(&mut self, mut make: impl MakeEvent<T>) -> ReadStep<T> {
        let mut read = None;
        loop {
            let flow = match &self.stage {
                Stage::Skipping => self.skip(),
                Stage::Between => self.between(&mut make),
                Stage::Scanning { .. } => self.scan(&mut make),
                Stage::Elements { .. } => self.element(&mut make),
                Stage::BadSpan { .. } => self.bad_span(),
                Stage::BadRest { .. } => self.bad_rest(),
            };
            match flow {
                Flow::Step(step) => return step,
                Flow::Again => {}
                Flow::NeedText => match read {
                    Some(bytes) => return ReadStep::NoEvent(bytes),
                    None => match self.text.read_more() {
                        Ok(bytes) => read = Some(bytes),
                        Err(error) => return ReadStep::End(self.end_by_error(error)),
                    },
                },
            }
        }
    }

    fn end_by_error(&self, error: io::Error) -> ReadEnd {
        let (is_packed, is_empty) = (self.text.is_packed(), self.text.is_empty_file());
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

    /// The place of the value at which the reading is.
    fn next_place(&self) -> u64 {
        match self.format {
            Format::Lines => self.text.line().max(self.place + 1),
            Format::Document => self.place + 1,
        }
    }

    /// Whether the next place was ingested before.
    fn is_ingested(&self, place: u64) -> bool {
        self.format == Format::Document && place <= self.from.place
    }

    /// Passes over text that was ingested before.
    fn skip<T>(&mut self) -> Flow<T> {
        let (left, here) = (self.from.position - self.text.position(), self.text.rest().len());
        self.text.consume(usize::try_from(left).map_or(here, |left| left.min(here)));
        if self.text.position() < self.from.position {
            if self.text.is_at_end() {
                let end = self.end_by_error(ErrorKind::UnexpectedEof.into());
                return Flow::Step(ReadStep::End(end));
            }
            return Flow::NeedText;
        }
        if self.from.sum.is_some_and(|sum| Some(sum) != self.text.sum()) {
            return Flow::Step(ReadStep::End(ReadEnd::Shortened));
        }
        self.place = self.from.place;
        self.is_line_start = self.text.is_line_start();
        self.stage = Stage::Between;
        Flow::Again
    }

    /// Passes over blanks, then begins the next value.
    fn between<T>(&mut self, make: &mut impl MakeEvent<T>) -> Flow<T> {
        if let Some(end) = self.pass_blanks() {
            return Flow::Step(ReadStep::End(end));
        }
        self.settle();
        let Some(&first) = self.text.rest().first() else {
            return if self.text.is_at_end() {
                Flow::Step(ReadStep::End(self.complete()))
            } else {
                Flow::NeedText
            };
        };
        let rest = self.text.rest();
        if first == BOM[0] && BOM.starts_with(&rest[..rest.len().min(BOM.len())]) {
            if rest.len() < BOM.len() && !self.text.is_at_end() {
                return Flow::NeedText;
            }
            if rest.len() >= BOM.len() {
                self.text.consume_mark(BOM.len());
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
            && !self.text.is_at_end()
            && self.text.rest().len() as u64 <= self.limits.max_value
    }

    /// The end of a file that has no more values.
    fn complete(&mut self) -> ReadEnd {
        if let Some(part) = self.first_flawed.take() {
            return ReadEnd::Unusable(part.flaw);
        }
        if self.format == Format::Document && !self.has_value {
            return ReadEnd::Unusable(self.text.located(invalid_flaw(b"")));
        }
        ReadEnd::Complete
    }

    /// Passes over white space and zeros.
    fn pass_blanks(&mut self) -> Option<ReadEnd> {
        let rest = self.text.rest();
        let mut length = leading_zeros(rest);
        length += rest[length..].iter().take_while(|byte| is_blank(**byte)).count();
        let text = &rest[..length];
        // Behind a value, zeros are the padding of a file for which more room was allocated.
        let counted = |text: &[u8]| match self.place {
            0 => text.len() as u64,
            _ => (text.len() - memchr::memchr_iter(0, text).count()) as u64,
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
        self.is_line_start |= ends_line;
        self.blanks = blanks;
        self.text.consume(length);
        (most.max(blanks) > self.limits.max_value).then(|| self.too_large())
    }

    /// The end because of a value that is larger than a value may be.
    fn too_large(&self) -> ReadEnd {
        let limit = Bytes(self.limits.max_value);
        let line = self.text.line();
        match self.format {
            Format::Document => {
                let what = format!(
                    "the document is larger than spool.max_file_bytes, {limit}: events one after another have no such limit"
                );
                let flaw = Flaw::at("", 0, Code::TooLarge, what);
                if self.place == 0 {
                    ReadEnd::Unusable(flaw)
                } else {
                    ReadEnd::UnusableRest(self.text.located(flaw))
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
    fn simple_object<T>(&mut self, make: &mut impl MakeEvent<T>) -> Option<Flow<T>> {
        let (rest, max_event) = (self.text.rest(), self.limits.max_event);
        let is_all = self.text.is_all_read();
        let end = match self.format {
            Format::Lines if self.is_line_start => match memchr::memchr(b'\n', rest) {
                None if !self.text.is_at_end() && rest.len() as u64 <= max_event => {
                    return Some(Flow::NeedText);
                }
                None if !self.text.is_at_end() => return None,
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
        EventPlace { place: if is_first { 0 } else { place }, line: self.text.line() }
    }

    /// Scans the value that begins here, as far as its text is there.
    fn scan<T>(&mut self, make: &mut impl MakeEvent<T>) -> Flow<T> {
        let Values { text, stage, format, limits, .. } = self;
        let Stage::Scanning { scanner, scanned, is_over_lines } = stage else { return Flow::Again };
        let (rest, is_at_end) = (text.rest(), text.is_at_end());
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
            Scanned::Unfinished if is_at_end && scanner.may_end() => {
                let (end, content) = (rest.len(), scanner.content());
                self.value(end, content, make)
            }
            Scanned::Unfinished if is_at_end => {
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
    fn value<T>(&mut self, length: usize, content: usize, make: &mut impl MakeEvent<T>) -> Flow<T> {
        if length as u64 > self.limits.max_value {
            return Flow::Step(ReadStep::End(self.too_large()));
        }
        let place = self.next_place();
        let text = &self.text.rest()[..length];
        let judged = judge(text, content, self.event_place(place, false), &self.limits, make);
        self.found(length, place, judged)
    }

    fn found<T>(&mut self, length: usize, place: u64, judged: Judged<T>) -> Flow<T> {
        let is_container = matches!(self.text.rest().first(), Some(b'{' | b'['));
        match judged {
            Judged::Event(event) => {
                self.pass_value(length, place);
                if self.is_ingested(place) { Flow::Again } else { Flow::Step(ReadStep::Event(event)) }
            }
            Judged::Elements(begin, common) => {
                self.text.consume(begin + 1);
                self.stage = Stage::Elements { remaining: length - begin - 1, common };
                Flow::Again
            }
            Judged::Flawed(flaw) => self.reject_value(length, place, flaw),
            // What follows a value that is closed is judged by itself.
            Judged::Invalid(flaw) if is_container && self.format == Format::Lines => {
                self.reject_value(length, place, flaw)
            }
            // A word that something follows is not cut.
            Judged::Invalid(flaw) if flaw.incomplete && length < self.text.rest().len() => {
                self.invalid(invalid_flaw(b"?"))
            }
            Judged::Invalid(flaw) => self.invalid(flaw),
        }
    }

    fn pass_value(&mut self, length: usize, place: u64) {
        self.text.consume(length);
        self.end_value(place);
    }

    fn end_value(&mut self, place: u64) {
        (self.place, self.has_value) = (place, true);
        (self.blanks, self.is_line_start) = (0, false);
        self.stage = Stage::Between;
        // The line's end belongs to the value: nothing is left to read after the last line.
        let rest = self.text.rest();
        let blanks = rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\r')).count();
        if self.format == Format::Lines && rest.get(blanks) == Some(&b'\n') {
            self.text.consume(blanks + 1);
            self.is_line_start = true;
        }
        self.settle();
    }

    /// Notes that the reading can go on here another time.
    fn settle(&mut self) {
        if self.format == Format::Lines {
            let (position, sum) = (self.text.position(), self.text.sum());
            self.settled = ReadPosition { position, place: self.place, sum };
        }
    }

    fn reject_value<T>(&mut self, length: usize, place: u64, flaw: Flaw) -> Flow<T> {
        let (part, is_first) = (self.part(length, place, flaw), !self.has_value);
        self.end_value(place);
        if self.format == Format::Document && is_first {
            self.first_flawed = Some(part);
            return Flow::Again;
        }
        if self.is_ingested(place) { Flow::Again } else { Flow::Step(ReadStep::Reject(part)) }
    }

    /// Passes over so many bytes as a part that is rejected for the flaw, which is placed within them.
    fn part(&mut self, length: usize, place: u64, flaw: Flaw) -> RejectedPart {
        let flaw = Flaw { incomplete: false, ..self.text.located(flaw) };
        let mut content = self.text.take(length);
        content.truncate(trim_blanks_end(&content).len());
        RejectedPart { place, content, flaw }
    }

    /// Acts on text that is no JSON; the flaw is placed in it.
    fn invalid<T>(&mut self, flaw: Flaw) -> Flow<T> {
        self.stage = match self.format {
            Format::Lines => Stage::BadSpan { searched: 0 },
            Format::Document if self.place > 0 => Stage::BadRest { flaw },
            Format::Document => {
                return Flow::Step(ReadStep::End(ReadEnd::Unusable(self.text.located(flaw))));
            }
        };
        Flow::Again
    }

    /// Rejects bad text of a file of lines up to the next line that begins an object: there the writer began anew.
    fn bad_span<T>(&mut self) -> Flow<T> {
        let Stage::BadSpan { searched } = self.stage else { return Flow::Again };
        let rest = self.text.rest();
        let begins_object = |newline: &usize| rest.get(searched + newline + 1) == Some(&b'{');
        let found = memchr::memchr_iter(b'\n', &rest[searched..]).find(begins_object);
        let length = match found {
            Some(newline) => searched + newline + 1,
            None if self.text.is_at_end() || rest.len() as u64 > self.limits.max_value => rest.len(),
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
        let (length, flaw) = (self.text.rest().len(), flaw.clone());
        if length as u64 > self.limits.max_value {
            return Flow::Step(ReadStep::End(ReadEnd::UnusableRest(self.text.located(flaw))));
        }
        if !self.text.is_at_end() {
            return Flow::NeedText;
        }
        // What seemed to be cut when it was found may be wrong by what has followed.
        let flaw = match cut_or_invalid_flaw(self.text.rest()) {
            whole if flaw.incomplete && whole.code == Code::NotJson => whole,
            _ => flaw,
        };
        self.reject_span(length, flaw)
    }

    fn reject_span<T>(&mut self, length: usize, flaw: Flaw) -> Flow<T> {
        let (place, is_last) = (self.next_place(), self.text.is_at_end() && length == self.text.rest().len());
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
    fn element<T>(&mut self, make: &mut impl MakeEvent<T>) -> Flow<T> {
        let mut skipped = 0;
        loop {
            let Stage::Elements { remaining, common } = &self.stage else { return Flow::Again };
            let rest = &self.text.rest()[..*remaining];
            let gap = rest.iter().take_while(|byte| is_white(**byte) || **byte == b',').count();
            if rest.get(gap).is_none_or(|byte| *byte == b']') {
                let all = *remaining;
                self.text.consume(all);
                self.end_value(self.place);
                return Flow::Again;
            }
            let length = trim_white_end(&rest[gap..][..json::value_end(&rest[gap..])]).len();
            self.text.consume(gap);
            let place = self.next_place();
            let step = if self.is_ingested(place) {
                self.text.consume(length);
                skipped += gap + length;
                (skipped > READ_BUFFER).then_some(ReadStep::NoEvent(skipped))
            } else {
                let element = &self.text.rest()[..length];
                let made = common.make(element, self.event_place(place, true), &self.limits, make);
                Some(match made {
                    Ok(event) => {
                        self.text.consume(length);
                        ReadStep::Event(event)
                    }
                    Err(flaw) => ReadStep::Reject(self.part(length, place, flaw)),
                })
            };
            self.place = place;
            if let Stage::Elements { remaining, .. } = &mut self.stage {
                *remaining -= gap + length;
            }
            if let Some(step) = step {
                return Flow::Step(step);
            }
        }
    }
}

/// As [`invalid_flaw`]. A text that ends too early does so before the white space at its end, if it could go on behind it: a
/// line break within a string is an error instead.
fn cut_or_invalid_flaw(text: &[u8]) -> Flaw {
    match invalid_flaw(text) {
        flaw if flaw.incomplete => invalid_flaw(trim_white_end(text)),
        flaw => flaw,
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

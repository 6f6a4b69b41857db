//! Events from any form of input: JSON documents and JSON Lines, compressed or not, recognised by the file's name or
//! else by its content.

use super::CliError;
use crate::clock::{Clock, Timestamp};
use crate::config;
use crate::event::{Event, Flaw, merge_envelope};
use crate::reason::Code;
use crate::spool::{Document, Form, Format, ItemPositions, Line, Lines, format_of, utf8_text};
use flate2::read::MultiGzDecoder;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::Path;

/// The first bytes of a gzip file (RFC 1952, section 2.3.1).
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// An open file, or stdin.
pub struct EventInput {
    /// The path as given, or `stdin`.
    pub name: String,
    /// The modification time, which is the timestamp of events without one.
    pub written: Timestamp,
    /// The size of a file; `None` for stdin.
    pub size: Option<u64>,
    format: Option<Format>,
    content: Box<dyn Read>,
}

impl EventInput {
    /// Opens the file; `-` is stdin.
    ///
    /// # Errors
    /// The system's.
    pub fn open(path: &Path, clock: &Clock) -> Result<EventInput, CliError> {
        if path.as_os_str() == "-" {
            let content = Box::new(io::stdin());
            return Ok(EventInput {
                name: "stdin".to_owned(),
                written: clock.now(),
                size: None,
                format: None,
                content,
            });
        }
        let name = path.display().to_string();
        let opened = File::open(path).and_then(|file| file.metadata().map(|meta| (file, meta)));
        let (file, meta) = opened.map_err(|source| CliError::Input { name: name.clone(), source })?;
        if meta.is_dir() {
            return Err(CliError::Input { name, source: io::ErrorKind::IsADirectory.into() });
        }
        let written = meta.modified().map_or_else(|_| clock.now(), Timestamp::from_system);
        let format = format_of(path.as_os_str()).map(|(format, _)| format);
        Ok(EventInput { name, written, size: Some(meta.len()), format, content: Box::new(file) })
    }

    /// The same input with its content read through another reader, such as one that counts bytes.
    pub fn map_content<R: Read + 'static>(self, wrap: impl FnOnce(Box<dyn Read>) -> R) -> EventInput {
        EventInput { content: Box::new(wrap(self.content)), ..self }
    }

    /// The events of the input.
    ///
    /// # Errors
    /// The input cannot be read, or is compressed and damaged.
    pub fn events(self, limits: &config::SpoolConfig) -> Result<InputEvents, CliError> {
        let name = self.name.clone();
        events(self, limits).map_err(|source| CliError::Input { name, source })
    }
}

/// An event and its place in the input.
pub struct InputEvent {
    /// The number of the line or array element, from 1; 0 if the event is the whole input.
    pub place: u64,
    /// The number of the line in which the event begins, from 1.
    pub line: usize,
    /// The event, merged with its envelope; or why it is invalid, and where in the input.
    pub event: Result<String, Flaw>,
}

/// The events of one input, in order. Lines are streamed, a document is held in memory.
pub struct InputEvents {
    remaining: Remaining,
    max_event: u64,
}

enum Remaining {
    Elements(std::vec::IntoIter<InputEvent>),
    Lines(Lines<Box<dyn Read>>),
    Nothing,
}

impl InputEvents {
    /// The next event; `None` at the end.
    ///
    /// # Errors
    /// The input cannot be read.
    pub fn next(&mut self) -> io::Result<Option<InputEvent>> {
        loop {
            let lines = match &mut self.remaining {
                Remaining::Elements(elements) => return Ok(elements.next()),
                Remaining::Lines(lines) => lines,
                Remaining::Nothing => return Ok(None),
            };
            let line = lines.place as usize + 1;
            let event = match lines.next_line()? {
                Line::Text(text) | Line::Unterminated(text) if text.is_empty() => continue,
                Line::Text(text) | Line::Unterminated(text) => utf8_text(&text)
                    .and_then(|text| checked(text, self.max_event).map(|_| text.to_owned()))
                    .map_err(|flaw| Flaw { line, ..flaw }),
                Line::TooLong => {
                    self.remaining = Remaining::Nothing;
                    Err(Flaw { line, ..too_large("the line does not end".to_owned()) })
                }
                Line::End => {
                    self.remaining = Remaining::Nothing;
                    continue;
                }
            };
            return Ok(Some(InputEvent { place: line as u64, line, event }));
        }
    }
}

fn events(source: EventInput, limits: &config::SpoolConfig) -> io::Result<InputEvents> {
    let mut content = BufReader::new(source.content);
    let is_gzip = content.fill_buf()?.starts_with(&GZIP);
    let content: Box<dyn Read> =
        if is_gzip { Box::new(MultiGzDecoder::new(content)) } else { Box::new(content) };
    let lines = |content| Remaining::Lines(Lines::new(content, limits.max_file_bytes));
    let remaining = match source.format {
        Some(Format::Lines) => lines(content),
        Some(Format::Document) => {
            let mut bytes = Vec::new();
            content.take(limits.max_file_bytes + 1).read_to_end(&mut bytes)?;
            let events = if bytes.len() as u64 > limits.max_file_bytes {
                let limit = config::Bytes(limits.max_file_bytes);
                Err(too_large(format!("the document is larger than spool.max_file_bytes, {limit}")))
            } else {
                elements(&bytes, limits.max_event_bytes)
            };
            Remaining::Elements(events.unwrap_or_else(invalid_input).into_iter())
        }
        None => {
            by_content(content, limits)?.map_or_else(lines, |events| Remaining::Elements(events.into_iter()))
        }
    };
    Ok(InputEvents { remaining, max_event: limits.max_event_bytes })
}

/// The events of a document; or, as the inner error, the same content, to be read line by line.
fn by_content(
    content: Box<dyn Read>,
    limits: &config::SpoolConfig,
) -> io::Result<Result<Vec<InputEvent>, Box<dyn Read>>> {
    let mut content = BufReader::new(content);
    let mut head = Vec::new();
    while head.trim_ascii().is_empty() {
        if (&mut content).take(limits.max_file_bytes).read_until(b'\n', &mut head)? == 0 {
            break;
        }
    }
    // The first line is the beginning of a document, or an event of its own.
    let first = utf8_text(&head).and_then(Event::parse_shallow);
    let is_document = match &first {
        _ if head.trim_ascii().starts_with(b"[") => true,
        Ok(event) => event.get("type").is_none() && event.get("batch").is_some(),
        Err(flaw) => flaw.incomplete && !head.trim_ascii().is_empty(),
    };
    drop(first);
    if !is_document {
        return Ok(Err(Box::new(Cursor::new(head).chain(content))));
    }
    let first_line = head.len();
    (&mut content).take(limits.max_file_bytes).read_to_end(&mut head)?;
    match elements(&head, limits.max_event_bytes) {
        Ok(events) => Ok(Ok(events)),
        // If the first of many lines is cut off, it looks like the beginning of a document.
        Err(_) if begins_with_event(&head[first_line..]) => {
            Ok(Err(Box::new(Cursor::new(head).chain(content))))
        }
        Err(flaw) => Ok(Ok(invalid_input(flaw))),
    }
}

fn begins_with_event(rest: &[u8]) -> bool {
    let mut lines = rest.split(|&b| b == b'\n').filter(|line| !line.trim_ascii().is_empty());
    lines.next().is_some_and(|line| utf8_text(line).and_then(Event::parse_shallow).is_ok())
}

/// The events of a document.
fn elements(bytes: &[u8], max_event: u64) -> Result<Vec<InputEvent>, Flaw> {
    let text = utf8_text(bytes)?;
    let document = Document::parse(text)?;
    let mut places = ItemPositions::new(text);
    let mut events = Vec::with_capacity(document.items.len());
    for (i, item) in document.items.enumerate() {
        let (line, _) = places.position_of(item);
        let event = checked(item, max_event)
            .map(|event| merge_envelope(&event, document.context, document.integrations))
            .and_then(|event| checked(&event, max_event).map(|_| ()).map(|()| event))
            .map_err(|flaw| places.locate(item, flaw));
        let place = if document.form == Form::Single { 0 } else { i as u64 + 1 };
        events.push(InputEvent { place, line, event });
    }
    Ok(events)
}

/// Parses an event, and checks that the agent would accept it.
fn checked(text: &str, max_event: u64) -> Result<Event<'_>, Flaw> {
    let event = Event::parse(text)?;
    event.message_id()?;
    if event.raw().len() as u64 > max_event {
        let limit = config::Bytes(max_event);
        return Err(too_large(format!("the event is larger than spool.max_event_bytes, {limit}")));
    }
    Ok(event)
}

/// Checks an event again after a member was added to it.
///
/// # Errors
/// The event is too large now.
pub fn recheck(event: &str, limits: &config::SpoolConfig) -> Result<(), Flaw> {
    checked(event, limits.max_event_bytes).map(|_| ())
}

fn too_large(text: String) -> Flaw {
    Flaw { code: Code::TooLarge, text, line: 1, column: 1, incomplete: false }
}

fn invalid_input(flaw: Flaw) -> Vec<InputEvent> {
    vec![InputEvent { place: 0, line: flaw.line, event: Err(flaw) }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const EVENT: &str = r#"{"type":"track"}"#;

    /// Place, line, and the event or the line and column of its flaw.
    type PlacedEvent = (u64, usize, Result<String, (usize, usize)>);

    fn events_in(name: Option<&str>, content: &[u8]) -> Vec<PlacedEvent> {
        let source = EventInput {
            name: "stdin".into(),
            written: Timestamp(0),
            size: None,
            format: name.and_then(|name| format_of(name.as_ref())).map(|(format, _)| format),
            content: Box::new(Cursor::new(content.to_vec())),
        };
        let mut events = source.events(&config::SpoolConfig::default()).unwrap();
        let mut all = Vec::new();
        while let Some(InputEvent { place, line, event }) = events.next().unwrap() {
            all.push((place, line, event.map_err(|flaw| (flaw.line, flaw.column))));
        }
        all
    }

    #[test]
    fn the_form_is_recognised_by_the_name_or_else_by_the_content() {
        let ok = |place, line| (place, line, Ok(EVENT.to_owned()));
        for (name, content, want) in [
            (None, EVENT.to_owned(), vec![ok(1, 1)]),
            (None, format!("\n{EVENT}\n\n{EVENT}"), vec![ok(2, 2), ok(4, 4)]),
            (None, format!("[{EVENT},\n 7, {EVENT}]"), vec![ok(1, 1), (2, 2, Err((2, 2))), ok(3, 2)]),
            (None, format!("{{\"batch\":[\n{EVENT}\n]}}"), vec![ok(1, 2)]),
            (None, format!("oops\n{EVENT}"), vec![(1, 1, Err((1, 1))), ok(2, 2)]),
            (None, format!("{{\"a\":\n{EVENT}\n"), vec![(1, 1, Err((1, 6))), ok(2, 2)]),
            (None, "{\n \"a\":\n".to_owned(), vec![(0, 3, Err((3, 1)))]),
            (None, String::new(), vec![]),
            (Some("a.json"), EVENT.to_owned(), vec![ok(0, 1)]),
            (Some("a.json"), format!("{EVENT}\n{EVENT}"), vec![(0, 2, Err((2, 1)))]),
            (Some("a.json"), String::new(), vec![(0, 1, Err((1, 1)))]),
            (Some("a.jsonl.gz"), format!("[]\n{EVENT}"), vec![(1, 1, Err((1, 1))), ok(2, 2)]),
        ] {
            assert_eq!(events_in(name, content.as_bytes()), want, "{content:?}");
            let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            packed.write_all(content.as_bytes()).unwrap();
            assert_eq!(events_in(name, &packed.finish().unwrap()), want, "{content:?}, compressed");
        }
    }

    #[test]
    fn members_of_an_envelope_are_merged_into_each_event() {
        let envelope = br#"{"batch":[{"type":"track"}],"context":{"ip":"::1"}}"#;
        assert_eq!(
            events_in(None, envelope),
            [(1, 1, Ok(r#"{"type":"track","context":{"ip":"::1"}}"#.to_owned()))]
        );
    }

    #[test]
    fn an_event_over_the_limit_is_reported_with_its_line() {
        let long = format!("{EVENT}\n{{\"a\":\"{}\"}}\n", "x".repeat(32 << 10));
        assert_eq!(events_in(None, long.as_bytes())[1], (2, 2, Err((2, 1))));
    }
}

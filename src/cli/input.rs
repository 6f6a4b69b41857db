//! Events from any form of input: a document, an event a line, each also packed, by name or by look.

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

/// The first bytes of a packed file (RFC 1952, section 2.3.1).
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// An open file, or stdin.
pub struct Source {
    /// As people know it.
    pub name: String,
    /// When it was written: an event's timestamp where it has none.
    pub written: Timestamp,
    /// Its size, where it is a file.
    pub size: Option<u64>,
    format: Option<Format>,
    content: Box<dyn Read>,
}

impl Source {
    /// Opens the file; `-` is stdin.
    ///
    /// # Errors
    /// The system's.
    pub fn open(path: &Path, clock: &Clock) -> Result<Source, CliError> {
        if path.as_os_str() == "-" {
            let content = Box::new(io::stdin());
            return Ok(Source {
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
        Ok(Source { name, written, size: Some(meta.len()), format, content: Box::new(file) })
    }

    /// The same with something in between that sees the bytes go by.
    pub fn through<R: Read + 'static>(self, wrap: impl FnOnce(Box<dyn Read>) -> R) -> Source {
        Source { content: Box::new(wrap(self.content)), ..self }
    }

    /// Its events.
    ///
    /// # Errors
    /// It cannot be read, or is packed and damaged.
    pub fn events(self, limits: &config::SpoolConfig) -> Result<Events, CliError> {
        let name = self.name.clone();
        events(self, limits).map_err(|source| CliError::Input { name, source })
    }
}

/// An event as it stands in its input.
pub struct Found {
    /// The line or the index in an array, from 1; 0: the input is the event.
    pub place: u64,
    /// The line that it begins in, from 1.
    pub line: usize,
    /// The event, with what its envelope says for all; or why it is none, placed in the input.
    pub event: Result<String, Flaw>,
}

/// The events of one input, in order. Lines are streamed, a document is in memory.
pub struct Events {
    rest: Rest,
    max_event: u64,
}

enum Rest {
    Elements(std::vec::IntoIter<Found>),
    Lines(Lines<Box<dyn Read>>),
    Nothing,
}

impl Events {
    /// The next event; `None` at the end.
    ///
    /// # Errors
    /// The input cannot be read on.
    pub fn next(&mut self) -> io::Result<Option<Found>> {
        loop {
            let lines = match &mut self.rest {
                Rest::Elements(elements) => return Ok(elements.next()),
                Rest::Lines(lines) => lines,
                Rest::Nothing => return Ok(None),
            };
            let line = lines.place as usize + 1;
            let event = match lines.next_line()? {
                Line::Text(text) | Line::Unterminated(text) if text.is_empty() => continue,
                Line::Text(text) | Line::Unterminated(text) => utf8_text(&text)
                    .and_then(|text| checked(text, self.max_event).map(|_| text.to_owned()))
                    .map_err(|flaw| Flaw { line, ..flaw }),
                Line::TooLong => {
                    self.rest = Rest::Nothing;
                    Err(Flaw { line, ..too_large("the line does not end".to_owned()) })
                }
                Line::End => {
                    self.rest = Rest::Nothing;
                    continue;
                }
            };
            return Ok(Some(Found { place: line as u64, line, event }));
        }
    }
}

fn events(source: Source, limits: &config::SpoolConfig) -> io::Result<Events> {
    let mut content = BufReader::new(source.content);
    let packed = content.fill_buf()?.starts_with(&GZIP);
    let content: Box<dyn Read> =
        if packed { Box::new(MultiGzDecoder::new(content)) } else { Box::new(content) };
    let lines = |content| Rest::Lines(Lines::new(content, limits.max_file_bytes));
    let rest = match source.format {
        Some(Format::Lines) => lines(content),
        Some(Format::Document) => {
            let mut bytes = Vec::new();
            content.take(limits.max_file_bytes + 1).read_to_end(&mut bytes)?;
            let found = if bytes.len() as u64 > limits.max_file_bytes {
                let limit = config::Bytes(limits.max_file_bytes);
                Err(too_large(format!("the document is larger than spool.max_file_bytes, {limit}")))
            } else {
                elements(&bytes, limits.max_event_bytes)
            };
            Rest::Elements(found.unwrap_or_else(whole).into_iter())
        }
        None => by_look(content, limits)?.map_or_else(lines, |found| Rest::Elements(found.into_iter())),
    };
    Ok(Events { rest, max_event: limits.max_event_bytes })
}

/// The events of a document, or, as the error, the same content for a reading line by line.
fn by_look(
    content: Box<dyn Read>,
    limits: &config::SpoolConfig,
) -> io::Result<Result<Vec<Found>, Box<dyn Read>>> {
    let mut content = BufReader::new(content);
    let mut head = Vec::new();
    while head.trim_ascii().is_empty() {
        if (&mut content).take(limits.max_file_bytes).read_until(b'\n', &mut head)? == 0 {
            break;
        }
    }
    // The beginning of a document, or a line by itself?
    let first = utf8_text(&head).and_then(Event::parse_shallow);
    let document = match &first {
        _ if head.trim_ascii().starts_with(b"[") => true,
        Ok(event) => event.get("type").is_none() && event.get("batch").is_some(),
        Err(flaw) => flaw.incomplete && !head.trim_ascii().is_empty(),
    };
    drop(first);
    if !document {
        return Ok(Err(Box::new(Cursor::new(head).chain(content))));
    }
    let first_line = head.len();
    (&mut content).take(limits.max_file_bytes).read_to_end(&mut head)?;
    match elements(&head, limits.max_event_bytes) {
        Ok(found) => Ok(Ok(found)),
        // Lines of which the first is cut look like a document until the second.
        Err(_) if begins_with_event(&head[first_line..]) => {
            Ok(Err(Box::new(Cursor::new(head).chain(content))))
        }
        Err(flaw) => Ok(Ok(whole(flaw))),
    }
}

fn begins_with_event(rest: &[u8]) -> bool {
    let mut lines = rest.split(|&b| b == b'\n').filter(|line| !line.trim_ascii().is_empty());
    lines.next().is_some_and(|line| utf8_text(line).and_then(Event::parse_shallow).is_ok())
}

/// The events of a document.
fn elements(bytes: &[u8], max_event: u64) -> Result<Vec<Found>, Flaw> {
    let text = utf8_text(bytes)?;
    let document = Document::parse(text)?;
    let mut places = ItemPositions::default();
    let mut found = Vec::with_capacity(document.items.len());
    for (i, item) in document.items.enumerate() {
        let (line, _) = places.position_of(text, item);
        let event = checked(item, max_event)
            .map(|event| merge_envelope(&event, document.context, document.integrations))
            .and_then(|event| checked(&event, max_event).map(|_| ()).map(|()| event))
            .map_err(|flaw| places.locate(text, item, flaw));
        let place = if document.form == Form::Single { 0 } else { i as u64 + 1 };
        found.push(Found { place, line, event });
    }
    Ok(found)
}

/// The event in a text, if it is one that the agent would take.
fn checked(text: &str, max_event: u64) -> Result<Event<'_>, Flaw> {
    let event = Event::parse(text)?;
    event.message_id()?;
    if event.raw().len() as u64 > max_event {
        let limit = config::Bytes(max_event);
        return Err(too_large(format!("the event is larger than spool.max_event_bytes, {limit}")));
    }
    Ok(event)
}

/// The size that a single event may have, with what was added to it.
pub fn fits(event: &str, limits: &config::SpoolConfig) -> Result<(), Flaw> {
    checked(event, limits.max_event_bytes).map(|_| ())
}

fn too_large(text: String) -> Flaw {
    Flaw { code: Code::TooLarge, text, line: 1, column: 1, incomplete: false }
}

fn whole(flaw: Flaw) -> Vec<Found> {
    vec![Found { place: 0, line: flaw.line, event: Err(flaw) }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const EVENT: &str = r#"{"type":"track"}"#;

    /// Place, line, and the event or where it is wrong.
    type Told = (u64, usize, Result<String, (usize, usize)>);

    fn found(name: Option<&str>, content: &[u8]) -> Vec<Told> {
        let source = Source {
            name: "stdin".into(),
            written: Timestamp(0),
            size: None,
            format: name.and_then(|name| format_of(name.as_ref())).map(|(format, _)| format),
            content: Box::new(Cursor::new(content.to_vec())),
        };
        let mut events = source.events(&config::SpoolConfig::default()).unwrap();
        let mut all = Vec::new();
        while let Some(Found { place, line, event }) = events.next().unwrap() {
            all.push((place, line, event.map_err(|flaw| (flaw.line, flaw.column))));
        }
        all
    }

    #[test]
    fn the_form_is_told_by_the_name_or_by_a_look() {
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
            assert_eq!(found(name, content.as_bytes()), want, "{content:?}");
            let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            packed.write_all(content.as_bytes()).unwrap();
            assert_eq!(found(name, &packed.finish().unwrap()), want, "{content:?}, packed");
        }
    }

    #[test]
    fn what_an_envelope_says_for_all_is_in_each() {
        let envelope = br#"{"batch":[{"type":"track"}],"context":{"ip":"::1"}}"#;
        assert_eq!(
            found(None, envelope),
            [(1, 1, Ok(r#"{"type":"track","context":{"ip":"::1"}}"#.to_owned()))]
        );
    }

    #[test]
    fn an_event_over_the_limit_is_told_with_its_line() {
        let long = format!("{EVENT}\n{{\"a\":\"{}\"}}\n", "x".repeat(32 << 10));
        assert_eq!(found(None, long.as_bytes())[1], (2, 2, Err((2, 1))));
    }
}

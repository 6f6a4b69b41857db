//! Events from any form of input: JSON values one after another, compressed or not, as the agent reads them. The name
//! says whether an input is a document or consists of lines; standard input may be either.

use super::CliError;
use super::output::{escaped, hint};
use crate::clock::{Clock, Timestamp};
use crate::config;
use crate::event::Flaw;
use crate::spool::{
    EventPlace, Format, GZIP_MAGIC, ReadEnd, ReadLimits, ReadPosition, ReadStep, Text, Values, fits,
    format_of,
};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

/// An open file, or stdin.
pub struct EventInput {
    /// The path as given, or `stdin`.
    pub name: String,
    /// The modification time, which is the timestamp of events without one.
    pub written: Timestamp,
    /// The size of a file; `None` for stdin.
    pub size: Option<u64>,
    format: Option<Format>,
    content: Box<dyn Read + Send>,
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
        let opened = File::open(path).and_then(|file| EventInput::of_file(file, path, clock));
        opened.map_err(|source| CliError::Input { name: path.display().to_string(), source })
    }

    /// The input that is this file, open for reading, at that path.
    ///
    /// # Errors
    /// The system's, or it is a folder.
    pub fn of_file(file: File, path: &Path, clock: &Clock) -> io::Result<EventInput> {
        let meta = file.metadata()?;
        if meta.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        Ok(EventInput {
            name: path.display().to_string(),
            written: meta.modified().map_or_else(|_| clock.now(), Timestamp::from_system),
            size: Some(meta.len()),
            format: format_of(path.as_os_str()).map(|(format, _)| format),
            content: Box::new(file),
        })
    }

    /// The same input with its content read through another reader, such as one that counts bytes.
    pub fn map_content<R: Read + Send + 'static>(
        self,
        wrap: impl FnOnce(Box<dyn Read + Send>) -> R,
    ) -> EventInput {
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

/// The events of one input, in order, read as the agent reads a file of the spool.
pub struct InputEvents {
    values: Values,
    name: String,
    is_at_end: bool,
}

impl InputEvents {
    /// The next event; `None` at the end.
    ///
    /// # Errors
    /// The input cannot be read.
    pub fn next(&mut self) -> io::Result<Option<InputEvent>> {
        while !self.is_at_end {
            let step = self.values.next_step(|event, place| {
                event.message_id()?;
                Ok((place, event.raw().to_owned()))
            });
            match step {
                ReadStep::NoEvent(_) => {}
                ReadStep::Event((EventPlace { place, line }, text)) => {
                    let line = usize::try_from(line).unwrap_or(usize::MAX);
                    return Ok(Some(InputEvent { place, line, event: Ok(text) }));
                }
                ReadStep::Reject(part) | ReadStep::RejectUnlessGrowing(part) => {
                    return Ok(Some(InputEvent::invalid(part.place, part.flaw)));
                }
                ReadStep::End(end) => {
                    self.is_at_end = true;
                    if self.values.has_trailing_bytes() {
                        let name = escaped(&self.name);
                        hint(format_args!(
                            "warning: {name}: the bytes that follow the compressed data are ignored"
                        ));
                    }
                    match end {
                        ReadEnd::Complete => {}
                        ReadEnd::Unusable(flaw) | ReadEnd::UnusableRest(flaw) => {
                            return Ok(Some(InputEvent::invalid(0, flaw)));
                        }
                        ReadEnd::Shortened => return Err(io::ErrorKind::UnexpectedEof.into()),
                        ReadEnd::Failed(error) => return Err(error),
                    }
                }
            }
        }
        Ok(None)
    }
}

impl InputEvent {
    fn invalid(place: u64, flaw: Flaw) -> InputEvent {
        InputEvent { place, line: flaw.line, event: Err(flaw) }
    }
}

fn events(source: EventInput, limits: &config::SpoolConfig) -> io::Result<InputEvents> {
    let mut content = BufReader::new(source.content);
    let is_gzip = content.fill_buf()?.starts_with(&GZIP_MAGIC);
    // Where no name says that it is a document, a value may go over as many lines as in one.
    let (format, max_over_lines) = match source.format {
        Some(format) => (format, limits.max_event_bytes),
        None => (Format::Lines, limits.max_file_bytes),
    };
    let limits =
        ReadLimits { max_value: limits.max_file_bytes, max_event: limits.max_event_bytes, max_over_lines };
    let text = Text::new(Box::new(content), is_gzip);
    let values = Values::new(text, source.size, format, limits, ReadPosition::default());
    Ok(InputEvents { values, name: source.name, is_at_end: false })
}

/// Checks the size of an event again after a member was added to it.
///
/// # Errors
/// The event is too large now.
pub fn recheck(event: &str, limits: &config::SpoolConfig) -> Result<(), Flaw> {
    fits(event, limits.max_event_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Cursor, Write};

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
            (None, format!("{{\"batch\":[\n{EVENT}\n]}}"), vec![ok(2, 2)]),
            (None, format!("oops\n{EVENT}"), vec![(1, 1, Err((1, 1))), ok(2, 2)]),
            (None, format!("{{\"a\":\n{EVENT}\n"), vec![(1, 1, Err((1, 6))), ok(2, 2)]),
            (None, "{\n \"a\":\n".to_owned(), vec![(1, 2, Err((2, 6)))]),
            (None, String::new(), vec![]),
            (Some("a.json"), EVENT.to_owned(), vec![ok(0, 1)]),
            (Some("a.json"), format!("{EVENT}\n{EVENT}"), vec![ok(0, 1), ok(2, 2)]),
            (Some("a.json"), String::new(), vec![(0, 1, Err((1, 1)))]),
            (Some("a.jsonl.gz"), format!("[]\n7\n{EVENT}"), vec![(2, 2, Err((2, 1))), ok(3, 3)]),
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

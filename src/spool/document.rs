//! A JSON document of the spool: one event, an array of events, or Segment's batch envelope.

use crate::event::{Elements, Event, Flaw, Raw, elements};
use crate::reason::Code;

/// How the events stand in a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The document is the event.
    Single,
    /// An array of events.
    Array,
    /// `{"batch": […]}`, with members that hold for all.
    Envelope,
}

/// A document taken apart; its items are unread.
#[derive(Debug)]
pub struct Document<'a> {
    /// How the events stand in it.
    pub form: Form,
    /// The text of each event, in order.
    pub items: Elements<'a>,
    /// The envelope's `context`, merged into each item's.
    pub context: Option<Raw<'a>>,
    /// The envelope's `integrations`, merged into each item's.
    pub integrations: Option<Raw<'a>>,
}

/// The text of a file: UTF-8, a byte order mark at its start aside.
///
/// # Errors
/// Where the first byte stands that is not UTF-8; incomplete if the text ends within a character.
pub fn text_of(bytes: &[u8]) -> Result<&str, Flaw> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.strip_prefix('\u{feff}').unwrap_or(text)),
        Err(e) => {
            let (line, column) = place_of(&bytes[..e.valid_up_to()]);
            let text = "not UTF-8: write the file as UTF-8".to_owned();
            Err(Flaw { code: Code::NotJson, text, line, column, incomplete: e.error_len().is_none() })
        }
    }
}

/// Takes a document apart.
///
/// # Errors
/// It is not JSON (or ends too early), or is neither an object nor an array.
pub fn split(text: &str) -> Result<Document<'_>, Flaw> {
    match text.trim_start_matches([' ', '\t', '\n', '\r']).bytes().next() {
        Some(b'[') => {
            Ok(Document { form: Form::Array, items: elements(text)?, context: None, integrations: None })
        }
        _ => {
            let event = Event::parse_shallow(text).map_err(|flaw| hint_at_lines(text, flaw))?;
            let batch =
                event.get("batch").filter(|b| event.get("type").is_none() && b.get().starts_with('['));
            let Some(batch) = batch else {
                return Ok(Document {
                    form: Form::Single,
                    items: Elements::one(text),
                    context: None,
                    integrations: None,
                });
            };
            Ok(Document {
                form: Form::Envelope,
                items: elements(batch.get())?,
                context: event.get("context"),
                integrations: event.get("integrations"),
            })
        }
    }
}

/// Where the items of a document stand in it. They are asked for in their order, so that a document of a million bad
/// ones is gone through once.
#[derive(Debug)]
pub struct Places<'a> {
    text: &'a str,
    seen: usize,
    line: usize,
    line_start: usize,
}

impl<'a> Places<'a> {
    /// Those in `text`.
    pub fn of(text: &'a str) -> Places<'a> {
        Places { text, seen: 0, line: 1, line_start: 0 }
    }

    /// The line and the column in it where the item begins, from 1.
    pub fn start(&mut self, item: &str) -> (usize, usize) {
        let start = item.as_ptr().addr().saturating_sub(self.text.as_ptr().addr()).min(self.text.len());
        let passed = self.text.as_bytes().get(self.seen..start).unwrap_or_default();
        for newline in memchr::memchr_iter(b'\n', passed) {
            (self.line, self.line_start) = (self.line + 1, self.seen + newline + 1);
        }
        self.seen = start;
        (self.line, start - self.line_start + 1)
    }

    /// A flaw of an item, placed in the whole text.
    pub fn place(&mut self, item: &str, flaw: Flaw) -> Flaw {
        let (line, column) = self.start(item);
        Flaw {
            line: line + flaw.line - 1,
            column: if flaw.line == 1 { column + flaw.column - 1 } else { flaw.column },
            ..flaw
        }
    }
}

/// Line and column, from 1, of the byte after `before`.
fn place_of(before: &[u8]) -> (usize, usize) {
    let line = 1 + memchr::memchr_iter(b'\n', before).count();
    let column = before.len() - memchr::memrchr(b'\n', before).map_or(0, |i| i + 1) + 1;
    (line, column)
}

/// Events line by line in a file that is named as one document is the commonest slip.
fn hint_at_lines(text: &str, mut flaw: Flaw) -> Flaw {
    let more_follows = flaw.code == Code::NotJson && !flaw.incomplete && flaw.line > 1;
    let mut lines = text.lines().filter(|l| !l.trim().is_empty());
    if more_follows && lines.next().is_some_and(|first| Event::parse_shallow(first).is_ok()) {
        flaw.text.push_str("; for an event a line, name the file .jsonl");
    }
    flaw
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_told_from_the_text() {
        for (text, form, items) in [
            (r#" {"type":"track"} "#, Form::Single, 1),
            (r#"[{"type":"track"}, 1, {"a":[]}]"#, Form::Array, 3),
            ("[]", Form::Array, 0),
            (r#"{"batch":[{"type":"track"},{}],"context":{"a":1}}"#, Form::Envelope, 2),
            (r#"{"type":"track","batch":[]}"#, Form::Single, 1),
            (r#"{"batch":"x"}"#, Form::Single, 1),
        ] {
            let document = split(text).unwrap();
            assert_eq!((document.form, document.items.len()), (form, items), "{text}");
        }
    }

    #[test]
    fn flaws_are_placed_in_the_whole_text() {
        let text = "[\n  {\"type\":\"track\"},\n  7\n]";
        let item = split(text).unwrap().items.nth(1).unwrap();
        let flaw = Places::of(text).place(item, Event::parse(item).unwrap_err());
        assert_eq!((flaw.line, flaw.column), (3, 3));
    }

    #[test]
    fn what_ends_too_early_is_incomplete_and_garbage_is_not() {
        for (text, incomplete) in
            [("", true), ("[{\"a\":", true), ("{\"a\":1", true), ("{\"a\":1}x", false), ("hello", false)]
        {
            assert_eq!(split(text).unwrap_err().incomplete, incomplete, "{text:?}");
        }
        assert!(text_of(b"{\"a\":\"\xc3").unwrap_err().incomplete);
        let flaw = text_of(b"{\n\"a\":\"\xff\"}").unwrap_err();
        assert_eq!((flaw.line, flaw.column, flaw.incomplete), (2, 6, false));
    }

    #[test]
    fn lines_in_a_document_are_hinted_at() {
        let flaw = split("{\"type\":\"track\"}\n{\"type\":\"track\"}\n").unwrap_err();
        assert!(flaw.text.contains("name the file .jsonl"), "{}", flaw.text);
    }
}

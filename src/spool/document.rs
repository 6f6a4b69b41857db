//! A JSON document: one event, an array of events, or Segment's batch envelope.

use crate::event::{Elements, Event, Flaw, Raw, elements};
use crate::reason::Code;

/// The layout of the events in a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The document is the event.
    Single,
    /// An array of events.
    Array,
    /// `{"batch": […]}`, with members that apply to all events.
    Envelope,
}

/// A document whose items are not parsed yet.
#[derive(Debug)]
pub struct Document<'a> {
    /// The layout of the events.
    pub form: Form,
    /// The text of each event, in order.
    pub items: Elements<'a>,
    /// The envelope's `context`, merged into each item's.
    pub context: Option<Raw<'a>>,
    /// The envelope's `integrations`, merged into each item's.
    pub integrations: Option<Raw<'a>>,
}

impl<'a> Document<'a> {
    /// Splits a document into its items.
    ///
    /// # Errors
    /// The text is not JSON (or ends too early), or is neither an object nor an array.
    pub fn parse(text: &'a str) -> Result<Document<'a>, Flaw> {
        match text.trim_start_matches([' ', '\t', '\n', '\r']).bytes().next() {
            Some(b'[') => {
                Ok(Document { form: Form::Array, items: elements(text)?, context: None, integrations: None })
            }
            _ => {
                let event = Event::parse_shallow(text).map_err(|flaw| with_hint_at_lines(text, flaw))?;
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
}

/// The text in `bytes`, which must be UTF-8, without a byte order mark.
///
/// # Errors
/// The position of the first byte that is not UTF-8. The flaw is `incomplete` if the text ends within a character.
pub fn utf8_text(bytes: &[u8]) -> Result<&str, Flaw> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.strip_prefix('\u{feff}').unwrap_or(text)),
        Err(e) => {
            let (line, column) = position_after(&bytes[..e.valid_up_to()]);
            let text = "not UTF-8: write the file as UTF-8".to_owned();
            Err(Flaw { code: Code::NotJson, text, line, column, incomplete: e.error_len().is_none() })
        }
    }
}

/// Finds line and column of the items of a document. Positions are asked for in the order of the items, so that the text
/// is searched once, also with a million bad items.
#[derive(Debug)]
pub struct ItemPositions<'a> {
    text: &'a str,
    /// The text before this byte has been searched.
    searched: usize,
    line: usize,
    line_start: usize,
}

impl<'a> ItemPositions<'a> {
    /// Positions in `text`.
    pub fn new(text: &'a str) -> ItemPositions<'a> {
        ItemPositions { text, searched: 0, line: 1, line_start: 0 }
    }

    /// Line and column at which the item begins, both from 1.
    pub fn position_of(&mut self, item: &str) -> (usize, usize) {
        let start = item.as_ptr().addr().saturating_sub(self.text.as_ptr().addr()).min(self.text.len());
        let skipped = self.text.as_bytes().get(self.searched..start).unwrap_or_default();
        for newline in memchr::memchr_iter(b'\n', skipped) {
            (self.line, self.line_start) = (self.line + 1, self.searched + newline + 1);
        }
        self.searched = start;
        (self.line, start - self.line_start + 1)
    }

    /// Turns the position of a flaw within an item into the position in the whole text.
    pub fn locate(&mut self, item: &str, flaw: Flaw) -> Flaw {
        let (line, column) = self.position_of(item);
        Flaw {
            line: line + flaw.line - 1,
            column: if flaw.line == 1 { column + flaw.column - 1 } else { flaw.column },
            ..flaw
        }
    }
}

/// Line and column, both from 1, of the byte after `before`.
fn position_after(before: &[u8]) -> (usize, usize) {
    let line = 1 + memchr::memchr_iter(b'\n', before).count();
    let column = before.len() - memchr::memrchr(b'\n', before).map_or(0, |i| i + 1) + 1;
    (line, column)
}

/// Adds a hint for the most common mistake: one event on each line, in a file that is named as one document.
fn with_hint_at_lines(text: &str, mut flaw: Flaw) -> Flaw {
    let more_follows = flaw.code == Code::NotJson && !flaw.incomplete && flaw.line > 1;
    let mut lines = text.lines().filter(|l| !l.trim().is_empty());
    if more_follows && lines.next().is_some_and(|first| Event::parse_shallow(first).is_ok()) {
        flaw.text.push_str("; a file with one event on each line must be named .jsonl");
    }
    flaw
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_recognised_by_the_text() {
        for (text, form, items) in [
            (r#" {"type":"track"} "#, Form::Single, 1),
            (r#"[{"type":"track"}, 1, {"a":[]}]"#, Form::Array, 3),
            ("[]", Form::Array, 0),
            (r#"{"batch":[{"type":"track"},{}],"context":{"a":1}}"#, Form::Envelope, 2),
            (r#"{"type":"track","batch":[]}"#, Form::Single, 1),
            (r#"{"batch":"x"}"#, Form::Single, 1),
        ] {
            let document = Document::parse(text).unwrap();
            assert_eq!((document.form, document.items.len()), (form, items), "{text}");
        }
    }

    #[test]
    fn flaws_have_their_position_in_the_whole_text() {
        let text = "[\n  {\"type\":\"track\"},\n  7\n]";
        let item = Document::parse(text).unwrap().items.nth(1).unwrap();
        let flaw = ItemPositions::new(text).locate(item, Event::parse(item).unwrap_err());
        assert_eq!((flaw.line, flaw.column), (3, 3));
    }

    #[test]
    fn a_text_that_ends_too_early_is_incomplete_and_garbage_is_not() {
        for (text, incomplete) in
            [("", true), ("[{\"a\":", true), ("{\"a\":1", true), ("{\"a\":1}x", false), ("hello", false)]
        {
            assert_eq!(Document::parse(text).unwrap_err().incomplete, incomplete, "{text:?}");
        }
        assert!(utf8_text(b"{\"a\":\"\xc3").unwrap_err().incomplete);
        let flaw = utf8_text(b"{\n\"a\":\"\xff\"}").unwrap_err();
        assert_eq!((flaw.line, flaw.column, flaw.incomplete), (2, 6, false));
    }

    #[test]
    fn events_line_by_line_in_a_document_get_a_hint() {
        let flaw = Document::parse("{\"type\":\"track\"}\n{\"type\":\"track\"}\n").unwrap_err();
        assert!(flaw.text.contains("must be named .jsonl"), "{}", flaw.text);
    }
}

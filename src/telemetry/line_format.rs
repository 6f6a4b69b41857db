//! One line of the log: what it begins with, its text, then its fields as `key=value`. Whatever stands in a text or a
//! value, a line of the log is one line, and a value can be told from what follows it.
//!
//! The formatter of tracing-subscriber is not used: it has no priorities of systemd, and shows values as Rust's `Debug`
//! does, quoted or not by the type.

use crate::clock::Timestamp;
use std::fmt::{self, Debug, Write};
use std::time::SystemTime;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::registry::LookupSpan;

/// The field that holds the text.
const TEXT: &str = "message";

/// How lines begin.
#[derive(Debug, Clone, Copy)]
pub(super) struct LineFormat {
    /// The journal reads them.
    pub journal: bool,
    /// The level is shown in colour.
    pub colour: bool,
}

impl LineFormat {
    /// Writes what stands before the text of a line.
    fn write_prefix(self, out: &mut impl Write, level: Level) -> fmt::Result {
        // From sd-daemon(3).
        let (priority, name, colour) = match level {
            Level::ERROR => (3, "error", "31"),
            Level::WARN => (4, "warning", "33"),
            Level::INFO => (6, "info", "32"),
            _ => (7, "debug", "2"),
        };
        let now = Timestamp::from_system(SystemTime::now());
        if self.journal {
            write!(out, "<{priority}>")
        } else if self.colour {
            write!(out, "\x1b[2m{now}\x1b[0m \x1b[{colour}m{name}\x1b[0m ")
        } else {
            write!(out, "{now} {name} ")
        }
    }

    /// A whole line without fields.
    pub fn line(self, level: Level, text: &str) -> String {
        let mut line = String::new();
        // A text can always be written into memory.
        let _ = self.write_prefix(&mut line, level);
        line + text + "\n"
    }
}

impl<S, N> FormatEvent<S, N> for LineFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        self.write_prefix(&mut writer, *event.metadata().level())?;
        let (mut text, mut fields) = (String::new(), String::new());
        event.record(&mut LineVisitor { text: &mut text, fields: &mut fields });
        writeln!(writer, "{text}{fields}")
    }
}

/// Collects the text and the fields of a line, in their order. Memory can always be written.
struct LineVisitor<'a> {
    text: &'a mut String,
    fields: &'a mut String,
}

impl Visit for LineVisitor<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let shown = format!("{value:?}");
        match field.name() {
            TEXT => escape(self.text, &shown, ""),
            name => {
                let _ = write!(self.fields, " {name}=");
                write_value(self.fields, &shown);
            }
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        // By default it would be shown in the quotes of Rust.
        self.record_debug(field, &format_args!("{value}"));
    }
}

/// Writes a value as it is, or in quotes with the escapes of a JSON string where it would not end at the next space.
fn write_value(out: &mut String, value: &str) {
    let ends = |c: char| c.is_whitespace() || matches!(c, '"' | '=' | '\\') || is_unseen(c);
    if value.is_empty() || value.contains(ends) {
        out.push('"');
        escape(out, value, "\"\\");
        out.push('"');
    } else {
        out.push_str(value);
    }
}

/// Writes a text without anything that would end the line, move the cursor of a terminal, or turn the direction of the text
/// after it; and with a backslash before each of these characters.
fn escape(out: &mut String, text: &str, escaped: &str) {
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if is_unseen(c) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => {
                if escaped.contains(c) {
                    out.push('\\');
                }
                out.push(c);
            }
        }
    }
}

/// Controls, line and paragraph separators, marks of direction and other characters without a glyph.
fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::fmt::Subscriber as Fmt;

    /// The lines that are logged by `log`, without their ends.
    fn lines(log: impl FnOnce()) -> Vec<String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        let format = LineFormat { journal: true, colour: false };
        let writer = file.reopen().unwrap();
        let subscriber = Fmt::builder().with_writer(writer).event_format(format).finish();
        tracing::subscriber::with_default(subscriber, log);
        std::fs::read_to_string(file.path()).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn the_text_comes_first_and_the_fields_follow_in_their_order() {
        let logged = lines(|| {
            let (path, none) = (std::path::Path::new("/var/lib/x"), None::<u64>);
            tracing::warn!(
                notice = "intake_blocked",
                code = %"max_bytes",
                bytes = 7_u64,
                step = -5_i64,
                is_so = true,
                none,
                outbox = %path.display(),
                "blocked ({}); files wait", 3
            );
            tracing::info!("no fields = none");
        });
        assert_eq!(
            logged,
            [
                "<4>blocked (3); files wait notice=intake_blocked code=max_bytes bytes=7 step=-5 is_so=true \
                 outbox=/var/lib/x",
                "<6>no fields = none"
            ]
        );
    }

    #[test]
    fn a_value_is_quoted_where_it_would_not_end_at_the_next_space() {
        for (value, want) in [
            ("a.json", "a.json"),
            ("ä/ü:1,2", "ä/ü:1,2"),
            ("", r#""""#),
            ("a b", r#""a b""#),
            ("a=b", r#""a=b""#),
            ("a\"b", r#""a\"b""#),
            ("a\\b", r#""a\\b""#),
            ("a\nnotice=started", r#""a\nnotice=started""#),
            ("a\r\tb", r#""a\r\tb""#),
            ("\u{1b}[2J\u{9b}", r#""\u001b[2J\u009b""#),
            ("a\u{2028}b\u{202e}c", r#""a\u2028b\u202ec""#),
            ("\u{e0041}", r#""\udb40\udc41""#),
            ("a\u{a0}b", "\"a\u{a0}b\""),
        ] {
            let mut written = String::new();
            write_value(&mut written, value);
            assert_eq!(written, want);
            if written.starts_with('"') {
                assert_eq!(serde_json::from_str::<String>(&written).unwrap(), value, "JSON reads it back");
            }
        }
    }

    #[test]
    fn whatever_stands_in_a_text_it_stays_one_line() {
        let text = "a \"quoted\\\" name\nx\r\u{1b}[2J\u{2029}";
        let logged = lines(|| tracing::info!(file = text, "{text}"));
        let file = r#"file="a \"quoted\\\" name\nx\r\u001b[2J\u2029""#;
        assert_eq!(logged, [format!("<6>{}{file}", "a \"quoted\\\" name\\nx\\r\\u001b[2J\\u2029 ")]);
    }
}

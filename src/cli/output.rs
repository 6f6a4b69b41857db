//! Writing to the terminal: answers to stdout, all else to stderr, text from outside made harmless.

use anstream::adapter::strip_str;
use anstyle::{AnsiColor, Style};
use serde::Serialize;
use std::borrow::Cow;
use std::fmt::{self, Display};
use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Headings.
pub const BOLD: Style = Style::new().bold();
/// Labels and details.
pub const DIM: Style = Style::new().dimmed();
/// Good states.
pub const GOOD: Style = AnsiColor::Green.on_default();
/// States that pass without anybody's help.
pub const WAITING: Style = AnsiColor::Yellow.on_default();
/// States that a person must act on.
pub const BAD: Style = AnsiColor::Red.on_default();

/// Prints an answer. Its styles reach a terminal only, and not where `NO_COLOR` is set.
///
/// # Errors
/// Stdout cannot be written.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = anstream::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Stdout without any change to what is written, for JSON and generated files; the caller flushes it.
pub fn raw_stdout() -> BufWriter<StdoutLock<'static>> {
    BufWriter::new(io::stdout().lock())
}

/// Prints JSON Lines, and to stderr how many rows are left out.
///
/// # Errors
/// Stdout cannot be written.
pub fn print_json<T: Serialize>(rows: &[T], more: u64) -> io::Result<()> {
    let mut out = raw_stdout();
    for row in rows {
        serde_json::to_writer(&mut out, row).map_err(io::Error::from)?;
        out.write_all(b"\n")?;
    }
    out.flush()?;
    if more > 0 {
        hint(format_args!("… and {} more; --limit N lists more", grouped(more)));
    }
    Ok(())
}

/// Prints a line to stderr. Without a stderr nobody reads it, so a failure is ignored.
pub fn hint(text: impl Display) {
    let _ = writeln!(anstream::stderr(), "koala-agent: {text}");
}

/// Text in a style.
pub fn styled(style: Style, text: impl Display) -> String {
    format!("{style}{text}{style:#}")
}

/// A number with thousands separators: `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number and its noun: `1 event`, `1,234 events`.
pub fn counted(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", grouped(number), if number == 1 { "" } else { "s" })
}

/// Text from outside, safe for a terminal: characters that could move the cursor or reverse the line are written
/// as JSON escapes.
pub fn escaped(text: &str) -> Cow<'_, str> {
    let is_harmful = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(is_harmful) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if is_harmful(c) {
            safe.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            safe.push(c);
        }
    }
    Cow::Owned(safe)
}

/// The columns of the terminal; `None` if stdout is not a terminal, and then nothing is cut or wrapped. Of a terminal
/// that does not know its size, `COLUMNS` tells it.
pub fn terminal_width() -> Option<usize> {
    let known = terminal_size::terminal_size_of(io::stdout()).map(|(width, _)| usize::from(width.0));
    let from_environment = || std::env::var("COLUMNS").ok()?.parse().ok().filter(|width| *width > 0);
    known.or_else(|| io::stdout().is_terminal().then(|| from_environment().unwrap_or(DEFAULT_WIDTH)))
}

/// The columns of a terminal whose size nothing tells.
const DEFAULT_WIDTH: usize = 80;

/// Breaks text at spaces into lines of at most `width` columns; a longer word has a line of its own.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.split(' ') {
        let columns = strip_str(word).to_string().width();
        if used > 0 && used + 1 + columns > width {
            lines.push(String::new());
            used = 0;
        }
        if let Some(line) = lines.last_mut() {
            if used > 0 {
                line.push(' ');
            }
            line.push_str(word);
            used += columns + usize::from(used > 0);
        }
    }
    lines
}

/// Text that begins at `indent` of the current line, its further lines indented as far.
pub fn indented(text: &str, indent: usize, width: Option<usize>) -> String {
    let room = width.map_or(usize::MAX, |width| width.saturating_sub(indent).max(MIN_WRAP));
    wrapped(text, room).join(&format!("\n{:indent$}", ""))
}

/// The narrowest column that text is wrapped into.
const MIN_WRAP: usize = 30;

/// Rows under a heading, in aligned columns. In a pipe nothing is cut. On a terminal that is too narrow, columns
/// with a minimum give way, and the last column moves to a line of its own below each row.
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<(Style, String)>>,
}

/// A column: its title, and the width that it can be cut to; without one it is never cut.
pub struct Column(pub &'static str, pub Option<usize>);

impl Table {
    /// A table without rows.
    pub fn new(columns: Vec<Column>) -> Table {
        Table { columns, rows: Vec::new() }
    }

    /// Adds a row; the text may be from outside.
    pub fn row(&mut self, cells: Vec<(Style, &str)>) {
        self.rows.push(cells.into_iter().map(|(style, text)| (style, escaped(text).into_owned())).collect());
    }

    /// The table for a terminal of that width, or for a pipe.
    pub fn render(mut self, width: Option<usize>) -> String {
        let titles = self.columns.iter().map(|column| (BOLD, column.0.to_owned())).collect();
        self.rows.insert(0, titles);
        let last = self.columns.len() - 1;
        let mut widths: Vec<usize> = (0..last)
            .map(|i| self.rows.iter().map(|row| row[i].1.width()).max().unwrap_or_default())
            .collect();
        let widest_last = self.rows.iter().map(|row| row[last].1.width()).max().unwrap_or_default();
        let mut is_last_below = false;
        if let Some(width) = width {
            let minimal: usize = (0..last)
                .map(|i| self.columns[i].1.map_or(widths[i], |least| least.min(widths[i])) + GAP)
                .sum();
            is_last_below = minimal + widest_last.min(MIN_LAST_COLUMN) > width;
            let for_last = if is_last_below { 0 } else { widest_last.min(MIN_LAST_COLUMN) };
            self.shrink(&mut widths, width.saturating_sub(for_last));
        }
        let before: usize = widths.iter().map(|width| width + GAP).sum();
        let mut text = String::new();
        for (n, mut row) in self.rows.into_iter().enumerate() {
            let (style, detail) = row.pop().unwrap_or_default();
            for ((style, mut cell), width) in row.into_iter().zip(&widths) {
                cut(&mut cell, *width);
                let fill = width + GAP - cell.width();
                text.push_str(&styled(style, cell));
                text.extend(std::iter::repeat_n(' ', fill));
            }
            match width {
                Some(width) if is_last_below && n > 0 && !detail.is_empty() => {
                    text.truncate(text.trim_end().len());
                    let detail = indented(&detail, DETAIL_INDENT, Some(width));
                    text.push_str(&format!("\n{:DETAIL_INDENT$}{}", "", styled(style, detail)));
                }
                _ if is_last_below => {}
                _ => text.push_str(&styled(style, indented(&detail, before, width))),
            }
            text.truncate(text.trim_end().len());
            text.push('\n');
        }
        text
    }

    /// Takes what the columns have over `limit` from those that can be cut, the widest first.
    fn shrink(&self, widths: &mut [usize], limit: usize) {
        let can_shrink = |i: &usize, widths: &[usize]| self.columns[*i].1.is_some_and(|min| widths[*i] > min);
        while widths.iter().map(|width| width + GAP).sum::<usize>() > limit {
            let candidates = (0..widths.len()).filter(|i| can_shrink(i, widths));
            let Some(widest) = candidates.max_by_key(|i| widths[*i]) else { return };
            widths[widest] -= 1;
        }
    }
}

/// The narrowest last column that stays in its row: in a narrower one a sentence takes too many lines.
const MIN_LAST_COLUMN: usize = 48;
/// The space between two columns.
const GAP: usize = 2;
/// The indentation of a last column that stands below its row.
const DETAIL_INDENT: usize = 4;

/// Cuts text to at most `limit` columns, the last of them an ellipsis.
fn cut(text: &mut String, limit: usize) {
    if text.width() <= limit {
        return;
    }
    let mut columns = 0;
    let end = text.char_indices().find(|(_, c)| {
        columns += c.width().unwrap_or_default();
        columns >= limit
    });
    text.truncate(end.map_or(0, |(at, _)| at));
    text.push('…');
}

/// Lines that begin with a label, wrapped on a terminal.
#[derive(Default)]
pub struct LabelledLines {
    text: String,
    width: Option<usize>,
}

/// The column in which the text behind a label begins.
const LABEL_WIDTH: usize = 15;

impl LabelledLines {
    /// Lines for a terminal of that width, or for a pipe.
    pub fn new(width: Option<usize>) -> LabelledLines {
        LabelledLines { text: String::new(), width }
    }

    /// Adds a line with a label.
    pub fn add(&mut self, label: &str, text: impl Display) {
        let label = format!("{label:<width$}", width = LABEL_WIDTH - 4);
        let text = indented(&text.to_string(), LABEL_WIDTH, self.width);
        self.text.push_str(&format!("  {}  {text}\n", styled(DIM, label)));
    }

    /// Adds a line below the last one, without a label.
    pub fn add_below(&mut self, text: impl Display) {
        self.add("", text);
    }
}

impl Display for LabelledLines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_outside_cannot_control_the_terminal() {
        for (text, safe) in [
            ("Größe 12 €", "Größe 12 €"),
            ("a\u{1b}[2Jb", "a\\u001b[2Jb"),
            ("a\nb\u{7f}\u{9b}", "a\\u000ab\\u007f\\u009b"),
            ("gpj.\u{202e}exe", "gpj.\\u202eexe"),
        ] {
            assert_eq!(escaped(text), safe);
        }
    }

    #[test]
    fn numbers_have_thousands_separators() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(number), text);
        }
        assert_eq!(counted(1, "event"), "1 event");
        assert_eq!(counted(50_000, "event"), "50,000 events");
    }

    fn table(reason: &str, width: Option<usize>) -> String {
        let columns = vec![Column("ID", None), Column("PERSON", Some(4)), Column("REASON", None)];
        let mut table = Table::new(columns);
        table.row(vec![(Style::new(), "m-1"), (Style::new(), "ana@acme"), (Style::new(), reason)]);
        table.row(vec![(Style::new(), "m"), (Style::new(), ""), (Style::new(), "")]);
        strip_str(&table.render(width)).to_string()
    }

    #[test]
    fn a_table_is_cut_on_a_terminal_only() {
        let whole = "ID   PERSON    REASON\nm-1  ana@acme  it was refused\nm\n";
        assert_eq!(table("it was refused", None), whole);
        assert_eq!(table("it was refused", Some(80)), whole);
        assert_eq!(
            table("it was refused", Some(27)),
            "ID   PERSON  REASON\nm-1  ana@a…  it was refused\nm\n"
        );
    }

    #[test]
    fn a_last_column_without_room_stands_below_its_row() {
        let reason = "word ".repeat(9);
        assert_eq!(
            table(reason.trim(), Some(34)),
            "ID   PERSON\nm-1  ana@acme\n    word word word word word word\n    word word word\nm\n"
        );
    }

    #[test]
    fn the_width_of_a_text_is_counted_in_columns() {
        let mut wide = "東京タワー".to_owned();
        cut(&mut wide, 6);
        assert_eq!((wide.as_str(), wide.width()), ("東京…", 5));
        assert_eq!(wrapped("東京 タワー x", 6), ["東京", "タワー", "x"]);
    }
}

//! What stands on the terminal: answers to stdout, everything else to stderr, strangers' text made harmless.

use anstyle::{AnsiColor, Style};
use std::borrow::Cow;
use std::fmt::{self, Display};
use std::io::{self, BufWriter, StdoutLock, Write};

/// For what is the heading of something.
pub const BOLD: Style = Style::new().bold();
/// For what is there for completeness.
pub const DIM: Style = Style::new().dimmed();
/// For what is well.
pub const GOOD: Style = AnsiColor::Green.on_default();
/// For what passes by itself.
pub const ODD: Style = AnsiColor::Yellow.on_default();
/// For what a person must act on.
pub const BAD: Style = AnsiColor::Red.on_default();

/// Prints an answer. Styles in it show on a terminal alone, and not where `NO_COLOR` is set.
///
/// # Errors
/// Of stdout.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = anstream::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Stdout as it is, for JSON; the caller flushes it.
pub fn json() -> BufWriter<StdoutLock<'static>> {
    BufWriter::new(io::stdout().lock())
}

/// Tells something beside the answer. Without a stderr there is nobody to tell.
pub fn hint(text: impl Display) {
    let _ = writeln!(anstream::stderr(), "koala-agent: {text}");
}

/// Text in a style.
pub fn paint(style: Style, text: impl Display) -> String {
    format!("{style}{text}{style:#}")
}

/// A number and what is counted.
pub fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Strangers' text, fit for a terminal: what could move the cursor or turn the line around is written as JSON
/// writes it.
pub fn plain(text: &str) -> Cow<'_, str> {
    let harmful = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(harmful) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if harmful(c) {
            shown.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

/// The width of the terminal that stdout is, if it is one.
pub fn width() -> Option<usize> {
    terminal_size::terminal_size_of(io::stdout()).map(|(width, _)| usize::from(width.0))
}

/// Rows under a heading, aligned. On a terminal the last column ends with the line, and a column with a limit
/// gives way; in a pipe nothing is cut.
pub struct Table {
    columns: Vec<(&'static str, Option<usize>)>,
    rows: Vec<Vec<(Style, String)>>,
}

impl Table {
    /// No rows yet; each column has a title, and a limit if it may be cut.
    pub fn new(columns: &[(&'static str, Option<usize>)]) -> Table {
        Table { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row of strangers' text.
    pub fn row(&mut self, cells: Vec<(Style, &str)>) {
        self.rows.push(cells.into_iter().map(|(style, text)| (style, plain(text).into_owned())).collect());
    }

    /// The table for a terminal of that width.
    pub fn render(mut self, width: Option<usize>) -> String {
        let titles = self.columns.iter().map(|(title, _)| (BOLD, (*title).to_owned())).collect();
        self.rows.insert(0, titles);
        let limits: Vec<_> =
            self.columns.iter().map(|(_, limit)| limit.filter(|_| width.is_some())).collect();
        let mut widths = vec![0; limits.len()];
        for row in &mut self.rows {
            for ((cell, limit), widest) in row.iter_mut().zip(&limits).zip(&mut widths) {
                cut(&mut cell.1, limit.unwrap_or(usize::MAX));
                *widest = (*widest).max(cell.1.chars().count());
            }
        }
        let last = limits.len() - 1;
        let before: usize = widths[..last].iter().map(|w| w + GAP).sum();
        let room = width.map_or(usize::MAX, |width| width.saturating_sub(before).max(LEAST_OF_LAST));
        let mut text = String::new();
        for row in self.rows {
            for (i, (style, mut cell)) in row.into_iter().enumerate() {
                if i == last {
                    cut(&mut cell, room);
                }
                let fill = if i == last { 0 } else { widths[i] + GAP - cell.chars().count() };
                text.push_str(&paint(style, cell));
                text.extend(std::iter::repeat_n(' ', fill));
            }
            text.truncate(text.trim_end().len());
            text.push('\n');
        }
        text
    }
}

/// The space between two columns.
const GAP: usize = 2;
/// A last column narrower than this tells nothing: rather a line that wraps.
const LEAST_OF_LAST: usize = 20;

fn cut(text: &mut String, limit: usize) {
    if let Some((at, _)) = text.char_indices().nth(limit) {
        let at = text[..at].char_indices().last().map_or(0, |(at, _)| at);
        text.truncate(at);
        text.push('…');
    }
}

/// Labelled facts, a line each, under one heading.
#[derive(Default)]
pub struct Facts(String);

impl Facts {
    /// Adds a fact.
    pub fn add(&mut self, label: &str, fact: impl Display) {
        self.0.push_str(&format!("  {}  {fact}\n", paint(DIM, format_args!("{label:<11}"))));
    }

    /// Adds a line to the last fact.
    pub fn more(&mut self, fact: impl Display) {
        self.add("", fact);
    }
}

impl Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_text_cannot_command_the_terminal() {
        for (text, shown) in [
            ("Größe 12 €", "Größe 12 €"),
            ("a\u{1b}[2Jb", "a\\u001b[2Jb"),
            ("a\nb\u{7f}\u{9b}", "a\\u000ab\\u007f\\u009b"),
            ("gpj.\u{202e}exe", "gpj.\\u202eexe"),
        ] {
            assert_eq!(plain(text), shown);
        }
    }

    #[test]
    fn a_table_is_cut_on_a_terminal_alone() {
        let table = || {
            let mut table = Table::new(&[("ID", None), ("WHO", Some(4)), ("WHY", None)]);
            table.row(vec![
                (Style::new(), "m-1"),
                (Style::new(), "ana@acme"),
                (Style::new(), "it was refused"),
            ]);
            table.row(vec![(Style::new(), "m"), (Style::new(), ""), (Style::new(), "")]);
            anstream::adapter::strip_str(&table.render(None)).to_string()
        };
        assert_eq!(table(), "ID   WHO       WHY\nm-1  ana@acme  it was refused\nm\n");
        let mut narrow = Table::new(&[("ID", None), ("WHO", Some(4)), ("WHY", None)]);
        narrow.row(vec![(Style::new(), "m-1"), (Style::new(), "ana@acme"), (Style::new(), &"x".repeat(99))]);
        let text = anstream::adapter::strip_str(&narrow.render(Some(40))).to_string();
        assert_eq!(text.lines().last().unwrap(), format!("m-1  ana…  {}…", "x".repeat(28)));
    }
}

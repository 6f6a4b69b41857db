//! Sets the address in the text of a configuration, and changes nothing else in it.
//!
//! The text is a person's: its comments, its order and its spelling stay. It is not parsed, changed and printed again, as
//! the crate toml_edit would do: that is a second parser, which may understand a file in another way than the one that the
//! agent reads it with. Instead, each place where the line can stand is tried, and the first text is taken of which the
//! agent's own parser says that the address has changed and nothing else.

use std::ops::Range;
use toml::de::DeTable;
use toml::{Table, Value};

/// The text with `koala.endpoint` set to this address, which is scheme and host. `None`: no line can be found or added by
/// which the address changes and nothing else, as in an inline table.
pub fn with_endpoint(text: &str, endpoint: &str) -> Option<String> {
    let mut wanted: Table = toml::from_str(text).ok()?;
    let koala = wanted.entry("koala").or_insert_with(|| Value::Table(Table::new())).as_table_mut()?;
    koala.insert("endpoint".to_owned(), Value::String(endpoint.to_owned()));
    candidates(text, endpoint)
        .into_iter()
        .find(|edited| toml::from_str(edited).is_ok_and(|table: Table| table == wanted))
}

/// The text with the line in each place where it can stand, the best one first.
fn candidates(text: &str, endpoint: &str) -> Vec<String> {
    let line = format!("endpoint = \"{endpoint}\"");
    let mut candidates = vec![text.to_owned()];
    candidates.extend(value_of_endpoint(text).map(|value| replaced(text, value, &format!("\"{endpoint}\""))));
    // The default, which the packaged file shows as a comment.
    candidates.extend(
        lines_with(text, "#endpoint =").map(|Range { start, end }| replaced(text, start..end, &line)),
    );
    candidates.extend(lines_with(text, "[koala]").map(|header| inserted(text, header.end, &line)));
    candidates.extend(
        lines_with(text, "koala.").map(|dotted| inserted(text, dotted.end, &format!("koala.{line}"))),
    );
    let end = text.trim_end().len();
    candidates.push(inserted(text, end, &format!("\n[koala]\n{line}")).trim_start().to_owned());
    candidates
}

/// The place of the value, with its quotes.
fn value_of_endpoint(text: &str) -> Option<Range<usize>> {
    let table = DeTable::parse(text).ok()?;
    let koala = table.get_ref().get("koala")?.get_ref().as_table()?;
    Some(koala.get("endpoint")?.span())
}

/// The lines that begin so, each without its end.
fn lines_with<'a>(text: &'a str, beginning: &'a str) -> impl Iterator<Item = Range<usize>> + 'a {
    let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1));
    let lines = starts.map(|start| {
        let line = text[start..].split(['\r', '\n']).next().unwrap_or_default();
        start..start + line.len()
    });
    lines.filter(move |line| text[line.clone()].trim_start().starts_with(beginning))
}

fn replaced(text: &str, range: Range<usize>, by: &str) -> String {
    format!("{}{by}{}", &text[..range.start], &text[range.end..])
}

/// The text with a line of its own behind the line that ends at `end`.
fn inserted(text: &str, end: usize, line: &str) -> String {
    let (before, after) = text.split_at(end);
    let after = if after.is_empty() { "\n" } else { after };
    format!("{before}\n{line}{after}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DEFAULTS;

    #[test]
    fn the_address_changes_and_everything_else_stays() {
        for (text, edited) in [
            ("", "[koala]\nendpoint = \"https://new.test\"\n"),
            ("# a note\n\n", "# a note\n\n[koala]\nendpoint = \"https://new.test\"\n\n"),
            (
                "[spool]\nsettle = \"1s\"",
                "[spool]\nsettle = \"1s\"\n\n[koala]\nendpoint = \"https://new.test\"\n",
            ),
            (
                "[koala] # the destination\ntimeout = \"5s\"\n[spool]\n",
                "[koala] # the destination\nendpoint = \"https://new.test\"\ntimeout = \"5s\"\n[spool]\n",
            ),
            ("[koala]", "[koala]\nendpoint = \"https://new.test\"\n"),
            (
                "[koala]\r\ntimeout = \"5s\"\r\n",
                "[koala]\nendpoint = \"https://new.test\"\r\ntimeout = \"5s\"\r\n",
            ),
            (
                "[koala]\nendpoint = 'https://old.test'  # ours\n",
                "[koala]\nendpoint = \"https://new.test\"  # ours\n",
            ),
            (
                "koala.timeout = \"5s\"\n[spool]\n",
                "koala.timeout = \"5s\"\nkoala.endpoint = \"https://new.test\"\n[spool]\n",
            ),
            ("koala.endpoint = \"https://old.test\"", "koala.endpoint = \"https://new.test\""),
            (
                "koala = { timeout = \"5s\", endpoint = \"https://old.test\" }\n",
                "koala = { timeout = \"5s\", endpoint = \"https://new.test\" }\n",
            ),
            (
                "[koala]\nendpoint = \"https://new.test\" # it is there\n",
                "[koala]\nendpoint = \"https://new.test\" # it is there\n",
            ),
            // The same line inside of a text, and in another section.
            (
                "[koala]\nca_file = '''\n#endpoint = x\n[koala]\n'''\n",
                "[koala]\nendpoint = \"https://new.test\"\nca_file = '''\n#endpoint = x\n[koala]\n'''\n",
            ),
            (
                "[spool]\n#endpoint = 1\n[koala]\n#endpoint = 2\n",
                "[spool]\n#endpoint = 1\n[koala]\nendpoint = \"https://new.test\"\n",
            ),
        ] {
            assert_eq!(with_endpoint(text, "https://new.test").as_deref(), Some(edited), "{text:?}");
        }
    }

    #[test]
    fn in_the_packaged_file_the_line_of_the_default_is_used() {
        let edited = with_endpoint(DEFAULTS, "https://new.test").unwrap();
        let (before, after): (Vec<&str>, Vec<&str>) = (DEFAULTS.lines().collect(), edited.lines().collect());
        assert_eq!(before.len(), after.len());
        let changed: Vec<_> = before.iter().zip(&after).filter(|(old, new)| old != new).collect();
        assert_eq!(
            changed,
            [(&"#endpoint = \"https://api2.getkoala.com\"", &"endpoint = \"https://new.test\"")]
        );
    }

    #[test]
    fn a_text_without_a_place_for_the_line_is_left_alone() {
        for text in ["koala = { timeout = \"5s\" }\n", "koala = 1\n", "not toml", "[koala]\nx = nan\n"] {
            assert_eq!(with_endpoint(text, "https://new.test"), None, "{text:?}");
        }
    }
}

//! Turns one file of the spool into a sequence of steps, which the intake acts on: events to store, parts to reject, and
//! how the reading ended.
//!
//! The reader changes nothing and knows neither the outbox nor `rejected/`, so that reading can be tested alone. It is no
//! callback into the intake, because the intake has to stop between any two steps: to store a full batch, to read another
//! owner's file, or to end. It owns all that it needs, so that it can be kept meanwhile.

use super::append_batch::SourceFile;
use super::new_event::{ReadRules, new_event};
use crate::outbox::{FileProgress, NewEvent};
pub use crate::spool::ReadEnd;
use crate::spool::{self, Format, ReadLimits, ReadPosition, Values, printable, unpacked};
use std::fs::File;

/// The next thing in a file; see [`spool::ReadStep`].
pub type ReadStep = spool::ReadStep<NewEvent>;

/// A reader of one file.
pub struct FileReader {
    source: SourceFile,
    rules: ReadRules,
    values: Values,
}

impl FileReader {
    /// Begins to read an open file, behind what is ingested of it; `format` is what its name says.
    pub fn open(
        file: File,
        (format, is_packed): (Format, bool),
        source: SourceFile,
        rules: ReadRules,
    ) -> FileReader {
        let limits = ReadLimits {
            max_value: rules.max_file_bytes,
            max_event: rules.max_event_bytes,
            max_over_lines: rules.max_event_bytes,
        };
        let FileProgress { position, place, sum, .. } = source.progress;
        let from = ReadPosition { position, place, sum };
        let text = unpacked(file, is_packed);
        FileReader { values: Values::new(text, Some(source.entry.size), format, limits, from), source, rules }
    }

    /// The position after the steps so far. It never falls behind the position from which the file was to be read on.
    pub fn position(&self) -> ReadPosition {
        self.values.position()
    }

    /// The bytes of text that the reader holds in memory.
    pub fn memory(&self) -> usize {
        self.values.memory()
    }

    /// The next step. [`ReadStep::End`] is the last.
    pub fn next_step(&mut self) -> ReadStep {
        let (source, rules) = (&self.source, &self.rules);
        let step = self.values.next_step(|event, place| new_event(event, place.place, source, rules));
        if matches!(step, ReadStep::End(_)) && self.values.has_trailing_bytes() {
            tracing::warn!(
                "{}: the bytes that follow the compressed data are ignored; its events are ingested",
                printable(&source.entry.name)
            );
        }
        step
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::Mappings;
    use crate::spool::{FileIdentity, SpoolEntry};
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::{Seek, Write};
    use std::sync::Arc;

    const A: &str = r#"{"type":"track","event":"a","userId":"u"}"#;

    fn source(name: &str, size: usize, ingested: ReadPosition) -> SourceFile {
        let identity = FileIdentity { inode: 1, born: 1, modified: 1 };
        let entry = SpoolEntry { name: name.into(), identity, size: size as u64, owner: 0, changed: 1 };
        let ReadPosition { position, place, sum } = ingested;
        let none = FileProgress::none(name.as_bytes(), identity, entry.stamp());
        SourceFile::new(entry, FileProgress { position, place, sum, ..none })
    }

    /// The steps of a file, in short, and the position after the last.
    fn steps(name: &str, content: &[u8], ingested: ReadPosition) -> (String, ReadPosition) {
        let source = source(name, content.len(), ingested);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file.rewind().unwrap();
        let rules =
            ReadRules { max_file_bytes: 200, max_event_bytes: 100, mappings: Arc::new(Mappings::presets()) };
        let mut shown = Vec::new();
        let format = source.entry.format().unwrap();
        let mut reader = FileReader::open(file, format, source, rules);
        loop {
            match reader.next_step() {
                ReadStep::Event(event) => shown.push(format!("event {}", event.place)),
                ReadStep::NoEvent(_) => {}
                ReadStep::Reject(part) => shown.push(format!("reject {}", part.place)),
                ReadStep::RejectUnlessGrowing(part) => shown.push(format!("cut {}", part.place)),
                ReadStep::End(end) => {
                    shown.push(end_in_short(&end));
                    return (shown.join(", "), reader.position());
                }
            }
        }
    }

    fn end_in_short(end: &ReadEnd) -> String {
        match end {
            ReadEnd::Complete => "complete".to_owned(),
            ReadEnd::Unusable(flaw) => format!("unusable{}", if flaw.incomplete { " so far" } else { "" }),
            ReadEnd::UnusableRest(flaw) => {
                format!("rest unusable{}", if flaw.incomplete { " so far" } else { "" })
            }
            ReadEnd::Shortened => "shortened".to_owned(),
            ReadEnd::Failed(e) => panic!("{e}"),
        }
    }

    fn packed(text: &str) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn each_file_is_a_sequence_of_steps() {
        let long = format!(r#"{{"type":"track","event":"{}"}}"#, "x".repeat(100));
        let endless = "x".repeat(300);
        let cut_off = packed(A).len() - 9;
        for (name, content, want) in [
            ("a.json", A.into(), "event 0, complete"),
            ("a.json", "[]".into(), "complete"),
            ("a.json", format!("[{A}, 7, {A}]"), "event 1, reject 2, event 3, complete"),
            ("a.json", format!("{{\"batch\":[{A}]}}"), "event 1, complete"),
            ("a.json", r#"{"type":"#.into(), "unusable so far"),
            ("a.json", "hello".into(), "unusable"),
            ("a.json", long.clone(), "unusable"),
            ("a.json", endless.clone(), "unusable"),
            ("a.jsonl", "".into(), "complete"),
            ("a.jsonl", format!("{A}\n\n{A}\n"), "event 1, event 3, complete"),
            ("a.jsonl", format!("{A}\n{A}"), "event 1, event 2, complete"),
            ("a.jsonl", format!("7\n{A}\n"), "reject 1, event 2, complete"),
            ("a.jsonl", format!("{A}\n{{\"a"), "event 1, cut 2, complete"),
            ("a.jsonl", format!("{{\"a\n{A}\n"), "reject 1, event 2, complete"),
            ("a.jsonl", format!("{A}\n{long}\n"), "event 1, reject 2, complete"),
            ("a.jsonl", format!("{A}\n{endless}"), "event 1, rest unusable"),
        ] {
            let none = ReadPosition::default();
            assert_eq!(steps(name, content.as_bytes(), none).0, want, "{name} {content}");
            if !want.contains("unusable") {
                let name = format!("{name}.gz");
                assert_eq!(steps(&name, &packed(&content), none).0, want, "{name} {content}");
            }
        }
        for (name, content, want) in [
            ("a.json.gz", packed(A)[..cut_off].to_vec(), "rest unusable so far"),
            ("a.jsonl.gz", packed(A)[..cut_off].to_vec(), "rest unusable so far"),
            ("a.json.gz", Vec::new(), "unusable so far"),
            ("a.jsonl.gz", A.into(), "rest unusable"),
        ] {
            assert_eq!(steps(name, &content, ReadPosition::default()).0, want, "{name}");
        }
    }

    #[test]
    fn a_file_ingested_in_part_is_read_from_there_unless_its_beginning_has_changed() {
        let (first, both) = (format!("{A}\n"), format!("{A}\n{A}\n"));
        let (_, ingested) = steps("a.jsonl", first.as_bytes(), ReadPosition::default());
        assert_eq!((ingested.position, ingested.place), (first.len() as u64, 1));
        let again = |content: &str| steps("a.jsonl", content.as_bytes(), ingested).0;
        assert_eq!(again(&both), "event 2, complete");
        assert_eq!(again(&both.replace("track", "crack")), "shortened");
        assert_eq!(again(A), "shortened");

        let array = format!("[{A},{A},{A}]");
        let ingested = ReadPosition { place: 2, ..ReadPosition::default() };
        assert_eq!(steps("a.json", array.as_bytes(), ingested).0, "event 3, complete");
    }
}

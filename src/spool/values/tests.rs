//! Tables of files and their steps, and a naive reader to which the real one is compared.

use super::*;
use crate::event::json::compact_len;
use crate::event::{EnvelopeCommon, merge_envelope};
use proptest::prelude::*;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use std::collections::VecDeque;
use std::io::Read;

const A: &str = r#"{"type":"track"}"#;
const LIMITS: ReadLimits = ReadLimits { max_value: 1 << 20, max_event: 40, max_over_lines: 60 };

/// A source that has little at once.
struct Pieces {
    text: VecDeque<u8>,
    sizes: Vec<usize>,
    reads: usize,
}

impl Read for Pieces {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.reads += 1;
        let size = self.sizes.get(self.reads % self.sizes.len().max(1)).map_or(into.len(), |size| *size);
        if size == 0 {
            return Err(ErrorKind::Interrupted.into());
        }
        let most = size.min(into.len());
        self.text.read(&mut into[..most])
    }
}

/// A step in short: its kind, place and line, and the text.
type Shown = (&'static str, u64, u64, String);

fn values(text: &[u8], format: Format, limits: ReadLimits, sizes: &[usize], from: ReadPosition) -> Values {
    let source = Pieces { text: text.iter().copied().collect(), sizes: sizes.to_vec(), reads: 0 };
    Values::new(Text::Plain(Box::new(source)), Some(text.len() as u64), format, limits, from)
}

/// All steps but those without an event, each with the position after it.
fn steps_from(mut values: Values) -> Vec<(Shown, ReadPosition)> {
    let mut all = Vec::new();
    let lossy = |content: &[u8]| String::from_utf8_lossy(content).into_owned();
    loop {
        let step = values.next_step(|event, place| {
            event.message_id()?;
            Ok(("event", place.place, place.line, event.raw().to_owned()))
        });
        let shown = match step {
            ReadStep::NoEvent(_) => continue,
            ReadStep::Event(event) => event,
            ReadStep::Reject(part) => ("reject", part.place, part.flaw.line as u64, lossy(&part.content)),
            ReadStep::RejectUnlessGrowing(part) => {
                ("cut", part.place, part.flaw.line as u64, lossy(&part.content))
            }
            ReadStep::End(end) => {
                let (kind, flaw) = match end {
                    ReadEnd::Complete => ("complete", None),
                    ReadEnd::Unusable(flaw) => ("unusable", Some(flaw)),
                    ReadEnd::UnusableRest(flaw) => ("rest unusable", Some(flaw)),
                    ReadEnd::Shortened => ("shortened", None),
                    ReadEnd::Failed(error) => panic!("{error}"),
                };
                let growing = flaw.filter(|flaw| flaw.incomplete).map_or("", |_| "so far");
                all.push(((kind, 0, 0, growing.to_owned()), values.position()));
                return all;
            }
        };
        all.push((shown, values.position()));
    }
}

fn shown(steps: Vec<(Shown, ReadPosition)>) -> Vec<Shown> {
    steps.into_iter().map(|(shown, _)| shown).collect()
}

/// The steps in short, without lines and texts.
fn short(text: &str, format: Format) -> String {
    let steps = steps_from(values(text.as_bytes(), format, LIMITS, &[], ReadPosition::default()));
    let words = shown(steps).into_iter().map(|(kind, place, _, text)| match kind {
        "event" | "reject" | "cut" => format!("{kind} {place}"),
        _ if text.is_empty() => kind.to_owned(),
        _ => format!("{kind} {text}"),
    });
    words.collect::<Vec<_>>().join(", ")
}

#[test]
fn a_file_of_lines_is_a_stream_of_values() {
    let pretty = "{\n  \"type\":\n    \"track\"\n}";
    let long = format!(r#"{{"event":"{}"}}"#, "x".repeat(40));
    for (text, want) in [
        (String::new(), "complete"),
        ("\n \n\0\0".into(), "complete"),
        (format!("{A}\n\n{A}\n"), "event 1, event 3, complete"),
        (format!("{A}\n{A}"), "event 1, event 2, complete"),
        (format!("\u{feff}{A}\r\n{A}\0\0\0"), "event 1, event 2, complete"),
        // Zeros are no text, wherever a machine that lost its power left them.
        (format!("{A}\n\0\0\0{A}\n"), "event 1, event 2, complete"),
        // Several values on a line have numbers of their own, and so have those of the next line.
        (format!("{A}{A} {A}\n{A}\n"), "event 1, event 2, event 3, event 4, complete"),
        (format!("[{A},7,{A}]\n{A}\n"), "event 1, reject 2, event 3, event 4, complete"),
        (format!("{{\"batch\":[{A},\n{A}]}}\n{A}\n"), "event 1, event 2, event 3, complete"),
        ("[]\n{\"batch\":[]}\n".into(), "complete"),
        (format!("{pretty}\n{pretty}\n"), "event 1, event 5, complete"),
        (format!("7\n{A}\n"), "reject 1, event 2, complete"),
        (format!("{A}\n{{\"a"), "event 1, cut 2, complete"),
        (format!("{{\"a\n{A}\n"), "reject 1, event 2, complete"),
        (format!("{{\"a\":\n{A}\n"), "reject 1, event 2, complete"),
        (format!("{{\"a\":[1,2\n{A}\n"), "reject 1, event 2, complete"),
        // What is closed is bad by itself; what is not is bad up to the next line that begins an object.
        (format!("{{\"a\":tru}} {A}\n"), "reject 1, event 2, complete"),
        (format!("{{\"a\":'}} {A}\n{A}\n"), "reject 1, event 2, complete"),
        (format!("oops\nmore\n{A}\n"), "reject 1, event 3, complete"),
        (format!("{A} oops\n{A}\n"), "event 1, reject 2, event 3, complete"),
        (format!("{A}\n{long}\n{A}"), "event 1, reject 2, event 3, complete"),
        (
            format!("{{\"batch\":[\n{} {A}]}}\n{A}", format!(" {A},\n").repeat(5)),
            "reject 1, event 8, complete",
        ),
        (format!("{A}\n{{\"batch\":[{A}],\"context\":{long}}}\n{A}"), "event 1, reject 2, event 3, complete"),
    ] {
        assert_eq!(short(&text, Format::Lines), want, "{text:?}");
    }
}

#[test]
fn a_document_is_a_stream_of_values_up_to_an_error() {
    let long = format!(r#"{{"event":"{}"}}"#, "x".repeat(40));
    for (text, want) in [
        (String::new(), "unusable so far"),
        (" \n\0".into(), "unusable so far"),
        (A.into(), "event 0, complete"),
        (format!("\u{feff} {A}\n\0\0"), "event 0, complete"),
        ("[]".into(), "complete"),
        (format!("[{A}, 7, {A}]"), "event 1, reject 2, event 3, complete"),
        (format!("{{\"batch\":[{A}]}}"), "event 1, complete"),
        (format!("{A}{A}\n{A}"), "event 0, event 2, event 3, complete"),
        (format!("{A}[{A}]{{\"batch\":[{A}]}}"), "event 0, event 2, event 3, complete"),
        (r#"{"type":"#.into(), "unusable so far"),
        (format!("{A}{{\"type\":"), "event 0, cut 2, complete"),
        ("hello".into(), "unusable"),
        (format!("hello {A}"), "unusable"),
        ("7".into(), "unusable"),
        (format!("7 {A}"), "reject 1, event 2, complete"),
        (format!("{A} hello {A}"), "event 0, reject 2, complete"),
        (format!("{A} {{\"a\":tru}} {A}"), "event 0, reject 2, complete"),
        (format!("[{A},{{\"a\":tru}}]"), "event 1, reject 2, complete"),
        (long.clone(), "unusable"),
        (format!("{long}{A}"), "reject 1, event 2, complete"),
        (format!("{{\"batch\":[{A},{A}],\"context\":{long}}}"), "unusable"),
        (format!("[{A},{long}]"), "event 1, reject 2, complete"),
    ] {
        assert_eq!(short(&text, Format::Document), want, "{text:?}");
    }
}

#[test]
fn white_space_outside_strings_does_not_count_as_content() {
    let spaced = format!("{{\"type\":{}\"track\"}}", " \n".repeat(100));
    for format in [Format::Lines, Format::Document] {
        assert_eq!(short(&spaced, format).split(' ').next(), Some("event"));
        let elements = format!("[{spaced},{spaced}]").replace('\n', " ");
        assert_eq!(short(&elements, format), "event 1, event 2, complete");
    }
}

#[test]
fn a_value_larger_than_memory_allows_ends_the_reading() {
    let limits = ReadLimits { max_value: 200, ..LIMITS };
    let large = format!("[{}]", "1,".repeat(200_000));
    let string = format!("{{\"a\":\"{}", "x".repeat(200_000));
    let (bad, spaces, zeros) = ("x".repeat(200_000), " ".repeat(200_000), "\0".repeat(200_000));
    let newlines = "\n".repeat(200_000);
    for (text, document, lines) in [
        (large.clone(), "unusable", "rest unusable"),
        (string, "unusable", "rest unusable"),
        (bad, "unusable", "rest unusable"),
        (spaces, "unusable", "rest unusable"),
        (zeros.clone(), "unusable", "rest unusable"),
        (format!("{A}\n{large}"), "event, rest unusable", "event, rest unusable"),
        (format!("{A}\n{zeros}"), "event, complete", "event, complete"),
        (format!("{A}{newlines}{A}"), "event, rest unusable", "event, event, complete"),
    ] {
        for (format, want) in [(Format::Document, document), (Format::Lines, lines)] {
            let steps = steps_from(values(text.as_bytes(), format, limits, &[], ReadPosition::default()));
            let kinds: Vec<_> = shown(steps).into_iter().map(|(kind, ..)| kind).collect();
            assert_eq!(kinds.join(", "), want, "{text:.50} {format:?}");
        }
    }
}

#[test]
fn a_step_reads_once_and_memory_holds_one_value() {
    let text = format!("{}{A}\n{}", "\n".repeat(1 << 20), format!("{A}\n").repeat(100_000));
    let mut values = values(text.as_bytes(), Format::Lines, LIMITS, &[], ReadPosition::default());
    let (mut events, mut most) = (0, 0);
    loop {
        let before = values.text.bytes_read();
        let step = values.next_step(|_, _| Ok(()));
        assert!(values.text.bytes_read() - before <= READ_BUFFER as u64);
        most = most.max(values.memory());
        match step {
            ReadStep::Event(()) => events += 1,
            ReadStep::NoEvent(_) => {}
            ReadStep::End(ReadEnd::Complete) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(events, 100_001);
    assert!(most <= 2 * READ_BUFFER, "{most}");
}

#[test]
fn a_file_whose_beginning_has_changed_is_read_from_its_start() {
    let both = format!("{A}\n{A}\n");
    let steps = steps_from(values(both.as_bytes(), Format::Lines, LIMITS, &[], ReadPosition::default()));
    let from = steps[0].1;
    assert_eq!((from.position, from.place), (A.len() as u64 + 1, 1));
    for (text, want) in
        [(both.clone(), "event"), (both.replace("track", "crack"), "shortened"), (A.to_owned(), "shortened")]
    {
        assert_eq!(steps_from(values(text.as_bytes(), Format::Lines, LIMITS, &[], from))[0].0.0, want);
    }
}

/// Reads all of the text at once, with another parser, and slowly.
fn naive(text: &str, format: Format) -> Vec<Shown> {
    let is_blank = |c: char| matches!(c, ' ' | '\n' | '\r' | '\t' | '\0');
    let line_at = |at: usize| 1 + text[..at].matches('\n').count() as u64;
    let (mut at, mut place, mut all): (usize, u64, Vec<Shown>) = (0, 0, Vec::new());
    loop {
        at += text[at..].len() - text[at..].trim_start_matches(is_blank).len();
        let rest = &text[at..];
        if rest.is_empty() {
            break;
        }
        let next = |place: u64, at: usize| match format {
            Format::Lines => line_at(at).max(place + 1),
            Format::Document => place + 1,
        };
        let mut stream = serde_json::Deserializer::from_str(rest).into_iter::<IgnoredAny>();
        let end = match stream.next() {
            Some(Ok(_)) => Some(stream.byte_offset()),
            _ => None,
        };
        let is_over_lines = |value: &str| format == Format::Lines && value.contains('\n');
        let value = end
            .map(|end| &rest[..end])
            .filter(|value| !is_over_lines(value) || compact_len(value) as u64 <= LIMITS.max_over_lines);
        let Some(value) = value else {
            let end = match format {
                Format::Lines => rest.find("\n{").map_or(rest.len(), |newline| newline + 1),
                Format::Document => rest.len(),
            };
            let is_cut = at + end == text.len()
                && serde_json::from_str::<IgnoredAny>(rest).is_err_and(|error| error.is_eof());
            if format == Format::Document && place == 0 {
                let growing = if is_cut { "so far" } else { "" };
                return vec![("unusable", 0, 0, growing.to_owned())];
            }
            place = next(place, at);
            let content = rest[..end].trim_end_matches(is_blank);
            all.push((if is_cut { "cut" } else { "reject" }, place, 0, content.to_owned()));
            at += end;
            continue;
        };
        let element_at = |element: &str| element.as_ptr().addr() - text.as_ptr().addr();
        let mut elements = |array: &str, context: Option<&str>| {
            // Borrowed from the text, so that it is known where they are.
            let array = &text[element_at(array)..][..array.len()];
            for element in serde_json::from_str::<Vec<&RawValue>>(array).unwrap() {
                let at = element_at(element.get());
                place = next(place, at);
                let common = EnvelopeCommon { context, integrations: None };
                all.push(match Event::parse(element.get()) {
                    Ok(_) if compact_len(element.get()) as u64 > LIMITS.max_event => {
                        ("reject", place, 0, element.get().to_owned())
                    }
                    Ok(event) => {
                        let merged = merge_envelope(&event, &common).unwrap_or(element.get().to_owned());
                        ("event", place, line_at(at), merged)
                    }
                    Err(_) => ("reject", place, 0, element.get().to_owned()),
                });
            }
        };
        match Event::parse(value) {
            Err(_) if value.starts_with('[') => elements(value, None),
            Ok(event) if event.get("type").is_none() && event.get("batch").is_some() => {
                let context = event.get("context").map(|context| context.get());
                elements(event.get("batch").unwrap().get(), context);
            }
            event => {
                let is_good = event.is_ok() && compact_len(value) as u64 <= LIMITS.max_event;
                place = next(place, at);
                let told = if format == Format::Document && place == 1 { 0 } else { place };
                all.push(match is_good {
                    true => ("event", told, line_at(at), value.to_owned()),
                    false => ("reject", place, 0, value.to_owned()),
                });
            }
        }
        at += value.len();
    }
    if format == Format::Document && text.trim_matches(is_blank).is_empty() {
        return vec![("unusable", 0, 0, "so far".to_owned())];
    }
    if format == Format::Document
        && all.len() == 1
        && text.trim_matches(is_blank) == all[0].3
        && all[0].0 == "reject"
    {
        // All of the document.
        return vec![("unusable", 0, 0, String::new())];
    }
    all.push(("complete", 0, 0, String::new()));
    all
}

/// Texts of which files are put together: values, and what values are made of.
fn fragment() -> impl Strategy<Value = String> {
    let fixed = [
        A,
        r#"{"n":-1.5e3,"o":{"p":[{}]}}"#,
        r#"{"s":"}]\"\\ü"}"#,
        "{\n  \"pretty\" : [\n 1 ]\n}",
        r#"{"more content":"than an event may have here"}"#,
        r#"{"batch":[{"a":1}, {"b":2}],"context":{"c":3}}"#,
        "{\"batch\":[{\"a\":1},\n\"x\"]}",
        r#"[{"a":1},{"b":2}]"#,
        "{\"batch\":[\n {\"over\":\"several lines\"},\n {\"more\":\"than it may have\"}\n]}",
        "\"text\"",
        " 7 ",
        "{\"cut\":",
        "{\"cut\":[",
        "{\"cut",
        "'",
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"",
    ];
    prop_oneof![
        6 => Just("\n".to_owned()),
        2 => Just(" ".to_owned()),
        1 => Just("\0\0".to_owned()),
        16 => prop::sample::select(fixed.to_vec()).prop_map(str::to_owned),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.max(3_000)))]

    #[test]
    fn however_the_text_comes_its_steps_are_those_of_a_naive_reader(
        fragments in prop::collection::vec(fragment(), 0..14),
        sizes in prop::collection::vec(0usize..9, 1..6),
        is_document in any::<bool>(),
        resume in any::<prop::sample::Index>(),
    ) {
        let text = fragments.concat();
        let format = if is_document { Format::Document } else { Format::Lines };
        let none = ReadPosition::default();
        let sizes: Vec<usize> = sizes.into_iter().chain([3]).collect();
        let steps = steps_from(values(text.as_bytes(), format, LIMITS, &sizes, none));
        let at_once = steps_from(values(text.as_bytes(), format, LIMITS, &[], none));
        prop_assert_eq!(shown(steps.clone()), shown(at_once.clone()), "{:?}", text);
        prop_assert_eq!(steps.last(), at_once.last());

        let without_lines = |(kind, place, line, text): Shown| {
            (kind, place, if kind == "event" { line } else { 0 }, text)
        };
        let ours: Vec<_> = steps.iter().map(|(shown, _)| without_lines(shown.clone())).collect();
        prop_assert_eq!(&ours, &naive(&text, format), "{:?}", text);

        // The reading goes on behind any step: nothing is left out, and only elements of an array come again.
        let resumed = resume.index(steps.len());
        let again = steps_from(values(text.as_bytes(), format, LIMITS, &sizes, steps[resumed].1));
        let last = steps[resumed].0.0;
        let (again, all) = (shown(again), shown(steps));
        if last != "complete" && !last.contains("unusable") {
            let rest = all.len() - resumed - 1;
            let repeated = again.len().saturating_sub(rest);
            prop_assert_eq!(&again, &all[all.len() - again.len()..], "{:?}", text);
            prop_assert!(repeated == 0 || format == Format::Lines && again.len() > rest);
        }
    }
}

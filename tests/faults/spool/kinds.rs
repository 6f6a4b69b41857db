//! Texts that are hardly JSON, or more of it than anybody expects.

use super::{brisk, rejected};
use crate::common::agent::TestAgent;
use crate::runner::{Figures, Outcome, Scale};
use flate2::{Compression, write::GzEncoder};
use koala_agent::reason::Code;
use koala_agent::spool::RejectedFolder;
use std::io::Write;

/// The result that a text must have.
enum Ending {
    /// An event with this in it, as written.
    Ingested(&'static str),
    /// A file in `rejected/`, for a flaw at this byte of its only line.
    Rejected(Code, usize),
}

pub fn texts(_: &Scale) -> Outcome {
    use Ending::{Ingested, Rejected};
    let mut agent = brisk();
    agent.set("spool.max_event_bytes = \"1MiB\"");
    let mut cases: Vec<(&str, Vec<u8>, Ending)> = Vec::new();
    let mut person = 0;
    let mut event = |members: &str| {
        person += 1;
        agent.ledger.event_with(person, &format!("m-{person}"), members)
    };
    for kept in [
        r#""big":123456789012345678901234567890"#,
        r#""huge":1e400"#,
        r#""tiny":-0.10e-400"#,
        r#""half":"\ud800""#,
        r#""\udfff":"half a name""#,
        r#""nul":"\u0000""#,
        r#""twice":1,"twice":2"#,
        r#""":"""#,
        r#""long":[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]"#,
    ] {
        cases.push(("json", event(&format!("{kept},")).into(), Ingested(kept)));
    }
    let marked = format!("\u{feff}{}", event(r#""bom":1,"#));
    cases.push(("json", marked.into(), Ingested(r#""bom":1"#)));
    let spaced = format!(" \t\r\n{}\r\n\r\n", event(r#""space":1,"#));
    cases.push(("json", spaced.into(), Ingested(r#""space":1"#)));

    let depth = 100_000;
    let deep = event(&format!(r#""a":{}{},"#, "[".repeat(depth), "]".repeat(depth)));
    // The event and its properties are two of the levels.
    let at = at(&deep, "[[") + koala_agent::event::MAX_DEPTH - 2;
    cases.push(("json", deep.into(), Rejected(Code::TooDeep, at)));
    let open = format!("{{\"type\":\"track\",\"properties\":{}", "[{\"a\":".repeat(depth));
    cases.push(("json", open.clone().into(), Rejected(Code::NotJson, open.len() + 1)));
    let broken = |text: String, what: &str, by: &[u8]| {
        let at = text.find(what).unwrap();
        let text = text.as_bytes();
        ([&text[..at], by, &text[at + what.len()..]].concat(), at)
    };
    let (text, at) = broken(event(r#""a":"?","#), "?", b"\xff");
    cases.push(("json", text, Rejected(Code::NotJson, at + 1)));
    let (text, at) = broken(event(r#""a":"?","#), "?", b"\xed\xa0\x80");
    cases.push(("jsonl", text, Rejected(Code::NotJson, at + 1)));
    for control in [b"\0", b"\r", b"\x1b"] {
        let (text, at) = broken(event(r#""a":"?","#), "?", control);
        cases.push(("json", text, Rejected(Code::NotJson, at + 1)));
    }
    cases.push(("json", format!("x{}", event("")).into(), Rejected(Code::NotJson, 1)));
    cases.push(("json", Vec::new(), Rejected(Code::NotJson, 1)));
    cases.push(("json", vec![b' '; 100], Rejected(Code::NotJson, 101)));
    let wide: Vec<u8> = "\u{feff}{}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    cases.push(("json", wide, Rejected(Code::NotJson, 1)));

    let long = event("").replace("\"m-", &format!("\"{}", "m".repeat(100)));
    let at = long.find(r#""mmm"#).unwrap();
    cases.push(("json", long.into(), Rejected(Code::NotAnEvent, at + 1)));
    let list = event("").replace(r#""messageId":"#, r#""messageId":[1,2],"x":"#);
    let at = list.find("[1,2]").unwrap();
    cases.push(("json", list.into(), Rejected(Code::NotAnEvent, at + 1)));
    for (given, written) in [("123456789012345678901234567890", ""), ("a\r\nb", r#""a\r\nb""#)] {
        let written = if written.is_empty() { given } else { written };
        person += 1;
        let text = agent.ledger.event_with(person, given, r#""id":1,"#);
        let text = text.replace(&format!("\"messageId\":\"{given}\""), &format!("\"messageId\":{written}"));
        cases.push(("json", text.into(), Ingested(r#""id":1"#)));
    }

    agent.start();
    for (n, (extension, text, _)) in cases.iter().enumerate() {
        agent.drop_file(format!("{n}.{extension}"), text);
    }
    let taken = cases.iter().filter(|(_, _, ending)| matches!(ending, Ingested(_))).count();
    agent.until("the good ones", |agent| agent.receiver.stats().held >= taken);
    agent.until("the others are rejected", |agent| rejected(agent).len() == cases.len() - taken);
    agent.until_status("all is acknowledged", |status| status.outbox.delivered == taken as u64);
    let items: Vec<_> = agent.receiver.events().iter().map(|held| held.item.get().to_owned()).collect();
    for (n, (extension, text, ending)) in cases.iter().enumerate() {
        match ending {
            Ingested(kept) => assert!(items.iter().any(|item| item.contains(kept)), "{kept}"),
            Rejected(code, column) => {
                let end = if *extension == "jsonl" { ".1.jsonl" } else { ".json" };
                let name = format!("{n}{end}");
                let why = RejectedFolder::of_spool(&agent.spool()).why(name.as_ref());
                let why = why.unwrap_or_else(|| panic!("{name} is not rejected"));
                let start = String::from_utf8_lossy(&text[..text.len().min(200)]).into_owned();
                assert_eq!((why.code, why.line, why.column), (*code, 1, *column), "{name}: {start}: {why:?}");
            }
        }
    }
    agent.stop();
    agent.balance().note(format!("{taken} taken as written, {} rejected", cases.len() - taken)).into()
}

/// Where that begins, counted from 1.
fn at(text: &str, what: &str) -> usize {
    text.find(what).unwrap() + 1
}

/// The agent's memory beside a document: two batches of events and the pages of the database.
const BESIDE: u64 = 20 << 20;

/// Drops a file and waits until it is gone. Returns how much more memory that took than the agent had before.
fn memory_for(agent: &mut TestAgent, name: &str, text: &[u8]) -> u64 {
    // Memory that the process had before would hide what a document takes.
    if agent.is_started() {
        agent.stop();
    }
    agent.start();
    agent.until_status("it runs", |status| status.agent.running && status.spool.scanned_at.is_some());
    let before = agent.process().resident_memory();
    agent.drop_file(name, text);
    agent.until(name, |agent| {
        let left = [name.to_owned(), format!(".removing/{name}")].map(|name| agent.spool().join(name));
        !left.iter().any(|path| path.exists())
    });
    agent.process().peak_memory().saturating_sub(before)
}

/// Memory goes up by no more than twice the document.
pub fn large(scale: &Scale) -> Outcome {
    let mut agent = brisk();
    agent.set("spool.max_file_bytes = \"128MiB\"");
    let long = "x".repeat(32 << 20);
    let escaped = "\\n".repeat(16 << 20);
    let string = agent.ledger.event_with(0, "long", &format!(r#""long":"{long}","#));
    let line = agent.ledger.event_with(0, "line", &format!(r#""long":"{long}","#)) + "\n";
    let key =
        agent.ledger.event_with(0, "key", &format!(r#""{escaped}":1,"#)).replace("\"properties\":{", "");
    let events = scale.of(10_000, 1_000_000);
    let array: Vec<_> = (0..events).map(|n| agent.ledger.event(n % 100)).collect();
    let documents = [
        ("array.json", format!("[{}]", array.join(",\n"))),
        ("string.json", string),
        ("line.jsonl", line),
        ("key.json", key),
        ("zeros.json", format!("[{}", "0,".repeat(4 << 20))),
        ("empty.json", format!("{{\"batch\":[{}", "{},".repeat(3 << 20))),
    ];
    let mut notes = Vec::new();
    for (name, text) in documents {
        let took = memory_for(&mut agent, name, text.as_bytes());
        let limit = 2 * text.len() as u64 + BESIDE;
        notes.push(format!("{name}: {} MiB for {} MiB", took >> 20, text.len() >> 20));
        assert!(took <= limit, "{}", notes.join(", "));
    }
    agent.until_status("all is acknowledged", |status| status.outbox.pending == 0);
    agent.stop();
    agent.balance().note(notes.join(", ")).into()
}

/// 10 GiB in a few MiB.
pub fn bombs(_: &Scale) -> Outcome {
    const LIMIT: u64 = 16 << 20;
    let mut agent = brisk();
    agent.set("spool.max_file_bytes = \"16MiB\"");
    let mut figures = Figures::default();
    let one = packed(&[b' '; 1 << 20]);
    let spaces = one.repeat(10 << 10);
    let inner = packed(&spaces);
    for (name, bomb) in [
        ("document.json.gz", spaces.clone()),
        ("line.ndjson.gz", spaces),
        ("string.json.gz", [packed(b"{\"a\":\""), packed(&[b'x'; 1 << 20]).repeat(10 << 10)].concat()),
        ("twice.json.gz", inner),
    ] {
        let took = memory_for(&mut agent, name, &bomb);
        assert!(
            RejectedFolder::of_spool(&agent.spool()).why(name.as_ref()).is_some(),
            "{name} is not rejected"
        );
        assert!(took <= 2 * LIMIT + BESIDE, "{name} took {} MiB", took >> 20);
        figures =
            figures.note(format!("{name}: {} KiB packed, {} MiB of memory", bomb.len() >> 10, took >> 20));
    }
    agent.drop_events(100, 10);
    figures.add(agent.end());
    figures.into()
}

fn packed(text: &[u8]) -> Vec<u8> {
    let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
    gz.write_all(text).unwrap();
    gz.finish().unwrap()
}

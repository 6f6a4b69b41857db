//! The files that are dropped into the spool, and the result that each piece of them must have.

use crate::common::events::gzip;
use crate::common::ledger::{Dropped, Expected, Ledger, Reject};
use koala_agent::reason::Code;
use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

/// Events of one person, so that requests fill and ordering keys are many.
const EVENTS_A_PERSON: usize = 440;
/// Single files between two packs, and the events of a pack.
const SINGLES_A_PACK: usize = 200;
const PACK: usize = 40;
/// Parts of one file that are rejected one by one; what becomes of further ones is no matter of this load.
const MOST_FLAWED: usize = koala_agent::spool::MAX_PARTS as usize;
/// Deeper than an event may nest, and larger than it may be.
const TOO_DEEP: usize = koala_agent::event::MAX_DEPTH + 1;
const TOO_LARGE: usize = 33 << 10;

/// A file of the spool.
pub struct File {
    pub name: String,
    pub bytes: Vec<u8>,
    pub modified: SystemTime,
}

/// Everything that is dropped, in the order of the spool.
pub struct Corpus {
    pub files: Vec<File>,
    /// The expected results.
    pub ledger: Ledger,
    /// Names that say no format: these files stay.
    pub unknown: BTreeSet<String>,
    /// Pieces of every kind.
    pub pieces: u64,
    rng: fastrand::Rng,
    people: usize,
    /// Events whose ids may come again.
    known: Vec<Spec>,
    /// The flawed parts of the present file.
    flawed: usize,
    /// Whether the line before may take in this one, unless that begins like an event.
    is_after_broken: bool,
    began: SystemTime,
}

#[derive(Clone, Copy, PartialEq)]
enum Form {
    Single,
    Array,
    Envelope,
    Lines,
}

#[derive(Clone, Copy)]
enum Id {
    Of(u64),
    Missing(&'static str),
}

#[derive(Clone, Copy)]
enum Kind {
    Track,
    Identify,
    /// No mapping wants it.
    Page,
    /// An event that does not say whose it is.
    Nobody,
    /// A track that does not say what happened.
    Nameless,
}

#[derive(Clone, Copy)]
struct Spec {
    n: u64,
    id: Id,
    kind: Kind,
    person: usize,
    dated: bool,
}

/// The text of one event, and what is wrong with it: the code and the column.
struct Piece {
    bytes: Vec<u8>,
    flaw: Option<(Code, usize)>,
    /// The ending of the file that it must stand in.
    ending: Option<&'static str>,
}

impl Corpus {
    /// So many single-event files, with packs of every other form among them, and one file of so many lines in
    /// their midst.
    pub fn new(singles: usize, lines: usize, seed: u64) -> Corpus {
        let mut corpus = Corpus {
            files: Vec::new(),
            ledger: Ledger::default(),
            pieces: 0,
            rng: fastrand::Rng::with_seed(seed),
            people: (singles + lines).div_ceil(EVENTS_A_PERSON),
            unknown: BTreeSet::new(),
            known: Vec::new(),
            flawed: 0,
            is_after_broken: false,
            began: SystemTime::now() - Duration::from_secs(3600),
        };
        for n in 0..singles {
            if n == singles / 2 {
                corpus.pack(Form::Lines, "ndjson", lines);
            }
            if n % SINGLES_A_PACK == 0 {
                let forms = [
                    (Form::Array, "json"),
                    (Form::Envelope, "json"),
                    (Form::Lines, "jsonl"),
                    (Form::Array, "json.gz"),
                    (Form::Envelope, "json.gz"),
                    (Form::Lines, "ndjson.gz"),
                ];
                let (form, ending) = forms[(n / SINGLES_A_PACK) % forms.len()];
                corpus.pack(form, ending, PACK);
            }
            corpus.single();
        }
        corpus
    }

    fn single(&mut self) {
        (self.flawed, self.is_after_broken) = (0, false);
        let piece = self.piece(Form::Single);
        let ending = piece.ending.unwrap_or(if self.rng.u8(..) < 16 { "json.gz" } else { "json" });
        let packed = piece.ending.is_none() && ending.ends_with("gz");
        let name = self.file(ending, if packed { gzip(&piece.bytes) } else { piece.bytes });
        if let (Some((code, column)), Some(file)) = (piece.flaw, self.files.last()) {
            let (position, content) = (Some((1, column)), file.bytes.clone());
            self.ledger.rejects.push(Reject { file: name, place: 0, code, position, content });
        } else if ending == "txt" {
            self.unknown.insert(name);
        }
    }

    fn pack(&mut self, form: Form, ending: &str, events: usize) {
        let (open, between, close): (&[u8], &[u8], &[u8]) = match form {
            Form::Array => (b"[\n", b",\n", b"\n]\n"),
            Form::Envelope => (b"{\"batch\":[\n", b",\n", b"\n],\"context\":{\"app\":\"load\"}}"),
            Form::Lines | Form::Single => (b"", b"\n", b"\n"),
        };
        let mut bytes = open.to_vec();
        let mut flawed = Vec::new();
        (self.flawed, self.is_after_broken) = (0, false);
        for place in 1..=events {
            if place > 1 {
                bytes.extend(between);
            }
            let piece = self.piece(form);
            bytes.extend(&piece.bytes);
            self.is_after_broken = matches!(piece.flaw, Some((Code::NotJson, _)));
            if let Some((code, column)) = piece.flaw {
                self.flawed += 1;
                // The first element stands on the second line. A reused id is the whole element's fault.
                let line = match (form, code) {
                    (Form::Lines, _) => place,
                    (_, Code::MessageIdReused) => 1,
                    _ => place + 1,
                };
                let content = [piece.bytes, b"\n".into()].concat();
                flawed.push((place as u64, code, Some((line, column)), content));
            }
        }
        bytes.extend(close);
        let name = self.file(ending, if ending.ends_with("gz") { gzip(&bytes) } else { bytes });
        let rejects = flawed.into_iter().map(|(place, code, position, content)| Reject {
            file: name.clone(),
            place,
            code,
            position,
            content,
        });
        self.ledger.rejects.extend(rejects);
    }

    /// Three files at a time have one modification time, so that the name decides; the times differ by a
    /// nanosecond, and the names of one time do not follow those of the time before.
    fn file(&mut self, ending: &str, bytes: Vec<u8>) -> String {
        let k = self.files.len() as u64;
        let name = format!("{:05}-{}-{k}.{ending}", (k / 3 * 7919) % 100_000, k % 3);
        let modified = self.began + Duration::from_nanos(k / 3);
        self.files.push(File { name: name.clone(), bytes, modified });
        name
    }

    fn piece(&mut self, form: Form) -> Piece {
        let n = self.pieces;
        self.pieces += 1;
        // The members of an envelope would change the content of a known event.
        let repeats = form != Form::Envelope && !self.known.is_empty();
        let may_flaw = self.flawed < MOST_FLAWED;
        match self.rng.u32(..1000) {
            0..50 if repeats => self.duplicate(),
            50..60 if may_flaw => self.broken(form, n),
            60..65 if repeats && may_flaw => {
                let Some(&Spec { n: old, .. }) = self.rng.choice(&self.known) else { unreachable!() };
                let id = Id::Of(old);
                let spec = Spec { n, id, kind: Kind::Track, person: 0, dated: true };
                Piece { bytes: spec.text().into(), flaw: Some((Code::MessageIdReused, 1)), ending: None }
            }
            dice => {
                let kind = match dice {
                    65..75 => Kind::Page,
                    75..78 => Kind::Nobody,
                    78..81 => Kind::Nameless,
                    81..91 => Kind::Identify,
                    _ => Kind::Track,
                };
                self.sound(form, n, kind)
            }
        }
    }

    fn sound(&mut self, form: Form, n: u64, kind: Kind) -> Piece {
        let missing = ["", ",\"messageId\":null", ",\"messageId\":\"\""];
        let id = match self.rng.u32(..20) {
            0 => Id::Missing(missing[self.rng.usize(..missing.len())]),
            _ => Id::Of(n),
        };
        let (person, dated) = (self.rng.usize(..self.people), self.rng.u32(..20) > 0);
        let spec = Spec { n, id, kind, person, dated };
        let expected = match kind {
            Kind::Page => Expected::Skipped(Code::NoMapping),
            Kind::Nobody => Expected::Skipped(Code::NoIdentity),
            Kind::Nameless => Expected::Invalid,
            Kind::Track | Kind::Identify => Expected::Delivered,
        };
        let given = matches!(id, Id::Of(_)).then(|| format!("load-{n}"));
        self.ledger.dropped.insert(n, Dropped { person: name_of(person), id: given, expected });
        if matches!(id, Id::Of(_)) && form != Form::Envelope {
            self.known.push(spec);
        }
        Piece { bytes: spec.text().into(), flaw: None, ending: None }
    }

    /// A known event once more; in half the cases with another `sentAt`, which is no content.
    fn duplicate(&mut self) -> Piece {
        let Some(spec) = self.rng.choice(&self.known) else { unreachable!() };
        let mut text = spec.text();
        if self.rng.bool() {
            text.insert_str(1, "\"sentAt\": \"2026-01-02T03:04:06Z\",");
        }
        self.ledger.duplicates += 1;
        Piece { bytes: text.into(), flaw: None, ending: None }
    }

    fn broken(&mut self, form: Form, n: u64) -> Piece {
        // A document as a whole bears fewer kinds of damage in an element than a line or a file of its own.
        let kinds = match form {
            Form::Array | Form::Envelope => 5,
            Form::Lines => 8,
            Form::Single => 11,
        };
        let head = format!("{{\"n\": {n}, ");
        let (bytes, code, column) = match self.rng.usize(usize::from(self.is_after_broken)..kinds) {
            0 => (format!("\"n {n}\"").into_bytes(), Code::NotAnEvent, 1),
            1 => (format!("{head}\"messageId\": {{}}}}").into(), Code::NotAnEvent, head.len() + 14),
            2 => {
                let long = "x".repeat(101);
                (format!("{head}\"messageId\": \"{long}\"}}").into(), Code::NotAnEvent, head.len() + 14)
            }
            3 => (format!("{head}\"a\": \"{}\"}}", "x".repeat(TOO_LARGE)).into(), Code::TooLarge, 1),
            4 => {
                let (open, close) = ("[".repeat(TOO_DEEP - 1), "]".repeat(TOO_DEEP - 1));
                let column = head.len() + 5 + open.len();
                (format!("{head}\"a\": {open}{close}}}").into(), Code::TooDeep, column)
            }
            5 => (format!("{head},}}").into(), Code::NotJson, head.len() + 1),
            6 => {
                let bytes = [head.as_bytes(), b"\"a\": \"\xff\"}"].concat();
                (bytes, Code::NotJson, head.len() + 7)
            }
            7 => (format!("{head}\"type\":").into(), Code::NotJson, head.len() + 8),
            8 => (Vec::new(), Code::NotJson, 1),
            special => {
                let is_unpacked = special == 9;
                let bytes = format!("{{\"n\":{n}}}").into();
                let flaw = is_unpacked.then_some((Code::NotJson, 1));
                return Piece { bytes, flaw, ending: Some(if is_unpacked { "json.gz" } else { "txt" }) };
            }
        };
        Piece { bytes, flaw: Some((code, column)), ending: None }
    }
}

impl Spec {
    fn text(&self) -> String {
        let Spec { n, id, kind, person, dated } = *self;
        let id = match id {
            Id::Of(n) => format!(",\"messageId\":\"load-{n}\""),
            Id::Missing(text) => text.to_owned(),
        };
        let date = if dated { ",\"timestamp\":\"2026-01-02T03:04:05Z\"" } else { "" };
        let by = if person.is_multiple_of(4) { "profile_id" } else { "email" };
        let about = format!("{{\"{by}\":\"{}\",\"n\":{n},\"sum\":12.50}}", name_of(person));
        let rest = match kind {
            Kind::Track => format!("\"track\",\"event\":\"Paid\",\"properties\":{about}"),
            Kind::Identify => format!("\"identify\",\"traits\":{about}"),
            Kind::Page => format!("\"page\",\"name\":\"Home\",\"properties\":{about}"),
            Kind::Nobody => format!("\"track\",\"event\":\"Seen\",\"properties\":{{\"n\":{n}}}"),
            Kind::Nameless => format!("\"track\",\"properties\":{about}"),
        };
        format!("{{\"type\":{rest}{id}{date}}}")
    }
}

/// Every fourth is known by a profile_id, the others by an email.
fn name_of(person: usize) -> String {
    match person.is_multiple_of(4) {
        true => format!("00000000-0000-4000-8000-{person:012}"),
        false => format!("p{person}@load.dev"),
    }
}

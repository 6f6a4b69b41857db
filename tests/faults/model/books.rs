//! What the model expects: each event that was dropped, and what must become of it.

use super::script::{File, Flaw, Form, Kind, Piece, Way};
use flate2::{Compression, write::GzEncoder};
use koala_agent::event::MAX_DEPTH;
use koala_agent::reason::Code;
use std::collections::BTreeSet;
use std::io::Write;
use std::ops::Range;

/// Above `spool.max_event_bytes`.
const TOO_LARGE: usize = 33 << 10;

/// What must become of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Delivered,
    /// Refused by the receiver, and kept.
    Refused,
    Skipped(Code),
    /// Failed without having been sent.
    Invalid,
    /// It goes to `rejected/`, and is never an event of the outbox.
    SetAside,
}

/// One event. Its number is its place in [`Books::events`], and stands in its properties or traits as `n`.
#[derive(Debug)]
pub struct Event {
    pub person: String,
    /// The messageId that its producer gave it.
    pub id: Option<String>,
    pub fate: Fate,
    text: String,
}

/// What must be found in `rejected/`.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reject {
    pub file: String,
    pub place: u64,
    pub code: Code,
    pub content: Vec<u8>,
}

/// A file to be dropped.
pub struct Parcel {
    pub name: String,
    pub bytes: Vec<u8>,
    /// How much of it comes at first.
    pub first: usize,
}

#[derive(Debug, Default)]
pub struct Books {
    pub events: Vec<Event>,
    pub rejects: Vec<Reject>,
    /// Pieces that came before.
    pub duplicates: u64,
    /// Pieces of files that were touched: read twice, they count as duplicates or not.
    pub perhaps_duplicates: u64,
    /// Events, by number, of files that another may have replaced before they were read.
    pub replaced: Vec<Range<usize>>,
    pub discarded: BTreeSet<String>,
    pub retried: BTreeSet<String>,
    /// Events that others may follow by their ids: by number.
    known: Vec<usize>,
    /// The last file of each name that is used again.
    over: [Option<Range<usize>>; 2],
    files: u64,
    /// The last file and its pieces, if it is nothing but new events.
    pub last: Option<(String, u64)>,
}

impl Books {
    /// The known event so many back.
    pub fn known(&self, back: u8) -> Option<&Event> {
        let back = usize::from(back) % self.known.len().max(1);
        self.known.iter().rev().nth(back).map(|n| &self.events[*n])
    }

    /// An event in a file of its own, by nobody who was seen before.
    pub fn passer_by(&mut self) -> Parcel {
        self.files += 1;
        let name = format!("{:06}.json", self.files);
        let person = format!("passer-by-{}", self.files);
        let text = self.event(Kind::Track, person, true);
        Parcel { name, first: text.len(), bytes: text.into() }
    }

    /// Enters a file, and all that must become of it.
    pub fn enter(&mut self, file: &File) -> Parcel {
        self.files += 1;
        let whole = matches!(file.way, Way::Renamed);
        let form = match (file.form, file.way) {
            (Form::Lines, Way::Over(_) | Way::Begun { .. } | Way::Cut { .. }) => Form::Array,
            (form, _) => form,
        };
        let packed = file.packed && !matches!(file.way, Way::Over(_));
        let ending = if form == Form::Lines { "jsonl" } else { "json" };
        let ending = if packed { format!("{ending}.gz") } else { ending.to_owned() };
        let name = match file.way {
            Way::Over(which) => format!("over-{}.json", u8::from(which)),
            _ => format!("{:06}.{ending}", self.files),
        };
        let pieces = if form == Form::Single { &file.pieces[..1] } else { &file.pieces };
        let (first, duplicates, known) = (self.events.len(), self.duplicates, self.known.len());
        let rejects = self.rejects.len();
        let mut texts = Vec::new();
        for (piece, place) in pieces.iter().zip(1..) {
            let place = if form == Form::Single { 0 } else { place };
            let at = At { name: &name, place, form };
            // Who writes slowly may be overtaken, and what is replaced may never be read: no other piece builds on it.
            let piece = if whole { *piece } else { alone(*piece) };
            let person = (!whole).then(|| format!("writer-{}", self.files));
            texts.push(self.piece(piece, person, at));
        }
        let text = match form {
            Form::Single => texts.concat(),
            Form::Array => format!("[{}]", texts.join(",\n")),
            Form::Envelope => format!(r#"{{"sentAt":1,"batch":[{}]}}"#, texts.join(",")),
            Form::Lines => texts.join("\n") + "\n",
        };
        let bytes = if packed { gzip(text.as_bytes()) } else { text.clone().into_bytes() };
        for reject in &mut self.rejects[rejects..] {
            match reject.place {
                0 => reject.content.clone_from(&bytes),
                _ => reject.content.push(b'\n'),
            }
        }
        let events = first..self.events.len();
        let new = duplicates == self.duplicates && rejects == self.rejects.len();
        self.last = (new && !matches!(file.way, Way::Cut { .. } | Way::Begun { .. }))
            .then(|| (name.clone(), texts.len() as u64));
        let mut first = bytes.len();
        match file.way {
            Way::Renamed => {}
            Way::Over(which) => {
                let before = self.over[usize::from(which)].replace(events);
                self.replaced.extend(before);
            }
            Way::InPlace { share } | Way::Begun { share } => first = part(form, packed, &text, &bytes, share),
            Way::Cut { share } => {
                first = part(form, packed, &text, &bytes, share);
                self.events[events].iter_mut().for_each(|event| event.fate = Fate::SetAside);
                let content = bytes[..first].to_vec();
                self.rejects.push(Reject { file: name.clone(), place: 0, code: Code::NotJson, content });
            }
        }
        if !whole {
            self.known.truncate(known);
        }
        Parcel { name, bytes, first }
    }

    fn piece(&mut self, piece: Piece, person: Option<String>, at: At) -> String {
        match piece {
            Piece::New { kind, person: p, named } => {
                // A poison is told by its id; and of what is off nothing but its id is kept.
                let named = named || matches!(kind, Kind::Poison | Kind::Off);
                self.event(kind, person.unwrap_or_else(|| format!("p{p}")), named)
            }
            Piece::Again(back) => match self.known(back) {
                Some(known) => {
                    let text = known.text.clone();
                    self.duplicates += 1;
                    text
                }
                None => self.event(Kind::Track, "p0".into(), true),
            },
            Piece::Reused(back) => match self.known(back).and_then(|known| known.id.clone()) {
                Some(id) => {
                    let text = text(self.events.len(), Kind::Track, "p0", Some(&id));
                    let event =
                        Event { person: "p0".into(), id: Some(id), fate: Fate::SetAside, text: text.clone() };
                    self.events.push(event);
                    self.set_aside(Code::MessageIdReused, &text, at);
                    text
                }
                None => self.event(Kind::Track, "p0".into(), true),
            },
            Piece::Bad(flaw) => {
                let (text, code) = bad(flaw, at.form);
                self.set_aside(code, &text, at);
                text
            }
        }
    }

    fn event(&mut self, kind: Kind, person: String, named: bool) -> String {
        let n = self.events.len();
        let poison = if kind == Kind::Poison { "-poison" } else { "" };
        let id = named.then(|| format!("e-{n}{poison}"));
        let fate = match kind {
            Kind::Track | Kind::Identify => Fate::Delivered,
            Kind::Poison => Fate::Refused,
            Kind::Nobody => Fate::Skipped(Code::NoIdentity),
            Kind::Page => Fate::Skipped(Code::NoMapping),
            Kind::Off => Fate::Skipped(Code::IntegrationsOff),
            Kind::Nameless => Fate::Invalid,
        };
        let text = text(n, kind, &person, id.as_deref());
        if named {
            self.known.push(n);
        }
        self.events.push(Event { person, id, fate, text: text.clone() });
        text
    }

    fn set_aside(&mut self, code: Code, text: &str, at: At) {
        let (file, content) = (at.name.to_owned(), text.as_bytes().to_vec());
        self.rejects.push(Reject { file, place: at.place, code, content });
    }
}

/// Where a piece stands.
#[derive(Clone, Copy)]
struct At<'a> {
    name: &'a str,
    place: u64,
    form: Form,
}

/// The piece, or a new event in its place where it is about others or bad.
fn alone(piece: Piece) -> Piece {
    match piece {
        Piece::New { .. } => piece,
        _ => Piece::New { kind: Kind::Track, person: 0, named: false },
    }
}

fn text(n: usize, kind: Kind, person: &str, id: Option<&str>) -> String {
    let id = id.map_or(String::new(), |id| format!(r#""messageId":"{id}","#));
    let about = format!(r#"{{"n":{n},"email":"{person}@acme.dev"}}"#);
    match kind {
        Kind::Track | Kind::Poison => {
            format!(r#"{{"type":"track","event":"Signed Up",{id}"properties":{about}}}"#)
        }
        Kind::Identify => format!(r#"{{"type":"identify",{id}"traits":{about}}}"#),
        Kind::Nobody => format!(r#"{{"type":"track","event":"Signed Up",{id}"properties":{{"n":{n}}}}}"#),
        Kind::Page => format!(r#"{{"type":"page",{id}"properties":{about}}}"#),
        Kind::Off => format!(
            r#"{{"type":"track","event":"Signed Up",{id}"integrations":{{"All":false}},"properties":{about}}}"#
        ),
        Kind::Nameless => format!(r#"{{"type":"track",{id}"properties":{about}}}"#),
    }
}

fn bad(flaw: Flaw, form: Form) -> (String, Code) {
    match flaw {
        // One such element makes the whole of a document something else than JSON.
        Flaw::NotJson if matches!(form, Form::Lines | Form::Single) => {
            (r#"{"type" "track"}"#.to_owned(), Code::NotJson)
        }
        Flaw::NotJson | Flaw::NotAnEvent => (r#""an event""#.to_owned(), Code::NotAnEvent),
        Flaw::TooDeep => {
            let (open, close) = ("[".repeat(MAX_DEPTH), "]".repeat(MAX_DEPTH));
            (format!(r#"{{"type":"track","properties":{open}{close}}}"#), Code::TooDeep)
        }
        Flaw::TooLarge => {
            (format!(r#"{{"type":"track","event":"{}"}}"#, "x".repeat(TOO_LARGE)), Code::TooLarge)
        }
    }
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
    gz.write_all(text).unwrap();
    gz.finish().unwrap()
}

/// So many bytes that what they are is not whole: within the last line, or anywhere but at the ends.
fn part(form: Form, packed: bool, text: &str, bytes: &[u8], share: u8) -> usize {
    let from = match form {
        Form::Lines if !packed => text.trim_end().rfind('\n').map_or(0, |end| end + 1),
        _ => 0,
    };
    let to = text.trim_end().len().min(bytes.len());
    let to = if packed { bytes.len() } else { to };
    from + 1 + (to - from - 2) * usize::from(share) / 256
}

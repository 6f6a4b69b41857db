//! The files of a script: their bytes, and what the ledger expects of each piece in them.

use super::script::{File, Flaw, Form, Kind, Piece, Way};
use crate::common::events::gzip;
use crate::common::ledger::{Dropped, Expected, Ledger, Reject};
use koala_agent::event::MAX_DEPTH;
use koala_agent::reason::Code;
use std::collections::BTreeSet;
use std::ops::Range;

/// Above `spool.max_event_bytes`.
const TOO_LARGE: usize = 33 << 10;

/// A file to be dropped.
pub struct SpoolFile {
    pub name: String,
    pub bytes: Vec<u8>,
    /// How much of it comes at first.
    pub first: usize,
}

/// Enters files into the ledger as a script describes them.
#[derive(Debug, Default)]
pub struct Files {
    /// The texts of the events, by number.
    texts: Vec<String>,
    /// Pieces of files that were touched: read twice, they count as duplicates or not.
    pub perhaps_duplicates: u64,
    /// Events, by number, of files that another may have replaced before they were read.
    pub replaced: Vec<Range<u64>>,
    /// Events that others may follow by their ids: by number.
    known: Vec<u64>,
    /// Events under the ids of others: the person, the file and the place in it.
    reused: Vec<(String, String, u64)>,
    /// Persons whose later events are skipped.
    kept_out: BTreeSet<String>,
    /// The last file of each name that is used again.
    over: [Option<Range<u64>>; 2],
    files: u64,
    /// The last file and its pieces, if it is nothing but new events.
    pub last: Option<(String, u64)>,
}

impl Files {
    /// The known event so many back.
    pub fn known<'a>(&self, ledger: &'a Ledger, back: u8) -> Option<(u64, &'a Dropped)> {
        let back = usize::from(back) % self.known.len().max(1);
        self.known.iter().rev().nth(back).map(|n| (*n, &ledger.dropped[n]))
    }

    /// An event in a file of its own, by a person who has no other.
    pub fn stranger(&mut self, ledger: &mut Ledger) -> SpoolFile {
        self.files += 1;
        let name = format!("{:06}.json", self.files);
        let person = format!("stranger-{}", self.files);
        let text = self.event(ledger, Kind::Track, person, true);
        SpoolFile { name, first: text.len(), bytes: text.into() }
    }

    /// Enters a file, and all that must become of it.
    pub fn enter(&mut self, ledger: &mut Ledger, file: &File) -> SpoolFile {
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
        let (first, duplicates, known) = (ledger.next(), ledger.duplicates, self.known.len());
        let rejects = ledger.rejects.len();
        let mut texts = Vec::new();
        for (piece, place) in pieces.iter().zip(1..) {
            let place = if form == Form::Single { 0 } else { place };
            let at = At { name: &name, place, form };
            // A slow writer may be overtaken, and a replaced file never be read: no other piece builds on such a file.
            let piece = if whole { *piece } else { alone(*piece) };
            let person = (!whole).then(|| format!("writer-{}", self.files));
            texts.push(self.piece(ledger, piece, person, at));
        }
        let text = match form {
            Form::Single => texts.concat(),
            Form::Array => format!("[{}]", texts.join(",\n")),
            Form::Envelope => format!(r#"{{"sentAt":1,"batch":[{}]}}"#, texts.join(",")),
            Form::Lines => texts.join("\n") + "\n",
        };
        let bytes = if packed { gzip(&text) } else { text.clone().into_bytes() };
        for reject in &mut ledger.rejects[rejects..] {
            match reject.place {
                0 => reject.content.clone_from(&bytes),
                _ => reject.content.push(b'\n'),
            }
        }
        let events = first..ledger.next();
        let new = duplicates == ledger.duplicates && rejects == ledger.rejects.len();
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
                let cut = ledger.dropped.range_mut(events);
                cut.for_each(|(_, event)| event.expected = Expected::Rejected);
                let content = bytes[..first].to_vec();
                ledger.rejects.push(reject(&name, 0, Code::NotJson, content));
            }
        }
        if !whole {
            self.known.truncate(known);
        }
        SpoolFile { name, bytes, first }
    }

    /// Everything of a person that was dropped is erased. The ids are forgotten too, so that no other piece builds on one.
    pub fn erase(&mut self, ledger: &mut Ledger, person: &str, may_return: bool) {
        let names = |n: &u64| self.texts[*n as usize].contains(&address(person));
        let erased =
            ledger.dropped.iter_mut().filter(|(n, event)| event.expected != Expected::Rejected && names(n));
        erased.for_each(|(_, event)| event.expected = Expected::Erased);
        self.known.retain(|n| !names(n));
        let is_reuse = |reject: &Reject| {
            self.reused
                .iter()
                .any(|(p, file, place)| p == person && (file, *place) == (&reject.file, reject.place))
        };
        ledger.rejects.retain(|reject| !is_reuse(reject));
        if may_return {
            self.kept_out.remove(person);
        } else {
            self.kept_out.insert(person.to_owned());
        }
    }

    fn piece(&mut self, ledger: &mut Ledger, piece: Piece, person: Option<String>, at: At) -> String {
        match piece {
            Piece::New { kind, person: p, named } => {
                // A poison is told by its id; and of what is off nothing but its id is kept.
                let named = named || matches!(kind, Kind::Poison | Kind::Off);
                self.event(ledger, kind, person.unwrap_or_else(|| format!("p{p}")), named)
            }
            Piece::Again(back) => match self.known(ledger, back) {
                Some((n, _)) => {
                    ledger.duplicates += 1;
                    self.texts[n as usize].clone()
                }
                None => self.event(ledger, Kind::Track, "p0".into(), true),
            },
            // By the same person, so that the first is not erased, and its id forgotten, before this one is read.
            Piece::Reused(back) => match self.known(ledger, back).map(|(_, known)| known.clone()) {
                Some(Dropped { person, id: Some(id), .. }) => {
                    let text = text(ledger.next(), Kind::Track, &person, Some(&id));
                    self.reused.push((person.clone(), at.name.to_owned(), at.place));
                    ledger.enter(person, Some(id), Expected::Rejected);
                    self.texts.push(text.clone());
                    ledger.rejects.push(at.reject(Code::MessageIdReused, &text));
                    text
                }
                _ => self.event(ledger, Kind::Track, "p0".into(), true),
            },
            Piece::Bad(flaw) => {
                let (text, code) = bad(flaw, at.form);
                ledger.rejects.push(at.reject(code, &text));
                text
            }
        }
    }

    fn event(&mut self, ledger: &mut Ledger, kind: Kind, person: String, named: bool) -> String {
        let n = ledger.next();
        let poison = if kind == Kind::Poison { "-poison" } else { "" };
        let is_kept_out = kind != Kind::Nobody && self.kept_out.contains(&person);
        // What is kept of it without its content is its id.
        let named = named || is_kept_out;
        let id = named.then(|| format!("e-{n}{poison}"));
        let expected = match kind {
            _ if is_kept_out => Expected::Skipped(Code::Erased),
            Kind::Track | Kind::Identify => Expected::Delivered,
            Kind::Poison => Expected::Refused,
            Kind::Nobody => Expected::Skipped(Code::NoIdentity),
            Kind::Page => Expected::Skipped(Code::NoMapping),
            Kind::Off => Expected::Skipped(Code::IntegrationsOff),
            Kind::Nameless => Expected::Invalid,
        };
        let text = text(n, kind, &person, id.as_deref());
        if named {
            self.known.push(n);
        }
        ledger.enter(person, id, expected);
        self.texts.push(text.clone());
        text
    }
}

/// Where a piece stands.
#[derive(Clone, Copy)]
struct At<'a> {
    name: &'a str,
    place: u64,
    form: Form,
}

impl At<'_> {
    fn reject(self, code: Code, text: &str) -> Reject {
        reject(self.name, self.place, code, text.as_bytes().to_vec())
    }
}

fn reject(file: &str, place: u64, code: Code, content: Vec<u8>) -> Reject {
    Reject { file: file.to_owned(), place, code, position: None, content }
}

/// The piece, or a new event in its place where it is about others or bad.
fn alone(piece: Piece) -> Piece {
    match piece {
        Piece::New { .. } => piece,
        _ => Piece::New { kind: Kind::Track, person: 0, named: false },
    }
}

/// The address by which a person is erased.
pub fn address(person: &str) -> String {
    format!("{person}@acme.dev")
}

fn text(n: u64, kind: Kind, person: &str, id: Option<&str>) -> String {
    let id = id.map_or(String::new(), |id| format!(r#""messageId":"{id}","#));
    let about = format!(r#"{{"n":{n},"email":"{}"}}"#, address(person));
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

/// A length at which the file is not complete: within the last line, or anywhere but at the ends.
fn part(form: Form, packed: bool, text: &str, bytes: &[u8], share: u8) -> usize {
    let from = match form {
        Form::Lines if !packed => text.trim_end().rfind('\n').map_or(0, |end| end + 1),
        _ => 0,
    };
    let to = text.trim_end().len().min(bytes.len());
    let to = if packed { bytes.len() } else { to };
    from + 1 + (to - from - 2) * usize::from(share) / 256
}

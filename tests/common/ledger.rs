//! The ledger: every event that a test has dropped, what must become of it, and where it is now.
//!
//! An event is known by its number, which stands in its properties or traits as `n`. "Conserved" means that each event
//! stands at the receiver, in the outbox, in `rejected/` or still in the spool, and none under two ids.

use super::setup::Setup;
use koala_agent::outbox::{EventFilter, Reader, State};
use koala_agent::reason::Code;
use koala_agent::receiver::HeldItem;
use koala_agent::spool::RejectedFolder;
use koala_agent::status::Status;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::path::Path;

/// The end that an event must come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    Delivered,
    /// Refused by the receiver, and kept.
    Refused,
    Skipped(Code),
    /// Failed without having been sent.
    Invalid,
    /// Erased with its person: nowhere any more but at the receiver, or skipped without content.
    Erased,
    /// Written to `rejected/`, and never an event of the outbox.
    Rejected,
}

/// An event that was dropped.
#[derive(Debug, Clone)]
pub struct Dropped {
    /// Whose it is; a person's events keep their order.
    pub person: String,
    /// The messageId that its producer gave it.
    pub id: Option<String>,
    pub expected: Expected,
}

/// A piece that must be found in `rejected/`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reject {
    pub file: String,
    /// The line or element there; 0: the whole file.
    pub place: u64,
    pub code: Code,
    /// Line and column of what is wrong, where the test knows them.
    pub position: Option<(usize, usize)>,
    pub content: Vec<u8>,
}

/// Everything that was dropped.
#[derive(Debug, Default, Clone)]
pub struct Ledger {
    /// The events by number, in the order of the spool.
    pub dropped: BTreeMap<u64, Dropped>,
    /// The numbers of pieces that are no events: each is rejected once.
    pub broken: BTreeSet<u64>,
    /// The numbers of events that the test itself destroyed: they may be gone.
    pub destroyed: BTreeSet<u64>,
    /// Pieces of which the test knows how they are rejected.
    pub rejects: Vec<Reject>,
    /// Events that came before under the same id.
    pub duplicates: u64,
}

/// The result of a test in figures; those of several rounds add up.
#[derive(Debug, Default, Clone)]
pub struct Figures {
    pub rounds: u64,
    pub events: u64,
    /// Events that are nowhere any more.
    pub lost: u64,
    /// Events that the receiver was sent again.
    pub repeated: u64,
    /// Events that the receiver holds, or will, under two ids.
    pub doubled: u64,
    /// Further remarks for the table.
    pub notes: Vec<String>,
    /// The agent was spoilt on purpose, and must have lost something.
    pub control: bool,
}

impl Figures {
    pub fn add(&mut self, other: Figures) {
        self.rounds += other.rounds;
        self.events += other.events;
        self.lost += other.lost;
        self.repeated += other.repeated;
        self.doubled += other.doubled;
        self.notes.extend(other.notes);
    }

    pub fn note(mut self, note: impl Into<String>) -> Figures {
        self.notes.push(note.into());
        self
    }
}

impl Ledger {
    /// Enters an event, and returns its number.
    pub fn enter(&mut self, person: impl ToString, id: Option<String>, expected: Expected) -> u64 {
        let n = self.next();
        self.dropped.insert(n, Dropped { person: person.to_string(), id, expected });
        n
    }

    /// The number of the next event.
    pub fn next(&self) -> u64 {
        let last = self.dropped.keys().next_back().max(self.broken.last());
        last.map_or(0, |last| last + 1)
    }

    /// The text of the next event: a track by that person. Every third has no messageId.
    pub fn event(&mut self, person: u64) -> String {
        let n = self.next();
        let id = (n % 3 != 2).then(|| format!("event-{n}"));
        let given = id.as_ref().map_or(String::new(), |id| format!(r#""messageId":"{id}","#));
        self.enter(person, id, Expected::Delivered);
        format!(
            r#"{{"type":"track","event":"Signed Up",{given}"properties":{{"n":{n},"email":"p{person}@acme.dev"}}}}"#
        )
    }

    /// The next event under an id of its own, with other members in its properties (`"a":1,`, or nothing).
    pub fn event_with(&mut self, person: u64, id: &str, members: &str) -> String {
        let n = self.enter(person, Some(id.to_owned()), Expected::Delivered);
        format!(
            r#"{{"type":"track","event":"Signed Up","messageId":"{id}","properties":{{{members}"n":{n},"email":"p{person}@acme.dev"}}}}"#
        )
    }

    /// A text that is no JSON from its first value on, under the next number: a value before the fault would be an event.
    pub fn broken(&mut self) -> String {
        let n = self.next();
        self.broken.insert(n);
        format!(r#"{{"type":"track","properties":{{"n":{n}}},}}"#)
    }

    /// How many events are to become that.
    pub fn count(&self, expected: impl Fn(Expected) -> bool) -> u64 {
        self.dropped.values().filter(|event| expected(event.expected)).count() as u64
    }

    /// Whether the status counts just what was dropped, and nothing waits. `may_reread`: a crash may have left files on their
    /// way out; put back, they are read again, and their events are duplicates once more.
    pub fn agrees_with(&self, status: &Status, may_reread: bool) -> bool {
        let (outbox, spool) = (&status.outbox, &status.spool);
        let waiting = (outbox.pending, spool.waiting_files, spool.waiting_bytes, outbox.discarded);
        waiting == (0, Some(0), Some(0), 0)
            && outbox.delivered == self.count(|expected| expected == Expected::Delivered)
            && outbox.skipped == self.count(|expected| matches!(expected, Expected::Skipped(_)))
            && outbox.failed
                == self.count(|expected| matches!(expected, Expected::Invalid | Expected::Refused))
            && spool.rejected_files == Some(self.rejects.len() as u64)
            && (spool.duplicates == self.duplicates || may_reread && spool.duplicates > self.duplicates)
    }

    /// Each person's events came to the receiver in the order of the spool. Those that were put back by hand are left
    /// out.
    ///
    /// # Errors
    /// Which did not.
    pub fn check_order(&self, accepted: &[HeldItem], put_back: &BTreeSet<String>) -> Result<(), String> {
        let mut last: HashMap<&str, u64> = HashMap::new();
        for held in accepted.iter().filter(|held| !put_back.contains(&*held.message_id)) {
            let n = number_of(held);
            let event = self.dropped.get(&n).ok_or_else(|| format!("nobody dropped event {n}"))?;
            let before = last.insert(&event.person, n);
            if before.is_some_and(|before| before >= n) {
                return Err(format!("event {n} ({}) came after {before:?} of its person", held.message_id));
            }
        }
        Ok(())
    }

    /// The ids, by number, of each event that came further than the spool: of what the receiver accepted, and of what
    /// the outbox has (number and id).
    ///
    /// # Errors
    /// An event has another id than its producer's, or nobody dropped it.
    pub fn ids(
        &self,
        accepted: &[HeldItem],
        stored: impl IntoIterator<Item = (u64, String)>,
    ) -> Result<BTreeMap<u64, BTreeSet<String>>, String> {
        let accepted = accepted.iter().map(|held| (number_of(held), held.message_id.to_string()));
        let mut ids: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
        for (n, id) in accepted.chain(stored) {
            let event = self.dropped.get(&n).ok_or_else(|| format!("nobody dropped event {n}, {id}"))?;
            if event.id.as_ref().is_some_and(|own| *own != id) {
                return Err(format!("event {n} is under {id}: {event:?}"));
            }
            ids.entry(n).or_default().insert(id);
        }
        Ok(ids)
    }

    /// `rejected/` has just the pieces that it must, each beside its reason.
    ///
    /// # Errors
    /// The first that differs.
    pub fn check_rejects(&self, spool: &Path) -> Result<(), String> {
        let (mut found, mut expected) = (rejects_in(spool), self.rejects.clone());
        found.sort();
        expected.sort();
        let positions_known = expected.iter().all(|reject| reject.position.is_some());
        for reject in found.iter_mut().filter(|_| !positions_known) {
            reject.position = None;
        }
        let shown = |reject: Option<&Reject>| {
            reject.map_or("nothing".to_owned(), |r| {
                let start = String::from_utf8_lossy(&r.content[..r.content.len().min(60)]).into_owned();
                format!("{}:{} {} {:?} {start}", r.file, r.place, r.code, r.position)
            })
        };
        for at in 0..found.len().max(expected.len()) {
            if found.get(at) != expected.get(at) {
                return Err(format!("rejected: {}, not {}", shown(found.get(at)), shown(expected.get(at))));
            }
        }
        Ok(())
    }

    /// Balances a stopped agent's files, and what receivers accepted, in that order, against the ledger. One round.
    ///
    /// Panics where an event is under another id than its producer's, or where a person's events came out of order.
    pub fn balance(&self, setup: &Setup, accepted: &[HeldItem]) -> Figures {
        self.check_order(accepted, &BTreeSet::new()).unwrap_or_else(|why| panic!("{why}"));
        let ids = self.ids(accepted, stored(&setup.outbox())).unwrap_or_else(|why| panic!("{why}"));
        let rejected = numbers_in_files(&setup.spool().join("rejected"));
        let twice = rejected.windows(2).find(|pair| pair[0] == pair[1] && self.broken.contains(&pair[0]));
        assert_eq!(twice, None, "rejected twice");
        let left: BTreeSet<u64> = numbers_in_files(&setup.spool()).into_iter().chain(rejected).collect();
        let is_gone = |n: &&u64| !ids.contains_key(n) && !left.contains(n) && !self.destroyed.contains(n);
        let lost: Vec<_> = self.dropped.keys().chain(&self.broken).filter(is_gone).collect();
        let figures = Figures {
            rounds: 1,
            events: (self.dropped.len() + self.broken.len()) as u64,
            lost: lost.len() as u64,
            repeated: accepted.iter().map(|held| held.repeats).sum(),
            doubled: ids.values().map(|ids| ids.len() as u64 - 1).sum(),
            ..Figures::default()
        };
        match lost.as_slice() {
            [] => figures,
            lost => figures.note(format!("lost: {:?}…", &lost[..lost.len().min(10)])),
        }
    }
}

/// The events that the outbox keeps with their bodies and has not delivered: number and id.
fn stored(outbox: &Path) -> Vec<(u64, String)> {
    if !outbox.exists() {
        return Vec::new();
    }
    let reader = Reader::open(outbox).unwrap();
    let states = vec![State::Pending, State::Failed, State::Skipped, State::Discarded];
    let rows = reader
        .events()
        .list(&EventFilter { states, ..EventFilter::default() }, usize::MAX >> 1)
        .unwrap()
        .rows;
    let with_body = rows.into_iter().filter_map(|row| {
        let body = reader.events().show(&row.message_id).unwrap()?.body?;
        Some((numbers(body.as_bytes())[0], row.message_id))
    });
    with_body.collect()
}

/// The pieces in `rejected/`, each as its reason tells it.
pub fn rejects_in(spool: &Path) -> Vec<Reject> {
    let rejected = RejectedFolder::of_spool(spool).list().unwrap();
    let found = rejected.into_iter().filter_map(|file| {
        let why = file.why?;
        let content = fs::read(spool.join("rejected").join(file.name)).ok()?;
        let position = Some((why.line, why.column));
        Some(Reject { file: why.file, place: why.place, code: why.code, position, content })
    });
    found.collect()
}

/// The numbers in the files of a folder, in order.
fn numbers_in_files(folder: &Path) -> Vec<u64> {
    let files = fs::read_dir(folder).into_iter().flatten();
    let files = files.map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
    let mut found: Vec<u64> = files.flat_map(|path| numbers(&fs::read(path).unwrap_or_default())).collect();
    found.sort_unstable();
    found
}

/// The numbers in a text of events.
pub fn numbers(text: &[u8]) -> Vec<u64> {
    const MARK: &[u8] = br#""n":"#;
    let starts = memchr::memmem::find_iter(text, MARK).map(|at| at + MARK.len());
    let digits = starts.map(|at| text[at..].iter().take_while(|b| b.is_ascii_digit()));
    digits.map(|digits| digits.fold(0, |n, d| n * 10 + u64::from(d - b'0'))).collect()
}

/// The number of an event at the receiver.
pub fn number_of(held: &HeldItem) -> u64 {
    *numbers(held.item.get().as_bytes()).first().expect("an event without a number at the receiver")
}

/// The numbers of what was accepted.
pub fn numbers_of(accepted: &[HeldItem]) -> HashSet<u64> {
    accepted.iter().map(number_of).collect()
}

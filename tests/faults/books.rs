//! The books: what was dropped, and where it is now. "Conserved" is that every event stands at the receiver, in the
//! outbox, in `rejected/` or still in the spool, and none under two ids.

use super::stage::Figures;
use crate::common::daemon::Daemon;
use koala_agent::receiver::{Held, Receiver};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;

/// An event by its number, which stands in its properties as `n`.
#[derive(Debug, Clone)]
pub struct Dropped {
    pub person: u64,
    /// The messageId that its producer gave it.
    pub id: Option<String>,
}

/// Everything that was dropped, in the order of the spool.
#[derive(Debug, Default)]
pub struct Books {
    pub dropped: BTreeMap<u64, Dropped>,
    /// Those among it that the fault itself destroyed: they may be gone.
    pub destroyed: BTreeSet<u64>,
    /// The numbers of those that no receiver is to see: they are set aside, each once.
    pub broken: BTreeSet<u64>,
}

impl Books {
    /// The text of the next event: a track by that person. Every third has no messageId.
    pub fn event(&mut self, person: u64) -> String {
        let n = self.next();
        let id = (n % 3 != 2).then(|| format!("event-{n}"));
        let given = id.as_ref().map_or(String::new(), |id| format!(r#""messageId":"{id}","#));
        self.dropped.insert(n, Dropped { person, id });
        format!(
            r#"{{"type":"track","event":"Signed Up",{given}"properties":{{"n":{n},"email":"p{person}@acme.dev"}}}}"#
        )
    }

    /// The next event under an id of its own, with other members in its properties (`"a":1,`, or nothing).
    pub fn event_with(&mut self, person: u64, id: &str, members: &str) -> String {
        let n = self.next();
        self.dropped.insert(n, Dropped { person, id: Some(id.to_owned()) });
        format!(
            r#"{{"type":"track","event":"Signed Up","messageId":"{id}","properties":{{{members}"n":{n},"email":"p{person}@acme.dev"}}}}"#
        )
    }

    /// The text of the next event, broken: no JSON.
    pub fn broken(&mut self) -> String {
        let n = self.next();
        self.broken.insert(n);
        format!(r#"{{"type":"track","properties":{{"n":{n}}}}}}}"#)
    }

    fn next(&self) -> u64 {
        (self.dropped.len() + self.broken.len()) as u64
    }

    /// Balances the books of a stopped daemon. One round.
    ///
    /// Panics where an event is under another id than its producer's, or where a person's events came out of order.
    pub fn balance(&self, daemon: &Daemon, receiver: &Receiver) -> Figures {
        self.balance_at(&daemon.spool(), &daemon.outbox(), &receiver.events())
    }

    /// The same by the places of a stopped agent, and by what was taken, in that order.
    pub fn balance_at(&self, spool: &Path, outbox: &Path, taken: &[Held]) -> Figures {
        let mut ids: HashMap<u64, BTreeSet<String>> = HashMap::new();
        let mut last: HashMap<u64, u64> = HashMap::new();
        for held in taken {
            let n = *numbers(held.item.get().as_bytes())
                .first()
                .expect("an event without a number at the receiver");
            let dropped = self.dropped.get(&n).expect("an event at the receiver that nobody dropped");
            let before = last.insert(dropped.person, n);
            assert!(before.is_none_or(|before| before < n), "event {n} came after {before:?} of its person");
            ids.entry(n).or_default().insert(held.message_id.to_string());
        }
        for (n, id) in stored(outbox) {
            ids.entry(n).or_default().insert(id);
        }
        for (n, ids) in &ids {
            let given = &self.dropped[n].id;
            assert!(
                given.as_ref().is_none_or(|id| ids.iter().all(|i| i == id)),
                "event {n} is under {ids:?}"
            );
        }
        let aside = numbers_in_files(&spool.join("rejected"));
        let twice = aside.windows(2).find(|pair| pair[0] == pair[1] && self.broken.contains(&pair[0]));
        assert_eq!(twice, None, "set aside twice");
        let left: BTreeSet<u64> = numbers_in_files(spool).into_iter().chain(aside).collect();
        let gone = |n: &&u64| !ids.contains_key(n) && !left.contains(n) && !self.destroyed.contains(n);
        let lost: Vec<_> = self.dropped.keys().chain(&self.broken).filter(gone).collect();
        let doubled = ids.values().map(|ids| ids.len() as u64 - 1).sum();
        let mut figures = Figures {
            rounds: 1,
            events: self.next(),
            lost: lost.len() as u64,
            repeated: taken.iter().map(|held| held.repeats).sum(),
            doubled,
            ..Figures::default()
        };
        if !lost.is_empty() {
            figures = figures.note(format!("lost: {:?}…", &lost[..lost.len().min(10)]));
        }
        figures
    }
}

/// What the outbox holds with its body, pending or failed: number and id.
fn stored(outbox: &Path) -> Vec<(u64, String)> {
    if !outbox.exists() {
        return Vec::new();
    }
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let outbox = rusqlite::Connection::open_with_flags(outbox, flags).unwrap();
    let sql = "SELECT message_id, body FROM pending
               UNION ALL SELECT s.message_id, b.body FROM settled s JOIN bodies b ON b.seq = s.seq";
    let mut rows = outbox.prepare(sql).unwrap();
    let rows = rows.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))).unwrap();
    rows.map(|row| {
        let (id, body) = row.unwrap();
        (numbers(body.as_bytes())[0], id)
    })
    .collect()
}

/// The numbers in the files of a folder, in order.
fn numbers_in_files(folder: &Path) -> Vec<u64> {
    let files = fs::read_dir(folder).into_iter().flatten();
    let files = files.map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
    let mut found: Vec<u64> = files.flat_map(|path| numbers(&fs::read(path).unwrap_or_default())).collect();
    found.sort_unstable();
    found
}

/// The numbers in a text of events, as [`Books::event`] writes them.
pub fn numbers(text: &[u8]) -> Vec<u64> {
    const MARK: &[u8] = br#""n":"#;
    let starts = memchr::memmem::find_iter(text, MARK).map(|at| at + MARK.len());
    let digits = starts.map(|at| text[at..].iter().take_while(|b| b.is_ascii_digit()));
    digits.map(|digits| digits.fold(0, |n, d| n * 10 + u64::from(d - b'0'))).collect()
}

//! What must hold when all has come to rest: the receiver is well, time has passed, nothing waits.

use super::Played;
use super::books::{Event, Fate, Reject};
use super::outbox::{Outbox, Row};
use super::script::Weather;
use super::world::World;
use koala_agent::outbox::State;
use koala_agent::reason::Code;
use koala_agent::receiver::Request;
use koala_agent::spool::rejected_beside;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// What has stood as it is for so long, and for so many passings of time, will not move again.
const PATIENCE: (Duration, u32) = (Duration::from_secs(10), 100);
/// Nothing moves when it has not for so many looks, of so long each.
const LOOKS: u32 = 4;
const LOOK: Duration = Duration::from_millis(3);
/// The longest that time passes at once: the longest wait of a receiver that refuses.
const LONGEST: Duration = Duration::from_secs(15 * 60);

impl World {
    /// Brings everything to rest, and holds it against the books.
    pub fn rest(mut self) -> Played {
        self.finish();
        self.receiver.set_faults(Weather::Well.faults());
        self.start();
        let mut time = Duration::from_secs(20);
        let (mut before, mut since, mut rounds) = (String::new(), Instant::now(), 0u32);
        loop {
            self.calm()?;
            let Some(waits) = self.waits()? else { break };
            if waits != before {
                (before, since, rounds) = (waits, Instant::now(), 0);
            }
            let (long, many) = PATIENCE;
            prop_assert!(
                since.elapsed() < long || rounds < many,
                "it does not come to rest: {}; {}",
                before,
                self.told()
            );
            rounds += 1;
            self.pass(time);
            time = (time * 3 / 2).min(LONGEST);
            // What is in doubt waits for somebody to be compared with.
            if rounds % 4 == 3 && self.look()?.pending() > 0 {
                let passer_by = self.books.passer_by();
                self.deliver(&passer_by);
            }
        }
        self.stop();
        // A file that was taken, and replaced before it could be removed, may be thought there until the next start.
        let notes = self.look()?.ledger;
        let replaced = self.books.replaced.len() as u64;
        prop_assert!(notes <= replaced, "{} files are gone and not forgotten", notes);
        if notes > 0 {
            self.start();
            self.stop();
        }
        prop_assert_eq!(self.complaints(), "", "the agent's complaints");
        self.balance()
    }

    /// What the agent tells of itself.
    fn told(&self) -> String {
        fs::read_to_string(self.status_file()).unwrap_or_default()
    }

    /// Returns once nothing moves.
    fn calm(&mut self) -> Played {
        let (mut before, mut looks) = (None, 0);
        while looks < LOOKS {
            let now = (self.receiver.stats().requests, self.look()?.pending(), self.left());
            looks = if before.as_ref() == Some(&now) { looks + 1 } else { 0 };
            before = Some(now);
            sleep(LOOK);
        }
        Ok(())
    }

    /// What there is still to wait for.
    fn waits(&mut self) -> Result<Option<String>, TestCaseError> {
        let (left, found, expected) = (self.left(), self.rejected().len(), self.books.rejects.len());
        let outbox = self.look()?;
        let pending = outbox.pending_ids();
        let rest = left.is_empty() && pending.is_empty() && found == expected;
        // By their names: one that goes while another comes is no rest.
        Ok((!rest).then(|| format!("{pending:?} pending, {left:?}, {found} set aside of {expected}")))
    }

    /// Files that are still in the spool.
    fn left(&self) -> BTreeSet<String> {
        let names = |folder: &str| {
            let entries = fs::read_dir(self.spool().join(folder)).unwrap();
            entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        };
        let own = ["rejected", ".removing"];
        names("").filter(|name| !own.contains(&name.as_str())).chain(names(".removing")).collect()
    }

    fn rejected(&self) -> Vec<Reject> {
        let rejects = rejected_beside(&self.spool()).list().unwrap();
        let found = rejects.into_iter().filter_map(|file| {
            let why = file.why?;
            let content = fs::read(self.spool().join("rejected").join(file.name)).ok()?;
            Some(Reject { file: why.file, place: why.place, code: why.code, content })
        });
        found.collect()
    }

    fn balance(mut self) -> Played {
        let (mut found, mut expected) = (self.rejected(), std::mem::take(&mut self.books.rejects));
        found.sort_unstable();
        expected.sort_unstable();
        prop_assert_eq!(&found, &expected, "what is set aside");
        let outbox = self.look()?;
        prop_assert_eq!(outbox.ledger, 0, "files that are gone and not forgotten");
        let least = self.books.duplicates;
        let most = least + self.books.perhaps_duplicates;
        prop_assert!(
            (least..=most).contains(&outbox.duplicates),
            "{} duplicates, not {}",
            outbox.duplicates,
            least
        );
        let repeats = self.receiver.stats().repeats;
        prop_assert!(self.may_repeat || repeats == 0, "{} events were sent twice by our doing", repeats);
        let taken = self.taken();
        let ids = self.ids(&outbox, &taken)?;
        let held: BTreeSet<&str> = taken.iter().map(|(_, id)| id.as_str()).collect();
        let requests = self.receiver.requests();
        for (n, event) in self.books.events.iter().enumerate() {
            match ids.get(&n) {
                None => {
                    let replaced = self.books.replaced.iter().any(|version| version.contains(&n));
                    prop_assert!(event.fate == Fate::SetAside || replaced, "{} is lost: {:?}", n, event);
                }
                Some(id) => {
                    let Some(row) = outbox.rows.get(id) else {
                        return Err(TestCaseError::fail(format!("{n}, sent as {id}, is not in the outbox")));
                    };
                    let discarded = self.books.discarded.contains(id);
                    let fits =
                        fits(event, row, held.contains(id.as_str()), discarded, || is_proven(&requests, id));
                    prop_assert!(fits, "{}, {:?} is {:?}", n, event, row);
                }
            }
        }
        for version in &self.books.replaced {
            let there = version.clone().filter(|n| ids.contains_key(n)).count();
            prop_assert!(there == 0 || there == version.len(), "{:?} was torn", version);
        }
        self.order(&taken)
    }

    /// What the receiver took, in the order of the first time: number and id.
    fn taken(&self) -> Vec<(usize, String)> {
        let held = self.receiver.events();
        held.iter().map(|held| (number(held.item.get()), held.message_id.to_string())).collect()
    }

    /// By the number of each event that came further than the spool, its one id.
    fn ids(
        &self,
        outbox: &Outbox,
        taken: &[(usize, String)],
    ) -> Result<BTreeMap<usize, String>, TestCaseError> {
        let own = self.books.events.iter().enumerate().filter(|(_, event)| event.fate != Fate::SetAside);
        let mut numbers: HashMap<&str, usize> =
            own.filter_map(|(n, event)| Some((event.id.as_deref()?, n))).collect();
        numbers.extend(taken.iter().map(|(n, id)| (id.as_str(), *n)));
        let mut ids: BTreeMap<usize, String> = BTreeMap::new();
        let kept = outbox.rows.iter().map(|(id, row)| {
            let n = row.body.as_deref().map(number).or_else(|| numbers.get(id.as_str()).copied());
            (n, id)
        });
        for (n, id) in kept.chain(taken.iter().map(|(n, id)| (Some(*n), id))) {
            let Some(event) = n.and_then(|n| self.books.events.get(n)) else {
                return Err(TestCaseError::fail(format!("nobody dropped {id}")));
            };
            let n = n.unwrap_or_default();
            let first = ids.entry(n).or_insert_with(|| id.clone());
            prop_assert_eq!(&*first, id, "two ids of {}", n);
            prop_assert!(event.id.as_ref().is_none_or(|own| own == id), "{} is not {:?}", id, event);
        }
        Ok(ids)
    }

    /// A person's events came in the order of the spool, but for those that were put back by hand.
    fn order(&self, taken: &[(usize, String)]) -> Played {
        let mut last: HashMap<&str, usize> = HashMap::new();
        for (n, id) in taken.iter().filter(|(_, id)| !self.books.retried.contains(id)) {
            let before = last.insert(&self.books.events[*n].person, *n);
            prop_assert!(before < Some(*n), "{} ({}) came after {:?} of its person", n, id, before);
        }
        Ok(())
    }
}

/// Whether the event has become what it must.
fn fits(event: &Event, row: &Row, held: bool, discarded: bool, refused: impl Fn() -> bool) -> bool {
    let failed = row.state == State::Failed;
    let by_receiver = failed && matches!(row.code, Some(Code::Refused | Code::TooLarge)) && refused();
    match event.fate {
        _ if discarded => row.state == State::Discarded,
        Fate::Delivered => (row.state == State::Delivered && held) || by_receiver,
        Fate::Refused => by_receiver && !held,
        Fate::Skipped(code) => row.state == State::Skipped && row.code == Some(code) && !held,
        Fate::Invalid => failed && row.code == Some(Code::InvalidField) && !held,
        Fate::SetAside => false,
    }
}

/// The receiver refused it alone, and took another after that.
fn is_proven(requests: &[Request], id: &str) -> bool {
    let refused = requests
        .iter()
        .position(|request| matches!(request.status, Some(400 | 413)) && request.message_ids.iter().eq([id]));
    let taken = |request: &Request| request.why.is_none() && !request.message_ids.is_empty();
    refused.is_some_and(|at| requests[at..].iter().any(taken))
}

/// The number that stands in an event's text; none has so many that this is one of them.
fn number(text: &str) -> usize {
    let digits = text.split_once(r#""n":"#).map_or("", |(_, rest)| rest);
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().unwrap_or(usize::MAX)
}

//! The facts that must hold when idle: the receiver is well, time has passed, nothing waits.

use super::Checked;
use super::outbox::{Outbox, Row};
use super::run::Run;
use super::script::Weather;
use crate::common::ledger::{Dropped, Expected, numbers, numbers_of, rejects_in};
use koala_agent::outbox::State;
use koala_agent::reason::Code;
use koala_agent::receiver::{HeldItem, ReceivedRequest};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A run that has not moved for so long, and for so many passings of time, will not move again.
const PATIENCE: (Duration, u32) = (Duration::from_secs(10), 100);
/// Nothing moves when it has not for so many looks, of so long each.
const LOOKS: u32 = 4;
const LOOK: Duration = Duration::from_millis(3);
/// The longest that time passes at once: the longest wait of a receiver that refuses.
const LONGEST: Duration = Duration::from_secs(15 * 60);

impl Run {
    /// Brings everything to rest, and checks it against the ledger.
    pub fn rest(mut self) -> Checked {
        self.finish();
        self.agent.receiver.set_faults(Weather::Well.faults());
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
                "it does not come to rest: {}; {:?}",
                before,
                self.agent.status()
            );
            rounds += 1;
            self.agent.advance(time);
            time = (time * 3 / 2).min(LONGEST);
            // An event that was refused alone waits for proof that the receiver takes others.
            if rounds % 4 == 3 && self.read_outbox()?.pending() > 0 {
                let stranger = self.files.stranger(&mut self.agent.ledger);
                self.drop_whole(&stranger);
            }
        }
        self.stop();
        // A file that was taken, and replaced before it could be removed, may be thought there until the next start.
        let outbox = self.read_outbox()?;
        let notes = self.forgotten_late(&outbox);
        let replaced = self.files.replaced.len() as u64;
        prop_assert!(notes <= replaced, "{} files are gone and not forgotten", notes);
        if notes > 0 {
            self.start();
            self.stop();
        }
        prop_assert_eq!(self.panics(), "", "the agent has panicked");
        self.balance()
    }

    /// How many files are noted in the outbox that are gone. One that was read, and then cut, may be in `rejected/`: how
    /// far it was read stays known in case it comes back.
    fn forgotten_late(&self, outbox: &Outbox) -> u64 {
        let rejected = fs::read_dir(self.agent.spool().join("rejected")).unwrap();
        let rejected: Vec<u64> = rejected.map(|entry| entry.unwrap().metadata().unwrap().ino()).collect();
        outbox.noted_files.iter().filter(|inode| !rejected.contains(inode)).count() as u64
    }

    /// Returns once nothing moves.
    fn calm(&mut self) -> Checked {
        let (mut before, mut looks) = (None, 0);
        while looks < LOOKS {
            let now = (self.agent.receiver.stats().requests, self.read_outbox()?.pending(), self.left());
            looks = if before.as_ref() == Some(&now) { looks + 1 } else { 0 };
            before = Some(now);
            sleep(LOOK);
        }
        Ok(())
    }

    /// A description of what is still to wait for; `None`: nothing.
    fn waits(&mut self) -> Result<Option<String>, TestCaseError> {
        let (left, found, expected) =
            (self.left(), rejects_in(&self.agent.spool()).len(), self.agent.ledger.rejects.len());
        let outbox = self.read_outbox()?;
        let pending = outbox.pending_ids();
        let rest = left.is_empty() && pending.is_empty() && found == expected;
        // Names, not counts: one file that goes while another comes is no rest.
        Ok((!rest).then(|| format!("{pending:?} pending, {left:?}, {found} rejected of {expected}")))
    }

    /// Files that are still in the spool.
    fn left(&self) -> BTreeSet<String> {
        let names = |folder: &str| {
            let entries = fs::read_dir(self.agent.spool().join(folder)).unwrap();
            entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        };
        let own = ["rejected", ".removing"];
        names("")
            .filter(|name| !own.contains(&name.as_str()))
            .chain(names(".removing").filter(|name| !name.starts_with('.')))
            .collect()
    }

    fn balance(mut self) -> Checked {
        let outbox = self.read_outbox()?;
        let ledger = &self.agent.ledger;
        ledger.check_rejects(&self.agent.spool()).map_err(TestCaseError::fail)?;
        prop_assert_eq!(self.forgotten_late(&outbox), 0, "files that are gone and not forgotten");
        let most = if self.may_reread { u64::MAX } else { ledger.duplicates + self.files.perhaps_duplicates };
        let duplicates = ledger.duplicates..=most;
        prop_assert!(duplicates.contains(&outbox.duplicates), "{} duplicates", outbox.duplicates);
        let repeats = self.agent.receiver.stats().repeats;
        prop_assert!(self.may_repeat || repeats == 0, "{} events were sent twice by our doing", repeats);
        let accepted = self.agent.receiver.events();
        let ids = self.ids(&outbox, &accepted)?;
        let held = numbers_of(&accepted);
        let requests = self.agent.receiver.requests();
        for (n, event) in &ledger.dropped {
            if event.expected == Expected::Erased {
                self.check_erased(ids.get(n).or(event.id.as_ref()), &outbox, held.contains(n))?;
                continue;
            }
            let Some(id) = ids.get(n) else {
                let replaced = self.files.replaced.iter().any(|version| version.contains(n));
                prop_assert!(event.expected == Expected::Rejected || replaced, "{} is lost: {:?}", n, event);
                continue;
            };
            let Some(row) = outbox.rows.get(id) else {
                return Err(TestCaseError::fail(format!("{n}, sent as {id}, is not in the outbox")));
            };
            let perhaps = self.perhaps_discarded.contains(id) && row.state == State::Discarded;
            let discarded = self.discarded.contains(id) || perhaps;
            let fits = fits(event, row, held.contains(n), discarded, || is_proven(&requests, id));
            prop_assert!(fits, "{}, {:?} is {:?}", n, event, row);
        }
        self.check_unknown(&outbox, &ids)?;
        for version in &self.files.replaced {
            let there = version.clone().filter(|n| ids.contains_key(n)).count() as u64;
            prop_assert!(there == 0 || there == version.end - version.start, "{:?} was torn", version);
        }
        ledger.check_order(&accepted, &self.retried).map_err(TestCaseError::fail)
    }

    /// An erased event has become what the receipt says, or was skipped as it came after its person was erased; nothing
    /// but its id is left. `id`: as far as it is known.
    fn check_erased(&self, id: Option<&String>, outbox: &Outbox, is_held: bool) -> Checked {
        let Some(id) = id else { return Ok(()) };
        let (said, row) = (self.erased.get(id).map(String::as_str), outbox.rows.get(id));
        prop_assert!(said.is_some() || row.is_some(), "{} is lost and not erased", id);
        let is_empty =
            |row: &Row| row.body.is_none() && matches!(row.state, State::Skipped | State::Discarded);
        prop_assert!(row.is_none_or(is_empty), "{} is erased and {:?}", id, row);
        // Which requests had no answer yet is not known after a crash.
        let fits = match said {
            Some("delivered") => is_held,
            Some("in_flight") => true,
            _ => !is_held || self.may_reread || self.retried.contains(id),
        };
        prop_assert!(fits, "{} was erased as {:?} and is at the receiver: {}", id, said, is_held);
        Ok(())
    }

    /// Erased events whose ids nobody knows are as many as the receipts and rows without content that nobody knows.
    fn check_unknown(&self, outbox: &Outbox, ids: &BTreeMap<u64, String>) -> Checked {
        let dropped = &self.agent.ledger.dropped;
        let is_unknown = |(n, event): &(&u64, &Dropped)| {
            event.expected == Expected::Erased && event.id.is_none() && !ids.contains_key(n)
        };
        let erased = self
            .erased
            .keys()
            .chain(outbox.rows.iter().filter(|(_, row)| row.code == Some(Code::Erased)).map(|(id, _)| id));
        let given = dropped.values().filter_map(|event| event.id.as_ref());
        let known: BTreeSet<&String> = given.chain(ids.values()).collect();
        let left: BTreeSet<&String> = erased.filter(|id| !known.contains(id)).collect();
        prop_assert_eq!(
            left.len(),
            dropped.iter().filter(is_unknown).count(),
            "events erased by unknown ids: {:?}",
            left
        );
        Ok(())
    }

    /// The one id, by number, of each event that came further than the spool.
    fn ids(&self, outbox: &Outbox, accepted: &[HeldItem]) -> Result<BTreeMap<u64, String>, TestCaseError> {
        let ledger = &self.agent.ledger;
        let own = ledger.dropped.iter().filter(|(_, event)| event.expected != Expected::Rejected);
        let mut known: HashMap<String, u64> =
            own.filter_map(|(n, event)| Some((event.id.clone()?, *n))).collect();
        for held in accepted {
            known.extend(
                numbers(held.item.get().as_bytes()).first().map(|n| (held.message_id.to_string(), *n)),
            );
        }
        // A row without its body is identified by its id.
        let mut stored = Vec::new();
        for (id, row) in &outbox.rows {
            let by_body = row.body.as_ref().and_then(|body| numbers(body.as_bytes()).first().copied());
            let Some(n) = by_body.or_else(|| known.get(id).copied()) else {
                if row.code == Some(Code::Erased) {
                    continue;
                }
                return Err(TestCaseError::fail(format!("nobody dropped {id}")));
            };
            stored.push((n, id.clone()));
        }
        let mut ids = BTreeMap::new();
        for (n, of_event) in ledger.ids(accepted, stored).map_err(TestCaseError::fail)? {
            prop_assert_eq!(of_event.len(), 1, "ids of {}: {:?}", n, of_event);
            ids.extend(of_event.into_iter().map(|id| (n, id)));
        }
        Ok(ids)
    }
}

/// Whether the event has become what it must.
fn fits(event: &Dropped, row: &Row, held: bool, discarded: bool, refused: impl Fn() -> bool) -> bool {
    let failed = row.state == State::Failed;
    let by_receiver = failed && matches!(row.code, Some(Code::Refused | Code::TooLarge)) && refused();
    match event.expected {
        _ if discarded => row.state == State::Discarded,
        Expected::Delivered => (row.state == State::Delivered && held) || by_receiver,
        Expected::Refused => by_receiver && !held,
        Expected::Skipped(code) => row.state == State::Skipped && row.code == Some(code) && !held,
        Expected::Invalid => failed && row.code == Some(Code::InvalidField) && !held,
        Expected::Erased | Expected::Rejected => false,
    }
}

/// The receiver refused it alone seven times, and took another between the first and the last.
fn is_proven(requests: &[ReceivedRequest], id: &str) -> bool {
    let is_refusal = |request: &ReceivedRequest| {
        matches!(request.status, Some(400 | 413)) && request.message_ids.iter().eq([id])
    };
    let refused: Vec<usize> = (0..requests.len()).filter(|at| is_refusal(&requests[*at])).collect();
    let taken = |request: &ReceivedRequest| request.why.is_none() && !request.message_ids.is_empty();
    refused.len() >= 7 && requests[refused[0]..refused[refused.len() - 1]].iter().any(taken)
}

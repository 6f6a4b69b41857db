//! The persons with pending events, each under an ordering key, and who of them may be sent. Pure bookkeeping, all of it
//! in logarithmic time.
//!
//! A person is busy, or ready: then either untried, in the order of their oldest events, or a suspect, in the order of the
//! times before which they are not tried. Suspects need no alarm for the end of their waits: the first of them is due, or
//! none is.
//!
//! Owners of files take turns: of the untried persons, one of each owner goes after the other, so that nobody waits behind
//! the backlog of another user. Whose a person is, is a matter of turns alone: of those who have events of the person, the
//! one with fewer persons, so that nobody can take another's turn by naming the same person.

use super::suspicion::{Evidence, Suspicion};
use crate::clock::Mono;
use crate::item::{Endpoint, OrderingKey};
use crate::outbox::{QueuedItem, Settled};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Bound::{Excluded, Unbounded};

/// The uid of the owner of a file, as far as it is known.
type Owner = Option<u32>;

/// The memory of an event, and of an ordering key without its events. The tables may be half empty.
const EVENT_BYTES: usize = 12;
const KEY_BYTES: usize = 200;

/// The ordering keys that are known to have pending events.
#[derive(Debug, Default)]
pub struct OrderingKeys {
    queues: HashMap<OrderingKey, KeyQueue>,
    suspicions: HashMap<OrderingKey, Suspicion>,
    event_count: usize,
    /// The ready ordering keys by path; the last are those whose path is not known yet.
    ready: [Ready; 3],
    /// The number of persons of each owner.
    persons_of: HashMap<Owner, usize>,
    /// The owner whose turn was last.
    last_owner: Owner,
}

/// The ready ordering keys of a path, and the number of all.
#[derive(Debug, Default)]
struct Ready {
    untried: Untried,
    suspects: BTreeSet<(Mono, OrderingKey)>,
    /// Those of the suspects whose refusals are complete, until the receiver shows itself well.
    nearly_proven: BTreeSet<OrderingKey>,
    /// All persons, and those of them that are suspects, the busy ones among them.
    persons: usize,
    suspect_count: usize,
}

/// Untried persons by the owners of their files, in the order of their oldest events.
#[derive(Debug, Default)]
struct Untried(BTreeMap<Owner, BTreeMap<i64, OrderingKey>>);

impl Untried {
    fn insert(&mut self, owner: Owner, oldest: i64, key: OrderingKey) {
        self.0.entry(owner).or_default().insert(oldest, key);
    }

    fn remove(&mut self, owner: Owner, oldest: i64) {
        let Some(persons) = self.0.get_mut(&owner) else { return };
        persons.remove(&oldest);
        if persons.is_empty() {
            self.0.remove(&owner);
        }
    }

    /// The first owner behind that one, if there is any.
    fn owner_after(&self, owner: Owner) -> Option<Owner> {
        self.0.range((Excluded(owner), Unbounded)).next().map(|(owner, _)| *owner)
    }

    fn first_owner(&self) -> Option<Owner> {
        self.0.first_key_value().map(|(owner, _)| *owner)
    }

    fn end(&self, owner: Owner, side: Side) -> Option<(i64, OrderingKey)> {
        let persons = self.0.get(&owner)?;
        let end = match side {
            Side::Oldest => persons.first_key_value(),
            Side::Newest => persons.last_key_value(),
        };
        end.map(|(oldest, key)| (*oldest, *key))
    }
}

/// The pending events of an ordering key.
#[derive(Debug)]
struct KeyQueue {
    owner: Owner,
    /// A request is planned, in flight or being settled.
    is_busy: bool,
    /// Known as soon as a request of the ordering key was built.
    path: Option<Endpoint>,
    /// The pending events, oldest first; empty only while the ordering key is busy.
    events: VecDeque<i64>,
}

impl Side {
    pub fn other(self) -> Side {
        match self {
            Side::Oldest => Side::Newest,
            Side::Newest => Side::Oldest,
        }
    }
}

/// An end of the order in which untried persons stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Oldest,
    Newest,
}

fn place(path: Option<Endpoint>) -> usize {
    path.map_or(2, |path| path as usize)
}

impl OrderingKeys {
    /// Adds a pending event. The events of an ordering key may come in any order, and more than once.
    pub fn discovered(&mut self, item: QueuedItem) {
        let QueuedItem { seq, key, owner } = item;
        let queue = self.queues.entry(key).or_insert_with(|| {
            self.ready[place(None)].persons += 1;
            *self.persons_of.entry(owner).or_default() += 1;
            KeyQueue { owner, is_busy: false, path: None, events: VecDeque::new() }
        });
        let oldest = queue.events.front().copied();
        match queue.events.back() {
            Some(newest) if *newest >= seq => match queue.events.binary_search(&seq) {
                Ok(_) => return,
                Err(at) => queue.events.insert(at, seq),
            },
            _ => queue.events.push_back(seq),
        }
        self.event_count += 1;
        let before = queue.owner;
        let persons_of = |owner| self.persons_of.get(owner).copied().unwrap_or(0);
        if owner != before && persons_of(&owner) < persons_of(&before) {
            queue.owner = owner;
            self.add_person_of(owner);
            self.remove_person_of(before);
        }
        let Some(queue) = self.queues.get(&key) else { return };
        let has_moved = queue.owner != before || oldest.is_none_or(|oldest| seq < oldest);
        if !queue.is_busy && has_moved && !self.suspicions.contains_key(&key) {
            let untried = &mut self.ready[place(queue.path)].untried;
            if let Some(oldest) = oldest {
                untried.remove(before, oldest);
            }
            untried.insert(queue.owner, oldest.map_or(seq, |oldest| oldest.min(seq)), key);
        }
    }

    fn add_person_of(&mut self, owner: Owner) {
        *self.persons_of.entry(owner).or_default() += 1;
    }

    fn remove_person_of(&mut self, owner: Owner) {
        if let Some(persons) = self.persons_of.get_mut(&owner) {
            *persons -= 1;
            if *persons == 0 {
                self.persons_of.remove(&owner);
            }
        }
    }

    /// The memory of all ordering keys and their events, in bytes, about.
    pub fn bytes(&self) -> usize {
        self.event_count * EVENT_BYTES + self.queues.len() * KEY_BYTES
    }

    /// The ordering key's pending events, oldest first.
    pub fn events(&self, key: OrderingKey) -> impl Iterator<Item = i64> {
        self.queues.get(&key).into_iter().flat_map(|queue| queue.events.iter().copied())
    }

    pub fn pending_count(&self, key: OrderingKey) -> usize {
        self.queues.get(&key).map_or(0, |queue| queue.events.len())
    }

    /// The number of persons with pending events on a path, or on one that is not known yet.
    pub fn persons(&self, path: Endpoint) -> usize {
        self.ready[place(Some(path))].persons + self.ready[place(None)].persons
    }

    /// Removes events of a busy ordering key that are not pending any more.
    pub fn remove_events(&mut self, key: OrderingKey, seqs: &[i64]) {
        let Some(queue) = self.queues.get_mut(&key) else { return };
        for seq in seqs {
            // Removed events are the oldest, as a rule.
            let removed = if queue.events.front() == Some(seq) {
                queue.events.pop_front()
            } else {
                queue.events.binary_search(seq).ok().and_then(|at| queue.events.remove(at))
            };
            self.event_count -= usize::from(removed.is_some());
        }
    }

    /// Removes events of any ordering key, which nobody may send any more. A busy one keeps what is in flight.
    pub fn withdraw(&mut self, key: OrderingKey, seqs: &[i64]) {
        if !self.queues.contains_key(&key) {
            return;
        }
        if self.is_busy(key) {
            return self.remove_events(key, seqs);
        }
        let last_owner = self.last_owner;
        self.set_busy(key);
        self.last_owner = last_owner;
        self.remove_events(key, seqs);
        self.set_ready(key);
    }

    /// Whether a request of the ordering key is planned, in flight or being settled.
    pub fn is_busy(&self, key: OrderingKey) -> bool {
        self.queues.get(&key).is_some_and(|queue| queue.is_busy)
    }

    /// The ready untried ordering key of these paths at that end of the order of oldest events, of the owner whose turn it
    /// is.
    pub fn untried(&self, paths: &[Option<Endpoint>], side: Side) -> Option<OrderingKey> {
        let untried = || paths.iter().map(|path| &self.ready[place(*path)].untried);
        let next = untried().filter_map(|untried| untried.owner_after(self.last_owner)).min();
        let owner = next.or_else(|| untried().filter_map(Untried::first_owner).min())?;
        let ends = untried().filter_map(|untried| untried.end(owner, side));
        let end = match side {
            Side::Oldest => ends.min_by_key(|(oldest, _)| *oldest),
            Side::Newest => ends.max_by_key(|(oldest, _)| *oldest),
        };
        end.map(|(_, key)| key)
    }

    /// The ready suspects of a path, each with the time before which it is not tried, the earliest first.
    pub fn suspects(&self, path: Endpoint) -> impl Iterator<Item = (Mono, OrderingKey)> {
        self.ready[place(Some(path))].suspects.iter().copied()
    }

    pub fn suspicion(&self, key: OrderingKey) -> Option<&Suspicion> {
        self.suspicions.get(&key)
    }

    /// Whether all persons with pending events on a path are suspects.
    pub fn are_all_suspects(&self, path: Endpoint) -> bool {
        self.ready[place(Some(path))].suspect_count == self.persons(path)
    }

    /// The suspicion of a busy ordering key, which becomes a suspect if it is none.
    pub fn suspect(&mut self, key: OrderingKey) -> &mut Suspicion {
        let ready = &mut self.ready;
        let path = self.queues.get(&key).and_then(|queue| queue.path);
        self.suspicions.entry(key).or_insert_with(|| {
            ready[place(path)].suspect_count += 1;
            Suspicion::default()
        })
    }

    /// Ends the suspicion of a busy ordering key.
    pub fn clear(&mut self, key: OrderingKey) {
        if self.suspicions.remove(&key).is_some() {
            let path = self.queues.get(&key).and_then(|queue| queue.path);
            self.ready[place(path)].suspect_count -= 1;
        }
    }

    /// Whether any person is a suspect.
    pub fn has_suspects(&self) -> bool {
        !self.suspicions.is_empty()
    }

    /// Makes those suspects of a path busy, and ends their suspicions, against whose oldest event the proof is complete.
    pub fn take_proven(&mut self, path: Endpoint, evidence: Evidence) -> Vec<(OrderingKey, i64, Settled)> {
        let nearly = &self.ready[place(Some(path))].nearly_proven;
        let proven: Vec<_> = nearly
            .iter()
            .filter_map(|key| {
                self.suspicions.get(key)?.conclusion(evidence).map(|(seq, settled)| (*key, seq, settled))
            })
            .collect();
        for (key, ..) in &proven {
            self.set_busy(*key);
            self.clear(*key);
        }
        proven
    }

    /// Lets a suspect be tried at once.
    pub fn end_wait(&mut self, key: OrderingKey, now: Mono) {
        let Some(suspicion) = self.suspicions.get_mut(&key) else { return };
        let before = suspicion.until;
        suspicion.until = before.min(now);
        let Some(queue) = self.queues.get(&key) else { return };
        let suspects = &mut self.ready[place(queue.path)].suspects;
        if suspects.remove(&(before, key)) {
            suspects.insert((before.min(now), key));
        }
    }

    /// Lets all suspects be tried at once.
    pub fn end_waits(&mut self, now: Mono) {
        let suspects: Vec<OrderingKey> = self.suspicions.keys().copied().collect();
        suspects.into_iter().for_each(|key| self.end_wait(key, now));
    }

    /// Ends all suspicions.
    pub fn clear_all(&mut self) {
        for ready in &mut self.ready {
            ready.nearly_proven.clear();
            ready.suspect_count = 0;
        }
        for (key, suspicion) in std::mem::take(&mut self.suspicions) {
            let Some(queue) = self.queues.get(&key) else { continue };
            let ready = &mut self.ready[place(queue.path)];
            if ready.suspects.remove(&(suspicion.until, key))
                && let Some(oldest) = queue.events.front()
            {
                ready.untried.insert(queue.owner, *oldest, key);
            }
        }
    }

    /// Makes a ready ordering key busy.
    pub fn set_busy(&mut self, key: OrderingKey) {
        let Some(queue) = self.queues.get_mut(&key) else { return };
        queue.is_busy = true;
        let ready = &mut self.ready[place(queue.path)];
        match self.suspicions.get(&key) {
            Some(suspicion) => {
                ready.suspects.remove(&(suspicion.until, key));
                ready.nearly_proven.remove(&key);
            }
            None => {
                if let Some(oldest) = queue.events.front() {
                    ready.untried.remove(queue.owner, *oldest);
                    self.last_owner = queue.owner;
                }
            }
        }
    }

    /// Notes the path of a busy ordering key.
    pub fn set_path(&mut self, key: OrderingKey, path: Endpoint) {
        let Some(queue) = self.queues.get_mut(&key).filter(|queue| queue.path != Some(path)) else { return };
        let (before, after) = (place(queue.path.replace(path)), place(Some(path)));
        let is_suspect = usize::from(self.suspicions.contains_key(&key));
        self.ready[before].persons -= 1;
        self.ready[before].suspect_count -= is_suspect;
        self.ready[after].persons += 1;
        self.ready[after].suspect_count += is_suspect;
    }

    /// Makes a busy ordering key ready; without a pending event it is forgotten.
    pub fn set_ready(&mut self, key: OrderingKey) {
        if self.pending_count(key) == 0 {
            self.clear(key);
        }
        let Some(queue) = self.queues.get_mut(&key) else { return };
        queue.is_busy = false;
        let ready = &mut self.ready[place(queue.path)];
        match (queue.events.front(), self.suspicions.get(&key)) {
            (None, _) => {
                ready.persons -= 1;
                let owner = queue.owner;
                self.queues.remove(&key);
                self.remove_person_of(owner);
            }
            (Some(oldest), None) => ready.untried.insert(queue.owner, *oldest, key),
            (Some(_), Some(suspicion)) => {
                ready.suspects.insert((suspicion.until, key));
                if suspicion.awaits_well() {
                    ready.nearly_proven.insert(key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATHS: [Option<Endpoint>; 3] = [Some(Endpoint::People), Some(Endpoint::Accounts), None];

    /// The persons of the next requests, as many as that; each stays busy.
    fn next(keys: &mut OrderingKeys, requests: usize) -> Vec<i64> {
        let mut persons = Vec::new();
        while persons.len() < requests
            && let Some(key) = keys.untried(&PATHS, Side::Oldest)
        {
            keys.set_busy(key);
            persons.push(key.0);
        }
        persons
    }

    #[test]
    fn owners_take_turns_and_the_persons_of_each_go_in_the_order_of_their_events() {
        let (ana, ben, cy) = (Some(1_001), Some(1_002), None);
        let item = |seq, key, owner| QueuedItem { seq, key: OrderingKey(key), owner };
        for (items, want) in [
            // One owner: the order of the events.
            (vec![item(1, 10, ana), item(2, 11, ana), item(3, 12, ana)], vec![10, 11, 12]),
            // Behind a backlog of another.
            (
                (0..6).map(|n| item(n, 10 + n, ana)).chain([item(7, 20, ben), item(8, 21, ben)]).collect(),
                vec![10, 20, 11, 21, 12, 13, 14, 15],
            ),
            (
                (0..3).map(|n| item(n, 10 + n, ana)).chain([item(7, 20, ben), item(8, 30, cy)]).collect(),
                vec![10, 20, 30, 11, 12],
            ),
            // A person of whom both have events goes with the one who has fewer persons, in the order of its events.
            (
                (0..3).map(|n| item(n, 10 + n, ana)).chain([item(3, 19, ana), item(7, 19, ben)]).collect(),
                vec![10, 19, 11, 12],
            ),
            (
                [item(1, 19, ben)]
                    .into_iter()
                    .chain((2..5).map(|n| item(n, 10 + n, ana)))
                    .chain([item(7, 19, ana)])
                    .collect(),
                vec![12, 19, 13, 14],
            ),
        ] {
            let mut keys = OrderingKeys::default();
            items.iter().for_each(|item: &QueuedItem| keys.discovered(*item));
            assert_eq!(next(&mut keys, 9), want, "{items:?}");
            // Nothing is left of the turns when all events are gone.
            for item in &items {
                keys.remove_events(item.key, &[item.seq]);
                keys.set_ready(item.key);
            }
            assert!(keys.queues.is_empty() && keys.persons_of.is_empty());
        }
    }
}

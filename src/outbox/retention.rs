//! How long what is settled is remembered.

use super::ids::short_hash;
use super::row::State;
use super::store::{LAST_SEQ, Store};
use crate::clock::Timestamp;
use crate::reason::Code;
use rusqlite::params;
use std::time::Duration;

/// A row whose time is up: its event, its id, its code.
type Old = (i64, String, String);

impl Store {
    /// Looks at up to about `limit` rows that may be older than the configuration keeps them, by whole minutes, forgets
    /// those that are, and erases bodies whose time is up. Returns how many rows and bodies went, and whether there may
    /// be more.
    pub(super) fn expire(&mut self, now: Timestamp, limit: usize) -> Result<(usize, bool), rusqlite::Error> {
        let keep = self.settings.clone();
        let (mut gone, mut more) = (0, false);
        let (old, is_all) = self.old_delivered(now.minus(keep.keep_delivered), now, limit)?;
        more |= !is_all;
        gone += self.forget(State::Delivered, old)?;
        for (state, age) in [
            (State::Skipped, keep.keep_delivered.max(keep.keep_skipped)),
            (State::Discarded, keep.keep_delivered),
            (State::Failed, keep.keep_failed),
        ] {
            let old: Vec<Old> = self
                .cached(
                    "SELECT seq, message_id, code FROM settled
                      WHERE state = ? AND state <> 'delivered' AND settled_at / 60000 < ? / 60000
                      ORDER BY settled_at / 60000 LIMIT ?",
                )?
                .query_map(params![state.as_str(), now.minus(age).0, limit as i64], |r| {
                    Ok((r.get(0)?, r.get(1)?, r.get(2)?))
                })?
                .collect::<Result<_, _>>()?;
            more |= old.len() == limit;
            gone += self.forget(state, old)?;
        }
        for (state, age) in [(State::Delivered, keep.keep_bodies), (State::Skipped, keep.keep_skipped)] {
            let bodies = self.erase_bodies(state, now, age, limit)?;
            more |= bodies == limit;
            gone += bodies;
        }
        Ok((gone, more))
    }

    /// Delivered rows that were settled before that, of up to `limit` that are looked at: from where the last look ended,
    /// in the order in which they came, up to the first that came later. And whether that was reached: then the next
    /// look begins at the first again.
    fn old_delivered(
        &mut self,
        before: Timestamp,
        now: Timestamp,
        limit: usize,
    ) -> Result<(Vec<Old>, bool), rusqlite::Error> {
        let (mut old, mut looked_at, mut last, mut is_all) = (Vec::new(), 0, self.expired_to, false);
        {
            let mut settled = self.cached(
                "SELECT seq, message_id, received_at, state = 'delivered' AND settled_at / 60000 < ?2 / 60000
                   FROM settled WHERE seq > ?1 ORDER BY seq LIMIT ?3",
            )?;
            let mut settled = settled.query(params![self.expired_to, before.0, limit as i64])?;
            while let Some(row) = settled.next()? {
                // One that came in the future came while the clock was wrong: it says nothing of those behind it.
                if (before..=now).contains(&Timestamp(row.get(2)?)) {
                    is_all = true;
                    break;
                }
                last = row.get(0)?;
                looked_at += 1;
                if row.get(3)? {
                    old.push((last, row.get(1)?, String::new()));
                }
            }
        }
        is_all |= looked_at < limit;
        self.expired_to = if is_all { 0 } else { last };
        Ok((old, is_all))
    }

    fn forget(&mut self, state: State, old: Vec<Old>) -> Result<usize, rusqlite::Error> {
        let gone = old.len();
        if gone > 0 {
            // The last one may be among them.
            self.set_meta(LAST_SEQ, self.next_seq - 1)?;
        }
        for (seq, message_id, code) in old {
            self.forget_id(&short_hash(&message_id), seq)?;
            for table in ["settled", "bodies", "attempts", "settled_items"] {
                self.cached(&format!("DELETE FROM {table} WHERE seq = ?"))?.execute([seq])?;
            }
            self.counted.add(state.as_str(), Code::parse(&code).map_or("", Code::as_str), -1);
        }
        Ok(gone)
    }

    fn erase_bodies(
        &mut self,
        state: State,
        now: Timestamp,
        age: Duration,
        limit: usize,
    ) -> Result<usize, rusqlite::Error> {
        let old: Vec<(i64, Option<String>)> = self
            .cached(
                "SELECT b.seq, s.person FROM bodies b JOIN settled s ON s.seq = b.seq
                  WHERE b.state = ? AND b.settled_at / 60000 < ? / 60000 ORDER BY b.settled_at / 60000 LIMIT ?",
            )?
            .query_map(params![state.as_str(), now.minus(age).0, limit as i64], |r| {
                Ok((r.get(0)?, r.get(1)?))
            })?
            .collect::<Result<_, _>>()?;
        for (seq, person) in &old {
            let person = person.as_ref().map(|person| self.person_key.hashed(person));
            self.cached("UPDATE settled SET person = ?2 WHERE seq = ?1")?.execute(params![seq, person])?;
            self.cached("DELETE FROM bodies WHERE seq = ?")?.execute([seq])?;
        }
        Ok(old.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::MessageId;
    use crate::outbox::ids::tests::{event, open};
    use crate::outbox::{Appended, NewEvent, Settled};
    use crate::subject::Subject;

    const BEGAN: Timestamp = Timestamp(1_800_000_000_000);

    fn days(n: u64) -> Timestamp {
        BEGAN.plus(Duration::from_secs(n * 86_400))
    }

    fn append(store: &mut Store, events: &[NewEvent], at: Timestamp) -> Appended {
        store.transaction(|store| store.append(events, &[], at)).unwrap()
    }

    /// Stores events and delivers them at once, their rows moved.
    fn deliver(store: &mut Store, events: &[NewEvent], at: Timestamp) {
        let Appended::Stored { waiting, .. } = append(store, events, at) else { panic!() };
        let rows: Vec<_> = waiting.items.iter().map(|(seq, _)| (*seq, Settled::Delivered)).collect();
        let moved = store.transaction(|store| {
            store.settle(&rows, false, at)?;
            store.compact_all()
        });
        moved.unwrap();
    }

    fn forgotten(store: &mut Store, now: Timestamp) -> usize {
        store.transaction(|store| store.expire(now, 100)).unwrap().0
    }

    fn is_new(appended: &Appended) -> bool {
        matches!(appended, Appended::Stored { stored: 1.., duplicates: 0, .. })
    }

    #[test]
    fn one_event_of_the_future_keeps_none_of_those_behind_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(dir.path());
        deliver(&mut store, &[event(0)], days(4_000));
        (1..4).for_each(|n| deliver(&mut store, &[event(n)], BEGAN));
        assert_eq!([29, 31, 60].map(|n| forgotten(&mut store, days(n))), [0, 3, 0]);
        assert_eq!([4_029, 4_031].map(|n| forgotten(&mut store, days(n))), [0, 1]);
    }

    #[test]
    fn what_is_forgotten_amid_a_pass_is_new_when_it_comes_again_and_known_from_then_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(dir.path());
        let events: Vec<NewEvent> = (0..50).map(event).collect();
        deliver(&mut store, &events, BEGAN);
        let begin = |store: &mut Store| {
            store.index_ids_now();
            store.move_ids(10)
        };
        store.transaction(begin).unwrap();
        assert_eq!(forgotten(&mut store, days(40)), 50);
        assert!(is_new(&append(&mut store, &events, days(40))));
        store.transaction(Store::index_all_ids).unwrap();
        let again = append(&mut store, &events, days(40));
        assert!(matches!(again, Appended::Stored { stored: 0, duplicates: 50, .. }), "{again:?}");
    }

    #[test]
    fn an_id_that_its_row_does_not_tell_ends_nothing_once_the_row_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(dir.path());
        let erased = Subject::Email("ana@acme.dev".to_owned());
        let mark = store.ack_of(&erased.name());
        store.transaction(|store| store.set_meta(&mark, BEGAN.0)).unwrap();
        let body = r#"{"type":"track","properties":{"email":"ana@acme.dev"}}"#.to_owned();
        let id = MessageId::from_stored("ana@acme.dev-1".to_owned());
        let events = [NewEvent { message_id: id, body, ..event(0) }];
        assert!(is_new(&append(&mut store, &events, BEGAN)));
        assert!(!is_new(&append(&mut store, &events, BEGAN)));
        assert_eq!(forgotten(&mut store, days(40)), 1);
        assert!(is_new(&append(&mut store, &events, days(40))));
    }

    #[test]
    fn a_number_is_not_used_again_though_everything_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(dir.path());
        deliver(&mut store, &[event(0), event(1)], BEGAN);
        let next = store.next_seq;
        assert_eq!(forgotten(&mut store, days(40)), 2);
        drop(store);
        let mut store = open(dir.path());
        store.transaction(|_| Ok(())).unwrap();
        assert_eq!(store.next_seq, next);
    }
}

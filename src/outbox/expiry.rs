//! The deletion of what is settled: events that are older than the configuration keeps them, their bodies, and the oldest
//! of them where history takes more room than its budget.
//!
//! ```text
//!   delivered ──over a quarter of max_bytes──▶ the id alone ──keep_delivered, or over max_bytes──▶ forgotten
//!   skipped   ──over a tenth of max_bytes────▶ the id alone
//! ```
//!
//! `outbox.max_bytes` itself is for events that wait or have failed: what is settled never keeps out what is not.

use super::counters::event_bytes;
use super::id_index::Oldest;
use super::id_segment::{SEGMENT_AGE, hash_id_text};
use super::meta::{self, HISTORY_SINCE, IDS_REMEMBERED_SINCE};
use super::row::State;
use super::settled_row::SettledRow;
use super::tables::Tables;
use super::transitions::delete_event;
use crate::clock::Timestamp;
use rusqlite::{Row, params};

const OLD_ROWS: &str = "SELECT seq FROM settled
                         WHERE state = ? AND state <> 'delivered' AND settled_at / 60000 < ? / 60000
                         ORDER BY settled_at / 60000 LIMIT ?";
const OLD_BODIES: &str = "SELECT seq FROM settled
                           WHERE state = ? AND body_bytes > 0 AND settled_at / 60000 < ? / 60000
                           ORDER BY settled_at / 60000 LIMIT ?";
const OLDEST_SKIPPED: &str = "SELECT seq FROM settled WHERE state = 'skipped' AND state <> 'delivered'
                               ORDER BY settled_at / 60000 LIMIT ?";

/// The share of `outbox.max_bytes` that the history of delivered events may take beside it.
const HISTORY_SHARE: u64 = 4;
/// The share of `outbox.max_bytes` that skipped events may take beside it, so that a flood of them displaces nothing else.
const SKIPPED_SHARE: u64 = 10;

/// The result of one step.
#[derive(Debug, Default)]
pub(super) struct Expired {
    /// Rows and bodies that were deleted.
    pub(super) deleted: usize,
    /// Whether there may be more to delete.
    pub(super) has_more: bool,
}

impl Expired {
    fn add(&mut self, deleted: usize, has_more: bool) {
        self.deleted += deleted;
        self.has_more |= has_more;
    }
}

/// What takes up room beyond its budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Excess {
    /// Skipped events.
    Skipped,
    /// The rows of delivered events.
    History,
    /// The ids of delivered events.
    Ids,
}

impl Excess {
    /// The first thing that takes too much room in a database of so many bytes. `is_short`: the disk has less free than
    /// `outbox.min_free` asks for, and no history is kept at its cost.
    pub(super) fn of(tables: &Tables, used: u64, is_short: bool) -> Option<Excess> {
        let (max, skipped) = (tables.retention.config.max_bytes, tables.bytes.kept(State::Skipped));
        if skipped > max / SKIPPED_SHARE {
            return Some(Excess::Skipped);
        }
        let ids = tables.ids.bytes();
        let history = used.saturating_sub(tables.bytes.needed()).saturating_sub(skipped).saturating_sub(ids);
        if history > if is_short { 0 } else { max / HISTORY_SHARE } {
            return Some(Excess::History);
        }
        (ids > max).then_some(Excess::Ids)
    }
}

/// The search for rows to delete, in steps of one transaction each.
///
/// Delivered events are many and have no index by age, so their rows are read in the order in which they came. The
/// other states have an index.
#[derive(Debug, Default)]
pub(super) struct Expiry {
    /// Delivered rows up to this one have been read; 0: the next step starts at the first.
    delivered_upto: i64,
    /// The same for rows that are given up for room.
    given_up: i64,
}

impl Expiry {
    /// Reads up to about `limit` rows that may be too old, deletes those that are, and erases bodies. Ages are compared
    /// in whole minutes. `wall` is the wall clock's time: rows of later ones were stored while it was wrong. Must be called
    /// within [`Tables::transaction`].
    pub(super) fn step(
        &mut self,
        tables: &mut Tables,
        now: Timestamp,
        wall: Timestamp,
        limit: usize,
    ) -> Result<Expired, rusqlite::Error> {
        let keep = tables.retention.config.clone();
        let mut expired = self.delete_delivered(tables, now.minus(keep.keep_delivered), wall, limit)?;
        for (state, age) in [
            (State::Skipped, keep.keep_delivered.max(keep.keep_skipped)),
            (State::Discarded, keep.keep_delivered),
            (State::Failed, keep.keep_failed),
        ] {
            let rows = select(tables, OLD_ROWS, state, now.minus(age), limit)?;
            expired.add(rows.len(), rows.len() == limit);
            delete(tables, &rows)?;
        }
        for (state, age) in [(State::Delivered, keep.keep_bodies), (State::Skipped, keep.keep_skipped)] {
            let bodies = select(tables, OLD_BODIES, state, now.minus(age), limit)?;
            expired.add(bodies.len(), bodies.len() == limit);
            erase_bodies(tables, state, &bodies)?;
        }
        expired.add(0, self.forget_ids(tables, now.minus(keep.keep_delivered), wall, limit)?);
        Ok(expired)
    }

    /// Seals the ids of a day, and forgets those of segments whose time is up. Returns whether there is more to do.
    fn forget_ids(
        &mut self,
        tables: &mut Tables,
        before: Timestamp,
        wall: Timestamp,
        limit: usize,
    ) -> Result<bool, rusqlite::Error> {
        let unsealed: Option<i64> = tables
            .cached(
                "SELECT min(received_at) FROM events WHERE seq = (SELECT min(seq) FROM events WHERE seq > ?)",
            )?
            .query_row([tables.ids.indexed()], |r| r.get(0))?;
        if unsealed.is_some_and(|at| wall.since(Timestamp(at)) >= SEGMENT_AGE) {
            tables.begin_sealing()?;
        }
        let since = |oldest: Oldest| match oldest.settled_by <= wall {
            true => oldest.settled_by,
            false => oldest.newest_received_at,
        };
        match tables.ids.oldest() {
            Some(oldest) if since(oldest) < before => {
                tables.ids.forget_oldest(&tables.store.conn, limit)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Deletes up to `limit` of the oldest rows of what takes too much room, whatever their age. Returns how many; 0: there
    /// are none that can be given up now. Must be called within [`Tables::transaction`].
    pub(super) fn give_up(
        &mut self,
        tables: &mut Tables,
        excess: Excess,
        limit: usize,
    ) -> Result<usize, rusqlite::Error> {
        match excess {
            Excess::Skipped => {
                let rows: Vec<i64> = tables
                    .cached(OLDEST_SKIPPED)?
                    .query_map([limit as i64], |r| r.get(0))?
                    .collect::<Result<_, _>>()?;
                give_up_sealed(tables, rows)
            }
            Excess::History => self.give_up_history(tables, limit),
            Excess::Ids => {
                let Some(oldest) = tables.ids.oldest() else { return Ok(0) };
                raise(tables, IDS_REMEMBERED_SINCE, oldest.newest_received_at)?;
                tables.ids.forget_oldest(&tables.store.conn, limit)?;
                Ok(limit)
            }
        }
    }

    /// Deletes the rows of the oldest delivered events whose ids stand in a segment, and has the others sealed.
    fn give_up_history(&mut self, tables: &mut Tables, limit: usize) -> Result<usize, rusqlite::Error> {
        let rows: Vec<(i64, i64)> = tables
            .cached(
                "SELECT s.seq, e.received_at FROM settled s CROSS JOIN events e ON e.seq = s.seq
                  WHERE s.seq > ? AND s.seq <= ? AND s.state = 'delivered' ORDER BY s.seq LIMIT ?",
            )?
            .query_map(params![self.given_up, tables.ids.indexed(), limit as i64], pair)?
            .collect::<Result<_, _>>()?;
        if let Some(newest) = rows.iter().map(|(_, received_at)| *received_at).max() {
            raise(tables, HISTORY_SINCE, Timestamp(newest))?;
        } else {
            tables.begin_sealing()?;
        }
        // From the first row again: events that were made pending by hand are settled in their old places.
        self.given_up = if rows.len() < limit { 0 } else { rows.last().map_or(0, |(seq, _)| *seq) };
        give_up_sealed(tables, rows.iter().map(|(seq, _)| *seq).collect())
    }

    /// Reads up to `limit` rows from where the last step ended up to the first that came too late to be old, and
    /// deletes delivered ones that were settled before that time.
    fn delete_delivered(
        &mut self,
        tables: &mut Tables,
        before: Timestamp,
        wall: Timestamp,
        limit: usize,
    ) -> Result<Expired, rusqlite::Error> {
        let (mut rows, mut read, mut last, mut is_done) = (Vec::new(), 0, self.delivered_upto, false);
        {
            let mut events = tables.cached(
                "SELECT s.seq, e.received_at, s.state = 'delivered' AND s.settled_at / 60000 < ?2 / 60000
                   FROM settled s CROSS JOIN events e ON e.seq = s.seq WHERE s.seq > ?1 ORDER BY s.seq LIMIT ?3",
            )?;
            let mut events = events.query(params![self.delivered_upto, before.0, limit as i64])?;
            while let Some(row) = events.next()? {
                // An event of the future was received while the clock was wrong. It says nothing about the rows behind.
                if (before..=wall).contains(&Timestamp(row.get(1)?)) {
                    is_done = true;
                    break;
                }
                last = row.get(0)?;
                read += 1;
                if row.get(2)? {
                    rows.push(last);
                }
            }
        }
        is_done |= read < limit;
        self.delivered_upto = if is_done { 0 } else { last };
        delete(tables, &rows)?;
        Ok(Expired { deleted: rows.len(), has_more: !is_done })
    }
}

/// Deletes those of the rows whose ids stand in a segment, and has the others sealed. The ids are remembered from the time
/// at which the events were settled. Returns how many were deleted.
fn give_up_sealed(tables: &mut Tables, mut seqs: Vec<i64>) -> Result<usize, rusqlite::Error> {
    let found = seqs.len();
    seqs.retain(|seq| *seq <= tables.ids.indexed());
    if seqs.len() < found {
        tables.begin_sealing()?;
    }
    seqs.sort_unstable();
    let mut settled = Vec::with_capacity(seqs.len());
    for seq in &seqs {
        let at =
            tables.cached("SELECT settled_at FROM settled WHERE seq = ?")?.query_row([seq], |r| r.get(0))?;
        settled.push((*seq, Timestamp(at)));
    }
    tables.ids.raise(&tables.store.conn, &settled)?;
    delete(tables, &seqs)?;
    Ok(seqs.len())
}

fn pair(row: &Row<'_>) -> Result<(i64, i64), rusqlite::Error> {
    Ok((row.get(0)?, row.get(1)?))
}

/// Raises a time in `meta`.
fn raise(tables: &Tables, name: &str, to: Timestamp) -> Result<(), rusqlite::Error> {
    let before: Option<i64> = meta::get(&tables.store.conn, name)?;
    meta::set(&tables.store.conn, name, before.unwrap_or(i64::MIN).max(to.0))
}

fn select(
    tables: &Tables,
    sql: &str,
    state: State,
    before: Timestamp,
    limit: usize,
) -> Result<Vec<i64>, rusqlite::Error> {
    tables.cached(sql)?.query_map(params![state.as_str(), before.0, limit as i64], |r| r.get(0))?.collect()
}

/// Deletes the rows of settled events. Ids that stand in a segment stay there until that is forgotten.
fn delete(tables: &mut Tables, seqs: &[i64]) -> Result<(), rusqlite::Error> {
    if !seqs.is_empty() {
        // The row with the highest number may be among them.
        tables.reserve_seqs()?;
    }
    for seq in seqs {
        let Some(was) = SettledRow::read(tables, *seq)? else { continue };
        if *seq > tables.ids.indexed() {
            // It is read from the row after a restart, so it is forgotten with it now as well.
            let message_id: String = tables
                .cached("SELECT message_id FROM events WHERE seq = ?")?
                .query_row([seq], |r| r.get(0))?;
            tables.ids.remove(&tables.store.conn, &hash_id_text(&message_id), *seq)?;
        }
        tables.counters.add(was.state, was.code, -1);
        tables.counters.add_kept(was.state, -was.bytes());
        delete_event(tables, *seq)?;
    }
    Ok(())
}

fn erase_bodies(tables: &mut Tables, state: State, seqs: &[i64]) -> Result<(), rusqlite::Error> {
    for seq in seqs {
        let Some(was) = SettledRow::read(tables, *seq)? else { continue };
        tables.cached("UPDATE settled SET body_bytes = 0 WHERE seq = ?")?.execute([seq])?;
        tables.cached("DELETE FROM bodies WHERE seq = ?")?.execute([seq])?;
        tables.counters.add_kept(state, event_bytes(0) - was.bytes());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::item::Disposition;
    use crate::outbox::append::Append;
    use crate::outbox::fixture::{self, numbered_event};
    use crate::outbox::id_segment::hash_id;
    use crate::outbox::transitions::Transitions;
    use crate::outbox::{Appended, Counts, NewEvent, Settled};
    use crate::reason::{Code, Reason};
    use std::time::Duration;

    const BEGAN: Timestamp = Timestamp(1_800_000_000_000);

    fn days(n: u64) -> Timestamp {
        BEGAN.plus(Duration::from_secs(n * 86_400))
    }

    fn append(tables: &mut Tables, events: &[NewEvent], at: Timestamp) -> Appended {
        tables.transaction(|tables| Append::run(tables, events, &[], at)).unwrap()
    }

    /// Stores events, delivers them at once and moves their rows.
    fn deliver(tables: &mut Tables, events: &[NewEvent], at: Timestamp) {
        let Appended::Stored { enqueued, .. } = append(tables, events, at) else { panic!() };
        let rows: Vec<_> = enqueued.items.iter().map(|item| (item.seq, Settled::Delivered)).collect();
        let compacted = tables.transaction(|tables| {
            Transitions { tables, now: at, status: None }.settle(&rows, false)?;
            tables.compact_all()
        });
        compacted.unwrap();
    }

    fn expire(tables: &mut Tables, expiry: &mut Expiry, now: Timestamp) -> usize {
        tables.transaction(|tables| expiry.step(tables, now, now, 100)).unwrap().deleted
    }

    fn is_new(appended: &Appended) -> bool {
        matches!(appended, Appended::Stored { stored: 1.., duplicates: 0, .. })
    }

    #[test]
    fn old_rows_and_bodies_are_found_by_the_indexes_by_age() {
        let dir = tempfile::tempdir().unwrap();
        let tables = fixture::tables(dir.path());
        let by_age = |index| format!("{index} (state=? AND <expr><?)");
        assert!(fixture::query_plan(&tables, OLD_ROWS).contains(&by_age("settled_by_age")));
        assert!(fixture::query_plan(&tables, OLD_BODIES).contains(&by_age("bodies_by_age")));
        assert!(fixture::query_plan(&tables, OLDEST_SKIPPED).contains("settled_by_age (state=?)"));
    }

    #[test]
    fn an_event_of_the_future_does_not_delay_the_expiry_of_others() {
        let dir = tempfile::tempdir().unwrap();
        let (mut tables, mut expiry) = (fixture::tables(dir.path()), Expiry::default());
        deliver(&mut tables, &[numbered_event(0)], days(4_000));
        (1..4).for_each(|n| deliver(&mut tables, &[numbered_event(n)], BEGAN));
        let mut expired = |n| expire(&mut tables, &mut expiry, days(n));
        assert_eq!([29, 31, 60].map(&mut expired), [0, 3, 0]);
        assert_eq!([4_029, 4_031].map(&mut expired), [0, 1]);
    }

    /// Writes every id into a segment.
    fn seal(tables: &mut Tables) {
        let seal = |tables: &mut Tables| tables.ids.index_all(&tables.store.conn, tables.next_seq - 1);
        tables.transaction(seal).unwrap();
    }

    #[test]
    fn an_id_is_forgotten_with_its_row_or_with_the_segment_that_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let (mut tables, mut expiry) = (fixture::tables(dir.path()), Expiry::default());
        let events: Vec<NewEvent> = (0..50).map(numbered_event).collect();
        deliver(&mut tables, &events[..20], BEGAN);
        seal(&mut tables);
        deliver(&mut tables, &events[20..], BEGAN);
        assert!(!is_new(&append(&mut tables, &events, days(30))));
        assert_eq!(expire(&mut tables, &mut expiry, days(31)), 50);
        while tables.ids.oldest().is_some() {
            expire(&mut tables, &mut expiry, days(31));
        }
        let again = append(&mut tables, &events, days(31));
        assert!(matches!(again, Appended::Stored { stored: 50, duplicates: 0, .. }), "{again:?}");
    }

    #[test]
    fn a_segment_of_the_future_does_not_delay_the_forgetting_of_later_ones() {
        let dir = tempfile::tempdir().unwrap();
        let (mut tables, mut expiry) = (fixture::tables(dir.path()), Expiry::default());
        let events: Vec<NewEvent> = (0..6).map(numbered_event).collect();
        // The later segment is smaller, so it does not take up the other.
        for (events, at) in [(&events[..4], days(4_000)), (&events[4..], BEGAN)] {
            deliver(&mut tables, events, at);
            seal(&mut tables);
        }
        let ids = [0, 5].map(|n: usize| hash_id(&events[n].message_id));
        let mut are_known = |day| {
            for _ in 0..10 {
                expire(&mut tables, &mut expiry, days(day));
            }
            let found = tables.transaction(|tables| tables.ids.find_all(&tables.store.conn, &ids)).unwrap();
            [found[0].is_some(), found[1].is_some()]
        };
        assert_eq!(are_known(29), [true, true]);
        assert_eq!(are_known(31), [true, false], "the row of the first stands");
    }

    #[test]
    fn ids_are_sealed_after_a_day_however_few_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let (mut tables, mut expiry) = (fixture::tables(dir.path()), Expiry::default());
        deliver(&mut tables, &[numbered_event(0)], BEGAN);
        for (day, indexed) in [(0, 0), (1, 1)] {
            expire(&mut tables, &mut expiry, days(day));
            tables.transaction(|tables| tables.compact_some(10, false, days(day))).unwrap();
            assert_eq!(tables.ids.indexed(), indexed, "after {day} days");
        }
    }

    #[test]
    fn of_the_oldest_delivered_events_only_the_ids_stay_and_no_failed_event_goes() {
        let dir = tempfile::tempdir().unwrap();
        let (mut tables, mut expiry) = (fixture::tables(dir.path()), Expiry::default());
        let events: Vec<NewEvent> = (0..10).map(numbered_event).collect();
        let Appended::Stored { enqueued, .. } = append(&mut tables, &events[..1], BEGAN) else { panic!() };
        let failed = [(enqueued.items[0].seq, Settled::Failed(Reason::new(Code::Refused, "")))];
        tables
            .transaction(|tables| Transitions { tables, now: BEGAN, status: None }.settle(&failed, false))
            .unwrap();
        deliver(&mut tables, &events[1..], BEGAN);
        let mut give_up = |tables: &mut Tables, limit| {
            tables.transaction(|tables| expiry.give_up(tables, Excess::History, limit)).unwrap()
        };
        // Their ids are sealed first.
        assert_eq!(give_up(&mut tables, 4), 0);
        seal(&mut tables);
        assert_eq!([4, 4, 4, 4].map(|limit| give_up(&mut tables, limit)), [4, 4, 1, 0]);
        let left = Counts::read(&tables.store.conn).unwrap();
        assert_eq!(
            (left.of(State::Delivered), left.of(State::Failed), left.history_since),
            (0, 1, Some(BEGAN))
        );
        assert_eq!(left.ids_remembered_since, None);
        let again = append(&mut tables, &events, BEGAN);
        assert!(matches!(again, Appended::Stored { stored: 0, duplicates: 10, .. }), "{again:?}");
        // A reuse is still told from a duplicate.
        let reused = NewEvent { digest: crate::event::Digest::from_bytes([7; 8]), ..numbered_event(5) };
        let Appended::Reused(reused) = append(&mut tables, &[reused], BEGAN) else { panic!() };
        assert_eq!(reused[0].first, None);
    }

    #[test]
    fn the_ids_of_skipped_events_that_take_too_much_room_are_sealed_first() {
        let dir = tempfile::tempdir().unwrap();
        let (mut tables, mut expiry) = (fixture::tables(dir.path()), Expiry::default());
        let skip = |n| NewEvent {
            disposition: Disposition::Skip(Reason::new(Code::NoMapping, "")),
            ..numbered_event(n)
        };
        let events: Vec<NewEvent> = (0..10).map(skip).collect();
        append(&mut tables, &events, BEGAN);
        let mut give_up = |tables: &mut Tables| {
            tables.transaction(|tables| expiry.give_up(tables, Excess::Skipped, 100)).unwrap()
        };
        assert_eq!(give_up(&mut tables), 0);
        tables.transaction(|tables| tables.compact_some(100, false, BEGAN)).unwrap();
        assert_eq!(give_up(&mut tables), 10);
        let again = append(&mut tables, &events, BEGAN);
        assert!(matches!(again, Appended::Stored { stored: 0, duplicates: 10, .. }), "{again:?}");
    }

    #[test]
    fn ids_are_remembered_from_the_delivery_though_their_history_is_given_up() {
        // Whether the segment's time is up before the delivery, so that it is a remainder by then.
        for delivered in [29, 40] {
            let dir = tempfile::tempdir().unwrap();
            let (mut tables, mut expiry) = (fixture::tables(dir.path()), Expiry::default());
            let events: Vec<NewEvent> = (0..10).map(numbered_event).collect();
            append(&mut tables, &events, BEGAN);
            seal(&mut tables);
            // What comes later is not as long in the queue.
            deliver(&mut tables, &[numbered_event(10)], days(2));
            seal(&mut tables);
            for _ in 0..5 {
                expire(&mut tables, &mut expiry, days(delivered));
            }
            let rows: Vec<_> = (1..=10).map(|seq| (seq, Settled::Delivered)).collect();
            let settled = tables.transaction(|tables| {
                Transitions { tables, now: days(delivered), status: None }.settle(&rows, false)?;
                tables.compact_all()
            });
            settled.unwrap();
            let given_up = tables.transaction(|tables| expiry.give_up(tables, Excess::History, 100)).unwrap();
            assert!(given_up >= 10);
            drop(tables);
            let mut tables = fixture::tables(dir.path());
            for (day, stored) in [(delivered + 30, 0), (delivered + 32, 10)] {
                for _ in 0..10 {
                    expire(&mut tables, &mut expiry, days(day));
                }
                let ids: Vec<_> = events.iter().map(|event| hash_id(&event.message_id)).collect();
                let found = tables.transaction(|tables| tables.ids.find_all(&tables.store.conn, &ids));
                let unknown = found.unwrap().iter().filter(|known| known.is_none()).count();
                assert_eq!(unknown, stored, "delivered on day {delivered}, on day {day}");
            }
        }
    }

    #[test]
    fn what_takes_more_than_its_budget_is_given_up_and_only_that() {
        let dir = tempfile::tempdir().unwrap();
        let mut tables = fixture::tables(dir.path());
        let skipped = |n| NewEvent {
            disposition: Disposition::Skip(Reason::new(Code::NoMapping, "")),
            ..numbered_event(n)
        };
        deliver(&mut tables, &(0..100).map(numbered_event).collect::<Vec<_>>(), BEGAN);
        append(&mut tables, &(100..200).map(skipped).collect::<Vec<_>>(), BEGAN);
        seal(&mut tables);
        let (skipped, ids) = (tables.bytes.kept(State::Skipped), tables.ids.bytes());
        let used = skipped + ids + 1_000_000;
        for (max_bytes, is_short, excess) in [
            (1 << 30, false, None),
            (1 << 30, true, Some(Excess::History)),
            (4_000_000, false, None),
            (3_999_999, false, Some(Excess::History)),
            (10 * skipped - 1, false, Some(Excess::Skipped)),
        ] {
            tables.retention.config.max_bytes = max_bytes;
            assert_eq!(Excess::of(&tables, used, is_short), excess, "{max_bytes} {is_short}");
        }
        tables.retention.config.max_bytes = ids - 1;
        let is_ids = Excess::of(&tables, ids, false);
        assert!(matches!(is_ids, Some(Excess::Skipped | Excess::Ids)), "{is_ids:?}");
        let mut expiry = Expiry::default();
        let gone = tables.transaction(|tables| expiry.give_up(tables, Excess::Skipped, 60)).unwrap();
        let left = Counts::read(&tables.store.conn).unwrap();
        assert_eq!((gone, left.of(State::Skipped), left.of(State::Delivered)), (60, 40, 100));
        assert_eq!(tables.bytes.kept(State::Skipped), skipped / 100 * 40);
        while tables.ids.oldest().is_some() {
            tables.transaction(|tables| expiry.give_up(tables, Excess::Ids, 1_000)).unwrap();
        }
        assert_eq!(Counts::read(&tables.store.conn).unwrap().ids_remembered_since, Some(BEGAN));
    }

    #[test]
    fn a_number_is_not_used_again_when_all_events_have_expired_and_the_totals_stay() {
        let dir = tempfile::tempdir().unwrap();
        let mut tables = fixture::tables(dir.path());
        deliver(&mut tables, &[numbered_event(0), numbered_event(1)], BEGAN);
        let next = tables.next_seq;
        assert_eq!(expire(&mut tables, &mut Expiry::default(), days(40)), 2);
        let counts = Counts::read(&tables.store.conn).unwrap();
        fixture::assert_balanced(&counts);
        assert_eq!((counts.totals.created, counts.of(State::Delivered)), (2, 0), "the totals do not expire");
        drop(tables);
        let mut tables = fixture::tables(dir.path());
        tables.transaction(|_| Ok(())).unwrap();
        assert_eq!(tables.next_seq, next);
    }
}

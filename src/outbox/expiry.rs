//! The deletion of settled events, and of their bodies, that are older than the configuration keeps them, and of the oldest of
//! them while the outbox is nearly full: what is delivered never keeps out what is not.

use super::counters::Counts;
use super::dedup::hash_id_text;
use super::meta::{self, IDS_REMEMBERED_SINCE};
use super::row::State;
use super::store::Store;
use crate::clock::Timestamp;
use crate::reason::Code;
use rusqlite::{Row, params};

const OLD_ROWS: &str = "SELECT seq, message_id, code FROM settled
                         WHERE state = ? AND state <> 'delivered' AND settled_at / 60000 < ? / 60000
                         ORDER BY settled_at / 60000 LIMIT ?";
const OLD_BODIES: &str = "SELECT b.seq, s.person FROM bodies b JOIN settled s ON s.seq = b.seq
                           WHERE b.state = ? AND b.settled_at / 60000 < ? / 60000
                           ORDER BY b.settled_at / 60000 LIMIT ?";

/// What is given up for room: the history, without failed events, which wait for a person, and without the few that a
/// person has discarded for good.
const HISTORY: &str = "SELECT seq, message_id, code, state, received_at FROM settled
                        WHERE seq > ? AND (state = 'delivered' OR state = 'skipped') ORDER BY seq LIMIT ?";
const OLDEST_SKIPPED: &str = "SELECT seq, message_id, code, state, received_at FROM settled
                               WHERE state = 'skipped' ORDER BY settled_at / 60000 LIMIT ?";
/// Skipped events may take this share of `outbox.max_bytes` while there is no room; a flood of them shall not displace the
/// ids of delivered ones. Each counts for [`SKIPPED_BYTES`], since its body is kept for a while.
const SKIPPED_SHARE: u64 = 10;
const SKIPPED_BYTES: u64 = 1 << 10;

/// A row to be deleted.
struct ExpiredRow {
    seq: i64,
    message_id: String,
    code: String,
}

/// The result of one step.
#[derive(Debug, Default)]
pub(super) struct Expired {
    /// Rows and bodies that were deleted.
    pub(super) deleted: usize,
    /// Whether there may be more to delete.
    pub(super) has_more: bool,
}

/// The search for rows to delete, in steps of one transaction each.
///
/// Delivered events are many and have no index by age, so their rows are read in the order in which they came. The
/// other states have an index.
#[derive(Debug, Default)]
pub(super) struct Expiry {
    /// Delivered rows up to this one have been read; 0: the next step starts at the first.
    delivered_upto: i64,
    /// The same for rows that are given up.
    given_up: i64,
}

impl Expiry {
    /// Reads up to about `limit` rows that may be too old, deletes those that are, and erases bodies. Ages are compared
    /// in whole minutes. `wall` is the wall clock's time: rows of later ones were stored while it was wrong. Must be called
    /// within [`Store::transaction`].
    pub(super) fn step(
        &mut self,
        store: &mut Store,
        now: Timestamp,
        wall: Timestamp,
        limit: usize,
    ) -> Result<Expired, rusqlite::Error> {
        let keep = store.retention.config.clone();
        let mut expired = self.delete_delivered(store, now.minus(keep.keep_delivered), wall, limit)?;
        for (state, age) in [
            (State::Skipped, keep.keep_delivered.max(keep.keep_skipped)),
            (State::Discarded, keep.keep_delivered),
            (State::Failed, keep.keep_failed),
        ] {
            let rows = store
                .cached(OLD_ROWS)?
                .query_map(params![state.as_str(), now.minus(age).0, limit as i64], |r| {
                    Ok(ExpiredRow { seq: r.get(0)?, message_id: r.get(1)?, code: r.get(2)? })
                })?
                .collect::<Result<Vec<_>, _>>()?;
            expired.add(rows.len(), rows.len() == limit);
            delete(store, state, rows)?;
        }
        for (state, age) in [(State::Delivered, keep.keep_bodies), (State::Skipped, keep.keep_skipped)] {
            let bodies = erase_bodies(store, state, now.minus(age), limit)?;
            expired.add(bodies, bodies == limit);
        }
        Ok(expired)
    }

    /// Deletes up to `limit` of the oldest delivered and skipped events, whatever their age: skipped ones first where they
    /// have more than their share. Returns how many. Must be called within [`Store::transaction`].
    pub(super) fn give_up_oldest(
        &mut self,
        store: &mut Store,
        limit: usize,
    ) -> Result<usize, rusqlite::Error> {
        let skipped = Counts::read(&store.db.conn)?.of(State::Skipped);
        let share = store.retention.config.max_bytes / SKIPPED_SHARE / SKIPPED_BYTES;
        let excess = usize::try_from(skipped.saturating_sub(share)).unwrap_or(limit).min(limit);
        let oldest: Vec<(ExpiredRow, State, i64)> = match excess {
            0 => {
                let mut history = store.cached(HISTORY)?;
                history
                    .query_map(params![self.given_up, limit as i64], history_row)?
                    .collect::<Result<_, _>>()?
            }
            excess => {
                let mut skipped = store.cached(OLDEST_SKIPPED)?;
                skipped.query_map([excess as i64], history_row)?.collect::<Result<_, _>>()?
            }
        };
        if excess == 0 {
            // From the first row again: events that were made pending by hand are settled in their old places.
            self.given_up = oldest.last().map_or(0, |(row, ..)| row.seq);
        }
        let count = oldest.len();
        let (delivered, skipped): (Vec<_>, Vec<_>) =
            oldest.into_iter().partition(|(_, state, _)| *state == State::Delivered);
        if let Some(newest) = delivered.iter().map(|(.., received_at)| *received_at).max() {
            let before: Option<i64> = meta::get(&store.db.conn, IDS_REMEMBERED_SINCE)?;
            meta::set(
                &store.db.conn,
                IDS_REMEMBERED_SINCE,
                before.map_or(newest, |before| before.max(newest)),
            )?;
        }
        for (state, rows) in [(State::Delivered, delivered), (State::Skipped, skipped)] {
            delete(store, state, rows.into_iter().map(|(row, ..)| row).collect())?;
        }
        Ok(count)
    }

    /// Reads up to `limit` rows from where the last step ended up to the first that came too late to be old, and
    /// deletes delivered ones that were settled before that time.
    fn delete_delivered(
        &mut self,
        store: &mut Store,
        before: Timestamp,
        wall: Timestamp,
        limit: usize,
    ) -> Result<Expired, rusqlite::Error> {
        let (mut rows, mut read, mut last, mut is_done) = (Vec::new(), 0, self.delivered_upto, false);
        {
            let mut settled = store.cached(
                "SELECT seq, message_id, received_at, state = 'delivered' AND settled_at / 60000 < ?2 / 60000
                   FROM settled WHERE seq > ?1 ORDER BY seq LIMIT ?3",
            )?;
            let mut settled = settled.query(params![self.delivered_upto, before.0, limit as i64])?;
            while let Some(row) = settled.next()? {
                // An event of the future was received while the clock was wrong. It says nothing about the rows behind.
                if (before..=wall).contains(&Timestamp(row.get(2)?)) {
                    is_done = true;
                    break;
                }
                last = row.get(0)?;
                read += 1;
                if row.get(3)? {
                    rows.push(ExpiredRow { seq: last, message_id: row.get(1)?, code: String::new() });
                }
            }
        }
        is_done |= read < limit;
        self.delivered_upto = if is_done { 0 } else { last };
        let expired = Expired { deleted: rows.len(), has_more: !is_done };
        delete(store, State::Delivered, rows)?;
        Ok(expired)
    }
}

fn history_row(row: &Row<'_>) -> Result<(ExpiredRow, State, i64), rusqlite::Error> {
    let state: String = row.get("state")?;
    let expired =
        ExpiredRow { seq: row.get("seq")?, message_id: row.get("message_id")?, code: row.get("code")? };
    Ok((expired, State::parse(&state).unwrap_or(State::Discarded), row.get("received_at")?))
}

impl Expired {
    fn add(&mut self, deleted: usize, has_more: bool) {
        self.deleted += deleted;
        self.has_more |= has_more;
    }
}

fn delete(store: &mut Store, state: State, rows: Vec<ExpiredRow>) -> Result<(), rusqlite::Error> {
    if !rows.is_empty() {
        // The row with the highest number may be among them.
        store.reserve_seqs()?;
    }
    for row in rows {
        store.dedup.remove(&store.db.conn, &hash_id_text(&row.message_id), row.seq)?;
        for table in ["settled", "bodies", "attempts", "settled_items"] {
            store.cached(&format!("DELETE FROM {table} WHERE seq = ?"))?.execute([row.seq])?;
        }
        store.counters.add(state, Code::parse(&row.code).map_or("", Code::as_str), -1);
    }
    Ok(())
}

/// Erases up to `limit` bodies of events that were settled before that time. Returns how many.
fn erase_bodies(
    store: &Store,
    state: State,
    before: Timestamp,
    limit: usize,
) -> Result<usize, rusqlite::Error> {
    let rows: Vec<(i64, Option<String>)> = store
        .cached(OLD_BODIES)?
        .query_map(params![state.as_str(), before.0, limit as i64], |r| Ok((r.get(0)?, r.get(1)?)))?
        .collect::<Result<_, _>>()?;
    for (seq, person) in &rows {
        let person = person.as_ref().map(|person| store.retention.person_key.hash(person));
        store.cached("UPDATE settled SET person = ?2 WHERE seq = ?1")?.execute(params![seq, person])?;
        store.cached("DELETE FROM bodies WHERE seq = ?")?.execute([seq])?;
    }
    Ok(rows.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::MessageId;
    use crate::item::Disposition;
    use crate::outbox::append::Append;
    use crate::outbox::fixture::{self, numbered_event};
    use crate::outbox::transitions::Transitions;
    use crate::outbox::{Appended, NewEvent, Settled};
    use crate::reason::Reason;
    use crate::subject::Subject;
    use std::time::Duration;

    const BEGAN: Timestamp = Timestamp(1_800_000_000_000);

    fn days(n: u64) -> Timestamp {
        BEGAN.plus(Duration::from_secs(n * 86_400))
    }

    fn append(store: &mut Store, events: &[NewEvent], at: Timestamp) -> Appended {
        store.transaction(|store| Append::run(store, events, &[], at)).unwrap()
    }

    /// Stores events, delivers them at once and moves their rows.
    fn deliver(store: &mut Store, events: &[NewEvent], at: Timestamp) {
        let Appended::Stored { enqueued, .. } = append(store, events, at) else { panic!() };
        let rows: Vec<_> = enqueued.items.iter().map(|item| (item.seq, Settled::Delivered)).collect();
        let compacted = store.transaction(|store| {
            Transitions { store, now: at, status: None }.settle(&rows, false)?;
            store.compact_acks()
        });
        compacted.unwrap();
    }

    fn expire(store: &mut Store, expiry: &mut Expiry, now: Timestamp) -> usize {
        store.transaction(|store| expiry.step(store, now, now, 100)).unwrap().deleted
    }

    fn is_new(appended: &Appended) -> bool {
        matches!(appended, Appended::Stored { stored: 1.., duplicates: 0, .. })
    }

    #[test]
    fn old_rows_and_bodies_are_found_by_the_indexes_by_age() {
        let dir = tempfile::tempdir().unwrap();
        let store = fixture::store(dir.path());
        let by_age = |index| format!("{index} (state=? AND <expr><?)");
        assert!(fixture::query_plan(&store, OLD_ROWS).contains(&by_age("settled_by_age")));
        assert!(fixture::query_plan(&store, OLD_BODIES).contains(&by_age("bodies_by_age")));
    }

    #[test]
    fn an_event_of_the_future_does_not_delay_the_expiry_of_others() {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, mut expiry) = (fixture::store(dir.path()), Expiry::default());
        deliver(&mut store, &[numbered_event(0)], days(4_000));
        (1..4).for_each(|n| deliver(&mut store, &[numbered_event(n)], BEGAN));
        let mut expired = |n| expire(&mut store, &mut expiry, days(n));
        assert_eq!([29, 31, 60].map(&mut expired), [0, 3, 0]);
        assert_eq!([4_029, 4_031].map(&mut expired), [0, 1]);
    }

    #[test]
    fn an_event_that_expires_during_an_index_pass_is_stored_once_when_it_comes_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = fixture::store(dir.path());
        let events: Vec<NewEvent> = (0..50).map(numbered_event).collect();
        deliver(&mut store, &events, BEGAN);
        let begin = |store: &mut Store| {
            let last_seq = store.next_seq - 1;
            store.dedup.begin_indexing(last_seq);
            store.dedup.index_some(&store.db.conn, last_seq, 10)
        };
        store.transaction(begin).unwrap();
        assert_eq!(expire(&mut store, &mut Expiry::default(), days(40)), 50);
        assert!(is_new(&append(&mut store, &events, days(40))));
        let index = |store: &mut Store| store.dedup.index_all(&store.db.conn, store.next_seq - 1);
        store.transaction(index).unwrap();
        let again = append(&mut store, &events, days(40));
        assert!(matches!(again, Appended::Stored { stored: 0, duplicates: 50, .. }), "{again:?}");
    }

    #[test]
    fn an_id_that_its_redacted_row_does_not_hold_is_free_once_the_row_expires() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = fixture::store(dir.path());
        let erased = Subject::Email("ana@acme.dev".to_owned());
        store.transaction(|store| store.suppression().add(&erased, BEGAN)).unwrap();
        let body = r#"{"type":"track","properties":{"email":"ana@acme.dev"}}"#.to_owned();
        let id = MessageId::from_stored("ana@acme.dev-1".to_owned());
        let events = [NewEvent { message_id: id, body, ..numbered_event(0) }];
        assert!(is_new(&append(&mut store, &events, BEGAN)));
        assert!(!is_new(&append(&mut store, &events, BEGAN)));
        assert_eq!(expire(&mut store, &mut Expiry::default(), days(40)), 1);
        assert!(is_new(&append(&mut store, &events, days(40))));
    }

    #[test]
    fn the_oldest_history_is_given_up_for_room_and_no_failed_event() {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, mut expiry) = (fixture::store(dir.path()), Expiry::default());
        let events: Vec<NewEvent> = (0..10).map(numbered_event).collect();
        let Appended::Stored { enqueued, .. } = append(&mut store, &events[..1], BEGAN) else { panic!() };
        let reason = Reason::new(Code::Refused, "");
        let failed = [(enqueued.items[0].seq, Settled::Failed(reason.clone()))];
        let settle = |store: &mut Store, rows: &[(i64, Settled)]| {
            store
                .transaction(|store| Transitions { store, now: BEGAN, status: None }.settle(rows, false))
                .unwrap();
        };
        settle(&mut store, &failed);
        for (n, event) in events.iter().enumerate().skip(1) {
            deliver(&mut store, std::slice::from_ref(event), days(n as u64));
        }
        let mut give_up = |limit| store.transaction(|store| expiry.give_up_oldest(store, limit)).unwrap();
        assert_eq!([3, 3].map(&mut give_up), [3, 3]);
        let since = meta::get::<i64>(&store.db.conn, IDS_REMEMBERED_SINCE).unwrap();
        assert_eq!(since, Some(days(6).0));
        let known: Vec<bool> = events
            .iter()
            .map(|event| !is_new(&append(&mut store, std::slice::from_ref(event), days(11))))
            .collect();
        assert_eq!(known, [true, false, false, false, false, false, false, true, true, true]);
        let left = Counts::read(&store.db.conn).unwrap();
        assert_eq!((left.of(State::Failed), left.of(State::Delivered), left.of(State::Pending)), (1, 3, 6));
        let mut give_up = |limit| store.transaction(|store| expiry.give_up_oldest(store, limit)).unwrap();
        assert_eq!([9, 9, 9].map(&mut give_up), [3, 0, 0]);
    }

    #[test]
    fn skipped_events_beyond_their_share_are_given_up_before_any_delivered_one() {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, mut expiry) = (fixture::store(dir.path()), Expiry::default());
        store.retention.config.max_bytes = 4 * SKIPPED_SHARE * SKIPPED_BYTES;
        deliver(&mut store, &[numbered_event(0), numbered_event(1)], BEGAN);
        let skip = |n| NewEvent {
            disposition: Disposition::Skip(Reason::new(Code::NoMapping, "")),
            ..numbered_event(n)
        };
        append(&mut store, &(2..12).map(skip).collect::<Vec<_>>(), days(1));
        let mut give_up = |limit| store.transaction(|store| expiry.give_up_oldest(store, limit)).unwrap();
        assert_eq!([4, 4].map(&mut give_up), [4, 2]);
        let left = Counts::read(&store.db.conn).unwrap();
        assert_eq!((left.of(State::Delivered), left.of(State::Skipped)), (2, 4));
        // Within the share, the oldest go first, whatever they are.
        let mut give_up = |limit| store.transaction(|store| expiry.give_up_oldest(store, limit)).unwrap();
        assert_eq!(give_up(3), 3);
        let left = Counts::read(&store.db.conn).unwrap();
        assert_eq!((left.of(State::Delivered), left.of(State::Skipped)), (0, 3));
    }

    #[test]
    fn a_number_is_not_used_again_when_all_events_have_expired_and_the_totals_stay() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = fixture::store(dir.path());
        deliver(&mut store, &[numbered_event(0), numbered_event(1)], BEGAN);
        let next = store.next_seq;
        assert_eq!(expire(&mut store, &mut Expiry::default(), days(40)), 2);
        let counts = Counts::read(&store.db.conn).unwrap();
        fixture::assert_balanced(&counts);
        assert_eq!((counts.totals.created, counts.of(State::Delivered)), (2, 0), "the totals do not expire");
        drop(store);
        let mut store = fixture::store(dir.path());
        store.transaction(|_| Ok(())).unwrap();
        assert_eq!(store.next_seq, next);
    }
}

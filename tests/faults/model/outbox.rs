//! The outbox as others read it, and what must hold of it at any moment: its tables with one another, and its states with
//! those before. The model is the one reader of its tables outside `src/outbox`, as only a crash at any moment tries them.

use super::Checked;
use koala_agent::outbox::State;
use koala_agent::reason::Code;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use rusqlite::{Connection, OpenFlags};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

#[derive(Debug)]
pub struct Row {
    pub state: State,
    pub code: Option<Code>,
    /// While it is kept.
    pub body: Option<String>,
}

/// One moment of the outbox.
#[derive(Debug)]
pub struct Outbox {
    /// The rows by messageId.
    pub rows: BTreeMap<String, Row>,
    pub duplicates: u64,
    /// The inodes of the files of which the outbox has noted how far they are read.
    pub noted_files: Vec<u64>,
}

impl Outbox {
    /// Reads it, and holds its counters against its rows.
    pub fn read(path: &Path) -> Result<Outbox, TestCaseError> {
        let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        db.busy_timeout(Duration::from_secs(5)).unwrap();
        // All that follows is read from one snapshot.
        db.execute_batch("BEGIN").unwrap();
        let rows = rows(&db)?;
        let number = |sql: &str| db.query_row(sql, [], |r| r.get::<_, i64>(0)).unwrap() as u64;
        let counters = counted(
            &db,
            "SELECT name, code, value FROM counters WHERE value > 0 AND destination = 0 AND name NOT IN ('owner', 'kept')",
        );
        let balance = "SELECT coalesce(sum(CASE WHEN name IN ('created', 'requeued') THEN value
                                                WHEN name = 'pending' OR name LIKE 'settled%' THEN -value END), 0)
                         FROM counters";
        prop_assert_eq!(number(balance), 0, "what came in is pending or settled");
        let bytes_counted =
            counted(&db, "SELECT '', code, value FROM counters WHERE value > 0 AND name = 'owner'");
        let bytes = counted(
            &db,
            "SELECT '', coalesce(CAST(owner AS TEXT), ''), sum(bytes) FROM queue GROUP BY owner",
        );
        prop_assert_eq!(&bytes_counted, &bytes, "the counted bytes of each owner and the rows");
        let mut counted_rows: BTreeMap<(String, String), u64> = BTreeMap::new();
        let mut by_state: BTreeMap<(String, String), u64> = BTreeMap::new();
        for row in rows.values() {
            let state = row.state.as_str().to_owned();
            // The last answer to a pending event is not counted.
            let code = row.code.filter(|_| row.state != State::Pending).map_or("", Code::as_str);
            *counted_rows.entry((state.clone(), code.to_owned())).or_default() += 1;
            *by_state.entry((state, String::new())).or_default() += 1;
        }
        let duplicates = counters.get(&("duplicate".to_owned(), String::new())).copied().unwrap_or(0);
        let of_rows: BTreeMap<_, _> =
            counters.into_iter().filter(|((state, _), _)| state != "duplicate").collect();
        prop_assert_eq!(&of_rows, &counted_rows, "the counters and the rows");
        let status = counted(&db, "SELECT state, '', events FROM outbox_status WHERE events > 0");
        prop_assert_eq!(&status, &by_state, "outbox_status and outbox_events");
        let strays = "SELECT (SELECT count(*) FROM attempts WHERE seq NOT IN (SELECT seq FROM events))
                           + (SELECT count(*) FROM items WHERE seq NOT IN (SELECT seq FROM events))
                           + (SELECT count(*) FROM bodies WHERE seq NOT IN (SELECT seq FROM events))
                           + (SELECT count(*) FROM settled WHERE seq NOT IN (SELECT seq FROM events))
                           + (SELECT count(*) FROM queue WHERE coalesce(seq, id) NOT IN (SELECT seq FROM events))
                           + (SELECT count(*) FROM queue WHERE coalesce(seq, id) NOT IN (SELECT seq FROM bodies))
                           + (SELECT count(*) FROM queue WHERE coalesce(seq, id) IN (SELECT seq FROM settled))";
        prop_assert_eq!(number(strays), 0, "rows of no event, and events both waiting and settled");
        let rootless = "SELECT count(*) FROM events WHERE seq NOT IN (SELECT seq FROM settled)
                           AND seq NOT IN (SELECT coalesce(seq, id) FROM queue)";
        prop_assert_eq!(number(rootless), 0, "events neither waiting nor settled");
        let bodies = "SELECT count(*) FROM settled s LEFT JOIN bodies b ON b.seq = s.seq
                       WHERE s.body_bytes <> coalesce(octet_length(b.body), 0)";
        prop_assert_eq!(number(bodies), 0, "the noted length of each body that is kept");
        let mut noted = db.prepare("SELECT inode FROM spool_files").unwrap();
        let inodes = noted.query_map([], |row| row.get::<_, i64>(0)).unwrap();
        let noted_files = inodes.map(|inode| inode.unwrap() as u64).collect();
        Ok(Outbox { rows, duplicates, noted_files })
    }

    pub fn pending_ids(&self) -> BTreeSet<&str> {
        let pending = self.rows.iter().filter(|(_, row)| row.state == State::Pending);
        pending.map(|(id, _)| id.as_str()).collect()
    }

    pub fn pending(&self) -> usize {
        self.rows.values().filter(|row| row.state == State::Pending).count()
    }

    /// Each event has come along legal arrows from its state before: one, or two over `pending` for those that
    /// were put back by hand meanwhile. None is gone but those that were erased.
    pub fn follows(
        &self,
        before: &Outbox,
        put_back: &BTreeSet<String>,
        is_erased: impl Fn(&str) -> bool,
    ) -> Checked {
        for (id, was) in &before.rows {
            let Some(is) = self.rows.get(id) else {
                if is_erased(id) {
                    continue;
                }
                return Err(TestCaseError::fail(format!("{id} was {:?} and is gone", was.state)));
            };
            let straight = was.state == is.state || was.state.may_become(is.state);
            let by_hand = put_back.contains(id)
                && was.state.may_become(State::Pending)
                && State::Pending.may_become(is.state);
            prop_assert!(straight || by_hand, "{} was {:?} and is {:?}", id, was.state, is.state);
        }
        Ok(())
    }
}

fn rows(db: &Connection) -> Result<BTreeMap<String, Row>, TestCaseError> {
    let sql = "SELECT e.message_id, e.state, e.reason_code, b.body
                 FROM outbox_events e LEFT JOIN bodies b ON b.seq = e.seq";
    let mut statement = db.prepare(sql).unwrap();
    let mut found = statement.query([]).unwrap();
    let mut rows = BTreeMap::new();
    while let Some(row) = found.next().unwrap() {
        let (id, state, code): (String, String, Option<String>) =
            (row.get(0).unwrap(), row.get(1).unwrap(), row.get(2).unwrap());
        let state = State::parse(&state).unwrap();
        let code = code.map(|code| Code::parse(&code).unwrap());
        let row = Row { state, code, body: row.get(3).unwrap() };
        prop_assert!(rows.insert(id.clone(), row).is_none(), "{} stands there twice", id);
    }
    Ok(rows)
}

fn counted(db: &Connection, sql: &str) -> BTreeMap<(String, String), u64> {
    let mut statement = db.prepare(sql).unwrap();
    let rows = statement.query_map([], |r| Ok(((r.get(0)?, r.get(1)?), r.get::<_, i64>(2)? as u64))).unwrap();
    rows.map(Result::unwrap).collect()
}

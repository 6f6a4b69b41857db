//! Line 10: the database that is damaged, and what must be left of it.
//!
//! The rows that must survive are not those that the agent says it could read, but those that SQLite reads, one by one,
//! from a copy of the damaged files, and beyond that every row on a page that was not damaged.

use super::damage::{After, Damage, Then};
use super::{Contents, contents, copy_files, held, new_place, said, supervise, tail, until};
use crate::common::agent::TestAgent;
use crate::common::ledger::{Dropped, Ledger, numbers};
use crate::runner::Figures;
use fastrand::Rng;
use koala_agent::receiver::Faults;
use rusqlite::{Connection, OpenFlags};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const PAGE: usize = 4_096;
/// The agent runs within this, whatever has become of its database.
const IN_TIME: Duration = Duration::from_secs(50);

/// The database's file in a folder, or one that stands beside it.
pub fn beside(state: &Path, suffix: &str) -> PathBuf {
    state.join(format!("outbox.db{suffix}"))
}

/// A row of the undamaged database.
struct Row {
    n: u64,
    seq: i64,
    state: String,
    message_id: String,
    /// While it is kept.
    body: Option<String>,
}

/// An agent whose database is damaged, and replaced by a fresh copy, again and again.
pub struct DamageRounds {
    agent: TestAgent,
    /// The database of an agent that was stopped.
    stopped: Template,
    /// The database of an agent that was killed, with commits in the log.
    killed: Template,
    rows: Vec<Row>,
    /// The events that were dropped when the copies were made.
    dropped: BTreeMap<u64, Dropped>,
    /// The texts of some delivered events that their producer gave an id, by their numbers.
    delivered: BTreeMap<u64, String>,
}

impl DamageRounds {
    const DELIVERED: u64 = 90;
    const FAILED: u64 = 3;
    const PENDING: u64 = 240;

    /// A real run: some events delivered, some failed, some pending.
    pub fn new() -> DamageRounds {
        let mut agent = new_place(Faults::default());
        agent.start();
        let mut delivered = BTreeMap::new();
        let mut text = String::new();
        for n in 0..Self::DELIVERED {
            let event = agent.ledger.event(n % 30);
            text += &(event.clone() + "\n");
            if agent.ledger.dropped[&n].id.is_some() {
                delivered.insert(n, event);
            }
        }
        agent.drop_next("ndjson", text.as_bytes());
        for n in 0..Self::FAILED {
            let event = agent.ledger.event_with(100 + n, &format!("nameless-{n}"), "");
            // A track without a name: no request can be made of it.
            let event = event.replace(r#""event":"Signed Up","#, "");
            agent.drop_next("json", event.as_bytes());
        }
        agent.until_status("some delivered, some failed", |status| {
            (status.outbox.delivered, status.outbox.failed) == (Self::DELIVERED, Self::FAILED)
        });
        let mut known: BTreeMap<String, u64> = BTreeMap::new();
        for held in agent.receiver.events() {
            known.insert(held.message_id.to_string(), numbers(held.item.get().as_bytes())[0]);
        }
        agent.receiver.set_faults(Faults { offline: true, ..Faults::default() });
        agent.stop();
        // This reader keeps all later commits in the log.
        agent.start();
        agent.until_status("it runs", |status| status.agent.running);
        let reader = agent.database();
        reader.execute_batch("BEGIN; SELECT count(*) FROM queue").unwrap();
        for _ in 0..Self::PENDING / 60 {
            agent.drop_lines(60, 40);
        }
        agent.until_status("the rest is pending", |status| status.outbox.pending == Self::PENDING);
        agent.until_status("the rest is taken", |status| status.spool.waiting_files == Some(0));
        agent.kill();
        drop(reader);
        let state = agent.state();
        let (stopped, killed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        copy_files(&state, killed.path());
        let log = fs::metadata(beside(&state, "-wal")).unwrap().len();
        assert!(log > 20 * PAGE as u64, "only {log} bytes of commits in the log");
        agent.start();
        agent.until_status("it runs again", |status| status.agent.running);
        agent.stop();
        copy_files(&state, stopped.path());
        let rows = rows(&agent, &known);
        let (stopped, killed) = (Template::of(stopped, &rows), Template::of(killed, &rows));
        let dropped = agent.ledger.dropped.clone();
        DamageRounds { agent, stopped, killed, rows, dropped, delivered }
    }

    fn template(&self, after: After) -> &Template {
        match after {
            After::Stop => &self.stopped,
            After::Kill => &self.killed,
        }
    }

    /// Pages of the database's file, without its log.
    pub fn pages(&self, after: After) -> u64 {
        fs::metadata(beside(self.template(after).folder.path(), "")).unwrap().len() / PAGE as u64
    }

    /// One damage, from the strike to the balance.
    pub fn round(&mut self, damage: &Damage, rng: &mut Rng) -> Figures {
        self.round_after(damage, rng, |_| true).expect("nothing stops it")
    }

    /// Like [`DamageRounds::round`], after `before` was done with the damaged database; `None` if that returns false.
    pub fn round_after(
        &mut self,
        damage: &Damage,
        rng: &mut Rng,
        before: impl FnOnce(&mut TestAgent) -> bool,
    ) -> Option<Figures> {
        let name = &damage.name;
        self.restore(damage.after);
        let state = self.agent.state();
        (damage.strike)(&state, rng);
        let readable = readable(&state, &self.rows, self.template(damage.after));
        let struck = contents(&state);
        self.commands_answer();

        for n in 0..10 {
            let new = self.agent.ledger.event(n);
            self.agent.drop_next("json", new.as_bytes());
        }
        let log_start = self.agent.log().len();
        if let Then::Refuses(codes, fix) = damage.then {
            self.refuses(codes);
            fix(&state);
        }
        if !before(&mut self.agent) {
            return None;
        }
        let ran = supervise(&mut self.agent);
        assert!(ran.is_ok_and(|took| took < IN_TIME), "{ran:?}\n{}", tail(&self.agent.log()[log_start..]));

        let whole = readable.sound && readable.rows.len() == self.rows.len();
        let left = |row: &&Row| readable.rows.contains(&row.seq) && !matches!(damage.then, Then::Refuses(..));
        let left: BTreeMap<u64, &Row> = self.rows.iter().filter(left).map(|row| (row.n, row)).collect();
        let in_state = |state: &str| -> BTreeSet<u64> {
            left.values().filter(|row| row.state == state).map(|row| row.n).collect()
        };
        let (delivered, failed) = (in_state("delivered"), in_state("failed"));
        // The receiver has forgotten all that was delivered.
        let excused = self.rows.iter().filter(|row| row.state == "delivered" || !left.contains_key(&row.n));
        self.agent.ledger.destroyed = excused.map(|row| row.n).collect();
        // An event that is known to be delivered is not sent again when it is dropped again.
        for (_, again) in self.delivered.iter().filter(|(n, _)| delivered.contains(n)).take(5) {
            self.agent.drop_next("json", again.as_bytes());
        }
        let all = self.agent.ledger.dropped.keys();
        let wanted = |n: &&u64| !self.agent.ledger.destroyed.contains(n) && !failed.contains(n);
        let wanted: BTreeSet<u64> = all.filter(wanted).copied().collect();
        until(&mut self.agent, "all that was readable delivered", |agent| wanted.is_subset(&held(agent)));
        until(&mut self.agent, "all acknowledged", |agent| {
            let status = agent.status();
            status.outbox.pending == 0 && status.spool.waiting_files == Some(0)
        });
        let held = held(&self.agent);
        let again: Vec<_> = held.iter().filter(|n| delivered.contains(n) || failed.contains(n)).collect();
        assert!(again.is_empty(), "sent, though it was settled: {again:?}");
        if !whole && matches!(damage.then, Then::Runs) {
            self.is_told(log_start, &struck, readable.sound);
        }
        self.agent.stop();
        let figures = self.agent.balance();
        let notes = figures.notes.iter().map(|note| format!("{name}: {note}")).collect();
        let figures = Figures { notes, ..figures };
        let rows = self.rows.len() - readable.rows.len();
        let is_kept = rows == 0 || matches!(damage.then, Then::Refuses(..));
        let note = || format!("{name}: {rows} of {} rows destroyed", self.rows.len());
        Some(if is_kept { figures } else { figures.note(note()) })
    }

    /// The undamaged database, and a receiver that knows nothing; also after a round that has failed.
    fn restore(&mut self, after: After) {
        if self.agent.exit_status().is_none() && self.agent.is_started() {
            self.agent.kill();
        }
        for name in ["state", "spool"] {
            let folder = self.agent.path(name);
            let _ = fs::remove_dir_all(&folder);
            fs::create_dir(folder).unwrap();
        }
        copy_files(self.template(after).folder.path(), &self.agent.state());
        self.agent.ledger = Ledger { dropped: self.dropped.clone(), ..Ledger::default() };
        self.agent.receiver.clear();
        self.agent.receiver.set_faults(Faults::default());
    }

    /// The commands on a damaged database of no agent: an answer or a clear error, and no file is changed.
    fn commands_answer(&self) {
        let agent = &self.agent;
        let state = agent.state();
        let before = contents(&state);
        let status = agent.command("status").arg("--json").output().unwrap();
        said(&status);
        assert!(status.status.success(), "status: {}", said(&status));
        for command in [&["list"][..], &["show", "event-1"], &["check", "--offline"]] {
            let output = agent.command(command[0]).args(&command[1..]).output().unwrap();
            let said = said(&output);
            assert!(output.status.success() || said.contains("outbox"), "{command:?}: {said}");
        }
        assert!(before == contents(&state), "a command has changed the database");
    }

    /// The agent ends with one of these codes, names the file, and has changed nothing.
    fn refuses(&mut self, codes: &[i32]) {
        let state = self.agent.state();
        let (before, log_start) = (contents(&state), self.agent.log().len());
        let requests = self.agent.receiver.stats().requests;
        self.agent.start();
        let ended = self.agent.wait_for_exit();
        let log = self.agent.log()[log_start..].to_owned();
        assert!(ended.code().is_some_and(|code| codes.contains(&code)), "{ended}\n{log}");
        assert!(log.contains("outbox.db"), "{log}");
        assert!(before == contents(&state), "it has changed what it refuses");
        assert_eq!(self.agent.receiver.stats().requests, requests);
    }

    /// The damage is told in the log and in `status`; files that SQLite cannot read are kept as they were struck, and
    /// what was read of them is counted.
    fn is_told(&self, log_start: usize, struck: &Contents, sound: bool) {
        let incident = self.agent.status().outbox.incident.expect("not told in status");
        let log = &self.agent.log()[log_start..];
        let warned = |line: &str| line.contains(" warning ") && line.contains(&incident.text);
        assert!(log.lines().any(warned), "not told in the log: {}\n{}", incident.text, tail(log));
        let text = said(&self.agent.command("status").output().unwrap());
        assert!(text.contains("incident"), "{text}");
        let Some(files) = incident.files else {
            return assert!(sound, "no files are kept: {}", incident.text);
        };
        assert!(incident.text.contains("events were read"), "{}", incident.text);
        let name = files.file_name().unwrap().to_string_lossy().into_owned();
        assert!(name.starts_with("outbox.db.damaged-"), "{name}");
        // Where SQLite sees nothing, the agent has written before it did.
        for (struck, content) in struck.iter().filter(|_| !sound) {
            let kept = files.with_file_name(struck.replace("outbox.db", &name));
            assert!(fs::read(&kept).unwrap() == *content, "{} is not as it was found\n{log}", kept.display());
        }
    }
}

/// All rows of an undamaged database.
fn rows(agent: &TestAgent, known: &BTreeMap<String, u64>) -> Vec<Row> {
    let outbox = agent.database();
    let sql = "SELECT e.seq, coalesce(s.state, 'pending'), e.message_id, b.body
                 FROM events e LEFT JOIN settled s ON s.seq = e.seq LEFT JOIN bodies b ON b.seq = e.seq";
    let mut statement = outbox.prepare(sql).unwrap();
    let row = |r: &rusqlite::Row<'_>| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?));
    let rows: Vec<(i64, String, String, Option<String>)> =
        statement.query_map([], row).unwrap().map(Result::unwrap).collect();
    assert_eq!(rows.len() as u64, DamageRounds::DELIVERED + DamageRounds::FAILED + DamageRounds::PENDING);
    rows.into_iter()
        .map(|(seq, state, message_id, body)| {
            let n = body.as_ref().map_or_else(|| known[&message_id], |body| numbers(body.as_bytes())[0]);
            Row { n, seq, state, message_id, body }
        })
        .collect()
}

/// The rows of a damaged database that can be read.
struct Readable {
    /// SQLite finds no fault.
    sound: bool,
    /// Rows that are as they were, by their `seq`.
    rows: BTreeSet<i64>,
}

/// Reads what SQLite can row by row, and adds the rows on pages that were not damaged.
fn readable(state: &Path, rows: &[Row], undamaged: &Template) -> Readable {
    let copy = tempfile::tempdir().unwrap();
    let elsewhere = state.join("elsewhere");
    copy_files(if elsewhere.exists() { &elsewhere } else { state }, copy.path());
    let read = |suffix| fs::read(beside(copy.path(), suffix)).unwrap_or_default();
    let (main, log) = (read(""), read("-wal"));
    let untouched = |row: &&Row| undamaged.pages[&row.seq].iter().all(|n| undamaged.has(*n, &main, &log));
    let mut left: BTreeSet<i64> = rows.iter().filter(untouched).map(|row| row.seq).collect();
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE;
    let Ok(conn) = Connection::open_with_flags(beside(copy.path(), ""), flags) else {
        return Readable { sound: false, rows: left };
    };
    let check = conn.query_row("PRAGMA quick_check", [], |r| r.get::<_, String>(0));
    let reads = |row: &&Row| {
        let sql = match (row.state.as_str(), &row.body) {
            ("pending", _) => {
                "SELECT 'pending', e.message_id, b.body
                   FROM queue q JOIN events e ON e.seq = q.id JOIN bodies b ON b.seq = q.id WHERE q.id = ?"
            }
            (_, None) => {
                "SELECT s.state, e.message_id, NULL FROM settled s JOIN events e ON e.seq = s.seq WHERE s.seq = ?"
            }
            (_, Some(_)) => {
                "SELECT s.state, e.message_id, b.body
                   FROM settled s JOIN events e ON e.seq = s.seq JOIN bodies b ON b.seq = s.seq WHERE s.seq = ?"
            }
        };
        let found = conn.query_row(sql, [row.seq], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)));
        found.is_ok_and(|found: (String, String, Option<String>)| {
            found == (row.state.clone(), row.message_id.clone(), row.body.clone())
        })
    };
    left.extend(rows.iter().filter(reads).map(|row| row.seq));
    Readable { sound: check.is_ok_and(|said| said == "ok"), rows: left }
}

/// The files of an undamaged database.
struct Template {
    folder: tempfile::TempDir,
    log: Vec<u8>,
    /// All pages, as they are when the log is laid over the database.
    image: Vec<u8>,
    /// The pages that a row stands on, by its `seq`.
    pages: BTreeMap<i64, Vec<usize>>,
}

impl Template {
    fn of(folder: tempfile::TempDir, rows: &[Row]) -> Template {
        let log = fs::read(beside(folder.path(), "-wal")).unwrap_or_default();
        let copy = tempfile::tempdir().unwrap();
        copy_files(folder.path(), copy.path());
        let conn = Connection::open(beside(copy.path(), "")).unwrap();
        conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        let image = fs::read(beside(copy.path(), "")).unwrap();
        // The pages of a table, each by the rows on it.
        let leaves = |table: &str| -> BTreeMap<i64, usize> {
            let sql = "SELECT pageno FROM dbstat WHERE name = ? AND pagetype = 'leaf'";
            let mut leaves = conn.prepare(sql).unwrap();
            let leaves = leaves.query_map([table], |row| row.get::<_, u32>(0)).unwrap();
            let on_page =
                |n: usize| row_numbers(page(&image, n).unwrap()).into_iter().map(move |row| (row, n));
            leaves.flat_map(|n| on_page(n.unwrap() as usize)).collect()
        };
        let [events, settled, bodies] = ["events", "settled", "bodies"].map(leaves);
        // A row of the queue that is lost is made anew of those of the event and its body.
        let places = |row: &Row| -> Vec<usize> {
            let tables = [
                Some(&events),
                (row.state != "pending").then_some(&settled),
                row.body.as_ref().map(|_| &bodies),
            ];
            tables.into_iter().flatten().map(|table| table[&row.seq]).collect()
        };
        let pages = rows.iter().map(|row| (row.seq, places(row))).collect();
        Template { folder, log, image, pages }
    }

    /// Whether struck files have that page as it was.
    fn has(&self, n: usize, main: &[u8], log: &[u8]) -> bool {
        let wanted = page(&self.image, n);
        // SQLite believes nothing in a log after the first wrong byte.
        let in_log = || log == self.log && memchr::memmem::find(log, wanted.unwrap()).is_some();
        page(main, n) == wanted || in_log()
    }
}

/// The numbers of the rows on a leaf of a table.
fn row_numbers(leaf: &[u8]) -> Vec<i64> {
    let cells = usize::from(u16::from_be_bytes([leaf[3], leaf[4]]));
    let at = |cell: usize| usize::from(u16::from_be_bytes([leaf[8 + 2 * cell], leaf[9 + 2 * cell]]));
    // Of a cell, the first number is the length of the row, the second its number: seven bits a byte.
    let number = |from: &mut usize| {
        let mut number = 0;
        loop {
            let byte = leaf[*from];
            *from += 1;
            number = number << 7 | i64::from(byte & 0x7f);
            if byte < 0x80 {
                return number;
            }
        }
    };
    let row = |cell| {
        let mut from = at(cell);
        number(&mut from);
        number(&mut from)
    };
    (0..cells).map(row).collect()
}

/// A page, by its number from 1.
fn page(file: &[u8], n: usize) -> Option<&[u8]> {
    file.get((n - 1) * PAGE..n * PAGE)
}

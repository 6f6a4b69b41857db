//! The asker's side of a command: it inserts a row, holds a lock for as long as it waits, and wakes the agent.
//!
//! The lock tells the agent that somebody waits for the result. It stands on the byte of the command's number in a file of
//! its own, and the kernel releases it with the process, however that ends. A pid with the start of its process would name
//! another process in a container of its own, and a row that the asker refreshes would be a commit a second. The lock is one
//! of the open file (OFD), not of the process, so that asker and agent may also live in one process.
//!
//! A write to that file wakes the agent, which watches it: an idle agent need not look for commands every second. Where the
//! system does not watch, the agent's next look finds the row.

use super::OutboxError;
use super::acts::Asker;
use super::commands::{Command, Commands, OpenCommand, Progress};
use super::files::with_suffix;
use super::lock::real_path;
use super::open_files::Place;
use super::reader::Reader;
use super::store::Store;
use super::tables::Tables;
use crate::clock::Timestamp;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use rusqlite::{Transaction, TransactionBehavior};
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Only the agent's user asks.
const MODE: u32 = 0o600;

/// A command that this process waits for.
pub struct AskedCommand {
    store: Store,
    id: i64,
    /// Holds the lock.
    _lock: File,
}

impl AskedCommand {
    /// Asks the process that owns the outbox. When this returns `Ok`, the command is on the disk.
    ///
    /// # Errors
    /// As [`Reader::open`], and SQLite's; then nothing is asked.
    pub fn ask(
        outbox: &Path,
        command: &Command,
        asker: &Asker,
        now: Timestamp,
    ) -> Result<AskedCommand, OutboxError> {
        let outbox = real_path(outbox);
        // Opening for writing would create a missing one.
        drop(Reader::open_in_process(&outbox)?);
        // The schema is its owner's, which may be of another version.
        let store = Store::open_as_it_is(&outbox)?;
        let lock = open(&outbox)?;
        let path = lock_path(&outbox);
        let insert = || {
            let transaction = Transaction::new_unchecked(&store.conn, TransactionBehavior::Immediate)?;
            let id = Commands(&transaction).insert(asker, command, now)?;
            Ok((id, transaction))
        };
        let asked = |e| store.error("ask for a change", e);
        let (id, transaction) = insert().map_err(asked)?;
        // Before anybody sees the row.
        fcntl(&lock, FcntlArg::F_OFD_SETLK(&byte(id, libc::F_WRLCK)))
            .map_err(|e: Errno| OutboxError::io(&path, "hold a command", &e.into()))?;
        transaction.commit().map_err(asked)?;
        // Without it the agent finds the row at its next look.
        let _ = lock.write_at(b"\n", 0);
        Ok(AskedCommand { store, id, _lock: lock })
    }

    /// The command's number.
    pub fn id(&self) -> i64 {
        self.id
    }

    /// What has become of the command.
    ///
    /// # Errors
    /// SQLite's, and the system's.
    pub fn progress(&self) -> Result<Progress, OutboxError> {
        let progress = Commands(&self.store.conn).progress(self.id);
        let progress = progress.map_err(|e| self.store.error("look for the result of a command", e))?;
        // A result holds wherever it is found. All else is of files that nobody writes any more, if others are at their path.
        if matches!(progress, Progress::Finished(_)) {
            return Ok(progress);
        }
        let (places, _) = self.store.files.places(&self.store.path)?;
        Ok(if places == [Place::Same; 3] { progress } else { Progress::Replaced })
    }

    /// Takes the command back, unless it has been claimed. Returns whether it has: then nothing was changed, and nothing
    /// ever is.
    ///
    /// # Errors
    /// SQLite's; then that is not known.
    pub fn withdraw(&self) -> Result<bool, OutboxError> {
        let withdrawn = Commands(&self.store.conn).withdraw(self.id);
        withdrawn.map_err(|e| self.store.error("withdraw a command", e))
    }
}

/// The commands that stand in the table, with whether anybody waits for each.
///
/// # Errors
/// SQLite's.
pub fn open_commands(reader: &Reader) -> Result<Vec<(OpenCommand, bool)>, OutboxError> {
    let open = Commands(reader.connection()).open();
    let open = open.map_err(|e| reader.error("look for commands", e))?;
    Ok(open.into_iter().map(|command| (command, is_awaited(reader.path(), command.id))).collect())
}

/// Deletes the commands that nobody waits for, in a transaction of its own. To be called by the one who owns the outbox,
/// before any command is claimed. Returns whether any was claimed and not finished: by one who is gone.
///
/// # Errors
/// SQLite's.
pub(super) fn drop_unawaited(tables: &mut Tables) -> Result<bool, OutboxError> {
    let path = &tables.store.path;
    let read = |e| tables.store.error("look for commands", e);
    let open = Commands(&tables.store.conn).open().map_err(read)?;
    let was_amid = open.iter().any(|command| command.is_claimed && !command.is_finished);
    let gone: Vec<i64> = open.iter().map(|command| command.id).filter(|id| !is_awaited(path, *id)).collect();
    if !gone.is_empty() {
        tables.transaction(|tables| Commands(&tables.store.conn).drop(&gone))?;
    }
    Ok(was_amid)
}

/// Whether any command stands in the table.
///
/// # Errors
/// SQLite's.
pub fn has_commands(reader: &Reader) -> Result<bool, OutboxError> {
    Commands(reader.connection()).are_there().map_err(|e| reader.error("look for commands", e))
}

/// Whether the asker of that command still waits for it. What cannot be found out is taken for yes.
fn is_awaited(outbox: &Path, id: i64) -> bool {
    let file = match File::open(lock_path(outbox)) {
        Ok(file) => file,
        Err(e) => return e.kind() != ErrorKind::NotFound,
    };
    let mut probe = byte(id, libc::F_WRLCK);
    match fcntl(&file, FcntlArg::F_OFD_GETLK(&mut probe)) {
        Ok(_) => i32::from(probe.l_type) != libc::F_UNLCK,
        Err(_) => true,
    }
}

/// Wakes whenever somebody has asked for something, for as long as it lives.
pub struct CommandWatch(Option<RecommendedWatcher>);

impl CommandWatch {
    /// Calls `wake` from another thread. Where the system cannot watch, it never does.
    pub fn start(outbox: &Path, wake: impl Fn() + Send + 'static) -> CommandWatch {
        let outbox = real_path(outbox);
        let handler = move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|event| matches!(event.kind, EventKind::Modify(_))) {
                wake();
            }
        };
        let watching = open(&outbox).ok().and_then(|_| {
            let mut watcher = notify::recommended_watcher(handler).ok()?;
            watcher.watch(&lock_path(&outbox), RecursiveMode::NonRecursive).ok()?;
            Some(watcher)
        });
        if watching.is_none() {
            tracing::debug!("the system does not watch {}", lock_path(&outbox).display());
        }
        CommandWatch(watching)
    }

    /// Whether the system watches.
    pub fn is_watching(&self) -> bool {
        self.0.is_some()
    }
}

fn lock_path(outbox: &Path) -> PathBuf {
    with_suffix(outbox, ".commands")
}

fn open(outbox: &Path) -> Result<File, OutboxError> {
    let path = lock_path(outbox);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(MODE);
    options.open(&path).map_err(|e| OutboxError::io(&path, "open the file of commands", &e))
}

/// One byte of the file, locked so.
fn byte(n: i64, kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: n,
        l_len: 1,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::outbox::fixture::{config, event};
    use crate::outbox::{Applied, Change, ClaimedCommand, EventOutcome, EventReport, Outbox, Report, Work};
    use std::sync::mpsc::channel;
    use std::time::Duration;

    const NOW: Timestamp = Timestamp(1_800_000_000_000);

    fn ask(outbox: &Outbox, id: &str) -> AskedCommand {
        let asker = Asker { uid: 0, user: Some("root".to_owned()), sudo: Some("ana".to_owned()) };
        AskedCommand::ask(outbox.path(), &Command::Discard(vec![id.to_owned()]), &asker, NOW).unwrap()
    }

    fn change(outbox: &Outbox, work: Work, of: Option<ClaimedCommand>, is_last: bool) -> Applied {
        outbox.writer.change(Change { work, of, is_last }).block().unwrap()
    }

    fn claim(outbox: &Outbox, asked: &AskedCommand) -> Option<ClaimedCommand> {
        match change(outbox, Work::Claim(asked.id()), None, false) {
            Applied::Claimed(claimed) => claimed.map(|command| *command),
            other => panic!("{other:?}"),
        }
    }

    /// Whether each command in the table is awaited.
    fn awaited(outbox: &Outbox) -> Vec<bool> {
        let reader = Reader::open_in_process(outbox.path()).unwrap();
        open_commands(&reader).unwrap().into_iter().map(|(_, is_awaited)| is_awaited).collect()
    }

    #[test]
    fn a_command_is_either_withdrawn_or_claimed() {
        let dir = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(&config(dir.path()), Clock::system()).unwrap();
        let (one, two) = (ask(&outbox, "a"), ask(&outbox, "b"));
        assert_eq!(
            [one.progress().unwrap(), two.progress().unwrap()],
            [Progress::Waiting, Progress::Waiting]
        );
        assert!(one.withdraw().unwrap());
        assert_eq!((claim(&outbox, &one), one.progress().unwrap()), (None, Progress::Gone));
        let claimed = claim(&outbox, &two).unwrap();
        assert_eq!((&claimed.command, claim(&outbox, &two)), (&Command::Discard(vec!["b".to_owned()]), None));
        assert!(!two.withdraw().unwrap());
        assert_eq!(two.progress().unwrap(), Progress::Claimed);
        // The number of the first is not used again, so that nobody takes another's result for its own.
        assert!(ask(&outbox, "c").id() > two.id());
        outbox.close();
    }

    #[test]
    fn a_command_of_another_version_is_refused_and_the_outbox_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(&config(dir.path()), Clock::system()).unwrap();
        let unknown = [
            ("command", r#"{"shred":["a"]}"#),
            ("command", r#"{"erase":{"person":"x","events":[],"files":[],"within":3}}"#),
            ("report", r#"{"shredded":1}"#),
        ];
        for (column, json) in unknown {
            let asked = ask(&outbox, "a");
            let update = format!("UPDATE commands SET {column} = ? WHERE id = ?");
            asked.store.conn.execute(&update, rusqlite::params![json, asked.id()]).unwrap();
            assert_eq!(claim(&outbox, &asked), None, "{json}");
            let Progress::Finished(Report::Failed { is_transient: false, text }) = asked.progress().unwrap()
            else {
                panic!("{json}: {:?}", asked.progress())
            };
            assert!(text.contains("another version"), "{text}");
        }
        assert!(claim(&outbox, &ask(&outbox, "b")).is_some());
        outbox.close();
    }

    #[test]
    fn to_ask_leaves_the_schema_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("outbox.db");
        let conn = rusqlite::Connection::open(&path).unwrap();
        conn.execute_batch("PRAGMA journal_mode = WAL; VACUUM").unwrap();
        let asker = Asker { uid: 0, user: None, sudo: None };
        assert!(AskedCommand::ask(&path, &Command::Discard(Vec::new()), &asker, NOW).is_err());
        let tables: i64 = conn.query_row("SELECT count(*) FROM sqlite_schema", [], |r| r.get(0)).unwrap();
        assert_eq!(tables, 0);
    }

    #[test]
    fn an_asker_notices_that_the_outbox_is_another_one_now() {
        let dir = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(&config(dir.path()), Clock::system()).unwrap();
        let (claimed, finished) = (ask(&outbox, "a"), ask(&outbox, "b"));
        claim(&outbox, &claimed).unwrap();
        let command = claim(&outbox, &finished);
        change(&outbox, Work::Nothing, command, true);
        let path = outbox.path();
        std::fs::rename(path, path.with_extension("old")).unwrap();
        assert_eq!(claimed.progress().unwrap(), Progress::Replaced);
        std::fs::copy(path.with_extension("old"), path).unwrap();
        assert_eq!(claimed.progress().unwrap(), Progress::Replaced);
        assert!(matches!(finished.progress().unwrap(), Progress::Finished(_)));
        outbox.close();
    }

    #[test]
    fn the_lock_of_an_asker_that_is_gone_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(&config(dir.path()), Clock::system()).unwrap();
        let (one, two) = (ask(&outbox, "a"), ask(&outbox, "b"));
        assert_eq!(awaited(&outbox), [true, true]);
        drop(one);
        assert_eq!(awaited(&outbox), [false, true]);
        drop(two);
        assert_eq!(awaited(&outbox), [false, false]);
        outbox.close();
    }

    #[test]
    fn an_asker_of_whom_nothing_can_be_found_out_is_taken_to_wait() {
        let dir = tempfile::tempdir().unwrap();
        let outbox = dir.path().join("outbox.db");
        assert!(!is_awaited(&outbox, 1), "nobody has ever asked");
        // It leads to itself, so that nobody can open it, whatever the user.
        std::os::unix::fs::symlink(lock_path(&outbox), lock_path(&outbox)).unwrap();
        assert!(is_awaited(&outbox, 1));
    }

    #[test]
    fn whoever_opens_the_outbox_deletes_what_nobody_waits_for() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let outbox = Outbox::open(&config, Clock::system()).unwrap();
        let asked = ["a", "b", "c", "d"].map(|id| ask(&outbox, id));
        claim(&outbox, &asked[0]).unwrap();
        let finished = claim(&outbox, &asked[1]);
        change(&outbox, Work::Nothing, finished, true);
        let [claimed, finished, asked, waiting] = asked;
        drop((claimed, finished, asked));
        outbox.close();
        let outbox = Outbox::open(&config, Clock::system()).unwrap();
        assert_eq!((awaited(&outbox), waiting.progress().unwrap()), (vec![true], Progress::Waiting));
        outbox.close();
    }

    #[test]
    fn the_change_the_act_and_the_report_are_one_commit_and_another_owner_goes_on_from_it() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let outbox = Outbox::open(&config, Clock::system()).unwrap();
        outbox.writer.append(vec![event("a".to_owned(), "{}".to_owned())], vec![]).block().unwrap();
        let seq =
            Reader::open_in_process(outbox.path()).unwrap().events().show("a").unwrap().unwrap().row.seq;
        let asked = ask(&outbox, "a");
        let mut claimed = claim(&outbox, &asked).unwrap();
        let unknown = EventOutcome::Unknown;
        claimed.report = Report::Events(vec![EventReport {
            message_id: "a".to_owned(),
            seq: Some(seq),
            outcome: unknown,
        }]);
        let none = Vec::new;
        let work =
            Work::Discard { events: vec![seq], waited: vec![seq], unanswered: none(), in_flight: none() };
        change(&outbox, work, Some(claimed), false);
        assert_eq!(asked.progress().unwrap(), Progress::Claimed);
        // The owner is killed: the files are as its commits have left them.
        outbox.close();
        let outbox = Outbox::open(&config, Clock::system()).unwrap();
        change(&outbox, Work::Unclaim, None, false);
        assert!(!asked.withdraw().unwrap(), "a command of which something is done was withdrawn");
        let claimed = claim(&outbox, &asked).unwrap();
        let done = EventOutcome::Discarded { is_unanswered: false };
        let report =
            Report::Events(vec![EventReport { message_id: "a".to_owned(), seq: Some(seq), outcome: done }]);
        assert_eq!(claimed.report, report);
        change(&outbox, Work::Nothing, Some(claimed), true);
        assert_eq!(asked.progress().unwrap(), Progress::Finished(report));
        let acts =
            crate::outbox::Act::on_event(&Reader::open_in_process(outbox.path()).unwrap(), seq).unwrap();
        let [act] = acts.as_slice() else { panic!("{acts:?}") };
        assert_eq!((act.kind.as_str(), act.asker.sudo.as_deref()), ("discard", Some("ana")));
        outbox.close();
    }

    #[test]
    fn the_owner_is_woken_by_a_command_and_by_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(&config(dir.path()), Clock::system()).unwrap();
        let (wake, woken) = channel();
        let watch = CommandWatch::start(outbox.path(), move || _ = wake.send(()));
        if !watch.is_watching() {
            return;
        }
        outbox.writer.append(vec![event("a".to_owned(), "{}".to_owned())], vec![]).block().unwrap();
        drop(awaited(&outbox));
        assert!(woken.recv_timeout(Duration::from_millis(200)).is_err(), "woken for nothing");
        let _asked = ask(&outbox, "a");
        woken.recv_timeout(Duration::from_secs(60)).unwrap();
        outbox.close();
    }
}

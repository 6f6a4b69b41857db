//! The real program on folders of its own.

use super::corpus::File;
use koala_agent::status::Status;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::HashSet;
use std::fs::{self, OpenOptions};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

pub struct Daemon {
    dir: tempfile::TempDir,
    child: Option<Child>,
}

impl Daemon {
    /// Its folders and its configuration; it does not run yet.
    pub fn new(endpoint: &str) -> Daemon {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["spool", "aside"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        let at = dir.path().display();
        let config = format!(
            "spool.dir = \"{at}/spool\"\nspool.incomplete_after = \"1s\"\noutbox.path = \"{at}/state/outbox.db\"\n\
             outbox.min_free = \"0%\"\nkoala.endpoint = \"{endpoint}\"\nkoala.public_key = \"pk_load\"\n"
        );
        fs::write(dir.path().join("config.toml"), config).unwrap();
        Daemon { dir, child: None }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, command: &str) -> Command {
        let mut program = Command::new(env!("CARGO_BIN_EXE_koala-agent"));
        program.env_clear().arg("--config").arg(self.path("config.toml")).arg(command).stdin(Stdio::null());
        program
    }

    pub fn start(&mut self) {
        let log = OpenOptions::new().create(true).append(true).open(self.path("log")).unwrap();
        self.child = Some(self.command("run").stderr(log).spawn().unwrap());
    }

    /// SIGKILL; returns when the process is gone.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        assert_eq!(child.try_wait().unwrap(), None, "it ended by itself:\n{}", self.log());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM; it ends well.
    pub fn stop(&mut self) {
        let mut child = self.child.take().unwrap();
        kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        assert!(child.wait().unwrap().success(), "{}", self.log());
    }

    /// What `status --json` prints.
    pub fn status(&self) -> Status {
        let output = self.command("status").arg("--json").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// The ids that the outbox of a stopped daemon holds as pending.
    pub fn pending(&self) -> HashSet<String> {
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
        let outbox = rusqlite::Connection::open_with_flags(self.path("state/outbox.db"), flags).unwrap();
        let sql = "SELECT message_id FROM outbox_events WHERE state = 'pending'";
        let mut rows = outbox.prepare(sql).unwrap();
        rows.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }

    /// The processor time that it has used; `None` where the system does not tell (proc(5): fields 14 and 15 of
    /// stat, in hundredths of a second).
    pub fn cpu(&self) -> Option<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.as_ref()?.id())).ok()?;
        let fields = stat.rsplit_once(')')?.1.split_whitespace();
        let hundredths: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        Some(Duration::from_millis(hundredths * 10))
    }

    /// Writes files beside the spool, with their times.
    pub fn prepare(&self, files: &[File]) {
        for file in files {
            let path = self.path("aside").join(&file.name);
            fs::write(&path, &file.bytes).unwrap();
            OpenOptions::new().write(true).open(path).unwrap().set_modified(file.modified).unwrap();
        }
    }

    /// Returns what renames prepared files into the spool, one after the other.
    pub fn dropping(&self, files: &[File]) -> impl FnOnce() + Send + 'static {
        let (aside, spool) = (self.path("aside"), self.path("spool"));
        let names: Vec<_> = files.iter().map(|file| file.name.clone()).collect();
        move || {
            for name in names {
                fs::rename(aside.join(&name), spool.join(&name)).unwrap();
            }
        }
    }
}

impl Drop for Daemon {
    /// A test that has failed leaves no process.
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

//! What the agent writes to cannot be written: its log, its files beyond a limit of their size; and it may open few files.
//! It lives, says so where it can, and goes on by itself.

use crate::common::agent::TestAgent;
use crate::disk::mount::Mount;
use crate::disk::{OFFLINE, is_blocked, long_lines, online};
use crate::machine::{needs, run};
use crate::runner::{Figures, Outcome, Scale};
use koala_agent::reason::Code;
use koala_agent::receiver::Faults;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;
use std::time::Duration;

/// Starts the program with that redirection of its stderr.
fn redirect_stderr(agent: &mut TestAgent, redirection: &str) {
    agent.run_under(["sh", "-c", &format!("exec \"$@\" {redirection}"), "sh"]);
}

/// A log that cannot be written, in every way: the agent delivers, reloads and stops in order all the same.
pub fn log_cannot_be_written(_: &Scale) -> Outcome {
    let mut figures = Figures::default();
    for (kind, drops) in [("closed", false), ("full", true), ("no reader", true), ("standing still", false)] {
        let mut agent = TestAgent::program(Faults::default());
        let fifo = agent.path("fifo");
        let pipe = kind.contains("reader") || kind.contains("still");
        let mut reader = pipe.then(|| open_pipe(&fifo));
        match kind {
            "closed" => redirect_stderr(&mut agent, "2>&-"),
            "full" => redirect_stderr(&mut agent, "2>/dev/full"),
            _ => redirect_stderr(&mut agent, &format!("2>'{}'", fifo.display())),
        }
        if kind == "standing still" {
            fill(reader.as_mut().unwrap());
        }
        if kind == "no reader" {
            // It goes once the program has the other end.
            agent.start_and_wait();
            reader = None;
        } else {
            agent.start_and_wait();
        }
        let pid = agent.pid();
        agent.drop_events(50, 5);
        agent.until_delivered();
        agent.signal(Signal::SIGHUP);
        agent.drop_events(50, 5);
        agent.until_delivered();
        assert_eq!(agent.exit_status(), None, "{kind}: it ended");
        if drops {
            agent.until_status("the dropped lines are counted", |status| status.agent.log_lines_dropped > 0);
        }
        assert_eq!((agent.pid(), agent.status().agent.log_lines_dropped > 0), (pid, drops), "{kind}");
        if let Some(reader) = &mut reader {
            // What was written meanwhile comes when it is read.
            agent.until("the lines come", |_| read(reader).contains("is in force"));
        }
        figures.add(agent.end());
    }
    figures.into()
}

/// A log file on a full disk: with room again, the log goes on, and says how much is missing.
pub fn log_on_a_full_disk(_: &Scale) -> Outcome {
    let mut agent = TestAgent::program(Faults::default());
    let folder = agent.path("log-disk");
    let _mount = match Mount::tmpfs(&folder, "size=64k") {
        Ok(mount) => mount,
        Err(why) => return Outcome::Skipped(why),
    };
    let (filler, log) = (folder.join("filler"), folder.join("log"));
    File::create(&log).unwrap();
    let mut full = File::create(&filler).unwrap();
    while full.write_all(&[b'x'; 512]).is_ok() {}
    redirect_stderr(&mut agent, &format!("2>>'{}'", log.display()));
    agent.start_and_wait();
    agent.drop_events(50, 5);
    agent.until_delivered();
    agent.until_status("the dropped lines are counted", |status| status.agent.log_lines_dropped > 0);
    assert_eq!(agent.exit_status(), None, "it ended");
    fs::remove_file(&filler).unwrap();
    drop(full);
    agent.signal(Signal::SIGHUP);
    let text = || fs::read_to_string(&log).unwrap();
    agent.until("the log goes on", |_| text().contains("is in force"));
    agent.until("the dropped lines are told", |_| {
        let text = text();
        text.contains(" dropped: stderr could not be written (no storage space)")
    });
    agent.end().into()
}

/// A file of the outbox reaches the limit of its size: like a full disk, at the start and under load.
pub fn file_size(_: &Scale) -> Outcome {
    if let Err(why) = needs("prlimit") {
        return Outcome::Skipped(why);
    }
    let mut agent = TestAgent::program(OFFLINE);
    agent.run_under(["prlimit", "--fsize=20000:unlimited"]);
    agent.start();
    agent.until("it waits to start", |agent| agent.log().contains("raise LimitFSIZE="));
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(agent.exit_status(), None, "it ended:\n{}", agent.log());
    let pid = agent.pid();
    limit(&agent, "--fsize=600000:unlimited");
    agent.until_visible();
    for _ in 0..5 {
        let text = long_lines(&mut agent, 200);
        agent.drop_next("ndjson", text.as_bytes());
    }
    agent.until_status("the intake is blocked by the limit", |status| {
        let reason = status.intake.reason.as_ref();
        is_blocked(status)
            && reason.is_some_and(|r| r.code == Code::DiskFull && r.text.contains("raise LimitFSIZE="))
    });
    assert_eq!((agent.exit_status(), agent.pid()), (None, pid), "{}", agent.log());
    assert!(agent.status().spool.waiting_files > Some(0));
    limit(&agent, "--fsize=unlimited");
    online(&agent);
    agent.end().into()
}

/// So few files may be open that the agent cannot start; then just enough, once it has raised the limit; then none for a
/// while.
pub fn open_files(_: &Scale) -> Outcome {
    if let Err(why) = needs("prlimit") {
        return Outcome::Skipped(why);
    }
    let mut agent = TestAgent::program(Faults::default());
    agent.run_under(["prlimit", "--nofile=8:8"]);
    agent.start();
    agent.until("it waits to start", |agent| agent.log().contains("raise LimitNOFILE="));
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(agent.exit_status(), None, "it ended:\n{}", agent.log());
    agent.kill();

    agent.run_under(["prlimit", "--nofile=8:40"]);
    agent.start_and_wait();
    let pid = agent.pid();
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let limits = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(limits.split_whitespace().collect::<Vec<_>>()[3..5], ["40", "40"]);
    agent.drop_events(300, 100);
    agent.until_delivered();
    limit(&agent, "--nofile=5:40");
    agent.drop_events(100, 100);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!((agent.exit_status(), agent.pid()), (None, pid), "{}", agent.log());
    limit(&agent, "--nofile=40:40");
    agent.end().into()
}

fn limit(agent: &TestAgent, limit: &str) {
    run(Command::new("prlimit").args(["--pid", &agent.pid().to_string(), limit])).unwrap();
}

/// A named pipe, open at both ends, so that nobody waits for it.
fn open_pipe(at: &std::path::Path) -> File {
    nix::unistd::mkfifo(at, Mode::S_IRWXU).unwrap();
    OpenOptions::new().read(true).write(true).custom_flags(nix::libc::O_NONBLOCK).open(at).unwrap()
}

fn fill(pipe: &mut File) {
    for chunk in [4096, 1] {
        while pipe.write(&vec![b'x'; chunk]).is_ok() {}
    }
}

/// All that can be read now.
fn read(pipe: &mut File) -> String {
    let mut bytes = vec![0; 1 << 20];
    match pipe.read(&mut bytes) {
        Ok(n) => String::from_utf8_lossy(&bytes[..n]).into_owned(),
        Err(e) if e.kind() == ErrorKind::WouldBlock => String::new(),
        Err(e) => panic!("{e}"),
    }
}

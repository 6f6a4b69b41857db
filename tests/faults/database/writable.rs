//! An outbox that the agent's user may not write: put back by root, or by its mode, or mounted read-only.
//!
//! The agent says so before it is ready, takes and sends nothing, and goes on by itself.

use super::{held, new_place, said};
use crate::common::agent::TestAgent;
use crate::machine::{needs, needs_root, run};
use crate::runner::{Figures, Outcome, Scale};
use koala_agent::reason::Code;
use koala_agent::receiver::Faults;
use koala_agent::status::IntakeState;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// A user without a name.
const SERVICE: u32 = 64_201;

/// What is done to the folder of the outbox, its reason code, and the file that is named.
struct Obstacle {
    name: &'static str,
    code: Code,
    file: &'static str,
    strike: fn(&Path),
    /// What undoes it, where the agent cannot say so.
    undo: Option<fn(&Path)>,
}

const OBSTACLES: &[Obstacle] = &[
    Obstacle {
        name: "put back by root",
        code: Code::NotWritable,
        file: "outbox.db",
        undo: None,
        strike: |state| {
            to_root(&state.join("outbox.db"), 0o644);
        },
    },
    Obstacle {
        name: "all files put back by root",
        code: Code::NotWritable,
        file: "outbox.db",
        undo: None,
        strike: |state| {
            for entry in fs::read_dir(state).unwrap() {
                to_root(&entry.unwrap().path(), 0o600);
            }
        },
    },
    Obstacle {
        name: "a log of root",
        code: Code::NotWritable,
        file: "outbox.db-wal",
        undo: None,
        strike: |state| {
            to_root(&state.join("outbox.db-wal"), 0o644);
        },
    },
    Obstacle {
        name: "a -shm of root",
        code: Code::NotWritable,
        file: "outbox.db-shm",
        undo: None,
        strike: |state| {
            to_root(&state.join("outbox.db-shm"), 0o644);
        },
    },
    Obstacle {
        name: "a lock of root",
        code: Code::NotWritable,
        file: "outbox.db.lock",
        undo: None,
        strike: |state| {
            to_root(&state.join("outbox.db.lock"), 0o600);
        },
    },
    Obstacle {
        name: "read-only by its mode",
        code: Code::NotWritable,
        file: "outbox.db",
        undo: None,
        strike: |state| {
            fs::set_permissions(state.join("outbox.db"), Permissions::from_mode(0o440)).unwrap();
        },
    },
    Obstacle {
        name: "a folder of root",
        code: Code::NotWritable,
        file: "",
        undo: None,
        strike: |state| to_root(state, 0o755),
    },
    Obstacle {
        name: "one file mounted read-only",
        code: Code::ReadOnly,
        file: "outbox.db",
        strike: |state| {
            let file = state.join("outbox.db");
            run(Command::new("mount").arg("--bind").args([&file, &file])).unwrap();
            run(Command::new("mount").args(["-o", "remount,bind,ro"]).arg(&file)).unwrap();
        },
        undo: Some(|state| run(Command::new("umount").arg(state.join("outbox.db"))).unwrap()),
    },
];

fn to_root(path: &Path, mode: u32) {
    chown(path, Some(0), Some(0)).unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

pub fn unwritable(_: &Scale) -> Outcome {
    if let Err(why) = needs_root().and_then(|()| needs("setpriv")) {
        return Outcome::Skipped(why);
    }
    let mut figures = Figures::default();
    for obstacle in OBSTACLES {
        figures.add(round(obstacle));
    }
    figures.into()
}

fn round(Obstacle { name, code, file, strike, undo }: &Obstacle) -> Figures {
    let mut agent = place_of_service();
    agent.receiver.set_faults(Faults { offline: true, ..Faults::default() });
    agent.start();
    agent.drop_events(30, 10);
    agent.until_status(&format!("{name}: stored"), |status| status.outbox.pending == 30);
    agent.stop();
    agent.receiver.set_faults(Faults::default());
    let state = agent.state();
    strike(&state);
    let log_start = agent.log().len();
    agent.drop_events(10, 10);
    agent.start();
    let log = |agent: &TestAgent| agent.log()[log_start..].to_owned();
    agent.until(&format!("{name}: it waits"), |agent| log(agent).contains("tried again every"));
    let path = state.join(file).display().to_string();
    assert!(log(&agent).contains(path.trim_end_matches('/')), "{name}: {path}: {}", log(&agent));
    // It lives on, and leaves everything as it is.
    std::thread::sleep(Duration::from_millis(6_500));
    assert!(agent.exit_status().is_none(), "{name}: {}", log(&agent));
    assert!(!log(&agent).contains(super::RUNS), "{name}: {}", log(&agent));
    assert_eq!((agent.receiver.stats().events, agent.files_in_spool()), (0, 10), "{name}");
    let said = said(&agent.command("check").arg("--offline").output().unwrap());
    assert!(said.contains(path.trim_end_matches('/')), "{name}: check: {said}");
    let mut fix = None;
    if *code == Code::NotWritable {
        let line = log(&agent);
        assert!(line.contains("which belongs to") && line.contains("has mode"), "{name}: {line}");
        fix = line
            .split_once("has mode")
            .and_then(|(_, rest)| Some(rest.split_once(": ")?.1.split_once(';')?.0.to_owned()));
        assert!(fix.is_some(), "{name}: no line that mends it: {line}");
    }
    // The agent's status file stands in the folder itself here, which may be what it cannot write.
    if !file.is_empty() {
        let status = agent.status();
        let reason = status.intake.reason.clone().unwrap_or_else(|| panic!("{name}: no reason"));
        assert_eq!((status.intake.state, reason.code), (IntakeState::Blocked, *code), "{name}");
        assert!(reason.text.contains(&path), "{name}: {reason}");
        assert_eq!(status.agent.pid, Some(agent.pid().unsigned_abs()), "{name}");
    }
    match (undo, fix) {
        (Some(undo), _) => undo(&state),
        (None, Some(fix)) => run(Command::new("sh").args(["-c", &fix])).unwrap(),
        (None, None) => unreachable!("one of them"),
    }
    let figures = agent.end();
    assert_eq!(held(&agent).len(), 40, "{name}");
    let status = agent.status();
    assert_eq!(status.intake.state, IntakeState::Open, "{name}");
    figures.note(name.to_string())
}

/// An agent that runs as a user of its own, in folders that are its own.
fn place_of_service() -> TestAgent {
    let mut agent = new_place(Faults::default());
    let program = agent.path("koala-agent");
    fs::copy(env!("CARGO_BIN_EXE_koala-agent"), &program).unwrap();
    agent.use_program(&program);
    fs::create_dir_all(agent.state()).unwrap();
    let all = Permissions::from_mode(0o755);
    for path in agent.path("koala-agent").ancestors().take_while(|path| *path != std::env::temp_dir()) {
        fs::set_permissions(path, all.clone()).unwrap();
    }
    run(Command::new("chown").args(["-R", &format!("{SERVICE}:{SERVICE}")]).arg(agent.path(""))).unwrap();
    let ids = [format!("--reuid={SERVICE}"), format!("--regid={SERVICE}"), "--clear-groups".to_owned()];
    let lease = ["--inh-caps=-all,+lease", "--ambient-caps=-all,+lease"].map(str::to_owned);
    agent.run_under(["setpriv".to_owned()].into_iter().chain(ids).chain(lease));
    agent
}

//! Permissions: the commands run by root, by the service's user, by a producer and by a stranger.
//!
//! Only root can run them all; as another user these facts cannot be tried.

use crate::common::events::new_event;
use crate::common::setup::{Ran, Setup, assert_says, names_in, run_command};
use koala_agent::outbox::Settled;
use koala_agent::status::Status;
use nix::unistd::Uid;
use std::fs::{self, Permissions};
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Numbers without names, that no system gives to anybody.
const SERVICE: u32 = 64_201;
const STRANGER: u32 = 64_202;

const ANA: &str = r#"{"type":"track","event":"Signed Up","properties":{"email":"ana@acme.dev"}}"#;

/// A setup whose outbox is the service's, and a copy of the program that everybody may run.
fn setup() -> Option<(Setup, PathBuf)> {
    if !Uid::effective().is_root() {
        return None;
    }
    let setup = Setup::with_events();
    let program = setup.path("koala-agent");
    fs::copy(env!("CARGO_BIN_EXE_koala-agent"), &program).unwrap();
    for (name, mode) in
        [("", 0o755), ("koala-agent", 0o755), ("config.toml", 0o644), ("spool", 0o1733), ("state", 0o755)]
    {
        fs::set_permissions(setup.path(name), Permissions::from_mode(mode)).unwrap();
    }
    for path in [setup.path(""), setup.spool(), setup.state()].into_iter().chain(database(&setup)) {
        chown(path, Some(SERVICE), Some(SERVICE)).unwrap();
    }
    Some((setup, program))
}

/// The files of the outbox.
fn database(setup: &Setup) -> Vec<PathBuf> {
    fs::read_dir(setup.state()).unwrap().map(|file| file.unwrap().path()).collect()
}

fn by(user: u32, setup: &Setup, program: &PathBuf, arguments: &[&str], stdin: &str) -> Ran {
    let mut command = Command::new(program);
    command.env_clear().uid(user).gid(user).arg("--config").arg(setup.config_file()).args(arguments);
    run_command(&mut command, stdin)
}

#[test]
fn each_command_has_its_users() {
    let Some((setup, program)) = setup() else { return };
    for arguments in
        [&["list"][..], &["show", "waiting"], &["retry", "refused"], &["discard", "refused"], &["check"]]
    {
        let ran = by(STRANGER, &setup, &program, arguments, "");
        assert_eq!(ran.code, 77, "{ran:?}");
        let line = format!("sudo {} --config {}", program.display(), setup.config_file().display());
        assert_says(&ran.err, &[&format!("{line} {}", arguments.join(" "))]);
    }
    for arguments in [&["status"][..], &["map"], &["--help"]] {
        assert_eq!(by(STRANGER, &setup, &program, arguments, ANA).code, 0);
    }
    for user in [0, SERVICE] {
        for arguments in [&["list"][..], &["show", "waiting"], &["retry", "--state", "failed"]] {
            assert_eq!(by(user, &setup, &program, arguments, "").code, 0, "{arguments:?} by {user}");
        }
    }
    fs::set_permissions(setup.config_file(), Permissions::from_mode(0o600)).unwrap();
    let ran = by(STRANGER, &setup, &program, &["status"], "");
    assert_eq!(ran.code, 77);
    assert_says(&ran.err, &["cannot read the configuration", "sudo "]);
}

#[test]
fn whoever_may_not_read_what_the_agent_publishes_is_told_so() {
    let Some((setup, program)) = setup() else { return };
    fs::set_permissions(setup.state(), Permissions::from_mode(0o700)).unwrap();
    let check = by(STRANGER, &setup, &program, &["status", "--check"], "");
    assert_eq!(check.code, 3, "{check:?}");
    assert_says(&check.out, &["KOALA-AGENT UNKNOWN - cannot read ", "status.json"]);
    let metrics = by(STRANGER, &setup, &program, &["metrics"], "");
    assert_eq!((metrics.code, metrics.out.as_str()), (77, ""), "{metrics:?}");
}

#[test]
fn send_reports_a_closed_spool_before_it_reads_events() {
    let Some((setup, program)) = setup() else { return };
    fs::set_permissions(setup.spool(), Permissions::from_mode(0o3730)).unwrap();
    // The group of root has a name everywhere.
    chown(setup.spool(), None, Some(0)).unwrap();
    let ran = by(STRANGER, &setup, &program, &["send"], "no event");
    assert_eq!(ran.code, 77);
    assert_says(&ran.err, &[&format!("  sudo usermod -aG root {STRANGER}\n")]);
}

#[test]
fn check_by_root_checks_as_the_service_user() {
    let Some((setup, program)) = setup() else { return };
    fs::write(setup.path("key"), "pk_1").unwrap();
    chown(setup.path("key"), Some(SERVICE), None).unwrap();
    fs::set_permissions(setup.path("key"), Permissions::from_mode(0o600)).unwrap();
    let _agent = setup.open_outbox();
    let ran = by(0, &setup, &program, &["check", "--offline"], "");
    assert_eq!(ran.code, 0, "{ran:?}");
    chown(setup.spool(), Some(0), Some(0)).unwrap();
    fs::set_permissions(setup.spool(), Permissions::from_mode(0o700)).unwrap();
    let ran = by(0, &setup, &program, &["check", "--offline"], "");
    assert_eq!(ran.code, 1);
    assert_says(&ran.out, &["FAIL  spool", &format!("chown {SERVICE} ")]);
}

#[test]
fn check_by_root_finds_that_the_service_has_used_up_its_watches() {
    let Some((setup, program)) = setup() else { return };
    // Takes all instances of inotify that this user may have, until its input ends.
    let taking = "import ctypes, sys\n\
                  libc = ctypes.CDLL(None)\n\
                  while libc.inotify_init() >= 0: pass\n\
                  print(flush=True)\n\
                  sys.stdin.read()";
    let mut taker = Command::new("python3");
    taker.args(["-c", taking]).uid(SERVICE).gid(SERVICE).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut taker = taker.spawn().unwrap();
    assert_eq!(taker.stdout.as_mut().unwrap().read(&mut [0]).unwrap(), 1);
    let check = || by(0, &setup, &program, &["check", "--offline"], "").out;
    assert_says(
        &check(),
        &[
            "FAIL  inotify",
            "the spool cannot be watched, so a file is found within 30s",
            "raise the limit, or end a program that has many files watched",
            "sysctl -w fs.inotify.max_user_instances=",
        ],
    );
    drop(taker.stdin.take());
    assert!(taker.wait().unwrap().success());
    assert_says(&check(), &["ok    inotify"]);
}

#[test]
fn a_producer_without_access_to_the_outbox_reads_the_status_file() {
    let Some((setup, program)) = setup() else { return };
    let outbox = setup.open_outbox();
    outbox.writer.settle(vec![(2, Settled::Delivered), (3, Settled::Delivered)]).block().unwrap();
    let publish = || {
        let mut status: Status = serde_json::from_value(setup.run(&["status", "--json"]).json()).unwrap();
        status.agent.since = Some(status.now);
        status.write(&setup.config().status_file, 0o644).unwrap();
    };
    publish();
    for path in database(&setup).iter().filter(|path| path.extension().is_none_or(|e| e != "json")) {
        fs::set_permissions(path, Permissions::from_mode(0o640)).unwrap();
    }
    let status = by(STRANGER, &setup, &program, &["status", "--json"], "").json();
    assert_eq!((&status["agent"]["running"], &status["outbox"]["delivered"]), (&true.into(), &3.into()));
    assert_eq!(by(STRANGER, &setup, &program, &["list"], "").code, 77);
    let check = by(STRANGER, &setup, &program, &["status", "--check"], "");
    assert_eq!(check.code, 1, "{check:?}");
    assert_says(&check.out, &["KOALA-AGENT WARNING - 2 events failed, the newest ", " | pending=0;;;0 "]);
    let metrics = by(STRANGER, &setup, &program, &["metrics"], "");
    assert_eq!((metrics.code, metrics.err.as_str()), (0, ""));
    assert_says(&metrics.out, &["\nkoala_agent_items_created_total{destination=\"koala\"} 7\n"]);

    for (settled, limit, code) in [(true, "--wait=30s", 0), (false, "--wait=3s", 75)] {
        let ran = std::thread::scope(|scope| {
            let sending = scope.spawn(|| by(STRANGER, &setup, &program, &["send", limit], ANA));
            let path = loop {
                let mut files = fs::read_dir(setup.spool()).unwrap().map(|file| file.unwrap().path());
                let sent = files.find(|path| path.extension().is_some_and(|e| e == "jsonl"));
                match sent.filter(|path| !path.file_name().unwrap().to_string_lossy().starts_with('.')) {
                    Some(path) => break path,
                    None => std::thread::sleep(Duration::from_millis(10)),
                }
            };
            let new = new_event(&format!("sent-{settled}"), ANA, "send");
            outbox.writer.append(vec![new], vec![]).block().unwrap();
            if settled {
                let seq = setup.reader().events().show("sent-true").unwrap().unwrap().row.seq;
                outbox.writer.settle(vec![(seq, Settled::Delivered)]).block().unwrap();
            }
            fs::remove_file(path).unwrap();
            publish();
            sending.join().unwrap()
        });
        assert_eq!(ran.code, code, "{ran:?}");
    }
    outbox.close();
}

/// A named user who is in no group of the setup.
const PRODUCER: &str = "nobody";

#[test]
fn check_tries_a_drop_as_a_producer_and_names_what_prevents_it() {
    let Some((setup, program)) = setup() else { return };
    let check = |user: &str| {
        run_command(
            Command::new(&program).env_clear().arg("--config").arg(setup.config_file()).args([
                "check",
                "--offline",
                "--producer",
                user,
            ]),
            "",
        )
    };
    let (spool, home) = (setup.spool(), setup.path(""));
    let closed = format!("chmod o+x {}", home.display()).trim_end_matches('/').to_owned();
    let daemon = nix::unistd::Group::from_name("daemon").unwrap().unwrap().gid.as_raw();
    for (mode, group, home_mode, pieces) in [
        (
            0o3733,
            SERVICE,
            0o755,
            &["ok    producer       nobody can drop files, and the agent can read them"][..],
        ),
        (
            0o1733,
            SERVICE,
            0o755,
            &["FAIL  producer", "the agent cannot read them", "chgrp 64201", "chmod g+r"],
        ),
        (0o3730, SERVICE, 0o755, &["FAIL  producer", "nobody may not put files into", "the mode 3730"]),
        (0o3730, daemon, 0o755, &["FAIL  producer", "usermod -aG daemon nobody"]),
        (
            0o3733,
            SERVICE,
            0o700,
            &["FAIL  producer", "nobody cannot reach", "the owner of that folder", &closed],
        ),
    ] {
        chown(&spool, Some(SERVICE), Some(group)).unwrap();
        fs::set_permissions(&spool, Permissions::from_mode(mode)).unwrap();
        fs::set_permissions(&home, Permissions::from_mode(home_mode)).unwrap();
        let ran = check(PRODUCER);
        assert_says(&ran.out, pieces);
        assert_eq!(names_in(&spool), [""; 0], "{mode:o}: what was tried is gone");
    }
    let ran = check("no-such-user");
    assert_eq!(ran.code, 66, "{ran:?}");
    fs::set_permissions(&home, Permissions::from_mode(0o755)).unwrap();
    let ran = by(SERVICE, &setup, &program, &["check", "--producer", PRODUCER], "");
    assert_eq!(ran.code, 77, "only root can become a producer: {ran:?}");
}

#[test]
fn files_that_cannot_be_read_are_named_with_what_their_owner_runs() {
    let Some((setup, program)) = setup() else { return };
    let spool = setup.spool();
    let drop_as = |name: &str, mode: u32| {
        let path = spool.join(name);
        fs::write(&path, ANA).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        chown(&path, Some(STRANGER), Some(STRANGER)).unwrap();
        path.display().to_string()
    };
    assert_eq!(
        by(0, &setup, &program, &["list", "--unreadable"], "").out,
        "every file in the spool can be read\n"
    );
    let private = drop_as("it's private.json", 0o600).replace('\'', "'\\''");
    let begun = drop_as("up.jsonl.part", 0o644);
    drop_as("fine.json", 0o644);
    for user in [0, SERVICE] {
        let ran = by(user, &setup, &program, &["list", "--unreadable"], "");
        assert_eq!(ran.code, 0, "{ran:?}");
        assert_says(
            &ran.out,
            &[
                "it's private.json, a file of 64202\n",
                "the agent's user may not read it: its mode is 0600",
                &format!("chgrp 64201 '{private}' && chmod g+r '{private}'"),
                "its name says no format",
                &format!("mv -nT {begun} {}", begun.trim_end_matches(".part")),
            ],
        );
        assert!(!ran.out.contains("fine.json") && !ran.out.contains("sudo"));
        let rows = by(user, &setup, &program, &["list", "--unreadable", "--json"], "").lines();
        assert_eq!(rows.len(), 2);
        assert!(rows.iter().all(|row| row["owner"] == STRANGER && row["owner_name"] == "64202"));
        let ran = by(user, &setup, &program, &["check", "--offline"], "");
        assert_says(
            &ran.out,
            &["FAIL  files", "private.json, a file of 64202", "as 64202: chgrp", "list --unreadable"],
        );
        assert_eq!(ran.code, 1);
    }
    let ran = by(STRANGER, &setup, &program, &["list", "--unreadable"], "");
    assert_eq!(ran.code, 77);
    assert_says(&ran.err, &["sudo "]);
}

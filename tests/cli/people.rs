//! Who may do what: the commands run by root, the service's user, a producer and a stranger.
//!
//! Only root can play them all; as another user these facts cannot be tried.

use crate::world::{Ran, World, assert_says, event, ran};
use koala_agent::outbox::Settled;
use koala_agent::status::Status;
use nix::unistd::Uid;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// Numbers without names, that no system gives to anybody.
const SERVICE: u32 = 64_201;
const STRANGER: u32 = 64_202;

const ANA: &str = r#"{"type":"track","event":"Signed Up","properties":{"email":"ana@acme.dev"}}"#;

/// A world whose outbox is the service's, and a copy of the program that everybody may run.
fn world() -> Option<(World, PathBuf)> {
    if !Uid::effective().is_root() {
        return None;
    }
    let world = World::with_events();
    let program = world.path("koala-agent");
    fs::copy(env!("CARGO_BIN_EXE_koala-agent"), &program).unwrap();
    for (name, mode) in [("", 0o755), ("koala-agent", 0o755), ("config.toml", 0o644), ("spool", 0o1733)] {
        fs::set_permissions(world.path(name), Permissions::from_mode(mode)).unwrap();
    }
    for name in ["", "spool"].into_iter().map(str::to_owned).chain(database(&world)) {
        chown(world.path(&name), Some(SERVICE), Some(SERVICE)).unwrap();
    }
    Some((world, program))
}

fn database(world: &World) -> Vec<String> {
    let files = fs::read_dir(world.dir.path()).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("outbox.db")).collect()
}

fn by(user: u32, world: &World, program: &PathBuf, arguments: &[&str], stdin: &str) -> Ran {
    let mut command = Command::new(program);
    command.env_clear().uid(user).gid(user).arg("--config").arg(world.path("config.toml")).args(arguments);
    ran(&mut command, stdin)
}

#[test]
fn each_command_is_for_its_people() {
    let Some((world, program)) = world() else { return };
    for arguments in
        [&["list"][..], &["show", "waiting"], &["retry", "refused"], &["discard", "refused"], &["check"]]
    {
        let ran = by(STRANGER, &world, &program, arguments, "");
        assert_eq!(ran.code, 77, "{ran:?}");
        let line = format!("sudo {} --config {}", program.display(), world.path("config.toml").display());
        assert_says(&ran.err, &[&format!("{line} {}", arguments.join(" "))]);
    }
    for arguments in [&["status"][..], &["map"], &["--help"]] {
        assert_eq!(by(STRANGER, &world, &program, arguments, ANA).code, 0);
    }
    for user in [0, SERVICE] {
        for arguments in [&["list"][..], &["show", "waiting"], &["retry", "--state", "failed"]] {
            assert_eq!(by(user, &world, &program, arguments, "").code, 0, "{arguments:?} by {user}");
        }
    }
    fs::set_permissions(world.path("config.toml"), Permissions::from_mode(0o600)).unwrap();
    let ran = by(STRANGER, &world, &program, &["status"], "");
    assert_eq!(ran.code, 77);
    assert_says(&ran.err, &["cannot read the configuration", "sudo "]);
}

#[test]
fn a_spool_that_is_shut_is_told_before_the_events_are_read() {
    let Some((world, program)) = world() else { return };
    fs::set_permissions(world.path("spool"), Permissions::from_mode(0o3730)).unwrap();
    // The group of root has a name everywhere.
    chown(world.path("spool"), None, Some(0)).unwrap();
    let ran = by(STRANGER, &world, &program, &["send"], "no event");
    assert_eq!(ran.code, 77);
    assert_says(&ran.err, &[&format!("  sudo usermod -aG root {STRANGER}\n")]);
}

#[test]
fn root_checks_as_the_user_of_the_service() {
    let Some((world, program)) = world() else { return };
    fs::write(world.path("key"), "pk_1").unwrap();
    chown(world.path("key"), Some(SERVICE), None).unwrap();
    fs::set_permissions(world.path("key"), Permissions::from_mode(0o600)).unwrap();
    let ran = by(0, &world, &program, &["check", "--offline"], "");
    assert_eq!(ran.code, 0, "{ran:?}");
    chown(world.path("spool"), Some(0), Some(0)).unwrap();
    fs::set_permissions(world.path("spool"), Permissions::from_mode(0o700)).unwrap();
    let ran = by(0, &world, &program, &["check", "--offline"], "");
    assert_eq!(ran.code, 1);
    assert_says(&ran.out, &["FAIL  spool", &format!("chown {SERVICE} ")]);
}

#[test]
fn a_producer_who_cannot_read_the_outbox_learns_from_the_status() {
    let Some((world, program)) = world() else { return };
    let outbox = world.agent();
    outbox.writer.settle(vec![(2, Settled::Delivered), (3, Settled::Delivered)]).block().unwrap();
    let publish = || {
        let mut status: Status = serde_json::from_value(world.run(&["status", "--json"]).json()).unwrap();
        status.agent.since = Some(status.now);
        status.write(&world.config().status_file).unwrap();
    };
    publish();
    for name in database(&world).iter().filter(|name| !name.ends_with(".json")) {
        fs::set_permissions(world.path(name), Permissions::from_mode(0o640)).unwrap();
    }
    let status = by(STRANGER, &world, &program, &["status", "--json"], "").json();
    assert_eq!((&status["agent"]["running"], &status["outbox"]["delivered"]), (&true.into(), &3.into()));
    assert_eq!(by(STRANGER, &world, &program, &["list"], "").code, 77);

    for (settled, limit, code) in [(true, "--wait=30s", 0), (false, "--wait=3s", 75)] {
        let ran = std::thread::scope(|scope| {
            let sending = scope.spawn(|| by(STRANGER, &world, &program, &["send", limit], ANA));
            let path = loop {
                let mut files = fs::read_dir(world.path("spool")).unwrap().map(|file| file.unwrap().path());
                let sent = files.find(|path| path.extension().is_some_and(|e| e == "jsonl"));
                match sent.filter(|path| !path.file_name().unwrap().to_string_lossy().starts_with('.')) {
                    Some(path) => break path,
                    None => std::thread::sleep(Duration::from_millis(10)),
                }
            };
            let new = event(&format!("sent-{settled}"), ANA, "send");
            outbox.writer.append(vec![new], vec![]).block().unwrap();
            if settled {
                let seq = world.reader().events().show("sent-true").unwrap().unwrap().row.seq;
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

//! Usage, configuration and check.

use crate::common::setup::{Setup, assert_says, run_command};
use crate::docs::run::is_installed;
use koala_agent::clock::Clock;
use koala_agent::receiver::{Receiver, ReceiverOptions};
use std::fs;
use std::process::Command;
use std::time::Duration;

#[test]
fn usage_and_configuration_have_their_exit_codes() {
    let mut setup = Setup::new();
    for (arguments, code) in [
        (&["--help"][..], 0),
        (&["--version"], 0),
        (&["send", "--help"], 0),
        (&["completions", "bash"], 0),
        (&["man"], 0),
        (&["man", "spool"], 0),
        (&["man", "nonsense"], 64),
        (&[], 64),
        (&["nonsense"], 64),
        (&["list", "--state", "lost"], 64),
        (&["list", "--reason", "bored"], 64),
        (&["list", "--since", "yesterday"], 64),
        (&["list", "--rejected", "--state", "failed"], 64),
        (&["retry"], 64),
        (&["retry", "m-1", "--state", "failed"], 64),
        (&["retry", "--state", "pending"], 64),
        (&["retry", "m-1", "--reason", "refused"], 64),
        (&["discard"], 64),
        (&["--user", "status"], 64),
        (&["list"], 66),
        (&["receiver", "--fail", "2"], 64),
    ] {
        assert_eq!(setup.run(arguments).code, code, "{arguments:?}");
    }
    assert_says(&setup.run(&["man"]).out, &["EXIT STATUS", "FILES", "ENVIRONMENT", ".Ss list"]);
    assert_says(&setup.run(&["man", "nonsense"]).err, &["agent, toml, spool, guarantees, mappings"]);
    assert!(!setup.run(&["--help"]).out.contains("completions"));
    assert_says(&setup.run(&["list", "--reason", "bored"]).err, &["no_identity"]);

    setup.set("koala.endpiont = 1");
    let ran = setup.run(&["status"]);
    assert_eq!(ran.code, 78);
    assert_says(&ran.err, &["endpiont", "config.toml"]);
    fs::remove_file(setup.config_file()).unwrap();
    assert_eq!(setup.run(&["status"]).code, 78);
}

#[test]
fn a_check_names_each_fault_and_its_remedy() {
    let mut setup = Setup::new();
    let ran = setup.run(&["check", "--offline"]);
    assert_eq!(ran.code, 1);
    let key = setup.path("key").display().to_string();
    assert_says(
        &ran.out,
        &[
            "FAIL  key",
            &format!("put the public key of your Koala workspace into {key}; this asks for it"),
            " init\n",
        ],
    );
    assert_eq!(setup.run(&["check", "--config-only"]).code, 0);

    write_key(&setup, "pk_5ecret");
    let ran = setup.run(&["check", "--offline"]);
    assert_eq!(ran.code, 1);
    assert_says(&ran.out, &["FAIL  agent", "not running", "start the agent: koala-agent --config"]);
    let agent = setup.open_outbox();
    let ran = setup.run(&["check", "--offline"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_says(
        &ran.out,
        &[
            "ok    configuration",
            "ok    key",
            "ok    spool",
            "ok    inotify        the spool can be watched; max_user_instances = ",
            "ok    outbox",
            "ok    disk",
            "ok    clock",
        ],
    );
    assert!(!ran.out.contains("pk_5ecret"));

    let ran = setup.run(&["check"]);
    assert_eq!(ran.code, 1);
    assert_says(&ran.out, &["FAIL  receiver", "connect: ", "curl -I http://127.0.0.1:9"]);

    agent.close();
    fs::remove_dir(setup.spool()).unwrap();
    let ran = setup.run(&["check", "--offline"]);
    assert_eq!(ran.code, 1);
    assert_says(&ran.out, &["FAIL  spool", "mkdir -p"]);

    fs::write(setup.outbox(), "this is no database, and long enough to be told from one").unwrap();
    assert_says(
        &setup.run(&["check", "--offline"]).out,
        &["FAIL  outbox", "start the agent, which recovers what can be read: koala-agent --config"],
    );

    setup.set("koala.endpiont = 1");
    for arguments in [&["check"][..], &["check", "--config-only"]] {
        let ran = setup.run(arguments);
        assert_eq!(ran.code, 1);
        assert_says(&ran.out, &["FAIL  configuration", "endpiont"]);
    }
}

#[test]
fn check_asks_the_receiver_about_the_key() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let options = ReceiverOptions { expected_key: Some("pk_good".into()), ..ReceiverOptions::default() };
    let receiver = runtime.block_on(Receiver::start("127.0.0.1:0".parse().unwrap(), options)).unwrap();
    let mut setup = Setup::new();
    setup.set(&format!("koala.endpoint = \"{}\"", receiver.endpoint()));
    let _agent = setup.open_outbox();
    for (key, code, said) in
        [("pk_good", 0, "accepts the key"), ("pk_wrong", 1, "put the right public key into")]
    {
        write_key(&setup, key);
        let ran = setup.run(&["check"]);
        assert_eq!(ran.code, code, "{ran:?}");
        assert_says(&ran.out, &[said]);
        assert!(!ran.out.contains(key));
    }
    runtime.block_on(receiver.stop());
}

#[test]
fn check_names_the_proxy_that_is_used_and_what_is_taken_for_one() {
    let mut setup = Setup::new();
    write_key(&setup, "pk_good");
    let _agent = setup.open_outbox();
    let check = |setup: &Setup, variable: &str| {
        let mut command = setup.command("check");
        // Nobody listens there.
        run_command(command.env(variable, "http://ana:s3cret@127.0.0.1:9"), "").out
    };
    let proxy = |out: &str| {
        assert!(!out.contains("s3cret"), "{out}");
        out.lines().skip_while(|line| !line.contains(" proxy ")).take(2).collect::<Vec<_>>().join("\n")
    };
    assert_says(&proxy(&check(&setup, "HTTPS_PROXY")), &["ok ", "none: the receiver is on this machine"]);

    setup.set("koala.endpoint = \"https://koala.invalid\"");
    let out = check(&setup, "HTTPS_PROXY");
    assert_says(&proxy(&out), &["ok ", "as HTTPS_PROXY says, except for hosts in NO_PROXY"]);
    assert_says(&out, &["FAIL  receiver", "proxy: ", "check koala.proxy in "]);
    for unused in ["ALL_PROXY", "HTTP_PROXY", "http_proxy"] {
        let said = proxy(&check(&setup, unused));
        assert_says(
            &said,
            &["note ", &format!("none: {unused} is set here and has no effect"), "koala.proxy"],
        );
    }
    setup.set("koala.proxy = \"http://ana:s3cret@127.0.0.1:9\"");
    assert_says(&proxy(&check(&setup, "X")), &["ok ", "as koala.proxy says"]);
}

/// Pretends to the program that every file system is NFS.
#[test]
fn check_names_network_file_systems() {
    if !is_installed("strace") {
        return;
    }
    let mut setup = Setup::new();
    write_key(&setup, "pk_good");
    let nfs = "inject=statfs:poke_exit=@arg2=6969000000000000";
    let trace = ["strace", "-f", "-o", "/dev/null", "-e", "trace=statfs", "-e", nfs].map(Into::into);
    setup.env("PATH", std::env::var("PATH").unwrap());
    let ran = run_command(setup.wrapped_program(&trace).args(["check", "--offline"]), "");
    assert_eq!(ran.code, 1, "{ran:?}");
    assert_says(
        &ran.out,
        &[
            "FAIL  outbox",
            "is on a network file system (NFS): set outbox.path to a local disk",
            "note  spool",
            "on a network file system (NFS): files that another machine writes are found within 30s",
        ],
    );
    let ran = run_command(setup.wrapped_program(&trace).args(["run"]), "");
    assert_eq!(ran.code, 78, "{ran:?}");
    assert_says(&ran.err, &["is on a network file system (NFS): set outbox.path to a local disk"]);
}

#[test]
fn check_compares_the_clock_with_the_receivers() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let now = Clock::system().now();
    let clock = Clock::manual(now.plus(Duration::from_secs(10 * 365 * 86_400)));
    let options = ReceiverOptions { clock: clock.clone(), ..ReceiverOptions::default() };
    let receiver = runtime.block_on(Receiver::start("127.0.0.1:0".parse().unwrap(), options)).unwrap();
    let mut setup = Setup::new();
    setup.set(&format!("koala.endpoint = \"{}\"", receiver.endpoint()));
    write_key(&setup, "pk_good");
    let _agent = setup.open_outbox();
    let ran = setup.run(&["check"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert_says(
        &ran.out,
        &["FAIL  clock", " behind the receiver's", "timedatectl set-ntp true", "accepts the key"],
    );
    clock.step(now);
    let ran = setup.run(&["check"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_says(&ran.out, &["ok    clock"]);
    runtime.block_on(receiver.stop());
}

#[test]
fn check_fails_for_a_world_readable_configuration_with_the_key() {
    let mut setup = Setup::new();
    setup.unset("koala.public_key_file");
    setup.set("koala.public_key = \"pk_5ecret\"");
    let ran = setup.run(&["check", "--config-only"]);
    assert_eq!(ran.code, 1);
    assert_says(&ran.out, &["FAIL  key", "chmod o-r"]);
    assert!(!ran.out.contains("pk_5ecret"));
}

#[test]
fn user_runs_an_agent_in_the_home_folder() {
    let setup = Setup::new();
    let home = setup.path("home");
    let state = home.join(".local/state/koala-agent");
    fs::create_dir_all(state.join("spool")).unwrap();
    let user = |arguments: &[&str], stdin: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_koala-agent"));
        run_command(command.env_clear().env("HOME", &home).arg("--user").args(arguments), stdin)
    };
    let status = user(&["status", "--json"], "").json();
    assert_eq!(status["config"], home.join(".config/koala-agent/config.toml").display().to_string());
    assert_eq!(status["spool"]["dir"], state.join("spool").display().to_string());
    assert_says(&user(&["status"], "").out, &["the defaults", "systemctl --user start koala-agent"]);
    let sent = user(&["send"], r#"{"type":"identify","traits":{"email":"ana@acme.dev"}}"#);
    assert_eq!(sent.code, 0, "{sent:?}");
    assert_eq!(fs::read_dir(state.join("spool")).unwrap().count(), 1);
    assert_eq!(user(&["check", "--offline"], "").code, 1);
    assert_eq!(user(&["retry", "--state", "failed"], "").code, 66);
}

#[test]
fn a_failed_start_is_an_error_in_the_journal() {
    let setup = Setup::new();
    let _first = setup.open_outbox();
    let ran = run_command(setup.program().env("JOURNAL_STREAM", "8:1").arg("run"), "");
    assert_eq!(ran.code, 75, "{ran:?}");
    assert!(ran.err.lines().any(|line| line.starts_with("<3>the outbox")), "{ran:?}");
    assert!(ran.err.lines().all(|line| line.starts_with('<')), "{ran:?}");
}

fn write_key(setup: &Setup, key: &str) {
    use std::os::unix::fs::PermissionsExt;
    fs::write(setup.path("key"), key).unwrap();
    fs::set_permissions(setup.path("key"), fs::Permissions::from_mode(0o600)).unwrap();
}

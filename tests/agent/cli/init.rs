//! `init`: at a terminal, with its input from elsewhere, and with everything that a person can get wrong.

use crate::common::setup::{Ran, Setup, assert_says, names_in, run_command};
use crate::docs::run::{is_installed, start, stop};
use koala_agent::receiver::{Receiver, ReceiverOptions};
use nix::pty::{Winsize, openpty};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Uid;
use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

const KEY: &str = "pk_good_0123456789";

/// A receiver that accepts [`KEY`] alone, until it is dropped.
struct KeyedReceiver {
    endpoint: String,
    _receiver: Receiver,
    _runtime: tokio::runtime::Runtime,
}

impl KeyedReceiver {
    fn start() -> KeyedReceiver {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let options = ReceiverOptions { expected_key: Some(KEY.into()), ..ReceiverOptions::default() };
        let receiver = runtime.block_on(Receiver::start("127.0.0.1:0".parse().unwrap(), options)).unwrap();
        KeyedReceiver { endpoint: receiver.endpoint(), _receiver: receiver, _runtime: runtime }
    }
}

/// Runs a command at a terminal of its own. Each answer is typed when its question has been printed; the output is all that
/// the terminal has shown. The second value tells whether the terminal has its echo at the end.
fn at_a_terminal(command: &mut Command, talk: &[(&str, &str)]) -> (Ran, bool) {
    // Wide enough that no sentence is broken.
    let size = Winsize { ws_row: 50, ws_col: 250, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = openpty(Some(&size), None).unwrap();
    let side = || Stdio::from(pty.slave.try_clone().unwrap());
    let mut child = command.stdin(side()).stdout(side()).stderr(side()).spawn().unwrap();
    let mut terminal = File::from(pty.master);
    let (mut shown, mut answered) = (Vec::new(), 0);
    for (question, answer) in talk {
        let end_of_question = |shown: &[u8]| {
            let found = shown.windows(question.len()).position(|text| text == question.as_bytes());
            found.map(|at| at + question.len())
        };
        while end_of_question(&shown[answered..]).is_none() {
            let mut piece = [0; 4096];
            let length = terminal.read(&mut piece).unwrap();
            shown.extend_from_slice(&piece[..length]);
        }
        answered += end_of_question(&shown[answered..]).unwrap();
        terminal.write_all(answer.as_bytes()).unwrap();
    }
    // The output fits into the terminal, so nothing waits for it to be read.
    let code = child.wait().unwrap().code().unwrap();
    let has_echo = tcgetattr(&pty.slave).unwrap().local_flags.contains(LocalFlags::ECHO);
    drop(pty.slave);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // A terminal whose other side is closed ends with an error.
    let _ = terminal.read_to_end(&mut shown);
    (Ran { code, out: String::from_utf8(shown).unwrap(), err: String::new() }, has_echo)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn the_key_of_the_machine_s_agent_is_left_alone_and_nothing_is_half_changed() {
    let receiver = KeyedReceiver::start();
    let setup = Setup::new();
    let elsewhere = setup.path("elsewhere.toml");
    let init = |config: &Path, key: &Path| {
        let mut command = Command::new(setup.command("init").get_program());
        command
            .arg("--config")
            .arg(config)
            .args(["init", "--endpoint", &receiver.endpoint, "--key-file"])
            .arg(key);
        let output = command.output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let key = setup.path("new-key");
    fs::write(&key, KEY).unwrap();
    fs::write(&elsewhere, "").unwrap();
    let (code, said) = init(&elsewhere, &key);
    assert_eq!(code, 78);
    assert_says(&said, &["names no koala.public_key_file", "nothing was changed"]);
    // The key cannot be written where a folder stands, so the address stays too.
    let text = format!("[koala]\npublic_key_file = {:?}\n", setup.path("a-folder"));
    fs::create_dir(setup.path("a-folder")).unwrap();
    fs::write(&elsewhere, &text).unwrap();
    let (code, said) = init(&elsewhere, &key);
    assert!(code != 0, "{said}");
    assert_says(&said, &["cannot write", "a-folder"]);
    assert_eq!(fs::read_to_string(&elsewhere).unwrap(), text);
}

#[test]
fn at_a_terminal_it_asks_until_the_answers_fit_and_never_shows_the_key() {
    let receiver = KeyedReceiver::start();
    let setup = Setup::new();
    let (ran, has_echo) = at_a_terminal(
        &mut setup.command("init"),
        &[
            ("Address of the receiver [http://127.0.0.1:9]: ", "koala.example.com\n"),
            ("must be scheme and host", ""),
            ("Address of the receiver", &format!("{}\n", receiver.endpoint)),
            ("Public key (not shown): ", "pk good\n"),
            ("that is not a public key: its character 3 is U+0020", ""),
            ("Public key", "\n"),
            ("without a key, nothing can be delivered", ""),
            ("Public key", &format!("{KEY}\n")),
        ],
    );
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(has_echo);
    assert!(!ran.out.contains(KEY) && !ran.out.contains("pk good"), "{}", ran.out);
    assert_says(&ran.out, &["accepts the key", "What to do next", "start the agent: koala-agent --config"]);
    assert_eq!(fs::read_to_string(setup.path("key")).unwrap(), format!("{KEY}\n"));
    assert_eq!(mode(&setup.path("key")), 0o600);
    let config = fs::read_to_string(setup.config_file()).unwrap();
    assert!(config.contains(&format!("koala.endpoint = \"{}\"\n", receiver.endpoint)), "{config}");

    // Once more, with empty answers: all stays.
    let (ran, _) = at_a_terminal(
        &mut setup.command("init"),
        &[("Address of the receiver", "\n"), ("nothing keeps the present one", "\n")],
    );
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_says(&ran.out, &["config.toml is unchanged", "key is unchanged", "accepts the key"]);
}

#[test]
fn ctrl_c_changes_nothing_and_leaves_the_terminal_as_it_was() {
    let setup = Setup::new();
    let before = files(&setup);
    for typed in ["pk_\u{3}", "\u{4}"] {
        let (ran, has_echo) = at_a_terminal(
            &mut setup.command("init"),
            &[("Address of the receiver", "\n"), ("Public key", typed)],
        );
        assert_eq!((ran.code, has_echo), (1, true), "{ran:?}");
        assert_says(&ran.out, &["stopped; nothing was changed"]);
    }
    assert_eq!(files(&setup), before);
}

#[test]
fn from_a_pipe_or_a_file_it_reads_the_key_and_keeps_what_a_receiver_refuses() {
    let receiver = KeyedReceiver::start();
    let mut setup = Setup::new();
    setup.set_tables("# a note of mine\n");
    let config = fs::read_to_string(setup.config_file()).unwrap();
    let wanted = config.replace("http://127.0.0.1:9", &receiver.endpoint);
    fs::set_permissions(setup.config_file(), Permissions::from_mode(0o640)).unwrap();

    let ran = setup.run_with(&["init", "--endpoint", &receiver.endpoint], "pk_wrong_0123456789\n");
    assert_eq!(ran.code, 1, "{ran:?}");
    assert_says(
        &ran.out,
        &["FAIL  receiver", "key_refused: the receiver answered 401", "put the right public key"],
    );
    assert!(!format!("{ran:?}").contains("pk_wrong"), "{ran:?}");
    assert_eq!(fs::read_to_string(setup.config_file()).unwrap(), wanted);
    assert_eq!(mode(&setup.config_file()), 0o640);
    assert_eq!(fs::read_to_string(setup.path("key")).unwrap(), "pk_wrong_0123456789\n");

    // The address is known by now, so the key alone can be changed.
    fs::write(setup.path("new-key"), KEY).unwrap();
    let new_key = setup.path("new-key");
    let ran = setup.run(&["init", "--key-file", new_key.to_str().unwrap()]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_says(&ran.out, &["config.toml is unchanged", "accepts the key"]);
    assert_eq!(fs::read_to_string(setup.path("key")).unwrap(), format!("{KEY}\n"));

    // And the address alone; no key is not the one that is there.
    let ran = setup.run(&["init", "--endpoint", "http://127.0.0.1:9"]);
    assert_eq!(ran.code, 64, "{ran:?}");
    let key = setup.path("key");
    let ran = setup.run(&["init", "--endpoint", "http://127.0.0.1:9", "--key-file", key.to_str().unwrap()]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert_says(&ran.out, &["FAIL  receiver", "connect: "]);
    assert_eq!(fs::read_to_string(setup.path("key")).unwrap(), format!("{KEY}\n"));
    assert_eq!(fs::read_to_string(setup.config_file()).unwrap(), config);
    assert!(!format!("{ran:?}").contains(KEY), "{ran:?}");
}

#[test]
fn it_says_how_a_running_agent_comes_to_use_what_was_written() {
    let setup = Setup::new();
    let running = start(&setup);
    let init = |endpoint: &str, key: &str| setup.run_with(&["init", "--endpoint", endpoint], key).out;
    assert_says(
        &init("http://127.0.0.1:9", "pk_1"),
        &["config.toml is unchanged", "  - nothing: the agent runs, and reads its first key within 30 s\n"],
    );
    let pid = setup.run(&["status", "--json"]).json()["agent"]["pid"].clone();
    for (endpoint, key) in [("http://127.0.0.1:9", "pk_2"), ("http://127.0.0.1:10", "pk_2")] {
        assert_says(&init(endpoint, key), &[&format!("  - put it in force: kill -HUP {pid}\n")]);
    }
    stop(&setup, running);
    assert_says(&init("http://127.0.0.1:10", "pk_2"), &["  - start the agent: koala-agent --config "]);
}

#[test]
fn a_user_sets_up_an_agent_of_their_own() {
    let receiver = KeyedReceiver::start();
    let setup = Setup::new();
    let home = setup.path("home");
    fs::create_dir(&home).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_koala-agent"));
    command.env_clear().env("HOME", &home).args(["--user", "init", "--endpoint", &receiver.endpoint]);
    let ran = run_command(&mut command, KEY);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_says(&ran.out, &["accepts the key", "systemctl --user enable --now koala-agent", "--user check"]);
    let config = home.join(".config/koala-agent");
    assert_eq!(names_in(&config), ["config.toml", "public-key"]);
    assert_eq!((mode(&config.join("config.toml")), mode(&config.join("public-key"))), (0o644, 0o600));
    let text = fs::read_to_string(config.join("config.toml")).unwrap();
    assert!(text.ends_with(&format!("\n\n[koala]\nendpoint = \"{}\"\n", receiver.endpoint)), "{text}");
}

/// Every file of the setup with its content.
fn files(setup: &Setup) -> BTreeMap<String, String> {
    let names = names_in(&setup.path("")).into_iter().filter(|name| setup.path(name).is_file());
    names.map(|name| (name.clone(), fs::read_to_string(setup.path(&name)).unwrap())).collect()
}

#[test]
fn each_mistake_is_named_and_changes_nothing() {
    let mut setup = Setup::new();
    for (name, content) in [("two-lines", "pk_secret_1\npk_secret_2\n"), ("empty", "\n"), ("good", KEY)] {
        fs::write(setup.path(name), content).unwrap();
    }
    let file = |name: &str| setup.path(name).display().to_string();
    let (two_lines, empty, good, none) = (file("two-lines"), file("empty"), file("good"), file("none"));
    let address = ["--endpoint", "http://127.0.0.1:9"];
    let present = files(&setup);
    for (arguments, stdin, code, said) in [
        (&address[..], "", 64, "init --endpoint https://HOST --key-file FILE"),
        (&[address[0], address[1], "--key-file", &none], "", 66, "none: no such file"),
        (
            &[address[0], address[1], "--key-file", &empty],
            "",
            65,
            "empty is empty: it must hold the public key",
        ),
        (&[address[0], address[1], "--key-file", &two_lines], "", 65, "its character 12 is U+000A"),
        (
            &address,
            "pk_secret_1\npk_secret_2\n",
            65,
            "stdin: the input is not a public key: its character 12",
        ),
        (&["--endpoint", "koala.example.com"], KEY, 64, "the address of --endpoint must be scheme and host"),
        (
            &["--endpoint", "http://koala.example.com"],
            KEY,
            64,
            "would send the key and the events unencrypted",
        ),
        (&["--endpoint", "https://k.test/v1", "--key-file", &good], "", 64, "must not have a path"),
        (&["--to", "segment"], KEY, 64, "[possible values: koala]"),
    ] {
        let ran = setup.run_with(&[&["init"], arguments].concat(), stdin);
        assert_eq!(ran.code, code, "{arguments:?} {ran:?}");
        assert_says(&ran.err, &[said]);
        assert!(!format!("{ran:?}").contains("pk_secret") && !format!("{ran:?}").contains(KEY), "{ran:?}");
        assert_eq!(files(&setup), present, "{arguments:?}");
    }

    // What stands in the configuration.
    setup.unset("koala.endpoint");
    let ran = setup.run_with(&["init"], KEY);
    assert_eq!(ran.code, 64, "the address is not known: {ran:?}");
    for (line, said) in [
        ("koala.endpiont = 1", "did you mean koala.endpoint?"),
        ("koala = { timeout = \"5s\" }", "set koala.endpoint = \"http://127.0.0.1:9\" there by hand"),
        (
            "koala = { public_key = \"pk_secret_1\" }",
            "holds the key itself, as koala.public_key; remove that setting",
        ),
    ] {
        fs::write(setup.config_file(), line).unwrap();
        let present = files(&setup);
        let ran = setup.run_with(&[&["init"], &address[..]].concat(), KEY);
        assert_eq!(ran.code, 78, "{line} {ran:?}");
        assert_says(&ran.err, &[said]);
        assert!(!ran.err.contains("pk_secret"), "{ran:?}");
        assert_eq!(files(&setup), present, "{line}");
    }
}

/// The first flush is that of the configuration, the third that of the key; those between are of folders.
#[test]
fn a_disk_that_fails_leaves_each_file_as_it_was_or_replaced_as_a_whole() {
    if !is_installed("strace") {
        return;
    }
    for (failing, config_is_new) in [(1, false), (3, true)] {
        let mut setup = Setup::new();
        setup.env("PATH", std::env::var("PATH").unwrap());
        fs::write(setup.path("key"), "pk_former").unwrap();
        let config = fs::read_to_string(setup.config_file()).unwrap();
        let fault = format!("inject=fsync:error=EIO:when={failing}");
        let trace = ["strace", "-f", "-o", "/dev/null", "-e", "trace=fsync", "-e", &fault].map(Into::into);
        let mut command = setup.wrapped_program(&trace);
        let ran = run_command(command.args(["init", "--endpoint", "http://127.0.0.1:10"]), KEY);
        assert_eq!(ran.code, 74, "{ran:?}");
        assert_says(&ran.err, &["cannot write ", ": input/output error"]);
        let wanted = if config_is_new { config.replace("127.0.0.1:9", "127.0.0.1:10") } else { config };
        assert_eq!(fs::read_to_string(setup.config_file()).unwrap(), wanted);
        assert_eq!(fs::read_to_string(setup.path("key")).unwrap(), "pk_former");
        assert_eq!(names_in(&setup.path("")), ["beside", "config.toml", "key", "spool"]);
    }
}

#[test]
fn an_ordinary_user_is_told_who_may_and_how_to_have_an_agent_of_their_own() {
    if !Uid::effective().is_root() {
        return;
    }
    let setup = Setup::new();
    let program = setup.path("koala-agent");
    fs::copy(env!("CARGO_BIN_EXE_koala-agent"), &program).unwrap();
    fs::set_permissions(setup.path(""), Permissions::from_mode(0o755)).unwrap();
    for options in [&[][..], &["--instance", "shop"]] {
        let mut command = Command::new(&program);
        command.env_clear().uid(64_202).gid(64_202).args(options).args(["init", "--to", "koala"]);
        let ran = run_command(&mut command, KEY);
        assert_eq!(ran.code, 77, "{ran:?}");
        let line = format!(
            "sudo {} {}",
            program.display(),
            [options, &["init", "--to", "koala"]].concat().join(" ")
        );
        assert_says(&ran.err, &["only root may set up the agent", "koala-agent --user init", &line]);
    }
}

#[test]
fn an_instance_is_named_by_its_option_alone() {
    let setup = Setup::new();
    for (arguments, code, said) in [
        (&["--instance", "shop"][..], 1, "/etc/koala-agent/shop.toml, named by --instance, does not exist"),
        (&["--instance", "Shop"], 64, "a name begins with a small letter"),
        (&["--instance", "config"], 64, "the agent without a name"),
        (&["--instance", "shop", "--user"], 64, "cannot be used with"),
        (&["--instance", "shop", "--config", "x.toml"], 64, "cannot be used with"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_koala-agent"));
        command.env_clear().env("HOME", setup.path("home")).args(arguments).args(["check", "--config-only"]);
        let ran = run_command(&mut command, "");
        assert_eq!(ran.code, code, "{ran:?}");
        assert_says(&format!("{}{}", ran.out, ran.err), &[said]);
    }
}

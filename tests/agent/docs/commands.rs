//! koala-agent(1), koala-agent-guarantees(7), and the README: commands, what they print, backup, space.

use super::run::{agent, is_installed, receiver, shell, start, stop, until};
use super::text::{AGENT, EVENTS, GUARANTEES, README, fenced, literal, section};
use crate::common::setup::Setup;
use std::fs;

#[test]
fn the_examples_of_the_commands_run() {
    let (_receiver, address) = receiver(&[]);
    let mut setup = Setup::new();
    let _agent = agent(&mut setup, &address, "pk_test");
    fs::create_dir_all(setup.path("home")).unwrap();
    fs::write(setup.path("home/events.jsonl"), EVENTS).unwrap();
    for script in literal(&section(AGENT, "EXAMPLES")) {
        let mut script =
            script.replace("koala-agent receiver", "timeout 1 koala-agent receiver --listen 127.0.0.1:0");
        if !is_installed("jq") {
            script = script.lines().filter(|line| !line.contains("| jq")).collect::<Vec<_>>().join("\n");
        }
        if script.contains("sqlite3") && !is_installed("sqlite3") {
            continue;
        }
        let ended_by_us = if script.contains("timeout") { 124 } else { 0 };
        let ran = shell(&setup, &script, "");
        assert_eq!(ran.code, ended_by_us, "{script}\n{ran:?}");
    }
    let checked = shell(&setup, "koala-agent check --config-only", "");
    assert_eq!(checked.code, 0, "{checked:?}");
}

/// Returns the names that a list of koala-agent(1) is about.
fn items(title: &str) -> Vec<&'static str> {
    let lines = section(AGENT, title).into_iter().filter_map(|line| line.strip_prefix(".It Ic "));
    lines.flat_map(|line| line.split(" , ")).collect()
}

#[test]
fn the_page_names_members_of_the_status_and_columns_of_the_outbox_that_exist() {
    let setup = Setup::with_events();
    let status = setup.run(&["status", "--json"]).json();
    let members = items("STATUS AS JSON");
    assert!(members.len() > 20);
    for member in members {
        let pointer = format!("/{}", member.replace('.', "/"));
        assert!(status.pointer(&pointer).is_some(), "{member}");
    }

    assert_eq!(items("THE OUTBOX"), ["outbox_events", "outbox_status"]);
    let lines = section(AGENT, "THE OUTBOX").join("\n");
    let row = setup.run(&["list", "--json", "--limit", "1"]).lines().remove(0);
    let columns: Vec<&str> = row.as_object().unwrap().keys().map(String::as_str).collect();
    let documented =
        lines.split(".Ic ").filter_map(|text| text.lines().next()).find(|line| line.starts_with("seq"));
    let mut documented: Vec<&str> = documented.unwrap().trim_end_matches(" .").split(" , ").collect();
    documented.sort_unstable();
    assert_eq!(documented, columns);
}

#[test]
fn a_backup_that_is_made_and_restored_as_the_readme_says_holds_every_event() {
    if !is_installed("sqlite3") {
        return;
    }
    let lines = |word: &str| {
        let script = fenced(README, "sh").into_iter().find(|script| script.contains("sqlite3")).unwrap();
        let lines = script.lines().filter(|line| line.contains(word)).collect::<Vec<_>>();
        assert!(!lines.is_empty(), "{word}");
        lines.join("\n")
    };
    let on_the_page = literal(&section(GUARANTEES, "EXAMPLES"))[0].replace("\\\n  ", "");
    assert_eq!(on_the_page.trim_end(), lines("sqlite3"));
    let (_receiver, address) = receiver(&["--offline"]);
    let mut setup = Setup::new();
    let running = agent(&mut setup, &address, "pk_test");
    let send = |id: &str| {
        let event =
            format!("{{\"type\":\"identify\",\"messageId\":\"{id}\",\"traits\":{{\"email\":\"a@b.c\"}}}}");
        assert_eq!(setup.run_with(&["send"], &event).code, 0);
        until(&setup, |status| status["spool"]["waiting_files"] == 0 && status["outbox"]["pending"] != 0);
    };
    send("before");
    until(&setup, |status| status["outbox"]["pending"] == 1);
    let backup = shell(&setup, &lines("sqlite3"), "");
    assert_eq!(backup.code, 0, "{backup:?}");
    send("after");
    until(&setup, |status| status["outbox"]["pending"] == 2);
    stop(&setup, running);

    let restored = shell(&setup, &(lines("outbox.db-wal") + "\n" + &lines("install -o")), "");
    assert_eq!(restored.code, 0, "{restored:?}");
    let _running = start(&setup);
    until(&setup, |status| status["outbox"]["pending"] == 1);
    assert_eq!(setup.state_of("before").as_deref(), Some("pending"));
    assert_eq!(setup.state_of("after"), None);
}

/// Compares lines of the README with lines of the program. In the README, a line `…` stands for any number of lines, and
/// a line that ends in `…` for any line with this beginning. Numbers may differ.
fn assert_prints(shown: &str, printed: &str) {
    let printed: Vec<&str> = printed.lines().filter(|line| !line.is_empty()).collect();
    let mut next = 0;
    let mut skips = false;
    for line in shown.lines() {
        if line.trim() == "…" {
            skips = true;
            continue;
        }
        let matches = |other: &&str| match line.strip_suffix('…') {
            Some(start) => without_numbers(other).starts_with(&without_numbers(start)),
            None => without_numbers(other) == without_numbers(line),
        };
        let found = printed[next..].iter().position(matches).filter(|skipped| skips || *skipped == 0);
        let Some(found) = found else {
            panic!("the program does not print this line:\n{line}\nit prints:\n{}", printed.join("\n"));
        };
        next += found + 1;
        skips = false;
    }
    assert!(skips || next == printed.len(), "the program prints more:\n{}", printed[next..].join("\n"));
}

/// Replaces each number by `#`, and each unit of time or size by one, so that times and sizes are not compared.
fn without_numbers(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '0'..='9' if out.ends_with('#') => {}
            '0'..='9' => out.push('#'),
            c => out.push(c),
        }
    }
    let out = out.replace("#.#", "#").replace("#,#", "#");
    let out = out.replace("# min # s", "# s").replace("# min", "# s");
    ["KiB", "MiB", "TiB"].iter().fold(out, |out, unit| out.replace(unit, "GiB"))
}

/// Splits a console block into its commands, each with its output.
fn console(text: &str) -> Vec<(String, String)> {
    let mut commands: Vec<(String, String)> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        match (line.strip_prefix("$ "), commands.last_mut()) {
            (Some(command), _) => commands.push((command.to_owned(), String::new())),
            (None, Some((_, output))) => *output += &format!("{line}\n"),
            (None, None) => panic!("no command stands before {line}"),
        }
    }
    commands
}

#[test]
fn the_readme_shows_what_the_demo_prints() {
    let blocks = fenced(README, "console");
    let commands = console(blocks[0]);
    let [(demo, output)] = commands.as_slice() else { panic!("{commands:?}") };
    let ran = shell(&Setup::new(), demo, "");
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_prints(output, &ran.out);
}

#[test]
fn the_readme_shows_what_the_commands_of_a_day_print() {
    let (_receiver, address) = receiver(&["--key", "pk_other"]);
    let mut setup = Setup::new();
    let _agent = agent(&mut setup, &address, "pk_test");
    let events = r#"{"type":"track","event":"Signed Up","messageId":"m-1","properties":{"email":"ana@acme.dev"}}
{"type":"track","messageId":"m-2","properties":{"email":"ben@globex.dev"}}
{"type":"track","event":"Order Paid","messageId":"m-3","properties":{"email":"cem@initech.dev"}}
"#;
    assert_eq!(setup.run_with(&["send"], events).code, 0);
    until(&setup, |status| {
        status["destination"]["state"] == "refused"
            && status["outbox"]["failed"] == 1
            && status["spool"]["waiting_files"] == 0
    });
    let blocks = fenced(README, "console");
    let commands = console(blocks[1]);
    assert_eq!(commands.len(), 3);
    let folder = setup.path("").display().to_string();
    for (command, output) in commands {
        let ran = shell(&setup, &command, "");
        assert_eq!(ran.code, 0, "{ran:?}");
        // The README shows the system's agent; the test's agent needs `--config`.
        let printed = ran
            .out
            .replace(&format!("koala-agent --config {folder}config.toml "), "koala-agent ")
            .replace(&format!("{folder}config.toml"), "/etc/koala-agent/config.toml")
            .replace(&format!("{folder}spool"), "/var/spool/koala-agent")
            .replace(&format!("{folder}state/outbox.db"), "/var/lib/koala-agent/outbox.db")
            .replace(&format!("{folder}key"), "/etc/koala-agent/public-key");
        assert_prints(&output, &printed);
    }
}

#[test]
fn a_waiting_event_takes_the_space_that_the_readme_says() {
    const COUNT: u64 = 4_000;
    let figure = README.split("about ").find_map(|text| text.split_once(" bytes of disk")).unwrap().0;
    let figure: u64 = figure.parse().unwrap();
    let (_receiver, address) = receiver(&["--key", "pk_other"]);
    let mut setup = Setup::new();
    let _agent = agent(&mut setup, &address, "pk_test");
    let empty = setup.run(&["status", "--json"]).json()["outbox"]["bytes"].as_u64().unwrap();
    let event = |n: u64| {
        let event = format!(
            "{{\"type\":\"track\",\"event\":\"Report Opened\",\"messageId\":\"00000000-0000-4000-8000-{n:012}\",\
             \"properties\":{{\"email\":\"person{:05}@example.com\",\"note\":\"",
            n % 1_000
        );
        let fill = "x".repeat(600 - event.len() - "\"}}".len());
        event + &fill + "\"}}\n"
    };
    let events: String = (0..COUNT).map(event).collect();
    assert_eq!(events.len() as u64, COUNT * 601);
    assert_eq!(setup.run_with(&["send"], &events).code, 0);
    let status = until(&setup, |status| status["outbox"]["pending"] == COUNT);
    let each = (status["outbox"]["bytes"].as_u64().unwrap() - empty) / COUNT;
    assert!(each.abs_diff(figure) * 10 <= figure, "{each} bytes an event, and the README says {figure}");
}

//! The configuration beside a running agent: a slip in it stops nobody, and `status` says what is in force.

use crate::common::agent::TestAgent;
use crate::common::events::track;
use crate::common::setup::{Setup, assert_says};
use koala_agent::receiver::Faults;
use koala_agent::status::{DestinationState, Status};
use nix::sys::signal::Signal;
use std::fs;
use std::os::unix::fs::PermissionsExt;

fn in_force(agent: &mut TestAgent, wanted: bool) {
    let fact = format!("the file is in force: {wanted}");
    agent.until_status(&fact, |status| status.config_in_force == Some(wanted));
}

#[test]
fn a_configuration_broken_beside_a_running_agent_stops_no_producer() {
    let mut agent = TestAgent::program(Faults::default());
    agent.start_and_wait();
    in_force(&mut agent, true);
    let good = fs::read_to_string(agent.config_file()).unwrap();
    let spool_line = good.lines().find(|line| line.starts_with("spool.dir")).unwrap();
    let elsewhere = agent.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    for (n, (broken, problem)) in [
        (format!("{good}\nspool.setle = \"2s\"\n"), "unknown key spool.setle"),
        (format!("{good}\n[koala\n"), "unclosed table"),
        (format!("{good}\nkoala.timeout = \"1 parsec\"\n"), "koala.timeout"),
        (format!("{good}\nmappings_file = \"missing.json\"\n"), "mappings_file"),
        // The place of the spool itself is what is broken, or has been moved beside another slip.
        (good.replace(spool_line, "spool.dir = 7"), "spool.dir"),
        (good.replace(spool_line, "spool.dir = \"/nowhere"), "config.toml:"),
        (good.replace(spool_line, &format!("spool.dirr = {elsewhere:?}")), "unknown key spool.dirr"),
        (
            format!("{}\nx = 1", good.replace(spool_line, &format!("spool.dir = {elsewhere:?}"))),
            "unknown key x",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        fs::write(agent.config_file(), &broken).unwrap();
        let id = format!("sent-{n}");
        let sent = agent.run_with(&["send"], &track(&id, "ana@acme.dev"));
        assert_eq!((sent.code, sent.out.trim()), (0, id.as_str()), "{sent:?}");
        assert_says(&sent.err, &["warning: ", problem, &agent.spool().display().to_string()]);
        agent.until_held(n + 1);
        let status = agent.run(&["status", "--json"]);
        assert_eq!((status.code, &status.json()["config_in_force"]), (0, &false.into()), "{status:?}");
        let text = agent.run(&["status"]);
        assert_says(
            &text.out,
            &["it is broken; what the agent read before stays in force", "check --config-only"],
        );
        assert_eq!(agent.run(&["list"]).code, 0);
        assert_eq!(agent.run(&["show", &id]).code, 0);
        assert_eq!(agent.run(&["check", "--config-only"]).code, 1);
    }
    fs::write(agent.config_file(), format!("{good}\nspool.settle = \"3s\"\n")).unwrap();
    in_force(&mut agent, false);
    assert_says(&agent.run(&["status"]).out, &["it has been changed since the agent read it", "SIGHUP"]);
    agent.signal(Signal::SIGHUP);
    in_force(&mut agent, true);
    agent.stop();
    assert_eq!(agent.status().config_in_force, None);
    // The places are still those that it ran with.
    fs::write(agent.config_file(), format!("{good}\nx = 1\n")).unwrap();
    assert_eq!(agent.run_with(&["send"], &track("late", "ana@acme.dev")).code, 0);
    assert_eq!(agent.files_in_spool(), 1);
}

#[test]
fn a_broken_configuration_that_no_agent_has_run_with_is_an_error() {
    let mut setup = Setup::new();
    setup.set("spool.setle = 1");
    for command in ["send", "status", "list"] {
        let ran = setup.run_with(&[command], &track("a", "ana@acme.dev"));
        assert_eq!(ran.code, 78, "{ran:?}");
        assert_says(&ran.err, &["unknown key spool.setle"]);
    }
}

#[test]
fn the_receivers_words_are_for_those_who_may_read_the_outbox() {
    let mut agent = TestAgent::program(Faults { status: Some(401), ..Faults::default() });
    agent.start_and_wait();
    agent.drop_track("a", "ana@acme.dev");
    agent.until_destination(DestinationState::Refused);
    let quote = "on purpose";
    assert_says(&agent.run(&["status"]).out, &["the receiver answered 401: ", quote]);
    let config = agent.config();
    for (path, mode, is_quoted) in
        [(&config.status_file, 0o644, false), (&config.private_status_file, 0o640, true)]
    {
        agent.until("it is published", |_| {
            Status::read(path).is_some_and(|status| status.destination.state == DestinationState::Refused)
        });
        let text = fs::read_to_string(path).unwrap();
        assert!(text.contains("the receiver answered 401"), "{text}");
        assert_eq!(text.contains(quote), is_quoted, "{text}");
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, mode);
    }
    agent.stop();
}

#[test]
fn a_key_file_with_an_odd_character_stops_no_event_from_being_stored() {
    let mut agent = TestAgent::program(Faults::default());
    let key = agent.path("key");
    fs::write(&key, "pk_1\u{200b}").unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    agent.unset("koala.public_key");
    agent.set(&format!("koala.public_key_file = {key:?}"));
    agent.start_and_wait();
    agent.drop_track("a", "ana@acme.dev");
    agent.until_status("it is stored", |status| status.outbox.pending == 1);
    assert_says(&agent.run(&["status"]).out, &["its character 5 is U+200B"]);
    fs::write(&key, "\u{feff}pk_1\r\n").unwrap();
    agent.signal(Signal::SIGHUP);
    agent.until_held(1);
    agent.stop();
}

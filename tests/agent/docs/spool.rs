//! koala-agent-spool(7), and the README's first events: every producer is run.

use super::run::{agent, command, delivered, is_installed, placed, receiver, shell};
use super::text::{README, SPOOL, fenced, literal, section};
use crate::common::setup::{Ran, Setup};

/// Returns the code block of a subsection of WRITING A FILE.
fn producer(title: &str) -> String {
    let lines = section(SPOOL, "WRITING A FILE");
    let heading = format!(".Ss {title}");
    let lines: Vec<&str> = lines.into_iter().skip_while(|line| *line != heading).collect();
    literal(&lines).swap_remove(0)
}

#[test]
fn programs_hand_events_in_as_the_pages_show() {
    let (_receiver, address) = receiver(&[]);
    let mut setup = Setup::new();
    let _agent = agent(&mut setup, &address, "pk_test");
    let mut sent = 0;
    let mut check = |ran: Ran| {
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
        sent += 1;
        delivered(&setup, sent);
    };
    let event = r#"{"type":"track","event":"Signed Up","properties":{"email":"ana@acme.dev"}}"#;
    check(command(&setup, "sh", &["-euc", &placed(&setup, &producer("Shell"))], event));
    for script in [&producer("Python"), fenced(README, "python")[0]] {
        if is_installed("python3") {
            check(command(&setup, "python3", &["-c", &placed(&setup, script)], ""));
        }
    }
    if is_installed("node") {
        check(command(&setup, "node", &["-e", &placed(&setup, &producer("Node.js"))], ""));
    }
    let status = setup.run(&["status", "--json"]).json();
    for figure in ["waiting_files", "rejected_files", "unreadable_files", "duplicates"] {
        assert_eq!(status["spool"][figure], 0, "{figure}");
    }
}

#[test]
fn the_first_event_of_the_readme_is_delivered() {
    let (_receiver, address) = receiver(&[]);
    let mut setup = Setup::new();
    let _agent = agent(&mut setup, &address, "pk_test");
    let scripts = fenced(README, "sh");
    let script = scripts.iter().find(|script| script.contains("send --wait")).unwrap();
    let ran = shell(&setup, script, "");
    assert_eq!(ran.code, 0, "{ran:?}");
    delivered(&setup, 1);
}

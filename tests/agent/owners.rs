//! The owner of a file is kept with its events, and shown with them.
//!
//! Only root can give files to other users; as another user, all files are the test's own.

use crate::common::agent::TestAgent;
use crate::common::events::track;
use crate::common::setup::{assert_says, names_in};
use koala_agent::receiver::Faults;
use nix::unistd::{Uid, geteuid};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::chown;

/// A number without a name, that no system gives to anybody.
const STRANGER: u32 = 64_202;

/// Drops a file that belongs to the stranger, if that can be. Returns the uid of its owner.
fn drop_as_stranger(agent: &TestAgent, name: &str, text: &str) -> u32 {
    let unfinished = agent.spool().join(".strange");
    fs::write(&unfinished, text).unwrap();
    if geteuid().is_root() {
        chown(&unfinished, Some(STRANGER), Some(STRANGER)).unwrap();
    }
    fs::rename(unfinished, agent.spool().join(name)).unwrap();
    if geteuid().is_root() { STRANGER } else { Uid::effective().as_raw() }
}

#[test]
fn an_events_owner_is_in_the_view_in_the_lists_and_in_the_reason_of_a_reused_id() {
    let mut agent = TestAgent::in_process(Faults::default());
    agent.start();
    let owner = drop_as_stranger(&agent, "first.jsonl", &track("m-1", "ana@acme.dev"));
    agent.until_held(1);
    agent.drop_file("mine.json", track("m-2", "ana@acme.dev"));
    agent.until_held(2);
    agent.drop_file("second.json", track("m-1", "bob@acme.dev"));
    agent.until_status("the second is rejected", |status| status.spool.rejected_files == 1);
    agent.until_status("all is delivered", |status| status.outbox.pending == 0);
    agent.stop();

    let of = |sql: &str| agent.database().query_row(sql, [], |row| row.get::<_, u32>(0)).unwrap();
    assert_eq!(of("SELECT owner FROM outbox_events WHERE message_id = 'm-1'"), owner);
    assert_eq!(of("SELECT owner FROM outbox_events WHERE message_id = 'm-2'"), geteuid().as_raw());
    let listed = agent.run(&["list", "--json", "--limit", "1"]).lines();
    assert_eq!(listed[0]["owner"], geteuid().as_raw());
    assert_eq!(agent.run(&["show", "m-1", "--json"]).json()["owner"], owner);
    let name = if geteuid().is_root() { owner.to_string() } else { koala_agent::spool::user_name(owner) };
    assert_says(
        &agent.run(&["show", "m-1"]).out,
        &["first.jsonl, line 1, written ", &format!(" by {name}\n")],
    );

    let rejected = agent.spool().join("rejected");
    let why = names_in(&rejected).into_iter().find(|name| name.ends_with(".why")).unwrap();
    let why: Value = serde_json::from_slice(&fs::read(rejected.join(why)).unwrap()).unwrap();
    assert_eq!(why["code"], "message_id_reused");
    assert_says(why["text"].as_str().unwrap(), &["first.jsonl", &format!("a file of {name}: ")]);
}

//! Several owners of files, none of whom stops another, and one agent a spool.

use crate::common::agent::TestAgent;
use crate::common::events::{gzip, track};
use crate::common::setup::{Setup, assert_says, names_in};
use koala_agent::receiver::Faults;
use nix::unistd::Uid;
use serde_json::Value;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Two users without a name, who own files in the spool.
const ANA: u32 = 64_301;
const BEN: u32 = 64_302;

/// Whether files can be given to others here; the reason is printed if not.
fn can_give_files() -> bool {
    let can = Uid::effective().is_root();
    if !can {
        eprintln!("not shown: only root can give files to other users");
    }
    can
}

fn event(id: &str) -> String {
    track(id, "ana@acme.dev")
}

/// Drops a file of that owner.
fn drop_of(agent: &TestAgent, owner: u32, name: &str, content: impl AsRef<[u8]>) {
    let aside = agent.spool().join(format!(".{name}"));
    fs::write(&aside, content).unwrap();
    chown(&aside, Some(owner), None).unwrap();
    fs::rename(aside, agent.spool().join(name)).unwrap();
}

/// Begins a file of that owner and time, which stays open.
fn begin_of(agent: &TestAgent, owner: u32, name: &str, time: SystemTime) -> File {
    let mut file = File::create(agent.spool().join(name)).unwrap();
    file.write_all(event(name).as_bytes()).unwrap();
    file.set_modified(time).unwrap();
    chown(agent.spool().join(name), Some(owner), None).unwrap();
    file
}

fn left(agent: &TestAgent) -> Vec<String> {
    names_in(&agent.spool()).into_iter().filter(|name| name != "rejected" && name != ".removing").collect()
}

/// The ids at the receiver, in order.
fn held(agent: &TestAgent) -> Vec<String> {
    agent.receiver.events().into_iter().map(|held| held.message_id.to_string()).collect()
}

#[test]
fn an_unfinished_file_holds_back_files_of_its_owner_only() {
    if !can_give_files() {
        return;
    }
    let mut agent = TestAgent::in_process(Faults::default());
    agent.set("spool.settle = \"1h\"");
    agent.start();
    let open = begin_of(&agent, ANA, "open.jsonl", SystemTime::UNIX_EPOCH);
    agent.until_status("it is seen", |status| status.spool.waiting_files == Some(1));
    drop_of(&agent, ANA, "behind.json", event("behind"));
    for n in 0..5 {
        drop_of(&agent, BEN, &format!("{n}.json"), event(&format!("ben-{n}")));
    }
    agent.until_held(5);
    agent.until("only those are removed", |agent| left(agent) == ["behind.json", "open.jsonl"]);
    agent.until_status("whose files wait is told", |status| {
        status.spool.owners.iter().any(|owner| owner.uid == ANA && owner.waiting_files == 2)
    });
    drop(open);
    agent.until_held(7);
    assert_eq!(held(&agent)[5..], ["open.jsonl", "behind"]);
    agent.stop();
}

#[test]
fn large_documents_of_several_owners_are_read_by_turns_and_each_event_once() {
    if !can_give_files() {
        return;
    }
    let mut agent = TestAgent::in_process(Faults::default());
    let filler = "x".repeat(400);
    let document = |owner: u32| {
        let events = (0..3_000).map(|n| {
            format!(r#"{{"type":"track","event":"{filler}","properties":{{"n":{n},"email":"o{owner}@acme.dev"}}}}"#)
        });
        format!("[{}]", events.collect::<Vec<_>>().join(","))
    };
    for owner in [ANA, BEN] {
        drop_of(&agent, owner, &format!("{owner}.json"), document(owner));
        drop_of(&agent, owner, &format!("{owner}-packed.json.gz"), gzip(document(owner)));
    }
    drop_of(&agent, ANA + 7, "small.json", event("small"));
    agent.start();
    agent.until("all is stored", |agent| left(agent).is_empty());
    agent.until_status("each once", |status| {
        let outbox = &status.outbox;
        (outbox.pending + outbox.delivered, status.spool.duplicates) == (12_001, 0)
    });
    agent.stop();
}

#[test]
fn a_full_outbox_does_not_hide_the_files_that_wait_for_it() {
    let mut agent = TestAgent::in_process(Faults::default());
    agent.set("outbox.min_free = \"100%\"");
    agent.start();
    agent.until_status("it is blocked", |status| status.intake.reason.is_some());
    for n in 0..3 {
        agent.drop_file(format!("{n}.json"), event("any"));
    }
    agent.until_status("they are counted", |status| status.spool.waiting_files == Some(3));
    agent.stop();
}

#[test]
fn a_second_agent_on_a_spool_ends_and_names_the_first() {
    let mut first = TestAgent::program(Faults::default());
    first.start_and_wait();
    let mut second = Setup::new();
    second.set(&format!("spool.dir = \"{}\"", first.spool().display()));
    let ran = second.run(&["run"]);
    assert_eq!(ran.code, 75, "{ran:?}");
    assert!(ran.err.contains(&format!("process id {}", first.pid())), "{ran:?}");
    first.drop_file("one.json", event("one"));
    first.until_held(1);
    first.stop();
    // A lock ends with its process.
    first.start_and_wait();
    first.stop();
}

#[test]
fn a_folder_of_another_user_where_files_leave_the_spool_is_named_with_the_fix() {
    if !can_give_files() {
        return;
    }
    let agent = TestAgent::program(Faults::default());
    let removing = agent.spool().join(".removing");
    fs::create_dir(&removing).unwrap();
    chown(&removing, Some(ANA), None).unwrap();
    chown(agent.spool(), Some(BEN), None).unwrap();
    let spool = koala_agent::spool::Spool::open(&agent.spool());
    assert!(spool.is_ok(), "root may find the folder of the service");
    fs::remove_file(removing.join(".lock")).unwrap();
    fs::remove_dir(&removing).unwrap();
    std::os::unix::fs::symlink("/etc", &removing).unwrap();
    let error = koala_agent::spool::Spool::open(&agent.spool()).unwrap_err().to_string();
    let fix = format!("mv -T {0} {0}.old", removing.display());
    assert!(error.contains("a symbolic link") && error.contains(&fix), "{error}");
    assert_eq!(fs::metadata("/etc").unwrap().uid(), 0);
    assert!(!Path::new("/etc/.lock").exists());
}

#[test]
fn a_file_that_was_in_hand_when_the_agent_was_killed_is_read_last() {
    let mut agent = TestAgent::in_process(Faults::default());
    for name in ["1.json", "2.json", "3.json"] {
        agent.drop_file(name, event(name));
        std::thread::sleep(Duration::from_millis(20));
    }
    {
        let spool = koala_agent::spool::Spool::open(&agent.spool()).unwrap();
        let first = spool.entry("1.json".as_ref()).unwrap();
        spool.in_hand().take(first.identity.key());
    }
    agent.start();
    agent.until_held(3);
    assert_eq!(held(&agent), ["2.json", "3.json", "1.json"]);
    agent.stop();
    assert!(!agent.spool().join(".removing/.reading").exists());
}

#[test]
fn an_events_owner_is_in_the_view_in_the_lists_and_in_the_reason_of_a_reused_id() {
    if !can_give_files() {
        return;
    }
    let mut agent = TestAgent::in_process(Faults::default());
    agent.start();
    let owner = ANA;
    drop_of(&agent, owner, "first.jsonl", event("m-1"));
    agent.until_held(1);
    agent.drop_file("mine.json", event("m-2"));
    agent.until_held(2);
    agent.drop_file("second.json", track("m-1", "bob@acme.dev"));
    agent.until_status("the second is rejected", |status| status.spool.rejected_files == Some(1));
    agent.until_status("all is delivered", |status| status.outbox.pending == 0);
    agent.stop();

    let of = |sql: &str| agent.database().query_row(sql, [], |row| row.get::<_, u32>(0)).unwrap();
    assert_eq!(of("SELECT owner FROM outbox_events WHERE message_id = 'm-1'"), owner);
    assert_eq!(of("SELECT owner FROM outbox_events WHERE message_id = 'm-2'"), Uid::effective().as_raw());
    let listed = agent.run(&["list", "--json", "--limit", "1"]).lines();
    assert_eq!(listed[0]["owner"], Uid::effective().as_raw());
    assert_eq!(agent.run(&["show", "m-1", "--json"]).json()["owner"], owner);
    assert_says(
        &agent.run(&["show", "m-1"]).out,
        &["first.jsonl, line 1, written ", &format!(" by {owner}\n")],
    );

    let rejected = agent.spool().join("rejected");
    let why = names_in(&rejected).into_iter().find(|name| name.ends_with(".why")).unwrap();
    let why: Value = serde_json::from_slice(&fs::read(rejected.join(why)).unwrap()).unwrap();
    assert_eq!(why["code"], "message_id_reused");
    assert_says(why["text"].as_str().unwrap(), &["first.jsonl", &format!("a file of {owner}: ")]);
}

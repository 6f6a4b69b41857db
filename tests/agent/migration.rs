//! An outbox of an older agent is taken over with all that is in it.

use crate::common::agent::TestAgent;
use crate::common::events::track;
use crate::common::older::make_older;
use koala_agent::outbox::Reader;
use koala_agent::receiver::Faults;
use std::collections::BTreeMap;

/// Every event's state and reason by its id.
fn states(agent: &TestAgent) -> BTreeMap<String, (String, String)> {
    let outbox = agent.database();
    let sql = "SELECT message_id, state, coalesce(reason, '') FROM outbox_events";
    let mut rows = outbox.prepare(sql).unwrap();
    let rows = rows.query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?)))).unwrap();
    rows.map(Result::unwrap).collect()
}

#[test]
fn an_outbox_of_every_older_schema_keeps_its_events_and_delivers_them() {
    for version in 1..=4 {
        let mut agent = TestAgent::in_process(Faults::default());
        agent.start();
        agent.drop_track("delivered", "ana@acme.dev");
        agent.drop_file(
            "2.json",
            r#"{"type":"page","name":"Pricing","messageId":"skipped","context":{"traits":{}}}"#,
        );
        agent.drop_file(
            "3.json",
            r#"{"type":"track","messageId":"failed","properties":{"email":"ana@acme.dev"}}"#,
        );
        agent.until("three are settled", |agent| {
            let outbox = agent.status().outbox;
            (outbox.delivered, outbox.skipped, outbox.failed) == (1, 1, 1)
        });
        agent.receiver.set_faults(Faults { offline: true, ..Faults::default() });
        let waiting = ["w-1", "w-2", "w-3", "given-up"];
        for (n, id) in waiting.iter().enumerate() {
            agent.drop_track(id, &format!("p{}@acme.dev", n % 2));
        }
        agent.until_status("four wait", |status| status.outbox.pending == 4);
        agent.stop();
        assert_eq!(agent.run(&["discard", "given-up"]).code, 0);
        let before = states(&agent);
        assert_eq!(before.len(), 7);

        let known = make_older(&agent.outbox(), version);
        assert!(known > version as i64);
        // Until the agent has brought it up to date it can be looked at.
        for arguments in [
            &["status"][..],
            &["list"],
            &["show", "w-1"],
            &["show", "failed"],
            &["list", "--person", "p1@acme.dev"],
        ] {
            let ran = agent.run(arguments);
            assert_eq!(ran.code, 0, "schema {version}, {arguments:?}: {ran:?}");
        }
        agent.start();
        assert_eq!(states(&agent), before, "schema {version}");
        agent.receiver.set_faults(Faults::default());
        agent.until_status("what waited is delivered", |status| status.outbox.delivered == 4);
        agent.drop_file("9.json", track("delivered", "ana@acme.dev"));
        agent.until_status("what was delivered is known", |status| status.spool.duplicates == 1);
        agent.stop();
        let ids: Vec<String> =
            agent.receiver.events().iter().map(|held| held.message_id.to_string()).collect();
        assert_eq!(ids.len(), 4, "{ids:?}");
        assert!(ids.iter().position(|id| id == "w-1") < ids.iter().position(|id| id == "w-3"), "{ids:?}");
        assert_eq!(agent.receiver.stats().repeats, 0);
        for id in ["skipped", "failed", "given-up"] {
            assert_eq!(states(&agent)[id], before[id], "schema {version}");
        }

        // Under other mappings what was skipped goes out, for each mapping that takes it.
        agent.set_tables(
            "[[mapping]]\nname = \"Pages\"\ntrigger = 'type = \"page\"'\naction = \"track\"\n\
             fields = { event = \"Viewed\", properties = { email = \"ana@acme.dev\" } }\n\
             [[mapping]]\nname = \"Accounts\"\ntrigger = 'type = \"page\"'\naction = \"account_track\"\n\
             fields = { event = \"Viewed\", domain = \"acme.dev\", message_id = \"a-1\" }\n",
        );
        agent.start();
        assert_eq!(agent.run(&["retry", "skipped"]).code, 0);
        agent.until("both items are delivered", |agent| agent.receiver.stats().held == 6);
        agent.until_status("the event is", |status| status.outbox.delivered == 5);
        agent.stop();
        let reader = Reader::open(&agent.outbox()).unwrap();
        assert_eq!(reader.show("skipped").unwrap().unwrap().row.state, "delivered");
    }
}

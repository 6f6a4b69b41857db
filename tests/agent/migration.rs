//! An outbox of an older agent is taken over with all that is in it.

use crate::common::older::make_older;
use crate::common::world::{World, track};
use koala_agent::outbox::Reader;
use koala_agent::receiver::Faults;
use std::collections::BTreeMap;
use std::process::{Command, Output};

/// Every event's state and reason by its id.
fn states(world: &World) -> BTreeMap<String, (String, String)> {
    let outbox = rusqlite::Connection::open(world.outbox()).unwrap();
    let sql = "SELECT message_id, state, coalesce(reason, '') FROM outbox_events";
    let mut rows = outbox.prepare(sql).unwrap();
    let rows = rows.query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?)))).unwrap();
    rows.map(Result::unwrap).collect()
}

fn command(world: &World, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_koala-agent"));
    command.env_clear().arg("--config").arg(world.config_file()).args(arguments).output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outbox_of_every_older_schema_keeps_its_events_and_delivers_them() {
    for version in 1..=4 {
        let mut world = World::new(Faults::default()).await;
        world.start().await;
        world.track("delivered", "ana@acme.dev");
        world.drop_file(
            "2.json",
            r#"{"type":"page","name":"Pricing","messageId":"skipped","context":{"traits":{}}}"#,
        );
        world.drop_file(
            "3.json",
            r#"{"type":"track","messageId":"failed","properties":{"email":"ana@acme.dev"}}"#,
        );
        world
            .until("three are settled", |w| {
                let outbox = w.status().outbox;
                (outbox.delivered, outbox.skipped, outbox.failed) == (1, 1, 1)
            })
            .await;
        world.receiver.set_faults(Faults { offline: true, ..Faults::default() });
        let waiting = ["w-1", "w-2", "w-3", "given-up"];
        for (n, id) in waiting.iter().enumerate() {
            world.track(id, &format!("p{}@acme.dev", n % 2));
        }
        world.until("four wait", |w| w.status().outbox.pending == 4).await;
        world.stop().await;
        assert!(command(&world, &["discard", "given-up"]).status.success());
        let before = states(&world);
        assert_eq!(before.len(), 7);

        let known = make_older(&world.outbox(), version);
        assert!(known > version as i64);
        // Until the agent has brought it up to date it can be looked at.
        for arguments in [
            &["status"][..],
            &["list"],
            &["show", "w-1"],
            &["show", "failed"],
            &["list", "--person", "p1@acme.dev"],
        ] {
            let output = command(&world, arguments);
            assert!(output.status.success(), "schema {version}, {arguments:?}: {output:?}");
        }
        world.start().await;
        assert_eq!(states(&world), before, "schema {version}");
        world.receiver.set_faults(Faults::default());
        world.until("what waited is delivered", |w| w.status().outbox.delivered == 4).await;
        world.drop_file("9.json", track("delivered", "ana@acme.dev"));
        world.until("what was delivered is known", |w| w.status().spool.duplicates == 1).await;
        world.stop().await;
        let ids: Vec<String> =
            world.receiver.events().iter().map(|held| held.message_id.to_string()).collect();
        assert_eq!(ids.len(), 4, "{ids:?}");
        assert!(ids.iter().position(|id| id == "w-1") < ids.iter().position(|id| id == "w-3"), "{ids:?}");
        assert_eq!(world.receiver.stats().repeats, 0);
        for id in ["skipped", "failed", "given-up"] {
            assert_eq!(states(&world)[id], before[id], "schema {version}");
        }

        // Under other mappings what was skipped goes out, for each mapping that takes it.
        world.set(
            "[[mapping]]\nname = \"Pages\"\ntrigger = 'type = \"page\"'\naction = \"track\"\n\
             fields = { event = \"Viewed\", properties = { email = \"ana@acme.dev\" } }\n\
             [[mapping]]\nname = \"Accounts\"\ntrigger = 'type = \"page\"'\naction = \"account_track\"\n\
             fields = { event = \"Viewed\", domain = \"acme.dev\", message_id = \"a-1\" }\n",
        );
        world.start().await;
        assert!(command(&world, &["retry", "skipped"]).status.success());
        world.until("both items are delivered", |w| w.receiver.stats().held == 6).await;
        world.until("the event is", |w| w.status().outbox.delivered == 5).await;
        world.stop().await;
        let reader = Reader::open(&world.outbox()).unwrap();
        assert_eq!(reader.show("skipped").unwrap().unwrap().row.state, "delivered");
    }
}

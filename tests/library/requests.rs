//! Properties of every event and every sequence of events, tried with many.

use crate::common::vectors::map;
use koala_agent::clock::Timestamp;
use koala_agent::event::{Event, MAX_DEPTH};
use koala_agent::item::MAX_OF_A_KIND;
use koala_agent::item::{Disposition, Item, ItemKind};
use koala_agent::koala::batch::Batch;
use proptest::prelude::*;
use serde_json::{Map, Value};

fn items(text: &str) -> Vec<Item> {
    let event = Event::parse(text).unwrap();
    match map(&event, &event.message_id().unwrap().unwrap(), Timestamp(0)) {
        Disposition::Send(item) => vec![*item],
        other => panic!("{other:?}"),
    }
}

/// A JSON value written twice: with white space and without.
#[derive(Debug, Clone)]
struct Written {
    loose: String,
    tight: String,
}

impl Written {
    fn list(brackets: [char; 2], parts: Vec<Written>, space: &str) -> Written {
        let join = |pick: fn(&Written) -> &str, space: &str| {
            let parts: Vec<_> = parts.iter().map(pick).collect();
            let [open, close] = brackets;
            format!("{open}{space}{}{space}{close}", parts.join(&format!("{space},{space}")))
        };
        Written { loose: join(|w| &w.loose, space), tight: join(|w| &w.tight, "") }
    }
}

fn json_string() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>().prop_map(|s| Value::from(s).to_string()),
        prop_oneof![Just(r#""\ud83d\ude80 \/""#), Just(r#""\ud800""#), Just(r#"" { \" [ \\""#)]
            .prop_map(String::from),
    ]
}

fn scalar() -> impl Strategy<Value = Written> {
    prop_oneof![
        prop::sample::select(vec![
            "null",
            "true",
            "false",
            "-0",
            "1.0",
            "1e21",
            "9007199254740993",
            "1E-7",
            "1e999"
        ])
        .prop_map(String::from),
        "-?(0|[1-9][0-9]{0,30})(\\.[0-9]{1,30})?([eE][+-]?[0-9]{1,4})?",
        json_string(),
    ]
    .prop_map(|text| Written { loose: text.clone(), tight: text })
}

fn space() -> impl Strategy<Value = String> {
    "[ \t\r\n]{0,2}"
}

fn object(values: impl Strategy<Value = Written>) -> impl Strategy<Value = Written> {
    let member = (json_string(), space(), values).prop_map(|(key, space, value)| Written {
        loose: format!("{key}{space}:{space}{}", value.loose),
        tight: format!("{key}:{}", value.tight),
    });
    (prop::collection::vec(member, 0..6), space()).prop_map(|(m, space)| Written::list(['{', '}'], m, &space))
}

fn value() -> impl Strategy<Value = Written> {
    scalar().prop_recursive(5, 40, 6, |inner| {
        let array = (prop::collection::vec(inner.clone(), 0..6), space());
        prop_oneof![object(inner), array.prop_map(|(v, space)| Written::list(['[', ']'], v, &space))]
    })
}

/// Members of events of one person; few values, so that they clash often.
fn event_of_one_person() -> impl Strategy<Value = String> {
    let traits = prop::collection::btree_map("[abc]", prop::sample::select(vec!["1", "1.0", "\"x\""]), 0..3);
    let ip = prop_oneof![9 => Just(""), 1 => Just(r#","ip":"::1""#)];
    (any::<bool>(), traits, ip).prop_map(|(track, traits, ip)| {
        let traits: Vec<_> = traits.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
        let traits = traits.join(",");
        if track {
            format!(r#""type":"track","event":"E","context":{{"traits":{{{traits}}}{ip}}}"#)
        } else {
            format!(r#""type":"identify","traits":{{{traits}}},"context":{{"x":0{ip}}}"#)
        }
    })
}

/// The knowledge of a receiver after some requests: the events in order, each with the ip it came under, and the traits.
#[derive(Debug, Default, PartialEq)]
struct Told {
    events: Vec<(String, Option<Value>)>,
    traits: Map<String, Value>,
}

impl Told {
    fn hear(&mut self, body: &str) {
        let body: Value = serde_json::from_str(body).unwrap();
        for list in ["identifies", "events"] {
            let items = body.get(list).and_then(Value::as_array).into_iter().flatten();
            self.events.extend(items.map(|item| (item.to_string(), body.get("ip").cloned())));
        }
        self.traits.extend(body["traits"].as_object().unwrap().clone());
    }
}

proptest! {
    #[test]
    fn any_bytes_are_an_event_or_a_flaw_with_a_place(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let text = String::from_utf8_lossy(&bytes);
        if let Err(flaw) = Event::parse(&text) {
            prop_assert!(flaw.line >= 1 && flaw.column >= 1);
        }
    }

    #[test]
    fn any_brackets_are_an_event_or_a_flaw(text in r#"[\[\]{}",:\\ a1\n]{0,60}"#) {
        if let Ok(event) = Event::parse(&text) {
            let _ = (event.digest(), event.message_id(), event.kind(), event.name(), event.members().count());
        }
    }

    #[test]
    fn a_cut_event_is_incomplete_at_every_place(value in value(), at in any::<prop::sample::Index>()) {
        let text = format!(r#"{{"properties":{}}}"#, value.loose);
        let cut = (0..=at.index(text.len())).rev().find(|&i| text.is_char_boundary(i)).unwrap();
        let flaw = Event::parse(&text[..cut]).unwrap_err();
        prop_assert!(flaw.incomplete, "{flaw:?}");
    }

    #[test]
    fn properties_arrive_as_they_were_written(value in object(value()), nest in 0..MAX_DEPTH - 20) {
        let deep = |text: &str| format!("{{\"deep\":{}{text}{}}}", "[".repeat(nest), "]".repeat(nest));
        let event = format!(
            "{{\"type\":\"track\",\"event\":\"E\",\"messageId\":\"m\",\n\"email\":\"a@b.co\" ,\"properties\":{}}}",
            deep(&value.loose)
        );
        let body = Batch::new(items(&event).remove(0)).body();
        let want = format!(
            r#"{{"email":"a@b.co","traits":{{}},"events":[{{"type":"track","email":"a@b.co","event":"E","properties":{},"sent_at":"1970-01-01T00:00:00.000Z","message_id":"m"}}]}}"#,
            deep(&value.tight)
        );
        prop_assert_eq!(body, want);
    }

    #[test]
    fn white_space_and_order_do_not_make_another_event(value in value()) {
        let a = format!(r#"{{"type":"track","properties":{}}}"#, value.loose);
        let b = format!(r#"{{"properties":{}, "type":"track", "sentAt":0}}"#, value.tight);
        prop_assert_eq!(Event::parse(&a).unwrap().digest(), Event::parse(&b).unwrap().digest());
    }

    #[test]
    fn a_batch_says_the_same_as_its_events_one_by_one(events in prop::collection::vec(event_of_one_person(), 1..120)) {
        let (mut one_by_one, mut together) = (Told::default(), Told::default());
        let mut batches: Vec<Batch> = Vec::new();
        for (i, event) in events.iter().enumerate() {
            for item in items(&format!(r#"{{{event},"messageId":"m-{i}","email":"a@b.co"}}"#)) {
                one_by_one.hear(&Batch::new(item.clone()).body());
                match batches.last_mut() {
                    None => batches.push(Batch::new(item)),
                    Some(last) => {
                        if let Err(item) = last.push(item) {
                            batches.push(Batch::new(item));
                        }
                    }
                }
            }
        }
        for batch in &batches {
            let body = batch.body();
            prop_assert_eq!(batch.size(), body.len());
            let before = together.events.len();
            together.hear(&body);
            let heard = &together.events[before..];
            prop_assert_eq!(heard.len(), batch.len());
            let tracks = heard.iter().filter(|(item, _)| item.contains(r#""type":"track""#)).count();
            prop_assert!(tracks.max(batch.len() - tracks) <= MAX_OF_A_KIND);
        }
        prop_assert_eq!(together, one_by_one);
    }
}

#[test]
fn a_hundred_like_events_fill_their_requests() {
    let track = r#"{"type":"track","event":"E","messageId":"m","email":"a@b.co"}"#;
    let mut batch = Batch::new(items(track).remove(0));
    while batch.push(items(track).remove(0)).is_ok() {}
    assert_eq!(batch.len(), MAX_OF_A_KIND);
    assert_eq!(items(track)[0].kind, ItemKind::Track);
}

//! What the README and the packaged configuration show of mappings does what they say.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

#[path = "common/mod.rs"]
mod common;

use common::setup::{Setup, assert_says};
use serde_json::{Value, json};
use std::fs;

const README: &str = include_str!("../README.md");
const PACKAGED: &str = include_str!("../packaging/config.toml");

const EVENTS: [&str; 3] = [
    r#"{"type":"track","event":"Pricing Viewed","messageId":"m-1","timestamp":"2026-01-02T03:04:05Z",
        "properties":{"email":"ana@acme.dev","phone":"+49 1","company":{"name":"Acme","phone":"+49 2"}}}"#,
    r#"{"type":"track","event":"Signed Up","messageId":"m-2","properties":{"email":"ana@acme.dev"}}"#,
    r#"{"type":"identify","messageId":"m-3","traits":{"email":"ana@acme.dev"}}"#,
];

/// The examples in TOML of a text.
fn examples(text: &str) -> impl Iterator<Item = &str> {
    text.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap())
}

/// What `map` prints with that at the end of the configuration.
fn mapped(example: &str, events: &[&str]) -> Vec<Value> {
    let setup = Setup::new();
    let config = fs::read_to_string(setup.config_file()).unwrap();
    fs::write(setup.path("hash-key"), "0123456789abcdef").unwrap();
    let key = format!("koala.hash_key_file = \"{}\"", setup.path("hash-key").display());
    fs::write(setup.config_file(), format!("{config}\n{key}\n{example}")).unwrap();
    let lines: String = events.iter().map(|event| event.replace('\n', " ") + "\n").collect();
    let ran = setup.run_with(&["map"], &lines);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{example}");
    ran.lines()
}

/// One event goes out, without the phone numbers.
fn sends_what_pricing_visitors_do(lines: &[Value]) {
    let body = json!({"email": "ana@acme.dev", "traits": {}, "events": [{
        "type": "track", "event": "Pricing Viewed", "properties": {"email": "ana@acme.dev", "company": {"name": "Acme"}},
        "sent_at": "2026-01-02T03:04:05Z", "message_id": "m-1"}]});
    assert_eq!(lines[0]["requests"][0]["path"], "/web/projects/<public_key>/batch");
    assert_eq!(lines[0]["requests"][0]["body"], body);
    assert_eq!(lines[0]["requests"].as_array().unwrap().len(), 1);
    for line in &lines[1..] {
        assert_eq!(line["skipped"]["code"], "no_mapping", "{line}");
    }
}

#[test]
fn the_example_of_the_readme_sends_what_it_says() {
    let examples: Vec<&str> = examples(README).collect();
    let [example] = examples[..] else { panic!("an example is new: say here what it does: {examples:?}") };
    sends_what_pricing_visitors_do(&mapped(example, &EVENTS));
}

#[test]
fn the_example_of_the_packaged_configuration_is_the_same() {
    let lines =
        PACKAGED.lines().skip_while(|line| *line != "# [[mapping]]").take_while(|line| !line.is_empty());
    let example: String = lines.map(|line| line.strip_prefix("# ").unwrap().to_owned() + "\n").collect();
    sends_what_pricing_visitors_do(&mapped(&example, &EVENTS));
}

/// The pieces in the sentences below it.
#[test]
fn what_the_readme_says_in_a_line_holds() {
    for piece in [
        "mappings_file = \"mappings.json\"",
        "{ \"@hash\" = { \"@path\" = \"$.userId\" } }",
        "koala.consent_categories = [\"advertising\"]",
        "message_id = { \"@template\" = \"{{messageId}}-2\" }",
    ] {
        assert_says(README, &[piece]);
    }
    let group = r#"{"type":"group","groupId":"g-1","userId":"u-1","messageId":"m-4","traits":{"domain":"acme.dev"},
        "context":{"consent":{"categoryPreferences":{"advertising":false}}}}"#;
    let accounts = "[[mapping]]\npreset = \"Group Calls\"\n[mapping.fields]\n\
                    account_id = { \"@hash\" = { \"@path\" = \"$.userId\" } }\n";
    let lines = mapped(accounts, &[group]);
    assert_eq!(lines[0]["requests"][0]["path"], "/web/projects/<public_key>/accounts/batch");
    let body = &lines[0]["requests"][0]["body"];
    // printf u-1 | openssl dgst -sha256 -hmac 0123456789abcdef
    let hash = "9faa1b049c0fba732d92e9844d49635e0b0495660a78566b2ed4b50a7f4e2d0d";
    assert_eq!((&body["domain"], &body["account_id"]), (&json!("acme.dev"), &json!(hash)));

    let second = "[[mapping]]\npreset = \"Track Calls\"\n[[mapping]]\npreset = \"Track Calls\"\nname = \"Again\"\n\
                  fields = { message_id = { \"@template\" = \"{{messageId}}-2\" } }\n";
    let lines = mapped(second, &EVENTS[..1]);
    let ids: Vec<&Value> = lines[0]["requests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|request| &request["body"]["events"][0]["message_id"])
        .collect();
    assert_eq!(ids, ["m-1", "m-1-2"]);

    let consent = format!("koala.consent_categories = [\"advertising\"]\n{accounts}");
    assert_eq!(mapped(&consent, &[group])[0]["skipped"]["code"], "no_consent");
}

//! koala-agent-mappings(7): every trigger, directive and example is run by `map`.

use super::run::{mapped, mapped_by_file};
use super::text::{EVENTS, MAPPINGS, PACKAGED, answered, literal, parsed, section};
use crate::common::setup::{Setup, assert_says};
use serde_json::{Value, json};
use std::fs;

/// Returns what the program says of a configuration with a mistake in its only mapping.
fn refusal(mapping: &str) -> String {
    let setup = Setup::new();
    fs::write(setup.config_file(), format!("[[mapping]]\n{mapping}\n")).unwrap();
    let ran = setup.run(&["map"]);
    assert_eq!(ran.code, 78, "{ran:?}");
    ran.err
}

/// Returns the names that the first line of a refusal lists at its end: `…; the keys are preset, name, trigger`.
fn listed(refusal: &str) -> Vec<&str> {
    let line = refusal.lines().next().unwrap();
    let list = line.rsplit("; ").next().unwrap();
    list.split(", ").map(|name| name.rsplit(' ').next().unwrap()).collect()
}

#[test]
fn the_page_has_every_key_of_a_mapping_and_every_field() {
    let items = |title| section(MAPPINGS, title).into_iter().filter_map(|line| line.strip_prefix(".It Ic "));
    let keys: Vec<&str> = items("KEYS OF A MAPPING").collect();
    assert_eq!(keys, listed(&refusal("unknown = 1")));

    let text = section(MAPPINGS, "ACTIONS AND FIELDS").join(" ");
    let words: Vec<&str> = text.split_whitespace().collect();
    let refused = refusal("preset = \"Track Calls\"\naction = \"unknown\"");
    let actions = listed(&refused);
    assert_eq!(actions.len(), 4);
    for action in actions {
        assert!(words.contains(&action), "{action}");
        let mapping = format!("preset = \"Track Calls\"\naction = \"{action}\"\nfields = {{ unknown = 1 }}");
        for field in listed(&refusal(&mapping)) {
            assert!(words.contains(&field), "{field} of {action}");
        }
    }
}

fn sample() -> String {
    let blocks = literal(&section(MAPPINGS, "DESCRIPTION"));
    let [event] = blocks.as_slice() else { panic!("{blocks:?}") };
    event.clone()
}

#[test]
fn the_triggers_of_the_page_answer_as_it_says() {
    let triggers = answered(&literal(&section(MAPPINGS, "TRIGGERS")));
    assert!(triggers.len() > 5);
    let mappings = triggers.iter().enumerate().map(|(n, (trigger, _))| {
        json!({"name": n.to_string(), "trigger": trigger.trim_end(), "actionSlug": "track"})
    });
    let mappings = Value::from_iter(mappings).to_string();
    let lines = mapped_by_file("mappings_file = \"mappings.json\"", &mappings, &sample());
    for (n, (trigger, answer)) in triggers.iter().enumerate() {
        assert_eq!(lines[0]["mappings"][n]["matched"], *answer, "{trigger}");
    }
}

#[test]
fn the_directives_of_the_page_make_what_it_says() {
    let examples = answered(&literal(&section(MAPPINGS, "DIRECTIVES")));
    let values = examples.iter().enumerate().map(|(n, (field, _))| (n.to_string(), parsed(field)));
    let settings = json!({"properties": Value::from_iter(values), "email": {"@path": "$.properties.email"}});
    let mapping =
        json!([{"name": "all", "trigger": "type = \"track\"", "actionSlug": "track", "settings": settings}]);
    let lines = mapped_by_file("mappings_file = \"mappings.json\"", &mapping.to_string(), &sample());
    let properties = &lines[0]["requests"][0]["body"]["events"][0]["properties"];
    for (n, (field, value)) in examples.iter().enumerate() {
        assert_eq!(properties[n.to_string()], *value, "{field}");
    }
    // The error names every directive that the program knows.
    let documented = section(MAPPINGS, "DIRECTIVES");
    let mut documented: Vec<&str> =
        documented.iter().filter_map(|line| line.strip_prefix(".It Ic ")).collect();
    documented.sort_unstable();
    let error = refusal("preset = \"Track Calls\"\nfields = { event = { \"@unknown\" = 1 } }");
    let mut known: Vec<&str> = error
        .split([' ', ',', '\n'])
        .skip_while(|word| *word != "are")
        .filter(|word| word.starts_with('@'))
        .collect();
    known.sort_unstable();
    assert_eq!(documented, known, "{error}");
}

/// Compares a line of `map` with the page, which shows the body of the only request, or the reason of a skip.
fn assert_made(line: &Value, expected: &str) {
    let expected = parsed(expected);
    match expected.get("skipped") {
        Some(reason) => assert_eq!(line["skipped"], *reason),
        None => {
            assert_eq!(line["requests"].as_array().map(Vec::len), Some(1), "{line}");
            assert_eq!(line["requests"][0]["body"], expected);
        }
    }
}

#[test]
fn the_examples_of_mappings_make_what_the_page_says() {
    let examples = literal(&section(MAPPINGS, "EXAMPLES"));
    assert_eq!((examples.len() > 9, examples.len() % 3), (true, 0));
    for example in examples.chunks(3) {
        let [config, event, expected] = example else { panic!("{example:?}") };
        let lines = mapped(config, event);
        assert_eq!(lines.len(), 1, "{config}");
        assert_made(&lines[0], expected);
    }
    let example = literal(&section(MAPPINGS, "MAPPINGS OF SEGMENT"));
    let [config, mappings, expected] = example.as_slice() else { panic!("{example:?}") };
    assert_made(&mapped_by_file(config, mappings, &sample())[0], expected);
}

/// What RudderStack's SDKs write, and neither preset sends whole.
#[test]
fn the_mapping_for_rudderstacks_shape_takes_it() {
    let examples = literal(&section(MAPPINGS, "EXAMPLES"));
    let config = examples.iter().find(|example| example.contains("$.context.traits")).unwrap();
    let lines = mapped(config, include_str!("../cases/m6-rudder-identify.jsonl"));
    let profile = "7b1ab1d6-5b0f-4a7b-9b63-1f2f3a4b5c6d";
    let email = json!({"email": "ana@x.test"});
    for (n, want) in [
        (
            0,
            json!({"email": "ana@x.test", "profile_id": null, "traits": {"email": "ana@x.test", "plan": "pro"}}),
        ),
        (1, json!({"email": "ana@x.test", "profile_id": profile, "traits": email})),
        (2, json!({"email": null, "profile_id": profile, "traits": {}})),
    ] {
        let body = &lines[n]["requests"][0]["body"];
        for member in ["email", "profile_id", "traits"] {
            assert_eq!(body[member], want[member], "{body}");
        }
    }
    for line in &lines[3..] {
        assert_eq!(line["skipped"]["code"], "no_mapping", "{line}");
    }
}

#[test]
fn the_mapping_in_the_packaged_configuration_sends_only_what_visitors_of_the_pricing_pages_do() {
    let lines =
        PACKAGED.lines().skip_while(|line| *line != "# [[mapping]]").take_while(|line| !line.is_empty());
    let example: String = lines.map(|line| line.strip_prefix("# ").unwrap().to_owned() + "\n").collect();
    let lines = mapped(&example, EVENTS);
    let body = json!({"email": "ana@acme.dev", "traits": {}, "events": [{
        "type": "track", "event": "Pricing Viewed", "properties": {"email": "ana@acme.dev", "company": {"name": "Acme"}},
        "sent_at": "2026-01-02T03:04:05Z", "message_id": "m-1"}]});
    assert_eq!(lines[0]["requests"][0]["path"], "/web/projects/<public_key>/batch");
    assert_made(&lines[0], &body.to_string());
    for line in &lines[1..] {
        assert_eq!(line["skipped"]["code"], "no_mapping", "{line}");
    }
}

#[test]
fn a_second_mapping_for_one_event_sends_a_second_item() {
    // The page shows this line in a sentence.
    let sentence = "fields = { message_id = { \\(dq@template\\(dq = \\(dq{{messageId}}-2\\(dq } }";
    assert_says(MAPPINGS, &[sentence]);
    let second = format!(
        "[[mapping]]\npreset = \"Track Calls\"\n[[mapping]]\npreset = \"Track Calls\"\nname = \"Again\"\n{}\n",
        sentence.replace("\\(dq", "\"")
    );
    let lines = mapped(&second, EVENTS);
    let requests = lines[0]["requests"].as_array().unwrap();
    let ids: Vec<&Value> =
        requests.iter().map(|request| &request["body"]["events"][0]["message_id"]).collect();
    assert_eq!(ids, ["m-1", "m-1-2"]);
}

#[test]
fn an_account_has_its_own_address_and_consent_is_asked_for_it_too() {
    let group = r#"{"type":"group","groupId":"g-1","userId":"u-1","messageId":"m-4","traits":{"domain":"acme.dev"},"context":{"consent":{"categoryPreferences":{"advertising":false}}}}"#;
    let accounts = "[[mapping]]\npreset = \"Group Calls\"\n[mapping.fields]\n\
                    account_id = { \"@hash\" = { \"@path\" = \"$.userId\" } }\n";
    let lines = mapped(accounts, group);
    assert_eq!(lines[0]["requests"][0]["path"], "/web/projects/<public_key>/accounts/batch");
    let body = &lines[0]["requests"][0]["body"];
    // printf u-1 | openssl dgst -sha256 -hmac 0123456789abcdef
    let hash = "9faa1b049c0fba732d92e9844d49635e0b0495660a78566b2ed4b50a7f4e2d0d";
    assert_eq!((&body["domain"], &body["account_id"]), (&json!("acme.dev"), &json!(hash)));

    let consent = format!("koala.consent_categories = [\"advertising\"]\n{accounts}");
    assert_eq!(mapped(&consent, group)[0]["skipped"]["code"], "no_consent");
}

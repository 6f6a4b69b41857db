//! Mappings as Segment exports them, run as they are, by the real program.

use crate::common::setup::{Setup, assert_says};
use serde_json::{Value, json};
use std::fs;

const EXPORT: &str = include_str!("../vectors/segment-export.json");

/// One event for each mapping, and two that none takes.
const EVENTS: [&str; 7] = [
    r#"{"type":"track","event":"Signed Up","messageId":"m-1","timestamp":"2026-01-02T03:04:05Z","email":"ana@acme.dev","properties":{"email":"ana@acme.dev","n":1.50},"context":{"ip":"203.0.113.7","traits":{"plan":"pro"}}}"#,
    r#"{"type":"identify","messageId":"m-2","timestamp":"2026-01-02T03:04:05Z","traits":{"email":"ana@acme.dev","phone":null,"address":{"city":"Bonn","street":null}}}"#,
    r#"{"type":"page","name":"Pricing","messageId":"m-3","timestamp":"2026-01-02T03:04:05Z","properties":{"path":"/pricing/teams"},"context":{"traits":{"email":"Ana@Acme.dev"}}}"#,
    r#"{"type":"track","event":"Invoice Paid","messageId":"m-4","timestamp":"2026-01-02T03:04:05Z","properties":{"total":12.50,"payer":{"e-mail":"ana@acme.dev"},"lines":[{"sku":"A","n":2.0},{"sku":"B"}]}}"#,
    r#"{"type":"track","event":"Lead Captured","messageId":"m-5","timestamp":"2026-01-02T03:04:05Z","properties":{"email":"bob@acme.dev","form":{"company":{"name":"Acme"}}}}"#,
    r#"{"type":"page","name":"Home","messageId":"m-6","properties":{"path":"/"}}"#,
    r#"{"type":"track","event":"Invoice Paid","messageId":"m-7","properties":{"total":0}}"#,
];

/// An agent whose `mappings_file` has that text.
fn with(export: &str) -> Setup {
    let mut setup = Setup::new();
    fs::write(setup.path("mappings.json"), export).unwrap();
    setup.set("mappings_file = \"mappings.json\"");
    setup
}

/// The bodies of the requests that each event makes with that text as `mappings_file`; of one that is skipped its
/// reason.
fn mapped(export: &str) -> Vec<Value> {
    let setup = with(export);
    let ran = setup.run_with(&["map"], &EVENTS.join("\n"));
    assert_eq!(ran.code, 0, "{ran:?}");
    let outcome = |line: &Value| match line["requests"].as_array() {
        Some(requests) => requests.iter().map(|request| request["body"].clone()).collect(),
        None => line["skipped"]["code"].clone(),
    };
    ran.lines().iter().map(outcome).collect()
}

#[test]
fn an_export_of_segments_api_is_used_unchanged() {
    let at = "2026-01-02T03:04:05Z";
    let wanted = [
        json!([{"email": "ana@acme.dev", "traits": {"plan": "pro"}, "ip": "203.0.113.7", "events": [{
            "type": "track", "email": "ana@acme.dev", "event": "Signed Up",
            "properties": {"email": "ana@acme.dev", "n": 1.5}, "sent_at": at,
            "context": {"ip": "203.0.113.7", "traits": {"plan": "pro"}}, "traits": {"plan": "pro"},
            "device_ip": "203.0.113.7", "message_id": "m-1"}]}]),
        json!([{"email": "ana@acme.dev", "traits": {"email": "ana@acme.dev", "address": {"city": "Bonn"}}, "identifies": [{
            "type": "identify", "email": "ana@acme.dev", "traits": {"email": "ana@acme.dev", "address": {"city": "Bonn"}},
            "sent_at": at, "context": {"source": "koala-agent"}, "message_id": "m-2"}]}]),
        json!([{"email": "ana@acme.dev", "traits": {"email": "Ana@Acme.dev"}, "events": [{
            "type": "track", "email": "ana@acme.dev", "event": "Viewed Pricing",
            "properties": {"source": "web", "email": "ana@acme.dev", "path": ".pricing.teams"}, "sent_at": at,
            "context": {"traits": {"email": "Ana@Acme.dev"}}, "traits": {"email": "Ana@Acme.dev"},
            "message_id": "m-3"}]}]),
        json!([{"email": "ana@acme.dev", "traits": {}, "events": [{"type": "track", "event": "Paid", "properties": {
            "email": "ana@acme.dev", "total": 12.5, "skus": [{"sku": "A"}, {"sku": "B"}],
            "raw": "{\"sku\":\"A\",\"n\":2}"}, "sent_at": at, "message_id": "m-4"}]}]),
        json!([{"email": "bob@acme.dev", "traits": {"email": "bob@acme.dev", "company": "Acme", "kind": "lead"},
            "identifies": [{"type": "identify", "traits": {"email": "bob@acme.dev", "company": "Acme", "kind": "lead"},
            "sent_at": at, "context": {"source": "koala-agent"}, "message_id": "m-5-lead"}]}]),
        json!("no_mapping"),
        json!("no_mapping"),
    ];
    for (n, (got, want)) in mapped(EXPORT).iter().zip(&wanted).enumerate() {
        assert_eq!(got, want, "event {}", n + 1);
    }
}

#[test]
fn a_plain_list_and_the_names_of_segments_code_mean_the_same() {
    let export: Value = serde_json::from_str(EXPORT).unwrap();
    let list = export["data"]["subscriptions"].clone();
    let same = mapped(EXPORT);
    assert_eq!(mapped(&list.to_string()), same);
    let own: Vec<Value> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|item| {
            json!({
        "name": item["name"], "subscribe": item["trigger"], "partnerAction": item["actionSlug"],
        "mapping": item["settings"].to_string(), "enabled": item["enabled"]})
        })
        .collect();
    assert_eq!(mapped(&json!({ "subscriptions": own }).to_string()), same);
}

#[test]
fn an_error_in_an_export_is_reported_with_its_mapping() {
    for (from, to, said) in [
        (
            "\"$.properties.payer['e-mail']\"",
            "\"$.toString\"",
            "mapping 4: mapping \"Invoices\": field properties/email",
        ),
        ("\"actionSlug\": \"track\"", "\"actionSlug\": \"trackV2\"", "there is no action \"trackV2\""),
        ("\"name\": \"Leads\"", "\"name\": \"Invoices\"", "mapping 5: there is another mapping \"Invoices\""),
        ("\"trigger\": \"type = \\\"identify\\\"\",", "", "mapping 2: trigger is missing"),
        ("{\n", "", "not JSON"),
    ] {
        let setup = with(&EXPORT.replacen(from, to, 1));
        let ran = setup.run(&["check", "--config-only"]);
        assert_eq!(ran.code, 1, "{ran:?}");
        assert_says(&ran.out, &["FAIL  configuration", "mappings.json", said]);
    }
}

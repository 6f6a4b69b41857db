//! The two presets where the vectors are silent: this agent's departures, and the corners of Segment's rules.

use crate::common::vectors::map;
use koala_agent::clock::Timestamp;
use koala_agent::event::{Event, MessageId};
use koala_agent::item::Disposition;
use koala_agent::koala::batch::Batch;

/// The event's request body; of a skipped event the reason code, of a failed one the error text.
fn sent(event: &str) -> String {
    let event = Event::parse(event).unwrap();
    match map(&event, &MessageId::new("m".into()).unwrap(), Timestamp(0)) {
        Disposition::Send(item) => Batch::new(*item).body(),
        Disposition::Skip(reason) => reason.code.to_string(),
        Disposition::Fail(reason) => reason.text,
    }
}

const AT: &str = "2026-01-02 03:04:05";

/// A track with these members makes a request of this top level, and of this item before and after its sent_at.
#[track_caller]
fn track(members: &str, top: &str, before: &str, after: &str) {
    let event = format!(r#"{{"type":"track","event":"E","timestamp":"{AT}",{members}}}"#);
    let item = format!(r#""type":"track",{before}"sent_at":"{AT}",{after}"message_id":"m""#);
    assert_eq!(sent(&event), format!(r#"{{{top},"events":[{{{item}}}]}}"#), "{event}");
}

/// An identify, likewise; the context is the item's.
#[track_caller]
fn identify(members: &str, top: &str, before: &str, context: &str) {
    let event = format!(r#"{{"type":"identify","timestamp":"{AT}",{members}}}"#);
    let item = format!(r#""type":"identify",{before}"sent_at":"{AT}","context":{context},"message_id":"m""#);
    assert_eq!(sent(&event), format!(r#"{{{top},"identifies":[{{{item}}}]}}"#), "{event}");
}

const SOURCE: &str = r#"{"source":"koala-agent"}"#;

#[test]
fn integrations_turn_an_event_off_only_by_false_and_their_own_name_wins() {
    for (integrations, off) in [
        (r#"{"Koala (Cloud)":false}"#, true),
        (r#"{"Koala (Cloud)":false,"All":true}"#, true),
        (r#"{"All":false}"#, true),
        (r#"{"All":false,"Koala (Cloud)":null}"#, true),
        (r#"{"All":false,"Koala":true}"#, true),
        (r#"{"All":false,"Koala (Cloud)":true}"#, false),
        (r#"{"All":false,"Koala (Cloud)":{}}"#, false),
        (r#"{"All":null}"#, false),
        (r#"{"Koala":false,"koala (cloud)":false}"#, false),
        (r#"{"Koala (Cloud)":"false"}"#, false),
        ("null", false),
        ("{}", false),
    ] {
        let want = if off { "integrations_off" } else { "no_mapping" };
        assert_eq!(sent(&format!(r#"{{"integrations":{integrations}}}"#)), want, "{integrations}");
    }
}

#[test]
fn integrations_are_checked_before_mappings_and_invalid_fields_before_skips() {
    for (event, want) in [
        (r#"{"type":"track","integrations":{"All":false}}"#, "integrations_off"),
        (r#"{"type":"page","timestamp":"noon"}"#, "no_mapping"),
        (r#"{"type":"track","context":{"library":{"name":"analytics.js"}}}"#, "event is missing"),
        (
            r#"{"type":"identify","traits":7,"context":"x"}"#,
            "context must be an object but is a string; traits must be an object but is a number",
        ),
        (
            r#"{"type":"track","event":[1,2],"context":{"traits":[],"ip":{}},"originalTimestamp":"noon"}"#,
            "event must be a string but is an array; context.traits must be an object but is an array; \
             originalTimestamp must be a date and time such as 2026-01-02T03:04:05Z; \
             context.ip must be a string but is an object",
        ),
        (
            r#"{"type":"track","event":"E","context":{"library":{"name":"analytics\u002ejs"}}}"#,
            "browser_library",
        ),
        (r#"{"type":"track","event":"E","context":{"library":"analytics.js"}}"#, "no_identity"),
        (r#"{"type":"identify","email":"","userId":"u"}"#, "no_identity"),
        (r#"{"type":"track","event":"E","properties":{"profile_id":0,"email":false}}"#, "no_identity"),
    ] {
        assert_eq!(sent(event), want, "{event}");
    }
}

#[test]
fn the_time_is_the_timestamp_else_the_original_timestamp_else_the_one_given() {
    let (own, original, given) =
        ("2026-01-02T03:04:05Z", "2026-01-02T03:04:06.5+01:00", "1970-01-01T00:00:00.000Z");
    for (timestamp, original_timestamp, want) in [
        (format!("\"{own}\""), format!("\"{original}\""), own),
        ("null".into(), format!("\"{original}\""), original),
        ("\"\"".into(), format!("[\"{original}\"]"), original),
        ("\"\"".into(), "null".into(), given),
    ] {
        let times = format!(r#""timestamp":{timestamp},"originalTimestamp":{original_timestamp}"#);
        let body = sent(&format!(r#"{{"type":"track","event":"E","email":"a",{times}}}"#));
        assert!(body.contains(&format!(r#""sent_at":"{want}""#)), "{times}: {body}");
    }
}

#[test]
fn a_null_context_is_no_context() {
    let top = r#""email":"a","traits":{}"#;
    track(r#""email":"a","context":null"#, top, r#""email":"a","event":"E","#, "");
    identify(r#""email":"a","context":null"#, top, r#""email":"a","#, SOURCE);
    let personas = r#"{"personas":null,"source":"koala-agent"}"#;
    identify(r#""email":"a","context":{"personas":null}"#, top, r#""email":"a","#, personas);
}

#[test]
fn ko_profile_id_stands_for_a_missing_profile_id_and_is_not_sent() {
    let top = r#""profile_id":"ko-1","traits":{}"#;
    track(r#""properties":{"a":1,"ko_profile_id":"ko-1"}"#, top, r#""event":"E","properties":{"a":1},"#, "");
    track(r#""properties":{"ko_profile_id":"ko-1"}"#, top, r#""event":"E","properties":{},"#, "");
    identify(
        r#""traits":{"ko_profile_id":"ko-1", "plan":"pro"}"#,
        r#""profile_id":"ko-1","traits":{"plan":"pro"}"#,
        r#""traits":{"plan":"pro"},"#,
        SOURCE,
    );
    let both = r#"{"profile_id":"ko-2","ko_profile_id":"ko-1"}"#;
    let item = format!(r#""event":"E","properties":{both},"#);
    track(&format!(r#""properties":{both}"#), r#""profile_id":"ko-2","traits":{}"#, &item, "");
    let context = r#"{"traits":{"ko_profile_id":"ko-3"}}"#;
    track(
        &format!(r#""properties":{{"ko_profile_id":"ko-1"}},"context":{context}"#),
        r#""profile_id":"ko-1","traits":{"ko_profile_id":"ko-3"}"#,
        r#""event":"E","properties":{},"#,
        &format!(r#""context":{context},"traits":{{"ko_profile_id":"ko-3"}},"#),
    );
}

#[test]
fn ko_profile_id_in_context_traits_serves_too_and_is_not_sent() {
    let top = r#""profile_id":"ko-1","traits":{}"#;
    track(
        r#""context":{"ip":"::1","traits":{"ko_profile_id":"ko-1"}}"#,
        &format!(r#"{top},"ip":"::1""#),
        r#""event":"E","#,
        r#""context":{"ip":"::1","traits":{}},"traits":{},"device_ip":"::1","#,
    );
    identify(
        r#""traits":{"plan":"pro"},"context":{"traits":{"a":1,"ko_profile_id":"ko-1"},"source":"x"}"#,
        r#""profile_id":"ko-1","traits":{"plan":"pro"}"#,
        r#""traits":{"plan":"pro"},"#,
        r#"{"traits":{"a":1},"source":"koala-agent"}"#,
    );
    identify(
        r#""traits":{"profile_id":"p-1"},"context":{"traits":{"ko_profile_id":"ko-1"}}"#,
        r#""profile_id":"p-1","traits":{"profile_id":"p-1"}"#,
        r#""traits":{"profile_id":"p-1"},"#,
        r#"{"traits":{"ko_profile_id":"ko-1"},"source":"koala-agent"}"#,
    );
}

/// Segment's `@path` gives the falsy value that it meets on the way to `traits.email`.
#[test]
fn falsy_traits_are_what_is_found_at_traits_email() {
    let email = r#""email":"a","properties":{"email":"b"}"#;
    let properties = r#""event":"E","properties":{"email":"b"},"#;
    track(&format!(r#""traits":"",{email}"#), r#""email":"b","traits":{}"#, properties, "");
    for (traits, found) in [("0", r#""0""#), ("false", r#""false""#)] {
        let top = format!(r#""email":{found},"traits":{{}}"#);
        let before = format!(r#""email":{found},{properties}"#);
        track(&format!(r#""traits":{traits},{email}"#), &top, &before, "");
    }
    for traits in ["null", "{}", "1", r#""x""#, "[]", r#"{"email":null}"#] {
        let before = format!(r#""email":"a",{properties}"#);
        track(&format!(r#""traits":{traits},{email}"#), r#""email":"a","traits":{}"#, &before, "");
    }
    assert_eq!(sent(r#"{"type":"identify","traits":"","email":"a"}"#), "no_identity");
}

#[test]
fn a_skipped_event_is_told_what_would_take_it() {
    let skipped = |event: &str| {
        let event = Event::parse(event).unwrap();
        match map(&event, &MessageId::new("m".into()).unwrap(), Timestamp(0)) {
            Disposition::Skip(reason) => reason.text,
            other => panic!("{other:?}"),
        }
    };
    let page = "koala-agent-mappings(7) has a mapping that does";
    for (event, want) in [
        (
            r#"{"type":"identify","context":{"traits":{"email":"a@x.test"}}}"#,
            format!("email is in context.traits, which Identify Calls does not read; {page}"),
        ),
        (
            r#"{"type":"track","event":"E","context":{"traits":{"profile_id":"p"}}}"#,
            format!("profile_id is in context.traits, which Track Calls does not read; {page}"),
        ),
        (
            r#"{"type":"identify","properties":{"email":"a@x.test"},"context":{"traits":{"email":""}}}"#,
            format!("email is in properties, which Identify Calls does not read; {page}"),
        ),
        (
            r#"{"type":"track","event":"E","ko_profile_id":"p"}"#,
            format!("ko_profile_id is in the event itself, which Track Calls does not read; {page}"),
        ),
        (
            r#"{"type":"identify","userId":"u","email":""}"#,
            "the event has neither a profile_id nor an email".to_owned(),
        ),
        (
            r#"{"type":"Track","event":"E"}"#,
            "no mapping selects the event: type is 'Track': write it in lower case".to_owned(),
        ),
        (
            r#"{"type":"IDENTIFY"}"#,
            "no mapping selects the event: type is 'IDENTIFY': write it in lower case".to_owned(),
        ),
        (r#"{"type":"Secret"}"#, "no mapping selects the event".to_owned()),
        (r#"{"type":"page"}"#, "no mapping selects the event".to_owned()),
        ("{}", "no mapping selects the event, which has no type".to_owned()),
    ] {
        assert_eq!(skipped(event), want, "{event}");
    }
}

#[test]
fn the_last_source_of_a_field_counts_even_when_it_is_null() {
    let traits = r#"{"profile_id":7.0,"email":null,"ip":null}"#;
    let item = format!(r#""traits":{traits},"#);
    let top = format!(r#""profile_id":7.0,"email":null,"traits":{traits}"#);
    identify(&format!(r#""traits":{traits}"#), &top, &item, SOURCE);
    let properties = r#"{"profile_id":{"x": 1.0},"email":null,"ip":""}"#;
    let tight = r#"{"profile_id":{"x":1.0},"email":null,"ip":""}"#;
    track(
        &format!(r#""properties":{properties},"context":{{"ip":"::1"}}"#),
        r#""profile_id":{"x":1.0},"traits":{},"ip":"""#,
        &format!(r#""event":"E","properties":{tight},"#),
        r#""context":{"ip":"::1"},"device_ip":"::1","#,
    );
}

#[test]
fn scalars_become_strings_in_the_text_they_were_written_in() {
    let event = r#"{"type":"track","event":[1.0],"timestamp":["2026-01-02 03:04:05"],"email":true,"context":{"ip":9007199254740993}}"#;
    let want = concat!(
        r#"{"email":"true","traits":{},"ip":"9007199254740993","events":[{"type":"track","email":"true","event":"1.0","#,
        r#""sent_at":"2026-01-02 03:04:05","context":{"ip":9007199254740993},"device_ip":"9007199254740993","message_id":"m"}]}"#
    );
    assert_eq!(sent(event), want);
}

#[test]
fn half_a_surrogate_pair_is_sent_as_written() {
    let properties = r#"{"email":"a\ud800","\udc00":"\ud800"}"#;
    let item = format!(r#""event":"E","properties":{properties},"#);
    track(&format!(r#""properties":{properties}"#), r#""email":"a\ud800","traits":{}"#, &item, "");
}

#[test]
fn the_last_of_duplicate_members_counts() {
    let event = r#"{"type":"page","type":"track","event":"A","event":"E","timestamp":"2026-01-02 03:04:05","properties":{"email":"a","email":"b"}}"#;
    assert!(sent(event).starts_with(r#"{"email":"b","traits":{},"events":[{"type":"track","event":"E""#));
}

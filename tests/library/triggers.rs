//! Ninety-four triggers with the results of Segment's own code: the results here are the same, or an error where the
//! trigger is a trap or no trigger.

use koala_agent::event::Event;
use koala_agent::mapping::trigger::Trigger;
use serde::Deserialize;
use serde_json::value::RawValue;

#[derive(Deserialize)]
struct Vector<'a> {
    name: String,
    fql: String,
    #[serde(borrow)]
    event: &'a RawValue,
    #[serde(rename = "match")]
    matches: Option<bool>,
}

/// Segment refuses these; what is meant is plain.
const TAKEN: [&str; 1] = ["invalid-nested-parens"];

#[test]
fn the_result_is_segments_or_an_error() {
    let (mut same, mut refused, mut taken) = (0, 0, 0);
    for line in include_str!("../vectors/fql.jsonl").lines() {
        let vector: Vector = serde_json::from_str(line).unwrap();
        let name = &vector.name;
        let trap = name.starts_with("quirk-") || vector.matches.is_none();
        match Trigger::parse(&vector.fql) {
            Ok(trigger) => {
                let matches = trigger.matches(&Event::parse(vector.event.get()).unwrap());
                match vector.matches {
                    Some(want) => assert_eq!(matches, want, "{name}: {}", vector.fql),
                    None => assert!(TAKEN.contains(&name.as_str()), "{name}: {} is taken", vector.fql),
                }
                *(if vector.matches.is_some() { &mut same } else { &mut taken }) += 1;
            }
            Err(error) => {
                assert!(trap, "{name}: {} is refused: {error}", vector.fql);
                println!("{name}: {error}");
                refused += 1;
            }
        }
    }
    println!("{same} the same, {refused} refused, {taken} taken where Segment refuses");
    assert_eq!((same + refused + taken, taken), (94, TAKEN.len()));
}

/// Each with the column, and the words that tell the way to write it.
#[test]
fn an_error_names_the_column_and_the_right_way_to_write_it() {
    for (fql, column, words) in [
        ("", 1, "type = \"track\""),
        ("type = 'track'", 8, "double quotes"),
        ("type = track", 8, "\"track\""),
        ("type == \"track\"", 6, "="),
        ("!(type = \"track\")", 1, "!="),
        ("not type = \"track\"", 1, "!="),
        ("!type = \"track\"", 1, "!="),
        ("type = \"a\" and event = \"b\" or name = \"c\"", 28, "parentheses"),
        ("type = \"a\" && event = \"b\"", 12, "and"),
        ("type = \"a\" event = \"b\"", 12, "and or or"),
        ("type = \"a\" and", 12, "remove it"),
        ("type = \"a\"or event = \"b\"", 11, "space"),
        ("type = \"a\" or(event = \"b\")", 14, "space"),
        ("properties.price>10", 17, "space before"),
        ("properties.price >=10", 20, "space after"),
        ("properties.paid != true", 20, "= false"),
        ("event = null", 9, "null"),
        ("userId = 42", 10, "\"42\""),
        ("match(event, \"Order\")", 14, "= \"Order\""),
        ("match(event, \"*Order*\")", 14, "contains(…, \"Order\")"),
        ("match(event, \"Or*der\")", 14, "join two"),
        ("contains(type, \"x\")", 10, "type ="),
        ("match(event, 5)", 14, "with a * in double quotes"),
        ("match(event, true)", 14, "with a * in double quotes"),
        ("anonymousId = \"x\"", 1, "userId"),
        ("properties = null", 1, "properties."),
        ("event.name = \"x\"", 1, "no members"),
        ("properties.items[0].sku = \"x\"", 17, "array"),
        ("properties.items.0.sku = \"x\"", 18, "write \\0 for the character"),
        ("properties.and = 1", 12, "write \\and"),
        ("contains(properties.null, \"x\")", 21, "write \\null"),
        ("event = \"say \\\"hi\\\"\"", 15, "a backslash escapes nothing"),
        ("! contains(event, \"x\")", 1, "right before"),
        ("type = \"a\"\r\nand event = \"b\"", 11, "space"),
        ("type = \"a\" and (contains(event, \"b\") or name = \"c\")", 17, "write a call last in its group"),
        (
            "(!match(event, \"b*\") and name = \"c\") or type = \"a\"",
            2,
            "at the bracket of !match(event, \"b*\")",
        ),
        ("properties.a\\.b = 1", 12, "in its name"),
        ("properties.toString != null", 12, "JavaScript"),
        ("properties.price > 12.", 20, "number"),
        ("properties.price > 1e5", 21, "space"),
        ("(type = \"track\"", 1, ")"),
        ("type = \"track\")", 15, "remove it"),
        ("type = \"track", 8, "at its end"),
        ("type", 5, "comparison"),
        ("type = ", 8, "value"),
    ] {
        let error = Trigger::parse(fql).expect_err(fql);
        assert_eq!(error.column, column, "{fql}: {error}");
        assert!(error.text.contains(words), "{fql}: {error}");
    }
}

fn holds(fql: &str, event: &str) -> bool {
    Trigger::parse(fql).unwrap_or_else(|e| panic!("{fql}: {e}")).matches(&Event::parse(event).unwrap())
}

#[test]
fn values_compare_as_in_javascript() {
    let event = r#"{"type":"track","event":"E","type":"page","userId":42,"properties":{"n":10.0,"big":9007199254740993,
        "s":"10","e":"","z":0,"t":true,"o":{"x":1},"a":[1,2],"u":"\u00e9","nul":null}}"#;
    for (fql, want) in [
        ("type = \"page\"", true),
        ("userId = \"42\"", false),
        ("userId != null", true),
        ("properties.n = 10", true),
        ("properties.n != 10", false),
        ("properties.n = \"10\"", false),
        ("properties.n != \"10\"", true),
        ("properties.s > 5", false),
        ("properties.s != 5", false),
        ("properties.big = 9007199254740992", true),
        ("properties.e = \"\"", true),
        ("properties.e.x = \"\"", true),
        ("properties.z.x.y = 0", true),
        ("properties.nul.x = null", true),
        ("properties.t = true", true),
        ("properties.o = null", false),
        ("properties.o != \"x\"", true),
        ("properties.a.length = 2", true),
        ("properties.s.length = 2", true),
        ("properties.s.trim != null", true),
        ("properties.s.foo = null", true),
        ("contains(properties.u, \"é\")", true),
        ("contains(properties.n, \"1\")", false),
        ("!contains(properties.n, \"1\")", false),
        ("properties.n > \"0x9\"", true),
        ("properties.n > \" 9 \"", true),
        ("properties.n >= \"\"", true),
        ("properties.n < \"Infinity\"", true),
        ("(type = \"track\" or (type = \"page\" and (properties.n > 9)))", true),
    ] {
        assert_eq!(holds(fql, event), want, "{fql}");
    }
}

/// Segment's own code gives these answers (destination-subscriptions 3.37.0, run on them).
#[test]
fn calls_escapes_and_literals_are_read_as_by_segment() {
    let event = r#"{"type":"track","event":"Order 42 true null","properties":{"$x":1,"1st":2,"and":3,"or":{"x":4},"null":5,
        "a\\b":"c\\d","quote\"":6,"n":42}}"#;
    for (fql, want) in [
        // A call ends its group; behind it, the group and what is around it have the same conjunction.
        ("type = \"page\" and (name = \"x\" or contains(event, \"Order\"))", false),
        ("type = \"track\" and (name = \"x\" or contains(event, \"Order\"))", true),
        ("(contains(event, \"x\") or type = \"track\")", true),
        ("contains(event, \"x\") or (match(event, \"y*\") or type = \"track\")", true),
        ("type = \"page\" or (contains(event, \"x\") or (name = \"y\" or match(event, \"Order*\")))", true),
        ("(type = \"page\" and contains(event, \"O\")) or (type = \"track\" and match(event, \"O*\"))", true),
        ("contains(event, 42)", true),
        ("contains(event, +42.0)", true),
        ("contains(event, 0.5)", false),
        ("contains(event, true)", true),
        ("!contains(event, false)", true),
        ("contains(event, null)", true),
        ("contains(properties.n, 42)", false),
        ("properties.\\$x = 1", true),
        ("properties.\\1st = 2", true),
        ("properties.\\and = 3", true),
        ("properties.an\\d = 3", true),
        ("properties.or.x = 4", true),
        ("properties.and= 3", true),
        ("contains(properties.\\null, \"x\")", false),
        ("\\type = \"tr\\ack\"", false),
        ("\\type = \"track\"", true),
        ("properties.a\\\\b = \"c\\d\"", true),
        ("properties.quote\\\" = 6", true),
    ] {
        assert_eq!(holds(fql, event), want, "{fql}");
    }
}

#[test]
fn contradictions_and_unmet_conditions_are_named() {
    let trigger = Trigger::parse("type = \"track\" and event = \"A\" and type = \"page\"").unwrap();
    assert_eq!(trigger.contradiction().unwrap(), "type = \"track\" and type = \"page\" never both hold");
    assert_eq!(Trigger::parse("type = \"track\" or type = \"page\"").unwrap().contradiction(), None);
    let event = Event::parse(r#"{"type":"track","event":"B"}"#).unwrap();
    assert_eq!(trigger.unmet(&event), Some("event = \"A\""));
}

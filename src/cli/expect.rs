//! `map --expect`: compares the requests that events make with those that a team expects.

use super::{CliError, ExitCode};
use serde_json::Value;
use similar::{DiffOp, TextDiff};
use std::path::Path;

/// The equal lines that are printed around a difference.
const CONTEXT_LINES: usize = 2;

/// A line of the expectations: its number in the file, and its content.
pub type ExpectedLine = (usize, Value);

/// Reads a file of expectations: JSON Lines as `map` prints them, or written by hand.
///
/// # Errors
/// The file cannot be read, or a line is not a JSON object.
pub fn read(path: &Path) -> Result<Vec<ExpectedLine>, CliError> {
    let name = path.display().to_string();
    let text =
        std::fs::read_to_string(path).map_err(|source| CliError::Input { name: name.clone(), source })?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let parse = |(n, line): (usize, &str)| match serde_json::from_str(line) {
        Ok(value @ Value::Object(_)) => Ok((n + 1, value)),
        Ok(_) => Err(CliError::new(ExitCode::BadData, format!("{name}:{}: not a JSON object", n + 1))),
        Err(e) => Err(CliError::new(ExitCode::BadData, format!("{name}:{}: not JSON: {e}", n + 1))),
    };
    lines.map(parse).collect()
}

/// All differences as text; empty if there are none. Members that an expected event or request does not have are not
/// compared.
pub fn differences(expected: &[ExpectedLine], actual: &[Value]) -> String {
    let mut text = String::new();
    for (n, (line, expected)) in expected.iter().enumerate() {
        let Some(actual) = actual.get(n) else {
            text += &format!("line {line}: there is no such event\n{}", diff(&pretty(Some(expected)), ""));
            continue;
        };
        let id = actual.get("message_id").and_then(Value::as_str).unwrap_or("no messageId");
        for Difference { place, expected, actual } in event_differences(expected, actual) {
            text += &format!("line {line}, {id}: {place}\n{}", diff(&pretty(expected), &pretty(actual)));
        }
    }
    for actual in actual.iter().skip(expected.len()) {
        text += &format!("an event that was not expected\n{}", diff("", &pretty(Some(actual))));
    }
    text
}

/// A member or request that is not as expected, or that only one side has.
struct Difference<'a> {
    place: String,
    expected: Option<&'a Value>,
    actual: Option<&'a Value>,
}

fn event_differences<'a>(expected: &'a Value, actual: &'a Value) -> Vec<Difference<'a>> {
    let requests = |event: &'a Value| event.get("requests").and_then(Value::as_array);
    let mut differences = member_differences(expected, actual, "");
    let (Some(expected), Some(actual)) = (requests(expected), requests(actual)) else { return differences };
    differences.retain(|difference| difference.place != "requests");
    for n in 0..expected.len().max(actual.len()) {
        let place = format!("requests[{n}]");
        match (expected.get(n), actual.get(n)) {
            (Some(e), Some(a)) => differences.extend(member_differences(e, a, &format!("{place}."))),
            (expected, actual) => differences.push(Difference { place, expected, actual }),
        }
    }
    differences
}

/// The members of the expected object that the actual one does not have so.
fn member_differences<'a>(expected: &'a Value, actual: &'a Value, place: &str) -> Vec<Difference<'a>> {
    let members = expected.as_object().into_iter().flatten();
    let different = members.filter(|(name, value)| actual.get(*name) != Some(value));
    different
        .map(|(name, value)| Difference {
            place: format!("{place}{name}"),
            expected: Some(value),
            actual: actual.get(name),
        })
        .collect()
}

fn pretty(value: Option<&Value>) -> String {
    value.and_then(|value| serde_json::to_string_pretty(value).ok()).unwrap_or_default()
}

/// The lines that differ, with `-` before expected and `+` before actual ones, and a few equal lines around them.
fn diff(expected: &str, actual: &str) -> String {
    let (expected, actual): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), actual.lines().collect());
    let diff = TextDiff::from_slices(&expected, &actual);
    let group = |operations: &Vec<DiffOp>| -> String {
        let changes = operations.iter().flat_map(|operation| diff.iter_changes(operation));
        changes.map(|change| format!("  {} {}\n", change.tag(), change.value())).collect()
    };
    diff.grouped_ops(CONTEXT_LINES).iter().map(group).collect::<Vec<_>>().join("    …\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn members_that_an_expected_line_does_not_have_are_not_compared() {
        let actual = [json!({"message_id": "a", "mappings": [1],
            "requests": [{"mapping": "m", "path": "/x", "body": {"email": "a@x", "n": 1.0}}]})];
        for expected in [
            json!({}),
            json!({"message_id": "a"}),
            json!({"requests": [{"path": "/x"}]}),
            json!({"requests": [{"body": {"n": 1.0, "email": "a@x"}}], "message_id": "a"}),
        ] {
            assert_eq!(differences(&[(1, expected)], &actual), "");
        }
        for (expected, place) in [
            (json!({"message_id": "b"}), "line 1, a: message_id\n  - \"b\"\n  + \"a\"\n"),
            (json!({"skipped": {}}), "line 1, a: skipped\n  - {}\n"),
            (json!({"requests": []}), "line 1, a: requests[0]\n"),
            (
                json!({"requests": [{"body": {"email": "a@y", "n": 1.0}}]}),
                "line 1, a: requests[0].body\n    {\n  -   \"email\": \"a@y\",\n  +   \"email\": \"a@x\",\n      \"n\": 1.0\n    }\n",
            ),
        ] {
            let text = differences(&[(1, expected)], &actual);
            assert!(text.starts_with(place), "{text}");
        }
        assert!(differences(&[], &actual).starts_with("an event that was not expected"));
        assert!(
            differences(&[(1, json!({})), (3, json!({}))], &actual)
                .starts_with("line 3: there is no such event")
        );
    }
}

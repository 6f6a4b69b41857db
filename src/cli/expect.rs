//! What `map --expect` compares: the requests that a team expects, and those that are made.

use super::{CliError, ExitCode};
use serde_json::Value;
use std::path::Path;

/// Lines around a difference.
const CONTEXT: usize = 2;

/// An expected line: its number, and what it says.
pub type Line = (usize, Value);

/// The lines of a file that `map` has printed, or that somebody has written like it.
///
/// # Errors
/// It cannot be read, or a line of it is no JSON object.
pub fn read(path: &Path) -> Result<Vec<Line>, CliError> {
    let name = path.display().to_string();
    let text =
        std::fs::read_to_string(path).map_err(|source| CliError::Input { name: name.clone(), source })?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let parse = |(n, line): (usize, &str)| match serde_json::from_str(line) {
        Ok(value @ Value::Object(_)) => Ok((n + 1, value)),
        Ok(_) => Err(CliError::new(ExitCode::BadData, format!("{name}:{}: it is no JSON object", n + 1))),
        Err(e) => Err(CliError::new(ExitCode::BadData, format!("{name}:{}: not JSON: {e}", n + 1))),
    };
    lines.map(parse).collect()
}

/// Every difference, for a person; empty if all is as expected. Members that an expected event or request does not have
/// may be anything.
pub fn differences(expected: &[Line], made: &[Value]) -> String {
    let mut text = String::new();
    for (n, (line, wanted)) in expected.iter().enumerate() {
        let Some(made) = made.get(n) else {
            text += &format!("line {line}: there is no such event\n{}", diff(&pretty(wanted), ""));
            continue;
        };
        let id = made.get("message_id").and_then(Value::as_str).unwrap_or("no messageId");
        for (place, wanted, made) in event(wanted, made) {
            text += &format!(
                "line {line}, {id}: {place}\n{}",
                diff(&pretty_or_none(wanted), &pretty_or_none(made))
            );
        }
    }
    for made in made.iter().skip(expected.len()) {
        text += &format!("an event that was not expected\n{}", diff("", &pretty(made)));
    }
    text
}

type Difference<'a> = (String, Option<&'a Value>, Option<&'a Value>);

fn event<'a>(wanted: &'a Value, made: &'a Value) -> Vec<Difference<'a>> {
    let requests = |event: &'a Value| event.get("requests").and_then(Value::as_array);
    let (Some(requests), Some(made_requests)) = (requests(wanted), requests(made)) else {
        return members(wanted, made, "");
    };
    let mut found: Vec<_> =
        members(wanted, made, "").into_iter().filter(|(place, ..)| place != "requests").collect();
    for n in 0..requests.len().max(made_requests.len()) {
        let place = format!("requests[{n}]");
        match (requests.get(n), made_requests.get(n)) {
            (Some(w), Some(m)) => found.extend(members(w, m, &format!("{place}."))),
            (w, m) => found.push((place, w, m)),
        }
    }
    found
}

/// The members of the first that are not the second's.
fn members<'a>(wanted: &'a Value, made: &'a Value, place: &str) -> Vec<Difference<'a>> {
    let members = wanted.as_object().into_iter().flatten();
    let different = members.filter(|(name, value)| made.get(*name) != Some(value));
    different.map(|(name, value)| (format!("{place}{name}"), Some(value), made.get(name))).collect()
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}

fn pretty_or_none(value: Option<&Value>) -> String {
    value.map(pretty).unwrap_or_default()
}

/// The lines that differ, with `-` what was expected and with `+` what is made, and a few around them.
fn diff(wanted: &str, made: &str) -> String {
    let (wanted, made): (Vec<&str>, Vec<&str>) = (wanted.lines().collect(), made.lines().collect());
    let least = wanted.len().min(made.len());
    let before = wanted.iter().zip(&made).take_while(|(a, b)| a == b).count();
    let after =
        wanted.iter().rev().zip(made.iter().rev()).take(least - before).take_while(|(a, b)| a == b).count();
    let mut text = String::new();
    let mut add =
        |mark: &str, lines: &[&str]| lines.iter().for_each(|line| text += &format!("  {mark} {line}\n"));
    add(" ", &wanted[before.saturating_sub(CONTEXT)..before]);
    add("-", &wanted[before..wanted.len() - after]);
    add("+", &made[before..made.len() - after]);
    add(" ", &wanted[wanted.len() - after..][..after.min(CONTEXT)]);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_an_expected_line_does_not_say_may_be_anything() {
        let made = [json!({"message_id": "a", "mappings": [1],
            "requests": [{"mapping": "m", "path": "/x", "body": {"email": "a@x", "n": 1.0}}]})];
        for wanted in [
            json!({}),
            json!({"message_id": "a"}),
            json!({"requests": [{"path": "/x"}]}),
            json!({"requests": [{"body": {"n": 1.0, "email": "a@x"}}], "message_id": "a"}),
        ] {
            assert_eq!(differences(&[(1, wanted)], &made), "");
        }
        for (wanted, place) in [
            (json!({"message_id": "b"}), "line 1, a: message_id\n  - \"b\"\n  + \"a\"\n"),
            (json!({"skipped": {}}), "line 1, a: skipped\n  - {}\n"),
            (json!({"requests": []}), "line 1, a: requests[0]\n"),
            (
                json!({"requests": [{"body": {"email": "a@y", "n": 1.0}}]}),
                "line 1, a: requests[0].body\n    {\n  -   \"email\": \"a@y\",\n  +   \"email\": \"a@x\",\n      \"n\": 1.0\n    }\n",
            ),
        ] {
            let text = differences(&[(1, wanted)], &made);
            assert!(text.starts_with(place), "{text}");
        }
        assert!(differences(&[], &made).starts_with("an event that was not expected"));
        assert!(
            differences(&[(1, json!({})), (3, json!({}))], &made)
                .starts_with("line 3: there is no such event")
        );
    }
}

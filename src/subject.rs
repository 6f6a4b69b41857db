//! Whose data an event is, as a request for erasure or for access names a person.

use crate::event::Event;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt;

/// What stands for `@` in an address within a URL.
const ESCAPED_AT: &str = "%40";

/// A person as they are named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// By an email address, wherever in an event it stands, whatever its case.
    Email(String),
    /// By `userId` or `previousId`.
    UserId(String),
    /// By the `profile_id` of traits or properties, or RudderStack's `ko_profile_id`.
    ProfileId(String),
}

impl Subject {
    /// The name as it was given.
    pub fn text(&self) -> &str {
        match self {
            Subject::Email(text) | Subject::UserId(text) | Subject::ProfileId(text) => text,
        }
    }

    /// The name by which [`names`] tells them.
    pub fn name(&self) -> String {
        match self {
            Subject::Email(text) => email(text),
            Subject::UserId(text) => format!("user_id {text}"),
            Subject::ProfileId(text) => format!("profile_id {text}"),
        }
    }

    /// Whether the text of an event, or another text of which nothing is known, names them.
    pub fn is_in(&self, text: &str) -> bool {
        match Event::parse(text) {
            Ok(event) => names(&event).contains(&self.name()),
            Err(_) => self.stands_in(text),
        }
    }

    /// Whether their address stands in a text; an id that is no address is in none.
    pub fn stands_in(&self, text: &str) -> bool {
        let mut found = BTreeSet::new();
        if let Subject::Email(_) = self {
            addresses(text, &mut found);
        }
        found.contains(&self.name())
    }

    /// Whether a file is named after them, as in `ana@acme.dev.json.gz`.
    pub fn names_file(&self, name: &str) -> bool {
        let stem = name.strip_suffix(".gz").unwrap_or(name);
        self.stands_in(name) || stem.rsplit_once('.').is_some_and(|(stem, _)| self.stands_in(stem))
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// The names of all the persons whom an event names.
pub fn names(event: &Event) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let Ok(value) = serde_json::from_str::<Value>(event.raw()) else { return found };
    every_address(&value, &mut found);
    for id in ["userId", "previousId"].iter().filter_map(|name| text_of(value.get(name)?)) {
        found.insert(format!("user_id {id}"));
    }
    for place in ["/traits", "/properties", "/context/traits"].iter().filter_map(|path| value.pointer(path)) {
        for id in ["profile_id", "ko_profile_id"].iter().filter_map(|name| text_of(place.get(name)?)) {
            found.insert(format!("profile_id {id}"));
        }
    }
    found
}

/// Ids are texts or numbers.
fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// An event nests no deeper than its reader allows.
fn every_address(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::String(text) => addresses(text, found),
        Value::Array(items) => items.iter().for_each(|item| every_address(item, found)),
        Value::Object(members) => members.iter().for_each(|(name, value)| {
            addresses(name, found);
            every_address(value, found);
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// What looks like an address in a text: the whole of it, and each word.
fn addresses(text: &str, found: &mut BTreeSet<String>) {
    if !text.contains('@') && !text.contains(ESCAPED_AT) {
        return;
    }
    let text = text.replace(ESCAPED_AT, "@");
    found.insert(email(&text));
    let words = text.split(|c: char| !c.is_alphanumeric() && !"@.!#$%+-_'~".contains(c));
    for word in words.filter(|word| word.contains('@')) {
        found.insert(email(word));
        found.insert(email(word.trim_matches(|c: char| !c.is_alphanumeric())));
    }
}

fn email(text: &str) -> String {
    format!("email {}", text.trim().to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_a_person_wherever_it_stands() {
        let ana = Subject::Email("Ana@Acme.dev".to_owned());
        for text in [
            r#"{"traits":{"email":"ana@acme.dev"}}"#,
            r#"{"traits":{"email":" ANA@ACME.DEV "}}"#,
            r#"{"userId":"ana\u0040acme.dev"}"#,
            r#"{"properties":{"invited":["bo@acme.dev","ana@acme.dev"]}}"#,
            r#"{"properties":{"note":"ask <ana@acme.dev>, or call."}}"#,
            r#"{"properties":{"url":"https://x.test/?email=ana%40acme.dev&b=1"}}"#,
            r#"{"properties":{"url":"mailto:ana@acme.dev."}}"#,
            r#"{"properties":{"ana@acme.dev":true}}"#,
            r#"half of a line, "email":"ana@acme.dev""#,
        ] {
            assert!(ana.is_in(text), "{text}");
        }
        for text in [
            r#"{"traits":{"email":"joana@acme.dev"}}"#,
            r#"{"traits":{"email":"ana@acme.dev.test"}}"#,
            r#"{"traits":{"email":"ana.b@acme.dev"}}"#,
            r#"{"traits":{"name":"ana"}}"#,
        ] {
            assert!(!ana.is_in(text), "{text}");
        }
        for (name, named) in
            [("ana@acme.dev.json.gz", true), ("ana@acme.dev", true), ("joana@acme.dev.json", false)]
        {
            assert_eq!(ana.names_file(name), named, "{name}");
        }
    }

    #[test]
    fn ids_name_a_person_in_their_own_places() {
        let (user, profile) = (Subject::UserId("7".to_owned()), Subject::ProfileId("7".to_owned()));
        for (text, by_user, by_profile) in [
            (r#"{"userId":"7"}"#, true, false),
            (r#"{"userId":7}"#, true, false),
            (r#"{"type":"alias","previousId":"7"}"#, true, false),
            (r#"{"properties":{"profile_id":"7"}}"#, false, true),
            (r#"{"traits":{"ko_profile_id":7}}"#, false, true),
            (r#"{"context":{"traits":{"profile_id":"7"}}}"#, false, true),
            (r#"{"anonymousId":"7","properties":{"seats":7}}"#, false, false),
        ] {
            assert_eq!((user.is_in(text), profile.is_in(text)), (by_user, by_profile), "{text}");
        }
    }
}

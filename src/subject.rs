//! The person whose data is erased or exported, and how an event names them.

use crate::event::Event;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt;

/// `@` as it is escaped in a URL.
const ESCAPED_AT: &str = "%40";

/// A person as a request for erasure or access names them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// An email address, found anywhere in an event, in any case.
    Email(String),
    /// The value of `userId` or `previousId`.
    UserId(String),
    /// The `profile_id` of traits or properties, or RudderStack's `ko_profile_id`.
    ProfileId(String),
}

impl Subject {
    /// The identifier as the request has it.
    pub fn as_str(&self) -> &str {
        match self {
            Subject::Email(text) | Subject::UserId(text) | Subject::ProfileId(text) => text,
        }
    }

    /// The subject in the form in which [`subject_keys`] lists it.
    pub fn key(&self) -> String {
        match self {
            Subject::Email(text) => email_key(text),
            Subject::UserId(text) => format!("user_id {text}"),
            Subject::ProfileId(text) => format!("profile_id {text}"),
        }
    }

    /// Whether a text names the subject; a text that is not an event is searched for the address.
    pub fn is_named_in(&self, text: &str) -> bool {
        match Event::parse(text) {
            Ok(event) => subject_keys(&event).contains(&self.key()),
            Err(_) => self.has_address_in(text),
        }
    }

    /// Whether a text contains the subject's email address. An id is never found this way.
    pub fn has_address_in(&self, text: &str) -> bool {
        let mut found = BTreeSet::new();
        if let Subject::Email(_) = self {
            collect_from_text(text, &mut found);
        }
        found.contains(&self.key())
    }

    /// Whether a file is named after the subject, as in `ana@acme.dev.json.gz`.
    pub fn is_in_file_name(&self, name: &str) -> bool {
        let stem = name.strip_suffix(".gz").unwrap_or(name);
        self.has_address_in(name) || stem.rsplit_once('.').is_some_and(|(stem, _)| self.has_address_in(stem))
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The keys of all subjects that an event names, in the form of [`Subject::key`].
pub fn subject_keys(event: &Event) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let Ok(value) = serde_json::from_str::<Value>(event.raw()) else { return found };
    collect_addresses(&value, &mut found);
    for id in ["userId", "previousId"].iter().filter_map(|name| id_text(value.get(name)?)) {
        found.insert(format!("user_id {id}"));
    }
    for object in ["/traits", "/properties", "/context/traits"].iter().filter_map(|path| value.pointer(path))
    {
        for id in ["profile_id", "ko_profile_id"].iter().filter_map(|name| id_text(object.get(name)?)) {
            found.insert(format!("profile_id {id}"));
        }
    }
    found
}

/// An id as text; ids are strings or numbers.
fn id_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// Adds every email address within a value. The recursion is bounded by the depth that `serde_json` parses.
fn collect_addresses(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::String(text) => collect_from_text(text, found),
        Value::Array(items) => items.iter().for_each(|item| collect_addresses(item, found)),
        Value::Object(members) => members.iter().for_each(|(name, value)| {
            collect_from_text(name, found);
            collect_addresses(value, found);
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Adds the email addresses in a text: the whole text, and each word.
fn collect_from_text(text: &str, found: &mut BTreeSet<String>) {
    if !text.contains('@') && !text.contains(ESCAPED_AT) {
        return;
    }
    let text = text.replace(ESCAPED_AT, "@");
    found.insert(email_key(&text));
    let words = text.split(|c: char| !may_stand_in_address(c));
    for word in words.filter(|word| word.contains('@')) {
        found.insert(email_key(word));
        found.insert(email_key(word.trim_matches(|c: char| !c.is_alphanumeric())));
    }
}

/// Whether a character may belong to an email address; any other ends a word.
pub fn may_stand_in_address(c: char) -> bool {
    c.is_alphanumeric() || "@.!#$%+-_'~".contains(c)
}

fn email_key(text: &str) -> String {
    format!("email {}", text.trim().to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_email_address_is_found_anywhere_in_an_event() {
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
            assert!(ana.is_named_in(text), "{text}");
        }
        for text in [
            r#"{"traits":{"email":"joana@acme.dev"}}"#,
            r#"{"traits":{"email":"ana@acme.dev.test"}}"#,
            r#"{"traits":{"email":"ana.b@acme.dev"}}"#,
            r#"{"traits":{"name":"ana"}}"#,
        ] {
            assert!(!ana.is_named_in(text), "{text}");
        }
        for (name, named) in
            [("ana@acme.dev.json.gz", true), ("ana@acme.dev", true), ("joana@acme.dev.json", false)]
        {
            assert_eq!(ana.is_in_file_name(name), named, "{name}");
        }
    }

    #[test]
    fn ids_are_found_only_in_their_own_members() {
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
            assert_eq!((user.is_named_in(text), profile.is_named_in(text)), (by_user, by_profile), "{text}");
        }
    }
}

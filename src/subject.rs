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

    /// The subject in the form in which [`NamingParts::keys`] lists it.
    pub fn key(&self) -> String {
        match self {
            Subject::Email(text) => email_key(text),
            Subject::UserId(text) => format!("user_id {text}"),
            Subject::ProfileId(text) => profile_key(text),
        }
    }

    /// Whether a text names the subject; a text that is not an event is searched for the address.
    pub fn is_named_in(&self, text: &str) -> bool {
        if !self.may_be_named_in(text) {
            return false;
        }
        match Event::parse(text) {
            Ok(event) => subject_keys(&event).contains(&self.key()),
            Err(_) => self.has_address_in(text),
        }
    }

    /// Whether the text is worth parsing. An address is nowhere in a text without escapes in which not even its first part
    /// stands; of most events that is known without looking at them as JSON, which takes ten times as long.
    fn may_be_named_in(&self, text: &str) -> bool {
        let Subject::Email(address) = self else { return true };
        let name = address.trim().split('@').next().unwrap_or_default().as_bytes();
        let (Some(first), true) = (name.first(), name.is_ascii() && text.is_ascii()) else { return true };
        if memchr::memchr(b'\\', text.as_bytes()).is_some() {
            return true;
        }
        let (lower, upper) = (first.to_ascii_lowercase(), first.to_ascii_uppercase());
        memchr::memchr2_iter(lower, upper, text.as_bytes()).any(|at| {
            text.as_bytes().get(at..at + name.len()).is_some_and(|part| part.eq_ignore_ascii_case(name))
        })
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
        texts_of_file_name(name).any(|text| self.has_address_in(text))
    }

    /// The name under which events are sent that are about the subject; none are about a `userId`.
    pub fn sent_as(&self) -> Option<&str> {
        match self {
            Subject::Email(name) | Subject::ProfileId(name) => Some(name),
            Subject::UserId(_) => None,
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Everything of an event that may name a person. Whoever searches for one subject and whoever has many to compare ask this
/// type, so that what a search finds is what is kept out later.
#[derive(Debug, Clone, Default)]
pub struct NamingParts<'a> {
    /// The event's text, unless it is erased.
    pub body: Option<&'a str>,
    /// The name of its file.
    pub file: &'a str,
    /// Texts in which an address may stand: its id, its name, reasons, and whom it is sent for.
    pub texts: Vec<&'a str>,
    /// The profile ids that it is sent for.
    pub profile_ids: Vec<&'a str>,
}

impl NamingParts<'_> {
    /// Whether any part names the subject. The text is parsed only if it may.
    pub fn name(&self, subject: &Subject) -> bool {
        let NamingParts { body, file, texts, profile_ids } = self;
        body.is_some_and(|body| subject.is_named_in(body))
            || subject.is_in_file_name(file)
            || texts.iter().any(|text| subject.has_address_in(text))
            || matches!(subject, Subject::ProfileId(id) if profile_ids.contains(&id.as_str()))
    }

    /// The keys of all subjects that the parts name, in the form of [`Subject::key`].
    pub fn keys(&self) -> BTreeSet<String> {
        let NamingParts { body, file, texts, profile_ids } = self;
        let mut found = BTreeSet::new();
        match body.map(|body| (body, Event::parse(body))) {
            Some((_, Ok(event))) => found = subject_keys(&event),
            Some((body, Err(_))) => collect_from_text(body, &mut found),
            None => {}
        }
        let texts = texts.iter().copied().chain(texts_of_file_name(file));
        texts.for_each(|text| collect_from_text(text, &mut found));
        found.extend(profile_ids.iter().map(|id| profile_key(id)));
        found
    }
}

/// The texts in a file's name that may be an address: all of it, and what stands before the endings.
fn texts_of_file_name(name: &str) -> impl Iterator<Item = &str> {
    let stem = name.strip_suffix(".gz").unwrap_or(name);
    [Some(name), stem.rsplit_once('.').map(|(stem, _)| stem)].into_iter().flatten()
}

/// The keys of all subjects that an event's text names, in the form of [`Subject::key`].
fn subject_keys(event: &Event) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let Ok(value) = serde_json::from_str::<Value>(event.raw()) else { return found };
    collect_addresses(&value, &mut found);
    for id in ["userId", "previousId"].iter().filter_map(|name| id_text(value.get(name)?)) {
        found.insert(format!("user_id {id}"));
    }
    for object in ["/traits", "/properties", "/context/traits"].iter().filter_map(|path| value.pointer(path))
    {
        for id in ["profile_id", "ko_profile_id"].iter().filter_map(|name| id_text(object.get(name)?)) {
            found.insert(profile_key(&id));
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
    if !may_hold_address(text) {
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

/// Whether any email address may stand in a text.
pub fn may_hold_address(text: &str) -> bool {
    text.contains('@') || text.contains(ESCAPED_AT)
}

/// Whether a character may belong to an email address; any other ends a word.
pub fn may_stand_in_address(c: char) -> bool {
    c.is_alphanumeric() || "@.!#$%+-_'~".contains(c)
}

fn profile_key(id: &str) -> String {
    format!("profile_id {id}")
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

    #[test]
    fn a_search_for_one_subject_finds_what_the_keys_of_all_tell() {
        let email = |text: &str| Subject::Email(text.to_owned());
        let (ana, id_7) = (email("Ana@acme.dev"), Subject::ProfileId("7".to_owned()));
        let none = NamingParts::default();
        for (parts, by_ana, by_7) in [
            (none.clone(), false, false),
            (
                NamingParts { body: Some(r#"{"traits":{"email":"ana@acme.dev"}}"#), ..none.clone() },
                true,
                false,
            ),
            (NamingParts { body: Some(r#"half, "ana@acme.dev""#), ..none.clone() }, true, false),
            (NamingParts { body: Some(r#"{"traits":{"profile_id":7}}"#), ..none.clone() }, false, true),
            (NamingParts { file: "ana@acme.dev.json.gz", ..none.clone() }, true, false),
            (NamingParts { file: "7", texts: vec!["7", "to ANA@acme.dev, 7"], ..none.clone() }, true, false),
            (NamingParts { profile_ids: vec!["6", "7"], ..none.clone() }, false, true),
            (NamingParts { file: "bo@acme.dev.json", texts: vec!["joana@acme.dev"], ..none }, false, false),
        ] {
            for (subject, want) in [(&ana, by_ana), (&id_7, by_7)] {
                let named = (parts.name(subject), parts.keys().contains(&subject.key()));
                assert_eq!(named, (want, want), "{subject} in {parts:?}");
            }
        }
    }
}

//! The body of a request: some events of one person, in order, that together say what they say one by one.
//!
//! ```text
//! {profile_id?, email?, traits, ip?, identifies: […], events: […]}
//! ```

use crate::event::json::Object;
use crate::item::{Item, ItemKind, Person};
use std::collections::HashMap;

/// How many items of each kind one request may hold: Koala's own limit.
pub const MAX_OF_A_KIND: usize = 30;

/// Items of one person for one request, at least one of them.
///
/// Each kind is in the order in which it was pushed, and no track went before an identify, so the body read from
/// its start tells the items in order. No trait of the top level has had two values.
#[derive(Debug, Clone)]
pub struct Batch {
    person: Person,
    profile_id: Option<String>,
    email: Option<String>,
    ip: Option<String>,
    traits: Traits,
    identifies: Vec<String>,
    events: Vec<String>,
}

impl Batch {
    /// A request for this item.
    pub fn new(first: Item) -> Batch {
        let Item { kind, person, profile_id, email, ip, traits, body, message_id: _ } = first;
        let (identifies, events) = match kind {
            ItemKind::Identify => (vec![body], vec![]),
            ItemKind::Track => (vec![], vec![body]),
        };
        Batch { person, profile_id, email, ip, traits: Traits::new(traits), identifies, events }
    }

    /// Takes the item in after the others. An error gives it back, the batch unchanged: the request must end
    /// before it.
    #[expect(clippy::result_large_err, reason = "the item goes on into the next batch, once a request")]
    pub fn push(&mut self, item: Item) -> Result<(), Item> {
        let same = self.profile_id == item.profile_id && self.email == item.email && self.ip == item.ip;
        let room = match item.kind {
            ItemKind::Identify => self.events.is_empty() && self.identifies.len() < MAX_OF_A_KIND,
            ItemKind::Track => self.events.len() < MAX_OF_A_KIND,
        };
        if !same || !room || !self.traits.add(&item.traits) {
            return Err(item);
        }
        match item.kind {
            ItemKind::Identify => self.identifies.push(item.body),
            ItemKind::Track => self.events.push(item.body),
        }
        Ok(())
    }

    /// Whose events they are.
    pub fn person(&self) -> &Person {
        &self.person
    }

    /// How many items there are, of both kinds.
    #[expect(clippy::len_without_is_empty, reason = "there is always one")]
    pub fn len(&self) -> usize {
        self.identifies.len() + self.events.len()
    }

    /// The bytes of the body.
    pub fn size(&self) -> usize {
        let mut bytes = 0;
        self.write(|part| bytes += part.len());
        bytes
    }

    /// The body: JSON without insignificant white space.
    pub fn body(&self) -> String {
        let mut body = String::with_capacity(self.size());
        self.write(|part| body.push_str(part));
        body
    }

    fn write(&self, mut out: impl FnMut(&str)) {
        let mut before = "{\"";
        for (name, json) in [
            ("profile_id", self.profile_id.as_deref()),
            ("email", self.email.as_deref()),
            ("traits", Some(self.traits.text.as_str())),
            ("ip", self.ip.as_deref()),
        ] {
            let Some(json) = json else { continue };
            [before, name, "\":", json].into_iter().for_each(&mut out);
            before = ",\"";
        }
        for (name, items) in [("identifies", &self.identifies), ("events", &self.events)] {
            let mut before = "\":[";
            for (i, item) in items.iter().enumerate() {
                if i == 0 {
                    [",\"", name].into_iter().for_each(&mut out);
                }
                [before, item].into_iter().for_each(&mut out);
                before = ",";
            }
            if !items.is_empty() {
                out("]");
            }
        }
        out("}");
    }
}

/// The traits of the top level: the union of the items' in order, each with one value.
#[derive(Debug, Clone)]
struct Traits {
    text: String,
    /// The values by name, read from the text when a second item comes: most requests have but one.
    values: Option<HashMap<String, String>>,
}

impl Traits {
    fn new(text: String) -> Traits {
        Traits { text, values: None }
    }

    /// Adds what is new in `json`, unless it gives another value to a trait that is there.
    fn add(&mut self, json: &str) -> bool {
        if json == "{}" || json == self.text {
            return true;
        }
        let Ok(object) = serde_json::from_str::<Object>(json) else { return false };
        let said: HashMap<&str, &str> = object.0.iter().map(|m| (m.name.as_ref(), m.value.get())).collect();
        let values = self.values.get_or_insert_with(|| values(&self.text));
        if said.iter().any(|(&name, &json)| values.get(name).is_some_and(|value| value != json)) {
            return false;
        }
        for member in &object.0 {
            let name = member.name.as_ref();
            if let (false, Some(json)) = (values.contains_key(name), said.get(name)) {
                self.text.pop();
                if self.text.len() > 1 {
                    self.text.push(',');
                }
                self.text.extend([member.key, ":", json, "}"]);
                values.insert(name.into(), (*json).into());
            }
        }
        true
    }
}

fn values(json: &str) -> HashMap<String, String> {
    let object: Object = serde_json::from_str(json).unwrap_or_default();
    object.0.into_iter().map(|m| (m.name.into_owned(), m.value.get().into())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::MessageId;

    fn item(kind: ItemKind, traits: &str) -> Item {
        Item {
            kind,
            person: Person::of(None, Some("\"a\"")).unwrap(),
            profile_id: None,
            email: Some("\"a\"".into()),
            ip: None,
            traits: traits.into(),
            body: "{}".into(),
            message_id: MessageId::new("m".into()).unwrap(),
        }
    }

    fn track(traits: &str) -> Item {
        item(ItemKind::Track, traits)
    }

    fn identify(traits: &str) -> Item {
        item(ItemKind::Identify, traits)
    }

    fn batch(items: Vec<Item>) -> Batch {
        let mut items = items.into_iter();
        let mut batch = Batch::new(items.next().unwrap());
        items.for_each(|item| batch.push(item).unwrap());
        batch
    }

    #[test]
    fn a_body_tells_the_items_in_order_under_the_union_of_their_traits() {
        let batch = batch(vec![
            identify(r#"{"plan":"pro","n":1.0}"#),
            identify(r#"{"pl\u0061n":"pro","x":{"y":[]},"z":0,"z":1}"#),
            track("{}"),
            track(r#"{"z":1}"#),
        ]);
        let body = concat!(
            r#"{"email":"a","traits":{"plan":"pro","n":1.0,"x":{"y":[]},"z":1},"#,
            r#""identifies":[{},{}],"events":[{},{}]}"#
        );
        assert_eq!((batch.body(), batch.len(), batch.size()), (body.into(), 4, body.len()));
    }

    #[test]
    fn a_request_ends_before_what_would_change_its_meaning() {
        let first = || identify(r#"{"plan":"pro"}"#);
        for (why, batch, item) in [
            ("a trait changes", vec![first()], track(r#"{"new":1,"plan":"free"}"#)),
            ("a number is spelt otherwise", vec![track(r#"{"n":1}"#)], track(r#"{"n":1.0}"#)),
            ("an identify follows a track", vec![first(), track("{}")], identify("{}")),
            ("another profile_id", vec![first()], Item { profile_id: Some("1".into()), ..first() }),
            ("another email", vec![first()], Item { email: Some("\"b\"".into()), ..first() }),
            ("an ip", vec![first()], Item { ip: Some("\"::1\"".into()), ..first() }),
            ("30 identifies", vec![first(); 30], first()),
            ("30 tracks", vec![track("{}"); 30], track("{}")),
        ] {
            let mut batch = self::batch(batch);
            let before = batch.body();
            assert_eq!(batch.push(item.clone()), Err(item), "{why}");
            assert_eq!(batch.body(), before, "{why}");
        }
    }

    #[test]
    fn a_request_holds_thirty_of_each_kind() {
        let mut items = vec![identify("{}"); MAX_OF_A_KIND];
        items.extend(vec![track("{}"); MAX_OF_A_KIND]);
        assert_eq!(batch(items).len(), 2 * MAX_OF_A_KIND);
    }
}

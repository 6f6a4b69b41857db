//! The body of a request: some events of one person or account, in order, that together say what they say one by one.
//!
//! ```text
//! {profile_id?, email?, traits, ip?, identifies: […], events: […]}
//! {domain?, account_id?, identifies: […], events: […]}
//! ```

use crate::event::json::Object;
use crate::item::{Endpoint, Item, MAX_OF_A_KIND, Names, Person};
use std::collections::HashMap;

/// Items of one person for one request, at least one of them.
///
/// Each kind is in the order in which it was pushed, and no track went before an identify, so the body read from
/// its start tells the items in order. No trait of the top level has had two values.
#[derive(Debug, Clone)]
pub struct Batch {
    endpoint: Endpoint,
    person: Person,
    names: Names,
    traits: Option<Traits>,
    identifies: Vec<String>,
    events: Vec<String>,
    /// Bytes of the items.
    items: usize,
}

impl Batch {
    /// A request for this item.
    pub fn new(first: Item) -> Batch {
        let Item { kind, person, names, traits, body, message_id: _ } = first;
        let items = body.len();
        let (identifies, events) =
            if kind.is_identify() { (vec![body], vec![]) } else { (vec![], vec![body]) };
        let endpoint = kind.endpoint();
        Batch { endpoint, person, names, traits: traits.map(Traits::new), identifies, events, items }
    }

    /// Takes the item in after the others. An error gives it back, the batch unchanged: the request must end
    /// before it.
    #[expect(clippy::result_large_err, reason = "the item goes on into the next batch, once a request")]
    pub fn push(&mut self, item: Item) -> Result<(), Item> {
        let same = self.endpoint == item.kind.endpoint() && self.names == item.names;
        let room = if item.kind.is_identify() {
            self.events.is_empty() && self.identifies.len() < MAX_OF_A_KIND
        } else {
            self.events.len() < MAX_OF_A_KIND
        };
        let agree = |traits: &mut Traits| traits.add(item.traits.as_deref().unwrap_or("{}"));
        if !same || !room || !self.traits.as_mut().is_none_or(agree) {
            return Err(item);
        }
        self.items += item.body.len();
        match item.kind.is_identify() {
            true => self.identifies.push(item.body),
            false => self.events.push(item.body),
        }
        Ok(())
    }

    /// Where it goes.
    pub fn endpoint(&self) -> Endpoint {
        self.endpoint
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
        let top: usize = self.top().map(|(name, json)| name.len() + json.len() + "\"\":,".len()).sum();
        let lists: usize =
            self.lists().map(|(name, items)| name.len() + items.len() + "\"\":[],".len() - 1).sum();
        "{}".len() + top + lists + self.items - 1
    }

    /// The body: JSON without insignificant white space.
    pub fn body(&self) -> String {
        let mut body = String::with_capacity(self.size());
        for (name, json) in self.top() {
            body.push(if body.is_empty() { '{' } else { ',' });
            body.extend(["\"", name, "\":", json]);
        }
        for (name, items) in self.lists() {
            body.extend([",\"", name, "\":"]);
            for (i, item) in items.iter().enumerate() {
                body.push(if i == 0 { '[' } else { ',' });
                body.push_str(item);
            }
            body.push(']');
        }
        body.push('}');
        body
    }

    /// The members of the top level, at least one of them.
    fn top(&self) -> impl Iterator<Item = (&str, &str)> {
        let names = &self.names;
        let traits = self.traits.as_ref().map(|traits| &traits.text);
        [
            ("profile_id", names.profile_id.as_ref()),
            ("email", names.email.as_ref()),
            ("domain", names.domain.as_ref()),
            ("account_id", names.account_id.as_ref()),
            ("traits", traits),
            ("ip", names.ip.as_ref()),
        ]
        .into_iter()
        .filter_map(|(name, json)| Some((name, json?.as_str())))
    }

    /// The items of each kind that there is.
    fn lists(&self) -> impl Iterator<Item = (&str, &[String])> {
        [("identifies", self.identifies.as_slice()), ("events", self.events.as_slice())]
            .into_iter()
            .filter(|(_, items)| !items.is_empty())
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
    use crate::item::ItemKind;

    fn item(kind: ItemKind, traits: &str) -> Item {
        Item {
            kind,
            person: Person::of(None, Some("\"a\"")).unwrap(),
            names: Names { email: Some("\"a\"".into()), ..Names::default() },
            traits: Some(traits.into()),
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
        let named = |change: fn(&mut Names)| {
            let mut item = first();
            change(&mut item.names);
            item
        };
        for (why, batch, item) in [
            ("a trait changes", vec![first()], track(r#"{"new":1,"plan":"free"}"#)),
            ("a number is spelt otherwise", vec![track(r#"{"n":1}"#)], track(r#"{"n":1.0}"#)),
            ("an identify follows a track", vec![first(), track("{}")], identify("{}")),
            ("another profile_id", vec![first()], named(|names| names.profile_id = Some("1".into()))),
            ("another email", vec![first()], named(|names| names.email = Some("\"b\"".into()))),
            ("an ip", vec![first()], named(|names| names.ip = Some("\"::1\"".into()))),
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

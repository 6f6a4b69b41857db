//! The body of a request: items of one person or account in order, combined so that the receiver reads the same as
//! from single requests.
//!
//! ```text
//! {profile_id?, email?, traits, ip?, identifies: […], events: […]}
//! {domain?, account_id?, identifies: […], events: […]}
//! ```

use crate::event::json::Object;
use crate::item::{Endpoint, Identifiers, Item, MAX_OF_A_KIND, Person};
use std::collections::HashMap;

/// The items of one request: at least one, all about the same person or account.
///
/// The receiver reads all identifies before all events, so an identify after an event needs a new request. A trait of the
/// top level has one value in a request, so an item with another value needs a new request.
#[derive(Debug, Clone)]
pub struct Batch {
    endpoint: Endpoint,
    person: Person,
    identifiers: Identifiers,
    traits: Option<Traits>,
    identifies: Vec<String>,
    events: Vec<String>,
    /// The bytes of all items' bodies.
    item_bytes: usize,
}

impl Batch {
    /// A batch of one item.
    pub fn new(first: Item) -> Batch {
        let Item { kind, person, identifiers, traits, body, message_id: _ } = first;
        let item_bytes = body.len();
        let (identifies, events) =
            if kind.is_identify() { (vec![body], vec![]) } else { (vec![], vec![body]) };
        let endpoint = kind.endpoint();
        let traits = traits.map(Traits::new);
        Batch { endpoint, person, identifiers, traits, identifies, events, item_bytes }
    }

    /// Adds an item at the end.
    ///
    /// # Errors
    /// The item, if it needs a new request; the batch stays unchanged.
    #[expect(clippy::result_large_err, reason = "the caller puts the item into the next batch")]
    pub fn push(&mut self, item: Item) -> Result<(), Item> {
        let is_same_subject = self.endpoint == item.kind.endpoint() && self.identifiers == item.identifiers;
        let has_room = if item.kind.is_identify() {
            self.events.is_empty() && self.identifies.len() < MAX_OF_A_KIND
        } else {
            self.events.len() < MAX_OF_A_KIND
        };
        let merge_traits = |traits: &mut Traits| traits.merge(item.traits.as_deref().unwrap_or("{}"));
        if !is_same_subject || !has_room || !self.traits.as_mut().is_none_or(merge_traits) {
            return Err(item);
        }
        self.item_bytes += item.body.len();
        match item.kind.is_identify() {
            true => self.identifies.push(item.body),
            false => self.events.push(item.body),
        }
        Ok(())
    }

    /// The endpoint that the request goes to.
    pub fn endpoint(&self) -> Endpoint {
        self.endpoint
    }

    /// The person or account of all items.
    pub fn person(&self) -> &Person {
        &self.person
    }

    /// The number of items.
    #[expect(clippy::len_without_is_empty, reason = "a batch is never empty")]
    pub fn len(&self) -> usize {
        self.identifies.len() + self.events.len()
    }

    /// The length of [`Batch::body`] in bytes, without building it.
    pub fn size(&self) -> usize {
        let top: usize =
            self.top_members().map(|(name, json)| name.len() + json.len() + "\"\":,".len()).sum();
        let lists: usize =
            self.lists().map(|(name, items)| name.len() + items.len() + "\"\":[],".len() - 1).sum();
        "{}".len() + top + lists + self.item_bytes - 1
    }

    /// The body as JSON without insignificant white space.
    pub fn body(&self) -> String {
        let mut body = String::with_capacity(self.size());
        for (name, json) in self.top_members() {
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

    /// The members before the lists; never none.
    fn top_members(&self) -> impl Iterator<Item = (&str, &str)> {
        let identifiers = &self.identifiers;
        let traits = self.traits.as_ref().map(|traits| &traits.text);
        [
            ("profile_id", identifiers.profile_id.as_ref()),
            ("email", identifiers.email.as_ref()),
            ("domain", identifiers.domain.as_ref()),
            ("account_id", identifiers.account_id.as_ref()),
            ("traits", traits),
            ("ip", identifiers.ip.as_ref()),
        ]
        .into_iter()
        .filter_map(|(name, json)| Some((name, json?.as_str())))
    }

    /// The lists of items that are not empty.
    fn lists(&self) -> impl Iterator<Item = (&str, &[String])> {
        [("identifies", self.identifies.as_slice()), ("events", self.events.as_slice())]
            .into_iter()
            .filter(|(_, items)| !items.is_empty())
    }
}

/// The traits at the top level: the union of the items' traits in order, each with one value.
#[derive(Debug, Clone)]
struct Traits {
    text: String,
    /// The values by name; parsed only when a second item is added, because most requests have one item.
    values: Option<HashMap<String, String>>,
}

impl Traits {
    fn new(text: String) -> Traits {
        Traits { text, values: None }
    }

    /// Adds the traits in `json`. Returns false, and changes nothing, if one of them is present with another value.
    fn merge(&mut self, json: &str) -> bool {
        if json == "{}" || json == self.text {
            return true;
        }
        let Ok(object) = serde_json::from_str::<Object>(json) else { return false };
        let new: HashMap<&str, &str> = object.0.iter().map(|m| (m.name.as_ref(), m.value.get())).collect();
        let values = self.values.get_or_insert_with(|| values_by_name(&self.text));
        if new.iter().any(|(&name, &json)| values.get(name).is_some_and(|value| value != json)) {
            return false;
        }
        for member in &object.0 {
            let name = member.name.as_ref();
            if let (false, Some(json)) = (values.contains_key(name), new.get(name)) {
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

fn values_by_name(json: &str) -> HashMap<String, String> {
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
            identifiers: Identifiers { email: Some("\"a\"".into()), ..Identifiers::default() },
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
    fn a_body_has_the_items_in_order_under_the_union_of_their_traits() {
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
    fn an_item_that_would_change_the_meaning_needs_a_new_request() {
        let first = || identify(r#"{"plan":"pro"}"#);
        let with_identifiers = |change: fn(&mut Identifiers)| {
            let mut item = first();
            change(&mut item.identifiers);
            item
        };
        for (why, batch, item) in [
            ("a trait changes", vec![first()], track(r#"{"new":1,"plan":"free"}"#)),
            ("a number has another spelling", vec![track(r#"{"n":1}"#)], track(r#"{"n":1.0}"#)),
            ("an identify follows a track", vec![first(), track("{}")], identify("{}")),
            ("another profile_id", vec![first()], with_identifiers(|ids| ids.profile_id = Some("1".into()))),
            ("another email", vec![first()], with_identifiers(|ids| ids.email = Some("\"b\"".into()))),
            ("an ip", vec![first()], with_identifiers(|ids| ids.ip = Some("\"::1\"".into()))),
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

//! What can be told of a mapping without an event: that it never takes one, or never makes a request.

use super::{Action, Mapping, datetime};
use crate::event::json;
use crate::mapping::lookup::Type;

impl Mapping {
    /// Why it never matches, or why no request can come of it: a clause each, none if it can do its work.
    pub fn lint(&self) -> Vec<String> {
        let never = self.trigger.never().map(|why| format!("it never matches: {why}"));
        never.into_iter().chain(self.fields.iter().filter_map(|(name, _)| self.wrong(name))).collect()
    }

    /// The value of a field that is the same for every event.
    fn fixed(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| *field == name).and_then(|(_, field)| field.fixed())
    }

    fn is_nothing(&self, name: &str) -> bool {
        self.fixed(name).is_some_and(|json| matches!(json, "null" | "\"\""))
    }

    fn wrong(&self, name: &str) -> Option<String> {
        let nothing = self.is_nothing(name);
        let account = matches!(self.action, Action::AccountTrack | Action::AccountIdentify);
        match name {
            "event" | "sent_at" | "message_id" if nothing => {
                Some(format!("its field {name} is always empty, and {} needs it", self.action.as_str()))
            }
            "message_id" => {
                self.fixed(name)?;
                Some(
                    "its field message_id is the same for every event: Koala would take them for one"
                        .to_owned(),
                )
            }
            "sent_at" => {
                let text = json::decode(self.fixed(name)?);
                let is_time = text.is_some_and(|text| datetime::is_valid(&text));
                (!is_time).then(|| "its field sent_at is no date and time".to_owned())
            }
            "properties" | "traits" | "context" if !nothing => {
                let kind = Type::of(self.fixed(name)?);
                (kind != Type::Object)
                    .then(|| format!("its field {name} must be an object, and is a {}", kind.as_str()))
            }
            "domain" if account && nothing => {
                let has_id = self.fields.iter().any(|(field, _)| *field == "account_id")
                    && !self.is_nothing("account_id");
                (!has_id).then(|| "neither domain nor account_id says which account it is".to_owned())
            }
            _ => None,
        }
    }
}

//! stub
use crate::event::Event;
use std::borrow::Cow;
#[derive(Debug, Clone, PartialEq)]
pub struct Field(String);
/// x
#[derive(Debug)]
pub struct FieldError {
    pub path: String,
    pub text: String,
}
impl Field {
    /// x
    pub fn parse(text: &str) -> Result<Field, Vec<FieldError>> {
        Ok(Field(text.to_owned()))
    }
    /// x
    pub fn resolve<'a>(&'a self, _: &Event<'a>) -> Result<Option<Cow<'a, str>>, String> {
        Ok(Some((&*self.0).into()))
    }
}

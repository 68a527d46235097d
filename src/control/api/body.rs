//! The body of a request: a JSON object.

use hyper::Request;
use hyper::body::Bytes;
use serde_json::{Map, Value};

use super::refusal::Refusal;
use crate::printable::Escaped;

/// The fields that have not been read yet. [`finish`](Self::finish) refuses those that are left.
#[derive(Debug)]
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    pub(super) fn of(request: &Request<Bytes>) -> Result<Self, Refusal> {
        match serde_json::from_slice(request.body()) {
            Ok(Value::Object(fields)) => Ok(Self(fields)),
            Ok(_) => Err(Refusal::bad_request("the body is not a JSON object")),
            Err(error) => Err(Refusal::bad_request(format!("the body is not JSON: {error}"))),
        }
    }

    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>, Refusal> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(Refusal::bad_request(format!("{name} must be a text"))),
        }
    }

    pub(super) fn number(&mut self, name: &str) -> Result<Option<u64>, Refusal> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_u64() {
                Some(number) => Ok(Some(number)),
                None => Err(Refusal::bad_request(format!("{name} must be a number that is not negative"))),
            },
        }
    }

    pub(super) fn flag(&mut self, name: &str) -> Result<Option<bool>, Refusal> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(_) => Err(Refusal::bad_request(format!("{name} must be true or false"))),
        }
    }

    /// Returns a value of any type.
    pub(super) fn value(&mut self, name: &str) -> Value {
        self.0.remove(name).unwrap_or_default()
    }

    /// Refuses fields that nothing has read.
    pub(super) fn finish(self) -> Result<(), Refusal> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(name) => Err(Refusal::bad_request(format!("{} is not a field here", Escaped(name)))),
        }
    }
}

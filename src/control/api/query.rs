//! The parameters of a request: its query.

use std::fmt::Display;
use std::str::FromStr;

use hyper::Request;
use ipnet::IpNet;

use super::refusal::Refusal;
use crate::config::{network, quoted};
use crate::printable::Escaped;

/// The parameters that have not been read yet. [`finish`](Self::finish) refuses those that are left, so that a misspelt
/// filter does not select everything.
#[derive(Debug)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn of<B>(request: &Request<B>) -> Self {
        let query = request.uri().query().unwrap_or_default();
        Self(form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(other, _)| other == name)?;
        Some(self.0.swap_remove(at).1)
    }

    pub(super) fn value<T: FromStr<Err: Display>>(&mut self, name: &str) -> Result<Option<T>, Refusal> {
        let parse = |text: String| {
            text.parse().map_err(|error| Refusal::bad_request(format!("{name}={}: {error}", Escaped(&text))))
        };
        self.text(name).map(parse).transpose()
    }

    /// Reads an address or a prefix.
    pub(super) fn network(&mut self, name: &str) -> Result<Option<IpNet>, Refusal> {
        let parse = |text: String| {
            network(&text).map_err(|why| Refusal::bad_request(format!("{name}: {} {why}", quoted(&text))))
        };
        self.text(name).map(parse).transpose()
    }

    /// Refuses parameters that nothing has read, and repeated ones.
    pub(super) fn finish(self) -> Result<(), Refusal> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => {
                let name = Escaped(name);
                Err(Refusal::bad_request(format!("{name} is not a parameter here, or it is repeated")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Query {
        Query::of(&Request::builder().uri(format!("/v1/sessions?{text}")).body(()).unwrap())
    }

    #[test]
    fn parameters_are_decoded_and_each_is_read_once() {
        let mut query = query("user=a%26b+%C3%A9&limit=7&client=10.0.0.0%2F8&peer=2001:db8::1");
        assert_eq!(query.text("user").as_deref(), Some("a&b é"));
        assert_eq!(query.value::<usize>("limit").unwrap(), Some(7));
        assert_eq!(query.network("client").unwrap(), Some("10.0.0.0/8".parse().unwrap()));
        assert_eq!(query.network("peer").unwrap(), Some("2001:db8::1/128".parse().unwrap()));
        assert_eq!(query.text("user"), None);
        assert!(query.finish().is_ok());
    }

    #[test]
    fn wrong_unknown_and_repeated_parameters_are_refused() {
        assert_eq!(
            query("limit=x").value::<usize>("limit").unwrap_err().message,
            "limit=x: invalid digit found in string"
        );
        for (prefix, message) in [
            (
                "10.0.0",
                "client: `10.0.0` is neither an address nor a prefix, for example \"192.0.2.7\" or \"10.0.0.0/8\"",
            ),
            ("127.0.0.1/1", "client: `127.0.0.1/1` has bits set after the prefix; did you mean `0.0.0.0/1`?"),
            ("::ffff:127.0.0.1", "client: `::ffff:127.0.0.1` is IPv4-mapped; use `127.0.0.1`"),
        ] {
            assert_eq!(query(&format!("client={prefix}")).network("client").unwrap_err().message, message);
        }
        let error = query("%1b[2J=1").finish().unwrap_err().message;
        assert_eq!(error, "\\u{1b}[2J is not a parameter here, or it is repeated");
        let error = query("limit=%0a%1b").value::<usize>("limit").unwrap_err().message;
        assert!(!error.contains(char::is_control), "{error:?}");
        let mut repeated = query("user=a&user=b");
        assert!(repeated.text("user").is_some());
        assert!(repeated.finish().unwrap_err().message.starts_with("user is not a parameter"));
    }
}

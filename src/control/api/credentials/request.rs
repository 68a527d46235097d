//! What a request for credentials asks for.

use hyper::Request;
use hyper::body::Bytes;
use serde_json::{Map, Value};

use super::Refusal;
use super::outcome::Outcome;

/// The lifetime and the user of the wished credential.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Wish {
    /// In seconds.
    pub(super) ttl: Option<u64>,
    /// Not empty, without control characters.
    pub(super) user: Option<String>,
}

fn bad_request(message: impl Into<String>) -> Refusal {
    Refusal::new(Outcome::BadRequest, message)
}

impl Wish {
    /// Reads the body of a request to `/v1/ice-servers`.
    pub(super) fn of_body(body: &[u8]) -> Result<Self, Refusal> {
        let object = object(body)?;
        // An unknown key is probably a misspelled one, whose absence would go unnoticed.
        if let Some(key) = object.keys().find(|key| !matches!(key.as_str(), "ttl" | "user")) {
            return Err(bad_request(format!("the body has an unknown key {key:?}; the keys are `ttl` and `user`")));
        }
        Self::of_object(&object, "user")
    }

    /// Reads the body of a request in the form of Cloudflare, which may have keys that have no meaning here.
    pub(super) fn of_cloudflare(body: &[u8]) -> Result<Self, Refusal> {
        let object = object(body)?;
        Self::of_object(&object, if object.contains_key("user") { "user" } else { "customIdentifier" })
    }

    /// Reads the parameters of draft-uberti-behave-turn-rest-00 §2.1.
    pub(super) fn of_parameters(parameters: &Parameters) -> Result<Self, Refusal> {
        match parameters.get("service") {
            None | Some("turn") => {}
            Some(_) => return Err(bad_request("the parameter `service` must be `turn`")),
        }
        let user = parameters.get("username").filter(|user| !user.is_empty());
        Ok(Self { ttl: None, user: user.map(|user| name("username", user)).transpose()? })
    }

    fn of_object(object: &Map<String, Value>, user: &str) -> Result<Self, Refusal> {
        let ttl = match object.get("ttl") {
            None | Some(Value::Null) => None,
            Some(ttl) => Some(ttl.as_u64().ok_or_else(|| bad_request("`ttl` must be a whole number of seconds"))?),
        };
        let user = match object.get(user) {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => Some(name(user, text)?),
            Some(_) => return Err(bad_request(format!("`{user}` must be a string"))),
        };
        Ok(Self { ttl, user })
    }
}

/// Reads a JSON object. Nothing is an empty object.
fn object(body: &[u8]) -> Result<Map<String, Value>, Refusal> {
    const EXAMPLE: &str = r#"for example {"ttl": 3600, "user": "alice"}"#;
    if body.trim_ascii().is_empty() {
        return Ok(Map::new());
    }
    match serde_json::from_slice(body) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(bad_request(format!("the body must be empty or a JSON object, {EXAMPLE}"))),
        Err(error) => Err(bad_request(format!("the body is not JSON: {error}; send none or an object, {EXAMPLE}"))),
    }
}

/// Checks the name of a user in `place`.
fn name(place: &str, name: &str) -> Result<String, Refusal> {
    if name.is_empty() {
        return Err(bad_request(format!("`{place}` is empty: omit it for a credential without a name")));
    }
    // RFC 8265 §4.2: the OpaqueString profile, which RFC 8489 §14.3 requires, excludes control characters.
    if name.chars().any(char::is_control) {
        return Err(bad_request(format!("`{place}` contains a control character")));
    }
    Ok(name.to_owned())
}

/// The parameters of a URL and of a form in the body. Those of the URL come first.
#[derive(Default)]
pub(super) struct Parameters(Vec<(String, String)>);

impl Parameters {
    pub(super) fn of(request: &Request<Bytes>) -> Result<Self, Refusal> {
        let query = request.uri().query().unwrap_or_default().as_bytes();
        let pairs = query.split(|byte| *byte == b'&').chain(request.body().split(|byte| *byte == b'&'));
        let decoded = pairs.filter(|pair| !pair.is_empty()).map(|pair| {
            let mut parts = pair.splitn(2, |byte| *byte == b'=');
            let [name, value] = [parts.next(), parts.next()].map(|part| decode(part.unwrap_or_default()));
            Some((name?, value?))
        });
        let decoded: Option<_> = decoded.collect();
        decoded.map(Self).ok_or_else(|| bad_request("the parameters are not UTF-8 in the form name=value&…"))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    /// Returns the key: the draft names the parameter `key`, and some clients `api`.
    pub(super) fn key(&self) -> Option<&[u8]> {
        self.get("key").or_else(|| self.get("api")).map(str::as_bytes)
    }
}

/// Decodes a part of `application/x-www-form-urlencoded`. `None` if it is not UTF-8.
fn decode(part: &[u8]) -> Option<String> {
    let mut decoded = Vec::with_capacity(part.len());
    let mut rest = part;
    while let Some((&byte, after)) = rest.split_first() {
        let escaped = after.split_at_checked(2).filter(|_| byte == b'%').and_then(|(digits, after)| {
            let [high, low] = <[u8; 2]>::try_from(digits).ok()?.map(|digit| char::from(digit).to_digit(16));
            Some((u8::try_from(high? * 16 + low?).ok()?, after))
        });
        let (byte, after) = escaped.unwrap_or((if byte == b'+' { b' ' } else { byte }, after));
        decoded.push(byte);
        rest = after;
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(ttl: Option<u64>, user: Option<&str>) -> Wish {
        Wish { ttl, user: user.map(str::to_owned) }
    }

    #[test]
    fn the_body_and_each_of_its_keys_are_optional() {
        for (body, expected) in [
            ("", wish(None, None)),
            (" \n", wish(None, None)),
            ("{}", wish(None, None)),
            (r#"{"ttl":60}"#, wish(Some(60), None)),
            (r#"{"user":"a:b ü","ttl":null}"#, wish(None, Some("a:b ü"))),
        ] {
            assert_eq!(Wish::of_body(body.as_bytes()).unwrap(), expected, "{body}");
        }
        let tagged = Wish::of_cloudflare(br#"{"ttl":86400,"customIdentifier":"ann","more":1}"#).unwrap();
        assert_eq!(tagged, wish(Some(86_400), Some("ann")));
    }

    #[test]
    fn a_wrong_body_is_a_bad_request_with_its_reason() {
        for (body, part) in [
            ("x", "not JSON"),
            ("[]", "JSON object"),
            (r#"{"ttl":"60"}"#, "`ttl`"),
            (r#"{"ttl":-1}"#, "`ttl`"),
            (r#"{"ttl":1.5}"#, "`ttl`"),
            (r#"{"user":7}"#, "`user`"),
            (r#"{"user":""}"#, "empty"),
            (r#"{"user":"a\n"}"#, "control character"),
            (r#"{"usr":"a"}"#, "\"usr\""),
        ] {
            let refusal = Wish::of_body(body.as_bytes()).unwrap_err();
            assert_eq!(refusal.outcome, Outcome::BadRequest);
            assert!(refusal.message.contains(part), "{body}: {}", refusal.message);
        }
    }

    #[test]
    fn parameters_come_from_the_url_and_from_a_form() {
        let request = |uri: &str, body: &'static str| {
            let request = Request::builder().uri(uri).body(Bytes::from_static(body.as_bytes())).unwrap();
            Parameters::of(&request)
        };
        let parameters = request("/turn?service=turn&username=a%20b%3A+%C3%BC&api=k1", "key=k2&api=k3").unwrap();
        assert_eq!(Wish::of_parameters(&parameters).unwrap(), wish(None, Some("a b: ü")));
        assert_eq!(parameters.key(), Some(&b"k2"[..]));
        assert_eq!(request("/turn?a%zz=%4", "").unwrap().get("a%zz"), Some("%4"));
        assert_eq!(Wish::of_parameters(&request("/turn?username=", "").unwrap()).unwrap(), wish(None, None));
        assert!(Wish::of_parameters(&request("/turn?service=stun", "").unwrap()).is_err());
        assert!(request("/turn?username=%ff", "").is_err());
    }
}

//! What a request for credentials asks for.

use std::net::IpAddr;

use hyper::Request;
use hyper::body::Bytes;
use serde_json::{Map, Value};

use super::refusal::{Refusal, quoted};
use crate::fleet::Heartbeat;

/// The lifetime and the user of the wished credential.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Wish {
    /// In seconds.
    pub(super) ttl: Option<u64>,
    /// Not empty, without control characters.
    pub(super) user: Option<String>,
    /// The region of the fleet in which the client is.
    pub(super) region: Option<String>,
    /// The address of the client, if the request is on its behalf.
    pub(super) client: Option<IpAddr>,
}

impl Wish {
    /// Reads the body of a request to `/v1/ice-servers`.
    pub(super) fn of_body(body: &[u8]) -> Result<Self, Refusal> {
        let object = object(body)?;
        // An unknown key is probably a misspelled one, whose absence would go unnoticed.
        const KEYS: [&str; 4] = ["ttl", "user", "region", "client"];
        if let Some(key) = object.keys().find(|key| !KEYS.contains(&key.as_str())) {
            let message = format!(
                "the body has an unknown key {}; the keys are `ttl`, `user`, `region` and `client`",
                quoted(key)
            );
            return Err(Refusal::bad_request("the body has an unknown key").for_client(message));
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
            None | Some(b"turn") => {}
            Some(_) => return Err(Refusal::bad_request("the parameter `service` must be `turn`")),
        }
        let text = |key: &str| parameters.get(key).map(|text| String::from_utf8_lossy(text).into_owned());
        let (region, client) = place(text("region").as_deref(), text("client").as_deref())?;
        let user = parameters.get("username").filter(|user| !user.is_empty());
        let Some(user) = user else { return Ok(Self { region, client, ..Self::default() }) };
        let user = str::from_utf8(user).map_err(|_| Refusal::bad_request("the parameter `username` is not UTF-8"))?;
        Ok(Self { ttl: None, user: Some(name(user)?), region, client })
    }

    fn of_object(object: &Map<String, Value>, user: &str) -> Result<Self, Refusal> {
        let ttl = match object.get("ttl") {
            None | Some(Value::Null) => None,
            Some(ttl) => {
                Some(ttl.as_u64().ok_or_else(|| Refusal::bad_request("`ttl` must be a whole number of seconds"))?)
            }
        };
        let user = match object.get(user) {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) if text.is_empty() => return Err(Refusal::bad_request(EMPTY_NAME)),
            Some(Value::String(text)) => Some(name(text)?),
            Some(_) => return Err(Refusal::bad_request("the name of the user must be a string")),
        };
        let text = |key: &str| match object.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str())),
            Some(_) => Err(Refusal::bad_request("`region` and `client` must be strings")),
        };
        let (region, client) = place(text("region")?, text("client")?)?;
        Ok(Self { ttl, user, region, client })
    }
}

/// Reads where a client is: its region, and its address.
fn place(region: Option<&str>, client: Option<&str>) -> Result<(Option<String>, Option<IpAddr>), Refusal> {
    if let Some(region) = region.filter(|region| !Heartbeat::is_region_name(region)) {
        let message =
            format!("`region` must have 1 to 32 letters, digits, hyphens and underscores, not {}", quoted(region));
        return Err(Refusal::bad_request("`region` is no name of a region").for_client(message));
    }
    let parse = |client: &str| {
        client.parse::<IpAddr>().map(|address| address.to_canonical()).map_err(|_| {
            let message = format!("`client` must be the address of the client, not {}", quoted(client));
            Refusal::bad_request("`client` is no address").for_client(message)
        })
    };
    Ok((region.map(str::to_owned), client.map(parse).transpose()?))
}

/// Reads a JSON object. Nothing is an empty object.
fn object(body: &[u8]) -> Result<Map<String, Value>, Refusal> {
    const NO_OBJECT: &str = r#"the body must be empty or a JSON object, for example {"ttl": 3600, "user": "alice"}"#;
    if body.trim_ascii().is_empty() {
        return Ok(Map::new());
    }
    match serde_json::from_slice(body) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Refusal::bad_request(NO_OBJECT)),
        Err(error) => Err(Refusal::bad_request("the body is not JSON").for_client(format!("{NO_OBJECT}: {error}"))),
    }
}

const EMPTY_NAME: &str = "the name of the user is empty: omit it for a credential without a name";

/// Checks the name of a user.
fn name(name: &str) -> Result<String, Refusal> {
    // RFC 8265 §4.2: the OpaqueString profile, which RFC 8489 §14.3 requires, excludes control characters.
    if name.chars().any(char::is_control) {
        return Err(Refusal::bad_request("the name of the user contains a control character"));
    }
    Ok(name.to_owned())
}

/// The parameters of a URL and of a form in the body, decoded. Those of the URL come first.
#[derive(Default)]
pub(super) struct Parameters(Vec<(Vec<u8>, Vec<u8>)>);

impl Parameters {
    pub(super) fn of(request: &Request<Bytes>) -> Self {
        let query = request.uri().query().unwrap_or_default().as_bytes();
        let pairs = query.split(|byte| *byte == b'&').chain(request.body().split(|byte| *byte == b'&'));
        let decoded = pairs.filter(|pair| !pair.is_empty()).map(|pair| {
            let mut parts = pair.splitn(2, |byte| *byte == b'=');
            let [name, value] = [parts.next(), parts.next()].map(|part| decode(part.unwrap_or_default()));
            (name, value)
        });
        Self(decoded.collect())
    }

    fn get(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|(own, _)| own == name.as_bytes()).map(|(_, value)| value.as_slice())
    }

    /// Returns the key: the draft names the parameter `key`, and some clients `api`.
    pub(super) fn key(&self) -> Option<&[u8]> {
        self.get("key").or_else(|| self.get("api"))
    }
}

/// Decodes a part of `application/x-www-form-urlencoded`.
fn decode(part: &[u8]) -> Vec<u8> {
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
    decoded
}

#[cfg(test)]
mod tests {
    use super::super::outcome::Outcome;
    use super::*;

    fn wish(ttl: Option<u64>, user: Option<&str>) -> Wish {
        Wish { ttl, user: user.map(str::to_owned), ..Wish::default() }
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
            ("x", "JSON object"),
            ("[]", "JSON object"),
            (r#"{"ttl":"60"}"#, "`ttl`"),
            (r#"{"ttl":-1}"#, "`ttl`"),
            (r#"{"ttl":1.5}"#, "`ttl`"),
            (r#"{"user":7}"#, "a string"),
            (r#"{"user":""}"#, "empty"),
            (r#"{"user":"a\n"}"#, "control character"),
            (r#"{"usr":"a"}"#, "\"usr\""),
            (r#"{"region":"e u"}"#, "`region` must have"),
            (r#"{"client":"192.0.2"}"#, "`client` must be the address"),
            (r#"{"client":7}"#, "must be strings"),
        ] {
            let refusal = Wish::of_body(body.as_bytes()).unwrap_err();
            assert_eq!(refusal.outcome, Outcome::BadRequest);
            assert!(refusal.message.contains(part), "{body}: {}", refusal.message);
        }
    }

    #[test]
    fn parameters_come_from_the_url_and_from_a_form() {
        let request = |uri: &str, body: &'static str| {
            Parameters::of(&Request::builder().uri(uri).body(Bytes::from_static(body.as_bytes())).unwrap())
        };
        let parameters = request("/turn?service=turn&username=a%20b%3A+%C3%BC&api=k1", "key=k2&api=k3");
        assert_eq!(Wish::of_parameters(&parameters).unwrap(), wish(None, Some("a b: ü")));
        assert_eq!(parameters.key(), Some(&b"k2"[..]));
        assert_eq!(request("/turn?a%zz=%4", "").get("a%zz"), Some(&b"%4"[..]));
        assert_eq!(Wish::of_parameters(&request("/turn?username=", "")).unwrap(), wish(None, None));
        assert!(Wish::of_parameters(&request("/turn?service=stun", "")).is_err());
        let broken = request("/turn?username=%ff&key=k", "");
        assert_eq!(broken.key(), Some(&b"k"[..]));
        assert!(Wish::of_parameters(&broken).is_err());
    }
}

//! The time in which the authority suggests to renew the certificate (RFC 9773).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use instant_acme::CertificateIdentifier;
use serde_json::Value;

use super::client::Client;
use super::dates::rfc3339;
use super::failure::{Failure, text};
use super::schedule::Window;
use crate::net::tls::Certificate;

/// The suggestion, and when to ask again, in seconds.
#[derive(Clone, Debug)]
pub(super) struct Suggestion {
    /// `None` if the authority suggests nothing.
    pub(super) window: Option<Window>,
    pub(super) ask_again: Option<u64>,
    /// The page on which the authority explains it, such as the revocation of many certificates.
    pub(super) explanation: Option<String>,
}

/// Asks the authority.
///
/// # Errors
/// If it does not respond as described in RFC 9773.
pub(super) async fn ask(client: &Client, directory: &str, certificate: &[u8]) -> Result<Suggestion, Failure> {
    let parse = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap_or_default();
    let offers = parse(&client.get(directory).await?);
    let url = offers.get("renewalInfo").and_then(Value::as_str);
    let (Some(url), Some(id)) = (url, identifier(certificate)) else {
        return Ok(Suggestion { window: None, ask_again: None, explanation: None });
    };
    let info = parse(&client.get(&format!("{}/{id}", url.trim_end_matches('/'))).await?);
    let window = window(&info).ok_or_else(|| Failure::new("the renewal information has no window"))?;
    let explanation = info.get("explanationURL").and_then(Value::as_str).map(text);
    Ok(Suggestion { window: Some(window), ask_again: client.retry_after(), explanation })
}

fn window(info: &Value) -> Option<Window> {
    let window = info.get("suggestedWindow")?;
    let time = |key: &str| rfc3339(window.get(key)?.as_str()?);
    let (start, end) = (time("start")?, time("end")?);
    (start <= end).then_some(Window { start, end })
}

/// Returns the identifier of a certificate (RFC 9773 §4.1); `None` if it has no key identifier of its authority.
pub(super) fn identifier(certificate: &[u8]) -> Option<CertificateIdentifier<'static>> {
    let Certificate { authority_key_identifier: key, serial_octets: serial, .. } =
        Certificate::parse(certificate).ok()?;
    let [authority_key_identifier, serial] = [key?, serial].map(|part| URL_SAFE_NO_PAD.encode(part).into());
    Some(CertificateIdentifier { authority_key_identifier, serial })
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyIdMethod, KeyPair, SerialNumber};

    use super::*;

    /// A certificate with this serial number whose authority has a key identifier, or not.
    fn issued(serial: &[u8], with_identifier: bool) -> Vec<u8> {
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_identifier_method = KeyIdMethod::PreSpecified(vec![1, 2, 3]);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        let mut params = CertificateParams::new(vec!["turn.example.org".to_owned()]).unwrap();
        params.serial_number = Some(SerialNumber::from_slice(serial));
        params.use_authority_key_identifier_extension = with_identifier;
        params.signed_by(&KeyPair::generate().unwrap(), &authority).unwrap().der().to_vec()
    }

    // RFC 9773 §4.1: a positive serial number whose first bit is set has a zero byte in front, which counts.
    #[test]
    fn the_identifier_is_that_of_the_key_of_the_authority_and_the_encoded_serial_number() {
        let identifier = |serial: &[u8]| identifier(&issued(serial, true)).map(|id| id.to_string());
        assert_eq!(identifier(&[0xff]).as_deref(), Some("AQID.AP8"));
        assert_eq!(identifier(&[0x7f, 0x01]).as_deref(), Some("AQID.fwE"));
        assert_eq!(super::identifier(&issued(&[1], false)), None);
    }

    #[test]
    fn a_damaged_certificate_has_no_identifier() {
        let whole = issued(&[0x5e, 0x10], true);
        for length in 0..whole.len() {
            assert_eq!(identifier(&whole[..length]), None, "{length}");
        }
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0xff;
            let _ = identifier(&damaged);
        }
    }

    // RFC 9773 §4.2
    #[test]
    fn a_window_needs_a_start_that_is_not_after_its_end() {
        let window = |text: &str| window(&serde_json::from_str(text).unwrap());
        let good = r#"{"suggestedWindow":{"start":"2025-01-02T04:00:00Z","end":"2025-01-03T04:00:00Z"}}"#;
        assert_eq!(window(good), Some(Window { start: 1_735_790_400, end: 1_735_876_800 }));
        for bad in [
            "{}",
            r#"{"suggestedWindow":7}"#,
            r#"{"suggestedWindow":{"start":"2025-01-02T04:00:00Z"}}"#,
            r#"{"suggestedWindow":{"start":"2025-01-03T04:00:00Z","end":"2025-01-02T04:00:00Z"}}"#,
        ] {
            assert_eq!(window(bad), None, "{bad}");
        }
    }
}

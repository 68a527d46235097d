//! The fields of an X.509 certificate (RFC 5280 §4.1) that matter to the operator of a server.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use der::asn1::{AnyRef, GeneralizedTime, ObjectIdentifier, OctetStringRef, UtcTime};
use der::{DateTime, Decode as _, Reader, SliceReader, Tag, TagNumber, Tagged as _};

use super::weakness::{self, PublicKey};

const SUBJECT_ALT_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.17");
const AUTHORITY_KEY_IDENTIFIER: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.35");

/// RFC 5280 §4.2.1.6: the choices of GeneralName that identify a server.
const DNS_NAME: TagNumber = TagNumber(2);
const IP_ADDRESS: TagNumber = TagNumber(7);

/// The fields of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Certificate {
    /// The distinguished name of the subject, as in `CN=turn.example.org`. It may be empty.
    pub(crate) subject: String,
    /// The distinguished name of the issuer.
    pub(crate) issuer: String,
    /// The serial number in hexadecimal.
    pub(crate) serial: String,
    /// The same, as encoded.
    pub(crate) serial_octets: Vec<u8>,
    /// The identifier of the key that has signed the certificate, if the authority has added it (RFC 5280 §4.2.1.1).
    pub(crate) authority_key_identifier: Option<Vec<u8>>,
    /// The DNS names of the subjectAltName, including wildcards.
    pub(crate) names: Vec<String>,
    /// The addresses of the subjectAltName.
    pub(crate) addresses: Vec<IpAddr>,
    /// The start of the validity period, in seconds since the Unix epoch.
    pub(crate) not_before: u64,
    /// The end of the validity period, in seconds since the Unix epoch.
    pub(crate) not_after: u64,
    /// The hash function of its signature, if browsers reject it.
    pub(super) old_hash: Option<&'static str>,
    pub(super) key: PublicKey,
    subject_der: Vec<u8>,
    issuer_der: Vec<u8>,
}

impl Certificate {
    pub(crate) fn parse(bytes: &[u8]) -> der::Result<Self> {
        let mut reader = SliceReader::new(bytes)?;
        reader.sequence(|certificate| {
            let parsed = certificate.sequence(|body| {
                if Tag::peek(body)?.is_context_specific() {
                    body.tlv_bytes()?; // version
                }
                let serial = AnyRef::decode(body)?.value();
                let old_hash = weakness::old_hash(body.tlv_bytes()?); // signature
                let issuer_der = body.tlv_bytes()?.to_vec();
                let (not_before, not_after) =
                    body.sequence(|validity| Ok::<_, der::Error>((time(validity)?, time(validity)?)))?;
                let subject_der = body.tlv_bytes()?.to_vec();
                let key = PublicKey::parse(body.tlv_bytes()?); // subjectPublicKeyInfo
                let (mut names, mut addresses, mut authority_key_identifier) = (Vec::new(), Vec::new(), None);
                while !body.is_finished() {
                    let field = AnyRef::decode(body)?;
                    if field.tag().number() == TagNumber(3) {
                        extensions(field.value(), |id, value| match id {
                            SUBJECT_ALT_NAME => subject_alt_names(value, &mut names, &mut addresses),
                            AUTHORITY_KEY_IDENTIFIER => {
                                // Clients do not need it.
                                authority_key_identifier = key_identifier(value).unwrap_or_default();
                                Ok(())
                            }
                            _ => Ok(()),
                        })?;
                    }
                }
                Ok::<_, der::Error>(Self {
                    subject: distinguished_name(&subject_der)?,
                    issuer: distinguished_name(&issuer_der)?,
                    serial: hexadecimal(serial),
                    serial_octets: serial.to_vec(),
                    authority_key_identifier,
                    names,
                    addresses,
                    not_before,
                    not_after,
                    old_hash,
                    key,
                    subject_der,
                    issuer_der,
                })
            })?;
            certificate.tlv_bytes()?; // signatureAlgorithm
            certificate.tlv_bytes()?; // signature
            Ok(parsed)
        })
    }

    /// Returns whether a time is in the validity period, in seconds since the Unix epoch.
    #[must_use]
    pub(crate) fn is_valid_at(&self, unix: u64) -> bool {
        (self.not_before..=self.not_after).contains(&unix)
    }

    /// Returns whether subject and issuer are the same.
    #[must_use]
    pub(crate) fn is_self_signed(&self) -> bool {
        self.subject_der == self.issuer_der
    }

    /// Returns whether the issuer of this certificate is the subject of `other`.
    #[must_use]
    pub(crate) fn is_issued_by(&self, other: &Self) -> bool {
        self.issuer_der == other.subject_der
    }

    /// Returns whether the certificate has no subjectAltName, so that clients accept it for no name (RFC 9525 §2).
    #[must_use]
    pub(crate) fn is_nameless(&self) -> bool {
        self.names.is_empty() && self.addresses.is_empty()
    }

    /// Returns the names and addresses for which the certificate is valid.
    pub(crate) fn all_names(&self) -> String {
        let addresses = self.addresses.iter().map(ToString::to_string);
        let names: Vec<String> = self.names.iter().cloned().chain(addresses).collect();
        match (names.is_empty(), self.subject.is_empty()) {
            (false, _) => names.join(", "),
            (true, false) => format!("{} (without subjectAltName)", self.subject),
            (true, true) => "no name".to_owned(),
        }
    }

    /// Returns whether clients accept the certificate for the host of a URI (RFC 9525 §6.3).
    ///
    /// The host is a name, an IPv4 address or an IPv6 address in brackets. A wildcard matches the leftmost label.
    #[must_use]
    pub(crate) fn covers(&self, host: &str) -> bool {
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return self.addresses.contains(&address);
        }
        let host = host.strip_suffix('.').unwrap_or(host);
        let covers = |name: &String| match name.strip_prefix("*.") {
            Some(parent) => host.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(parent)),
            None => false,
        };
        self.has_name(host) || self.names.iter().any(covers)
    }

    /// Returns whether the certificate has this DNS name, which no wildcard matches.
    #[must_use]
    pub(crate) fn has_name(&self, host: &str) -> bool {
        self.names.iter().any(|name| name.eq_ignore_ascii_case(host))
    }

    /// Returns whether another certificate is for the same names and addresses.
    #[must_use]
    pub(crate) fn is_for_the_names_of(&self, other: &Self) -> bool {
        let includes = |one: &Self, other: &Self| {
            let has_address = |address| one.addresses.contains(address);
            other.names.iter().all(|name| one.has_name(name)) && other.addresses.iter().all(has_address)
        };
        includes(self, other) && includes(other, self)
    }
}

/// Formats a time in seconds since the Unix epoch, as in `2026-11-21 12:00 UTC`.
#[must_use]
pub(crate) fn date(unix: u64) -> String {
    match DateTime::from_unix_duration(Duration::from_secs(unix)) {
        Ok(at) => format!("{}-{:02}-{:02} {:02}:{:02} UTC", at.year(), at.month(), at.day(), at.hour(), at.minutes()),
        Err(_) => format!("second {unix} of the epoch"),
    }
}

fn time<'r>(reader: &mut impl Reader<'r>) -> der::Result<u64> {
    let value = AnyRef::decode(reader)?;
    let since = match value.tag() {
        Tag::UtcTime => value.decode_as::<UtcTime>()?.to_unix_duration(),
        _ => value.decode_as::<GeneralizedTime>()?.to_unix_duration(),
    };
    Ok(since.as_secs())
}

/// Passes each extension in `list` to `visit`: its identifier and its value.
fn extensions(list: &[u8], mut visit: impl FnMut(ObjectIdentifier, &[u8]) -> der::Result<()>) -> der::Result<()> {
    SliceReader::new(list)?.sequence(|list| {
        while !list.is_finished() {
            list.sequence(|extension| {
                let id = ObjectIdentifier::decode(extension)?;
                if Tag::peek(extension)? == Tag::Boolean {
                    extension.tlv_bytes()?; // critical
                }
                visit(id, <&OctetStringRef>::decode(extension)?.as_bytes())
            })?;
        }
        Ok(())
    })
}

/// Adds the names and addresses of a subjectAltName.
fn subject_alt_names(value: &[u8], names: &mut Vec<String>, addresses: &mut Vec<IpAddr>) -> der::Result<()> {
    SliceReader::new(value)?.sequence(|all| {
        while !all.is_finished() {
            let name = AnyRef::decode(all)?;
            match name.tag().number() {
                DNS_NAME => names.push(printable(name.value())),
                IP_ADDRESS => addresses.extend(address(name.value())),
                _ => {}
            }
        }
        Ok(())
    })
}

/// Returns the keyIdentifier of an authorityKeyIdentifier.
fn key_identifier(value: &[u8]) -> der::Result<Option<Vec<u8>>> {
    SliceReader::new(value)?.sequence(|parts| {
        let mut key = None;
        while !parts.is_finished() {
            let part = AnyRef::decode(parts)?;
            if part.tag().number() == TagNumber(0) {
                key = Some(part.value().to_vec());
            }
        }
        Ok(key)
    })
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from)).ok()
}

/// Formats a distinguished name as `C=US, O=Example, CN=Example CA`, in the order of the certificate.
fn distinguished_name(bytes: &[u8]) -> der::Result<String> {
    let mut parts = Vec::new();
    SliceReader::new(bytes)?.sequence(|name| {
        while !name.is_finished() {
            let set = AnyRef::decode(name)?;
            let mut set = SliceReader::new(set.value())?;
            while !set.is_finished() {
                set.sequence(|attribute| {
                    let kind = ObjectIdentifier::decode(attribute)?;
                    let value = AnyRef::decode(attribute)?;
                    parts.push(format!("{}={}", attribute_name(kind), printable(value.value())));
                    Ok::<_, der::Error>(())
                })?;
            }
        }
        Ok::<_, der::Error>(())
    })?;
    Ok(parts.join(", "))
}

/// Returns the short name of an attribute type (RFC 4514 §3).
fn attribute_name(kind: ObjectIdentifier) -> String {
    let dotted = kind.to_string();
    let short = match dotted.as_str() {
        "2.5.4.3" => "CN",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        _ => return dotted,
    };
    short.to_owned()
}

fn printable(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

//! What makes browsers reject a certificate that is valid otherwise: old hash functions, short keys, and no name.

use std::fmt;

use der::asn1::{AnyRef, BitStringRef, ObjectIdentifier};
use der::{Decode as _, Reader as _, SliceReader, Tag};

use super::Certificate;

const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const ELLIPTIC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");

/// RFC 8017 §A.2.3: without parameters, it uses SHA-1.
const RSASSA_PSS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10");

/// The signature algorithms with a hash function that browsers reject.
const OLD_SIGNATURES: [(ObjectIdentifier, &str); 6] = [
    (ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.5"), "SHA-1"),
    (ObjectIdentifier::new_unwrap("1.3.14.3.2.29"), "SHA-1"),
    (ObjectIdentifier::new_unwrap("1.2.840.10045.4.1"), "SHA-1"),
    (ObjectIdentifier::new_unwrap("1.2.840.10040.4.3"), "SHA-1"),
    (ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.4"), "MD5"),
    (ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.2"), "MD2"),
];

/// The curves that browsers support (RFC 8422 §5.1.1), apart from P-521, which not all of them do.
const CURVES: [ObjectIdentifier; 3] = [
    ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7"),
    ObjectIdentifier::new_unwrap("1.3.132.0.34"),
    ObjectIdentifier::new_unwrap("1.3.132.0.35"),
];

/// The fewest bits of an RSA key that browsers accept (CA/Browser Forum Baseline Requirements §6.1.5).
const MIN_RSA: usize = 2_048;

/// The public key of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PublicKey {
    /// RSA, with this number of bits.
    Rsa(usize),
    /// A curve that browsers support.
    Curve,
    /// Another curve.
    OtherCurve,
    Ed25519,
    Other,
}

impl PublicKey {
    /// Reads a SubjectPublicKeyInfo (RFC 5280 §4.1.2.7).
    pub(super) fn parse(info: &[u8]) -> Self {
        Self::read(info).unwrap_or(Self::Other)
    }

    fn read(info: &[u8]) -> der::Result<Self> {
        SliceReader::new(info)?.sequence(|info| {
            let (algorithm, curve) = info.sequence(|algorithm| {
                let kind = ObjectIdentifier::decode(algorithm)?;
                let curve = if kind == ELLIPTIC { Some(ObjectIdentifier::decode(algorithm)?) } else { None };
                if !algorithm.is_finished() {
                    algorithm.tlv_bytes()?; // parameters
                }
                Ok::<_, der::Error>((kind, curve))
            })?;
            let bits = BitStringRef::decode(info)?;
            Ok::<_, der::Error>(match (algorithm, curve) {
                (RSA, _) => Self::Rsa(modulus_bits(bits.raw_bytes())?),
                (_, Some(curve)) if CURVES.contains(&curve) => Self::Curve,
                (_, Some(_)) => Self::OtherCurve,
                (ED25519, _) => Self::Ed25519,
                _ => Self::Other,
            })
        })
    }
}

/// Returns the length of the modulus in an RSAPublicKey (RFC 8017 §A.1.1).
fn modulus_bits(key: &[u8]) -> der::Result<usize> {
    SliceReader::new(key)?.sequence(|key| {
        let modulus = AnyRef::decode(key)?.value();
        key.tlv_bytes()?; // publicExponent
        let digits = modulus.iter().position(|byte| *byte != 0).and_then(|first| modulus.get(first..));
        let digits = digits.unwrap_or_default();
        let leading = digits.first().map_or(0, |byte| byte.leading_zeros() as usize);
        Ok::<_, der::Error>((8 * digits.len()).saturating_sub(leading))
    })
}

/// Returns the hash function of an AlgorithmIdentifier of a signature, if it is one that browsers reject.
pub(super) fn old_hash(algorithm: &[u8]) -> Option<&'static str> {
    let read = || {
        SliceReader::new(algorithm)?.sequence(|algorithm| {
            let kind = ObjectIdentifier::decode(algorithm)?;
            let parameters = if algorithm.is_finished() { &[] } else { algorithm.tlv_bytes()? };
            let names_hash = || {
                let hash = |list: &mut SliceReader<'_>| Ok::<_, der::Error>(!list.is_finished() && is_hash(list)?);
                SliceReader::new(parameters)?.sequence(|list| {
                    let names = hash(list)?;
                    while !list.is_finished() {
                        list.tlv_bytes()?;
                    }
                    Ok::<_, der::Error>(names)
                })
            };
            Ok::<_, der::Error>(if kind == RSASSA_PSS {
                (!names_hash()?).then_some("SHA-1")
            } else {
                OLD_SIGNATURES.iter().find(|(old, _)| *old == kind).map(|(_, hash)| *hash)
            })
        })
    };
    read().ok().flatten()
}

/// Returns whether the next field is `[0]`, the hash algorithm.
fn is_hash(fields: &mut SliceReader<'_>) -> der::Result<bool> {
    let tag = Tag::peek(fields)?;
    Ok(tag.is_context_specific() && tag.number() == der::TagNumber(0))
}

/// Why browsers reject a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Weakness {
    /// The certificate, if it is that of an issuer.
    issuer: Option<String>,
    flaw: Flaw,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    Hash(&'static str),
    ShortRsa(usize),
    OtherCurve,
}

impl fmt::Display for Weakness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.issuer {
            None => f.write_str("the certificate ")?,
            Some(issuer) => write!(f, "the certificate of the issuer ({issuer}) ")?,
        }
        match self.flaw {
            Flaw::Hash(hash) => write!(f, "is signed with {hash}"),
            Flaw::ShortRsa(bits) => write!(f, "has an RSA key of {bits} bits"),
            Flaw::OtherCurve => f.write_str("has an ECDSA key on a curve other than P-256, P-384 and P-521"),
        }
    }
}

/// Returns why browsers reject a chain of certificates, the first one of which is that of the server. The signature of
/// an authority by itself does not matter, because clients have its certificate.
pub(crate) fn weaknesses<'c>(chain: impl IntoIterator<Item = &'c Certificate>) -> Vec<Weakness> {
    let mut found = Vec::new();
    for (place, certificate) in chain.into_iter().enumerate() {
        let is_root = place > 0 && certificate.is_self_signed();
        let hash = certificate.old_hash.filter(|_| !is_root).map(Flaw::Hash);
        let key = match certificate.key {
            PublicKey::Rsa(bits) if bits < MIN_RSA => Some(Flaw::ShortRsa(bits)),
            PublicKey::OtherCurve => Some(Flaw::OtherCurve),
            _ => None,
        };
        let issuer = (place > 0).then(|| certificate.subject.clone());
        found.extend(hash.into_iter().chain(key).map(|flaw| Weakness { issuer: issuer.clone(), flaw }));
    }
    found
}

#[cfg(test)]
mod tests {
    use tokio_rustls::rustls::pki_types::CertificateDer;
    use tokio_rustls::rustls::pki_types::pem::PemObject as _;

    use super::*;
    use crate::test_certificates::Authority;

    /// From `openssl req -x509 -newkey rsa:1024 -nodes -sha1 -subj "/CN=Old Intermediate"`.
    const OLD: &str = "-----BEGIN CERTIFICATE-----
MIICFDCCAX2gAwIBAgIUIM6RsLVYzRsYV6JAV6lBsIM+CQAwDQYJKoZIhvcNAQEF
BQAwGzEZMBcGA1UEAwwQT2xkIEludGVybWVkaWF0ZTAgFw0yNjExMzAxNzE5MDVa
GA8yMTI2MTEwNjE3MTkwNVowGzEZMBcGA1UEAwwQT2xkIEludGVybWVkaWF0ZTCB
nzANBgkqhkiG9w0BAQEFAAOBjQAwgYkCgYEA4GwST8Y1K/xWJ91y4v568S9mNu8+
qaCU4RZq76+pSzaHyz197WfvOIRgj3XMA0HdVy3SxDM0KfhQlm7JyJGqvfMHi/8W
+0D7bNSgX8HVbPi8byBr+PnAkaXsnBhbTMNHDpKlDxAuwUCX9fTawd8eifbtp6lU
Ir1/rqzqsFgaRFcCAwEAAaNTMFEwHQYDVR0OBBYEFHnOVC0lPM8FDUwKQOrgGbdD
U7YXMB8GA1UdIwQYMBaAFHnOVC0lPM8FDUwKQOrgGbdDU7YXMA8GA1UdEwEB/wQF
MAMBAf8wDQYJKoZIhvcNAQEFBQADgYEAk6CPpGmNiTxUwQishEdZ43sd4Z3fuWx9
JsPzGz3j1o3bcqM7zDcqa+9abFegBW72kK8ZU4z8ywDG6wcj+XwHLhnHFZ6pHZU8
tE2LnHrzXD0EIRn666r4NATmdt/4atodhYpNb1Gw+CNyUcOw4Mt95738JLbzsKqv
9p+qAZqf9e4=
-----END CERTIFICATE-----
";
    /// From `openssl req -x509 -sha256 -subj "/CN=Small Curve"` with a key on secp224r1.
    const SMALL_CURVE: &str = "-----BEGIN CERTIFICATE-----
MIIBcDCCAR6gAwIBAgIUfcqwF1kdp6yG99VmRnw9Iz6I0QcwCgYIKoZIzj0EAwIw
FjEUMBIGA1UEAwwLU21hbGwgQ3VydmUwIBcNMjYxMTMwMTcxOTA1WhgPMjEyNjEx
MDYxNzE5MDVaMBYxFDASBgNVBAMMC1NtYWxsIEN1cnZlME4wEAYHKoZIzj0CAQYF
K4EEACEDOgAES+NcfdWG07Sgyc7M2WDwWfWGeeFwjEdgY3CJQvPb1XbsxKgpp0+h
18SrIEj1TfptZHWcibS6SbGjUzBRMB0GA1UdDgQWBBSpps1RNJOKAM+CR+7gDDU6
uUYmjDAfBgNVHSMEGDAWgBSpps1RNJOKAM+CR+7gDDU6uUYmjDAPBgNVHRMBAf8E
BTADAQH/MAoGCCqGSM49BAMCA0AAMD0CHQCW2lpptb6nBiivzTHlWWPv7Co95jIs
H57YzTn0AhxIkYl0glzUola7orrH+QiOX66GNJJjhsYtfTZg
-----END CERTIFICATE-----
";
    /// From `openssl req -x509 -newkey rsa:2048 -nodes -sigopt rsa_padding_mode:pss -sha1 -subj "/CN=Old PSS"`.
    const OLD_PSS: &str = "-----BEGIN CERTIFICATE-----
MIIDBzCCAe+gAwIBAgIUXjQ6N4ei0wa6zH7ev23jVy4onnwwDQYJKoZIhvcNAQEK
MAAwEjEQMA4GA1UEAwwHT2xkIFBTUzAgFw0yNjExMzAxNzE5MDVaGA8yMTI2MTEw
NjE3MTkwNVowEjEQMA4GA1UEAwwHT2xkIFBTUzCCASIwDQYJKoZIhvcNAQEBBQAD
ggEPADCCAQoCggEBAKcivIN3YG19yU3JEZCbHIcM+RIcYkbhNEOw17BSzZigeQPY
yHA9/ev512NKnZ1Zd0XZvaea8jwQ1HDKT0Ab17UrE2lLuIK7lbnX6WgT+toOBNKI
aGxCXUswkHFG1a4dcl5zo03QuBKeUF3YkuhwCvhD9vicOE1bd7BZ/VyVI5xK2Axw
ymrG8yzuogmHaIhriiohZJMyo7lApSoBOBryD+b6eP9d31hVDvmzLV7IgEbJulOj
+2EiuAkt/QqFMq+uzceQFMQrVQ1I9tBI6kS7vEhWHu10W6P/e945sYN1vCH/htMu
80MwQf5BgUcrfwRn9cMj15db5pQWT8S5721XcYcCAwEAAaNTMFEwHQYDVR0OBBYE
FMxrOWnumTsB12b/ttbLr5Iw4nRfMB8GA1UdIwQYMBaAFMxrOWnumTsB12b/ttbL
r5Iw4nRfMA8GA1UdEwEB/wQFMAMBAf8wDQYJKoZIhvcNAQEKMAADggEBAE+kfC69
DhmkxUMz0FFNP2bXRsekB5X2ARfii3t8puq8+EMq4glz0QsSg9fe/KzxBWfIHfV3
oUmcojIHhJjaTN/bhCpuemaFGX2Y5kFnq+q72mtdxkj/nj2wN0NBSF7cGA50fhoW
DABleCNo32InkZiW9rLVn22j2K4dQv+IsEorT+m4iHLR06NhPRyY77KVDZ1YNExq
bOB/U2FBEFOPf2psuoPOOsJc1ZAWEsnLtqVR3r/sv3lOeC0Gh4+GslZ+IQA7SmMv
1/lhb80kOsCSus5ckJzsAgWLa1/RAKarArocxwVQ2spcI3gnPa6o3Td2gu5Ew2JE
BzBVUlThBXU9tjY=
-----END CERTIFICATE-----
";
    /// The same with `-sha256` and `-subj "/CN=PSS"`.
    const PSS: &str = "-----BEGIN CERTIFICATE-----
MIIDZzCCAhugAwIBAgIURWUVBpGaSZnHb0YIAr9ntk/3jo8wQQYJKoZIhvcNAQEK
MDSgDzANBglghkgBZQMEAgEFAKEcMBoGCSqGSIb3DQEBCDANBglghkgBZQMEAgEF
AKIDAgEgMA4xDDAKBgNVBAMMA1BTUzAgFw0yNjExMzAxNzE5MDVaGA8yMTI2MTEw
NjE3MTkwNVowDjEMMAoGA1UEAwwDUFNTMIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8A
MIIBCgKCAQEAwP0TRuRd2UdwXDm/qrvhTW5vA9KtwQ1jkD9syPUA2A/yK2jrDkc9
tlvT2dCz4ntBSPjDNi5wkfQpI/1M2Y4l9AaWhqZjoJcWqt2R0I8k7ZWxP/h/Xryq
yK1tVVL/FFVjO44BYhmn2sbVDAzvkZVFBrwB5JjL5Dpq8Z4LnhBi41CuMi6+nHTc
Q6esopyEDKOmInlIzFOqFDsBPnj2SpUFaaEOFjscuPvtt66rymXook2PTVF77lrt
FwLyUuiHudaWui6vKhR1Y9OjBMtQ0lVCbfvVSB9HCZsW5GnFf4Z3xWca8NlAn8aZ
Z5UYHqz7a0OKo/gl6SrweHL10nLV/39wUQIDAQABo1MwUTAdBgNVHQ4EFgQUwINR
USiEnS/jI+b22NHAHAxPcf0wHwYDVR0jBBgwFoAUwINRUSiEnS/jI+b22NHAHAxP
cf0wDwYDVR0TAQH/BAUwAwEB/zBBBgkqhkiG9w0BAQowNKAPMA0GCWCGSAFlAwQC
AQUAoRwwGgYJKoZIhvcNAQEIMA0GCWCGSAFlAwQCAQUAogMCASADggEBAKfA/GYF
JdT7SN/F3yM8c9kKY8tUa2YdvI0xMl3tiO2t1Zn3XHvKBOR29YFb7flXsXaDfp+0
PmdekrVdBNYvFhbjiDaVnjb4GMuytmd81ZxFbAux9cYzp7HCifm6bvSAjJaEgpoo
N7uyIJHUnK/fuCmmLTNNabCay9TOc4H7BxKMh7G0+tLMhvI/rHhFoWgcR2MfuiSz
6L3EimtWjQ7GzpxOGHSXznh7sJrTyOpm+mfJR1t49a5VMfwfnGoBJ51USCL52KzC
LPw9axSKZvB0OCwdMp1kEiLGEdOyrNruMI6/FgyKhmrVbV67DpDqFNycMofNMwhn
cn4Sf57Qsi7OxtQ=
-----END CERTIFICATE-----
";

    fn parse(pem: &str) -> Certificate {
        Certificate::parse(&CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap()
    }

    fn texts(chain: &[&str]) -> Vec<String> {
        let chain: Vec<Certificate> = chain.iter().map(|pem| parse(pem)).collect();
        weaknesses(&chain).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_old_hash_or_a_short_key_is_a_weakness_except_for_the_signature_of_a_root() {
        let authority = Authority::new(1_700_000_000);
        let own = authority.issue(&["localhost"]).own;
        assert_eq!(texts(&[&own, &authority.intermediate(), &authority.root()]), [""; 0]);
        assert_eq!(texts(&[PSS]), [""; 0]);
        assert_eq!(texts(&[OLD_PSS]), ["the certificate is signed with SHA-1"]);
        assert_eq!(texts(&[&own, OLD_PSS]), [""; 0]);
        assert_eq!(
            texts(&[SMALL_CURVE]),
            ["the certificate has an ECDSA key on a curve other than P-256, P-384 and P-521"]
        );
        assert_eq!(
            texts(&[OLD]),
            ["the certificate is signed with SHA-1", "the certificate has an RSA key of 1024 bits"]
        );
        assert_eq!(
            texts(&[&own, OLD]),
            ["the certificate of the issuer (CN=Old Intermediate) has an RSA key of 1024 bits"]
        );
    }

    #[test]
    fn the_type_and_the_length_of_a_key_are_read() {
        assert_eq!(
            [OLD, OLD_PSS, SMALL_CURVE].map(|pem| parse(pem).key),
            [PublicKey::Rsa(1_024), PublicKey::Rsa(2_048), PublicKey::OtherCurve]
        );
        let authority = Authority::new(1_700_000_000);
        assert_eq!(parse(&authority.issue(&["localhost"]).own).key, PublicKey::Curve);
        assert_eq!(parse(&authority.issue_with_ed25519(&["localhost"]).own).key, PublicKey::Ed25519);
        assert_eq!(PublicKey::parse(&[0x30]), PublicKey::Other);
    }
}

//! `[tls.acme]`.

use super::*;
use crate::config::{AcmeChallenge, ExternalAccount};

const LISTEN: &str = "[listen]\ntls = [\"[::]:443\"]\n";

/// Returns the errors of a section with these lines.
fn in_section(lines: &str) -> Vec<String> {
    errors(&format!("{LISTEN}[tls.acme]\n{lines}\n"))
}

#[test]
fn the_names_and_the_agreement_are_required_and_the_rest_has_defaults() {
    assert_eq!(
        in_section(""),
        [
            "3:1: `[tls.acme]` has no `domains`: set the names of this server, for example [\"turn.example.org\"]",
            "3:1: `tls.acme.terms-agreed` must be true: read the terms of service of the authority, and set \
             `terms-agreed = true` if you agree to them",
        ]
    );
    let config = parse(&format!(
        "{LISTEN}[tls]\nacme = {{ domains = [\"TURN.example.org.\", \"b.example.org\"], terms-agreed = true }}\n"
    ));
    let tls = config.tls.unwrap();
    let acme = tls.acme.unwrap();
    assert_eq!(acme.domains, ["turn.example.org", "b.example.org"]);
    assert_eq!(acme.directory, "https://acme-v02.api.letsencrypt.org/directory");
    assert_eq!((acme.challenge, &acme.contact, &acme.external_account), (AcmeChallenge::Auto, &None, &None));
    assert!(tls.certificates.len() == 1 && tls.certificates[0].is_ordered, "{:?}", tls.certificates);
}

#[test]
fn a_certificate_and_acme_exclude_each_other() {
    let both = format!(
        "{LISTEN}[tls]\ncertificate = \"c.pem\"\nprivate-key = \"k.pem\"\nacme = {{ domains = [\"turn.example.org\"], \
         terms-agreed = true }}\n"
    );
    assert!(error(&both).starts_with("4:15: `[tls]` has both a certificate and `acme`: remove "), "{}", error(&both));
}

#[test]
fn wrong_values_are_errors_that_say_what_is_right() {
    let with = |lines: &str| {
        let found = in_section(&format!("domains = [\"turn.example.org\"]\nterms-agreed = true\n{lines}"));
        assert_eq!(found.len(), 1, "{found:?}");
        found[0].split_once(": ").unwrap().1.to_owned()
    };
    assert!(with("challenge = \"dns-01\"").starts_with("`tls.acme.challenge` `dns-01` is unknown"));
    assert!(with("contact = \"operator@example.org\"").contains("mailto:operator@example.org"));
    assert!(with("directory = \"http://acme.example.org/\"").contains("must be a URL that begins with https://"));
    assert!(with("profile = \"\"").contains("`tls.acme.profile` `` is no name of a profile"));
    assert!(with("profile = \"short lived\"").contains("is no name of a profile"));
    assert!(with("eab-key-id = \"x\"").contains("`tls.acme.eab-key-id` needs `tls.acme.eab-key-file`"));
    assert!(with("eab-key-id = \"x\"\neab-key-file = \"/nonexistent\"").contains("`/nonexistent` cannot be read"));
    assert!(with("state-directory = \"\"").contains("`tls.acme.state-directory` is empty"));
    for (domain, why) in [
        ("192.0.2.7", "is an address"),
        ("*.example.org", "contains a wildcard"),
        ("localhost", "has no dot"),
        ("https://turn.example.org", "contains a scheme"),
    ] {
        let found = in_section(&format!("domains = [{domain:?}]\nterms-agreed = true"));
        assert!(found.len() == 1 && found[0].contains(why), "{found:?}");
    }
    let twice = in_section("domains = [\"a.example.org\", \"A.example.org\"]\nterms-agreed = true");
    assert!(twice.len() == 1 && twice[0].contains("is there twice"), "{twice:?}");
    let disagreed = in_section("domains = [\"a.example.org\"]\nterms-agreed = false");
    assert!(disagreed[0].starts_with("5:16: `tls.acme.terms-agreed` must be true"), "{disagreed:?}");
}

#[test]
fn a_server_that_the_authority_cannot_reach_is_a_warning() {
    let acme = |challenge: &str| {
        format!("[tls.acme]\ndomains = [\"turn.example.org\"]\nterms-agreed = true\nchallenge = {challenge:?}\n")
    };
    let at_5349 = "[listen]\ntls = [\"[::]:5349\"]\n";
    let http = "[http]\nlisten = [\"[::]:80\"]\n";
    let front = |port: u16| {
        let names = "names = [\"turn.example.org\"]\n";
        format!("{at_5349}{}[[front]]\nlisten = \"[::]:{port}\"\nweb = \"127.0.0.1:8443\"\n{names}", acme("auto"))
    };
    let tcp = "[listen]\ntcp = [\"[::]:443\"]\ntls = [\"[::]:5349\"]\n";
    for (text, warned) in [
        (format!("{LISTEN}{}", acme("auto")), None),
        (format!("{at_5349}{}{http}", acme("auto")), None),
        (format!("{tcp}{}", acme("tls-alpn-01")), None),
        (front(443), None),
        (front(80), None),
        (
            format!("{at_5349}{}", acme("auto")),
            Some(
                "to port 443 (`listen.tls`, `listen.tcp` or a `[[front]]`), or to port 80 (`http.listen` without TLS, or \
                 a `[[front]]`), and",
            ),
        ),
        (
            format!("{LISTEN}{}", acme("http-01")),
            Some("to port 80 (`http.listen` without TLS, or a `[[front]]`), and there is no such listener"),
        ),
        (
            format!("{at_5349}{}{http}", acme("tls-alpn-01")),
            Some("to port 443 (`listen.tls`, `listen.tcp` or a `[[front]]`), and there is no such listener"),
        ),
    ] {
        let found = warnings(&text);
        assert_eq!(found.len(), usize::from(warned.is_some()), "{text}: {found:?}");
        assert!(warned.is_none_or(|warned| found[0].contains(warned)), "{found:?}");
    }
}

#[test]
fn a_name_that_no_certificate_can_have_is_a_warning() {
    let acme = "[tls.acme]\ndomains = [\"turn.example.org\"]\nterms-agreed = true\n";
    let front = |names: &str| format!("[[front]]\nlisten = \"[::]:8443\"\nweb = \"127.0.0.1:1\"\n{names}");
    let hostname = |name: &str| format!("hostname = {name:?}\n{LISTEN}{acme}");
    let warning = |key: &str, name: &str| {
        format!(
            "`tls.acme.domains` does not have `{name}`, the name in `{key}`, so clients that use it with TLS will reject \
             the certificate: add it, or a certificate for it (`[[tls.certificates]]`)"
        )
    };
    let own = "names = [\"turn.example.org\"]\n";
    let other = "names = [\"a.example.org\", \"TURN.example.org.\", \"b.example.org\"]\n";
    for (text, expected) in [
        (hostname("turn.example.org"), vec![]),
        (hostname("Turn.example.org"), vec![]),
        (hostname("b.example.org"), vec![warning("hostname", "b.example.org")]),
        (hostname("192.0.2.7"), vec![warning("hostname", "192.0.2.7")]),
        // By default, the front has this name.
        (hostname("b.example.org") + &front(""), vec![warning("hostname", "b.example.org")]),
        (hostname("turn.example.org") + &front(own), vec![]),
        (
            format!("{LISTEN}{acme}{}", front(other)),
            vec![warning("front.names", "a.example.org"), warning("front.names", "b.example.org")],
        ),
        // It may have the name.
        (
            hostname("b.example.org") + "[[tls.certificates]]\ncertificate = \"c.pem\"\nprivate-key = \"k.pem\"\n",
            vec![],
        ),
    ] {
        let found: Vec<String> =
            warnings(&text).iter().map(|found| found.split_once(": ").unwrap().1.to_owned()).collect();
        assert_eq!(found, expected, "{text}");
    }
}

#[test]
fn the_key_of_an_external_account_is_read_in_both_alphabets_and_never_shown() {
    let directory = std::env::temp_dir().join(format!("turnserver-eab-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let file = directory.join("key");
    let text = format!(
        "{LISTEN}[tls.acme]\ndomains = [\"turn.example.org\"]\nterms-agreed = true\neab-key-id = \"kid\"\neab-key-file = \
         {file:?}\n"
    );
    for content in ["-_8\n", "+/8=\n"] {
        fs::write(&file, content).unwrap();
        let config = parse(&text);
        let acme = config.tls.clone().unwrap().acme.unwrap();
        let ExternalAccount { key_id, key } = acme.external_account.unwrap();
        assert_eq!((key_id.as_str(), key.as_bytes()), ("kid", &[0xfb, 0xff][..]));
        assert!(!format!("{config:?}").contains("251"), "the key is in the debug output");
        assert!(config.files.iter().any(|(name, _)| *name == "tls.acme.eab-key-file"));
    }
    for bad in ["", "not base64!", "kid: abc"] {
        fs::write(&file, bad).unwrap();
        assert!(error(&text).contains("must contain the key as the authority shows it"), "{bad}");
    }
    fs::remove_dir_all(directory).unwrap();
}

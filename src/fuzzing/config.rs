//! The configuration reader: any text is accepted, or rejected with messages whose positions are in the text.

use toml::de::DeTable;

use crate::auth::{LongTermKey, Secret};
use crate::config::{Config, StaticCredential, secrets};

/// The keys of files that the reader opens.
const FILES: [(&str, &str); 3] = [("auth", "secrets-file"), ("http", "metrics-token-file"), ("http", "keys-file")];

/// A directory that does not exist, so that no file is read. Absolute paths are excluded.
const NAME: &str = "/nonexistent/turnserver.toml";

/// Parses a configuration, and the same bytes as a file of secrets.
pub fn config(data: &[u8]) {
    for line in secrets::lines(data) {
        assert!(line.number >= 1 && line.column >= 1);
        if let Err(bad) = &line.secret {
            assert_printable(&bad.to_string());
        }
    }
    let Ok(text) = str::from_utf8(data) else { return };
    if !names_files(text) {
        let _ = check(text);
    }
}

/// Parses a text, and checks the messages. Returns whether it is accepted.
pub(super) fn check(text: &str) -> bool {
    let parsed = Config::parse(text, NAME);
    let problems = match &parsed {
        Ok(config) => &config.warnings,
        Err(errors) => errors.problems(),
    };
    assert!(parsed.is_ok() || !problems.is_empty(), "a rejection has a reason");
    for problem in problems {
        assert_eq!(problem.file, NAME);
        assert_printable(&problem.to_string());
        let Some((line, column)) = problem.position else { continue };
        let at = text.split('\n').nth(line.checked_sub(1).expect("lines begin at 1"));
        let at = at.expect("the line of a message exists");
        assert!((1..=at.chars().count() + 1).contains(&column), "{problem} is in the line");
    }
    let Ok(config) = parsed else { return false };
    assert!(!config.listen.is_empty() && !config.relay.ports.is_empty() && *config.relay.ports.start() > 0);
    // Neither the log nor a bug report shows a secret: with other ones, the texts are the same.
    let texts = |config: &Config| (config.summary().to_string(), format!("{config:?}"));
    assert_eq!(texts(&config), texts(&with_other_secrets(config.clone())));
    if text.starts_with('\u{feff}') {
        return true;
    }
    // Comments and blank lines do not change the meaning.
    let again = Config::parse(&format!("# comment\n\n{text}\n\n"), NAME).expect("a comment changes nothing");
    assert_eq!(Config { warnings: Vec::new(), ..again }, Config { warnings: Vec::new(), ..config });
    true
}

/// Replaces every secret.
fn with_other_secrets(mut config: Config) -> Config {
    let other = || Secret::new("another secret of the configuration").unwrap();
    config.auth.secrets.iter_mut().for_each(|secret| *secret = other());
    for user in &mut config.auth.users {
        user.credential = match &user.credential {
            StaticCredential::Password(_) => StaticCredential::Password(other()),
            StaticCredential::Key(_) => StaticCredential::Key(LongTermKey::derive("a", "b", b"c")),
        };
    }
    config.http.metrics_token = config.http.metrics_token.map(|_| other());
    config
}

/// A message is one line of a log.
fn assert_printable(message: &str) {
    assert!(!message.is_empty() && !message.contains(char::is_control), "{message:?} is one line");
}

/// Whether the reader would open a file of this machine.
fn names_files(text: &str) -> bool {
    let (document, _) = DeTable::parse_recoverable(text);
    FILES.iter().any(|(table, key)| {
        let value = document.get_ref().get(*table).and_then(|table| table.get_ref().get(*key));
        value
            .and_then(|value| value.get_ref().as_str())
            .is_some_and(|path| path.starts_with(['/', '$']) || path.contains(".."))
    })
}

/// Checks a configuration that the import has written: its keys are known, except the one that keeps the server from
/// starting without a decision of the operator.
pub(super) fn check_import(text: &str) {
    if names_files(text) {
        return;
    }
    check(text);
    if let Err(errors) = Config::parse(text, NAME) {
        for problem in errors.problems() {
            let is_known = !problem.message.contains("unknown key") || problem.message.contains("`undecided`");
            assert!(is_known && !problem.message.contains("not valid TOML"), "{problem}\n{text}");
        }
    }
}

//! Shared secrets: the lines of a file of secrets, typical mistakes, and secrets that can be guessed.
//!
//! No message contains a secret.

use crate::auth::Secret;

/// The minimum length of a strong secret, in bytes. Shorter secrets can be guessed.
const MIN_STRONG_SECRET: usize = 16;

/// Secrets of public guides and samples, in lowercase and with hyphens. Attackers try them.
const EXAMPLES: &[&str] = &[
    "change-me",
    "changeit",
    "changeme",
    "coturn",
    "examplesecret",
    "generated-secret",
    "logen",
    "my-secret",
    "mysecret",
    // The example of Synapse's guide.
    "n0t4ctuallymatr1xd0torgsshar3d5ecret4obviousreasons",
    // `static-auth-secret=north` is in coturn's sample configuration.
    "north",
    "passw0rd",
    "password",
    "replace-me",
    "s3cr3t",
    "secret",
    "shared-secret",
    "static-auth-secret",
    "supersecret",
    "test",
    "turn",
    "turn-secret",
    "turnsecret",
    "turnserver",
    "your-secret",
    "your-secret-here",
    "your-secret-key-here",
    "your-shared-secret",
    "yoursecret",
];

/// The characters that begin or end a quotation, also those that word processors write.
const QUOTES: &[char] =
    &['"', '\'', '`', '\u{2018}', '\u{2019}', '\u{201a}', '\u{201b}', '\u{201c}', '\u{201d}', '\u{201e}', '\u{201f}'];

/// Why a text is not accepted as a secret. `Display` continues "contains".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSecret {
    /// It is empty.
    #[error("an empty secret: create one with `openssl rand -hex 32`")]
    Empty,
    /// It consists of blanks.
    #[error("a secret of blanks only: create one with `openssl rand -hex 32`")]
    Blank,
    /// It is in quotes.
    #[error("a secret in quotes: remove the quotes, which would become part of the secret")]
    Quoted,
    /// It is a line of another program's configuration. The message omits the name, which may be a part of a secret.
    #[error("a line that sets a secret by its name: remove everything except the secret itself")]
    Assignment,
    /// It is an option of coturn's configuration.
    #[error("a line of coturn's configuration, which is not a secret: remove it")]
    Option,
}

/// Why a secret can be guessed. `Display` continues "contains".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WeakSecret {
    /// It is an example.
    #[error("an example secret from public guides, which attackers try: create one with `openssl rand -hex 32`")]
    Example,
    /// It is short.
    #[error("a secret shorter than 16 bytes, which can be guessed: create one with `openssl rand -hex 32`")]
    Short,
}

/// Checks the text of a secret for typical mistakes.
///
/// # Errors
/// Why it is not accepted.
pub fn secret(text: &[u8]) -> Result<Secret, BadSecret> {
    let content = trimmed(text);
    if content.is_empty() {
        return Err(if text.is_empty() { BadSecret::Empty } else { BadSecret::Blank });
    }
    // A line of a list ends with a comma.
    let item = str::from_utf8(content).unwrap_or_default().trim_end_matches([',', ';']);
    if item.chars().count() > 1 && item.starts_with(QUOTES) && item.ends_with(QUOTES) {
        return Err(BadSecret::Quoted);
    }
    if matches!(content, b"use-auth-secret" | b"lt-cred-mech") {
        return Err(BadSecret::Option);
    }
    if is_assignment(content) {
        return Err(BadSecret::Assignment);
    }
    Secret::new(text).map_err(|_| BadSecret::Empty)
}

/// Returns a text without blanks at its ends, those beyond ASCII included.
fn trimmed(text: &[u8]) -> &[u8] {
    str::from_utf8(text).map_or_else(|_| text.trim_ascii(), |text| text.trim().as_bytes())
}

/// Whether a line sets a name that ends with "secret" or "token", as in `static-auth-secret=…`. Base64 ends with `=`, so
/// a value must follow.
fn is_assignment(line: &[u8]) -> bool {
    let line = line.strip_prefix(b"export ").unwrap_or(line);
    let Some(at) = line.iter().position(|byte| b"=:".contains(byte)) else { return false };
    let Some((name, value)) = line.split_at_checked(at) else { return false };
    let name = normalized(name.trim_ascii());
    let is_name = name.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-');
    let has_value = value.trim_ascii().iter().any(|byte| !b"=:".contains(byte));
    let endings: [&[u8]; 4] = [b"secret", b"secrets", b"token", b"tokens"];
    is_name && has_value && endings.iter().any(|ending| name.ends_with(ending))
}

/// Returns why a secret can be guessed; `None` if it is strong enough.
#[must_use]
pub fn weakness(secret: &Secret) -> Option<WeakSecret> {
    let bytes = secret.as_bytes();
    if is_example(bytes, &[]) {
        return Some(WeakSecret::Example);
    }
    (bytes.trim_ascii().len() < MIN_STRONG_SECRET).then_some(WeakSecret::Short)
}

/// Whether a secret or a password is an example: one of the secrets, or one of `more`.
pub(super) fn is_example(bytes: &[u8], more: &[&str]) -> bool {
    let bytes = bytes.trim_ascii();
    // Guides put placeholders in brackets.
    let inner = bytes.strip_prefix(b"<").and_then(|rest| rest.strip_suffix(b">")).unwrap_or(bytes);
    let inner = inner.strip_prefix(b"[").and_then(|rest| rest.strip_suffix(b"]")).unwrap_or(inner);
    let name = normalized(inner);
    EXAMPLES.iter().chain(more).any(|example| example.as_bytes() == name.as_slice())
}

/// Returns a text in lowercase, with hyphens in place of underscores and blanks.
fn normalized(text: &[u8]) -> zeroize::Zeroizing<Vec<u8>> {
    let hyphen = |byte: &u8| if b"_ ".contains(byte) { b'-' } else { byte.to_ascii_lowercase() };
    zeroize::Zeroizing::new(text.iter().map(hyphen).collect())
}

/// A line of a file of secrets that is neither blank nor a comment.
#[derive(Debug)]
pub struct SecretLine {
    /// The line, starting at 1.
    pub number: usize,
    /// The column of the first character, starting at 1.
    pub column: usize,
    /// The secret, or why the line is not one.
    pub secret: Result<Secret, BadSecret>,
}

/// Reads a file of secrets: one per line. Blank lines and lines that start with `#` are ignored.
pub fn lines(text: &[u8]) -> impl Iterator<Item = SecretLine> {
    let numbered = text.split(|byte| *byte == b'\n').zip(1..);
    numbered.filter_map(|(line, number)| {
        let content = trimmed(line);
        if content.is_empty() || content.starts_with(b"#") {
            return None;
        }
        let before = line.windows(content.len()).position(|part| part == content).and_then(|at| line.get(..at));
        let column = 1 + String::from_utf8_lossy(before.unwrap_or_default()).chars().count();
        Some(SecretLine { number, column, secret: secret(content) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(text: &str) -> Option<BadSecret> {
        secret(text.as_bytes()).err()
    }

    #[test]
    fn blanks_quotes_and_lines_of_other_configurations_are_no_secrets() {
        for (text, expected) in [
            ("", BadSecret::Empty),
            (" \t ", BadSecret::Blank),
            ("\"0123456789abcdef0\"", BadSecret::Quoted),
            ("'0123456789abcdef0'", BadSecret::Quoted),
            ("static-auth-secret=0123456789abcdef0", BadSecret::Assignment),
            ("static_auth_secret = 0123456789abcdef0", BadSecret::Assignment),
            ("--static-auth-secret=0123456789abcdef0", BadSecret::Assignment),
            ("turn_shared_secret: \"0123456789abcdef0\"", BadSecret::Assignment),
            ("export TURN_SECRET=0123456789abcdef0", BadSecret::Assignment),
            ("secrets = [\"0123456789abcdef0\"]", BadSecret::Assignment),
            ("COTURN_SECRET=0123456789abcdef0", BadSecret::Assignment),
            ("token=0123456789abcdef0", BadSecret::Assignment),
            ("METRICS_TOKEN: 0123456789abcdef0", BadSecret::Assignment),
            ("TURN_STATIC_AUTH_SECRET: 0123456789abcdef0", BadSecret::Assignment),
            ("\"0123456789abcdef0\",", BadSecret::Quoted),
            ("\u{201c}0123456789abcdef0\u{201d}", BadSecret::Quoted),
            ("\u{a0}", BadSecret::Blank),
            ("use-auth-secret", BadSecret::Option),
        ] {
            assert_eq!(why(text), Some(expected), "{text}");
            assert!(!expected.to_string().contains("0123"));
        }
    }

    #[test]
    fn other_texts_are_secrets_byte_for_byte() {
        for text in [
            "c2VjcmV0IG9mIDE2IGJ5dGVzIQ==",
            "secret=",
            "a=b",
            "north wind, south wind",
            "\"",
            "'a",
            "ünïcode :",
            "no secret, is it? = 5",
        ] {
            assert_eq!(secret(text.as_bytes()).unwrap().as_bytes(), text.as_bytes());
        }
    }

    #[test]
    fn short_secrets_and_examples_of_guides_are_weak() {
        let weak = |text: &str| weakness(&Secret::new(text).unwrap());
        for text in ["north", "logen", "s3cr3t", "changeme", "Change_Me", "<your_secret>", "[your secret key here]"] {
            assert_eq!(weak(text), Some(WeakSecret::Example), "{text}");
        }
        // Long enough, and public all the same.
        assert_eq!(weak("n0t4ctuAllymatr1Xd0TorgSshar3d5ecret4obvIousreAsons"), Some(WeakSecret::Example));
        assert_eq!(weak("fifteen bytes !"), Some(WeakSecret::Short));
        assert_eq!(weak("sixteen bytes !!"), None);
    }

    #[test]
    fn a_file_has_one_secret_per_line() {
        let text = "# comment\n\n\u{a0} first secret\u{a0}\r\n#\n\t'second'\nthird\n\u{a0}\n".as_bytes();
        let read: Vec<_> = lines(text).map(|line| (line.number, line.column, line.secret.err())).collect();
        assert_eq!(read, [(3, 3, None), (5, 2, Some(BadSecret::Quoted)), (6, 1, None)]);
        let first = lines(text).next().unwrap().secret.unwrap();
        assert_eq!(first.as_bytes(), b"first secret");
    }
}

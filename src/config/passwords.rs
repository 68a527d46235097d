//! Passwords of static users that can be guessed. No message contains a password.

use super::secrets;

/// The minimum length of a password in characters: the least that NIST SP 800-63B allows for a password that a person
/// chooses. Whoever records a request can try all shorter ones offline (RFC 8656 §21.1.2).
const MIN_PASSWORD: usize = 8;

/// Passwords of public guides and samples, in lowercase, in addition to the example secrets. Attackers try them.
const EXAMPLES: &[&str] = &[
    "12345678",
    "123456789",
    "1234567890",
    // The users of a public TURN service.
    "openrelayproject",
    // `user=username1:password1` is in coturn's sample configuration.
    "password1",
    "password2",
    "password123",
    "qwertyuiop",
    "somepassword",
    "testpassword",
    "turnpassword",
    "your-password",
    "yourpassword",
    // The user `ninefingers` of coturn's examples.
    "youhavetoberealistic",
];

/// Why a password can be guessed. `Display` continues "the `password` of this user".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum WeakPassword {
    #[error("is an example from public guides, which attackers try: create one with `openssl rand -hex 16`")]
    Example,
    #[error("is the `name`, which attackers try: create one with `openssl rand -hex 16`")]
    Name,
    #[error(
        "is shorter than 8 characters, so whoever records a request can guess it: create one with `openssl rand -hex \
         16`"
    )]
    Short,
}

/// Returns why the password of a user can be guessed; `None` if it is strong enough.
pub(super) fn weakness(password: &str, name: Option<&str>) -> Option<WeakPassword> {
    if secrets::is_example(password.as_bytes(), EXAMPLES) {
        return Some(WeakPassword::Example);
    }
    if name.is_some_and(|name| password.eq_ignore_ascii_case(name)) {
        return Some(WeakPassword::Name);
    }
    (password.chars().count() < MIN_PASSWORD).then_some(WeakPassword::Short)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_passwords_names_and_examples_of_guides_are_weak() {
        for (password, expected) in [
            ("north wind", None),
            ("8 chars.", None),
            ("7 chars", Some(WeakPassword::Short)),
            // Characters, not bytes.
            ("übergrö", Some(WeakPassword::Short)),
            ("Alexandra", Some(WeakPassword::Name)),
            ("youhavetoberealistic", Some(WeakPassword::Example)),
            ("<Your_Password>", Some(WeakPassword::Example)),
            // An example of a secret.
            ("static-auth-secret", Some(WeakPassword::Example)),
        ] {
            assert_eq!(weakness(password, Some("alexandra")), expected, "{password}");
        }
    }
}

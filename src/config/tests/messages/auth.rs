//! `[auth]`.

use super::*;

#[test]
fn a_credential_path_without_a_credentials_directory_is_an_error() {
    assert_eq!(
        error("[auth]\nsecrets-file = \"$CREDENTIALS_DIRECTORY/secrets\""),
        "2:16: `auth.secrets-file`: `$CREDENTIALS_DIRECTORY` is not set: systemd sets it for a unit with \
         `LoadCredential=secrets:PATH`; to run without systemd, set it to the directory that contains `secrets`"
    );
}

#[test]
fn a_user_that_cannot_authenticate_is_an_error() {
    assert_eq!(error("[[auth.users]]\nname = \"ann\""), "1:1: user `ann` has no `password`");
    assert_eq!(error("[[auth.users]]\npassword = \"x\""), "1:1: a user has no `name`");
    assert_eq!(error("[[auth.users]]\nname = \"ann\"\npassword = \"\""), "3:12: the password of user `ann` is empty");
    assert_eq!(error("[[auth.users]]\nname = \"\"\npassword = \"x\""), "2:8: the `name` of a user is empty");
    assert_eq!(
        error("[[auth.users]]\nname = \"a\\u0000b\"\npassword = \"x\""),
        "2:8: the `name` of a user must not contain a control character (U+0000)"
    );
    // RFC 8489 §14.3
    assert_eq!(
        error(&format!("[[auth.users]]\nname = \"{}\"\npassword = \"x\"", "a".repeat(509))),
        "2:8: the `name` of a user has 509 bytes; the maximum is 508 (RFC 8489 §14.3)"
    );
    assert_eq!(
        error("[[auth.users]]\nname = \"ann\"\npassword = \"x\"\nkey = \"8493fbc53ba582fb4c044c456bdc40eb\""),
        "4:7: user `ann` has both `password` and `key`: remove one of them"
    );
    assert_eq!(
        error("[[auth.users]]\nname = \"ann\"\nkey = \"n33dle\""),
        "3:7: the `key` of user `ann` must be 32 hexadecimal digits, the MD5 of `name:realm:password`; a password \
         belongs in `password`"
    );
    let ann = "[[auth.users]]\nname = \"ann\"\npassword = \"x\"\n";
    assert_eq!(error(&ann.repeat(2)), "5:8: user `ann` is defined twice; the first is in line 2");
}

#[test]
fn secrets_that_can_be_guessed_or_are_probably_mistaken_cause_warnings() {
    for (text, expected) in [
        (
            "secrets = [\"0123456789abcde\"]",
            "2:12: `auth.secrets` contains a secret shorter than 16 bytes, \
             which can be guessed: create one with `openssl rand -hex 32`",
        ),
        (
            "secrets = [\"north\"]",
            "2:12: `auth.secrets` contains an example secret from public guides, which attackers try: create one with \
             `openssl rand -hex 32`",
        ),
        (
            "secrets = [\" 0123456789abcdef\"]",
            "2:12: `auth.secrets` contains a secret that begins or ends with a blank, which is part of it",
        ),
        (
            "secrets = ['\"0123456789abcdef\"']",
            "2:12: `auth.secrets` contains a secret in quotes: remove the quotes, which would become part of the secret",
        ),
        (
            "secrets = [\"static-auth-secret=0123456789abcdef\"]",
            "2:12: `auth.secrets` contains a line that sets a secret by its name: remove everything except the secret \
             itself",
        ),
        (
            "secrets = [\"0123456789abcdef\", \"0123456789abcdef\"]",
            "2:32: `auth.secrets` contains the same secret as before: remove it",
        ),
    ] {
        assert_eq!(warnings(&format!("[auth]\n{text}")), [expected], "{text}");
    }
    assert_eq!(
        warnings("[[auth.users]]\nname = \"1700000000:ann\"\npassword = \"north wind\""),
        ["2:8: the `name` of this user has the form of a time-limited credential, but the password never expires"]
    );
}

#[test]
fn passwords_that_can_be_guessed_or_that_two_users_have_cause_warnings() {
    for (password, expected) in [
        ("x", "is shorter than 8 characters, so whoever records a request can guess it"),
        ("password1", "is an example from public guides, which attackers try"),
        ("Alexandra", "is the `name`, which attackers try"),
    ] {
        assert_eq!(
            warnings(&format!("[[auth.users]]\nname = \"alexandra\"\npassword = \"{password}\"")),
            [format!("3:12: the `password` of this user {expected}: create one with `openssl rand -hex 16`")]
        );
    }
    let user = |name: &str| format!("[[auth.users]]\nname = \"{name}\"\npassword = \"north wind\"\n");
    assert_eq!(
        warnings(&(user("ann") + &user("bob"))),
        ["5:8: this user has the same password as the one in line 2, so each can act as the other: give each a \
          password of its own"]
    );
}

#[test]
fn a_blank_secret_or_password_is_an_error() {
    for (text, expected) in [
        (
            "[auth]\nsecrets = [\"  \"]",
            "2:12: `auth.secrets` contains a secret of blanks only: create one with `openssl rand -hex 32`",
        ),
        (
            "[[auth.users]]\nname = \"ann\"\npassword = \"  \"",
            "3:12: the password of user `ann` consists of blanks only",
        ),
    ] {
        assert_eq!(error(text), expected, "{text}");
    }
}

//! `turn-credential verify`.

use turnserver::auth::time_limited::{self, CredentialError, Malformed, TimeLimitedUsername};
use turnserver::auth::{HumanSeconds, LongTermKey, Secret};
use turnserver::clock;
use turnserver::config::{StaticCredential, StaticUser};
use zeroize::Zeroizing;

use crate::Failure;
use crate::args::{PASSWORD_SOURCES, Verify};
use crate::source::{self, Loaded};
use crate::text::rfc3339;

/// Returns the output for a valid credential.
pub(crate) fn run(arguments: &Verify) -> Result<Zeroizing<String>, Failure> {
    if arguments.misplaced_password.is_some() {
        return Err(Failure::Usage(format!(
            "every user of this machine can read the command line, so a password must not be on it; \
             {PASSWORD_SOURCES}"
        )));
    }
    if arguments.source.secret_stdin && arguments.password_env.is_none() {
        return Err(Failure::Usage(
            "standard input cannot provide both the secret and the password: use --password-env VARIABLE or another \
             source of the secret"
                .to_owned(),
        ));
    }
    let username = arguments.username.as_str();
    let loaded = source::load(&arguments.source)?;
    let password = source::password(arguments)?;
    let verdict = match loaded.config.auth.users.iter().find(|user| user.name == username) {
        // The server also checks static users first.
        Some(user) => static_user(user, &loaded.config.realm, &password),
        None => time_limited(&loaded, username, &password),
    };
    verdict.map(Zeroizing::new).map_err(|why| Failure::Failed(format!("not valid: {why}")))
}

fn static_user(user: &StaticUser, realm: &str, password: &str) -> Result<String, String> {
    let name = user.name.escape_debug();
    let Ok(given) = Secret::new(password) else {
        return Err(format!("the password is empty; {name} is a static user of the configuration"));
    };
    let (is_right, hint) = match &user.credential {
        StaticCredential::Password(expected) => (given == *expected, ""),
        StaticCredential::Key(expected) => {
            let key = LongTermKey::derive(&user.name, realm, given.as_bytes());
            (key == *expected, ", or the `key` was made for another realm")
        }
    };
    if is_right {
        Ok(format!("valid: the password of the static user {name}, which does not expire\n"))
    } else {
        Err(format!("the password is wrong{hint}; {name} is a static user of the configuration"))
    }
}

fn time_limited(loaded: &Loaded, username: &str, password: &str) -> Result<String, String> {
    let now = clock::unix_seconds();
    let tried = loaded.secrets.len();
    match time_limited::verify(&loaded.secrets, username, password, now) {
        Ok(valid) => {
            let user = match valid.user {
                "" => "no user name".to_owned(),
                user => format!("user {}", user.escape_debug()),
            };
            let (left, end) = (HumanSeconds(valid.expires.saturating_sub(now)), rfc3339(valid.expires));
            Ok(format!(
                "valid: {user}, {left} left (until {end}), made with secret {} of {tried}\n",
                valid.secret_index + 1
            ))
        }
        Err(error @ CredentialError::Malformed(Malformed::NoExpiry)) if loaded.from_file => {
            Err(format!("{error}, and the configuration has no static user with this name"))
        }
        Err(CredentialError::NoSecret) => {
            Err(format!("there is no secret, so no time-limited credential is valid: {}", loaded.source))
        }
        Err(error @ (CredentialError::Expired { .. } | CredentialError::WrongSecretAndExpired { .. })) => {
            let end =
                TimeLimitedUsername::parse(username).map_or_else(String::new, |username| rfc3339(username.expires));
            Err(format!("{error} (at {end})"))
        }
        Err(error) => Err(error.to_string()),
    }
}

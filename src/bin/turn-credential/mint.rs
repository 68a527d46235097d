//! `turn-credential mint`.

use std::fmt::Write as _;

use serde_json::{Value, json};
use turnserver::auth::HumanSeconds;
use turnserver::auth::time_limited::{self, Credential};
use turnserver::clock;
use zeroize::Zeroizing;

use crate::Failure;
use crate::args::{Format, Mint};
use crate::source::{self, Loaded};
use crate::text::rfc3339;
use crate::urls::urls;

/// RFC 8489 §14.3: fewer than 509 bytes.
const MAX_USERNAME: usize = 508;

/// Returns the output for a new credential.
pub(crate) fn run(arguments: &Mint) -> Result<Zeroizing<String>, Failure> {
    let Loaded { config, secrets, source, .. } = source::load(&arguments.source)?;
    let Some(secret) = secrets.first() else {
        return Err(Failure::Failed(format!(
            "there is no secret: {source}; \
             set one with --config, --secret-file, --secret-stdin or --secret-env (`openssl rand -hex 32` creates one)"
        )));
    };
    let expires = clock::unix_seconds().saturating_add(arguments.ttl);
    let credential = time_limited::mint(secret, arguments.user.as_deref(), expires);
    if credential.username.len() > MAX_USERNAME {
        let length = credential.username.len();
        return Err(Failure::Usage(format!(
            "the username with its expiry has {length} bytes; the maximum is {MAX_USERNAME} (RFC 8489 section 14.3)"
        )));
    }
    let urls = urls(&config, arguments.host.as_deref());
    let printed = match arguments.format {
        Format::Text => text(&credential, arguments.ttl, &urls.unwrap_or_default()),
        Format::Json => json(&credential, &urls.unwrap_or_default()),
        Format::Env => env(&credential, &urls.unwrap_or_default()),
        // A browser cannot use the entry without URLs.
        Format::IceServers => match urls {
            Ok(urls) => format!("{}\n", credential.ice_servers(&urls)),
            Err(error) => return Err(Failure::Failed(error.to_string())),
        },
    };
    Ok(Zeroizing::new(printed))
}

fn text(credential: &Credential, ttl: u64, urls: &[String]) -> String {
    let Credential { username, password, expires } = credential;
    let mut text = format!(
        "username  {username}\npassword  {}\nexpires   {} (in {})\n",
        password.as_str(),
        rfc3339(*expires),
        HumanSeconds(ttl)
    );
    for url in urls {
        let _ = writeln!(text, "url       {url}");
    }
    text
}

fn json(credential: &Credential, urls: &[String]) -> String {
    let mut object = json!({
        "username": credential.username,
        "password": credential.password.as_str(),
        "expires": credential.expires,
        "expires_at": rfc3339(credential.expires),
    });
    if let (Value::Object(object), false) = (&mut object, urls.is_empty()) {
        object.insert("urls".to_owned(), json!(urls));
    }
    format!("{object}\n")
}

fn env(credential: &Credential, urls: &[String]) -> String {
    let mut lines = format!(
        "TURN_USERNAME={}\nTURN_PASSWORD={}\nTURN_EXPIRES={}\n",
        shell_quoted(&credential.username),
        shell_quoted(&credential.password),
        credential.expires
    );
    if !urls.is_empty() {
        let _ = writeln!(lines, "TURN_URLS={}", shell_quoted(&urls.join(" ")));
    }
    lines
}

/// Quotes a text as one word of a POSIX shell: within single quotes, every other character is literal.
fn shell_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

//! The configuration files and documents of the repository, and files on disk.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt;

use crate::file::tests::make_pipe;

use super::*;

const SHIPPED: &str = include_str!("../../../turnserver.toml");
const DOCUMENT: &str = include_str!("../../../docs/configuration.md");

/// A temporary directory for one test, deleted when dropped.
pub(super) struct Directory(pub(super) PathBuf);

impl Directory {
    pub(super) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("turnserver-config-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(super) fn write(&self, name: &str, content: impl AsRef<[u8]>, mode: u32) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_shipped_file_equals_the_defaults() {
    assert_eq!(Config::parse(SHIPPED, "turnserver.toml").unwrap(), Config::default());
    assert_eq!(parse(""), Config::default());
}

/// Returns the table and key of each assignment, including commented examples.
fn assignments(text: &str) -> Vec<(String, String)> {
    let mut table = String::new();
    let mut found = Vec::new();
    for line in text.lines() {
        let line = line.strip_prefix('#').unwrap_or(line);
        if line.starts_with(' ') {
            continue;
        }
        if line.starts_with('[') {
            table = line.trim_matches(['[', ']']).to_owned();
        } else if let Some((key, _)) = line.split_once('=') {
            found.push((table.clone(), key.trim().to_owned()));
        }
    }
    found
}

#[test]
fn the_shipped_file_has_every_key() {
    let assignments = assignments(SHIPPED);
    let tables: Vec<&str> = schema::ALL.iter().map(|table| table.path).collect();
    for table in schema::ALL {
        for key in table.keys {
            let path = if table.path.is_empty() { (*key).to_owned() } else { format!("{}.{key}", table.path) };
            let is_table = tables.contains(&path.as_str()) && SHIPPED.contains(&format!("[{path}]"));
            let is_set = assignments.iter().any(|(at, name)| at == table.path && name == key);
            assert!(is_table || is_set, "{path} is missing from turnserver.toml");
        }
    }
}

#[test]
fn the_examples_in_the_shipped_file_are_valid() {
    let filled =
        SHIPPED.replace("password = \"\"", "password = \"x\"").replace("/etc/turnserver/secrets", "Cargo.toml");
    let filled = filled
        .replace("/etc/turnserver/redis-password", "Cargo.toml")
        .replace("/etc/turnserver/redis-ca.pem", "authority.pem");
    let filled = filled.replace("redis://127.0.0.1:6379\"  ", "rediss://127.0.0.1:6379\" ");
    let hash = format!("sha256 = \"{}\"", KeyHash::of(b"abc").to_hex());
    let filled = filled.replace("sha256 = \"\"", &hash).replace("/etc/turnserver/metrics-token", "Cargo.toml");
    let filled = filled.replace("/etc/turnserver/keys.toml", "keys.toml");
    let filled = filled.replace("#key = \"\"", "#key = \"8493fbc53ba582fb4c044c456bdc40eb\"");
    let filled = filled.replace("/etc/turnserver/private-authority.pem", "authority.pem");
    let filled = filled
        .replace("/etc/turnserver/nats-password", "Cargo.toml")
        .replace("/etc/turnserver/nats-ca.pem", "authority.pem")
        .replace("/etc/turnserver/regions.txt", "regions.txt");
    let filled = filled
        .replace("/etc/turnserver/webhook-secret", "signing")
        .replace("/etc/turnserver/receiver-ca.pem", "authority.pem");
    let filled = filled.replace("tls = [] ", "tls = [\"[::]:5349\"] ");
    // There is one of both: the files of a certificate, or `acme`.
    let (before, rest) = filled.split_once("#[tls.acme]").unwrap();
    let (acme, after) = rest.split_once("\n\n").unwrap();
    check_examples(&format!("{before}{after}"));
    let (before, rest) = before.split_once("#[tls]\n").unwrap();
    let (_, rest) = rest.split_once("\n\n").unwrap();
    let acme = acme.replace("/etc/turnserver/eab-key", "Cargo.toml");
    let config = check_examples(&format!("{before}{rest}#[tls.acme]{acme}\n\n{after}"));
    assert_eq!(config.tls.unwrap().acme.unwrap().domains, ["turn.example.org"]);
}

/// Checks a configuration with all examples.
fn check_examples(filled: &str) -> Config {
    let lines: Vec<&str> = filled
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(example) if !example.starts_with(' ') => example,
            _ => line,
        })
        .collect();
    let directory = Directory::new("examples");
    directory.write("Cargo.toml", "0123456789abcdef", 0o600);
    directory.write("keys.toml", "", 0o600);
    let authority = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    directory.write("authority.pem", authority, 0o600);
    directory.write("regions.txt", "198.51.100.0/24 eu\n", 0o600);
    directory.write("signing", "whsec_d2ViaG9vayBzZWNyZXQgb2YgdGhlIHRlc3RzISEhISE=", 0o600);
    let path = directory.write("turnserver.toml", lines.join("\n"), 0o600);
    let config = Config::load(&path).unwrap();
    assert_eq!(config.hostname.as_deref(), Some("turn.example.org"));
    assert_eq!(config.auth.users[0].name, "alice");
    assert_eq!(config.auth.secrets.len(), 1);
    assert_eq!(config.auth.redis.as_ref().unwrap().access.username.as_deref(), Some("turnserver"));
    assert_eq!(config.http.keys[0].name, "app");
    config
}

#[test]
fn the_document_lists_every_key_in_the_section_of_its_table() {
    for table in schema::ALL {
        let heading = match table.path {
            "" => "## Top level\n".to_owned(),
            "auth.users" | "http.keys" | "tls.certificates" => format!("### `[[{}]]`\n", table.path),
            "front" => format!("## `[[{}]]`\n", table.path),
            path => format!("## `[{path}]`\n"),
        };
        let (_, section) = DOCUMENT.split_once(&heading).unwrap_or_else(|| panic!("no section {heading}"));
        let section = section.split("\n#").next().unwrap();
        for key in table.keys {
            let is_section =
                [format!("## `[{key}]`\n"), format!("## `[[{key}]]`\n")].iter().any(|own| DOCUMENT.contains(own));
            assert!(
                section.contains(&format!("| `{key}` |")) || is_section && table.path.is_empty(),
                "{key} of {} is not in docs/configuration.md",
                table.name()
            );
        }
    }
}

#[test]
fn the_messages_in_the_document_are_current() {
    let errors = Config::parse("relam = \"x\"\n\n\n[relay]\nports = \"65535-49152\"", "turnserver.toml").unwrap_err();
    assert!(DOCUMENT.contains(&format!("```text\n{errors}\n```")), "{errors}");
}

#[test]
fn secrets_from_the_file_follow_those_in_the_configuration() {
    let directory = Directory::new("secrets");
    directory.write("more", "# the old one\n\n  fedcba9876543210  \r\nshort\n", 0o640);
    let text = "[auth]\nsecrets = [\"0123456789abcdef\"]\nsecrets-file = \"more\"";
    let path = directory.write("t.toml", text, 0o640);
    let config = Config::load(&path).unwrap();
    let secrets: Vec<&[u8]> = config.auth.secrets.iter().map(Secret::as_bytes).collect();
    assert_eq!(secrets, [&b"0123456789abcdef"[..], b"fedcba9876543210", b"short"]);
    let warnings: Vec<String> = config.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        [format!(
            "{}:4:1: a secret shorter than 16 bytes, which can be guessed: create one with `openssl rand -hex 32`",
            directory.0.join("more").display()
        )]
    );
}

#[test]
fn a_relative_path_is_found_from_a_directory_whose_name_is_not_utf_8() {
    let directory = Directory::new("not-utf-8");
    let odd = OsStr::from_bytes(b"\xff");
    fs::create_dir(directory.0.join(odd)).unwrap();
    let odd = Directory(directory.0.join(odd));
    odd.write("more", "fedcba9876543210\n", 0o640);
    let path = odd.write("t.toml", "[auth]\nsecrets-file = \"more\"", 0o640);
    assert_eq!(Config::load(&path).unwrap().auth.secrets.len(), 1);
}

#[test]
fn a_world_readable_file_with_secrets_causes_one_warning() {
    let directory = Directory::new("modes");
    directory.write("more", "fedcba9876543210\n", 0o644);
    let text = "[auth]\nsecrets = [\"0123456789abcdef\", \"0123456789abcdeg\"]\nsecrets-file = \"more\"";
    let path = directory.write("t.toml", text, 0o644);
    let config = Config::load(&path).unwrap();
    let messages: Vec<String> = config.warnings.iter().map(|warning| warning.message.clone()).collect();
    let (path, more) = (path.display(), directory.0.join("more"));
    assert_eq!(
        messages,
        [
            format!("this file contains a secret and is world-readable: run `chmod 640 {path}`"),
            format!("`auth.secrets-file`: `{0}` is world-readable: run `chmod 640 {0}`", more.display()),
        ]
    );
    assert_eq!(config.warnings[0].position, Some((2, 12)));
    let harmless = directory.write("harmless.toml", "realm = \"x\"", 0o644);
    assert_eq!(Config::load(&harmless).unwrap().warnings, []);
}

#[test]
fn a_secrets_file_without_a_secret_is_an_error() {
    let directory = Directory::new("no-secrets");
    directory.write("empty", "# nothing\n\n", 0o600);
    directory.write("binary", [0xff, 0xfe], 0o600);
    let shown = |name: &str| directory.0.join(name).display().to_string();
    for (name, what) in [
        ("empty", format!("`{}` contains no secret: write one secret per line", shown("empty"))),
        ("absent", format!("`{}` cannot be read: file not found", shown("absent"))),
        ("binary", format!("`{}` cannot be read: it is not UTF-8 text", shown("binary"))),
        (".", format!("`{}` cannot be read: it is a directory", shown("."))),
    ] {
        let path = directory.write("t.toml", format!("[auth]\nsecrets-file = \"{name}\""), 0o600);
        let errors = Config::load(&path).unwrap_err().to_string();
        assert_eq!(errors, format!("{}:2:16: `auth.secrets-file`: {what}", path.display()));
    }
    assert_eq!(
        error("[auth]\nsecrets-file = \"\""),
        "2:16: `auth.secrets-file` is empty: omit it if there is no such file"
    );
}

#[test]
fn permission_denied_names_the_user() {
    let message = read_failure(&io::Error::from(io::ErrorKind::PermissionDenied));
    assert!(message.starts_with("permission denied for ") && message.contains("uid "), "{message}");
}

#[test]
fn a_configuration_file_that_cannot_be_read_is_one_error() {
    let directory = Directory::new("unreadable");
    let absent = directory.0.join("absent.toml");
    let error = Config::load(&absent).unwrap_err().to_string();
    assert_eq!(error, format!("{}: cannot be read: file not found", absent.display()));
    let link = directory.0.join("link.toml");
    std::os::unix::fs::symlink("nowhere", &link).unwrap();
    let error = Config::load(&link).unwrap_err().to_string();
    let expected = "cannot be read: it is a symbolic link to `nowhere`, which does not exist";
    assert_eq!(error, format!("{}: {expected}", link.display()));
    let binary = directory.write("binary.toml", b"realm = \"x\"\n\xc3\xa4\xff", 0o600);
    let error = Config::load(&binary).unwrap_err().to_string();
    assert_eq!(error, format!("{}:2:2: invalid UTF-8: save the file as UTF-8", binary.display()));
}

// A byte order mark would become part of the first secret.
#[test]
fn a_byte_order_mark_is_not_part_of_a_file() {
    let directory = Directory::new("mark");
    directory.write("more", "\u{feff}fedcba9876543210\n", 0o600);
    let text = "\u{feff}[auth]\nsecrets-file = \"more\"";
    let config = Config::load(&directory.write("t.toml", text, 0o600)).unwrap();
    assert_eq!(config.auth.secrets[0].as_bytes(), b"fedcba9876543210");
    assert_eq!(config.warnings, []);
}

#[test]
fn mistakes_in_the_secrets_file_are_reported_with_their_line_and_without_the_secret() {
    let directory = Directory::new("mistakes");
    let lines = "# comment\n\"0123456789abcdef\"\n  static-auth-secret=0123456789abcdef\nuse-auth-secret\n";
    let more = directory.write("more", lines, 0o600).display().to_string();
    let path = directory.write("t.toml", "[auth]\nsecrets-file = \"more\"", 0o600);
    let errors = Config::load(&path).unwrap_err().to_string();
    assert_eq!(
        errors,
        format!(
            "{more}:2:1: a secret in quotes: remove the quotes, which would become part of the secret\n\
             {more}:3:3: a line that sets a secret by its name: remove everything except the secret itself\n\
             {more}:4:1: a line of coturn's configuration, which is not a secret: remove it"
        )
    );
    let lines = "north\n0123456789abcdef\n0123456789abcdeg\n0123456789abcdeg\n";
    directory.write("more", lines, 0o600);
    let text = "[auth]\nsecrets = [\"0123456789abcdef\"]\nsecrets-file = \"more\"";
    let config = Config::load(&directory.write("t.toml", text, 0o600)).unwrap();
    let warnings: Vec<String> = config.warnings.iter().map(ToString::to_string).collect();
    let repeated = "the same secret as before: remove it";
    assert_eq!(
        warnings,
        [
            format!(
                "{more}:1:1: an example secret from public guides, which attackers try: create one with \
                 `openssl rand -hex 32`"
            ),
            format!("{more}:2:1: {repeated}"),
            format!("{more}:4:1: {repeated}"),
        ]
    );
}

// A device without an end and a pipe without a writer, as the configuration and as the secrets file.
#[test]
fn only_regular_files_of_a_sane_size_are_read() {
    let directory = Directory::new("special");
    make_pipe(&directory.0.join("pipe"));
    fs::File::create(directory.0.join("long")).unwrap().set_len(3 << 30).unwrap();
    let pipe = directory.0.join("pipe").display().to_string();
    let long = directory.0.join("long").display().to_string();
    for (name, why) in [
        ("/dev/zero", "it is a device, not a regular file"),
        (pipe.as_str(), "it is a pipe, not a regular file"),
        (long.as_str(), "it is longer than 1 MiB"),
    ] {
        assert_eq!(Config::load(Path::new(name)).unwrap_err().to_string(), format!("{name}: cannot be read: {why}"));
        let path = directory.write("t.toml", format!("[auth]\nsecrets-file = \"{name}\""), 0o600);
        let error = Config::load(&path).unwrap_err().to_string();
        let expected = format!("{}:2:16: `auth.secrets-file`: `{name}` cannot be read: {why}", path.display());
        assert_eq!(error, expected);
    }
}

#[test]
fn a_device_as_the_file_of_the_token_is_an_error() {
    let text = "[http]\nlisten = [\"127.0.0.1:1\"]\nmetrics-token-file = \"/dev/null\"\n";
    let error = Config::parse(text, "t.toml").unwrap_err().to_string();
    assert!(error.ends_with("`/dev/null` cannot be read: it is a device, not a regular file"), "{error}");
}

#[test]
fn the_file_of_the_token_is_checked_for_typical_mistakes() {
    let directory = Directory::new("token");
    let token = directory.0.join("token").display().to_string();
    let path = directory.write("t.toml", "[http]\nmetrics-token-file = \"token\"", 0o600);
    let config = path.display();
    for (text, mistake) in [
        ("\"0123456789abcdef0123\"\n", "a secret in quotes: remove the quotes, which would become part of the secret"),
        (
            "token=0123456789abcdef0123\n",
            "a line that sets a secret by its name: remove everything except the secret itself",
        ),
    ] {
        directory.write("token", text, 0o600);
        let error = Config::load(&path).unwrap_err().to_string();
        assert_eq!(error, format!("{config}:2:22: `http.metrics-token-file`: `{token}` contains {mistake}"));
    }
    directory.write("token", "0123456789abcdef0123==\n", 0o600);
    assert_eq!(Config::load(&path).unwrap().http.metrics_token.unwrap().as_bytes(), b"0123456789abcdef0123==");
}

// A credential is a copy that the service can read.
#[test]
fn the_named_files_are_listed_except_credentials() {
    let text = "[listen]\ntls = [\"[::]:5349\"]\n[tls]\ncertificate = \"a.pem\"\nprivate-key = \"/b.pem\"\n";
    let config = Config::parse(text, "/etc/t.toml").unwrap();
    assert_eq!(config.files, [("tls.certificate", "/etc/a.pem".into()), ("tls.private-key", "/b.pem".into())]);
    let document = DeTable::parse("[auth]\nsecrets-file = \"$CREDENTIALS_DIRECTORY/secrets\"").unwrap();
    assert_eq!(paths::files(document.get_ref(), Path::new("/etc")), []);
}

#[test]
fn the_sections_for_the_program_in_the_kernel_are_read_without_secrets_and_in_spite_of_other_errors() {
    let directory = Directory::new("offload");
    let load = |text: &str| Config::load_offload(&directory.write("t.toml", text, 0o640));
    let other = "relm = 1\n[auth]\nsecrets-file = \"$CREDENTIALS_DIRECTORY/absent\"\n[limits]\nallocations = 7\n";
    let (offload, channels) = load(&format!("{other}[offload]\nmode = \"require\"\n")).unwrap();
    assert_eq!((offload.mode, offload.interfaces, channels), (OffloadMode::Require, OffloadInterfaces::Auto, 28));
    assert_eq!(load("").unwrap(), (Offload::default(), 16_384));
    for (text, expected) in [
        ("[offload]\nmode = \"on\"", "`offload.mode` must be one of"),
        ("[limits]\nallocations = -1", "`limits.allocations` must be between"),
        ("[relay]\nports = \"x\"", "`relay.ports`"),
        ("[offload", "1:"),
    ] {
        let error = load(text).unwrap_err().to_string();
        assert!(error.contains(expected) && error.lines().count() == 1, "{error}");
    }
    assert!(Config::load_offload(&directory.0.join("absent.toml")).is_err());
}

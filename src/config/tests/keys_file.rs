//! `http.keys-file`.

use crate::file::tests::make_pipe;

use super::files::Directory;
use super::*;

/// Returns the block of a key whose hash repeats this digit.
fn block(name: &str, digit: &str) -> String {
    format!("[[http.keys]]\nname = \"{name}\"\nsha256 = \"{}\"\n", digit.repeat(64))
}

/// Loads a configuration with one key, `first`, and a file of keys.
fn load(directory: &Directory, file: &str) -> Result<Config, ConfigErrors> {
    let http = format!("[http]\nkeys-file = \"{file}\"\nlisten = [\"127.0.0.1:0\"]\n{}", block("first", "1"));
    Config::load(&directory.write("t.toml", http, 0o600))
}

fn names(config: &Config) -> Vec<&str> {
    config.http.keys.iter().map(|key| key.name.as_str()).collect()
}

#[test]
fn the_keys_of_the_file_are_appended() {
    let directory = Directory::new("keys");
    let content = format!("\u{feff}# Keys\n{}{}ttl = \"1h\"\n", block("second", "2"), block("third", "3"));
    directory.write("keys", content, 0o640);
    let config = load(&directory, "keys").unwrap();
    assert_eq!(names(&config), ["first", "second", "third"]);
    assert_eq!(config.http.keys[2].ttl, Duration::from_secs(3_600));
    assert_eq!(config.warnings, []);
    assert_eq!(config.files, [("http.keys-file", directory.0.join("keys"))]);
}

#[test]
fn mistakes_in_the_file_are_reported_with_its_line() {
    let directory = Directory::new("keys-mistakes");
    let keys = directory.0.join("keys").display().to_string();
    let allowed =
        "is not allowed in this file, which contains only `[[http.keys]]` blocks, as `turn-credential key` prints them";
    for (content, expected) in [
        (
            block("second", "2") + "tlt = \"1h\"\n",
            "4:1: unknown key `tlt` in `[[http.keys]]`; did you mean `ttl`?".to_owned(),
        ),
        (block("first", "2"), "2:8: the name `first` of a key is used twice".to_owned()),
        (block("second", "1"), "2:8: the keys `first` and `second` have the same `sha256`".to_owned()),
        (block("second", "2").replace("http.keys", "keys"), format!("1:3: `keys` {allowed}")),
        ("realm = \"a\"\n".to_owned(), format!("1:1: `realm` {allowed}")),
        ("[http]\nlisten = []\n".to_owned(), format!("2:1: `http.listen` {allowed}")),
        ("http = 5\n".to_owned(), "1:8: `http` must be a table, not a whole number".to_owned()),
        ("turn_the-key-itself\n".to_owned(), "1:20: not valid TOML: ".to_owned()),
    ] {
        directory.write("keys", &content, 0o600);
        let errors = load(&directory, "keys").unwrap_err().to_string();
        assert!(errors.starts_with(&format!("{keys}:{expected}")), "{content}: {errors}");
        assert!(!errors.contains("the-key-itself") && errors.lines().count() == 1, "{errors}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_an_error() {
    let directory = Directory::new("keys-unreadable");
    make_pipe(&directory.0.join("pipe"));
    directory.write("binary", b"\xff", 0o600);
    let path = |name: &str| directory.0.join(name).display().to_string();
    for (file, what) in [
        ("missing", format!("`{}` cannot be read: file not found", path("missing"))),
        ("pipe", format!("`{}` cannot be read: it is a pipe, not a regular file", path("pipe"))),
        ("binary", format!("`{}` cannot be read: it is not UTF-8 text", path("binary"))),
    ] {
        let errors = load(&directory, file).unwrap_err().to_string();
        assert_eq!(errors, format!("{}:2:13: `http.keys-file`: {what}", path("t.toml")));
    }
    let empty = load(&directory, "").unwrap_err().to_string();
    assert!(empty.ends_with("`http.keys-file` is empty: omit it if there is no such file"), "{empty}");
    let credential = load(&directory, "$CREDENTIALS_DIRECTORY/keys").unwrap_err().to_string();
    assert!(credential.contains("`LoadCredential=keys:PATH`"), "{credential}");
}

// The operator may have removed the last key. As an error, it would leave that key valid.
#[test]
fn a_file_without_a_key_or_for_everyone_causes_a_warning() {
    let directory = Directory::new("keys-warnings");
    let keys = directory.write("keys", "# none\n", 0o644).display().to_string();
    let config = load(&directory, "keys").unwrap();
    let warnings: Vec<String> = config.warnings.iter().map(|warning| warning.message.clone()).collect();
    assert_eq!(
        warnings,
        [
            format!("`http.keys-file`: `{keys}` is world-readable: run `chmod 640 {keys}`"),
            format!(
                "`http.keys-file`: `{keys}` contains no key: `turn-credential key` makes a key and prints its block"
            ),
        ]
    );
    assert_eq!(names(&config), ["first"]);
}

#[test]
fn another_file_and_its_keys_are_changes() {
    let directory = Directory::new("keys-changes");
    directory.write("keys", block("second", "2"), 0o600);
    directory.write("others", block("second", "3") + &block("third", "4"), 0o600);
    let [old, new] = ["keys", "others"].map(|file| load(&directory, file).unwrap());
    let path = |name: &str| directory.0.join(name).display().to_string();
    let changes = old.changes(&new);
    let [file, name, hash] = changes.get(..3).unwrap() else { panic!("{changes:?}") };
    assert_eq!((file.key, &file.values), ("http.keys-file", &Some((path("keys"), path("others")))));
    assert_eq!((name.key, &name.values), ("http.keys.name", &Some(("none".to_owned(), "third".to_owned()))));
    assert_eq!((hash.key, &hash.values), ("http.keys.sha256", &None));
}

//! The import of coturn's configurations: each option is reported, and what is written can be read.

use super::input::Input;
use crate::coturn::{self, Source, Verdict};

/// Imports a file, arguments, or both. The first byte selects what.
pub fn import(data: &[u8]) {
    let mut input = Input::new(data);
    let (kind, rest) = (input.below(3), input.rest());
    let (file, arguments) = match kind {
        0 => (Some(rest), None),
        1 => (None, str::from_utf8(rest).ok()),
        _ => {
            // A zero byte separates the two.
            let at = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
            let (file, arguments) = rest.split_at(at);
            (Some(file), str::from_utf8(arguments.get(1..).unwrap_or_default()).ok())
        }
    };
    let mut sources: Vec<Source<'_>> = file.iter().map(|bytes| Source::File("turnserver.conf", bytes)).collect();
    sources.extend(arguments.iter().map(|text| Source::Arguments(text)));
    let machine = ["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()];
    let import = coturn::import(&sources, &machine);

    let counts =
        [Verdict::Cannot, Verdict::Taken, Verdict::Default, Verdict::Dropped].map(|verdict| import.count(verdict));
    assert_eq!(counts.iter().sum::<usize>(), import.entries.len());
    for entry in &import.entries {
        for text in [&entry.place, &entry.shown, &entry.text] {
            assert!(!text.contains(char::is_control), "{text:?} is printable");
        }
        assert!(!entry.place.is_empty() && !entry.shown.is_empty());
    }
    let _ = import.to_string();
    // What it writes is TOML with known keys, whatever the values are.
    let parsed: Result<toml::Table, _> = toml::from_str(&import.toml);
    let parsed = parsed.unwrap_or_else(|error| panic!("{error}\n{}", *import.toml));
    let has_secrets = parsed
        .get("auth")
        .and_then(|auth| auth.as_table())
        .is_some_and(|auth| auth.contains_key("secrets") || auth.contains_key("users"));
    assert_eq!(import.has_secrets, has_secrets);
    super::config::check_import(&import.toml);
}

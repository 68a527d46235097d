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

    if let Some(file) = file {
        // Without arguments, places do not name the file.
        let place = |line| if arguments.is_some() { format!("turnserver.conf:{line}") } else { format!("line {line}") };
        let expected: Vec<String> = option_lines(file).into_iter().map(place).collect();
        let of_file = import.entries.iter().map(|entry| entry.place.as_str());
        let of_file = of_file.filter(|place| place.starts_with("line ") || place.starts_with("turnserver.conf:"));
        assert_eq!(of_file.collect::<Vec<_>>(), expected, "each line with an option is reported, in order");
    }
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

/// Returns the numbers of the lines of a file that are neither blank nor comments.
fn option_lines(file: &[u8]) -> Vec<usize> {
    let (mut lines, mut number, mut first) = (Vec::new(), 1, None);
    let file = file.strip_prefix("\u{feff}".as_bytes()).unwrap_or(file);
    for byte in file.iter().chain(b"\n") {
        if *byte == b'\n' {
            lines.extend(first.filter(|first| *first != b'#').map(|_| number));
            (number, first) = (number + 1, None);
        } else if !byte.is_ascii_whitespace() {
            first = first.or(Some(*byte));
        }
    }
    lines
}

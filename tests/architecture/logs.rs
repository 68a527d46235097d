//! Checks docs/logging.md against the code: each line that the server logs has an event of the table, with the levels
//! and fields that the table gives, and each field has one name and one meaning.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The events that `control/logging.rs` writes without `tracing`: about the log itself, and when a thread ends.
const WRITTEN_DIRECTLY: [(&str, &str, &[&str]); 2] =
    [("lines-lost", "warn", &["count"]), ("panic", "error", &["thread", "place", "reason"])];

const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

/// A call of a macro of `tracing`.
#[derive(Debug, PartialEq, Eq)]
struct Call {
    level: String,
    event: Option<String>,
    fields: Vec<String>,
    /// The expressions of the fields in [`OF_CLIENTS`].
    of_clients: Vec<String>,
}

/// The fields that name a client, a peer or a user. `log.client-addresses` and `log.usernames` apply to them.
const OF_CLIENTS: [&str; 4] = ["client", "peer", "user", "username"];

/// The levels and fields of an event.
type Events = BTreeMap<String, (BTreeSet<String>, BTreeSet<String>)>;

/// Returns the top-level arguments of a macro call; `text` starts after its opening parenthesis.
fn arguments(text: &str) -> Vec<String> {
    let (mut list, mut current, mut depth) = (Vec::new(), String::new(), 0_usize);
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match c {
            '"' => {
                current.push(c);
                while let Some(c) = characters.next() {
                    current.push(c);
                    match c {
                        '\\' => current.extend(characters.next()),
                        '"' => break,
                        _ => {}
                    }
                }
                continue;
            }
            ')' if depth == 0 => break,
            ',' if depth == 0 => {
                list.push(std::mem::take(&mut current));
                continue;
            }
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        current.push(c);
    }
    list.push(current);
    list.into_iter().map(|argument| argument.trim().to_owned()).filter(|argument| !argument.is_empty()).collect()
}

/// Whether a name starts after this text.
fn is_start(before: &str) -> bool {
    !before.ends_with(|c: char| c.is_alphanumeric() || c == '_')
}

/// Returns the calls in a file, or the reason why they cannot be read. Stops at the file's unit tests.
fn calls(source: &str) -> Result<Vec<Call>, String> {
    let code = source.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let mut calls = Vec::new();
    if code.match_indices("event!(").any(|(at, _)| is_start(&code[..at])) {
        return Err("`event!`, whose level and event this test does not read".to_owned());
    }
    for level in LEVELS {
        let name = format!("{level}!(");
        for (at, _) in code.match_indices(&name) {
            let before = &code[..at];
            if !is_start(before) {
                continue;
            }
            if !before.ends_with("tracing::") {
                return Err(format!("`{level}!` without `tracing::`"));
            }
            let (mut event, mut fields, mut of_clients) = (None, Vec::new(), Vec::new());
            for argument in arguments(&code[at + name.len()..]) {
                // The first literal is the message.
                if argument.starts_with('"') {
                    break;
                }
                let (name, value) = argument.split_once('=').unwrap_or((&argument, ""));
                let name = name.trim().trim_start_matches(['%', '?']).to_owned();
                if name == "event" {
                    event = Some(value.trim().trim_matches('"').to_owned());
                } else {
                    if OF_CLIENTS.contains(&name.as_str()) {
                        of_clients.push(value.trim().to_owned());
                    }
                    fields.push(name);
                }
            }
            calls.push(Call { level: level.to_owned(), event, fields, of_clients });
        }
    }
    Ok(calls)
}

fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
            found.push(path);
        }
    }
}

fn add(events: &mut Events, event: String, level: &str, fields: &[String]) {
    let (levels, names) = events.entry(event).or_default();
    levels.insert(level.to_owned());
    names.extend(fields.iter().cloned());
}

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the texts between backticks.
fn quoted(cell: &str) -> BTreeSet<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Returns the rows of the table under a heading, without its header.
fn table<'d>(document: &'d str, heading: &str) -> Vec<Vec<&'d str>> {
    let section = document.split(&format!("\n## {heading}\n")).nth(1).unwrap_or_default();
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter(|line| line.starts_with('|')).skip(2);
    rows.map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

#[test]
fn each_log_line_has_an_event_and_the_fields_that_the_table_gives() {
    let (mut sources, mut logged) = (Vec::new(), Events::new());
    files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut sources);
    for path in sources {
        let calls = calls(&fs::read_to_string(&path).unwrap());
        for call in calls.unwrap_or_else(|error| panic!("{}: {error}", path.display())) {
            let event = call.event.clone().unwrap_or_else(|| panic!("{}: no event in {call:?}", path.display()));
            add(&mut logged, event, &call.level, &call.fields);
        }
    }
    assert!(logged.len() > 40, "the calls are not found: {logged:?}");
    for (event, level, fields) in WRITTEN_DIRECTLY {
        add(&mut logged, event.to_owned(), level, &fields.iter().map(|&field| field.to_owned()).collect::<Vec<_>>());
    }

    let document = read("docs/logging.md");
    let mut documented = Events::new();
    for row in table(&document, "Events") {
        let [event, level, fields, meaning] = row[..] else { panic!("a row has four cells: {row:?}") };
        assert!(!meaning.is_empty(), "{row:?}");
        let event = quoted(event).pop_first().unwrap_or_else(|| panic!("no event in {row:?}"));
        assert!(documented.insert(event, (quoted(level), quoted(fields))).is_none(), "two rows: {row:?}");
    }
    for (event, levels_and_fields) in &logged {
        assert_eq!(documented.get(event), Some(levels_and_fields), "docs/logging.md: `{event}`");
    }
    let unknown: Vec<_> = documented.keys().filter(|event| !logged.contains_key(*event)).collect();
    assert!(unknown.is_empty(), "docs/logging.md has events that the server does not log: {unknown:?}");

    let fields: BTreeSet<String> = logged.into_values().flat_map(|(_, fields)| fields).collect();
    let listed: BTreeSet<String> = table(&document, "Fields").iter().flat_map(|row| quoted(row[0])).collect();
    let general = ["event", "message"].map(str::to_owned).into();
    assert_eq!(listed, fields.union(&general).cloned().collect(), "the fields of docs/logging.md");
}

/// Whether an expression of a field depends on the settings for privacy.
fn is_private(value: &str) -> bool {
    value.contains("privacy.") || value.ends_with(".logged(privacy)") || value.ends_with(".logged(&privacy)")
}

#[test]
fn a_client_a_peer_and_a_user_are_logged_only_as_the_settings_for_privacy_allow() {
    let (mut sources, mut found) = (Vec::new(), 0);
    files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut sources);
    for path in sources {
        for call in calls(&fs::read_to_string(&path).unwrap()).unwrap() {
            found += call.of_clients.len();
            let open = call.of_clients.iter().find(|value| !is_private(value));
            assert_eq!(open, None, "{}: {call:?}", path.display());
        }
    }
    assert!(found > 20, "the fields are not found: {found}");
}

#[test]
fn calls_are_found_with_their_events_and_fields() {
    let source = "tracing::warn!(\n event = \"a-b\", user = &*f(x, \"y\"), %client, peer = privacy.address(p), count,\n \"m, {}\", n\n);\n\
                  tracing::info!(\"no event\");\n#[cfg(test)]\nmod tests { tracing::warn!(%x, \"m\") }";
    let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
    let call = |level: &str, event: Option<&str>, fields: &[&str], of_clients: &[&str]| Call {
        level: level.to_owned(),
        event: event.map(str::to_owned),
        fields: texts(fields),
        of_clients: texts(of_clients),
    };
    let first =
        call("warn", Some("a-b"), &["user", "client", "peer", "count"], &["&*f(x, \"y\")", "", "privacy.address(p)"]);
    assert_eq!(calls(source).unwrap(), [first, call("info", None, &[], &[])]);
    assert!(is_private("privacy.address(p)") && !is_private("") && !is_private("&*f(x, \"y\")"));
    assert!(calls("use tracing::info;\ninfo!(\"m\");").is_err());
    assert!(calls("tracing::event!(Level::INFO, event = \"a-b\", \"m\");").is_err());
    assert_eq!(calls("not_an_info!(\"m\"); not_an_event!(\"m\");").unwrap(), []);
}

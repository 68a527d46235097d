//! Recognizes the keys of coturn's `turnserver.conf`, which is easily taken for `turnserver.toml`.

use std::ops::Range;

use super::problem::Report;
use crate::coturn::options::{self, Rule};
use crate::coturn::undecided;

/// The number of different keys of coturn from which a file counts as a configuration of coturn.
const ENOUGH: usize = 2;

/// Whether a key at the start of a line indicates a file of coturn. Other programs have a realm, too.
fn is_key(name: &str) -> bool {
    name != "realm" && options::find(name).is_some_and(options::CoturnOption::is_of_the_server)
}

/// Returns the hint for a key of coturn, or for the one that stands for what the import could not take over.
pub(super) fn hint(key: &str) -> Option<String> {
    if key == undecided::KEY {
        let hint = "`turnserver import-coturn` could not take over the restrictions in it: set the keys that its report \
                    names, and remove this line";
        return Some(hint.to_owned());
    }
    let option = options::find(key).filter(|_| is_key(key))?;
    Some(match option.rule {
        Rule::Never(instead) => format!("`{key}` is a key of coturn that cannot be taken over: {instead}"),
        Rule::Convert(ours @ [_, ..]) => {
            let ours = ours.join("` and `");
            let value = if key.starts_with("no-") { " = []" } else { "" };
            format!("`{key}` is a key of coturn; use `{ours}{value}`")
        }
        _ => format!("`{key}` is a key of coturn without a counterpart: remove it"),
    })
}

/// Returns whether a text is probably a configuration of coturn.
pub(super) fn is_file(text: &str) -> bool {
    keys(text).len() >= ENOUGH
}

/// Reports that the file is a configuration of coturn, and each of its keys once.
pub(super) fn report_file(report: &mut Report<'_>) {
    report.error(
        &(0..0),
        format!(
            "this is a configuration of coturn, but the server reads TOML with keys of its own: convert it with \
             `turnserver import-coturn {} --output NEW`",
            report.file()
        ),
    );
    for (key, span) in keys(report.text()) {
        report.error(&span, hint(key).unwrap_or_default());
    }
}

/// Returns the keys of coturn at the start of lines, each once, with their spans.
fn keys(text: &str) -> Vec<(&str, Range<usize>)> {
    let mut found: Vec<(&str, Range<usize>)> = Vec::new();
    let mut offset = 0;
    for line in text.split_inclusive('\n') {
        let start = offset + (line.len() - line.trim_start().len());
        offset += line.len();
        let line = line.trim();
        // coturn has no sections.
        if line.starts_with('[') {
            break;
        }
        let key = line.split(['=', ' ', '\t']).next().unwrap_or_default();
        let is_new = !found.iter().any(|(other, _)| *other == key);
        if is_new && is_key(key) {
            found.push((key, start..start + key.len()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::schema;

    #[test]
    fn each_counterpart_is_a_key_and_no_key_of_coturn_is_one_of_the_top_level() {
        for option in options::OPTIONS {
            assert!(!is_key(option.name) || !schema::TOP.keys.contains(&option.name), "{}", option.name);
            let Rule::Convert(ours) = option.rule else { continue };
            for name in ours {
                let (path, key) = name.rsplit_once('.').unwrap_or(("", name));
                assert!(schema::ALL.iter().any(|table| table.path == path && table.keys.contains(&key)), "{name}");
            }
        }
    }
}

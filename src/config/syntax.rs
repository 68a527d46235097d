//! Messages for text that is not TOML. They quote only keys; anything else may be a secret.

use std::ops::Range;

use super::problem::{Report, quoted};

/// Reports the errors of the TOML parser, at most one per line, because one mistake often causes several errors.
///
/// The parser notices a missing quote where it stops to understand the text. The message names the string instead, and
/// the lists and tables that are open because of it are not reported.
pub(super) fn report_errors(errors: &[toml::de::Error], report: &mut Report<'_>) {
    let unclosed = unclosed_strings(report.text());
    let mut found: Vec<(usize, Range<usize>, String)> = unclosed
        .iter()
        .map(|string| (report.line_of(string.start), string.clone(), "not valid TOML: the string has no closing quote"))
        .map(|(line, span, message)| (line, span, message.to_owned()))
        .collect();
    // A list or a table that is open because of such a string swallows the rest of the text.
    let is_about_nesting =
        |message: &str| ["array", "inline table", "key-value pairs"].iter().any(|word| message.contains(word));
    let after_a_string = |at: usize| unclosed.iter().any(|string| string.start < at);
    let swallowed = errors
        .iter()
        .filter(|error| is_about_nesting(error.message()))
        .map(|error| error.span().unwrap_or_default().start)
        .filter(|at| after_a_string(*at))
        .min();
    for error in errors {
        let (span, message) = (error.span().unwrap_or_default(), error.message());
        let is_consequence = swallowed.is_some_and(|from| from <= span.start)
            || unclosed.iter().any(|string| string.start < span.start && span.start <= string.end);
        if !is_consequence {
            let text = report.text().get(span.clone()).unwrap_or_default();
            found.push((report.line_of(span.start), span, syntax_message(message, text)));
        }
    }
    // In a line with an unclosed string, the message about the string is first.
    found.sort_by_key(|(line, span, _)| (*line, !unclosed.contains(span), span.start));
    found.dedup_by_key(|(line, _, _)| *line);
    for (_, span, message) in found {
        report.error(&span, message);
    }
}

/// Returns the message for a syntax error at `text`.
fn syntax_message(message: &str, text: &str) -> String {
    const NOT_A_STRING: [&str; 7] = [
        "string values must be quoted",
        "invalid boolean",
        "invalid date",
        "invalid time",
        "invalid integer",
        "invalid float",
        "unexpected leading zero",
    ];
    if message == "duplicate key" {
        format!("{} is defined twice", quoted(text.trim()))
    } else if message.starts_with("missing comma between array elements") {
        "not valid TOML: the list before this needs `,` or `]`".to_owned()
    } else if !NOT_A_STRING.iter().any(|start| message.starts_with(start)) {
        format!("not valid TOML: {message}")
    } else if text.trim().is_empty() {
        "not valid TOML: a value is missing here".to_owned()
    } else {
        "not valid TOML: this is not a number, true or false; strings need quotes".to_owned()
    }
}

/// Returns the spans from the opening quote of each string without a closing one to the end of its line, or of the text
/// if the string may have several lines.
fn unclosed_strings(text: &str) -> Vec<Range<usize>> {
    let mut unclosed = Vec::new();
    let mut at = 0;
    let mut before = '\n';
    while let Some(rest) = text.get(at..)
        && let Some(next) = rest.chars().next()
    {
        let end_of_line = rest.find('\n').unwrap_or(rest.len());
        let length = match next {
            '#' => end_of_line,
            // An apostrophe inside a word is no quote.
            '"' | '\'' if next == '"' || !before.is_alphanumeric() => {
                let triple = if next == '"' { "\"\"\"" } else { "'''" };
                let (content, quote) = if rest.starts_with(triple) {
                    (rest, triple)
                } else {
                    (rest.get(..end_of_line).unwrap_or_default(), &triple[..1])
                };
                string_length(content, quote).unwrap_or_else(|| {
                    unclosed.push(at..at + content.len());
                    content.len()
                })
            }
            _ => next.len_utf8(),
        };
        before = next;
        at += length;
    }
    unclosed
}

/// Returns the length of the string at the start of `text` with its quotes. `None` without a closing one.
fn string_length(text: &str, quote: &str) -> Option<usize> {
    let mut at = quote.len();
    loop {
        let rest = text.get(at..)?;
        match rest.chars().next()? {
            _ if rest.starts_with(quote) => return Some(at + quote.len()),
            // A backslash escapes only in strings with double quotes.
            '\\' if quote.starts_with('"') => at += 1 + rest.chars().nth(1)?.len_utf8(),
            other => at += other.len_utf8(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unclosed_strings_are_found_and_others_are_not() {
        for text in [
            "a = \"b\" # don't \"\n",
            "a = 'b\"' # '\nc = \"d'\"\n",
            "a = \"\\\"\"\nb = '\\'\n",
            "a = \"\"\"b\n\"c\n\"\"\"\nd = '''e\n'f\n'''\n",
            "a = \"\"\nb = ''\n",
            "a = don't\n",
        ] {
            assert!(unclosed_strings(text).is_empty(), "{text}");
        }
        for (text, start) in [
            ("a = \"b\n", 4),
            ("a = ['b]\n", 5),
            ("a = \"b\\\"\nc = \"d\"\n", 4),
            ("a = \"b\\", 4),
            ("a = \"ä", 4),
            ("a = \"\"\"b\n\"\"\n", 4),
            ("a = [\"b, \"c\"]\n", 11),
        ] {
            let starts: Vec<usize> = unclosed_strings(text).iter().map(|string| string.start).collect();
            assert_eq!(starts, [start], "{text}");
        }
    }
}

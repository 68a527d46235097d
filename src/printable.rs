//! Text from the network for terminals and the log.

use std::fmt::{self, Write as _};

/// The characters of the Unicode categories Cf (format), Zl and Zp (separators of lines and paragraphs), and others with
/// the property `Default_Ignorable_Code_Point`. They reorder, split or hide text.
const INVISIBLE: &[(char, char)] = &[
    ('\u{ad}', '\u{ad}'),
    ('\u{34f}', '\u{34f}'),
    ('\u{600}', '\u{605}'),
    ('\u{61c}', '\u{61c}'),
    ('\u{6dd}', '\u{6dd}'),
    ('\u{70f}', '\u{70f}'),
    ('\u{890}', '\u{891}'),
    ('\u{8e2}', '\u{8e2}'),
    ('\u{115f}', '\u{1160}'),
    ('\u{17b4}', '\u{17b5}'),
    ('\u{180b}', '\u{180f}'),
    ('\u{200b}', '\u{200f}'),
    ('\u{2028}', '\u{202e}'),
    ('\u{2060}', '\u{206f}'),
    ('\u{3164}', '\u{3164}'),
    ('\u{fe00}', '\u{fe0f}'),
    ('\u{feff}', '\u{feff}'),
    ('\u{ffa0}', '\u{ffa0}'),
    ('\u{fff0}', '\u{fffb}'),
    ('\u{110bd}', '\u{110bd}'),
    ('\u{110cd}', '\u{110cd}'),
    ('\u{13430}', '\u{1343f}'),
    ('\u{1bca0}', '\u{1bca3}'),
    ('\u{1d173}', '\u{1d17a}'),
    ('\u{e0000}', '\u{e0fff}'),
];

/// The most characters of a text that [`shown`] returns.
const MAX_SHOWN: usize = 500;

/// Returns a text for the log or an error, on one line, with spaces in place of what may not be shown. A long one is cut
/// off.
#[must_use]
pub fn shown(from: &str) -> String {
    let mut text: String = from.chars().take(MAX_SHOWN).map(|c| if is_printable(c) { c } else { ' ' }).collect();
    if from.chars().nth(MAX_SHOWN).is_some() {
        text.push('…');
    }
    text
}

/// Returns whether a character may be shown: it controls nothing, and it is visible or a space.
#[must_use]
pub fn is_printable(c: char) -> bool {
    !c.is_control() && !INVISIBLE.iter().any(|(first, last)| (*first..=*last).contains(&c))
}

/// Text whose characters that are not printable are escaped as in Rust, for example `\n` and `\u{202e}`.
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'t>(pub &'t str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| if is_printable(c) { f.write_char(c) } else { c.escape_default().fmt(f) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_control_reorder_or_hide_text_are_escaped() {
        let escaped = |text: &str| Escaped(text).to_string();
        assert_eq!(escaped("a\nb\u{1b}[2J\u{9b}"), "a\\nb\\u{1b}[2J\\u{9b}");
        for c in ['\u{202e}', '\u{2066}', '\u{200b}', '\u{200d}', '\u{2028}', '\u{2029}', '\u{feff}', '\u{e0041}'] {
            assert_eq!(escaped(&format!("a{c}b")), format!("a\\u{{{:x}}}b", u32::from(c)));
        }
    }

    #[test]
    fn names_of_all_scripts_are_readable() {
        for name in ["1700000000:alice", "Zoë", "Zoe\u{308}", "محمد", "नमस्ते", "山田 太郎", "😀", "a\u{a0}b"]
        {
            assert_eq!(Escaped(name).to_string(), name);
        }
    }
}

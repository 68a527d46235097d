//! Errors and warnings of a configuration, with their positions.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// An error or a warning, with its position.
///
/// Its [`Display`](fmt::Display) form is one line, `FILE:LINE:COLUMN: MESSAGE`. It quotes neither the source line nor
/// values of keys with secrets, because configuration errors end up in logs and bug reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file as the user named it.
    pub file: String,
    /// Line and column, starting at 1; the column counts characters. `None` for the whole file.
    pub position: Option<(usize, usize)>,
    /// The reason and the advice.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.position {
            Some((line, column)) => write!(f, "{}:{line}:{column}: {}", self.file, self.message),
            None => write!(f, "{}: {}", self.file, self.message),
        }
    }
}

/// All errors of a configuration, in the order of the file. Never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(Vec<Problem>);

impl ConfigErrors {
    /// `file` is the configuration, whose errors are first.
    pub(super) fn new(file: &str, mut problems: Vec<Problem>) -> Self {
        let place = |problem: &Problem| (problem.file != file, problem.file.clone(), problem.position);
        problems.sort_by_cached_key(place);
        Self(problems)
    }

    /// Returns the errors in the order of the file.
    pub fn problems(&self) -> &[Problem] {
        &self.0
    }
}

/// Writes one line per error.
impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

/// Collects the errors and warnings of a text, and converts byte ranges to positions.
pub(super) struct Report<'t> {
    file: &'t str,
    text: &'t str,
    /// The directory of the file, where relative paths start. `file` may be a lossy form of a path that is not UTF-8.
    pub(super) directory: PathBuf,
    /// Whether the file is world-readable.
    pub(super) world_readable: bool,
    /// The tables whose valid keys a message has listed.
    listed: Vec<&'static str>,
    pub(super) errors: Vec<Problem>,
    pub(super) warnings: Vec<Problem>,
}

impl<'t> Report<'t> {
    pub(super) fn new(file: &'t str, text: &'t str) -> Self {
        Self {
            file,
            text,
            directory: Path::new(file).parent().unwrap_or(Path::new("")).to_owned(),
            world_readable: false,
            listed: Vec::new(),
            errors: Vec::new(),
            warnings: Vec::new(),
        }
    }

    pub(super) fn file(&self) -> &'t str {
        self.file
    }

    pub(super) fn text(&self) -> &'t str {
        self.text
    }

    pub(super) fn error(&mut self, span: &Range<usize>, message: impl Into<String>) {
        let problem = self.problem(span, message.into());
        self.errors.push(problem);
    }

    pub(super) fn warn(&mut self, span: &Range<usize>, message: impl Into<String>) {
        let problem = self.problem(span, message.into());
        self.warnings.push(problem);
    }

    /// Appends the errors and warnings of another file.
    pub(super) fn append(&mut self, other: Report<'_>) {
        self.errors.extend(other.errors);
        self.warnings.extend(other.warnings);
    }

    /// Returns whether this is the first call for a table. Only one message per table lists the valid keys.
    pub(super) fn first_without_hint(&mut self, table: &'static str) -> bool {
        let first = !self.listed.contains(&table);
        if first {
            self.listed.push(table);
        }
        first
    }

    /// Returns the line of a byte offset, starting at 1.
    pub(super) fn line_of(&self, offset: usize) -> usize {
        position(self.text, offset).0
    }

    fn problem(&self, span: &Range<usize>, message: String) -> Problem {
        Problem { file: self.file.to_owned(), position: Some(position(self.text, span.start)), message }
    }
}

/// Returns the line and column of a byte offset, both starting at 1.
pub(super) fn position(text: &str, offset: usize) -> (usize, usize) {
    let (mut line, mut column) = (1, 1);
    for (_, character) in text.char_indices().take_while(|(at, _)| *at < offset) {
        match character {
            '\n' => (line, column) = (line + 1, 1),
            // Editors do not count a byte order mark as a column.
            '\u{feff}' => {}
            _ => column += 1,
        }
    }
    (line, column)
}

/// Formats a value for a message: in backticks, on one line, truncated if long.
pub(crate) fn quoted(value: &str) -> String {
    const MAX_LENGTH: usize = 80;
    let escaped = value.escape_debug().to_string().replace("\\\"", "\"").replace("\\'", "'");
    if escaped.chars().count() > MAX_LENGTH {
        let short: String = escaped.chars().take(MAX_LENGTH).collect();
        format!("`{short}…`")
    } else {
        format!("`{escaped}`")
    }
}

/// Returns the candidate of which `word` is probably a misspelling.
pub(super) fn closest<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let word = word.to_lowercase().replace('_', "-");
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.len() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

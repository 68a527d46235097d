//! Access to the parsed file. Invalid values are reported and skipped, so that all errors are found in one pass.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::coturn;
use super::problem::{Report, closest, quoted};
use super::schema::{self, TableKeys};

/// A table of the file and its valid keys.
pub(super) struct Section<'t> {
    keys: &'static TableKeys,
    table: &'t DeTable<'t>,
}

impl<'t> Section<'t> {
    /// Wraps a table and reports its unknown keys.
    pub(super) fn new(keys: &'static TableKeys, table: &'t DeTable<'t>, report: &mut Report<'_>) -> Self {
        let mut unknown: Vec<_> = table.keys().filter(|key| !keys.keys.contains(&&**key.get_ref())).collect();
        unknown.sort_by_key(|key| key.span().start);
        for key in unknown {
            let mut message = format!("unknown key {} in {}", quoted(key.get_ref()), keys.name());
            if let Some(hint) = hint(key.get_ref(), keys) {
                message += &format!("; {hint}");
            } else if report.first_without_hint(keys.path) {
                message += &format!("; valid keys are {}", list(keys.keys));
            }
            report.error(&key.span(), message);
        }
        Self { keys, table }
    }

    /// Wraps a table whose keys have been checked.
    pub(super) fn known(keys: &'static TableKeys, table: &'t DeTable<'t>) -> Self {
        Self { keys, table }
    }

    /// Returns the dotted name of a key, in backticks.
    pub(super) fn name(&self, key: &str) -> String {
        if self.keys.path.is_empty() { format!("`{key}`") } else { format!("`{}.{key}`", self.keys.path) }
    }

    pub(super) fn value(&self, key: &str) -> Option<&'t Spanned<DeValue<'t>>> {
        debug_assert!(self.keys.keys.contains(&key), "{key} is missing from the schema");
        self.table.get(key)
    }

    /// Returns the span of a value; the start of the file if the key is missing.
    pub(super) fn span(&self, key: &str) -> Range<usize> {
        self.value(key).map(Spanned::span).unwrap_or_default()
    }

    pub(super) fn section(&self, key: &str, keys: &'static TableKeys, report: &mut Report<'_>) -> Option<Section<'t>> {
        let table = self.table(key, report)?;
        Some(Section::new(keys, table.get_ref(), report))
    }

    pub(super) fn table(&self, key: &str, report: &mut Report<'_>) -> Option<Spanned<&'t DeTable<'t>>> {
        let value = self.value(key)?;
        match value.get_ref() {
            DeValue::Table(table) => Some(Spanned::new(value.span(), table)),
            other => {
                self.mismatch(key, value.span(), "a table", other, report);
                None
            }
        }
    }

    /// Returns the tables of `[[path.key]]`.
    pub(super) fn tables(&self, key: &str, report: &mut Report<'_>) -> Vec<Spanned<&'t DeTable<'t>>> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let DeValue::Array(elements) = value.get_ref() else {
            report.error(
                &value.span(),
                format!(
                    "{} must be a list of tables: write each one as `[[{}]]`",
                    self.name(key),
                    self.name(key).trim_matches('`')
                ),
            );
            return Vec::new();
        };
        let mut tables = Vec::new();
        for element in elements.iter() {
            match element.get_ref() {
                DeValue::Table(table) => tables.push(Spanned::new(element.span(), table)),
                other => self.mismatch(key, element.span(), "a list of tables", other, report),
            }
        }
        tables
    }

    pub(super) fn string(&self, key: &str, report: &mut Report<'_>) -> Option<Spanned<&'t str>> {
        let value = self.value(key)?;
        match value.get_ref() {
            DeValue::String(text) => Some(Spanned::new(value.span(), &**text)),
            other => {
                self.mismatch(key, value.span(), "a string", other, report);
                None
            }
        }
    }

    /// Reads a list of strings; elements of another type are reported and skipped.
    pub(super) fn strings(&self, key: &str, report: &mut Report<'_>) -> Option<Vec<Spanned<&'t str>>> {
        let value = self.value(key)?;
        let elements = match value.get_ref() {
            DeValue::Array(elements) => elements,
            DeValue::String(_) => {
                report.error(
                    &value.span(),
                    format!("{} must be a list: put the value in brackets, [\"…\"]", self.name(key)),
                );
                return None;
            }
            other => {
                self.mismatch(key, value.span(), "a list of strings", other, report);
                return None;
            }
        };
        let mut strings = Vec::new();
        for element in elements.iter() {
            match element.get_ref() {
                DeValue::String(text) => strings.push(Spanned::new(element.span(), &**text)),
                other => self.mismatch(key, element.span(), "a list of strings", other, report),
            }
        }
        Some(strings)
    }

    pub(super) fn boolean(&self, key: &str, report: &mut Report<'_>) -> Option<bool> {
        let value = self.value(key)?;
        match value.get_ref() {
            DeValue::Boolean(value) => Some(*value),
            other => {
                self.mismatch(key, value.span(), "true or false", other, report);
                None
            }
        }
    }

    /// Reads a whole number within `range`.
    pub(super) fn number<N>(&self, key: &str, range: std::ops::RangeInclusive<N>, report: &mut Report<'_>) -> Option<N>
    where
        N: TryFrom<i128> + PartialOrd + std::fmt::Display,
    {
        let value = self.value(key)?;
        let number = match value.get_ref() {
            DeValue::Integer(integer) => i128::from_str_radix(integer.as_str(), integer.radix()).ok(),
            other => {
                self.mismatch(key, value.span(), "a whole number", other, report);
                return None;
            }
        };
        let number = number.and_then(|number| N::try_from(number).ok()).filter(|number| range.contains(number));
        if number.is_none() {
            report.error(
                &value.span(),
                format!("{} must be between {} and {}", self.name(key), range.start(), range.end()),
            );
        }
        number
    }

    /// Reports a value of the wrong type, without the value: it may be a secret.
    pub(super) fn mismatch(
        &self,
        key: &str,
        span: Range<usize>,
        expected: &str,
        found: &DeValue<'_>,
        report: &mut Report<'_>,
    ) {
        let found = match found {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "a whole number",
            DeValue::Float(_) => "a decimal number",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date or time",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        report.error(&span, format!("{} must be {expected}, not {found}", self.name(key)));
    }
}

/// Returns the key that was probably meant by an unknown one.
fn hint(key: &str, keys: &TableKeys) -> Option<String> {
    if let Some(candidate) = closest(key, keys.keys.iter().copied()) {
        return Some(format!("did you mean `{candidate}`?"));
    }
    if let Some(home) = schema::ALL.iter().find(|table| table.keys.contains(&key)) {
        return Some(match home.path {
            "" => "it belongs at the top of the file, before the first `[section]`".to_owned(),
            _ => format!("it belongs in {}", home.name()),
        });
    }
    coturn::hint(key)
}

/// Formats words as `a`, `b` and `c`.
pub(super) fn list(words: &[&str]) -> String {
    let words: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    match words.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
        None => String::new(),
    }
}

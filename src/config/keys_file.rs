//! `http.keys-file`: a file with further `[[http.keys]]`. No message contains a key or its hash.

use std::io;
use std::path::Path;

use toml::de::DeTable;

use super::problem::{Report, quoted};
use super::reader::Section;
use super::{HttpKey, credentials, http_keys, paths, schema, syntax};
use crate::file;

/// Appends the keys of the file.
pub(super) fn append(section: &Section<'_>, keys: &mut Vec<HttpKey>, report: &mut Report<'_>) {
    let Some(name) = section.string("keys-file", report) else { return };
    let (span, name) = (name.span(), *name.get_ref());
    if name.is_empty() {
        return report.error(&span, "`http.keys-file` is empty: omit it if there is no such file");
    }
    let path = match paths::resolve(&report.directory, name) {
        Ok(path) => path,
        Err(why) => return report.error(&span, format!("`http.keys-file`: {why}")),
    };
    let shown = path.display().to_string();
    let (quoted, origin) = (quoted(&shown), paths::origin(name));
    let text = match read(&path) {
        Ok(text) => text,
        Err(error) => {
            let why = credentials::read_failure(&error);
            return report.error(&span, format!("`http.keys-file`: {quoted}{origin} cannot be read: {why}"));
        }
    };
    if credentials::readable_by_others(&path) {
        report.warn(&span, format!("`http.keys-file`: {quoted} is world-readable: run `chmod 640 {shown}`"));
    }
    let before = keys.len();
    let mut of_file = Report::new(&shown, &text);
    parse(keys, &mut of_file);
    // A file whose last key was removed must be valid, because otherwise that key would stay valid.
    if keys.len() == before && of_file.errors.is_empty() {
        let message = format!(
            "`http.keys-file`: {quoted}{origin} contains no key: `turn-credential key` makes a key and prints its block"
        );
        report.warn(&span, message);
    }
    report.append(of_file);
}

fn read(path: &Path) -> io::Result<String> {
    let mut bytes = file::read(path)?;
    String::from_utf8(std::mem::take(&mut bytes)).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Appends the keys of the text of a report.
fn parse(keys: &mut Vec<HttpKey>, report: &mut Report<'_>) {
    let (document, errors) = DeTable::parse_recoverable(report.text());
    if !errors.is_empty() {
        return syntax::report_errors(&errors, report);
    }
    refuse_others(document.get_ref(), "", &["http"], report);
    if let Some(http) = Section::known(&schema::TOP, document.get_ref()).table("http", report) {
        refuse_others(http.get_ref(), "http.", &["keys"], report);
        http_keys::append(&Section::known(&schema::HTTP, http.get_ref()), keys, report);
    }
}

/// Reports the keys of a table that belong into the configuration.
fn refuse_others(table: &DeTable<'_>, path: &str, allowed: &[&str], report: &mut Report<'_>) {
    for key in table.keys().filter(|key| !allowed.contains(&&**key.get_ref())) {
        let name = quoted(&format!("{path}{}", key.get_ref()));
        report.error(
            &key.span(),
            format!(
                "{name} is not allowed in this file, which contains only `[[http.keys]]` blocks, as `turn-credential \
                 key` prints them"
            ),
        );
    }
}

//! Reads a file of coturn as coturn does.

use super::Verdict;
use super::given::Given;
use super::options;

/// The byte order mark of UTF-8, which editors on Windows write.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Returns the options of a file, in their order. Places have its name if there is one.
pub(super) fn read(name: Option<&str>, bytes: &[u8]) -> Vec<Given> {
    let bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
    let lines = bytes.split(|byte| *byte == b'\n').zip(1..);
    lines
        .filter_map(|(bytes, number)| {
            let bytes = bytes.trim_ascii();
            if bytes.is_empty() || bytes.starts_with(b"#") {
                return None;
            }
            let place = match name {
                Some(name) => format!("{name}:{number}"),
                None => format!("line {number}"),
            };
            Some(line(place, bytes))
        })
        .collect()
}

fn line(place: String, bytes: &[u8]) -> Given {
    let Ok(text) = str::from_utf8(bytes) else {
        let text = "it is not UTF-8 text: convert the file, for example with `iconv -f latin1 -t utf8`";
        let name = bytes.split(|byte| b" =\t".contains(byte)).next().and_then(|name| str::from_utf8(name).ok());
        let Some(option) = name.and_then(options::find) else {
            return Given::other(place, "…", Verdict::Cannot, text.to_owned());
        };
        let mut given = Given::new(place, option, "");
        given.decide(Verdict::Cannot, text);
        return given;
    };
    let (name, value) = split(text);
    match options::find(name) {
        Some(option) => Given::new(place, option, value),
        None if name.starts_with('-') => {
            let text = "coturn ignores it, because options in its file have no `-` at their start: remove the `-`, or \
                        pass the options with --arguments";
            Given::other(place, "…", Verdict::Cannot, text.to_owned())
        }
        None => Given::unknown(place, name, !value.is_empty()),
    }
}

/// Splits a line at its first separator. Further separators are not part of the value.
fn split(line: &str) -> (&str, &str) {
    const SEPARATORS: [char; 3] = [' ', '=', '\t'];
    let (name, value) = line.split_once(SEPARATORS).unwrap_or((line, ""));
    let value = value.trim_start_matches(SEPARATORS);
    match value.strip_prefix('"') {
        Some(quoted) => (name, quoted.strip_suffix('"').unwrap_or(quoted)),
        None => (name, value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_split_as_coturn_splits_it() {
        for (line, expected) in [
            ("realm=example.org", ("realm", "example.org")),
            ("realm example.org", ("realm", "example.org")),
            ("realm\t = \texample.org", ("realm", "example.org")),
            ("fingerprint", ("fingerprint", "")),
            ("static-auth-secret==a=b c#d", ("static-auth-secret", "a=b c#d")),
            ("cli-password=\"a b\"", ("cli-password", "a b")),
            ("realm='a'", ("realm", "'a'")),
            ("realm=\"a", ("realm", "a")),
        ] {
            assert_eq!(split(line), expected, "{line}");
        }
    }

    #[test]
    fn line_ends_byte_order_marks_and_other_encodings_are_read() {
        let bytes = b"\xef\xbb\xbfrealm=a\r\n# caf\xe9\r\n\r\n  fingerprint\t\r\nuser=caf\xe9:x\ncaf\xe9\n-v\n";
        let given = read(None, bytes);
        let entries: Vec<_> = given.into_iter().map(|given| (given.place.clone(), given.into_entry().shown)).collect();
        let expected =
            [("line 1", "realm=a"), ("line 4", "fingerprint"), ("line 5", "user"), ("line 6", "…"), ("line 7", "…")];
        assert_eq!(entries, expected.map(|(place, shown)| (place.to_owned(), shown.to_owned())));
    }
}

//! Reads the arguments of coturn as a shell and `getopt_long` do.

use std::path::Path;

use super::given::{ARGUMENT, Given};
use super::options::{self, Argument, CoturnOption};
use super::{Source, Verdict};

/// Returns the options of a command line, in their order. The files among `sources` are read, too.
pub(super) fn read(text: &str, sources: &[Source<'_>]) -> Vec<Given> {
    let Some(words) = words(text) else {
        let text = "a quotation mark is not closed: pass the arguments as the shell would get them";
        return vec![Given::other("arguments".to_owned(), "…", Verdict::Cannot, text.to_owned())];
    };
    // The program itself is not an argument.
    let is_program = |word: &String| !word.starts_with('-') && word.contains("turnserver") && !word.contains('=');
    let has_program = words.first().is_some_and(is_program);
    let mut words = words.iter().map(String::as_str).skip(usize::from(has_program)).zip(1..);
    let mut given = Vec::new();
    while let Some((word, number)) = words.next() {
        let mut next = || words.next().map(|(word, _)| word);
        let place = format!("{ARGUMENT}{number}");
        if let Some(long) = word.strip_prefix("--").filter(|long| !long.is_empty()) {
            given.push(long_option(place, long, &mut next));
        } else if let Some(letters) = word.strip_prefix('-').filter(|letters| !letters.is_empty()) {
            short_options(&place, letters, &mut next, sources, &mut given);
        } else {
            given.push(no_option(place, word));
        }
    }
    given
}

/// Returns the verdict on a word that is no option and no value. It may be a secret.
fn no_option(place: String, word: &str) -> Given {
    let name = word.split_once('=').map_or(word, |(name, _)| name);
    let (shown, advice) = match options::find(name) {
        Some(option) => (option.name, format!("write `--{}` if it should be one", option.name)),
        None => ("…", "the value of an option that can stand alone follows `=`".to_owned()),
    };
    let text = format!("it is not an option, because it does not start with `-`, and coturn ignores it; {advice}");
    Given::other(place, shown, Verdict::Cannot, text)
}

fn long_option<'w>(place: String, text: &str, next: &mut dyn FnMut() -> Option<&'w str>) -> Given {
    let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
    let Some(option) = options::find(name).or_else(|| only(options::abbreviated(name))) else {
        return Given::unknown(place, name, value.is_some());
    };
    match (value, option.argument) {
        (Some(value), _) => Given::new(place, option, value),
        (None, Argument::Required) => with_value(place, option, next()),
        (None, _) => Given::new(place, option, ""),
    }
}

fn only(mut options: impl Iterator<Item = &'static CoturnOption>) -> Option<&'static CoturnOption> {
    let first = options.next()?;
    options.next().is_none().then_some(first)
}

/// Reads the letters after one `-`. A value follows in the same word or in the next one.
fn short_options<'w>(
    place: &str,
    letters: &str,
    next: &mut dyn FnMut() -> Option<&'w str>,
    sources: &[Source<'_>],
    given: &mut Vec<Given>,
) {
    let mut rest = letters.chars();
    while let Some(letter) = rest.next() {
        let value = |next: &mut dyn FnMut() -> Option<&'w str>| match rest.as_str() {
            "" => next().map(str::to_owned),
            value => Some(value.to_owned()),
        };
        match options::find_short(letter) {
            Some(option) if option.argument == Argument::Required => {
                given.push(with_value(place.to_owned(), option, value(next).as_deref()));
                return;
            }
            Some(option) => given.push(Given::new(place.to_owned(), option, "")),
            None if letter == 'n' => {
                let text = "it only says that coturn reads no file";
                given.push(Given::other(place.to_owned(), "-n", Verdict::Dropped, text.to_owned()));
            }
            None if letter == 'c' => {
                let file = value(next).unwrap_or_default();
                let is_same = |name: &str| Path::new(name) == Path::new(&file);
                let is_read = sources.iter().any(|source| matches!(source, Source::File(name, _) if is_same(name)));
                let (verdict, text) = if is_read {
                    (Verdict::Dropped, "it names coturn's file, which is read here, too")
                } else {
                    (Verdict::Cannot, "it names coturn's file, which is not read: name it as FILE, before --arguments")
                };
                given.push(Given::other(place.to_owned(), &format!("-c {file}"), verdict, text.to_owned()));
                return;
            }
            None => {
                // The rest may be a value.
                given.push(Given::unknown(place.to_owned(), &format!("-{letter}"), true));
                return;
            }
        }
    }
}

fn with_value(place: String, option: &'static CoturnOption, value: Option<&str>) -> Given {
    let mut given = Given::new(place, option, value.unwrap_or_default());
    if value.is_none() {
        given.decide(Verdict::Cannot, "its value is missing, so coturn does not start");
    }
    given
}

/// Splits a text into words as a shell does, without expanding variables. `None` if a quotation is not closed.
fn words(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match c {
            // The end of a line continues a command, because people paste commands of several lines.
            '\\' => match characters.next()? {
                '\n' => {}
                escaped => word.get_or_insert_default().push(escaped),
            },
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match characters.next()? {
                        '\'' => break,
                        c => word.push(c),
                    }
                }
            }
            '"' => quoted(&mut characters, word.get_or_insert_default())?,
            c if c.is_whitespace() => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Some(words)
}

/// Reads the rest of a quotation with `"`.
fn quoted(characters: &mut std::str::Chars<'_>, word: &mut String) -> Option<()> {
    loop {
        match characters.next()? {
            '"' => return Some(()),
            '\\' => match characters.next()? {
                '\n' => {}
                c if "\"\\$`".contains(c) => word.push(c),
                c => word.extend(['\\', c]),
            },
            c => word.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_as_in_a_shell() {
        let text = "turnserver -a  --user 'a b:c\"d' --realm=\"x \\\" \\n\" \\\n e\\ f ''";
        let expected = ["turnserver", "-a", "--user", "a b:c\"d", "--realm=x \" \\n", "e f", ""];
        assert_eq!(words(text).unwrap(), expected);
        for open in ["'a", "\"a", "a\\"] {
            assert_eq!(words(open), None, "{open}");
        }
    }

    fn shown(text: &str) -> Vec<(String, String, bool)> {
        let describe = |given: Given| {
            let decided = given.outcome.is_some();
            let entry = given.into_entry();
            (entry.place, entry.shown, decided)
        };
        read(text, &[]).into_iter().map(describe).collect()
    }

    #[test]
    fn long_and_short_options_are_read_as_getopt_reads_them() {
        let text =
            "/usr/bin/turnserver -avf -p 3479 -L10.0.0.5 --realm example.org --stale-nonce=600 --total=5 -u ann:pw";
        let expected = [
            (1, "lt-cred-mech"),
            (1, "verbose"),
            (1, "fingerprint"),
            (2, "listening-port=3479"),
            (4, "listening-ip=10.0.0.5"),
            (5, "realm=example.org"),
            (7, "stale-nonce=600"),
            (8, "total-quota=5"),
            (9, "user=ann:…"),
        ];
        assert_eq!(shown(text), expected.map(|(at, shown)| (format!("argument {at}"), shown.to_owned(), false)));
    }

    #[test]
    fn what_is_no_option_is_reported_without_its_text() {
        let text = "-n -c /etc/turnserver.conf --stale-nonce 600 --realms x --static-auth-secrt=n33dle -w pw --realm";
        let entries = shown(text);
        let shown: Vec<&str> = entries.iter().map(|(_, shown, _)| shown.as_str()).collect();
        let expected = [
            "-n",
            "-c /etc/turnserver.conf",
            "stale-nonce",
            "…",
            "realms",
            "…",
            "static-auth-secrt",
            "-w",
            "…",
            "realm",
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn only_the_name_of_the_program_is_skipped() {
        for (text, expected) in [
            ("turnserver -v", &["verbose"][..]),
            ("/opt/coturn/bin/turnserver -v", &["verbose"]),
            ("static-auth-secret=n33dle --realm=a", &["static-auth-secret", "realm=a"]),
            ("n33dle turnserver", &["…", "…"]),
            ("realm=turnserver", &["realm"]),
        ] {
            let shown: Vec<String> = shown(text).into_iter().map(|(_, shown, _)| shown).collect();
            assert_eq!(shown, expected, "{text}");
        }
        let given = read("static-auth-secret=n33dle", &[]).remove(0).into_entry();
        assert!(given.verdict == Verdict::Cannot && given.text.contains("write `--static-auth-secret`"), "{given:?}");
    }

    #[test]
    fn a_file_that_is_read_need_not_be_named_again() {
        let verdict = |sources: &[Source<'_>]| read("-c /etc/a.conf -v", sources).remove(0).into_entry().verdict;
        assert_eq!(verdict(&[Source::File("/etc/a.conf", b"")]), Verdict::Dropped);
        assert_eq!(verdict(&[Source::File("/etc/b.conf", b"")]), Verdict::Cannot);
    }
}

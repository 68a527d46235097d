//! Checks docs/rfc-coverage.md and docs/threat-model.md against the code: the files, tests and configuration keys that
//! they name exist. Every row names a test, gives a reason why it has none, or marks its requirement as missing.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::tokens::{Token, starts_with, tokens};

/// Marks a requirement that is not met.
const MISSING: &str = "**missing**";

/// Separates the tests of a row from a remark.
const REMARK: &str = " — ";

/// A table row with the columns section (or attack), requirement (or defence), where, tests.
struct Row<'d> {
    line: usize,
    cells: [&'d str; 4],
}

/// The facts against which the documents are checked.
struct Project {
    exists: fn(&str) -> bool,
    /// Returns the names of the tests in a file.
    tests: fn(&str) -> BTreeSet<String>,
    /// Configuration keys as `section.key`.
    keys: BTreeSet<String>,
}

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path))
        .unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn rows(document: &str) -> Result<Vec<Row<'_>>, String> {
    let lines: Vec<&str> = document.lines().collect();
    let is_rule = |at: usize| lines.get(at).is_some_and(|line| line.starts_with("|---"));
    let numbered = lines.iter().enumerate().filter(|(_, line)| line.starts_with('|'));
    let rows = numbered.filter(|(at, _)| !is_rule(*at) && !is_rule(*at + 1));
    rows.map(|(at, line)| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let cells = cells.try_into().map_err(|_| format!("{}: a row has four cells", at + 1))?;
        Ok(Row { line: at + 1, cells })
    })
    .collect()
}

/// Returns the texts between backticks.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

fn list(texts: &[&str]) -> String {
    texts.iter().map(|text| format!("`{text}`")).collect::<Vec<_>>().join(", ")
}

impl Row<'_> {
    /// Checks the row. The error is the reason why it is wrong.
    fn check(&self, project: &Project) -> Result<(), String> {
        let [topic, requirement, places, evidence] = self.cells;
        if topic.is_empty() || requirement.is_empty() {
            return Err("an empty cell".to_owned());
        }
        for key in self.cells.iter().flat_map(|cell| quoted(cell)).filter(|text| is_key(text)) {
            if !project.keys.contains(key) {
                return Err(format!("no configuration key: {key}"));
            }
        }
        let tested = evidence.starts_with('`');
        if places != "—" {
            let paths = quoted(places);
            if paths.is_empty() || places != list(&paths) {
                return Err(format!("not a list of paths: {places}"));
            }
            if let Some(path) = paths.iter().find(|path| !(project.exists)(path)) {
                return Err(format!("no such path: {path}"));
            }
        } else if tested {
            return Err("tests without an implementation".to_owned());
        }
        if tested {
            let (tests, remark) = evidence.split_once(REMARK).unwrap_or((evidence, ""));
            if let Some(file) = quoted(remark).iter().find(|text| text.ends_with(".rs")) {
                return Err(format!("a file in the remark, where its tests are not checked: {file}"));
            }
            tests.split("; ").try_for_each(|group| check_tests(group, project))
        } else if evidence == MISSING || evidence.split_whitespace().count() > 3 {
            Ok(())
        } else {
            Err(format!("neither a test nor a reason: {evidence}"))
        }
    }
}

/// Returns whether a quoted text has the form of a configuration key with its section.
fn is_key(text: &str) -> bool {
    text.contains('.')
        && !text.contains('/')
        && text.chars().all(|c| c.is_ascii_lowercase() || "0123456789.-".contains(c))
}

/// Checks a file and its tests: `` `src/x.rs`: `one_test`, `another_test` ``.
fn check_tests(group: &str, project: &Project) -> Result<(), String> {
    let quoted = quoted(group);
    let [file, tests @ ..] = quoted.as_slice() else { return Err(format!("no file: {group}")) };
    if tests.is_empty() || group != format!("`{file}`: {}", list(tests)) {
        return Err(format!("not a file and its tests: {group}"));
    }
    if !(project.exists)(file) {
        return Err(format!("no such file: {file}"));
    }
    let known = (project.tests)(file);
    match tests.iter().find(|name| !known.contains(**name)) {
        Some(name) => Err(format!("no such test in {file}: {name}")),
        None => Ok(()),
    }
}

/// Returns the functions of a file with the attribute `test`, or with one that ends in `test`, such as `tokio::test`, and
/// the tests that `on_each_site!` makes.
fn test_names(source: &str) -> BTreeSet<String> {
    let tokens = tokens(source);
    let (mut names, mut is_test) = (BTreeSet::new(), false);
    for at in 0..tokens.len() {
        let rest = &tokens[at..];
        if starts_with(rest, &["on_each_site", "!", "{"]) {
            names.extend(tests_on_each_site(&rest[2..]));
        } else if starts_with(rest, &["#", "["]) {
            let path = rest[2..].iter().take_while(|token| token.is_word() || token.is("::"));
            is_test |= path.last().is_some_and(|word| word.is("test"));
        } else if rest[0].is("fn") && is_test {
            names.extend(rest.get(1).map(|name| name.text.clone()));
            is_test = false;
        } else if rest[0].is("{") || rest[0].is(";") {
            is_test = false;
        }
    }
    names
}

/// Returns the names in `{ test: case; … }`, of which one follows each brace or semicolon that no other brace contains.
fn tests_on_each_site(tokens: &[Token]) -> Vec<String> {
    let (mut names, mut depth) = (Vec::new(), 0);
    for three in tokens.windows(3) {
        depth += i32::from(three[0].is("{")) - i32::from(three[0].is("}"));
        if depth == 0 {
            break;
        }
        if depth == 1 && (three[0].is("{") || three[0].is(";")) && three[1].is_word() && three[2].is(":") {
            names.push(three[1].text.clone());
        }
    }
    names
}

/// Returns the keys of the shipped configuration as `section.key`, including those in comments.
fn keys(configuration: &str) -> BTreeSet<String> {
    let (mut keys, mut section) = (BTreeSet::new(), String::new());
    for line in configuration.lines().map(|line| line.strip_prefix('#').unwrap_or(line)) {
        if line.starts_with('[') {
            section = line.trim_matches(['[', ']']).to_owned();
        } else if let Some((key, _)) = line.split_once(" = ").filter(|(key, _)| !key.contains(' ')) {
            keys.insert(format!("{section}.{key}"));
        }
    }
    keys
}

fn mistakes(document: &str, project: &Project) -> Vec<String> {
    let rows = rows(document).unwrap();
    let mistakes =
        rows.iter().filter_map(|row| row.check(project).err().map(|why| format!("line {}: {why}", row.line)));
    mistakes.collect()
}

fn this_project() -> Project {
    Project {
        exists: |path| Path::new(env!("CARGO_MANIFEST_DIR")).join(path).exists(),
        tests: |path| test_names(&read(path)),
        keys: keys(&read("turnserver.toml")),
    }
}

#[test]
fn rfc_coverage_names_existing_files_tests_and_keys() {
    let document = read("docs/rfc-coverage.md");
    assert!(rows(&document).unwrap().len() > 100);
    let mistakes = mistakes(&document, &this_project());
    assert!(mistakes.is_empty(), "docs/rfc-coverage.md: {mistakes:#?}");
}

#[test]
fn threat_model_names_existing_files_tests_and_keys() {
    let document = read("docs/threat-model.md");
    assert!(rows(&document).unwrap().len() > 30);
    let mistakes = mistakes(&document, &this_project());
    assert!(mistakes.is_empty(), "docs/threat-model.md: {mistakes:#?}");
}

#[test]
fn wrong_rows_are_found() {
    let project = Project {
        exists: |path| path.starts_with("src/"),
        tests: |_| ["one", "two"].map(str::to_owned).into(),
        keys: ["limits.connections".to_owned()].into(),
    };
    let table = |row: &str| format!("| § | what | where | tests |\n|---|---|---|---|\n{row}\n");
    for good in [
        "| 1 | must | `src/a`, `src/b` | `src/a`: `one`, `two`; `src/b`: `one` |",
        "| 1 | must | `src/a` | `src/a`: `one` — up to `limits.connections` |",
        "| 1 | must | — | no code does this here |",
        "| 1 | must | — | **missing** |",
    ] {
        assert_eq!(mistakes(&table(good), &project), [""; 0], "{good}");
    }
    for bad in [
        "| 1 | must | `src/a` | `src/a`: `three` |",
        "| 1 | must | `src/a` | `lib/a`: `one` |",
        "| 1 | must | `src/a` | `src/a`: one |",
        "| 1 | must | `src/a` | `src/a`, `one` |",
        "| 1 | must | `src/a` | `src/a` |",
        "| 1 | must | `src/a` | `src/a`: `one`, `src/b`: `two` |",
        "| 1 | must | `lib/a` | `src/a`: `one` |",
        "| 1 | must | src/a | `src/a`: `one` |",
        "| 1 | must | — | `src/a`: `one` |",
        "| 1 | must | — | — |",
        "| 1 | must | — |  |",
        "| 1 |  | — | no code does this here |",
        "| 1 | up to `limits.conections` | — | no code does this here |",
    ] {
        assert_eq!(mistakes(&table(bad), &project).len(), 1, "{bad}");
    }
    assert!(rows(&table("| 1 | must | no code does this here |")).is_err());
}

#[test]
fn tests_are_found_by_their_attribute() {
    let source = "#[test] fn a() { fn not() {} } #[cfg(test)] mod m { fn nor() {} }\n\
                  #[tokio::test(flavor = \"x\")] async fn b() {}\n\
                  // #[test]\nfn nor_this() {}\n\
                  proptest! { #![config(x)] #[test] fn c(x in 0..9) { } }\n\
                  #[test] #[cfg(unix)] fn d() {}\n\
                  on_each_site! { e: one; // RFC\n f: |site| { let x: u8 = two(site); y: z; }; g: |site| three(site); }\n\
                  struct S { nor: u8 }";
    assert_eq!(test_names(source), ["a", "b", "c", "d", "e", "f", "g"].map(str::to_owned).into());
}

#[test]
fn keys_are_found_in_comments_too() {
    let text = "realm = \"r\"\n[log]\n# level = is explained\nlevel = \"info\"\n#file = \"x\"\n#[[auth.users]]\n#name = \"n\"\n";
    assert_eq!(keys(text), [".realm", "log.level", "log.file", "auth.users.name"].map(str::to_owned).into());
}

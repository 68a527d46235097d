//! Finds the paths in a file and the modules of the crate to which they lead.

use std::collections::BTreeSet;

use crate::tokens::{Token, starts_with, tokens};

/// Returns every path of a file with its enclosing module path. Groups are expanded: `use a::{b, c::d};` has `a::b` and
/// `a::c::d`.
pub(crate) fn paths(file_module: &[String], tokens: &[Token]) -> Vec<(Vec<String>, Vec<String>)> {
    let mut found = Vec::new();
    let mut module = file_module.to_vec();
    // The depth of braces at which each inline module of `module` was opened.
    let mut opened: Vec<usize> = Vec::new();
    let mut depth = 0;
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        match token.text.as_str() {
            "mod" if tokens.get(at + 2).is_some_and(|next| next.is("{")) => {
                module.push(tokens[at + 1].text.clone());
                opened.push(depth);
                at += 1;
            }
            "{" => depth += 1,
            "}" => {
                depth -= 1;
                if opened.last() == Some(&depth) {
                    opened.pop();
                    module.pop();
                }
            }
            _ if token.is_word() => {
                let mut whole = Vec::new();
                at = read_path(tokens, at, &[], &mut whole);
                found.extend(whole.into_iter().map(|path| (module.clone(), path)));
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// Reads the path at `at` and returns the index after it.
fn read_path(tokens: &[Token], mut at: usize, prefix: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let mut path = prefix.to_vec();
    loop {
        match tokens.get(at) {
            Some(token) if token.is("{") => return read_group(tokens, at + 1, &path, found),
            Some(token) if token.is_word() || token.is("*") => path.push(token.text.clone()),
            _ => break,
        }
        at += 1;
        // A renamed module gives access to everything in it.
        if tokens.get(at).is_some_and(|token| token.is("as")) {
            path.push("*".to_owned());
            // A cast to a type that is a path is not a renaming.
            let renamed = !tokens.get(at + 2).is_some_and(|token| token.is("::"));
            at += if renamed { 2 } else { 1 };
            break;
        }
        if !tokens.get(at).is_some_and(|token| token.is("::")) {
            break;
        }
        at += 1;
    }
    found.push(path);
    at
}

fn read_group(tokens: &[Token], mut at: usize, prefix: &[String], found: &mut Vec<Vec<String>>) -> usize {
    while let Some(token) = tokens.get(at) {
        at = match token.text.as_str() {
            "}" => return at + 1,
            _ if token.is_word() || token.is("*") => read_path(tokens, at, prefix, found),
            _ => at + 1,
        };
    }
    at
}

/// Returns the top-level modules that the file of `file_module` uses, except its own. `*` means all.
pub(crate) fn imports(file_module: &[String], tokens: &[Token]) -> BTreeSet<String> {
    let own = file_module.first();
    let target = |(module, path): (Vec<String>, Vec<String>)| {
        let from_root = match path.first()?.as_str() {
            "crate" => path.get(1..)?,
            "super" | "self" => {
                let path: Vec<&String> = path.iter().skip_while(|segment| *segment == "self").collect();
                let levels = path.iter().take_while(|segment| **segment == "super").count();
                // Only a path that reaches the top level leaves the file's own module.
                return (levels > 0 && levels == module.len()).then(|| path.get(levels).copied().cloned()).flatten();
            }
            _ => return None,
        };
        from_root.first().cloned()
    };
    paths(file_module, tokens).into_iter().filter_map(target).filter(|name| Some(name) != own).collect()
}

/// Returns the modules of the library `turnserver` that a file of another crate uses.
pub(crate) fn library_imports(tokens: &[Token]) -> BTreeSet<String> {
    let target = |(_, path): (_, Vec<String>)| (path.first()? == "turnserver").then(|| path.get(1).cloned()).flatten();
    paths(&[], tokens).into_iter().filter_map(target).collect()
}

/// What excludes code from the server: it is for tests, or for tests and the feature `fuzzing`. Tokens have no literals:
/// [`other_test_features`] finds other features.
const TESTS_ONLY: [&[&str]; 2] = [
    &["#", "[", "cfg", "(", "test", ")", "]"],
    &["#", "[", "cfg", "(", "any", "(", "test", ",", "feature", "=", ")", ")", "]"],
];

/// Returns the features other than `fuzzing` for which code is compiled as for tests.
pub(crate) fn other_test_features(source: &str) -> Vec<String> {
    let dense: String = source.split_whitespace().collect();
    let named = dense.split("any(test,feature=\"").skip(1).filter_map(|rest| rest.split('"').next());
    named.filter(|feature| *feature != "fuzzing").map(str::to_owned).collect()
}

/// Removes the items that are compiled for tests only. Also returns the names of those that are module files.
pub(crate) fn without_tests(tokens: &[Token]) -> (Vec<Token>, Vec<String>) {
    let (mut kept, mut test_files) = (Vec::new(), Vec::new());
    let mut rest = tokens;
    while let Some((first, after)) = rest.split_first() {
        if TESTS_ONLY.iter().any(|attribute| starts_with(rest, attribute)) {
            let item = &rest[..item_len(rest)];
            if let Some(at) = item.iter().position(|token| token.is("mod")).filter(|at| item.len() == at + 3) {
                test_files.push(item[at + 1].text.clone());
            }
            rest = &rest[item.len()..];
        } else {
            kept.push(first.clone());
            rest = after;
        }
    }
    (kept, test_files)
}

/// Returns the length of the item, field or variant that starts with an attribute.
fn item_len(tokens: &[Token]) -> usize {
    const ITEMS: [&str; 10] = ["fn", "impl", "mod", "use", "struct", "enum", "trait", "const", "static", "macro_rules"];
    let mut depth = 0_usize;
    let mut is_item = false;
    for (at, token) in tokens.iter().enumerate() {
        is_item |= ITEMS.contains(&token.text.as_str());
        match token.text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" if depth == 0 => return at,
            ")" | "]" => depth -= 1,
            "}" => {
                depth -= 1;
                if depth == 0 && is_item && !tokens.get(at + 1).is_some_and(|next| next.is(";")) {
                    return at + 1;
                }
            }
            ";" if depth == 0 => return at + 1,
            "," if depth == 0 && !is_item => return at + 1,
            _ => {}
        }
    }
    tokens.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn imports_of(file: &str, source: &str) -> Vec<String> {
        let module: Vec<String> = file.split("::").map(str::to_owned).collect();
        imports(&module, &tokens(source)).into_iter().collect()
    }

    #[test]
    fn a_plain_import_is_found() {
        assert_eq!(imports_of("turn", "use crate::net::udp;"), ["net"]);
        assert_eq!(imports_of("turn", "pub(crate) use ::std::io; pub use crate::clock::Clock as Time;"), ["clock"]);
    }

    #[test]
    fn a_path_in_the_middle_of_code_is_found() {
        assert_eq!(imports_of("turn", "fn f() -> u64 { 1 + crate::clock::unix_seconds() }"), ["clock"]);
        assert_eq!(imports_of("turn", "macro_rules! m { () => { $crate::net::f::<u8>() } }"), ["net"]);
    }

    #[test]
    fn groups_are_expanded() {
        let source = "use crate::{auth, net::{udp, interfaces::{self, X}}, stun::*};\nuse crate::worker::{A, B};";
        assert_eq!(imports_of("turn", source), ["auth", "net", "stun", "worker"]);
    }

    #[test]
    fn super_is_an_import_where_it_leaves_the_module() {
        assert_eq!(imports_of("turn", "use super::net::udp;"), ["net"]);
        assert_eq!(imports_of("turn::table", "use super::wheel::Wheel; use super::super::auth::Secret;"), ["auth"]);
        assert_eq!(imports_of("turn::methods::send", "use super::{super::{super::clock, table}, refresh};"), ["clock"]);
        assert_eq!(imports_of("turn::table", "use self::super::super::net;"), ["net"]);
    }

    #[test]
    fn inline_modules_are_a_level_of_their_own() {
        let source = "mod a { mod b { use super::super::super::net; } use super::super::auth; } use super::clock;";
        assert_eq!(imports_of("turn", source), ["auth", "clock", "net"]);
        assert_eq!(imports_of("turn::x", "mod a { fn f() { if true {} } use super::super::table; }"), [""; 0]);
    }

    #[test]
    fn a_module_does_not_import_itself() {
        assert_eq!(imports_of("turn::table", "use crate::turn::wheel; pub(in crate::turn) fn f() {}"), [""; 0]);
    }

    #[test]
    fn imports_of_everything_are_found() {
        assert_eq!(imports_of("turn", "use crate::*;"), ["*"]);
        assert_eq!(imports_of("turn", "use crate as everything;"), ["*"]);
        assert_eq!(imports_of("turn", "use super::*;"), ["*"]);
        assert_eq!(imports_of("turn", "use crate::{self as everything};"), ["self"]);
        assert_eq!(imports_of("turn", "let x = y as crate::net::Number;"), ["net"]);
    }

    #[test]
    fn comments_strings_and_visibility_are_not_imports() {
        let source = r#"// use crate::net;
            /// [`x`](crate::net::x)
            pub(crate) fn f() { g("crate::net::x"); /* super::net */ } pub(super) struct S; use std::net::IpAddr;"#;
        assert_eq!(imports_of("turn", source), [""; 0]);
    }

    #[test]
    fn a_binary_imports_from_the_library() {
        let source = "use turnserver::{auth::Secret, config}; fn f() { ::turnserver::clock::f() } use crate::args;";
        let found: Vec<String> = library_imports(&tokens(source)).into_iter().collect();
        assert_eq!(found, ["auth", "clock", "config"]);
        assert!(library_imports(&tokens("use turnserver as t;")).contains("*"));
    }

    #[test]
    fn only_the_feature_of_the_fuzz_targets_is_like_a_test() {
        let source =
            "#[cfg(any(test, feature = \"fuzzing\"))] mod a; #[cfg(any(\n    test,\n    feature = \"tls\"\n))] mod b;";
        assert_eq!(other_test_features(source), ["tls"]);
    }

    #[test]
    fn test_code_is_removed() {
        let source = "use a; #[cfg(test)] #[path = \"x\"] mod tests; #[cfg(test)] mod inline { fn f() { x(); } }\n\
                      #[cfg(test)] impl S { fn g([u8; 2]) {} } #[cfg(test)] use b::{c, d}; #[cfg(unix)] mod sys;";
        let (kept, files) = without_tests(&tokens(source));
        let kept: Vec<&str> = kept.iter().map(|token| token.text.as_str()).collect();
        assert_eq!(kept, ["use", "a", ";", "#", "[", "cfg", "(", "unix", ")", "]", "mod", "sys", ";"]);
        assert_eq!(files, ["tests"]);
        let (kept, files) = without_tests(&tokens("#[cfg(any(test, feature = \"fuzzing\"))] pub mod fuzzing; use a;"));
        assert_eq!((kept.len(), files), (3, vec!["fuzzing".to_owned()]));
        let (kept, _) = without_tests(&tokens("struct S { a: A, #[cfg(test)] b: B<C>, #[cfg(test)] d: D } fn f() {}"));
        assert_eq!(kept.len(), 14, "{kept:?}");
    }
}

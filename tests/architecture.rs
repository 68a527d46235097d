//! Rules that the compiler does not check: dependencies between modules, the purity of the core, forbidden constructs
//! in the data path. They do not apply to code that is compiled for tests only. Also checks that documents name
//! existing tests, files and configuration keys.

// `cfg(test)` makes clippy treat the helpers in a test binary as test code.
#[cfg(test)]
#[path = "architecture/checks.rs"]
mod checks;
#[cfg(test)]
#[path = "architecture/documents.rs"]
mod documents;
#[cfg(test)]
#[path = "architecture/logs.rs"]
mod logs;
#[cfg(test)]
#[path = "architecture/paths.rs"]
mod paths;
#[cfg(test)]
#[path = "architecture/supply_chain.rs"]
mod supply_chain;
#[cfg(test)]
#[path = "architecture/tokens.rs"]
mod tokens;

#[cfg(test)]
mod architecture {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::{Path, PathBuf};

    use crate::paths::{imports, library_imports, other_test_features, paths, without_tests};
    use crate::tokens::{Token, starts_with, tokens};

    /// The modules that each module of the library may use.
    const DEPENDENCIES: &[(&str, &[&str])] = &[
        ("by_source", &[]),
        ("generate", &[]),
        ("setting", &[]),
        ("special_purpose", &[]),
        ("proxy_protocol", &[]),
        ("ip_fields", &[]),
        ("transport", &["ip_fields"]),
        ("stun", &[]),
        ("auth", &[]),
        ("net", &["file", "ip_fields"]),
        ("clock", &[]),
        ("offload", &["clock", "net"]),
        ("file", &[]),
        ("fleet", &["turn"]),
        ("printable", &[]),
        ("privacy", &["auth", "printable"]),
        ("http", &["net", "privacy"]),
        ("front", &["by_source", "config", "http", "net", "privacy", "proxy_protocol", "setting"]),
        ("turn", &["auth", "ip_fields", "setting", "special_purpose", "stun", "transport"]),
        ("client", &["auth", "printable", "stun", "turn"]),
        (
            "doctor",
            &[
                "auth",
                "client",
                "clock",
                "config",
                "control",
                "net",
                "offload",
                "printable",
                "setting",
                "special_purpose",
                "stun",
                "transport",
            ],
        ),
        ("coturn", &["printable", "special_purpose"]),
        ("config", &["auth", "coturn", "file", "fleet", "privacy", "setting", "special_purpose", "transport"]),
        (
            "worker",
            &[
                "by_source",
                "clock",
                "ip_fields",
                "net",
                "offload",
                "privacy",
                "proxy_protocol",
                "setting",
                "transport",
                "turn",
            ],
        ),
        (
            "control",
            &[
                "auth",
                "clock",
                "config",
                "file",
                "fleet",
                "front",
                "http",
                "net",
                "offload",
                "printable",
                "privacy",
                "proxy_protocol",
                "setting",
                "special_purpose",
                "stun",
                "transport",
                "turn",
                "worker",
            ],
        ),
    ];

    /// The modules of the library that each binary may use.
    const BINARIES: &[(&str, &[&str])] = &[
        (
            "main.rs",
            &[
                "auth",
                "clock",
                "config",
                "control",
                "coturn",
                "doctor",
                "file",
                "generate",
                "net",
                "offload",
                "printable",
                "transport",
            ],
        ),
        ("bin/turn-credential/main.rs", &["auth", "clock", "config", "file", "generate", "setting", "transport"]),
    ];

    /// The modules that must not use sockets, clocks, locks, threads or tasks.
    const PURE: &[&str] = &[
        "by_source",
        "setting",
        "special_purpose",
        "ip_fields",
        "printable",
        "proxy_protocol",
        "transport",
        "stun",
        "auth",
        "privacy",
        "turn",
        "client",
        "coturn",
        "fleet",
    ];

    const MAX_LINES: usize = 800;

    /// A file of `src`.
    struct File {
        path: PathBuf,
        /// The module path from the crate root.
        module: Vec<String>,
        /// Without code that is compiled for tests only.
        code: Vec<Token>,
    }

    fn src() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
    }

    /// Returns a crate's files. Follows the `mod` declarations from its root, except those for tests only.
    fn files_of(root: &str) -> Vec<File> {
        let root = src().join(root);
        let directory = root.parent().unwrap().to_owned();
        let (mut files, mut todo) = (Vec::new(), vec![(root, directory, Vec::new())]);
        while let Some((path, children, module)) = todo.pop() {
            let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let (code, _) = without_tests(&tokens(&text));
            for name in child_modules(&code) {
                let sibling = children.join(format!("{name}.rs"));
                let path = if sibling.exists() { sibling } else { children.join(&name).join("mod.rs") };
                let module = module.iter().cloned().chain([name.clone()]).collect();
                todo.push((path, children.join(name), module));
            }
            files.push(File { path, module, code });
        }
        files
    }

    /// Returns the modules that a file declares without a body.
    fn child_modules(code: &[Token]) -> Vec<String> {
        let declared = code.windows(3).filter(|three| three[0].is("mod") && three[2].is(";"));
        declared.map(|three| three[1].text.clone()).collect()
    }

    fn library() -> Vec<File> {
        files_of("lib.rs")
    }

    fn all_programs() -> Vec<File> {
        ["lib.rs"].into_iter().chain(BINARIES.iter().map(|(root, _)| *root)).flat_map(files_of).collect()
    }

    /// Returns the files of the library in `modules`.
    fn files_in(modules: &[&str]) -> Vec<File> {
        let selected = |file: &File| file.module.first().is_some_and(|top| modules.contains(&top.as_str()));
        library().into_iter().filter(selected).collect()
    }

    /// Returns the places where `file` contains one of `words`, alone or in a path.
    fn uses(file: &File, words: &[&str]) -> Vec<String> {
        let named = file.code.iter().filter(|token| words.contains(&token.text.as_str()));
        named.map(|token| format!("{}:{}: {}", file.path.display(), token.line, token.text)).collect()
    }

    /// Returns the paths in `file` that start with one of `forbidden`. Import groups are expanded.
    fn forbidden_paths(file: &File, forbidden: &[&[&str]]) -> Vec<String> {
        let paths = paths(&file.module, &file.code).into_iter().map(|(_, path)| path);
        let found = paths.filter(|path| forbidden.iter().any(|prefix| path.starts_with(&owned(prefix))));
        found.map(|path| format!("{}: {}", file.path.display(), path.join("::"))).collect()
    }

    fn owned(path: &[&str]) -> Vec<String> {
        path.iter().map(|segment| (*segment).to_owned()).collect()
    }

    #[test]
    fn each_module_uses_only_modules_that_the_design_allows() {
        let mut wrong = Vec::new();
        for file in library().iter().filter(|file| !file.module.is_empty()) {
            let (_, allowed) = DEPENDENCIES.iter().find(|(name, _)| *name == file.module[0]).unwrap();
            for import in imports(&file.module, &file.code) {
                if !allowed.contains(&import.as_str()) {
                    wrong.push(format!("{} uses {import}", file.path.display()));
                }
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn each_binary_uses_only_modules_that_the_design_allows() {
        for (root, allowed) in BINARIES {
            let used: BTreeSet<String> = files_of(root).iter().flat_map(|file| library_imports(&file.code)).collect();
            let wrong: Vec<&String> = used.iter().filter(|name| !allowed.contains(&name.as_str())).collect();
            assert!(wrong.is_empty(), "{root} uses {wrong:?}");
        }
    }

    #[test]
    fn every_module_has_a_rule() {
        let (library, _) = without_tests(&tokens(&fs::read_to_string(src().join("lib.rs")).unwrap()));
        let declared: BTreeSet<String> = child_modules(&library).into_iter().collect();
        let with_rule: BTreeSet<String> = DEPENDENCIES.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(declared, with_rule);
    }

    // Verifies the search itself: the code has these dependencies.
    #[test]
    fn known_dependencies_are_found() {
        for (from, to) in
            [("turn", "stun"), ("turn", "auth"), ("worker", "turn"), ("worker", "net"), ("control", "worker")]
        {
            let found = files_in(&[from]).iter().any(|file| imports(&file.module, &file.code).contains(to));
            assert!(found, "{from} does not use {to}");
        }
        assert!(all_programs().len() > 50, "only {} files were found", all_programs().len());
    }

    #[test]
    fn the_core_is_pure() {
        let words = [
            "UdpSocket",
            "TcpStream",
            "TcpListener",
            "UnixDatagram",
            "UnixStream",
            "tokio",
            "socket2",
            "nix",
            "libc",
            "Mutex",
            "RwLock",
            "Condvar",
            "thread_local",
            "SystemTime",
            "UNIX_EPOCH",
            "async",
            "await",
            "StdRng",
            "SysRng",
            "ThreadRng",
        ];
        let roots: &[&[&str]] = &[
            &["std", "thread"],
            &["std", "fs"],
            &["std", "env"],
            &["std", "process"],
            &["std", "time", "Instant"],
            &["std", "time", "*"],
            &["std", "sync", "*"],
            &["std", "net", "*"],
        ];
        let impure: Vec<String> = files_in(PURE)
            .iter()
            .flat_map(|file| [uses(file, &words), forbidden_paths(file, roots)].concat())
            .collect();
        assert!(impure.is_empty(), "{impure:#?}");
        // The core has its own `Instant`, which has no `now`.
        for file in files_in(PURE) {
            let reads = file.code.windows(3).filter(|three| starts_with(three, &["Instant", "::", "now"])).count();
            assert_eq!(reads, 0, "{}", file.path.display());
        }
    }

    #[test]
    fn the_data_path_has_no_lock_and_no_unbounded_queue() {
        let words =
            ["Mutex", "RwLock", "Condvar", "unbounded_channel", "UnboundedSender", "UnboundedReceiver", "LinkedList"];
        // A channel of the standard library is unbounded unless `sync_channel` creates it.
        let roots: &[&[&str]] = &[&["std", "sync", "mpsc"], &["std", "sync", "*"], &["tokio", "sync", "*"]];
        let found: Vec<String> = files_in(&["worker"])
            .iter()
            .flat_map(|file| [uses(file, &words), forbidden_paths(file, roots)].concat())
            .collect();
        assert!(found.is_empty(), "{found:#?}");
    }

    #[test]
    fn unsafe_is_in_one_file_only() {
        let unsafe_files: Vec<PathBuf> = all_programs()
            .into_iter()
            .filter(|file| !uses(file, &["unsafe"]).is_empty())
            .map(|file| file.path)
            .collect();
        let sys = src().join("net").join("sys");
        let (file, modules): (Vec<&PathBuf>, _) = unsafe_files.iter().partition(|file| !file.starts_with(&sys));
        assert_eq!(file, [&sys.with_extension("rs")]);
        assert!(modules.len() <= 2, "{modules:?}");
    }

    // Code for a feature of the server must obey the rules.
    #[test]
    fn no_feature_but_that_of_the_fuzz_targets_excludes_code_from_the_rules() {
        for file in all_programs() {
            let text = fs::read_to_string(&file.path).unwrap();
            assert_eq!(other_test_features(&text), [""; 0], "{}", file.path.display());
        }
    }

    #[test]
    fn no_file_exceeds_the_maximum_length() {
        for file in all_programs() {
            let lines: BTreeSet<usize> = file.code.iter().map(|token| token.line).collect();
            assert!(lines.len() <= MAX_LINES, "{} has {} lines of code", file.path.display(), lines.len());
        }
    }

    #[test]
    fn forbidden_words_and_paths_are_found() {
        let code = tokens("use std::{io, thread::spawn};\nuse std::sync::{Arc, Mutex};\nasync fn f() {}");
        let file = File { path: PathBuf::from("x.rs"), module: vec!["turn".to_owned()], code };
        assert_eq!(uses(&file, &["Mutex", "async"]), ["x.rs:2: Mutex", "x.rs:3: async"]);
        assert_eq!(forbidden_paths(&file, &[&["std", "thread"]]), ["x.rs: std::thread::spawn"]);
    }
}

//! The rules that the compiler does not know: which module may use which, that the core is pure, what stays out of the
//! data path. They hold for the program; code that is compiled for tests only may do as it likes. And that documents name
//! what is there.

// `cfg(test)` tells clippy that helpers in a test binary are test code too.
#[cfg(test)]
#[path = "architecture/documents.rs"]
mod documents;
#[cfg(test)]
#[path = "architecture/paths.rs"]
mod paths;
#[cfg(test)]
#[path = "architecture/tokens.rs"]
mod tokens;

#[cfg(test)]
mod architecture {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::{Path, PathBuf};

    use crate::paths::{imports, library_imports, paths, without_tests};
    use crate::tokens::{Token, starts_with, tokens};

    /// What each module of the library may use of the others.
    const ARROWS: &[(&str, &[&str])] = &[
        ("stun", &[]),
        ("auth", &[]),
        ("net", &[]),
        ("clock", &[]),
        ("turn", &["auth", "stun"]),
        ("config", &["auth"]),
        ("worker", &["clock", "net", "turn"]),
        ("control", &["auth", "clock", "config", "net", "turn", "worker"]),
    ];

    /// What each binary may use of the library.
    const BINARIES: &[(&str, &[&str])] =
        &[("main.rs", &["config", "control"]), ("bin/turn-credential/main.rs", &["auth", "clock", "config"])];

    /// The modules without sockets, clocks, locks, threads and tasks.
    const PURE: &[&str] = &["stun", "auth", "turn"];

    const MAX_LINES: usize = 800;

    /// A file of `src`.
    struct File {
        path: PathBuf,
        /// The names of the modules from the top of its crate.
        module: Vec<String>,
        /// Without what is compiled for tests only.
        code: Vec<Token>,
    }

    fn src() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
    }

    /// A crate's files, from its root along the `mod` declarations that are not for tests only.
    fn files_of(root: &str) -> Vec<File> {
        let root = src().join(root);
        let directory = root.parent().unwrap().to_owned();
        let (mut files, mut todo) = (Vec::new(), vec![(root, directory, Vec::new())]);
        while let Some((path, children, module)) = todo.pop() {
            let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let (code, _) = without_tests(&tokens(&text));
            for name in child_modules(&code) {
                let beside = children.join(format!("{name}.rs"));
                let path = if beside.exists() { beside } else { children.join(&name).join("mod.rs") };
                let module = module.iter().cloned().chain([name.clone()]).collect();
                todo.push((path, children.join(name), module));
            }
            files.push(File { path, module, code });
        }
        files
    }

    /// The modules that a file declares to be in files of their own.
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

    /// The files of the library below one of `modules`.
    fn files_below(modules: &[&str]) -> Vec<File> {
        let below = |file: &File| file.module.first().is_some_and(|top| modules.contains(&top.as_str()));
        library().into_iter().filter(below).collect()
    }

    /// Where `file` names one of `words`, be it alone or in a path.
    fn uses(file: &File, words: &[&str]) -> Vec<String> {
        let named = file.code.iter().filter(|token| words.contains(&token.text.as_str()));
        named.map(|token| format!("{}:{}: {}", file.path.display(), token.line, token.text)).collect()
    }

    /// Where `file` names something below one of `forbidden`, groups and all.
    fn paths_below(file: &File, forbidden: &[&[&str]]) -> Vec<String> {
        let paths = paths(&file.module, &file.code).into_iter().map(|(_, path)| path);
        let found = paths.filter(|path| forbidden.iter().any(|prefix| path.starts_with(&owned(prefix))));
        found.map(|path| format!("{}: {}", file.path.display(), path.join("::"))).collect()
    }

    fn owned(path: &[&str]) -> Vec<String> {
        path.iter().map(|segment| (*segment).to_owned()).collect()
    }

    #[test]
    fn each_module_uses_only_those_that_the_design_lets_it_use() {
        let mut wrong = Vec::new();
        for file in library().iter().filter(|file| !file.module.is_empty()) {
            let (_, allowed) = ARROWS.iter().find(|(name, _)| *name == file.module[0]).unwrap();
            for import in imports(&file.module, &file.code) {
                if !allowed.contains(&import.as_str()) {
                    wrong.push(format!("{} uses {import}", file.path.display()));
                }
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn each_binary_uses_only_those_modules_that_the_design_lets_it_use() {
        for (root, allowed) in BINARIES {
            let used: BTreeSet<String> = files_of(root).iter().flat_map(|file| library_imports(&file.code)).collect();
            let wrong: Vec<&String> = used.iter().filter(|name| !allowed.contains(&name.as_str())).collect();
            assert!(wrong.is_empty(), "{root} uses {wrong:?}");
        }
    }

    #[test]
    fn the_rules_are_about_the_modules_that_there_are() {
        let (library, _) = without_tests(&tokens(&fs::read_to_string(src().join("lib.rs")).unwrap()));
        let declared: BTreeSet<String> = child_modules(&library).into_iter().collect();
        let ruled: BTreeSet<String> = ARROWS.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(declared, ruled);
    }

    // That the search finds what is there: these arrows are drawn in the design and used in the code.
    #[test]
    fn the_arrows_of_the_design_are_found_in_the_code() {
        for (from, to) in
            [("turn", "stun"), ("turn", "auth"), ("worker", "turn"), ("worker", "net"), ("control", "worker")]
        {
            let found = files_below(&[from]).iter().any(|file| imports(&file.module, &file.code).contains(to));
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
        let impure: Vec<String> =
            files_below(PURE).iter().flat_map(|file| [uses(file, &words), paths_below(file, roots)].concat()).collect();
        assert!(impure.is_empty(), "{impure:#?}");
        // The core has an `Instant` of its own, which cannot be read off a clock.
        for file in files_below(PURE) {
            let reads = file.code.windows(3).filter(|three| starts_with(three, &["Instant", "::", "now"])).count();
            assert_eq!(reads, 0, "{}", file.path.display());
        }
    }

    #[test]
    fn the_data_path_has_no_lock_and_no_unbounded_queue() {
        let words =
            ["Mutex", "RwLock", "Condvar", "unbounded_channel", "UnboundedSender", "UnboundedReceiver", "LinkedList"];
        // A channel of the standard library is unbounded unless it is made by `sync_channel`.
        let roots: &[&[&str]] = &[&["std", "sync", "mpsc"], &["std", "sync", "*"], &["tokio", "sync", "*"]];
        let found: Vec<String> = files_below(&["worker"])
            .iter()
            .flat_map(|file| [uses(file, &words), paths_below(file, roots)].concat())
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
        assert_eq!(unsafe_files, [src().join("net").join("sys.rs")]);
    }

    #[test]
    fn no_file_has_more_code_than_one_can_read() {
        for file in all_programs() {
            let lines: BTreeSet<usize> = file.code.iter().map(|token| token.line).collect();
            assert!(lines.len() <= MAX_LINES, "{} has {} lines of code", file.path.display(), lines.len());
        }
    }

    #[test]
    fn words_and_paths_that_are_forbidden_would_be_found() {
        let code = tokens("use std::{io, thread::spawn};\nuse std::sync::{Arc, Mutex};\nasync fn f() {}");
        let file = File { path: PathBuf::from("x.rs"), module: vec!["turn".to_owned()], code };
        assert_eq!(uses(&file, &["Mutex", "async"]), ["x.rs:2: Mutex", "x.rs:3: async"]);
        assert_eq!(paths_below(&file, &[&["std", "thread"]]), ["x.rs: std::thread::spawn"]);
    }
}

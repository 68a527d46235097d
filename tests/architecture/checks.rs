//! `.ci/run` runs each test that is skipped on some machines, where it must not be skipped.

use std::fs;
use std::path::Path;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the files below a directory.
fn files(directory: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Whether a source has a call of one of the functions that may skip the test.
fn may_skip(source: &str) -> bool {
    ["skip(", "in_own_network(", "has_ipv6("].iter().any(|call| {
        source.match_indices(call).any(|(at, _)| {
            let before = source[..at].chars().next_back();
            before.is_none_or(|letter| !letter.is_alphanumeric() && letter != '_' && letter != '.')
        })
    })
}

#[test]
fn tests_that_may_be_skipped_are_required_by_the_check_script() {
    let script = fs::read_to_string(root().join(".ci/run")).unwrap();
    let (before, after) = script.split_once("\nexport REQUIRE_ALL_TESTS=1\n").unwrap();
    // The README's command must pass on a machine that has only Rust.
    let (start, _) = before.split_once("apt-get install").unwrap();
    assert!(start.contains("\ncargo test\n"));
    // What is skipped then is recorded, and runs again where it must not be skipped.
    assert!(start.contains("\nexport SKIPPED_TESTS\ncargo test\n"));
    assert!(
        after.contains("done\n\nstep 'a minute of clients") && after.contains("--exact \"${tests[@]}\" </dev/null")
    );
    assert!(after.contains("--bench soak -- --minutes 1\n"));
    // Each program that a test may lack is installed.
    let skips = files(&root().join("tests")).into_iter().chain(files(&root().join("src")));
    let skips = skips.filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    let skipping = skips.filter(|path| may_skip(&fs::read_to_string(path).unwrap())).count();
    assert!(skipping > 15, "{skipping}");
}

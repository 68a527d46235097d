//! docs/supply-chain.md has a row for each direct dependency, and no other.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Returns the dependencies in a manifest, of all kinds.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let manifest: toml::Table = read(manifest).parse().unwrap();
    let tables = ["dependencies", "dev-dependencies", "build-dependencies"].into_iter();
    let tables = tables.filter_map(|kind| manifest.get(kind)?.as_table());
    tables.flat_map(|table| table.keys().cloned()).collect()
}

/// Returns the crates in the rows of the page. A crate in two rows is an error.
fn reviewed() -> BTreeSet<String> {
    let page = read("docs/supply-chain.md");
    let names = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let mut reviewed = BTreeSet::new();
    for name in names {
        assert!(reviewed.insert(name.to_owned()), "{name} has two rows");
    }
    reviewed
}

#[test]
fn every_direct_dependency_has_a_review_and_every_review_a_dependency() {
    let mut used = dependencies("Cargo.toml");
    assert!(used.len() > 40, "{used:?}");
    used.extend(dependencies("examples/rooms/Cargo.toml"));
    used.remove("turnserver");
    assert_eq!(used, reviewed());
}

//! docs/supply-chain.md has a row for each direct dependency with the version in use, and no other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

const MANIFESTS: [(&str, &str); 3] =
    [("Cargo.toml", "Cargo.lock"), ("examples/rooms/Cargo.toml", "Cargo.lock"), ("fuzz/Cargo.toml", "fuzz/Cargo.lock")];

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Returns the requirements of a manifest on other crates, of all kinds.
fn dependencies(manifest: &toml::Table) -> Vec<(String, String)> {
    let kinds = ["dependencies", "dev-dependencies", "build-dependencies"];
    let targets = manifest.get("target").and_then(toml::Value::as_table).into_iter().flat_map(toml::Table::values);
    let parts = targets.filter_map(toml::Value::as_table).chain([manifest]);
    let tables = parts.flat_map(|part| kinds.into_iter().filter_map(|kind| part.get(kind)?.as_table()));
    let entries = tables.flatten().map(|(name, value)| {
        let version = value.as_str().or_else(|| value.get("version")?.as_str()).unwrap_or_default();
        (name.clone(), version.to_owned())
    });
    entries.filter(|(name, _)| name != "turnserver").collect()
}

/// Returns the version of a crate in a lock file. If there are several, that of the requirement.
fn locked(lock: &toml::Table, name: &str, requirement: &str) -> String {
    let packages = lock["package"].as_array().unwrap().iter().filter_map(toml::Value::as_table);
    let versions: Vec<&str> = packages
        .filter(|package| package["name"].as_str() == Some(name))
        .filter_map(|package| package["version"].as_str())
        .filter(|version| format!("{version}.").starts_with(&format!("{requirement}.")))
        .collect();
    let [version] = versions.as_slice() else { panic!("{name} {requirement}: {versions:?}") };
    // Without build metadata.
    version.split('+').next().unwrap().to_owned()
}

fn used() -> BTreeMap<String, String> {
    let parse = |path: &str| read(path).parse::<toml::Table>().unwrap();
    let of = |(manifest, lock): (&str, &str)| {
        let lock = parse(lock);
        let version = |(name, requirement): (String, String)| (name.clone(), locked(&lock, &name, &requirement));
        dependencies(&parse(manifest)).into_iter().map(version).collect::<Vec<_>>()
    };
    MANIFESTS.into_iter().flat_map(of).collect()
}

/// Returns the crates and versions in the rows of the page. A crate in two rows, and an empty cell, are errors.
fn reviewed() -> BTreeMap<String, String> {
    let page = read("docs/supply-chain.md");
    let mut reviewed = BTreeMap::new();
    for row in page.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        assert!(cells.len() == 6 && cells.iter().all(|cell| !cell.is_empty()), "{row}");
        let name = cells[0].trim_matches('`').to_owned();
        assert!(reviewed.insert(name, cells[1].to_owned()).is_none(), "two rows: {row}");
    }
    reviewed
}

#[test]
fn every_direct_dependency_has_a_review_of_its_version_and_every_review_a_dependency() {
    let used = used();
    assert!(used.len() > 40, "{used:?}");
    let names = |map: &BTreeMap<String, String>| map.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(names(&used), names(&reviewed()));
    for (name, version) in reviewed() {
        assert_eq!(used[&name], version, "docs/supply-chain.md has another version of {name}");
    }
}

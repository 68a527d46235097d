//! The figures of docs/threat-model.md, "Memory".
#![allow(dead_code, reason = "each crate compiles this module and uses a part of it")]

/// Returns the first number of the second cell in the row with this topic: the bytes for one of them.
pub(crate) fn documented(topic: &str) -> usize {
    let document = include_str!("../../docs/threat-model.md");
    let (_, section) = document.split_once("\n## Memory\n").expect("a section about memory");
    let (section, _) = section.split_once("\n## ").expect("a section after it");
    let row = section.lines().find_map(|line| line.strip_prefix(&format!("| {topic} | "))?.split(" | ").next());
    let (number, _) = row.and_then(|cell| cell.split_once(" bytes")).unwrap_or_else(|| panic!("no figure: {topic}"));
    number.replace(' ', "").parse().unwrap_or_else(|error| panic!("{topic}: {error}"))
}

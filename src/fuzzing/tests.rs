//! Runs each target over its corpus, which has the inputs that once broke an invariant, too.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

fn over_the_corpus(name: &str, target: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut inputs: Vec<_> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    assert!(inputs.len() >= 3, "{} has inputs", directory.display());
    for input in inputs {
        let data = fs::read(&input).unwrap();
        // A failed test shows which input it was.
        println!("{}", input.display());
        target(&data);
    }
}

#[test]
fn the_wire_format_passes_its_corpus() {
    over_the_corpus("stun", super::stun);
}

#[test]
fn framing_passes_its_corpus() {
    over_the_corpus("framing", super::framing);
}

#[test]
fn the_core_passes_the_corpus_of_unauthenticated_clients() {
    over_the_corpus("core_unauthenticated", super::core_unauthenticated);
}

#[test]
fn the_core_passes_the_corpus_of_authenticated_clients() {
    over_the_corpus("core_authenticated", super::core_authenticated);
}

#[test]
fn the_configuration_passes_its_corpus() {
    over_the_corpus("config", super::config);
}

#[test]
fn the_import_passes_its_corpus() {
    over_the_corpus("import", super::import);
}

#[test]
fn http_passes_its_corpus() {
    over_the_corpus("http", super::http);
}

#[test]
fn the_first_bytes_of_connections_to_a_front_pass_their_corpus() {
    over_the_corpus("client_hello", super::client_hello);
}

#[test]
fn the_client_passes_its_corpus() {
    over_the_corpus("client", super::client);
}

#[test]
fn small_texts_pass_their_corpus() {
    over_the_corpus("texts", super::texts);
}

#[test]
fn proxy_headers_pass_their_corpus() {
    over_the_corpus("proxy", super::proxy);
}

// Whoever adds a target, adds its corpus and its test.
#[test]
fn each_target_has_a_corpus() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let names = |directory: &str| {
        let entries = fs::read_dir(fuzz.join(directory)).unwrap();
        let stems = entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned());
        stems.collect::<BTreeSet<String>>()
    };
    assert_eq!(names("fuzz_targets"), names("corpus"));
    let tested = include_str!("tests.rs").lines().filter(|line| line.starts_with("    over_the_corpus(")).count();
    assert_eq!(tested, names("corpus").len());
}

//! Runs each target over its corpus, which has the inputs that once broke an invariant, too.

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

macro_rules! targets {
    ($($test:ident: $target:ident,)*) => {$(
        #[test]
        fn $test() {
            over_the_corpus(stringify!($target), super::$target);
        }
    )*};
}

targets! {
    the_wire_format_passes_its_corpus: stun,
    framing_passes_its_corpus: framing,
    the_core_passes_the_corpus_of_unauthenticated_clients: core_unauthenticated,
    the_core_passes_the_corpus_of_authenticated_clients: core_authenticated,
    the_configuration_passes_its_corpus: config,
    the_import_passes_its_corpus: import,
    http_passes_its_corpus: http,
    the_client_passes_its_corpus: client,
    small_texts_pass_their_corpus: texts,
}

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| turnserver::fuzzing::client_hello(data));

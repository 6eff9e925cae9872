#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| trephine::fuzzing::index_json(bytes));

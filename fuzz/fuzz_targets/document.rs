//! libFuzzer over trust bundles of foreign endpoints.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    hoplite_fuzz::document(input);
});

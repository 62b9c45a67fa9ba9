//! libFuzzer over the canonical request.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    hoplite_fuzz::request(input);
});

//! libFuzzer over signing requests.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    hoplite_fuzz::csr(input);
});

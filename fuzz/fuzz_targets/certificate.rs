//! libFuzzer over certificates and bundles.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    hoplite_fuzz::certificate(input);
});

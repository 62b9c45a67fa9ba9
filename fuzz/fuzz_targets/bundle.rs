//! libFuzzer over policy bundles.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    hoplite_fuzz::bundle(input);
});

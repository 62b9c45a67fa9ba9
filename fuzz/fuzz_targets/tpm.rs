//! libFuzzer over what nodes show of their TPMs.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    hoplite_fuzz::tpm(input);
});

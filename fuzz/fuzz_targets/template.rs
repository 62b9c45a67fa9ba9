//! libFuzzer over templates of SPIFFE IDs and values.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    hoplite_fuzz::template(input);
});

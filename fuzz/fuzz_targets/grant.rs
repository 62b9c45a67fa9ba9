//! libFuzzer over break-glass grants.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    hoplite_fuzz::grant(input);
});

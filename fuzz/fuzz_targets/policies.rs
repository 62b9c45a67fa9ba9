//! libFuzzer over policy sources.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    hoplite_fuzz::policies(input);
});

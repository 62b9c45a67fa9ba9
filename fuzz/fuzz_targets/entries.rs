//! libFuzzer over files of registration entries.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    hoplite_fuzz::entries(input);
});

//! libFuzzer over test tables.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    hoplite_fuzz::table(input);
});

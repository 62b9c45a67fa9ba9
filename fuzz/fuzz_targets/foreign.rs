//! libFuzzer over tokens of other issuers.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    hoplite_fuzz::foreign(input);
});

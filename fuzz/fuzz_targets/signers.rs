//! libFuzzer over signer sets and chains of them.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    hoplite_fuzz::signers(input);
});

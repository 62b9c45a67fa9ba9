//! libFuzzer over the route table.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    hoplite_fuzz::routes(input);
});

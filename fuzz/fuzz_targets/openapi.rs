//! libFuzzer over OpenAPI documents.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    hoplite_fuzz::openapi(input);
});

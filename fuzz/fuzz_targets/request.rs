//! Reads bytes as an inference request and validates it.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| requant_server::fuzzing::request(data));

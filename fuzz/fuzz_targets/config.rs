//! Reads bytes as a model configuration, text and JSON.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| requant_server::fuzzing::config(data));

//! Reads bytes as a TFLite model; what is imported must be a valid graph.
#![no_main]

use requant_import::tflite::{ImportOptions, import_bytes};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(graph) = import_bytes(data, "fuzz", &ImportOptions::default()) {
        assert_eq!(graph.validate(), Ok(()));
    }
});

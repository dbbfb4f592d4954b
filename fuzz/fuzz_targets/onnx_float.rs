//! Reads bytes as a float ONNX model; what is read must be in order.
#![no_main]

use std::collections::HashSet;

use requant_import::float::read_bytes;
use requant_import::onnx::ImportOptions;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(graph) = read_bytes(data, "fuzz", &ImportOptions::default()) {
        let mut made: HashSet<_> = graph.inputs.iter().map(|port| port.value).collect();
        for node in &graph.nodes {
            assert!(node.inputs.iter().all(|value| made.contains(value)));
            assert!(made.insert(node.output));
            if let Some(weights) = node.op.weights() {
                assert_eq!(weights.data.len(), weights.dims.iter().product::<usize>());
            }
        }
        assert!(graph.outputs.iter().all(|port| made.contains(&port.value)));
    }
});

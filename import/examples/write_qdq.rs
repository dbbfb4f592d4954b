//! Writes random quantized nets as ONNX QDQ files, with inputs and what the native integer graph gives
//! for them: what the comparison with ONNX Runtime calls.
//!
//! `write_qdq DIRECTORY SEEDS` writes `NET.onnx`, `NET.x0.bin`, … and `NET.y0.bin`, … (raw f32), and prints
//! a line for each output: net, layers, port, scale of a step.

use std::error::Error;
use std::path::Path;

use requant_conformance::{Rng, check::inputs, run};
use requant_import::float::{to_graph, to_onnx};
use requant_runtime::ReferenceBackend;

#[path = "../tests/float_nets/mod.rs"]
mod float_nets;

/// Samples of each net.
const SAMPLES: usize = 8;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [directory, seeds] = &arguments[..] else {
        return Err("usage: write_qdq DIRECTORY SEEDS".into());
    };
    let directory = Path::new(directory);
    for seed in 0..seeds.parse()? {
        for net in float_nets::suite::all(seed) {
            let name = format!("{}{seed}", net.graph.name);
            let quantized = net.quantized();
            std::fs::write(directory.join(format!("{name}.onnx")), to_onnx(&quantized)?)?;
            let graph = to_graph(&quantized)?;
            let data = inputs(&graph, &mut Rng::new(seed), SAMPLES);
            let outputs = run(&ReferenceBackend, &graph, true, &data, SAMPLES, SAMPLES)?;
            let ports = net.graph.inputs.iter().zip(&data);
            for (port, data) in ports.chain(net.graph.outputs.iter().zip(&outputs)) {
                std::fs::write(directory.join(format!("{name}.{}.bin", port.name)), data)?;
            }
            let layers = net.graph.layers().count();
            for port in &net.graph.outputs {
                let scale = quantized.values[port.value.0].map_or(1.0, |quant| quant.quant.scale);
                println!("{name}\t{layers}\t{}\t{scale:e}", port.name);
            }
        }
    }
    Ok(())
}

//! Imports an ONNX model, runs it on the reference backend and writes the outputs: what the differential
//! test against ONNX Runtime calls.
//!
//! `run_onnx MODEL.onnx INPUTS.npz OUTPUT_DIRECTORY [SAMPLES]` writes one raw little-endian file an output
//! and prints `name<TAB>dtype<TAB>batched<TAB>dims` for each, the dims per sample. Without inputs it
//! prints the nodes of the integer graph.

use std::error::Error;
use std::path::Path;

use requant_conformance::npz;
use requant_import::onnx::{ImportOptions, import_file};
use requant_runtime::ReferenceBackend;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let model = arguments.first().ok_or("no model given")?;
    let graph = import_file(Path::new(model), &ImportOptions::default())?;
    let (Some(inputs), Some(directory)) = (arguments.get(1), arguments.get(2)) else {
        for node in &graph.nodes {
            let value = |id: &requant_model::ValueId| {
                let value = graph.value(*id);
                format!("{}:{}{:?}", value.name, value.dtype, value.dims)
            };
            let (inputs, outputs): (Vec<_>, Vec<_>) = (
                node.inputs.iter().map(value).collect(),
                node.outputs.iter().map(value).collect(),
            );
            println!("{} {} {inputs:?} -> {outputs:?}", node.op.name(), node.name);
        }
        return Ok(());
    };
    let arrays = npz::read(Path::new(inputs));
    let samples: usize = arguments.get(3).map_or(Ok(1), |s| s.parse())?;
    let mut data = Vec::new();
    for id in &graph.inputs {
        let name = &graph.value(*id).name;
        data.push(
            arrays
                .get(name)
                .ok_or_else(|| format!("no input '{name}'"))?
                .data
                .clone(),
        );
    }
    let outputs =
        requant_conformance::run(&ReferenceBackend, &graph, true, &data, samples, samples)?;
    for (index, (id, bytes)) in graph.outputs.iter().zip(outputs).enumerate() {
        let value = graph.value(*id);
        std::fs::write(Path::new(directory).join(format!("{index}.bin")), bytes)?;
        println!(
            "{}\t{}\t{}\t{:?}",
            value.name, value.dtype, value.batched, value.dims
        );
    }
    Ok(())
}

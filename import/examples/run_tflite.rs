//! Imports and runs TFLite models on the reference backend: what the differential test against LiteRT
//! calls.
//!
//! `run_tflite DIRECTORY [litert|tflm]` takes every `NAME.tflite` of the directory, reads the samples of
//! input I from `NAME.inI` (raw, little-endian, all samples one after the other) and writes `NAME.outI`,
//! or, where the model is refused, the reason to `NAME.refused`. `run_tflite MODEL.tflite` prints the
//! nodes of the integer graph.

use std::error::Error;
use std::path::{Path, PathBuf};

use requant_import::tflite::{ImportOptions, Kernels, import_file};
use requant_model::{Graph, ValueId};
use requant_runtime::ReferenceBackend;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let path = Path::new(arguments.first().ok_or("no directory or model given")?);
    let mut options = ImportOptions::default();
    if let Some(name) = arguments.get(1) {
        let named = |kernels: &Kernels| kernels.name() == name;
        options.kernels = Kernels::ALL
            .into_iter()
            .find(named)
            .ok_or("no such kernels")?;
    }
    if path.is_file() {
        print(&import_file(path, &options)?);
        return Ok(());
    }
    for entry in std::fs::read_dir(path)? {
        let model = entry?.path();
        if model
            .extension()
            .is_none_or(|extension| extension != "tflite")
        {
            continue;
        }
        match import_file(&model, &options) {
            Ok(graph) => run(&model, &graph)?,
            Err(error) => std::fs::write(model.with_extension("refused"), error.to_string())?,
        }
    }
    Ok(())
}

fn run(model: &Path, graph: &Graph) -> Result<(), Box<dyn Error>> {
    let file =
        |what: &str, index: usize| -> PathBuf { model.with_extension(format!("{what}{index}")) };
    let mut inputs = Vec::new();
    let mut samples = 1;
    for (index, id) in graph.inputs.iter().enumerate() {
        let data = std::fs::read(file("in", index))?;
        samples = data.len() / graph.value(*id).bytes();
        inputs.push(data);
    }
    // Without a batch dimension, one sample after the other.
    let (runs, each) = if graph.batched {
        (1, samples)
    } else {
        (samples, 1)
    };
    let mut outputs = vec![Vec::new(); graph.outputs.len()];
    for run in 0..runs {
        let part = |data: &Vec<u8>| {
            let bytes = data.len() / runs;
            data[run * bytes..(run + 1) * bytes].to_vec()
        };
        let part = inputs.iter().map(part).collect();
        let results = requant_conformance::run(&ReferenceBackend, graph, true, &part, each, each)?;
        for (output, result) in outputs.iter_mut().zip(results) {
            output.extend(result);
        }
    }
    for (index, output) in outputs.iter().enumerate() {
        std::fs::write(file("out", index), output)?;
    }
    Ok(())
}

fn print(graph: &Graph) {
    for node in &graph.nodes {
        let value = |id: &ValueId| {
            let value = graph.value(*id);
            format!("{}:{}{:?}", value.name, value.dtype, value.dims)
        };
        let inputs: Vec<_> = node.inputs.iter().map(value).collect();
        let outputs: Vec<_> = node.outputs.iter().map(value).collect();
        println!("{} {} {inputs:?} -> {outputs:?}", node.op.name(), node.name);
    }
}

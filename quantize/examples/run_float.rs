//! Reads a float ONNX model, runs it in reals and writes the outputs: what the differential test against
//! ONNX Runtime calls.
//!
//! `run_float MODEL.onnx INPUTS.npz OUTPUT_DIRECTORY` writes one raw little-endian f32 file an output and
//! prints `name<TAB>batched<TAB>dims` for each, the dims of the whole batch. Without inputs it prints the
//! nodes of the graph.

use std::error::Error;
use std::path::Path;

use requant_conformance::npz;
use requant_import::float::{Tensor, read_file};
use requant_import::onnx::ImportOptions;
use requant_quantize::exec::{Executor, Reals};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let model = arguments.first().ok_or("no model given")?;
    let graph = read_file(Path::new(model), &ImportOptions::default())?;
    let (Some(inputs), Some(directory)) = (arguments.get(1), arguments.get(2)) else {
        for node in &graph.nodes {
            let operands: Vec<_> = node.inputs.iter().map(|&id| graph.value(id)).collect();
            let (name, result) = (&node.name, graph.value(node.output));
            println!("{} {name} {operands:?} -> {result:?}", node.op.name());
        }
        return Ok(());
    };
    let mut arrays = npz::read(Path::new(inputs));
    let mut tensors = Vec::new();
    for port in &graph.inputs {
        let array = arrays.remove(&port.name);
        let array = array.ok_or_else(|| format!("no input '{}'", port.name))?;
        tensors.push(Tensor {
            data: array.f32s(),
            dims: array.dims,
        });
    }
    let outputs = Executor::new(&graph)?.run(tensors, &Reals::default())?;
    for (index, (port, output)) in graph.outputs.iter().zip(outputs).enumerate() {
        let bytes: Vec<u8> = output.data.iter().flat_map(|v| v.to_le_bytes()).collect();
        std::fs::write(Path::new(directory).join(format!("{index}.bin")), bytes)?;
        let batched = graph.value(port.value).batched;
        println!("{}\t{batched}\t{:?}", port.name, output.dims);
    }
    Ok(())
}

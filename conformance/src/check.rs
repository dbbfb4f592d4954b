//! Runs a case on a backend and compares every byte.

use std::sync::Arc;

use requant_model::Graph;
use requant_numerics::DType;
use requant_runtime::{Backend, ExecError, Form, Plan, PlanOptions, ReferenceBackend, TensorInfo};

use crate::Rng;

/// A graph to run.
#[derive(Clone, Debug)]
pub struct Case {
    /// What it shows.
    pub name: String,
    /// The graph.
    pub graph: Graph,
}

/// One tensor a port, in the declared form.
pub type Tensors = Vec<Vec<u8>>;

/// Batch sizes that are compared.
pub const BATCHES: [usize; 4] = [1, 2, 7, 32];

/// Runs `samples` samples through a graph.
///
/// # Errors
/// Where the instance refuses the batch.
///
/// # Panics
/// Where the graph has no plan or the backend refuses it.
pub fn run(
    backend: &dyn Backend,
    graph: &Graph,
    fuse: bool,
    inputs: &Tensors,
    samples: usize,
    max_batch: usize,
) -> Result<Tensors, ExecError> {
    let options = PlanOptions {
        fuse,
        ..PlanOptions::default()
    };
    let plan = Plan::new(graph.clone(), &options).unwrap_or_else(|e| panic!("{}: {e}", graph.name));
    let executable = backend
        .compile(Arc::new(plan))
        .unwrap_or_else(|e| panic!("{}: {e}", graph.name));
    let mut instance = executable.instance(max_batch)?;
    for (index, data) in inputs.iter().enumerate() {
        // In two portions, as a batch of two requests comes.
        let each = data.len() / samples;
        let first = samples / 2;
        if first > 0 {
            instance.write_input(index, 0, first, Form::Declared, &data[..first * each])?;
        }
        let rest = &data[first * each..];
        instance.write_input(index, first, samples - first, Form::Declared, rest)?;
    }
    instance.run(samples)?;
    let outputs = &executable.plan().signature().outputs;
    let read = |(index, info): (usize, &TensorInfo)| {
        let bytes = info.bytes(Form::Declared).unwrap_or(0) * samples;
        let mut data = vec![0; bytes];
        instance
            .read_output(index, 0, samples, Form::Declared, &mut data)
            .map(|()| data)
    };
    outputs.iter().enumerate().map(read).collect()
}

/// Random data for the inputs of a graph.
pub fn inputs(graph: &Graph, rng: &mut Rng, samples: usize) -> Tensors {
    let tensor = |id: &requant_model::ValueId| {
        let value = graph.value(*id);
        let count = value.elements() * samples;
        if value.dtype == DType::F32 {
            let magnitude = rng.log(0.1, 100.0);
            let one = |_| ((rng.unit() * 2.0 - 1.0) * magnitude) as f32;
            return (0..count).map(one).flat_map(f32::to_le_bytes).collect();
        }
        let size = value.dtype.size_in_memory();
        let values = rng.values(count, value.dtype);
        values
            .iter()
            .flat_map(|v| v.to_le_bytes()[..size].to_vec())
            .collect::<Vec<u8>>()
    };
    graph.inputs.iter().map(tensor).collect()
}

/// Checks that a backend gives the reference's bytes: fused and not, at every batch size, in an
/// instance of exactly that size and in a larger one, and that a sample's result does not depend on
/// its batch.
///
/// # Panics
/// At the first difference, naming the case, the batch and the place.
pub fn check(case: &Case, backend: &dyn Backend, seed: u64) {
    let graph = &case.graph;
    let batches: &[usize] = if graph.batched { &BATCHES } else { &[1] };
    let largest = *batches.last().expect("a batch");
    let data = inputs(graph, &mut Rng::new(seed), largest);
    let first = |tensors: &Tensors, samples: usize| -> Tensors {
        tensors
            .iter()
            .map(|t| t[..t.len() / largest * samples].to_vec())
            .collect()
    };
    let reference = run(&ReferenceBackend, graph, false, &data, largest, largest);
    let reference = reference.unwrap_or_else(|e| panic!("{}: reference: {e}", case.name));
    for &samples in batches {
        let (input, want) = (first(&data, samples), first(&reference, samples));
        for fuse in [false, true] {
            let room = if graph.batched && fuse {
                samples + 3
            } else {
                samples
            };
            let what = format!(
                "{} on {:?}, batch {samples}, fused {fuse}",
                case.name,
                backend.info()
            );
            let got = run(backend, graph, fuse, &input, samples, room);
            let got = got.unwrap_or_else(|e| panic!("{what}: {e}"));
            for (port, (got, want)) in got.iter().zip(&want).enumerate() {
                assert_eq!(got.len(), want.len(), "{what}: output {port}");
                if let Some(at) = (0..got.len()).find(|&i| got[i] != want[i]) {
                    panic!(
                        "{what}: output {port} differs at byte {at}: {} for {}",
                        got[at], want[at]
                    );
                }
            }
        }
    }
}

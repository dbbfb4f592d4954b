//! The integer model as users will run it, for judging it: compiled for the host's best kernels, fed
//! with reals.

use std::sync::Arc;

use requant_model::Graph;
use requant_runtime::{
    Backend, CompileError, CpuBackend, CpuOptions, ExecError, Form, Instance, Plan, PlanError,
    PlanOptions,
};
use thiserror::Error;

/// Why an integer model does not run.
#[derive(Debug, Error)]
pub enum EngineError {
    /// The graph is not valid, or needs too much memory.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// No kernel for a step.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// A run failed.
    #[error(transparent)]
    Run(#[from] ExecError),
}

/// Runs integer models on the host, one after the other, on the same threads.
#[derive(Debug)]
pub struct Engine {
    backend: CpuBackend,
}

/// An integer model ready to run.
pub struct Model {
    instance: Box<dyn Instance>,
    /// Elements of one sample of each input.
    inputs: Vec<usize>,
    /// Elements of one sample of each output.
    outputs: Vec<usize>,
}

impl Engine {
    /// Starts `threads` compute threads; as many as the process may use for 0.
    ///
    /// # Errors
    /// As [`CpuBackend::new`].
    pub fn new(threads: usize) -> Result<Self, EngineError> {
        let options = CpuOptions {
            threads,
            ..CpuOptions::default()
        };
        let backend = CpuBackend::new(options)?;
        Ok(Engine { backend })
    }

    /// Compiles a model for runs of up to `batch` samples; of 1 where samples would mix.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub fn load(&self, graph: Graph, batch: usize) -> Result<Model, EngineError> {
        let batch = if graph.batched { batch.max(1) } else { 1 };
        let plan = Plan::new(graph, &PlanOptions::default())?;
        let executable = self.backend.compile(Arc::new(plan))?;
        let signature = executable.plan().signature();
        let elements = |tensors: &[requant_runtime::TensorInfo]| {
            tensors.iter().map(|info| info.elements()).collect()
        };
        let (inputs, outputs) = (elements(&signature.inputs), elements(&signature.outputs));
        Ok(Model {
            instance: executable.instance(batch)?,
            inputs,
            outputs,
        })
    }
}

impl Model {
    /// Runs `samples` samples, the elements of each input one sample after the other; gives those of each
    /// output.
    ///
    /// # Errors
    /// An input of another size than `samples` samples have.
    pub fn run(&mut self, samples: usize, inputs: &[&[f32]]) -> Result<Vec<Vec<f32>>, EngineError> {
        let most = self.instance.max_batch();
        let mut outputs: Vec<Vec<f32>> = self
            .outputs
            .iter()
            .map(|elements| Vec::with_capacity(elements * samples))
            .collect();
        let mut bytes = Vec::new();
        for first in (0..samples).step_by(most) {
            let count = most.min(samples - first);
            for (index, &elements) in self.inputs.iter().enumerate() {
                let data = inputs
                    .get(index)
                    .and_then(|data| data.get(first * elements..(first + count) * elements));
                bytes.clear();
                bytes.extend(
                    data.unwrap_or_default()
                        .iter()
                        .flat_map(|v| v.to_le_bytes()),
                );
                self.instance
                    .write_input(index, 0, count, Form::Declared, &bytes)?;
            }
            self.instance.run(count)?;
            for (index, &elements) in self.outputs.iter().enumerate() {
                bytes.clear();
                bytes.resize(elements * count * size_of::<f32>(), 0);
                self.instance
                    .read_output(index, 0, count, Form::Declared, &mut bytes)?;
                let values = bytes.as_chunks().0.iter();
                outputs[index].extend(values.map(|&b| f32::from_le_bytes(b)));
            }
        }
        Ok(outputs)
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model")
            .field("inputs", &self.inputs)
            .field("outputs", &self.outputs)
            .finish_non_exhaustive()
    }
}

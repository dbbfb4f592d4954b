//! Running integer models offline: batches of samples in, reals out.

use std::sync::Arc;

use requant_model::Graph;
use requant_numerics::DType;
use requant_runtime::{
    Backend, CompileError, ExecError, Executable, Form, Plan, PlanError, PlanOptions, TensorInfo,
    contains_nan,
};
use thiserror::Error;

/// Why a model does not run.
#[derive(Debug, Error)]
pub enum RunError {
    /// The graph has no plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The backend refuses it.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// The instance refuses the batch or its data.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// NaN in an input, which no integer stands for.
    #[error("input '{input}' holds NaN")]
    NotANumber {
        /// The input.
        input: String,
    },
    /// A number that the input's type does not hold.
    #[error("input '{input}' takes {dtype}, sample {sample} holds {value}")]
    Value {
        /// The input.
        input: String,
        /// Its type.
        dtype: DType,
        /// Which sample of the batch.
        sample: usize,
        /// The number.
        value: f32,
    },
}

/// A model compiled for a backend.
pub struct Model {
    executable: Arc<dyn Executable>,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model")
            .field("name", &self.executable.plan().name())
            .finish_non_exhaustive()
    }
}

impl Model {
    /// Compiles a graph.
    ///
    /// # Errors
    /// A graph without a plan, or that the backend refuses.
    pub fn new(graph: Graph, backend: &dyn Backend) -> Result<Self, RunError> {
        let plan = Plan::new(graph, &PlanOptions::default())?;
        Ok(Model {
            executable: backend.compile(Arc::new(plan))?,
        })
    }

    /// The public inputs.
    pub fn inputs(&self) -> &[TensorInfo] {
        &self.executable.plan().signature().inputs
    }

    /// The public outputs.
    pub fn outputs(&self) -> &[TensorInfo] {
        &self.executable.plan().signature().outputs
    }

    /// Whether tensors have a leading batch dimension.
    pub fn batched(&self) -> bool {
        self.executable.plan().signature().batched
    }

    /// Runs `samples` samples: for each input its form and bytes, for each output its bytes in the declared
    /// type. A model without a batch dimension takes one sample.
    ///
    /// # Errors
    /// As [`requant_runtime::Instance`].
    pub fn run(&self, samples: usize, inputs: &[(Form, &[u8])]) -> Result<Vec<Vec<u8>>, RunError> {
        let mut instance = self.executable.instance(samples)?;
        for (index, ((form, data), info)) in inputs.iter().zip(self.inputs()).enumerate() {
            if *form == Form::Declared && info.dtype == DType::F32 && contains_nan(data) {
                return Err(RunError::NotANumber {
                    input: info.name.clone(),
                });
            }
            instance.write_input(index, 0, samples, *form, data)?;
        }
        instance.run(samples)?;
        let mut outputs = Vec::new();
        for (index, info) in self.outputs().iter().enumerate() {
            let mut data = vec![0; info.bytes(Form::Declared).unwrap_or(0) * samples];
            instance.read_output(index, 0, samples, Form::Declared, &mut data)?;
            outputs.push(data);
        }
        Ok(outputs)
    }

    /// As [`Model::run`], from and to reals: integers of an input must be whole, in its type's range.
    ///
    /// # Errors
    /// As [`Model::run`]; a number that an input's type does not hold.
    pub fn run_reals(
        &self,
        samples: usize,
        inputs: &[Vec<f32>],
    ) -> Result<Vec<Vec<f32>>, RunError> {
        let encoded = inputs.iter().zip(self.inputs());
        let encoded: Vec<Vec<u8>> = encoded
            .map(|(values, info)| encode(values, info))
            .collect::<Result<_, _>>()?;
        let inputs: Vec<(Form, &[u8])> = encoded
            .iter()
            .map(|bytes| (Form::Declared, &bytes[..]))
            .collect();
        let outputs = self.run(samples, &inputs)?;
        let decoded = outputs.iter().zip(self.outputs());
        Ok(decoded
            .map(|(bytes, info)| decode(bytes, info.dtype))
            .collect())
    }
}

/// Reals as bytes of an input's declared type.
fn encode(values: &[f32], info: &TensorInfo) -> Result<Vec<u8>, RunError> {
    if info.dtype == DType::F32 {
        return Ok(values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect());
    }
    let size = info.dtype.size_in_memory();
    let mut bytes = Vec::with_capacity(values.len() * size);
    for (index, &value) in values.iter().enumerate() {
        if value.fract() != 0.0 || !info.dtype.contains(value as i64) {
            return Err(RunError::Value {
                input: info.name.clone(),
                dtype: info.dtype,
                sample: index / info.elements().max(1),
                value,
            });
        }
        bytes.extend_from_slice(&(value as i64).to_le_bytes()[..size]);
    }
    Ok(bytes)
}

/// Bytes of a type as reals; integers of more than 24 bits are rounded.
pub fn decode(bytes: &[u8], dtype: DType) -> Vec<f32> {
    fn each<const N: usize>(bytes: &[u8], real: impl Fn([u8; N]) -> f32) -> Vec<f32> {
        let (elements, _) = bytes.as_chunks();
        elements.iter().map(|&element| real(element)).collect()
    }
    match dtype {
        DType::Binary | DType::Ternary | DType::I2 | DType::I4 | DType::I8 => {
            each(bytes, |[byte]| f32::from(byte as i8))
        }
        DType::U2 | DType::U4 | DType::U8 => each(bytes, |[byte]| f32::from(byte)),
        DType::I16 => each(bytes, |b| f32::from(i16::from_le_bytes(b))),
        DType::I32 => each(bytes, |b| i32::from_le_bytes(b) as f32),
        DType::I64 => each(bytes, |b| i64::from_le_bytes(b) as f32),
        DType::F32 => each(bytes, f32::from_le_bytes),
        DType::F64 => each(bytes, |b| f64::from_le_bytes(b) as f32),
    }
}

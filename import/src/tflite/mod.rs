//! TFLite: int8 and uint8 models to the integer graph, bit for bit as TFLite's reference kernels
//! compute them.
//!
//! `verify → read → lower`. The file is the only thing that is opened. Everything that cannot be
//! computed in integers is refused by operator, layer and reason, all of it at once.
//!
//! Layers are named after the tensors that they make, as TFLite's own tools do. A model whose inputs
//! and outputs have a leading dimension of 1 can be batched, unless an operator would mix samples.

mod error;
mod flatbuffer;
mod lower;
mod operators;
mod schema;

use std::path::Path;

use requant_model::{Graph, ModelError, NodeError};

pub use error::{FormatFault, ImportError, Reason, Refusal, TensorFault};
pub use schema::{Activation, ElementType};

use crate::file::{self, FileFault};
use schema::Model;

/// Whose kernels a model is computed like. They differ in convolutions and FULLY_CONNECTED alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Kernels {
    /// LiteRT 2.3: one product in f64, rounded half away from zero.
    #[default]
    LiteRt,
    /// TensorFlow Lite for Microcontrollers, CMSIS-NN and TFLite up to 2.14: fixed point, two roundings.
    Tflm,
    /// CMSIS-NN's scheme of power-of-two scales: accumulators are rounded by adding half and shifting.
    /// A layer with a multiplier that is no power of two is refused.
    CmsisShift,
}

impl Kernels {
    /// Every choice.
    pub const ALL: [Kernels; 3] = [Kernels::LiteRt, Kernels::Tflm, Kernels::CmsisShift];

    /// The name in options and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Kernels::LiteRt => "litert",
            Kernels::Tflm => "tflm",
            Kernels::CmsisShift => "cmsis_shift",
        }
    }
}

/// What an import may do.
#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// Largest file in bytes.
    pub max_file_bytes: u64,
    /// Whose kernels to follow.
    pub kernels: Kernels,
}

impl Default for ImportOptions {
    /// Files up to 2 GiB (flatbuffers' own limit), LiteRT's kernels.
    fn default() -> Self {
        ImportOptions {
            max_file_bytes: 1 << 31,
            kernels: Kernels::default(),
        }
    }
}

/// Imports a TFLite file. The model is named after the file.
///
/// # Errors
/// See [`ImportError`].
pub fn import_file(path: &Path, options: &ImportOptions) -> Result<Graph, ImportError> {
    let limit = options.max_file_bytes;
    let buffer = file::read(path, limit).map_err(|fault| match fault {
        FileFault::Io(source) => ImportError::Io {
            path: path.to_owned(),
            source,
        },
        FileFault::TooLarge(bytes) => ImportError::TooLarge { bytes, limit },
    })?;
    let mut graph = import_bytes(&buffer, &file::model_name(path), options)?;
    graph.provenance.extend(file::origin(path));
    Ok(graph)
}

/// Imports a TFLite model from memory under a name.
///
/// # Errors
/// See [`ImportError`].
pub fn import_bytes(
    bytes: &[u8],
    name: &str,
    options: &ImportOptions,
) -> Result<Graph, ImportError> {
    let (size, limit) = (bytes.len() as u64, options.max_file_bytes);
    if size > limit {
        return Err(ImportError::TooLarge { bytes: size, limit });
    }
    let model = Model::read(bytes)?;
    let mut graph = graph_of(&model, bytes.len(), name, options)?;
    for (key, value) in [
        ("format", "tflite".to_owned()),
        ("producer", model.description.trim().to_owned()),
        ("kernels", options.kernels.name().to_owned()),
    ] {
        graph.provenance.insert(key.to_owned(), value);
    }
    Ok(graph)
}

/// The names that the imported graph's values have, by tensor index; `None` for constants. For tools
/// that compare a model layer by layer.
///
/// # Errors
/// See [`ImportError`].
pub fn value_names(bytes: &[u8]) -> Result<Vec<Option<String>>, ImportError> {
    Ok(lower::value_names(&Model::read(bytes)?).0)
}

/// Lowers with the leading dimension as the batch where the ports allow it, and without one where
/// samples would mix.
fn graph_of(
    model: &Model<'_>,
    file_bytes: usize,
    name: &str,
    options: &ImportOptions,
) -> Result<Graph, ImportError> {
    let leads = |index: &usize| model.tensors[*index].dims.first() == Some(&1);
    let lower = |batched| lower::lower(model, file_bytes, name, options.kernels, batched);
    if model.inputs.iter().chain(&model.outputs).all(leads) {
        let graph = lower(true)?;
        match graph.validate() {
            Ok(()) => return Ok(graph),
            Err(ModelError::PortBatch { .. }) => {}
            Err(ModelError::Node { source, .. }) if *source == NodeError::MixesSamples => {}
            Err(error) => return Err(error.into()),
        }
    }
    let graph = lower(false)?;
    graph.validate()?;
    Ok(graph)
}

//! Why a model could not be quantized.

use requant_import::float::ExportError;
use thiserror::Error;

use crate::calibrate::CalibrationError;
use crate::engine::EngineError;
use crate::exec::ExecError;
use crate::search;
use crate::weights::WeightError;

/// Why a model could not be quantized.
#[derive(Debug, Error)]
pub enum PipelineError {
    /// The float model cannot be run.
    #[error("the float model does not run: {0}")]
    Float(#[from] ExecError),
    /// Samples that cannot be read any more.
    #[error(transparent)]
    Data(#[from] crate::data::SamplesLost),
    /// Activations that cannot be calibrated.
    #[error("activation '{value}': {source}")]
    Activation {
        /// The value.
        value: String,
        /// What is wrong.
        source: CalibrationError,
    },
    /// An activation that never changes.
    #[error("{0} (--allow-constant goes on all the same)")]
    Constant(super::Constant),
    /// A layer that gives the same whatever it reads.
    #[error(
        "layer '{0}': all its weights are 0, so that nothing of what it reads counts (--allow-constant goes on all the same)"
    )]
    DeadLayer(String),
    /// Weights that cannot be rounded.
    #[error("layer '{layer}': {source}")]
    Weights {
        /// The layer.
        layer: String,
        /// What is wrong.
        source: WeightError,
    },
    /// A layer that the model does not have.
    #[error("{flag} names layer '{layer}', the model has {}", present.join(", "))]
    NoLayer {
        /// What names it.
        flag: &'static str,
        /// The name.
        layer: String,
        /// Names that it has.
        present: Vec<String>,
    },
    /// A model without layers.
    #[error("the model has no convolution or matrix product: there is nothing to quantize")]
    NoLayers,
    /// The integer graph cannot be made.
    #[error("the integer model cannot be made: {0}")]
    Export(#[from] ExportError),
    /// The integer model does not run.
    #[error("the integer model does not run: {0}")]
    Engine(#[from] EngineError),
    /// A block cannot be reconstructed.
    #[error(transparent)]
    Reconstruct(#[from] crate::reconstruct::ReconstructError),
    /// A sensitivity that cannot be measured.
    #[error("--sensitivity {measure}: {source}; kl and mse need no gradients")]
    Sensitivity {
        /// By what.
        measure: search::sensitivity::Measure,
        /// What is wrong.
        source: crate::reconstruct::ReconstructError,
    },
    /// The search found nothing.
    #[error(transparent)]
    Search(#[from] search::Error),
    /// A profile that does not hold the model's layers.
    #[error(transparent)]
    Latency(#[from] crate::latency::LatencyError),
    /// The job was stopped.
    #[error("interrupted; run it again with --resume to go on")]
    Interrupted,
}

impl PipelineError {
    /// A fault of a layer's weights.
    pub(super) fn weights(layer: &str, source: WeightError) -> Self {
        PipelineError::Weights {
            layer: layer.to_owned(),
            source,
        }
    }
}

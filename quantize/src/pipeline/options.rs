//! What a run is asked for.

use std::fmt;
use std::str::FromStr;

use requant_numerics::{ActivationPrecision, LayerPrecision};
use requant_runtime::Backend;

use crate::calibrate::Calibrator;
use crate::latency::LatencyTable;
use crate::precision::{Activations, Fix, Weights};
use crate::reconstruct::Effort;
use crate::search::sensitivity::Measure;
use crate::search::{Budgets, Settings};
use crate::weights::Rounding;

/// How weights are rounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// Layer by layer, and block by block after that where a layer reads 4-bit activations.
    #[default]
    Auto,
    /// Layer by layer.
    Layer(Rounding),
    /// Layer by layer, then block by block.
    Block,
}

/// A word that names no method.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is none of auto, nearest, gptq, adaround, descent and block")]
pub struct UnknownMethod(String);

impl Method {
    pub(super) fn rounding(self) -> Rounding {
        match self {
            Method::Layer(rounding) => rounding,
            Method::Auto | Method::Block => Rounding::default(),
        }
    }

    pub(super) fn reconstructs(self, precisions: &[LayerPrecision]) -> bool {
        match self {
            Method::Layer(_) => false,
            Method::Block => true,
            Method::Auto => precisions
                .iter()
                .any(|precision| precision.activations == ActivationPrecision::A4),
        }
    }
}

impl FromStr for Method {
    type Err = UnknownMethod;

    fn from_str(word: &str) -> Result<Self, UnknownMethod> {
        match word {
            "auto" => Ok(Method::Auto),
            "block" => Ok(Method::Block),
            other => match other.parse() {
                Ok(rounding) => Ok(Method::Layer(rounding)),
                Err(_) => Err(UnknownMethod(other.to_owned())),
            },
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Method::Auto => f.write_str("auto"),
            Method::Block => f.write_str("block"),
            Method::Layer(rounding) => rounding.fmt(f),
        }
    }
}

/// What is asked of a run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Weights.
    pub weights: Weights,
    /// Activations.
    pub activations: Activations,
    /// How ranges are picked.
    pub calibrator: Calibrator,
    /// How weights are rounded.
    pub method: Method,
    /// Weights of 2 and 4 bits that share a multiplier; none for a scale a channel alone.
    pub group: Option<usize>,
    /// How much work a block reconstruction is.
    pub effort: Effort,
    /// Layers whose precision the user has chosen.
    pub fixes: Vec<Fix>,
    /// Sets of layers, by name, that a search gives one precision.
    pub ties: Vec<Vec<String>>,
    /// What the model may cost, as fractions of the 8-bit model's cost; none for no search.
    pub budgets: Option<Budgets>,
    /// How precisions are searched.
    pub search: Settings,
    /// What a precision's harm is measured by.
    pub sensitivity: Measure,
    /// Samples on which each precision of each layer is tried.
    pub trial_samples: usize,
    /// Samples on which a search judges a whole model.
    pub judge_samples: usize,
    /// Whether activations that are one number in all samples, and layers whose weights are all 0, are let
    /// pass, with a warning.
    pub allow_constant: bool,
    /// Compute threads of the engine; all for 0.
    pub threads: usize,
}

impl Default for Options {
    /// 8 bits everywhere.
    fn default() -> Self {
        Options {
            weights: Weights::Auto,
            activations: Activations::Eight,
            calibrator: Calibrator::MinMax,
            method: Method::Auto,
            group: None,
            effort: Effort::default(),
            fixes: Vec::new(),
            ties: Vec::new(),
            budgets: None,
            search: Settings::default(),
            sensitivity: Measure::default(),
            trial_samples: 32,
            judge_samples: 128,
            allow_constant: false,
            threads: 0,
        }
    }
}

/// A device that the model is made for, and what was measured on it.
#[derive(Clone, Copy)]
pub struct Device<'a> {
    /// Latencies.
    pub table: &'a LatencyTable,
    /// What computes.
    pub backend: &'a dyn Backend,
}

impl fmt::Debug for Device<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device")
            .field("backend", &self.backend.info())
            .finish_non_exhaustive()
    }
}

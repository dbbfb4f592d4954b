//! A float graph with the integers that stand for its values: what calibration, rounding and search
//! decided, in one place. It becomes an ONNX QDQ file or the native integer graph.

use std::collections::BTreeMap;

use requant_model::Affine;
use requant_numerics::DType;

use super::graph::{Graph, ValueId};

/// A graph and the integers of its values and weights.
#[derive(Clone, Debug)]
pub struct Quantized<'g> {
    /// The reals.
    pub graph: &'g Graph,
    /// The integers of each value, by [`ValueId`]; none for a value that stays real: behind the last
    /// dequantize (a softmax at the end).
    pub values: Vec<Option<ActivationQuant>>,
    /// Operands (node, operand) that are read at another quantization than the value has: one
    /// requantization more, on that edge alone. So a layer reads 4 bits of an 8-bit value, or 8 of a 16-bit
    /// residual stream.
    pub operands: BTreeMap<(usize, usize), ActivationQuant>,
    /// The integers of each layer's weights, by node; none for a node that is no layer.
    pub layers: Vec<Option<LayerQuant>>,
}

/// The integers of an activation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ActivationQuant {
    /// Type: `u8`, `i8`, `u4`, `i4`, or `i16` with zero point 0.
    pub dtype: DType,
    /// Scale and zero point.
    pub quant: Affine,
}

/// The integers of a layer's weights and bias.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerQuant {
    /// How the weights are stored: `i8`, `i4`, `i2`, `ternary` or `binary`; `i8` with a codebook.
    pub dtype: DType,
    /// Weights, `[O, K]` in the order of the float weights (`[O, I/g, KH, KW]` or `[N, K]`), before group
    /// multipliers.
    pub weights: Vec<i8>,
    /// A scale an output channel.
    pub scales: Vec<f32>,
    /// Bias at `s_x·scales[o]`, where `s_x` is the scale at which the layer reads its first operand.
    pub bias: Vec<i32>,
    /// Integer multipliers of groups along K, for at most 4 bits.
    pub groups: Option<GroupScales>,
    /// What the weights are made of, where that is a codebook.
    pub codebook: Option<CodebookWeights>,
}

/// `scale = channel_scale·u` for each group of consecutive weights along K of the *stored* order: `[N, K]` of
/// a matrix product, `[O, KH, KW, I/g]` of a convolution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupScales {
    /// Weights a group.
    pub size: usize,
    /// Places of a convolution's window, `KH·KW`; 1 of a matrix product.
    pub taps: usize,
    /// `[O, ceil(K/size)]`, in 1..=127.
    pub multipliers: Vec<u8>,
}

/// Weights as indices of centroids, along K of the stored order: `[O, KH, KW, I/g]` of a convolution,
/// `[N, K]` of a matrix product.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodebookWeights {
    /// `[O, ceil(K/width)]`.
    pub indices: Vec<u8>,
    /// `[n, width]`, at most 256 rows.
    pub centroids: Vec<i8>,
    /// Weights of a centroid.
    pub width: usize,
}

impl GroupScales {
    /// The multiplier of weight `k` of `depth` of output channel `output`, both in the order of
    /// [`LayerQuant::weights`]; 1 for a weight that the layer does not have.
    pub fn multiplier(&self, output: usize, k: usize, depth: usize) -> u8 {
        let (taps, size) = (self.taps.max(1), self.size.max(1));
        let stored = k % taps * (depth / taps) + k / taps;
        let at = output * depth.div_ceil(size) + stored / size;
        self.multipliers.get(at).copied().unwrap_or(1)
    }
}

impl Quantized<'_> {
    /// At what quantization a node reads an operand; none for a real.
    pub fn operand(&self, node: usize, operand: usize) -> Option<ActivationQuant> {
        let own = || {
            let value: ValueId = *self.graph.nodes.get(node)?.inputs.get(operand)?;
            *self.values.get(value.0)?
        };
        self.operands.get(&(node, operand)).copied().or_else(own)
    }
}

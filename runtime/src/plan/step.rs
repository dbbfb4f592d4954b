//! One step of a plan, with every parameter resolved: backends look nothing up in the graph.

use std::sync::Arc;

use requant_model::ops::{WeightData, Window};
use requant_numerics::edge::{self, EdgeRounding};
use requant_numerics::elementwise::{AddParams, MulParams};
use requant_numerics::requantize::index;
use requant_numerics::softmax::{ByteTable, ExpTable};
use requant_numerics::table::Table;
use requant_numerics::tflite;
use requant_numerics::{Dyadic, LayerPrecision, Requantize, Residual};

use super::BufferId;

/// A step: an operation over buffers.
#[derive(Clone, Debug)]
pub struct Step {
    /// Name of the layer: the node's, or the first of the nodes fused into it.
    pub name: String,
    /// What to compute.
    pub op: StepOp,
    /// What it reads, in the operation's order; epilogue operands are in [`Epilogue`].
    pub inputs: Vec<BufferId>,
    /// What it writes.
    pub outputs: Vec<BufferId>,
    /// Precision, where it multiplies.
    pub precision: Option<LayerPrecision>,
    /// Multiply-accumulates of one sample.
    pub macs: u64,
}

impl Step {
    /// Every buffer that the step reads.
    pub fn reads(&self) -> impl Iterator<Item = BufferId> + '_ {
        let epilogue = if let StepOp::Conv(conv) = &self.op {
            Some(&conv.epilogue)
        } else {
            None
        };
        let operand = epilogue.and_then(|e| e.join.as_ref()).map(Join::buffer);
        self.inputs
            .iter()
            .copied()
            .chain(operand)
            .chain(self.zero_point())
    }

    /// Every buffer that the step reads or writes.
    pub fn touches(&self) -> impl Iterator<Item = BufferId> + '_ {
        self.reads().chain(self.outputs.iter().copied())
    }

    /// The buffer of a dynamic zero point.
    fn zero_point(&self) -> Option<BufferId> {
        let operand = if let StepOp::Conv(conv) = &self.op {
            conv.zero_point
        } else if let StepOp::MatMul { zero_point_a, .. } = &self.op {
            *zero_point_a
        } else {
            return None;
        };
        match operand {
            Operand::Dynamic(buffer) => Some(buffer),
            Operand::Static(_) => None,
        }
    }
}

/// A zero point that is known, or computed for each sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// Known when the plan is made.
    Static(i32),
    /// In a buffer, `u8`, one a sample.
    Dynamic(BufferId),
}

/// A convolution or matrix product (which is a 1×1 convolution over its rows).
#[derive(Clone, Debug)]
pub struct ConvStep {
    /// Input of one sample: images, height, width, channels.
    pub input: [usize; 4],
    /// Output of one sample.
    pub output: [usize; 4],
    /// Kernel, strides, padding, dilations.
    pub window: Window,
    /// Groups.
    pub groups: usize,
    /// Constant weights; without them the step's second input holds them.
    pub weights: Option<Arc<WeightData>>,
    /// Zero point of weights that are not constant.
    pub weight_zero_point: i32,
    /// Zero point of the input.
    pub zero_point: Operand,
    /// What elements outside the input count as, less the zero point: 1 around binary inputs, 0
    /// otherwise.
    pub outside: i32,
    /// One bias an output channel, or none.
    pub bias: Vec<i32>,
    /// What happens to the accumulator.
    pub epilogue: Epilogue,
}

/// From accumulator to output.
#[derive(Clone, Debug)]
pub struct Epilogue {
    /// Requantization; without it the output is the `i32` accumulator, or what that stands for.
    pub requantize: Option<Requantize>,
    /// Makes the output `f32`, where nothing else follows the accumulator.
    pub real: Option<Real>,
    /// A second operand.
    pub join: Option<Join>,
    /// A last table.
    pub table: Option<Arc<Table>>,
}

/// What accumulators stand for: `f32(acc)·scale`, and perhaps something added to that.
#[derive(Clone, Debug, PartialEq)]
pub struct Real {
    /// One, or one an output channel.
    pub scales: Vec<f32>,
    /// None, one, or one an output channel.
    pub offset: Vec<f32>,
}

impl Real {
    /// What an accumulator of a channel stands for.
    pub fn of(&self, acc: i32, channel: usize) -> f32 {
        let scale = self.scales[index(self.scales.len(), channel)];
        let value = edge::dequantize(acc, scale, 0);
        match &self.offset[..] {
            [] => value,
            offset => value + offset[index(offset.len(), channel)],
        }
    }
}

/// A second operand of an epilogue.
#[derive(Clone, Debug)]
pub enum Join {
    /// Added before the one rounding.
    Residual {
        /// The operand.
        buffer: BufferId,
        /// Its multipliers.
        residual: Residual,
    },
    /// A sum of its own, after the requantization.
    Add {
        /// The other operand.
        buffer: BufferId,
        /// The sum's arithmetic.
        params: AddParams,
        /// Whether the product is the sum's first operand.
        first: bool,
    },
}

impl Join {
    /// The operand.
    pub fn buffer(&self) -> BufferId {
        match self {
            Join::Residual { buffer, .. } | Join::Add { buffer, .. } => *buffer,
        }
    }
}

/// Scales along an axis of a float edge.
#[derive(Clone, Debug)]
pub struct AxisScales {
    /// How elements map to scales.
    pub blocks: requant_model::ops::BlockScales,
    /// Scales.
    pub scales: Vec<f32>,
    /// Zero points, as many.
    pub zero_points: Vec<i32>,
}

/// How a float edge is scaled.
#[derive(Clone, Debug)]
pub enum EdgeScales {
    /// One scale.
    Tensor {
        /// Scale.
        scale: f32,
        /// Zero point.
        zero_point: i32,
    },
    /// Scales along an axis.
    Axis(AxisScales),
}

/// What a step computes.
#[derive(Clone, Debug)]
pub enum StepOp {
    /// Float to integers.
    Quantize {
        /// Scales.
        scales: EdgeScales,
        /// Ties.
        rounding: EdgeRounding,
    },
    /// Integers to float.
    Dequantize {
        /// Scales.
        scales: EdgeScales,
        /// Added last, one or one an index of the last axis.
        offset: Option<Vec<f32>>,
    },
    /// Float to integers by thresholds: `lo + step·#{i : x ≥ t_i}`.
    EdgeThresholds {
        /// Thresholds.
        thresholds: Vec<f32>,
        /// Lowest output.
        lo: i32,
        /// From one output to the next.
        step: i32,
    },
    /// Convolution or product with weights.
    Conv(Box<ConvStep>),
    /// Product of two activations `[…, M, K] × […, K, N]`.
    MatMul {
        /// Zero point of the first operand.
        zero_point_a: Operand,
        /// Zero point of the second operand.
        zero_point_b: i32,
        /// Requantization; without it the output is the `i32` accumulator.
        requantize: Option<Requantize>,
    },
    /// Sum.
    Add(AddParams),
    /// Product, element by element.
    Mul(MulParams),
    /// Table lookup.
    Table {
        /// Tables of 256 bytes, one, or one an index of the axis.
        tables: Vec<u8>,
        /// The axis that selects a table.
        axis: Option<usize>,
    },
    /// Requantization on its own.
    Rescale {
        /// Zero point of the input.
        zero_point: i32,
        /// Parameters, one set or one an index of the last axis.
        requantize: Requantize,
    },
    /// Largest element of each window.
    MaxPool(Window),
    /// Mean of each window.
    AveragePool {
        /// The window.
        window: Window,
        /// Whether padding counts.
        include_pad: bool,
        /// Zero point of the input.
        zero_point: i32,
        /// Parameters, indexed by the element count less 1.
        requantize: Requantize,
    },
    /// Mean over whole axes.
    Mean {
        /// The axes.
        axes: Vec<usize>,
        /// Zero point of the input.
        zero_point: i32,
        /// Parameters, one set.
        requantize: Requantize,
    },
    /// Joins values.
    Concat {
        /// The axis.
        axis: usize,
    },
    /// Strided part.
    Slice {
        /// First index along each axis.
        starts: Vec<usize>,
        /// Step along each axis.
        steps: Vec<i64>,
    },
    /// Constant border.
    Pad {
        /// Elements before, along each axis.
        before: Vec<usize>,
        /// The integer.
        value: i32,
    },
    /// Permutes axes.
    Transpose {
        /// Source axis of each output axis.
        perm: Vec<usize>,
    },
    /// Nearest-neighbour resize.
    ResizeNearest {
        /// Source row of each output row.
        rows: Vec<usize>,
        /// Source column of each output column.
        columns: Vec<usize>,
    },
    /// Linear resize: two positions and the second's weight in 1/1024, for each row and column.
    ResizeLinear {
        /// Rows.
        rows: Vec<[i32; 3]>,
        /// Columns.
        columns: Vec<[i32; 3]>,
        /// Zero point of the input.
        zero_point: i32,
        /// Parameters, one set.
        requantize: Requantize,
    },
    /// Softmax of floats.
    Softmax {
        /// The axis.
        axis: usize,
        /// Whether the result is the logarithm.
        log: bool,
    },
    /// Softmax in integers.
    IntegerSoftmax(Box<IntegerSoftmax>),
    /// Layer normalization in integers.
    LayerNorm(Box<LayerNorm>),
    /// Softmax from 8 bits to 8 bits.
    QLinearSoftmax {
        /// The axis.
        axis: usize,
        /// Exponentials.
        table: Box<ExpTable>,
        /// `floor(1/s_y)`.
        inverse_scale: f32,
        /// Zero point of the output.
        zero_point: i32,
    },
    /// TFLite's softmax from 8 bits to 8 bits.
    TfliteSoftmax {
        /// The axis.
        axis: usize,
        /// Exponentials.
        table: Box<tflite::ExpTable>,
    },
    /// Index of the largest element.
    ArgMax {
        /// The axis.
        axis: usize,
        /// Whether the highest index wins.
        last: bool,
    },
    /// Quantization with the sample's own range; outputs: integers, scale, zero point.
    DynamicQuantize,
    /// Accumulator to float with a dynamic scale (the second input).
    ScaleAccumulator {
        /// Scales of the weights, one or one a channel.
        scales: Vec<f32>,
        /// Bias, one or one a channel.
        bias: Option<Vec<f32>>,
        /// Whether negative results become 0.
        relu: bool,
    },
}

/// Softmax in integers along an axis: [`requant_numerics::softmax::integer_softmax`], then
/// `clamp(r + zero_point, lo, hi)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IntegerSoftmax {
    /// The axis.
    pub axis: usize,
    /// Exponentials.
    pub table: ByteTable,
    /// `1/s_y`.
    pub inverse: Dyadic,
    /// Zero point of the output.
    pub zero_point: i32,
    /// Lowest output.
    pub lo: i32,
    /// Highest output.
    pub hi: i32,
}

/// Layer normalization along an axis: [`requant_numerics::layer_norm::layer_norm`], requantized.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerNorm {
    /// The axis.
    pub axis: usize,
    /// What is added to the variance, in its steps.
    pub epsilon: u64,
    /// Factor of each index of the axis.
    pub gamma: Vec<i32>,
    /// Offset of each index of the axis.
    pub beta: Vec<i32>,
    /// Parameters, one set.
    pub requantize: Requantize,
}

impl StepOp {
    /// Name of the operation, as profiles show it.
    pub const fn name(&self) -> &'static str {
        match self {
            StepOp::Quantize { .. } => "quantize",
            StepOp::Dequantize { .. } => "dequantize",
            StepOp::EdgeThresholds { .. } => "edge_thresholds",
            StepOp::Conv(_) => "conv",
            StepOp::MatMul { .. } => "mat_mul",
            StepOp::Add(_) => "add",
            StepOp::Mul(_) => "mul",
            StepOp::Table { .. } => "table",
            StepOp::Rescale { .. } => "rescale",
            StepOp::MaxPool(_) => "max_pool",
            StepOp::AveragePool { .. } => "average_pool",
            StepOp::Mean { .. } => "mean",
            StepOp::Concat { .. } => "concat",
            StepOp::Slice { .. } => "slice",
            StepOp::Pad { .. } => "pad",
            StepOp::Transpose { .. } => "transpose",
            StepOp::ResizeNearest { .. } => "resize_nearest",
            StepOp::ResizeLinear { .. } => "resize_linear",
            StepOp::Softmax { log: false, .. } => "softmax",
            StepOp::Softmax { log: true, .. } => "log_softmax",
            StepOp::IntegerSoftmax(_) => "integer_softmax",
            StepOp::LayerNorm(_) => "layer_norm",
            StepOp::QLinearSoftmax { .. } => "q_linear_softmax",
            StepOp::TfliteSoftmax { .. } => "tflite_softmax",
            StepOp::ArgMax { .. } => "arg_max",
            StepOp::DynamicQuantize => "dynamic_quantize",
            StepOp::ScaleAccumulator { .. } => "scale_accumulator",
        }
    }
}

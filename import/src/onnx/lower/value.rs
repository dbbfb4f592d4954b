//! What an ONNX tensor is while the graph is being lowered: a constant, integers of the graph, or a
//! float expression over integers that waits for the QuantizeLinear that makes it one node.

use std::sync::Arc;

use requant_model::{Affine, ValueId};

use crate::onnx::constant::{Constant, QuantConstant, ScaleLayout};
use crate::onnx::error::Reason;

pub(crate) use crate::float::Clamp;
pub(crate) use crate::onnx::rules::Pool;

/// A value of the graph with its axes in another order: `value.dims[i]` is the extent of the ONNX
/// tensor's axis `perm[i]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Placed {
    pub(crate) id: ValueId,
    pub(crate) perm: Vec<usize>,
}

impl Placed {
    /// A value in ONNX's own order.
    pub(crate) fn plain(id: ValueId, rank: usize) -> Self {
        Placed {
            id,
            perm: (0..rank).collect(),
        }
    }

    /// The value's axis that is the ONNX tensor's `axis`.
    pub(crate) fn axis(&self, axis: usize) -> usize {
        self.perm.iter().position(|&p| p == axis).unwrap_or(0)
    }
}

/// Shape of an ONNX tensor; the leading extent counts per sample where it is batched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) dims: Vec<usize>,
    pub(crate) batched: bool,
}

impl Shape {
    pub(crate) fn rank(&self) -> usize {
        self.dims.len()
    }
}

/// What an ONNX tensor is.
#[derive(Clone, Debug)]
pub(crate) enum Mapped {
    /// A constant.
    Constant(Arc<Constant>),
    /// A constant behind a DequantizeLinear.
    Quantized(Arc<QuantConstant>),
    /// Integers; their quantization is the value's, or the one here where it is along an axis.
    Integer(Placed, Option<Arc<Scales>>),
    /// A float expression.
    Float(Float),
    /// Result 1 of DynamicQuantizeLinear.
    Dynamic {
        values: Placed,
        scale: ValueId,
        zero_point: ValueId,
    },
    /// Result 2 of DynamicQuantizeLinear, times constants.
    DynamicScale {
        scale: ValueId,
        factors: Arc<Vec<f32>>,
    },
    /// Result 3 of DynamicQuantizeLinear.
    DynamicZeroPoint(ValueId),
    /// An `i32` accumulator of ConvInteger or MatMulInteger, and the scale it waits for where its
    /// activations are dynamic.
    Accumulator(Placed, Option<ValueId>),
    /// Indices of ArgMax.
    Indices(Placed),
    /// The result of a refused node.
    Refused,
}

impl Mapped {
    /// The constant, where it is one that is not quantized.
    pub(crate) fn constant(&self) -> Option<&Arc<Constant>> {
        if let Mapped::Constant(constant) = self {
            Some(constant)
        } else {
            None
        }
    }

    /// The constant behind a DequantizeLinear, where it is one.
    pub(crate) fn quantized(&self) -> Option<&Arc<QuantConstant>> {
        if let Mapped::Quantized(constant) = self {
            Some(constant)
        } else {
            None
        }
    }

    /// The float expression, where it is one.
    pub(crate) fn float(&self) -> Option<&Float> {
        if let Mapped::Float(float) = self {
            Some(float)
        } else {
            None
        }
    }

    /// The integers, where they have one scale.
    pub(crate) fn integers(&self) -> Option<&Placed> {
        if let Mapped::Integer(placed, None) = self {
            Some(placed)
        } else {
            None
        }
    }
}

/// Scales along an axis or in blocks, of an activation.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scales {
    pub(crate) layout: ScaleLayout,
    pub(crate) scales: Vec<f32>,
    pub(crate) zero_points: Vec<i32>,
}

/// A real-valued ONNX tensor.
#[derive(Clone, Debug)]
pub(crate) struct Float {
    pub(crate) kind: Kind,
    pub(crate) shape: Shape,
    /// Applied to the result; unused by kinds that cannot hold one.
    pub(crate) clamp: Clamp,
    /// Index of the node that made it.
    pub(crate) origin: usize,
    /// How large the expression is.
    pub(crate) extent: Extent,
}

/// How large a float expression is: what is nested too deeply, or joined too often, is refused before
/// it is walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    depth: usize,
    parts: usize,
}

impl Extent {
    const MAX_DEPTH: usize = 64;
    const MAX_PARTS: usize = 1024;

    /// The extent of an expression made of these.
    pub(crate) fn of<'a>(inner: impl Iterator<Item = &'a Float>) -> Self {
        let one = Extent { depth: 0, parts: 1 };
        inner.fold(one, |sum, float| Extent {
            depth: sum.depth.max(float.extent.depth + 1),
            parts: sum.parts + float.extent.parts,
        })
    }

    /// Number of expressions in it.
    pub(crate) fn parts(self) -> usize {
        self.parts
    }

    /// Refuses what is too large.
    pub(crate) fn check(self) -> Result<(), Reason> {
        if self.depth > Self::MAX_DEPTH || self.parts > Self::MAX_PARTS {
            return Err(Reason::Nesting);
        }
        Ok(())
    }
}

impl Kind {
    /// How large an expression of this kind is.
    pub(crate) fn extent(&self) -> Extent {
        match self {
            Kind::Moved { inner, .. }
            | Kind::Softmax { inner, .. }
            | Kind::Affine { inner, .. } => Extent::of(std::iter::once(&**inner)),
            Kind::Concat { parts, .. } => Extent::of(parts.iter().filter_map(|part| match part {
                Part::Float(float) => Some(float),
                Part::Constant(_) => None,
            })),
            Kind::Edge(_)
            | Kind::Activation { .. }
            | Kind::Scaled { .. }
            | Kind::Linear(_)
            | Kind::Binary { .. }
            | Kind::Mean { .. }
            | Kind::AveragePool { .. }
            | Kind::Interpolate { .. }
            | Kind::Function { .. }
            | Kind::Dynamic { .. } => Extent::of(std::iter::empty()),
        }
    }
}

/// What the reals are made of.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    /// An f32 value of the graph: its edge.
    Edge(Placed),
    /// Dequantized integers.
    Activation { source: Placed, quant: Affine },
    /// Integers dequantized with scales along an axis.
    Scaled { source: Placed, scales: Arc<Scales> },
    /// Convolution or matrix product.
    Linear(Arc<Linear>),
    /// `gain·x + offset` of a convolution, matrix product or input, one pair or one a channel: what
    /// waits for the thresholds of QONNX.
    Affine {
        inner: Box<Float>,
        gain: Arc<Vec<f64>>,
        offset: Arc<Vec<f64>>,
    },
    /// Sum, difference or product of two activations.
    Binary {
        op: BinaryOp,
        a: Operand,
        b: Operand,
    },
    /// Mean over axes, which stay with extent 1.
    Mean {
        source: Placed,
        quant: Affine,
        axes: Vec<usize>,
    },
    /// Mean of windows.
    AveragePool {
        source: Placed,
        quant: Affine,
        pool: Pool,
        include_pad: bool,
    },
    /// Linear interpolation.
    Interpolate {
        source: Placed,
        quant: Affine,
        resize: Resampling,
    },
    /// A function of each element: 256 reals by the element's byte, or as many for each index of an
    /// axis.
    Function {
        source: Placed,
        axis: Option<usize>,
        values: Arc<Vec<f64>>,
    },
    /// Softmax along an axis, or its logarithm; `flat` takes everything from the axis on as one row (opset
    /// 12 and older).
    Softmax {
        inner: Box<Float>,
        axis: usize,
        flat: bool,
        log: bool,
    },
    /// Elements moved.
    Moved { inner: Box<Float>, change: Move },
    /// Joined along an axis.
    Concat { parts: Vec<Part>, axis: usize },
    /// A dynamic accumulator times its scales, plus bias.
    Dynamic {
        accumulator: Placed,
        scale: ValueId,
        factors: Arc<Vec<f32>>,
        bias: Option<Arc<Vec<f32>>>,
    },
}

/// A part of a concatenation.
#[derive(Clone, Debug)]
pub(crate) enum Part {
    Float(Float),
    Constant(Arc<QuantConstant>),
}

/// An operand of a binary operator.
#[derive(Clone, Debug)]
pub(crate) enum Operand {
    /// A value with its own quantization.
    Value(Placed),
    Constant(Arc<QuantConstant>),
}

/// A binary operator on activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BinaryOp {
    Sum,
    Difference,
    Product,
}

/// A resize of two axes of a tensor of rank 4.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Resampling {
    pub(crate) size: [usize; 2],
    /// `[OH]` or `[OH, 3]`, and the same for columns; see [`requant_model::ops::Interpolation`].
    pub(crate) rows: Vec<i64>,
    pub(crate) columns: Vec<i64>,
    pub(crate) channels_last: bool,
}

/// A move of elements, by ONNX axes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Move {
    Reshape(Vec<usize>),
    Transpose(Vec<usize>),
    /// Start, step and count along each axis.
    Slice(Vec<(usize, i64, usize)>),
    /// Elements before and after along each axis, and the real that they hold.
    Pad {
        before: Vec<usize>,
        after: Vec<usize>,
        value: f32,
    },
    /// Elements picked along an axis, in any order and more than once.
    Gather {
        axis: usize,
        picks: Vec<usize>,
    },
    MaxPool(Pool),
    Nearest(Resampling),
}

/// A convolution or matrix product with a real-valued result.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    /// The activations and their scale; a scale of 1 where the accumulator itself is wanted.
    pub(crate) source: Placed,
    pub(crate) quant: Affine,
    pub(crate) weights: Weights,
    pub(crate) kernel: LinearKernel,
    pub(crate) bias: Bias,
    /// Multiplies the result.
    pub(crate) gain: f32,
    /// A value of the result's shape that is added before the one rounding of native models.
    pub(crate) residual: Option<(Placed, Affine)>,
}

/// What a linear layer does with its weights.
#[derive(Clone, Debug)]
pub(crate) enum LinearKernel {
    /// Weights `[O, C/g, KH, KW]`.
    Conv { pool: Pool, groups: usize },
    /// Weights `[N, K]` where `transposed`, `[K, N]` otherwise.
    Gemm { transposed: bool },
    /// Both operands computed, or constants of more than two dimensions.
    MatMul,
}

/// Weights of a linear layer.
#[derive(Clone, Debug)]
pub(crate) enum Weights {
    Constant(Arc<QuantConstant>),
    Value { source: Placed, quant: Affine },
}

/// What is added to the accumulator: integers at its own scale and reals.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bias {
    pub(crate) steps: Option<Arc<Vec<i64>>>,
    pub(crate) reals: Option<Arc<Vec<f64>>>,
}

/// Why lowering a node stopped.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The node is refused.
    Refuse(Reason),
    /// An earlier node is refused.
    Blame(usize, Reason),
    /// The samples of a batch would mix.
    MixesSamples,
    /// An operand was refused before.
    Refused,
}

impl From<Reason> for Stop {
    fn from(reason: Reason) -> Self {
        Stop::Refuse(reason)
    }
}

/// The result of lowering something.
pub(crate) type Lowered<T> = Result<T, Stop>;

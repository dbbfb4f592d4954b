//! The graph of reals: what a float ONNX model computes, with constants folded, batch norms folded into
//! the weights before them, and activations and residual sums joined to what they follow. Tensors keep
//! ONNX's order of axes (`[N, C, H, W]`).

use std::collections::BTreeMap;
use std::sync::Arc;

use requant_model::ops::Window;

use super::map::Map;

/// Index of a value in [`Graph::values`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub usize);

/// A whole float model. Nodes are in topological order, each with one result.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// Name of the model.
    pub name: String,
    /// Whether the leading dimension of inputs and outputs is the batch.
    pub batched: bool,
    /// Inputs and results of nodes; constants live in the nodes ([`Op::Constant`] is one of them).
    pub values: Vec<Value>,
    /// Nodes in topological order.
    pub nodes: Vec<Node>,
    /// Public inputs, in order.
    pub inputs: Vec<Port>,
    /// Public outputs, in order.
    pub outputs: Vec<Port>,
    /// Producer, opset and the like.
    pub provenance: BTreeMap<String, String>,
}

/// A public input or output: the value and the file's name for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The value.
    pub value: ValueId,
    /// Public name.
    pub name: String,
}

/// A real-valued tensor that is computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// Name; unique in the graph.
    pub name: String,
    /// Shape; the leading extent counts per sample where the value is batched.
    pub dims: Vec<usize>,
    /// Whether the leading dimension is multiplied by the number of samples.
    pub batched: bool,
}

impl Value {
    /// Elements of one sample.
    pub fn elements(&self) -> usize {
        self.dims.iter().product()
    }
}

/// An operator with its operands.
#[derive(Clone, Debug)]
pub struct Node {
    /// Name; unique in the graph. That of the ONNX node that does the work.
    pub name: String,
    /// The operator and its constants.
    pub op: Op,
    /// Operands, in the operator's order.
    pub inputs: Vec<ValueId>,
    /// The result.
    pub output: ValueId,
}

/// A constant of reals, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Shape.
    pub dims: Vec<usize>,
    /// Elements.
    pub data: Vec<f32>,
}

/// Limits that a fused ReLU, ReLU6 or Clip sets; infinite where there is none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clamp {
    /// Lowest result.
    pub lo: f32,
    /// Highest result.
    pub hi: f32,
}

impl Clamp {
    /// No limit.
    pub const NONE: Clamp = Clamp {
        lo: f32::NEG_INFINITY,
        hi: f32::INFINITY,
    };
    /// What Relu leaves.
    pub const RELU: Clamp = Clamp {
        lo: 0.0,
        hi: f32::INFINITY,
    };

    /// This clamp followed by another.
    pub fn then(self, next: Clamp) -> Clamp {
        Clamp {
            lo: next.apply(self.lo),
            hi: next.apply(self.hi),
        }
    }

    /// The nearest real inside the limits.
    pub fn apply(self, x: f32) -> f32 {
        x.max(self.lo).min(self.hi)
    }
}

/// An operator and its constants.
#[derive(Clone, Debug)]
pub enum Op {
    /// A tensor that is no weight of a layer, as a value of no operands and the same for every sample:
    /// priors that a product of two values takes, say.
    Constant(Arc<Tensor>),
    /// Convolution: operands `x` and, where [`Conv::residual`] is set, a value of the result's shape.
    Conv(Conv),
    /// Product with a weight matrix: operands as of [`Op::Conv`].
    Gemm(Gemm),
    /// `clamp(a · b)` of two values, the last two axes, the others broadcast.
    MatMul(Clamp),
    /// Sum, difference or product of two values, broadcast by NumPy's rule.
    Binary(Binary),
    /// A function of each element of one value.
    Map(Map),
    /// Largest element of each window of `[N, C, H, W]` (or `[N, C, L]`, height 1); padding never wins.
    MaxPool(Window),
    /// Mean of each window.
    AveragePool(AveragePool),
    /// Mean over axes (ascending), which stay with extent 1.
    Mean {
        /// The axes.
        axes: Vec<usize>,
        /// Limits of the result.
        clamp: Clamp,
    },
    /// Values joined along an axis.
    Concat {
        /// The axis.
        axis: usize,
    },
    /// Along each axis: start, step (never 0) and count.
    Slice(Vec<(usize, i64, usize)>),
    /// Elements picked along an axis, in any order and more than once.
    Gather {
        /// The axis.
        axis: usize,
        /// Positions.
        picks: Vec<usize>,
    },
    /// Constant border, elements before and after along each axis.
    Pad {
        /// Before.
        before: Vec<usize>,
        /// After.
        after: Vec<usize>,
        /// What they hold.
        value: f32,
    },
    /// Same elements, the shape of the result.
    Reshape,
    /// `out.dims[i] = dims[perm[i]]`.
    Transpose(Vec<usize>),
    /// Height and width of `[N, C, H, W]` changed.
    Resize(Resampling),
    /// Softmax along an axis, or its logarithm; `flat` takes everything from the axis on as one row (opset 12
    /// and older).
    Softmax {
        /// The axis.
        axis: usize,
        /// Whether later axes join it.
        flat: bool,
        /// Whether the result is the logarithm; only of results of the network.
        log: bool,
    },
}

/// A convolution of `[N, C, H, W]`, or of `[N, C, L]` with window height 1:
/// `clamp(x ⊛ weights + bias [+ residual])`.
#[derive(Clone, Debug)]
pub struct Conv {
    /// `[O, C/groups, KH, KW]`.
    pub weights: Arc<Tensor>,
    /// One an output channel.
    pub bias: Vec<f32>,
    /// Kernel, strides, padding, dilations; `ceil` is false.
    pub window: Window,
    /// Divides input and output channels.
    pub groups: usize,
    /// Whether a second operand is added before the clamp.
    pub residual: bool,
    /// Limits of the result.
    pub clamp: Clamp,
}

/// What convolutions and products with a weight matrix have in common.
#[derive(Debug)]
pub(crate) struct LayerMut<'a> {
    pub(crate) weights: &'a mut Arc<Tensor>,
    pub(crate) bias: &'a mut Vec<f32>,
    pub(crate) residual: &'a mut bool,
    pub(crate) clamp: &'a mut Clamp,
}

/// A product with a weight matrix: `y[…, n] = clamp(Σ_k x[…, k]·weights[n, k] + bias[n] [+ residual])`.
#[derive(Clone, Debug)]
pub struct Gemm {
    /// `[N, K]`.
    pub weights: Arc<Tensor>,
    /// One an output.
    pub bias: Vec<f32>,
    /// Whether a second operand is added before the clamp.
    pub residual: bool,
    /// Limits of the result.
    pub clamp: Clamp,
}

/// `clamp(a ∘ b)`, element by element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Binary {
    /// What is done.
    pub kind: BinaryKind,
    /// Limits of the result.
    pub clamp: Clamp,
}

/// An operation on two values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BinaryKind {
    /// `a + b`.
    Sum,
    /// `a − b`.
    Difference,
    /// `a · b`.
    Product,
}

/// Mean of each window.
#[derive(Clone, Debug, PartialEq)]
pub struct AveragePool {
    /// The window.
    pub window: Window,
    /// Whether padding counts as zeros.
    pub include_pad: bool,
    /// Limits of the result.
    pub clamp: Clamp,
}

/// A change of height and width, as ONNX `Resize` with attributes that name it.
#[derive(Clone, Debug, PartialEq)]
pub struct Resampling {
    /// New height and width.
    pub size: [usize; 2],
    /// How elements between positions are made.
    pub interpolation: Interpolation,
    /// ONNX's `coordinate_transformation_mode`.
    pub coordinates: String,
    /// ONNX's `nearest_mode`.
    pub nearest: String,
}

/// How a resize makes elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interpolation {
    /// The nearest element.
    Nearest,
    /// Linear in both directions.
    Linear,
}

impl Op {
    /// What the operator is called in reports.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Constant(_) => "constant",
            Op::Conv(_) => "conv",
            Op::Gemm(_) => "gemm",
            Op::MatMul(_) => "matmul",
            Op::Binary(binary) => match binary.kind {
                BinaryKind::Sum => "add",
                BinaryKind::Difference => "sub",
                BinaryKind::Product => "mul",
            },
            Op::Map(_) => "map",
            Op::MaxPool(_) => "max_pool",
            Op::AveragePool(_) => "average_pool",
            Op::Mean { .. } => "mean",
            Op::Concat { .. } => "concat",
            Op::Slice(_) => "slice",
            Op::Gather { .. } => "gather",
            Op::Pad { .. } => "pad",
            Op::Reshape => "reshape",
            Op::Transpose(_) => "transpose",
            Op::Resize(_) => "resize",
            Op::Softmax { log: false, .. } => "softmax",
            Op::Softmax { log: true, .. } => "log_softmax",
        }
    }

    /// The bias of a layer, one an output channel.
    pub fn bias(&self) -> Option<&[f32]> {
        if let Op::Conv(conv) = self {
            return Some(&conv.bias);
        }
        if let Op::Gemm(gemm) = self {
            return Some(&gemm.bias);
        }
        None
    }

    /// Whether a layer adds a second operand.
    pub fn residual(&self) -> bool {
        matches!(
            self,
            Op::Conv(Conv { residual: true, .. }) | Op::Gemm(Gemm { residual: true, .. })
        )
    }

    /// The parts of a layer.
    pub(crate) fn layer_mut(&mut self) -> Option<LayerMut<'_>> {
        if let Op::Conv(conv) = self {
            return Some(LayerMut {
                weights: &mut conv.weights,
                bias: &mut conv.bias,
                residual: &mut conv.residual,
                clamp: &mut conv.clamp,
            });
        }
        if let Op::Gemm(gemm) = self {
            return Some(LayerMut {
                weights: &mut gemm.weights,
                bias: &mut gemm.bias,
                residual: &mut gemm.residual,
                clamp: &mut gemm.clamp,
            });
        }
        None
    }

    /// Limits of the result, where the operator has any.
    pub fn clamp(&self) -> Clamp {
        match self {
            Op::Conv(conv) => conv.clamp,
            Op::Gemm(gemm) => gemm.clamp,
            Op::MatMul(clamp) | Op::Mean { clamp, .. } => *clamp,
            Op::Binary(binary) => binary.clamp,
            Op::AveragePool(pool) => pool.clamp,
            Op::Constant(_)
            | Op::Map(_)
            | Op::MaxPool(_)
            | Op::Concat { .. }
            | Op::Slice(_)
            | Op::Gather { .. }
            | Op::Pad { .. }
            | Op::Reshape
            | Op::Transpose(_)
            | Op::Resize(_)
            | Op::Softmax { .. } => Clamp::NONE,
        }
    }

    /// Weights `[O, …]` of a layer: of a convolution or a product with a weight matrix.
    pub fn weights(&self) -> Option<&Arc<Tensor>> {
        match self {
            Op::Conv(conv) => Some(&conv.weights),
            Op::Gemm(gemm) => Some(&gemm.weights),
            Op::Constant(_)
            | Op::MatMul(_)
            | Op::Binary(_)
            | Op::Map(_)
            | Op::MaxPool(_)
            | Op::AveragePool(_)
            | Op::Mean { .. }
            | Op::Concat { .. }
            | Op::Slice(_)
            | Op::Gather { .. }
            | Op::Pad { .. }
            | Op::Reshape
            | Op::Transpose(_)
            | Op::Resize(_)
            | Op::Softmax { .. } => None,
        }
    }

    /// Whether the result holds elements of the operands and nothing else, so that both share one
    /// quantization.
    pub fn moves_only(&self) -> bool {
        match self {
            Op::MaxPool(_)
            | Op::Concat { .. }
            | Op::Slice(_)
            | Op::Gather { .. }
            | Op::Pad { .. }
            | Op::Reshape
            | Op::Transpose(_) => true,
            Op::Resize(resize) => resize.interpolation == Interpolation::Nearest,
            Op::Constant(_)
            | Op::Conv(_)
            | Op::Gemm(_)
            | Op::MatMul(_)
            | Op::Binary(_)
            | Op::Map(_)
            | Op::AveragePool(_)
            | Op::Mean { .. }
            | Op::Softmax { .. } => false,
        }
    }
}

impl Graph {
    /// The value behind an id of this graph.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0]
    }

    /// Indices of the layers: convolutions and products with a weight matrix, in order.
    pub fn layers(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.nodes.len()).filter(|&i| self.nodes[i].op.weights().is_some())
    }

    /// Nodes that read each value, as (node, operand) indices.
    pub fn readers(&self) -> Vec<Vec<(usize, usize)>> {
        let mut readers = vec![Vec::new(); self.values.len()];
        for (index, node) in self.nodes.iter().enumerate() {
            for (operand, value) in node.inputs.iter().enumerate() {
                readers[value.0].push((index, operand));
            }
        }
        readers
    }

    /// Values behind the last dequantize, by value: a softmax that nothing but outputs read, and moves of it.
    pub fn reals(&self) -> Vec<bool> {
        let readers = self.readers();
        let mut ends = vec![false; self.values.len()];
        for port in &self.outputs {
            ends[port.value.0] = readers[port.value.0].is_empty();
        }
        for node in self.nodes.iter().rev() {
            let moves = |&(reader, _): &(usize, usize)| {
                let next = &self.nodes[reader];
                let shape_only = matches!(next.op, Op::Reshape | Op::Transpose(_));
                shape_only && ends[next.output.0]
            };
            let list = &readers[node.output.0];
            if !list.is_empty() && list.iter().all(moves) {
                ends[node.output.0] = true;
            }
        }
        let mut real = vec![false; self.values.len()];
        for node in &self.nodes {
            let softmax = matches!(node.op, Op::Softmax { .. });
            let moved = node.inputs.iter().any(|input| real[input.0]);
            real[node.output.0] = ends[node.output.0] && (softmax || moved);
        }
        real
    }

    /// Multiply-accumulates of one sample in node `index`; 0 for a node that is no layer.
    pub fn macs(&self, index: usize) -> u64 {
        let node = &self.nodes[index];
        let Some(weights) = node.op.weights() else {
            return 0;
        };
        let k: usize = weights.dims.iter().skip(1).product();
        self.value(node.output).elements() as u64 * k as u64
    }
}

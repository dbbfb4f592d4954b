//! From ONNX nodes to the integer graph.
//!
//! Nodes are taken in order. Each tensor becomes a [`Mapped`]: a constant, integers of the graph, or a
//! float expression over integers that emits nothing yet. QuantizeLinear (or the end of the graph) turns
//! an expression into one integer node with one rounding, which is how ONNX Runtime fuses the same
//! pattern. ONNX's channels-first layouts are kept as permutations of channels-last values, so a
//! Transpose is emitted only where elements really have to move.

mod binary;
mod builder;
mod dynamic;
mod edges;
mod elementwise;
mod integers;
mod linear;
mod linear_emit;
mod materialize;
mod moves;
mod pool;
mod qdq;
mod qonnx;
mod qoperator;
mod reduce;
mod reshape;
mod resize;
mod rounding;
mod thresholds;
mod value;
mod weights;
mod window;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use requant_model::{Affine, Graph};
use requant_numerics::DType;

use super::constant::{Constant, Data, Dim, QuantConstant};
use super::error::{ImportError, Reason, Refusal};
use super::fold::{self, Folder};
use super::model::{Domain, Model, Node};
use super::rules;
use builder::Builder;
pub(crate) use rounding::Rounding;
use value::{Clamp, Float, Kind, Mapped, Placed, Shape};
pub(crate) use value::{Lowered, Stop};

/// Why a lowering gave no graph.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The samples of a batch would mix: the model has to be lowered with a batch of one.
    MixesSamples,
    /// The model is refused.
    Import(ImportError),
}

impl From<ImportError> for Failure {
    fn from(error: ImportError) -> Self {
        Failure::Import(error)
    }
}

/// Quantization of a result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Target {
    pub(crate) dtype: DType,
    pub(crate) quant: Affine,
}

/// What a node of the graph costs of the folder's budget, in elements.
const NODE_COST: usize = 64;

/// Operators to which an infinite constant means something: no limit, or a mask.
pub(crate) const TAKES_INFINITY: [&str; 13] = [
    "Clip",
    "Min",
    "Max",
    "Where",
    "Add",
    "Sum",
    "Sub",
    "Pad",
    "Less",
    "Greater",
    "LessOrEqual",
    "GreaterOrEqual",
    "Equal",
];

/// The state of a lowering.
#[derive(Debug)]
pub(crate) struct Lowering<'m> {
    model: &'m Model,
    /// Nodes that read a tensor, each with the index of the operand.
    readers: HashMap<&'m str, Vec<(&'m Node, usize)>>,
    batched: bool,
    rounding: Rounding,
    /// Whether the model has nodes of QONNX, and its arithmetic is exact where theirs is.
    is_qonnx: bool,
    builder: Builder,
    mapped: HashMap<&'m str, Mapped>,
    folder: Folder,
    refusals: Vec<Refusal>,
    /// Indices of the nodes in it.
    blamed: HashSet<usize>,
    /// Index of the node being lowered.
    current: usize,
    /// The NaN, or else the infinity, that a float constant holds.
    oddities: HashMap<&'m str, Option<f32>>,
    /// Results of QuantizeLinear by tensor and parameters.
    quantized: HashMap<(String, DType, u32, i32), Placed>,
}

/// Lowers a model, with a symbolic batch or a fixed one.
pub(crate) fn lower(model: &Model, batched: bool, rounding: Rounding) -> Result<Graph, Failure> {
    let reserved = model
        .inputs
        .iter()
        .chain(&model.outputs)
        .map(|port| port.name.clone());
    let mut lowering = Lowering {
        model,
        batched,
        rounding,
        is_qonnx: model.nodes.iter().any(|node| node.domain == Domain::Qonnx),
        builder: Builder::new(&model.name, reserved),
        mapped: HashMap::new(),
        folder: Folder::new(model.constants.values().map(|c| c.len()).sum()),
        refusals: Vec::new(),
        blamed: HashSet::new(),
        readers: readers(model),
        current: 0,
        oddities: HashMap::new(),
        quantized: HashMap::new(),
    };
    for (name, constant) in &model.constants {
        lowering
            .mapped
            .insert(name, Mapped::Constant(Arc::clone(constant)));
    }
    lowering.inputs()?;
    for (index, node) in model.nodes.iter().enumerate() {
        lowering.current = index;
        match lowering.node(node) {
            Ok(()) => {}
            Err(Stop::MixesSamples) => return Err(Failure::MixesSamples),
            // What cannot be said of every batch size may be said of a batch of one.
            Err(Stop::Refuse(_)) if lowering.reads_batch_size(node) => {
                return Err(Failure::MixesSamples);
            }
            Err(stop) => lowering.refuse(stop),
        }
    }
    lowering.outputs()?;
    let refusals = std::mem::take(&mut lowering.refusals);
    if !refusals.is_empty() {
        return Err(ImportError::Unsupported(refusals).into());
    }
    Ok(lowering.builder.graph)
}

impl<'m> Lowering<'m> {
    /// Notes a refusal; the node's results are then refused without another word.
    fn refuse(&mut self, stop: Stop) {
        let model = self.model;
        let blamed = match stop {
            Stop::Refuse(reason) => Some((self.current, reason)),
            Stop::Blame(index, reason) => Some((index, reason)),
            Stop::MixesSamples | Stop::Refused => None,
        };
        if let Some((index, reason)) = blamed
            && let Some(node) = model.nodes.get(index)
        {
            let refusal = Refusal {
                node: node.name.clone(),
                op: node.display.clone(),
                reason,
            };
            // One reason a node.
            if self.blamed.insert(index) {
                self.refusals.push(refusal);
            }
        }
        if let Some(node) = model.nodes.get(self.current) {
            for output in node.outputs.iter().filter(|name| !name.is_empty()) {
                self.mapped.insert(output, Mapped::Refused);
            }
        }
    }

    fn node(&mut self, node: &'m Node) -> Lowered<()> {
        if let Some(results) = self.folded(node)? {
            for (index, constant) in results.into_iter().enumerate() {
                self.define(node, index, Mapped::Constant(Arc::new(constant)));
            }
            return Ok(());
        }
        self.numbers(node)?;
        match node.domain {
            Domain::Onnx => self.standard(node),
            Domain::Microsoft => self.contributed(node),
            Domain::Qonnx => self.qonnx(node),
            Domain::Other => Err(Reason::UnknownOp.into()),
        }
    }

    /// Whether an operand is a number that depends on the batch size.
    fn reads_batch_size(&self, node: &Node) -> bool {
        let depends = |name: &String| match self.mapped.get(name.as_str()) {
            Some(Mapped::Constant(constant)) => matches!(constant.data, Data::Symbolic(_)),
            Some(_) | None => false,
        };
        self.batched && node.inputs.iter().any(depends)
    }

    /// The results of a node that only moves or computes constants.
    fn folded(&mut self, node: &Node) -> Lowered<Option<Vec<Constant>>> {
        let mut operands = Vec::new();
        for name in &node.inputs {
            match self.mapped.get(name.as_str()) {
                None if name.is_empty() => operands.push(None),
                Some(Mapped::Constant(constant)) => operands.push(Some(Arc::clone(constant))),
                Some(_) | None => return Ok(None),
            }
        }
        self.folder.fold(node, &operands).map_err(Stop::Refuse)
    }

    fn standard(&mut self, node: &'m Node) -> Lowered<()> {
        match node.op.as_str() {
            "QuantizeLinear" => self.quantize_linear(node),
            "DequantizeLinear" => self.dequantize_linear(node),
            "Conv" => self.conv(node),
            "Gemm" => self.gemm(node),
            "MatMul" => self.mat_mul(node),
            "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Min" | "Max" | "PRelu" | "Sum" | "Where"
            | "Equal" | "Less" | "Greater" | "LessOrEqual" | "GreaterOrEqual" | "And" | "Or" => {
                self.elementwise(node)
            }
            "Clip" => self.clip(node),
            "Relu" => self.relu(node),
            "BatchNormalization" => self.batch_normalization(node),
            "MaxPool" => self.max_pool(node),
            "AveragePool" => self.average_pool(node),
            "GlobalAveragePool" => self.global_average_pool(node),
            "ReduceMean" => self.reduce_mean(node),
            "Concat" => self.concat(node),
            "Split" => self.split(node),
            "Slice" => self.slice(node),
            "Gather" => self.gather(node),
            "Pad" => self.pad(node),
            "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" => self.reshape(node),
            "Transpose" => self.transpose(node),
            "DepthToSpace" | "SpaceToDepth" => self.space(node),
            "Resize" | "Upsample" => self.resize(node),
            "Softmax" => self.softmax(node, false),
            "LogSoftmax" => self.softmax(node, true),
            "ArgMax" => self.arg_max(node),
            "Identity" | "Dropout" => self.identity(node),
            "Cast" => self.cast(node),
            "CastLike" => self.cast_like(node),
            "Shape" => self.shape_op(node),
            "Size" => self.size_op(node),
            "QLinearConv" => self.qlinear_conv(node),
            "QLinearMatMul" => self.qlinear_mat_mul(node),
            "ConvInteger" => self.conv_integer(node),
            "MatMulInteger" => self.mat_mul_integer(node),
            "DynamicQuantizeLinear" => self.dynamic_quantize_linear(node),
            _ => self.function_op(node),
        }
    }

    fn contributed(&mut self, node: &'m Node) -> Lowered<()> {
        match node.op.as_str() {
            "QuantizeLinear" => self.quantize_linear(node),
            "DequantizeLinear" => self.dequantize_linear(node),
            "QLinearAdd" => self.qlinear_binary(node, value::BinaryOp::Sum),
            "QLinearMul" => self.qlinear_binary(node, value::BinaryOp::Product),
            "QLinearConcat" => self.qlinear_concat(node),
            "QLinearGlobalAveragePool" => self.qlinear_global_average_pool(node),
            "QLinearAveragePool" => self.qlinear_average_pool(node),
            "QLinearSigmoid" | "QLinearLeakyRelu" => self.qlinear_function(node),
            "QLinearSoftmax" => self.qlinear_softmax(node),
            "QGemm" => self.qgemm(node),
            _ => self.function_op(node),
        }
    }

    /// Refuses a node whose result `index`, which is not computed, something needs.
    fn unused(&self, node: &Node, index: usize) -> Lowered<()> {
        let Some(tensor) = node.output(index) else {
            return Ok(());
        };
        let outputs = &self.model.outputs;
        if self.readers.contains_key(tensor) || outputs.iter().any(|port| port.name == tensor) {
            let tensor = tensor.to_owned();
            return Err(Reason::Result { tensor }.into());
        }
        Ok(())
    }

    /// Refuses a node with a constant operand that is not a number, or infinite where that means
    /// nothing.
    fn numbers(&mut self, node: &'m Node) -> Lowered<()> {
        let refused =
            |name: &String| matches!(self.mapped.get(name.as_str()), Some(Mapped::Refused));
        if node.inputs.iter().any(refused) {
            return Ok(());
        }
        let takes_infinity = TAKES_INFINITY.contains(&node.op.as_str());
        for name in node.inputs.iter().filter(|name| !name.is_empty()) {
            let Some(Mapped::Constant(constant)) = self.mapped.get(name.as_str()) else {
                continue;
            };
            let Some(values) = constant.floats() else {
                continue;
            };
            let found = *self.oddities.entry(name).or_insert_with(|| oddity(values));
            if let Some(value) = found
                && (value.is_nan() || !takes_infinity)
            {
                let tensor = name.clone();
                return Err(Reason::Value { tensor, value }.into());
            }
        }
        Ok(())
    }

    /// Defines a result of a node.
    fn define(&mut self, node: &'m Node, index: usize, mapped: Mapped) {
        if let Some(name) = node.outputs.get(index).filter(|name| !name.is_empty()) {
            self.mapped.insert(name, mapped);
        }
    }

    /// Defines the first result of a node as a float expression.
    fn define_float(&mut self, node: &'m Node, kind: Kind, shape: Shape) {
        let float = self.float_of(kind, shape);
        self.define(node, 0, Mapped::Float(float));
    }

    fn float_of(&self, kind: Kind, shape: Shape) -> Float {
        Float {
            extent: kind.extent(),
            kind,
            shape,
            clamp: Clamp::NONE,
            origin: self.current,
        }
    }

    /// What a tensor is; refused ones stop the node.
    fn get(&self, name: &str) -> Lowered<&Mapped> {
        match self.mapped.get(name) {
            Some(Mapped::Refused) | None => Err(Stop::Refused),
            Some(mapped) => Ok(mapped),
        }
    }

    /// What the operand at `index` is.
    fn operand(&self, node: &Node, index: usize) -> Lowered<&Mapped> {
        self.get(node.required(index)?)
    }

    /// The operand at `index` as a float expression.
    fn float(&self, node: &Node, index: usize) -> Lowered<Float> {
        let name = node.required(index)?;
        match self.get(name)? {
            Mapped::Float(float) => Ok(float.clone()),
            Mapped::Constant(_)
            | Mapped::Quantized(_)
            | Mapped::Integer(..)
            | Mapped::Dynamic { .. }
            | Mapped::DynamicScale { .. }
            | Mapped::DynamicZeroPoint(_)
            | Mapped::Accumulator(..)
            | Mapped::Indices(_)
            | Mapped::Refused => Err(Reason::Operand {
                tensor: name.to_owned(),
            }
            .into()),
        }
    }

    /// A constant by name, dequantized where it is quantized.
    fn constant(&self, name: &str) -> Lowered<Arc<Constant>> {
        match self.get(name)? {
            Mapped::Constant(constant) => Ok(Arc::clone(constant)),
            Mapped::Quantized(quantized) => match self.dequantized(quantized)? {
                Some(constant) => Ok(Arc::new(constant)),
                None => Err(Reason::Operand {
                    tensor: name.to_owned(),
                }
                .into()),
            },
            Mapped::Integer(..)
            | Mapped::Float(_)
            | Mapped::Dynamic { .. }
            | Mapped::DynamicScale { .. }
            | Mapped::DynamicZeroPoint(_)
            | Mapped::Accumulator(..)
            | Mapped::Indices(_)
            | Mapped::Refused => Err(Reason::NotConstant {
                tensor: name.to_owned(),
            }
            .into()),
        }
    }

    /// The reals behind a quantized constant.
    fn dequantized(&self, constant: &QuantConstant) -> Lowered<Option<Constant>> {
        self.folder.pay(&constant.values.dims)?;
        let reals = constant.dequantized();
        let mut values = reals.iter().filter_map(Constant::floats).flatten();
        match values.find(|v| !v.is_finite()) {
            Some(&value) => {
                let tensor = constant.name.clone();
                Err(Reason::Value { tensor, value }.into())
            }
            None => Ok(reals),
        }
    }

    /// The constant operands of a node by position, others as `None`.
    fn constants(&self, node: &Node) -> Vec<Option<Arc<Constant>>> {
        let constant = |name: &String| match self.mapped.get(name.as_str()) {
            Some(Mapped::Constant(constant)) => Some(Arc::clone(constant)),
            Some(_) | None => None,
        };
        node.inputs.iter().map(constant).collect()
    }

    /// Refuses a node whose operands from `first` on are not all constants.
    fn need_constants(&self, node: &Node, first: usize) -> Lowered<Vec<Option<Arc<Constant>>>> {
        for name in node
            .inputs
            .iter()
            .skip(first)
            .filter(|name| !name.is_empty())
        {
            self.constant(name)?;
        }
        Ok(self.constants(node))
    }

    /// The operands of a node after the first, which must be constants or absent, by position; those
    /// behind a DequantizeLinear as reals.
    fn constant_operands(&self, node: &Node) -> Lowered<Vec<Option<Arc<Constant>>>> {
        let constant = |index: usize| match node.input(index).filter(|_| index > 0) {
            Some(name) => self.constant(name).map(Some),
            None => Ok(None),
        };
        (0..node.inputs.len()).map(constant).collect()
    }

    /// The shape of a placed value in ONNX's order.
    fn shape(&self, placed: &Placed) -> Shape {
        let value = self.builder.get(placed.id);
        let mut dims = vec![1; placed.perm.len()];
        for (&axis, &dim) in placed.perm.iter().zip(&value.dims) {
            dims[axis] = dim;
        }
        Shape {
            dims,
            batched: value.batched,
        }
    }

    /// The shape of a tensor with its batch as a symbol.
    fn symbols(&self, name: &str) -> Lowered<Vec<Dim>> {
        let shape = match self.get(name)? {
            Mapped::Constant(constant) => {
                return Ok(constant
                    .dims
                    .iter()
                    .map(|&d| Dim::Known(d as i64))
                    .collect());
            }
            Mapped::Quantized(constant) => {
                return Ok(constant
                    .values
                    .dims
                    .iter()
                    .map(|&d| Dim::Known(d as i64))
                    .collect());
            }
            Mapped::Float(float) => float.shape.clone(),
            Mapped::Integer(placed, _)
            | Mapped::Accumulator(placed, _)
            | Mapped::Indices(placed)
            | Mapped::Dynamic { values: placed, .. } => self.shape(placed),
            Mapped::DynamicScale { .. } | Mapped::DynamicZeroPoint(_) => return Ok(Vec::new()),
            Mapped::Refused => return Err(Stop::Refused),
        };
        Ok(rules::symbols(&shape.dims, shape.batched))
    }

    /// Checks that a shape may stand in the graph.
    fn bounded(&self, dims: &[usize]) -> Lowered<()> {
        match requant_model::limits::elements(dims) {
            Some(_) => Ok(()),
            None => Err(Reason::Shape(dims.iter().map(|&d| d as i64).collect()).into()),
        }
    }

    /// The name of the node that a float expression comes from.
    fn origin(&self, float: &Float) -> String {
        self.model
            .nodes
            .get(float.origin)
            .map_or_else(String::new, |node| node.name.clone())
    }
}

/// The nodes that read each tensor.
fn readers(model: &Model) -> HashMap<&str, Vec<(&Node, usize)>> {
    let mut readers: HashMap<&str, Vec<(&Node, usize)>> = HashMap::new();
    for node in &model.nodes {
        for (index, name) in node.inputs.iter().enumerate() {
            readers.entry(name).or_default().push((node, index));
        }
    }
    readers
}

/// The NaN, or else the infinity, among values.
pub(crate) fn oddity(values: &[f32]) -> Option<f32> {
    let nan = values.iter().find(|v| v.is_nan());
    nan.or_else(|| values.iter().find(|v| v.is_infinite()))
        .copied()
}

/// The axis of a node's attribute, over a tensor of `rank`.
pub(crate) fn axis_attribute(node: &Node, default: i64, rank: usize) -> Result<usize, Reason> {
    fold::axis_of(node.int("axis")?.unwrap_or(default), rank)
}

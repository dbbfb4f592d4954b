//! From a validated graph to a draft plan: one buffer a value, one step a node, float edges in the
//! ports. Reshapes become views, constants become storage; neither is a step.

use std::sync::Arc;

use requant_model::ops::{Border, Context, Interpolation};
use requant_model::spec::Linear;
use requant_model::{Graph, Node, NodeError, Op, Tensor, Value, ValueId};
use requant_numerics::edge::EdgeRounding;
use requant_numerics::{DType, packing};

use super::signature::{Edge, Port, Signature, TensorInfo};
use super::step::{
    AxisScales, ConvStep, EdgeScales, Epilogue, IntegerSoftmax, Join, LayerNorm, Operand, Step,
    StepOp,
};
use super::{Buffer, BufferId, Storage};
use crate::PlanError;

/// A plan before fusion and layout.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) buffers: Vec<Buffer>,
    pub(super) steps: Vec<Step>,
    pub(super) inputs: Vec<Port>,
    pub(super) outputs: Vec<Port>,
}

impl Draft {
    pub(super) fn signature(&self, batched: bool) -> Signature {
        let infos = |ports: &[Port]| ports.iter().map(|port| port.info.clone()).collect();
        Signature {
            batched,
            inputs: infos(&self.inputs),
            outputs: infos(&self.outputs),
        }
    }
}

/// Buffers have the indices of the graph's values.
pub(super) fn draft(graph: &Graph) -> Result<Draft, PlanError> {
    let edges = Edges::find(graph);
    let mut draft = Draft {
        buffers: graph.values.iter().map(buffer).collect(),
        steps: Vec::with_capacity(graph.nodes.len()),
        inputs: edges.inputs,
        outputs: edges.outputs,
    };
    for (index, node) in graph.nodes.iter().enumerate() {
        if edges.folded[index] {
            continue;
        }
        let cx = Context::new(graph, node);
        let fault = |source| PlanError::Node {
            node: node.name.clone(),
            source: Box::new(source),
        };
        match resolve(&node.op, node, &cx).map_err(fault)? {
            Made::Step(op) => draft.steps.push(step(node, op, &cx)),
            Made::Storage(storage) => draft.buffers[node.outputs[0].index()].storage = storage,
        }
    }
    Ok(draft)
}

fn step(node: &Node, op: StepOp, cx: &Context<'_>) -> Step {
    let (macs, precision) = node.op.work(cx).unzip();
    // Residuals and dynamic zero points are not plain inputs of the step.
    let used = if let StepOp::Conv(conv) = &op {
        if conv.weights.is_some() { 1 } else { 2 }
    } else if matches!(op, StepOp::MatMul { .. }) {
        2
    } else {
        node.inputs.len()
    };
    Step {
        name: node.name.clone(),
        op,
        inputs: node.inputs[..used].iter().copied().map(id).collect(),
        outputs: node.outputs.iter().copied().map(id).collect(),
        precision,
        macs: macs.unwrap_or(0),
    }
}

fn id(value: ValueId) -> BufferId {
    BufferId(value.index())
}

fn buffer(value: &Value) -> Buffer {
    Buffer {
        name: value.name.clone(),
        dtype: value.dtype,
        dims: value.dims.clone(),
        batched: value.batched,
        storage: Storage::Arena,
    }
}

/// The memory form of a tensor: one element a byte for narrow types.
fn in_memory(tensor: &Tensor) -> Arc<[u8]> {
    let columns = tensor.dims().last().copied().unwrap_or(1);
    match packing::unpack(tensor.dtype(), tensor.data(), columns) {
        Some(bytes) => bytes.into(),
        None => tensor.data().into(),
    }
}

/// What a node becomes.
enum Made {
    /// Something to compute.
    Step(StepOp),
    /// A place where its output already is.
    Storage(Storage),
}

/// What a node becomes, with every tensor looked up.
fn resolve(op: &Op, node: &Node, cx: &Context<'_>) -> Result<Made, NodeError> {
    let zero_point = cx.inputs.first().map_or(0, |x| x.zero_point());
    Ok(Made::Step(match op {
        Op::Quantize(op) if op.thresholds.is_some() => {
            let (thresholds, lo, step) = match &op.thresholds {
                Some(spec) => {
                    let (thresholds, step) = spec.resolve(cx, cx.outputs[0].dtype)?;
                    (thresholds, spec.lo, step)
                }
                None => (Vec::new(), 0, 0),
            };
            StepOp::EdgeThresholds {
                thresholds,
                lo,
                step,
            }
        }
        Op::Quantize(op) => {
            let scales = edge_scales(cx, op.blocks.as_ref(), cx.outputs[0])?;
            StepOp::Quantize {
                scales,
                rounding: op.rounding,
            }
        }
        Op::Dequantize(op) => {
            let scales = edge_scales(cx, op.blocks.as_ref(), cx.inputs[0])?;
            let offset = op.offset(cx)?;
            StepOp::Dequantize { scales, offset }
        }
        Op::Conv(op) => {
            let dims = |value: &Value| [value.dims[0], value.dims[1], value.dims[2], value.dims[3]];
            let (input, output) = (dims(cx.inputs[0]), dims(cx.outputs[0]));
            let depth = op.window.kernel.iter().product::<usize>() * (input[3] / op.groups);
            let conv = conv_step(&op.linear, node, cx, (input, output, depth))?;
            let ones = cx.inputs[0].dtype == DType::Binary && op.border == Border::Own;
            StepOp::Conv(Box::new(ConvStep {
                window: op.window.clone(),
                groups: op.groups,
                outside: i32::from(ones),
                ..conv
            }))
        }
        Op::Gemm(op) => {
            let rows = |value: &Value| {
                let (last, lead) = value.dims.split_last().unwrap_or((&1, &[]));
                [1, 1, lead.iter().product(), *last]
            };
            let (input, output) = (rows(cx.inputs[0]), rows(cx.outputs[0]));
            let shape = (input, output, input[3]);
            StepOp::Conv(Box::new(conv_step(&op.linear, node, cx, shape)?))
        }
        Op::MatMul(op) => StepOp::MatMul {
            zero_point_a: if op.dynamic_zero_point {
                Operand::Dynamic(id(node.inputs[2]))
            } else {
                Operand::Static(zero_point)
            },
            zero_point_b: cx.inputs[1].zero_point(),
            requantize: op.requantize(cx)?,
        },
        Op::Add(op) => StepOp::Add(op.params(cx)?),
        Op::Mul(op) => StepOp::Mul(op.params(cx)?),
        Op::Table(op) => StepOp::Table {
            tables: cx.tensor(&op.table)?.data().to_vec(),
            axis: op.axis,
        },
        Op::Rescale(op) => StepOp::Rescale {
            zero_point,
            requantize: op.requantize(cx)?,
        },
        Op::MaxPool(op) => StepOp::MaxPool(op.window.clone()),
        Op::AveragePool(op) => StepOp::AveragePool {
            window: op.window.clone(),
            include_pad: op.include_pad,
            zero_point: if op.raw { 0 } else { zero_point },
            requantize: op.requantize(cx)?,
        },
        Op::Mean(op) => StepOp::Mean {
            axes: op.axes.clone(),
            zero_point,
            requantize: op.requantize(cx)?,
        },
        Op::Concat(op) => StepOp::Concat { axis: op.axis },
        Op::Slice(op) => StepOp::Slice {
            starts: op.starts.clone(),
            steps: op.steps.clone(),
        },
        Op::Pad(op) => StepOp::Pad {
            before: op.before.clone(),
            value: op.value,
        },
        Op::Transpose(op) => StepOp::Transpose {
            perm: op.perm.clone(),
        },
        Op::Resize(op) => match (&op.interpolation, op.requantize(cx)?) {
            (Interpolation::Nearest { rows, columns }, _) => StepOp::ResizeNearest {
                rows: positions(cx, rows)?
                    .into_iter()
                    .map(|v| v as usize)
                    .collect(),
                columns: positions(cx, columns)?
                    .into_iter()
                    .map(|v| v as usize)
                    .collect(),
            },
            (
                Interpolation::Linear {
                    rows, columns, raw, ..
                },
                Some(requantize),
            ) => StepOp::ResizeLinear {
                rows: positions(cx, rows)?.as_chunks().0.to_vec(),
                columns: positions(cx, columns)?.as_chunks().0.to_vec(),
                zero_point: if *raw { 0 } else { zero_point },
                requantize,
            },
            (Interpolation::Linear { rows, .. }, None) => {
                return Err(NodeError::MissingTensor { name: rows.clone() });
            }
        },
        Op::Softmax(op) => StepOp::Softmax {
            axis: op.axis,
            log: op.log,
        },
        Op::IntegerSoftmax(op) => {
            let missing = || NodeError::MissingTensor {
                name: op.table.clone(),
            };
            StepOp::IntegerSoftmax(Box::new(IntegerSoftmax {
                axis: op.axis,
                table: op.exponentials(cx).ok_or_else(missing)?,
                inverse: op.inverse(cx)?,
                zero_point: cx.outputs[0].zero_point(),
                lo: op.requantize.lo,
                hi: op.requantize.hi,
            }))
        }
        Op::LayerNorm(op) => {
            let (gamma, beta) = op.coefficients(cx)?;
            StepOp::LayerNorm(Box::new(LayerNorm {
                axis: op.axis,
                epsilon: op.epsilon,
                gamma,
                beta,
                requantize: op.requantize(cx)?,
            }))
        }
        Op::QLinearSoftmax(op) => {
            let missing = || NodeError::MissingTensor {
                name: op.table.clone(),
            };
            let scale = cx.outputs[0].quant.map_or(1.0, |q| q.scale);
            StepOp::QLinearSoftmax {
                axis: op.axis,
                table: Box::new(op.exponentials(cx).ok_or_else(missing)?),
                inverse_scale: (1.0 / scale).floor(),
                zero_point: cx.outputs[0].zero_point(),
            }
        }
        Op::TfliteSoftmax(op) => {
            let missing = || NodeError::MissingTensor {
                name: op.table.clone(),
            };
            StepOp::TfliteSoftmax {
                axis: op.axis,
                table: Box::new(op.exponentials(cx).ok_or_else(missing)?),
            }
        }
        Op::ArgMax(op) => StepOp::ArgMax {
            axis: op.axis,
            last: op.last,
        },
        Op::DynamicQuantize(_) => StepOp::DynamicQuantize,
        Op::ScaleAccumulator(op) => {
            let (scales, bias) = op.resolve(cx)?;
            StepOp::ScaleAccumulator {
                scales,
                bias,
                relu: op.relu,
            }
        }
        Op::Reshape(_) => return Ok(Made::Storage(Storage::View(id(node.inputs[0])))),
        Op::Constant(op) => {
            return Ok(Made::Storage(Storage::Constant(in_memory(
                cx.tensor(&op.tensor)?,
            ))));
        }
    }))
}

fn conv_step(
    linear: &Linear,
    node: &Node,
    cx: &Context<'_>,
    (input, output, depth): ([usize; 4], [usize; 4], usize),
) -> Result<ConvStep, NodeError> {
    let parts = linear.parts();
    let (requantize, residual) = linear.requantize(cx, output[3])?.unzip();
    let join = match (residual.flatten(), parts.residual) {
        (Some(residual), Some(index)) => Some(Join::Residual {
            buffer: id(node.inputs[index]),
            residual,
        }),
        (_, _) => None,
    };
    Ok(ConvStep {
        input,
        output,
        window: requant_model::ops::Window {
            kernel: [1; 2],
            strides: [1; 2],
            pads: [0; 4],
            dilations: [1; 2],
            ceil: false,
        },
        groups: 1,
        outside: 0,
        weights: linear.weight_data(cx, depth).map(Arc::new),
        weight_zero_point: parts
            .weights
            .map_or(0, |index| cx.inputs[index].zero_point()),
        zero_point: match parts.zero_point {
            Some(index) => Operand::Dynamic(id(node.inputs[index])),
            None => Operand::Static(cx.inputs[0].zero_point()),
        },
        bias: linear.bias_data(cx),
        epilogue: Epilogue {
            requantize,
            real: None,
            join,
            table: None,
        },
    })
}

fn edge_scales(
    cx: &Context<'_>,
    blocks: Option<&requant_model::ops::BlockScales>,
    value: &Value,
) -> Result<EdgeScales, NodeError> {
    match (blocks, value.quant) {
        (Some(blocks), _) => {
            let missing = || NodeError::MissingTensor {
                name: blocks.scales.clone(),
            };
            let (scales, zero_points) = blocks.resolve(cx).ok_or_else(missing)?;
            Ok(EdgeScales::Axis(AxisScales {
                blocks: blocks.clone(),
                scales,
                zero_points,
            }))
        }
        (None, Some(quant)) => Ok(EdgeScales::Tensor {
            scale: quant.scale,
            zero_point: quant.zero_point,
        }),
        (None, None) => Err(NodeError::Unquantized {
            name: value.name.clone(),
        }),
    }
}

fn positions(cx: &Context<'_>, name: &str) -> Result<Vec<i32>, NodeError> {
    let missing = || NodeError::MissingTensor {
        name: name.to_owned(),
    };
    cx.tensor(name)?.i32s().ok_or_else(missing)
}

/// Ports, and the nodes that they make superfluous.
struct Edges {
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    folded: Vec<bool>,
}

impl Edges {
    fn find(graph: &Graph) -> Self {
        let mut consumers = vec![Vec::new(); graph.values.len()];
        let mut producer = vec![None; graph.values.len()];
        for (index, node) in graph.nodes.iter().enumerate() {
            node.inputs
                .iter()
                .for_each(|value| consumers[value.index()].push(index));
            node.outputs
                .iter()
                .for_each(|value| producer[value.index()] = Some(index));
        }
        let mut folded = vec![false; graph.nodes.len()];
        let input = |value: &ValueId| {
            let [consumer] = consumers[value.index()][..] else {
                return None;
            };
            let node = &graph.nodes[consumer];
            let Op::Quantize(op) = &node.op else {
                return None;
            };
            let folds = op.blocks.is_none() && op.thresholds.is_none();
            if !folds || graph.outputs.contains(value) {
                return None;
            }
            let quantized = graph.value(node.outputs[0]);
            Some((consumer, node.outputs[0], edge(quantized, op.rounding)?))
        };
        let inputs = graph.inputs.iter().map(|value| match input(value) {
            Some((node, buffer, edge)) => {
                folded[node] = true;
                port(graph, *value, buffer, Some(edge))
            }
            None => port(graph, *value, *value, None),
        });
        let inputs = inputs.collect();
        let outputs = graph.outputs.iter().map(|value| {
            let made_by = producer[value.index()].map(|node| (node, &graph.nodes[node]));
            if let Some((index, node)) = made_by
                && let Op::Dequantize(op) = &node.op
                && op.blocks.is_none()
                && op.offset.is_none()
                && let Some(edge) = edge(graph.value(node.inputs[0]), EdgeRounding::HalfEven)
            {
                folded[index] = consumers[value.index()].is_empty();
                return port(graph, *value, node.inputs[0], Some(edge));
            }
            port(graph, *value, *value, None)
        });
        let outputs = outputs.collect();
        Edges {
            inputs,
            outputs,
            folded,
        }
    }
}

fn edge(value: &Value, rounding: EdgeRounding) -> Option<Edge> {
    let quant = value.quant?;
    let (scale, zero_point) = (quant.scale, quant.zero_point);
    Some(Edge {
        dtype: value.dtype,
        scale,
        zero_point,
        rounding,
    })
}

fn port(graph: &Graph, public: ValueId, buffer: ValueId, edge: Option<Edge>) -> Port {
    let value = graph.value(public);
    let dims = if graph.batched {
        &value.dims[1..]
    } else {
        &value.dims[..]
    };
    let quantized = match edge {
        Some(edge) => Some(edge.form()),
        // An integer port is its own integer form.
        None => value
            .quant
            .filter(|_| value.dtype != DType::F32)
            .map(|quant| super::signature::QuantizedForm {
                dtype: value.dtype,
                scale: quant.scale,
                zero_point: quant.zero_point,
            }),
    };
    let info = TensorInfo {
        name: value.name.clone(),
        dtype: value.dtype,
        dims: dims.to_vec(),
        quantized,
    };
    Port {
        info,
        buffer: id(buffer),
        edge,
    }
}

//! From a step to the kernel that runs it, and from that to launches.

use std::sync::Arc;

use requant_kernels_cuda::epilogue::{Finish, Join, Real};
use requant_kernels_cuda::ops::conv::{Conv, ConvIo, ConvSpec, ZeroPoint};
use requant_kernels_cuda::ops::maps::{self, BinaryOp, MatMulIo, Requantized, Resize, Side, Table};
use requant_kernels_cuda::ops::norms::LayerNorm;
use requant_kernels_cuda::ops::pools::{self, Exponentials, Pooling, Softmax};
use requant_kernels_cuda::ops::{self, edges};
use requant_kernels_cuda::{Context, Launch, OpError};
use requant_model::ops::Window;
use requant_numerics::DType;
use requant_numerics::edge::EdgeRounding;

use super::place::{self, Places};
use crate::plan::step::{self, ConvStep, EdgeScales, Operand};
use crate::plan::{BufferId, Plan, Step, StepOp};
use crate::reference::strides;

/// What a step needs on the device beside its buffers.
#[derive(Debug)]
pub(super) enum Kernel {
    /// Convolution or product with weights.
    Conv(Box<Conv>),
    /// Any operator that ends in a requantization.
    Requantized(Requantized),
    /// Linear resize.
    ResizeLinear(Requantized, Resize),
    /// Nearest-neighbour resize.
    ResizeNearest(Resize),
    /// Tables.
    Table(Table),
    /// Softmax from 8 bits to 8 bits.
    Softmax(Softmax, Exponentials),
    /// Layer normalization.
    LayerNorm(LayerNorm),
    /// Float edge.
    Edge(edges::Edge),
    /// Float edge by thresholds.
    Steps(edges::Steps),
    /// Accumulators to floats.
    Scale(edges::ScaleAccumulator),
    /// Nothing: everything is in the launch.
    None,
}

impl Kernel {
    /// The kernel's name.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Kernel::Conv(conv) => conv.kernel(1),
            Kernel::Requantized(_) => "requantized",
            Kernel::ResizeLinear(..) | Kernel::ResizeNearest(_) => "resize",
            Kernel::Table(_) => "table",
            Kernel::Softmax(..) => "softmax",
            Kernel::LayerNorm(_) => "layer_norm",
            Kernel::Edge(_) => "edge",
            Kernel::Steps(_) => "edge_thresholds",
            Kernel::Scale(_) => "scale_accumulator",
            Kernel::None => "map",
        }
    }

    /// Bytes on the device.
    pub(super) fn weight_bytes(&self) -> usize {
        match self {
            Kernel::Conv(conv) => conv.weight_bytes(),
            Kernel::Requantized(requantized) => requantized.weight_bytes(),
            Kernel::ResizeLinear(requantized, resize) => {
                requantized.weight_bytes() + resize.weight_bytes()
            }
            Kernel::ResizeNearest(resize) => resize.weight_bytes(),
            Kernel::Table(table) => table.weight_bytes(),
            Kernel::Softmax(_, exponentials) => exponentials.weight_bytes(),
            Kernel::LayerNorm(norm) => norm.weight_bytes(),
            Kernel::Edge(edge) => edge.weight_bytes(),
            Kernel::Steps(steps) => steps.weight_bytes(),
            Kernel::Scale(scale) => scale.weight_bytes(),
            Kernel::None => 0,
        }
    }

    /// Zeroed memory for up to `samples` samples.
    pub(super) fn scratch_bytes(&self, samples: usize) -> usize {
        if let Kernel::Conv(conv) = self {
            conv.scratch_bytes(samples)
        } else {
            0
        }
    }
}

/// Memory that a step's launches for up to `samples` samples use among themselves.
pub(super) fn workspace_bytes(plan: &Plan, step: &Step, samples: usize) -> usize {
    let StepOp::MatMul { .. } = step.op else {
        return 0;
    };
    let each = (1..=samples).map(|samples| {
        let dims = |id| place::dims(plan, id, samples);
        let operand = |i: usize| (dims(step.inputs[i]), plan.buffer(step.inputs[i]).dtype);
        let (a, b) = (operand(0), operand(1));
        ops::operands::workspace_bytes((&a.0, a.1), (&b.0, b.1), &dims(step.outputs[0]))
    });
    each.max().unwrap_or(0)
}

fn window(window: &Window) -> ops::Window {
    ops::Window {
        kernel: window.kernel,
        strides: window.strides,
        pads: window.pads,
        dilations: window.dilations,
    }
}

/// Packs what a step needs.
pub(super) fn step(context: &Arc<Context>, plan: &Plan, step: &Step) -> Result<Kernel, OpError> {
    let dtype = |id: BufferId| plan.buffer(id).dtype;
    let output = dtype(step.outputs[0]);
    let requantized = |requantize| Requantized::new(context, requantize, output);
    let edge = |integers: BufferId, scales: &EdgeScales, rounding, offset: Option<&[f32]>| {
        self::edge(context, plan, integers, scales, rounding, offset).map(Kernel::Edge)
    };
    Ok(match &step.op {
        StepOp::Conv(conv) => Kernel::Conv(Box::new(self::conv(context, plan, step, conv)?)),
        StepOp::MatMul { requantize, .. } => Kernel::Requantized(requantized(requantize.as_ref())?),
        StepOp::Rescale { requantize, .. }
        | StepOp::AveragePool { requantize, .. }
        | StepOp::Mean { requantize, .. } => Kernel::Requantized(requantized(Some(requantize))?),
        StepOp::ResizeLinear {
            rows,
            columns,
            requantize,
            ..
        } => Kernel::ResizeLinear(
            requantized(Some(requantize))?,
            Resize::new(context, rows.as_flattened(), columns.as_flattened())?,
        ),
        StepOp::ResizeNearest { rows, columns } => {
            let index = |list: &[usize]| list.iter().map(|&i| i as i32).collect::<Vec<_>>();
            Kernel::ResizeNearest(Resize::new(context, &index(rows), &index(columns))?)
        }
        StepOp::Table { tables, .. } => Kernel::Table(Table::new(context, tables)?),
        StepOp::IntegerSoftmax(op) => {
            let kind = Softmax::Integer {
                inverse: op.inverse,
                zero_point: op.zero_point,
                limits: (op.lo, op.hi),
            };
            Kernel::Softmax(kind, Exponentials::integer(context, &op.table)?)
        }
        StepOp::LayerNorm(op) => {
            let affine = (&op.gamma[..], &op.beta[..]);
            let norm = LayerNorm::new(context, op.epsilon, affine, &op.requantize, output)?;
            Kernel::LayerNorm(norm)
        }
        StepOp::QLinearSoftmax {
            table,
            inverse_scale,
            zero_point,
            ..
        } => {
            let kind = Softmax::QLinear {
                inverse_scale: *inverse_scale,
                zero_point: *zero_point,
            };
            Kernel::Softmax(kind, Exponentials::qlinear(context, table)?)
        }
        StepOp::TfliteSoftmax { table, .. } => {
            Kernel::Softmax(Softmax::Tflite, Exponentials::tflite(context, table)?)
        }
        StepOp::Quantize { scales, rounding } => edge(step.outputs[0], scales, *rounding, None)?,
        StepOp::Dequantize { scales, offset } => edge(
            step.inputs[0],
            scales,
            EdgeRounding::HalfEven,
            offset.as_deref(),
        )?,
        StepOp::EdgeThresholds {
            thresholds,
            lo,
            step,
        } => Kernel::Steps(edges::Steps::new(
            context,
            thresholds,
            (*lo, *step),
            output,
        )?),
        StepOp::ScaleAccumulator { scales, bias, relu } => Kernel::Scale(
            edges::ScaleAccumulator::new(context, scales, bias.as_deref(), *relu)?,
        ),
        StepOp::Add(_)
        | StepOp::Mul(_)
        | StepOp::MaxPool(_)
        | StepOp::Concat { .. }
        | StepOp::Slice { .. }
        | StepOp::Pad { .. }
        | StepOp::Transpose { .. }
        | StepOp::ArgMax { .. }
        | StepOp::DynamicQuantize
        | StepOp::Softmax { .. } => Kernel::None,
    })
}

fn conv(
    context: &Arc<Context>,
    plan: &Plan,
    step: &Step,
    conv: &ConvStep,
) -> Result<Conv, OpError> {
    let dtype = |id: BufferId| plan.buffer(id).dtype;
    let join = match &conv.epilogue.join {
        None => Join::None,
        Some(step::Join::Residual { buffer, residual }) => Join::Residual {
            residual: residual.clone(),
            dtype: dtype(*buffer),
        },
        Some(step::Join::Add {
            buffer,
            params,
            first,
        }) => Join::Add {
            params: *params,
            dtype: dtype(*buffer),
            first: *first,
        },
    };
    let spec = ConvSpec {
        input: conv.input,
        output: conv.output,
        window: window(&conv.window),
        groups: conv.groups,
        weights: conv.weights.as_ref().map_or(&[], |w| &w.effective),
        computed: conv
            .weights
            .is_none()
            .then(|| (dtype(step.inputs[1]), conv.weight_zero_point)),
        dtype: dtype(step.inputs[0]),
        zero_point: match conv.zero_point {
            Operand::Static(zero_point) => ZeroPoint::Static(zero_point),
            Operand::Dynamic(_) => ZeroPoint::Dynamic,
        },
        outside: conv.outside,
        bias: &conv.bias,
        finish: Finish {
            requantize: conv.epilogue.requantize.clone(),
            real: conv.epilogue.real.as_ref().map(|real| Real {
                scales: real.scales.clone(),
                offset: real.offset.clone(),
            }),
            join,
            table: conv.epilogue.table.clone(),
            dtype: dtype(step.outputs[0]),
        },
    };
    Conv::new(context, &spec)
}

fn edge(
    context: &Arc<Context>,
    plan: &Plan,
    integers: BufferId,
    scales: &EdgeScales,
    rounding: EdgeRounding,
    offset: Option<&[f32]>,
) -> Result<edges::Edge, OpError> {
    let buffer = plan.buffer(integers);
    let kind = (buffer.dtype, rounding);
    match scales {
        EdgeScales::Tensor { scale, zero_point } => {
            edges::Edge::new(context, (&[*scale], &[*zero_point]), None, offset, kind)
        }
        EdgeScales::Axis(axis) => {
            let elements = buffer.dims.iter().product();
            let which = |at| axis.blocks.index(&buffer.dims, at) as u32;
            let which: Vec<u32> = (0..elements).map(which).collect();
            let lists = (&axis.scales[..], &axis.zero_points[..]);
            edges::Edge::new(context, lists, Some(&which), offset, kind)
        }
    }
}

/// The launches of a step in one run.
pub(super) fn launches(
    kernel: &Kernel,
    step: &Step,
    places: &Places<'_>,
) -> Result<Vec<Launch>, OpError> {
    let address = |id: BufferId| places.address(id);
    let out = step.outputs[0];
    let (y_dims, y) = (places.dims(out), address(out));
    let input = |i: usize| step.inputs[i];
    let dims = |i: usize| places.dims(input(i));
    let count: usize = y_dims.iter().product();
    let unary =
        |launch: &dyn Fn(maps::Operand<'_>, maps::Operand<'_>) -> Result<Launch, OpError>| {
            let x_dims = dims(0);
            let x = places.operand(input(0), &x_dims);
            launch(x, places.operand(out, &y_dims)).map(|launch| vec![launch])
        };
    let samples = places.samples(out);
    match (&step.op, kernel) {
        (StepOp::Conv(conv), Kernel::Conv(prepared)) => {
            let zero_points = match conv.zero_point {
                Operand::Static(_) => 0,
                Operand::Dynamic(id) => address(id),
            };
            let join = conv.epilogue.join.as_ref();
            let io = ConvIo {
                samples,
                x: address(input(0)),
                weights: if conv.weights.is_none() {
                    address(input(1))
                } else {
                    0
                },
                y,
                other: join.map_or(0, |join| address(join.buffer())),
                zero_points,
                scratch: places.scratch,
                scratch_bytes: places.scratch_bytes,
            };
            Ok(vec![prepared.launch(&io)?])
        }
        (
            StepOp::MatMul {
                zero_point_a,
                zero_point_b,
                ..
            },
            Kernel::Requantized(requantized),
        ) => {
            let (a_dims, b_dims) = (dims(0), dims(1));
            let (fixed, zero_points) = match zero_point_a {
                Operand::Static(zero_point) => (*zero_point, 0),
                Operand::Dynamic(id) => (0, address(*id)),
            };
            let io = MatMulIo {
                samples,
                a: places.operand(input(0), &a_dims),
                b: places.operand(input(1), &b_dims),
                y: places.operand(out, &y_dims),
                zero_points,
                zero_point_a: fixed,
                zero_point_b: *zero_point_b,
                workspace: places.workspace,
                workspace_bytes: places.workspace_bytes,
            };
            requantized.mat_mul(&io)
        }
        (StepOp::Add(params), _) => binary(BinaryOp::Add(*params), step, places),
        (StepOp::Mul(params), _) => binary(BinaryOp::Mul(*params), step, places),
        (StepOp::Table { axis, .. }, Kernel::Table(table)) => {
            let inner = axis.map_or(1, |axis| y_dims[axis + 1..].iter().product());
            Ok(vec![table.launch(address(input(0)), y, count, inner)])
        }
        (StepOp::Rescale { zero_point, .. }, Kernel::Requantized(requantized)) => {
            unary(&|x, _| requantized.rescale(x, *zero_point, y))
        }
        (StepOp::MaxPool(window), _) => {
            unary(&|x, y| pools::pool(Pooling::Max, &self::window(window), x, y))
        }
        (
            StepOp::AveragePool {
                window,
                include_pad,
                zero_point,
                ..
            },
            Kernel::Requantized(requantize),
        ) => {
            let pooling = Pooling::Average {
                include_pad: *include_pad,
                zero_point: *zero_point,
                requantize,
            };
            unary(&|x, y| pools::pool(pooling, &self::window(window), x, y))
        }
        (
            StepOp::Mean {
                axes, zero_point, ..
            },
            Kernel::Requantized(requantize),
        ) => unary(&|x, y| pools::mean(requantize, axes, *zero_point, x, y)),
        (StepOp::ResizeNearest { .. }, Kernel::ResizeNearest(resize)) => {
            unary(&|x, y| resize.nearest(x, y))
        }
        (StepOp::ResizeLinear { zero_point, .. }, Kernel::ResizeLinear(requantize, resize)) => {
            let one = 1 << requant_model::ops::WEIGHT_BITS;
            unary(&|x, y| requantize.resize(resize, *zero_point, one, x, y))
        }
        (
            StepOp::QLinearSoftmax { axis, .. } | StepOp::TfliteSoftmax { axis, .. },
            Kernel::Softmax(kind, exponentials),
        ) => unary(&|x, y| pools::softmax(*kind, exponentials, *axis, x, y)),
        (StepOp::IntegerSoftmax(op), Kernel::Softmax(kind, exponentials)) => {
            unary(&|x, y| pools::softmax(*kind, exponentials, op.axis, x, y))
        }
        (StepOp::LayerNorm(op), Kernel::LayerNorm(norm)) => {
            unary(&|x, _| norm.launch(op.axis, x, y))
        }
        (StepOp::ArgMax { axis, last }, _) => unary(&|x, _| pools::arg_max(*axis, *last, x, y)),
        (StepOp::Quantize { .. }, Kernel::Edge(edge)) => {
            let each = count / samples;
            Ok(vec![edge.quantize(address(input(0)), y, samples, each)])
        }
        (StepOp::Dequantize { .. }, Kernel::Edge(edge)) => {
            let each = count / samples;
            Ok(vec![edge.dequantize(address(input(0)), y, samples, each)])
        }
        (StepOp::EdgeThresholds { .. }, Kernel::Steps(steps)) => {
            Ok(vec![steps.launch(address(input(0)), y, count)])
        }
        (StepOp::DynamicQuantize, _) => {
            let x = input(0);
            let samples = places.samples(x);
            let each = places.dims(x).iter().product::<usize>() / samples;
            let outputs = [y, address(step.outputs[1]), address(step.outputs[2])];
            Ok(vec![edges::dynamic_quantize(
                address(x),
                outputs,
                samples,
                each,
            )])
        }
        (StepOp::ScaleAccumulator { .. }, Kernel::Scale(scale)) => {
            let channels = y_dims.last().copied().unwrap_or(1);
            let addresses = (address(input(0)), address(input(1)), y);
            Ok(vec![scale.launch(
                addresses,
                samples,
                count / samples,
                channels,
            )?])
        }
        (_, _) => movement(step, places),
    }
}

fn binary(op: BinaryOp, step: &Step, places: &Places<'_>) -> Result<Vec<Launch>, OpError> {
    let [a, b] = [0, 1].map(|i| places.dims(step.inputs[i]));
    let y = places.dims(step.outputs[0]);
    let launch = maps::binary(
        op,
        places.operand(step.inputs[0], &a),
        places.operand(step.inputs[1], &b),
        places.operand(step.outputs[0], &y),
    )?;
    Ok(vec![launch])
}

/// Steps that move elements and change none.
fn movement(step: &Step, places: &Places<'_>) -> Result<Vec<Launch>, OpError> {
    let out = step.outputs[0];
    let (y_dims, y, dtype) = (places.dims(out), places.address(out), places.dtype(out));
    let signed = |dims: &[usize]| -> Vec<i64> { strides(dims).iter().map(|&s| s as i64).collect() };
    let (y_strides, x_dims) = (signed(&y_dims), places.dims(step.inputs[0]));
    let (x, x_strides) = (places.address(step.inputs[0]), signed(&x_dims));
    let one = |launch: Launch| Ok(vec![launch]);
    match &step.op {
        StepOp::Concat { axis } => {
            let mut at = 0;
            let part = |&id: &BufferId| {
                let dims = places.dims(id);
                let from = Side::dense(places.address(id), &dims);
                let to = Side {
                    address: y,
                    strides: y_strides.clone(),
                    base: at * y_strides[*axis],
                };
                at += dims[*axis] as i64;
                maps::copy(dtype, &dims, &from, &to)
            };
            step.inputs.iter().map(part).collect()
        }
        StepOp::Slice { starts, steps } => {
            let along = steps.iter().zip(&x_strides);
            let from = Side {
                address: x,
                strides: along.map(|(step, stride)| step * stride).collect(),
                base: starts
                    .iter()
                    .zip(&x_strides)
                    .map(|(&start, stride)| start as i64 * stride)
                    .sum(),
            };
            one(maps::copy(dtype, &y_dims, &from, &Side::dense(y, &y_dims))?)
        }
        StepOp::Pad { before, value } => {
            let bits = match dtype.size_in_memory() {
                1 => DType::U8,
                2 => DType::I16,
                _ => DType::I32,
            };
            if dtype.size_in_memory() > 4 {
                let what = "the value of a border";
                return Err(OpError::Type { what, dtype });
            }
            let to = Side {
                address: y,
                base: before
                    .iter()
                    .zip(&y_strides)
                    .map(|(&before, stride)| before as i64 * stride)
                    .sum(),
                strides: y_strides,
            };
            Ok(vec![
                maps::fill(bits, y, y_dims.iter().product(), *value)?,
                maps::copy(dtype, &x_dims, &Side::dense(x, &x_dims), &to)?,
            ])
        }
        StepOp::Transpose { perm } => {
            let from = Side {
                address: x,
                strides: perm.iter().map(|&axis| x_strides[axis]).collect(),
                base: 0,
            };
            one(maps::copy(dtype, &y_dims, &from, &Side::dense(y, &y_dims))?)
        }
        StepOp::Quantize { .. }
        | StepOp::Dequantize { .. }
        | StepOp::EdgeThresholds { .. }
        | StepOp::Conv(_)
        | StepOp::MatMul { .. }
        | StepOp::Add(_)
        | StepOp::Mul(_)
        | StepOp::Table { .. }
        | StepOp::Rescale { .. }
        | StepOp::MaxPool(_)
        | StepOp::AveragePool { .. }
        | StepOp::Mean { .. }
        | StepOp::ResizeNearest { .. }
        | StepOp::ResizeLinear { .. }
        | StepOp::Softmax { .. }
        | StepOp::IntegerSoftmax(_)
        | StepOp::LayerNorm(_)
        | StepOp::QLinearSoftmax { .. }
        | StepOp::TfliteSoftmax { .. }
        | StepOp::ArgMax { .. }
        | StepOp::DynamicQuantize
        | StepOp::ScaleAccumulator { .. } => Err(OpError::NoLaunch {
            operation: step.op.name(),
        }),
    }
}

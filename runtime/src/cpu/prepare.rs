//! From a step to the kernel that runs it.
//!
//! Steps that run the reference's loops instead: float edges with scales along an axis, softmax of floats or
//! of rows that do not lie together, ArgMax, dynamic quantization and its scaling, linear resize, means over unusual axes, and products whose weights are computed. They are small, or rare.

use requant_kernels_cpu::elementwise::broadcast_strides;
use requant_kernels_cpu::{
    AveragePool, AveragePoolSpec, Binary, BinaryOp, BinarySpec, BitConv, Conv, Dequantize, Isa,
    KernelError, LayerNorm, LayerNormSpec, Lookup, MatMul, MatMulSpec, MaxPool, Output, PoolShape,
    Quantize, Quantized, Rescale, RescaleSpec, Softmax, SoftmaxKind, SoftmaxSpec, Transpose,
};
use requant_model::ops::Window;

use super::layer::Layer;
use crate::plan::step::{EdgeScales, Operand};
use crate::plan::{BufferId, Plan, Step, StepOp};

/// A step's kernel. `images` is the leading dimension of one sample.
#[derive(Debug)]
pub(super) enum Kernel {
    /// Convolution or product with constant weights.
    Conv {
        conv: Box<Conv>,
        images: usize,
        other: Option<BufferId>,
        zero_point: Operand,
    },
    /// Convolution or product of binary and ternary operands.
    Bits {
        conv: Box<BitConv>,
        images: usize,
        other: Option<BufferId>,
    },
    /// Product of two activations.
    MatMul {
        matmul: Box<MatMul>,
        products: usize,
        a_index: Option<Vec<usize>>,
        b_index: Option<Vec<usize>>,
    },
    /// Sum or product, element by element.
    Binary(Binary),
    /// Table.
    Lookup(Lookup),
    /// Requantization on its own.
    Rescale(Box<Rescale>),
    /// Softmax of bytes.
    Softmax(Box<Softmax>),
    /// Layer normalization.
    LayerNorm(Box<LayerNorm>),
    /// Max pool.
    MaxPool { pool: MaxPool, images: usize },
    /// Average pool, or mean over height and width.
    AveragePool { pool: AveragePool, images: usize },
    /// Permutation.
    Transpose(Transpose),
    /// Float edge.
    Quantize(Quantize),
    /// Float edge.
    Dequantize(Dequantize),
    /// Copies of runs of bytes.
    Move,
    /// The reference's loops.
    Portable,
}

impl Kernel {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Kernel::Conv { conv, .. } => conv.kernel(),
            Kernel::Bits { conv, .. } => conv.kernel(),
            Kernel::MatMul { matmul, .. } => matmul.kernel(),
            Kernel::Binary(_) => "binary",
            Kernel::Lookup(_) => "lookup",
            Kernel::Rescale(_) => "rescale",
            Kernel::Softmax(_) => "softmax",
            Kernel::LayerNorm(_) => "layer-norm",
            Kernel::MaxPool { .. } => "max-pool",
            Kernel::AveragePool { .. } => "average-pool",
            Kernel::Transpose(_) => "transpose",
            Kernel::Quantize(_) => "quantize",
            Kernel::Dequantize(_) => "dequantize",
            Kernel::Move => "copy",
            Kernel::Portable => "portable",
        }
    }

    pub(super) fn packed_bytes(&self) -> usize {
        if let Kernel::Conv { conv, .. } = self {
            conv.packed_bytes()
        } else if let Kernel::Bits { conv, .. } = self {
            conv.packed_bytes()
        } else {
            0
        }
    }

    pub(super) fn scratch_bytes(&self, threads: usize) -> usize {
        match self {
            Kernel::Conv { conv, .. } => conv.scratch_bytes(threads),
            Kernel::Bits { conv, .. } => conv.scratch_bytes(threads),
            Kernel::MatMul { matmul, .. } => matmul.scratch_bytes(threads),
            Kernel::Binary(_)
            | Kernel::Lookup(_)
            | Kernel::Rescale(_)
            | Kernel::Softmax(_)
            | Kernel::LayerNorm(_)
            | Kernel::MaxPool { .. }
            | Kernel::AveragePool { .. }
            | Kernel::Transpose(_)
            | Kernel::Quantize(_)
            | Kernel::Dequantize(_)
            | Kernel::Move
            | Kernel::Portable => 0,
        }
    }
}

/// The kernel of a step; of a convolution, the way named `choice` where there is one.
pub(super) fn step(
    isa: Isa,
    plan: &Plan,
    step: &Step,
    choice: Option<&str>,
) -> Result<Kernel, KernelError> {
    let buffer = |i: usize| plan.buffer(step.inputs[i]);
    let output = || plan.buffer(step.outputs[0]);
    let images = || buffer(0).dims[0];
    // Whether rows along an axis lie in memory as they are.
    let dense = |axis: usize| buffer(0).dims[axis + 1..].iter().all(|&extent| extent == 1);
    let softmax = |axis: usize, kind, limits: Option<(i32, i32)>| {
        let (x, dtype) = (buffer(0), output().dtype);
        let range = dtype.range().map(|(lo, hi)| (lo as i32, hi as i32));
        let (lo, hi) = limits.or(range).unwrap_or((0, 0));
        let spec = SoftmaxSpec {
            kind,
            length: x.dims[axis],
            signed: x.dtype.is_signed(),
            lo,
            hi,
        };
        Softmax::new(isa, spec).map(|softmax| Kernel::Softmax(Box::new(softmax)))
    };
    Ok(match &step.op {
        StepOp::Conv(conv) => match &conv.weights {
            Some(weights) => Layer::new(isa, plan, step, conv, weights).kernel(choice)?,
            None => Kernel::Portable,
        },
        StepOp::MatMul {
            zero_point_a: Operand::Static(zero_point),
            zero_point_b,
            requantize,
        } => {
            let output = match requantize {
                Some(requantize) => Output::Quantized(Box::new(Quantized {
                    requantize: requantize.clone(),
                    dtype: output().dtype,
                    join: requant_kernels_cpu::Join::None,
                    table: None,
                })),
                None => Output::Accumulator,
            };
            mat_mul(isa, plan, step, (*zero_point, *zero_point_b), output)?
        }
        StepOp::Add(params) => binary(isa, plan, step, BinaryOp::Add(*params))?,
        StepOp::Mul(params) => binary(isa, plan, step, BinaryOp::Mul(*params))?,
        StepOp::Table { tables, axis } => {
            let inner = axis.map_or(1, |axis| buffer(0).dims[axis + 1..].iter().product());
            let tables = tables.as_chunks().0;
            Kernel::Lookup(Lookup::new(isa, tables, inner)?)
        }
        StepOp::Rescale {
            zero_point,
            requantize,
        } if output().dtype.size_in_memory() <= 2 => {
            let spec = RescaleSpec {
                input: buffer(0).dtype,
                input_zero_point: *zero_point,
                channels: buffer(0).dims.last().copied().unwrap_or(1),
                requantize: requantize.clone(),
                output: output().dtype,
            };
            Kernel::Rescale(Box::new(Rescale::new(isa, &spec)?))
        }
        StepOp::IntegerSoftmax(op) if dense(op.axis) => softmax(
            op.axis,
            SoftmaxKind::Integer {
                table: Box::new(op.table),
                inverse: op.inverse,
                zero_point: op.zero_point,
            },
            Some((op.lo, op.hi)),
        )?,
        StepOp::QLinearSoftmax {
            axis,
            table,
            inverse_scale,
            zero_point,
        } if dense(*axis) => softmax(
            *axis,
            SoftmaxKind::QLinear {
                table: table.clone(),
                inverse_scale: *inverse_scale,
                zero_point: *zero_point,
            },
            None,
        )?,
        StepOp::TfliteSoftmax { axis, table } if dense(*axis) => {
            let table = table.clone();
            softmax(*axis, SoftmaxKind::Tflite { table }, None)?
        }
        StepOp::LayerNorm(op) if dense(op.axis) => {
            let spec = LayerNormSpec {
                input: buffer(0).dtype,
                epsilon: op.epsilon,
                gamma: op.gamma.clone(),
                beta: op.beta.clone(),
                requantize: op.requantize.clone(),
                output: output().dtype,
            };
            Kernel::LayerNorm(Box::new(LayerNorm::new(isa, &spec)?))
        }
        StepOp::MaxPool(window) => {
            let shape = pool_shape(&buffer(0).dims, &output().dims, window);
            let pool = MaxPool::new(isa, shape, buffer(0).dtype)?;
            Kernel::MaxPool {
                pool,
                images: images(),
            }
        }
        // A partial last window counts fewer pads than the full one.
        StepOp::AveragePool {
            window,
            include_pad: true,
            ..
        } if window.ceil => Kernel::Portable,
        StepOp::AveragePool {
            window,
            include_pad,
            zero_point,
            requantize,
        } => {
            let spec = AveragePoolSpec {
                shape: pool_shape(&buffer(0).dims, &output().dims, window),
                input: buffer(0).dtype,
                input_zero_point: *zero_point,
                requantize: requantize.clone(),
                output: output().dtype,
                count_include_pad: *include_pad,
            };
            Kernel::AveragePool {
                pool: AveragePool::new(isa, spec)?,
                images: images(),
            }
        }
        StepOp::Mean {
            axes,
            zero_point,
            requantize,
        } if axes[..] == [1, 2] && buffer(0).dims.len() == 4 => {
            let dims = &buffer(0).dims;
            let spec = AveragePoolSpec {
                shape: PoolShape::global(dims[1], dims[2], dims[3]),
                input: buffer(0).dtype,
                input_zero_point: *zero_point,
                requantize: requantize.clone(),
                output: output().dtype,
                count_include_pad: false,
            };
            Kernel::AveragePool {
                pool: AveragePool::new(isa, spec)?,
                images: images(),
            }
        }
        StepOp::Transpose { perm } if buffer(0).dtype.size_in_memory() <= 4 => {
            let size = buffer(0).dtype.size_in_memory();
            let transpose = Transpose::new(&buffer(0).dims, perm, size)?;
            Kernel::Transpose(transpose)
        }
        StepOp::Quantize {
            scales: EdgeScales::Tensor { scale, zero_point },
            rounding,
        } if output().dtype.is_quantized() => {
            let dtype = output().dtype;
            Kernel::Quantize(Quantize::new(isa, dtype, *scale, *zero_point, *rounding)?)
        }
        StepOp::Dequantize {
            scales: EdgeScales::Tensor { scale, zero_point },
            offset: None,
        } => {
            let kernel = Dequantize::new(isa, buffer(0).dtype, &[*scale], *zero_point)?;
            Kernel::Dequantize(kernel)
        }
        StepOp::Concat { .. }
        | StepOp::Slice { .. }
        | StepOp::Pad { .. }
        | StepOp::ResizeNearest { .. } => Kernel::Move,
        StepOp::Quantize { .. }
        | StepOp::Dequantize { .. }
        | StepOp::EdgeThresholds { .. }
        | StepOp::MatMul { .. }
        | StepOp::Mean { .. }
        | StepOp::Transpose { .. }
        | StepOp::Rescale { .. }
        | StepOp::ResizeLinear { .. }
        | StepOp::Softmax { .. }
        | StepOp::IntegerSoftmax(_)
        | StepOp::LayerNorm(_)
        | StepOp::QLinearSoftmax { .. }
        | StepOp::TfliteSoftmax { .. }
        | StepOp::ArgMax { .. }
        | StepOp::DynamicQuantize
        | StepOp::ScaleAccumulator { .. } => Kernel::Portable,
    })
}

/// Most matrix products whose operands are listed one by one.
const LONGEST_LIST: usize = 1 << 20;

fn mat_mul(
    isa: Isa,
    plan: &Plan,
    step: &Step,
    (a_zero_point, b_zero_point): (i32, i32),
    output: Output,
) -> Result<Kernel, KernelError> {
    let (a, b) = (plan.buffer(step.inputs[0]), plan.buffer(step.inputs[1]));
    let dims = &plan.buffer(step.outputs[0]).dims;
    let [a_lead @ .., m, k] = &a.dims[..] else {
        return Ok(Kernel::Portable);
    };
    let [b_lead @ .., _, n] = &b.dims[..] else {
        return Ok(Kernel::Portable);
    };
    let lead = &dims[..dims.len() - 2];
    let products: usize = lead.iter().product();
    let dense = a_lead == b_lead;
    // Samples that are rows of a, or share matrices, need lists that grow with the batch.
    let grows = a.batched && (a_lead.is_empty() || !b.batched || !dense);
    if grows || (!dense && products > LONGEST_LIST) {
        return Ok(Kernel::Portable);
    }
    let index = |own: &[usize]| {
        let strides = broadcast_strides(lead, own)?;
        let mut list = Vec::with_capacity(products);
        crate::reference::for_each(lead, |_, at| {
            list.push(
                at.iter()
                    .zip(&strides)
                    .map(|(at, stride)| at * stride)
                    .sum(),
            );
        });
        Some(list)
    };
    let (a_index, b_index) = if dense {
        (None, None)
    } else {
        (index(a_lead), index(b_lead))
    };
    let spec = MatMulSpec {
        m: *m,
        k: *k,
        n: *n,
        a: a.dtype,
        a_zero_point,
        b: b.dtype,
        b_zero_point,
        b_transposed: false,
        output,
    };
    Ok(Kernel::MatMul {
        matmul: Box::new(MatMul::new(isa, &spec)?),
        products,
        a_index,
        b_index,
    })
}

fn binary(isa: Isa, plan: &Plan, step: &Step, op: BinaryOp) -> Result<Kernel, KernelError> {
    let (a, b) = (plan.buffer(step.inputs[0]), plan.buffer(step.inputs[1]));
    let output = plan.buffer(step.outputs[0]);
    let (Some(a_strides), Some(b_strides)) = (
        broadcast_strides(&output.dims, &a.dims),
        broadcast_strides(&output.dims, &b.dims),
    ) else {
        return Ok(Kernel::Portable);
    };
    let sample = |buffer: &crate::plan::Buffer| {
        if buffer.batched {
            buffer.dims.iter().product()
        } else {
            0
        }
    };
    let spec = BinarySpec {
        op,
        a: a.dtype,
        b: b.dtype,
        output: output.dtype,
        dims: output.dims.clone(),
        a_strides,
        b_strides,
        a_sample: sample(a),
        b_sample: sample(b),
    };
    Ok(Kernel::Binary(Binary::new(isa, &spec)?))
}

fn pool_shape(input: &[usize], output: &[usize], window: &Window) -> PoolShape {
    PoolShape {
        in_h: input[1],
        in_w: input[2],
        channels: input[3],
        out_h: output[1],
        out_w: output[2],
        kernel: window.kernel,
        strides: window.strides,
        pads: [window.pads[0], window.pads[1]],
        dilations: window.dilations,
    }
}

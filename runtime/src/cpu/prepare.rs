//! From a step to the kernel that runs it.
//!
//! Steps that run the reference's loops instead: float edges with scales along an axis, softmax,
//! ArgMax, dynamic quantization and its scaling, rescaling on its own, linear resize, means over
//! unusual axes, and products whose weights are computed. They are small, or rare.

use requant_kernels_cpu::elementwise::broadcast_strides;
use requant_kernels_cpu::{
    AveragePool, AveragePoolSpec, Binary, BinaryOp, BinarySpec, BitConv, BitSpec, Centroids, Conv,
    ConvShape, ConvSpec, Dequantize, Isa, KernelError, Lookup, MatMul, MatMulSpec, MaxPool, Output,
    PoolShape, Quantize, Quantized, Transpose, Weights,
};
use requant_model::ops::{WeightData, Window};
use requant_numerics::{DType, packing};

use crate::plan::step::{ConvStep, EdgeScales, Epilogue, Join, Operand};
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

pub(super) fn step(isa: Isa, plan: &Plan, step: &Step) -> Result<Kernel, KernelError> {
    let buffer = |i: usize| plan.buffer(step.inputs[i]);
    let output = || plan.buffer(step.outputs[0]);
    let images = || buffer(0).dims[0];
    Ok(match &step.op {
        StepOp::Conv(conv) => match &conv.weights {
            Some(weights) => self::conv(isa, plan, step, conv, weights)?,
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
        | StepOp::QLinearSoftmax { .. }
        | StepOp::TfliteSoftmax { .. }
        | StepOp::ArgMax { .. }
        | StepOp::DynamicQuantize
        | StepOp::ScaleAccumulator { .. } => Kernel::Portable,
    })
}

fn conv(
    isa: Isa,
    plan: &Plan,
    step: &Step,
    conv: &ConvStep,
    weights: &WeightData,
) -> Result<Kernel, KernelError> {
    let [each, in_h, in_w, in_c] = conv.input;
    let [_, out_h, out_w, out_c] = conv.output;
    let window = &conv.window;
    let shape = ConvShape {
        in_h,
        in_w,
        in_c,
        out_h,
        out_w,
        out_c,
        kernel: window.kernel,
        strides: window.strides,
        pads: [window.pads[0], window.pads[1]],
        dilations: window.dilations,
        groups: conv.groups,
    };
    let (input, output) = (plan.buffer(step.inputs[0]), plan.buffer(step.outputs[0]));
    if let Some(bits) = bits(isa, plan, step, (conv, weights, shape))? {
        return Ok(Kernel::Bits {
            conv: Box::new(bits),
            images: each,
            other: conv.epilogue.join.as_ref().map(Join::buffer),
        });
    }
    // Ones around a binary image: products of x − 1, which are nothing there, and the weights once.
    let bias = if conv.outside == 0 {
        conv.bias.clone()
    } else {
        let rows = weights.effective.chunks_exact(shape.depth());
        let sums = rows.map(|row| row.iter().map(|&w| i32::from(w)).sum::<i32>());
        sums.enumerate()
            .map(|(o, sum)| sum + conv.bias.get(o).copied().unwrap_or(0))
            .collect()
    };
    let packed = PackedForm::of(weights, shape.depth());
    let spec = ConvSpec {
        shape,
        input: input.dtype,
        input_zero_point: match conv.zero_point {
            Operand::Static(zero_point) => zero_point + conv.outside,
            Operand::Dynamic(_) => 0,
        },
        weights: packed.weights(),
        bias: &bias,
        output: epilogue(plan, &conv.epilogue, output.dtype),
    };
    let prepared = match coded(isa, weights, &spec)? {
        Some(coded) => coded,
        None => Conv::new(isa, &spec)?,
    };
    Ok(Kernel::Conv {
        conv: Box::new(prepared),
        images: each,
        other: conv.epilogue.join.as_ref().map(Join::buffer),
        zero_point: conv.zero_point,
    })
}

/// A convolution whose weights stay coded in memory, for codebooks and weights of 2 bits and less.
fn coded(isa: Isa, weights: &WeightData, spec: &ConvSpec<'_>) -> Result<Option<Conv>, KernelError> {
    let within = |w: &i16| i8::try_from(*w).is_ok();
    let few = weights.codebook.is_some() || weights.dtype.bits() <= 2;
    if !few || !weights.effective.iter().all(within) {
        return Ok(None);
    }
    let values: Vec<i8> = weights.effective.iter().map(|&w| w as i8).collect();
    let centroids = weights.codebook.as_ref().map(|codebook| Centroids {
        indices: &codebook.indices,
        centroids: &codebook.centroids,
        width: codebook.width,
    });
    let spec = ConvSpec {
        weights: Weights::I8(&values),
        ..spec.clone()
    };
    Conv::coded(isa, &spec, centroids)
}

/// Least channels of a group for which counting bits pays: a word holds 32.
const LEAST_BITS: usize = 8;

/// The popcount kernel of a step with binary or ternary operands; none where others serve it better.
fn bits(
    isa: Isa,
    plan: &Plan,
    step: &Step,
    (conv, weights, shape): (&ConvStep, &WeightData, ConvShape),
) -> Result<Option<BitConv>, KernelError> {
    let (input, output) = (plan.buffer(step.inputs[0]), plan.buffer(step.outputs[0]));
    let few_bits = |dtype| matches!(dtype, DType::Binary | DType::Ternary);
    let small = weights.effective.iter().all(|w| (-1..=1).contains(w));
    let padded = conv.outside != 0 && !shape.stays_inside();
    let narrow = shape.in_c / shape.groups < LEAST_BITS && !padded;
    if !few_bits(input.dtype) || !few_bits(weights.dtype) || !small || narrow {
        return Ok(None);
    }
    let values: Vec<i8> = weights.effective.iter().map(|&w| w as i8).collect();
    let spec = BitSpec {
        shape,
        input: input.dtype,
        zero_border: conv.outside == 0,
        ternary_weights: values.contains(&0),
        weights: &values,
        bias: &conv.bias,
        output: epilogue(plan, &conv.epilogue, output.dtype),
    };
    BitConv::new(isa, &spec).map(Some)
}

/// Effective weights in the narrowest form that a kernel takes.
enum PackedForm {
    I4(Vec<u8>),
    I8(Vec<i8>),
    I16(Vec<i16>),
}

impl PackedForm {
    fn of(weights: &WeightData, depth: usize) -> Self {
        let within = |lo: i16, hi: i16| weights.effective.iter().all(|w| (lo..=hi).contains(w));
        if weights.dtype.bits() <= 4 && within(-8, 7) {
            let bytes: Vec<u8> = weights.effective.iter().map(|&w| w as u8).collect();
            return PackedForm::I4(packing::pack(DType::I4, &bytes, depth));
        }
        if within(-128, 127) {
            return PackedForm::I8(weights.effective.iter().map(|&w| w as i8).collect());
        }
        PackedForm::I16(weights.effective.clone())
    }

    fn weights(&self) -> Weights<'_> {
        match self {
            PackedForm::I4(packed) => Weights::I4(packed),
            PackedForm::I8(weights) => Weights::I8(weights),
            PackedForm::I16(weights) => Weights::I16(weights),
        }
    }
}

fn epilogue(plan: &Plan, epilogue: &Epilogue, dtype: DType) -> Output {
    let Some(requantize) = &epilogue.requantize else {
        return Output::Accumulator;
    };
    let join = match &epilogue.join {
        None => requant_kernels_cpu::Join::None,
        Some(Join::Residual { buffer, residual }) => requant_kernels_cpu::Join::Residual {
            residual: residual.clone(),
            dtype: plan.buffer(*buffer).dtype,
        },
        Some(Join::Add {
            buffer,
            params,
            first,
        }) => requant_kernels_cpu::Join::Add {
            add: *params,
            dtype: plan.buffer(*buffer).dtype,
            product_first: *first,
        },
    };
    Output::Quantized(Box::new(Quantized {
        requantize: requantize.clone(),
        dtype,
        join,
        table: epilogue.table.as_ref().map(|table| Box::new(**table)),
    }))
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

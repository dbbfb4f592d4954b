//! The kernel of a convolution or product with constant weights, and the ways to compute it among which a
//! [tuning](super::tuning) chooses.

use std::fmt;

use requant_kernels_cpu::{
    Algorithm, BitConv, BitSpec, Centroids, Conv, ConvShape, ConvSpec, Isa, KernelError, Output,
    Quantized, Weights,
};
use requant_model::ops::WeightData;
use requant_numerics::{DType, packing};

use super::prepare::Kernel;
use crate::plan::step::{ConvStep, Epilogue, Join, Operand};
use crate::plan::{Plan, Step, StepOp};

/// Least channels of a group for which counting bits pays: a word holds 32.
const LEAST_BITS: usize = 8;

/// Weights of a channel from which on they stay in memory as small as they are, whatever is faster.
const MANY_WEIGHTS: usize = 512;

/// A way to compute a layer. All give the same bytes.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// Counting bits.
    Bits,
    /// Decoding weights as they are used.
    Coded,
    /// Weights in a form that a kernel takes.
    Plain(Algorithm),
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Way::Bits => f.write_str("bits"),
            Way::Coded => f.write_str("decode"),
            Way::Plain(algorithm) => algorithm.fmt(f),
        }
    }
}

/// A layer to prepare.
pub(super) struct Layer<'a> {
    isa: Isa,
    plan: &'a Plan,
    step: &'a Step,
    conv: &'a ConvStep,
    weights: &'a WeightData,
    shape: ConvShape,
    packed: PackedForm,
    bias: Vec<i32>,
}

impl<'a> Layer<'a> {
    pub(super) fn new(
        isa: Isa,
        plan: &'a Plan,
        step: &'a Step,
        conv: &'a ConvStep,
        weights: &'a WeightData,
    ) -> Self {
        let [_, in_h, in_w, in_c] = conv.input;
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
        Layer {
            isa,
            plan,
            step,
            conv,
            weights,
            shape,
            packed: PackedForm::of(weights, shape.depth()),
            bias,
        }
    }

    /// The names of the ways that serve, the usual one first. Layers of many weights a channel keep them as
    /// small in memory as the usual one does.
    ///
    /// # Errors
    /// Those of the kernels.
    pub(super) fn ways(&self) -> Result<Vec<String>, KernelError> {
        let ways = self.all_ways()?;
        let (mut names, mut usual) = (Vec::new(), None);
        for way in ways {
            let Some(kernel) = self.by(way)? else {
                continue;
            };
            let bytes = kernel.packed_bytes();
            let most = *usual.get_or_insert(bytes + bytes / 8);
            if bytes <= most || self.shape.depth() < MANY_WEIGHTS {
                names.push(way.to_string());
            }
        }
        Ok(names)
    }

    /// Its kernel by the way named `choice`, or by the usual one where there is none of the name.
    ///
    /// # Errors
    /// Those of the kernels.
    pub(super) fn kernel(&self, choice: Option<&str>) -> Result<Kernel, KernelError> {
        let ways = self.all_ways()?;
        let named = ways
            .iter()
            .filter(|way| choice.is_some_and(|choice| way.to_string() == choice));
        for way in named.chain(&ways) {
            if let Some(kernel) = self.by(*way)? {
                return Ok(kernel);
            }
        }
        Err(KernelError::NoKernel(self.isa))
    }

    /// All ways, in the order in which they are tried; some may turn out not to serve.
    fn all_ways(&self) -> Result<Vec<Way>, KernelError> {
        let algorithms = Conv::algorithms(self.isa, &self.spec())?;
        let plain = algorithms.into_iter().map(Way::Plain);
        let narrow = self.narrow_ways();
        // Few weights stay in a core's cache as bytes, and need no decoding there.
        let (first, last): (Vec<Way>, Vec<Way>) = narrow
            .into_iter()
            .partition(|way| matches!(way, Way::Bits) || self.shape.depth() >= MANY_WEIGHTS);
        Ok(first.into_iter().chain(plain).chain(last).collect())
    }

    /// Ways for weights of few bits.
    fn narrow_ways(&self) -> Vec<Way> {
        let (input, weights) = (self.plan.buffer(self.step.inputs[0]).dtype, self.weights);
        let few_bits = |dtype| matches!(dtype, DType::Binary | DType::Ternary);
        let small = || weights.effective.iter().all(|w| (-1..=1).contains(w));
        let padded = self.conv.outside != 0 && !self.shape.stays_inside();
        let wide = padded || self.shape.in_c / self.shape.groups >= LEAST_BITS;
        let mut ways = Vec::new();
        if few_bits(input) && few_bits(weights.dtype) && wide && small() {
            ways.push(Way::Bits);
        }
        if weights.codebook.is_some() || weights.dtype.bits() <= 2 {
            ways.push(Way::Coded);
        }
        ways
    }

    /// Its kernel by one way; none where that does not serve.
    fn by(&self, way: Way) -> Result<Option<Kernel>, KernelError> {
        Ok(match way {
            Way::Bits => Some(self.bits()?),
            Way::Coded => coded(self.isa, self.weights, &self.spec())?.map(|conv| self.plain(conv)),
            Way::Plain(algorithm) => {
                Conv::by(self.isa, &self.spec(), algorithm)?.map(|conv| self.plain(conv))
            }
        })
    }

    fn plain(&self, conv: Conv) -> Kernel {
        Kernel::Conv {
            conv: Box::new(conv),
            images: self.conv.input[0],
            other: self.conv.epilogue.join.as_ref().map(Join::buffer),
            zero_point: self.conv.zero_point,
        }
    }

    fn spec(&self) -> ConvSpec<'_> {
        ConvSpec {
            shape: self.shape,
            input: self.plan.buffer(self.step.inputs[0]).dtype,
            input_zero_point: match self.conv.zero_point {
                Operand::Static(zero_point) => zero_point + self.conv.outside,
                Operand::Dynamic(_) => 0,
            },
            weights: self.packed.weights(),
            bias: &self.bias,
            output: self.output(),
        }
    }

    fn output(&self) -> Output {
        let dtype = self.plan.buffer(self.step.outputs[0]).dtype;
        epilogue(self.plan, &self.conv.epilogue, dtype)
    }

    /// By counting the bits of binary or ternary operands.
    fn bits(&self) -> Result<Kernel, KernelError> {
        let values: Vec<i8> = self.weights.effective.iter().map(|&w| w as i8).collect();
        let spec = BitSpec {
            shape: self.shape,
            input: self.plan.buffer(self.step.inputs[0]).dtype,
            zero_border: self.conv.outside == 0,
            ternary_weights: values.contains(&0),
            weights: &values,
            bias: &self.conv.bias,
            output: self.output(),
        };
        Ok(Kernel::Bits {
            conv: Box::new(BitConv::new(self.isa, &spec)?),
            images: self.conv.input[0],
            other: self.conv.epilogue.join.as_ref().map(Join::buffer),
        })
    }
}

/// What the speed of a layer with constant weights depends on, besides the machine and the way.
pub(crate) fn key(plan: &Plan, step: &Step) -> Option<String> {
    let StepOp::Conv(conv) = &step.op else {
        return None;
    };
    let weights = conv.weights.as_ref()?;
    let (input, output) = (
        plan.buffer(step.inputs[0]).dtype,
        plan.buffer(step.outputs[0]).dtype,
    );
    let requantize = conv.epilogue.requantize.as_ref();
    let mut key = format!(
        "{:?} {input} to {:?} {output}, kernel {:?} strides {:?} pads {:?} dilations {:?} groups {}, weights {}, {:?}",
        conv.input,
        conv.output,
        conv.window.kernel,
        conv.window.strides,
        conv.window.pads,
        conv.window.dilations,
        conv.groups,
        weights.dtype,
        requantize.and_then(|requantize| requantize.scheme.rounding()),
    );
    if let Some(codebook) = &weights.codebook {
        key += &format!(", codebook of {}", codebook.width);
    }
    if conv.epilogue.join.is_some() {
        key += ", join";
    }
    if conv.epilogue.table.is_some() {
        key += ", table";
    }
    Some(key)
}

/// A convolution whose weights stay coded in memory, for codebooks and weights of 2 bits and less.
fn coded(isa: Isa, weights: &WeightData, spec: &ConvSpec<'_>) -> Result<Option<Conv>, KernelError> {
    let within = |w: &i16| i8::try_from(*w).is_ok();
    if !weights.effective.iter().all(within) {
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

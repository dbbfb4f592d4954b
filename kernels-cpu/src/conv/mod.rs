//! Convolutions over NHWC images, and through them 1x1 convolutions and matrix products: a product of
//! M×K by K×N is a 1x1 convolution over an image of 1×M pixels.
//!
//! One object serves them all. It picks a kernel, packs the weights for it, folds zero points into the
//! biases and prepares the epilogue; running it only moves data and allocates nothing.

use requant_numerics::DType;
use requant_numerics::packing::packed_row_bytes;

use crate::epilogue::Output;
use crate::error::{at_least, byte_sign, exactly, product, zero_point_in_range};
use crate::table::{DepthwiseKernel, Kernel};
use crate::{Buffer, Isa, KernelError, Parallel};

mod algorithm;
mod coded;
mod depthwise;
mod depthwise_rows;
mod fold;
mod grouped;
mod lift;
mod pointwise;
mod ring;
mod shape;
mod shift;
mod stem;
mod table_after;
mod tiled;
mod windows;

pub use algorithm::Algorithm;
pub use shape::ConvShape;

pub use coded::Centroids;
use coded::Coded;
pub(crate) use coded::{CHUNK, VALUES};
use depthwise::Depthwise;
use depthwise_rows::DepthwiseByRows;
use grouped::Grouped;
use pointwise::Pointwise;
use stem::Stem;
use table_after::TableAfter;
use tiled::Tiled;
use windows::Windowed;

/// Weights in OHWI order: `[out_c][kernel_h][kernel_w][in_c / groups]`.
#[derive(Clone, Copy, Debug)]
pub enum Weights<'a> {
    /// One byte each.
    I8(&'a [i8]),
    /// Two a byte, the first in the low nibble; each output channel's row padded to a whole byte.
    I4(&'a [u8]),
    /// Effective weights `(w − zp)·u` that do not fit 8 bits.
    I16(&'a [i16]),
}

/// A convolution to prepare.
#[derive(Clone, Debug)]
pub struct ConvSpec<'a> {
    /// Shape of one image.
    pub shape: ConvShape,
    /// Element type of the input: at most 8 bits, a byte each.
    pub input: DType,
    /// Zero point of the input.
    pub input_zero_point: i32,
    /// Weights.
    pub weights: Weights<'a>,
    /// One bias for each output channel, or none at all.
    pub bias: &'a [i32],
    /// What is written.
    pub output: Output,
}

/// The buffers of one run. Tensors are `[batch][h][w][c]`, dense.
#[derive(Debug)]
pub struct ConvIo<'a> {
    /// Images.
    pub batch: usize,
    /// Input.
    pub input: &'a [u8],
    /// Second operand of the epilogue, of the output's shape.
    pub other: Option<&'a [u8]>,
    /// Output.
    pub output: &'a mut [u8],
    /// Replaces the input's zero point for this run (dynamic quantization).
    pub input_zero_point: Option<i32>,
    /// At least [`Conv::scratch_bytes`] bytes, of any content and alignment.
    pub scratch: &'a mut [u8],
}

/// A prepared convolution.
#[derive(Debug)]
pub struct Conv {
    shape: ConvShape,
    input: DType,
    input_zero_point: i32,
    output_bytes: usize,
    other_bytes: Option<usize>,
    engine: Engine,
    table: Option<TableAfter>,
}

#[derive(Debug)]
enum Engine {
    Tiled(Tiled),
    Coded(Coded),
    Depthwise(Depthwise),
    DepthwiseByRows(DepthwiseByRows),
    Stem(Stem),
    Grouped(Grouped),
    Pointwise(Pointwise),
    Windowed(Windowed),
}

impl Conv {
    /// Prepares a convolution for an ISA. The caller has proved that no sum of products leaves 32 bits.
    ///
    /// # Errors
    /// Everything that is wrong with the shape, the buffers' lengths or the parameters.
    pub fn new(isa: Isa, spec: &ConvSpec<'_>) -> Result<Conv, KernelError> {
        for algorithm in algorithm::usual(isa, spec)? {
            if let Some(conv) = Conv::by(isa, spec, algorithm)? {
                return Ok(conv);
            }
        }
        Err(KernelError::NoKernel(isa))
    }

    /// Prepares a convolution whose weights stay coded in memory: `spec`'s 8-bit ones, as fields of bits
    /// where they have at most 16 values, or by `centroids` that they are made of. None where neither
    /// serves, or the convolution is depthwise.
    ///
    /// # Errors
    /// As [`Conv::new`]; indices past the centroids.
    pub fn coded(
        isa: Isa,
        spec: &ConvSpec<'_>,
        centroids: Option<Centroids<'_>>,
    ) -> Result<Option<Conv>, KernelError> {
        let signed = check(spec)?;
        if spec.shape.is_depthwise() {
            return Ok(None);
        }
        let coded = Coded::new(isa, spec, centroids, signed)?;
        Ok(coded.map(|coded| Conv::prepared(spec, Engine::Coded(coded))))
    }

    /// Prepares a convolution for one row of the kernel table; the epilogue takes the kernel's ISA.
    ///
    /// # Errors
    /// As [`Conv::new`], and [`KernelError::NoKernel`] when the kernel does not take these operands.
    pub fn with_kernel(kernel: &'static Kernel, spec: &ConvSpec<'_>) -> Result<Conv, KernelError> {
        let conv = Conv::by(kernel.isa, spec, Algorithm::Tiled(kernel))?;
        conv.ok_or(KernelError::NoKernel(kernel.isa))
    }

    /// Prepares a depthwise convolution for one row of the depthwise table.
    ///
    /// # Errors
    /// As [`Conv::with_kernel`]; the shape must be depthwise.
    pub fn with_depthwise_kernel(
        kernel: &'static DepthwiseKernel,
        spec: &ConvSpec<'_>,
    ) -> Result<Conv, KernelError> {
        for algorithm in [
            Algorithm::DepthwiseByRows(kernel),
            Algorithm::Depthwise(kernel),
        ] {
            if let Some(conv) = Conv::by(kernel.isa, spec, algorithm)? {
                return Ok(conv);
            }
        }
        Err(KernelError::NoKernel(kernel.isa))
    }

    fn prepared(spec: &ConvSpec<'_>, engine: Engine) -> Conv {
        Conv {
            shape: spec.shape,
            input: spec.input,
            input_zero_point: spec.input_zero_point,
            output_bytes: spec.output.element_bytes(),
            other_bytes: spec.output.other_dtype().map(DType::size_in_memory),
            engine,
            table: None,
        }
    }

    /// The kernel's name.
    pub fn kernel(&self) -> &'static str {
        match &self.engine {
            Engine::Tiled(tiled) => tiled.kernel().name,
            Engine::Coded(coded) => coded.name(),
            Engine::Depthwise(depthwise) => depthwise.kernel().name,
            Engine::DepthwiseByRows(rows) => rows.kernel().name,
            Engine::Stem(_) => "avx512-vnni-stem-u8s8",
            Engine::Grouped(_) => "avx512-vnni-groups-u8s8",
            Engine::Pointwise(_) => "avx512-vnni-points-u8s8",
            Engine::Windowed(_) => "avx512-vnni-turns-u8s8",
        }
    }

    /// Bytes of packed weights.
    pub fn packed_bytes(&self) -> usize {
        match &self.engine {
            Engine::Tiled(tiled) => tiled.packed_bytes(),
            Engine::Coded(coded) => coded.packed_bytes(),
            Engine::Depthwise(depthwise) => depthwise.packed_bytes(),
            Engine::DepthwiseByRows(rows) => rows.packed_bytes(),
            Engine::Stem(stem) => stem.packed_bytes(),
            Engine::Grouped(grouped) => grouped.packed_bytes(),
            Engine::Pointwise(pointwise) => pointwise.packed_bytes(),
            Engine::Windowed(windowed) => windowed.packed_bytes(),
        }
    }

    /// Bytes of scratch that a run on `threads` threads needs, at any batch size.
    pub fn scratch_bytes(&self, threads: usize) -> usize {
        match &self.engine {
            Engine::Tiled(tiled) => tiled.scratch_bytes(threads),
            Engine::Coded(coded) => coded.scratch_bytes(threads),
            Engine::Depthwise(depthwise) => depthwise.scratch_bytes(threads),
            Engine::DepthwiseByRows(rows) => rows.scratch_bytes(),
            Engine::Stem(stem) => stem.scratch_bytes(threads),
            Engine::Grouped(grouped) => grouped.scratch_bytes(threads),
            Engine::Pointwise(pointwise) => pointwise.scratch_bytes(),
            Engine::Windowed(windowed) => windowed.scratch_bytes(threads),
        }
    }

    /// Runs the convolution.
    ///
    /// # Errors
    /// A buffer that is too short, a missing second operand, or a zero point out of range; nothing is
    /// written then.
    pub fn run(&self, io: ConvIo<'_>, pool: &dyn Parallel) -> Result<(), KernelError> {
        let zero_point = io.input_zero_point.unwrap_or(self.input_zero_point);
        zero_point_in_range(zero_point, self.input)?;
        let inputs = product(&[io.batch, self.shape.input_elements()])?;
        let outputs = product(&[io.batch, self.shape.output_elements(), 4])? / 4;
        at_least(Buffer::Input, inputs, io.input.len())?;
        at_least(Buffer::Output, outputs * self.output_bytes, io.output.len())?;
        if let Some(bytes) = self.other_bytes {
            let other = io.other.ok_or(KernelError::MissingOther)?;
            at_least(Buffer::Other, outputs * bytes, other.len())?;
        }
        let threads = crate::parallel::usable_threads(pool);
        at_least(
            Buffer::Scratch,
            self.scratch_bytes(threads),
            io.scratch.len(),
        )?;
        if io.batch == 0 {
            return Ok(());
        }
        let ConvIo { output, .. } = io;
        let io = ConvIo {
            output: &mut *output,
            ..io
        };
        match &self.engine {
            Engine::Tiled(tiled) => tiled.run(io, zero_point, pool),
            Engine::Coded(coded) => coded.run(io, zero_point, pool),
            Engine::Depthwise(depthwise) => depthwise.run(io, zero_point, pool),
            Engine::DepthwiseByRows(rows) => rows.run(io, zero_point, pool),
            Engine::Stem(stem) => stem.run(io, zero_point, pool),
            Engine::Grouped(grouped) => grouped.run(io, zero_point, pool),
            Engine::Pointwise(pointwise) => pointwise.run(io, zero_point, pool),
            Engine::Windowed(windowed) => windowed.run(io, zero_point, pool),
        }
        if let Some(table) = &self.table {
            table.run(&mut output[..outputs], pool);
        }
        Ok(())
    }
}

/// Checks a specification; whether the input has a sign.
fn check(spec: &ConvSpec<'_>) -> Result<bool, KernelError> {
    let shape = &spec.shape;
    shape.validate()?;
    let signed = byte_sign(Buffer::Input, spec.input)?;
    zero_point_in_range(spec.input_zero_point, spec.input)?;
    let depth = shape.depth();
    match spec.weights {
        Weights::I8(weights) => exactly(Buffer::Weights, shape.out_c * depth, weights.len())?,
        Weights::I4(weights) => exactly(
            Buffer::Weights,
            shape.out_c * packed_row_bytes(DType::I4, depth),
            weights.len(),
        )?,
        Weights::I16(weights) => exactly(Buffer::Weights, shape.out_c * depth, weights.len())?,
    }
    if !spec.bias.is_empty() {
        exactly(Buffer::Bias, shape.out_c, spec.bias.len())?;
    }
    Ok(signed)
}

fn fits_sixteen_fold(spec: &ConvSpec<'_>) -> bool {
    let depth = spec.shape.depth();
    let sum = |channel: usize| -> u64 {
        (0..depth)
            .map(|k| u64::from(spec.weights.get(channel, k, depth).unsigned_abs()))
            .sum()
    };
    let largest = (0..spec.shape.out_c).map(sum).max().unwrap_or(0);
    crate::pack::sixteen_fold_fits(largest)
}

impl Weights<'_> {
    /// Whether there are weights that may not fit 8 bits.
    fn are_wide(&self) -> bool {
        match self {
            Weights::I8(_) | Weights::I4(_) => false,
            Weights::I16(_) => true,
        }
    }

    /// The weight of an output channel at `k < depth`.
    fn get(&self, channel: usize, k: usize, depth: usize) -> i16 {
        match self {
            Weights::I8(weights) => i16::from(weights[channel * depth + k]),
            Weights::I4(weights) => {
                let byte = weights[channel * packed_row_bytes(DType::I4, depth) + k / 2];
                let high = if k.is_multiple_of(2) { byte << 4 } else { byte };
                i16::from(high as i8 >> 4)
            }
            Weights::I16(weights) => weights[channel * depth + k],
        }
    }
}

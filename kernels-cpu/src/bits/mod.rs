//! Convolutions and matrix products of binary and ternary operands, by counting bits.
//!
//! Activations come one a byte and are packed into planes of bits a block of output rows at a time;
//! weights stay packed in memory. A block's packed activations meet every panel of weights before the
//! next block is packed, so packing costs little beside counting. Sums are exact and leave through the
//! epilogue of every other product: thresholds, requantization, sums, tables.

mod image;
mod portable;
pub mod table;
mod weights;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_pack;
#[cfg(target_arch = "aarch64")]
mod neon;

use core::ops::Range;

use requant_numerics::requantize::index;
use requant_numerics::{DType, Scheme};

use crate::conv::{ConvIo, ConvShape};
use crate::epilogue::{Epilogue, Join, Output, Place};
use crate::error::{at_least, exactly, product};
use crate::memory::{Carver, LINE, piece};
use crate::parallel::{MAX_PARTS, Shared, run_parts, share, shares, usable_threads};
use crate::{Buffer, Isa, KernelError, Parallel};

use image::ImagePlan;
use table::{BitKernel, BitTile, GROUP, Operands, SignTile};
use weights::{BitPanel, BitWeights, Source};

/// Bytes of packed activations in a block, where one output row does not already need more.
const BLOCK_BYTES: usize = 128 << 10;
/// Most output pixels of a block, where one output row does not already have more.
const BLOCK_PIXELS: usize = 512;
/// Multiply-accumulates below which a second thread costs more than it gives.
const MACS_PER_PART: usize = 1 << 20;

/// A convolution to prepare.
#[derive(Clone, Debug)]
pub struct BitSpec<'a> {
    /// Its shape.
    pub shape: ConvShape,
    /// `binary` or `ternary`: -1, 0 and 1, a byte each.
    pub input: DType,
    /// Whether elements outside a binary image count as nothing instead of 1.
    pub zero_border: bool,
    /// Whether weights may be 0.
    pub ternary_weights: bool,
    /// -1, 0 or 1: `[out_c, kernel_h, kernel_w, in_c/groups]`.
    pub weights: &'a [i8],
    /// One an output channel, or none.
    pub bias: &'a [i32],
    /// What is written.
    pub output: Output,
}

/// A prepared convolution of binary or ternary operands.
#[derive(Debug)]
pub struct BitConv {
    kernel: &'static BitKernel,
    /// Without border and steps, all images of a batch are one column of pixels.
    flat: bool,
    shape: ConvShape,
    plan: ImagePlan,
    weights: BitWeights,
    epilogue: Epilogue,
    /// Where outputs are signs and the kernel gives them.
    signs: Option<Signs>,
    output_bytes: usize,
    other_bytes: Option<usize>,
    /// Most output rows of a block.
    block_rows: usize,
}

impl BitConv {
    /// Prepares a convolution for an ISA. The caller has proved that no sum leaves 32 bits.
    ///
    /// # Errors
    /// Everything that is wrong with the shape, the operands or the parameters.
    pub fn new(isa: Isa, spec: &BitSpec<'_>) -> Result<Self, KernelError> {
        let operands = operands(spec)?;
        let words = (spec.shape.in_c / spec.shape.groups).div_ceil(GROUP);
        let kernel = table::select(isa, operands, words)?;
        BitConv::prepare(isa, kernel, spec)
    }

    /// Prepares a convolution for one row of the table.
    ///
    /// # Errors
    /// As [`BitConv::new`], and [`KernelError::NoKernel`] where the machine lacks what the kernel needs,
    /// or the kernel does not take the operands.
    pub fn with_kernel(
        kernel: &'static BitKernel,
        spec: &BitSpec<'_>,
    ) -> Result<Self, KernelError> {
        let operands = operands(spec)?;
        let words = (spec.shape.in_c / spec.shape.groups).div_ceil(GROUP);
        let suits = operands == kernel.operands && (words >= 3 || !kernel.triples);
        let takes = suits && kernel.is_available();
        crate::table::usable(kernel.isa, takes)?;
        BitConv::prepare(kernel.isa, kernel, spec)
    }

    fn prepare(
        isa: Isa,
        kernel: &'static BitKernel,
        spec: &BitSpec<'_>,
    ) -> Result<Self, KernelError> {
        let shape = spec.shape;
        let depth = shape.depth();
        exactly(Buffer::Weights, shape.out_c * depth, spec.weights.len())?;
        if !spec.bias.is_empty() {
            exactly(Buffer::Bias, shape.out_c, spec.bias.len())?;
        }
        let [kernel_h, kernel_w] = shape.kernel;
        let source = Source {
            weights: spec.weights,
            bias: spec.bias,
            groups: shape.groups,
            columns: shape.out_c / shape.groups,
            taps: kernel_h * kernel_w,
            channels: shape.in_c / shape.groups,
        };
        let weights = BitWeights::new(kernel, &source)?;
        let narrowest = kernel.widths[kernel.widths.len() - 1];
        let channels = weights.channels();
        let epilogue = Epilogue::new(isa, &spec.output, shape.out_c, &channels, narrowest, None)?;
        let flat = shape.kernel == [1, 1]
            && shape.strides == [1, 1]
            && (shape.in_h, shape.in_w) == (shape.out_h, shape.out_w)
            && shape.stays_inside();
        let column = ConvShape {
            in_h: isize::MAX as usize,
            out_h: isize::MAX as usize,
            in_w: 1,
            out_w: 1,
            ..shape
        };
        let plan = ImagePlan::new(if flat { &column } else { &shape }, kernel);
        product(&[plan.words(1), 8])?;
        let width = if flat { 1 } else { shape.out_w };
        let fits =
            |rows: &usize| 4 * plan.words(*rows) <= BLOCK_BYTES && rows * width <= BLOCK_PIXELS;
        let most = if flat { BLOCK_PIXELS } else { shape.out_h };
        let block_rows = (1..=most.min(BLOCK_PIXELS)).take_while(fits).last();
        Ok(BitConv {
            kernel,
            flat,
            shape,
            plan,
            epilogue,
            signs: Signs::new(kernel, &spec.output, &weights),
            weights,
            output_bytes: spec.output.element_bytes(),
            other_bytes: spec.output.other_dtype().map(DType::size_in_memory),
            block_rows: block_rows.unwrap_or(1),
        })
    }

    /// The kernel's name.
    pub fn kernel(&self) -> &'static str {
        self.kernel.name
    }

    /// Bytes of packed weights.
    pub fn packed_bytes(&self) -> usize {
        self.weights.bytes()
    }

    /// Bytes of scratch that a run on `threads` threads needs, at any batch size.
    pub fn scratch_bytes(&self, threads: usize) -> usize {
        LINE + threads.clamp(1, MAX_PARTS) * piece(self.part_bytes())
    }

    /// Pixels of an output row.
    fn width(&self) -> usize {
        if self.flat { 1 } else { self.shape.out_w }
    }

    fn part_bytes(&self) -> usize {
        let pixels = self.block_rows * self.width();
        LINE + piece(4 * (self.kernel.tallest() * self.kernel.widest() + 1))
            + piece(4 * self.plan.words(self.block_rows))
            + piece(pixels * self.plan.segments * size_of::<*const u32>())
            + piece(4 * pixels)
    }

    /// Runs the convolution; a zero point of the input is none of it.
    ///
    /// # Errors
    /// A buffer that is too short, or a missing second operand; nothing is written then.
    pub fn run(&self, io: ConvIo<'_>, pool: &dyn Parallel) -> Result<(), KernelError> {
        let inputs = product(&[io.batch, self.shape.input_elements()])?;
        let outputs = product(&[io.batch, self.shape.output_elements(), 4])? / 4;
        at_least(Buffer::Input, inputs, io.input.len())?;
        at_least(Buffer::Output, outputs * self.output_bytes, io.output.len())?;
        if let Some(bytes) = self.other_bytes {
            let other = io.other.ok_or(KernelError::MissingOther)?;
            at_least(Buffer::Other, outputs * bytes, other.len())?;
        }
        let threads = usable_threads(pool);
        let scratch_bytes = self.scratch_bytes(threads);
        at_least(Buffer::Scratch, scratch_bytes, io.scratch.len())?;
        let pixels = self.shape.out_h * self.shape.out_w;
        let rows = io.batch * if self.flat { pixels } else { self.shape.out_h };
        let (parts, by_rows) = self.split(rows, threads);
        let part_bytes = piece(self.part_bytes());
        let scratch = Shared::new(Carver::new(io.scratch).bytes(parts * part_bytes));
        let output = Shared::new(io.output);
        let other = io.other.unwrap_or(&[]);
        run_parts(pool, parts, |part| {
            // SAFETY: pieces of different parts are disjoint, and each part runs once.
            let scratch = unsafe { scratch.slice(part * part_bytes..(part + 1) * part_bytes) };
            let panels = &self.weights.panels;
            let (rows, panels) = if by_rows {
                (share(rows, parts, part), 0..panels.len())
            } else {
                (0..rows, share(panels.len(), parts, part))
            };
            let job = Job {
                conv: self,
                input: io.input,
                other,
                output: &output,
                panels: &self.weights.panels[panels],
            };
            job.run(rows, scratch);
        });
        Ok(())
    }

    /// The number of parts, and whether they share rows, not panels.
    fn split(&self, rows: usize, threads: usize) -> (usize, bool) {
        let columns: usize = self.weights.panels.iter().map(|panel| panel.width).sum();
        let macs = rows
            .saturating_mul(self.width())
            .saturating_mul(columns)
            .saturating_mul(self.shape.depth());
        let threads = threads.min(macs / MACS_PER_PART).max(1);
        let units = if self.flat {
            rows.div_ceil(self.kernel.tallest())
        } else {
            rows
        };
        let panels = self.weights.panels.len();
        // The part that finishes last decides: the share of the longest part in all the work.
        let longest = |units: usize| units.div_ceil(threads) as f64 / units.max(1) as f64;
        let by_rows = longest(units) <= longest(panels);
        let units = if by_rows { units } else { panels };
        (threads.min(units).max(1), by_rows)
    }
}

/// The operands of a specification whose shape and types are then known to be fine.
fn operands(spec: &BitSpec<'_>) -> Result<Operands, KernelError> {
    spec.shape.validate()?;
    if !matches!(spec.input, DType::Binary | DType::Ternary) {
        return Err(KernelError::DType {
            buffer: Buffer::Input,
            dtype: spec.input,
        });
    }
    // A border of nothing is an element that is 0.
    let holes = spec.zero_border && !spec.shape.stays_inside();
    let ternary = spec.input == DType::Ternary || holes;
    Ok(Operands::of(ternary, spec.ternary_weights))
}

/// Thresholds as limits of counts, for a kernel that writes signs itself.
#[derive(Debug)]
struct Signs {
    /// One a packed column.
    limits: Vec<i32>,
    /// For each panel, the columns that fall.
    falls: Vec<u64>,
}

impl Signs {
    /// None where the output is not signs by one threshold, or something is fused behind it.
    fn new(kernel: &BitKernel, output: &Output, weights: &BitWeights) -> Option<Self> {
        let Output::Quantized(quantized) = output else {
            return None;
        };
        let requantize = &quantized.requantize;
        let Scheme::Thresholds {
            levels: 1,
            tau,
            falls,
        } = &requantize.scheme
        else {
            return None;
        };
        let plain = quantized.join == Join::None && quantized.table.is_none();
        let signs = (requantize.lo, requantize.hi) == (-1, 1) && quantized.dtype.is_quantized();
        if kernel.signs.is_empty() || !plain || !signs {
            return None;
        }
        let entry = |channel: usize| index(falls.len(), channel);
        let mut limits = Vec::new();
        let mut masks = Vec::new();
        for panel in &weights.panels {
            let biases = weights.bias(panel);
            let mut mask = 0u64;
            for (c, &bias) in biases.iter().enumerate() {
                if c >= panel.used {
                    limits.push(0);
                    continue;
                }
                let entry = entry(panel.channel + c);
                // `acc ≤ τ` where not `acc ≥ τ + 1`; a τ of a channel that falls is not the largest.
                let tau = tau[entry].saturating_add(i32::from(falls[entry]));
                mask |= u64::from(falls[entry]) << c;
                limits.push(kernel.operands.limit(bias, tau));
            }
            masks.push(mask);
        }
        Some(Signs {
            limits,
            falls: masks,
        })
    }
}

/// One part of a run; buffers hold what the whole run needs, and no other part writes these rows of
/// these panels.
struct Job<'a> {
    conv: &'a BitConv,
    input: &'a [u8],
    other: &'a [u8],
    output: &'a Shared<'a>,
    panels: &'a [BitPanel],
}

impl Job<'_> {
    /// Computes output rows, counted over the batch.
    fn run(&self, rows: Range<usize>, scratch: &mut [u8]) {
        let conv = self.conv;
        let pixels = conv.block_rows * conv.width();
        let mut carver = Carver::new(scratch);
        let tile = carver.words(conv.kernel.tallest() * conv.kernel.widest() + 1);
        let packed = carver.words(conv.plan.words(conv.block_rows));
        let packed: &mut [u32] = bytemuck::cast_slice_mut(packed);
        let pointers = carver.pointers(pixels * conv.plan.segments);
        let terms = carver.words(pixels);
        terms.fill(0);
        let per_image = if conv.flat {
            usize::MAX
        } else {
            conv.shape.out_h
        };
        let mut next = rows.start;
        while next < rows.end {
            let (image, first) = (next / per_image, next % per_image);
            let count = (rows.end - next)
                .min(per_image - first)
                .min(conv.block_rows);
            let input = &self.input[image * conv.shape.input_elements()..];
            conv.plan
                .pack(conv.kernel, input, first..first + count, packed);
            let block = Block {
                job: self,
                packed,
                first: next * conv.width(),
                pixels: count * conv.width(),
            };
            for panels in self.panels.chunk_by(|a, b| a.group == b.group) {
                block.run(panels, pointers, terms, tile);
            }
            next += count;
        }
    }
}

/// Output pixels whose packed activations are at hand.
struct Block<'a> {
    job: &'a Job<'a>,
    packed: &'a [u32],
    /// First output pixel, counted over the batch.
    first: usize,
    pixels: usize,
}

impl Block<'_> {
    /// The panels of one group.
    fn run(
        &self,
        panels: &[BitPanel],
        pointers: &mut [*const u8],
        terms: &mut [i32],
        tile: &mut [i32],
    ) {
        let conv = self.job.conv;
        let (width, segments) = (conv.width(), conv.plan.segments);
        let count = self.pixels.div_ceil(conv.kernel.tallest());
        let tiles = shares(self.pixels, count);
        let group = panels[0].group;
        for pixels in tiles.clone() {
            let height = pixels.len();
            if conv.flat && conv.kernel.operands != Operands::TernaryBinary {
                // A run each, one after the other.
                let starts = pointers[pixels.start..pixels.end].iter_mut();
                let mut start = conv.plan.runs(group, (pixels.start, 0)).sum::<usize>();
                for pointer in starts {
                    *pointer = self.packed[start..].as_ptr().cast();
                    start += conv.plan.line();
                }
                continue;
            }
            for (r, pixel) in pixels.clone().enumerate() {
                let at = (pixel / width, pixel % width);
                for (segment, start) in conv.plan.runs(group, at).enumerate() {
                    pointers[pixels.start * segments + segment * height + r] =
                        self.packed[start..].as_ptr().cast();
                }
                if conv.kernel.operands == Operands::TernaryBinary {
                    terms[pixel] = conv.plan.nonzero(conv.kernel, self.packed, group, at);
                }
            }
        }
        for panel in panels {
            let functions = conv.kernel.tiles[panel.width_index];
            let weights = conv.weights.panel(panel);
            let bias = conv.weights.bias(panel);
            if let Some(signs) = &conv.signs {
                for pixels in tiles.clone() {
                    let place = (self.first + pixels.start) * conv.shape.out_c + panel.channel;
                    let call = SignTile {
                        rows: pointers[pixels.start * segments..].as_ptr().cast(),
                        segments,
                        groups: conv.plan.groups,
                        weights: weights.as_ptr(),
                        terms: terms[pixels.start..].as_ptr(),
                        limits: signs.limits[panel.column..].as_ptr(),
                        falls: signs.falls[panel.index],
                        out: self.job.output.start().wrapping_add(place),
                        stride: conv.shape.out_c,
                        columns: panel.used,
                    };
                    let functions = conv.kernel.signs[panel.width_index];
                    // SAFETY: the contract of `SignTile`: as for `BitTile` below; limits have the
                    // panel's columns, and the output's places are this part's alone.
                    unsafe { functions[pixels.len() - 1](&call) };
                }
                continue;
            }
            for pixels in tiles.clone() {
                let call = BitTile {
                    rows: pointers[pixels.start * segments..].as_ptr().cast(),
                    segments,
                    groups: conv.plan.groups,
                    weights: weights.as_ptr(),
                    bias: bias.as_ptr(),
                    terms: terms[pixels.start..].as_ptr(),
                    out: tile.as_mut_ptr(),
                };
                // SAFETY: the contract of `BitTile`: the pointers of this block's pixels were just
                // written and each run lies inside the packed words, the panel was packed for this
                // kernel and depth, bias and terms have the tile's columns and rows, the tile is as
                // large as the kernel's largest; availability was checked when it was chosen.
                unsafe { functions[pixels.len() - 1](&call) };
                let place = Place {
                    tile: tile.as_mut_ptr(),
                    stride: panel.width,
                    rows: pixels.len(),
                    columns: panel.used,
                    column: panel.column,
                    channel: panel.channel,
                    width: conv.shape.out_c,
                    row: self.first + pixels.start,
                    output: self.job.output.start(),
                    other: self.job.other.as_ptr(),
                };
                // SAFETY: the tile holds `rows × width` sums; the output's places are this part's
                // alone, and both operands hold all rows, which was checked before.
                unsafe { conv.epilogue.run(&place) };
            }
        }
    }
}

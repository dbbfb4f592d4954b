//! Depthwise convolutions: each channel has a kernel of its own, so there is no product of matrices.
//!
//! Channels are cut into chunks of a kernel's lanes; for a few output pixels at a time the engine lists
//! a pointer for each tap and lets every chunk meet them. Taps outside the image point to a row of zero
//! points, so any kernel size, stride and dilation takes the same path.

use core::ops::Range;

use crate::epilogue::{Epilogue, Place};
use crate::memory::{Aligned, Carver, LINE, piece};
use crate::parallel::{MAX_PARTS, Shared, run_parts, share, usable_threads};
use crate::table::{DepthwiseKernel, DepthwiseTile};
use crate::tiles::MACS_PER_PART;
use crate::{Isa, KernelError, Parallel};

use super::fold::Folded;
use super::{ConvIo, ConvShape, ConvSpec};

/// Output pixels of a tile.
const PIXELS: usize = 8;
/// Multiply-accumulates of a depthwise kernel in the time of one of a matrix product.
const SLOWER: usize = 8;

/// A depthwise convolution, prepared.
#[derive(Debug)]
pub(super) struct Depthwise {
    shape: ConvShape,
    kernel: &'static DepthwiseKernel,
    weights: Aligned,
    bias: Folded,
    epilogue: Epilogue,
    /// Taps, padded to the kernel's group.
    taps: usize,
    /// Bytes from the first tap to each, without padding.
    offsets: Vec<usize>,
}

impl Depthwise {
    pub(super) fn new(
        isa: Isa,
        kernel: &'static DepthwiseKernel,
        spec: &ConvSpec<'_>,
    ) -> Result<Self, KernelError> {
        let shape = spec.shape;
        let depth = shape.depth();
        let taps = depth.next_multiple_of(kernel.group);
        let columns = shape.out_c.next_multiple_of(kernel.lanes);
        let channels: Vec<Option<usize>> = (0..columns)
            .map(|column| (column < shape.out_c).then_some(column))
            .collect();
        let weight = |channel, tap| spec.weights.get(channel, tap, depth);
        let bytes = kernel.weight_bytes();
        let mut weights = Aligned::zeroed(crate::error::product(&[columns, taps, bytes])?);
        let packed = weights.bytes_mut();
        for channel in 0..shape.out_c {
            let chunk = channel / kernel.lanes * kernel.lanes * taps;
            for tap in 0..depth {
                let group = tap / kernel.group * kernel.group * kernel.lanes;
                let within = (kernel.place)(channel % kernel.lanes, tap % kernel.group);
                let at = (chunk + group + within) * bytes;
                packed[at..at + bytes]
                    .copy_from_slice(&weight(channel, tap).to_le_bytes()[..bytes]);
            }
        }
        let bias = Folded::new(columns, spec.input_zero_point, kernel.offset, |column| {
            let channel = channels[column]?;
            let bias = spec.bias.get(channel).copied().unwrap_or(0);
            Some((bias, (0..depth).map(move |tap| weight(channel, tap))))
        });
        Ok(Depthwise {
            shape,
            kernel,
            weights,
            bias,
            epilogue: Epilogue::new(
                isa,
                &spec.output,
                shape.out_c,
                &channels,
                kernel.lanes,
                None,
            )?,
            taps,
            offsets: (0..depth)
                .map(|tap| {
                    let (ky, kx) = (tap / shape.kernel[1], tap % shape.kernel[1]);
                    let right = kx * shape.dilations[1];
                    (ky * shape.dilations[0] * shape.in_w + right) * shape.in_c
                })
                .collect(),
        })
    }

    pub(super) fn kernel(&self) -> &'static DepthwiseKernel {
        self.kernel
    }

    pub(super) fn packed_bytes(&self) -> usize {
        self.weights.bytes().len()
    }

    pub(super) fn scratch_bytes(&self, threads: usize) -> usize {
        LINE + piece(4 * self.bias.columns())
            + piece(self.shape.in_c)
            + threads.clamp(1, MAX_PARTS) * self.part_bytes()
    }

    fn part_bytes(&self) -> usize {
        LINE + piece(4 * (PIXELS * self.kernel.lanes + 1))
            + piece(PIXELS * self.taps * size_of::<*const u8>())
    }

    /// Runs on buffers whose lengths were checked.
    pub(super) fn run(&self, io: ConvIo<'_>, zero_point: i32, pool: &dyn Parallel) {
        let mut carver = Carver::new(io.scratch);
        let bias = self.bias.get(zero_point, carver.words(self.bias.columns()));
        let outside = carver.bytes(self.shape.in_c);
        outside.fill(zero_point as u8);
        let pixels = io.batch * self.shape.out_h * self.shape.out_w;
        let macs = pixels.saturating_mul(self.shape.out_c * self.taps);
        let parts = usable_threads(pool)
            .min(macs / (MACS_PER_PART / SLOWER))
            .min(pixels.div_ceil(PIXELS))
            .max(1);
        let part_bytes = self.part_bytes();
        let scratch = Shared::new(carver.bytes(parts * part_bytes));
        let output = Shared::new(io.output);
        let job = Job {
            depthwise: self,
            input: io.input,
            other: io.other.unwrap_or(&[]),
            output: &output,
            bias,
            outside,
        };
        run_parts(pool, parts, |part| {
            // SAFETY: pieces of different parts are disjoint, and each part runs once.
            let scratch = unsafe { scratch.slice(part * part_bytes..(part + 1) * part_bytes) };
            job.run(share(pixels, parts, part), scratch);
        });
    }
}

/// One run: what all parts share.
struct Job<'a> {
    depthwise: &'a Depthwise,
    input: &'a [u8],
    other: &'a [u8],
    output: &'a Shared<'a>,
    bias: &'a [i32],
    /// A row of zero points, as long as a pixel.
    outside: &'a [u8],
}

impl Job<'_> {
    fn run(&self, pixels: Range<usize>, scratch: &mut [u8]) {
        let depthwise = self.depthwise;
        let lanes = depthwise.kernel.lanes;
        let mut carver = Carver::new(scratch);
        let tile = carver.words(PIXELS * lanes + 1);
        let taps = carver.pointers(PIXELS * depthwise.taps);
        for first in pixels.clone().step_by(PIXELS) {
            let count = PIXELS.min(pixels.end - first);
            for (index, taps) in taps
                .chunks_exact_mut(depthwise.taps)
                .take(count)
                .enumerate()
            {
                self.point(first + index, taps);
            }
            for channel in (0..depthwise.shape.out_c).step_by(lanes) {
                self.chunk(first, count, channel, taps, tile);
            }
        }
    }

    /// The pointers of one output pixel, counted over the batch.
    fn point(&self, pixel: usize, taps: &mut [*const u8]) {
        let shape = &self.depthwise.shape;
        let image = pixel / (shape.out_h * shape.out_w);
        let (oy, ox) = (pixel / shape.out_w % shape.out_h, pixel % shape.out_w);
        let y = (oy * shape.strides[0]) as isize - shape.pads[0] as isize;
        let x = (ox * shape.strides[1]) as isize - shape.pads[1] as isize;
        let image = &self.input[image * shape.input_elements()..];
        if shape.holds_window(y, x) {
            let first = &image[(y as usize * shape.in_w + x as usize) * shape.in_c..];
            for (tap, offset) in taps.iter_mut().zip(&self.depthwise.offsets) {
                *tap = first[*offset..].as_ptr();
            }
            taps[self.depthwise.offsets.len()..].fill(self.outside.as_ptr());
            return;
        }
        let mut next = 0;
        for ky in 0..shape.kernel[0] {
            let y = y + (ky * shape.dilations[0]) as isize;
            let inside = (0..shape.in_h as isize).contains(&y);
            for kx in 0..shape.kernel[1] {
                let x = x + (kx * shape.dilations[1]) as isize;
                taps[next] = if inside && (0..shape.in_w as isize).contains(&x) {
                    let at = (y as usize * shape.in_w + x as usize) * shape.in_c;
                    image[at..].as_ptr()
                } else {
                    self.outside.as_ptr()
                };
                next += 1;
            }
        }
        taps[next..].fill(self.outside.as_ptr());
    }

    /// One chunk of channels of some pixels.
    fn chunk(
        &self,
        pixel: usize,
        pixels: usize,
        channel: usize,
        taps: &[*const u8],
        tile: &mut [i32],
    ) {
        let depthwise = self.depthwise;
        let kernel = depthwise.kernel;
        let channels = kernel.lanes.min(depthwise.shape.out_c - channel);
        let chunk = channel * depthwise.taps * kernel.weight_bytes();
        let call = DepthwiseTile {
            taps: taps.as_ptr(),
            taps_padded: depthwise.taps,
            pixels,
            channel,
            channels,
            weights: depthwise.weights.bytes()[chunk..].as_ptr(),
            bias: self.bias[channel..channel + kernel.lanes].as_ptr(),
            out: tile.as_mut_ptr(),
        };
        // SAFETY: the contract of `DepthwiseTile`: `point` filled the pointers of all pixels, each at
        // a pixel's first channel or at the row of zero points; the weights were packed for this
        // kernel; the tile holds `PIXELS` rows; the ISA was checked when the layer was prepared.
        unsafe { (kernel.run)(&call) };
        let place = Place {
            tile: tile.as_mut_ptr(),
            stride: kernel.lanes,
            rows: pixels,
            columns: channels,
            column: channel,
            channel,
            width: depthwise.shape.out_c,
            row: pixel,
            output: self.output.start(),
            other: self.other.as_ptr(),
        };
        // SAFETY: the tile holds `pixels` rows; pixels of different parts are disjoint, and lengths
        // were checked for the whole batch.
        unsafe { depthwise.epilogue.run(&place) };
    }
}

//! Activations as planes of bits: the part of an image that a block of output rows reaches into, packed
//! with its border, so that every row of a tile is a few runs of words.
//!
//! A cell is one convolution group's channels in one pixel, padded to whole words. Words of the border
//! are 0: the sign of 1 in a binary plane, and nothing in a ternary one.

use core::ops::Range;

use crate::conv::ConvShape;

use super::table::{BitKernel, GROUP};

/// How a convolution's input lies when it is packed.
#[derive(Clone, Debug)]
pub(super) struct ImagePlan {
    shape: ConvShape,
    /// Words of a cell, planes included.
    cell: usize,
    planes: usize,
    /// Pixels of a packed line.
    width: usize,
    /// Runs of a row: kernel rows, or taps where these are not neighbours.
    pub(super) segments: usize,
    /// Groups of 32 positions in a run.
    pub(super) groups: usize,
    joined: bool,
}

impl ImagePlan {
    pub(super) fn new(shape: &ConvShape, kernel: &BitKernel) -> Self {
        let planes = kernel.operands.activation_planes();
        let words = (shape.in_c / shape.groups).div_ceil(GROUP);
        let [kernel_h, kernel_w] = shape.kernel;
        let neighbours = kernel_w == 1 || (shape.dilations[1] == 1 && !kernel.triples);
        let joined = shape.groups == 1 && neighbours;
        ImagePlan {
            shape: *shape,
            cell: words * planes,
            planes,
            width: (shape.out_w - 1) * shape.strides[1] + (kernel_w - 1) * shape.dilations[1] + 1,
            segments: if joined {
                kernel_h
            } else {
                kernel_h * kernel_w
            },
            groups: if joined { kernel_w * words } else { words },
            joined,
        }
    }

    /// Words of a packed line.
    pub(super) fn line(&self) -> usize {
        self.width * self.shape.groups * self.cell
    }

    /// Lines that `rows` output rows reach into.
    fn lines(&self, rows: usize) -> usize {
        (rows - 1) * self.shape.strides[0]
            + (self.shape.kernel[0] - 1) * self.shape.dilations[0]
            + 1
    }

    /// Words of the packed lines of `rows` output rows.
    pub(super) fn words(&self, rows: usize) -> usize {
        self.lines(rows) * self.line()
    }

    /// Packs what the output rows `rows` of one image reach into.
    pub(super) fn pack(
        &self,
        kernel: &BitKernel,
        image: &[u8],
        rows: Range<usize>,
        packed: &mut [u32],
    ) {
        let shape = &self.shape;
        let channels = shape.in_c / shape.groups;
        let pixel = shape.groups * self.cell;
        // Columns of the image that the packed line holds, and where they start in it.
        let left = shape.pads[1].min(self.width);
        let columns = (self.width - left).min(shape.in_w);
        let (first, last) = (left * pixel, (left + columns) * pixel);
        let ternary = self.planes == 2;
        let count = self.lines(rows.len());
        let top = rows.start * shape.strides[0];
        // Without a border, lines follow one another here and there.
        let whole = shape.pads == [0, 0] && columns == shape.in_w && columns == self.width;
        if whole && top + count <= shape.in_h {
            let (start, line) = (top * shape.in_w * shape.in_c, shape.in_w * shape.in_c);
            let cells = &image[start..start + count * line];
            let packed = &mut packed[..count * self.line()];
            (kernel.pack)(cells, channels, ternary, packed);
            self.join(kernel, packed);
            return;
        }
        let lines = packed.chunks_exact_mut(self.line()).enumerate();
        for (line, packed) in lines.take(count) {
            let y = (top + line).wrapping_sub(shape.pads[0]);
            // A line before the image wraps to a huge one.
            if y >= shape.in_h {
                packed.fill(0);
                continue;
            }
            packed[..first].fill(0);
            packed[last..].fill(0);
            let start = y * shape.in_w * shape.in_c;
            let cells = &image[start..start + columns * shape.in_c];
            (kernel.pack)(cells, channels, ternary, &mut packed[first..last]);
            self.join(kernel, &mut packed[first..last]);
        }
    }

    /// Makes the third word of every three what a kernel of triples reads.
    fn join(&self, kernel: &BitKernel, cells: &mut [u32]) {
        if !kernel.triples {
            return;
        }
        for cell in cells.chunks_exact_mut(self.cell) {
            for [first, second, third] in cell.as_chunks_mut().0 {
                *third ^= *first ^ *second;
            }
        }
    }

    /// First words of the runs of a pixel, counted from the start of a block's packed lines.
    pub(super) fn runs(
        &self,
        group: usize,
        (y, x): (usize, usize),
    ) -> impl Iterator<Item = usize> + '_ {
        let shape = &self.shape;
        let taps = if self.joined { 1 } else { shape.kernel[1] };
        let column = move |tap: usize| x * shape.strides[1] + tap * shape.dilations[1];
        (0..self.segments).map(move |segment| {
            let line = y * shape.strides[0] + segment / taps * shape.dilations[0];
            let cells = column(segment % taps) * shape.groups + group;
            line * self.line() + cells * self.cell
        })
    }

    /// The number of elements that are not 0 in the runs of a pixel; the packed planes are ternary.
    pub(super) fn nonzero(
        &self,
        kernel: &BitKernel,
        packed: &[u32],
        group: usize,
        at: (usize, usize),
    ) -> i32 {
        let words = self.groups * self.planes;
        let count = |start: usize| (kernel.ones)(&packed[start..start + words]);
        self.runs(group, at).map(count).sum()
    }
}

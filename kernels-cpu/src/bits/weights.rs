//! Weights as planes of bits, in the order in which a kernel reads them.
//!
//! Output channels of a group are cut into panels of columns, the last one narrower. A panel holds, for
//! each 32 positions along K, a plane after the other, a word a column: `[K/32][plane][column]`. Each tap
//! of a convolution starts a new word, as the activations' pixels do. Bits past the channels are 0.

use crate::KernelError;
use crate::error::product;
use crate::memory::Aligned;

use super::table::{BitKernel, GROUP};

/// A panel of packed columns.
#[derive(Clone, Copy, Debug)]
pub(super) struct BitPanel {
    /// Its place among the panels.
    pub(super) index: usize,
    /// Index of its width in the kernel's list.
    pub(super) width_index: usize,
    /// Columns, some of them padding at the end of a group.
    pub(super) width: usize,
    /// Columns that are channels.
    pub(super) used: usize,
    /// First column among all columns of all panels.
    pub(super) column: usize,
    /// First output channel.
    pub(super) channel: usize,
    /// Convolution group.
    pub(super) group: usize,
    /// First word among the packed weights.
    pub(super) offset: usize,
}

/// Packed weights and the biases of their columns.
#[derive(Debug)]
pub(super) struct BitWeights {
    pub(super) panels: Vec<BitPanel>,
    data: Aligned,
    bias: Vec<i32>,
}

/// What is packed: `taps` taps of `channels` weights for each output channel of `groups` groups.
pub(super) struct Source<'a> {
    /// -1, 0 or 1: `[groups · columns, taps, channels]`.
    pub(super) weights: &'a [i8],
    /// One an output channel, or none.
    pub(super) bias: &'a [i32],
    pub(super) groups: usize,
    /// Output channels of a group.
    pub(super) columns: usize,
    pub(super) taps: usize,
    /// Input channels of a group.
    pub(super) channels: usize,
}

impl BitWeights {
    pub(super) fn new(kernel: &BitKernel, source: &Source<'_>) -> Result<Self, KernelError> {
        let planes = kernel.operands.weight_planes();
        let words = source.channels.div_ceil(GROUP);
        let k_words = source.taps * words;
        let padded = source.columns.next_multiple_of(kernel.widest());
        product(&[source.groups, padded, k_words.max(1), planes * 4])?;
        let (mut panels, mut column, mut offset) = (Vec::new(), 0, 0);
        for group in 0..source.groups {
            let mut done = 0;
            while done < source.columns {
                let left = source.columns - done;
                // The narrowest panel that takes what is left, or the widest there is.
                let fits = kernel.widths.iter().rposition(|&width| width >= left);
                let width_index = fits.unwrap_or(0);
                let width = kernel.widths[width_index];
                panels.push(BitPanel {
                    index: panels.len(),
                    width_index,
                    width,
                    used: left.min(width),
                    column,
                    channel: group * source.columns + done,
                    group,
                    offset,
                });
                done += width;
                column += width;
                offset += width * k_words * planes;
            }
        }
        let mut data = Aligned::zeroed(4 * offset);
        let mut bias = vec![0; column];
        let packed: &mut [u32] = bytemuck::cast_slice_mut(data.bytes_mut());
        let depth = source.taps * source.channels;
        for panel in &panels {
            for c in 0..panel.used {
                let channel = panel.channel + c;
                let row = &source.weights[channel * depth..(channel + 1) * depth];
                let own = source.bias.get(channel).copied().unwrap_or(0);
                let constant = kernel.constant(row);
                bias[panel.column + c] = own.wrapping_add(constant);
                for (tap, row) in row.chunks_exact(source.channels).enumerate() {
                    for (k, &weight) in row.iter().enumerate() {
                        let group = tap * words + k / GROUP;
                        let at = panel.offset + group * planes * panel.width + c;
                        let bit = k % GROUP;
                        if planes == 2 {
                            packed[at] |= u32::from(weight != 0) << bit;
                        }
                        packed[at + (planes - 1) * panel.width] |= u32::from(weight < 0) << bit;
                    }
                    if kernel.triples {
                        let start = panel.offset + tap * words * panel.width + c;
                        for first in (0..words / 3).map(|t| start + 3 * t * panel.width) {
                            let both = packed[first] ^ packed[first + panel.width];
                            packed[first + 2 * panel.width] ^= both;
                        }
                    }
                }
            }
        }
        Ok(BitWeights { panels, data, bias })
    }

    /// Output channel of each packed column, none for padding.
    pub(super) fn channels(&self) -> Vec<Option<usize>> {
        let mut channels = vec![None; self.bias.len()];
        for panel in &self.panels {
            for c in 0..panel.used {
                channels[panel.column + c] = Some(panel.channel + c);
            }
        }
        channels
    }

    /// Bytes of the packed weights.
    pub(super) fn bytes(&self) -> usize {
        self.data.bytes().len()
    }

    /// The weights of a panel, up to the end of all.
    pub(super) fn panel(&self, panel: &BitPanel) -> &[u32] {
        &bytemuck::cast_slice(self.data.bytes())[panel.offset..]
    }

    /// The biases of a panel's columns.
    pub(super) fn bias(&self, panel: &BitPanel) -> &[i32] {
        &self.bias[panel.column..panel.column + panel.width]
    }
}

impl BitKernel {
    /// The part of a column's sum that does not depend on the activations.
    fn constant(&self, column: &[i8]) -> i32 {
        use super::table::Operands as O;
        let nonzero = || column.iter().filter(|&&w| w != 0).count() as i32;
        match self.operands {
            O::BinaryBinary => column.len() as i32,
            O::BinaryTernary => nonzero(),
            O::TernaryBinary | O::TernaryTernary => 0,
        }
    }
}

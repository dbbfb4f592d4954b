//! Weights in the order in which a kernel reads them.
//!
//! A group of output channels is cut into panels of columns, the last one narrower. A panel holds,
//! for each group of `kernel.group` positions along K, the weights of all its columns:
//! `[k / group][column][k % group]`, zero past K and past the last channel. In the `I4` format two
//! neighbouring vectors of a k-group share bytes: the first lies in the low nibbles, which a kernel may want flipped.

use core::ops::Range;

use crate::KernelError;
use crate::error::product;
use crate::memory::Aligned;
use crate::table::{Kernel, WeightFormat};

/// A panel of packed columns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panel {
    /// Its place in the list.
    pub(crate) index: usize,
    /// Index of its width in the kernel's list.
    pub(crate) width_index: usize,
    /// Columns, some of them padding at the end of a group.
    pub(crate) width: usize,
    /// Columns that are channels.
    pub(crate) used: usize,
    /// First column among all columns of all panels: where its bias and parameters lie.
    pub(crate) column: usize,
    /// First output channel.
    pub(crate) channel: usize,
    /// Convolution group.
    pub(crate) group: usize,
    /// First byte among the packed weights.
    pub(crate) offset: usize,
}

/// How the columns of a product are cut into panels.
#[derive(Clone, Debug)]
pub(crate) struct Panels {
    pub(crate) list: Vec<Panel>,
    /// Columns of all panels, padding included.
    pub(crate) columns: usize,
    /// Bytes of all panels.
    pub(crate) bytes: usize,
}

impl Panels {
    /// Panels for `groups` groups of `channels` columns each, with `k_padded` positions along K.
    pub(crate) fn new(
        kernel: &Kernel,
        groups: usize,
        channels: usize,
        k_padded: usize,
    ) -> Result<Self, KernelError> {
        let columns = channels.next_multiple_of(kernel.widest());
        // Packed weights, biases and parameters of the padded product must be addressable.
        product(&[groups, columns, k_padded.max(8), 2])?;
        let (mut list, mut column, mut offset) = (Vec::new(), 0, 0);
        for group in 0..groups {
            let mut done = 0;
            while done < channels {
                let left = channels - done;
                // The narrowest panel that takes what is left, or the widest there is.
                let width_index = kernel
                    .widths
                    .iter()
                    .rposition(|&width| width >= left)
                    .unwrap_or(0);
                let width = kernel.widths[width_index];
                list.push(Panel {
                    index: list.len(),
                    width_index,
                    width,
                    used: left.min(width),
                    column,
                    channel: group * channels + done,
                    group,
                    offset,
                });
                done += width;
                column += width;
                offset += kernel.weight_bytes(width * k_padded);
            }
        }
        Ok(Panels {
            list,
            columns: column,
            bytes: offset,
        })
    }

    /// The channel of each packed column, none for padding.
    pub(crate) fn channels(&self) -> Vec<Option<usize>> {
        let mut channels = vec![None; self.columns];
        for panel in &self.list {
            for c in 0..panel.used {
                channels[panel.column + c] = Some(panel.channel + c);
            }
        }
        channels
    }

    /// The bytes of one panel among the packed weights.
    pub(crate) fn place(&self, index: usize) -> Range<usize> {
        let end = self
            .list
            .get(index + 1)
            .map_or(self.bytes, |next| next.offset);
        self.list[index].offset..end
    }
}

/// Writes one panel; `weight(channel, k)` yields the weights of `channel < panel.used`, counted from
/// the panel's first, at `k < depth`. `packed` is the panel's bytes.
fn pack_panel(
    kernel: &Kernel,
    panel: &Panel,
    depth: usize,
    packed: &mut [u8],
    weight: impl Fn(usize, usize) -> i16,
) {
    packed.fill(match kernel.weights {
        WeightFormat::I4 => kernel.low_flip,
        WeightFormat::I8 | WeightFormat::I16 => 0,
    });
    let (group, lanes) = (kernel.group, kernel.lanes);
    let step = panel.width * group;
    for channel in 0..panel.used {
        for k in 0..depth {
            let value = weight(channel, k);
            let within = channel * group + k % group;
            let base = k / group * step;
            match kernel.weights {
                WeightFormat::I8 => packed[base + within] = value as u8,
                WeightFormat::I4 => {
                    let vector = within / lanes;
                    let byte = base / 2 + vector / 2 * lanes + within % lanes;
                    packed[byte] ^= (value as u8 & 0x0f) << (vector % 2 * 4);
                }
                WeightFormat::I16 => {
                    let at = 2 * (base + within);
                    packed[at..at + 2].copy_from_slice(&value.to_le_bytes());
                }
            }
        }
    }
}

/// A matrix of bytes to be packed as signed weights.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix<'a> {
    pub(crate) bytes: &'a [u8],
    /// Positions along K.
    pub(crate) depth: usize,
    /// Columns.
    pub(crate) columns: usize,
    /// Rows are columns: `[columns, depth]` instead of `[depth, columns]`.
    pub(crate) transposed: bool,
    /// What makes a byte signed: 0x80 for unsigned ones.
    pub(crate) flip: u8,
}

impl Matrix<'_> {
    /// Writes one panel in the `I8` format and the sum of each of its columns.
    pub(crate) fn pack_panel(
        &self,
        kernel: &Kernel,
        panel: &Panel,
        packed: &mut [u8],
        sums: &mut [i32],
    ) {
        let (group, flip) = (kernel.group, self.flip);
        let step = panel.width * group;
        let signed = |byte: u8| i32::from((byte ^ flip) as i8);
        packed.fill(0);
        sums.fill(0);
        if self.transposed {
            for (c, sum) in sums.iter_mut().enumerate().take(panel.used) {
                let start = (panel.channel + c) * self.depth;
                let column = &self.bytes[start..start + self.depth];
                *sum = column.iter().map(|&byte| signed(byte)).sum();
                let places = packed.chunks_exact_mut(step);
                for (source, place) in column.chunks(group).zip(places) {
                    let place = &mut place[c * group..c * group + source.len()];
                    for (to, from) in place.iter_mut().zip(source) {
                        *to = from ^ flip;
                    }
                }
            }
            return;
        }
        for (k, row) in self
            .bytes
            .chunks_exact(self.columns)
            .take(self.depth)
            .enumerate()
        {
            let row = &row[panel.channel..panel.channel + panel.used];
            let places = &mut packed[k / group * step..(k / group + 1) * step];
            for (place, byte) in places.chunks_exact_mut(group).zip(row) {
                place[k % group] = byte ^ flip;
            }
            for (sum, byte) in sums.iter_mut().zip(row) {
                *sum += signed(*byte);
            }
        }
    }
}

/// Packed weights and the kernel they are for: the walk over tiles calls no other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packed<'a> {
    kernel: &'static Kernel,
    bytes: &'a [u8],
}

impl<'a> Packed<'a> {
    /// Weights that `pack_panel` wrote for this kernel.
    pub(crate) fn new(kernel: &'static Kernel, bytes: &'a [u8]) -> Self {
        Packed { kernel, bytes }
    }

    pub(crate) fn kernel(&self) -> &'static Kernel {
        self.kernel
    }

    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

/// Packed weights that a layer owns.
#[derive(Clone, Debug)]
pub(crate) struct PackedWeights {
    kernel: &'static Kernel,
    data: Aligned,
}

impl PackedWeights {
    /// Packs `weight(panel, channel, k)`, channels counted over all groups.
    pub(crate) fn new(
        kernel: &'static Kernel,
        panels: &Panels,
        depth: usize,
        weight: impl Fn(&Panel, usize, usize) -> i16,
    ) -> Self {
        let mut data = Aligned::zeroed(panels.bytes);
        let bytes = data.bytes_mut();
        for (index, panel) in panels.list.iter().enumerate() {
            let packed = &mut bytes[panels.place(index)];
            pack_panel(kernel, panel, depth, packed, |channel, k| {
                weight(panel, panel.channel + channel, k)
            });
        }
        PackedWeights { kernel, data }
    }

    pub(crate) fn get(&self) -> Packed<'_> {
        Packed::new(self.kernel, self.data.bytes())
    }
}

/// Whether 16-fold sums of this layer fit 32 bits, for activations read as unsigned bytes:
/// `16·255·Σ|w| < 2^31` for the channel of the largest weights. The same on every ISA, so that all of
/// them store a layer alike.
pub(crate) fn sixteen_fold_fits(largest_sum: u64) -> bool {
    largest_sum < (1 << 31) / (16 * 255)
}

//! First layers: convolutions of an image of few channels, row by row, by functions that go to finished
//! bytes.
//!
//! With one to four channels, a pixel's taps in a kernel row are a short run of bytes, which is padded to
//! whole groups of four with weights of 0. Image rows are copied to a ring of lines ([`super::ring`]); signed
//! values are flipped to unsigned ones on the way.

use crate::epilogue::Epilogue;
use crate::error::product;
use crate::memory::Aligned;
use crate::parallel::Shared;
use crate::table::{StemFn, StemRow, stem_column};
use crate::{Isa, KernelError, Parallel, arch};

use super::ring::{MOST_LINES, Rows};
use super::{ConvIo, ConvSpec, Weights};

/// Most channels of the image.
const MOST_CHANNELS: usize = 4;
/// Taps of a group.
const GROUP: usize = 4;
/// Channels of a vector.
const LANES: usize = 16;
/// Vectors of a panel, widest first, and pixels of its tiles.
const TILES: [(usize, [usize; 2]); 3] = [(4, [6, 2]), (2, [12, 4]), (1, [12, 4])];

/// A first layer, prepared.
#[derive(Debug)]
pub(super) struct Stem {
    rows: Rows,
    panels: Vec<Panel>,
    /// Groups of a kernel row.
    groups: usize,
}

/// Some output channels.
#[derive(Clone, Copy, Debug)]
struct Panel {
    channel: usize,
    vectors: usize,
    run: StemFn,
    /// First byte of its weights.
    offset: usize,
}

impl Stem {
    /// None where the ISA has no functions for the shape or the output.
    pub(super) fn new(
        isa: Isa,
        spec: &ConvSpec<'_>,
        signed: bool,
    ) -> Result<Option<Self>, KernelError> {
        let shape = spec.shape;
        let [kernel_h, kernel_w] = shape.kernel;
        let fits = shape.groups == 1
            && shape.in_c <= MOST_CHANNELS
            && shape.dilations == [1, 1]
            && (2..=MOST_LINES).contains(&kernel_h)
            && shape.out_c.is_multiple_of(LANES);
        let Weights::I8(_) = spec.weights else {
            return Ok(None);
        };
        if !fits {
            return Ok(None);
        }
        let widths = widths(shape.out_c);
        let columns: Vec<Option<usize>> = widths
            .iter()
            .flat_map(|&(channel, vectors)| {
                (0..LANES * vectors).map(move |at| Some(channel + stem_column(vectors, at)))
            })
            .collect();
        let epilogue = Epilogue::new(isa, &spec.output, shape.out_c, &columns, LANES, None)?;
        let Some((round, finish)) = epilogue.alone() else {
            return Ok(None);
        };
        let run = kernel_w * shape.in_c;
        let groups = run.div_ceil(GROUP);
        let mut panels = Vec::with_capacity(widths.len());
        let mut offset = 0;
        for (channel, vectors) in widths {
            let tiles = TILES.iter().find(|(width, _)| *width == vectors);
            let pixels = tiles.and_then(|(_, p)| p.iter().find(|p| **p <= shape.out_w));
            let run = pixels.and_then(|&p| arch::stem(isa, round, finish, vectors, p));
            let Some(run) = run else {
                return Ok(None);
            };
            panels.push(Panel {
                channel,
                vectors,
                run,
                offset,
            });
            offset += product(&[kernel_h, groups, GROUP, LANES, vectors])?;
        }
        let depth = shape.depth();
        let mut weights = Aligned::zeroed(offset);
        for panel in &panels {
            let step = GROUP * LANES * panel.vectors;
            let packed = &mut weights.bytes_mut()[panel.offset..][..kernel_h * groups * step];
            for (index, packed) in packed.chunks_exact_mut(step).enumerate() {
                let (row, group) = (index / groups, index % groups);
                for (at, taps) in packed.chunks_exact_mut(GROUP).enumerate() {
                    let channel = panel.channel + stem_column(panel.vectors, at);
                    for (tap, weight) in taps.iter_mut().enumerate() {
                        let k = group * GROUP + tap;
                        if k < run {
                            *weight = spec.weights.get(channel, row * run + k, depth) as u8;
                        }
                    }
                }
            }
        }
        let read = product(&[shape.out_w - 1, shape.strides[1], shape.in_c])? + groups * GROUP;
        let rows = Rows::new(spec, signed, weights, &columns, read, epilogue)?;
        Ok(rows.map(|rows| Stem {
            rows,
            panels,
            groups,
        }))
    }

    pub(super) fn packed_bytes(&self) -> usize {
        self.rows.packed_bytes()
    }

    pub(super) fn scratch_bytes(&self, threads: usize) -> usize {
        self.rows.scratch_bytes(threads)
    }

    /// Runs on buffers whose lengths were checked.
    pub(super) fn run(&self, io: ConvIo<'_>, zero_point: i32, pool: &dyn Parallel) {
        self.rows
            .run(io, zero_point, pool, |row, lines, bias, output| {
                self.row(row, lines, bias, output);
            });
    }

    /// One row of output pixels.
    fn row(&self, row: usize, lines: &[*const u8; MOST_LINES], bias: &[i32], output: &Shared<'_>) {
        let shape = &self.rows.shape;
        let Some((round, finish)) = self.rows.epilogue.alone() else {
            return;
        };
        let mut column = 0;
        for panel in &self.panels {
            let at = row * shape.out_w * shape.out_c + panel.channel;
            let call = StemRow {
                rows: lines.as_ptr(),
                kernel_rows: shape.kernel[0],
                groups: self.groups,
                step: shape.strides[1] * shape.in_c,
                weights: self.rows.weights.bytes()[panel.offset..].as_ptr(),
                bias: bias[column..column + LANES * panel.vectors].as_ptr(),
                column,
                pixels: shape.out_w,
                out: output.start().wrapping_add(at),
                out_step: shape.out_c,
            };
            // SAFETY: the contract of `StemRow`: lines hold all taps of all pixels; weights, biases and
            // parameters were laid out for these panels; tiles are no longer than a row; rows of different
            // parts are disjoint, and lengths were checked for the whole batch; the ISA was checked when
            // the layer was prepared.
            unsafe { (panel.run)(round, finish, &call) };
            column += LANES * panel.vectors;
        }
    }
}

/// The first channel and the vectors of each panel.
fn widths(channels: usize) -> Vec<(usize, usize)> {
    let mut widths = Vec::new();
    let mut channel = 0;
    for (vectors, _) in TILES {
        while channels - channel >= LANES * vectors {
            widths.push((channel, vectors));
            channel += LANES * vectors;
        }
    }
    widths
}

//! First layers: convolutions of an image of few channels, row by row, by functions that go to finished
//! bytes.
//!
//! With one to four channels, a pixel's taps in a kernel row are a short run of bytes, which is padded to
//! whole groups of four with weights of 0; where a single byte is left, those of all kernel rows are put side
//! by side instead. Image rows are copied to a ring of lines ([`super::ring`]); signed values are flipped to
//! unsigned ones on the way.

use crate::epilogue::Epilogue;
use crate::error::product;
use crate::memory::Aligned;
use crate::parallel::Shared;
use crate::table::{Outputs, StemFn, StemRow, stem_column};
use crate::{Isa, KernelError, Parallel, arch};

use super::ring::{MOST_LINES, Rows};
use super::{ConvIo, ConvSpec, Weights};

/// Most channels of the image.
const MOST_CHANNELS: usize = 4;
/// Taps of a group.
pub(super) const GROUP: usize = 4;
/// Channels of a vector.
pub(super) const LANES: usize = 16;
/// Vectors of a panel, widest first, and pixels of its tiles.
const TILES: [(usize, [usize; 2]); 3] = [(4, [6, 2]), (2, [12, 4]), (1, [12, 4])];

/// A first layer, prepared.
#[derive(Debug)]
pub(super) struct Stem {
    rows: Rows,
    panels: Vec<Panel>,
    /// Groups of a kernel row.
    groups: usize,
    /// How the last bytes of a pixel's kernel rows are put side by side, where they are.
    rest: Option<RestFn>,
}

/// Writes the last byte of each kernel row, for each pixel as many whole groups as they take. Takes the lines, from
/// that byte of the first pixel on, and the bytes from one pixel to the next.
///
/// # Safety
/// - There are as many lines as kernel rows, each readable for a byte at as many places as `rest` has pixels.
type RestFn = unsafe fn(&[*const u8; MOST_LINES], usize, usize, &mut [u8]);

/// Some output channels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Panel {
    pub(super) channel: usize,
    pub(super) vectors: usize,
    pub(super) run: StemFn,
    /// First byte of its weights.
    pub(super) offset: usize,
}

impl Panel {
    /// The channel of each packed column of panels that start at channels and have as many vectors.
    pub(super) fn columns(widths: &[(usize, usize)]) -> Vec<Option<usize>> {
        let columns = widths.iter().flat_map(|&(channel, vectors)| {
            (0..LANES * vectors).map(move |at| Some(channel + stem_column(vectors, at)))
        });
        columns.collect()
    }

    /// The weights of panels that start at channels and have as many vectors, one after the other, `groups` groups of
    /// taps each: `weight` gives that of a channel at a group's tap, none for padding.
    pub(super) fn pack(
        widths: &[(usize, usize)],
        groups: usize,
        weight: impl Fn(usize, usize, usize) -> Option<i16>,
    ) -> Aligned {
        let bytes = |vectors: usize| groups * GROUP * LANES * vectors;
        let mut weights = Aligned::zeroed(widths.iter().map(|&(_, vectors)| bytes(vectors)).sum());
        let mut rest = weights.bytes_mut();
        for &(first, vectors) in widths {
            let (packed, after) = rest.split_at_mut(bytes(vectors));
            rest = after;
            let step = GROUP * LANES * vectors;
            for (group, packed) in packed.chunks_exact_mut(step).enumerate() {
                for (at, taps) in packed.chunks_exact_mut(GROUP).enumerate() {
                    let channel = first + stem_column(vectors, at);
                    for (tap, to) in taps.iter_mut().enumerate() {
                        *to = weight(channel, group, tap).unwrap_or(0) as u8;
                    }
                }
            }
        }
        weights
    }
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
        let columns = Panel::columns(&widths);
        let epilogue = Epilogue::new(isa, &spec.output, shape.out_c, &columns, LANES, None)?;
        let (Some((round, finish)), None) = (epilogue.alone(), spec.output.other_dtype()) else {
            return Ok(None);
        };
        let run = kernel_w * shape.in_c;
        let rest = rest(kernel_h).filter(|_| run > GROUP && run % GROUP == 1);
        let (groups, rest_groups) = match rest {
            Some(_) => (run / GROUP, kernel_h.div_ceil(GROUP)),
            None => (run.div_ceil(GROUP), 0),
        };
        let all_groups = kernel_h * groups + rest_groups;
        let mut panels = Vec::with_capacity(widths.len());
        let mut offset = 0;
        for &(channel, vectors) in &widths {
            let tiles = TILES.iter().find(|(width, _)| *width == vectors);
            let pixels = tiles.and_then(|(_, p)| p.iter().find(|p| **p <= shape.out_w));
            let run = pixels.and_then(|&p| arch::stem(isa, round, finish, false, vectors, p));
            let Some(run) = run else {
                return Ok(None);
            };
            panels.push(Panel {
                channel,
                vectors,
                run,
                offset,
            });
            offset += product(&[all_groups, GROUP, LANES, vectors])?;
        }
        let depth = shape.depth();
        let weights = Panel::pack(&widths, all_groups, |channel, index, tap| {
            let (row, k) = match index.checked_sub(kernel_h * groups) {
                Some(group) => (group * GROUP + tap, run - 1),
                None => (index / groups, index % groups * GROUP + tap),
            };
            let inside = row < kernel_h && k < run;
            inside.then(|| spec.weights.get(channel, row * run + k, depth))
        });
        let window = run.max(groups * GROUP);
        let read = product(&[shape.out_w - 1, shape.strides[1], shape.in_c])? + window;
        let working = product(&[shape.out_w, rest_groups, GROUP])?;
        let rows = Rows::new(spec, signed, weights, &columns, (read, working), epilogue)?;
        Ok(rows.map(|rows| Stem {
            rows,
            panels,
            groups,
            rest,
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
            .run(io, zero_point, pool, |row, lines, working, bias, output| {
                self.row(row, lines, working, bias, output);
            });
    }

    /// One row of output pixels.
    fn row(
        &self,
        row: usize,
        lines: &[*const u8; MOST_LINES],
        working: &mut [u8],
        bias: &[i32],
        output: &Shared<'_>,
    ) {
        let shape = &self.rows.shape;
        let Some((round, finish)) = self.rows.epilogue.alone() else {
            return;
        };
        let step = shape.strides[1] * shape.in_c;
        let rest_groups = self.rest.map_or(0, |_| shape.kernel[0].div_ceil(GROUP));
        let rest = &mut working[..shape.out_w * rest_groups * GROUP];
        if let Some(gather) = self.rest {
            // SAFETY: lines hold all taps of all pixels.
            unsafe { gather(lines, self.groups * GROUP, step, rest) };
        }
        let mut column = 0;
        for panel in &self.panels {
            let at = row * shape.out_w * shape.out_c + panel.channel;
            let call = StemRow {
                rows: lines.as_ptr(),
                kernel_rows: shape.kernel[0],
                groups: self.groups,
                step,
                rest: rest.as_ptr(),
                rest_groups,
                outputs: Outputs {
                    weights: self.rows.weights.bytes()[panel.offset..].as_ptr(),
                    bias: bias[column..column + LANES * panel.vectors].as_ptr(),
                    column,
                    pixels: shape.out_w,
                    out: output.start().wrapping_add(at),
                    out_step: shape.out_c,
                    other: core::ptr::null(),
                },
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

/// For kernels of a number of rows; none for rare ones.
fn rest(kernel_rows: usize) -> Option<RestFn> {
    match kernel_rows {
        3 => Some(gather::<3, 4>),
        5 => Some(gather::<5, 8>),
        7 => Some(gather::<7, 8>),
        _ => None,
    }
}

/// See [`RestFn`].
unsafe fn gather<const ROWS: usize, const BYTES: usize>(
    lines: &[*const u8; MOST_LINES],
    first: usize,
    step: usize,
    rest: &mut [u8],
) {
    let mut at = first;
    for pixel in rest.as_chunks_mut::<BYTES>().0 {
        let mut bytes = [0; BYTES];
        for (byte, line) in bytes.iter_mut().zip(&lines[..ROWS]) {
            // SAFETY: the caller's promise.
            *byte = unsafe { *line.add(at) };
        }
        *pixel = bytes;
        at += step;
    }
}

/// The first channel and the vectors of each panel of whole vectors.
pub(super) fn widths(channels: usize) -> Vec<(usize, usize)> {
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

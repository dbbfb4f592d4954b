//! A convolution whose weights stay coded in memory: few distinct values as fields of 1, 2 or 4 bits, or
//! vectors of weights as indices of centroids.
//!
//! A panel of weights is decoded into scratch, in the order that the tile kernel reads, and multiplied with
//! all rows of the part before the next panel takes its place. Decoding costs a lookup for each vector of
//! weights, once, however many rows there are; and any kernel of any instruction set serves.
//!
//! Fields are spread so that decoding is one lookup a vector: byte `i` of a chunk of 64 holds the codes of
//! the bytes `i`, `64 + i`, `128 + i`, … of the packed panel, the first in the low bits.

use requant_numerics::table::Table;

use crate::arch::{self, DecodeFn, PartsFn};
use crate::error::exactly;
use crate::memory::{Aligned, Carver, LINE, piece};
use crate::pack::{Packed, PackedWeights, Panel};
use crate::parallel::{MAX_PARTS, Shared, run_parts, usable_threads};
use crate::table::{self, Kernel, WeightFormat};
use crate::tiles::{Job, Shifts, Split, Walk};
use crate::{Buffer, Isa, KernelError, Parallel};

use super::fold::Folded;
use super::{ConvIo, ConvSpec, Weights};

/// Bytes of codes that are decoded at a time.
pub(crate) const CHUNK: usize = 64;
/// Most values of fields.
pub(crate) const VALUES: usize = 16;

/// Weights as indices into a table of centroids, each as many consecutive weights along K.
#[derive(Clone, Copy, Debug)]
pub struct Centroids<'a> {
    /// `[out_c, ceil(K/width)]`, each below the number of centroids.
    pub indices: &'a [u8],
    /// `[n, width]`.
    pub centroids: &'a [i8],
    /// Weights of a centroid, at least 1.
    pub width: usize,
}

/// A convolution prepared for coded weights.
#[derive(Debug)]
pub(super) struct Coded {
    kernel: &'static Kernel,
    walk: Walk,
    codes: Codes,
    bias: Folded,
    /// Bytes of the largest panel, decoded.
    decoded: usize,
    /// Output pixels of an image.
    pixels: usize,
}

#[derive(Debug)]
enum Codes {
    /// Fields of bits: the value of each code, and where a panel's codes start.
    Fields {
        bits: usize,
        values: [u8; VALUES],
        decode: DecodeFn,
        starts: Vec<usize>,
        data: Aligned,
    },
    /// Indices `[ceil(K/width)][column]` of each panel.
    Vectors {
        /// For panels of 64 columns, where centroids are whole parts of four weights: the tables of each.
        planes: Option<(PartsFn, Vec<[Table; 4]>)>,
        centroids: Vec<i8>,
        width: usize,
        starts: Vec<usize>,
        indices: Vec<u8>,
    },
}

impl Coded {
    /// None where the weights have too many values for fields, and no centroids are given or they are of
    /// one weight each.
    pub(super) fn new(
        isa: Isa,
        spec: &ConvSpec<'_>,
        centroids: Option<Centroids<'_>>,
        signed: bool,
    ) -> Result<Option<Self>, KernelError> {
        let Weights::I8(weights) = spec.weights else {
            return Ok(None);
        };
        let kernel = table::select(isa, signed, WeightFormat::I8)?;
        let walk = Walk::new(isa, kernel, &spec.shape, signed, &spec.output, false)?;
        let depth = walk.depth();
        let centroids = centroids.filter(|codes| codes.width > 1);
        let codes = match &centroids {
            Some(codes) => vectors(isa, &walk, spec.shape.out_c, codes)?,
            None => match fields(isa, kernel, &walk, depth, weights) {
                Some(codes) => codes,
                None => return Ok(None),
            },
        };
        let channels = walk.panels().channels();
        let weight = |channel: usize, k: usize| i16::from(weights[channel * depth + k]);
        let bias = Folded::new(
            walk.panels().columns,
            spec.input_zero_point,
            kernel.offset,
            |column| {
                let channel = channels[column]?;
                let bias = spec.bias.get(channel).copied().unwrap_or(0);
                Some((bias, (0..depth).map(move |k| weight(channel, k))))
            },
        );
        let panels = walk.panels();
        let largest = (0..panels.list.len()).map(|index| panels.place(index).len());
        let decoded = largest.max().unwrap_or(0).next_multiple_of(8 * CHUNK);
        Ok(Some(Coded {
            kernel,
            codes,
            bias,
            decoded,
            pixels: spec.shape.out_h * spec.shape.out_w,
            walk: walk.stacked(),
        }))
    }

    /// What is decoded; the tile kernel behind it is the ISA's for 8-bit weights.
    pub(super) fn name(&self) -> &'static str {
        match &self.codes {
            Codes::Fields { bits, .. } => match bits {
                1 => "decode-1bit",
                2 => "decode-2bit",
                _ => "decode-4bit",
            },
            Codes::Vectors { .. } => "decode-codebook",
        }
    }

    pub(super) fn packed_bytes(&self) -> usize {
        match &self.codes {
            Codes::Fields { data, .. } => data.bytes().len(),
            Codes::Vectors {
                indices,
                centroids,
                planes,
                ..
            } => {
                let planes = planes
                    .as_ref()
                    .map_or(0, |(_, planes)| size_of_val(&planes[..]));
                indices.len() + centroids.len() + planes
            }
        }
    }

    fn part_bytes(&self) -> usize {
        LINE + piece(self.decoded) + piece(self.walk.part_bytes())
    }

    pub(super) fn scratch_bytes(&self, threads: usize) -> usize {
        let threads = threads.clamp(1, MAX_PARTS);
        LINE + piece(4 * self.bias.columns()) + threads * piece(self.part_bytes())
    }

    /// Runs on buffers whose lengths were checked.
    pub(super) fn run(&self, io: ConvIo<'_>, zero_point: i32, pool: &dyn Parallel) {
        let mut carver = Carver::new(io.scratch);
        let bias = self.bias.get(zero_point, carver.words(self.bias.columns()));
        let rows = io.batch * self.pixels;
        let split = Split::new(rows, &self.walk, usable_threads(pool));
        let part_bytes = piece(self.part_bytes());
        let scratch = Shared::new(carver.bytes(split.parts * part_bytes));
        let output = Shared::new(io.output);
        run_parts(pool, split.parts, |part| {
            let (rows, panels) = split.part(part, rows, self.walk.panels().list.len());
            // SAFETY: pieces of different parts are disjoint, and each part runs once.
            let scratch = unsafe { scratch.slice(part * part_bytes..(part + 1) * part_bytes) };
            let mut carver = Carver::new(scratch);
            let decoded = carver.bytes(self.decoded);
            let scratch = carver.bytes(piece(self.walk.part_bytes()));
            for index in panels {
                self.decode(index, decoded);
                let job = Job {
                    walk: &self.walk,
                    input: io.input,
                    other: io.other.unwrap_or(&[]),
                    output: &output,
                    first_row: 0,
                    weights: Packed::new(self.kernel, decoded),
                    bias,
                    padding: zero_point as u8,
                    shifts: Shifts::Same(0),
                };
                // SAFETY: the contract of `Job`: lengths were checked for the whole batch, the panel
                // was decoded into the form that the walk expects at the start of its weights, and
                // parts have disjoint rows or panels.
                unsafe { job.run(rows.clone(), index..index + 1, scratch) };
            }
        });
    }

    /// Writes the packed form of a panel.
    fn decode(&self, index: usize, out: &mut [u8]) {
        match &self.codes {
            Codes::Fields {
                bits,
                values,
                decode,
                starts,
                data,
            } => {
                let codes = &data.bytes()[starts[index]..starts[index + 1]];
                decode(*bits, values, codes, out);
            }
            Codes::Vectors {
                planes,
                centroids,
                width,
                starts,
                indices,
            } => {
                let panel = &self.walk.panels().list[index];
                let indices = &indices[starts[index]..starts[index + 1]];
                if let Some((parts, planes)) = planes
                    && panel.used == CHUNK
                    && panel.width == CHUNK
                {
                    let bytes = self.walk.depth() * CHUNK;
                    for (part, planes) in planes.iter().enumerate() {
                        let first = 4 * part * CHUNK;
                        if let Some(out) = out[..bytes].get_mut(first..) {
                            parts(planes, indices, out, width * CHUNK);
                        }
                    }
                    return;
                }
                decode_vectors(
                    (centroids, *width),
                    (self.kernel, panel),
                    self.walk.depth(),
                    indices,
                    out,
                );
            }
        }
    }
}

/// Weights of few values as fields; none for more than 16 values.
fn fields(
    isa: Isa,
    kernel: &'static Kernel,
    walk: &Walk,
    depth: usize,
    weights: &[i8],
) -> Option<Codes> {
    let panels = walk.panels();
    let packed = PackedWeights::new(kernel, panels, depth, |_, channel, k| {
        i16::from(weights[channel * depth + k])
    });
    let packed = packed.get().bytes();
    // Padding along K must stay 0: what lies there in the activations may be anything. Padding columns
    // are never stored.
    let mut used = [false; 256];
    weights
        .iter()
        .for_each(|&w| used[usize::from(w as u8)] = true);
    used[0] |= walk.is_padded();
    let values: Vec<u8> = (0..=255u8).filter(|&v| used[usize::from(v)]).collect();
    let bits = match values.len() {
        0..=2 => 1,
        3..=4 => 2,
        5..=16 => 4,
        _ => return None,
    };
    let fields = 8 / bits;
    let code = |value: u8| values.iter().position(|&v| v == value).unwrap_or(0) as u8;
    let (mut starts, mut total) = (vec![0], 0);
    for index in 0..panels.list.len() {
        total += panels.place(index).len().div_ceil(CHUNK * fields) * CHUNK;
        starts.push(total);
    }
    let mut data = Aligned::zeroed(total);
    let bytes = data.bytes_mut();
    for (index, &start) in starts.iter().enumerate().take(panels.list.len()) {
        for (at, &value) in packed[panels.place(index)].iter().enumerate() {
            let (chunk, within) = (at / (CHUNK * fields), at % (CHUNK * fields));
            let byte = &mut bytes[start + chunk * CHUNK + within % CHUNK];
            *byte |= code(value) << (within / CHUNK * bits);
        }
    }
    Some(Codes::Fields {
        bits,
        values: core::array::from_fn(|code| values.get(code).copied().unwrap_or(0)),
        decode: arch::decode(isa),
        starts,
        data,
    })
}

/// Indices of centroids in the order of the panels.
fn vectors(
    isa: Isa,
    walk: &Walk,
    channels: usize,
    codes: &Centroids<'_>,
) -> Result<Codes, KernelError> {
    let depth = walk.depth();
    let per_row = depth.div_ceil(codes.width);
    exactly(Buffer::Weights, channels * per_row, codes.indices.len())?;
    let count = codes.centroids.len() / codes.width;
    exactly(Buffer::Tables, count * codes.width, codes.centroids.len())?;
    if let Some(&index) = codes.indices.iter().find(|&&i| usize::from(i) >= count) {
        return Err(KernelError::Length {
            buffer: Buffer::Tables,
            needed: usize::from(index) + 1,
            got: count,
        });
    }
    let (mut starts, mut indices) = (vec![0], Vec::new());
    for panel in &walk.panels().list {
        for j in 0..per_row {
            let column = |c: usize| codes.indices[(panel.channel + c) * per_row + j];
            indices.extend((0..panel.used).map(column));
        }
        starts.push(indices.len());
    }
    let whole =
        walk.kernel().group == 4 && codes.width.is_multiple_of(4) && depth.is_multiple_of(4);
    let table = |at: usize| -> Table {
        core::array::from_fn(|index| {
            let centroid = codes.centroids.get(index * codes.width + at);
            centroid.map_or(0, |&weight| weight as u8)
        })
    };
    let planes = arch::parts(isa).filter(|_| whole).map(|parts| {
        let of = |part: usize| core::array::from_fn(|t| table(4 * part + t));
        (parts, (0..codes.width / 4).map(of).collect())
    });
    Ok(Codes::Vectors {
        planes,
        centroids: codes.centroids.to_vec(),
        width: codes.width,
        starts,
        indices,
    })
}

/// Writes the packed form of a panel from the centroids of its columns.
fn decode_vectors(
    (centroids, width): (&[i8], usize),
    (kernel, panel): (&Kernel, &Panel),
    depth: usize,
    indices: &[u8],
    out: &mut [u8],
) {
    let group = kernel.group;
    let step = panel.width * group;
    let centroids: &[u8] = bytemuck::cast_slice(centroids);
    let whole = group == 4 && width.is_multiple_of(4) && depth.is_multiple_of(4);
    if !depth.is_multiple_of(group) {
        let last = depth / group * step;
        out[last..last + step].fill(0);
    }
    for (j, indices) in indices.chunks_exact(panel.used).enumerate() {
        let first = j * width;
        let taken = width.min(depth - first);
        if whole {
            for (part, out) in out[first / 4 * step..].chunks_exact_mut(step).enumerate() {
                if part == taken / 4 {
                    break;
                }
                let (out, _) = out.as_chunks_mut::<4>();
                for (out, &index) in out.iter_mut().zip(indices) {
                    let at = usize::from(index) * width + 4 * part;
                    out.copy_from_slice(&centroids[at..at + 4]);
                }
            }
            continue;
        }
        for (c, &index) in indices.iter().enumerate() {
            let at = usize::from(index) * width;
            for (t, &weight) in centroids[at..at + taken].iter().enumerate() {
                let k = first + t;
                out[k / group * step + c * group + k % group] = weight;
            }
        }
    }
}

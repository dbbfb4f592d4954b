//! Convolutions and matrix products on tensor units: packed weights, the kernel for a shape, its launch.

use std::sync::Arc;

use super::conv::{ConvIo, ConvSpec, ZeroPoint};
use super::int;
use super::way::{Preferred, Way};
use crate::epilogue::{Form, Uploaded, integer_type};
use crate::kernel::{Kernel, Launch};
use crate::params::{Epilogue, ProductParams};
use crate::{Context, DeviceMemory, OpError};

/// Bytes of K that a block multiplies at a time.
pub const SLICE: usize = 64;
/// Slices of twice as many bytes that a product by wgmma has room for.
const GROUP_STAGES: usize = 3;
/// Rows of packed weights are padded to a multiple of this, the channels of the smallest tile.
const CHANNEL_UNIT: usize = 64;
/// Channels among which rows are permuted.
const PERMUTED: usize = 32;
/// Most blocks that share a tile.
const MOST_SPLITS: usize = 32;
/// Most blocks along the second and third axis of a grid.
const MOST_BLOCKS: usize = 65_535;

/// The channel, of 32, whose weights are row `row`: the eight results that a lane of an mma.sync (and
/// of a wgmma) holds of four 8-column fragments become neighbours. The lane with columns `2t` and
/// `2t + 1` of each fragment `j` gets channels `8t + 2j` and `8t + 2j + 1`.
pub const fn channel_of_row(row: usize) -> usize {
    let (fragment, column) = (row / 8, row % 8);
    column / 2 * 8 + fragment * 2 + column % 2
}

/// How bytes of the input meet the tensor units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Input {
    /// Unsigned, in runs of 16 channels.
    U8,
    /// Signed, in runs of 16 channels.
    I8,
    /// Byte by byte, signed; unsigned bytes less 128.
    Any,
}

/// A convolution with its weights packed.
#[derive(Debug)]
pub struct Product {
    params: ProductParams,
    input: Input,
    groups: usize,
    images: usize,
    pixels: usize,
    epilogue: Uploaded,
    multiprocessors: usize,
    stages: usize,
    wgmma: bool,
    preferred: Preferred,
    _weights: DeviceMemory,
    weight_bytes: usize,
}

/// Weights as the kernels read them: `[groups, channels padded, planes, slices·64]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    /// The bytes.
    pub data: Vec<u8>,
    /// 1, or 2 where weights leave 8 bits: `w = 256·high + low`, the high plane first.
    pub planes: usize,
    /// Slices of K of a plane.
    pub slices: usize,
    /// Rows of a group.
    pub channels_padded: usize,
}

/// Packs effective weights `[groups·channels, depth]`.
pub fn pack(weights: &[i16], groups: usize, channels: usize, depth: usize) -> Packed {
    let narrow = weights.iter().all(|&w| i8::try_from(w).is_ok());
    let planes = if narrow { 1 } else { 2 };
    let slices = depth.div_ceil(SLICE);
    let channels_padded = channels.next_multiple_of(CHANNEL_UNIT);
    let row_bytes = planes * slices * SLICE;
    let mut data = vec![0; groups * channels_padded * row_bytes];
    for (at, row) in data.chunks_exact_mut(row_bytes).enumerate() {
        let (group, place) = (at / channels_padded, at % channels_padded);
        let channel = place / PERMUTED * PERMUTED + channel_of_row(place % PERMUTED);
        if channel >= channels {
            continue;
        }
        let from = &weights[(group * channels + channel) * depth..][..depth];
        let (first, second) = row.split_at_mut(slices * SLICE);
        for (k, &weight) in from.iter().enumerate() {
            let low = weight as i8;
            if narrow {
                first[k] = low as u8;
            } else {
                first[k] = ((weight - i16::from(low)) >> 8) as u8;
                second[k] = low as u8;
            }
        }
    }
    Packed {
        data,
        planes,
        slices,
        channels_padded,
    }
}

impl Product {
    /// Packs a convolution with constant weights.
    ///
    /// # Errors
    /// Types that the kernels do not read, sizes past their indices; a device that fails.
    pub fn new(context: &Arc<Context>, spec: &ConvSpec<'_>) -> Result<Self, OpError> {
        let [images, in_h, in_w, in_c] = spec.input;
        let [_, out_h, out_w, out_c] = spec.output;
        let groups = spec.groups;
        let (group_in, channels) = (in_c / groups, out_c / groups);
        let depth = spec.window.kernel[0] * spec.window.kernel[1] * group_in;
        let unsigned = integer_type("input", spec.dtype)? == 0;
        let input = match (group_in % 16 == 0, unsigned) {
            (false, _) => Input::Any,
            (true, true) => Input::U8,
            (true, false) => Input::I8,
        };
        // Narrower unsigned values are signed bytes as they are.
        let flips = input == Input::Any && spec.dtype.bits() == 8 && unsigned;
        let packed = pack(spec.weights, groups, channels, depth);
        let padded = packed.channels_padded;
        let channel_of = |entry: usize| {
            let (group, channel) = (entry / padded, entry % padded);
            (group < groups && channel < channels).then_some(group * channels + channel)
        };
        let sums = spec.weight_sums();
        let (zero_point, border) = match spec.zero_point {
            ZeroPoint::Static(zero_point) => (zero_point, zero_point + spec.outside),
            ZeroPoint::Dynamic => (0, 0),
        };
        let folded = match spec.zero_point {
            ZeroPoint::Static(_) if flips => zero_point - 128,
            ZeroPoint::Static(_) | ZeroPoint::Dynamic => zero_point,
        };
        let bias = |o: usize| {
            let bias = spec.bias.get(o).copied().unwrap_or(0);
            // Proved to fit, or to be taken modulo 2^32.
            (i64::from(bias) - i64::from(folded) * i64::from(sums[o])) as i32
        };
        let epilogue = Uploaded::new(
            context,
            &spec.finish,
            // A tile of 128 may begin in the last 64.
            groups * padded + CHANNEL_UNIT,
            channel_of,
            bias,
            |o| sums[o],
        )?;
        let weights = DeviceMemory::from_bytes(context, &packed.data)?;
        int("the bytes of an image", in_h * in_w * in_c)?;
        let window = &spec.window;
        let params = ProductParams {
            weights: weights.address(),
            channels: int("output channels", channels)?,
            channels_padded: int("output channels", padded)?,
            channels_total: int("output channels", out_c)?,
            slices: int("slices", packed.slices)?,
            planes: packed.planes as i32,
            splits: 1,
            depth: int("the depth of a product", depth)?,
            in_channels: int("input channels", in_c)?,
            group_channels: int("input channels", group_in)?,
            in_h: int("height", in_h)?,
            in_w: int("width", in_w)?,
            out_h: int("height", out_h)?,
            out_w: int("width", out_w)?,
            kernel_w: int("kernel", window.kernel[1])?,
            stride_h: int("stride", window.strides[0])?,
            stride_w: int("stride", window.strides[1])?,
            dilation_h: int("dilation", window.dilations[0])?,
            dilation_w: int("dilation", window.dilations[1])?,
            top: int("border", window.pads[0])?,
            left: int("border", window.pads[1])?,
            border: border & 0xff,
            flip: if flips { 0x8080_8080 } else { 0 },
            images_per_sample: int("images", images)?,
            ..ProductParams::default()
        };
        Ok(Product {
            params,
            input,
            groups,
            images,
            pixels: out_h * out_w,
            epilogue,
            multiprocessors: context.properties().multiprocessors,
            stages: context.stages(),
            wgmma: context.has_wgmma(),
            preferred: Preferred::default(),
            weight_bytes: packed.data.len(),
            _weights: weights,
        })
    }

    /// Bytes on the device.
    pub fn weight_bytes(&self) -> usize {
        self.weight_bytes + self.epilogue.bytes()
    }

    /// Name of the kernel that `samples` samples get.
    pub fn kernel(&self, samples: usize) -> &'static str {
        self.choose(samples).kernel.name()
    }

    /// Zeroed memory that a launch for up to `samples` samples needs, and leaves zeroed.
    pub fn scratch_bytes(&self, samples: usize) -> usize {
        // A smaller batch may be split among more blocks, or of larger tiles.
        (1..=samples)
            .map(|samples| self.choose(samples).scratch_bytes())
            .max()
            .unwrap_or(0)
    }

    /// Computes numbers of samples in the bucket of `samples` by `way`, where it serves them.
    pub fn prefer(&mut self, samples: usize, way: Way) {
        self.preferred.set(samples, way);
    }

    fn rows(&self, samples: usize) -> usize {
        samples * self.images * self.pixels
    }

    /// Tiles along pixels, channels and groups.
    fn tiles(&self, samples: usize, shape: Shape) -> [usize; 3] {
        let channels = self.params.channels as usize;
        [
            self.rows(samples).div_ceil(rows_of(shape)),
            channels.div_ceil(shape.1),
            self.groups,
        ]
    }

    /// The tiles of which there are kernels for it, the largest first. wgmma takes no second plane.
    fn shapes(&self) -> Vec<Shape> {
        let mut shapes = Vec::new();
        if self.input != Input::Any {
            if self.wgmma && self.params.planes == 1 {
                shapes.extend([(Multiply::Group, 128), (Multiply::Group, 64)]);
            }
            shapes.push((Multiply::Warp, 128));
        }
        shapes.push((Multiply::Warp, 64));
        shapes
    }

    /// Most blocks that may share a tile: a plane's part of the sum cannot be told from the other's.
    fn most_splits(&self) -> usize {
        if self.params.planes > 1 {
            return 1;
        }
        let slices = self.params.slices as usize;
        slices
            .min(MOST_SPLITS)
            .min(MOST_BLOCKS / self.groups)
            .max(1)
    }

    fn way(&self, (multiply, side): Shape, splits: usize) -> Way {
        Way {
            kernel: kernel(self.input, multiply, side, self.epilogue.form()),
            splits,
        }
    }

    /// The tiles of a way, if it serves.
    fn shape_of(&self, way: Way) -> Option<(Shape, usize)> {
        let same = |shape: &Shape| self.way(*shape, way.splits) == way;
        let shape = self.shapes().into_iter().find(same)?;
        let splits = (1..=self.most_splits()).contains(&way.splits);
        splits.then_some((shape, way.splits))
    }

    /// Ways to compute `samples` samples, that of the rule first: every kernel, not split and split by
    /// powers of two.
    pub fn candidates(&self, samples: usize) -> Vec<Way> {
        let (shape, splits) = self.rule(samples);
        let usual = self.way(shape, splits);
        let mut ways = vec![usual];
        for shape in self.shapes() {
            let powers = (0..).map(|power| 1 << power);
            let splits = powers.take_while(|&splits| splits <= self.most_splits());
            let all = splits.map(|splits| self.way(shape, splits));
            ways.extend(all.filter(|way| *way != usual));
        }
        ways
    }

    fn choose(&self, samples: usize) -> Choice {
        let preferred = self.preferred.get(samples);
        let preferred = preferred.and_then(|way| self.shape_of(way));
        let (shape, splits) = preferred.unwrap_or_else(|| self.rule(samples));
        Choice {
            kernel: self.way(shape, splits).kernel,
            tiles: self.tiles(samples, shape),
            tile_elements: rows_of(shape) * shape.1,
            splits,
        }
    }

    /// What is taken without measurements: tiles, and blocks that share one.
    fn rule(&self, samples: usize) -> (Shape, usize) {
        let channels = self.params.channels as usize;
        // Large tiles where they still give every multiprocessor one; those of wgmma also where there are
        // few channels.
        let fills = |tiles: [usize; 3]| tiles.iter().product::<usize>() >= self.multiprocessors;
        let shapes = self.shapes();
        let group = shapes[0].0 == Multiply::Group;
        for shape in shapes {
            let large = if group {
                shape.0 == Multiply::Group
            } else {
                shape.1 == 128
            };
            if large && channels > shape.1 / 2 && fills(self.tiles(samples, shape)) {
                return (shape, 1);
            }
        }
        let smallest = (Multiply::Warp, 64);
        let blocks: usize = self.tiles(samples, smallest).iter().product();
        // Parts of at least four slices, until there are two blocks a multiprocessor.
        let wanted = (2 * self.multiprocessors) / blocks.max(1);
        let parts = self.params.slices as usize / 4;
        let splits = wanted.min(parts).min(self.most_splits()).max(1);
        (smallest, splits)
    }

    /// A launch.
    ///
    /// # Errors
    /// More rows or blocks than a grid has.
    pub fn launch(&self, io: &ConvIo) -> Result<Launch, OpError> {
        let choice = self.choose(io.samples);
        let [x, y, z] = choice.tiles;
        for (what, value) in [
            ("tiles of output channels", y),
            ("groups", z * choice.splits),
        ] {
            if value > MOST_BLOCKS {
                return Err(OpError::TooLarge {
                    what,
                    value,
                    most: MOST_BLOCKS,
                });
            }
        }
        let params = ProductParams {
            x: io.x,
            y: io.y,
            zero_points: io.zero_points,
            tickets: io.scratch,
            partial: io.scratch + choice.ticket_bytes() as u64,
            rows: int("output pixels", self.rows(io.samples))?,
            splits: choice.splits as i32,
            epilogue: Epilogue {
                other: io.other,
                ..self.epilogue.params
            },
            ..self.params
        };
        Ok(Launch {
            kernel: choice.kernel,
            grid: [x as u32, y as u32, (z * choice.splits) as u32],
            shared_bytes: shared_bytes(choice.kernel, self.stages) as u32,
            params: params.into(),
        })
    }
}

/// A kernel and how the work is cut.
struct Choice {
    kernel: Kernel,
    /// Along pixels, channels and groups.
    tiles: [usize; 3],
    /// Accumulators of a tile.
    tile_elements: usize,
    splits: usize,
}

impl Choice {
    fn ticket_bytes(&self) -> usize {
        (self.tiles.iter().product::<usize>() * 4).next_multiple_of(256)
    }

    fn scratch_bytes(&self) -> usize {
        if self.splits == 1 {
            return 0;
        }
        self.ticket_bytes() + self.tiles.iter().product::<usize>() * self.tile_elements * 4
    }
}

/// Who multiplies together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Multiply {
    /// A warp, by mma.sync.
    Warp,
    /// A warpgroup, by wgmma.
    Group,
}

/// Who multiplies, and the channels of a tile.
type Shape = (Multiply, usize);

/// Pixels of a tile.
fn rows_of((multiply, side): Shape) -> usize {
    match multiply {
        Multiply::Warp => side,
        Multiply::Group => 128,
    }
}

fn kernel(input: Input, multiply: Multiply, side: usize, form: Form) -> Kernel {
    use Kernel as K;
    let (warp, large) = (multiply == Multiply::Warp, side == 128);
    let all = match (input, warp, large) {
        (Input::Any, _, _) => [
            K::ProductAnyx64Rhu,
            K::ProductAnyx64F32,
            K::ProductAnyx64Any,
        ],
        (Input::U8, true, true) => [
            K::ProductU8x128Rhu,
            K::ProductU8x128F32,
            K::ProductU8x128Any,
        ],
        (Input::I8, true, true) => [
            K::ProductI8x128Rhu,
            K::ProductI8x128F32,
            K::ProductI8x128Any,
        ],
        (Input::U8, true, false) => [K::ProductU8x64Rhu, K::ProductU8x64F32, K::ProductU8x64Any],
        (Input::I8, true, false) => [K::ProductI8x64Rhu, K::ProductI8x64F32, K::ProductI8x64Any],
        (Input::U8, false, true) => [K::GroupU8x128Rhu, K::GroupU8x128F32, K::GroupU8x128Any],
        (Input::I8, false, true) => [K::GroupI8x128Rhu, K::GroupI8x128F32, K::GroupI8x128Any],
        (Input::U8, false, false) => [K::GroupU8x64Rhu, K::GroupU8x64F32, K::GroupU8x64Any],
        (Input::I8, false, false) => [K::GroupI8x64Rhu, K::GroupI8x64F32, K::GroupI8x64Any],
    };
    all[match form {
        Form::Rhu => 0,
        Form::F32 => 1,
        Form::Any => 2,
    }]
}

/// Dynamic shared memory of a product's block; 0 for other kernels.
pub(crate) fn shared_bytes(kernel: Kernel, stages: usize) -> usize {
    let name = kernel.name();
    if !name.contains("product_") {
        return if kernel == Kernel::DynamicQuantize {
            1024
        } else {
            0
        };
    }
    let side = if name.contains("_128_") { 128 } else { 64 };
    // The slices in flight; afterwards half a tile of accumulators, or the tile's bytes.
    if kernel.needs_wgmma() {
        return GROUP_STAGES * (128 + side) * 2 * SLICE;
    }
    (stages * 2 * side * SLICE).max(side / 2 * side * 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The columns of accumulators that lane `4g + t` holds, by PTX's table for m16n8k32 (and for
    /// wgmma, 8 columns at a time): `c[i]` is column `8·fragment + 2t + i mod 2`.
    #[test]
    fn a_lane_holds_neighbouring_channels() {
        for part in 0..4 {
            let mut channels = Vec::new();
            for fragment in 0..4 {
                for i in 0..2 {
                    channels.push(channel_of_row(fragment * 8 + part * 2 + i));
                }
            }
            let expected: Vec<usize> = (part * 8..part * 8 + 8).collect();
            assert_eq!(channels, expected);
        }
    }

    #[test]
    fn packed_weights_are_all_there_once() {
        for (groups, channels, depth, wide) in [
            (1, 5, 3, false),
            (2, 33, 70, true),
            (3, 64, 64, false),
            (1, 100, 129, true),
        ] {
            let weights: Vec<i16> = (0..groups * channels * depth)
                .map(|i| {
                    let value = (i * 7919 % 255) as i16 - 127;
                    if wide { value * 128 } else { value }
                })
                .collect();
            let packed = pack(&weights, groups, channels, depth);
            assert_eq!(packed.planes, if wide { 2 } else { 1 });
            let plane = packed.slices * SLICE;
            let mut seen = 0;
            for group in 0..groups {
                for row in 0..packed.channels_padded {
                    let channel = row / 32 * 32 + channel_of_row(row % 32);
                    let start = (group * packed.channels_padded + row) * packed.planes * plane;
                    for k in 0..plane {
                        let byte = |p: usize| i32::from(packed.data[start + p * plane + k] as i8);
                        let value = if wide {
                            256 * byte(0) + byte(1)
                        } else {
                            byte(0)
                        };
                        let inside = channel < channels && k < depth;
                        let at = (group * channels + channel) * depth + k;
                        let expected = if inside { i32::from(weights[at]) } else { 0 };
                        assert_eq!(value, expected, "{group} {row} {k}");
                        seen += usize::from(inside);
                    }
                }
            }
            assert_eq!(seen, weights.len());
        }
    }
}

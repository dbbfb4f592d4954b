//! Convolutions and matrix products on tensor units: packed weights, the kernel for a shape, its launch.

use std::sync::Arc;

use super::bits::Bits;
use super::conv::{ConvIo, ConvSpec, ZeroPoint};
use super::persistent::{self, Copies};
use super::way::{Preferred, Way};
use super::{int, nibbles};
use crate::epilogue::{Form, Uploaded, integer_type};
use crate::kernel::{Kernel, Launch, Params};
use crate::layout::{self, BIT_SLICE, NARROW_SLICE, SLICE};
use crate::params::{Epilogue, ProductParams};
use crate::{Context, DeviceMemory, OpError};

/// Slices of twice as many bytes that a product by wgmma has room for.
const GROUP_STAGES: usize = 3;
/// Slices of bits.
const BIT_STAGES: usize = 3;
/// Rows of packed weights are padded to a multiple of this, the channels of the smallest tile.
pub(crate) const CHANNEL_UNIT: usize = 64;
/// Most blocks that share a tile.
const MOST_SPLITS: usize = 32;
/// Most blocks along the second and third axis of a grid.
pub(crate) const MOST_BLOCKS: usize = 65_535;
/// Most rows of products that are bound by reading the weights.
const FEW_ROWS: usize = 4;
/// Output channels that a block of those kernels computes.
const ROW_CHANNELS: usize = 16;
/// Bytes by which rows of a tile of results are apart in shared memory, beyond their own.
const PITCH: usize = 32;
/// Shared memory that a block has without asking.
const SHARED_BYTES: usize = 48 << 10;

/// How bytes of the input meet the tensor units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// Unsigned, in runs of 16 channels.
    U8,
    /// Signed, in runs of 16 channels.
    I8,
    /// Byte by byte, signed; unsigned bytes less 128.
    Any,
}

/// How weights lie on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// Bytes, in one plane or two.
    Bytes,
    /// 4 bits; `native` where units multiply them by 4 bits of the input.
    Nibbles {
        /// Whether they do.
        native: bool,
    },
    /// Planes of bits.
    Bits(Bits),
}

impl Format {
    /// The narrowest that holds the weights exactly and for which the device has kernels.
    fn of(context: &Context, spec: &ConvSpec<'_>, depth: usize, input: Input) -> Self {
        let counting = context.counting();
        if let Some(bits) = counting.and_then(|counting| Bits::of(counting, spec, depth, input)) {
            return Format::Bits(bits);
        }
        if !nibbles::fits(spec.weights, depth, input) {
            return Format::Bytes;
        }
        // Elements outside the image are such an input too.
        let border = match spec.zero_point {
            ZeroPoint::Static(zero_point) => zero_point + spec.outside,
            ZeroPoint::Dynamic => return Format::Nibbles { native: false },
        };
        let fits = match input {
            Input::U8 => (0..16).contains(&border),
            Input::I8 => (-8..8).contains(&border),
            Input::Any => false,
        };
        Format::Nibbles {
            native: context.has_int4() && spec.dtype.bits() <= 4 && fits,
        }
    }
}

/// A convolution with its weights packed.
#[derive(Debug)]
pub struct Product {
    params: ProductParams,
    input: Input,
    form: Form,
    format: Format,
    groups: usize,
    images: usize,
    pixels: usize,
    epilogue: Uploaded,
    multiprocessors: usize,
    stages: usize,
    wgmma: bool,
    preferred: Preferred,
    /// How pixels are copied by tile, where they can be and bytes are multiplied.
    copies: Option<Copies>,
    context: Arc<Context>,
    _weights: DeviceMemory,
    weight_bytes: usize,
}

/// Weights as the kernels read them: `[groups, channels padded, planes, slices]`, a slice being 64 bytes where
/// weights are bytes and 32 where they are narrower. Rows are permuted by [`layout::channel_of_place`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    /// The bytes.
    pub data: Vec<u8>,
    /// Of bytes 1, or 2 where weights leave 8 bits: `w = 256·high + low`, the high plane first.
    pub planes: usize,
    /// Slices of K of a plane.
    pub slices: usize,
    /// Rows of a group.
    pub channels_padded: usize,
}

impl Packed {
    /// Packs effective weights `[groups·channels, depth]` by `fill`, which is given a row of zeros and its
    /// channel's weights; none for rows past the last channel.
    pub(crate) fn rows(
        weights: &[i16],
        [groups, channels, depth]: [usize; 3],
        (planes, slices, slice_bytes): (usize, usize, usize),
        fill: impl Fn(&mut [u8], &[i16]),
    ) -> Self {
        let channels_padded = channels.next_multiple_of(CHANNEL_UNIT);
        let row_bytes = planes * slices * slice_bytes;
        let mut data = vec![0; groups * channels_padded * row_bytes];
        for (at, row) in data.chunks_exact_mut(row_bytes).enumerate() {
            let (group, place) = (at / channels_padded, at % channels_padded);
            let channel = layout::channel_of_place(place);
            let from = if channel < channels {
                &weights[(group * channels + channel) * depth..][..depth]
            } else {
                &[]
            };
            fill(row, from);
        }
        Packed {
            data,
            planes,
            slices,
            channels_padded,
        }
    }
}

/// Packs effective weights `[groups·channels, depth]`.
pub fn pack(weights: &[i16], groups: usize, channels: usize, depth: usize) -> Packed {
    let narrow = weights.iter().all(|&w| i8::try_from(w).is_ok());
    let planes = if narrow { 1 } else { 2 };
    let slices = depth.div_ceil(SLICE);
    let shape = [groups, channels, depth];
    Packed::rows(weights, shape, (planes, slices, SLICE), |row, from| {
        for (k, &weight) in from.iter().enumerate() {
            let low = weight as i8;
            if !narrow {
                row[layout::byte_of(0, slices, k)] = ((weight - i16::from(low)) >> 8) as u8;
            }
            row[layout::byte_of(planes - 1, slices, k)] = low as u8;
        }
    })
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
        let format = Format::of(context, spec, depth, input);
        let packed = match format {
            Format::Bytes => pack(spec.weights, groups, channels, depth),
            Format::Nibbles { .. } => nibbles::pack(spec.weights, groups, channels, depth),
            Format::Bits(bits) => bits.pack(spec.weights, groups, channels, depth),
        };
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
            let constant = match format {
                Format::Bytes | Format::Nibbles { .. } => 0,
                Format::Bits(bits) => bits.constant(&spec.weights[o * depth..][..depth]),
            };
            // Proved to fit, or to be taken modulo 2^32.
            (i64::from(bias) + i64::from(constant) - i64::from(folded) * i64::from(sums[o])) as i32
        };
        let bytes = format == Format::Bytes && packed.planes == 1;
        let copies = Copies::of(spec).filter(|_| bytes && context.has_tiles());
        let epilogue = Uploaded::new(
            context,
            &spec.finish,
            // A tile of 128 may begin in the last 64, and one of 256.
            groups * padded + if copies.is_some() { 3 } else { 1 } * CHANNEL_UNIT,
            channel_of,
            bias,
            |o| sums[o],
        )?;
        let weights = DeviceMemory::from_bytes(context, &packed.data)?;
        int("the bytes of an image", in_h * in_w * in_c)?;
        let window = &spec.window;
        let (bit_planes, (factor, shift)) = match format {
            Format::Bytes | Format::Nibbles { .. } => (0, (1, 0)),
            Format::Bits(bits) => (bits.pixels as i32, bits.scale()),
        };
        let params = ProductParams {
            weights: weights.address(),
            x_step: group_in as i64,
            y_step: channels as i64,
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
            bit_planes,
            factor,
            shift,
            ..ProductParams::default()
        };
        let form = match spec.zero_point {
            ZeroPoint::Static(_) => epilogue.form(),
            // The short epilogues have no sums of weights to take it off with.
            ZeroPoint::Dynamic => Form::Any,
        };
        Ok(Product {
            params,
            input,
            form,
            format,
            groups,
            images,
            pixels: out_h * out_w,
            epilogue,
            multiprocessors: context.properties().multiprocessors,
            stages: context.stages(),
            wgmma: context.has_wgmma(),
            preferred: Preferred::default(),
            copies,
            context: Arc::clone(context),
            weight_bytes: packed.data.len(),
            _weights: weights,
        })
    }

    /// Bytes on the device.
    pub fn weight_bytes(&self) -> usize {
        self.weight_bytes + self.epilogue.bytes()
    }

    /// How the weights lie on the device.
    pub fn held_as(&self) -> &'static str {
        match self.format {
            Format::Bytes if self.params.planes > 1 => "two planes of bytes",
            Format::Bytes => "bytes",
            Format::Nibbles { native: false } => "4 bits",
            Format::Nibbles { native: true } => "4 bits, as the input",
            Format::Bits(_) if self.params.planes > 1 => "two planes of bits",
            Format::Bits(_) => "bits",
        }
    }

    /// Name of the kernel that `samples` samples get, as reports say it.
    pub fn kernel(&self, samples: usize) -> &'static str {
        self.choose(samples).kernel.label()
    }

    /// Zeroed memory that a launch for up to `samples` samples needs, and leaves zeroed.
    pub fn scratch_bytes(&self, samples: usize) -> usize {
        // Neither rises nor falls with the samples: a smaller batch is split among more blocks, of fewer or larger
        // tiles.
        let each = |samples| {
            let choice = self.choose(samples);
            // What cannot be copied by tile is computed by other blocks.
            let instead = choice.kernel.is_persistent().then(|| self.instead(samples));
            let instead = instead.map_or(0, |choice| choice.scratch_bytes());
            choice.scratch_bytes().max(instead)
        };
        (1..=samples).map(each).max().unwrap_or(0)
    }

    /// Computes numbers of samples in the bucket of `samples` by `way`, where it serves them.
    pub fn prefer(&mut self, samples: usize, way: Way) {
        self.preferred.set(samples, way);
    }

    fn rows(&self, samples: usize) -> usize {
        samples * self.images * self.pixels
    }

    /// The kernel of a shape.
    fn kernel_of(&self, shape: Shape) -> Kernel {
        let form = self.form;
        match (shape, self.format) {
            (Shape::Rows(kernel) | Shape::Stays { kernel, .. }, _) => kernel,
            (Shape::Tiles(multiply, side), Format::Bytes) => {
                kernel(self.input, multiply, side, form)
            }
            (Shape::Tiles(multiply, side), Format::Nibbles { .. }) => {
                nibbles::kernel(self.input, multiply, side, form)
            }
            (Shape::Tiles(_, _), Format::Bits(bits)) => bits.kernel(form),
        }
    }

    /// The kernel for few rows, where there is one and its pixels fit shared memory.
    fn row_kernel(&self, rows: usize) -> Option<Kernel> {
        use Kernel as K;
        let nibbles = match self.format {
            Format::Bytes if self.params.planes == 1 => false,
            Format::Nibbles { .. } => true,
            Format::Bytes | Format::Bits(_) => return None,
        };
        let all = match (nibbles, self.input) {
            (false, Input::U8) => [K::RowU8x1, K::RowU8x4],
            (false, Input::I8 | Input::Any) => [K::RowI8x1, K::RowI8x4],
            (true, Input::U8) => [K::RowW4U8x1, K::RowW4U8x4],
            (true, Input::I8 | Input::Any) => [K::RowW4I8x1, K::RowW4I8x4],
        };
        let kernel = all[usize::from(rows > 1)];
        (rows <= FEW_ROWS && self.row_bytes(kernel) <= SHARED_BYTES).then_some(kernel)
    }

    /// Shared memory of a kernel for few rows.
    fn row_bytes(&self, kernel: Kernel) -> usize {
        let rows = if kernel.name().ends_with("_1") {
            1
        } else {
            FEW_ROWS
        };
        rows * self.params.slices as usize * SLICE
    }

    /// Tiles along pixels, channels and groups; blocks that stay take theirs themselves.
    fn tiles(&self, samples: usize, shape: Shape) -> [usize; 3] {
        if let Shape::Stays { blocks, .. } = shape {
            return [blocks, 1, 1];
        }
        let [side_m, side_n] = shape.sides();
        [
            self.rows(samples).div_ceil(side_m),
            (self.params.channels as usize).div_ceil(side_n),
            self.groups,
        ]
    }

    /// The sizes of a product for blocks that stay: pixels, channels and depth. Few rows are bound by reading the
    /// weights, whoever multiplies.
    fn staying(&self, samples: usize) -> Option<[usize; 3]> {
        let rows = self.rows(samples);
        let (channels, depth) = (self.params.channels as usize, self.params.depth as usize);
        let stays = self.copies.is_some() && self.row_kernel(rows).is_none();
        stays.then_some([rows, channels, depth])
    }

    /// The shapes in which its kernels compute `samples` samples: blocks that stay, or that for few rows, then the
    /// tiles, the largest first.
    fn shapes(&self, samples: usize) -> Vec<Shape> {
        let product = (self.input, self.form);
        let sizes = self.staying(samples).into_iter();
        let stays = sizes
            .flat_map(|sizes| persistent::possible(product, sizes, self.multiprocessors))
            .map(|(kernel, blocks)| Shape::Stays { kernel, blocks });
        stays.chain(self.blocks(samples)).collect()
    }

    /// The shapes with a block for each tile. wgmma takes no second plane. Weights of 4 bits that units for 4 bits
    /// multiply are multiplied as bytes just as well; single bits have one tile.
    fn blocks(&self, samples: usize) -> Vec<Shape> {
        let rows = self.row_kernel(self.rows(samples));
        let mut shapes: Vec<Shape> = rows.map(Shape::Rows).into_iter().collect();
        let mut tiles = |multiply, sides: &[usize]| {
            shapes.extend(sides.iter().map(|&side| Shape::Tiles(multiply, side)));
        };
        if self.input == Input::Any || matches!(self.format, Format::Bits(_)) {
            tiles(Multiply::Warp, &[64]);
            return shapes;
        }
        if self.wgmma && self.params.planes == 1 {
            tiles(Multiply::Group, &[128, 64]);
        }
        if self.format == (Format::Nibbles { native: true }) {
            tiles(Multiply::Narrow, &[128, 64]);
        }
        tiles(Multiply::Warp, &[128, 64]);
        shapes
    }

    /// Most blocks that may share a tile of a shape: the parts that planes of bytes have in a sum cannot be
    /// told from one another.
    fn most_splits(&self, shape: Shape) -> usize {
        let sums_apart = self.params.planes > 1 && self.format == Format::Bytes;
        if sums_apart || !matches!(shape, Shape::Tiles(_, _)) {
            return 1;
        }
        let slices = self.params.slices as usize;
        slices
            .min(MOST_SPLITS)
            .min(MOST_BLOCKS / self.groups)
            .max(1)
    }

    fn way(&self, shape: Shape, splits: usize) -> Way {
        Way {
            kernel: self.kernel_of(shape),
            splits,
        }
    }

    /// The shape of a way, if it serves.
    fn shape_of(&self, samples: usize, way: Way) -> Option<(Shape, usize)> {
        let same = |shape: &Shape| self.kernel_of(*shape) == way.kernel;
        let shape = self.shapes(samples).into_iter().find(same)?;
        let splits = (1..=self.most_splits(shape)).contains(&way.splits);
        splits.then_some((shape, way.splits))
    }

    /// Ways to compute `samples` samples, that of the rule first: every kernel, not split and split by
    /// powers of two.
    pub fn candidates(&self, samples: usize) -> Vec<Way> {
        let (shape, splits) = self.rule(samples);
        let usual = self.way(shape, splits);
        let mut ways = vec![usual];
        for shape in self.shapes(samples) {
            let powers = (0..).map(|power| 1 << power);
            let splits = powers.take_while(|&splits| splits <= self.most_splits(shape));
            let all = splits.map(|splits| self.way(shape, splits));
            ways.extend(all.filter(|way| *way != usual));
        }
        ways
    }

    fn choose(&self, samples: usize) -> Choice {
        let preferred = self.preferred.get(samples);
        let preferred = preferred.and_then(|way| self.shape_of(samples, way));
        let (shape, splits) = preferred.unwrap_or_else(|| self.rule(samples));
        self.choice(samples, shape, splits)
    }

    /// What blocks that stay give way to.
    fn instead(&self, samples: usize) -> Choice {
        let (shape, splits) = self.rule_of_blocks(samples);
        self.choice(samples, shape, splits)
    }

    fn choice(&self, samples: usize, shape: Shape, splits: usize) -> Choice {
        Choice {
            kernel: self.kernel_of(shape),
            tiles: self.tiles(samples, shape),
            tile_elements: shape.sides().iter().product(),
            splits,
        }
    }

    /// What is taken without measurements: a shape, and blocks that share a tile of it.
    fn rule(&self, samples: usize) -> (Shape, usize) {
        let product = (self.input, self.form);
        let sizes = self.staying(samples);
        match sizes.and_then(|sizes| persistent::choose(product, sizes, self.multiprocessors)) {
            Some((kernel, blocks)) => (Shape::Stays { kernel, blocks }, 1),
            None => self.rule_of_blocks(samples),
        }
    }

    /// The same where there is a block for each tile.
    fn rule_of_blocks(&self, samples: usize) -> (Shape, usize) {
        let channels = self.params.channels as usize;
        let shapes = self.blocks(samples);
        let fills =
            |shape| self.tiles(samples, shape).iter().product::<usize>() >= self.multiprocessors;
        // Whoever multiplies fastest: warpgroups where there are some, units for 4 bits where they serve.
        let mut fastest = None;
        for shape in shapes {
            let Shape::Tiles(multiply, side) = shape else {
                return (shape, 1);
            };
            if *fastest.get_or_insert(multiply) != multiply {
                break;
            }
            // Large tiles where they still give every multiprocessor one; those of warpgroups also where
            // there are few channels.
            let large = multiply == Multiply::Group || side == 128;
            if large && channels > side / 2 && fills(shape) {
                return (shape, 1);
            }
        }
        let narrow = fastest == Some(Multiply::Narrow);
        let multiply = if narrow {
            Multiply::Narrow
        } else {
            Multiply::Warp
        };
        let smallest = Shape::Tiles(multiply, 64);
        let blocks: usize = self.tiles(samples, smallest).iter().product();
        // Parts of at least four slices, until there are two blocks a multiprocessor.
        let wanted = (2 * self.multiprocessors) / blocks.max(1);
        let parts = self.params.slices as usize / 4;
        let splits = wanted.min(parts).min(self.most_splits(smallest)).max(1);
        (smallest, splits)
    }

    /// A launch.
    ///
    /// # Errors
    /// More rows or blocks than a grid has; less scratch than it uses.
    pub fn launch(&self, io: &ConvIo) -> Result<Launch, OpError> {
        let choice = self.choose(io.samples);
        let product = self.params(&choice, io)?;
        let copies = self.copies.filter(|_| choice.kernel.is_persistent());
        let Some(copies) = copies else {
            return self.launch_of(&choice, product.into(), io);
        };
        match persistent::params(&self.context, choice.kernel, copies, product)? {
            Some(params) => self.launch_of(&choice, params.into(), io),
            None => {
                let choice = self.instead(io.samples);
                self.launch_of(&choice, self.params(&choice, io)?.into(), io)
            }
        }
    }

    fn params(&self, choice: &Choice, io: &ConvIo) -> Result<ProductParams, OpError> {
        Ok(ProductParams {
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
        })
    }

    fn launch_of(&self, choice: &Choice, params: Params, io: &ConvIo) -> Result<Launch, OpError> {
        let needed = choice.scratch_bytes();
        if needed > io.scratch_bytes {
            return Err(OpError::Scratch {
                needed,
                there: io.scratch_bytes,
            });
        }
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
        let shared = if choice.kernel.is_of_rows() {
            self.row_bytes(choice.kernel)
        } else {
            shared_bytes(choice.kernel, self.stages)
        };
        Ok(Launch {
            kernel: choice.kernel,
            grid: [x as u32, y as u32, (z * choice.splits) as u32],
            shared_bytes: shared as u32,
            params,
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
pub(crate) enum Multiply {
    /// A warp, bytes by bytes, by mma.sync.
    Warp,
    /// A warp, 4 bits by 4 bits.
    Narrow,
    /// A warpgroup, by wgmma.
    Group,
}

/// What a block computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// A few channels of all pixels, of which there are few, by this kernel.
    Rows(Kernel),
    /// Tiles that blocks which stay on their multiprocessors take one after the other.
    Stays { kernel: Kernel, blocks: usize },
    /// A tile of pixels and of so many channels.
    Tiles(Multiply, usize),
}

impl Shape {
    /// Pixels and channels of a block.
    fn sides(self) -> [usize; 2] {
        match self {
            Shape::Rows(_) => [FEW_ROWS, ROW_CHANNELS],
            Shape::Stays { kernel, .. } => persistent::sides(kernel),
            Shape::Tiles(Multiply::Group, side) => [128, side],
            Shape::Tiles(_, side) => [side; 2],
        }
    }
}

pub(crate) fn kernel(input: Input, multiply: Multiply, side: usize, form: Form) -> Kernel {
    use Kernel as K;
    let (warp, large) = (multiply != Multiply::Group, side == 128);
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

/// Dynamic shared memory of a product's block; 0 for other kernels, and for those of few rows, which depends on
/// the depth.
pub(crate) fn shared_bytes(kernel: Kernel, stages: usize) -> usize {
    let name = kernel.name();
    if !kernel.is_product() || kernel.is_of_rows() {
        // A number a thread, or two.
        return if kernel == Kernel::DynamicQuantize {
            1024
        } else if kernel == Kernel::PackOperand {
            512
        } else {
            0
        };
    }
    if name.starts_with("bit_") {
        let weights = if name.contains("_1_") { 1 } else { 2 };
        return BIT_STAGES * (2 + weights) * 64 * (BIT_SLICE / 8);
    }
    let side = if name.contains("_128_") { 128 } else { 64 };
    if kernel.is_persistent() {
        return persistent::SHARED_BYTES;
    }
    // The slices in flight; afterwards half a tile of accumulators, or the tile's bytes and those that join them.
    let (weights, rows) = match kernel.needs_wgmma() {
        true => (SLICE, 128),
        false if name.contains("_w4") => (NARROW_SLICE, side),
        false => (SLICE, side),
    };
    let slices = if kernel.needs_wgmma() {
        GROUP_STAGES * (rows + side) * 2 * SLICE
    } else {
        stages * side * (SLICE + weights)
    };
    slices
        .max(rows / 2 * side * 4)
        .max(2 * rows * (side + PITCH))
}

#[cfg(test)]
mod tests {
    use super::*;

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
                    let channel = layout::channel_of_place(row);
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

//! Products on Hopper by blocks that stay on their multiprocessors (`cuda/persistent.cuh`): which products these
//! are, which kernel they get, and the maps by which their matrices are copied.

use core::ops::RangeInclusive;

use super::conv::{ConvSpec, ZeroPoint};
use super::product::Input;
use crate::driver::Windows;
use crate::epilogue::Form;
use crate::kernel::Kernel;
use crate::layout::SLICE;
use crate::params::{PersistentParams, ProductParams, TensorMap};
use crate::{Context, OpError};

/// Rows of a tile.
const PIXELS: usize = 128;
/// Depth up to which warpgroups take tiles in turns. The time to finish a tile does not depend on its depth, and
/// takes the more of the whole the shallower the product is: one warpgroup then finishes its tile while the
/// other multiplies. Deeper ones share tiles of twice the channels, which read fewer bytes for each
/// multiplication.
const SHALLOW: usize = 1024;
/// Shared memory of a block: the ring of slices, what the warps have of their own, the barriers.
pub(super) const SHARED_BYTES: usize = (192 << 10) + 8 * 16 * (128 + 32) + 256;

/// Bytes of K that one copy takes of a pixel.
const COPIED: usize = 128;
/// What a map of windows has room for: columns and rows from an image's corners to those of the box in which windows
/// start, columns and rows from a window's start to a tap of it, and steps. (The driver's documentation of
/// `cuTensorMapEncodeIm2col`, and PTX's of im2col offsets, for images of four dimensions.)
const CORNERS: RangeInclusive<i32> = -128..=127;
const MOST_REACH: usize = 255;
const MOST_STEP: usize = 8;

/// How a convolution's pixels are copied by tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Copies {
    /// As rows of a matrix.
    Rows,
    /// As windows of images, a tap at a time.
    Windows(Windows),
}

impl Copies {
    /// None where pixels cannot be.
    pub(super) fn of(spec: &ConvSpec<'_>) -> Option<Self> {
        if is_dense(spec) {
            Some(Copies::Rows)
        } else {
            windows(spec).map(Copies::Windows)
        }
    }
}

/// Where a convolution's windows start, if they are copied as they are needed: of whole slices of K a tap, with zeros
/// for elements outside the image, or none.
fn windows(spec: &ConvSpec<'_>) -> Option<Windows> {
    let window = &spec.window;
    let zeros = match spec.zero_point {
        ZeroPoint::Static(zero_point) => (zero_point + spec.outside) & 0xff == 0,
        ZeroPoint::Dynamic => false,
    };
    // The first window, the last one and the step between two, along an axis.
    let along = |axis: usize| {
        let (size, count) = (spec.input[1 + axis], spec.output[1 + axis]);
        let (before, step) = (window.pads[axis], window.strides[axis]);
        let reach = (window.kernel[axis] - 1).saturating_mul(window.dilations[axis]);
        if step > MOST_STEP || reach > MOST_REACH {
            return None;
        }
        let corner = |at: usize, from: usize| {
            let corner = i32::try_from(at.checked_signed_diff(from)?).ok()?;
            CORNERS.contains(&corner).then_some(corner)
        };
        let last = (count - 1) * step;
        let lower = corner(0, before)?;
        let upper = corner(last + 1, size + before)?;
        let inside = before == 0 && last + reach < size;
        (zeros || inside).then_some((lower, upper, step as u32))
    };
    let whole = spec.groups == 1 && spec.input[3].is_multiple_of(COPIED);
    let (rows, columns) = along(0).zip(along(1)).filter(|_| whole)?;
    Some(Windows {
        lower: [columns.0, rows.0],
        upper: [columns.1, rows.1],
        steps: [columns.2, rows.2],
    })
}

/// Whether the rows of a convolution's matrix lie one behind the other in its input: 1x1 with steps of 1, or one
/// window as large as the image.
fn is_dense(spec: &ConvSpec<'_>) -> bool {
    let window = &spec.window;
    let [_, in_h, in_w, _] = spec.input;
    let [_, out_h, out_w, _] = spec.output;
    let pixels =
        window.kernel == [1, 1] && window.strides == [1, 1] && (out_h, out_w) == (in_h, in_w);
    let images =
        window.kernel == [in_h, in_w] && window.dilations == [1, 1] && (out_h, out_w) == (1, 1);
    spec.groups == 1 && window.pads == [0; 4] && (pixels || images)
}

/// Channels of tiles.
const SIDES: [usize; 3] = [256, 128, 64];

/// A product: rows, channels, depth.
type Sizes = [usize; 3];

/// The kernels that compute a product, and how many blocks they get.
pub(super) fn possible(
    (input, form): (Input, Form),
    sizes: Sizes,
    multiprocessors: usize,
) -> impl Iterator<Item = (Kernel, usize)> {
    SIDES.into_iter().filter_map(move |side| {
        let blocks = blocks(side, multiprocessors);
        let counted = blocks > 0 && tiles(sizes, side).is_some();
        kernel(input, side, form)
            .filter(|_| counted)
            .map(|kernel| (kernel, blocks))
    })
}

/// Tiles of a product, if the kernels' numbers hold them.
fn tiles([rows, channels, _]: Sizes, side: usize) -> Option<usize> {
    let tiles = rows.div_ceil(PIXELS) * channels.div_ceil(side);
    // What the kernels count past the last row.
    let counted = i32::try_from(rows + 2 * PIXELS).is_ok() && i32::try_from(tiles).is_ok();
    counted.then_some(tiles)
}

/// Blocks of a launch: those of tiles of 256 channels make pairs.
fn blocks(side: usize, multiprocessors: usize) -> usize {
    match side {
        256 => multiprocessors / 2 * 2,
        _ => multiprocessors,
    }
}

/// The kernel that is taken without measurements and how many blocks it gets; none where its tiles leave
/// multiprocessors idle, or half of their warpgroups: smaller tiles do better there.
pub(super) fn choose(
    product: (Input, Form),
    sizes: Sizes,
    multiprocessors: usize,
) -> Option<(Kernel, usize)> {
    let [_, channels, depth] = sizes;
    let enough = |side: usize, each: usize| {
        tiles(sizes, side).is_some_and(|tiles| tiles >= each * multiprocessors)
    };
    let deep = depth > SHALLOW && channels > 128 && blocks(256, multiprocessors) > 0;
    let side = if deep && enough(256, 1) {
        256
    } else if channels > 64 && enough(128, 2) {
        128
    } else if channels > 32 && channels <= 64 && enough(64, 2) {
        64
    } else {
        return None;
    };
    let (input, form) = product;
    Some((kernel(input, side, form)?, blocks(side, multiprocessors)))
}

fn kernel(input: Input, side: usize, form: Form) -> Option<Kernel> {
    use Kernel as K;
    let [rhu, f32, any] = match (input, side) {
        (Input::Any, _) => return None,
        (Input::U8, 256) => [K::PairU8x256Rhu, K::PairU8x256F32, K::PairU8x256Any],
        (Input::I8, 256) => [K::PairI8x256Rhu, K::PairI8x256F32, K::PairI8x256Any],
        (Input::U8, 128) => [K::TurnU8x128Rhu, K::TurnU8x128F32, K::TurnU8x128Any],
        (Input::I8, 128) => [K::TurnI8x128Rhu, K::TurnI8x128F32, K::TurnI8x128Any],
        (Input::U8, _) => [K::TurnU8x64Rhu, K::TurnU8x64F32, K::TurnU8x64Any],
        (Input::I8, _) => [K::TurnI8x64Rhu, K::TurnI8x64F32, K::TurnI8x64Any],
    };
    Some(match form {
        Form::Rhu => rhu,
        Form::F32 => f32,
        Form::Any => any,
    })
}

/// Pixels and channels of a kernel's tile.
pub(super) fn sides(kernel: Kernel) -> [usize; 2] {
    let channels = if kernel.name().contains("_256_") {
        256
    } else {
        copied(kernel) as usize
    };
    [PIXELS, channels]
}

/// Channels whose weights one copy takes: those of a tile, or one block's half of them.
fn copied(kernel: Kernel) -> u32 {
    if kernel.name().contains("_64_") {
        64
    } else {
        128
    }
}

/// The parameters of a launch with the maps of its matrices; none where the driver makes no maps of them, as of
/// an input that is not aligned to 16 bytes.
///
/// # Errors
/// A context that was given up.
pub(super) fn params(
    context: &Context,
    kernel: Kernel,
    copies: Copies,
    product: ProductParams,
) -> Result<Option<PersistentParams>, OpError> {
    let weights = [
        product.slices as usize * SLICE,
        product.channels_padded as usize,
    ];
    let pixels = match copies {
        Copies::Rows => {
            let matrix = [product.depth as usize, product.rows as usize];
            context.tensor_map(product.x, matrix, PIXELS as u32)?
        }
        Copies::Windows(windows) => {
            let images = product.rows / (product.out_h * product.out_w);
            let extent = [product.in_channels, product.in_w, product.in_h, images];
            let extent = extent.map(|size| size as u64);
            context.windows_map(product.x, extent, &windows, PIXELS as u32)?
        }
    };
    let weights = context.tensor_map(product.weights, weights, copied(kernel))?;
    let maps: Option<(TensorMap, TensorMap)> = pixels.zip(weights);
    Ok(maps.map(|(pixels, weights)| PersistentParams {
        pixels,
        weights,
        product,
        windows: i32::from(matches!(copies, Copies::Windows(_))),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_for_each_kind_of_product() {
        let name = |rows, channels, depth| {
            let chosen = choose((Input::U8, Form::Rhu), [rows, channels, depth], 132);
            chosen.map(|(kernel, blocks)| (kernel.name(), blocks))
        };
        for (rows, channels, depth, expected) in [
            (8192, 8192, 8192, "pair_product_u8_256_rhu"),
            (4096, 4096, 1040, "pair_product_u8_256_rhu"),
            (4096, 4096, 1024, "turn_product_u8_128_rhu"),
            // Few channels, however deep.
            (34_000, 128, 4096, "turn_product_u8_128_rhu"),
            (100_352, 256, 64, "turn_product_u8_128_rhu"),
            (100_352, 64, 256, "turn_product_u8_64_rhu"),
            (33_700, 33, 256, "turn_product_u8_64_rhu"),
        ] {
            let expected = Some((expected, 132));
            assert_eq!(
                name(rows, channels, depth),
                expected,
                "{rows} {channels} {depth}"
            );
        }
        // Blocks make pairs, which one has none for; deep products are then as shallow ones.
        let deep = |multiprocessors| {
            let chosen = choose((Input::I8, Form::Any), [4096, 512, 2048], multiprocessors);
            chosen.map(|(kernel, blocks)| (kernel.name(), blocks))
        };
        assert_eq!(deep(5), Some(("pair_product_i8_256_any", 4)));
        assert_eq!(deep(1), Some(("turn_product_i8_128_any", 1)));
        // Too few tiles, too few channels, bytes of any kind.
        assert_eq!(name(1024, 1024, 1024), None);
        assert_eq!(name(6272, 256, 1024), None);
        assert_eq!(name(131 * 128, 256, 2048), None);
        assert_eq!(name(100_352, 32, 64), None);
        assert_eq!(name(i32::MAX as usize - 255, 256, 64), None);
        assert_eq!(
            choose((Input::Any, Form::Any), [100_352, 256, 64], 132),
            None
        );
    }
}

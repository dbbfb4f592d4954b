//! The matrix kernels in plain Rust: the floor that every machine has, and the easiest to read.

use crate::Isa;
use crate::table::{Activations, Kernel, Tile, TileFn, WeightFormat};

const WIDTH: usize = 8;
const GROUP: usize = 2;
/// Weights of one k-group of a panel.
const WEIGHTS: usize = WIDTH * GROUP;

pub(super) const KERNELS: &[Kernel] = &[
    kernel("scalar-w16s8-4x8", WeightFormat::I8, &TILES_I8),
    kernel("scalar-w16s4-4x8", WeightFormat::I4, &TILES_I4),
    kernel("scalar-w16s16-4x8", WeightFormat::I16, &TILES_I16),
];

const fn kernel(
    name: &'static str,
    weights: WeightFormat,
    tiles: &'static [&'static [TileFn]],
) -> Kernel {
    Kernel {
        name,
        isa: Isa::Scalar,
        activations: Activations::Widened,
        weights,
        offset: 0,
        group: GROUP,
        lanes: WIDTH,
        low_flip: 0,
        widths: &[WIDTH],
        tiles,
    }
}

static TILES_I8: [&[TileFn]; 1] = [&[tile::<1, I8>, tile::<2, I8>, tile::<3, I8>, tile::<4, I8>]];
static TILES_I4: [&[TileFn]; 1] = [&[tile::<1, I4>, tile::<2, I4>, tile::<3, I4>, tile::<4, I4>]];
static TILES_I16: [&[TileFn]; 1] = [&[
    tile::<1, I16>,
    tile::<2, I16>,
    tile::<3, I16>,
    tile::<4, I16>,
]];

/// A weight format: how a k-group of packed weights is read.
trait Format {
    /// Bytes of one k-group of a panel.
    const BYTES: usize;
    /// Right shift of the finished sums.
    const SHIFT: u32;

    /// # Safety
    /// `at` is readable for `BYTES` bytes.
    unsafe fn load(at: *const u8) -> [i32; WEIGHTS];
}

struct I8;
struct I4;
struct I16;

impl Format for I8 {
    const BYTES: usize = WEIGHTS;
    const SHIFT: u32 = 0;

    unsafe fn load(at: *const u8) -> [i32; WEIGHTS] {
        // SAFETY: readable by the caller's promise; bytes need no alignment.
        let bytes = unsafe { at.cast::<[i8; WEIGHTS]>().read() };
        bytes.map(i32::from)
    }
}

impl Format for I4 {
    const BYTES: usize = WEIGHTS / 2;
    const SHIFT: u32 = 4;

    unsafe fn load(at: *const u8) -> [i32; WEIGHTS] {
        // SAFETY: readable by the caller's promise; bytes need no alignment.
        let bytes = unsafe { at.cast::<[u8; WEIGHTS / 2]>().read() };
        core::array::from_fn(|index| {
            let byte = bytes[index % WIDTH];
            let high = if index < WIDTH {
                byte << 4
            } else {
                byte & 0xf0
            };
            i32::from(high as i8)
        })
    }
}

impl Format for I16 {
    const BYTES: usize = WEIGHTS * 2;
    const SHIFT: u32 = 0;

    unsafe fn load(at: *const u8) -> [i32; WEIGHTS] {
        // SAFETY: readable by the caller's promise.
        let words = unsafe { at.cast::<[i16; WEIGHTS]>().read_unaligned() };
        words.map(i32::from)
    }
}

/// See [`Tile`] for the contract.
unsafe fn tile<const HEIGHT: usize, F: Format>(tile: &Tile) {
    let mut sums = [[0i32; WIDTH]; HEIGHT];
    let mut weights = tile.weights;
    for segment in 0..tile.segments {
        // SAFETY: `rows` holds `segments × height` pointers.
        let rows: [*const u8; HEIGHT] =
            core::array::from_fn(|r| unsafe { *tile.rows.add(segment * HEIGHT + r) });
        for group in 0..tile.groups {
            // SAFETY: `weights` is readable for all k-groups.
            let panel = unsafe { F::load(weights) };
            // SAFETY: one past the last k-group at most.
            weights = unsafe { weights.add(F::BYTES) };
            for (sums, row) in sums.iter_mut().zip(rows) {
                // SAFETY: each row is readable for `groups` k-groups.
                let pair = unsafe { row.cast::<[i16; GROUP]>().add(group).read_unaligned() };
                let pair = pair.map(i32::from);
                for (column, sum) in sums.iter_mut().enumerate() {
                    let product = pair[0].wrapping_mul(panel[column * GROUP]);
                    let other = pair[1].wrapping_mul(panel[column * GROUP + 1]);
                    *sum = sum.wrapping_add(product).wrapping_add(other);
                }
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        for (c, sum) in sums.iter().enumerate() {
            // SAFETY: `bias` holds `width` values, `out` `height` rows of them.
            unsafe {
                *tile.out.add(r * tile.stride + c) =
                    (sum >> F::SHIFT).wrapping_add(*tile.bias.add(c));
            }
        }
    }
}

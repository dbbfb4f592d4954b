//! Weights that stay 4 bits wide on the device, and the kernels that multiply them: as bytes that hold 16
//! times the weight, or by units for 4 bits where activations have no more.

use super::product::{Input, Multiply, Packed};
use crate::epilogue::Form;
use crate::kernel::Kernel;
use crate::layout::{self, NARROW_SLICE, SLICE};

/// Whether weights `[channels, depth]` are 4 bits wide and their products with bytes of the input, times 16,
/// add up within 32 bits for every channel: `16·reach·Σ|w| < 2^31`, with `reach` the largest magnitude of a
/// byte as the tensor units read it. Sums of parts of K may wrap; the whole is exact.
pub(crate) fn fits(weights: &[i16], depth: usize, input: Input) -> bool {
    let reach: i64 = match input {
        Input::U8 => 255,
        Input::I8 | Input::Any => 128,
    };
    weights.chunks_exact(depth.max(1)).all(|row| {
        let narrow = row.iter().all(|w| (-8..8).contains(w));
        let sum: i64 = row.iter().map(|&w| i64::from(w).abs()).sum();
        narrow && 16 * reach * sum < 1 << 31
    })
}

/// Packs effective weights `[groups·channels, depth]`, all of 4 bits: `[groups, channels padded, slices·32]`,
/// in the order of [`layout::nibble_of`].
pub fn pack(weights: &[i16], groups: usize, channels: usize, depth: usize) -> Packed {
    let shape = [groups, channels, depth];
    let slices = depth.div_ceil(SLICE);
    Packed::rows(weights, shape, (1, slices, NARROW_SLICE), |row, from| {
        for (k, &weight) in from.iter().enumerate() {
            let (byte, shift) = layout::nibble_of(k);
            row[byte] |= (weight as u8 & 15) << shift;
        }
    })
}

/// The kernel of a tile.
pub(crate) fn kernel(input: Input, multiply: Multiply, side: usize, form: Form) -> Kernel {
    use Kernel as K;
    let large = side == 128;
    let [rhu, f32, any] = match (input, multiply, large) {
        (Input::Any, _, _) => [K::W4Anyx64Rhu, K::W4Anyx64F32, K::W4Anyx64Any],
        (Input::U8, Multiply::Narrow, true) => [K::W4U4x128Rhu, K::W4U4x128F32, K::W4U4x128Any],
        (Input::I8, Multiply::Narrow, true) => [K::W4I4x128Rhu, K::W4I4x128F32, K::W4I4x128Any],
        (Input::U8, Multiply::Narrow, false) => [K::W4U4x64Rhu, K::W4U4x64F32, K::W4U4x64Any],
        (Input::I8, Multiply::Narrow, false) => [K::W4I4x64Rhu, K::W4I4x64F32, K::W4I4x64Any],
        (Input::U8, Multiply::Warp, true) => [K::W4U8x128Rhu, K::W4U8x128F32, K::W4U8x128Any],
        (Input::I8, Multiply::Warp, true) => [K::W4I8x128Rhu, K::W4I8x128F32, K::W4I8x128Any],
        (Input::U8, Multiply::Warp, false) => [K::W4U8x64Rhu, K::W4U8x64F32, K::W4U8x64Any],
        (Input::I8, Multiply::Warp, false) => [K::W4I8x64Rhu, K::W4I8x64F32, K::W4I8x64Any],
        (Input::U8, Multiply::Group, true) => [
            K::GroupW4U8x128Rhu,
            K::GroupW4U8x128F32,
            K::GroupW4U8x128Any,
        ],
        (Input::I8, Multiply::Group, true) => [
            K::GroupW4I8x128Rhu,
            K::GroupW4I8x128F32,
            K::GroupW4I8x128Any,
        ],
        (Input::U8, Multiply::Group, false) => {
            [K::GroupW4U8x64Rhu, K::GroupW4U8x64F32, K::GroupW4U8x64Any]
        }
        (Input::I8, Multiply::Group, false) => {
            [K::GroupW4I8x64Rhu, K::GroupW4I8x64F32, K::GroupW4I8x64Any]
        }
    };
    match form {
        Form::Rhu => rhu,
        Form::F32 => f32,
        Form::Any => any,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernels do with a word: masked, and shifted and masked, it is a fragment's bytes times 16.
    #[test]
    fn words_unpack_to_fragments_times_sixteen() {
        for (groups, channels, depth) in [(1, 5, 3), (2, 33, 70), (3, 64, 64), (1, 100, 129)] {
            let weights: Vec<i16> = (0..groups * channels * depth)
                .map(|i| (i * 7919 % 16) as i16 - 8)
                .collect();
            let packed = pack(&weights, groups, channels, depth);
            assert_eq!(
                packed.data.len() * 2,
                groups * packed.channels_padded * packed.slices * SLICE
            );
            for (at, row) in packed
                .data
                .chunks_exact(packed.slices * SLICE / 2)
                .enumerate()
            {
                let (group, channel) = (
                    at / packed.channels_padded,
                    layout::channel_of_place(at % packed.channels_padded),
                );
                for (place, word) in row.chunks_exact(4).enumerate() {
                    let word = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
                    for (half, fragment) in [word & 0xf0f0_f0f0, (word << 4) & 0xf0f0_f0f0]
                        .into_iter()
                        .enumerate()
                    {
                        for (byte, value) in fragment.to_le_bytes().into_iter().enumerate() {
                            // Eight words are 32 bytes, a slice.
                            let k = place / 8 * SLICE + half * 32 + place % 8 * 4 + byte;
                            let expected = if channel < channels && k < depth {
                                weights[(group * channels + channel) * depth + k]
                            } else {
                                0
                            };
                            assert_eq!(i16::from(value as i8), 16 * expected, "{channel} {k}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_bound_is_sharp() {
        // 16·255·8·65,793 is the first multiple past 2^31.
        let most = ((1i64 << 31) - 1) as usize / (16 * 255 * 8);
        for (depth, input, expected) in [
            (most, Input::U8, true),
            (most + 1, Input::U8, false),
            (most + 1, Input::I8, true),
            (1 << 17, Input::I8, false),
            ((1 << 17) - 1, Input::Any, true),
        ] {
            assert_eq!(
                fits(&vec![-8; depth], depth, input),
                expected,
                "{depth} {input:?}"
            );
        }
        assert!(
            !fits(&[0, 8], 2, Input::U8)
                && !fits(&[-9, 0], 2, Input::I8)
                && fits(&[-8, 7], 2, Input::U8)
        );
        // One channel past the bound is enough.
        let mut two = vec![0; 2 * (most + 1)];
        two[most + 1..].fill(-8);
        assert!(!fits(&two, most + 1, Input::U8));
    }
}

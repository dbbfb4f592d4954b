//! Layers of -1, 0 and 1 whose products are counted bit by bit: when, how weights are packed, and what the
//! counts stand for. The arithmetic is explained in `cuda/bits.cuh`.

use super::conv::{ConvSpec, ZeroPoint};
use super::product::{Input, Packed};
use crate::epilogue::Form;
use crate::kernel::Kernel;
use crate::layout::{self, BIT_SLICE, NARROW_SLICE};
use requant_numerics::DType;

/// Below this depth most of a slice would be empty.
const LEAST_DEPTH: usize = BIT_SLICE / 2;

/// What a device's units count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counting {
    /// Bits that differ.
    Xor,
    /// Bits in common.
    And,
}

/// How the bits of a layer are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bits {
    /// What is counted.
    pub counting: Counting,
    /// Planes of weights: 1 where there are no zeros.
    pub weights: usize,
    /// Planes of the input: 1 where there are no zeros, at the border neither.
    pub pixels: usize,
}

impl Bits {
    /// How a layer is counted, if it can be: input and weights of -1, 0 and 1, in runs of 16 channels.
    pub(crate) fn of(
        counting: Counting,
        spec: &ConvSpec<'_>,
        depth: usize,
        input: Input,
    ) -> Option<Self> {
        let ZeroPoint::Static(zero_point) = spec.zero_point else {
            return None;
        };
        let border = zero_point + spec.outside;
        let pixels = match spec.dtype {
            DType::Binary => 1,
            DType::Ternary => 2,
            DType::I2
            | DType::U2
            | DType::I4
            | DType::U4
            | DType::I8
            | DType::U8
            | DType::I16
            | DType::I32
            | DType::I64
            | DType::F32
            | DType::F64 => return None,
        };
        let window = &spec.window;
        let bordered = window.pads.iter().any(|&pad| pad > 0);
        let fits = spec.weights.iter().all(|w| (-1..=1).contains(w))
            && input == Input::I8
            && depth >= LEAST_DEPTH
            && (!bordered || (-1..=1).contains(&border));
        fits.then(|| Bits {
            counting,
            weights: if spec.weights.contains(&0) { 2 } else { 1 },
            pixels: if bordered && border == 0 { 2 } else { pixels },
        })
    }

    /// Packs effective weights `[groups·channels, depth]`: `[groups, channels padded, planes, slices·32]`, in
    /// the order of [`layout::bit_of`].
    pub fn pack(self, weights: &[i16], groups: usize, channels: usize, depth: usize) -> Packed {
        let shape = [groups, channels, depth];
        let slices = depth.div_ceil(BIT_SLICE);
        let planes = self.weights;
        // The second plane is where weights are negative; where differences are counted, where they are not.
        let empty = if self.counting == Counting::Xor {
            0xff
        } else {
            0
        };
        Packed::rows(
            weights,
            shape,
            (planes, slices, NARROW_SLICE),
            |row, from| {
                let (positive, second) = row.split_at_mut(slices * NARROW_SLICE);
                second.fill(empty);
                for (k, &weight) in from.iter().enumerate() {
                    let (byte, bit) = layout::bit_of(k);
                    if weight > 0 {
                        positive[byte] |= 1 << bit;
                    } else if weight < 0 && planes == 2 {
                        second[byte] ^= 1 << bit;
                    }
                }
            },
        )
    }

    /// What a channel's sum is beside its count: `Σ x·w = constant + (count·factor) >> shift`.
    pub fn constant(self, weights: &[i16]) -> i32 {
        let depth = weights.len();
        let used = weights.iter().filter(|&&w| w != 0).count();
        (match (self.counting, self.weights) {
            (Counting::Xor, 1) => depth as i64,
            (Counting::Xor, _) => depth.next_multiple_of(BIT_SLICE) as i64,
            (Counting::And, _) => -(used as i64),
        }) as i32
    }

    /// Factor and shift of a count.
    pub fn scale(self) -> (i32, i32) {
        match (self.counting, self.weights, self.pixels) {
            (Counting::Xor, 1, 1) => (-2, 0),
            (Counting::Xor, 1, _) | (Counting::Xor, _, 1) => (-1, 0),
            // An even number: each element counts twice, or once in each of two planes.
            (Counting::Xor, _, _) => (-1, 1),
            (Counting::And, _, 1) => (2, 0),
            (Counting::And, _, _) => (1, 0),
        }
    }

    /// The kernel.
    pub(crate) fn kernel(self, form: Form) -> Kernel {
        use Kernel as K;
        let [rhu, any] = match (self.counting, self.weights) {
            (Counting::Xor, 1) => [K::BitsXor1Rhu, K::BitsXor1Any],
            (Counting::Xor, _) => [K::BitsXor2Rhu, K::BitsXor2Any],
            (Counting::And, 1) => [K::BitsAnd1Rhu, K::BitsAnd1Any],
            (Counting::And, _) => [K::BitsAnd2Rhu, K::BitsAnd2Any],
        };
        match form {
            Form::Rhu => rhu,
            Form::F32 | Form::Any => any,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts as the kernels do, bit by bit in the order of the packing, over every pairing of values.
    #[test]
    fn counts_stand_for_sums() {
        let depth = 300;
        for counting in [Counting::Xor, Counting::And] {
            for (planes, pixels) in [(1, 1), (1, 2), (2, 1), (2, 2)] {
                let value = |seed: usize, zeros: usize| match seed % (zeros + 1) {
                    0 => 1,
                    1 => -1,
                    _ => 0i16,
                };
                let weights: Vec<i16> = (0..depth).map(|k| value(k * 7 + k / 5, planes)).collect();
                let x: Vec<i16> = (0..depth).map(|k| value(k * 5 + k / 3, pixels)).collect();
                let bits = Bits {
                    counting,
                    weights: planes,
                    pixels,
                };
                let packed = bits.pack(&weights, 1, 1, depth);
                let plane = packed.slices * BIT_SLICE / 8;
                let mut count = 0;
                for k in 0..packed.slices * BIT_SLICE {
                    let past = if counting == Counting::Xor { -1 } else { 1 };
                    let pixel = x.get(k).copied().unwrap_or(past);
                    let bit = |p: usize| {
                        let (byte, bit) = layout::bit_of(k);
                        packed.data[p * plane + byte] >> bit & 1 == 1
                    };
                    let (first, second) = (bit(0), bit(planes - 1));
                    for g in [pixel >= 0, pixel > 0].into_iter().take(pixels) {
                        count += match (counting, planes) {
                            (Counting::Xor, 1) => i32::from(g ^ first),
                            (Counting::Xor, _) => i32::from(g ^ first) + i32::from(g ^ second),
                            (Counting::And, 1) => i32::from(g && first) + i32::from(!g && !first),
                            (Counting::And, _) => i32::from(g && first) + i32::from(!g && second),
                        };
                    }
                }
                let (factor, shift) = bits.scale();
                let got = bits.constant(&weights) + ((count * factor) >> shift);
                let expected: i32 = x
                    .iter()
                    .zip(&weights)
                    .map(|(&x, &w)| i32::from(x * w))
                    .sum();
                assert_eq!(got, expected, "{bits:?}");
            }
        }
    }
}

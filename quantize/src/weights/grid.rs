//! The integers that a weight may become, and the real numbers that they stand for.

use requant_import::float::GroupScales;
use requant_model::limits::SCALE_RANGE;
use requant_numerics::DType;

use super::error::WeightError;

/// The integers of a weight type: all from `lo` to `hi`, but no 0 in `binary`. `i8` is narrow (±127); `i4` and
/// `i2` use all of their range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grid {
    /// Smallest.
    pub lo: f32,
    /// Largest.
    pub hi: f32,
    /// Distance of two of them: 2 for `binary`, else 1.
    pub step: f32,
}

/// Adding and subtracting it rounds an `f32` below 2^22 to an integer, half to even.
const ROUNDER: f32 = 12_582_912.0;

impl Grid {
    /// The integers of a type.
    ///
    /// # Errors
    /// Refuses types that weights do not have.
    pub fn of(dtype: DType) -> Result<Self, WeightError> {
        let (lo, hi, step) = match dtype {
            DType::I8 => (-127.0, 127.0, 1.0),
            DType::I4 => (-8.0, 7.0, 1.0),
            DType::I2 => (-2.0, 1.0, 1.0),
            DType::Ternary => (-1.0, 1.0, 1.0),
            DType::Binary => (-1.0, 1.0, 2.0),
            DType::U2
            | DType::U4
            | DType::U8
            | DType::I16
            | DType::I32
            | DType::I64
            | DType::F32
            | DType::F64 => return Err(WeightError::DType(dtype)),
        };
        Ok(Grid { lo, hi, step })
    }

    /// The integer nearest to a real; 1 for 0 in `binary`.
    #[inline]
    pub fn nearest(self, real: f32) -> f32 {
        let inside = real.max(self.lo).min(self.hi);
        if self.step == 2.0 {
            if real >= 0.0 { 1.0 } else { -1.0 }
        } else {
            (inside + ROUNDER) - ROUNDER
        }
    }

    /// The smallest scale at which every weight fits; 0 for zeros alone.
    pub fn widest(self, weights: impl IntoIterator<Item = f32>) -> f32 {
        let fit = |scale: f32, w: f32| scale.max(w / self.hi).max(w / self.lo);
        weights.into_iter().fold(0.0, fit)
    }
}

/// The steps between the reals of a layer's weights: a scale an output channel, and where there are groups an
/// integer multiple of it for each group along K.
#[derive(Clone, Debug, PartialEq)]
pub struct Steps {
    /// The type of the integers.
    pub dtype: DType,
    /// One an output channel.
    pub scales: Vec<f32>,
    /// Multipliers `[O, ceil(K/size)]`.
    pub groups: Option<GroupScales>,
}

impl Steps {
    /// Group multipliers of the `k` weights of output channel `row`; 1 without groups.
    pub fn multipliers(&self, row: usize, k: usize) -> Vec<f32> {
        match &self.groups {
            None => vec![1.0; k],
            Some(groups) => {
                let of = |i| f32::from(groups.multiplier(row, i, k));
                (0..k).map(of).collect()
            }
        }
    }
}

/// Makes scales fit for a file: none below 2^-24 of the layer's largest (a dead channel), nor outside
/// [`SCALE_RANGE`]; 1 where a whole layer is zeros.
pub(super) fn settle(scales: &mut [f32]) {
    let largest = scales.iter().copied().fold(0.0, f32::max);
    let least = if largest > 0.0 {
        largest / 16_777_216.0
    } else {
        1.0
    };
    for scale in scales {
        *scale = scale
            .max(least)
            .clamp(*SCALE_RANGE.start(), *SCALE_RANGE.end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_integer_is_the_nearest() {
        for (dtype, integers) in [
            (DType::I8, (-127..=127).collect::<Vec<i32>>()),
            (DType::I4, (-8..=7).collect()),
            (DType::I2, (-2..=1).collect()),
            (DType::Ternary, vec![-1, 0, 1]),
            (DType::Binary, vec![-1, 1]),
        ] {
            let grid = Grid::of(dtype).unwrap();
            for i in -3000..3000 {
                let x = i as f32 / 16.0 + 0.013;
                let distance = |q: f32| (x - q).abs();
                let least = integers
                    .iter()
                    .map(|&q| distance(q as f32))
                    .fold(f32::MAX, f32::min);
                let got = grid.nearest(x);
                assert_eq!(distance(got), least, "{dtype} {x}");
                assert!(integers.contains(&(got as i32)));
            }
            assert!(integers.iter().all(|&q| dtype.contains(i64::from(q))));
        }
        assert_eq!(Grid::of(DType::U8), Err(WeightError::DType(DType::U8)));
    }

    #[test]
    fn scales_of_dead_channels_are_sane() {
        let mut scales = [0.5, 0.0, 1e-30];
        settle(&mut scales);
        assert_eq!(scales, [0.5, 0.5 / 16_777_216.0, 0.5 / 16_777_216.0]);
        let mut zeros = [0.0; 3];
        settle(&mut zeros);
        assert_eq!(zeros, [1.0; 3]);
        let mut tiny = [1e-38];
        settle(&mut tiny);
        assert_eq!(tiny, [*SCALE_RANGE.start()]);
    }

    #[test]
    fn every_weight_fits_at_the_widest_scale() {
        let grid = Grid::of(DType::I4).unwrap();
        assert_eq!(grid.widest([-4.0, 1.0]), 0.5);
        assert_eq!(grid.widest([-4.0, 7.0]), 1.0);
        assert_eq!(grid.widest([0.0]), 0.0);
    }
}

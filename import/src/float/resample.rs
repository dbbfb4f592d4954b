//! Where a resize takes its elements from, by the same formulas as the integer graph's tables.

use super::graph::{Interpolation, Resampling};
use crate::onnx::rules::{nearest, source};

/// The elements of an axis that one output element is made of: `(1 − weight)·low + weight·high`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Position {
    /// First element.
    pub low: usize,
    /// Second element; the first again at the border, and for a nearest neighbour.
    pub high: usize,
    /// What the second weighs, in `[0, 1]`.
    pub weight: f32,
}

impl Resampling {
    /// The positions of the output's rows (`axis` 0) or columns (1) for an input of `extent`; none for a mode
    /// that ONNX does not know, or nothing to take from.
    pub fn positions(&self, axis: usize, extent: usize) -> Option<Vec<Position>> {
        let output = *self.size.get(axis)?;
        let last = extent.checked_sub(1)?;
        let scale = output as f32 / extent as f32;
        let position = |i: usize| {
            let x = source(&self.coordinates, i, extent, output, scale).ok()?;
            Some(match self.interpolation {
                Interpolation::Nearest => {
                    let at = nearest(&self.nearest, x).ok()?.clamp(0.0, last as f32) as usize;
                    Position {
                        low: at,
                        high: at,
                        weight: 0.0,
                    }
                }
                Interpolation::Linear => {
                    let x = x.clamp(0.0, last as f32);
                    let low = x.floor();
                    let at = low as usize;
                    Position {
                        low: at,
                        high: (at + 1).min(last),
                        weight: x - low,
                    }
                }
            })
        };
        (0..output).map(position).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn positions(
        interpolation: Interpolation,
        output: usize,
        coordinates: &str,
    ) -> Vec<(usize, usize, f32)> {
        let resize = Resampling {
            size: [output, 1],
            interpolation,
            coordinates: coordinates.to_owned(),
            nearest: "round_prefer_floor".to_owned(),
        };
        let positions = resize.positions(0, 4).unwrap();
        positions
            .iter()
            .map(|p| (p.low, p.high, p.weight))
            .collect()
    }

    #[test]
    fn positions_are_those_of_onnx() {
        let near = |output, mode| -> Vec<usize> {
            positions(Interpolation::Nearest, output, mode)
                .iter()
                .map(|p| p.0)
                .collect()
        };
        assert_eq!(near(8, "asymmetric"), [0, 0, 1, 1, 2, 2, 3, 3]);
        assert_eq!(near(2, "half_pixel"), [0, 2]);
        let line = positions(Interpolation::Linear, 8, "half_pixel");
        assert_eq!(line[..3], [(0, 1, 0.0), (0, 1, 0.25), (0, 1, 0.75)]);
        assert_eq!(line[7], (3, 3, 0.0));
        assert_eq!(
            positions(Interpolation::Linear, 3, "align_corners")[1],
            (1, 2, 0.5)
        );
    }

    #[test]
    fn an_unknown_mode_has_no_positions() {
        let resize = Resampling {
            size: [2, 2],
            interpolation: Interpolation::Linear,
            coordinates: "sideways".to_owned(),
            nearest: "floor".to_owned(),
        };
        assert_eq!(resize.positions(0, 4), None);
    }
}

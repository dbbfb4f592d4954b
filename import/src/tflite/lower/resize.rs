//! Resizing of height and width: where each output row and column comes from, in TFLite's arithmetic.

use requant_model::ops::{Interpolation, Op, Resize, WEIGHT_BITS};
use requant_numerics::DType;

use super::{Lower, byte_range};
use crate::tflite::error::Reason;
use crate::tflite::schema::{Coordinates, Operator};

/// Most rows or columns of an output.
const MOST: i64 = 1 << 16;

impl Lower<'_> {
    /// Linear in 10 bits along each axis, the sum rounded half away from zero on the stored integers.
    pub(super) fn resize_bilinear(
        &mut self,
        op: &Operator,
        coordinates: Coordinates,
    ) -> Result<(), Reason> {
        let (x, y, from, size) = self.resize(op, coordinates)?;
        let (dtype, _) = self.byte(y)?;
        if dtype != DType::I8 {
            // The reference kernel for uint8 interpolates in float.
            return Err(self.wrong_type(x));
        }
        let layer = self.layer(y);
        let mut positions = |axis: usize, what: &str| {
            let values: Vec<i64> = (0..size[axis])
                .flat_map(|index| linear(coordinates, index, from[axis], size[axis]))
                .collect();
            self.positions(&format!("{layer}/{what}"), &[size[axis], 3], &values)
        };
        let (rows, columns) = (positions(0, "rows")?, positions(1, "columns")?);
        let requantize = self.twenty_bits(&layer, byte_range(dtype))?;
        let interpolation = Interpolation::Linear {
            rows,
            columns,
            requantize,
            raw: true,
        };
        self.resized(x, y, size, interpolation)
    }

    pub(super) fn resize_nearest(
        &mut self,
        op: &Operator,
        coordinates: Coordinates,
    ) -> Result<(), Reason> {
        let (x, y, from, size) = self.resize(op, coordinates)?;
        let layer = self.layer(y);
        let mut positions = |axis: usize, what: &str| {
            let values: Vec<i64> = (0..size[axis])
                .map(|index| nearest(coordinates, index, from[axis], size[axis]))
                .collect();
            self.positions(&format!("{layer}/{what}"), &[size[axis]], &values)
        };
        let interpolation = Interpolation::Nearest {
            rows: positions(0, "rows")?,
            columns: positions(1, "columns")?,
        };
        self.resized(x, y, size, interpolation)
    }

    /// Operand, result, and height and width of both.
    fn resize(
        &mut self,
        op: &Operator,
        coordinates: Coordinates,
    ) -> Result<(usize, usize, [usize; 2], [usize; 2]), Reason> {
        self.arity(op, 2..=2)?;
        let (x, y) = (self.input(op, 0)?, self.output(op)?);
        self.same(x, y)?;
        if coordinates.align_corners && coordinates.half_pixel_centers {
            return Err(Reason::Option {
                name: "align_corners with half_pixel_centers",
                value: vec![1],
            });
        }
        let [_, h, w, _] = self.image(x)?;
        let list = self.list(self.input(op, 1)?)?;
        match list[..] {
            [rows, columns] if (1..=MOST).contains(&rows) && (1..=MOST).contains(&columns) => {
                // Paid for before the lists are made.
                self.builder.charge(4 * (rows + columns) as usize)?;
                Ok((x, y, [h, w], [rows as usize, columns as usize]))
            }
            _ => Err(Reason::Option {
                name: "size",
                value: list,
            }),
        }
    }

    fn resized(
        &mut self,
        x: usize,
        y: usize,
        size: [usize; 2],
        interpolation: Interpolation,
    ) -> Result<(), Reason> {
        let input = self.value(x)?;
        let output = self.result(y, &[input])?;
        let op = Op::Resize(Resize {
            size,
            interpolation,
        });
        let layer = self.layer(y);
        self.builder.node(&layer, op, &[input], &[output]);
        Ok(())
    }
}

/// The two sources of an output position and the weight of the second, in 1/1024.
fn linear(coordinates: Coordinates, index: usize, from: usize, to: usize) -> [i64; 3] {
    let one = 1i64 << WEIGHT_BITS;
    let (index, from, to) = (index as i64, from as i64, to as i64);
    let scale = if coordinates.align_corners && to > 1 {
        (one * (from - 1) + (to - 1) / 2) / (to - 1)
    } else {
        (one * from + to / 2) / to
    };
    let half_pixel = if coordinates.half_pixel_centers {
        scale / 2 - one / 2
    } else {
        0
    };
    let position = index * scale + half_pixel;
    let lower = (position / one).clamp(0, from - 1);
    let upper = ((position + one - 1) / one).clamp(0, from - 1);
    // Between an element and itself any weight gives the same.
    let weight = if lower == upper {
        0
    } else {
        position - lower * one
    };
    [lower, upper, weight]
}

/// The source of an output position, in f32.
fn nearest(coordinates: Coordinates, index: usize, from: usize, to: usize) -> i64 {
    let scale = if coordinates.align_corners && to > 1 {
        (from - 1) as f32 / (to - 1) as f32
    } else {
        from as f32 / to as f32
    };
    let offset = if coordinates.half_pixel_centers {
        0.5
    } else {
        0.0
    };
    let position = (index as f32 + offset) * scale;
    let position = if coordinates.align_corners {
        position.round()
    } else {
        position.floor()
    };
    (position as i64).clamp(0, from as i64 - 1)
}

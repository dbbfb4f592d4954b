//! Maps of one 8-bit value to another. Each becomes a table of 256 entries that holds what TFLite's
//! reference kernel computes for each of them, in its own arithmetic.

use requant_model::Affine;
use requant_numerics::dyadic::tflite_multiplier;
use requant_numerics::rounding::{rounding_divide_by_power_of_two, tflite_double};
use requant_numerics::{DType, DyadicError, table};

use super::{Lower, byte_range};
use crate::tflite::error::Reason;
use crate::tflite::schema::{Activation, Operator};

/// Both sides of a map.
#[derive(Clone, Copy, Debug)]
struct Sides {
    x: (DType, Affine),
    y: (DType, Affine),
}

impl Lower<'_> {
    /// Sigmoid; its output's scale is 1/256.
    pub(super) fn logistic(&mut self, op: &Operator) -> Result<(), Reason> {
        let y = self.output(op)?;
        self.fixed_quant(y, 1.0 / 256.0, (-128, 0))?;
        let exp = |x: f32| libm::exp(f64::from(x)) as f32;
        self.map(op, |sides| Ok(real(sides, |x| 1.0 / (1.0 + exp(-x)))))
    }

    /// Hyperbolic tangent; its output's scale is 1/128. The kernel takes the C library's `tanhf`, which
    /// here is rounded correctly, so that no table depends on a library's version: beside glibc 2.36
    /// about one entry in 300,000, at a tie, is another.
    pub(super) fn tanh(&mut self, op: &Operator) -> Result<(), Reason> {
        let y = self.output(op)?;
        self.fixed_quant(y, 1.0 / 128.0, (0, 128))?;
        let tanh = |x: f32| libm::tanh(f64::from(x)) as f32;
        self.map(op, |sides| Ok(real(sides, tanh)))
    }

    /// A standalone activation: a requantization with the activation's limits.
    pub(super) fn clamp(&mut self, op: &Operator, activation: Activation) -> Result<(), Reason> {
        let clamp = self.limits(self.output(op)?, activation)?;
        self.map(op, |sides| {
            // The quotient is rounded to f32 first.
            rescaled(sides, f64::from(sides.x.1.scale / sides.y.1.scale), clamp)
        })
    }

    /// Integers to another scale or type.
    pub(super) fn requantize(&mut self, op: &Operator) -> Result<(), Reason> {
        self.map(op, |sides| {
            let ratio = f64::from(sides.x.1.scale) / f64::from(sides.y.1.scale);
            rescaled(sides, ratio, byte_range(sides.y.0))
        })
    }

    pub(super) fn leaky_relu(&mut self, op: &Operator, alpha: f32) -> Result<(), Reason> {
        if !(alpha.is_finite() && alpha > 0.0) {
            return Err(Reason::FloatOption {
                name: "alpha",
                value: alpha,
            });
        }
        self.map(op, |Sides { x, y }| {
            let (x, (y_type, y)) = (x, y);
            let (m, e) = tflite_multiplier(f64::from(x.1.scale / y.scale))?;
            let (m_alpha, e_alpha) = tflite_multiplier(f64::from(x.1.scale * alpha / y.scale))?;
            let (lo, hi) = byte_range(y_type);
            Ok(table::from_fn(x.0, |q| {
                let d = q - x.1.zero_point;
                let rounded = if d >= 0 {
                    tflite_double(d, m, e)
                } else {
                    tflite_double(d, m_alpha, e_alpha)
                };
                rounded.saturating_add(y.zero_point).clamp(lo, hi)
            }))
        })
    }

    pub(super) fn hard_swish(&mut self, op: &Operator) -> Result<(), Reason> {
        self.map(op, hard_swish)
    }

    /// One operand, one result of the same type but for a requantization, and the table between.
    fn map(
        &mut self,
        op: &Operator,
        make: impl FnOnce(Sides) -> Result<table::Table, DyadicError>,
    ) -> Result<(), Reason> {
        self.arity(op, 1..=1)?;
        let (x, y) = (self.input(op, 0)?, self.output(op)?);
        let sides = Sides {
            x: self.byte(x)?,
            y: self.byte(y)?,
        };
        let table = make(sides)?;
        let input = self.value(x)?;
        let output = self.result(y, &[input])?;
        let layer = self.layer(y);
        self.table(input, output, &layer, table)
    }
}

/// A function of reals, each step of it rounded to f32, and the result rounded half away from zero.
fn real(Sides { x, y }: Sides, f: impl Fn(f32) -> f32) -> table::Table {
    let (lo, hi) = byte_range(y.0);
    let inverse = 1.0 / y.1.scale;
    table::from_fn(x.0, |q| {
        let value = x.1.scale * (q - x.1.zero_point) as f32;
        let step = (f(value) * inverse).round();
        (step as i32).saturating_add(y.1.zero_point).clamp(lo, hi)
    })
}

/// A change of scale in fixed point.
fn rescaled(
    Sides { x, y }: Sides,
    ratio: f64,
    (lo, hi): (i32, i32),
) -> Result<table::Table, DyadicError> {
    let (m, e) = tflite_multiplier(ratio)?;
    Ok(table::from_fn(x.0, |q| {
        let rounded = tflite_double(q - x.1.zero_point, m, e);
        rounded.saturating_add(y.1.zero_point).clamp(lo, hi)
    }))
}

/// `x·relu6(x + 3)/6` in TFLite's 16-bit fixed point: the gate in [0, 1] as Q0.15, the input at the
/// output's scale with 7 bits more, their product rounded once.
fn hard_swish(Sides { x, y }: Sides) -> Result<table::Table, DyadicError> {
    let fine = x.1.scale * (1.0 / 128.0);
    let (m_out, e_out) = multiplier16(fine / y.1.scale)?;
    let (m_gate, e_gate) = multiplier16(fine / (3.0 / 32768.0))?;
    let (lo, hi) = byte_range(y.0);
    Ok(table::from_fn(x.0, |q| {
        let raised = ((q - x.1.zero_point) << 7) as i16;
        let scaled = high_mul16(raised, m_out);
        let mut gate = raised;
        if e_gate > 0 {
            gate = shift16(gate, e_gate - 1);
        }
        gate = high_mul16(gate, m_gate);
        if e_gate > 0 {
            gate = shift16(gate, 1);
        } else if e_gate < 0 {
            let right = (-e_gate).clamp(0, 31) as u8;
            gate = rounding_divide_by_power_of_two(gate.into(), right) as i16;
        }
        // From [−1, 1] to [0, 1].
        let gate = ((i32::from(gate) + (1 << 15)) >> 1) as i16;
        let product = i32::from(gate) * i32::from(scaled) / (1 << 15);
        let right = (-e_out).clamp(0, 31) as u8;
        let rounded = rounding_divide_by_power_of_two(product, right);
        (rounded + y.1.zero_point).clamp(lo, hi)
    }))
}

/// A multiplier of 16 bits and its exponent.
fn multiplier16(multiplier: f32) -> Result<(i16, i32), DyadicError> {
    let (m, e) = tflite_multiplier(f64::from(multiplier))?;
    let narrow = m.saturating_add(1 << 15) >> 16;
    Ok((narrow.min(i32::from(i16::MAX)) as i16, e.into()))
}

/// `a·b/2^15` of 16-bit numbers, rounded with ties up, saturated.
fn high_mul16(a: i16, b: i16) -> i16 {
    let product = i32::from(a) * i32::from(b);
    let nudge = if product >= 0 { 1 << 14 } else { 1 - (1 << 14) };
    let quotient = (product + nudge) / (1 << 15);
    quotient.clamp(i16::MIN.into(), i16::MAX.into()) as i16
}

/// `value·2^amount`, saturated.
fn shift16(value: i16, amount: i32) -> i16 {
    let shifted = i64::from(value) << amount.clamp(0, 31);
    shifted.clamp(i16::MIN.into(), i16::MAX.into()) as i16
}

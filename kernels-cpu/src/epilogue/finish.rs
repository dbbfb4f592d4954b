//! The second stage: zero point, clamp, a fused sum, and the stored type.

use requant_numerics::DType;
use requant_numerics::elementwise::{AddParams, AddScheme};

use super::round::to_integer;
use super::{Join, Quantized};

/// What follows the rounding.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Finish {
    /// Zero point of the requantized value, and its limits less the zero point.
    pub(crate) zero_point: i32,
    pub(crate) lo: i32,
    pub(crate) hi: i32,
    pub(crate) join: FinishJoin,
    pub(crate) store: Store,
    /// Limits of the stored values.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(crate) limits: (i32, i32),
    /// Whether a tile's columns lie in the order of unpacked bytes (see [`super::Order`]).
    pub(crate) unpacked: bool,
}

/// A second operand after the rounding.
#[derive(Clone, Copy, Debug)]
pub(crate) enum FinishJoin {
    None,
    /// The operand belongs to the rounding; its element type.
    Residual(DType),
    /// A sum with its own rounding, the product's parameters first.
    Add {
        dtype: DType,
        sum: Sum,
    },
}

/// How finished values, all inside their limits, become bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    /// One byte; all values lie in [-128, 127].
    Signed,
    /// One byte; all values lie in [0, 255].
    Unsigned,
    /// The low byte.
    Low,
    /// Two bytes.
    Word,
}

/// [`AddParams`] with the product as the first operand.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sum {
    /// `rne(fma(a, r_a, fma(b, r_b, offset)))`, where `a` is the sum's own first operand.
    Float {
        product_first: bool,
        product: f32,
        other: f32,
        offset: f32,
        lo: f32,
        hi: f32,
    },
    /// The native sum, in 64 bits; it does not depend on the order.
    Integer {
        product: i64,
        other: i64,
        zero_points: [i32; 2],
        shift: u8,
        zero_point: i64,
        lo: i64,
        hi: i64,
    },
    /// TFLite's sum, as it is defined.
    Double { product_first: bool, add: AddParams },
}

impl Finish {
    pub(super) fn new(quantized: &Quantized) -> Self {
        let requantize = &quantized.requantize;
        let (join, (lo, hi)) = match &quantized.join {
            Join::None => (FinishJoin::None, (requantize.lo, requantize.hi)),
            Join::Residual { dtype, .. } => {
                (FinishJoin::Residual(*dtype), (requantize.lo, requantize.hi))
            }
            Join::Add {
                add,
                dtype,
                product_first,
            } => {
                let sum = Sum::new(add, *product_first);
                (FinishJoin::Add { dtype: *dtype, sum }, (add.lo, add.hi))
            }
        };
        let store = if quantized.dtype == DType::I16 {
            Store::Word
        } else if lo >= -128 && hi <= 127 {
            Store::Signed
        } else if lo >= 0 && hi <= 255 {
            Store::Unsigned
        } else {
            Store::Low
        };
        Finish {
            zero_point: requantize.zero_point,
            lo: requantize.lo - requantize.zero_point,
            hi: requantize.hi - requantize.zero_point,
            join,
            store,
            limits: (lo, hi),
            unpacked: false,
        }
    }

    /// Leaves the zero point to the rounding.
    pub(super) fn folded(self) -> Self {
        Finish {
            zero_point: 0,
            lo: self.lo + self.zero_point,
            hi: self.hi + self.zero_point,
            ..self
        }
    }

    /// The requantized value of a rounded one.
    #[inline(always)]
    pub(crate) fn requantized(&self, rounded: i32) -> i32 {
        // Clamped first: the sum with the zero point cannot overflow then.
        rounded.max(self.lo).min(self.hi) + self.zero_point
    }
}

impl Sum {
    fn new(add: &AddParams, product_first: bool) -> Self {
        let order = |a, b| if product_first { (a, b) } else { (b, a) };
        match add.scheme {
            AddScheme::F32Fma { r_a, r_b, offset } => Sum::Float {
                product_first,
                product: if product_first { r_a } else { r_b },
                other: if product_first { r_b } else { r_a },
                offset,
                lo: add.lo as f32,
                hi: add.hi as f32,
            },
            AddScheme::Rhu { m_a, m_b, s } => {
                let (product, other) = order(m_a, m_b);
                let zero_points = order(add.zero_point_a, add.zero_point_b);
                Sum::Integer {
                    product: product.into(),
                    other: other.into(),
                    zero_points: [zero_points.0, zero_points.1],
                    shift: s,
                    zero_point: add.zero_point.into(),
                    lo: add.lo.into(),
                    hi: add.hi.into(),
                }
            }
            AddScheme::TfliteDouble { .. } => Sum::Double {
                product_first,
                add: *add,
            },
        }
    }

    /// Adds `other` to every product of a row.
    #[inline(always)]
    pub(super) fn row(&self, row: &mut [i32], other: impl Fn(usize) -> i32) {
        match *self {
            Sum::Float {
                product_first,
                product,
                other: ratio,
                offset,
                lo,
                hi,
            } => {
                // The inner of the two fused steps is the sum's second operand.
                if product_first {
                    for (i, value) in row.iter_mut().enumerate() {
                        let inner = (other(i) as f32).mul_add(ratio, offset);
                        let sum = (*value as f32).mul_add(product, inner);
                        *value = to_integer(sum.max(lo).min(hi).round_ties_even());
                    }
                } else {
                    for (i, value) in row.iter_mut().enumerate() {
                        let inner = (*value as f32).mul_add(product, offset);
                        let sum = (other(i) as f32).mul_add(ratio, inner);
                        *value = to_integer(sum.max(lo).min(hi).round_ties_even());
                    }
                }
            }
            Sum::Integer {
                product,
                other: mantissa,
                zero_points,
                shift,
                zero_point,
                lo,
                hi,
            } => {
                let constant = 1i64 << (shift - 1);
                for (i, value) in row.iter_mut().enumerate() {
                    let first = i64::from(*value - zero_points[0]) << 8;
                    let second = i64::from(other(i) - zero_points[1]) << 8;
                    let sum = first * product + second * mantissa;
                    let rounded = (sum + constant) >> shift;
                    *value = (rounded + zero_point).clamp(lo, hi) as i32;
                }
            }
            Sum::Double { product_first, add } => {
                for (i, value) in row.iter_mut().enumerate() {
                    *value = if product_first {
                        add.apply(*value, other(i))
                    } else {
                        add.apply(other(i), *value)
                    };
                }
            }
        }
    }
}

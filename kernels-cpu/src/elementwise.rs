//! Sums and products of two quantized tensors, with NumPy's broadcasting.
//!
//! Dimensions are merged where both operands allow it, and what remains is a walk over rows along the
//! last dimension. A row is taken in short stretches: both operands are widened to `i32` in a buffer,
//! the operator runs on the buffers, the result is narrowed. So operand types, broadcasts and operators
//! add up instead of multiplying.

use requant_numerics::DType;
use requant_numerics::elementwise::{AddParams, AddScheme, MulParams, MulScheme};

use crate::epilogue::{clamp_in_range, element, narrow};
use crate::error::{at_least, product, zero_point_in_range};
use crate::parallel::split_output;
use crate::versions::versions;
use crate::{Buffer, Isa, KernelError, Parallel};

/// Most dimensions of a broadcast, the batch not counted.
pub const MAX_RANK: usize = 8;

/// What is done with two elements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum BinaryOp {
    /// A sum; a difference has a negative multiplier.
    Add(AddParams),
    /// A product.
    Mul(MulParams),
}

/// An elementwise operator to prepare. Shapes are those of one sample; the batch comes before them.
#[derive(Clone, Debug)]
pub struct BinarySpec {
    /// The operator.
    pub op: BinaryOp,
    /// Element type of the first operand: at most 8 bits, or `i16`.
    pub a: DType,
    /// Element type of the second operand.
    pub b: DType,
    /// Element type of the output.
    pub output: DType,
    /// Shape of the output.
    pub dims: Vec<usize>,
    /// For each dimension, how many elements of `a` one step skips; 0 where `a` is broadcast.
    pub a_strides: Vec<usize>,
    /// The same for `b`.
    pub b_strides: Vec<usize>,
    /// Elements of `a` from one sample to the next; 0 where all samples share it.
    pub a_sample: usize,
    /// The same for `b`.
    pub b_sample: usize,
}

/// The strides with which a dense operand of shape `operand` is read under NumPy's broadcasting to
/// `dims`, or `None` where the shapes do not fit.
pub fn broadcast_strides(dims: &[usize], operand: &[usize]) -> Option<Vec<usize>> {
    let missing = dims.len().checked_sub(operand.len())?;
    let mut strides = vec![0; dims.len()];
    let mut stride = 1usize;
    for (axis, &length) in operand.iter().enumerate().rev() {
        if length == dims[missing + axis] {
            strides[missing + axis] = stride;
        } else if length != 1 {
            return None;
        }
        stride = stride.checked_mul(length)?;
    }
    Some(strides)
}

/// The buffers of one run.
#[derive(Debug)]
pub struct BinaryIo<'a> {
    /// Samples.
    pub batch: usize,
    /// First operand.
    pub a: &'a [u8],
    /// Second operand.
    pub b: &'a [u8],
    /// Output, dense.
    pub output: &'a mut [u8],
}

/// One dimension of the walk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Axis {
    length: usize,
    a: usize,
    b: usize,
}

/// A prepared elementwise operator.
#[derive(Clone, Debug)]
pub struct Binary {
    core: Core,
    /// Merged dimensions, the last one innermost.
    axes: Vec<Axis>,
    a_sample: usize,
    b_sample: usize,
    elements: usize,
    /// Elements of each operand that one sample reads, from its first.
    a_reach: usize,
    b_reach: usize,
    row: fn(&Core, Operand<'_>, Operand<'_>, &mut [u8]),
}

/// What a row needs to know.
#[derive(Clone, Copy, Debug)]
struct Core {
    op: BinaryOp,
    a: DType,
    b: DType,
    output: DType,
}

/// A stretch of one operand: its bytes from the first element on, and the step between elements.
#[derive(Clone, Copy, Debug)]
struct Operand<'a> {
    bytes: &'a [u8],
    step: usize,
}

/// Elements below which a part is not worth a thread.
const GRAIN: usize = 16 << 10;

impl Binary {
    /// Prepares an elementwise operator.
    ///
    /// # Errors
    /// More than [`MAX_RANK`] dimensions, strides that are not one for each dimension, zero dimensions,
    /// element types or parameters out of range, or a product of two `i16` operands.
    pub fn new(isa: Isa, spec: &BinarySpec) -> Result<Self, KernelError> {
        if !isa.is_available() {
            return Err(KernelError::Isa(isa));
        }
        for (buffer, dtype) in [
            (Buffer::Input, spec.a),
            (Buffer::Other, spec.b),
            (Buffer::Output, spec.output),
        ] {
            narrow(buffer, dtype)?;
        }
        validate(spec)?;
        let rank = spec.dims.len();
        for value in [rank, spec.a_strides.len(), spec.b_strides.len()] {
            if value > MAX_RANK || value != rank {
                return Err(KernelError::Dimension {
                    name: "rank",
                    value,
                });
            }
        }
        let axes: Vec<Axis> = (0..rank)
            .map(|axis| Axis {
                length: spec.dims[axis],
                a: spec.a_strides[axis],
                b: spec.b_strides[axis],
            })
            .collect();
        let (mut a_reach, mut b_reach) = (1usize, 1usize);
        for axis in &axes {
            if axis.length == 0 {
                return Err(KernelError::Dimension {
                    name: "elements",
                    value: 0,
                });
            }
            for (reach, stride) in [(&mut a_reach, axis.a), (&mut b_reach, axis.b)] {
                *reach = product(&[axis.length - 1, stride])?
                    .checked_add(*reach)
                    .ok_or(KernelError::TooLarge)?;
            }
        }
        let mut dims = spec.dims.clone();
        dims.push(2);
        Ok(Binary {
            core: Core {
                op: spec.op,
                a: spec.a,
                b: spec.b,
                output: spec.output,
            },
            axes: merge(axes),
            a_sample: spec.a_sample,
            b_sample: spec.b_sample,
            elements: product(&dims)? / 2,
            a_reach,
            b_reach,
            row: row(isa),
        })
    }

    /// Runs on `batch` samples.
    ///
    /// # Errors
    /// Buffers that are too short.
    pub fn run(&self, io: BinaryIo<'_>, pool: &dyn Parallel) -> Result<(), KernelError> {
        let Core { a, b, output, .. } = self.core;
        if io.batch == 0 {
            return Ok(());
        }
        for (buffer, sample, reach, dtype, got) in [
            (Buffer::Input, self.a_sample, self.a_reach, a, io.a.len()),
            (Buffer::Other, self.b_sample, self.b_reach, b, io.b.len()),
        ] {
            let elements = product(&[io.batch - 1, sample])?
                .checked_add(reach)
                .ok_or(KernelError::TooLarge)?;
            at_least(buffer, product(&[elements, dtype.size_in_memory()])?, got)?;
        }
        let size = output.size_in_memory();
        let needed = product(&[io.batch, self.elements, size])?;
        at_least(Buffer::Output, needed, io.output.len())?;
        let output = &mut io.output[..needed];
        let (a, b) = (io.a, io.b);
        split_output(pool, output, size, GRAIN, |first, output| {
            self.stretch(a, b, first, output);
        });
        Ok(())
    }

    /// Output elements from `first` on, counted over the batch.
    fn stretch(&self, a: &[u8], b: &[u8], first: usize, mut output: &mut [u8]) {
        let Core {
            a: a_type,
            b: b_type,
            output: out_type,
            ..
        } = self.core;
        let inner = self.axes.last().copied().unwrap_or(Axis {
            length: 1,
            a: 0,
            b: 0,
        });
        let mut at = first;
        while !output.is_empty() {
            let (a_at, b_at) = self.offsets(at);
            let left = inner.length - at % inner.length;
            let bytes = (left * out_type.size_in_memory()).min(output.len());
            let (now, rest) = output.split_at_mut(bytes);
            (self.row)(
                &self.core,
                Operand {
                    bytes: &a[a_at * a_type.size_in_memory()..],
                    step: inner.a,
                },
                Operand {
                    bytes: &b[b_at * b_type.size_in_memory()..],
                    step: inner.b,
                },
                now,
            );
            at += left;
            output = rest;
        }
    }

    /// Where both operands of output element `index` lie, in elements.
    fn offsets(&self, index: usize) -> (usize, usize) {
        let sample = index / self.elements;
        let mut rest = index % self.elements;
        let (mut a, mut b) = (sample * self.a_sample, sample * self.b_sample);
        for axis in self.axes.iter().rev() {
            let step = rest % axis.length;
            rest /= axis.length;
            a += step * axis.a;
            b += step * axis.b;
        }
        (a, b)
    }
}

/// Merges neighbouring dimensions that both operands walk through as one, and drops those of length 1.
fn merge(axes: Vec<Axis>) -> Vec<Axis> {
    let mut merged: Vec<Axis> = Vec::with_capacity(axes.len());
    for axis in axes.into_iter().filter(|axis| axis.length != 1) {
        match merged.last_mut() {
            Some(outer) if outer.a == axis.a * axis.length && outer.b == axis.b * axis.length => {
                *outer = Axis {
                    length: outer.length * axis.length,
                    ..axis
                };
            }
            _ => merged.push(axis),
        }
    }
    merged
}

fn validate(spec: &BinarySpec) -> Result<(), KernelError> {
    let (zero_points, clamp, zero_point) = match &spec.op {
        BinaryOp::Add(add) => {
            add.validate()?;
            (
                [add.zero_point_a, add.zero_point_b],
                (add.lo, add.hi),
                add.zero_point,
            )
        }
        BinaryOp::Mul(mul) => {
            mul.validate()?;
            // The product must fit 32 bits.
            if spec.a == DType::I16 && spec.b == DType::I16 {
                return Err(KernelError::DType {
                    buffer: Buffer::Other,
                    dtype: spec.b,
                });
            }
            (
                [mul.zero_point_a, mul.zero_point_b],
                (mul.lo, mul.hi),
                mul.zero_point,
            )
        }
    };
    zero_point_in_range(zero_points[0], spec.a)?;
    zero_point_in_range(zero_points[1], spec.b)?;
    clamp_in_range(clamp, zero_point, spec.output)
}

versions! {
    fn row(core: &Core, a: Operand<'_>, b: Operand<'_>, output: &mut [u8]) = row_all
}

/// Elements widened at a time.
const STRETCH: usize = 256;

#[inline(always)]
fn row_all(core: &Core, a: Operand<'_>, b: Operand<'_>, output: &mut [u8]) {
    let size = core.output.size_in_memory();
    let (mut left, mut right) = ([0i32; STRETCH], [0i32; STRETCH]);
    for (index, output) in output.chunks_mut(STRETCH * size).enumerate() {
        let (first, count) = (index * STRETCH, output.len() / size);
        widen(core.a, a, first, &mut left[..count]);
        widen(core.b, b, first, &mut right[..count]);
        let pairs = left[..count].iter_mut().zip(&right[..count]);
        match core.op {
            BinaryOp::Add(add) => match add.scheme {
                AddScheme::F32Fma { .. } => pairs.for_each(|(a, b)| *a = add.apply(*a, *b)),
                AddScheme::Rhu { m_a, m_b, s } => {
                    let (m_a, m_b) = (i64::from(m_a), i64::from(m_b));
                    let (shift, half) = (s & 63, 1i64 << ((s - 1) & 63));
                    let zero_point = i64::from(add.zero_point);
                    let (lo, hi) = (i64::from(add.lo), i64::from(add.hi));
                    // Differences have at most 18 bits, so that factors have 32.
                    pairs.for_each(|(a, b)| {
                        let first = i64::from((*a - add.zero_point_a) << 8) * m_a;
                        let second = i64::from((*b - add.zero_point_b) << 8) * m_b;
                        let rounded = (first + second + half) >> shift;
                        *a = (rounded + zero_point).max(lo).min(hi) as i32;
                    });
                }
                AddScheme::TfliteDouble { .. } => {
                    pairs.for_each(|(a, b)| *a = add.apply(*a, *b));
                }
            },
            BinaryOp::Mul(mul) => match mul.scheme {
                MulScheme::F32 { .. } => pairs.for_each(|(a, b)| *a = mul.apply(*a, *b)),
                MulScheme::Rhu { .. } => pairs.for_each(|(a, b)| *a = mul.apply(*a, *b)),
                MulScheme::TfliteDouble(_) => pairs.for_each(|(a, b)| *a = mul.apply(*a, *b)),
            },
        }
        if core.output == DType::I16 {
            for (bytes, value) in output.as_chunks_mut().0.iter_mut().zip(&left) {
                *bytes = (*value as i16).to_le_bytes();
            }
        } else {
            for (byte, value) in output.iter_mut().zip(&left) {
                *byte = *value as u8;
            }
        }
    }
}

#[inline(always)]
fn widen(dtype: DType, operand: Operand<'_>, first: usize, buffer: &mut [i32]) {
    let Operand { bytes, step } = operand;
    if step == 0 {
        return buffer.fill(element(dtype, bytes, 0));
    }
    if step > 1 {
        for (index, value) in buffer.iter_mut().enumerate() {
            *value = element(dtype, bytes, (first + index) * step);
        }
        return;
    }
    let bytes = &bytes[first * dtype.size_in_memory()..];
    match dtype {
        DType::U2 | DType::U4 | DType::U8 => {
            for (value, byte) in buffer.iter_mut().zip(bytes) {
                *value = i32::from(*byte);
            }
        }
        DType::Binary | DType::Ternary | DType::I2 | DType::I4 | DType::I8 => {
            for (value, byte) in buffer.iter_mut().zip(bytes) {
                *value = i32::from(*byte as i8);
            }
        }
        DType::I16 | DType::I32 | DType::I64 | DType::F32 | DType::F64 => {
            for (value, word) in buffer.iter_mut().zip(bytes.as_chunks().0) {
                *value = i32::from(i16::from_le_bytes(*word));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_follow_the_broadcast() {
        assert_eq!(broadcast_strides(&[2, 3, 4], &[3, 1]), Some(vec![0, 1, 0]));
        assert_eq!(broadcast_strides(&[2, 3], &[2, 3]), Some(vec![3, 1]));
        assert_eq!(broadcast_strides(&[2, 3], &[2]), None);
        assert_eq!(broadcast_strides(&[3], &[1, 3]), None);
        assert_eq!(broadcast_strides(&[2, 3], &[]), Some(vec![0, 0]));
    }

    #[test]
    fn dimensions_merge() {
        let axis = |length, a, b| Axis { length, a, b };
        assert_eq!(
            merge(vec![axis(2, 12, 12), axis(3, 4, 4), axis(4, 1, 1)]),
            vec![axis(24, 1, 1)]
        );
        // b has one value for each last index.
        assert_eq!(
            merge(vec![axis(2, 12, 0), axis(3, 4, 0), axis(4, 1, 1)]),
            vec![axis(6, 4, 0), axis(4, 1, 1)]
        );
        assert_eq!(
            merge(vec![axis(5, 7, 0), axis(1, 9, 9)]),
            vec![axis(5, 7, 0)]
        );
        // a scalar.
        assert_eq!(
            merge(vec![axis(2, 3, 0), axis(3, 1, 0)]),
            vec![axis(6, 1, 0)]
        );
    }
}

//! Constants of the ONNX graph: initializers, attribute tensors and whatever folds from them.

use std::sync::Arc;

use requant_model::limits;
use requant_numerics::DType;

use super::elem::{Elem, F32, I64};

/// An integer that may be a multiple of the batch size, as shape arithmetic sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dim {
    /// A number.
    Known(i64),
    /// A number times the batch size.
    Batch(i64),
}

impl Dim {
    /// The number, where it does not depend on the batch.
    pub(crate) fn known(self) -> Option<i64> {
        match self {
            Dim::Known(value) => Some(value),
            Dim::Batch(_) => None,
        }
    }
}

/// Elements in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Data {
    /// Every float type, as f32.
    Float(Vec<f32>),
    /// Integers of at most 16 bits that fit `i16`.
    Narrow(Vec<i16>),
    /// Other integers and booleans.
    Wide(Vec<i64>),
    /// Integers of which at least one depends on the batch size.
    Symbolic(Vec<Dim>),
}

/// A constant tensor.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Constant {
    /// Element type in the file.
    pub(crate) elem: Elem,
    /// Shape; unlike a value's, it may hold zeros.
    pub(crate) dims: Vec<usize>,
    /// Elements.
    pub(crate) data: Data,
}

impl Constant {
    /// A float constant.
    pub(crate) fn float(dims: Vec<usize>, values: Vec<f32>) -> Self {
        Constant {
            elem: F32,
            dims,
            data: Data::Float(values),
        }
    }

    /// An integer constant, stored as narrowly as its type allows.
    pub(crate) fn integer(elem: Elem, dims: Vec<usize>, values: Vec<i64>) -> Self {
        let narrow = elem.narrow().is_some();
        let data = if narrow {
            Data::Narrow(values.iter().map(|&v| v as i16).collect())
        } else {
            Data::Wide(values)
        };
        Constant { elem, dims, data }
    }

    /// An i64 constant of shape arithmetic.
    pub(crate) fn symbolic(dims: Vec<usize>, values: Vec<Dim>) -> Self {
        let known: Option<Vec<i64>> = values.iter().map(|d| d.known()).collect();
        let data = known.map_or(Data::Symbolic(values), Data::Wide);
        Constant {
            elem: I64,
            dims,
            data,
        }
    }

    /// Number of elements.
    pub(crate) fn len(&self) -> usize {
        match &self.data {
            Data::Float(v) => v.len(),
            Data::Narrow(v) => v.len(),
            Data::Wide(v) => v.len(),
            Data::Symbolic(v) => v.len(),
        }
    }

    /// Elements of a float constant.
    pub(crate) fn floats(&self) -> Option<&[f32]> {
        match &self.data {
            Data::Float(values) => Some(values),
            Data::Narrow(_) | Data::Wide(_) | Data::Symbolic(_) => None,
        }
    }

    /// Elements of an integer constant that does not depend on the batch.
    pub(crate) fn ints(&self) -> Option<Vec<i64>> {
        match &self.data {
            Data::Narrow(values) => Some(values.iter().map(|&v| i64::from(v)).collect()),
            Data::Wide(values) => Some(values.clone()),
            Data::Float(_) | Data::Symbolic(_) => None,
        }
    }

    /// Elements of an integer constant.
    pub(crate) fn symbols(&self) -> Option<Vec<Dim>> {
        match &self.data {
            Data::Symbolic(values) => Some(values.clone()),
            Data::Narrow(_) | Data::Wide(_) => {
                Some(self.ints()?.into_iter().map(Dim::Known).collect())
            }
            Data::Float(_) => None,
        }
    }

    /// The same elements under another shape of as many.
    pub(crate) fn reshaped(&self, dims: Vec<usize>) -> Option<Self> {
        let count = count(&dims)?;
        (count == self.len()).then(|| Constant {
            dims,
            ..self.clone()
        })
    }

    /// The elements at `positions`, under another shape.
    pub(crate) fn gathered(&self, dims: Vec<usize>, positions: &[usize]) -> Option<Self> {
        fn pick<T: Copy>(values: &[T], positions: &[usize]) -> Option<Vec<T>> {
            positions.iter().map(|&p| values.get(p).copied()).collect()
        }
        let data = match &self.data {
            Data::Float(v) => Data::Float(pick(v, positions)?),
            Data::Narrow(v) => Data::Narrow(pick(v, positions)?),
            Data::Wide(v) => Data::Wide(pick(v, positions)?),
            Data::Symbolic(v) => return Some(Constant::symbolic(dims, pick(v, positions)?)),
        };
        Some(Constant {
            elem: self.elem,
            dims,
            data,
        })
    }

    /// Axes permuted: `out.dims[i] = dims[perm[i]]`.
    pub(crate) fn transposed(&self, perm: &[usize]) -> Option<Self> {
        let dims: Vec<usize> = perm.iter().map(|&p| self.dims[p]).collect();
        let strides = strides(&self.dims);
        let steps: Vec<usize> = perm.iter().map(|&p| strides[p]).collect();
        self.gathered(dims.clone(), &positions(&dims, 0, &steps))
    }
}

/// The number of elements of a shape that may hold zeros; `None` where it, or the product of the other
/// extents, is out of bounds.
pub(crate) fn count(dims: &[usize]) -> Option<usize> {
    let bound = |product: usize, &dim: &usize| {
        let product = product.checked_mul(dim.max(1))?;
        (product <= limits::MAX_ELEMENTS).then_some(product)
    };
    let product = dims.iter().try_fold(1, bound)?;
    Some(if dims.contains(&0) { 0 } else { product })
}

/// Row-major strides of a shape.
pub(crate) fn strides(dims: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; dims.len()];
    for axis in (1..dims.len()).rev() {
        strides[axis - 1] = strides[axis] * dims[axis];
    }
    strides
}

/// Flat source positions of every element of `dims`, walked with `steps` from `start`.
pub(crate) fn positions(dims: &[usize], start: usize, steps: &[usize]) -> Vec<usize> {
    if dims.contains(&0) {
        return Vec::new();
    }
    let mut out = vec![start];
    for (&dim, &step) in dims.iter().zip(steps) {
        let mut next = Vec::with_capacity(out.len() * dim);
        for base in out {
            next.extend((0..dim).map(|i| base + i * step));
        }
        out = next;
    }
    out
}

/// Integers with the scales that make them real: a constant behind a DequantizeLinear.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct QuantConstant {
    /// Name of the integers' tensor.
    pub(crate) name: String,
    /// The integers.
    pub(crate) values: Arc<Constant>,
    /// Their type.
    pub(crate) dtype: DType,
    /// How scales and zero points lie over the elements.
    pub(crate) layout: ScaleLayout,
    /// Scales.
    pub(crate) scales: Arc<Vec<f32>>,
    /// Zero points, as many as scales.
    pub(crate) zero_points: Arc<Vec<i32>>,
}

/// How scales lie over the elements of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ScaleLayout {
    /// One for all.
    Tensor,
    /// One an index of an axis.
    Axis(usize),
    /// One each `block` elements along an axis.
    Blocks {
        /// The axis.
        axis: usize,
        /// Elements a scale.
        block: usize,
    },
}

impl ScaleLayout {
    /// Index of the scale of the element at flat `index` of a tensor of `dims`.
    pub(crate) fn index(self, dims: &[usize], index: usize) -> usize {
        let at = |axis: usize| {
            let inner: usize = dims[axis + 1..].iter().product();
            (
                index / inner / dims[axis],
                index / inner % dims[axis],
                index % inner,
                inner,
            )
        };
        match self {
            ScaleLayout::Tensor => 0,
            ScaleLayout::Axis(axis) => at(axis).1,
            ScaleLayout::Blocks { axis, block } => {
                let (outer, along, rest, inner) = at(axis);
                (outer * dims[axis].div_ceil(block) + along / block) * inner + rest
            }
        }
    }
}

impl QuantConstant {
    /// The real values: `f32(q − zp)·s`.
    pub(crate) fn dequantized(&self) -> Option<Constant> {
        let ints = self.values.ints()?;
        let dims = &self.values.dims;
        let real = ints.iter().enumerate().map(|(index, &q)| {
            let i = self.layout.index(dims, index);
            let q = i32::try_from(q).ok()?;
            Some(requant_numerics::edge::dequantize(
                q,
                *self.scales.get(i)?,
                *self.zero_points.get(i)?,
            ))
        });
        Some(Constant::float(dims.clone(), real.collect::<Option<_>>()?))
    }
}

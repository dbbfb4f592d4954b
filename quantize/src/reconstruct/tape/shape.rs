//! Operators that move elements: all of them are lists of positions to read from.

use std::sync::Arc;

use super::{Tape, Var};

/// Where each element of a result comes from; [`Picks::BORDER`] for one that comes from nowhere.
pub(super) type Positions = Arc<Vec<u32>>;

/// Makes lists of positions.
#[derive(Debug)]
pub struct Picks;

impl Picks {
    /// An element that is a constant.
    pub const BORDER: u32 = u32::MAX;

    /// Positions in a tensor of shape `from` for a result of shape `to`: along each axis, `at(axis, index)`
    /// is the index to read, or none for the border.
    pub fn by_axis(
        from: &[usize],
        to: &[usize],
        at: impl Fn(usize, usize) -> Option<usize>,
    ) -> Positions {
        let mut stride: usize = from.iter().product();
        let mut positions = vec![0u32];
        for (axis, (&extent, &count)) in from.iter().zip(to).enumerate() {
            stride /= extent.max(1);
            let steps: Vec<u32> = (0..count)
                .map(|i| at(axis, i).map_or(Self::BORDER, |i| (i * stride) as u32))
                .collect();
            let mut next = Vec::with_capacity(positions.len() * count);
            for &base in &positions {
                next.extend(steps.iter().map(|&step| match (base, step) {
                    (Self::BORDER, _) | (_, Self::BORDER) => Self::BORDER,
                    (base, step) => base + step,
                }));
            }
            positions = next;
        }
        Arc::new(positions)
    }

    /// Positions of a transpose: `to[i] = from[perm[i]]`.
    pub fn transpose(from: &[usize], perm: &[usize]) -> Positions {
        let strides: Vec<usize> = (0..from.len())
            .map(|axis| from[axis + 1..].iter().product())
            .collect();
        let mut positions = vec![0u32];
        for &axis in perm {
            let mut next = Vec::with_capacity(positions.len() * from[axis]);
            for &base in &positions {
                next.extend((0..from[axis]).map(|i| base + (i * strides[axis]) as u32));
            }
            positions = next;
        }
        Arc::new(positions)
    }
}

/// The shape that two shapes broadcast to, by NumPy's rule.
pub fn broadcast_dims(a: &[usize], b: &[usize]) -> Vec<usize> {
    let rank = a.len().max(b.len());
    let extent = |dims: &[usize], axis: usize| {
        let missing = rank - dims.len();
        if axis < missing {
            1
        } else {
            dims[axis - missing]
        }
    };
    (0..rank)
        .map(|axis| match (extent(a, axis), extent(b, axis)) {
            (1, other) => other,
            (extent, _) => extent,
        })
        .collect()
}

/// Positions that broadcast a tensor of shape `from` to `to`.
pub fn broadcast_picks(from: &[usize], to: &[usize]) -> Positions {
    let mut full = vec![1; to.len() - from.len()];
    full.extend(from);
    Picks::by_axis(&full, to, |axis, index| {
        Some(if full[axis] == 1 { 0 } else { index })
    })
}

impl Tape {
    /// The elements at `positions`, `border` where there is none.
    pub fn pick(&mut self, x: Var, dims: Vec<usize>, positions: Positions, border: f32) -> Var {
        let from = self.data(x);
        let read = |&i: &u32| from.get(i as usize).copied().unwrap_or(border);
        let data: Vec<f32> = positions.iter().map(read).collect();
        self.push(dims, data, vec![x], move |p| {
            let mut dx = vec![0.0; p.operand(0).len()];
            for (&i, g) in positions.iter().zip(p.gradient) {
                if let Some(to) = dx.get_mut(i as usize) {
                    *to += g;
                }
            }
            vec![Some(dx)]
        })
    }

    /// Repeats elements so that the tensor has shape `dims`, by NumPy's rule.
    pub fn broadcast(&mut self, x: Var, dims: &[usize]) -> Var {
        if self.dims(x) == dims {
            return x;
        }
        let positions = broadcast_picks(self.dims(x), dims);
        self.pick(x, dims.to_vec(), positions, 0.0)
    }

    /// The same elements in another shape.
    pub fn reshape(&mut self, x: Var, dims: Vec<usize>) -> Var {
        let data = self.shared(x);
        self.push(dims, data, vec![x], |p| vec![Some(p.gradient.to_vec())])
    }

    /// Tensors joined along an axis.
    pub fn concat(&mut self, parts: &[Var], axis: usize) -> Var {
        let Some(&first) = parts.first() else {
            return self.constant(&[0], Vec::new());
        };
        let mut dims = self.dims(first).to_vec();
        let inner: usize = dims[axis + 1..].iter().product();
        let widths: Vec<usize> = parts.iter().map(|&v| self.dims(v)[axis] * inner).collect();
        dims[axis] = parts.iter().map(|&v| self.dims(v)[axis]).sum();
        let outer: usize = dims[..axis].iter().product();
        let mut data = Vec::with_capacity(dims.iter().product());
        for block in 0..outer {
            for (&part, &width) in parts.iter().zip(&widths) {
                data.extend_from_slice(&self.data(part)[block * width..][..width]);
            }
        }
        self.push(dims, data, parts.to_vec(), move |p| {
            let row: usize = widths.iter().sum();
            let mut start = 0;
            let part = |(index, &width): (usize, &usize)| {
                let from = start;
                start += width;
                p.wants(index).then(|| {
                    let rows = p.gradient.chunks_exact(row.max(1));
                    rows.flat_map(|row| &row[from..from + width])
                        .copied()
                        .collect()
                })
            };
            widths.iter().enumerate().map(part).collect()
        })
    }
}

//! Permutations of dimensions for elements of 1, 2 or 4 bytes.
//!
//! Dimensions that stay neighbours are merged. Where the last dimension stays last, its runs are copied
//! whole; otherwise the walk goes over small squares of the two last dimensions, so that both sides
//! touch few cache lines at a time.

use crate::error::{at_least, product};
use crate::parallel::{Shared, run_parts, share, usable_threads};
use crate::{Buffer, KernelError, Parallel};

/// Most dimensions, the batch not counted.
pub const MAX_RANK: usize = 8;

/// A prepared transposition.
#[derive(Clone, Debug)]
pub struct Transpose {
    /// Output dimensions, merged, with the input's stride along each, in elements.
    axes: Vec<(usize, usize)>,
    elements: usize,
    size: usize,
}

/// Side of a square.
const SIDE: usize = 32;
/// Bytes below which a part is not worth a thread.
const GRAIN: usize = 64 << 10;

impl Transpose {
    /// Output dimension `i` is input dimension `permutation[i]`; `dims` is the input's shape and `size` the
    /// bytes of an element (1, 2 or 4).
    ///
    /// # Errors
    /// More than [`MAX_RANK`] dimensions, no permutation, zero dimensions or another element size.
    pub fn new(dims: &[usize], permutation: &[usize], size: usize) -> Result<Self, KernelError> {
        let rank = dims.len();
        let mut seen = [false; MAX_RANK];
        if rank > MAX_RANK || permutation.len() != rank {
            return Err(KernelError::Dimension {
                name: "rank",
                value: permutation.len(),
            });
        }
        for &axis in permutation {
            if axis >= rank || seen[axis] {
                return Err(KernelError::Dimension {
                    name: "permutation",
                    value: axis,
                });
            }
            seen[axis] = true;
        }
        if !matches!(size, 1 | 2 | 4) {
            return Err(KernelError::Dimension {
                name: "element size",
                value: size,
            });
        }
        if dims.contains(&0) {
            return Err(KernelError::Dimension {
                name: "elements",
                value: 0,
            });
        }
        let mut all = dims.to_vec();
        all.push(size);
        let elements = product(&all)? / size;
        let stride = |axis: usize| dims[axis + 1..].iter().product::<usize>();
        let mut axes: Vec<(usize, usize)> = Vec::new();
        for &axis in permutation.iter().filter(|&&axis| dims[axis] != 1) {
            let (length, stride) = (dims[axis], stride(axis));
            match axes.last_mut() {
                Some(outer) if outer.1 == length * stride => {
                    *outer = (outer.0 * length, stride);
                }
                _ => axes.push((length, stride)),
            }
        }
        Ok(Transpose {
            axes,
            elements,
            size,
        })
    }

    /// Transposes `batch` samples.
    ///
    /// # Errors
    /// Buffers that are too short.
    pub fn run(
        &self,
        batch: usize,
        input: &[u8],
        output: &mut [u8],
        pool: &dyn Parallel,
    ) -> Result<(), KernelError> {
        let sample = self.elements * self.size;
        let needed = product(&[batch, sample])?;
        at_least(Buffer::Input, needed, input.len())?;
        at_least(Buffer::Output, needed, output.len())?;
        let planes: usize = self.outer().iter().map(|axis| axis.0).product();
        let units = batch * planes;
        let plane = sample / planes;
        let parts = usable_threads(pool).min(needed / GRAIN).min(units).max(1);
        let output = Shared::new(&mut output[..needed]);
        run_parts(pool, parts, |part| {
            for unit in share(units, parts, part) {
                let start = unit / planes * sample + self.offset(unit % planes) * self.size;
                // SAFETY: planes are disjoint, and each belongs to one part.
                let output = unsafe { output.slice(unit * plane..(unit + 1) * plane) };
                self.plane(&input[start..], output);
            }
        });
        Ok(())
    }

    /// The dimensions around a plane: all but the last two, or the last one where it stays last.
    fn outer(&self) -> &[(usize, usize)] {
        let inner = match self.axes.last() {
            Some((_, 1)) => 1,
            _ => 2,
        };
        &self.axes[..self.axes.len().saturating_sub(inner)]
    }

    /// Where the plane of an index over the outer dimensions starts in a sample, in elements.
    fn offset(&self, mut index: usize) -> usize {
        let mut offset = 0;
        for (length, stride) in self.outer().iter().rev() {
            offset += index % length * stride;
            index /= length;
        }
        offset
    }

    fn plane(&self, input: &[u8], output: &mut [u8]) {
        match self.axes.as_slice() {
            [] | [.., (_, 1)] => {
                let bytes = output.len();
                output.copy_from_slice(&input[..bytes]);
            }
            [(length, stride)] => self.square((1, 0), (*length, *stride), input, output),
            [.., rows, columns] => self.square(*rows, *columns, input, output),
        }
    }

    fn square(
        &self,
        rows: (usize, usize),
        columns: (usize, usize),
        input: &[u8],
        output: &mut [u8],
    ) {
        match self.size {
            1 => squares::<1>(rows, columns, input, output),
            2 => squares::<2>(rows, columns, input, output),
            _ => squares::<4>(rows, columns, input, output),
        }
    }
}

fn squares<const SIZE: usize>(
    (rows, row_stride): (usize, usize),
    (columns, column_stride): (usize, usize),
    input: &[u8],
    output: &mut [u8],
) {
    let (output, _) = output.as_chunks_mut::<SIZE>();
    let (input, _) = input.as_chunks::<SIZE>();
    for top in (0..rows).step_by(SIDE) {
        for left in (0..columns).step_by(SIDE) {
            for row in top..rows.min(top + SIDE) {
                let end = columns.min(left + SIDE);
                let output = &mut output[row * columns + left..row * columns + end];
                for (column, element) in output.iter_mut().enumerate() {
                    *element = input[row * row_stride + (left + column) * column_stride];
                }
            }
        }
    }
}

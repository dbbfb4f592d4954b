//! Matrix products by the `gemm` crate behind slices that are checked: the one place where the crate's raw
//! pointers are touched. Always on the calling thread, so that a sum's order depends on the shapes alone.
#![allow(unsafe_code)]

use gemm::Parallelism;

/// A number that products are computed in: `f32`, or `f64` where integers must stay exact.
pub trait Real:
    Copy + Send + Sync + Default + std::ops::AddAssign + std::ops::Mul<Output = Self> + 'static
{
    /// One.
    const ONE: Self;

    /// The same number.
    fn from_f32(x: f32) -> Self;

    /// The slice itself where the type is `f32`.
    fn borrow(x: &[f32]) -> Option<&[Self]>;
}

impl Real for f32 {
    const ONE: f32 = 1.0;

    fn from_f32(x: f32) -> f32 {
        x
    }

    fn borrow(x: &[f32]) -> Option<&[f32]> {
        Some(x)
    }
}

impl Real for f64 {
    const ONE: f64 = 1.0;

    fn from_f32(x: f32) -> f64 {
        f64::from(x)
    }

    fn borrow(_: &[f32]) -> Option<&[f64]> {
        None
    }
}

/// A matrix inside a slice: element (r, c) at `r·rows + c·columns`.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a, T> {
    /// The elements.
    pub data: &'a [T],
    /// Distance of two rows.
    pub rows: usize,
    /// Distance of two columns.
    pub columns: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// Rows one after the other, `pitch` elements apart.
    pub fn row_major(data: &'a [T], pitch: usize) -> Self {
        Matrix {
            data,
            rows: pitch,
            columns: 1,
        }
    }

    /// The same matrix with rows and columns exchanged.
    pub fn transposed(self) -> Self {
        Matrix {
            data: self.data,
            rows: self.columns,
            columns: self.rows,
        }
    }

    fn holds(&self, rows: usize, columns: usize) -> bool {
        fits(self.data.len(), (rows, self.rows), (columns, self.columns))
    }
}

/// Whether the last element of a strided matrix lies inside a slice, all products being representable.
fn fits(
    len: usize,
    (rows, row_pitch): (usize, usize),
    (columns, column_pitch): (usize, usize),
) -> bool {
    let last = |count: usize, pitch: usize| count.checked_sub(1)?.checked_mul(pitch);
    match (last(rows, row_pitch), last(columns, column_pitch)) {
        (Some(r), Some(c)) => r
            .checked_add(c)
            .is_some_and(|at| at < len && at <= isize::MAX as usize),
        (_, _) => false,
    }
}

/// `out = a·b`, or `out += a·b`, for `a` of `m`×`k` and `b` of `k`×`n`; rows of `out` are `pitch` apart.
///
/// # Panics
/// Where a matrix does not lie inside its slice.
pub fn multiply<T: Real>(
    (m, n, k): (usize, usize, usize),
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    (out, pitch): (&mut [T], usize),
    accumulate: bool,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(
        pitch >= n && fits(out.len(), (m, pitch), (n, 1)),
        "the product leaves its slice"
    );
    if k == 0 {
        if !accumulate {
            for row in out.chunks_mut(pitch).take(m) {
                row[..n].fill(T::default());
            }
        }
        return;
    }
    assert!(
        a.holds(m, k) && b.holds(k, n),
        "an operand leaves its slice"
    );
    // SAFETY:
    // - `a`, `b` and `out` hold every element that the extents and strides reach: asserted above, and
    //   no stride is negative;
    // - `out` is borrowed mutably, so it overlaps neither operand, and its rows do not overlap
    //   (`pitch ≥ n`);
    // - strides fit `isize`: a stride beyond it belongs to an extent of 1 and is never multiplied.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            pitch as isize,
            accumulate,
            a.data.as_ptr(),
            a.columns as isize,
            a.rows as isize,
            b.data.as_ptr(),
            b.columns as isize,
            b.rows as isize,
            T::ONE,
            T::ONE,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_in_every_layout_equal_the_definition() {
        for (m, n, k) in [
            (1, 1, 1),
            (3, 5, 7),
            (17, 33, 9),
            (64, 49, 70),
            (2, 300, 1),
            (5, 4, 0),
        ] {
            let a: Vec<f64> = (0..m * k)
                .map(|i| ((i * 7 + 3) % 19) as f64 - 9.0)
                .collect();
            let b: Vec<f64> = (0..k * n)
                .map(|i| ((i * 5 + 1) % 23) as f64 - 11.0)
                .collect();
            let want =
                |r: usize, c: usize| -> f64 { (0..k).map(|i| a[r * k + i] * b[i * n + c]).sum() };
            let across = |data: &[f64], rows: usize, columns: usize| -> Vec<f64> {
                (0..rows * columns)
                    .map(|i| data[i % rows * columns + i / rows])
                    .collect()
            };
            let (at, bt) = (across(&a, m, k), across(&b, k, n));
            for layout in 0..4 {
                let left = if layout & 1 == 0 {
                    Matrix::row_major(&a, k)
                } else {
                    Matrix::row_major(&at, m).transposed()
                };
                let right = if layout & 2 == 0 {
                    Matrix::row_major(&b, n)
                } else {
                    Matrix::row_major(&bt, k).transposed()
                };
                let pitch = n + 3;
                let mut out = vec![1.0; m * pitch];
                multiply((m, n, k), left, right, (&mut out, pitch), false);
                multiply((m, n, k), left, right, (&mut out, pitch), true);
                for r in 0..m {
                    for c in 0..pitch {
                        let expected = if c < n { 2.0 * want(r, c) } else { 1.0 };
                        assert_eq!(out[r * pitch + c], expected, "{m} {n} {k} {layout}");
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "an operand leaves its slice")]
    fn an_operand_outside_its_slice_is_refused() {
        let (a, b) = ([0f32; 5], [0f32; 6]);
        let mut out = [0f32; 4];
        multiply(
            (2, 2, 3),
            Matrix::row_major(&a, 3),
            Matrix::row_major(&b, 2),
            (&mut out, 2),
            false,
        );
    }
}

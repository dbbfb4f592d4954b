//! Biases with the input's zero point folded in.
//!
//! `Σ (x − z)·w + b = Σ (x + o)·w + (b − (z + o)·Σw)`, where `o` is what a kernel adds to activations as it
//! reads them. All of it is exact modulo 2^32, and the true value fits.

use super::ConvSpec;

/// The biases of a layer, one for each packed column.
#[derive(Debug)]
pub(super) struct Folded {
    bias: Vec<i32>,
    /// Sum of the weights of each column.
    sums: Vec<i32>,
    folded: Vec<i32>,
    zero_point: i32,
    offset: i32,
}

impl Folded {
    /// `column` yields the bias and the weights of each packed column, none for padding.
    pub(super) fn new<W: Iterator<Item = i16>>(
        columns: usize,
        zero_point: i32,
        offset: i32,
        column: impl Fn(usize) -> Option<(i32, W)>,
    ) -> Self {
        let (mut bias, mut sums) = (vec![0; columns], vec![0i32; columns]);
        for (index, (bias, sum)) in bias.iter_mut().zip(&mut sums).enumerate() {
            if let Some((value, weights)) = column(index) {
                *bias = value;
                *sum = weights.fold(0, |sum, weight| sum.wrapping_add(i32::from(weight)));
            }
        }
        let mut folded = vec![0; columns];
        fold(&bias, &sums, zero_point + offset, &mut folded);
        Folded {
            bias,
            sums,
            folded,
            zero_point,
            offset,
        }
    }

    /// Those of a convolution whose packed columns are channels with all their taps.
    pub(super) fn of_columns(spec: &ConvSpec<'_>, columns: &[Option<usize>], offset: i32) -> Self {
        let depth = spec.shape.depth();
        Folded::new(columns.len(), spec.input_zero_point, offset, |column| {
            let channel = columns[column]?;
            let bias = spec.bias.get(channel).copied().unwrap_or(0);
            let weights = (0..depth).map(move |k| spec.weights.get(channel, k, depth));
            Some((bias, weights))
        })
    }

    pub(super) fn columns(&self) -> usize {
        self.folded.len()
    }

    /// The biases for a zero point; `scratch`, one value for each column, is used when it is not the one
    /// that was prepared.
    pub(super) fn get<'a>(&'a self, zero_point: i32, scratch: &'a mut [i32]) -> &'a [i32] {
        if zero_point == self.zero_point {
            return &self.folded;
        }
        fold(&self.bias, &self.sums, zero_point + self.offset, scratch);
        scratch
    }
}

fn fold(bias: &[i32], sums: &[i32], factor: i32, folded: &mut [i32]) {
    for ((folded, bias), sum) in folded.iter_mut().zip(bias).zip(sums) {
        *folded = bias.wrapping_sub(sum.wrapping_mul(factor));
    }
}

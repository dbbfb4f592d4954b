//! What a layer's inputs have in common, gathered as they stream by: the Gram matrix `G = XᵀX/N` and the
//! mean. The squared error that rounded weights make in the output is `tr((Ŵ−W)·G·(Ŵ−W)ᵀ)`, so nothing else
//! of the data is needed to round well.

use rayon::prelude::*;

use super::error::{WeightError, sized};
use crate::exec::kernels::{Matrix, multiply};

/// Columns of the matrix that are computed together, whatever the number of threads.
const PANEL: usize = 128;
/// Elements of inputs that wait for a product.
const WAITING: usize = 1 << 21;

/// Sums over the inputs of a layer, or of one group of a grouped convolution. Inputs are summed in chunks of
/// a fixed number, so results do not depend on how they are split into batches.
#[derive(Clone, Debug)]
pub struct Gram {
    k: usize,
    /// Inputs a chunk.
    chunk: usize,
    /// `[K, chunk]`, the first `filled` of each row.
    waiting: Vec<f32>,
    filled: usize,
    count: u64,
    /// Upper triangle of `[K, K]`, by panels of rows.
    sums: Vec<f32>,
    totals: Vec<f64>,
}

/// The second moments and the mean of a layer's inputs.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    /// Inputs of an output.
    pub k: usize,
    /// Inputs that were seen.
    pub count: u64,
    /// `XᵀX/N`, `[K, K]`.
    pub gram: Vec<f32>,
    /// Mean of each input.
    pub mean: Vec<f64>,
}

impl Gram {
    /// No inputs yet, of `k` elements each.
    pub fn new(k: usize) -> Self {
        let chunk = (WAITING / k.max(1)).clamp(64, 1024);
        Gram {
            k,
            chunk,
            waiting: vec![0.0; k * chunk],
            filled: 0,
            count: 0,
            sums: vec![0.0; k * k],
            totals: vec![0.0; k],
        }
    }

    /// Adds inputs, `[n, K]`.
    ///
    /// # Errors
    /// Refuses a slice of another number of elements than a multiple of K.
    pub fn add_rows(&mut self, inputs: &[f32]) -> Result<(), WeightError> {
        let width = self.k;
        let n = inputs.len() / width.max(1);
        sized("inputs", inputs.len(), n * width)?;
        self.add(n, |k, from, to| {
            for (at, slot) in to.iter_mut().enumerate() {
                *slot = inputs[(from + at) * width + k];
            }
        });
        Ok(())
    }

    /// Adds inputs, `[K, n]`: the columns that im2col gives.
    ///
    /// # Errors
    /// Refuses a slice of another number of elements than a multiple of K.
    pub fn add_columns(&mut self, inputs: &[f32]) -> Result<(), WeightError> {
        let n = inputs.len() / self.k.max(1);
        sized("inputs", inputs.len(), n * self.k)?;
        self.add(n, |k, from, to| {
            to.copy_from_slice(&inputs[k * n + from..][..to.len()]);
        });
        Ok(())
    }

    /// Takes `n` inputs; `copy` gives element `k` of those from an index on.
    fn add(&mut self, n: usize, copy: impl Fn(usize, usize, &mut [f32])) {
        let mut from = 0;
        while from < n {
            let take = (n - from).min(self.chunk - self.filled);
            for (k, row) in self.waiting.chunks_exact_mut(self.chunk).enumerate() {
                copy(k, from, &mut row[self.filled..self.filled + take]);
            }
            from += take;
            self.filled += take;
            if self.filled == self.chunk {
                self.flush();
            }
        }
    }

    fn flush(&mut self) {
        let (k, n, chunk) = (self.k, self.filled, self.chunk);
        let waiting = &self.waiting;
        let panels = self.sums.par_chunks_mut(PANEL * k.max(1));
        panels.enumerate().for_each(|(panel, out)| {
            let from = panel * PANEL;
            let rows = out.len() / k;
            let x = Matrix::row_major(&waiting[from * chunk..], chunk);
            let shape = (rows, k - from, n);
            multiply(shape, x, x.transposed(), (&mut out[from..], k), true);
        });
        for (total, row) in self.totals.iter_mut().zip(waiting.chunks_exact(chunk)) {
            *total += row[..n].iter().map(|&x| f64::from(x)).sum::<f64>();
        }
        self.count += n as u64;
        self.filled = 0;
    }

    /// The moments of all inputs; zeros where there were none.
    ///
    /// # Errors
    /// Names the first input that is not finite, or whose square is not.
    pub fn finish(mut self) -> Result<Moments, WeightError> {
        if self.filled > 0 {
            self.flush();
        }
        let k = self.k;
        let inverse = 1.0 / self.count.max(1) as f64;
        let mut gram = self.sums;
        for r in 0..k {
            for c in r..k {
                let mean = (f64::from(gram[r * k + c]) * inverse) as f32;
                gram[r * k + c] = mean;
                gram[c * k + r] = mean;
            }
        }
        let mean: Vec<f64> = self.totals.iter().map(|total| total * inverse).collect();
        let finite = |r: &usize| {
            mean[*r].is_finite() && gram[r * k..(r + 1) * k].iter().all(|g| g.is_finite())
        };
        if let Some(r) = (0..k).find(|r| !finite(r)) {
            return Err(WeightError::Moments(r));
        }
        Ok(Moments {
            k,
            count: self.count,
            gram,
            mean,
        })
    }
}

impl Moments {
    /// Mean square of each input: the diagonal.
    pub fn importance(&self) -> Vec<f32> {
        (0..self.k).map(|i| self.gram[i * self.k + i]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn inputs(n: usize, k: usize) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64((n * 1000 + k) as u64);
        (0..n * k)
            .map(|_| rng.random::<f32>() * 2.0 - 0.7)
            .collect()
    }

    #[test]
    fn moments_equal_naive_sums() {
        for (n, k) in [(1, 1), (5, 3), (2100, 9), (700, 130), (70, 300)] {
            let x = inputs(n, k);
            let mut gram = Gram::new(k);
            gram.add_rows(&x).unwrap();
            let moments = gram.finish().unwrap();
            assert_eq!((moments.k, moments.count), (k, n as u64));
            for r in 0..k {
                let mean = x.chunks(k).map(|x| f64::from(x[r])).sum::<f64>() / n as f64;
                assert!((moments.mean[r] - mean).abs() < 1e-12);
                for c in 0..k {
                    let products = x.chunks(k).map(|x| f64::from(x[r]) * f64::from(x[c]));
                    let want = products.sum::<f64>() / n as f64;
                    let got = f64::from(moments.gram[r * k + c]);
                    assert!((got - want).abs() < 1e-6, "{n} {k} {r} {c}: {got} {want}");
                }
            }
            let diagonal: Vec<f32> = (0..k).map(|i| moments.gram[i * k + i]).collect();
            assert_eq!(moments.importance(), diagonal);
        }
    }

    #[test]
    fn neither_batches_nor_layout_change_a_bit() {
        let (n, k) = (2500, 37);
        let x = inputs(n, k);
        let mut whole = Gram::new(k);
        whole.add_rows(&x).unwrap();
        let whole = whole.finish().unwrap();
        let mut parts = Gram::new(k);
        for (i, batch) in x.chunks(k * 333).enumerate() {
            let n = batch.len() / k;
            if i % 2 == 0 {
                parts.add_rows(batch).unwrap();
            } else {
                let columns: Vec<f32> =
                    (0..batch.len()).map(|i| batch[i % n * k + i / n]).collect();
                parts.add_columns(&columns).unwrap();
            }
        }
        assert_eq!(parts.finish().unwrap(), whole);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut gram = Gram::new(3);
        assert!(gram.add_rows(&[1.0; 4]).is_err());
        assert!(gram.add_columns(&[1.0; 5]).is_err());
        gram.add_rows(&[]).unwrap();
        gram.add_rows(&[1.0, f32::NAN, 2.0]).unwrap();
        assert!(matches!(gram.finish(), Err(WeightError::Moments(0 | 1))));
        let none = Gram::new(2).finish().unwrap();
        assert_eq!((none.gram, none.mean), (vec![0.0; 4], vec![0.0; 2]));
    }
}

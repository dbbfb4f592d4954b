//! Weights as indices of shared centroids: k-means of single weights, or of runs of `width` weights (product
//! quantization; activation-aware as in Stock et al. 2020, "And the bit goes down").
//!
//! Channels are normalised to one spread first, so that all share a codebook and each keeps a scale. The
//! objective is `Σ h·(w − ŵ)²`, `h` the importance of the weight's input; every step lowers it, but for the
//! last, in which centroids become 8-bit integers.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use requant_import::float::CodebookWeights;

use super::error::{WeightError, check, sized};
use super::grid::settle;

/// Most centroids: an index is a byte.
const MOST: usize = 256;
/// Rounds of assignment and means, at most.
const ROUNDS: usize = 30;
/// Largest magnitude of a centroid's element.
const LARGEST: f32 = 127.0;

/// Weights of a layer as a codebook with a scale an output channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Coded {
    /// Indices and centroids.
    pub codebook: CodebookWeights,
    /// One an output channel.
    pub scales: Vec<f32>,
}

impl Coded {
    /// The integers `[O, K]` that the indices stand for.
    pub fn expanded(&self, k: usize) -> Vec<i8> {
        let book = &self.codebook;
        let of = |indices: &[u8]| -> Vec<i8> {
            let run = |&i: &u8| &book.centroids[usize::from(i) * book.width..][..book.width];
            indices.iter().flat_map(run).copied().take(k).collect()
        };
        let row = k.div_ceil(book.width.max(1)).max(1);
        book.indices.chunks(row).flat_map(of).collect()
    }

    /// The real weights that they stand for.
    pub fn reals(&self, k: usize) -> Vec<f32> {
        let integers = self.expanded(k);
        let rows = integers.chunks(k.max(1)).zip(&self.scales);
        rows.flat_map(|(row, scale)| row.iter().map(move |&q| scale * f32::from(q)))
            .collect()
    }
}

/// Vectors to be clustered: elements and their weights, `[n, width]` each.
struct Vectors {
    width: usize,
    elements: Vec<f32>,
    factors: Vec<f32>,
}

/// Makes a codebook of at most `centroids` runs of `width` weights for `[rows, K]` weights in the order in which
/// they are stored. `importance` has one factor for each of the K inputs, one run of K for each of as many
/// groups as divide the rows, or is empty.
///
/// # Errors
/// Refuses weights that are not finite, slices that do not fit, more than 256 centroids or none.
pub fn codebook(
    weights: &[f32],
    rows: usize,
    importance: &[f32],
    centroids: usize,
    width: usize,
    seed: u64,
) -> Result<Coded, WeightError> {
    let k = check(weights, rows)?;
    if centroids == 0 || centroids > MOST || width == 0 || width > k {
        return Err(WeightError::Codebook { centroids, width });
    }
    let groups = (importance.len() / k).max(1);
    if !importance.is_empty() {
        sized("importance", importance.len(), groups * k)?;
        sized("output channels", rows, rows / groups * groups)?;
    }
    let factor = |row: usize, i: usize| match importance {
        [] => 1.0,
        all => all[row / (rows / groups) * k + i],
    };
    let spreads: Vec<f32> = weights.chunks(k).map(spread).collect();
    let runs = k.div_ceil(width);
    let mut vectors = Vectors {
        width,
        elements: vec![0.0; rows * runs * width],
        factors: vec![0.0; rows * runs * width],
    };
    for (row, weights) in weights.chunks(k).enumerate() {
        let at = row * runs * width;
        for (i, &w) in weights.iter().enumerate() {
            vectors.elements[at + i] = w / spreads[row];
            vectors.factors[at + i] = factor(row, i) * spreads[row] * spreads[row];
        }
    }
    let mut centres = vectors.first_centres(centroids, seed);
    vectors.refine(&mut centres);

    let largest = centres.iter().fold(0f32, |most, c| most.max(c.abs()));
    let unit = if largest > 0.0 {
        largest / LARGEST
    } else {
        1.0
    };
    let integers: Vec<i8> = centres
        .iter()
        .map(|c| (c / unit).round_ties_even().clamp(-LARGEST, LARGEST) as i8)
        .collect();
    let rounded: Vec<f32> = integers.iter().map(|&q| f32::from(q) * unit).collect();
    let (indices, _) = vectors.assign(&rounded);
    let mut coded = Coded {
        codebook: CodebookWeights {
            indices: indices.iter().map(|&i| i as u8).collect(),
            centroids: integers,
            width,
        },
        scales: spreads.iter().map(|spread| spread * unit).collect(),
    };
    let expanded = coded.expanded(k);
    for (row, (w, q)) in weights.chunks(k).zip(expanded.chunks(k)).enumerate() {
        if let Some(scale) = refit(w, q, |i| factor(row, i)) {
            coded.scales[row] = scale;
        }
    }
    settle(&mut coded.scales);
    Ok(coded)
}

/// Root mean square of a channel; 1 for zeros alone.
fn spread(row: &[f32]) -> f32 {
    let sum: f64 = row.iter().map(|&w| f64::from(w) * f64::from(w)).sum();
    let spread = (sum / row.len() as f64).sqrt() as f32;
    if spread.is_normal() { spread } else { 1.0 }
}

/// The scale of least error for a channel's integers, where there is one.
fn refit(weights: &[f32], integers: &[i8], factor: impl Fn(usize) -> f32) -> Option<f32> {
    let (mut along, mut square) = (0.0, 0.0);
    for (i, (&w, &q)) in weights.iter().zip(integers).enumerate() {
        let (h, q) = (f64::from(factor(i)), f64::from(q));
        along += h * f64::from(w) * q;
        square += h * q * q;
    }
    let scale = (along / square) as f32;
    (scale.is_finite() && scale > 0.0).then_some(scale)
}

impl Vectors {
    fn count(&self) -> usize {
        self.elements.len() / self.width
    }

    fn vector(&self, i: usize) -> (&[f32], &[f32]) {
        let at = i * self.width..(i + 1) * self.width;
        (&self.elements[at.clone()], &self.factors[at])
    }

    fn distance(&self, i: usize, centre: &[f32]) -> f32 {
        let (x, h) = self.vector(i);
        let terms = x.iter().zip(h).zip(centre);
        terms.map(|((x, h), c)| h * (x - c) * (x - c)).sum()
    }

    /// k-means++ (Arthur and Vassilvitskii 2007): each next centre is drawn by its distance to those there are.
    /// Fewer than asked for where there are no more different vectors.
    fn first_centres(&self, count: usize, seed: u64) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut centres = self.elements[..self.width].to_vec();
        let mut distances = vec![f32::INFINITY; self.count()];
        while centres.len() < count * self.width {
            let last = &centres[centres.len() - self.width..];
            let nearer = |(i, d): (usize, &mut f32)| *d = d.min(self.distance(i, last));
            distances.par_iter_mut().enumerate().for_each(nearer);
            let total: f64 = distances.iter().map(|&d| f64::from(d)).sum();
            if !(total > 0.0 && total.is_finite()) {
                break;
            }
            let mut left = rng.random::<f64>() * total;
            let drawn = distances.iter().position(|&d| {
                left -= f64::from(d);
                d > 0.0 && left < 0.0
            });
            // Rounding may leave the last one undrawn.
            let last = || distances.iter().rposition(|&d| d > 0.0);
            let Some(i) = drawn.or_else(last) else {
                break;
            };
            centres.extend_from_slice(self.vector(i).0);
        }
        centres
    }

    /// The nearest centre of each vector, the first of equals, and its distance.
    fn assign(&self, centres: &[f32]) -> (Vec<usize>, Vec<f32>) {
        let (width, n) = (self.width, centres.len() / self.width);
        // Element by element of all centres, so that distances are summed for many at once.
        let across: Vec<f32> = (0..centres.len())
            .map(|i| centres[i % n * width + i / n])
            .collect();
        let near = |distances: &mut Vec<f32>, i: usize| {
            let (x, h) = self.vector(i);
            pulp::Arch::new().dispatch(|| {
                distances.fill(0.0);
                for ((x, h), row) in x.iter().zip(h).zip(across.chunks_exact(n)) {
                    for (d, c) in distances.iter_mut().zip(row) {
                        *d += h * (x - c) * (x - c);
                    }
                }
                let least = distances
                    .iter()
                    .fold(f32::INFINITY, |least, &d| d.min(least));
                let index = distances.iter().position(|&d| d == least);
                (index.unwrap_or_default(), least)
            })
        };
        let vectors = (0..self.count()).into_par_iter();
        vectors.map_init(|| vec![0f32; n], near).unzip()
    }

    /// Lloyd's iteration; a centre that nobody is nearest to moves to the vector that is worst off. Gives the
    /// objective of every round.
    fn refine(&self, centres: &mut [f32]) -> Vec<f64> {
        let (width, mut objectives) = (self.width, Vec::new());
        let mut before = Vec::new();
        for _ in 0..ROUNDS {
            let (indices, mut distances) = self.assign(centres);
            objectives.push(distances.iter().map(|&d| f64::from(d)).sum());
            if indices == before {
                break;
            }
            let mut sums = vec![(0f64, 0f64); centres.len()];
            let mut members = vec![0usize; centres.len() / width];
            for (i, &centre) in indices.iter().enumerate() {
                let (x, h) = self.vector(i);
                members[centre] += 1;
                let sums = &mut sums[centre * width..(centre + 1) * width];
                for ((sum, &x), &h) in sums.iter_mut().zip(x).zip(h) {
                    sum.0 += f64::from(h) * f64::from(x);
                    sum.1 += f64::from(h);
                }
            }
            for (centre, (sum, factor)) in centres.iter_mut().zip(&sums) {
                if *factor > 0.0 {
                    *centre = (sum / factor) as f32;
                }
            }
            for (centre, _) in members.iter().enumerate().filter(|&(_, &n)| n == 0) {
                let worst = (0..distances.len())
                    .max_by(|&a, &b| distances[a].total_cmp(&distances[b]).then(b.cmp(&a)));
                if let Some(worst) = worst {
                    let to = &mut centres[centre * width..(centre + 1) * width];
                    to.copy_from_slice(self.vector(worst).0);
                    distances[worst] = 0.0;
                }
            }
            before = indices;
        }
        objectives
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uniform(seed: u64, n: usize) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..n).map(|_| rng.random::<f32>() * 2.0 - 1.0).collect()
    }

    fn vectors(seed: u64, n: usize, width: usize) -> Vectors {
        Vectors {
            width,
            elements: uniform(seed, n * width),
            factors: uniform(seed + 1, n * width)
                .iter()
                .map(|x| x.abs())
                .collect(),
        }
    }

    fn error(weights: &[f32], coded: &Coded, k: usize) -> f64 {
        let pairs = weights.iter().zip(coded.reals(k));
        pairs.map(|(w, r)| f64::from(w - r).powi(2)).sum()
    }

    #[test]
    fn the_objective_only_falls() {
        for (width, centroids) in [(1, 16), (4, 32), (9, 7), (3, 256)] {
            let vectors = vectors(width as u64, 600, width);
            let mut centres = vectors.first_centres(centroids, 1);
            assert_eq!(centres.len(), centroids * width);
            let objectives = vectors.refine(&mut centres);
            let falls = |pair: &[f64]| pair[1] <= pair[0] * 1.000_001;
            assert!(objectives.windows(2).all(falls), "{objectives:?}");
            assert!(objectives[objectives.len() - 1] < 0.95 * objectives[0]);
        }
    }

    #[test]
    fn every_vector_has_its_nearest_centre() {
        let vectors = vectors(5, 200, 3);
        let centres = uniform(9, 20 * 3);
        let (indices, distances) = vectors.assign(&centres);
        for i in 0..200 {
            let of = |c: usize| vectors.distance(i, &centres[c * 3..][..3]);
            let least = (0..20).map(of).fold(f32::INFINITY, f32::min);
            assert!((of(indices[i]) - least).abs() <= 1e-6 && (distances[i] - least).abs() <= 1e-6);
        }
    }

    #[test]
    fn an_idle_centre_goes_where_the_error_is() {
        let vectors = Vectors {
            width: 1,
            elements: vec![0.0, 0.1, 5.0, 9.0],
            factors: vec![1.0; 4],
        };
        let mut centres = vec![0.0, 0.05, 1e6];
        vectors.refine(&mut centres);
        centres.sort_by(f32::total_cmp);
        assert_eq!(centres, [0.05, 5.0, 9.0]);
    }

    #[test]
    fn codebooks_of_odd_shapes() {
        for (rows, k, centroids, width) in
            [(3, 10, 16, 4), (1, 5, 2, 5), (8, 27, 256, 1), (2, 7, 9, 3)]
        {
            let weights = uniform(rows as u64, rows * k);
            let coded = codebook(&weights, rows, &[], centroids, width, 0).unwrap();
            let book = &coded.codebook;
            assert_eq!(book.indices.len(), rows * k.div_ceil(width));
            assert_eq!((book.width, coded.scales.len()), (width, rows));
            let n = book.centroids.len() / width;
            assert!(n <= centroids && book.indices.iter().all(|&i| usize::from(i) < n));
            assert!(book.centroids.iter().all(|&c| c >= -127));
            assert_eq!(coded.expanded(k).len(), rows * k);
            let power: f64 = weights.iter().map(|&w| f64::from(w).powi(2)).sum();
            assert!(
                error(&weights, &coded, k) < 0.5 * power,
                "{rows} {k} {centroids} {width}"
            );
        }
    }

    #[test]
    fn more_centroids_and_important_inputs_err_less() {
        let (rows, k) = (32, 36);
        let weights = uniform(21, rows * k);
        let of = |n| {
            error(
                &weights,
                &codebook(&weights, rows, &[], n, 2, 0).unwrap(),
                k,
            )
        };
        assert!(of(256) < 0.5 * of(64) && of(64) < 0.5 * of(8));
        assert!(of(256) < 0.01 * weights.iter().map(|w| f64::from(w * w)).sum::<f64>());
        let mut importance = vec![1.0; k];
        importance[..6].fill(50.0);
        let aware = codebook(&weights, rows, &importance, 32, 2, 0).unwrap();
        let blind = codebook(&weights, rows, &[], 32, 2, 0).unwrap();
        let first = |coded: &Coded| -> f64 {
            let pairs = weights.iter().zip(coded.reals(k)).enumerate();
            let important = pairs.filter(|(i, _)| i % k < 6);
            important.map(|(_, (w, r))| f64::from(w - r).powi(2)).sum()
        };
        assert!(first(&aware) < 0.7 * first(&blind));
    }

    #[test]
    fn few_different_weights_and_zeros() {
        let weights = [0.5, -0.5, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0];
        let coded = codebook(&weights, 2, &[], 256, 1, 3).unwrap();
        assert!(coded.codebook.centroids.len() <= 3);
        assert!(error(&weights, &coded, 4) < 1e-9);
        assert!(coded.scales.iter().all(|s| s.is_normal()));
        let zeros = codebook(&[0.0; 6], 2, &[0.0; 3], 4, 2, 0).unwrap();
        assert_eq!(zeros.reals(3), [0.0; 6]);
        assert_eq!(codebook(&weights, 2, &[], 256, 1, 3), Ok(coded));
        for (n, width) in [(0, 1), (257, 1), (4, 0), (4, 5)] {
            let refused = Err(WeightError::Codebook {
                centroids: n,
                width,
            });
            assert_eq!(codebook(&weights, 2, &[], n, width, 0), refused);
        }
        assert!(codebook(&weights, 2, &[1.0; 3], 4, 1, 0).is_err());
        assert!(codebook(&[f32::NAN], 1, &[], 4, 1, 0).is_err());
    }
}

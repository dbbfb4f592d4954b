//! Layer normalization from integers to integers: mean, variance and reciprocal square root of a row are
//! exact or rounded once, in 64 bits.
//!
//! For a row of `C` values `q` (zero points cancel) of scale `s_x`:
//! `A_i = C·q_i − Σq`; `V = C·Σq² − (Σq)² + max(1, rne(ε·C²/s_x²))`, so that
//! `(x_i − μ)/√(σ² + ε) = A_i/√V`. With `t = (clz64(V) − 2) div 2`, `D = isqrt(V·2^(2t))` and
//! `I = ⌊2^61/D⌋`, the normalised value is `h = (A·I + 2^(50−t)) >> (51−t)`, in steps of 2^-10, and the
//! accumulator `h·γ + β`. As `|A| ≤ √(C−1)·√V`, `|h|` is at most `⌈√C⌉·2^10`.
//!
//! I-BERT (Kim et al. 2021) has integer square roots in layer norms by Newton's iteration; here the root is
//! the exact floor and the quotient is taken once a row.

/// Longest row.
pub const MAX_CHANNELS: usize = 1 << 14;

/// Bits of the fraction of normalised values.
pub const FRACTION: u32 = 10;

/// Accumulators are below this.
const LIMIT: i64 = 1 << 31;

/// Most that a step of γ may be; 16 bits.
const MOST: f64 = 32767.0;

/// What is added to the variance of a row of `channels` values of scale `scale`:
/// `max(1, rne(ε·C²/s_x²))`; none where that is negative, not finite or 2^61 and more.
pub fn epsilon(epsilon: f32, channels: usize, scale: f32) -> Option<u64> {
    let (count, scale) = (channels as f64, f64::from(scale));
    let steps = libm::rint(f64::from(epsilon) * (count * count) / (scale * scale));
    let fits = (0.0..LARGEST_EPSILON as f64).contains(&steps);
    fits.then_some((steps as u64).max(1))
}

/// What `ε` must be below, in steps: rows of 16 bits add at most 2^58.
pub const LARGEST_EPSILON: u64 = 1 << 61;

/// Factor and offset of each channel as integers.
#[derive(Clone, Debug, PartialEq)]
pub struct Coefficients {
    /// γ, in steps of `scale`.
    pub gamma: Vec<i32>,
    /// β, in steps of `scale·2^-10`, which are the accumulator's.
    pub beta: Vec<i32>,
    /// Real value of a step of γ.
    pub scale: f64,
}

/// γ and β of a layer norm over `gamma.len()` channels as integers with at most 16 bits for γ, such that
/// [`is_bounded`] holds; none where one of them is not finite.
pub fn coefficients(gamma: &[f32], beta: &[f32]) -> Option<Coefficients> {
    let largest = |values: &[f32]| {
        values
            .iter()
            .map(|&value| f64::from(value).abs())
            .fold(0.0, f64::max)
    };
    let finite = gamma.iter().chain(beta).all(|value| value.is_finite());
    if !finite || gamma.len() != beta.len() {
        return None;
    }
    let root = root(gamma.len()) as f64;
    let (most, offset) = (largest(gamma), largest(beta));
    let unit = f64::from(1 << FRACTION);
    // Roundings of γ and β add half a step each.
    let room = LIMIT as f64 / unit - root - 1.0;
    let needed = (most / MOST).max((root * most + offset) / room);
    let scale = if needed > 0.0 { needed } else { 1.0 };
    let step = |value: f32, scale: f64| libm::rint(f64::from(value) / scale) as i32;
    Some(Coefficients {
        gamma: gamma.iter().map(|&value| step(value, scale)).collect(),
        beta: beta
            .iter()
            .map(|&value| step(value, scale / unit))
            .collect(),
        scale,
    })
}

/// `⌈√C⌉`.
fn root(channels: usize) -> u64 {
    let floor = (channels as u64).isqrt();
    floor + u64::from(floor * floor < channels as u64)
}

/// Whether accumulators of these coefficients are proven below 2^31:
/// `⌈√C⌉·2^10·max|γ| + max|β| < 2^31`.
pub fn is_bounded(gamma: &[i32], beta: &[i32]) -> bool {
    let largest = |values: &[i32]| {
        values
            .iter()
            .map(|v| i64::from(*v).abs())
            .max()
            .unwrap_or(0)
    };
    let root = root(gamma.len()) as i64;
    let product = (root << FRACTION).checked_mul(largest(gamma));
    product.is_some_and(|product| product + largest(beta) < LIMIT)
}

/// What normalises the values of one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Number of values.
    pub channels: i64,
    /// `Σq`.
    pub sum: i64,
    /// `I`, in `(2^30, 2^31]`.
    pub inverse: i64,
    /// `51 − t`, in `21..=51`.
    pub shift: u32,
}

impl Row {
    /// For `channels` values (at most [`MAX_CHANNELS`], of at most 16 bits) with this sum and sum of
    /// squares, and what [`epsilon`] gave (at least 1, below [`LARGEST_EPSILON`]).
    pub fn new(channels: usize, sum: i64, squares: i64, epsilon: u64) -> Self {
        let count = channels as i64;
        let variance = (count * squares - sum * sum) as u64 + epsilon;
        let t = (variance.leading_zeros() - 2) / 2;
        let root = (variance << (2 * t)).isqrt();
        Row {
            channels: count,
            sum,
            inverse: ((1u64 << 61) / root) as i64,
            shift: 51 - t,
        }
    }

    /// The normalised value of `q` in steps of 2^-10.
    pub fn normalized(self, q: i32) -> i32 {
        let centred = self.channels * i64::from(q) - self.sum;
        ((centred * self.inverse + (1 << (self.shift - 1))) >> self.shift) as i32
    }
}

/// Layer normalization of one row; `values` yields it in index order twice, `write` takes the accumulators,
/// in steps of γ's scale times 2^-10. `gamma` and `beta` have an element for each value, and
/// [`is_bounded`] holds.
pub fn layer_norm(
    values: impl Iterator<Item = i32> + Clone,
    epsilon: u64,
    (gamma, beta): (&[i32], &[i32]),
    mut write: impl FnMut(usize, i32),
) {
    let (mut sum, mut squares) = (0i64, 0i64);
    for q in values.clone() {
        sum += i64::from(q);
        squares += i64::from(q) * i64::from(q);
    }
    let row = Row::new(gamma.len(), sum, squares, epsilon);
    for (index, (q, (g, b))) in values.zip(gamma.iter().zip(beta)).enumerate() {
        write(index, row.normalized(q) * g + b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bits(state: &mut u64) -> u64 {
        *state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        *state >> 33
    }

    /// Rows of all lengths, widths and spreads, constant ones and one outlier included, against f64.
    #[test]
    fn normalized_values_are_within_a_step_of_the_reals() {
        let mut state = 1u64;
        for round in 0..6000 {
            let channels = 1 + bits(&mut state) as usize % [3, 40, 1000][round % 3];
            let channels = if round == 0 { MAX_CHANNELS } else { channels };
            let width = [2u64, 16, 256, 65536][bits(&mut state) as usize % 4];
            let base = -((width / 2) as i32);
            let mut values: Vec<i32> = (0..channels)
                .map(|_| base + (bits(&mut state) % width) as i32)
                .collect();
            match bits(&mut state) % 4 {
                0 => values.fill(base),
                1 => values[1..].fill(0),
                _ => {}
            }
            let eps = [0f32, 1e-12, 1e-5, 0.1][bits(&mut state) as usize % 4];
            let scale = [1e-4f32, 0.03, 1.0][bits(&mut state) as usize % 3];
            let eps = epsilon(eps, channels, scale).unwrap();
            let (count, n) = (channels as i128, channels as f64);
            let sum: i128 = values.iter().map(|&q| i128::from(q)).sum();
            let squares: i128 = values.iter().map(|&q| i128::from(q) * i128::from(q)).sum();
            let variance = (count * squares - sum * sum + i128::from(eps)) as f64;
            let row = Row::new(channels, sum as i64, squares as i64, eps);
            let most = (root(channels) << FRACTION) as i32;
            for &q in &values {
                let want = (n * f64::from(q) - sum as f64) / variance.sqrt() * 1024.0;
                let got = row.normalized(q);
                assert!(
                    (f64::from(got) - want).abs() <= 0.51,
                    "{channels} {q}: {got} {want}"
                );
                assert!(got.abs() <= most);
            }
        }
    }

    #[test]
    fn the_widest_rows_do_not_overflow() {
        for pattern in [
            [i32::from(i16::MIN); 2],
            [i32::from(i16::MIN), i32::from(i16::MAX)],
        ] {
            for eps in [1, LARGEST_EPSILON - 1] {
                let values = pattern.iter().copied().cycle().take(MAX_CHANNELS);
                let ones = vec![1; MAX_CHANNELS];
                let zeros = vec![0; MAX_CHANNELS];
                layer_norm(values, eps, (&ones, &zeros), |_, acc| {
                    assert!(acc.abs() <= 1024, "{acc}");
                });
            }
        }
    }

    #[test]
    fn coefficients_are_close_and_bounded() {
        let cases: [(Vec<f32>, Vec<f32>); 6] = [
            (vec![1.0; 384], vec![0.0; 384]),
            (vec![0.5, -2.0, 1e-3], vec![100.0, -3.0, 0.25]),
            (vec![0.0; 4], vec![0.0; 4]),
            (vec![0.0; 4], vec![1.0, -1.0, 0.5, 0.0]),
            (vec![1e-30; MAX_CHANNELS], vec![1e30; MAX_CHANNELS]),
            (vec![3.0; MAX_CHANNELS], vec![-3.0; MAX_CHANNELS]),
        ];
        for (gamma, beta) in cases {
            let made = coefficients(&gamma, &beta).unwrap();
            assert!(is_bounded(&made.gamma, &made.beta), "{made:?}");
            for (real, step, scale) in gamma
                .iter()
                .zip(&made.gamma)
                .map(|(&r, &s)| (r, s, made.scale))
                .chain(
                    beta.iter()
                        .zip(&made.beta)
                        .map(|(&r, &s)| (r, s, made.scale / 1024.0)),
                )
            {
                assert!((f64::from(real) - f64::from(step) * scale).abs() <= scale * 0.5001);
            }
        }
        assert_eq!(coefficients(&[f32::NAN], &[0.0]), None);
        assert!(!is_bounded(&[i32::MIN], &[0]));
        assert!(!is_bounded(&[0], &[i32::MIN]));
        assert!(is_bounded(&[32767; 384], &[1 << 30; 384]));
    }

    #[test]
    fn epsilons_out_of_range_are_refused() {
        assert_eq!(epsilon(0.0, 10, 1.0), Some(1));
        assert_eq!(epsilon(1e-5, 100, 0.01), Some(1000));
        for (eps, scale) in [
            (-1.0f32, 1.0f32),
            (f32::NAN, 1.0),
            (f32::INFINITY, 1.0),
            (1.0, 1e-20),
        ] {
            assert_eq!(epsilon(eps, 100, scale), None);
        }
    }
}

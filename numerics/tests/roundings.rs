//! The five roundings against exact arithmetic: 128-bit integers for the integer forms, and rational
//! comparison in 128 bits for the float forms, on edges and on millions of random values.

use requant_numerics::rounding::{
    f32_rne, f64_away, rhu, rounding_divide_by_power_of_two, saturating_rounding_doubling_high_mul,
    shift, tflite_double,
};

/// Values where carries, signs and saturation happen.
const EDGES: [i32; 19] = [
    0,
    1,
    -1,
    2,
    -2,
    3,
    -3,
    127,
    -128,
    32767,
    -32768,
    65535,
    1 << 24,
    -(1 << 24),
    (1 << 30) - 1,
    1 << 30,
    -(1 << 30),
    i32::MAX,
    i32::MIN,
];
const MANTISSAS: [i32; 9] = [
    0,
    1,
    2,
    3,
    (1 << 20) - 1,
    1 << 20,
    1 << 30,
    (1 << 30) + 1,
    i32::MAX,
];
const RANDOM: usize = 3_000_000;

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// An accumulator of a random magnitude.
    fn acc(&mut self) -> i32 {
        (self.next() as i32) >> (self.next() % 31)
    }
}

fn saturate(value: i128) -> i32 {
    value.clamp(i128::from(i32::MIN), i128::from(i32::MAX)) as i32
}

/// `floor((n + d/2) / d)`: ties towards plus infinity.
fn half_up(n: i128, d: i128) -> i128 {
    (2 * n + d).div_euclid(2 * d)
}

/// `n / d` rounded, ties away from zero.
fn half_away(n: i128, d: i128) -> i128 {
    let magnitude = (2 * n.abs() + d) / (2 * d);
    if n < 0 { -magnitude } else { magnitude }
}

/// `n / d` rounded, ties to even.
fn half_even(n: i128, d: i128) -> i128 {
    let down = n.div_euclid(d);
    match (2 * n.rem_euclid(d)).cmp(&d) {
        std::cmp::Ordering::Less => down,
        std::cmp::Ordering::Greater => down + 1,
        std::cmp::Ordering::Equal => down + down.rem_euclid(2),
    }
}

#[test]
fn rhu_is_the_exact_half_up_quotient() {
    let want = |acc: i32, m: i32, s: u8| saturate(half_up(i128::from(acc) * i128::from(m), 1 << s));
    for acc in EDGES {
        for m in MANTISSAS {
            for s in 1..=62 {
                assert_eq!(rhu(acc, m, s), want(acc, m, s), "{acc} {m} {s}");
            }
        }
    }
    let mut rng = Rng(1);
    for _ in 0..RANDOM {
        let (acc, m) = (rng.acc(), (rng.next() >> 33) as i32);
        let s = (1 + rng.next() % 62) as u8;
        assert_eq!(rhu(acc, m, s), want(acc, m, s), "{acc} {m} {s}");
    }
}

#[test]
fn shift_is_rhu_with_a_power_of_two() {
    let want = |acc: i32, k: u8| saturate(half_up(i128::from(acc), 1 << k));
    let mut rng = Rng(2);
    let random = (0..RANDOM).map(|_| rng.acc());
    for (index, acc) in EDGES.into_iter().chain(random).enumerate() {
        let shifts = if index < EDGES.len() {
            0..=30
        } else {
            (index % 31) as u8..=(index % 31) as u8
        };
        for k in shifts {
            assert_eq!(shift(acc, k), want(acc, k), "{acc} {k}");
            assert_eq!(shift(acc, k), rhu(acc, 1 << 30, 30 + k), "{acc} {k}");
        }
    }
}

#[test]
fn rhu_at_32_equals_the_doubled_pair_at_33() {
    let mut rng = Rng(3);
    for _ in 0..RANDOM {
        let (acc, m) = (rng.acc(), (rng.next() >> 34) as i32);
        assert_eq!(rhu(acc, m, 32), rhu(acc, 2 * m, 33), "{acc} {m}");
    }
}

#[test]
fn doubling_high_mul_is_exact() {
    // Truncation of the nudged product equals the half-up quotient but for ties of negative products:
    // gemmlowp's own statement in 128 bits.
    let want = |a: i32, b: i32| {
        if (a, b) == (i32::MIN, i32::MIN) {
            return i32::MAX;
        }
        let product = i128::from(a) * i128::from(b);
        let nudge = if product >= 0 {
            1i128 << 30
        } else {
            1 - (1i128 << 30)
        };
        ((product + nudge) / (1i128 << 31)) as i32
    };
    let mut rng = Rng(4);
    let mut pairs: Vec<(i32, i32)> = Vec::new();
    EDGES
        .iter()
        .for_each(|&a| EDGES.iter().for_each(|&b| pairs.push((a, b))));
    pairs.extend((0..RANDOM).map(|_| (rng.acc(), rng.acc())));
    for (a, b) in pairs {
        let got = saturating_rounding_doubling_high_mul(a, b);
        assert_eq!(got, want(a, b), "{a} {b}");
        if b >= 0 {
            // For the non-negative multipliers that models have, it is half-up.
            let exact = half_up(i128::from(a) * i128::from(b), 1 << 31);
            assert_eq!(i128::from(got), exact, "{a} {b}");
        }
    }
}

#[test]
fn power_of_two_division_rounds_half_away() {
    let mut rng = Rng(5);
    let random = (0..RANDOM).map(|_| rng.acc());
    for (index, x) in EDGES.into_iter().chain(random).enumerate() {
        let exponents = if index < EDGES.len() {
            0..=31
        } else {
            (index % 32) as u8..=(index % 32) as u8
        };
        for exponent in exponents {
            let want = half_away(i128::from(x), 1 << exponent);
            let got = rounding_divide_by_power_of_two(x, exponent);
            assert_eq!(i128::from(got), want, "{x} {exponent}");
        }
    }
}

#[test]
fn tflite_double_is_its_two_steps() {
    let want = |acc: i32, m: i32, e: i8| {
        let (left, right) = (e.max(0), (-i32::from(e)).max(0));
        let shifted = saturate(i128::from(acc) << left);
        let high = half_up(i128::from(shifted) * i128::from(m), 1 << 31);
        half_away(high, 1 << right) as i32
    };
    for acc in EDGES {
        for m in MANTISSAS {
            for e in -31..=30 {
                assert_eq!(tflite_double(acc, m, e), want(acc, m, e), "{acc} {m} {e}");
            }
        }
    }
    let mut rng = Rng(6);
    for _ in 0..RANDOM {
        let (acc, m) = (rng.acc(), (rng.next() >> 33) as i32);
        let e = (rng.next() % 62) as i8 - 31;
        assert_eq!(tflite_double(acc, m, e), want(acc, m, e), "{acc} {m} {e}");
    }
    // The case that tells it from every single rounding: 3/8 gives 1.
    assert_eq!(tflite_double(3, 1 << 30, -2), 1);
    assert_eq!(rhu(3, 1 << 30, 33), 0);
}

/// The value of a float as `mantissa · 2^exponent`.
fn parts(value: f64) -> (i128, i32) {
    let bits = value.abs().to_bits();
    let (exponent, fraction) = ((bits >> 52) as i32, i128::from(bits & ((1 << 52) - 1)));
    let (mantissa, exponent) = if exponent == 0 {
        (fraction, -1074)
    } else {
        (fraction | 1 << 52, exponent - 1075)
    };
    (if value < 0.0 { -mantissa } else { mantissa }, exponent)
}

/// `mantissa · 2^exponent` rounded to `bits` significant bits, half to even, as IEEE rounds.
fn round_to(mantissa: i128, exponent: i32, bits: u32) -> (i128, i32) {
    let width = 128 - mantissa.unsigned_abs().leading_zeros();
    if width <= bits {
        return (mantissa, exponent);
    }
    let drop = width - bits;
    (half_even(mantissa, 1 << drop), exponent + drop as i32)
}

/// `round(mantissa · 2^exponent)` with a rounding of quotients, saturated to the range of i32 and a bit.
fn to_integer(mantissa: i128, exponent: i32, round: fn(i128, i128) -> i128) -> i128 {
    if exponent >= 0 {
        return if exponent > 60 {
            mantissa.signum() << 100
        } else {
            mantissa << exponent
        };
    }
    if exponent < -100 {
        0
    } else {
        round(mantissa, 1 << -exponent)
    }
}

#[test]
fn f32_rne_is_two_ieee_roundings_and_a_clamp() {
    let want = |acc: i32, scale: f32, lo: i32, hi: i32| {
        let (a, _) = round_to(i128::from(acc), 0, 24);
        let (a, a_exponent) = {
            let width = 128 - i128::from(acc).unsigned_abs().leading_zeros();
            (a, width.saturating_sub(24) as i32)
        };
        let (m, m_exponent) = parts(f64::from(scale));
        let (product, exponent) = round_to(a * m, a_exponent + m_exponent, 24);
        to_integer(product, exponent, half_even).clamp(i128::from(lo), i128::from(hi)) as i32
    };
    let scales = [
        1.0f32,
        0.5,
        0.25,
        0.1,
        1.5,
        3.0,
        1.0 / 3.0,
        1e-6,
        7.25e-3,
        1e6,
        0.999_999_94,
    ];
    for acc in EDGES {
        for scale in scales {
            for (lo, hi) in [(-128, 127), (0, 255), (-255, 0), (-3, 4), (-32768, 32767)] {
                assert_eq!(
                    f32_rne(acc, scale, lo, hi),
                    want(acc, scale, lo, hi),
                    "{acc} {scale}"
                );
            }
        }
    }
    let mut rng = Rng(7);
    for index in 0..RANDOM {
        let acc = rng.acc();
        // Every eighth scale is a dyadic one, where ties happen.
        let scale = if index % 8 == 0 {
            0.5f32.powi((rng.next() % 24) as i32)
        } else {
            f32::from_bits(0x3000_0000 + (rng.next() % 0x1100_0000) as u32)
        };
        assert_eq!(
            f32_rne(acc, scale, -200, 300),
            want(acc, scale, -200, 300),
            "{acc} {scale}"
        );
    }
}

#[test]
fn f64_away_is_one_ieee_rounding_and_half_away() {
    let want = |acc: i32, scale: f64| {
        let (m, exponent) = parts(scale);
        let (product, exponent) = round_to(i128::from(acc) * m, exponent, 53);
        saturate(to_integer(product, exponent, half_away))
    };
    let scales = [
        1.0,
        0.5,
        0.25,
        0.1,
        1.5,
        1.0 / 3.0,
        1e-9,
        0.007_25,
        1e6,
        0.499_999_999_999_999_94,
    ];
    for acc in EDGES {
        for scale in scales {
            assert_eq!(f64_away(acc, scale), want(acc, scale), "{acc} {scale}");
        }
    }
    let mut rng = Rng(8);
    for index in 0..RANDOM {
        let acc = rng.acc();
        let scale = if index % 8 == 0 {
            0.5f64.powi((rng.next() % 31) as i32)
        } else {
            0.5f64.powi((rng.next() % 40) as i32)
                * (1.0 + (rng.next() >> 12) as f64 / (1u64 << 52) as f64)
        };
        assert_eq!(f64_away(acc, scale), want(acc, scale), "{acc} {scale}");
    }
}

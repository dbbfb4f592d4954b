//! Requantize as a whole: zero point, clamp, channels, the residual sum, and which parameters are
//! refused.

use requant_numerics::{Requantize, RequantizeError, Residual, Scheme};

fn rhu(m: Vec<i32>, s: Vec<u8>) -> Scheme {
    Scheme::Rhu { m, s }
}

#[test]
fn channels_zero_point_and_clamp() {
    let requantize = Requantize {
        scheme: rhu(vec![1 << 30, 1 << 29], vec![32, 32]),
        zero_point: 3,
        lo: 0,
        hi: 20,
    };
    // M = 1/4 and 1/8.
    let cases = [
        (16, 0, 7),
        (16, 1, 5),
        (-16, 0, 0),
        (1000, 1, 20),
        (2, 0, 4),
        (-2, 0, 3),
    ];
    for (acc, channel, want) in cases {
        assert_eq!(requantize.apply(acc, channel), want, "{acc} {channel}");
    }
    let one = Requantize {
        scheme: Scheme::Shift { k: vec![2] },
        ..requantize
    };
    assert_eq!(one.apply(16, 17), 7);
}

#[test]
fn the_residual_sum_rounds_once() {
    let mut state = 9u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
        state >> 20
    };
    for _ in 0..200_000 {
        let (m, m2, s) = (
            (next() % (1 << 31)) as i32,
            (next() % (1 << 31)) as i32,
            1 + (next() % 62) as u8,
        );
        let (acc, residual, zero) = (
            next() as i32,
            (next() % 65536) as i32 - 32768,
            (next() % 256) as i32,
        );
        let requantize = Requantize {
            scheme: rhu(vec![m], vec![s]),
            zero_point: -7,
            lo: -128,
            hi: 127,
        };
        let spec = Residual {
            m: vec![m2],
            zero_point: zero,
        };
        let exact =
            i128::from(acc) * i128::from(m) + (i128::from(residual - zero) * 256) * i128::from(m2);
        let want = ((2 * exact + (1i128 << s)).div_euclid(1i128 << (s + 1)) - 7).clamp(-128, 127);
        assert_eq!(
            i128::from(requantize.apply_residual(acc, residual, &spec, 0)),
            want
        );
    }
}

#[test]
fn parameters_out_of_range_are_named() {
    let cases: Vec<(Scheme, RequantizeError)> = vec![
        (rhu(vec![], vec![]), RequantizeError::Empty),
        (
            rhu(vec![1, 2], vec![3]),
            RequantizeError::Lengths { left: 2, right: 1 },
        ),
        (
            rhu(vec![1, -2], vec![3, 3]),
            RequantizeError::Mantissa {
                index: 1,
                value: -2,
            },
        ),
        (
            rhu(vec![1], vec![0]),
            RequantizeError::Shift {
                index: 0,
                value: 0,
                min: 1,
                max: 62,
            },
        ),
        (
            rhu(vec![1], vec![63]),
            RequantizeError::Shift {
                index: 0,
                value: 63,
                min: 1,
                max: 62,
            },
        ),
        (
            Scheme::Shift { k: vec![0, 31] },
            RequantizeError::Shift {
                index: 1,
                value: 31,
                min: 0,
                max: 30,
            },
        ),
        (
            Scheme::F32Rne { scale: vec![0.0] },
            RequantizeError::Scale {
                index: 0,
                value: 0.0,
            },
        ),
        (
            Scheme::F32Rne {
                scale: vec![1.0, f32::INFINITY],
            },
            RequantizeError::Scale {
                index: 1,
                value: f64::INFINITY,
            },
        ),
        (
            Scheme::F64Away { scale: vec![-1.0] },
            RequantizeError::Scale {
                index: 0,
                value: -1.0,
            },
        ),
        (
            Scheme::TfliteDouble {
                m: vec![1],
                e: vec![31],
            },
            RequantizeError::Shift {
                index: 0,
                value: 31,
                min: -31,
                max: 30,
            },
        ),
    ];
    for (scheme, want) in cases {
        assert_eq!(scheme.validate(), Err(want), "{scheme:?}");
    }
    assert!(matches!(
        Scheme::F32Rne {
            scale: vec![f32::NAN]
        }
        .validate(),
        Err(RequantizeError::Scale { index: 0, .. })
    ));
    let empty = Requantize {
        scheme: Scheme::Shift { k: vec![1] },
        zero_point: 0,
        lo: 2,
        hi: 1,
    };
    assert_eq!(
        empty.validate(),
        Err(RequantizeError::Clamp { lo: 2, hi: 1 })
    );
}

#[test]
fn thresholds_count() {
    let of = |levels, tau: &[i32], falls: &[bool], lo, hi| Requantize {
        scheme: Scheme::Thresholds {
            levels,
            tau: tau.to_vec(),
            falls: falls.to_vec(),
        },
        zero_point: 5,
        lo,
        hi,
    };
    // Signs: rising, falling, always, never.
    let sign = of(
        1,
        &[3, -2, i32::MIN, i32::MIN],
        &[false, true, false, true],
        -1,
        1,
    );
    assert_eq!(sign.validate(), Ok(()));
    for (acc, want) in [
        (2, [-1, -1, 1, -1]),
        (3, [1, -1, 1, -1]),
        (-2, [-1, 1, 1, -1]),
        (-3, [-1, 1, 1, -1]),
        (i32::MAX, [1, -1, 1, -1]),
        (-i32::MAX, [-1, 1, 1, -1]),
    ] {
        let got: Vec<i32> = (0..4).map(|c| sign.apply(acc, c)).collect();
        assert_eq!(got, want, "{acc}");
    }
    let steps = of(3, &[-4, 0, 9], &[false], 0, 3);
    let got = [-5, -4, -1, 0, 8, 9].map(|acc| steps.apply(acc, 7));
    assert_eq!(got, [0, 1, 1, 2, 2, 3]);
    for (bad, error) in [
        (
            of(0, &[], &[false], 0, 1),
            RequantizeError::Levels { levels: 0 },
        ),
        (
            of(2, &[1, 2], &[false], 0, 3),
            RequantizeError::Steps {
                levels: 2,
                lo: 0,
                hi: 3,
            },
        ),
        (
            of(1, &[1, 2, 3], &[false, true], 0, 1),
            RequantizeError::Lengths { left: 3, right: 2 },
        ),
        (of(1, &[], &[], 0, 1), RequantizeError::Empty),
        (
            of(1, &[i32::MAX, i32::MAX], &[false, true], 0, 1),
            RequantizeError::Threshold { index: 1 },
        ),
    ] {
        assert_eq!(bad.validate(), Err(error));
    }
}

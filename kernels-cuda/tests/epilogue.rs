//! The epilogue's header, as the host's compiler reads it, against the specification: 10^7 values and
//! more over every rounding, most of them around ties and ends.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use libloading::{Library, Symbol};
use requant_conformance::{Rng, emulator};
use requant_numerics::rounding;

/// Accumulators of one comparison.
const COUNT: usize = 20_000;

type Round = unsafe extern "C" fn(i32, *const i32, *mut i32, usize, i32, i32, f32, f64, i32, i32);

/// Parameters of one comparison.
#[derive(Clone, Copy, Debug)]
struct Params {
    m: i32,
    s: i32,
    f: f32,
    d: f64,
    lo: i32,
    hi: i32,
}

/// Accumulators: random ones of every magnitude, ends, and what comes near to ties of `unit`.
fn accumulators(rng: &mut Rng, unit: f64) -> Vec<i32> {
    let mut values = vec![i32::MIN, i32::MIN + 1, -1, 0, 1, i32::MAX - 1, i32::MAX];
    while values.len() < COUNT {
        let bits = rng.size(1, 31);
        let any = rng.range(-(1 << bits), (1 << bits) - 1);
        let near = ((any as f64 / unit).floor() + 0.5) * unit;
        values.push(any as i32);
        for step in -1..=1 {
            values
                .push((near as i64 + step).clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32);
        }
    }
    values
}

#[test]
fn roundings_equal_the_specification() {
    let Some(path) = emulator::library() else {
        println!("skipped: no C++ compiler");
        return;
    };
    // SAFETY: the library is ours; loading it registers its kernels and nothing else.
    let library = unsafe { Library::new(path).unwrap() };
    // SAFETY: the function has this type in emulator/epilogue.cpp.
    let round: Symbol<'_, Round> = unsafe { library.get(b"requant_epilogue_round").unwrap() };
    let mut rng = Rng::new(11);
    let mut compared = 0;
    for turn in 0..120 {
        let mantissa = (rng.range(0, i64::from(i32::MAX)) >> rng.size(0, 30)) as i32;
        let scale = rng.log(1e-9, 4.0);
        let (lo, hi) = rng.pick(&[(-128, 127), (0, 255), (-255, 0), (-32768, 32767)]);
        for scheme in 1..=5 {
            let s = match scheme {
                1 => rng.range(1, 62) as i32,
                2 => rng.range(0, 30) as i32,
                _ => rng.range(-31, 30) as i32,
            };
            let p = Params {
                m: if turn % 10 == 0 { i32::MAX } else { mantissa },
                s,
                f: scale as f32,
                d: scale,
                lo,
                hi,
            };
            let unit = match scheme {
                1 => 2f64.powi(p.s) / f64::from(p.m.max(1)),
                2 => 2f64.powi(p.s),
                4 => 2f64.powi(31 - p.s) / f64::from(p.m.max(1)),
                _ => 1.0 / scale,
            };
            let values = accumulators(&mut rng, unit);
            let mut got = vec![0; values.len()];
            // SAFETY: both arrays hold as many values as stated, and the parameters are in range.
            unsafe {
                round(
                    scheme,
                    values.as_ptr(),
                    got.as_mut_ptr(),
                    values.len(),
                    p.m,
                    p.s,
                    p.f,
                    p.d,
                    p.lo,
                    p.hi,
                );
            }
            for (&acc, &got) in values.iter().zip(&got) {
                let want = match scheme {
                    1 => rounding::rhu(acc, p.m, p.s as u8),
                    2 => rounding::shift(acc, p.s as u8),
                    3 => rounding::f32_rne(acc, p.f, p.lo, p.hi),
                    4 => rounding::tflite_double(acc, p.m, p.s as i8),
                    _ => rounding::f64_away(acc, p.d),
                };
                assert_eq!(got, want, "scheme {scheme} of {acc} with {p:?}");
            }
            compared += values.len();
        }
    }
    assert!(compared > 10_000_000, "{compared}");
}

//! The epilogue's header, as the host's compiler reads it, against the specification: 10^7 values and
//! more over every rounding, most of them around ties and ends; as many through the whole of it,
//! with every second operand, table and type.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/finish.rs"]
mod finish;

use std::collections::BTreeMap;
use std::sync::Arc;

use libloading::{Library, Symbol};
use requant_conformance::{Rng, emulator};
use requant_kernels_cuda::epilogue::{Encoded, Finish, Form, Join, Real};
use requant_kernels_cuda::params::Epilogue;
use requant_numerics::elementwise::{AddParams, AddScheme, TfliteMultiplier};
use requant_numerics::{DType, Requantize, Residual, Scheme, rounding};

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

/// The emulator's library; none where there is no compiler to build it.
fn library() -> Option<Library> {
    let Some(path) = emulator::library() else {
        println!("skipped: no C++ compiler");
        return None;
    };
    // SAFETY: the library is ours; loading it registers its kernels and nothing else.
    Some(unsafe { Library::new(path).unwrap() })
}

#[test]
fn roundings_equal_the_specification() {
    let Some(library) = library() else {
        return;
    };
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

/// Values that go through the whole epilogue in one case.
const VALUES: usize = 4000;

type FinishAll = unsafe extern "C" fn(*const Epilogue, *const i32, *mut u8, usize, i32);

/// What a case is of, as the test counts it.
type Label = (&'static str, &'static str, DType, bool, bool);

/// A random epilogue of `channels` channels.
struct Case {
    finish: Finish,
    /// Whether the parameters are one entry for all channels.
    single: bool,
    channels: usize,
    /// Least and greatest second operand.
    other: (i64, i64),
}

/// As many numbers as there are entries.
fn entries<T>(rng: &mut Rng, count: usize, mut draw: impl FnMut(&mut Rng) -> T) -> Vec<T> {
    (0..count).map(|_| draw(rng)).collect()
}

fn mantissa(rng: &mut Rng) -> i32 {
    let any = rng.range(0, i64::from(i32::MAX)) >> rng.size(0, 24);
    let power = 1 << rng.size(0, 30);
    rng.pick(&[any, any, power, i64::from(i32::MAX)]) as i32
}

impl Case {
    fn new(rng: &mut Rng, turn: usize) -> Self {
        let channels = rng.size(1, 6);
        let single = rng.one_in(3);
        let count = if single { 1 } else { channels };
        let joined = turn % 13 >= 7;
        // A residual joins `rhu` alone.
        let scheme = match if (7..=9).contains(&(turn % 13)) {
            1
        } else {
            turn % 7
        } {
            0 if !joined => None,
            0 | 1 => Some(Scheme::Rhu {
                m: entries(rng, count, mantissa),
                s: entries(rng, count, |rng| rng.size(1, 62) as u8),
            }),
            2 => Some(Scheme::Shift {
                k: entries(rng, count, |rng| rng.size(0, 30) as u8),
            }),
            3 => Some(Scheme::F32Rne {
                scale: entries(rng, count, |rng| {
                    let power = 0.5f32.powi(rng.size(0, 20) as i32);
                    let any = rng.log(1e-9, 4.0) as f32;
                    rng.pick(&[power, any])
                }),
            }),
            4 => Some(Scheme::TfliteDouble {
                m: entries(rng, count, mantissa),
                e: entries(rng, count, |rng| rng.range(-31, 30) as i8),
            }),
            5 => Some(Scheme::F64Away {
                scale: entries(rng, count, |rng| {
                    let power = 0.5f64.powi(rng.size(0, 20) as i32);
                    let any = rng.log(1e-9, 1e3);
                    rng.pick(&[power, any])
                }),
            }),
            _ => {
                let levels = rng.pick(&[1, 3, 5, 15, 17, 255]);
                let spread = 1 << rng.size(3, 30);
                let mut tau = Vec::new();
                for _ in 0..count {
                    let mut row = entries(rng, levels, |rng| rng.range(-spread, spread) as i32);
                    row.sort_unstable();
                    tau.extend(row);
                }
                let falls = entries(rng, count, |rng| rng.one_in(2));
                Some(Scheme::Thresholds { levels, tau, falls })
            }
        };
        let wide = matches!(
            scheme,
            Some(Scheme::Rhu { .. } | Scheme::TfliteDouble { .. } | Scheme::F64Away { .. })
        ) && !joined
            && rng.one_in(4);
        let dtype = match &scheme {
            None => DType::I32,
            Some(_) if wide => DType::I32,
            Some(Scheme::Thresholds { .. }) => rng.pick(&[DType::U8, DType::I8]),
            Some(_) => rng.pick(&[DType::U8, DType::I8, DType::U4, DType::I4, DType::I16]),
        };
        let (min, max) = dtype.range().unwrap();
        let inside = rng.range(min, max);
        let limits = match &scheme {
            // Thresholds cut it into equal steps.
            Some(Scheme::Thresholds { .. }) => (min, max),
            _ => rng.pick(&[(min, max), (min, max), (min, inside), (inside, max)]),
        };
        let narrow = max <= 32_767;
        let zero_point = if narrow {
            rng.range(min, max) as i32
        } else {
            rng.range(-1000, 1000) as i32
        };
        let (lo, hi) = (limits.0 as i32, limits.1 as i32);
        let requantize = scheme.map(|scheme| Requantize {
            scheme,
            zero_point,
            lo,
            hi,
        });
        let other_type = rng.pick(&[DType::U8, DType::I8, DType::I16, DType::U4]);
        let other = other_type.range().unwrap();
        let join = if !joined {
            Join::None
        } else if turn % 13 <= 9 {
            Join::Residual {
                residual: Residual {
                    m: entries(rng, count, mantissa),
                    zero_point: rng.range(other.0, other.1) as i32,
                },
                dtype: other_type,
            }
        } else {
            Join::Add {
                params: AddParams {
                    scheme: sum(rng, turn % 13),
                    zero_point_a: rng.range(-128, 127) as i32,
                    zero_point_b: rng.range(-128, 127) as i32,
                    zero_point: rng.range(min, max) as i32,
                    lo: min as i32,
                    hi: max as i32,
                },
                dtype: other_type,
                first: rng.one_in(2),
            }
        };
        // Every second accumulator without a rounding becomes what it stands for.
        let real = (requantize.is_none() && turn.is_multiple_of(2)).then(|| Real {
            scales: entries(rng, count, |rng| {
                let power = 0.5f32.powi(rng.size(0, 40) as i32);
                let any = rng.log(1e-42, 1e32) as f32;
                rng.pick(&[power, any, -any])
            }),
            offset: if rng.one_in(3) {
                Vec::new()
            } else {
                entries(rng, count, |rng| {
                    let any = rng.log(1e-9, 1e9) as f32;
                    rng.pick(&[any, -any, 0.0, -0.0])
                })
            },
        });
        let dtype = if real.is_some() { DType::F32 } else { dtype };
        let bytes = dtype.size_in_memory() == 1;
        let table: [u8; 256] = std::array::from_fn(|_| rng.bits() as u8);
        Case {
            finish: Finish {
                requantize,
                real,
                join,
                table: (bytes && rng.one_in(3)).then(|| Arc::new(table)),
                dtype,
            },
            single,
            channels,
            other,
        }
    }

    fn label(&self) -> Label {
        let scheme = match self.finish.requantize.as_ref().map(|r| &r.scheme) {
            None => "none",
            Some(Scheme::Thresholds { falls, .. }) if falls.contains(&true) => "falls",
            Some(Scheme::Thresholds { .. }) => "rises",
            Some(scheme) => scheme.rounding().unwrap().name(),
        };
        let join = match &self.finish.join {
            Join::None => "alone",
            Join::Residual { .. } => "residual",
            Join::Add { params, first, .. } => match (&params.scheme, first) {
                (AddScheme::F32Fma { .. }, true) => "f32 sum, first",
                (AddScheme::F32Fma { .. }, false) => "f32 sum, second",
                (AddScheme::Rhu { .. }, true) => "rhu sum, first",
                (AddScheme::Rhu { .. }, false) => "rhu sum, second",
                (AddScheme::TfliteDouble { subtract, .. }, first) => match (subtract, first) {
                    (false, true) => "tflite sum, first",
                    (false, false) => "tflite sum, second",
                    (true, true) => "tflite difference, first",
                    (true, false) => "tflite difference, second",
                },
            },
        };
        let table = self.finish.table.is_some();
        (scheme, join, self.finish.dtype, self.single, table)
    }

    /// An accumulator of `channel` that `other` joins: of any magnitude, an end, or near to where the
    /// rounded value changes.
    fn accumulator(&self, rng: &mut Rng, channel: usize, other: i32) -> i32 {
        let bits = rng.size(1, 32);
        let any = rng.bits() as i32 >> (32 - bits);
        let ends = [i32::MIN, i32::MIN + 1, i32::MAX, i32::MAX - 1, 0, -1];
        let Some(requantize) = self.finish.requantize.as_ref().filter(|_| !rng.one_in(4)) else {
            let end = rng.pick(&ends);
            return rng.pick(&[any, any, any, end]);
        };
        let at = |len: usize| if len == 1 { 0 } else { channel };
        let unit = match &requantize.scheme {
            Scheme::Rhu { m, s } => {
                2f64.powi(i32::from(s[at(s.len())])) / f64::from(m[at(m.len())].max(1))
            }
            Scheme::Shift { k } => 2f64.powi(i32::from(k[at(k.len())])),
            Scheme::F32Rne { scale } => 1.0 / f64::from(scale[at(scale.len())]),
            Scheme::TfliteDouble { m, e } => {
                2f64.powi(31 - i32::from(e[at(e.len())])) / f64::from(m[at(m.len())].max(1))
            }
            Scheme::F64Away { scale } => 1.0 / scale[at(scale.len())],
            Scheme::Thresholds { levels, tau, falls } => {
                let row = &tau[at(falls.len()) * levels..][..*levels];
                return rng.pick(row).saturating_add(rng.range(-1, 1) as i32);
            }
        };
        let joined = match (&self.finish.join, &requantize.scheme) {
            (Join::Residual { residual, .. }, Scheme::Rhu { m, .. }) => {
                let by = f64::from(residual.m[at(residual.m.len())]);
                let aligned = f64::from(other - residual.zero_point) * 256.0;
                aligned * by / f64::from(m[at(m.len())].max(1))
            }
            _ => 0.0,
        };
        let (lo, hi) = (i64::from(requantize.lo), i64::from(requantize.hi));
        let value = rng.range(lo - 2, hi + 2) - i64::from(requantize.zero_point);
        let near = (value as f64 + 0.5) * unit - joined;
        // The conversion saturates.
        (near.floor() as i32).saturating_add(rng.range(-1, 2) as i32)
    }
}

/// Every way of adding; half of the parameters make many ties.
fn sum(rng: &mut Rng, kind: usize) -> AddScheme {
    let (ties, sign) = (rng.one_in(2), rng.pick(&[-1, 1]));
    match kind {
        10 => {
            let any = rng.log(0.01, 4.0) as f32;
            let powers = [0.5, 0.25, 1.5, 2.0];
            let ratio = |rng: &mut Rng| if ties { rng.pick(&powers) } else { any };
            AddScheme::F32Fma {
                r_a: ratio(rng) * if sign < 0 { -1.0 } else { 1.0 },
                r_b: ratio(rng),
                offset: rng.range(-300, 300) as f32 * 0.5,
            }
        }
        11 => {
            let any = |rng: &mut Rng| rng.range(1, i64::from(i32::MAX)) as i32 >> rng.size(0, 24);
            let power = |rng: &mut Rng| 1 << rng.size(0, 4);
            let m = |rng: &mut Rng| if ties { power(rng) } else { any(rng) };
            AddScheme::Rhu {
                m_a: m(rng) * sign,
                m_b: m(rng),
                s: if ties {
                    rng.size(9, 13)
                } else {
                    rng.size(1, 62)
                } as u8,
            }
        }
        _ => {
            let any = |rng: &mut Rng| TfliteMultiplier {
                m: rng.range(1 << 30, i64::from(i32::MAX)) as i32,
                e: rng.range(-4, 0) as i8,
            };
            let half = TfliteMultiplier { m: 1 << 30, e: 0 };
            let operand = |rng: &mut Rng| if ties { half } else { any(rng) };
            AddScheme::TfliteDouble {
                subtract: rng.one_in(2),
                a: operand(rng),
                b: operand(rng),
                output: TfliteMultiplier {
                    m: if ties {
                        1 << 30
                    } else {
                        rng.range(1 << 30, i64::from(i32::MAX)) as i32
                    },
                    e: rng.range(-22, -16) as i8,
                },
            }
        }
    }
}

#[test]
fn whole_epilogues_equal_the_specification() {
    let Some(library) = library() else {
        return;
    };
    // SAFETY: the function has this type in emulator/epilogue.cpp.
    let finish_all: Symbol<'_, FinishAll> =
        unsafe { library.get(b"requant_epilogue_finish").unwrap() };
    let mut rng = Rng::new(12);
    let mut met: BTreeMap<Label, usize> = BTreeMap::new();
    for turn in 0..2600 {
        let case = Case::new(&mut rng, turn);
        let Case {
            finish, channels, ..
        } = &case;
        if let Some(requantize) = &finish.requantize {
            requantize.validate().unwrap();
        }
        if let Join::Add { params, .. } = &finish.join {
            params.validate().unwrap();
        }
        let entries = if case.single { 1 } else { *channels };
        let encoded = Encoded::new(finish, entries, Some, |_| 0, |_| 0).unwrap();
        let others = rng.integers(VALUES, case.other.0, case.other.1);
        let other_size = match &finish.join {
            Join::None => 1,
            Join::Residual { dtype, .. } | Join::Add { dtype, .. } => dtype.size_in_memory(),
        };
        let other_bytes: Vec<u8> = others
            .iter()
            .flat_map(|other| other.to_le_bytes()[..other_size].to_vec())
            .collect();
        let values: Vec<i32> = others
            .iter()
            .enumerate()
            .map(|(index, &other)| case.accumulator(&mut rng, index % channels, other as i32))
            .collect();
        let epilogue = Epilogue {
            other: other_bytes.as_ptr() as u64,
            single: i32::from(case.single),
            ..encoded.at(encoded.bytes.as_ptr() as u64)
        };
        let size = finish.dtype.size_in_memory();
        // One element more, which nobody may write.
        let mut got = vec![0xA5; (VALUES + 1) * size];
        // SAFETY: there are as many values as stated, of the sizes that the epilogue says, and parameters
        // for as many channels.
        unsafe {
            finish_all(
                &raw const epilogue,
                values.as_ptr(),
                got.as_mut_ptr(),
                VALUES,
                *channels as i32,
            );
        }
        for (index, (got, &acc)) in got.chunks_exact(size).zip(&values).enumerate() {
            let want = finish::value(finish, acc, others[index] as i32, index % channels);
            let want = &want.to_le_bytes()[..size];
            assert_eq!(
                got, want,
                "{acc} joined by {} of {index} with {finish:?}",
                others[index]
            );
        }
        assert!(
            got[VALUES * size..].iter().all(|&b| b == 0xA5),
            "past the end"
        );
        *met.entry(case.label()).or_default() += 1;
    }
    // Every rounding alone and before every sum, for one channel and many, to every width.
    let every = |of: &str, has: &dyn Fn(&Label) -> bool| {
        let found = met.keys().any(has);
        assert!(found, "{of} was not met: {met:#?}");
    };
    let schemes = [
        "rhu",
        "shift",
        "f32_rne",
        "tflite_double",
        "f64_away",
        "rises",
        "falls",
    ];
    for scheme in schemes {
        for single in [false, true] {
            every(scheme, &|l| {
                l.0 == scheme && l.1 == "alone" && l.3 == single
            });
        }
    }
    let joins = [
        "residual",
        "f32 sum, first",
        "f32 sum, second",
        "rhu sum, first",
        "rhu sum, second",
        "tflite sum, first",
        "tflite sum, second",
        "tflite difference, first",
        "tflite difference, second",
    ];
    for join in joins {
        for single in [false, true] {
            every(join, &|l| l.1 == join && l.3 == single);
        }
        for dtype in [DType::U8, DType::I8, DType::I16] {
            every(join, &|l| l.1 == join && l.2 == dtype);
        }
        every(join, &|l| l.1 == join && l.4);
    }
    every("none", &|l| l.0 == "none" && l.2 == DType::I32);
    for single in [false, true] {
        every("f32", &|l| l.2 == DType::F32 && l.3 == single);
    }
    every("i32", &|l| l.0 == "rhu" && l.2 == DType::I32);
}

type FinishShort = unsafe extern "C" fn(*const Epilogue, *const i32, *mut u8, usize);

/// Channels of the short forms' cases: as many as are rounded together.
const TOGETHER: usize = 4;

impl Case {
    /// A case that a short form takes, and what its channels' biases are.
    fn short(rng: &mut Rng, turn: usize) -> (Self, Vec<i32>) {
        let scale = |rng: &mut Rng| rng.log(1e-9, 0.4);
        let integer = !turn.is_multiple_of(3);
        let scheme = if integer {
            Scheme::Rhu {
                m: entries(rng, TOGETHER, mantissa),
                s: entries(rng, TOGETHER, |rng| rng.size(32, 52) as u8),
            }
        } else {
            Scheme::F32Rne {
                scale: entries(rng, TOGETHER, |rng| scale(rng) as f32),
            }
        };
        let dtype = rng.pick(&[DType::U8, DType::I8, DType::U4, DType::I16]);
        let (min, max) = dtype.range().unwrap();
        let inside = rng.range(min, max);
        let (lo, hi) = rng.pick(&[(min, max), (min, max), (min, inside), (inside, max)]);
        // The zero point has room in the short form of `rhu`.
        let zero_point = rng.range(min.max(-128), max.min(127)) as i32;
        let other_type = rng.pick(&[DType::U8, DType::I8, DType::U4]);
        let other = other_type.range().unwrap();
        let wide = dtype == DType::I16;
        let join = match rng.size(0, 3) {
            0 | 1 if integer => Join::Residual {
                residual: Residual {
                    m: entries(rng, TOGETHER, mantissa),
                    zero_point: rng.range(other.0, other.1) as i32,
                },
                dtype: other_type,
            },
            2 if !wide => Join::Add {
                params: AddParams {
                    scheme: {
                        let kind = rng.pick(&[10, 11, 12]);
                        sum(rng, if integer { kind.max(11) } else { kind })
                    },
                    zero_point_a: rng.range(-128, 127) as i32,
                    zero_point_b: rng.range(-128, 127) as i32,
                    zero_point: rng.range(min, max) as i32,
                    lo: min as i32,
                    hi: max as i32,
                },
                dtype: other_type,
                first: rng.one_in(2),
            },
            _ => Join::None,
        };
        let table: [u8; 256] = std::array::from_fn(|_| rng.bits() as u8);
        let case = Case {
            finish: Finish {
                requantize: Some(Requantize {
                    scheme,
                    zero_point,
                    lo: lo as i32,
                    hi: hi as i32,
                }),
                real: None,
                join,
                table: (!wide && rng.one_in(3)).then(|| Arc::new(table)),
                dtype,
            },
            single: false,
            channels: TOGETHER,
            other,
        };
        let most = rng.pick(&[0, 1000, 1 << 30]);
        let biases = entries(rng, TOGETHER, |rng| rng.range(-most, most) as i32);
        (case, biases)
    }
}

#[test]
fn short_epilogues_equal_the_specification() {
    let Some(library) = library() else {
        return;
    };
    // SAFETY: the function has this type in emulator/epilogue.cpp.
    let finish_short: Symbol<'_, FinishShort> =
        unsafe { library.get(b"requant_epilogue_short").unwrap() };
    let mut rng = Rng::new(13);
    let mut met: BTreeMap<Label, usize> = BTreeMap::new();
    for turn in 0..900 {
        let (case, biases) = Case::short(&mut rng, turn);
        let finish = &case.finish;
        let encoded = Encoded::new(finish, TOGETHER, Some, |o| biases[o], |_| 0).unwrap();
        let form = if turn.is_multiple_of(3) {
            Form::F32
        } else {
            Form::Rhu
        };
        assert_eq!(encoded.form(), form, "{finish:?}");
        let others = rng.integers(VALUES, case.other.0, case.other.1);
        let other_bytes: Vec<u8> = others.iter().map(|&other| other as u8).collect();
        // What is rounded, the bias in it.
        let values: Vec<i32> = others
            .iter()
            .enumerate()
            .map(|(index, &other)| {
                let channel = index % TOGETHER;
                let acc = case.accumulator(&mut rng, channel, other as i32);
                let bias = i64::from(biases[channel]);
                let most = i64::from(i32::MAX);
                i64::from(acc).clamp(bias.max(0) - most, bias.min(0) + most) as i32
            })
            .collect();
        let sums: Vec<i32> = values
            .iter()
            .enumerate()
            .map(|(index, acc)| acc - biases[index % TOGETHER])
            .collect();
        let epilogue = Epilogue {
            other: other_bytes.as_ptr() as u64,
            ..encoded.at(encoded.bytes.as_ptr() as u64)
        };
        let size = finish.dtype.size_in_memory();
        let mut got = vec![0xA5; VALUES * size];
        // SAFETY: there are as many values as stated, of the sizes that the epilogue says, a multiple of
        // four, and parameters for four channels.
        unsafe {
            finish_short(&raw const epilogue, sums.as_ptr(), got.as_mut_ptr(), VALUES);
        }
        for (index, (got, &acc)) in got.chunks_exact(size).zip(&values).enumerate() {
            let want = finish::value(finish, acc, others[index] as i32, index % TOGETHER);
            let want = &want.to_le_bytes()[..size];
            let (other, bias) = (others[index], biases[index % TOGETHER]);
            assert_eq!(
                got, want,
                "{acc} of {index}, {bias} of it bias, joined by {other} with {finish:?}"
            );
        }
        *met.entry(case.label()).or_default() += 1;
    }
    for join in [
        "alone",
        "residual",
        "f32 sum, first",
        "f32 sum, second",
        "rhu sum, first",
        "rhu sum, second",
        "tflite sum, first",
        "tflite difference, second",
    ] {
        let mut tables = met.keys().filter(|l| l.1 == join);
        assert!(tables.any(|l| l.4), "{join} was not met with a table");
    }
    for join in ["alone", "residual"] {
        let mut wide = met.keys().filter(|l| l.1 == join && l.2 == DType::I16);
        assert!(wide.next().is_some(), "{join} was not met with 16 bits");
    }
}

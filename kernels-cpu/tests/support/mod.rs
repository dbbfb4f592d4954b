//! What the kernel tests share: a seeded generator, plain-loop oracles, and pools of 1 and 2 threads.
#![allow(dead_code)]

use requant_kernels_cpu::{ConvShape, Isa, Join, Output, Parallel, Quantized};
use requant_numerics::elementwise::{AddParams, AddScheme};
use requant_numerics::{DType, Requantize, Residual, Rounding, Scheme};

/// SplitMix64.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `lo..=hi`.
    pub(crate) fn int(&mut self, lo: i64, hi: i64) -> i64 {
        lo + (self.bits() % (hi - lo + 1) as u64) as i64
    }

    pub(crate) fn size(&mut self, lo: usize, hi: usize) -> usize {
        self.int(lo as i64, hi as i64) as usize
    }

    pub(crate) fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.size(0, choices.len() - 1)]
    }

    pub(crate) fn chance(&mut self, one_in: u64) -> bool {
        self.bits().is_multiple_of(one_in)
    }

    /// A positive real of the given magnitude, within a factor of 4.
    pub(crate) fn near(&mut self, magnitude: f64) -> f64 {
        magnitude * 2f64.powf((self.bits() >> 11) as f64 / (1u64 << 53) as f64 * 4.0 - 2.0)
    }

    /// Values of a type, stored as bytes; now and then all at one end.
    pub(crate) fn tensor(&mut self, dtype: DType, elements: usize) -> Vec<u8> {
        let (lo, hi) = dtype.range().unwrap();
        let (lo, hi) = match self.bits() % 12 {
            0 => (lo, lo),
            1 => (hi, hi),
            _ => (lo, hi),
        };
        let values = (0..elements).map(|_| self.int(lo, hi) as i32);
        store(dtype, values)
    }
}

/// Values as the bytes of a tensor.
pub(crate) fn store(dtype: DType, values: impl Iterator<Item = i32>) -> Vec<u8> {
    values
        .flat_map(|value| value.to_le_bytes()[..dtype.size_in_memory()].to_vec())
        .collect()
}

/// Element `index` of a tensor.
pub(crate) fn load(dtype: DType, bytes: &[u8], index: usize) -> i32 {
    match dtype {
        DType::U2 | DType::U4 | DType::U8 => i32::from(bytes[index]),
        DType::Binary | DType::Ternary | DType::I2 | DType::I4 | DType::I8 => {
            i32::from(bytes[index] as i8)
        }
        DType::I16 => i32::from(i16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]])),
        DType::I32 | DType::I64 | DType::F32 | DType::F64 => panic!("{dtype}"),
    }
}

/// A pool that starts its threads for every run.
pub(crate) struct Threads(pub(crate) usize);

impl Parallel for Threads {
    fn threads(&self) -> usize {
        self.0
    }

    fn run(&self, parts: usize, task: &(dyn Fn(usize) + Sync)) {
        std::thread::scope(|scope| {
            for part in 1..parts {
                scope.spawn(move || task(part));
            }
            task(0);
        });
    }
}

/// How many random cases a test runs: `usual`, unless the environment says otherwise.
pub(crate) fn cases(usual: usize) -> usize {
    match std::env::var("REQUANT_TEST_CASES") {
        Ok(count) => count.parse().expect("REQUANT_TEST_CASES is a number"),
        Err(_) => usual,
    }
}

/// The instruction sets to test; says which are left out.
pub(crate) fn isas() -> Vec<Isa> {
    for isa in Isa::ALL {
        if !isa.is_available() {
            println!("{isa}: skipped, this machine does not have it");
        }
    }
    Isa::available()
}

/// Parameters of one rounding that spread sums of about `magnitude` over the range of `dtype`.
pub(crate) fn requantize(
    rng: &mut Rng,
    rounding: Rounding,
    dtype: DType,
    entries: usize,
    magnitude: f64,
) -> Requantize {
    let (least, most) = dtype.range().unwrap();
    let ratio = (most - least) as f64 / magnitude.max(1.0);
    let extreme = rng.chance(8);
    let scales: Vec<f64> = (0..entries)
        .map(|_| {
            if extreme {
                rng.near(rng_magnitude(ratio))
            } else {
                rng.near(ratio)
            }
        })
        .collect();
    let scheme = match rounding {
        Rounding::Rhu => {
            let small = rng.chance(2);
            let pairs: Vec<_> = scales
                .iter()
                .map(|&scale| {
                    let d = requant_numerics::Dyadic::from_f64(scale).unwrap();
                    // Every pair in the ranges is legal, not only the native form.
                    match (small, rng.bits() % 16) {
                        (true, 0) => (rng.int(0, i64::from(i32::MAX)) as i32, rng.int(1, 62) as u8),
                        (true, 1) => (i32::MAX, rng.int(30, 34) as u8),
                        _ => (d.m, d.s),
                    }
                })
                .collect();
            Scheme::Rhu {
                m: pairs.iter().map(|p| p.0).collect(),
                s: pairs.iter().map(|p| p.1).collect(),
            }
        }
        Rounding::Shift => Scheme::Shift {
            k: scales
                .iter()
                .map(|scale| (-scale.log2()).round().clamp(0.0, 30.0) as u8)
                .collect(),
        },
        Rounding::F32Rne => Scheme::F32Rne {
            scale: scales.iter().map(|&scale| scale as f32).collect(),
        },
        Rounding::TfliteDouble => {
            let pairs: Vec<_> = scales
                .iter()
                .map(|&scale| requant_numerics::dyadic::tflite_multiplier(scale).unwrap())
                .collect();
            Scheme::TfliteDouble {
                m: pairs.iter().map(|p| p.0).collect(),
                e: pairs.iter().map(|p| p.1).collect(),
            }
        }
        Rounding::F64Away => Scheme::F64Away { scale: scales },
    };
    let (lo, hi) = clamp(rng, dtype);
    Requantize {
        scheme,
        zero_point: rng.int(least, most) as i32,
        lo,
        hi,
    }
}

fn rng_magnitude(ratio: f64) -> f64 {
    (ratio * 1000.0).min(1e6)
}

fn clamp(rng: &mut Rng, dtype: DType) -> (i32, i32) {
    let (least, most) = dtype.range().unwrap();
    if rng.chance(3) {
        let a = rng.int(least, most) as i32;
        let b = rng.int(least, most) as i32;
        (a.min(b), a.max(b))
    } else {
        (least as i32, most as i32)
    }
}

pub(crate) const NARROW: [DType; 7] = [
    DType::I8,
    DType::U8,
    DType::I16,
    DType::I4,
    DType::U4,
    DType::I2,
    DType::U2,
];
pub(crate) const BYTES: [DType; 6] = [
    DType::I8,
    DType::U8,
    DType::I4,
    DType::U4,
    DType::I2,
    DType::U2,
];

/// Parameters of a sum.
pub(crate) fn add_params(rng: &mut Rng, a: DType, b: DType, output: DType) -> AddParams {
    let range = |dtype: DType| dtype.range().unwrap();
    let span = |dtype: DType| (range(dtype).1 - range(dtype).0) as f64;
    let (zero_point_a, zero_point_b, zero_point) = (
        rng.int(range(a).0, range(a).1) as i32,
        rng.int(range(b).0, range(b).1) as i32,
        rng.int(range(output).0, range(output).1) as i32,
    );
    let sign = if rng.chance(4) { -1.0 } else { 1.0 };
    let (ratio_a, ratio_b) = (
        rng.near(0.6 * span(output) / span(a)),
        sign * rng.near(0.6 * span(output) / span(b)),
    );
    let clamp = clamp(rng, output);
    let fma = AddParams::f32_fma(
        (ratio_a as f32, zero_point_a),
        (ratio_b as f32, zero_point_b),
        (1.0, zero_point),
        clamp,
    );
    if rng.chance(2) {
        return fma;
    }
    let s = 26;
    let mantissa = |ratio: f64| ((ratio * 2f64.powi(s - 8)).round() as i32).max(-i32::MAX);
    AddParams {
        scheme: AddScheme::Rhu {
            m_a: mantissa(ratio_a),
            m_b: mantissa(ratio_b),
            s: s as u8,
        },
        ..fma
    }
}

/// An output for sums of about `magnitude`: any rounding, type, join and table.
pub(crate) fn output(rng: &mut Rng, channels: usize, magnitude: f64) -> Output {
    if rng.chance(8) {
        return Output::Accumulator;
    }
    let rounding = rng.pick(&[
        Rounding::Rhu,
        Rounding::Rhu,
        Rounding::F32Rne,
        Rounding::F32Rne,
        Rounding::Shift,
        Rounding::TfliteDouble,
        Rounding::F64Away,
    ]);
    let dtype = rng.pick(&[
        DType::I8,
        DType::U8,
        DType::I8,
        DType::U8,
        DType::I8,
        DType::U8,
        DType::I16,
        DType::I4,
        DType::U4,
        DType::I2,
        DType::U2,
    ]);
    let entries = if rng.chance(4) { 1 } else { channels };
    let other = rng.pick(&NARROW);
    let mut requantize_ = requantize(rng, rounding, dtype, entries, magnitude);
    let join = match rng.bits() % 4 {
        0 if rounding == Rounding::Rhu => {
            let (lo, hi) = other.range().unwrap();
            Join::Residual {
                residual: Residual {
                    m: (0..entries).map(|_| rng.int(0, 1 << 24) as i32).collect(),
                    zero_point: rng.int(lo, hi) as i32,
                },
                dtype: other,
            }
        }
        1 => {
            let product = rng.pick(&NARROW);
            requantize_ = requantize(rng, rounding, product, entries, magnitude);
            let product_first = rng.chance(2);
            let (a, b) = if product_first {
                (product, other)
            } else {
                (other, product)
            };
            Join::Add {
                add: add_params(rng, a, b, dtype),
                dtype: other,
                product_first,
            }
        }
        _ => Join::None,
    };
    let table = (dtype.is_quantized() && rng.chance(3)).then(|| {
        let mut table = Box::new([0u8; 256]);
        table.iter_mut().for_each(|entry| *entry = rng.bits() as u8);
        table
    });
    Output::Quantized(Box::new(Quantized {
        requantize: requantize_,
        dtype,
        join,
        table,
    }))
}

/// What an output stores for one accumulator; `other` is its second operand's element.
pub(crate) fn store_one(output: &Output, acc: i32, channel: usize, other: i32) -> Vec<u8> {
    let quantized = match output {
        Output::Accumulator => return acc.to_le_bytes().to_vec(),
        Output::Quantized(quantized) => quantized,
    };
    let requantize = &quantized.requantize;
    let value = match &quantized.join {
        Join::None => requantize.apply(acc, channel),
        Join::Residual { residual, .. } => requantize.apply_residual(acc, other, residual, channel),
        Join::Add {
            add, product_first, ..
        } => {
            let product = requantize.apply(acc, channel);
            if *product_first {
                add.apply(product, other)
            } else {
                add.apply(other, product)
            }
        }
    };
    let mut bytes = value.to_le_bytes()[..quantized.dtype.size_in_memory()].to_vec();
    if let Some(table) = &quantized.table {
        bytes[0] = table[usize::from(bytes[0])];
    }
    bytes
}

/// Element type of an output's second operand.
pub(crate) fn other_dtype(output: &Output) -> Option<DType> {
    match output {
        Output::Accumulator => None,
        Output::Quantized(quantized) => match &quantized.join {
            Join::None => None,
            Join::Residual { dtype, .. } | Join::Add { dtype, .. } => Some(*dtype),
        },
    }
}

/// The accumulators of a convolution: the definition, loop by loop. `weight(o, k)` counts k over
/// (ky, kx, c) of the group.
pub(crate) fn naive_conv(
    shape: &ConvShape,
    batch: usize,
    input: impl Fn(usize) -> i32,
    zero_point: i32,
    weight: impl Fn(usize, usize) -> i32,
    bias: &[i32],
) -> Vec<i32> {
    let (in_g, out_g) = (shape.in_c / shape.groups, shape.out_c / shape.groups);
    let mut sums = Vec::with_capacity(batch * shape.output_elements());
    for image in 0..batch {
        for oy in 0..shape.out_h {
            for ox in 0..shape.out_w {
                for o in 0..shape.out_c {
                    let mut sum = i64::from(bias.get(o).copied().unwrap_or(0));
                    let mut k = 0;
                    for ky in 0..shape.kernel[0] {
                        for kx in 0..shape.kernel[1] {
                            let y = (oy * shape.strides[0] + ky * shape.dilations[0]) as i64
                                - shape.pads[0] as i64;
                            let x = (ox * shape.strides[1] + kx * shape.dilations[1]) as i64
                                - shape.pads[1] as i64;
                            let inside = (0..shape.in_h as i64).contains(&y)
                                && (0..shape.in_w as i64).contains(&x);
                            for c in 0..in_g {
                                if inside {
                                    let pixel =
                                        (image * shape.in_h + y as usize) * shape.in_w + x as usize;
                                    let channel = o / out_g * in_g + c;
                                    let value = input(pixel * shape.in_c + channel) - zero_point;
                                    sum += i64::from(value) * i64::from(weight(o, k));
                                }
                                k += 1;
                            }
                        }
                    }
                    sums.push(i32::try_from(sum).expect("the case overflows 32 bits"));
                }
            }
        }
    }
    sums
}

/// Panics where two outputs differ, with the place.
pub(crate) fn assert_same(got: &[u8], want: &[u8], what: impl Fn() -> String) {
    if got != want {
        let at = got.iter().zip(want).position(|(a, b)| a != b);
        let at = at.unwrap_or(got.len().min(want.len()));
        let differing = got.iter().zip(want).filter(|(a, b)| a != b).count();
        panic!(
            "{}: byte {at} of {} is {:?}, not {:?}; {differing} differ",
            what(),
            want.len(),
            got.get(at),
            want.get(at)
        );
    }
}

//! Random convolutions on a device against plain loops; shared by the tests and `gpucheck`.

mod finish;

use std::sync::Arc;

use requant_conformance::Rng;
use requant_kernels_cuda::epilogue::{Finish, Join};
use requant_kernels_cuda::ops::Window;
use requant_kernels_cuda::ops::conv::{Conv, ConvIo, ConvSpec, ZeroPoint};
use requant_kernels_cuda::{Command, Context, Session};
use requant_numerics::elementwise::{AddParams, AddScheme};
use requant_numerics::{DType, Requantize, Residual, Scheme};

/// A convolution: images, height, width, input channels of a group, output channels of a group, groups,
/// kernel, stride, border, dilation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape(
    pub(crate) usize,
    pub(crate) usize,
    pub(crate) usize,
    pub(crate) usize,
    pub(crate) usize,
    pub(crate) usize,
    pub(crate) usize,
    pub(crate) usize,
    pub(crate) usize,
    pub(crate) usize,
);

/// Shapes with tails on every side, whole tiles, and little to do but depth.
pub(crate) const SHAPES: &[Shape] = &[
    // Tails on every side; the smallest.
    Shape(1, 1, 1, 1, 1, 1, 1, 1, 0, 1),
    Shape(1, 5, 7, 3, 10, 1, 3, 2, 1, 1),
    Shape(2, 9, 9, 16, 40, 1, 3, 1, 1, 1),
    Shape(1, 8, 8, 32, 33, 2, 3, 1, 1, 2),
    Shape(3, 6, 5, 48, 70, 1, 1, 1, 0, 1),
    Shape(1, 7, 7, 17, 9, 3, 2, 1, 1, 1),
    // Whole tiles of 128.
    Shape(2, 16, 16, 64, 128, 1, 1, 1, 0, 1),
    Shape(3, 13, 13, 80, 200, 1, 1, 1, 0, 1),
    Shape(2, 16, 17, 16, 144, 1, 3, 1, 1, 1),
    Shape(1, 24, 24, 64, 40, 1, 3, 1, 1, 1),
    Shape(2, 15, 19, 48, 64, 1, 1, 1, 0, 1),
    // Few tiles and much depth, which is split.
    Shape(1, 1, 1, 2048, 10, 1, 1, 1, 0, 1),
    Shape(1, 3, 3, 256, 64, 1, 3, 2, 1, 1),
    Shape(1, 2, 2, 1001, 20, 1, 1, 1, 0, 1),
    Shape(1, 3, 3, 1216, 50, 1, 1, 1, 0, 1),
    Shape(1, 2, 3, 1013, 33, 1, 1, 1, 0, 1),
    // One row, its borders all around.
    Shape(1, 3, 1, 32, 21, 2, 3, 1, 1, 1),
    Shape(1, 1, 1, 16, 70, 1, 3, 1, 1, 1),
];

/// Which numbers a case multiplies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Numbers {
    /// Least and greatest weight.
    pub(crate) weights: (i64, i64),
    /// Type of the input.
    pub(crate) dtype: DType,
    /// Whether every weight and input is the least of its kind.
    pub(crate) extreme: bool,
}

impl Numbers {
    /// Any; weights past 8 bits where `wide`.
    fn any(rng: &mut Rng, wide: bool) -> Self {
        let types = [
            DType::U8,
            DType::I8,
            DType::U8,
            DType::I8,
            DType::U4,
            DType::I4,
            DType::Binary,
            DType::Ternary,
        ];
        let most = if wide { 3000 } else { 127 };
        let weights = [
            (-127, 127),
            (-most, most),
            (-8, 7),
            (-8, 7),
            (-1, 1),
            (-1, 2),
        ];
        Numbers {
            weights: rng.pick(&weights),
            dtype: rng.pick(&types),
            extreme: false,
        }
    }

    /// A number of a range. What ends beyond 1 where it begins at -1 has no zeros, and nothing else.
    fn number(self, rng: &mut Rng, (lo, hi): (i64, i64)) -> i64 {
        match (self.extreme, (lo, hi)) {
            (true, _) => lo,
            (false, (-1, 2)) => rng.pick(&[-1, 1]),
            (false, _) => rng.range(lo, hi),
        }
    }
}

/// Shapes that fill a large GPU with large tiles; too much for an emulated one.
#[allow(dead_code)]
pub(crate) const LARGE: &[Shape] = &[
    Shape(5, 65, 67, 64, 130, 1, 1, 1, 0, 1),
    Shape(5, 65, 67, 16, 130, 1, 3, 1, 1, 1),
    Shape(6, 71, 53, 208, 61, 1, 1, 1, 0, 1),
    Shape(5, 66, 67, 32, 64, 1, 3, 1, 1, 1),
];

/// Ways to finish that [`run`] knows.
pub(crate) const FINISHES: usize = 15;

/// What follows the accumulators of a case.
fn finish(rng: &mut Rng, kind: usize, channels: usize, dtype: DType) -> Finish {
    let many = |rng: &mut Rng, lo: i64, hi: i64| -> Vec<i64> {
        (0..channels).map(|_| rng.range(lo, hi)).collect()
    };
    let scheme = match kind {
        0 | 4 | 11 | 12 | 14 => Scheme::Rhu {
            m: many(rng, 1 << 18, 1 << 26)
                .into_iter()
                .map(|m| m as i32)
                .collect(),
            s: many(rng, 34, 40).into_iter().map(|s| s as u8).collect(),
        },
        1 | 5 | 13 => Scheme::F32Rne {
            scale: (0..channels).map(|_| rng.log(1e-4, 1e-2) as f32).collect(),
        },
        2 => Scheme::TfliteDouble {
            m: many(rng, 1 << 30, i64::from(i32::MAX))
                .into_iter()
                .map(|m| m as i32)
                .collect(),
            e: many(rng, -12, -6).into_iter().map(|e| e as i8).collect(),
        },
        7 => Scheme::Shift {
            k: many(rng, 0, 30).into_iter().map(|k| k as u8).collect(),
        },
        8 => Scheme::F64Away {
            scale: (0..channels).map(|_| rng.log(1e-9, 1e3)).collect(),
        },
        9 => Scheme::Thresholds {
            levels: 3,
            tau: many(rng, -300, 300)
                .into_iter()
                .flat_map(|tau| [tau as i32, tau as i32 + 9, tau as i32 + 70])
                .collect(),
            falls: (0..channels).map(|_| rng.one_in(3)).collect(),
        },
        // The largest scales and the least.
        10 => Scheme::Rhu {
            m: many(rng, i64::from(i32::MAX) - 3, i64::from(i32::MAX))
                .into_iter()
                .map(|m| m as i32)
                .collect(),
            s: (0..channels).map(|_| rng.pick(&[32, 36, 45, 62])).collect(),
        },
        // A shift below 32 is the long epilogue's.
        _ => Scheme::Rhu {
            m: vec![3],
            s: vec![9],
        },
    };
    let (lo, hi) = dtype.range().unwrap();
    let zero_point = rng.range(lo.max(-20), hi.min(100)) as i32;
    let requantize = Requantize {
        scheme,
        zero_point,
        lo: lo as i32,
        hi: hi as i32,
    };
    let other = rng.pick(&[DType::U8, DType::I8]);
    let (scale_a, scale_b) = (rng.log(0.1, 2.0) as f32, rng.log(0.1, 2.0) as f32);
    let join = match kind {
        3 => Join::Residual {
            residual: Residual {
                m: vec![5],
                zero_point: 3,
            },
            dtype: rng.pick(&[DType::U8, DType::I8, DType::I16]),
        },
        11 | 14 => Join::Residual {
            residual: Residual {
                m: many(rng, 0, i64::from(i32::MAX))
                    .into_iter()
                    .map(|m| m as i32 >> rng.size(0, 12))
                    .collect(),
                zero_point: rng.range(other.range().unwrap().0, other.range().unwrap().1) as i32,
            },
            dtype: other,
        },
        4 => Join::Add {
            params: AddParams {
                scheme: AddScheme::Rhu {
                    m_a: rng.range(1 << 20, 1 << 24) as i32,
                    m_b: -(rng.range(1 << 20, 1 << 24) as i32),
                    s: 31,
                },
                zero_point_a: zero_point,
                zero_point_b: 7,
                zero_point: 3,
                lo: lo as i32,
                hi: hi as i32,
            },
            dtype: other,
            first: true,
        },
        5 => Join::Add {
            params: AddParams::f32_fma(
                (scale_a, zero_point),
                (scale_b, 7),
                (1.0, 3),
                (lo as i32, hi as i32),
            ),
            dtype: other,
            first: false,
        },
        _ => Join::None,
    };
    let table = [5, 11].contains(&kind) && rng.one_in(2);
    let table = table.then(|| Arc::new(std::array::from_fn(|i| (i * 37 + 11) as u8)));
    Finish {
        requantize: (kind != 6).then_some(requantize),
        join,
        table,
        dtype: if kind == 6 { DType::I32 } else { dtype },
    }
}

/// The second operand's element `index`.
fn other_of(finish: &Finish, bytes: &[u8], index: usize) -> i32 {
    match &finish.join {
        Join::None => 0,
        Join::Residual { dtype, .. } | Join::Add { dtype, .. } => {
            if *dtype == DType::I16 {
                i32::from(i16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]]))
            } else if *dtype == DType::I8 {
                i32::from(bytes[index] as i8)
            } else {
                i32::from(bytes[index])
            }
        }
    }
}

fn expected(spec: &ConvSpec<'_>, samples: usize, x: &[i32], other: &[u8]) -> Vec<i32> {
    let [images, in_h, in_w, in_c] = spec.input;
    let [_, out_h, out_w, out_c] = spec.output;
    let (group_in, group_out) = (in_c / spec.groups, out_c / spec.groups);
    let ZeroPoint::Static(zero_point) = spec.zero_point else {
        panic!("a static zero point")
    };
    let Window {
        kernel: [kh, kw],
        strides: [sh, sw],
        pads: [top, left, ..],
        dilations: [dh, dw],
    } = spec.window;
    let mut out = Vec::new();
    for pixel in 0..samples * images * out_h * out_w {
        let (image, y, x0) = (
            pixel / (out_h * out_w),
            pixel / out_w % out_h,
            pixel % out_w,
        );
        for o in 0..out_c {
            let mut acc = i64::from(spec.bias[o]);
            for (ky, kx) in (0..kh).flat_map(|ky| (0..kw).map(move |kx| (ky, kx))) {
                let row = (y * sh + ky * dh).wrapping_sub(top);
                let column = (x0 * sw + kx * dw).wrapping_sub(left);
                for c in 0..group_in {
                    let weight = spec.weights[((o * kh + ky) * kw + kx) * group_in + c];
                    if row >= in_h || column >= in_w {
                        acc += i64::from(spec.outside) * i64::from(weight);
                        continue;
                    }
                    let at =
                        ((image * in_h + row) * in_w + column) * in_c + o / group_out * group_in;
                    acc += i64::from(x[at + c] - zero_point) * i64::from(weight);
                }
            }
            let acc = i32::try_from(acc).unwrap();
            let other = other_of(&spec.finish, other, out.len());
            out.push(finish::value(&spec.finish, acc, other, o));
        }
    }
    out
}

/// Runs a case of any numbers; see [`run_with`].
pub(crate) fn run(
    context: &Arc<Context>,
    shape: Shape,
    kind: usize,
    rng: &mut Rng,
) -> (&'static str, bool) {
    // Sums of wide weights may leave the 32 bits that no rounding hides.
    let numbers = Numbers::any(rng, ![6, 7, 10].contains(&kind));
    run_with(context, (shape, numbers), kind, rng)
}

/// Runs a case three times in one session and gives the kernel's name and whether it was split.
pub(crate) fn run_with(
    context: &Arc<Context>,
    (shape, numbers): (Shape, Numbers),
    kind: usize,
    rng: &mut Rng,
) -> (&'static str, bool) {
    let Shape(images, h, w, group_in, group_out, groups, kernel, stride, pad, dilation) = shape;
    let window = Window {
        kernel: [kernel; 2],
        strides: [stride, 1],
        pads: [pad; 4],
        dilations: [dilation; 2],
    };
    let extent =
        |size: usize, step: usize| (size + 2 * pad - dilation * (kernel - 1) - 1) / step + 1;
    let (out_h, out_w) = (extent(h, stride), extent(w, 1));
    let (in_c, out_c) = (group_in * groups, group_out * groups);
    let depth = kernel * kernel * group_in;
    let dtype = numbers.dtype;
    let (lo, hi) = dtype.range().unwrap();
    let weights: Vec<i16> = (0..out_c * depth)
        .map(|_| numbers.number(rng, numbers.weights) as i16)
        .collect();
    let bias: Vec<i32> = (0..out_c)
        .map(|_| rng.range(-50_000, 50_000) as i32)
        .collect();
    let out_type = match kind {
        12..=14 => DType::I16,
        _ => rng.pick(&[DType::U8, DType::I8]),
    };
    let spec = ConvSpec {
        input: [images, h, w, in_c],
        output: [images, out_h, out_w, out_c],
        window,
        groups,
        weights: &weights,
        computed: None,
        dtype,
        zero_point: ZeroPoint::Static(if lo == -1 {
            0
        } else {
            rng.range(lo, hi) as i32
        }),
        outside: i32::from(dtype == DType::Binary && rng.one_in(2)),
        bias: &bias,
        finish: finish(rng, kind, out_c, out_type),
    };
    let conv = Conv::new(context, &spec).unwrap();
    let samples = rng.size(1, 2);
    let x: Vec<i32> = (0..samples * images * h * w * in_c)
        .map(|_| {
            let range = if dtype == DType::Binary {
                (lo, 2)
            } else {
                (lo, hi)
            };
            numbers.number(rng, range) as i32
        })
        .collect();
    let elements = samples * spec.output.iter().product::<usize>();
    let other: Vec<u8> = (0..2 * elements).map(|_| rng.range(0, 255) as u8).collect();
    let want = expected(&spec, samples, &x, &other);

    // Input, second operand and output one after the other, guards behind the output, then scratch.
    let guard = 64;
    let size = spec.finish.dtype.size_in_memory();
    let other_at = x.len().next_multiple_of(256);
    let y_at = (other_at + other.len()).next_multiple_of(256);
    let y_bytes = elements * size;
    let end = (y_at + y_bytes + guard).next_multiple_of(256);
    let mut session = Session::new(context, end + conv.scratch_bytes(samples), end).unwrap();
    let at = |offset: usize| session.address() + offset as u64;
    let io = ConvIo {
        samples,
        x: at(0),
        y: at(y_at),
        other: at(other_at),
        scratch: at(end),
        scratch_bytes: conv.scratch_bytes(samples),
        ..ConvIo::default()
    };
    let launch = conv.launch(&io).unwrap();
    let split = launch.grid[2] as usize > groups;
    let name = launch.kernel.name();
    let commands = [
        Command::Upload {
            from: 0..end,
            to: 0,
        },
        Command::Launch(launch),
        Command::Download {
            from: y_at..y_at + y_bytes + guard,
            to: y_at,
        },
    ];
    for turn in 0..3 {
        let staging = session.staging_mut();
        staging.fill(0xA5);
        staging
            .iter_mut()
            .zip(&x)
            .for_each(|(to, &x)| *to = x as u8);
        staging[other_at..][..other.len()].copy_from_slice(&other);
        session.run(&commands).unwrap();
        let got = &session.staging()[y_at..];
        for (index, (bytes, want)) in got.chunks_exact(size).zip(&want).enumerate() {
            assert_eq!(
                bytes,
                &want.to_le_bytes()[..size],
                "{name}, {shape:?}, {numbers:?}, finish {kind}, turn {turn}, split {split}: element {index}"
            );
        }
        assert!(
            got[y_bytes..][..guard].iter().all(|&b| b == 0xA5),
            "{name}: past the end"
        );
    }
    (name, split)
}

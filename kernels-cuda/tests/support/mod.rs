//! Random convolutions on a device against plain loops; shared by the tests and `gpucheck`.

mod finish;

use std::ops::Range;
use std::sync::Arc;

use requant_conformance::Rng;
use requant_kernels_cuda::epilogue::{Finish, Join, Real};
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

/// Bytes between and behind the operands that nobody may write to.
const GUARD: usize = 512;

/// Shapes with tails on every side, whole tiles, and little to do but depth.
pub(crate) const SHAPES: &[Shape] = &[
    // Tails on every side; the smallest.
    Shape(1, 1, 1, 1, 1, 1, 1, 1, 0, 1),
    Shape(1, 1, 1, 16, 1, 1, 1, 1, 0, 1),
    Shape(1, 5, 7, 3, 10, 1, 3, 2, 1, 1),
    Shape(2, 9, 9, 16, 40, 1, 3, 1, 1, 1),
    Shape(1, 8, 8, 32, 33, 2, 3, 1, 1, 2),
    Shape(3, 6, 5, 48, 70, 1, 1, 1, 0, 1),
    Shape(1, 7, 7, 17, 9, 3, 2, 1, 1, 1),
    Shape(1, 11, 6, 16, 65, 2, 5, 3, 4, 2),
    // Whole tiles of 128.
    Shape(2, 16, 16, 64, 128, 1, 1, 1, 0, 1),
    Shape(3, 13, 13, 80, 200, 1, 1, 1, 0, 1),
    Shape(2, 16, 17, 16, 144, 1, 3, 1, 1, 1),
    Shape(1, 24, 24, 64, 40, 1, 3, 1, 1, 1),
    Shape(2, 15, 19, 48, 64, 1, 1, 1, 0, 1),
    // Deep, and of tiles of 256.
    Shape(1, 1, 390, 1040, 136, 1, 1, 1, 0, 1),
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

/// Dense products for blocks that stay on a device of a few multiprocessors: many tiles a block, so that its ring
/// of slices goes round more than twice and tiles alternate, and tails on every side.
#[allow(dead_code)]
pub(crate) const DENSE: &[Shape] = &[
    // One slice of K and less; more rows than are walked at once; whole tiles.
    Shape(1, 1, 2200, 16, 130, 1, 1, 1, 0, 1),
    Shape(1, 32, 32, 128, 128, 1, 1, 1, 0, 1),
    Shape(3, 19, 27, 48, 40, 1, 1, 1, 0, 1),
    Shape(1, 43, 24, 112, 64, 1, 1, 1, 0, 1),
    // Tiles of 128 in several columns; slices are half empty at the end.
    Shape(1, 16, 17, 160, 330, 1, 1, 1, 0, 1),
    Shape(1, 13, 41, 592, 144, 1, 1, 1, 0, 1),
    // As deep as tiles are taken in turns, and deeper: tiles of 256.
    Shape(1, 11, 38, 1024, 72, 1, 1, 1, 0, 1),
    Shape(1, 13, 31, 1040, 300, 1, 1, 1, 0, 1),
    Shape(1, 10, 30, 1152, 257, 1, 1, 1, 0, 1),
    // A window as large as the image.
    Shape(301, 3, 3, 16, 200, 1, 3, 1, 0, 1),
];

/// Windows for blocks that stay: tiles that go over rows and images, steps, dilations, images in which no window leaves
/// the border, and some without one.
#[allow(dead_code)]
pub(crate) const WINDOWS: &[Shape] = &[
    Shape(3, 9, 8, 128, 72, 1, 3, 1, 1, 1),
    Shape(3, 11, 7, 256, 130, 1, 3, 2, 1, 1),
    Shape(1, 17, 13, 128, 64, 1, 3, 1, 2, 2),
    Shape(2, 9, 8, 384, 260, 1, 1, 2, 0, 1),
    Shape(4, 7, 9, 128, 33, 1, 2, 1, 0, 1),
    Shape(1, 14, 10, 128, 96, 1, 5, 1, 2, 1),
    Shape(2, 5, 6, 128, 40, 1, 3, 1, 3, 1),
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
    /// Whether the zero point is 0, so that zeros stand for what lies outside an image.
    pub(crate) centred: bool,
}

/// Numbers of every kind for which there are kernels.
pub(crate) const NUMBERS: &[Numbers] = &[
    Numbers::of((-127, 127), DType::U8),
    Numbers::of((-127, 127), DType::I8),
    Numbers::of((-3000, 3000), DType::U8),
    Numbers::of((-3000, 3000), DType::I8),
    Numbers::of((-8, 7), DType::U8),
    Numbers::of((-8, 7), DType::I8),
    Numbers::of((-8, 7), DType::U4),
    Numbers::of((-8, 7), DType::I4),
    Numbers::of((-1, 1), DType::Ternary),
    Numbers::of((-1, 1), DType::Binary),
    Numbers::of((-1, 2), DType::Ternary),
    Numbers::of((-1, 2), DType::Binary),
];

/// Ways to finish that [`run`] knows.
pub(crate) const FINISHES: usize = 16;

impl Numbers {
    pub(crate) const fn of(weights: (i64, i64), dtype: DType) -> Self {
        Numbers {
            weights,
            dtype,
            extreme: false,
            centred: false,
        }
    }

    /// Whether sums of them fit 32 bits where no rounding hides that they do not.
    pub(crate) fn suits(self, kind: usize) -> bool {
        self.weights.1 < 128 || ![6, 7, 10, 15].contains(&kind)
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
    // Blocks that stay have tiles enough for their ring of slices to go round.
    Shape(5, 65, 67, 400, 130, 1, 1, 1, 0, 1),
    Shape(5, 65, 67, 16, 130, 1, 3, 1, 1, 1),
    Shape(6, 71, 53, 208, 61, 1, 1, 1, 0, 1),
    Shape(5, 66, 67, 32, 64, 1, 3, 1, 1, 1),
    Shape(4, 66, 67, 1040, 140, 1, 1, 1, 0, 1),
    Shape(8, 66, 67, 400, 61, 1, 1, 1, 0, 1),
    Shape(5, 65, 67, 128, 130, 1, 2, 1, 0, 1),
    Shape(8, 66, 67, 128, 64, 1, 3, 1, 0, 1),
];

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
    let real = (kind == 15).then(|| Real {
        scales: (0..channels).map(|_| rng.log(1e-6, 1e3) as f32).collect(),
        offset: if rng.one_in(2) {
            Vec::new()
        } else {
            (0..channels).map(|_| rng.log(1e-6, 1e6) as f32).collect()
        },
    });
    Finish {
        requantize: (![6, 15].contains(&kind)).then_some(requantize),
        real,
        join,
        table,
        dtype: match kind {
            6 => DType::I32,
            15 => DType::F32,
            _ => dtype,
        },
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

/// Plain loops, by several threads where there is much to compute.
fn expected(spec: &ConvSpec<'_>, samples: usize, x: &[i32], other: &[u8]) -> Vec<i32> {
    let [images, out_h, out_w, _] = spec.output;
    let pixels = samples * images * out_h * out_w;
    let threads = if pixels * spec.weights.len() < 1 << 27 {
        1
    } else {
        std::thread::available_parallelism().map_or(1, usize::from)
    };
    let each = pixels.div_ceil(threads);
    std::thread::scope(|scope| {
        let parts: Vec<_> = (0..pixels)
            .step_by(each)
            .map(|first| first..pixels.min(first + each))
            .map(|range| scope.spawn(move || expected_of(spec, range, x, other)))
            .collect();
        let results = parts.into_iter().map(|part| part.join().unwrap());
        results.collect::<Vec<_>>().concat()
    })
}

/// Of some of the output's pixels.
fn expected_of(spec: &ConvSpec<'_>, pixels: Range<usize>, x: &[i32], other: &[u8]) -> Vec<i32> {
    let [_, in_h, in_w, in_c] = spec.input;
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
    let start = pixels.start * out_c;
    for pixel in pixels {
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
            let other = other_of(&spec.finish, other, start + out.len());
            out.push(finish::value(&spec.finish, acc, other, o));
        }
    }
    out
}

/// Which of the ways to compute a case are run.
#[derive(Clone, Copy)]
#[allow(dead_code)]
pub(crate) enum Ways<'a> {
    /// The one that the rule takes.
    Usual,
    /// All of kernels that are wanted, by name.
    All(&'a dyn Fn(&str) -> bool),
}

/// Runs a case by each way, `turns` times in one session, and gives the kernels' names and whether they were
/// split. All memory but the output must be as it was before, and as zero as it was.
pub(crate) fn run(
    context: &Arc<Context>,
    (shape, numbers): (Shape, Numbers),
    kind: usize,
    (ways, turns): (Ways<'_>, usize),
    rng: &mut Rng,
) -> Vec<(&'static str, bool)> {
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
        zero_point: ZeroPoint::Static(if lo == -1 || numbers.centred {
            0
        } else {
            rng.range(lo, hi) as i32
        }),
        outside: i32::from(dtype == DType::Binary && rng.one_in(2)),
        bias: &bias,
        finish: finish(rng, kind, out_c, out_type),
    };
    let mut conv = Conv::new(context, &spec).unwrap();
    let samples = rng.size(1, 2);
    let mut all = conv.candidates(samples);
    match ways {
        Ways::Usual => all.truncate(1),
        Ways::All(wanted) => all.retain(|way| wanted(way.kernel.name())),
    }
    if all.is_empty() {
        return Vec::new();
    }
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
    let want = |index: usize| want[index].to_le_bytes();
    let mut met = Vec::new();
    for way in all {
        conv.prefer(samples, way);
        assert_eq!(conv.kernel(samples), way.kernel.label());
        // Input, second operand and output with guards between them and behind, then scratch.
        let size = spec.finish.dtype.size_in_memory();
        let other_at = (x.len() + GUARD).next_multiple_of(256);
        let y_at = (other_at + other.len() + GUARD).next_multiple_of(256);
        let y_bytes = elements * size;
        let scratch_at = (y_at + y_bytes + GUARD).next_multiple_of(256);
        let scratch_bytes = conv.scratch_bytes(samples);
        let end = scratch_at + scratch_bytes;
        let mut session = Session::new(context, end, end).unwrap();
        let at = |offset: usize| session.address() + offset as u64;
        let io = ConvIo {
            samples,
            x: at(0),
            y: at(y_at),
            other: at(other_at),
            scratch: at(scratch_at),
            scratch_bytes,
            ..ConvIo::default()
        };
        let launch = conv.launch(&io).unwrap();
        let split = launch.grid[2] as usize > groups;
        assert_eq!(launch.grid[2] as usize, groups * way.splits);
        let mut before = vec![0xA5; end];
        before.iter_mut().zip(&x).for_each(|(to, &x)| *to = x as u8);
        before[other_at..][..other.len()].copy_from_slice(&other);
        before[scratch_at..].fill(0);
        let upload = Command::Upload {
            from: 0..scratch_at,
            to: 0,
        };
        let download = Command::Download {
            from: 0..end,
            to: 0,
        };
        let commands = [upload, Command::Launch(launch), download];
        for turn in 0..turns {
            session.staging_mut().copy_from_slice(&before);
            session.run(&commands).unwrap();
            let what = format!("{way}, {shape:?}, {numbers:?}, finish {kind}, turn {turn}");
            let got = session.staging();
            let output = y_at..y_at + y_bytes;
            for (index, bytes) in got[output.clone()].chunks_exact(size).enumerate() {
                assert_eq!(bytes, &want(index)[..size], "{what}: element {index}");
            }
            let changed = (0..end).find(|at| !output.contains(at) && got[*at] != before[*at]);
            let places = (y_at, scratch_at);
            assert_eq!(
                changed, None,
                "{what}: written outside {output:?}, {places:?}"
            );
        }
        met.push((way.kernel.name(), split));
    }
    met
}

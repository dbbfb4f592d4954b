//! Times products: squares, and layers of networks, over inputs that no cache holds.

use std::sync::Arc;

use requant_conformance::Rng;
use requant_kernels_cuda::epilogue::{Finish, Join};
use requant_kernels_cuda::ops::Window;
use requant_kernels_cuda::ops::conv::{Conv, ConvIo, ConvSpec, ZeroPoint};
use requant_kernels_cuda::{Command, Context, CudaError, OpError, Recording, Session};
use requant_numerics::{DType, Requantize, Scheme};
use serde_json::json;

use super::bars::Bars;
use super::options::Options;
use super::report::Report;

/// Bytes of distinct inputs that products rotate through, at least; several times the largest cache.
const ROTATED: usize = 256 << 20;

/// Times that a graph of launches is timed.
const TURNS: usize = 15;

/// What a product multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Numbers {
    /// Weights and inputs of 8 bits.
    Bytes,
    /// Weights of 4 bits, inputs of 8.
    Nibbles,
    /// Weights and inputs of 4 bits.
    Narrow,
    /// -1 and 1.
    Binary,
}

impl Numbers {
    fn weight(self, rng: &mut Rng) -> i16 {
        match self {
            Numbers::Bytes => rng.range(-127, 127) as i16,
            Numbers::Nibbles | Numbers::Narrow => rng.range(-8, 7) as i16,
            Numbers::Binary => rng.pick(&[-1, 1]),
        }
    }

    fn input(self) -> DType {
        match self {
            Numbers::Bytes | Numbers::Nibbles => DType::U8,
            Numbers::Narrow => DType::U4,
            Numbers::Binary => DType::Binary,
        }
    }

    /// An input, made of a random byte.
    fn input_of(self, byte: u8) -> u8 {
        match self {
            Numbers::Bytes | Numbers::Nibbles => byte,
            Numbers::Narrow => byte & 15,
            Numbers::Binary => (byte & 2).wrapping_sub(1),
        }
    }
}

/// A product: a convolution of `input` (images, height, width, channels), `same` at its borders.
pub(crate) struct Work {
    pub(crate) name: String,
    pub(crate) input: [usize; 4],
    pub(crate) side: usize,
    pub(crate) channels: usize,
    pub(crate) numbers: Numbers,
}

impl Work {
    pub(crate) fn matrix(
        name: impl Into<String>,
        rows: usize,
        depth: usize,
        channels: usize,
    ) -> Self {
        Work {
            name: name.into(),
            input: [1, 1, rows, depth],
            side: 1,
            channels,
            numbers: Numbers::Bytes,
        }
    }

    fn of(mut self, numbers: Numbers, what: &str) -> Self {
        self.name = format!("{}, {what}", self.name);
        self.numbers = numbers;
        self
    }

    fn square(side: usize) -> Self {
        Work::matrix(format!("{side}^3"), side, side, side)
    }

    /// Rows, depth and columns of the matrices.
    pub(crate) fn dims(&self) -> [usize; 3] {
        let [images, h, w, c] = self.input;
        [images * h * w, self.side * self.side * c, self.channels]
    }

    pub(crate) fn input_bytes(&self) -> usize {
        self.input.iter().product()
    }

    /// Operations, 2 a multiply-accumulate.
    fn operations(&self) -> f64 {
        2.0 * self.dims().iter().product::<usize>() as f64
    }
}

/// What is timed.
fn works(quick: bool) -> Vec<Work> {
    let squares: &[usize] = if quick {
        &[1024, 2048]
    } else {
        &[1024, 2048, 4096, 8192]
    };
    let mut works: Vec<Work> = squares.iter().map(|&side| Work::square(side)).collect();
    let conv = |name: &str, images, side, c, channels| Work {
        name: name.to_owned(),
        input: [images, side, side, c],
        side: 3,
        channels,
        numbers: Numbers::Bytes,
    };
    works.extend([
        Work::matrix("ResNet-50 1x1 64-256, batch 32", 100_352, 64, 256),
        Work::matrix("ResNet-50 1x1 128-512, batch 32", 25_088, 128, 512),
        Work::matrix("ResNet-50 1x1 1024-256, batch 32", 6272, 1024, 256),
        Work::matrix("ResNet-50 1x1 512-2048, batch 32", 1568, 512, 2048),
        conv("ResNet-50 3x3 64, batch 32", 32, 56, 64, 64),
        conv("ResNet-50 3x3 256, batch 32", 32, 14, 256, 256),
        Work::matrix("MiniLM 384-1536, 32 x 128", 4096, 384, 1536),
        Work::matrix("BERT 3072-768, 8 x 128", 1024, 3072, 768),
        Work::matrix("one row 4096-4096", 1, 4096, 4096),
        Work::matrix("one row 4096-11008", 1, 4096, 11_008),
    ]);
    let narrow = if quick { 2048 } else { 4096 };
    let row = || Work::matrix("one row 4096-4096", 1, 4096, 4096);
    works.extend([
        Work::square(narrow).of(Numbers::Nibbles, "weights of 4 bits"),
        Work::square(narrow).of(Numbers::Narrow, "4 bits by 4 bits"),
        Work::square(narrow).of(Numbers::Binary, "binary"),
        row().of(Numbers::Nibbles, "weights of 4 bits"),
    ]);
    works
}

pub(crate) fn measure(context: &Arc<Context>, options: &Options, report: &mut Report) {
    let bars = match Bars::open(context, options.cublaslt.as_deref()) {
        Ok(bars) => {
            report.cublaslt(bars.json());
            bars.check(context, report);
            Some(bars)
        }
        Err(reason) => {
            println!("cuBLASLt is not compared with: {reason}");
            report.cublaslt(json!({ "missing": reason.to_string() }));
            None
        }
    };
    println!(
        "\nproduct: us, TOPS, share of peak; beside it the same of cuBLASLt, and its time by ours"
    );
    for work in works(options.quick) {
        let Some(result) = report.check(&work.name, || ours(context, &work)) else {
            continue;
        };
        let (kernel, us) = match result {
            Ok(timed) => timed,
            Err(error) => {
                report.failed(&work.name, &error.to_string());
                continue;
            }
        };
        let rate = |us: f64| work.operations() / us / 1e6;
        let share = |us: f64| rate(us) / report.peak_tops();
        let [rows, depth, channels] = work.dims();
        println!(
            "{:34} {rows:>6} x {depth:>5} x {channels:>5} {us:>9.1} us {:>7.1} TOPS {:>5.1}%  {kernel}",
            work.name,
            rate(us),
            100.0 * share(us)
        );
        let mut beside = Vec::new();
        // cuBLASLt multiplies no narrower integers.
        let bars = bars.iter().filter(|_| work.numbers == Numbers::Bytes);
        for (name, timed) in bars.flat_map(|bars| bars.time(context, &work)) {
            beside.push(match timed {
                Ok(bar) => {
                    println!(
                        "{:>59} {bar:>9.1} us {:>7.1} TOPS {:>5.1}%  {:.2}",
                        name,
                        rate(bar),
                        100.0 * share(bar),
                        bar / us
                    );
                    json!({ "bar": name, "us": bar, "tops": rate(bar), "share": share(bar), "ratio": bar / us })
                }
                Err(reason) => {
                    println!("{name:>59} {reason}");
                    json!({ "bar": name, "skipped": reason.to_string() })
                }
            });
        }
        report.product(json!({
            "product": work.name,
            "dims": [rows, depth, channels],
            "kernel": kernel,
            "us": us,
            "tops": rate(us),
            "share": share(us),
            "bars": beside,
        }));
    }
}

/// Random weights.
pub(crate) fn weights(work: &Work) -> Vec<i16> {
    let [_, depth, channels] = work.dims();
    let mut rng = Rng::new(4);
    let weights = (0..depth * channels).map(|_| work.numbers.weight(&mut rng));
    weights.collect()
}

/// From sums to bytes, a scale a channel.
pub(crate) fn requantize(work: &Work, dtype: DType) -> Requantize {
    let mut rng = Rng::new(6);
    let m = (0..work.channels).map(|_| rng.range(1 << 20, 1 << 24) as i32);
    let (lo, hi) = dtype.range().unwrap_or_default();
    Requantize {
        scheme: Scheme::Rhu {
            m: m.collect(),
            s: vec![32; work.channels],
        },
        zero_point: 0,
        lo: lo as i32,
        hi: hi as i32,
    }
}

/// Our product of inputs of one type, requantized to another.
pub(crate) fn conv(
    context: &Arc<Context>,
    work: &Work,
    [input, output]: [DType; 2],
    weights: &[i16],
) -> Result<Conv, OpError> {
    let [images, h, w, _] = work.input;
    let bias = vec![0; work.channels];
    let spec = ConvSpec {
        input: work.input,
        output: [images, h, w, work.channels],
        window: Window {
            kernel: [work.side; 2],
            strides: [1; 2],
            pads: [work.side / 2; 4],
            dilations: [1; 2],
        },
        groups: 1,
        weights,
        computed: None,
        dtype: input,
        zero_point: ZeroPoint::Static(0),
        outside: 0,
        bias: &bias,
        finish: Finish {
            requantize: Some(requantize(work, output)),
            real: None,
            join: Join::None,
            table: None,
            dtype: output,
        },
    };
    Conv::new(context, &spec)
}

/// Copies of an input to rotate through.
pub(crate) fn copies(work: &Work) -> usize {
    let each = work.input_bytes().next_multiple_of(256);
    (ROTATED / each).clamp(2, 64)
}

/// Fills `bytes` bytes of a session's memory from its start with random inputs.
pub(crate) fn fill(session: &mut Session, numbers: Numbers, bytes: usize) -> Result<(), CudaError> {
    for (index, byte) in session.staging_mut().iter_mut().enumerate() {
        let noise = (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56;
        *byte = numbers.input_of(noise as u8);
    }
    let chunk = session.staging().len().max(1);
    // Not the same noise in every copy.
    let step = (chunk - chunk / 7).max(1);
    let uploads: Vec<Command> = (0..bytes)
        .step_by(step)
        .map(|to| Command::Upload {
            from: 0..chunk.min(bytes - to),
            to,
        })
        .collect();
    session.run(&uploads)
}

/// Median microseconds of a piece of work, which is given the number of its turn: put on the stream often
/// enough that what surrounds it does not count, in one graph.
pub(crate) fn time<E: From<CudaError>>(
    session: &mut Session,
    work: &Work,
    mut put: impl FnMut(&Recording<'_>, usize) -> Result<(), E>,
) -> Result<f64, E> {
    let count = ((2e-2 * 5e14 / work.operations()) as usize).clamp(8, 512);
    session.record_with(0, |recording| {
        (0..count).try_for_each(|turn| put(recording, turn))
    })?;
    session.replay(0)?;
    let mut times = Vec::with_capacity(TURNS);
    for _ in 0..TURNS {
        times.push(session.time_replay(0)?.as_secs_f64() * 1e6 / count as f64);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[TURNS / 2])
}

/// The kernel and median microseconds of our product, requantized by channel to u8.
fn ours(context: &Arc<Context>, work: &Work) -> Result<(&'static str, f64), OpError> {
    let types = [work.numbers.input(), DType::U8];
    let conv = conv(context, work, types, &weights(work))?;
    let each = work.input_bytes().next_multiple_of(256);
    let copies = copies(work);
    let [rows, _, channels] = work.dims();
    let y_at = copies * each;
    let scratch_at = y_at + (rows * channels).next_multiple_of(256);
    let scratch_bytes = conv.scratch_bytes(1);
    let mut session = Session::new(context, scratch_at + scratch_bytes, each)?;
    fill(&mut session, work.numbers, y_at)?;
    let us = time::<OpError>(&mut session, work, |recording, turn| {
        let base = recording.address();
        let io = ConvIo {
            samples: 1,
            x: base + (turn % copies * each) as u64,
            y: base + y_at as u64,
            scratch: base + scratch_at as u64,
            scratch_bytes,
            ..ConvIo::default()
        };
        Ok(recording.launch(&conv.launch(&io)?)?)
    })?;
    Ok((conv.kernel(1), us))
}

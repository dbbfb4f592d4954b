//! Speed of the matrix kernels, as a share of what the machine's dot product instruction can do.
//!
//! `cargo bench -p requant-kernels-cpu -- [--json FILE] [--isa NAME] [--threads N] [--filter TEXT]`.
//! With `--serve MxNxK` it reads a number of runs of that int8 product from each line of stdin and answers with the
//! seconds that all of them took instead, so that another program can measure it in turn with others.
//! The peak is a loop of the instruction on registers alone; AVX2's `vpmaddwd` still leaves the addition
//! to do. It is measured between the repetitions of
//! each kernel, in slices of the same length, so that other load on the machine touches both alike;
//! both are medians. 2·M·N·K operations; convolutions count their taps as K.
//!
//! Products of a single row read every weight once. For them the rate at which as many bytes are read, measured in the
//! same way, bounds the speed: the last column is the share of it at which weights are read.
#![allow(clippy::expect_used)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use requant_kernels_cpu::probe::{Memory, dot_loop};
use requant_kernels_cpu::threads::ThreadPool;
use requant_kernels_cpu::{
    BitConv, BitSpec, Centroids, Conv, ConvIo, ConvShape, ConvSpec, Isa, Join, KernelError, Output,
    Parallel, Quantized, Weights,
};
use requant_numerics::{DType, Dyadic, Requantize, Scheme};
use serde_json::json;

/// M, N, K of plain products.
const PRODUCTS: [[usize; 3]; 14] = [
    [1, 1024, 1024],
    [1, 2048, 2048],
    [1, 4096, 4096],
    [1, 8192, 8192],
    [32, 384, 384],
    [128, 384, 1536],
    [128, 1536, 384],
    [512, 512, 512],
    [1024, 1024, 1024],
    [2048, 2048, 2048],
    [3136, 64, 576],
    [784, 128, 1152],
    [196, 256, 2304],
    [49, 512, 4608],
];

/// Size, input channels, output channels, kernel, stride, groups of square convolutions.
const CONVOLUTIONS: [[usize; 6]; 17] = [
    [56, 64, 64, 3, 1, 1],
    [28, 128, 128, 3, 1, 1],
    [14, 256, 256, 3, 1, 1],
    [7, 512, 512, 3, 1, 1],
    [56, 64, 256, 1, 1, 1],
    [224, 3, 64, 7, 2, 1],
    [56, 128, 128, 3, 1, 32],
    [28, 256, 256, 3, 1, 32],
    [14, 512, 512, 3, 1, 32],
    [56, 96, 96, 3, 1, 96],
    [112, 96, 96, 3, 2, 96],
    [28, 192, 192, 3, 2, 192],
    [28, 192, 192, 3, 1, 192],
    [7, 960, 960, 3, 1, 960],
    [14, 576, 576, 5, 1, 576],
    [112, 32, 16, 1, 1, 1],
    [224, 3, 32, 3, 2, 1],
];

/// Layer precisions, as metrics name them.
const PRECISIONS: [&str; 10] = [
    "w8a8", "w4a8", "w2a8", "wta8", "w1a8", "wca8", "w1a1", "w1at", "wta1", "wtat",
];

struct Arguments {
    json: Option<String>,
    isa: Isa,
    threads: usize,
    filter: String,
    serve: Option<[usize; 3]>,
}

fn main() {
    let Some(arguments) = arguments() else {
        eprintln!(
            "usage: gemm [--json FILE] [--isa NAME] [--threads N] [--filter TEXT] [--serve MxNxK]"
        );
        std::process::exit(2);
    };
    let pool = ThreadPool::new(arguments.threads).expect("threads start");
    if let Some([m, n, k]) = arguments.serve {
        return serve(&ConvShape::gemm(m, k, n), arguments.isa, &pool);
    }
    let mut shapes: Vec<(String, ConvShape)> = PRODUCTS
        .iter()
        .map(|&[m, n, k]| (format!("{m}x{n}x{k}"), ConvShape::gemm(m, k, n)))
        .collect();
    shapes.extend(
        CONVOLUTIONS
            .iter()
            .map(|&[size, in_c, out_c, kernel, stride, groups]| {
                let out = size.div_ceil(stride);
                let shape = ConvShape {
                    in_h: size,
                    in_w: size,
                    in_c,
                    out_h: out,
                    out_w: out,
                    out_c,
                    kernel: [kernel; 2],
                    strides: [stride; 2],
                    pads: [kernel / 2; 2],
                    dilations: [1; 2],
                    groups,
                };
                let name = format!("conv{size}-{in_c}-{out_c}-k{kernel}-s{stride}-g{groups}");
                (name, shape)
            }),
    );
    let mut results = Vec::new();
    println!(
        "{:<28} {:>5} {:<24} {:>8} {:>8} {:>6} {:>6} {:>6}",
        "shape", "prec", "kernel", "GOP/s", "peak", "share", "GB/s", "share"
    );
    for (name, shape) in &shapes {
        for precision in PRECISIONS {
            if !format!("{name} {precision}").contains(&arguments.filter) {
                continue;
            }
            let Measured {
                kernel,
                gops,
                peak,
                read,
            } = measure(shape, precision, arguments.isa, &pool);
            let share = peak.map(|peak| gops / peak);
            print!(
                "{name:<28} {precision:>5} {kernel:<24} {gops:>8.1} {:>8.1} {:>6.3}",
                peak.unwrap_or(f64::NAN),
                share.unwrap_or(f64::NAN)
            );
            match read {
                Some((ours, most)) => println!(" {ours:>6.1} {:>6.3}", ours / most),
                None => println!(),
            }
            results.push(json!({
                "name": name,
                "shape": [shape.out_h * shape.out_w, shape.out_c, shape.depth()],
                "precision": precision,
                "threads": arguments.threads,
                "gops": gops,
                "share_of_peak": share,
                "share_of_reading": read.map(|(ours, most)| ours / most),
                "kernel": kernel,
            }));
        }
    }
    if let Some(path) = arguments.json {
        let text = serde_json::to_string_pretty(&results).unwrap_or_default();
        if let Err(error) = std::fs::write(&path, text + "\n") {
            eprintln!("cannot write {path}: {error}");
            std::process::exit(2);
        }
    }
}

fn arguments() -> Option<Arguments> {
    let mut parsed = Arguments {
        json: None,
        isa: Isa::best(),
        threads: 1,
        filter: String::new(),
        serve: None,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--bench" => {}
            "--json" => parsed.json = Some(words.next()?),
            "--isa" => {
                parsed.isa = words
                    .next()?
                    .parse()
                    .ok()
                    .filter(|isa: &Isa| isa.is_available())?
            }
            "--threads" => parsed.threads = words.next()?.parse().ok().filter(|&n| n > 0)?,
            "--filter" => parsed.filter = words.next()?,
            "--serve" => {
                let sizes = words
                    .next()?
                    .split('x')
                    .map(|n| n.parse().ok().filter(|&n| n > 0))
                    .collect::<Option<Vec<usize>>>()?;
                parsed.serve = Some(sizes.try_into().ok()?);
            }
            _ => return None,
        }
    }
    Some(parsed)
}

/// A line of stdin asks for so many runs; a line of stdout gives the seconds of all of them.
fn serve(shape: &ConvShape, isa: Isa, pool: &ThreadPool) {
    let mut task = Task::new(shape, "w8a8", isa, pool.threads());
    println!("{}", task.conv.kernel());
    for line in std::io::stdin().lines() {
        let times = line
            .expect("stdin")
            .trim()
            .parse()
            .expect("a number of runs");
        println!("{:.9}", seconds(|| task.run(times, pool)));
    }
}

/// What one measurement yields.
struct Measured {
    kernel: &'static str,
    gops: f64,
    /// GOP/s of the dot product on registers.
    peak: Option<f64>,
    /// Of a single row: GB/s at which weights are read, and at which as many bytes can be read.
    read: Option<(f64, f64)>,
}

fn measure(shape: &ConvShape, precision: &str, isa: Isa, pool: &ThreadPool) -> Measured {
    let mut task = Task::new(shape, precision, isa, pool.threads());
    const SLICE: Duration = Duration::from_micros(1500);
    let weight_bytes = task.conv.packed_bytes();
    // Long enough that weights which fit the caches are read from there.
    let least = if weight_bytes > 2 << 20 { 24 } else { 1 };
    let times = repetitions(SLICE, &mut |times| task.run(times, pool)).max(least);
    let mut peak_run = dot_loop(isa).map(|(kernel, operations)| {
        let mut peak = move |rounds: usize| {
            pool.run(pool.threads(), &|_| kernel(rounds));
        };
        let rounds = repetitions(SLICE, &mut peak);
        (peak, rounds, operations * pool.threads() as f64)
    });
    let mut read_run = (shape.out_h * shape.out_w == 1).then(|| {
        let share = weight_bytes.div_ceil(pool.threads());
        let parts: Vec<Memory> = (0..pool.threads()).map(|_| Memory::new(share)).collect();
        let mut read = move |rounds: usize| {
            pool.run(parts.len(), &|part| parts[part].read(isa, rounds));
        };
        let rounds = repetitions(SLICE, &mut read).max(least);
        (read, rounds)
    });
    let (mut ours, mut peaks, mut reads) = (Vec::new(), Vec::new(), Vec::new());
    let start = Instant::now();
    while ours.len() < 15 || (ours.len() < 400 && start.elapsed() < Duration::from_millis(1200)) {
        if let Some((peak, rounds, operations)) = &mut peak_run {
            peaks.push(*operations * *rounds as f64 / seconds(|| peak(*rounds)) * 1e-9);
        }
        if let Some((read, rounds)) = &mut read_run {
            reads.push((weight_bytes * *rounds) as f64 / seconds(|| read(*rounds)) * 1e-9);
        }
        ours.push(
            2.0 * shape.macs() as f64 * times as f64 / seconds(|| task.run(times, pool)) * 1e-9,
        );
    }
    let gops = median(ours);
    let bytes = weight_bytes as f64 / (2.0 * shape.macs() as f64);
    Measured {
        kernel: task.conv.kernel(),
        gops,
        peak: (!peaks.is_empty()).then(|| median(peaks)),
        read: (!reads.is_empty()).then(|| (gops * bytes, median(reads))),
    }
}

/// A convolution with its buffers.
struct Task {
    conv: Prepared,
    input: Buffer,
    output: Buffer,
    scratch: Buffer,
}

impl Task {
    fn new(shape: &ConvShape, precision: &str, isa: Isa, threads: usize) -> Self {
        let conv = prepare(shape, precision, isa);
        let ternary = matches!(precision, "w1at" | "wtat");
        let input: Vec<u8> = (0..shape.input_elements())
            .map(|i| match precision {
                _ if precision.ends_with("a8") => (i * 31 % 251) as u8,
                _ if ternary => (i * 31 % 251 % 3) as u8,
                _ => 1,
            })
            .map(|byte| if ternary && byte == 2 { 0xff } else { byte })
            .collect();
        Task {
            input: Buffer::of(&input),
            output: Buffer::of(&vec![0; shape.output_elements()]),
            scratch: Buffer::of(&vec![0; conv.scratch_bytes(threads)]),
            conv,
        }
    }

    fn run(&mut self, times: usize, pool: &ThreadPool) {
        for _ in 0..times {
            let io = ConvIo {
                batch: 1,
                input: black_box(self.input.bytes()),
                other: None,
                output: self.output.bytes(),
                input_zero_point: None,
                scratch: self.scratch.bytes(),
            };
            self.conv.run(io, pool).expect("buffers that fit");
        }
    }
}

fn prepare(shape: &ConvShape, precision: &str, isa: Isa) -> Prepared {
    let weights = vec![3i8; shape.out_c * shape.depth()];
    let packed = vec![0x3du8; shape.out_c * shape.depth().div_ceil(2)];
    let dyadic: Vec<Dyadic> = (0..shape.out_c)
        .map(|c| Dyadic::from_f64(1e-3 + 1e-6 * c as f64).expect("a small positive scale"))
        .collect();
    let bias = vec![11; shape.out_c];
    match precision {
        "w8a8" | "w4a8" => {
            let spec = ConvSpec {
                shape: *shape,
                input: DType::U8,
                input_zero_point: 7,
                weights: match precision {
                    "w4a8" => Weights::I4(&packed),
                    _ => Weights::I8(&weights),
                },
                bias: &bias,
                output: requantized(&dyadic),
            };
            Prepared::Bytes(Box::new(
                Conv::new(isa, &spec).expect("a valid convolution"),
            ))
        }
        "w2a8" | "wta8" | "w1a8" | "wca8" => {
            let of = |index: usize| match precision {
                "w2a8" => (index % 4) as i8 - 2,
                "wta8" => (index % 3) as i8 - 1,
                "w1a8" => (index % 2) as i8 * 2 - 1,
                // 256 centroids of 4 weights.
                _ => (index / 4 * 37 % 256 + index % 4) as i8,
            };
            let values: Vec<i8> = (0..weights.len()).map(of).collect();
            let indices: Vec<u8> = (0..weights.len().div_ceil(4))
                .map(|index| (index * 37 % 256) as u8)
                .collect();
            let centroids: Vec<i8> = (0..1024).map(|i| (i / 4 + i % 4) as u8 as i8).collect();
            let spec = ConvSpec {
                shape: *shape,
                input: DType::U8,
                input_zero_point: 7,
                weights: Weights::I8(&values),
                bias: &bias,
                output: requantized(&dyadic),
            };
            let codebook = (precision == "wca8").then_some(Centroids {
                indices: &indices,
                centroids: &centroids,
                width: 4,
            });
            // Centroids are not cut at the end of a row here, so rows are whole ones.
            let whole = codebook.filter(|_| shape.depth().is_multiple_of(4));
            match Conv::coded(isa, &spec, whole).expect("a valid convolution") {
                Some(conv) => Prepared::Bytes(Box::new(conv)),
                None => Prepared::Bytes(Box::new(
                    Conv::new(isa, &spec).expect("a valid convolution"),
                )),
            }
        }
        _ => Prepared::Bits(Box::new(bits(shape, precision, isa, &bias))),
    }
}

/// An output of 8 bits, requantized by `rhu`.
fn requantized(dyadic: &[Dyadic]) -> Output {
    Output::Quantized(Box::new(Quantized {
        requantize: Requantize {
            scheme: Scheme::Rhu {
                m: dyadic.iter().map(|d| d.m).collect(),
                s: dyadic.iter().map(|d| d.s).collect(),
            },
            zero_point: 3,
            lo: 0,
            hi: 255,
        },
        dtype: DType::U8,
        join: Join::None,
        table: None,
    }))
}

/// A convolution of binary or ternary operands whose output is a sign.
fn bits(shape: &ConvShape, precision: &str, isa: Isa, bias: &[i32]) -> BitConv {
    let weights = vec![1i8; shape.out_c * shape.depth()];
    let spec = BitSpec {
        shape: *shape,
        input: match precision {
            "w1at" | "wtat" => DType::Ternary,
            _ => DType::Binary,
        },
        zero_border: false,
        ternary_weights: matches!(precision, "wta1" | "wtat"),
        weights: &weights,
        bias,
        output: Output::Quantized(Box::new(Quantized {
            requantize: Requantize {
                scheme: Scheme::Thresholds {
                    levels: 1,
                    tau: (0..shape.out_c as i32).collect(),
                    falls: vec![false; shape.out_c],
                },
                zero_point: 0,
                lo: -1,
                hi: 1,
            },
            dtype: DType::Binary,
            join: Join::None,
            table: None,
        })),
    };
    BitConv::new(isa, &spec).expect("a valid convolution")
}

/// Bytes on a cache line, as the engine's arena has them: vectors that cross lines cost twice.
struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl Buffer {
    const LINE: usize = 64;

    fn of(from: &[u8]) -> Self {
        let mut bytes = vec![0; from.len() + Self::LINE];
        let start = bytes.as_ptr().align_offset(Self::LINE).min(Self::LINE);
        bytes[start..start + from.len()].copy_from_slice(from);
        Buffer {
            bytes,
            start,
            length: from.len(),
        }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.length]
    }
}

/// What is measured.
enum Prepared {
    Bytes(Box<Conv>),
    Bits(Box<BitConv>),
}

impl Prepared {
    fn kernel(&self) -> &'static str {
        match self {
            Prepared::Bytes(conv) => conv.kernel(),
            Prepared::Bits(conv) => conv.kernel(),
        }
    }

    fn packed_bytes(&self) -> usize {
        match self {
            Prepared::Bytes(conv) => conv.packed_bytes(),
            Prepared::Bits(conv) => conv.packed_bytes(),
        }
    }

    fn scratch_bytes(&self, threads: usize) -> usize {
        match self {
            Prepared::Bytes(conv) => conv.scratch_bytes(threads),
            Prepared::Bits(conv) => conv.scratch_bytes(threads),
        }
    }

    fn run(&self, io: ConvIo<'_>, pool: &ThreadPool) -> Result<(), KernelError> {
        match self {
            Prepared::Bytes(conv) => conv.run(io, pool),
            Prepared::Bits(conv) => conv.run(io, pool),
        }
    }
}

fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// How often `work` runs in `slice`, at least once.
fn repetitions(slice: Duration, work: &mut impl FnMut(usize)) -> usize {
    let mut times = 1;
    loop {
        let start = Instant::now();
        work(times);
        let taken = start.elapsed();
        if taken >= slice / 4 || times > 1 << 24 {
            let share = slice.as_secs_f64() / taken.as_secs_f64();
            return ((times as f64 * share) as usize).max(1);
        }
        times *= 2;
    }
}

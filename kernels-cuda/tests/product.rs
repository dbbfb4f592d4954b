//! Every product kernel on the emulated device against plain loops: shapes with tails on every side,
//! every way of reading the input and of finishing, split and not, wide weights, joins and tables.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use requant_conformance::Rng;
use requant_conformance::emulator::{self, Form};
use requant_kernels_cuda::epilogue::{Finish, Join};
use requant_kernels_cuda::ops::conv::{Conv, ConvIo, ConvSpec, ZeroPoint};
use requant_kernels_cuda::ops::{Way, Window};
use requant_kernels_cuda::{Context, Kernel, Launch, OpError};
use requant_numerics::DType;
use support::{DENSE, FINISHES, NUMBERS, Numbers, SHAPES, Shape, WINDOWS, Ways, run};

#[test]
fn every_product_equals_plain_loops() {
    let name = "every_product_equals_plain_loops";
    if emulator::is_emulated(name, "major=8") {
        compare_all("sm_80");
    }
}

#[test]
fn every_product_by_wgmma_equals_plain_loops() {
    let name = "every_product_by_wgmma_equals_plain_loops";
    if emulator::is_emulated(name, "major=9") {
        compare_all("sm_90a");
    }
}

/// Dense products by blocks that stay: with two blocks, which have many tiles each, and with four.
#[test]
fn every_product_of_blocks_that_stay_equals_plain_loops() {
    let name = "every_product_of_blocks_that_stay_equals_plain_loops";
    for settings in ["major=9,multiprocessors=2", "major=9,multiprocessors=4"] {
        if emulator::is_child() && std::env::var("REQUANT_EMULATED").as_deref() != Ok(settings) {
            continue;
        }
        if emulator::is_emulated(name, settings) {
            dense_products();
        }
    }
}

fn dense_products() {
    let context = Context::open(0).unwrap();
    let mut rng = Rng::new(23);
    let mut met: BTreeMap<&str, usize> = BTreeMap::new();
    for (index, &shape) in DENSE.iter().enumerate() {
        // Each form of finishing, with its joins and tables for every other shape.
        for (turn, kind) in [[0, 5, 6, 11, 13], [4, 1, 2, 12, 14]][index % 2]
            .into_iter()
            .enumerate()
        {
            let numbers = Numbers {
                weights: (-127, 127),
                dtype: [DType::U8, DType::I8][(turn + index) % 2],
                extreme: false,
                centred: false,
            };
            let case = (shape, numbers);
            for (name, split) in run(&context, case, kind, (Ways::Usual, 1), &mut rng) {
                assert!(!split);
                *met.entry(name).or_default() += 1;
            }
        }
    }
    assert_all_stay(&met);
}

/// Every kernel of blocks that stay was met.
fn assert_all_stay(met: &BTreeMap<&str, usize>) {
    println!("{met:#?}");
    let all = Kernel::ALL.iter().filter(|kernel| kernel.is_persistent());
    for kernel in all {
        assert!(
            met.contains_key(kernel.name()),
            "{} was not met",
            kernel.name()
        );
    }
}

/// Windows by the same kernels, each of which computes every shape.
#[test]
fn every_window_of_blocks_that_stay_equals_plain_loops() {
    let name = "every_window_of_blocks_that_stay_equals_plain_loops";
    if !emulator::is_emulated(name, "major=9,multiprocessors=2") {
        return;
    }
    let context = Context::open(0).unwrap();
    let mut rng = Rng::new(31);
    let mut met: BTreeMap<&str, usize> = BTreeMap::new();
    let stays = |name: &str| name.starts_with("turn_") || name.starts_with("pair_");
    for (index, &shape) in WINDOWS.iter().enumerate() {
        // Without a border any zero point will do.
        let Shape(.., pad, _) = shape;
        for (turn, kind) in [[0, 5, 13], [4, 2, 6]][index % 2].into_iter().enumerate() {
            let numbers = Numbers {
                weights: (-127, 127),
                dtype: [DType::U8, DType::I8][(turn + index) % 2],
                extreme: false,
                centred: pad > 0,
            };
            let case = (shape, numbers);
            let used = run(&context, case, kind, (Ways::All(&stays), 1), &mut rng);
            assert_eq!(used.len(), 3, "{shape:?}");
            used.iter()
                .for_each(|(name, _)| *met.entry(name).or_default() += 1);
        }
    }
    assert_all_stay(&met);
}

/// The kernel that a layer of 128 channels gets, by its window and zero point.
fn kernel_of_window(context: &Arc<Context>, window: Window, zero_point: ZeroPoint) -> &'static str {
    let [height, width] = [0, 1].map(|axis| {
        let reach = window.dilations[axis] * (window.kernel[axis] - 1);
        (600 + window.pads[axis] + window.pads[axis + 2] - reach - 1) / window.strides[axis] + 1
    });
    let shape = ([1, 600, 600, 128], [1, height, width, 64]);
    let conv = plain(context, shape, window, zero_point);
    let chosen = conv.kernel(1);
    // The driver takes every map that is asked for.
    assert_eq!(launched(&conv, 1 << 20), chosen);
    chosen
}

#[test]
fn windows_that_copies_by_tile_cannot_gather() {
    let name = "windows_that_copies_by_tile_cannot_gather";
    if !emulator::is_emulated(name, "major=9,multiprocessors=2") {
        return;
    }
    let context = Context::open(0).unwrap();
    let zero = ZeroPoint::Static(0);
    let (stays, others) = ("turn_product_u8_64_any", "group_product_u8_64_any");
    for (kernel, stride, pad, dilation, zero_point, expected) in [
        (3, 1, 1, 1, zero, stays),
        // What lies outside is no zero, unless nothing does.
        (3, 1, 1, 1, ZeroPoint::Static(3), others),
        (3, 1, 1, 1, ZeroPoint::Dynamic, others),
        (3, 1, 0, 1, ZeroPoint::Static(3), stays),
        (1, 2, 0, 1, ZeroPoint::Static(3), stays),
        // The limits of steps, taps and corners.
        (3, 8, 1, 1, zero, stays),
        (3, 9, 1, 1, zero, others),
        (2, 1, 100, 200, zero, stays),
        (2, 1, 128, 255, zero, stays),
        (2, 1, 128, 256, zero, others),
        (2, 1, 129, 255, zero, others),
        // The last window starts 128 pixels before the image's last, and 129.
        (2, 1, 0, 128, zero, stays),
        (2, 1, 0, 129, zero, others),
    ] {
        let window = Window {
            kernel: [kernel; 2],
            strides: [stride; 2],
            pads: [pad; 4],
            dilations: [dilation; 2],
        };
        let chosen = kernel_of_window(&context, window, zero_point);
        assert_eq!(
            chosen, expected,
            "{kernel} {stride} {pad} {dilation} {zero_point:?}"
        );
    }
}

/// A layer of bytes with no operation behind it.
fn plain(
    context: &Arc<Context>,
    (input, output): ([usize; 4], [usize; 4]),
    window: Window,
    zero_point: ZeroPoint,
) -> Conv {
    let weights = vec![100; output[3] * input[3] * window.kernel[0] * window.kernel[1]];
    let spec = ConvSpec {
        input,
        output,
        window,
        groups: 1,
        weights: &weights,
        computed: None,
        dtype: DType::U8,
        zero_point,
        outside: 0,
        bias: &[],
        finish: Finish {
            requantize: None,
            real: None,
            join: Join::None,
            table: None,
            dtype: DType::I32,
        },
    };
    Conv::new(context, &spec).unwrap()
}

/// A dense product with no operation behind it.
fn dense(context: &Arc<Context>, rows: usize, channels: usize) -> Conv {
    let window = Window {
        kernel: [1; 2],
        strides: [1; 2],
        pads: [0; 4],
        dilations: [1; 2],
    };
    let shape = ([1, 1, rows, 48], [1, 1, rows, channels]);
    plain(context, shape, window, ZeroPoint::Static(0))
}

/// The kernel of a launch with an input and zero points at `x`, which needs no scratch.
fn launched(conv: &Conv, x: u64) -> &'static str {
    let io = ConvIo {
        samples: 1,
        x,
        zero_points: x,
        ..ConvIo::default()
    };
    conv.launch(&io).unwrap().kernel.name()
}

#[test]
fn what_blocks_that_stay_cannot_do_others_do() {
    let name = "what_blocks_that_stay_cannot_do_others_do";
    if emulator::is_emulated(name, "major=9,multiprocessors=1") {
        let context = Context::open(0).unwrap();
        let conv = dense(&context, 512, 64);
        assert_eq!(conv.kernel(1), "turn_product_u8_64_any");
        assert_eq!(launched(&conv, 1 << 20), "turn_product_u8_64_any");
        assert_eq!(launched(&conv, (1 << 20) + 8), "group_product_u8_64_any");
        // Few rows are multiplied as ever, however many channels they have.
        let few = dense(&context, 4, 300);
        assert_eq!(few.kernel(1), "row_product_u8_4");
        assert_eq!(few.kernel(2), "turn_product_u8_128_any");
    }
}

#[test]
fn a_driver_that_makes_no_maps() {
    let name = "a_driver_that_makes_no_maps";
    if emulator::is_child() {
        let conv = dense(&Context::open(0).unwrap(), 512, 64);
        assert_eq!(conv.kernel(1), "group_product_u8_64_any");
        assert_eq!(launched(&conv, 1 << 20), "group_product_u8_64_any");
        return;
    }
    let Some(library) = emulator::library() else {
        println!("skipped: no C++ compiler");
        return;
    };
    let whole = std::fs::read(library).unwrap();
    for name_of in ["cuTensorMapEncodeTiled", "cuTensorMapEncodeIm2col"] {
        // The emulated driver with the function under a name of the same length.
        let mut bytes = whole.clone();
        let symbol = format!("{name_of}\0");
        let places: Vec<usize> = (0..bytes.len() - symbol.len())
            .filter(|&at| bytes[at..].starts_with(symbol.as_bytes()))
            .collect();
        assert!(!places.is_empty());
        places.iter().for_each(|&at| bytes[at] = b'x');
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cuda-without-{name_of}"));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("libcuda.so"), bytes).unwrap();
        emulator::rerun(name, "major=9,multiprocessors=1", &folder);
    }
}

#[test]
fn every_product_on_turing_equals_plain_loops() {
    let name = "every_product_on_turing_equals_plain_loops";
    if emulator::is_emulated_as(Form::Turing, name, "") {
        compare_all("sm_75");
    }
}

#[test]
fn products_without_narrow_units_equal_plain_loops() {
    let name = "products_without_narrow_units_equal_plain_loops";
    if emulator::is_emulated(name, "major=10") {
        compare_all("sm_100a");
    }
}

/// Every kind of narrow numbers, all of them the least there are, where sums are largest; and depths past the
/// bound of weights times 16, which are bytes then.
#[test]
fn narrow_numbers_at_their_limits() {
    let name = "narrow_numbers_at_their_limits";
    for (form, settings) in [
        (Form::Turing, "major=7,minor=5"),
        (Form::Any, "major=8"),
        (Form::Any, "major=9"),
    ] {
        if emulator::is_child() && std::env::var("REQUANT_EMULATED").as_deref() != Ok(settings) {
            continue;
        }
        if emulator::is_emulated_as(form, name, settings) {
            println!("on {settings}");
            at_their_limits();
        }
    }
}

fn at_their_limits() {
    let context = Context::open(0).unwrap();
    let mut rng = Rng::new(22);
    let few = [
        DType::U8,
        DType::I8,
        DType::U4,
        DType::I4,
        DType::Ternary,
        DType::Binary,
    ];
    let shapes = [
        Shape(1, 5, 7, 3, 10, 1, 3, 2, 1, 1),
        Shape(1, 8, 9, 48, 33, 2, 3, 1, 1, 2),
        Shape(1, 3, 3, 304, 70, 1, 2, 1, 1, 1),
        Shape(1, 1, 1, 1001, 9, 1, 1, 1, 0, 1),
        Shape(1, 3, 3, 1216, 50, 1, 1, 1, 0, 1),
    ];
    for shape in shapes {
        for dtype in few {
            for weights in [(-8, 7), (-1, 1), (-128, 127)] {
                let numbers = Numbers {
                    weights,
                    dtype,
                    extreme: true,
                    centred: false,
                };
                for kind in [0, 10] {
                    let usual = (Ways::Usual, 3);
                    run(&context, (shape, numbers), kind, usual, &mut rng);
                }
                // Parts of the sums by every kernel.
                let all = (Ways::All(&|_| true), 1);
                run(&context, (shape, numbers), 6, all, &mut rng);
            }
        }
    }
    // 65,793 weights of -8 and bytes of 255 are the most; the products of rows and of tiles.
    for (depth, rows, narrow) in [(65_792, 5, true), (65_808, 5, false), (1 << 15, 1, true)] {
        let shape = Shape(1, 1, rows, depth, 3, 1, 1, 1, 0, 1);
        let numbers = Numbers {
            weights: (-8, 7),
            dtype: DType::U8,
            extreme: true,
            centred: false,
        };
        let all = Ways::All(&|_| true);
        let met = run(&context, (shape, numbers), 6, (all, 1), &mut rng);
        assert!(!met.is_empty());
        for (name, _) in met {
            assert_eq!(name.contains("_w4_"), narrow, "{name}");
        }
    }
}

/// Sums of a tile, and its ticket, for as many tiles as the launch has.
fn bytes_of_splits(launch: &Launch) -> usize {
    let [x, y, z] = launch.grid;
    let tiles = (x * y) as usize;
    let tickets = (tiles * 4).next_multiple_of(256);
    let side = if launch.kernel.name().contains("_128_") {
        128
    } else {
        64
    };
    if z > 1 {
        tickets + tiles * side * side * 4
    } else {
        0
    }
}

#[test]
fn every_batch_has_room_for_its_splits() {
    let name = "every_batch_has_room_for_its_splits";
    if !emulator::is_emulated(name, "major=8,multiprocessors=132") {
        return;
    }
    let context = Context::open(0).unwrap();
    // A layer of a network, 28x28, 3x3: a batch of 5 has more tiles than one of 4, and one of 8 splits none.
    let weights = vec![1; 128 * 9 * 128];
    let spec = ConvSpec {
        input: [1, 28, 28, 128],
        output: [1, 28, 28, 128],
        window: Window {
            kernel: [3; 2],
            strides: [1; 2],
            pads: [1; 4],
            dilations: [1; 2],
        },
        groups: 1,
        weights: &weights,
        computed: None,
        dtype: DType::U8,
        zero_point: ZeroPoint::Static(0),
        outside: 0,
        bias: &[],
        finish: Finish {
            requantize: None,
            real: None,
            join: Join::None,
            table: None,
            dtype: DType::I32,
        },
    };
    let mut conv = Conv::new(&context, &spec).unwrap();
    let io = |samples, scratch_bytes| ConvIo {
        samples,
        scratch_bytes,
        ..ConvIo::default()
    };
    let needed = |conv: &Conv| {
        let mut needed = Vec::new();
        for most in 1..=9 {
            let there = conv.scratch_bytes(most);
            for samples in 1..=most {
                let bytes = bytes_of_splits(&conv.launch(&io(samples, there)).unwrap());
                assert!(bytes <= there, "{samples} of {most}: {bytes} of {there}");
                if bytes > 0 {
                    let refused = conv.launch(&io(samples, bytes - 1)).unwrap_err();
                    let scratch = OpError::Scratch {
                        needed: bytes,
                        there: bytes - 1,
                    };
                    assert_eq!(refused, scratch);
                }
                needed.push(bytes);
            }
        }
        needed.into_iter().max().unwrap()
    };
    assert_eq!(needed(&conv), 2_032_128);
    // Whatever a table asks for, the large tiles that are split included.
    let mut most = 0;
    for way in conv.candidates(4) {
        for samples in [1, 4, 8] {
            conv.prefer(samples, way);
        }
        most = most.max(needed(&conv));
    }
    // Small tiles of eight images; nine are in a bucket of their own.
    assert_eq!(most, 196 * 64 * 64 * 4 + 1024);
}

/// What a table may ask for: names of kernels that compute some rows of a layer.
#[test]
fn a_table_chooses_among_the_kernels_that_serve() {
    for settings in ["major=8", "major=9"] {
        if emulator::is_child() && std::env::var("REQUANT_EMULATED").as_deref() != Ok(settings) {
            continue;
        }
        if emulator::is_emulated("a_table_chooses_among_the_kernels_that_serve", settings) {
            choose_all(settings == "major=8");
        }
    }
}

fn choose_all(ampere: bool) {
    let context = Context::open(0).unwrap();
    // A layer of 64 channels over one pixel a sample, of 512 values.
    let offered = |(lo, hi): (i16, i16), dtype, samples| {
        let weights: Vec<i16> = (0..512 * 64)
            .map(|i| if i % 3 == 0 { lo } else { hi })
            .collect();
        let finish = Finish {
            requantize: None,
            real: None,
            join: Join::None,
            table: None,
            dtype: DType::I32,
        };
        let spec = ConvSpec {
            input: [1, 1, 1, 512],
            output: [1, 1, 1, 64],
            window: Window {
                kernel: [1; 2],
                strides: [1; 2],
                pads: [0; 4],
                dilations: [1; 2],
            },
            groups: 1,
            weights: &weights,
            computed: None,
            dtype,
            zero_point: ZeroPoint::Static(0),
            outside: 0,
            bias: &[],
            finish,
        };
        let mut conv = Conv::new(&context, &spec).unwrap();
        let ways = conv.candidates(samples);
        let usual = conv.kernel(samples);
        assert_eq!(usual, ways[0].kernel.label());
        // What is offered is taken, and nothing else is.
        for &kernel in Kernel::ALL {
            for splits in [1, 2, 3, 33] {
                let way = Way { kernel, splits };
                // As many parts as there are slices, of 64 elements or of 256.
                let most = match kernel.name() {
                    _ if !kernel.splits() => 1,
                    name if name.starts_with("bit_") => 2,
                    _ => 8,
                };
                let serves = splits <= most && ways.iter().any(|way| way.kernel == kernel);
                conv.prefer(samples, way);
                let scratch_bytes = conv.scratch_bytes(samples);
                let io = ConvIo {
                    samples,
                    scratch_bytes,
                    ..ConvIo::default()
                };
                let launch = conv.launch(&io).unwrap();
                let taken = (launch.kernel, launch.grid[2] as usize) == (kernel, splits);
                assert_eq!(taken, serves, "{way}");
            }
        }
        let names: BTreeSet<&str> = ways.iter().map(|way| way.kernel.name()).collect();
        names.into_iter().collect::<Vec<_>>().join(" ")
    };
    let bytes = offered((-100, 100), DType::U8, 5);
    let few = offered((-100, 100), DType::U8, 1);
    let four = offered((-8, 7), DType::I4, 3);
    let counted = offered((-1, 1), DType::Binary, 1);
    if ampere {
        assert_eq!(bytes, "product_u8_128_any product_u8_64_any");
        assert_eq!(few, "product_u8_128_any product_u8_64_any row_product_u8_1");
        assert_eq!(
            four,
            "product_w4_i8_128_any product_w4_i8_64_any product_w4a4_i4_128_any \
             product_w4a4_i4_64_any row_product_w4_i8_4"
        );
        assert_eq!(counted, "bit_product_xor_1_any");
    } else {
        assert_eq!(
            bytes,
            "group_product_u8_128_any group_product_u8_64_any pair_product_u8_256_any product_u8_128_any \
             product_u8_64_any turn_product_u8_128_any turn_product_u8_64_any"
        );
        assert!(few.ends_with(" row_product_u8_1"), "{few}");
        assert_eq!(
            four,
            "group_product_w4_i8_128_any group_product_w4_i8_64_any product_w4_i8_128_any \
             product_w4_i8_64_any row_product_w4_i8_4"
        );
        assert_eq!(counted, "bit_product_and_1_any");
    }
}

/// Runs every shape with every finish, and demands that it met every product of an image, whole and split.
fn compare_all(image: &str) {
    let context = Context::open(0).unwrap();
    let mut rng = Rng::new(21);
    let mut met: BTreeMap<&str, [usize; 2]> = BTreeMap::new();
    let count = |met: &mut BTreeMap<&str, [usize; 2]>, runs: Vec<(&'static str, bool)>| {
        for (name, split) in runs {
            met.entry(name).or_default()[usize::from(split)] += 1;
        }
    };
    for &shape in SHAPES {
        for kind in 0..FINISHES {
            let case = (shape, any_numbers(kind, &mut rng));
            let runs = run(&context, case, kind, (Ways::Usual, 3), &mut rng);
            count(&mut met, runs);
        }
        // Every kernel and split that a table may ask for.
        for kind in [0, 1, 3] {
            let all = Ways::All(&|_| true);
            let case = (shape, any_numbers(kind, &mut rng));
            let runs = run(&context, case, kind, (all, 1), &mut rng);
            count(&mut met, runs);
        }
    }
    // What chance has not met yet, looked for with the shapes and numbers that lead there.
    let missing = |met: &BTreeMap<&str, [usize; 2]>| {
        let is_missing = |kernel: &&Kernel| {
            let [whole, split] = met.get(kernel.name()).copied().unwrap_or_default();
            whole == 0 || (split == 0 && kernel.splits())
        };
        let products = Kernel::ALL
            .iter()
            .filter(|k| k.is_product() && k.is_in(image));
        products.filter(is_missing).map(|k| k.name()).next()
    };
    for turn in 0..4000 {
        let Some(name) = missing(&met) else { break };
        let kind = match name {
            name if name.ends_with("_rhu") => rng.pick(&[0, 4, 11, 12, 14]),
            name if name.ends_with("_f32") => rng.pick(&[1, 5, 13]),
            _ => rng.pick(&[2, 3, 6, 7, 8, 9, 10]),
        };
        let numbers = numbers_of(name, &mut rng);
        let shape = SHAPES[turn % SHAPES.len()];
        let wanted = |other: &str| other == name;
        let only = (Ways::All(&wanted), 3);
        let runs = run(&context, (shape, numbers), kind, only, &mut rng);
        count(&mut met, runs);
    }
    println!("{met:#?}");
    assert_eq!(missing(&met), None, "was not met");
}

/// Weights of one kind and inputs of any, for a finish.
fn any_numbers(kind: usize, rng: &mut Rng) -> Numbers {
    let (weights, input) = (rng.pick(NUMBERS), rng.pick(NUMBERS));
    let any = Numbers::of(weights.weights, input.dtype);
    if any.suits(kind) { any } else { NUMBERS[0] }
}

/// Numbers that kernel `name` multiplies.
fn numbers_of(name: &str, rng: &mut Rng) -> Numbers {
    let ternary = rng.one_in(2);
    let (weights, dtype) = match name {
        name if name.starts_with("bit_") => {
            let dtype = if ternary {
                DType::Ternary
            } else {
                DType::Binary
            };
            let weights = if name.contains("_1_") {
                (-1, 2)
            } else {
                (-1, 1)
            };
            (weights, dtype)
        }
        name if name.contains("_u4_") => ((-8, 7), DType::U4),
        name if name.contains("_i4_") => ((-8, 7), DType::I4),
        name if name.contains("_w4_u8") => ((-8, 7), DType::U8),
        name if name.contains("_w4_") => ((-8, 7), DType::I8),
        name if name.contains("_u8_") => ((-127, 127), DType::U8),
        _ => ((-127, 127), DType::I8),
    };
    Numbers::of(weights, dtype)
}

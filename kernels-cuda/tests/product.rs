//! Every product kernel on the emulated device against plain loops: shapes with tails on every side,
//! every way of reading the input and of finishing, split and not, wide weights, joins and tables.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::BTreeMap;

use requant_conformance::Rng;
use requant_conformance::emulator::{self, Form};
use requant_kernels_cuda::epilogue::{Finish, Join};
use requant_kernels_cuda::ops::Window;
use requant_kernels_cuda::ops::conv::{Conv, ConvIo, ConvSpec, ZeroPoint};
use requant_kernels_cuda::{Context, Kernel, OpError};
use requant_numerics::DType;
use support::{FINISHES, Numbers, SHAPES, Shape, run, run_with};

#[test]
fn every_product_equals_plain_loops() {
    let name = "every_product_equals_plain_loops";
    if emulator::is_emulated(name, "major=8") {
        compare_all(|kernel| kernel.is_in("sm_80"));
    }
}

#[test]
fn every_product_by_wgmma_equals_plain_loops() {
    let name = "every_product_by_wgmma_equals_plain_loops";
    if emulator::is_emulated(name, "major=9") {
        // Where warpgroups have the large tiles, warps have none.
        compare_all(|kernel| {
            kernel.is_in("sm_90a") && (kernel.needs_wgmma() || !kernel.name().contains("_128_"))
        });
    }
}

#[test]
fn every_product_on_turing_equals_plain_loops() {
    let name = "every_product_on_turing_equals_plain_loops";
    if emulator::is_emulated_as(Form::Turing, name, "") {
        compare_all(|kernel| kernel.is_in("sm_75"));
    }
}

#[test]
fn products_without_narrow_units_equal_plain_loops() {
    let name = "products_without_narrow_units_equal_plain_loops";
    if emulator::is_emulated(name, "major=10") {
        compare_all(|kernel| kernel.is_in("sm_100a"));
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
                };
                for kind in [0, 6, 10] {
                    run_with(&context, (shape, numbers), kind, &mut rng);
                }
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
        };
        let (name, _) = run_with(&context, (shape, numbers), 6, &mut rng);
        assert_eq!(name.contains("_w4_"), narrow, "{name}");
    }
}

/// Sums of a tile of 64 by 64, and its ticket, for as many tiles as the launch has.
fn bytes_of_splits([x, y, z]: [u32; 3]) -> usize {
    let tiles = (x * y) as usize;
    let tickets = (tiles * 4).next_multiple_of(256);
    if z > 1 {
        tickets + tiles * 64 * 64 * 4
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
            join: Join::None,
            table: None,
            dtype: DType::I32,
        },
    };
    let conv = Conv::new(&context, &spec).unwrap();
    let mut needed = Vec::new();
    for most in 1..=9 {
        let io = |samples, scratch_bytes| ConvIo {
            samples,
            scratch_bytes,
            ..ConvIo::default()
        };
        let there = conv.scratch_bytes(most);
        for samples in 1..=most {
            let grid = conv.launch(&io(samples, there)).unwrap().grid;
            let bytes = bytes_of_splits(grid);
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
    assert_eq!(needed.iter().max(), Some(&2_032_128));
}

/// Runs every shape with every finish, and demands that it met the kernels that it should.
fn compare_all(expected: impl Fn(&Kernel) -> bool) {
    let context = Context::open(0).unwrap();
    let mut rng = Rng::new(21);
    let mut met: BTreeMap<&str, [usize; 2]> = BTreeMap::new();
    for &shape in SHAPES {
        for kind in 0..FINISHES {
            let (name, split) = run(&context, shape, kind, &mut rng);
            met.entry(name).or_default()[usize::from(split)] += 1;
        }
    }
    // What chance has not met yet, looked for with the shapes and numbers that lead there.
    let products = || Kernel::ALL.iter().filter(|k| k.name().contains("product_"));
    let missing = |met: &BTreeMap<&str, [usize; 2]>| {
        let missing = products().find(|k| expected(k) && !met.contains_key(k.name()));
        missing.map(|k| k.name())
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
        let (name, split) = run_with(&context, (shape, numbers), kind, &mut rng);
        met.entry(name).or_default()[usize::from(split)] += 1;
    }
    println!("{met:#?}");
    assert_eq!(missing(&met), None, "was not met");
    for finish in ["_rhu", "_f32", "_any"] {
        let split = |(name, [_, split]): (&&str, &[usize; 2])| name.ends_with(finish) && *split > 0;
        assert!(met.iter().any(split), "no {finish} was split");
    }
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
    Numbers {
        weights,
        dtype,
        extreme: false,
    }
}

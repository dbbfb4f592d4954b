//! Every product kernel on the emulated device against plain loops: shapes with tails on every side,
//! every way of reading the input and of finishing, split and not, wide weights, joins and tables.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::BTreeMap;

use requant_conformance::{Rng, emulator};
use requant_kernels_cuda::epilogue::{Finish, Join};
use requant_kernels_cuda::ops::Window;
use requant_kernels_cuda::ops::conv::{Conv, ConvIo, ConvSpec, ZeroPoint};
use requant_kernels_cuda::{Context, Kernel, OpError};
use requant_numerics::DType;
use support::{SHAPES, run};

#[test]
fn every_product_equals_plain_loops() {
    let name = "every_product_equals_plain_loops";
    if emulator::is_emulated(name, "major=8") {
        compare_all(|kernel| !kernel.needs_wgmma());
    }
}

#[test]
fn every_product_by_wgmma_equals_plain_loops() {
    let name = "every_product_by_wgmma_equals_plain_loops";
    if emulator::is_emulated(name, "major=9") {
        compare_all(|kernel| kernel.needs_wgmma() || kernel.name().contains("_64_"));
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
        for kind in 0..7 {
            let (name, split) = run(&context, shape, kind, &mut rng);
            met.entry(name).or_default()[usize::from(split)] += 1;
        }
        // Signs and sums of both short epilogues once more.
        for _ in 0..4 {
            let kind = rng.pick(&[0, 1, 4, 5]);
            let (name, split) = run(&context, shape, kind, &mut rng);
            met.entry(name).or_default()[usize::from(split)] += 1;
        }
    }
    println!("{met:#?}");
    let products = Kernel::ALL.iter().filter(|k| k.name().contains("product_"));
    for kernel in products.filter(|k| expected(k)) {
        assert!(
            met.contains_key(kernel.name()),
            "{} was not met",
            kernel.name()
        );
    }
    for finish in ["_rhu", "_f32", "_any"] {
        let split = |(name, [_, split]): (&&str, &[usize; 2])| name.ends_with(finish) && *split > 0;
        assert!(met.iter().any(split), "no {finish} was split");
    }
}

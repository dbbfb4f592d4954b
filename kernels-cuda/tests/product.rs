//! Every product kernel on the emulated device against plain loops: shapes with tails on every side,
//! every way of reading the input and of finishing, split and not, wide weights, joins and tables.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::BTreeMap;

use requant_conformance::{Rng, emulator};
use requant_kernels_cuda::{Context, Kernel};
use support::{SHAPES, Ways, run};

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

/// Runs every shape with every finish, and demands that it met the kernels that it should.
fn compare_all(expected: impl Fn(&Kernel) -> bool) {
    let context = Context::open(0).unwrap();
    let mut rng = Rng::new(21);
    let mut met: BTreeMap<&str, [usize; 2]> = BTreeMap::new();
    let mut count = |runs: Vec<(&'static str, bool)>| {
        for (name, split) in runs {
            met.entry(name).or_default()[usize::from(split)] += 1;
        }
    };
    for &shape in SHAPES {
        for kind in 0..7 {
            count(run(&context, shape, kind, (Ways::Usual, 3), &mut rng));
        }
        // Signs and sums of both short epilogues once more.
        for _ in 0..4 {
            let kind = rng.pick(&[0, 1, 4, 5]);
            count(run(&context, shape, kind, (Ways::Usual, 3), &mut rng));
        }
        // Every kernel and split that a table may ask for.
        for kind in [0, 1, 3] {
            let all = Ways::All(&|_| true);
            count(run(&context, shape, kind, (all, 1), &mut rng));
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
    for (name, [whole, split]) in met {
        assert!(
            whole > 0 && split > 0,
            "{name}: {whole} whole, {split} split"
        );
    }
}

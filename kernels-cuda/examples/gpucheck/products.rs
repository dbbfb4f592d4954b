//! Every kernel of products, whole and split, over awkward shapes, every kind of numbers and every rounding.
//!
//! Which kernel a shape gets on this device plays no part: each is made to compute every shape that it
//! serves.

use std::collections::BTreeMap;
use std::sync::Arc;

use requant_conformance::Rng;
use requant_kernels_cuda::Context;

use super::options::{Options, product_kernels};
use super::report::Report;
use super::support::{self, FINISHES, NUMBERS, Numbers, Ways};

/// Finishes of which each is the business of other kernels.
const QUICK: [usize; 3] = [0, 1, 3];

pub(crate) fn prove(context: &Arc<Context>, options: &Options, report: &mut Report) {
    let mut rng = Rng::new(77);
    let mut met: BTreeMap<&str, [usize; 2]> = BTreeMap::new();
    let rounds = if options.quick { 1 } else { 3 };
    let wanted = |name: &str| options.wants(name);
    let finishes: Vec<usize> = if options.quick {
        QUICK.to_vec()
    } else {
        (0..FINISHES).collect()
    };
    for round in 0..rounds {
        // Whole grids of many blocks, as the rule cuts them.
        let large = if options.quick { &[] } else { support::LARGE };
        let awkward = support::SHAPES
            .iter()
            .map(|&shape| (shape, Ways::All(&wanted)));
        let large = large.iter().map(|&shape| (shape, Ways::Usual));
        // Copies by tile gather windows where zeros stand for what lies outside, and others do elsewhere.
        let windows = support::WINDOWS
            .iter()
            .map(|&shape| (shape, Ways::All(&wanted)));
        let centred = NUMBERS[..2].iter().map(|&numbers| Numbers {
            centred: true,
            ..numbers
        });
        let centred: Vec<Numbers> = centred.collect();
        let cases = awkward.chain(large).map(|case| (case, NUMBERS));
        let windows = windows.map(|case| (case, &centred[..]));
        for ((shape, ways), numbers) in cases.chain(windows) {
            for &numbers in numbers {
                for &finish in finishes.iter().filter(|&&finish| numbers.suits(finish)) {
                    let name =
                        format!("product {shape:?}, {numbers:?}, finish {finish}, round {round}");
                    let case = (shape, numbers);
                    let run = || support::run(context, case, finish, (ways, 3), &mut rng);
                    for (kernel, split) in report.check(&name, run).into_iter().flatten() {
                        met.entry(kernel).or_default()[usize::from(split)] += 1;
                    }
                }
            }
        }
    }
    let image = context.properties().image;
    for kernel in product_kernels().filter(|kernel| options.wants(kernel.name())) {
        if !kernel.is_in(image) {
            report.skipped(kernel.name(), "this architecture has no units for it");
            continue;
        }
        let [whole, split] = met.get(kernel.name()).copied().unwrap_or_default();
        for (how, count) in [("whole", whole), ("split", split)] {
            let name = format!("{}, {how}", kernel.name());
            match count {
                0 if how == "split" && !kernel.splits() => {}
                0 => report.failed(&name, "no case met it"),
                count => report.passed(&name, count),
            }
        }
    }
}

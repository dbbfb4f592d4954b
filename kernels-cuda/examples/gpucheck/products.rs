//! Every kernel of products, whole and split, over awkward shapes and every rounding.
//!
//! Which kernel a shape gets on this device plays no part: each is made to compute every shape that it
//! serves.

use std::collections::BTreeMap;
use std::sync::Arc;

use requant_conformance::Rng;
use requant_kernels_cuda::Context;

use super::options::{Options, product_kernels};
use super::report::Report;
use super::support::{self, Ways};

/// Ways to finish a product that `support` knows.
const FINISHES: usize = 7;

pub(crate) fn prove(context: &Arc<Context>, options: &Options, report: &mut Report) {
    let mut rng = Rng::new(77);
    let mut met: BTreeMap<&str, [usize; 2]> = BTreeMap::new();
    let rounds = if options.quick { 1 } else { 20 };
    let wanted = |name: &str| options.wants(name);
    for round in 0..rounds {
        // Whole grids of many blocks, as the rule cuts them.
        let large = if round < 2 && !options.quick {
            support::LARGE
        } else {
            &[]
        };
        let awkward = support::SHAPES
            .iter()
            .map(|&shape| (shape, Ways::All(&wanted)));
        let large = large.iter().map(|&shape| (shape, Ways::Usual));
        for (shape, ways) in awkward.chain(large) {
            for finish in 0..FINISHES {
                let name = format!("product {shape:?}, finish {finish}, round {round}");
                let run = || support::run(context, shape, finish, (ways, 3), &mut rng);
                for (kernel, split) in report.check(&name, run).into_iter().flatten() {
                    met.entry(kernel).or_default()[usize::from(split)] += 1;
                }
            }
        }
    }
    for kernel in product_kernels().filter(|kernel| options.wants(kernel.name())) {
        match met.get(kernel.name()) {
            Some([whole, split]) => {
                report.passed(&format!("{}, whole", kernel.name()), *whole);
                report.passed(&format!("{}, split", kernel.name()), *split);
            }
            None if kernel.needs_wgmma() && !context.has_wgmma() => {
                report.skipped(kernel.name(), "the device has no wgmma");
            }
            None => report.failed(kernel.name(), "no case met it"),
        }
    }
}

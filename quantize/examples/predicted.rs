//! Predicted against measured latency of whole networks: each model's table is measured, then its layers
//! get precisions at random, several times, and the sum from the table is held against the clock.
//!
//! A processor's speed drifts between both. So each mixture runs in turn with the network at 8 bits, whose
//! time while the table was measured is known too, and the prediction is scaled by the ratio of these two
//! measurements; what it was without that is shown as well.
//!
//! `predicted [--threads N] [--batch N] [--mixtures N] MODEL…`; a model is an artefact, a quantized ONNX or
//! TFLite file.

use std::error::Error;
use std::path::Path;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use requant_numerics::LayerPrecision;
use requant_quantize::files;
use requant_quantize::latency::{
    LatencyTable, MeasureOptions, network_seconds, precisions, variant,
};
use requant_runtime::{CpuBackend, CpuOptions};

/// The precision whose network tells the drift.
const YARDSTICK: &str = "w8a8";

/// Seed of the mixtures; not that of the mixtures that the table is measured from.
const SEED: u64 = 1000;

/// Median and largest of magnitudes.
fn extent(mut errors: Vec<f64>) -> (f64, f64) {
    errors.iter_mut().for_each(|error| *error = error.abs());
    errors.sort_by(f64::total_cmp);
    let at = |index: usize| errors.get(index).copied().unwrap_or(f64::NAN);
    (at(errors.len() / 2), at(errors.len().saturating_sub(1)))
}

fn main() -> Result<(), Box<dyn Error>> {
    let (mut threads, mut batch, mut mixtures, mut models) = (0, 1, 9, Vec::new());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || {
            arguments
                .next()
                .ok_or("a number is missing")?
                .parse()
                .map_err(Box::<dyn Error>::from)
        };
        match argument.as_str() {
            "--threads" => threads = number()?,
            "--batch" => batch = number()?,
            "--mixtures" => mixtures = number()?,
            _ => models.push(argument),
        }
    }
    let backend = CpuBackend::new(CpuOptions {
        threads,
        ..CpuOptions::default()
    })?;
    let options = MeasureOptions {
        batch,
        runs: 50,
        precisions: precisions(),
    };
    for model in models {
        let graph = files::read_model(Path::new(&model))?;
        let table = LatencyTable::measure(&graph, &backend, &options, &())?;
        let uniform = |wanted: LayerPrecision| variant(&graph, |_| Some(wanted));
        for precision in &options.precisions {
            let Some(measured) = table.networks.get(precision.label()) else {
                continue;
            };
            let predicted = table.predict(&uniform(*precision), &backend)?;
            println!(
                "{} {precision}: predicted {:.1} us, measured {:.1} us",
                graph.name,
                1e6 * predicted,
                1e6 * measured
            );
        }
        let yardstick = options.precisions.iter().find(|p| p.label() == YARDSTICK);
        let yardstick = uniform(*yardstick.ok_or("no yardstick")?);
        let then = table.networks.get(YARDSTICK).ok_or("no yardstick")?;
        let (mut errors, mut plain) = (Vec::new(), Vec::new());
        for mixture in 0..mixtures {
            let mut rng = ChaCha8Rng::seed_from_u64(SEED + mixture as u64);
            let choices: Vec<usize> = graph
                .nodes
                .iter()
                .map(|_| rng.random_range(0..options.precisions.len()))
                .collect();
            let mixed = variant(&graph, |node| Some(options.precisions[choices[node]]));
            let predicted = table.predict(&mixed, &backend)?;
            let pair = network_seconds(&[&yardstick, &mixed], &backend, batch, options.runs)?;
            let [now, measured] = pair[..] else {
                continue;
            };
            let drift = now / then;
            errors.push(predicted * drift / measured - 1.0);
            plain.push(predicted / measured - 1.0);
            println!(
                "{} mixture {mixture}: predicted {:.1} us, drift {drift:.3}, measured {:.1} us, {:+.1} %",
                graph.name,
                1e6 * predicted,
                1e6 * measured,
                100.0 * (predicted * drift / measured - 1.0)
            );
        }
        let ((median, most), (plain, plain_most)) = (extent(errors), extent(plain));
        println!(
            "{}: error at the median {:.1} %, at most {:.1} %; drift left in, {:.1} % and {:.1} %",
            graph.name,
            100.0 * median,
            100.0 * most,
            100.0 * plain,
            100.0 * plain_most
        );
    }
    Ok(())
}

//! Predicted against measured latency of whole networks: each model's table is measured, then its layers
//! get precisions at random, several times, and the sum from the table is held against the clock.
//!
//! `predicted [--threads N] [--batch N] MODEL…`; a model is an artefact, a quantized ONNX or TFLite file.

use std::error::Error;
use std::path::Path;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use requant_quantize::files;
use requant_quantize::latency::{
    LatencyTable, MeasureOptions, network_seconds, precisions, variant,
};
use requant_runtime::{CpuBackend, CpuOptions};

/// Mixtures of precisions tried of each model.
const MIXTURES: usize = 9;

fn main() -> Result<(), Box<dyn Error>> {
    let (mut threads, mut batch, mut models) = (0, 1, Vec::new());
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
            _ => models.push(argument),
        }
    }
    let backend = CpuBackend::new(CpuOptions {
        threads,
        ..CpuOptions::default()
    })?;
    let options = MeasureOptions {
        batch,
        runs: 100,
        precisions: precisions(),
    };
    for model in models {
        let graph = files::read_model(Path::new(&model))?;
        let table = LatencyTable::measure(&graph, &backend, &options, |_| {})?;
        let mut errors = Vec::new();
        for seed in 0..MIXTURES {
            let mut rng = ChaCha8Rng::seed_from_u64(seed as u64);
            let choices: Vec<usize> = graph
                .nodes
                .iter()
                .map(|_| rng.random_range(0..options.precisions.len()))
                .collect();
            let mixed = variant(&graph, |node| Some(options.precisions[choices[node]]));
            let predicted = table.predict(&mixed, &backend)?;
            let measured = network_seconds(&mixed, &backend, batch, options.runs)?;
            let error = predicted / measured - 1.0;
            println!(
                "{} mixture {seed}: predicted {:.1} us, measured {:.1} us, {:+.1} %",
                graph.name,
                1e6 * predicted,
                1e6 * measured,
                100.0 * error
            );
            errors.push(error.abs());
        }
        errors.sort_by(f64::total_cmp);
        println!(
            "{}: error at the median {:.1} %, at most {:.1} %",
            graph.name,
            100.0 * errors[MIXTURES / 2],
            100.0 * errors[MIXTURES - 1]
        );
    }
    Ok(())
}

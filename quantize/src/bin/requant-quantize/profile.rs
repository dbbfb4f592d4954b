//! `requant-quantize profile`: how long each layer takes at each precision on this device, for the search.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use requant_import::float;
use requant_import::onnx::{ImportError, ImportOptions};
use requant_model::Graph;
use requant_quantize::files;
use requant_quantize::latency::{
    FEWEST_RUNS, LatencyTable, MeasureOptions, network_seconds, precisions, stand_in,
};

use crate::bar::Bar;
use crate::device::Device;

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Profile {
    /// Model: a float ONNX file, an artefact, a quantized ONNX or TFLite file, or a folder with one
    model: PathBuf,
    /// File for the table of latencies
    #[arg(long, value_name = "LATENCY.json")]
    output: PathBuf,
    /// Samples of a run
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..=4096))]
    batch: u16,
    #[command(flatten)]
    device: Device,
}

impl Profile {
    pub(crate) fn run(&self) -> anyhow::Result<String> {
        let graph = network(&self.model)?;
        let options = MeasureOptions {
            batch: usize::from(self.batch),
            runs: FEWEST_RUNS,
            precisions: precisions(),
        };
        let backend = self.device.open()?;
        files::check_writable(&self.output)?;
        let bar = Bar::new();
        let labels: Vec<&str> = options.precisions.iter().map(|p| p.label()).collect();
        bar.note(&format!("{}: {}", graph.name, labels.join(", ")));
        let table = LatencyTable::measure(&graph, &*backend, &options, &bar)?;
        let own = network_seconds(&[&graph], &*backend, options.batch, options.runs)?;
        bar.finish();
        files::write(&self.output, table.json()?.as_bytes())?;

        let mut text = String::new();
        for precision in &options.precisions {
            let label = precision.label();
            let made = requant_quantize::latency::variant(&graph, |_| Some(*precision));
            match table.refused.get(label) {
                Some(reason) => text.push_str(&format!("{label}: not on this device: {reason}\n")),
                None => {
                    let micros = 1e6 * table.predict(&made, &*backend)?;
                    let measured = table.networks.get(label).copied().unwrap_or(f64::NAN);
                    text.push_str(&format!(
                        "{label}: {micros:.1} us from its steps, {:.1} us measured, every layer so\n",
                        1e6 * measured
                    ));
                }
            }
        }
        // A layer at a precision that is not offered has no prediction.
        if let (Ok(predicted), Some(measured)) = (table.predict(&graph, &*backend), own.first()) {
            text.push_str(&format!(
                "as it is: {:.1} us from its steps, {:.1} us measured\n",
                1e6 * predicted,
                1e6 * measured
            ));
        }
        text.push_str(&format!(
            "{} layers and {} other steps: {}\n",
            table.layers.len(),
            table.steps.len(),
            self.output.display()
        ));
        Ok(text)
    }
}

/// The integer graph of a model; of a float one, what it will become as far as time goes.
fn network(path: &Path) -> anyhow::Result<Graph> {
    let file = files::model_file(path)?;
    if file.extension().is_none_or(|ending| ending != "onnx") {
        return Ok(files::read_model(&file)?);
    }
    let at = || file.display().to_string();
    match float::read_file(&file, &ImportOptions::default()) {
        Ok(graph) => stand_in(&graph).with_context(at),
        Err(ImportError::Quantized { .. }) => Ok(files::read_model(&file)?),
        Err(error) => Err(error).with_context(at),
    }
}

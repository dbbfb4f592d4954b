//! `requant-quantize profile`: how long each layer takes at each precision on this device, for the search.

use std::path::PathBuf;

use requant_quantize::files;
use requant_quantize::latency::{FEWEST_RUNS, LatencyTable, MeasureOptions, precisions};

use crate::device::Device;

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Profile {
    /// Model: an artefact, a quantized ONNX or TFLite file, or a folder with one
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
        let graph = files::read_model(&self.model)?;
        let options = MeasureOptions {
            batch: usize::from(self.batch),
            runs: FEWEST_RUNS,
            precisions: precisions(),
        };
        let backend = self.device.open()?;
        files::check_writable(&self.output)?;
        let table = LatencyTable::measure(&graph, &*backend, &options, |label| {
            eprintln!("{}: {label}", graph.name);
        })?;
        files::write(&self.output, table.json()?.as_bytes())?;

        let mut text = String::new();
        for precision in &options.precisions {
            let label = precision.label();
            let made = requant_quantize::latency::variant(&graph, |_| Some(*precision));
            match table.refused.get(label) {
                Some(reason) => text.push_str(&format!("{label}: not on this device: {reason}\n")),
                None => {
                    let micros = 1e6 * table.predict(&made, &*backend)?;
                    text.push_str(&format!("{label}: {micros:.1} us, every layer so\n"));
                }
            }
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

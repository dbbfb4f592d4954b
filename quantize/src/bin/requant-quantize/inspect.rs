//! `requant-quantize inspect`: what is in a model, node by node, and what it costs.

use std::path::PathBuf;

use requant_quantize::files;
use requant_quantize::report::{Report, layer_table, totals_text};

/// What to look at.
#[derive(Debug, clap::Args)]
pub(crate) struct Inspect {
    /// Model: an artefact, a quantized ONNX or TFLite file, or a folder with one
    model: PathBuf,
    /// Also write everything as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Inspect {
    pub(crate) fn run(&self) -> anyhow::Result<String> {
        let report = Report::of(&files::read_model(&self.model)?);
        if let Some(file) = &self.json {
            files::write(file, report.json()?.as_bytes())?;
        }
        Ok(layer_table(&report) + "\n" + &totals_text(&report))
    }
}

//! `requant-quantize tune`: which way of computing each layer is fastest on this machine, for the server.

use std::path::PathBuf;

use anyhow::Context as _;
use requant_quantize::files;
use requant_runtime::{CpuBackend, CpuOptions, Isa, Plan, PlanOptions, Tuning};

/// Runs of the whole network that each way is timed in, three times over.
const RUNS: usize = 15;

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Tune {
    /// Model: an artefact, a quantized ONNX or TFLite file, or a folder with one
    model: PathBuf,
    /// File for the table; what it holds of other models is kept
    #[arg(long, value_name = "TUNING.json")]
    output: PathBuf,
    /// Samples of a run
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..=4096))]
    batch: u16,
    /// Threads, as many as the server will have [default: the cores granted to the process]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Instruction set, the one that the server will use [default: the best one that this machine has]
    #[arg(long, value_name = "NAME")]
    isa: Option<Isa>,
}

impl Tune {
    pub(crate) fn run(&self) -> anyhow::Result<String> {
        let graph = files::read_model(&self.model)?;
        let plan = Plan::new(graph, &PlanOptions::default())?;
        files::check_writable(&self.output)?;
        let backend = CpuBackend::new(CpuOptions {
            isa: self.isa,
            threads: self.threads.map_or(0, usize::from),
            ..CpuOptions::default()
        })?;
        let measured = backend.tune(&plan, usize::from(self.batch), RUNS)?;
        let mut text = String::new();
        for (layer, way, ratio) in measured.gains() {
            text.push_str(&format!("{ratio:.2} times as fast by {way}: {layer}\n"));
        }
        let faster = measured.gains().count();
        let mut table = measured.clone();
        if self.output.is_file() {
            let mut earlier = Tuning::read(&self.output)?;
            earlier.merge(measured).with_context(|| {
                let place = self.output.display();
                format!("{place}: remove it to start a table for this machine")
            })?;
            table = earlier;
        }
        files::write(&self.output, table.json()?.as_bytes())?;
        text.push_str(&format!(
            "{faster} kinds of layers are faster by another way than the usual one, {} in the table: {}\n",
            table.gains().count(),
            self.output.display()
        ));
        Ok(text)
    }
}

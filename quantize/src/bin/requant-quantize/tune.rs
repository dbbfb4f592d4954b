//! `requant-quantize tune`: which way of computing each layer is fastest on this machine, for the server.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use requant_quantize::files;
use requant_runtime::{
    CpuBackend, CpuOptions, CudaBackend, CudaTuning, Isa, Plan, PlanOptions, Tuning,
};

/// Runs of the whole network that each way is timed in, three times over; on a GPU as many times that each
/// is timed.
const RUNS: usize = 15;

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Tune {
    /// Model: an artefact, a quantized ONNX or TFLite file, or a folder with one
    model: PathBuf,
    /// File for the table; what it holds of other models and batches is kept. The CPU and each kind of GPU
    /// have a file of their own
    #[arg(long, value_name = "TUNING.json")]
    output: PathBuf,
    /// Samples of a run; on a GPU a table holds for batches from half of them to as many
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..=4096))]
    batch: u16,
    /// What is measured
    #[arg(long, value_enum, default_value = "cpu")]
    backend: Measured,
    /// Which of the GPUs
    #[arg(long, value_name = "N", default_value = "0")]
    gpu: usize,
    /// Threads, as many as the server will have [default: the cores granted to the process]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Instruction set, the one that the server will use [default: the best one that this machine has]
    #[arg(long, value_name = "NAME")]
    isa: Option<Isa>,
}

/// Where a table is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Measured {
    /// The CPU
    Cpu,
    /// A GPU
    Cuda,
}

impl Tune {
    pub(crate) fn run(&self) -> anyhow::Result<String> {
        let host = self.threads.is_some() || self.isa.is_some();
        if self.backend == Measured::Cuda && host {
            bail!("--threads and --isa are the CPU's: they have no meaning with --backend cuda");
        }
        if self.backend == Measured::Cpu && self.gpu != 0 {
            bail!("--gpu needs --backend cuda");
        }
        let graph = files::read_model(&self.model)?;
        let plan = Plan::new(graph, &PlanOptions::default())?;
        files::check_writable(&self.output)?;
        let (gains, total, json) = match self.backend {
            Measured::Cpu => self.on_cpu(&plan)?,
            Measured::Cuda => self.on_gpu(&plan)?,
        };
        files::write(&self.output, json.as_bytes())?;
        let mut text = String::new();
        for (what, way, ratio) in &gains {
            text.push_str(&format!("{ratio:.2} times as fast by {way}: {what}\n"));
        }
        text.push_str(&format!(
            "{} kinds of layers are faster by another way than the usual one, {total} in the table: {}\n",
            gains.len(),
            self.output.display()
        ));
        Ok(text)
    }

    fn on_cpu(&self, plan: &Plan) -> anyhow::Result<Measurements> {
        let backend = CpuBackend::new(CpuOptions {
            isa: self.isa,
            threads: self.threads.map_or(0, usize::from),
            ..CpuOptions::default()
        })?;
        let measured = backend.tune(plan, usize::from(self.batch), RUNS)?;
        let gains = measured.gains();
        let gains = gains.map(|(layer, way, ratio)| (layer.to_owned(), way.to_owned(), ratio));
        let gains: Vec<_> = gains.collect();
        let mut table = measured.clone();
        if self.output.is_file() {
            table = Tuning::read(&self.output)?;
            table
                .merge(measured)
                .with_context(|| foreign(&self.output))?;
        }
        Ok((gains, table.gains().count(), table.json()?))
    }

    fn on_gpu(&self, plan: &Plan) -> anyhow::Result<Measurements> {
        let backend = CudaBackend::new(self.gpu).context("no usable GPU")?;
        // Before the measurements, which take a while.
        let earlier = self
            .output
            .is_file()
            .then(|| CudaTuning::read(&self.output));
        let earlier = earlier.transpose()?;
        let measured = backend.tune(plan, usize::from(self.batch), RUNS)?;
        let gains = measured.gains();
        let gains = gains.map(|(what, way, ratio)| (what.to_owned(), way, ratio));
        let gains: Vec<_> = gains.collect();
        let mut table = earlier.unwrap_or_else(|| measured.clone());
        table
            .merge(measured)
            .with_context(|| foreign(&self.output))?;
        Ok((gains, table.gains().count(), table.json()?))
    }
}

/// What was found to be faster, how much the whole table holds, and the table as a file has it.
type Measurements = (Vec<(String, String, f64)>, usize, String);

fn foreign(table: &Path) -> String {
    let place = table.display();
    format!("{place}: remove it to start a table for this machine")
}

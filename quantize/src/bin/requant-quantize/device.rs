//! Which backend computes.

use anyhow::Context as _;
use clap::ValueEnum;
use requant_runtime::{Backend, CpuBackend, CpuOptions, CudaBackend, ReferenceBackend};

/// Flags that choose a backend.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Device {
    /// What computes; auto takes a GPU where there is one
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) backend: Choice,
    /// Threads of the CPU backend [default: the cores granted to the process]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
}

/// A backend by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Choice {
    /// A GPU where there is one, the CPU otherwise
    Auto,
    /// The CPU
    Cpu,
    /// The GPU
    Cuda,
    /// Plain loops
    Reference,
}

impl Device {
    /// Opens the backend.
    pub(crate) fn open(&self) -> anyhow::Result<Box<dyn Backend>> {
        let cuda = || CudaBackend::new(0).context("no usable GPU");
        Ok(match self.backend {
            Choice::Cuda => Box::new(cuda()?),
            Choice::Reference => Box::new(ReferenceBackend),
            Choice::Cpu => self.cpu()?,
            Choice::Auto => match cuda() {
                Ok(device) => Box::new(device),
                Err(_) => self.cpu()?,
            },
        })
    }

    /// Threads of the CPU backend; 0 for as many as were granted.
    pub(crate) fn threads(&self) -> usize {
        self.threads.map_or(0, usize::from)
    }

    fn cpu(&self) -> anyhow::Result<Box<dyn Backend>> {
        let options = CpuOptions {
            threads: self.threads(),
            ..CpuOptions::default()
        };
        Ok(Box::new(CpuBackend::new(options)?))
    }
}

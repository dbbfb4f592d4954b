//! A table of which way of computing a layer is fastest, measured on this machine.
//!
//! Without a table every layer is computed by fixed rules, which were made on a few machines. A table holds
//! only what was measured to beat them, by layer: its shape, types and epilogue. It says which machine it was
//! made on, and is refused anywhere else. Whatever it says, the bytes are the same: it names ways to compute,
//! and a name that does not serve is ignored.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use requant_kernels_cpu::table;
use requant_kernels_cuda::{CudaError, OpError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::layer::{Layer, key};
use super::{CompileError, CpuBackend};
use crate::plan::{Plan, StepOp};
use crate::{ExecError, profile};

/// What a way's time must be of the usual one's to be preferred: measurements differ by less.
pub(crate) const BETTER: f64 = 0.97;

/// Times that every way is measured, in turn with the others.
const PASSES: usize = 3;

/// Why measuring failed.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum TuneError {
    /// The plan does not compile.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// It does not run.
    #[error(transparent)]
    Run(#[from] ExecError),
    /// The device cannot be measured on.
    #[error(transparent)]
    Device(#[from] CudaError),
    /// A launch that it has no room for.
    #[error(transparent)]
    Launch(#[from] OpError),
}

/// Why a table is not used.
#[derive(Debug, Error)]
pub enum TuningError {
    /// The file cannot be read or written.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        reason: ErrorKind,
    },
    /// The file is not a table.
    #[error("{}: not a table of measurements: {source}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// The table was made on another machine, or for something else than runs here.
    #[error("measured with {what} {found:?}, here it is {here:?}")]
    Foreign {
        /// What differs.
        what: &'static str,
        /// In the table.
        found: String,
        /// Here.
        here: String,
    },
}

/// What measurements depend on besides the layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Machine {
    cpu: String,
    isa: String,
    threads: usize,
    /// Version of this crate and a digest of the kernels' names.
    kernels: String,
}

/// A way that was faster than the usual one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Choice {
    pub(crate) way: String,
    pub(crate) nanoseconds: u64,
    pub(crate) usual_nanoseconds: u64,
}

impl Choice {
    /// How many times as fast as the usual way it was.
    pub(crate) fn gain(&self) -> f64 {
        self.usual_nanoseconds as f64 / self.nanoseconds.max(1) as f64
    }
}

/// Which ways are fastest on one machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tuning {
    machine: Machine,
    layers: BTreeMap<String, Choice>,
}

impl Tuning {
    /// Reads a table.
    ///
    /// # Errors
    /// [`TuningError::File`] and [`TuningError::Format`].
    pub fn read(path: &Path) -> Result<Self, TuningError> {
        read(path)
    }

    /// What a file of the table holds.
    ///
    /// # Errors
    /// None that a table of strings and integers can have.
    pub fn json(&self) -> Result<String, serde_json::Error> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// Layers for which another way than the usual one is faster: the layer, the way, and how many times as
    /// fast it was.
    pub fn gains(&self) -> impl Iterator<Item = (&str, &str, f64)> {
        self.layers
            .iter()
            .map(|(layer, choice)| (layer.as_str(), choice.way.as_str(), choice.gain()))
    }

    /// Takes over what another table of the same machine says.
    ///
    /// # Errors
    /// [`TuningError::Foreign`].
    pub fn merge(&mut self, other: Tuning) -> Result<(), TuningError> {
        other.check(&self.machine)?;
        self.layers.extend(other.layers);
        Ok(())
    }

    pub(super) fn check(&self, here: &Machine) -> Result<(), TuningError> {
        let (found, threads) = (&self.machine, |m: &Machine| m.threads.to_string());
        for (what, found, here) in [
            ("processor", found.cpu.clone(), here.cpu.clone()),
            ("instruction set", found.isa.clone(), here.isa.clone()),
            ("threads", threads(found), threads(here)),
            ("kernels", found.kernels.clone(), here.kernels.clone()),
        ] {
            if found != here {
                return Err(TuningError::Foreign { what, found, here });
            }
        }
        Ok(())
    }

    /// The way of each step, none for the usual one.
    pub(super) fn choices(&self, plan: &Plan) -> Vec<Option<&str>> {
        plan.steps
            .iter()
            .map(|step| Some(self.layers.get(&key(plan, step)?)?.way.as_str()))
            .collect()
    }
}

impl CpuBackend {
    /// Measures every way of every layer of a plan, for batches of `samples`, in `runs` runs of the whole
    /// network each, and keeps those that are clearly faster than the usual ones.
    ///
    /// # Errors
    /// Where the plan does not compile or run.
    pub fn tune(&self, plan: &Plan, samples: usize, runs: usize) -> Result<Tuning, TuneError> {
        let (plan, planes) = plan.interleaved();
        let ways = self.ways(&plan)?;
        let rounds = ways.iter().map(Vec::len).max().unwrap_or(0);
        let mut executables = Vec::with_capacity(rounds);
        for round in 0..rounds {
            let choices: Vec<Option<&str>> = ways
                .iter()
                .map(|ways| ways.get(round).map(String::as_str))
                .collect();
            let runner = self.prepare(&plan, planes.clone(), &choices)?;
            executables.push(self.executable(plan.clone(), runner));
        }
        let mut best: Vec<Vec<u64>> = ways.iter().map(|ways| vec![u64::MAX; ways.len()]).collect();
        for _ in 0..PASSES {
            for (round, executable) in executables.iter().enumerate() {
                let times = profile::profile(executable.as_ref(), samples, runs, None)?.layers;
                for (best, layer) in best.iter_mut().zip(times) {
                    if let Some(best) = best.get_mut(round) {
                        let time = u64::try_from(layer.time.as_nanos()).unwrap_or(u64::MAX);
                        *best = time.min(*best);
                    }
                }
            }
        }
        // Layers that are alike count together: one choice serves them all.
        let mut layers: BTreeMap<String, BTreeMap<&str, (usize, u64)>> = BTreeMap::new();
        let mut usual: BTreeMap<String, &str> = BTreeMap::new();
        for ((step, ways), best) in plan.steps.iter().zip(&ways).zip(&best) {
            let (Some(key), Some(first)) = (key(&plan, step), ways.first()) else {
                continue;
            };
            usual.entry(key.clone()).or_insert(first);
            let sums = layers.entry(key).or_default();
            for (way, time) in ways.iter().zip(best) {
                let (count, sum) = sums.entry(way).or_default();
                (*count, *sum) = (*count + 1, sum.saturating_add(*time));
            }
        }
        let choose = |(key, sums): (String, BTreeMap<&str, (usize, u64)>)| {
            let (all, usual) = *sums.get(usual.get(&key)?)?;
            // Weights decide which ways serve: only those count that serve every layer of the key.
            let ways = sums.iter().filter(|(_, (count, _))| *count == all);
            let (way, (_, time)) = ways.min_by_key(|(_, (_, time))| *time)?;
            let choice = Choice {
                way: (*way).to_owned(),
                nanoseconds: *time / all as u64,
                usual_nanoseconds: usual / all as u64,
            };
            ((*time as f64) < usual as f64 * BETTER).then_some((key, choice))
        };
        Ok(Tuning {
            machine: self.here(),
            layers: layers.into_iter().filter_map(choose).collect(),
        })
    }

    /// The names of the ways of each step, the usual one first; none where there is nothing to choose.
    pub(super) fn ways(&self, plan: &Plan) -> Result<Vec<Vec<String>>, CompileError> {
        plan.steps
            .iter()
            .map(|step| {
                let StepOp::Conv(conv) = &step.op else {
                    return Ok(Vec::new());
                };
                let Some(weights) = &conv.weights else {
                    return Ok(Vec::new());
                };
                let layer = Layer::new(self.isa, plan, step, conv, weights);
                layer.ways().map_err(|source| CompileError::Kernel {
                    step: step.name.clone(),
                    source,
                })
            })
            .collect()
    }

    pub(super) fn here(&self) -> Machine {
        Machine {
            cpu: cpu_model(),
            isa: self.isa.name().to_owned(),
            threads: self.machine.threads,
            kernels: kernels(),
        }
    }
}

/// Reads a file of JSON.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, TuningError> {
    let bytes = fs::read(path).map_err(|error| TuningError::File {
        path: path.to_owned(),
        reason: error.kind(),
    })?;
    serde_json::from_slice(&bytes).map_err(|source| TuningError::Format {
        path: path.to_owned(),
        source,
    })
}

/// The processor's name as Linux tells it; the architecture's elsewhere.
fn cpu_model() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| {
        let (field, value) = line.split_once(':')?;
        (field.trim() == "model name").then(|| value.trim().to_owned())
    });
    model.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// The version, and a digest (FNV-1a) of the names of all kernels.
fn kernels() -> String {
    let names = table::kernels()
        .map(table::Kernel::name)
        .chain(table::depthwise_kernels().map(table::DepthwiseKernel::name));
    let digest = names
        .flat_map(|name| name.bytes().chain([0]))
        .fold(0xcbf2_9ce4_8422_2325u64, |digest, byte| {
            (digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    format!("{} {digest:016x}", env!("CARGO_PKG_VERSION"))
}

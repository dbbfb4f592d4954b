//! How long each layer takes at each precision on one device: measured once, kept as JSON, asked by the
//! search.
//!
//! A table is good for the device, instruction set, number of threads and build of the program that it
//! was measured with, and is refused elsewhere: a kernel that became faster would otherwise be passed
//! over for years.

mod key;
mod measure;
mod turns;
mod variant;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use requant_model::Graph;
use requant_numerics::LayerPrecision;
use requant_runtime::plan::Step;
use requant_runtime::{
    Backend, BackendInfo, CompileError, ExecError, Executable, Plan, PlanError, PlanOptions,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::precision::REFERENCE;

pub use key::StepKey;
pub use measure::{FEWEST_RUNS, MeasureOptions};
pub use turns::network_seconds;
pub use variant::{layers, stand_in, variant};

/// Version of the table's form.
pub const FORMAT: u32 = 2;

/// Precisions that are measured where nothing else is asked for: those that a layer may be given.
pub fn precisions() -> Vec<LayerPrecision> {
    let labels = ["w8a8", "w4a8", "w4a4", "w2a8", "wta8", "w1a8", "wca8"];
    let all = LayerPrecision::ALL.into_iter();
    all.filter(|precision| labels.contains(&precision.label()))
        .collect()
}

/// Measured times of one network's steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatencyTable {
    /// [`FORMAT`].
    pub format: u32,
    /// Where it was measured.
    pub device: Device,
    /// SHA-256 of the program that measured, as far as it tells builds apart.
    pub build: String,
    /// Samples of a run.
    pub batch: usize,
    /// Fewest runs behind a median.
    pub runs: usize,
    /// Layers, each at every precision.
    pub layers: Vec<LayerTiming>,
    /// Steps without weights.
    pub steps: Vec<StepTiming>,
    /// Measured median of whole networks, all layers at the precision of the label, in seconds.
    pub networks: BTreeMap<String, f64>,
    /// What a run takes besides its steps: both edges and what lies between steps, in seconds.
    pub overhead: f64,
    /// Precisions that the device has no kernel for, with the reason.
    pub refused: BTreeMap<String, String>,
}

/// What computes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Name of the backend.
    pub backend: String,
    /// Instruction set.
    pub isa: String,
    /// The device's own name.
    pub name: String,
    /// Threads of a run.
    pub threads: usize,
}

/// A layer at a precision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerTiming {
    /// The layer.
    pub key: StepKey,
    /// Label of the precision.
    pub precision: String,
    /// Median time of a batch, in seconds; the mean over the places where it was met.
    pub seconds_median: f64,
    /// 95th percentile, in seconds.
    pub seconds_p95: f64,
}

/// A step without weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepTiming {
    /// The step.
    pub key: StepKey,
    /// Median time of a batch, in seconds; the mean over the places where it was met.
    pub seconds_median: f64,
    /// 95th percentile, in seconds.
    pub seconds_p95: f64,
}

/// What the precisions of a network's layers would cost.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkLatency {
    /// Layers whose precision can be chosen, in the graph's order.
    pub layers: Vec<LayerLatency>,
    /// Everything else, in seconds a batch.
    pub fixed: f64,
}

/// What the precisions of a layer would cost.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerLatency {
    /// Name of the node.
    pub name: String,
    /// Seconds a batch by the precision's label, a requantization of the layer's operand to its width
    /// included.
    pub seconds: BTreeMap<&'static str, f64>,
    /// The largest distance from a median to its 95th percentile, in seconds.
    pub spread: f64,
}

impl LayerLatency {
    /// Seconds a batch at a precision, for whoever weighs it against 8 bits: those of 8 bits where the two lie
    /// within the spread. Else a search would buy harm with differences that are noise.
    pub fn told_apart(&self, precision: LayerPrecision) -> Option<f64> {
        let own = *self.seconds.get(precision.label())?;
        let eight = self.seconds.get(REFERENCE.label()).copied();
        let like = eight.filter(|eight| (own - eight).abs() <= self.spread);
        Some(like.unwrap_or(own))
    }
}

/// Why there is no table or no answer in it.
#[derive(Debug, Error)]
pub enum LatencyError {
    /// The file cannot be read.
    #[error("cannot read '{}': {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Not a table.
    #[error("'{}' is no latency profile: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A table of other circumstances.
    #[error("the latency profile is of {what} {found}, this is {expected}; measure again")]
    Foreign {
        /// What differs.
        what: &'static str,
        /// What the table says.
        found: String,
        /// What is so here.
        expected: String,
    },
    /// A time that cannot be.
    #[error("the latency profile has a time of {seconds} s")]
    Time {
        /// The time.
        seconds: f64,
    },
    /// A step that was not measured.
    #[error("the latency profile lacks the step '{step}'{}; measure it with this model", at(.precision))]
    Missing {
        /// Name of the step.
        step: String,
        /// Its precision.
        precision: Option<&'static str>,
    },
    /// The running program cannot be read.
    #[error("cannot read the running program: {0}")]
    Program(#[source] io::Error),
    /// The graph has no plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The backend refuses the model.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// The model cannot be run.
    #[error(transparent)]
    Exec(#[from] ExecError),
}

fn at(precision: &Option<&'static str>) -> String {
    precision.map_or_else(String::new, |label| format!(" at {label}"))
}

impl Device {
    /// The device of a backend. Backends on the host all call it `cpu`, so its processor's name is
    /// taken, where the system tells it.
    pub fn of(info: &BackendInfo) -> Self {
        let processor = || {
            let text = fs::read_to_string("/proc/cpuinfo").ok()?;
            let line = text.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let name = match info.device.as_str() {
            "cpu" => processor(),
            _ => None,
        };
        Device {
            backend: info.backend.to_owned(),
            isa: info.isa.to_owned(),
            name: name.unwrap_or_else(|| info.device.clone()),
            threads: info.threads,
        }
    }
}

/// SHA-256 of the running program, its first 16 digits: another build may have other kernels.
fn build() -> Result<String, LatencyError> {
    static BUILD: OnceLock<String> = OnceLock::new();
    if let Some(build) = BUILD.get() {
        return Ok(build.clone());
    }
    let program = std::env::current_exe().and_then(fs::read);
    let digest = Sha256::digest(program.map_err(LatencyError::Program)?);
    let digits: String = digest
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok(BUILD.get_or_init(|| digits).clone())
}

impl LatencyTable {
    /// Reads a table and refuses one of another device, build or form.
    ///
    /// # Errors
    /// An unreadable file, no table, a table of other circumstances.
    pub fn load(path: &Path, info: &BackendInfo) -> Result<Self, LatencyError> {
        let text = fs::read_to_string(path).map_err(|source| LatencyError::Io {
            path: path.to_owned(),
            source,
        })?;
        let json = |source| LatencyError::Json {
            path: path.to_owned(),
            source,
        };
        // Another form may have other fields: its number is looked at first.
        #[derive(Deserialize)]
        struct Form {
            format: u32,
        }
        let Form { format } = serde_json::from_str(&text).map_err(json)?;
        differs("format", &format.to_string(), &FORMAT.to_string())?;
        let table: LatencyTable = serde_json::from_str(&text).map_err(json)?;
        let here = Device::of(info);
        for (what, found, expected) in [
            ("backend", &table.device.backend, &here.backend),
            ("device", &table.device.name, &here.name),
            ("instruction set", &table.device.isa, &here.isa),
            (
                "number of threads",
                &table.device.threads.to_string(),
                &here.threads.to_string(),
            ),
            ("build", &table.build, &build()?),
        ] {
            differs(what, found, expected)?;
        }
        let layers = table.layers.iter().map(|layer| layer.seconds_median);
        let steps = table.steps.iter().map(|step| step.seconds_median);
        let whole = table.networks.values().copied().chain([table.overhead]);
        match layers
            .chain(steps)
            .chain(whole)
            .find(|seconds| !(seconds.is_finite() && *seconds >= 0.0))
        {
            Some(seconds) => Err(LatencyError::Time { seconds }),
            None => Ok(table),
        }
    }

    /// The table as JSON.
    ///
    /// # Errors
    /// None for a measured table.
    pub fn json(&self) -> Result<String, serde_json::Error> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// Median time of a batch in a layer at a precision, in seconds; that of a layer that
    /// [resembles](StepKey::resembles) it where it was not measured itself.
    pub fn layer(&self, key: &StepKey, precision: &str) -> Option<f64> {
        Some(self.row(key, precision)?.seconds_median)
    }

    fn row(&self, key: &StepKey, precision: &str) -> Option<&LayerTiming> {
        let rows = || self.layers.iter().filter(|row| row.precision == precision);
        let like = || rows().find(|row| row.key.resembles(key));
        rows().find(|row| row.key == *key).or_else(like)
    }

    /// Median time of a batch in a step without weights, in seconds; as [`LatencyTable::layer`].
    pub fn step(&self, key: &StepKey) -> Option<f64> {
        let like = || self.steps.iter().find(|row| row.key.resembles(key));
        let row = self
            .steps
            .iter()
            .find(|row| row.key == *key)
            .or_else(like)?;
        Some(row.seconds_median)
    }

    fn seconds(&self, plan: &Plan, step: &Step) -> Result<f64, LatencyError> {
        let key = StepKey::of(plan, step);
        let precision = step.precision.map(LayerPrecision::label);
        let known = match precision {
            Some(label) => self.layer(&key, label),
            None => self.step(&key),
        };
        known.ok_or_else(|| LatencyError::Missing {
            step: step.name.clone(),
            precision,
        })
    }

    /// Predicted time of a batch through a model, in seconds: its steps, as the backend has them, and the
    /// overhead.
    ///
    /// # Errors
    /// A graph without a plan, or that the backend refuses; a step that was not measured.
    pub fn predict(&self, graph: &Graph, backend: &dyn Backend) -> Result<f64, LatencyError> {
        let executable = compile(graph.clone(), backend)?;
        let mut sum = self.overhead;
        for step in executable.plan().steps() {
            sum += self.seconds(executable.plan(), step)?;
        }
        Ok(sum)
    }

    /// What each precision of each layer of a network costs, from any integer version of it.
    ///
    /// # Errors
    /// As [`LatencyTable::predict`].
    pub fn network(
        &self,
        graph: &Graph,
        backend: &dyn Backend,
    ) -> Result<NetworkLatency, LatencyError> {
        let chosen = variant::layers(graph);
        let mut layers: Vec<LayerLatency> = chosen
            .iter()
            .map(|&index| LayerLatency {
                name: graph.nodes[index].name.clone(),
                seconds: BTreeMap::new(),
                spread: 0.0,
            })
            .collect();
        let measured = precisions().into_iter();
        let measured =
            measured.filter(|p| self.layers.iter().any(|row| row.precision == p.label()));
        let mut fixed = None;
        for precision in measured {
            let made = variant::variant(graph, |_| Some(precision));
            let executable = compile(made, backend)?;
            let plan = executable.plan();
            let mut others = self.overhead;
            for step in plan.steps() {
                let seconds = self.seconds(plan, step)?;
                let own = |layer: &&mut LayerLatency| {
                    step.name == layer.name || step.name == variant::conversion_name(&layer.name)
                };
                let Some(layer) = layers.iter_mut().find(own) else {
                    others += seconds;
                    continue;
                };
                *layer.seconds.entry(precision.label()).or_default() += seconds;
                if step.precision.is_some() {
                    let row = self.row(&StepKey::of(plan, step), precision.label());
                    let spread = row.map_or(0.0, |row| row.seconds_p95 - row.seconds_median);
                    layer.spread = layer.spread.max(spread);
                }
            }
            fixed.get_or_insert(others);
        }
        Ok(NetworkLatency {
            layers,
            fixed: fixed.unwrap_or(self.overhead),
        })
    }
}

fn compile(graph: Graph, backend: &dyn Backend) -> Result<Arc<dyn Executable>, LatencyError> {
    let plan = Plan::new(graph, &PlanOptions::default())?;
    Ok(backend.compile(Arc::new(plan))?)
}

fn differs(what: &'static str, found: &str, expected: &str) -> Result<(), LatencyError> {
    if found == expected {
        return Ok(());
    }
    Err(LatencyError::Foreign {
        what,
        found: found.to_owned(),
        expected: expected.to_owned(),
    })
}

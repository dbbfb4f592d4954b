//! A table of which kernel is fastest for a layer, and in which slices a network passes a batch fastest,
//! measured on one kind of device.
//!
//! Without a table a rule that knows the number of multiprocessors decides. A table holds only what was
//! measured to beat it, by layer and batch. It says which device, driver and kernels it was made with, and is
//! refused with others. Whatever it says, the bytes are the same: a name that does not serve is ignored.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use requant_kernels_cuda::ops::conv::Conv;
use requant_kernels_cuda::ops::{Way, bucket};
use requant_kernels_cuda::{Command, CudaError, Session};
use serde::{Deserialize, Serialize};

use super::place::Places;
use super::prepare::{Kernel, launches};
use super::{ALIGNMENT, Compiled, CudaBackend, CudaOptions, instance};
use crate::cpu::tuning::{self, BETTER, Choice};
use crate::plan::{Plan, Step};
use crate::{Instance, TuneError, TuningError};

/// Launches of a kernel that are timed as one.
const LAUNCHES: usize = 20;

/// Bytes of noise that activations are filled with.
const NOISE: usize = 1 << 20;

/// What measurements depend on besides the layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Device {
    name: String,
    /// CUDA version that the driver supports, 1000·major + 10·minor.
    driver: i32,
    /// The kernels' image and a digest of it.
    kernels: String,
}

/// Slices of a batch that were faster than the whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Slices {
    samples: usize,
    nanoseconds: u64,
    usual_nanoseconds: u64,
}

/// Which ways are fastest on one kind of device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CudaTuning {
    device: Device,
    layers: BTreeMap<String, Choice>,
    slices: BTreeMap<String, Slices>,
}

impl CudaTuning {
    /// Reads a table.
    ///
    /// # Errors
    /// [`TuningError::File`] and [`TuningError::Format`].
    pub fn read(path: &Path) -> Result<Self, TuningError> {
        tuning::read(path)
    }

    /// What a file of the table holds.
    ///
    /// # Errors
    /// None that a table of strings and integers can have.
    pub fn json(&self) -> Result<String, serde_json::Error> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// What is faster by another way than the usual one: the layer or network, the way, and how many times as
    /// fast it was.
    pub fn gains(&self) -> impl Iterator<Item = (&str, String, f64)> {
        let layers = self.layers.iter();
        let layers =
            layers.map(|(layer, choice)| (layer.as_str(), choice.way.clone(), choice.gain()));
        let networks = self.slices.iter().map(|(network, slices)| {
            let gain = slices.usual_nanoseconds as f64 / slices.nanoseconds.max(1) as f64;
            (
                network.as_str(),
                format!("slices of {}", slices.samples),
                gain,
            )
        });
        layers.chain(networks)
    }

    /// Takes over what another table of the same kind of device says.
    ///
    /// # Errors
    /// [`TuningError::Foreign`].
    pub fn merge(&mut self, other: CudaTuning) -> Result<(), TuningError> {
        other.check(&self.device)?;
        self.layers.extend(other.layers);
        self.slices.extend(other.slices);
        Ok(())
    }

    pub(super) fn check(&self, here: &Device) -> Result<(), TuningError> {
        let found = &self.device;
        for (what, found, here) in [
            ("device", found.name.clone(), here.name.clone()),
            ("driver", found.driver.to_string(), here.driver.to_string()),
            ("kernels", found.kernels.clone(), here.kernels.clone()),
        ] {
            if found != here {
                return Err(TuningError::Foreign { what, found, here });
            }
        }
        Ok(())
    }

    /// Makes a compiled plan run as the table says.
    pub(super) fn apply(&self, compiled: &mut Compiled) {
        for (kernel, key) in compiled.kernels.iter_mut().zip(&compiled.keys) {
            let (Kernel::Conv(conv), Some(key)) = (kernel, key) else {
                continue;
            };
            for power in 0..usize::BITS {
                let samples = 1 << power;
                let choice = self.layers.get(&at(key, samples));
                if let Some(way) = choice.and_then(|choice| choice.way.parse().ok()) {
                    conv.prefer(samples, way);
                }
            }
        }
        let network = network(&compiled.plan);
        for power in 0..usize::BITS {
            let samples = 1 << power;
            if let Some(slices) = self.slices.get(&at(&network, samples)) {
                compiled.slices.insert(samples, slices.samples);
            }
        }
    }
}

/// What the speed of each step depends on, where there are ways to choose from.
pub(super) fn keys(plan: &Plan, kernels: &[Kernel]) -> Vec<Option<String>> {
    let key = |(step, kernel): (&Step, &Kernel)| {
        let Kernel::Conv(conv) = kernel else {
            return None;
        };
        // The narrowest that holds the weights' values, whatever their type.
        let held = conv.held_as()?;
        crate::cpu::key(plan, step).map(|key| format!("{key}, held as {held}"))
    };
    plan.steps.iter().zip(kernels).map(key).collect()
}

/// What the speed of slices depends on.
fn network(plan: &Plan) -> String {
    format!(
        "{} of {} steps, {} multiplications and {} bytes a sample",
        plan.name,
        plan.steps.len(),
        plan.macs(),
        plan.layout.sample_bytes()
    )
}

/// A key of the table for a number of samples.
fn at(key: &str, samples: usize) -> String {
    format!("{key}, batch {}", bucket(samples))
}

fn nanoseconds(micros: f64) -> u64 {
    (micros * 1e3).round() as u64
}

impl CudaBackend {
    pub(super) fn here(&self) -> Device {
        let properties = self.context.properties();
        Device {
            name: properties.name.clone(),
            driver: properties.driver,
            kernels: format!("{} {}", env!("CARGO_PKG_VERSION"), self.context.kernels()),
        }
    }

    /// Measures every way of every layer of a plan for batches of `samples`, and the slices that such a batch
    /// may pass in, each the fastest of `runs` on the device's clock; keeps what is clearly faster than
    /// the usual.
    ///
    /// # Errors
    /// Where the plan does not compile, fit or run.
    pub fn tune(&self, plan: &Plan, samples: usize, runs: usize) -> Result<CudaTuning, TuneError> {
        let samples = if plan.signature.batched {
            samples.max(1)
        } else {
            1
        };
        let plain = self.clone().with_options(CudaOptions::default());
        let mut table = CudaTuning {
            device: self.here(),
            layers: plain.tune_layers(plan, samples, runs.max(1))?,
            slices: BTreeMap::new(),
        };
        table.slices = plain.tune_slices(plan, samples, runs.max(1), &table)?;
        Ok(table)
    }

    fn tune_layers(
        &self,
        plan: &Plan,
        samples: usize,
        runs: usize,
    ) -> Result<BTreeMap<String, Choice>, TuneError> {
        let mut compiled = self.compiled(plan)?;
        let mut layers = BTreeMap::new();
        for step in 0..compiled.device {
            let (Some(key), Kernel::Conv(conv)) = (&compiled.keys[step], &compiled.kernels[step])
            else {
                continue;
            };
            let (key, ways) = (at(key, samples), conv.candidates(samples));
            // Layers that are alike are measured once.
            if ways.len() < 2 || layers.contains_key(&key) {
                continue;
            }
            let times = self.time_ways(&mut compiled, step, &ways, samples, runs)?;
            layers.insert(key, (ways, times));
        }
        let choose = |(key, (ways, times)): (String, (Vec<Way>, Vec<f64>))| {
            let usual = *times.first()?;
            let (way, time) = ways
                .iter()
                .zip(times)
                .min_by(|(_, a), (_, b)| a.total_cmp(b))?;
            let choice = Choice {
                way: way.to_string(),
                nanoseconds: nanoseconds(time),
                usual_nanoseconds: nanoseconds(usual),
            };
            (time < usual * BETTER).then_some((key, choice))
        };
        Ok(layers.into_iter().filter_map(choose).collect())
    }

    /// Microseconds of a step by each of its ways, over noise where its operands will be.
    fn time_ways(
        &self,
        compiled: &mut Compiled,
        step: usize,
        ways: &[Way],
        samples: usize,
        runs: usize,
    ) -> Result<Vec<f64>, TuneError> {
        let arena = compiled
            .plan
            .layout
            .bytes(samples)
            .next_multiple_of(ALIGNMENT);
        let most = |conv: &mut Conv, way: &Way| {
            conv.prefer(samples, *way);
            conv.scratch_bytes(samples)
        };
        let scratch = if let Kernel::Conv(conv) = &mut compiled.kernels[step] {
            ways.iter().map(|way| most(conv, way)).max()
        } else {
            None
        };
        let bytes = arena + scratch.unwrap_or(0);
        let mut session = Session::new(&self.context, bytes, NOISE)?;
        fill(&mut session, arena)?;
        let mut times = vec![f64::INFINITY; ways.len()];
        for (number, way) in ways.iter().enumerate() {
            if let Kernel::Conv(conv) = &mut compiled.kernels[step] {
                conv.prefer(samples, *way);
            }
            let places = Places {
                plan: &compiled.plan,
                constants: &compiled.constants,
                arena: session.address(),
                scratch: session.address() + arena as u64,
                scratch_bytes: session.bytes() - arena,
                // Convolutions have one launch each.
                workspace: 0,
                workspace_bytes: 0,
                samples,
                batch: samples,
            };
            let made = launches(&compiled.kernels[step], &compiled.plan.steps[step], &places)?;
            let all = made.iter().cycle().take(LAUNCHES * made.len());
            let all: Vec<Command> = all.cloned().map(Command::Launch).collect();
            session.record(number, &all)?;
            session.replay(number)?;
        }
        // In turn with the others, since clocks rise and fall.
        for _ in 0..runs {
            for (number, best) in times.iter_mut().enumerate() {
                let time = session.time_replay(number)?.as_secs_f64() * 1e6 / LAUNCHES as f64;
                *best = best.min(time);
            }
        }
        Ok(times)
    }

    fn tune_slices(
        &self,
        plan: &Plan,
        samples: usize,
        runs: usize,
        table: &CudaTuning,
    ) -> Result<BTreeMap<String, Slices>, TuneError> {
        let mut best: Option<(usize, f64)> = None;
        let mut usual = f64::INFINITY;
        let options = CudaOptions {
            device_time: true,
            ..CudaOptions::default()
        };
        let backend = self.clone().with_options(options);
        let halves = (0..usize::BITS).map(|power| samples >> power);
        for slice in halves.take_while(|&slice| slice > 0) {
            let mut compiled = backend.compiled(plan)?;
            table.apply(&mut compiled);
            compiled.slices = BTreeMap::from([(bucket(samples), slice)]);
            let mut instance = instance::CudaInstance::new(Arc::new(compiled), samples)?;
            let mut time = f64::INFINITY;
            // The first run warms up.
            for _ in 0..=runs {
                time = time.min(instance.run(samples)?.total.as_secs_f64() * 1e6);
            }
            if slice == samples {
                usual = time;
            } else if best.is_none_or(|(_, best)| time < best) {
                best = Some((slice, time));
            }
        }
        let slices = best.filter(|(_, time)| *time < usual * BETTER);
        let slices = slices.map(|(slice, time)| {
            let slices = Slices {
                samples: slice,
                nanoseconds: nanoseconds(time),
                usual_nanoseconds: nanoseconds(usual),
            };
            (at(&network(&plan.interleaved().0), samples), slices)
        });
        Ok(slices.into_iter().collect())
    }
}

/// Fills the first `bytes` bytes of a session's memory with noise.
fn fill(session: &mut Session, bytes: usize) -> Result<(), CudaError> {
    for (index, byte) in session.staging_mut().iter_mut().enumerate() {
        *byte = ((index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
    }
    let uploads: Vec<Command> = (0..bytes)
        .step_by(NOISE)
        .map(|to| Command::Upload {
            from: 0..NOISE.min(bytes - to),
            to,
        })
        .collect();
    session.run(&uploads)
}

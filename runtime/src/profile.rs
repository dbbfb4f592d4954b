//! Where the time of a model goes: every step's median over many runs, as GOP/s and as a share of what
//! the machine's dot product instruction can do.

use std::fmt;
use std::time::{Duration, Instant};

use requant_numerics::{DType, LayerPrecision};

use crate::{ExecError, Executable, Form};

/// One step of a profiled model.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerTime {
    /// Name of the step: the graph's node.
    pub name: String,
    /// The kernel that runs it.
    pub kernel: &'static str,
    /// Its precision, for steps that multiply by weights.
    pub precision: Option<LayerPrecision>,
    /// Operations (2 a multiply-accumulate) of all samples of a run.
    pub operations: u64,
    /// Median time of one run: wall time, or where threads pass slices of the batch through the step apart,
    /// the mean of theirs.
    pub time: Duration,
}

impl LayerTime {
    /// Operations a second; `None` for a step without multiply-accumulates.
    pub fn rate(&self) -> Option<f64> {
        (self.operations > 0).then(|| self.operations as f64 / self.time.as_secs_f64().max(1e-9))
    }
}

/// A profiled model.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// Samples of each run.
    pub samples: usize,
    /// Runs measured.
    pub runs: usize,
    /// Operations a second that all threads together could do at most, where it was measured.
    pub peak: Option<f64>,
    /// Median time from the first byte of input to the last of output.
    pub total: Duration,
    /// Median time of filling the inputs, quantizing floats.
    pub inputs: Duration,
    /// Median time of reading the outputs, back to floats.
    pub outputs: Duration,
    /// Every step, in the order in which they run.
    pub layers: Vec<LayerTime>,
}

/// Runs a model `runs` times on the same pseudo-random inputs, after a tenth as many runs to warm up,
/// and takes the median of each step. `peak` is [`requant_kernels_cpu::probe::dot_rate`] times the
/// threads.
///
/// # Errors
/// As [`Executable::instance`] and [`crate::Instance::run`].
pub fn profile(
    executable: &dyn Executable,
    samples: usize,
    runs: usize,
    peak: Option<f64>,
) -> Result<Profile, ExecError> {
    let mut instance = executable.instance(samples)?;
    let plan = executable.plan();
    let signature = plan.signature();
    let inputs: Vec<Vec<u8>> = signature
        .inputs
        .iter()
        .map(|info| random_bytes(info.dtype, info.elements() * samples))
        .collect();
    let mut outputs: Vec<Vec<u8>> = signature
        .outputs
        .iter()
        .map(|info| vec![0; info.bytes(Form::Declared).unwrap_or(0) * samples])
        .collect();
    let runs = runs.max(1);
    let steps = plan.steps();
    let mut times = vec![Vec::with_capacity(runs); steps.len()];
    let (mut filling, mut reading, mut totals) = (Vec::new(), Vec::new(), Vec::new());
    let mut operations = vec![0; steps.len()];
    let warm_up = runs.div_ceil(10);
    for run in 0..warm_up + runs {
        let start = Instant::now();
        for (index, data) in inputs.iter().enumerate() {
            instance.write_input(index, 0, samples, Form::Declared, data)?;
        }
        let filled = Instant::now();
        let stats = instance.run(samples)?;
        if run >= warm_up {
            for ((times, operations), step) in
                times.iter_mut().zip(&mut operations).zip(&stats.steps)
            {
                times.push(step.time);
                *operations = step.operations;
            }
        }
        let ran = Instant::now();
        for (index, data) in outputs.iter_mut().enumerate() {
            instance.read_output(index, 0, samples, Form::Declared, data)?;
        }
        if run >= warm_up {
            filling.push(filled - start);
            reading.push(ran.elapsed());
            totals.push(start.elapsed());
        }
    }
    let layers = steps
        .iter()
        .zip(executable.kernels())
        .zip(times.into_iter().zip(operations))
        .map(|((step, kernel), (times, operations))| LayerTime {
            name: step.name.clone(),
            kernel,
            precision: step.precision,
            operations,
            time: median(times),
        })
        .collect();
    Ok(Profile {
        samples,
        runs,
        peak,
        total: median(totals),
        inputs: median(filling),
        outputs: median(reading),
        layers,
    })
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// The same pseudo-random values each time, that any model accepts: floats in [-2, 2), integers of the
/// type's whole range.
pub fn random_bytes(dtype: DType, elements: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        // SplitMix64 (Steele, Lea, Flood 2014).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    if dtype == DType::F32 {
        let one = |bits: u64| (bits >> 40) as f32 / (1u32 << 22) as f32 - 2.0;
        return (0..elements)
            .flat_map(|_| one(next()).to_le_bytes())
            .collect();
    }
    let size = dtype.size_in_memory();
    let in_range = |value: i64| match dtype.range() {
        Some((lo, hi)) => {
            let value = lo + value.rem_euclid(hi - lo + 1);
            // A range may hold what its type does not: 0 among -1 and 1.
            if dtype.contains(value) { value } else { hi }
        }
        None => value,
    };
    (0..elements)
        .flat_map(|_| {
            let bytes = in_range(next() as i64).to_le_bytes();
            bytes.into_iter().take(size)
        })
        .collect()
}

impl fmt::Display for Profile {
    /// A table, one line a step, with each step's share of the whole time.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        let whole = self.total.as_secs_f64().max(1e-9);
        let width = self
            .layers
            .iter()
            .map(|layer| layer.name.chars().count())
            .max()
            .unwrap_or(0)
            .clamp(5, 48);
        writeln!(
            f,
            "{:width$}  {:28} {:9} {:>10} {:>6} {:>8} {:>6}",
            "layer", "kernel", "precision", "us", "time", "GOP/s", "peak"
        )?;
        let mut row =
            |name: &str, kernel: &str, precision: &str, time: Duration, rate: Option<f64>| {
                let name: String = name.chars().take(width).collect();
                write!(
                    f,
                    "{name:width$}  {kernel:28} {precision:9} {:>10.1} {:>5.1}%",
                    micros(time),
                    100.0 * time.as_secs_f64() / whole
                )?;
                if let Some(rate) = rate {
                    write!(f, " {:>8.1}", rate * 1e-9)?;
                    if let Some(peak) = self.peak {
                        write!(f, " {:>5.1}%", 100.0 * rate / peak)?;
                    }
                }
                writeln!(f)
            };
        row("(inputs)", "quantize", "", self.inputs, None)?;
        for layer in &self.layers {
            let precision = layer.precision.map_or("", LayerPrecision::label);
            row(
                &layer.name,
                layer.kernel,
                precision,
                layer.time,
                layer.rate(),
            )?;
        }
        row("(outputs)", "dequantize", "", self.outputs, None)?;
        let operations: u64 = self.layers.iter().map(|layer| layer.operations).sum();
        let rate = operations as f64 / whole;
        row(
            "(all)",
            "",
            "",
            self.total,
            (operations > 0).then_some(rate),
        )
    }
}

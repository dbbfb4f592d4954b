//! One block: its roundings, activation scales and biases are learnt so that its quantized form gives
//! what its real form gives (AdaRound, Nagel et al. 2020; BRECQ, Li et al. 2021; QDrop, Wei et al. 2022).
//!
//! Each weight of at most 4 bits may take the integer below or above `W/s`; a stretched sigmoid `h(V)`
//! stands between them while it is learnt, and a term with falling exponent makes it decide. In each step
//! half of the elements of the block's inputs come from the real network, half from the quantized one, and
//! half of the low-bit activations inside stay real.

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use requant_import::float::{Graph, Quantized, ValueId};

use super::blocks::Block;
use super::effort::Effort;
use super::error::ReconstructError;
use super::parameters::{Parameters, Schedule};
use super::path::Values;
use super::tape::{Tape, choose};
use crate::progress::Progress;

/// Share of the steps in which no rounding is driven to a decision.
const WARM_UP: f32 = 0.2;
/// The term's exponent at first and at last.
const EXPONENTS: (f32, f32) = (20.0, 2.0);

/// What a block is reconstructed on, the values of `samples` samples each.
#[derive(Clone, Debug)]
pub struct BlockData {
    /// Number of samples.
    pub samples: usize,
    /// The block's inputs in the real network.
    pub real: BTreeMap<ValueId, Arc<Vec<f32>>>,
    /// The block's inputs in the network that is quantized up to the block.
    pub quantized: BTreeMap<ValueId, Arc<Vec<f32>>>,
    /// The block's outputs in the real network.
    pub targets: BTreeMap<ValueId, Arc<Vec<f32>>>,
    /// Weights of squared errors of the outputs; 1 where there are none.
    pub importance: BTreeMap<ValueId, Arc<Vec<f32>>>,
}

/// What came of a block. Errors are the squared error of the block's quantized results on its quantized
/// inputs, relative to the squares of the real results.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockReport {
    /// The block.
    pub block: Block,
    /// Samples it was reconstructed on.
    pub samples: usize,
    /// Error before.
    pub before: f64,
    /// Error of what was learnt.
    pub after: f64,
    /// Whether what was learnt replaced what was there: it did where it is better.
    pub kept: bool,
    /// What kept the block from being learnt: an operator without a derivative. Both errors are then 0.
    pub obstacle: Option<String>,
}

/// Reconstructs one block in place: rounded weights, biases, and the scales of activations of at most 4 bits
/// of its layers. Layers with wider, binary or codebook weights keep their integers and learn their bias
/// alone. Nothing changes where nothing got better.
///
/// # Errors
/// An operator without a derivative, data of another size than the block's values have, a layer without
/// integers, or the listener's wish to stop.
pub fn reconstruct_block(
    quantized: &mut Quantized<'_>,
    block: &Block,
    data: &BlockData,
    effort: &Effort,
    progress: &dyn Progress,
) -> Result<BlockReport, ReconstructError> {
    check(quantized.graph, block, data)?;
    let mut learner = Learner::new(quantized, block, data, effort)?;
    let before = learner.error()?;
    learner.parameters.soften();
    for step in 0..effort.iterations {
        if progress.cancelled() {
            return Err(ReconstructError::Cancelled);
        }
        learner.step(step)?;
    }
    learner.parameters.decide();
    let after = learner.error()?;
    let kept = after < before;
    let parameters = learner.parameters;
    if kept {
        parameters.store(quantized);
    }
    Ok(BlockReport {
        block: block.clone(),
        samples: data.samples,
        before,
        after,
        kept,
        obstacle: None,
    })
}

fn check(graph: &Graph, block: &Block, data: &BlockData) -> Result<(), ReconstructError> {
    if data.samples == 0 {
        return Err(ReconstructError::NoSamples);
    }
    let expected = |id: ValueId| {
        let value = graph.value(id);
        value.elements() * if value.batched { data.samples } else { 1 }
    };
    let inputs = block.inputs(graph);
    let outputs = block.outputs(graph);
    let wanted = inputs
        .iter()
        .flat_map(|&id| [(id, data.real.get(&id)), (id, data.quantized.get(&id))])
        .chain(outputs.iter().map(|&id| (id, data.targets.get(&id))));
    for (id, found) in wanted {
        let found = found.map_or(0, |data| data.len());
        if found != expected(id) {
            return Err(ReconstructError::Data {
                input: id.0,
                found,
                expected: expected(id),
            });
        }
    }
    Ok(())
}

/// A block while it learns.
struct Learner<'a> {
    graph: &'a Graph,
    data: &'a BlockData,
    effort: &'a Effort,
    parameters: Parameters,
    inputs: Vec<ValueId>,
    /// Outputs and what a squared error of one element in one sample counts.
    outputs: Vec<(ValueId, f64)>,
    /// Root mean square of the outputs.
    unit: f32,
    batch: usize,
    order: Vec<usize>,
    next: usize,
    rng: ChaCha8Rng,
}

impl<'a> Learner<'a> {
    fn new(
        quantized: &Quantized<'a>,
        block: &Block,
        data: &'a BlockData,
        effort: &'a Effort,
    ) -> Result<Self, ReconstructError> {
        let graph = quantized.graph;
        // A squared error counts relative to the result's mean square, summed over channels: the measure
        // against which the weight of the rounding term was chosen by AdaRound's authors.
        let (mut squares, mut elements) = (0.0, 0usize);
        let outputs = block.outputs(graph).into_iter().map(|id| {
            let target = &data.targets[&id];
            let square: f64 = target.iter().map(|&t| f64::from(t) * f64::from(t)).sum();
            let value = graph.value(id);
            let channels = match *value.dims {
                [_, c, _, _] | [_, c, _] => c,
                _ => value.dims.last().copied().unwrap_or(1),
            };
            let mean = (square / target.len().max(1) as f64).max(f64::from(f32::MIN_POSITIVE));
            squares += square;
            elements += target.len();
            (
                id,
                channels as f64 / (value.elements().max(1) as f64 * mean),
            )
        });
        let outputs = outputs.collect();
        let unit = (squares / elements.max(1) as f64).sqrt() as f32;
        // Each value exists about eight times in a step: as computed, clamped, quantized, and as gradients.
        let made = block.nodes.clone().map(|i| graph.nodes[i].output);
        let read = block.inputs(graph);
        let elements: usize = made.chain(read).map(|v| graph.value(v).elements()).sum();
        let fit = effort.memory / 2 / (8 * size_of::<f32>() * elements.max(1));
        Ok(Self {
            graph,
            data,
            effort,
            parameters: Parameters::new(quantized, block)?,
            inputs: block.inputs(graph),
            outputs,
            unit,
            batch: effort.batch.min(fit).clamp(1, data.samples),
            order: (0..data.samples).collect(),
            next: data.samples,
            rng: ChaCha8Rng::seed_from_u64(effort.seed ^ block.nodes.start as u64),
        })
    }

    /// The next samples of a random order, which is drawn anew where it ends.
    fn draw(&mut self) -> Vec<usize> {
        if self.next + self.batch > self.order.len() {
            for i in (1..self.order.len()).rev() {
                let j = self.rng.next_u64() % (i as u64 + 1);
                self.order.swap(i, j as usize);
            }
            self.next = 0;
        }
        let picked = self.order[self.next..self.next + self.batch].to_vec();
        self.next += self.batch;
        picked
    }

    /// Values of some samples.
    fn gather(&self, from: &Values, id: ValueId, samples: &[usize]) -> Vec<f32> {
        let value = self.graph.value(id);
        let data = &from[&id];
        if !value.batched {
            return data.to_vec();
        }
        let elements = value.elements();
        let mut out = Vec::with_capacity(elements * samples.len());
        for &sample in samples {
            out.extend_from_slice(&data[sample * elements..][..elements]);
        }
        out
    }

    /// One step of learning.
    fn step(&mut self, step: usize) -> Result<(), ReconstructError> {
        let samples = self.draw();
        let mut inputs = BTreeMap::new();
        for &id in &self.inputs {
            let mut mixed = self.gather(&self.data.quantized, id, &samples);
            let real = self.gather(&self.data.real, id, &samples);
            let words = mixed.len().div_ceil(64);
            let bits: Vec<u64> = (0..words).map(|_| self.rng.next_u64()).collect();
            choose(&mut mixed, &real, &bits);
            inputs.insert(id, Arc::new(mixed));
        }
        let mut tape = Tape::new();
        let count = samples.len();
        let drops = Some(&mut self.rng);
        let written = (self.parameters).write(&mut tape, self.graph, count, inputs, drops)?;
        let mut total = None;
        for &(id, unit) in &self.outputs {
            let target = self.gather(&self.data.targets, id, &samples);
            let weights = self
                .data
                .importance
                .contains_key(&id)
                .then(|| self.gather(&self.data.importance, id, &samples));
            let scale = (unit / count as f64) as f32;
            let loss = tape.squared_error(written.values[&id], target, weights, scale);
            total = Some(total.map_or(loss, |sum| tape.add(sum, loss)));
        }
        let Some(total) = total else { return Ok(()) };
        let mut gradients = tape.backward(total, vec![1.0]);
        let done = step as f32 / self.effort.iterations.max(1) as f32;
        let falling = 0.5 * (1.0 + libm::cosf(std::f32::consts::PI * done));
        let decided = (done - WARM_UP) / (1.0 - WARM_UP);
        let exponent =
            (decided >= 0.0).then_some(EXPONENTS.1 + (EXPONENTS.0 - EXPONENTS.1) * (1.0 - decided));
        let schedule = Schedule {
            falling,
            exponent,
            unit: self.unit,
        };
        self.parameters
            .learn(self.effort, &written, &mut gradients, schedule);
        Ok(())
    }

    /// The block's error on all samples, everything quantized.
    fn error(&self) -> Result<f64, ReconstructError> {
        let (mut error, mut power) = (0.0, 0.0);
        for first in (0..self.data.samples).step_by(self.batch) {
            let samples: Vec<usize> = (first..self.data.samples.min(first + self.batch)).collect();
            let inputs = self
                .inputs
                .iter()
                .map(|&id| {
                    let data = self.gather(&self.data.quantized, id, &samples);
                    (id, Arc::new(data))
                })
                .collect();
            let mut tape = Tape::new();
            let written =
                self.parameters
                    .write(&mut tape, self.graph, samples.len(), inputs, None)?;
            for &(id, unit) in &self.outputs {
                let target = self.gather(&self.data.targets, id, &samples);
                for (&y, &t) in tape.data(written.values[&id]).iter().zip(&target) {
                    let difference = f64::from(y) - f64::from(t);
                    error += unit * difference * difference;
                    power += unit * f64::from(t) * f64::from(t);
                }
            }
        }
        Ok(error / power.max(f64::MIN_POSITIVE))
    }
}

//! How a batch goes through a plan: in slices of samples that stay in a core's cache.
//!
//! A batch that takes every step whole writes each activation of all its samples before the next step
//! reads any, so the activations of a convolutional network travel to memory and back. Here the plan is
//! cut into segments, each with a number of samples, its slice; a slice passes all steps of a segment
//! before the next slice starts, in an arena that it alone uses, and slices are shared out to threads.
//! Few samples keep activations near, many read the weights less often and fill the kernels' tiles:
//! segments and slices are the cheapest way through the steps by a small model of that trade. What
//! the steps compute does not depend on it.

use std::ops::Range;

use crate::plan::step::StepOp;
use crate::plan::{ArenaLayout, BufferId, Plan, Step, Storage, arrange};

/// Slices that are considered: powers of two, and the whole batch.
pub(crate) const SLICES: [usize; 7] = [1, 2, 4, 8, 16, 32, WHOLE];

/// The slice of a segment that takes the batch as it is.
pub(crate) const WHOLE: usize = usize::MAX;

/// Samples that a whole batch is taken to have when its cost is estimated.
const USUAL_BATCH: usize = 128;

/// Bytes per nanosecond that one core reads from beyond its own cache.
const FAR_BYTES: f64 = 20.0;

/// Multiply-accumulates of a core per nanosecond.
const RATE: f64 = 200.0;

/// Rows that a kernel multiplies at once.
const TILE_ROWS: usize = 6;

/// What the choice of slices depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Machine {
    /// Bytes of cache that each core has to itself.
    pub(crate) cache: usize,
    /// Threads that compute at once.
    pub(crate) threads: usize,
}

/// Segments of a plan, in order, and the buffers that outlive them.
#[derive(Debug)]
pub(crate) struct Schedule {
    pub(crate) segments: Vec<Segment>,
    /// Buffers that hold the whole batch: ports, and what one segment leaves to another.
    pub(crate) wide: Vec<BufferId>,
    /// Position in `wide` of each buffer of the plan, for those that are no views.
    pub(crate) places: Vec<Option<usize>>,
    threads: usize,
}

/// Steps that a slice of the batch passes together.
#[derive(Debug)]
pub(crate) struct Segment {
    /// The steps.
    pub(crate) steps: Range<usize>,
    /// Buffers written here, in the arena of one slice.
    pub(crate) layout: ArenaLayout,
    /// Those of them that are copied out of the arena, by their position among the wide buffers.
    pub(crate) leaving: Vec<usize>,
    slice: usize,
}

impl Segment {
    /// Most samples of a slice in a run of `samples`: enough slices for every thread, where there are
    /// enough samples.
    pub(crate) fn slice(&self, samples: usize, threads: usize) -> usize {
        if self.slice == WHOLE {
            samples
        } else {
            self.slice.min((samples / threads).max(1))
        }
    }

    /// Bytes of an arena in which a thread passes slices of batches of up to `samples`. The first
    /// thread also runs what is not shared out.
    fn arena_bytes(&self, samples: usize, threads: usize, first: bool) -> usize {
        if self.slice == WHOLE && !first {
            0
        } else {
            self.layout.bytes(self.slice(samples, threads))
        }
    }
}

impl Schedule {
    /// The whole plan as one segment that takes a batch as it is.
    pub(crate) fn whole(plan: &Plan) -> Self {
        let cuts = vec![WHOLE; plan.steps.len()];
        Schedule::new(plan, &cuts, 1)
    }

    /// Chooses segments and slices; `weight_bytes` tells what a step reads besides activations.
    pub(crate) fn choose(
        plan: &Plan,
        machine: Machine,
        weight_bytes: impl Fn(usize) -> usize,
    ) -> Self {
        let slices = cheapest(plan, machine.cache as f64, weight_bytes);
        Schedule::new(plan, &slices, machine.threads.max(1))
    }

    /// Consecutive steps of the same slice are a segment.
    pub(crate) fn new(plan: &Plan, slices: &[usize], threads: usize) -> Self {
        let mut ranges: Vec<(Range<usize>, usize)> = Vec::new();
        for (index, &slice) in slices.iter().enumerate() {
            match ranges.last_mut() {
                Some((range, last)) if *last == slice => range.end = index + 1,
                _ => ranges.push((index..index + 1, slice)),
            }
        }
        let wide = wide(plan, ranges.iter().map(|(range, _)| range));
        let mut places = vec![None; plan.buffers.len()];
        for (place, id) in wide.iter().enumerate() {
            places[id.0] = Some(place);
        }
        let segment = |(steps, slice): (Range<usize>, usize)| {
            let written = written(plan, &steps);
            let leaving: Vec<usize> = written.iter().filter_map(|id| places[id.0]).collect();
            let touches = steps.clone().flat_map(|index| {
                let here = plan.steps[index].touches();
                here.map(|id| plan.root(id)).map(move |id| (id, index))
            });
            let touches = touches.filter(|(id, _)| written.contains(id));
            let kept = leaving.iter().map(|&place| (wide[place], steps.end));
            Segment {
                layout: arrange(&plan.buffers, touches.chain(kept)),
                leaving,
                slice,
                steps,
            }
        };
        Schedule {
            segments: ranges.into_iter().map(segment).collect(),
            wide,
            places,
            threads,
        }
    }

    /// Threads that take slices.
    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// Bytes of the arena of thread `thread`, for batches of up to `samples`.
    pub(crate) fn arena_bytes(&self, samples: usize, thread: usize) -> usize {
        self.segments
            .iter()
            .map(|segment| segment.arena_bytes(samples, self.threads, thread == 0))
            .max()
            .unwrap_or(0)
    }

    /// Bytes of wide buffer `place` for a batch of `samples`.
    pub(crate) fn wide_bytes(&self, plan: &Plan, place: usize, samples: usize) -> usize {
        let buffer = plan.buffer(self.wide[place]);
        let samples = if buffer.batched { samples } else { 1 };
        buffer.bytes().saturating_mul(samples)
    }

    /// All bytes of activations of an instance for batches of up to `samples`.
    pub(crate) fn bytes(&self, plan: &Plan, samples: usize) -> usize {
        let wide = (0..self.wide.len()).map(|place| self.wide_bytes(plan, place, samples));
        let arenas = (0..self.threads).map(|thread| self.arena_bytes(samples, thread));
        wide.chain(arenas).fold(0, usize::saturating_add)
    }
}

/// What the steps of a segment write, views counted as what they show.
fn written(plan: &Plan, steps: &Range<usize>) -> Vec<BufferId> {
    let mut ids: Vec<BufferId> = plan.steps[steps.clone()]
        .iter()
        .flat_map(|step| &step.outputs)
        .map(|&id| plan.root(id))
        .collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// The buffers of ports, and those written in one segment and read in another.
fn wide<'a>(plan: &Plan, segments: impl Iterator<Item = &'a Range<usize>>) -> Vec<BufferId> {
    let mut ids: Vec<BufferId> = plan
        .inputs
        .iter()
        .chain(&plan.outputs)
        .map(|port| plan.root(port.buffer))
        .collect();
    for steps in segments {
        let here = written(plan, steps);
        let reads = plan.steps[steps.clone()].iter().flat_map(Step::reads);
        let from_before = reads
            .map(|id| plan.root(id))
            .filter(|id| !here.contains(id));
        ids.extend(from_before);
    }
    ids.retain(|id| plan.buffers[id.0].storage == Storage::Arena);
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// The slice of every step on the cheapest way through the plan (Viterbi's algorithm over steps and
/// slices).
fn cheapest(plan: &Plan, cache: f64, weight_bytes: impl Fn(usize) -> usize) -> Vec<usize> {
    let between = live_bytes(plan);
    let mut costs = [0.0; SLICES.len()];
    let mut came_from: Vec<[usize; SLICES.len()]> = Vec::with_capacity(plan.steps.len());
    for (index, step) in plan.steps.iter().enumerate() {
        // Written at the end of a segment and read in the next.
        let change = 2.0 * between[index] as f64 / FAR_BYTES;
        let best =
            (0..SLICES.len()).fold(0, |best, i| if costs[i] < costs[best] { i } else { best });
        let mut next = costs;
        let mut from = [0; SLICES.len()];
        for (i, &slice) in SLICES.iter().enumerate() {
            let stay = costs[i] <= costs[best] + change;
            from[i] = if stay { i } else { best };
            let before = if stay { costs[i] } else { costs[best] + change };
            next[i] = before + cost(plan, step, slice, weight_bytes(index) as f64, cache);
        }
        costs = next;
        came_from.push(from);
    }
    // Of equal costs the last, which is the whole batch.
    let mut at =
        (0..SLICES.len()).fold(0, |best, i| if costs[i] <= costs[best] { i } else { best });
    let mut slices = vec![WHOLE; plan.steps.len()];
    for (index, from) in came_from.iter().enumerate().rev() {
        slices[index] = SLICES[at];
        at = from[at];
    }
    slices
}

/// Nanoseconds that a step takes for one sample, in slices of `slice`.
fn cost(plan: &Plan, step: &Step, slice: usize, weights: f64, cache: f64) -> f64 {
    let batched = |id: &BufferId| plan.buffer(*id).batched;
    if !step.outputs.iter().all(batched) {
        // The same for every sample: computed once a run.
        return if slice == WHOLE { 0.0 } else { f64::INFINITY };
    }
    let samples = slice.min(USUAL_BATCH) as f64;
    let bytes: usize = step
        .touches()
        .filter(batched)
        .map(|id| plan.buffer(id).bytes())
        .sum();
    let whole = bytes as f64 * samples + weights;
    let far = (1.0 - cache / whole).max(0.0);
    let rows = samples * rows(step) as f64;
    let filled = TILE_ROWS as f64 * (rows / TILE_ROWS as f64).ceil();
    let compute = step.macs as f64 / RATE * filled / rows;
    bytes as f64 * far / FAR_BYTES + compute.max(weights / samples / FAR_BYTES)
}

/// Rows of one sample in a matrix product; other steps fill no tiles, which many rows stand for.
fn rows(step: &Step) -> usize {
    let StepOp::Conv(conv) = &step.op else {
        return USUAL_BATCH;
    };
    let [images, height, width, _] = conv.output;
    if conv.groups == 1 {
        (images * height * width).max(1)
    } else {
        USUAL_BATCH
    }
}

/// For each step, the bytes of a sample that steps before it have written and it or a later one reads.
fn live_bytes(plan: &Plan) -> Vec<usize> {
    let count = plan.steps.len();
    let mut spans = vec![None::<(usize, usize)>; plan.buffers.len()];
    for (index, step) in plan.steps.iter().enumerate() {
        for &id in &step.outputs {
            spans[plan.root(id).0].get_or_insert((index, index));
        }
        for id in step.reads() {
            if let Some(span) = &mut spans[plan.root(id).0] {
                span.1 = index;
            }
        }
    }
    let mut live = vec![0; count];
    for (buffer, span) in plan.buffers.iter().zip(spans) {
        if let Some((first, last)) = span {
            live[(first + 1).min(count)..(last + 1).min(count)]
                .iter_mut()
                .for_each(|bytes| *bytes += buffer.bytes());
        }
    }
    live
}

#[cfg(test)]
mod tests {
    use requant_model::{artifact, builtin};

    use super::*;
    use crate::PlanOptions;

    fn chosen(cache: usize, weights: usize) -> (Plan, Vec<usize>) {
        let graph = artifact::read(builtin::FASHION).unwrap();
        let plan = Plan::new(graph, &PlanOptions::default()).unwrap();
        let slices = cheapest(&plan, cache as f64, |_| weights);
        (plan, slices)
    }

    #[test]
    fn slices_follow_the_cache_and_the_weights() {
        let (plan, roomy) = chosen(1 << 30, 0);
        assert!(roomy.iter().all(|&slice| slice == WHOLE), "{roomy:?}");
        let (_, tight) = chosen(16 << 10, 0);
        assert!(tight[0] < WHOLE, "{tight:?}");
        let (_, heavy) = chosen(16 << 10, 1 << 24);
        assert!(heavy.iter().all(|&slice| slice == WHOLE), "{heavy:?}");
        let machine = Machine {
            cache: 16 << 10,
            threads: 2,
        };
        let schedule = Schedule::choose(&plan, machine, |_| 0);
        let steps: Vec<usize> = schedule
            .segments
            .iter()
            .flat_map(|s| s.steps.clone())
            .collect();
        assert!(steps.into_iter().eq(0..plan.steps.len()));
        assert!(schedule.bytes(&plan, 64) < Schedule::whole(&plan).bytes(&plan, 64));
    }

    #[test]
    fn slices_are_enough_for_all_threads() {
        let segment = |slice| Segment {
            steps: 0..1,
            layout: ArenaLayout::default(),
            leaving: Vec::new(),
            slice,
        };
        for (slice, samples, threads, expected) in [
            (4, 8, 1, 4),
            (4, 8, 2, 4),
            (8, 8, 2, 4),
            (8, 3, 2, 1),
            (2, 1, 4, 1),
            (WHOLE, 9, 2, 9),
        ] {
            assert_eq!(segment(slice).slice(samples, threads), expected);
        }
    }
}

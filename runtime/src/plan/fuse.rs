//! Fusion: tables and sums move into the epilogue of the product that feeds them.
//!
//! A fused plan computes the same roundings in the same order, so it gives the same bytes. A product
//! takes over a consumer when it is the only reader of the product's output: a table at any time, a
//! sum of equal shapes once and before a table. The fused step stands where the consumer stood, so
//! everything it reads is there.

use super::build::Draft;
use super::step::{Join, Step, StepOp};
use super::{BufferId, Storage};

pub(super) fn fuse(draft: &mut Draft) {
    let mut uses = vec![0usize; draft.buffers.len()];
    for step in &draft.steps {
        step.reads().for_each(|id| uses[id.0] += 1);
    }
    for port in &draft.outputs {
        uses[port.buffer.0] += 1;
    }
    for buffer in &draft.buffers {
        if let Storage::View(source) = buffer.storage {
            uses[source.0] += 1;
        }
    }
    let mut index = 0;
    while index < draft.steps.len() {
        match consumer(draft, index, &uses) {
            // The step moved behind this position: look at what now stands here.
            Some(next) => take_over(draft, index, next),
            None => index += 1,
        }
    }
}

/// The step that the product at `index` can take over.
fn consumer(draft: &Draft, index: usize, uses: &[usize]) -> Option<usize> {
    let StepOp::Conv(conv) = &draft.steps[index].op else {
        return None;
    };
    let output = draft.steps[index].outputs[0];
    if uses[output.0] != 1 || conv.epilogue.requantize.is_none() || conv.epilogue.table.is_some() {
        return None;
    }
    let after = index + 1;
    let next = after
        + draft.steps[after..]
            .iter()
            .position(|s| s.reads().any(|r| r == output))?;
    let fits = match &draft.steps[next].op {
        StepOp::Table { axis, .. } => axis.is_none(),
        StepOp::Add(_) => {
            let same = |id: &BufferId| {
                let (a, b) = (&draft.buffers[id.0], &draft.buffers[output.0]);
                a.dims == b.dims
                    && a.batched == b.batched
                    && !matches!(a.storage, Storage::Constant(_))
            };
            conv.epilogue.join.is_none() && draft.steps[next].inputs.iter().all(same)
        }
        _ => false,
    };
    fits.then_some(next)
}

fn take_over(draft: &mut Draft, index: usize, next: usize) {
    let mut product = draft.steps.remove(index);
    let Step {
        op,
        inputs,
        outputs,
        ..
    } = draft.steps.remove(next - 1);
    let made = product.outputs[0];
    if let StepOp::Conv(conv) = &mut product.op {
        match op {
            StepOp::Table { tables, .. } => {
                conv.epilogue.table = tables.try_into().ok().map(std::sync::Arc::new);
            }
            StepOp::Add(params) => {
                let first = inputs[0] == made;
                let buffer = inputs[usize::from(first)];
                conv.epilogue.join = Some(Join::Add {
                    buffer,
                    params,
                    first,
                });
            }
            _ => {}
        }
    }
    product.outputs = outputs;
    draft.steps.insert(next - 1, product);
}

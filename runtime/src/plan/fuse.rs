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
    let same = |id: &BufferId| {
        let (a, b) = (&draft.buffers[id.0], &draft.buffers[output.0]);
        let constant = matches!(a.storage, Storage::Constant(_));
        a.dims == b.dims && a.batched == b.batched && !constant
    };
    let step = &draft.steps[next];
    let is_table = matches!(step.op, StepOp::Table { axis: None, .. });
    let is_sum = matches!(step.op, StepOp::Add(_));
    let joins = is_sum && conv.epilogue.join.is_none() && step.inputs.iter().all(same);
    (is_table || joins).then_some(next)
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
        if let StepOp::Table { tables, .. } = op {
            conv.epilogue.table = tables.try_into().ok().map(std::sync::Arc::new);
        } else if let StepOp::Add(params) = op {
            let first = inputs[0] == made;
            let buffer = inputs[usize::from(first)];
            conv.epilogue.join = Some(Join::Add {
                buffer,
                params,
                first,
            });
        }
    }
    product.outputs = outputs;
    draft.steps.insert(next - 1, product);
}

//! Fusion: tables and sums move into the epilogue of the product that feeds them.
//!
//! A fused plan computes the same roundings in the same order, so it gives the same bytes. A product
//! takes over a consumer when it is the only reader of the product's output: a table at any time, a
//! sum of equal shapes once and before a table. The fused step stands where the consumer stood, so
//! everything it reads is there. Requantizations from at most 8 bits to at most 8 bits by one scale are tables
//! too.

use requant_numerics::table;

use super::build::Draft;
use super::step::{Join, Step, StepOp};
use super::{Buffer, BufferId, Storage};

pub(super) fn fuse(draft: &mut Draft) {
    tabulate(draft);
    let readers = sole_readers(draft);
    let mut steps: Vec<Option<Step>> = draft.steps.drain(..).map(Some).collect();
    for index in 0..steps.len() {
        let next = steps[index]
            .as_ref()
            .and_then(|product| consumer(&draft.buffers, &steps, product, &readers));
        let Some(next) = next else { continue };
        // A fused step is met again at its new place, where it may take over more.
        if let (Some(product), Some(taken)) = (steps[index].take(), steps[next].take()) {
            steps[next] = Some(take_over(product, taken));
        }
    }
    draft.steps.extend(steps.into_iter().flatten());
}

/// Makes tables of requantizations from byte to byte.
fn tabulate(draft: &mut Draft) {
    for step in &mut draft.steps {
        let StepOp::Rescale {
            zero_point,
            requantize,
        } = &step.op
        else {
            continue;
        };
        let dtype = |id: BufferId| draft.buffers[id.0].dtype;
        let (input, output) = (dtype(step.inputs[0]), dtype(step.outputs[0]));
        let bytes = input.is_quantized() && output.is_quantized();
        if bytes && requantize.scheme.channels() == 1 {
            let map = |q: i32| requantize.apply(q - zero_point, 0);
            step.op = StepOp::Table {
                tables: table::from_fn(input, map).to_vec(),
                axis: None,
            };
        }
    }
}

/// The step that reads each buffer, where it alone does, once, and no output and no view.
fn sole_readers(draft: &Draft) -> Vec<Option<usize>> {
    let mut uses = vec![0usize; draft.buffers.len()];
    let mut readers = vec![None; draft.buffers.len()];
    for (index, step) in draft.steps.iter().enumerate() {
        for id in step.reads() {
            uses[id.0] += 1;
            readers[id.0] = Some(index);
        }
    }
    for port in &draft.outputs {
        uses[port.buffer.0] += 1;
    }
    for buffer in &draft.buffers {
        if let Storage::View(source) = buffer.storage {
            uses[source.0] += 1;
        }
    }
    let alone = readers.into_iter().zip(uses);
    alone
        .map(|(reader, uses)| reader.filter(|_| uses == 1))
        .collect()
}

/// The place of the step that a product can take over.
fn consumer(
    buffers: &[Buffer],
    steps: &[Option<Step>],
    product: &Step,
    readers: &[Option<usize>],
) -> Option<usize> {
    let StepOp::Conv(conv) = &product.op else {
        return None;
    };
    if conv.epilogue.requantize.is_none() || conv.epilogue.table.is_some() {
        return None;
    }
    let output = product.outputs[0];
    let next = readers[output.0]?;
    let step = steps[next].as_ref()?;
    let same = |id: &BufferId| {
        let (a, b) = (&buffers[id.0], &buffers[output.0]);
        let constant = matches!(a.storage, Storage::Constant(_));
        a.dims == b.dims && a.batched == b.batched && !constant
    };
    let is_table = matches!(step.op, StepOp::Table { axis: None, .. });
    let is_sum = matches!(step.op, StepOp::Add(_));
    let joins = is_sum && conv.epilogue.join.is_none() && step.inputs.iter().all(same);
    (is_table || joins).then_some(next)
}

fn take_over(mut product: Step, taken: Step) -> Step {
    let made = product.outputs[0];
    if let StepOp::Conv(conv) = &mut product.op {
        if let StepOp::Table { tables, .. } = taken.op {
            conv.epilogue.table = tables.try_into().ok().map(std::sync::Arc::new);
        } else if let StepOp::Add(params) = taken.op {
            let first = taken.inputs[0] == made;
            let buffer = taken.inputs[usize::from(first)];
            conv.epilogue.join = Some(Join::Add {
                buffer,
                params,
                first,
            });
        }
    }
    product.outputs = taken.outputs;
    product
}

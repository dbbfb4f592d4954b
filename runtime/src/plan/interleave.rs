//! Inputs that come as planes of channels and are read pixel by pixel: their edge can do both at once.
//!
//! A float input whose integers only a transposition reads needs no buffer of its own: what quantizes it
//! may write each value where the transposition would have moved it. Whether that pays is up to a backend,
//! so it asks for the plan that does without these steps.

use requant_kernels_cpu::Planes;

use super::build::Draft;
use super::{BufferId, Plan, Step, StepOp, Storage, layout};

impl Plan {
    /// The plan without transpositions of inputs from planes to pixels, and for each input how it must be
    /// written instead. Unfused plans keep every value.
    pub(crate) fn interleaved(&self) -> (Self, Vec<Option<Planes>>) {
        let mut plan = self.clone();
        let mut planes = vec![None; plan.inputs.len()];
        if plan.fused {
            for (input, planes) in planes.iter_mut().enumerate() {
                *planes = plan.interleave(input);
            }
        }
        (plan.laid_out(), planes)
    }

    /// The plan with places for the buffers that its steps use.
    pub(super) fn laid_out(mut self) -> Self {
        let draft = Draft {
            buffers: self.buffers,
            steps: self.steps,
            inputs: self.inputs,
            outputs: self.outputs,
        };
        self.layout = layout::lay_out(&draft);
        self.buffers = draft.buffers;
        self.steps = draft.steps;
        self.inputs = draft.inputs;
        self.outputs = draft.outputs;
        self
    }

    /// Takes out the transposition behind an input, where there is one.
    fn interleave(&mut self, input: usize) -> Option<Planes> {
        let port = &self.inputs[input];
        let edge = port.edge.as_ref()?;
        let index = self.sole_reader(port.buffer)?;
        let Step { op, outputs, .. } = &self.steps[index];
        let StepOp::Transpose { perm } = op else {
            return None;
        };
        let dims = &self.buffer(port.buffer).dims;
        let channel = perm.iter().enumerate().find(|(i, axis)| i != *axis)?.0;
        let behind = (channel + 1..dims.len()).chain([channel]);
        if !edge.dtype.is_quantized() || !perm[channel..].iter().copied().eq(behind) {
            return None;
        }
        let planes = Planes {
            channels: dims[channel],
            pixels: dims[channel + 1..].iter().product(),
        };
        self.inputs[input].buffer = outputs[0];
        self.steps.remove(index);
        Some(planes)
    }

    /// The step that reads a buffer, where it alone does, once.
    pub(super) fn sole_reader(&self, buffer: BufferId) -> Option<usize> {
        let shown = self
            .buffers
            .iter()
            .any(|b| b.storage == Storage::View(buffer));
        let given = self.outputs.iter().any(|port| port.buffer == buffer);
        let readers = |step: &Step| step.reads().filter(|id| *id == buffer).count();
        let uses: usize = self.steps.iter().map(readers).sum();
        if shown || given || uses != 1 {
            return None;
        }
        self.steps.iter().position(|step| readers(step) == 1)
    }
}

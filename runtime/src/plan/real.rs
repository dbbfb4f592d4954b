//! Accumulators that become floats as they leave a product.
//!
//! What dequantizes a product's accumulators needs neither a step nor a buffer of its own where the product's
//! epilogue can do it. Not every backend's can, so those that can ask for the plan.

use super::step::{EdgeScales, Real};
use super::{Buffer, Plan, Step, StepOp};

impl Plan {
    /// The plan whose products take over what alone reads their accumulators and dequantizes them, by scales
    /// without zero points, one or one a channel. Unfused plans keep every step.
    pub(crate) fn with_reals(mut self) -> Self {
        let mut index = 0;
        while self.fused && index < self.steps.len() {
            match self.takes_over(index) {
                // The fused step stands where what it took over stood, before what followed that.
                Some((next, real)) => {
                    let mut product = self.steps.remove(index);
                    let taken = &mut self.steps[next - 1];
                    if let StepOp::Conv(conv) = &mut product.op {
                        conv.epilogue.real = Some(real);
                    }
                    product.outputs.clone_from(&taken.outputs);
                    *taken = product;
                }
                None => index += 1,
            }
        }
        self.laid_out()
    }

    /// The step behind the accumulators of a product that it can take over, and the scales of that.
    fn takes_over(&self, index: usize) -> Option<(usize, Real)> {
        let Step { op, outputs, .. } = &self.steps[index];
        let StepOp::Conv(conv) = op else {
            return None;
        };
        let epilogue = &conv.epilogue;
        let taken = epilogue.join.is_some() || epilogue.table.is_some() || epilogue.real.is_some();
        if epilogue.requantize.is_some() || taken {
            return None;
        }
        let next = self.sole_reader(outputs[0])?;
        let StepOp::Dequantize { scales, offset } = &self.steps[next].op else {
            return None;
        };
        let scales = along_channels(scales, self.buffer(outputs[0]), conv.output[3])?;
        let offset = offset.clone().unwrap_or_default();
        Some((next, Real { scales, offset }))
    }
}

/// The scales of a product's channels, one where it serves all; none where they vary otherwise.
fn along_channels(scales: &EdgeScales, integers: &Buffer, channels: usize) -> Option<Vec<f32>> {
    match scales {
        EdgeScales::Tensor { scale, zero_point } => (*zero_point == 0).then(|| vec![*scale]),
        EdgeScales::Axis(axis) => {
            let last = axis.blocks.axis + 1 == integers.dims.len();
            let each = last && axis.blocks.block == 1 && axis.scales.len() == channels;
            let whole = axis.zero_points.iter().all(|&zero_point| zero_point == 0);
            (each && whole).then(|| axis.scales.clone())
        }
    }
}

#[cfg(test)]
mod tests {
    use requant_conformance::suite;
    use requant_model::{Graph, Op};

    use super::*;
    use crate::PlanOptions;

    fn plan(graph: &Graph, fuse: bool) -> Plan {
        let options = PlanOptions {
            fuse,
            ..PlanOptions::default()
        };
        Plan::new(graph.clone(), &options).unwrap()
    }

    fn dequantized(plan: &Plan) -> usize {
        let steps = plan.steps.iter();
        steps
            .filter(|step| matches!(step.op, StepOp::Dequantize { .. }))
            .count()
    }

    /// Whether a product can take over the graph's one dequantization.
    fn can(graph: &Graph) -> bool {
        let found = graph.nodes.iter().find_map(|node| {
            let Op::Dequantize(op) = &node.op else {
                return None;
            };
            Some((op, node.inputs[0], node.outputs[0]))
        });
        let (op, acc, y) = found.unwrap();
        let last = graph.value(acc).dims.len() - 1;
        let zeros = |name: &String| graph.tensors[name].i32s().unwrap().iter().all(|&z| z == 0);
        let along = op.blocks.as_ref().is_none_or(|blocks| {
            (blocks.block, blocks.axis) == (1, last)
                && blocks.zero_points.as_ref().is_none_or(zeros)
        });
        // A port can do it too, for which the accumulators stay.
        let port = op.blocks.is_none() && op.offset.is_none() && graph.outputs.contains(&y);
        along && !port && !graph.outputs.contains(&acc)
    }

    #[test]
    fn products_take_over_what_dequantizes_their_accumulators() {
        let cases = suite::all(40, 9);
        let cases = cases.iter().filter(|case| case.name.starts_with("real"));
        let mut met = [0, 0];
        for case in cases {
            let before = plan(&case.graph, true);
            let after = before.clone().with_reals();
            let taken = dequantized(&before) - dequantized(&after);
            assert_eq!(taken, usize::from(can(&case.graph)), "{}", case.name);
            assert_eq!(after.steps.len() + taken, before.steps.len());
            let is_real = |step: &&Step| matches!(&step.op, StepOp::Conv(conv) if conv.epilogue.real.is_some());
            let reals = after.steps.iter().filter(is_real).count();
            assert_eq!(reals, taken, "{}", case.name);
            met[taken] += 1;
            let unfused = plan(&case.graph, false);
            let steps = unfused.steps.len();
            assert_eq!(unfused.with_reals().steps.len(), steps, "{}", case.name);
        }
        assert!(met.iter().all(|&met| met > 5), "{met:?}");
    }
}

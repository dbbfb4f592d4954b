//! The reference backend: plain loops over the formulas of `requant-numerics`, one element at a time.
//!
//! It is the oracle of every other backend, so nothing in it is clever: no packing, no blocking, no
//! instruction sets, no threads.

mod edges;
mod linear;
mod maps;
mod movement;
mod pools;

use std::sync::Arc;

use requant_kernels_cpu::threads::Seat;
use requant_kernels_cpu::{Parallel, Serial};
use requant_numerics::edge;

use crate::arena::Operands;
use crate::edges::Edges;
use crate::executor::{Crew, HostExecutable, Runner};
use crate::plan::{Plan, Step, StepOp};
use crate::schedule::Schedule;
use crate::{Backend, BackendInfo, CompileError, ExecError, Executable};

/// The reference backend.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReferenceBackend;

impl Backend for ReferenceBackend {
    fn name(&self) -> &'static str {
        "reference"
    }

    fn info(&self) -> BackendInfo {
        BackendInfo {
            backend: "reference",
            isa: "none",
            device: "cpu".to_owned(),
            threads: 1,
        }
    }

    fn compile(&self, plan: Arc<Plan>) -> Result<Arc<dyn Executable>, CompileError> {
        let weights = |step: &Step| {
            if let StepOp::Conv(conv) = &step.op {
                conv.weights.as_ref().map_or(0, |w| 2 * w.effective.len())
            } else {
                0
            }
        };
        let runner = Arc::new(Reference {
            weight_bytes: plan.steps.iter().map(weights).collect(),
            edges: Edges::portable(&plan),
        });
        Ok(Arc::new(HostExecutable {
            schedule: Arc::new(Schedule::whole(&plan)),
            plan,
            runner,
        }))
    }
}

#[derive(Debug)]
struct Reference {
    /// Of each step.
    weight_bytes: Vec<usize>,
    edges: Edges,
}

impl Runner for Reference {
    fn seat(&self) -> Option<Seat<'_>> {
        None
    }

    fn share(&self, parts: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..parts).for_each(task);
    }

    fn step(
        &self,
        (_, step, output): (usize, &Step, usize),
        _crew: Crew,
        operands: Operands<'_>,
        out: &mut [u8],
        _scratch: &mut [u8],
    ) -> Result<(), ExecError> {
        run(step, output, &operands, out);
        Ok(())
    }

    fn edges(&self) -> (&Edges, &dyn Parallel) {
        (&self.edges, &Serial)
    }

    fn weight_bytes(&self, index: usize) -> usize {
        self.weight_bytes.get(index).copied().unwrap_or(0)
    }

    fn scratch_bytes(&self, _crew: Crew) -> usize {
        0
    }

    fn kernels(&self) -> Vec<&'static str> {
        vec!["reference"; self.weight_bytes.len()]
    }
}

/// Computes output `output` of a step.
pub(crate) fn run(step: &Step, output: usize, operands: &Operands<'_>, out: &mut [u8]) {
    match &step.op {
        StepOp::Quantize { scales, rounding } => {
            edges::quantize(step, operands, out, scales, *rounding);
        }
        StepOp::Dequantize { scales, offset } => {
            edges::dequantize(step, operands, out, scales, offset.as_deref());
        }
        StepOp::EdgeThresholds {
            thresholds,
            lo,
            step: by,
        } => edges::thresholds(step, operands, out, (thresholds, *lo, *by)),
        StepOp::Conv(conv) => linear::conv(step, conv, operands, out),
        StepOp::MatMul {
            zero_point_a,
            zero_point_b,
            requantize,
        } => {
            let zero_points = (*zero_point_a, *zero_point_b);
            linear::mat_mul(step, operands, out, zero_points, requantize.as_ref());
        }
        StepOp::Add(params) => maps::binary(step, operands, out, |a, b| params.apply(a, b)),
        StepOp::Mul(params) => maps::binary(step, operands, out, |a, b| params.apply(a, b)),
        StepOp::Table { tables, axis } => maps::table(step, operands, out, tables, *axis),
        StepOp::Rescale {
            zero_point,
            requantize,
        } => {
            maps::rescale(step, operands, out, *zero_point, requantize);
        }
        StepOp::MaxPool(window) => pools::max_pool(step, operands, out, window),
        StepOp::AveragePool {
            window,
            include_pad,
            zero_point,
            requantize,
        } => {
            pools::average_pool(
                step,
                operands,
                out,
                window,
                *include_pad,
                *zero_point,
                requantize,
            );
        }
        StepOp::Mean {
            axes,
            zero_point,
            requantize,
        } => {
            pools::mean(step, operands, out, axes, *zero_point, requantize);
        }
        StepOp::Concat { axis } => movement::concat(step, operands, out, *axis),
        StepOp::Slice { starts, steps } => movement::slice(step, operands, out, starts, steps),
        StepOp::Pad { before, value } => movement::pad(step, operands, out, before, *value),
        StepOp::Transpose { perm } => movement::transpose(step, operands, out, perm),
        StepOp::ResizeNearest { rows, columns } => {
            movement::resize_nearest(step, operands, out, rows, columns);
        }
        StepOp::ResizeLinear {
            rows,
            columns,
            zero_point,
            requantize,
        } => {
            pools::resize_linear(
                step,
                operands,
                out,
                (rows, columns),
                *zero_point,
                requantize,
            );
        }
        StepOp::Softmax { axis, log: false } => {
            edges::softmax(step, operands, out, *axis, edge::softmax);
        }
        StepOp::Softmax { axis, log: true } => {
            edges::softmax(step, operands, out, *axis, edge::log_softmax);
        }
        StepOp::IntegerSoftmax(op) => maps::integer_softmax(step, operands, out, op),
        StepOp::LayerNorm(op) => maps::layer_norm(step, operands, out, op),
        StepOp::QLinearSoftmax {
            axis,
            table,
            inverse_scale,
            zero_point,
        } => {
            maps::softmax(
                step,
                operands,
                out,
                *axis,
                (table, *inverse_scale, *zero_point),
            );
        }
        StepOp::TfliteSoftmax { axis, table } => {
            maps::tflite_softmax(step, operands, out, *axis, table);
        }
        StepOp::ArgMax { axis, last } => edges::arg_max(step, operands, out, *axis, *last),
        StepOp::DynamicQuantize => edges::dynamic_quantize(step, operands, output, out),
        StepOp::ScaleAccumulator { scales, bias, relu } => {
            edges::scale_accumulator(step, operands, out, (scales, bias.as_deref(), *relu));
        }
    }
}

/// Row-major strides of a shape.
pub(crate) fn strides(dims: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; dims.len()];
    for axis in (1..dims.len()).rev() {
        strides[axis - 1] = strides[axis] * dims[axis];
    }
    strides
}

/// Calls `visit(flat index, coordinates)` for every element of a shape, in row-major order.
pub(crate) fn for_each(dims: &[usize], mut visit: impl FnMut(usize, &[usize])) {
    let count: usize = dims.iter().product();
    let mut at = vec![0; dims.len()];
    for index in 0..count {
        visit(index, &at);
        for axis in (0..dims.len()).rev() {
            at[axis] += 1;
            if at[axis] < dims[axis] {
                break;
            }
            at[axis] = 0;
        }
    }
}

/// Splits a shape at an axis: elements before it, along it and after it.
pub(crate) fn around(dims: &[usize], axis: usize) -> (usize, usize, usize) {
    (
        dims[..axis].iter().product(),
        dims[axis],
        dims[axis + 1..].iter().product(),
    )
}

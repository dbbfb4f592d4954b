//! What every backend on the host shares: instances that run a plan's steps in order over an arena.

use std::sync::Arc;
use std::time::Instant;

use requant_kernels_cpu::threads::Seat;
use requant_numerics::DType;

use crate::arena::{Memory, Operands, borrow};
use crate::plan::signature::Edge;
use crate::plan::{Plan, Step, Storage};
use crate::{ExecError, Executable, Footprint, Form, Instance, RunStats, ports};

/// How a backend runs one step.
pub(crate) trait Runner: Send + Sync + 'static {
    /// Waits for the right to compute, where many share the cores; held during a run.
    fn seat(&self) -> Option<Seat<'_>>;

    /// Writes output `output` of step `index`.
    fn step(
        &self,
        index: usize,
        step: &Step,
        output: usize,
        operands: Operands<'_>,
        out: &mut [u8],
        scratch: &mut [u8],
    ) -> Result<(), ExecError>;

    /// The float edge of input port `input`.
    fn quantize(&self, input: usize, edge: &Edge, data: &[u8], out: &mut [u8]);

    /// The float edge of output port `output`.
    fn dequantize(&self, output: usize, edge: &Edge, data: &[u8], out: &mut [u8]);

    /// Bytes of packed weights.
    fn weight_bytes(&self) -> usize;

    /// Working memory that steps need beside the arena.
    fn scratch_bytes(&self) -> usize;

    /// The kernel of each step.
    fn kernels(&self) -> Vec<&'static str>;
}

/// A plan compiled for the host.
#[derive(Debug)]
pub(crate) struct HostExecutable<R> {
    pub(crate) plan: Arc<Plan>,
    pub(crate) runner: Arc<R>,
}

impl<R: Runner> Executable for HostExecutable<R> {
    fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    fn footprint(&self, max_batch: usize) -> Footprint {
        let constants = self
            .plan
            .buffers
            .iter()
            .map(|buffer| match &buffer.storage {
                Storage::Constant(bytes) => bytes.len(),
                Storage::Arena | Storage::View(_) => 0,
            });
        let arena = self.plan.layout.bytes(max_batch);
        Footprint {
            weight_bytes: self.runner.weight_bytes() + constants.sum::<usize>(),
            arena_bytes: arena.saturating_add(self.runner.scratch_bytes()),
        }
    }

    fn kernels(&self) -> Vec<&'static str> {
        self.runner.kernels()
    }

    fn instance(&self, max_batch: usize) -> Result<Box<dyn Instance>, ExecError> {
        let limit = if self.plan.signature.batched {
            usize::MAX
        } else {
            1
        };
        if max_batch == 0 || max_batch > limit {
            return Err(ExecError::Batch {
                samples: max_batch,
                limit,
            });
        }
        let bytes = self.footprint(max_batch).arena_bytes;
        let budget = self.plan.memory_budget;
        if bytes > budget {
            return Err(ExecError::TooLarge {
                samples: max_batch,
                bytes,
                budget,
            });
        }
        let precisions: Vec<_> = self.plan.steps.iter().map(|step| step.precision).collect();
        Ok(Box::new(HostInstance {
            arena: Memory::new(self.plan.layout.bytes(max_batch))?,
            scratch: Memory::new(self.runner.scratch_bytes())?,
            stats: RunStats::new(&precisions),
            plan: Arc::clone(&self.plan),
            runner: Arc::clone(&self.runner),
            max_batch,
        }))
    }
}

struct HostInstance<R> {
    plan: Arc<Plan>,
    runner: Arc<R>,
    arena: Memory,
    scratch: Memory,
    stats: RunStats,
    max_batch: usize,
}

impl<R: Runner> Instance for HostInstance<R> {
    fn max_batch(&self) -> usize {
        self.max_batch
    }

    fn write_input(
        &mut self,
        input: usize,
        first: usize,
        samples: usize,
        form: Form,
        data: &[u8],
    ) -> Result<(), ExecError> {
        let span = (first, samples, self.max_batch);
        let (plan, got) = (&self.plan, data.len());
        let (port, range) = ports::locate(plan, &plan.inputs, "input", input, span, form, got)?;
        let out = &mut self.arena.bytes_mut()[range];
        if let (Some(edge), Form::Declared) = (&port.edge, form) {
            self.runner.quantize(input, edge, data, out);
            return Ok(());
        }
        let dtype = plan.buffer(port.buffer).dtype;
        if let Some((index, value)) = ports::outside_range(dtype, data) {
            let name = port.info.name.clone();
            return Err(ExecError::Range {
                name,
                dtype,
                index,
                value,
            });
        }
        out.copy_from_slice(data);
        Ok(())
    }

    fn run(&mut self, samples: usize) -> Result<&RunStats, ExecError> {
        if samples == 0 || samples > self.max_batch {
            return Err(ExecError::Batch {
                samples,
                limit: self.max_batch,
            });
        }
        self.stats.reset();
        let _seat = self.runner.seat();
        let mut before = Instant::now();
        for (index, step) in self.plan.steps.iter().enumerate() {
            for (output, id) in step.outputs.iter().enumerate() {
                let arena = self.arena.bytes_mut();
                let (operands, out) = borrow(&self.plan, arena, *id, samples, self.max_batch);
                let scratch = self.scratch.bytes_mut();
                self.runner
                    .step(index, step, output, operands, out, scratch)?;
            }
            let now = Instant::now();
            let batched = step.outputs.iter().any(|id| self.plan.buffer(*id).batched);
            let operations = 2 * step.macs * if batched { samples as u64 } else { 1 };
            self.stats
                .record(index, step.precision, now - before, operations);
            before = now;
        }
        Ok(&self.stats)
    }

    fn read_output(
        &self,
        output: usize,
        first: usize,
        samples: usize,
        form: Form,
        data: &mut [u8],
    ) -> Result<(), ExecError> {
        let span = (first, samples, self.max_batch);
        let (plan, got) = (&self.plan, data.len());
        let (port, range) = ports::locate(plan, &plan.outputs, "output", output, span, form, got)?;
        // An output that no input reaches may be a constant, which is in no arena.
        let bytes = match &plan.buffer(plan.root(port.buffer)).storage {
            Storage::Constant(bytes) => bytes,
            Storage::Arena | Storage::View(_) => &self.arena.bytes()[range],
        };
        match (&port.edge, form) {
            (Some(edge), Form::Declared) => self.runner.dequantize(output, edge, bytes, data),
            (_, _) => data.copy_from_slice(bytes),
        }
        Ok(())
    }
}

/// Element `index` of an integer buffer of at most 32 bits; 0 for other types.
#[inline]
pub(crate) fn read_int(dtype: DType, data: &[u8], index: usize) -> i32 {
    let byte = |i: usize| data.get(i).copied().unwrap_or(0);
    match dtype {
        DType::Binary | DType::Ternary | DType::I2 | DType::I4 | DType::I8 => {
            i32::from(byte(index) as i8)
        }
        DType::U2 | DType::U4 | DType::U8 => i32::from(byte(index)),
        DType::I16 => i32::from(i16::from_le_bytes([byte(2 * index), byte(2 * index + 1)])),
        DType::I32 => i32::from_le_bytes(std::array::from_fn(|i| byte(4 * index + i))),
        DType::I64 | DType::F32 | DType::F64 => 0,
    }
}

/// Writes element `index` of an integer buffer of at most 32 bits.
#[inline]
pub(crate) fn write_int(dtype: DType, data: &mut [u8], index: usize, value: i32) {
    let size = dtype.size_in_memory().min(4);
    data[index * size..(index + 1) * size].copy_from_slice(&value.to_le_bytes()[..size]);
}

/// Element `index` of an `f32` buffer.
#[inline]
pub(crate) fn read_f32(data: &[u8], index: usize) -> f32 {
    f32::from_le_bytes(std::array::from_fn(|i| data[4 * index + i]))
}

/// Writes element `index` of an `f32` buffer.
#[inline]
pub(crate) fn write_f32(data: &mut [u8], index: usize, value: f32) {
    data[4 * index..4 * index + 4].copy_from_slice(&value.to_le_bytes());
}

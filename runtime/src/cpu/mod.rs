//! The CPU backend: every step of a plan on the SIMD kernels of `requant-kernels-cpu`.
//!
//! Compiling resolves each step to a prepared kernel and packs the weights once. Rare steps without
//! a kernel of their own (see [`prepare`]) run the reference's scalar loops, on the same device.

mod movement;
mod prepare;

use std::sync::Arc;

use requant_kernels_cpu::threads::{Seat, ThreadPool};
use requant_kernels_cpu::{ConvIo, Dequantize, Isa, KernelError, MatMulIo, Parallel, Quantize};

use crate::arena::Operands;
use crate::executor::{HostExecutable, Runner};
use crate::plan::signature::Edge;
use crate::plan::step::Operand;
use crate::plan::{BufferId, Plan, Step};
use crate::{Backend, BackendInfo, CompileError, ExecError, Executable, ports, reference};
use prepare::Kernel;

/// How the CPU backend runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuOptions {
    /// Instruction set; the best one that the machine has when absent.
    pub isa: Option<Isa>,
    /// Threads that compute at once, for all models together; the cores granted to the process, its
    /// cgroup's quota included, when 0.
    pub threads: usize,
    /// Whether each of them is pinned to a core while it computes.
    pub pin: bool,
}

/// The CPU backend.
#[derive(Clone, Debug)]
pub struct CpuBackend {
    isa: Isa,
    pool: Arc<ThreadPool>,
}

impl CpuBackend {
    /// Starts the compute threads.
    ///
    /// # Errors
    /// An instruction set that the machine lacks.
    pub fn new(options: CpuOptions) -> Result<Self, CompileError> {
        let isa = options.isa.unwrap_or_else(Isa::best);
        if !isa.is_available() {
            return Err(CompileError::Isa(isa));
        }
        let granted = || std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if options.threads == 0 {
            granted()
        } else {
            options.threads
        };
        let pool = if options.pin {
            ThreadPool::pinned(threads)
        } else {
            ThreadPool::new(threads)
        };
        let pool = pool.map_err(|error| CompileError::Threads {
            threads,
            reason: error.kind(),
        })?;
        Ok(CpuBackend {
            isa,
            pool: Arc::new(pool),
        })
    }
}

impl Backend for CpuBackend {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn info(&self) -> BackendInfo {
        BackendInfo {
            backend: "cpu",
            isa: self.isa.name(),
            device: "cpu".to_owned(),
            threads: self.pool.threads(),
        }
    }

    fn compile(&self, plan: Arc<Plan>) -> Result<Arc<dyn Executable>, CompileError> {
        let kernels: Result<Vec<Kernel>, CompileError> = plan
            .steps
            .iter()
            .map(|step| {
                prepare::step(self.isa, &plan, step).map_err(|source| CompileError::Kernel {
                    step: step.name.clone(),
                    source,
                })
            })
            .collect();
        let runner = CpuRunner {
            kernels: kernels?,
            inputs: plan
                .inputs
                .iter()
                .map(|port| prepare::quantize(self.isa, port.edge.as_ref()?).ok())
                .collect(),
            outputs: plan
                .outputs
                .iter()
                .map(|port| prepare::dequantize(self.isa, port.edge.as_ref()?).ok())
                .collect(),
            pool: Arc::clone(&self.pool),
        };
        Ok(Arc::new(HostExecutable {
            // The weights are in the kernels now, packed.
            plan: Arc::new(plan.without_weights()),
            runner: Arc::new(runner),
        }))
    }
}

#[derive(Debug)]
struct CpuRunner {
    kernels: Vec<Kernel>,
    /// The float edges of the ports; those of types without a kernel run portable.
    inputs: Vec<Option<Quantize>>,
    outputs: Vec<Option<Dequantize>>,
    pool: Arc<ThreadPool>,
}

impl Runner for CpuRunner {
    fn seat(&self) -> Option<Seat<'_>> {
        Some(self.pool.seat())
    }

    fn step(
        &self,
        index: usize,
        step: &Step,
        output: usize,
        operands: Operands<'_>,
        out: &mut [u8],
        scratch: &mut [u8],
    ) -> Result<(), ExecError> {
        self.kernel(index, step, output, operands, out, scratch)
            .map_err(|source| ExecError::Kernel {
                step: step.name.clone(),
                source,
            })
    }

    fn quantize(&self, input: usize, edge: &Edge, data: &[u8], out: &mut [u8]) {
        let kernel = self.inputs.get(input).and_then(Option::as_ref);
        if kernel.is_none_or(|kernel| kernel.run(data, out, &*self.pool).is_err()) {
            ports::quantize(edge, data, out);
        }
    }

    fn dequantize(&self, output: usize, edge: &Edge, data: &[u8], out: &mut [u8]) {
        let kernel = self.outputs.get(output).and_then(Option::as_ref);
        if kernel.is_none_or(|kernel| kernel.run(data, out, &*self.pool).is_err()) {
            ports::dequantize(edge, data, out);
        }
    }

    fn weight_bytes(&self) -> usize {
        self.kernels.iter().map(Kernel::packed_bytes).sum()
    }

    fn scratch_bytes(&self) -> usize {
        let threads = self.pool.threads();
        self.kernels
            .iter()
            .map(|kernel| kernel.scratch_bytes(threads))
            .max()
            .unwrap_or(0)
    }

    fn kernels(&self) -> Vec<&'static str> {
        self.kernels.iter().map(Kernel::name).collect()
    }
}

impl CpuRunner {
    fn kernel(
        &self,
        index: usize,
        step: &Step,
        output: usize,
        operands: Operands<'_>,
        out: &mut [u8],
        scratch: &mut [u8],
    ) -> Result<(), KernelError> {
        let pool: &dyn Parallel = &*self.pool;
        let input = |i: usize| operands.read(step.inputs[i]);
        let samples = operands.samples(step.outputs[0]);
        match &self.kernels[index] {
            Kernel::Conv {
                conv,
                images,
                other,
                zero_point,
            } => {
                let other = other.map(|id: BufferId| operands.read(id));
                let zero_points = match zero_point {
                    Operand::Static(_) => {
                        let batch = images * samples;
                        let io = ConvIo {
                            batch,
                            input: input(0),
                            other,
                            output: out,
                            input_zero_point: None,
                            scratch,
                        };
                        return conv.run(io, pool);
                    }
                    Operand::Dynamic(buffer) => operands.read(*buffer),
                };
                let (x, y) = (input(0).len() / samples, out.len() / samples);
                for (sample, out) in out.chunks_exact_mut(y).enumerate() {
                    let io = ConvIo {
                        batch: *images,
                        input: &input(0)[sample * x..(sample + 1) * x],
                        other: other.map(|o| &o[sample * y..(sample + 1) * y]),
                        output: out,
                        input_zero_point: Some(i32::from(zero_points[sample])),
                        scratch: &mut *scratch,
                    };
                    conv.run(io, pool)?;
                }
                Ok(())
            }
            Kernel::Bits {
                conv,
                images,
                other,
            } => {
                let io = ConvIo {
                    batch: images * samples,
                    input: input(0),
                    other: other.map(|id: BufferId| operands.read(id)),
                    output: out,
                    input_zero_point: None,
                    scratch,
                };
                conv.run(io, pool)
            }
            Kernel::MatMul {
                matmul,
                products,
                a_index,
                b_index,
            } => {
                // Without lists both operands are dense over all samples.
                let products = products * if a_index.is_some() { 1 } else { samples };
                let io = MatMulIo {
                    products,
                    a: input(0),
                    a_index: a_index.as_deref(),
                    b: input(1),
                    b_index: b_index.as_deref(),
                    other: None,
                    output: out,
                    a_zero_point: None,
                    b_zero_point: None,
                    scratch,
                };
                matmul.run(io, pool)
            }
            Kernel::Binary(binary) => {
                let io = requant_kernels_cpu::BinaryIo {
                    batch: samples,
                    a: input(0),
                    b: input(1),
                    output: out,
                };
                binary.run(io, pool)
            }
            Kernel::Lookup(lookup) => lookup.run(input(0), out, pool),
            Kernel::MaxPool {
                pool: kernel,
                images,
            } => kernel.run(images * samples, input(0), out, pool),
            Kernel::AveragePool {
                pool: kernel,
                images,
            } => kernel.run(images * samples, input(0), out, pool),
            Kernel::Transpose(transpose) => transpose.run(samples, input(0), out, pool),
            Kernel::Quantize(quantize) => quantize.run(input(0), out, pool),
            Kernel::Dequantize(dequantize) => dequantize.run(input(0), out, pool),
            Kernel::Move => {
                movement::run(step, &operands, out);
                Ok(())
            }
            Kernel::Portable => {
                reference::run(step, output, &operands, out);
                Ok(())
            }
        }
    }
}

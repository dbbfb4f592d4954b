//! The CPU backend: every step of a plan on the SIMD kernels of `requant-kernels-cpu`.
//!
//! Compiling resolves each step to a prepared kernel and packs the weights once. Rare steps without
//! a kernel of their own (see [`prepare`]) run the reference's scalar loops, on the same device.

mod layer;
mod movement;
mod prepare;
pub(crate) mod tuning;

use std::sync::Arc;

use requant_kernels_cpu::threads::{Seat, ThreadPool};
use requant_kernels_cpu::{ConvIo, Isa, KernelError, MatMulIo, Parallel, Planes, Serial, cache};

use crate::arena::Operands;
use crate::edges::Edges;
use crate::executor::{Crew, HostExecutable, Runner};
use crate::plan::step::Operand;
use crate::plan::{BufferId, Plan, Step};
use crate::schedule::{Machine, Schedule};
use crate::{Backend, BackendInfo, CompileError, ExecError, Executable, reference};
pub(crate) use layer::key;
use prepare::Kernel;
use tuning::{Tuning, TuningError};

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
    /// Bytes of cache of one core, to which batches are sliced; what the machine has when 0.
    pub cache: usize,
}

/// The CPU backend.
#[derive(Clone, Debug)]
pub struct CpuBackend {
    isa: Isa,
    machine: Machine,
    pool: Arc<ThreadPool>,
    tuning: Option<Arc<Tuning>>,
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
        let cache = match options.cache {
            0 => cache::core_cache_bytes(),
            bytes => bytes,
        };
        let threads = pool.threads();
        Ok(CpuBackend {
            isa,
            machine: Machine { cache, threads },
            pool: Arc::new(pool),
            tuning: None,
        })
    }

    /// Computes layers as a table of measurements says, where it knows them.
    ///
    /// # Errors
    /// [`TuningError::Foreign`] where they were made on another machine, or as something else runs here.
    pub fn with_tuning(mut self, tuning: Tuning) -> Result<Self, TuningError> {
        tuning.check(&self.here())?;
        self.tuning = Some(Arc::new(tuning));
        Ok(self)
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
        let (plan, planes) = plan.interleaved();
        let choices: Vec<Option<&str>> = match &self.tuning {
            Some(tuning) => tuning.choices(&plan),
            None => Vec::new(),
        };
        let runner = self.prepare(&plan, planes, &choices)?;
        Ok(self.executable(plan, runner))
    }
}

impl CpuBackend {
    fn executable(&self, plan: Plan, runner: CpuRunner) -> Arc<dyn Executable> {
        let schedule = Schedule::choose(&plan, self.machine, |step| runner.weight_bytes(step));
        Arc::new(HostExecutable {
            // The weights are in the kernels now, packed.
            plan: Arc::new(plan.without_weights()),
            schedule: Arc::new(schedule),
            runner: Arc::new(runner),
        })
    }

    /// Resolves the steps to kernels, with their weights; `choices` name ways for the first of them.
    fn prepare(
        &self,
        plan: &Plan,
        planes: Vec<Option<Planes>>,
        choices: &[Option<&str>],
    ) -> Result<CpuRunner, CompileError> {
        let kernels: Result<Vec<Kernel>, CompileError> = plan
            .steps
            .iter()
            .enumerate()
            .map(|(index, step)| {
                let choice = choices.get(index).copied().flatten();
                prepare::step(self.isa, plan, step, choice).map_err(|source| CompileError::Kernel {
                    step: step.name.clone(),
                    source,
                })
            })
            .collect();
        Ok(CpuRunner {
            kernels: kernels?,
            edges: Edges::new(self.isa, plan, planes)?,
            pool: Arc::clone(&self.pool),
        })
    }
}

#[derive(Debug)]
struct CpuRunner {
    kernels: Vec<Kernel>,
    edges: Edges,
    pool: Arc<ThreadPool>,
}

impl Runner for CpuRunner {
    fn seat(&self) -> Option<Seat<'_>> {
        Some(self.pool.seat())
    }

    fn share(&self, parts: usize, task: &(dyn Fn(usize) + Sync)) {
        self.pool.run(parts, task);
    }

    fn step(
        &self,
        at: (usize, &Step, usize),
        crew: Crew,
        operands: Operands<'_>,
        out: &mut [u8],
        scratch: &mut [u8],
    ) -> Result<(), ExecError> {
        let step = at.1;
        let pool: &dyn Parallel = match crew {
            Crew::Alone => &Serial,
            Crew::All => &*self.pool,
        };
        self.kernel(at, pool, operands, out, scratch)
            .map_err(|source| ExecError::Kernel {
                step: step.name.clone(),
                source,
            })
    }

    fn edges(&self) -> (&Edges, &dyn Parallel) {
        (&self.edges, &*self.pool)
    }

    fn weight_bytes(&self, index: usize) -> usize {
        self.kernels.get(index).map_or(0, Kernel::packed_bytes)
    }

    fn scratch_bytes(&self, crew: Crew) -> usize {
        let threads = match crew {
            Crew::Alone => 1,
            Crew::All => self.pool.threads(),
        };
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
        (index, step, output): (usize, &Step, usize),
        pool: &dyn Parallel,
        operands: Operands<'_>,
        out: &mut [u8],
        scratch: &mut [u8],
    ) -> Result<(), KernelError> {
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
            Kernel::Rescale(rescale) => rescale.run(input(0), out, pool),
            Kernel::Softmax(softmax) => softmax.run(input(0), out, pool),
            Kernel::LayerNorm(norm) => norm.run(input(0), out, pool),
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

    use requant_model::{artifact, builtin};

    use super::*;
    use crate::schedule::{SLICES, WHOLE};
    use crate::{Form, Instance, PlanOptions, ReferenceBackend, profile};

    const SAMPLES: usize = 23;

    fn answer(executable: &dyn Executable, input: &[u8], samples: usize) -> Vec<u8> {
        let mut instance = executable.instance(SAMPLES).unwrap();
        let mut output = vec![0; samples * 4 * 10];
        // A second run must find nothing of the first.
        for _ in 0..2 {
            instance
                .write_input(0, 0, samples, Form::Declared, input)
                .unwrap();
            let stats = instance.run(samples).unwrap();
            let operations: u64 = stats.steps.iter().map(|step| step.operations).sum();
            assert_eq!(operations, 2 * executable.plan().macs() * samples as u64);
            instance
                .read_output(0, 0, samples, Form::Declared, &mut output)
                .unwrap();
        }
        output
    }

    /// Fails one step of one run.
    struct Faulty {
        runner: CpuRunner,
        step: usize,
        fails: AtomicBool,
    }

    impl Runner for Faulty {
        fn seat(&self) -> Option<Seat<'_>> {
            self.runner.seat()
        }

        fn share(&self, parts: usize, task: &(dyn Fn(usize) + Sync)) {
            self.runner.share(parts, task);
        }

        fn step(
            &self,
            at: (usize, &Step, usize),
            crew: Crew,
            operands: Operands<'_>,
            out: &mut [u8],
            scratch: &mut [u8],
        ) -> Result<(), ExecError> {
            if at.0 == self.step && self.fails.swap(false, SeqCst) {
                return Err(ExecError::Memory { bytes: 1 });
            }
            self.runner.step(at, crew, operands, out, scratch)
        }

        fn edges(&self) -> (&Edges, &dyn Parallel) {
            self.runner.edges()
        }

        fn weight_bytes(&self, index: usize) -> usize {
            self.runner.weight_bytes(index)
        }

        fn scratch_bytes(&self, crew: Crew) -> usize {
            self.runner.scratch_bytes(crew)
        }

        fn kernels(&self) -> Vec<&'static str> {
            self.runner.kernels()
        }
    }

    #[test]
    fn an_instance_goes_on_after_a_fault() {
        let graph = artifact::read(builtin::FASHION).unwrap();
        let given = Arc::new(Plan::new(graph, &PlanOptions::default()).unwrap());
        let reference = ReferenceBackend.compile(Arc::clone(&given)).unwrap();
        let (plan, planes) = given.interleaved();
        let plan = Arc::new(plan);
        let info = &plan.signature().inputs[0];
        let input = profile::random_bytes(info.dtype, info.elements() * SAMPLES);
        let expected = answer(&*reference, &input, SAMPLES);
        for (threads, slice) in [(1, WHOLE), (1, 4), (2, WHOLE), (2, 4)] {
            let options = CpuOptions {
                threads,
                ..CpuOptions::default()
            };
            let backend = CpuBackend::new(options).unwrap();
            for step in [0, plan.steps.len() - 1] {
                let executable = HostExecutable {
                    plan: Arc::clone(&plan),
                    schedule: Arc::new(Schedule::new(
                        &plan,
                        &vec![slice; plan.steps.len()],
                        threads,
                    )),
                    runner: Arc::new(Faulty {
                        runner: backend.prepare(&plan, planes.clone(), &[]).unwrap(),
                        step,
                        fails: AtomicBool::new(true),
                    }),
                };
                let mut instance = executable.instance(SAMPLES).unwrap();
                let mut output = vec![0; SAMPLES * 4 * 10];
                let write = |instance: &mut Box<dyn Instance>| {
                    instance.write_input(0, 0, SAMPLES, Form::Declared, &input)
                };
                write(&mut instance).unwrap();
                let fault = instance.run(SAMPLES).map(|_| ());
                assert_eq!(fault, Err(ExecError::Memory { bytes: 1 }));
                let read = instance.read_output(0, 0, SAMPLES, Form::Declared, &mut output);
                read.unwrap();
                write(&mut instance).unwrap();
                instance.run(SAMPLES).unwrap();
                let read = instance.read_output(0, 0, SAMPLES, Form::Declared, &mut output);
                read.unwrap();
                assert!(output == expected, "{threads} {slice} {step}");
            }
        }
    }

    #[test]
    fn ways_do_not_change_the_bytes() {
        let graph = artifact::read(builtin::FASHION).unwrap();
        let given = Arc::new(Plan::new(graph, &PlanOptions::default()).unwrap());
        let reference = ReferenceBackend.compile(Arc::clone(&given)).unwrap();
        let (plan, planes) = given.interleaved();
        let info = &plan.signature().inputs[0];
        let input = profile::random_bytes(info.dtype, info.elements() * SAMPLES);
        let expected = answer(&*reference, &input, SAMPLES);
        let mut choices_seen = 0;
        for isa in Isa::available() {
            let options = CpuOptions {
                isa: Some(isa),
                ..CpuOptions::default()
            };
            let backend = CpuBackend::new(options).unwrap();
            let ways = backend.ways(&plan).unwrap();
            let most = ways.iter().map(Vec::len).max().unwrap();
            choices_seen += most - 1;
            let mut seen = std::collections::BTreeSet::new();
            for index in 0..most {
                let choices: Vec<Option<&str>> = ways
                    .iter()
                    .map(|ways| ways.get(index).map(String::as_str))
                    .collect();
                let runner = backend.prepare(&plan, planes.clone(), &choices).unwrap();
                seen.insert(runner.kernels());
                let executable = backend.executable(plan.clone(), runner);
                assert_eq!(
                    answer(&*executable, &input, SAMPLES),
                    expected,
                    "{choices:?}"
                );
            }
            assert_eq!(seen.len(), most, "{isa}: a choice without effect");
        }
        assert!(choices_seen > 0 || Isa::best() == Isa::Scalar);
    }

    #[test]
    fn slices_do_not_change_the_bytes() {
        let graph = artifact::read(builtin::FASHION).unwrap();
        let given = Arc::new(Plan::new(graph, &PlanOptions::default()).unwrap());
        let reference = ReferenceBackend.compile(Arc::clone(&given)).unwrap();
        let (plan, planes) = given.interleaved();
        let plan = Arc::new(plan);
        let info = &plan.signature().inputs[0];
        let input = profile::random_bytes(info.dtype, info.elements() * SAMPLES);
        let each = input.len() / SAMPLES;
        let expected = answer(&*reference, &input, SAMPLES);
        let mut state = 1u32;
        let mut pick = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            SLICES[(state >> 16) as usize % SLICES.len()]
        };
        for threads in [1, 2, 3] {
            let options = CpuOptions {
                threads,
                ..CpuOptions::default()
            };
            let backend = CpuBackend::new(options).unwrap();
            for round in 0..SLICES.len() + 20 {
                let slices: Vec<usize> = match SLICES.get(round) {
                    Some(&slice) => vec![slice; plan.steps.len()],
                    None => plan.steps.iter().map(|_| pick()).collect(),
                };
                let executable = HostExecutable {
                    plan: Arc::clone(&plan),
                    schedule: Arc::new(Schedule::new(&plan, &slices, threads)),
                    runner: Arc::new(backend.prepare(&plan, planes.clone(), &[]).unwrap()),
                };
                for samples in [1, 2, 7, SAMPLES] {
                    let got = answer(&executable, &input[..samples * each], samples);
                    assert!(
                        got == expected[..got.len()],
                        "{threads} {samples} {slices:?}"
                    );
                }
            }
        }
    }
}

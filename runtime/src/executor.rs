//! What every backend on the host shares: instances that pass batches through a plan's steps, slice by
//! slice, as the [schedule](crate::schedule) says.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use requant_kernels_cpu::Parallel;
use requant_kernels_cpu::threads::Seat;
use requant_numerics::DType;

use crate::arena::{Memory, Operands, Slice};
use crate::edges::Edges;
use crate::plan::{Plan, Step, Storage};
use crate::schedule::{Schedule, Segment};
use crate::{ExecError, Executable, Footprint, Form, Instance, RunStats, ports};

/// Who computes a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crew {
    /// The calling thread; others are busy with other slices.
    Alone,
    /// All threads together.
    All,
}

/// How a backend runs one step.
pub(crate) trait Runner: Send + Sync + 'static {
    /// Waits for the right to compute, where many share the cores; held during a run.
    fn seat(&self) -> Option<Seat<'_>>;

    /// Calls `task(part)` once for every part, on all threads.
    fn share(&self, parts: usize, task: &(dyn Fn(usize) + Sync));

    /// Writes output `output` of step `index`.
    fn step(
        &self,
        at: (usize, &Step, usize),
        crew: Crew,
        operands: Operands<'_>,
        out: &mut [u8],
        scratch: &mut [u8],
    ) -> Result<(), ExecError>;

    /// What crosses the ports, and who computes it.
    fn edges(&self) -> (&Edges, &dyn Parallel);

    /// Bytes of the packed weights of step `index`.
    fn weight_bytes(&self, index: usize) -> usize;

    /// Working memory that steps need beside the arena.
    fn scratch_bytes(&self, crew: Crew) -> usize;

    /// The kernel of each step.
    fn kernels(&self) -> Vec<&'static str>;
}

/// A plan compiled for the host.
#[derive(Debug)]
pub(crate) struct HostExecutable<R> {
    pub(crate) plan: Arc<Plan>,
    pub(crate) schedule: Arc<Schedule>,
    pub(crate) runner: Arc<R>,
}

impl<R: Runner> HostExecutable<R> {
    fn scratch_bytes(&self, thread: usize) -> usize {
        let alone = self.runner.scratch_bytes(Crew::Alone);
        if thread == 0 {
            alone.max(self.runner.scratch_bytes(Crew::All))
        } else {
            alone
        }
    }
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
        let steps = 0..self.plan.steps.len();
        let weights = steps.map(|index| self.runner.weight_bytes(index));
        let scratch = (0..self.schedule.threads()).map(|thread| self.scratch_bytes(thread));
        let activations = self.schedule.bytes(&self.plan, max_batch);
        Footprint {
            weight_bytes: constants.chain(weights).fold(0, usize::saturating_add),
            arena_bytes: scratch.fold(activations, usize::saturating_add),
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
        let steps = self.plan.steps.len();
        let worker = |thread| {
            Ok(Mutex::new(Worker {
                arena: Memory::new(self.schedule.arena_bytes(max_batch, thread))?,
                scratch: Memory::new(self.scratch_bytes(thread))?,
                times: vec![Duration::ZERO; steps],
                fault: None,
            }))
        };
        let wide = |place| Memory::new(self.schedule.wide_bytes(&self.plan, place, max_batch));
        let places = self.schedule.wide.len();
        let precisions: Vec<_> = self.plan.steps.iter().map(|step| step.precision).collect();
        Ok(Box::new(HostInstance {
            workers: (0..self.schedule.threads())
                .map(worker)
                .collect::<Result<_, ExecError>>()?,
            wide: (0..places).map(wide).collect::<Result<_, ExecError>>()?,
            leaving: (0..places).map(|_| Mutex::default()).collect(),
            stats: RunStats::new(&precisions),
            plan: Arc::clone(&self.plan),
            schedule: Arc::clone(&self.schedule),
            runner: Arc::clone(&self.runner),
            max_batch,
        }))
    }
}

struct HostInstance<R> {
    plan: Arc<Plan>,
    schedule: Arc<Schedule>,
    runner: Arc<R>,
    /// Buffers of the whole batch.
    wide: Vec<Memory>,
    /// Those of them, at the same positions, that the segment that runs now writes.
    leaving: Vec<Mutex<Memory>>,
    /// One for each thread that takes slices.
    workers: Vec<Mutex<Worker>>,
    stats: RunStats,
    max_batch: usize,
}

/// What a thread needs to pass a slice through a segment.
#[derive(Debug)]
struct Worker {
    arena: Memory,
    scratch: Memory,
    /// Time that each step has taken here.
    times: Vec<Duration>,
    fault: Option<ExecError>,
}

/// A lock that one thread at a time takes, so that it waits for nobody; a panic elsewhere has made the
/// results void, not the memory.
fn lock<T>(mutex: &Mutex<T>) -> impl std::ops::DerefMut<Target = T> + '_ {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<R: Runner> HostInstance<R> {
    /// Passes `samples` samples through a segment.
    fn segment(&mut self, segment: &Segment, samples: usize) -> Result<(), ExecError> {
        self.exchange(segment);
        let passed = self.pass(segment, samples);
        // Also after a fault: the instance must find its buffers in their places.
        self.exchange(segment);
        passed?;
        for index in segment.steps.clone() {
            let step = &self.plan.steps[index];
            let operations = self.plan.operations(step, samples);
            self.stats.done(index, step.precision, operations);
        }
        Ok(())
    }

    /// Passes all slices through a segment whose outputs stand behind their locks.
    fn pass(&mut self, segment: &Segment, samples: usize) -> Result<(), ExecError> {
        let (threads, each) = (
            self.workers.len(),
            segment.slice(samples, self.workers.len()),
        );
        let slices = samples.div_ceil(each);
        // Slices that keep every thread busy to the end; all threads share the steps of the others.
        let shared = if threads > 1 {
            slices - slices % threads
        } else {
            0
        };
        let next = AtomicUsize::new(0);
        let span = |slice: usize| (slice * each, each.min(samples - slice * each));
        if shared > 0 {
            self.runner.share(threads, &|thread| {
                let Some(worker) = self.workers.get(thread) else {
                    return;
                };
                let mut worker = lock(worker);
                while worker.fault.is_none() {
                    let slice = next.fetch_add(1, Ordering::Relaxed);
                    if slice >= shared {
                        return;
                    }
                    self.slice(&mut worker, segment, Crew::Alone, span(slice));
                }
            });
            self.collect(segment, threads as u32)?;
        }
        if let Some(worker) = self.workers.first() {
            let mut worker = lock(worker);
            for slice in shared..slices {
                self.slice(&mut worker, segment, Crew::All, span(slice));
            }
        }
        self.collect(segment, 1)
    }

    /// Swaps the buffers that a segment writes between those that all read and those behind locks.
    fn exchange(&mut self, segment: &Segment) {
        for &place in &segment.leaving {
            let behind = self.leaving[place].get_mut();
            let behind = behind.unwrap_or_else(PoisonError::into_inner);
            core::mem::swap(&mut self.wide[place], behind);
        }
    }

    /// Passes the samples from `first` through the steps of a segment.
    fn slice(
        &self,
        worker: &mut Worker,
        segment: &Segment,
        crew: Crew,
        (first, samples): (usize, usize),
    ) {
        let slice = Slice {
            plan: &self.plan,
            schedule: &self.schedule,
            layout: &segment.layout,
            wide: &self.wide,
            first,
            samples,
        };
        let mut before = Instant::now();
        for index in segment.steps.clone() {
            let step = &self.plan.steps[index];
            for (output, &id) in step.outputs.iter().enumerate() {
                let (operands, out) = slice.borrow(worker.arena.bytes_mut(), id);
                let scratch = worker.scratch.bytes_mut();
                let at = (index, step, output);
                if let Err(fault) = self.runner.step(at, crew, operands, out, scratch) {
                    worker.fault = Some(fault);
                    return;
                }
            }
            let now = Instant::now();
            worker.times[index] += now - before;
            before = now;
        }
        for &place in &segment.leaving {
            let id = self.schedule.wide[place];
            let range = slice.of(id);
            let from = &worker.arena.bytes()[slice.range(id)];
            lock(&self.leaving[place]).bytes_mut()[range].copy_from_slice(from);
        }
    }

    /// Moves the workers' times of a segment into the statistics, where `at_once` worked at a time, and
    /// gives the first fault.
    fn collect(&mut self, segment: &Segment, at_once: u32) -> Result<(), ExecError> {
        let mut fault = None;
        for worker in &mut self.workers {
            let worker = worker.get_mut().unwrap_or_else(PoisonError::into_inner);
            fault = fault.or(worker.fault.take());
            for index in segment.steps.clone() {
                let time = core::mem::take(&mut worker.times[index]);
                self.stats
                    .took(index, self.plan.steps[index].precision, time / at_once);
            }
        }
        fault.map_or(Ok(()), Err)
    }
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
        let place = self.schedule.places[plan.root(port.buffer).0];
        let Some(out) = place.and_then(|place| self.wide[place].bytes_mut().get_mut(range)) else {
            return Err(ExecError::Port {
                what: "input",
                index: input,
            });
        };
        let (edges, pool) = self.runner.edges();
        edges.write(plan, (input, port), form, data, out, pool)
    }

    fn run(&mut self, samples: usize) -> Result<&RunStats, ExecError> {
        if samples == 0 || samples > self.max_batch {
            return Err(ExecError::Batch {
                samples,
                limit: self.max_batch,
            });
        }
        self.stats.reset();
        let runner = Arc::clone(&self.runner);
        let _seat = runner.seat();
        let start = Instant::now();
        let schedule = Arc::clone(&self.schedule);
        for segment in &schedule.segments {
            self.segment(segment, samples)?;
        }
        self.stats.total = start.elapsed();
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
        let root = plan.root(port.buffer);
        // An output that no input reaches may be a constant.
        let bytes = match (&plan.buffer(root).storage, self.schedule.places[root.0]) {
            (Storage::Constant(bytes), _) => bytes,
            (_, Some(place)) => self.wide[place].bytes(),
            (_, None) => &[],
        };
        let (edges, pool) = self.runner.edges();
        edges.read(plan, (output, port), form, (bytes, range), data, pool);
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

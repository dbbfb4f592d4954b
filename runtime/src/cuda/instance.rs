//! One thread's state on a device: stream, arena, staging memory, graphs.
//!
//! There is a graph for each of a few batches, all recorded when the instance is made, so that no request
//! waits for one or finds no memory for it. Other numbers of samples run as the next larger batch, with what
//! was staged there before in the rows that nobody asked for. A graph runs as one: its time is shared out to
//! the layers as a run told that timed each launch.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use requant_kernels_cpu::Serial;
use requant_kernels_cuda::{Command, Session};

use super::guards::{self, Guards};
use super::place::Places;
use super::prepare::launches;
use super::{ALIGNMENT, Compiled, CudaOptions};
use crate::arena::{Memory, Slice};
use crate::plan::{BufferId, Storage};
use crate::schedule::Segment;
use crate::{ExecError, Form, Instance, RunStats, ports, reference};

/// What runs on the host after the device.
#[derive(Debug)]
struct Tail {
    /// Buffers of the whole batch, as the schedule lists them.
    wide: Vec<Memory>,
    arena: Memory,
}

/// An instance of the CUDA backend.
#[derive(Debug)]
pub(super) struct CudaInstance {
    session: Session,
    /// Lists of commands by batch, where they are not recorded as graphs.
    lists: HashMap<usize, Vec<Command>>,
    guards: Option<Guards>,
    /// Where each of the schedule's wide buffers is staged.
    staged: Vec<usize>,
    tail: Option<Tail>,
    /// Each step's part of the device's time.
    shares: Vec<f64>,
    stats: RunStats,
    max_batch: usize,
    compiled: Arc<Compiled>,
}

/// The batches that have a graph: powers of two, and the largest.
fn batches(max_batch: usize) -> impl Iterator<Item = usize> {
    let powers = (0..usize::BITS).map(|bit| 1 << bit);
    let below = powers.take_while(move |&batch| batch < max_batch);
    below.chain(core::iter::once(max_batch))
}

/// The least of [`batches`] that holds `samples` samples.
fn batch_of(samples: usize, max_batch: usize) -> usize {
    let power = samples.checked_next_power_of_two();
    power.map_or(max_batch, |power| power.min(max_batch))
}

impl CudaInstance {
    pub(super) fn new(compiled: Arc<Compiled>, max_batch: usize) -> Result<Self, ExecError> {
        let (plan, schedule) = (&compiled.plan, &compiled.schedule);
        let wide_bytes = |place| schedule.wide_bytes(plan, place, max_batch);
        let places = schedule.wide.len();
        let mut staging = 0;
        let mut stage = |place| {
            let start = staging;
            staging += usize::next_multiple_of(wide_bytes(place), ALIGNMENT);
            start
        };
        let staged = (0..places).map(&mut stage).collect();
        let tail = if compiled.device < plan.steps.len() {
            let wide = (0..places).map(|place| Memory::new(wide_bytes(place)));
            Some(Tail {
                wide: wide.collect::<Result<_, _>>()?,
                arena: Memory::new(schedule.arena_bytes(max_batch, 0))?,
            })
        } else {
            None
        };
        let precisions: Vec<_> = plan.steps.iter().map(|step| step.precision).collect();
        let arena = plan.layout.bytes(max_batch).next_multiple_of(ALIGNMENT);
        let bytes = compiled.device_bytes(max_batch);
        let guards = compiled.options.guarded.then(|| Guards {
            mirror: staging..staging + bytes,
            zeroed: arena..arena + compiled.scratch_bytes(max_batch),
        });
        staging = guards.as_ref().map_or(staging, |guards| guards.mirror.end);
        let mut instance = CudaInstance {
            session: Session::new(&compiled.context, bytes, staging)?,
            lists: HashMap::new(),
            guards,
            staged,
            tail,
            shares: Vec::new(),
            stats: RunStats::new(&precisions),
            max_batch,
            compiled,
        };
        for batch in batches(max_batch) {
            let (commands, _) = instance.commands(batch)?;
            if instance.compiled.options.graphs {
                instance.session.record(batch, &commands)?;
            } else {
                instance.lists.insert(batch, commands);
            }
        }
        instance.profile()?;
        Ok(instance)
    }

    /// Times each launch of the largest batch.
    fn profile(&mut self) -> Result<(), ExecError> {
        // The first run of a kernel may load it.
        self.run_batch(self.max_batch)?;
        let (commands, steps) = self.commands(self.max_batch)?;
        let times = self.session.time(&commands)?;
        let all = times.iter().sum::<Duration>().as_secs_f64();
        self.shares = vec![0.0; self.compiled.plan.steps.len()];
        for (step, time) in steps.into_iter().zip(times) {
            if let Some(step) = step
                && all > 0.0
            {
                self.shares[step] += time.as_secs_f64() / all;
            }
        }
        Ok(())
    }

    /// Upload, launches and download of a run of `samples` samples, slice by slice, and the step that each
    /// belongs to.
    fn commands(&self, samples: usize) -> Result<(Vec<Command>, Vec<Option<usize>>), ExecError> {
        let slice = self.compiled.slice(samples).clamp(1, samples);
        // Slices lie in as much of the arena as one takes, so that it stays in the device's cache.
        let batch = if slice < samples {
            slice
        } else {
            self.max_batch
        };
        let (mut commands, mut steps) = (Vec::new(), Vec::new());
        if let Some(guards) = &self.guards {
            commands.push(Command::Upload {
                from: guards.mirror.clone(),
                to: 0,
            });
        }
        for first in (0..samples).step_by(slice) {
            let each = slice.min(samples - first);
            self.pass(first, each, batch, (&mut commands, &mut steps))?;
        }
        if let Some(guards) = &self.guards {
            commands.push(Command::Download {
                from: 0..guards.mirror.len(),
                to: guards.mirror.start,
            });
        }
        steps.resize(commands.len(), None);
        Ok((commands, steps))
    }

    /// The commands of `samples` samples from the `first` on, in an arena laid out for `batch`.
    fn pass(
        &self,
        first: usize,
        samples: usize,
        batch: usize,
        (commands, steps): (&mut Vec<Command>, &mut Vec<Option<usize>>),
    ) -> Result<(), ExecError> {
        let Compiled { plan, schedule, .. } = &*self.compiled;
        let in_arena = |id: BufferId| plan.layout.range(id, samples, batch);
        // Where the first of the samples is staged.
        let staged = |place: usize| {
            let buffer = plan.buffer(schedule.wide[place]);
            let each = if buffer.batched { buffer.bytes() } else { 0 };
            self.staged[place] + first * each
        };
        let arena = plan
            .layout
            .bytes(self.max_batch)
            .next_multiple_of(ALIGNMENT);
        let mut seen = Vec::new();
        for port in &plan.inputs {
            let root = plan.root(port.buffer);
            if let Some(place) = schedule.places[root.0]
                && !seen.contains(&root)
            {
                seen.push(root);
                let (start, to) = (staged(place), in_arena(root));
                commands.push(Command::Upload {
                    from: start..start + to.len(),
                    to: to.start,
                });
            }
        }
        let scratch_bytes = self.compiled.scratch_bytes(self.max_batch);
        let workspace = arena + scratch_bytes;
        let places = Places {
            plan,
            constants: &self.compiled.constants,
            arena: self.session.address(),
            scratch: self.session.address() + arena as u64,
            scratch_bytes,
            workspace: self.session.address() + workspace as u64,
            workspace_bytes: self.session.bytes() - workspace,
            samples,
            batch,
        };
        steps.resize(commands.len(), None);
        for (index, (step, kernel)) in plan.steps.iter().zip(&self.compiled.kernels).enumerate() {
            let made = launches(kernel, step, &places).map_err(|source| ExecError::Launch {
                step: step.name.clone(),
                source,
            })?;
            commands.extend(made.into_iter().map(Command::Launch));
            steps.resize(commands.len(), Some(index));
        }
        for &place in self.device_segment().map_or(&[][..], |s| &s.leaving) {
            commands.push(Command::Download {
                from: in_arena(schedule.wide[place]),
                to: staged(place),
            });
        }
        steps.resize(commands.len(), None);
        Ok(())
    }

    /// Runs the device's part of a batch that has a graph; the time it took there, where that is asked for.
    fn run_batch(&mut self, batch: usize) -> Result<Option<Duration>, ExecError> {
        let CudaOptions {
            graphs,
            device_time,
            ..
        } = self.compiled.options;
        let list = self.lists.get(&batch).map_or(&[][..], |list| list);
        Ok(match (graphs, device_time) {
            (true, true) => Some(self.session.time_replay(batch)?),
            (true, false) => {
                self.session.replay(batch)?;
                None
            }
            (false, true) => Some(self.session.time_run(list)?),
            (false, false) => {
                self.session.run(list)?;
                None
            }
        })
    }

    /// As [`CudaInstance::run_batch`], several times in poisoned memory, all of which is looked at.
    fn run_guarded(
        &mut self,
        batch: usize,
        guards: &Guards,
    ) -> Result<Option<Duration>, ExecError> {
        let mut first: Option<Vec<u8>> = None;
        let mut time = None;
        for _ in 0..guards::TURNS {
            guards.poison(&mut self.session.staging_mut()[guards.mirror.clone()]);
            time = self.run_batch(batch)?;
            let mirror = &self.session.staging()[guards.mirror.clone()];
            guards.check(&self.compiled.plan, (batch, self.max_batch), mirror)?;
            match &first {
                None => first = Some(mirror.to_vec()),
                Some(first) => {
                    let differs = first
                        .iter()
                        .zip(mirror)
                        .position(|(one, other)| one != other);
                    if let Some(at) = differs {
                        return Err(ExecError::Unsteady { at });
                    }
                }
            }
        }
        Ok(time)
    }

    fn device_segment(&self) -> Option<&Segment> {
        let segments = &self.compiled.schedule.segments;
        segments
            .iter()
            .find(|segment| segment.steps.start < self.compiled.device)
    }

    /// Runs what follows on the host, over what the device left.
    fn run_tail(&mut self, samples: usize) {
        let Compiled {
            plan,
            schedule,
            device,
            ..
        } = &*self.compiled;
        let Some(tail) = &mut self.tail else { return };
        let after = |segment: &&Segment| segment.steps.start >= *device;
        let Some(segment) = schedule.segments.iter().find(after) else {
            return;
        };
        for (place, memory) in tail.wide.iter_mut().enumerate() {
            if !segment.leaving.contains(&place) {
                let to = memory.bytes_mut();
                let staged = &self.session.staging()[self.staged[place]..];
                to.copy_from_slice(&staged[..to.len()]);
            }
        }
        let slice = Slice {
            plan,
            schedule,
            layout: &segment.layout,
            wide: &tail.wide,
            first: 0,
            samples,
        };
        for index in segment.steps.clone() {
            let start = Instant::now();
            let step = &plan.steps[index];
            for (output, &id) in step.outputs.iter().enumerate() {
                let (operands, out) = slice.borrow(tail.arena.bytes_mut(), id);
                reference::run(step, output, &operands, out);
            }
            self.stats.took(index, step.precision, start.elapsed());
        }
        let left: Vec<_> = segment
            .leaving
            .iter()
            .map(|&place| {
                let id = schedule.wide[place];
                (place, slice.of(id), slice.range(id))
            })
            .collect();
        for (place, to, from) in left {
            let from = &tail.arena.bytes()[from];
            tail.wide[place].bytes_mut()[to].copy_from_slice(from);
        }
    }

    /// What a run did, of which the device took a part of the time.
    fn count(&mut self, samples: usize, device: Duration) {
        let plan = &self.compiled.plan;
        for ((index, step), share) in plan.steps.iter().enumerate().zip(&self.shares) {
            let operations = plan.operations(step, samples);
            self.stats.done(index, step.precision, operations);
            let time = device.mul_f64(*share);
            self.stats.took(index, step.precision, time);
        }
    }
}

impl Instance for CudaInstance {
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
        let Compiled {
            plan,
            schedule,
            edges,
            ..
        } = &*self.compiled;
        let (port, range) =
            ports::locate(plan, &plan.inputs, "input", input, span, form, data.len())?;
        let place = schedule.places[plan.root(port.buffer).0];
        let Some(place) = place else {
            return Err(ExecError::Port {
                what: "input",
                index: input,
            });
        };
        let start = self.staged[place];
        let out = &mut self.session.staging_mut()[start + range.start..start + range.end];
        edges.write(plan, (input, port), form, data, out, &Serial)
    }

    fn run(&mut self, samples: usize) -> Result<&RunStats, ExecError> {
        if samples == 0 || samples > self.max_batch {
            return Err(ExecError::Batch {
                samples,
                limit: self.max_batch,
            });
        }
        self.stats.reset();
        let start = Instant::now();
        let batch = batch_of(samples, self.max_batch);
        let on_device = match self.guards.clone() {
            Some(guards) => self.run_guarded(batch, &guards)?,
            None => self.run_batch(batch)?,
        };
        let device = on_device.unwrap_or_else(|| start.elapsed());
        self.run_tail(samples);
        self.count(samples, device);
        self.stats.total = on_device.unwrap_or_else(|| start.elapsed());
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
        let Compiled {
            plan,
            schedule,
            edges,
            ..
        } = &*self.compiled;
        let (port, range) = ports::locate(
            plan,
            &plan.outputs,
            "output",
            output,
            span,
            form,
            data.len(),
        )?;
        let root = plan.root(port.buffer);
        // An output that no input reaches may be a constant.
        let bytes = match (
            &plan.buffer(root).storage,
            schedule.places[root.0],
            &self.tail,
        ) {
            (Storage::Constant(bytes), _, _) => bytes,
            (_, Some(place), Some(tail)) => tail.wide[place].bytes(),
            (_, Some(place), None) => {
                let bytes = schedule.wide_bytes(plan, place, self.max_batch);
                &self.session.staging()[self.staged[place]..][..bytes]
            }
            (_, None, _) => &[],
        };
        edges.read(plan, (output, port), form, (bytes, range), data, &Serial);
        Ok(())
    }
}

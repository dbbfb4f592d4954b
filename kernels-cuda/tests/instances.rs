//! Instances of the CUDA backend on an emulated device: everything that a run needs is there when the
//! instance is made, whatever the number of samples, and is accounted for.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::time::Duration;

use libloading::{Library, Symbol};
use requant_conformance::{Rng, check, emulator};
use requant_kernels_cuda::memory_held;
use requant_model::{Graph, artifact, builtin};
use requant_runtime::{
    Backend, CudaBackend, ExecError, Executable, Form, Instance, Plan, PlanOptions,
    ReferenceBackend,
};

/// Samples of the largest batch: no power of two.
const MOST: usize = 11;

fn fashion() -> Graph {
    artifact::read(builtin::FASHION).unwrap()
}

fn compile(backend: &dyn Backend) -> Arc<dyn Executable> {
    let plan = Plan::new(fashion(), &PlanOptions::default()).unwrap();
    backend.compile(Arc::new(plan)).unwrap()
}

/// The first output's bytes of `samples` samples of `data`.
fn answer(instance: &mut dyn Instance, data: &[u8], samples: usize) -> Vec<u8> {
    let each = data.len() / MOST;
    let written = instance.write_input(0, 0, samples, Form::Declared, &data[..samples * each]);
    written.unwrap();
    instance.run(samples).unwrap();
    let mut out = vec![0; samples * 40];
    let read = instance.read_output(0, 0, samples, Form::Declared, &mut out);
    read.map(|()| out).unwrap()
}

/// Graphs that the emulated driver has made so far.
fn graphs() -> usize {
    type Count = unsafe extern "C" fn() -> usize;
    // SAFETY: the emulator is this process's driver and loaded already; the function counts, and has this
    // type in emulator/driver.cpp.
    unsafe {
        let driver = Library::new("libcuda.so").unwrap();
        let count: Symbol<'_, Count> = driver.get(b"requant_emulated_graphs").unwrap();
        count()
    }
}

#[test]
fn a_few_graphs_serve_every_number_of_samples() {
    if !emulator::is_emulated("a_few_graphs_serve_every_number_of_samples", "") {
        return;
    }
    let data = check::inputs(&fashion(), &mut Rng::new(8), MOST).remove(0);
    let reference = compile(&ReferenceBackend);
    let mut reference = reference.instance(MOST).unwrap();
    let want = answer(&mut *reference, &data, MOST);
    let backend = CudaBackend::new(0).unwrap();
    let executable = compile(&backend);
    assert_eq!(graphs(), 0);
    let mut instance = executable.instance(MOST).unwrap();
    // Of 1, 2, 4, 8 and 11 samples.
    assert_eq!(graphs(), 5);
    // What another batch left in the rows behind does not matter.
    for samples in [MOST, 3, 1, 7, 2, 9, 5, 4, 8, 6, 10] {
        let got = answer(&mut *instance, &data, samples);
        assert_eq!(got, want[..samples * 40], "{samples} samples");
    }
    assert_eq!(graphs(), 5, "none was made for a request");
}

#[test]
fn time_is_shared_out_as_it_was_measured() {
    if !emulator::is_emulated("time_is_shared_out_as_it_was_measured", "even=1") {
        return;
    }
    let executable = compile(&CudaBackend::new(0).unwrap());
    let mut instance = executable.instance(2).unwrap();
    let steps = executable.plan().steps();
    let stats = instance.run(2).unwrap();
    // Every launch takes as long as any other here, and every step of this model is one,
    // whatever it multiplies.
    let first = stats.steps[0].time;
    assert!(first > Duration::ZERO);
    assert!(steps.iter().any(|step| step.macs == 0));
    for (step, stats) in steps.iter().zip(&stats.steps) {
        assert_eq!(stats.time, first, "{}", step.name);
    }
    for row in &stats.by_precision {
        let label = |step: &&requant_runtime::plan::Step| step.precision.map(|p| p.label());
        let count = steps
            .iter()
            .filter(|step| label(step) == Some(row.label))
            .count();
        assert_eq!(row.time, first * count as u32, "{}", row.label);
    }
}

#[test]
fn memory_is_taken_when_it_is_promised_or_refused_with_the_sizes() {
    let name = "memory_is_taken_when_it_is_promised_or_refused_with_the_sizes";
    if !emulator::is_emulated(name, "memory=700000") {
        return;
    }
    let backend = CudaBackend::new(0).unwrap();
    let held = || memory_held()[0].1;
    let executable = compile(&backend);
    let weights = held();
    assert_eq!(weights, executable.footprint(MOST).weight_bytes);
    let mut instances = Vec::new();
    let refused = loop {
        match executable.instance(MOST) {
            Ok(instance) => instances.push(instance),
            Err(ExecError::Device(refused)) => break refused.to_string(),
            Err(other) => panic!("{other}"),
        }
    };
    let arena = executable.footprint(MOST).arena_bytes;
    assert!(!instances.is_empty());
    let taken = held();
    assert!(taken >= weights + instances.len() * arena);
    // What is free is less than what was not asked for: the device gives whole pieces of 256 bytes.
    assert!(
        refused.contains("of 700000 bytes free, of which 21875 are left"),
        "{refused}"
    );
    assert!(
        refused.ends_with(&format!("; {arena} are needed")),
        "{refused}"
    );
    // A run takes nothing.
    for instance in &mut instances {
        instance.run(MOST).unwrap();
    }
    assert_eq!(held(), taken);
    drop((instances, executable));
    assert_eq!(held(), 0);
}

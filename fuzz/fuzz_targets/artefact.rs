//! Reads bytes as an artefact; what is accepted is planned and, where small, run.
#![no_main]

use std::sync::Arc;

use requant_model::artifact;
use requant_runtime::{Backend, Plan, PlanOptions, ReferenceBackend};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(graph) = artifact::read(data) else { return };
    let options = PlanOptions { memory_budget: 1 << 20, ..PlanOptions::default() };
    let Ok(plan) = Plan::new(graph, &options) else { return };
    if plan.macs() > 1 << 16 {
        return;
    }
    let Ok(executable) = ReferenceBackend.compile(Arc::new(plan)) else { return };
    let samples = if executable.plan().signature().batched { 3 } else { 1 };
    if let Ok(mut instance) = executable.instance(samples) {
        let _ = instance.run(samples);
    }
});

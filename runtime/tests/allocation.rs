//! Once an instance is made, answering allocates nothing.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use requant_model::{artifact, builtin};
use requant_runtime::{Backend, CpuBackend, CpuOptions, Form, Isa, Plan, PlanOptions};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn runs_do_not_allocate() {
    for isa in Isa::available() {
        let options = CpuOptions {
            isa: Some(isa),
            threads: 2,
            ..CpuOptions::default()
        };
        let graph = artifact::read(builtin::FASHION).unwrap();
        let plan = Plan::new(graph, &PlanOptions::default()).unwrap();
        let backend = CpuBackend::new(options).unwrap();
        let executable = backend.compile(Arc::new(plan)).unwrap();
        let mut instance = executable.instance(4).unwrap();
        let input = vec![0u8; 4 * 4 * 28 * 28];
        let mut output = [0u8; 4 * 4 * 10];
        let before = ALLOCATIONS.get();
        for samples in [1, 4, 3] {
            let input = &input[..samples * 4 * 28 * 28];
            let output = &mut output[..samples * 4 * 10];
            instance
                .write_input(0, 0, samples, Form::Declared, input)
                .unwrap();
            instance.run(samples).unwrap();
            instance
                .read_output(0, 0, samples, Form::Declared, output)
                .unwrap();
        }
        assert_eq!(ALLOCATIONS.get() - before, 0, "{isa}");
    }
}

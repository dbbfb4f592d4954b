//! The way to a device and back, on emulated ones: what is missing is told, nothing panics, and a
//! session copies, launches, records and fails as it says.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::process::Command;
use std::sync::Barrier;
use std::time::Duration;

use libloading::{Library, Symbol};
use requant_conformance::emulator;
use requant_kernels_cuda::ops::maps;
use requant_kernels_cuda::{
    Command as Do, Context, CudaError, DeviceMemory, Kernel, Session, driver, memory_held,
};
use requant_numerics::DType;

#[test]
fn a_device_is_found() {
    if !emulator::is_emulated("a_device_is_found", "devices=2,major=9,minor=0") {
        return;
    }
    assert_eq!(driver::devices(), Ok(2));
    let context = Context::open(1).unwrap();
    let properties = context.properties();
    assert_eq!(
        (properties.image, properties.capability),
        ("sm_90a", (9, 0))
    );
    assert_eq!((properties.ordinal, properties.driver), (1, 13_000));
    let missing = Context::open(2).unwrap_err();
    assert_eq!(
        missing,
        CudaError::NoDevice {
            ordinal: 2,
            count: 2
        }
    );
}

#[test]
fn no_device() {
    if emulator::is_emulated("no_device", "init=100") {
        let none = CudaError::NoDevice {
            ordinal: 0,
            count: 0,
        };
        assert_eq!(Context::open(0).unwrap_err(), none);
    }
}

#[test]
fn an_old_driver() {
    if emulator::is_emulated("an_old_driver", "driver=12080") {
        let old = Context::open(0).unwrap_err();
        assert_eq!(
            old,
            CudaError::OldDriver {
                found: 12_080,
                needed: 13_000
            }
        );
        let text = "the CUDA driver supports CUDA 12.8, 13.0 is needed";
        assert_eq!(old.to_string(), text);
    }
}

#[test]
fn a_driver_that_fails_to_start() {
    if emulator::is_emulated("a_driver_that_fails_to_start", "init=999") {
        let failed = Context::open(0).unwrap_err();
        assert_eq!(
            failed,
            CudaError::Call {
                call: "cuInit",
                code: 999
            }
        );
    }
}

#[test]
fn a_device_too_old_for_every_image() {
    if emulator::is_emulated("a_device_too_old_for_every_image", "major=7,minor=0") {
        let refused = Context::open(0).unwrap_err();
        assert_eq!(refused, CudaError::NoImage { major: 7, minor: 0 });
    }
}

#[test]
fn a_driver_without_a_function() {
    let name = "a_driver_without_a_function";
    if emulator::is_child() {
        let refused = Context::open(0).unwrap_err();
        assert_eq!(refused, CudaError::MissingFunction("cuDriverGetVersion"));
        return;
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("poor-cuda");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(
        folder.join("poor.c"),
        "int cuInit(unsigned flags) { return flags; }",
    )
    .unwrap();
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-o", "libcuda.so", "poor.c"])
        .current_dir(&folder)
        .status();
    match built {
        Ok(status) => {
            assert!(status.success());
            emulator::rerun(name, "", &folder);
        }
        Err(_) => println!("skipped: no C compiler"),
    }
}

#[test]
fn no_driver() {
    // The machine may have a driver: then there is nothing to see.
    match driver::devices() {
        Err(CudaError::NoLibrary) => {
            assert_eq!(Context::open(0).unwrap_err(), CudaError::NoLibrary);
        }
        found => println!("skipped: this machine has a CUDA driver: {found:?}"),
    }
}

#[test]
fn parameters_have_the_kernels_sizes() {
    let Some(path) = emulator::library() else {
        println!("skipped: no C++ compiler");
        return;
    };
    type Bytes = unsafe extern "C" fn(*const std::ffi::c_char) -> usize;
    // SAFETY: the library is ours; loading it registers its kernels and nothing else.
    let library = unsafe { Library::new(path).unwrap() };
    // SAFETY: the function has this type in emulator/driver.cpp.
    let bytes: Symbol<'_, Bytes> =
        unsafe { library.get(b"requant_emulated_parameter_bytes").unwrap() };
    for kernel in Kernel::ALL {
        let name = std::ffi::CString::new(kernel.name()).unwrap();
        // SAFETY: the name ends with a zero.
        let there = unsafe { bytes(name.as_ptr()) };
        assert_eq!(there, kernel.parameter_bytes(), "{}", kernel.name());
    }
}

/// Fills 1000 bytes of a session's memory by a kernel and fetches them.
fn fill(session: &Session, value: i32) -> Vec<Do> {
    let launch = maps::fill(DType::U8, session.address() + 24, 1000, value).unwrap();
    let up = Do::Upload { from: 0..24, to: 0 };
    let down = Do::Download {
        from: 0..1024,
        to: 0,
    };
    vec![up, Do::Launch(launch), down]
}

#[test]
fn sessions_copy_launch_and_record() {
    if !emulator::is_emulated("sessions_copy_launch_and_record", "") {
        return;
    }
    let context = Context::open(0).unwrap();
    let mut session = Session::new(&context, 1024, 1024).unwrap();
    session.staging_mut()[..24].fill(9);
    let commands = fill(&session, 77);
    session.run(&commands).unwrap();
    let expect = [vec![9; 24], vec![77; 1000]].concat();
    assert_eq!(session.staging(), expect);

    session.record(5, &commands).unwrap();
    assert!(session.is_recorded(5) && !session.is_recorded(6));
    for value in 0..3 {
        session.staging_mut()[..].fill(value);
        session.replay(5).unwrap();
        let expect = [vec![value; 24], vec![77; 1000]].concat();
        assert_eq!(session.staging(), expect);
    }

    let outside = [Do::Download {
        from: 1000..1025,
        to: 0,
    }];
    let refused = session.run(&outside).unwrap_err();
    let range = CudaError::Range {
        start: 1000,
        end: 1025,
        bytes: 1024,
    };
    assert_eq!(refused, range);
    assert!(!range.is_lost());
}

#[test]
fn memory_that_does_not_fit_is_refused_with_sizes() {
    let name = "memory_that_does_not_fit_is_refused_with_sizes";
    if !emulator::is_emulated(name, "memory=65536") {
        return;
    }
    let context = Context::open(0).unwrap();
    let name = "cuda:0 (emulated device)".to_owned();
    assert_eq!(memory_held(), [(name.clone(), 0)]);
    let held = DeviceMemory::new(&context, 40_960).unwrap();
    assert_eq!(memory_held(), [(name.clone(), 40_960)]);
    // Of what is free a part is the driver's.
    for bytes in [22_529, 30_000] {
        let refused = DeviceMemory::new(&context, bytes).unwrap_err();
        let memory = CudaError::Memory {
            bytes,
            free: 24_576,
            total: 65_536,
            left: 2048,
        };
        assert_eq!(context.has_room(bytes), Err(memory.clone()));
        assert_eq!(refused, memory);
    }
    assert_eq!(context.has_room(22_528), Ok(()));
    drop(DeviceMemory::new(&context, 22_528).unwrap());
    drop(held);
    assert_eq!(memory_held(), [(name, 0)]);
    assert!(DeviceMemory::new(&context, 63_488).is_ok());
}

#[test]
fn threads_take_no_more_than_there_is() {
    let name = "threads_take_no_more_than_there_is";
    if !emulator::is_emulated(name, "memory=65536") {
        return;
    }
    let context = Context::open(0).unwrap();
    for _ in 0..20 {
        let taken: Vec<_> = std::thread::scope(|scope| {
            let take = |_| scope.spawn(|| DeviceMemory::new(&context, 16_384));
            let threads: Vec<_> = (0..8).map(take).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        // The fourth would leave nothing to the driver.
        assert_eq!(taken.iter().filter(|taken| taken.is_ok()).count(), 3);
    }
}

#[test]
fn a_reset_waits_for_the_calls_of_others() {
    let name = "a_reset_waits_for_the_calls_of_others";
    if !emulator::is_emulated(name, "pause=5") {
        return;
    }
    let context = Context::open(0).unwrap();
    let ready = Barrier::new(4);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            let (context, ready) = (&context, &ready);
            scope.spawn(move || {
                let mut session = Session::new(context, 1024, 1024).unwrap();
                let commands = fill(&session, 7);
                ready.wait();
                // Some runs end well before the reset; from then on there is one answer.
                let failed = loop {
                    match session.run(&commands) {
                        Ok(()) => assert_eq!(session.staging()[24..], [7; 1000]),
                        Err(error) => break error,
                    }
                };
                assert_eq!(failed, CudaError::Abandoned);
                assert_eq!(session.record(1, &commands), Err(CudaError::Abandoned));
                assert_eq!(session.replay(1), Ok(()), "nothing is recorded");
                // What was staged is the program's still.
                session.staging_mut().fill(9);
                assert_eq!(session.staging(), [9; 1024]);
            });
        }
        ready.wait();
        std::thread::sleep(Duration::from_millis(30));
        let fresh = context.reopen().unwrap();
        let held = DeviceMemory::zeros(&fresh, 4096).unwrap();
        // Somebody else's wish to do the same resets nothing again.
        let again = context.reopen().unwrap();
        let mut session = Session::new(&again, 1024, 1024).unwrap();
        let commands = fill(&session, 5);
        session.run(&commands).unwrap();
        assert!(fresh.memory().is_ok());
        drop(held);
    });
}

#[test]
fn an_old_context_releases_nothing_of_the_new_one() {
    let name = "an_old_context_releases_nothing_of_the_new_one";
    if !emulator::is_emulated(name, "") {
        return;
    }
    let first = Context::open(0).unwrap();
    let second = Context::open(0).unwrap();
    // Each holds the device's one context: it lives as long as either.
    drop(second);
    assert!(first.memory().is_ok());
    let fresh = first.reopen().unwrap();
    drop(first);
    let mut session = Session::new(&fresh, 1024, 1024).unwrap();
    let commands = fill(&session, 5);
    session.run(&commands).unwrap();
    drop((session, fresh));
    // Nobody holds it: it begins anew.
    let last = Context::open(0).unwrap();
    assert!(DeviceMemory::zeros(&last, 1024).is_ok());
}

#[test]
fn a_fault_is_sticky_until_the_context_is_made_anew() {
    let name = "a_fault_is_sticky_until_the_context_is_made_anew";
    if !emulator::is_emulated(name, "fault=1,recover=1") {
        return;
    }
    let context = Context::open(0).unwrap();
    let mut session = Session::new(&context, 1024, 1024).unwrap();
    let commands = fill(&session, 1);
    session.run(&commands).unwrap();
    let lost = session.run(&commands).unwrap_err();
    assert_eq!(
        lost,
        CudaError::Call {
            call: "cuLaunchKernel",
            code: 719
        }
    );
    assert!(lost.is_lost());
    let again = session.run(&commands).unwrap_err();
    assert!(again.is_lost(), "{again}");

    let fresh = context.reopen().unwrap();
    let mut restored = Session::new(&fresh, 1024, 1024).unwrap();
    assert_eq!(session.run(&commands), Err(CudaError::Abandoned));
    assert!(CudaError::Abandoned.is_lost());
    // What is given up late frees nothing that is another's now.
    let other = DeviceMemory::zeros(&fresh, 1024).unwrap();
    drop(session);
    drop(context);
    let commands = fill(&restored, 3);
    restored.run(&commands).unwrap();
    assert_eq!(restored.staging()[24..], [3; 1000]);
    drop(other);
}

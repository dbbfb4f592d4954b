//! The emulated device itself: what kernels may not do with barriers and copies by tile is told, by name, and maps
//! are made by the driver's rules.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use core::ffi::{c_char, c_int, c_void};
use std::ffi::{CStr, CString};

use libloading::{Library, Symbol};
use requant_conformance::emulator;
use requant_kernels_cuda::params::TensorMap;

fn library() -> Option<Library> {
    let Some(path) = emulator::library() else {
        println!("skipped: no C++ compiler");
        return None;
    };
    // SAFETY: the library is ours; loading it registers its kernels and nothing else.
    Some(unsafe { Library::new(path).unwrap() })
}

#[test]
fn misuse_is_told() {
    type Misuse = unsafe extern "C" fn(*const c_char, *mut c_char, usize);
    let Some(library) = library() else { return };
    // SAFETY: the function has this type in emulator/misuse.cpp.
    let misuse: Symbol<'_, Misuse> = unsafe { library.get(b"requant_emulated_misuse").unwrap() };
    for (name, expected) in [
        ("nothing", ""),
        (
            "barrier_not_made",
            "barrier 0x40 is used and was never made",
        ),
        (
            "barrier_before_the_block_meets",
            "barrier 0x0 is used by others before the block has met",
        ),
        ("barrier_written_over", "barrier 0x4000 was written over"),
        (
            "one_arrival_missing",
            "nobody goes on: thread 0 waits for parity 0 of barrier 0x4000, whose phase 0 lacks 1 arrivals and 0 bytes",
        ),
        (
            "one_arrival_too_many",
            "more arrive at barrier 0x4000 than it waits for",
        ),
        (
            "wrong_parity",
            "nobody goes on: thread 0 waits for parity 1 of barrier 0x4000, whose phase 1 lacks 1 arrivals and 0 bytes",
        ),
        (
            "more_bytes_announced",
            "nobody goes on: thread 0 waits for parity 0 of barrier 0x4000, whose phase 0 lacks 0 arrivals and 16 bytes",
        ),
        (
            "fewer_bytes_announced",
            "bytes arrive at barrier 0x4000 that were not announced",
        ),
        (
            "tile_not_aligned",
            "a copy by tile goes to 0x80, which is not aligned to 1024 bytes of shared memory",
        ),
        (
            "map_of_nobody",
            "a copy by tile has no map that the driver made",
        ),
        ("nothing_with_windows", ""),
        (
            "windows_left_of_their_box",
            "a copy of windows starts at -2, 0, outside their box",
        ),
        (
            "windows_below_their_box",
            "a copy of windows starts at 0, 7, outside their box",
        ),
        (
            "windows_that_reach_too_far",
            "a copy of windows takes what lies 0 to the right and 256 down",
        ),
        (
            "windows_by_a_map_of_rows",
            "a copy by tile has no map that the driver made",
        ),
        (
            "barrier_not_ready",
            "barrier 0x4000 is not ready for copies by tile",
        ),
        (
            "copies_over_one_another",
            "copies by tile go to 0x400 twice at a time",
        ),
        (
            "copy_over_what_is_multiplied",
            "operands changed while they were multiplied",
        ),
        (
            "nobody_waits_for_a_copy",
            "a block ends before barrier 0x4000 has its bytes",
        ),
        (
            "registers_of_nobody",
            "nobody goes on: thread 192 waits for registers",
        ),
        (
            "barrier_of_another_block_before_the_cluster_meets",
            "barrier 0x4000 is used by another block before the cluster has met",
        ),
        (
            "barrier_of_a_block_that_is_not_there",
            "an arrival at block 1 of a cluster of 1",
        ),
        (
            "barrier_of_a_block_that_has_ended",
            "barrier 0x4000 of a block that has ended is used by another",
        ),
        (
            "copies_that_one_block_waits_for",
            "a block ends before barrier 0x4000 has its bytes",
        ),
        (
            "nobody_arrives_at_another_block",
            "nobody goes on: thread 0 of block 0 waits for the threads of its cluster; \
             thread 0 of block 1 waits for parity 0 of barrier 0x4000, whose phase 0 lacks 2 arrivals and 0 bytes",
        ),
    ] {
        let kernel = CString::new(format!("misuse_{name}")).unwrap();
        let mut said = [0; 512];
        // SAFETY: the name ends with a zero, and the text has as much room as is said.
        unsafe { misuse(kernel.as_ptr(), said.as_mut_ptr(), said.len()) };
        // SAFETY: the text ends with a zero.
        let said = unsafe { CStr::from_ptr(said.as_ptr()) };
        assert_eq!(said.to_str().unwrap(), expected, "{name}");
    }
}

/// What a case asks otherwise.
type Change<Asked> = fn(&mut Asked);

/// A good map is made at aligned places alone, and others are refused by the driver's code.
fn check_maps<Asked: Clone>(
    good: &Asked,
    refused: &[(&str, c_int, Change<Asked>)],
    encode: impl Fn(*mut c_void, &Asked) -> c_int,
) {
    let code = |asked: &Asked, off: usize| {
        let mut maps = [TensorMap::default(); 2];
        let to = maps.as_mut_ptr().cast::<u8>().wrapping_add(off);
        encode(to.cast(), asked)
    };
    assert_eq!((code(good, 0), code(good, 64)), (0, 0));
    assert_eq!(code(good, 32), 1, "a map that is not aligned");
    for &(what, expected, change) in refused {
        let mut asked = good.clone();
        change(&mut asked);
        assert_eq!(code(&asked, 0), expected, "{what}");
    }
}

/// What a map is asked for.
#[derive(Clone)]
struct Asked {
    kind: c_int,
    rank: u32,
    address: usize,
    extent: [u64; 2],
    stride: [u64; 1],
    boxes: [u32; 2],
    steps: [u32; 2],
    interleave: c_int,
    swizzle: c_int,
}

#[test]
fn maps_are_made_by_the_drivers_rules() {
    type Encode = unsafe extern "C" fn(
        *mut c_void,
        c_int,
        u32,
        *mut c_void,
        *const u64,
        *const u64,
        *const u32,
        *const u32,
        c_int,
        c_int,
        c_int,
        c_int,
    ) -> c_int;
    let Some(library) = library() else { return };
    // SAFETY: the function has this type in emulator/driver.cpp.
    let encode: Symbol<'_, Encode> = unsafe { library.get(b"cuTensorMapEncodeTiled").unwrap() };
    let made = |to: *mut c_void, asked: &Asked| {
        // SAFETY: a map is written where one has room, and the address is only written down.
        unsafe {
            encode(
                to,
                asked.kind,
                asked.rank,
                asked.address as *mut c_void,
                asked.extent.as_ptr(),
                asked.stride.as_ptr(),
                asked.boxes.as_ptr(),
                asked.steps.as_ptr(),
                asked.interleave,
                asked.swizzle,
                2,
                0,
            )
        }
    };
    let good = Asked {
        kind: 0,
        rank: 2,
        address: 0x1_0000,
        extent: [48, 7],
        stride: [48],
        boxes: [128, 256],
        steps: [1, 1],
        interleave: 0,
        swizzle: 3,
    };
    let refused: [(&str, c_int, Change<Asked>); 13] = [
        ("an address that is not aligned", 1, |a| a.address += 8),
        ("a stride that is not aligned", 1, |a| a.stride[0] = 56),
        ("rows that overlap", 1, |a| a.stride[0] = 32),
        ("a stride of 2^40", 1, |a| a.stride[0] = 1 << 40),
        ("no columns", 1, |a| a.extent[0] = 0),
        ("more rows than 2^32", 1, |a| a.extent[1] = (1 << 32) + 1),
        ("an empty box", 1, |a| a.boxes[1] = 0),
        ("a box of more than 256 rows", 1, |a| a.boxes[1] = 257),
        ("a box wider than the swizzle", 1, |a| a.boxes[0] = 144),
        ("a box of broken chunks", 1, |a| a.boxes[0] = 120),
        ("no steps", 1, |a| a.steps[1] = 0),
        ("elements of two bytes", 801, |a| a.kind = 1),
        ("no swizzle", 801, |a| a.swizzle = 0),
    ];
    check_maps(&good, &refused, made);
}

/// What a map of windows is asked for.
#[derive(Clone)]
struct AskedWindows {
    kind: c_int,
    rank: u32,
    address: usize,
    extent: [u64; 4],
    strides: [u64; 3],
    lower: [c_int; 2],
    upper: [c_int; 2],
    channels: u32,
    pixels: u32,
    steps: [u32; 4],
    swizzle: c_int,
}

#[test]
fn maps_of_windows_are_made_by_the_drivers_rules() {
    type Encode = unsafe extern "C" fn(
        *mut c_void,
        c_int,
        u32,
        *mut c_void,
        *const u64,
        *const u64,
        *const c_int,
        *const c_int,
        u32,
        u32,
        *const u32,
        c_int,
        c_int,
        c_int,
        c_int,
    ) -> c_int;
    let Some(library) = library() else { return };
    // SAFETY: the function has this type in emulator/driver.cpp.
    let encode: Symbol<'_, Encode> = unsafe { library.get(b"cuTensorMapEncodeIm2col").unwrap() };
    let made = |to: *mut c_void, asked: &AskedWindows| {
        // SAFETY: a map is written where one has room, and the address is only written down.
        unsafe {
            encode(
                to,
                asked.kind,
                asked.rank,
                asked.address as *mut c_void,
                asked.extent.as_ptr(),
                asked.strides.as_ptr(),
                asked.lower.as_ptr(),
                asked.upper.as_ptr(),
                asked.channels,
                asked.pixels,
                asked.steps.as_ptr(),
                0,
                asked.swizzle,
                2,
                0,
            )
        }
    };
    let good = AskedWindows {
        kind: 0,
        rank: 4,
        address: 0x1_0000,
        extent: [256, 300, 9, 3],
        strides: [256, 256 * 300, 256 * 300 * 9],
        lower: [-128, -1],
        upper: [-128, 127],
        channels: 128,
        pixels: 1024,
        steps: [1, 8, 2, 1],
        swizzle: 3,
    };
    let refused: [(&str, c_int, Change<AskedWindows>); 17] = [
        ("an address that is not aligned", 1, |a| a.address += 8),
        ("a stride that is not aligned", 1, |a| a.strides[1] += 8),
        ("pixels that overlap", 1, |a| a.strides[0] = 240),
        ("images that overlap", 1, |a| a.strides[2] -= 16),
        ("a stride of 2^40", 1, |a| a.strides[2] = 1 << 40),
        ("no images", 1, |a| a.extent[3] = 0),
        ("a corner of more than eight bits", 1, |a| a.lower[0] = -129),
        ("another", 1, |a| a.upper[1] = 128),
        ("an empty box", 1, |a| (a.lower[1], a.upper[1]) = (0, -9)),
        ("no steps", 1, |a| a.steps[1] = 0),
        ("more than eight steps", 1, |a| a.steps[2] = 9),
        ("steps between images", 1, |a| a.steps[3] = 2),
        ("more channels than the swizzle", 1, |a| a.channels = 144),
        ("more pixels than 1024", 1, |a| a.pixels = 1025),
        ("elements of two bytes", 801, |a| a.kind = 1),
        ("no swizzle", 801, |a| a.swizzle = 0),
        ("three dimensions", 801, |a| a.rank = 3),
    ];
    check_maps(&good, &refused, made);
}

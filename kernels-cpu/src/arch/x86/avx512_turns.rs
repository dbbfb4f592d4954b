//! Two halves of a tile that take turns: while one half's sums are rounded and stored, the other half's are added
//! to, and no sum leaves its register before it is a byte.
//!
//! A dot product takes one of two of a core's four vector pipes, and most of a rounding takes the others. A
//! processor looks ahead far enough to fill them from both kinds of work if they follow each other closely, some rows
//! of one and a few k-groups of the other. That hides a rounding altogether.
//!
//! A half is wide, four vectors by three pixels, or narrow, two vectors by six pixels: that reads half as many weights
//! and twice as many activations, for panels of so many taps that their weights come from far away. Between them lie
//! three vectors by four pixels, for channels that these divide. Taps are found through a table of segments, or, by a
//! fourth kind of half, wide too, at pixels one after the other: with few taps, a table would take too long.
//!
//! In assembly, because all 32 registers have their places: 12 sums of either half (zmm0 to 11, 12 to 23), vectors of
//! weights (24 to 27), activations (28) and what makes them unsigned (31); a rounding has the last eight to itself.

use core::arch::asm;
use core::mem::offset_of;

use crate::epilogue::beside::{self, Constants, Step};
use crate::epilogue::finish::Finish;
use crate::epilogue::round::Round;
use crate::table::{MIDDLE, NARROW, Outputs, PARTS, StemFn, StemRow, WIDE, Windows, WindowsFn};

use super::avx512_epilogue::is_byte;

/// Most pixels that are fetched ahead of the one that is stored, beside one 24 pixels away: those that the same panel
/// meets in the next call, where calls are as short. Rows may be in memory, and a core, which watches single
/// instructions, fetches none of them itself, because each has one pixel of a whole tile only.
const AHEAD: usize = 384;
/// Taps of a group.
const GROUP: usize = 4;

/// The state of a function, by the places of its fields.
#[repr(C)]
struct Turns {
    constants: Constants,
    /// Pixels that no half has taken yet.
    left: usize,
    out_step: usize,
    /// Bytes of a segment, and of those behind the last rounding; or of a pixel.
    span: usize,
    last_span: usize,
    /// Segments, or k-groups, between two roundings, and segments behind the last one.
    burst: usize,
    last: usize,
    /// Bytes from a segment's pointers to those of the next, or from a pixel to the next.
    step: usize,
    /// The pointers of a half's first segment, or the first pixel.
    input: *const u8,
    /// Where the first pixel goes that the next rounding stores.
    out: *mut u8,
    /// Bytes from an output to the other operand.
    distance: usize,
    weights: *const u8,
    bias: *const i32,
    /// Parameters of the columns.
    first: *const u8,
    second: *const u8,
    /// Bytes of output to the pixel that is fetched ahead.
    ahead: usize,
    /// Quarters of two pixels one after the other, from where packs leave them, and the way back.
    apart: [u64; 8],
    together: [u64; 8],
    /// The words of three vectors, from where packs leave them.
    compact: [u32; 16],
}

const _: () = {
    assert!(offset_of!(Turns, left) == 232);
    assert!(offset_of!(Turns, out_step) == 240);
    assert!(offset_of!(Turns, span) == 248);
    assert!(offset_of!(Turns, last_span) == 256);
    assert!(offset_of!(Turns, burst) == 264);
    assert!(offset_of!(Turns, last) == 272);
    assert!(offset_of!(Turns, step) == 280);
    assert!(offset_of!(Turns, input) == 288);
    assert!(offset_of!(Turns, out) == 296);
    assert!(offset_of!(Turns, distance) == 304);
    assert!(offset_of!(Turns, weights) == 312);
    assert!(offset_of!(Turns, bias) == 320);
    assert!(offset_of!(Turns, first) == 328);
    assert!(offset_of!(Turns, second) == 336);
    assert!(offset_of!(Turns, ahead) == 344);
    assert!(offset_of!(Turns, apart) == 352);
    assert!(offset_of!(Turns, together) == 416);
    assert!(offset_of!(Turns, compact) == 480);
};

/// One of the state's fields as an operand. [`Constants`] have their places checked where they are defined.
macro_rules! field {
    (lo) => {
        "[rdi+64]"
    };
    (hi) => {
        "[rdi+128]"
    };
    (kind) => {
        "dword ptr [rdi+192]"
    };
    (zero_point) => {
        "dword ptr [rdi+196]"
    };
    (magic) => {
        "dword ptr [rdi+200]"
    };
    (least) => {
        "dword ptr [rdi+204]"
    };
    (most) => {
        "dword ptr [rdi+208]"
    };
    (demagic) => {
        "dword ptr [rdi+212]"
    };
    (offset) => {
        "dword ptr [rdi+216]"
    };
    (product) => {
        "dword ptr [rdi+220]"
    };
    (other) => {
        "dword ptr [rdi+224]"
    };
    (sign) => {
        "dword ptr [rdi+228]"
    };
    (left) => {
        "qword ptr [rdi+232]"
    };
    (out_step) => {
        "qword ptr [rdi+240]"
    };
    (span) => {
        "qword ptr [rdi+248]"
    };
    (last_span) => {
        "qword ptr [rdi+256]"
    };
    (burst) => {
        "qword ptr [rdi+264]"
    };
    (last) => {
        "qword ptr [rdi+272]"
    };
    (step) => {
        "qword ptr [rdi+280]"
    };
    (input) => {
        "qword ptr [rdi+288]"
    };
    (out) => {
        "qword ptr [rdi+296]"
    };
    (distance) => {
        "qword ptr [rdi+304]"
    };
    (weights) => {
        "qword ptr [rdi+312]"
    };
    (bias) => {
        "qword ptr [rdi+320]"
    };
    (first) => {
        "qword ptr [rdi+328]"
    };
    (second) => {
        "qword ptr [rdi+336]"
    };
    (ahead) => {
        "qword ptr [rdi+344]"
    };
    (apart) => {
        "[rdi+352]"
    };
    (together) => {
        "[rdi+416]"
    };
    (compact) => {
        "[rdi+480]"
    };
}

/// An instruction of two operands on each of four registers, the second the same for all.
macro_rules! each {
    ($op:literal, [$($x:literal)*], $y:expr) => {
        concat!($($op, " zmm", $x, ", zmm", $x, ", ", $y, "\n"),*)
    };
}

/// A conversion of each of four registers.
macro_rules! convert {
    ($op:literal, [$($x:literal)*]) => { concat!($($op, " zmm", $x, ", zmm", $x, "\n"),*) };
}

/// Products of one pixel with vectors of weights.
macro_rules! pixel {
    ($sign:ident, $pixel:literal, [$($sum:literal $weights:literal),*]) => {
        concat!(
            broadcast!($sign, $pixel),
            $("vpdpbusd zmm", $sum, ", zmm28, zmm", $weights, "\n"),*
        )
    };
}

/// Four activations of the pixel at a register, to zmm28.
macro_rules! broadcast {
    (u8, $pixel:literal) => {
        concat!("vpbroadcastd zmm28, dword ptr [", $pixel, "+rax]\n")
    };
    (s8, $pixel:literal) => {
        concat!(
            "vpxord zmm28, zmm31, dword ptr [",
            $pixel,
            "+rax]{{1to16}}\n"
        )
    };
}

/// A k-group of one half.
macro_rules! group {
    (wide, $sign:ident, [
        [$a:literal $b:literal $c:literal $d:literal]
        [$e:literal $f:literal $g:literal $h:literal]
        [$i:literal $j:literal $k:literal $l:literal]
    ]) => {
        concat!(
            "vmovdqu64 zmm24, [rdx]\n",
            "vmovdqu64 zmm25, [rdx+64]\n",
            "vmovdqu64 zmm26, [rdx+128]\n",
            "vmovdqu64 zmm27, [rdx+192]\n",
            pixel!($sign, "r8", [$a 24, $b 25, $c 26, $d 27]),
            pixel!($sign, "r10", [$e 24, $f 25, $g 26, $h 27]),
            pixel!($sign, "r11", [$i 24, $j 25, $k 26, $l 27]),
            "add rdx, 256\n",
        )
    };
    (middle, $sign:ident, [
        [$a:literal $b:literal $c:literal $d:literal]
        [$e:literal $f:literal $g:literal $h:literal]
        [$i:literal $j:literal $k:literal $l:literal]
    ]) => {
        concat!(
            "vmovdqu64 zmm24, [rdx]\n",
            "vmovdqu64 zmm25, [rdx+64]\n",
            "vmovdqu64 zmm26, [rdx+128]\n",
            pixel!($sign, "r8", [$a 24, $b 25, $c 26]),
            pixel!($sign, "r10", [$d 24, $e 25, $f 26]),
            pixel!($sign, "r11", [$g 24, $h 25, $i 26]),
            pixel!($sign, "r9", [$j 24, $k 25, $l 26]),
            "add rdx, 192\n",
        )
    };
    (narrow, $sign:ident, [
        [$a:literal $b:literal $c:literal $d:literal]
        [$e:literal $f:literal $g:literal $h:literal]
        [$i:literal $j:literal $k:literal $l:literal]
    ]) => {
        concat!(
            "vmovdqu64 zmm24, [rdx]\n",
            "vmovdqu64 zmm25, [rdx+64]\n",
            pixel!($sign, "r8", [$a 24, $b 25]),
            pixel!($sign, "r10", [$c 24, $d 25]),
            pixel!($sign, "r11", [$e 24, $f 25]),
            pixel!($sign, "r9", [$g 24, $h 25]),
            pixel!($sign, "r13", [$i 24, $j 25]),
            pixel!($sign, "r15", [$k 24, $l 25]),
            "add rdx, 128\n",
        )
    };
}

/// What is added to a half between two roundings of the other, or behind the last one: so many segments, or k-groups
/// of pixels one after the other.
macro_rules! part {
    (steps, $sign:ident, burst, $span:ident, $half:tt) => {
        concat!(
            unsigned!($sign),
            "mov rcx, ",
            field!(burst),
            "\n",
            ".p2align 5\n",
            "22:\n",
            group!(wide, $sign, $half),
            "add rax, 4\n",
            "dec rcx\n",
            "jnz 22b\n",
        )
    };
    (steps, $sign:ident, last, $span:ident, $half:tt) => {
        concat!(
            unsigned!($sign),
            ".p2align 5\n",
            "23:\n",
            group!(wide, $sign, $half),
            "add rax, 4\n",
            "jnz 23b\n",
        )
    };
    ($tile:ident, $sign:ident, $segments:ident, $span:ident, $half:tt) => {
        concat!(
            unsigned!($sign),
            "mov rcx, ",
            field!($segments),
            "\n",
            "22:\n",
            pixels!($tile),
            "xor eax, eax\n",
            ".p2align 5\n",
            "23:\n",
            group!($tile, $sign, $half),
            "add rax, 4\n",
            "cmp rax, ",
            field!($span),
            "\n",
            "jb 23b\n",
            "add rsi, ",
            field!(step),
            "\n",
            "dec rcx\n",
            "jnz 22b\n",
        )
    };
}

/// The pixels of a segment.
macro_rules! pixels {
    (wide) => {
        concat!(
            "mov r8, [rsi]\n",
            "mov r10, [rsi+8]\n",
            "mov r11, [rsi+16]\n",
        )
    };
    (middle) => {
        concat!(pixels!(wide), "mov r9, [rsi+24]\n")
    };
    (narrow) => {
        concat!(
            pixels!(middle),
            "mov r13, [rsi+32]\n",
            "mov r15, [rsi+40]\n",
        )
    };
}

/// What makes signed activations unsigned.
macro_rules! unsigned {
    (u8) => {
        ""
    };
    (s8) => {
        concat!("vpbroadcastd zmm31, ", field!(sign), "\n")
    };
}

/// A half starts anew: its sums are the biases.
macro_rules! start {
    (narrow, [[$a:literal $b:literal $c:literal $d:literal] $second:tt $third:tt]) => {
        concat!(
            "mov rcx, ", field!(bias), "\n",
            "vmovdqu64 zmm", $a, ", [rcx]\n",
            "vmovdqu64 zmm", $b, ", [rcx+64]\n",
            "vmovdqa64 zmm", $c, ", zmm", $a, "\n",
            "vmovdqa64 zmm", $d, ", zmm", $b, "\n",
            copies!($a $b $a $b, $second),
            copies!($a $b $a $b, $third),
            again!(narrow),
        )
    };
    (middle, [[$a:literal $b:literal $c:literal $d:literal] $second:tt $third:tt]) => {
        concat!(
            "mov rcx, ", field!(bias), "\n",
            "vmovdqu64 zmm", $a, ", [rcx]\n",
            "vmovdqu64 zmm", $b, ", [rcx+64]\n",
            "vmovdqu64 zmm", $c, ", [rcx+128]\n",
            "vmovdqa64 zmm", $d, ", zmm", $a, "\n",
            copies!($b $c $a $b, $second),
            copies!($c $a $b $c, $third),
            again!(middle),
        )
    };
    ($tile:ident, [[$a:literal $b:literal $c:literal $d:literal] $second:tt $third:tt]) => {
        concat!(
            "mov rcx, ", field!(bias), "\n",
            "vmovdqu64 zmm", $a, ", [rcx]\n",
            "vmovdqu64 zmm", $b, ", [rcx+64]\n",
            "vmovdqu64 zmm", $c, ", [rcx+128]\n",
            "vmovdqu64 zmm", $d, ", [rcx+192]\n",
            copies!($a $b $c $d, $second),
            copies!($a $b $c $d, $third),
            again!($tile),
        )
    };
}

/// A half's taps start anew.
macro_rules! again {
    (steps) => {
        concat!(
            "mov rdx, ",
            field!(weights),
            "\n",
            "mov rax, ",
            field!(span),
            "\n",
            "neg rax\n"
        )
    };
    ($tile:ident) => {
        concat!(
            "mov rdx, ",
            field!(weights),
            "\n",
            "mov rsi, ",
            field!(input),
            "\n"
        )
    };
}

macro_rules! copies {
    ($($from:literal)*, [$a:literal $b:literal $c:literal $d:literal]) => { copies!(@ [$($from)*] [$a $b $c $d]) };
    (@ [$($from:literal)*] [$($to:literal)*]) => { concat!($("vmovdqa64 zmm", $to, ", zmm", $from, "\n"),*) };
}

/// Rounds four sums, which of a half's being told, to integers.
macro_rules! round {
    ($tile:ident, $which:tt, float, [$a:literal $b:literal $c:literal $d:literal]) => {
        concat!(
            convert!("vcvtdq2ps", [$a $b $c $d]),
            scale!($tile, $which, [$a $b $c $d]),
            convert!("vcvtps2dq", [$a $b $c $d]),
            "vpbroadcastd zmm24, ", field!(zero_point), "\n",
            each!("vpaddd", [$a $b $c $d], "zmm24"),
        )
    };
    ($tile:ident, $which:tt, floor, [$a:literal $b:literal $c:literal $d:literal]) => {
        concat!(
            "mov rcx, ", field!(second), "\n",
            convert!("vcvtdq2ps", [$a $b $c $d]),
            // Rounding downwards takes registers.
            "vmovups zmm24, [r15", column!($tile, $which, 0), "]\n",
            "vmovups zmm28, [rcx", column!($tile, $which, 0), "]\n",
            "vmovups zmm25, [r15", column!($tile, $which, 1), "]\n",
            "vmovups zmm29, [rcx", column!($tile, $which, 1), "]\n",
            "vmovups zmm26, [r15", column!($tile, $which, 2), "]\n",
            "vmovups zmm30, [rcx", column!($tile, $which, 2), "]\n",
            "vmovups zmm27, [r15", column!($tile, $which, 3), "]\n",
            "vmovups zmm31, [rcx", column!($tile, $which, 3), "]\n",
            "vfmadd213ps zmm", $a, ", zmm24, zmm28, {{rd-sae}}\n",
            "vfmadd213ps zmm", $b, ", zmm25, zmm29, {{rd-sae}}\n",
            "vfmadd213ps zmm", $c, ", zmm26, zmm30, {{rd-sae}}\n",
            "vfmadd213ps zmm", $d, ", zmm27, zmm31, {{rd-sae}}\n",
            "vcvtps2dq zmm", $a, ", zmm", $a, ", {{rd-sae}}\n",
            "vcvtps2dq zmm", $b, ", zmm", $b, ", {{rd-sae}}\n",
            "vcvtps2dq zmm", $c, ", zmm", $c, ", {{rd-sae}}\n",
            "vcvtps2dq zmm", $d, ", zmm", $d, ", {{rd-sae}}\n",
            "vpbroadcastd zmm24, ", field!(zero_point), "\n",
            each!("vpaddd", [$a $b $c $d], "zmm24"),
        )
    };
    ($tile:ident, $which:tt, first, [$a:literal $b:literal $c:literal $d:literal]) => {
        concat!(
            others!($tile),
            "vbroadcastss zmm28, ", field!(offset), "\n",
            "vbroadcastss zmm29, ", field!(other), "\n",
            "vfmadd213ps zmm24, zmm29, zmm28\n",
            "vfmadd213ps zmm25, zmm29, zmm28\n",
            "vfmadd213ps zmm26, zmm29, zmm28\n",
            "vfmadd213ps zmm27, zmm29, zmm28\n",
            product!($tile, $which, $a $b $c $d),
            "vbroadcastss zmm30, ", field!(product), "\n",
            "vfmadd213ps zmm", $a, ", zmm30, zmm24\n",
            "vfmadd213ps zmm", $b, ", zmm30, zmm25\n",
            "vfmadd213ps zmm", $c, ", zmm30, zmm26\n",
            "vfmadd213ps zmm", $d, ", zmm30, zmm27\n",
            convert!("vcvtps2dq", [$a $b $c $d]),
        )
    };
    ($tile:ident, $which:tt, last, [$a:literal $b:literal $c:literal $d:literal]) => {
        concat!(
            others!($tile),
            product!($tile, $which, $a $b $c $d),
            "vbroadcastss zmm28, ", field!(offset), "\n",
            "vbroadcastss zmm29, ", field!(product), "\n",
            "vbroadcastss zmm30, ", field!(other), "\n",
            "vfmadd213ps zmm", $a, ", zmm29, zmm28\n",
            "vfmadd213ps zmm", $b, ", zmm29, zmm28\n",
            "vfmadd213ps zmm", $c, ", zmm29, zmm28\n",
            "vfmadd213ps zmm", $d, ", zmm29, zmm28\n",
            "vfmadd231ps zmm", $a, ", zmm30, zmm24\n",
            "vfmadd231ps zmm", $b, ", zmm30, zmm25\n",
            "vfmadd231ps zmm", $c, ", zmm30, zmm26\n",
            "vfmadd231ps zmm", $d, ", zmm30, zmm27\n",
            convert!("vcvtps2dq", [$a $b $c $d]),
        )
    };
}

macro_rules! scale {
    ($tile:ident, $which:tt, [$a:literal $b:literal $c:literal $d:literal]) => {
        concat!(
            "vmulps zmm",
            $a,
            ", zmm",
            $a,
            ", [r15",
            column!($tile, $which, 0),
            "]\n",
            "vmulps zmm",
            $b,
            ", zmm",
            $b,
            ", [r15",
            column!($tile, $which, 1),
            "]\n",
            "vmulps zmm",
            $c,
            ", zmm",
            $c,
            ", [r15",
            column!($tile, $which, 2),
            "]\n",
            "vmulps zmm",
            $d,
            ", zmm",
            $d,
            ", [r15",
            column!($tile, $which, 3),
            "]\n",
        )
    };
}

/// Where the parameters of one of four sums' columns are.
macro_rules! column {
    (middle, 0, 3) => {
        ""
    };
    (middle, 1, 0) => {
        "+64"
    };
    (middle, 1, 1) => {
        "+128"
    };
    (middle, 1, 2) => {
        ""
    };
    (middle, 1, 3) => {
        "+64"
    };
    (middle, 2, 0) => {
        "+128"
    };
    (middle, 2, 1) => {
        ""
    };
    (middle, 2, 2) => {
        "+64"
    };
    (middle, 2, 3) => {
        "+128"
    };
    (narrow, $which:tt, 2) => {
        ""
    };
    (narrow, $which:tt, 3) => {
        "+64"
    };
    ($tile:ident, $which:tt, 0) => {
        ""
    };
    ($tile:ident, $which:tt, 1) => {
        "+64"
    };
    ($tile:ident, $which:tt, 2) => {
        "+128"
    };
    ($tile:ident, $which:tt, 3) => {
        "+192"
    };
}

/// The other operand of four sums as floats in zmm24 to 27, and that of pixels to come is fetched.
macro_rules! others {
    ($tile:ident) => {
        concat!(
            operand!($tile),
            "vpxord zmm30, zmm30, zmm30\n",
            "vpunpcklbw zmm25, zmm31, zmm30\n",
            "vpunpckhbw zmm27, zmm31, zmm30\n",
            "vpunpcklwd zmm24, zmm25, zmm30\n",
            "vpunpckhwd zmm25, zmm25, zmm30\n",
            "vpunpcklwd zmm26, zmm27, zmm30\n",
            "vpunpckhwd zmm27, zmm27, zmm30\n",
            convert!("vcvtdq2ps", [24 25 26 27]),
        )
    };
}

/// The bytes of the other operand, to zmm31.
macro_rules! operand {
    (narrow) => {
        concat!(
            "lea rcx, [r12+r13]\n",
            "vmovdqu64 zmm30, ",
            field!(together),
            "\n",
            "vmovdqu64 ymm31, [rcx]\n",
            "vinserti64x4 zmm31, zmm31, [rcx+r14], 1\n",
            "vpermq zmm31, zmm30, zmm31\n",
            "add rcx, r14\n",
            fetch!("prefetcht0", "rcx"),
            "lea rcx, [r12+r13]\n",
            fetch!("prefetcht0", "rcx"),
        )
    };
    ($tile:ident) => {
        concat!(
            "lea rcx, [r12+r13]\n",
            "vmovdqu64 zmm31, [rcx]\n",
            fetch!("prefetcht0", "rcx"),
        )
    };
}

/// Fetches, ahead of the pixel at a register, the one 24 pixels away and the one [`AHEAD`]; leaves rcx changed.
macro_rules! fetch {
    ($fetch:literal, $pixel:literal) => {
        concat!(
            $fetch,
            " [",
            $pixel,
            "+r9]\n",
            "lea rcx, [",
            $pixel,
            "+8*r14]\n",
            "lea rcx, [rcx+8*r14]\n",
            $fetch,
            " [rcx+8*r14]\n",
        )
    };
}

/// Requantized products as floats. With the magic number added their bits are those of integers, whose
/// order is the numbers' even where they are too large for it.
macro_rules! product {
    ($tile:ident, $which:tt, $($x:literal)*) => {
        concat!(
            convert!("vcvtdq2ps", [$($x)*]),
            scale!($tile, $which, [$($x)*]),
            "vbroadcastss zmm30, ", field!(magic), "\n",
            "vpbroadcastd zmm31, ", field!(least), "\n",
            each!("vaddps", [$($x)*], "zmm30"),
            "vpbroadcastd zmm30, ", field!(most), "\n",
            each!("vpmaxsd", [$($x)*], "zmm31"),
            "vbroadcastss zmm31, ", field!(demagic), "\n",
            each!("vpminsd", [$($x)*], "zmm30"),
            each!("vsubps", [$($x)*], "zmm31"),
        )
    };
}

macro_rules! words {
    ($a:literal $b:literal $c:literal $d:literal) => {
        concat!(
            "vpackssdw zmm",
            $a,
            ", zmm",
            $a,
            ", zmm",
            $b,
            "\n",
            "vpackssdw zmm",
            $c,
            ", zmm",
            $c,
            ", zmm",
            $d,
            "\n",
        )
    };
}

/// The sums of one of a half's three parts are rounded, and leave as bytes with the last of their pixel.
macro_rules! finish {
    ($tile:ident, $step:ident, 0, [$a:tt $b:tt $c:tt]) => {
        concat!(
            parameters!($tile),
            round!($tile, 0, $step, $a),
            leave!($tile, 0, $a, $a)
        )
    };
    ($tile:ident, $step:ident, 1, [$a:tt $b:tt $c:tt]) => {
        concat!(
            parameters!($tile),
            round!($tile, 1, $step, $b),
            leave!($tile, 1, $a, $b)
        )
    };
    ($tile:ident, $step:ident, 2, [$a:tt $b:tt $c:tt]) => {
        concat!(
            parameters!($tile),
            round!($tile, 2, $step, $c),
            leave!($tile, 2, $b, $c)
        )
    };
}

/// Rounded sums leave, those of the part before being told too.
macro_rules! leave {
    (middle, 0, $before:tt, [$a:literal $b:literal $c:literal $d:literal]) => {
        concat!(bytes!($a $b $c $c), store!(middle, $a))
    };
    (middle, 1, [$a:literal $b:literal $c:literal $d:literal], [$e:literal $f:literal $g:literal $h:literal]) => {
        concat!(bytes!($d $e $f $f), store!(middle, $d))
    };
    (middle, 2, [$a:literal $b:literal $c:literal $d:literal], [$e:literal $f:literal $g:literal $h:literal]) => {
        concat!(
            bytes!($c $d $e $e),
            store!(middle, $c),
            bytes!($f $g $h $h),
            store!(middle, $f),
        )
    };
    ($tile:ident, $which:tt, $before:tt, [$a:literal $b:literal $c:literal $d:literal]) => {
        concat!(bytes!($a $b $c $d), store!($tile, $a))
    };
}

/// Four vectors of integers become bytes of the output's type in the first.
macro_rules! bytes {
    ($a:literal $b:literal $c:literal $d:literal) => {
        concat!(
            words!($a $b $c $d),
            "cmp ", field!(kind), ", 1\n",
            "jb 12f\n",
            "ja 13f\n",
            "vpackuswb zmm", $a, ", zmm", $a, ", zmm", $c, "\n",
            "vpmaxub zmm", $a, ", zmm", $a, ", ", field!(lo), "\n",
            "vpminub zmm", $a, ", zmm", $a, ", ", field!(hi), "\n",
            "jmp 14f\n",
            "13:\n",
            "vpacksswb zmm", $a, ", zmm", $a, ", zmm", $c, "\n",
            "vpmaxsb zmm", $a, ", zmm", $a, ", ", field!(lo), "\n",
            "vpminsb zmm", $a, ", zmm", $a, ", ", field!(hi), "\n",
            "jmp 14f\n",
            "12:\n",
            "vpackuswb zmm", $a, ", zmm", $a, ", zmm", $c, "\n",
            "14:\n",
        )
    };
}

/// What the pixels of halves of four and more had the registers of.
macro_rules! parameters {
    (narrow) => {
        enter!()
    };
    (middle) => {
        enter!()
    };
    ($tile:ident) => {
        ""
    };
}

/// Registers of a rounding.
macro_rules! enter {
    () => {
        concat!(
            "mov r9, ",
            field!(ahead),
            "\n",
            "mov r13, ",
            field!(distance),
            "\n",
            "mov r15, ",
            field!(first),
            "\n",
        )
    };
}

/// Bytes go to a pixel, or to two.
macro_rules! store {
    (middle, $a:literal) => {
        concat!(
            "vmovdqu64 zmm24, ",
            field!(compact),
            "\n",
            "vpermd zmm",
            $a,
            ", zmm24, zmm",
            $a,
            "\n",
            fetch!("prefetchw", "r12"),
            "vmovdqu64 [r12], ymm",
            $a,
            "\n",
            "vextracti32x4 [r12+32], zmm",
            $a,
            ", 2\n",
            "add r12, r14\n",
        )
    };
    (narrow, $a:literal) => {
        concat!(
            "vmovdqu64 zmm24, ",
            field!(apart),
            "\n",
            "vpermq zmm",
            $a,
            ", zmm24, zmm",
            $a,
            "\n",
            fetch!("prefetchw", "r12"),
            "vmovdqu64 [r12], ymm",
            $a,
            "\n",
            "add r12, r14\n",
            fetch!("prefetchw", "r12"),
            "vextracti64x4 [r12], zmm",
            $a,
            ", 1\n",
            "add r12, r14\n",
        )
    };
    ($tile:ident, $a:literal) => {
        concat!(
            fetch!("prefetchw", "r12"),
            "vmovdqu64 [r12], zmm",
            $a,
            "\n",
            "add r12, r14\n",
        )
    };
}

/// A half's rounding alone.
macro_rules! end {
    ($tile:ident, $step:ident, $done:tt) => {
        concat!(
            "mov r12, ",
            field!(out),
            "\n",
            finish!($tile, $step, 0, $done),
            finish!($tile, $step, 1, $done),
            finish!($tile, $step, 2, $done),
        )
    };
}

/// One half is added to while the other is rounded.
macro_rules! turn {
    ($tile:ident, $sign:ident, $step:ident, $half:tt, $done:tt) => {
        concat!(
            start!($tile, $half),
            finish!($tile, $step, 0, $done),
            part!($tile, $sign, burst, span, $half),
            finish!($tile, $step, 1, $done),
            part!($tile, $sign, burst, span, $half),
            finish!($tile, $step, 2, $done),
            part!($tile, $sign, last, last_span, $half),
        )
    };
}

/// Moves on to the pixels of the next half, whose last ones may have been computed before; to a label when there
/// are none.
macro_rules! next {
    ($tile:ident, $end:literal) => {
        concat!(
            "mov rcx, ",
            field!(left),
            "\n",
            "test rcx, rcx\n",
            "jz ",
            $end,
            "\n",
            "mov r12, ",
            field!(out),
            "\n",
            "mov eax, ",
            half!($tile),
            "\n",
            "cmp rcx, rax\n",
            "cmova rcx, rax\n",
            "sub ",
            field!(left),
            ", rcx\n",
            advance!($tile),
            "imul rcx, r14\n",
            "add ",
            field!(out),
            ", rcx\n",
        )
    };
}

/// By as many pixels as rcx holds.
macro_rules! advance {
    (steps) => {
        concat!(
            "mov rax, rcx\n",
            "imul rax, ",
            field!(step),
            "\n",
            "add r8, rax\n",
            "add r10, rax\n",
            "add r11, rax\n",
        )
    };
    ($tile:ident) => {
        concat!("lea rax, [8*rcx]\n", "add ", field!(input), ", rax\n")
    };
}

/// Pixels of a half.
macro_rules! half {
    (middle) => {
        4
    };
    (narrow) => {
        6
    };
    ($tile:ident) => {
        3
    };
}

/// Products of the first half, which no rounding runs beside.
macro_rules! first {
    (steps, $sign:ident, $half:tt) => {
        concat!(
            "mov r8, ",
            field!(input),
            "\n",
            "add r8, ",
            field!(span),
            "\n",
            "mov rcx, ",
            field!(step),
            "\n",
            "lea r10, [r8+rcx]\n",
            "lea r11, [r8+2*rcx]\n",
            part!(steps, $sign, last, last_span, $half),
        )
    };
    ($tile:ident, $sign:ident, $half:tt) => {
        concat!(
            part!($tile, $sign, burst, span, $half),
            part!($tile, $sign, burst, span, $half),
            part!($tile, $sign, last, last_span, $half),
        )
    };
}

/// All halves of a call.
macro_rules! halves {
    ($tile:ident, $sign:ident, $step:ident, $turns:ident) => {
        halves!(
            $tile, $sign, $step, $turns,
            [[0 1 2 3] [4 5 6 7] [8 9 10 11]],
            [[12 13 14 15] [16 17 18 19] [20 21 22 23]]
        )
    };
    ($tile:ident, $sign:ident, $step:ident, $turns:ident, $one:tt, $two:tt) => {
        asm!(
            concat!(
                "mov r14, ", field!(out_step), "\n",
                enter!(),
                start!($tile, $one),
                first!($tile, $sign, $one),
                "30:\n",
                next!($tile, "80f"),
                turn!($tile, $sign, $step, $two, $one),
                next!($tile, "90f"),
                turn!($tile, $sign, $step, $one, $two),
                "jmp 30b\n",
                "80:\n",
                end!($tile, $step, $one),
                "jmp 99f\n",
                "90:\n",
                end!($tile, $step, $two),
                "99:\n",
            ),
            in("rdi") core::ptr::from_mut(&mut $turns),
            out("rax") _, out("rcx") _, out("rdx") _, out("rsi") _,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            out("r12") _, out("r13") _, out("r14") _, out("r15") _,
            out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _,
            out("zmm4") _, out("zmm5") _, out("zmm6") _, out("zmm7") _,
            out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _,
            out("zmm12") _, out("zmm13") _, out("zmm14") _, out("zmm15") _,
            out("zmm16") _, out("zmm17") _, out("zmm18") _, out("zmm19") _,
            out("zmm20") _, out("zmm21") _, out("zmm22") _, out("zmm23") _,
            out("zmm24") _, out("zmm25") _, out("zmm26") _, out("zmm27") _,
            out("zmm28") _, out("zmm29") _, out("zmm30") _, out("zmm31") _,
            options(nostack),
        )
    };
}

/// The function of a tile, activations of a sign and a step.
macro_rules! function {
    (steps, $sign:ident, $step:ident) => {{
        /// See [`StemRow`] for the contract.
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
        unsafe fn row(round: &Round, finish: &Finish, call: &StemRow) {
            // SAFETY: the caller's promise.
            let mut turns = unsafe { Turns::steps(round, finish, call) };
            // SAFETY: reads the pixels, weights, biases, parameters and other operand and writes the output that
            // the contract of `StemRow` names: at least one half of pixels, and halves after the first move on by
            // at most as many as are left. Fetches ahead touch nothing. Registers that it changes are named.
            unsafe { halves!(steps, $sign, $step, turns) };
        }
        row as StemFn
    }};
    ($tile:ident, $sign:ident, $step:ident) => {{
        /// See [`Windows`] for the contract.
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
        unsafe fn windows(round: &Round, finish: &Finish, call: &Windows) {
            let mut turns = Turns::windows(round, finish, call, half!($tile));
            // SAFETY: as above, by the contract of `Windows`; taps are where the pointers of all pixels are.
            unsafe { halves!($tile, $sign, $step, turns) };
        }
        windows as WindowsFn
    }};
}

const _: () = {
    assert!(half!(wide) == WIDE.1 && half!(middle) == MIDDLE.1 && half!(narrow) == NARROW.1);
    // A rounding takes four sums, and each part ends with one.
    assert!(WIDE.0 * WIDE.1 == 4 * PARTS && NARROW.0 * NARROW.1 == 4 * PARTS);
    assert!(MIDDLE.0 * MIDDLE.1 == 4 * PARTS);
};

impl Turns {
    /// # Safety
    /// - The contract of [`StemRow`].
    unsafe fn steps(round: &Round, finish: &Finish, call: &StemRow) -> Self {
        Turns {
            span: GROUP * call.groups,
            burst: call.groups / PARTS,
            step: call.step,
            // SAFETY: there is a row.
            input: unsafe { *call.rows },
            ..Turns::new(round, finish, &call.outputs, half!(steps))
        }
    }

    fn windows(round: &Round, finish: &Finish, call: &Windows, half: usize) -> Self {
        let burst = call.segments / PARTS;
        Turns {
            span: GROUP * call.groups,
            last_span: GROUP * call.last_groups,
            burst,
            last: call.segments - (PARTS - 1) * burst,
            step: size_of::<*const u8>() * call.outputs.pixels,
            input: call.pointers.cast(),
            ..Turns::new(round, finish, &call.outputs, half)
        }
    }

    /// All but where activations are.
    fn new(round: &Round, finish: &Finish, call: &Outputs, half: usize) -> Self {
        let from = |values: &[f32]| values.as_ptr().wrapping_add(call.column).cast();
        let (first, second) = match round {
            Round::Float { scale, .. } => (from(scale), core::ptr::null()),
            Round::Floor { scale, offset } => (from(scale), from(offset)),
            Round::Word { .. }
            | Round::High { .. }
            | Round::Wide { .. }
            | Round::Residual { .. }
            | Round::Shift { .. }
            | Round::Double { .. }
            | Round::Away { .. }
            | Round::Steps { .. } => (core::ptr::null(), core::ptr::null()),
        };
        Turns {
            constants: Constants::new(finish),
            left: call.pixels - half,
            out_step: call.out_step,
            span: 0,
            last_span: 0,
            burst: 0,
            last: 0,
            step: 0,
            input: core::ptr::null(),
            out: call.out,
            distance: call.other.addr().wrapping_sub(call.out.addr()),
            weights: call.weights,
            bias: call.bias,
            first,
            second,
            ahead: call.pixels.min(AHEAD) * call.out_step,
            apart: [0, 2, 4, 6, 1, 3, 5, 7],
            together: [0, 4, 1, 5, 2, 6, 3, 7],
            compact: [0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 0, 0, 0, 0],
        }
    }
}

/// One of the functions of a step.
macro_rules! by_step {
    ($step:expr, $tile:ident, $sign:ident) => {
        match $step {
            Step::Float => Some(function!($tile, $sign, float)),
            Step::Floor => Some(function!($tile, $sign, floor)),
            Step::Sum {
                product_first: true,
            } => Some(function!($tile, $sign, first)),
            Step::Sum {
                product_first: false,
            } => Some(function!($tile, $sign, last)),
            Step::High => None,
        }
    };
}

/// The function of four vectors by pixels of one row of the kernel, with at least three k-groups, for activations of a
/// sign and an output; none for rare roundings and joins.
pub(super) fn steps(round: &Round, finish: &Finish, signed: bool) -> Option<StemFn> {
    let step = beside::step(round, finish).filter(|_| is_byte(finish))?;
    match signed {
        false => by_step!(step, steps, u8),
        true => by_step!(step, steps, s8),
    }
}

/// The function of windows for vectors of channels, activations of a sign and an output.
pub(super) fn windows(
    round: &Round,
    finish: &Finish,
    signed: bool,
    vectors: usize,
) -> Option<WindowsFn> {
    let step = beside::step(round, finish).filter(|_| is_byte(finish))?;
    match (vectors, signed) {
        // Sums with another operand are left to the other two.
        (3, false) => match step {
            Step::Float => Some(function!(middle, u8, float)),
            Step::Floor => Some(function!(middle, u8, floor)),
            Step::Sum { .. } | Step::High => None,
        },
        (3, true) => match step {
            Step::Float => Some(function!(middle, s8, float)),
            Step::Floor => Some(function!(middle, s8, floor)),
            Step::Sum { .. } | Step::High => None,
        },
        (4, false) => by_step!(step, wide, u8),
        (4, true) => by_step!(step, wide, s8),
        (2, false) => by_step!(step, narrow, u8),
        (2, true) => by_step!(step, narrow, s8),
        _ => None,
    }
}

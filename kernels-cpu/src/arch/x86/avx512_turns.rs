//! Two halves of a tile that take turns, for products of short rows: while one half's sums are rounded and
//! stored, the other half's are added to, and no sum leaves its register before it is a byte.
//!
//! A dot product takes one of two of a core's four vector pipes, and most of a rounding takes the others. A
//! processor looks ahead far enough to fill them from both kinds of work if they follow each other closely, a row
//! of one and a few k-groups of the other. With few taps that hides a rounding altogether; with many taps weights,
//! which are read twice as often as by a tile of six rows, would come from too far away.
//!
//! In assembly, because all 32 registers have their places: 12 sums of either half (zmm0 to 11, 12 to 23), four
//! vectors of weights (24 to 27), activations (28) and what makes them unsigned (31); a row's rounding has the last
//! eight to itself.

use core::arch::asm;
use core::mem::offset_of;

use crate::epilogue::beside::{self, Constants, Step};
use crate::epilogue::finish::Finish;
use crate::epilogue::round::Round;
use crate::table::{StemFn, StemRow};

/// Pixels of one half.
const HALF: usize = 3;
/// Most pixels that are fetched ahead of the one that is stored, beside one 24 pixels away: those that the same panel
/// meets in the next call. Rows may be in memory, and a core, which watches single instructions, fetches none of them
/// itself, because each has every sixth pixel only.
const AHEAD: usize = 384;

/// The state of a function, by the places of its fields.
#[repr(C)]
struct Turns {
    constants: Constants,
    /// Pixels that no half has taken yet.
    left: usize,
    /// Bytes from a pixel to the next.
    step: usize,
    out_step: usize,
    /// Bytes of a pixel.
    span: usize,
    /// K-groups between the roundings of two rows.
    burst: usize,
    /// The first pixel.
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
}

const _: () = {
    assert!(offset_of!(Turns, left) == 232);
    assert!(offset_of!(Turns, step) == 240);
    assert!(offset_of!(Turns, out_step) == 248);
    assert!(offset_of!(Turns, span) == 256);
    assert!(offset_of!(Turns, burst) == 264);
    assert!(offset_of!(Turns, input) == 272);
    assert!(offset_of!(Turns, out) == 280);
    assert!(offset_of!(Turns, distance) == 288);
    assert!(offset_of!(Turns, weights) == 296);
    assert!(offset_of!(Turns, bias) == 304);
    assert!(offset_of!(Turns, first) == 312);
    assert!(offset_of!(Turns, second) == 320);
    assert!(offset_of!(Turns, ahead) == 328);
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
    (step) => {
        "qword ptr [rdi+240]"
    };
    (out_step) => {
        "qword ptr [rdi+248]"
    };
    (span) => {
        "qword ptr [rdi+256]"
    };
    (burst) => {
        "qword ptr [rdi+264]"
    };
    (input) => {
        "qword ptr [rdi+272]"
    };
    (out) => {
        "qword ptr [rdi+280]"
    };
    (distance) => {
        "qword ptr [rdi+288]"
    };
    (weights) => {
        "qword ptr [rdi+296]"
    };
    (bias) => {
        "qword ptr [rdi+304]"
    };
    (first) => {
        "qword ptr [rdi+312]"
    };
    (second) => {
        "qword ptr [rdi+320]"
    };
    (ahead) => {
        "qword ptr [rdi+328]"
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

/// The products of one row with four vectors of weights.
macro_rules! row {
    ($sign:ident, $row:literal, [$a:literal $b:literal $c:literal $d:literal]) => {
        concat!(
            broadcast!($sign, $row),
            "vpdpbusd zmm",
            $a,
            ", zmm28, zmm24\n",
            "vpdpbusd zmm",
            $b,
            ", zmm28, zmm25\n",
            "vpdpbusd zmm",
            $c,
            ", zmm28, zmm26\n",
            "vpdpbusd zmm",
            $d,
            ", zmm28, zmm27\n",
        )
    };
}

/// Four activations of the row at a register, to zmm28.
macro_rules! broadcast {
    (u8, $row:literal) => {
        concat!("vpbroadcastd zmm28, dword ptr [", $row, "+rax]\n")
    };
    (s8, $row:literal) => {
        concat!("vpxord zmm28, zmm31, dword ptr [", $row, "+rax]{{1to16}}\n")
    };
}

/// A k-group of one half.
macro_rules! group {
    ($sign:ident, [$a:tt $b:tt $c:tt]) => {
        concat!(
            "vmovdqu64 zmm24, [rdx]\n",
            "vmovdqu64 zmm25, [rdx+64]\n",
            "vmovdqu64 zmm26, [rdx+128]\n",
            "vmovdqu64 zmm27, [rdx+192]\n",
            row!($sign, "r8", $a),
            row!($sign, "r10", $b),
            row!($sign, "r11", $c),
            "add rdx, 256\n",
        )
    };
}

/// The k-groups between two roundings.
macro_rules! burst {
    ($sign:ident, $half:tt) => {
        concat!(
            unsigned!($sign),
            "mov rcx, ",
            field!(burst),
            "\n",
            ".p2align 5\n",
            "22:\n",
            group!($sign, $half),
            "add rax, 4\n",
            "dec rcx\n",
            "jnz 22b\n",
        )
    };
}

/// The k-groups that remain.
macro_rules! rest {
    ($sign:ident, $half:tt) => {
        concat!(
            unsigned!($sign),
            ".p2align 5\n",
            "23:\n",
            group!($sign, $half),
            "add rax, 4\n",
            "jnz 23b\n",
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
    ([[$a:literal $b:literal $c:literal $d:literal] $second:tt $third:tt]) => {
        concat!(
            "mov rcx, ", field!(bias), "\n",
            "vmovdqu64 zmm", $a, ", [rcx]\n",
            "vmovdqu64 zmm", $b, ", [rcx+64]\n",
            "vmovdqu64 zmm", $c, ", [rcx+128]\n",
            "vmovdqu64 zmm", $d, ", [rcx+192]\n",
            copies!($a $b $c $d, $second),
            copies!($a $b $c $d, $third),
            "mov rdx, ", field!(weights), "\n",
            "mov rax, ", field!(span), "\n",
            "neg rax\n",
        )
    };
}

macro_rules! copies {
    ($($from:literal)*, [$a:literal $b:literal $c:literal $d:literal]) => { copies!(@ [$($from)*] [$a $b $c $d]) };
    (@ [$($from:literal)*] [$($to:literal)*]) => { concat!($("vmovdqa64 zmm", $to, ", zmm", $from, "\n"),*) };
}

/// Rounds the four sums of a row to words in the first and the third.
macro_rules! round {
    (float, [$a:literal $b:literal $c:literal $d:literal]) => {
        concat!(
            convert!("vcvtdq2ps", [$a $b $c $d]),
            scale!([$a $b $c $d]),
            convert!("vcvtps2dq", [$a $b $c $d]),
            "vpbroadcastd zmm24, ", field!(zero_point), "\n",
            each!("vpaddd", [$a $b $c $d], "zmm24"),
            words!($a $b $c $d),
        )
    };
    (floor, [$a:literal $b:literal $c:literal $d:literal]) => {
        concat!(
            "mov rcx, ", field!(second), "\n",
            convert!("vcvtdq2ps", [$a $b $c $d]),
            // Rounding downwards takes registers.
            "vmovups zmm24, [r15]\n",
            "vmovups zmm28, [rcx]\n",
            "vmovups zmm25, [r15+64]\n",
            "vmovups zmm29, [rcx+64]\n",
            "vmovups zmm26, [r15+128]\n",
            "vmovups zmm30, [rcx+128]\n",
            "vmovups zmm27, [r15+192]\n",
            "vmovups zmm31, [rcx+192]\n",
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
            words!($a $b $c $d),
        )
    };
    (first, [$a:literal $b:literal $c:literal $d:literal]) => {
        concat!(
            others!(),
            "vbroadcastss zmm28, ", field!(offset), "\n",
            "vbroadcastss zmm29, ", field!(other), "\n",
            "vfmadd213ps zmm24, zmm29, zmm28\n",
            "vfmadd213ps zmm25, zmm29, zmm28\n",
            "vfmadd213ps zmm26, zmm29, zmm28\n",
            "vfmadd213ps zmm27, zmm29, zmm28\n",
            product!($a $b $c $d),
            "vbroadcastss zmm30, ", field!(product), "\n",
            "vfmadd213ps zmm", $a, ", zmm30, zmm24\n",
            "vfmadd213ps zmm", $b, ", zmm30, zmm25\n",
            "vfmadd213ps zmm", $c, ", zmm30, zmm26\n",
            "vfmadd213ps zmm", $d, ", zmm30, zmm27\n",
            convert!("vcvtps2dq", [$a $b $c $d]),
            words!($a $b $c $d),
        )
    };
    (last, [$a:literal $b:literal $c:literal $d:literal]) => {
        concat!(
            others!(),
            product!($a $b $c $d),
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
            words!($a $b $c $d),
        )
    };
}

macro_rules! scale {
    ([$a:literal $b:literal $c:literal $d:literal]) => {
        concat!(
            "vmulps zmm",
            $a,
            ", zmm",
            $a,
            ", [r15]\n",
            "vmulps zmm",
            $b,
            ", zmm",
            $b,
            ", [r15+64]\n",
            "vmulps zmm",
            $c,
            ", zmm",
            $c,
            ", [r15+128]\n",
            "vmulps zmm",
            $d,
            ", zmm",
            $d,
            ", [r15+192]\n",
        )
    };
}

/// The other operand of a row as floats in zmm24 to 27, and that of a row to come is fetched.
macro_rules! others {
    () => {
        concat!(
            "lea rcx, [r12+r13]\n",
            "vmovdqu64 zmm31, [rcx]\n",
            "prefetcht0 [rcx+r9]\n",
            "lea rcx, [rcx+8*r14]\n",
            "lea rcx, [rcx+8*r14]\n",
            "prefetcht0 [rcx+8*r14]\n",
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

/// Requantized products as floats. With the magic number added their bits are those of integers, whose
/// order is the numbers' even where they are too large for it.
macro_rules! product {
    ($($x:literal)*) => {
        concat!(
            convert!("vcvtdq2ps", [$($x)*]),
            scale!([$($x)*]),
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

/// A row of sums leaves as bytes.
macro_rules! finish {
    ($step:ident, [$a:literal $b:literal $c:literal $d:literal]) => {
        concat!(
            round!($step, [$a $b $c $d]),
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
            "prefetchw [r12+r9]\n",
            "lea rcx, [r12+8*r14]\n",
            "lea rcx, [rcx+8*r14]\n",
            "prefetchw [rcx+8*r14]\n",
            "vmovdqu64 [r12], zmm", $a, "\n",
            "add r12, r14\n",
        )
    };
}

/// A half's rounding alone.
macro_rules! end {
    ($step:ident, [$a:tt $b:tt $c:tt]) => {
        concat!(
            "mov r12, ",
            field!(out),
            "\n",
            finish!($step, $a),
            finish!($step, $b),
            finish!($step, $c),
        )
    };
}

/// One half is added to while the other is rounded.
macro_rules! turn {
    ($sign:ident, $step:ident, $half:tt, [$a:tt $b:tt $c:tt]) => {
        concat!(
            start!($half),
            finish!($step, $a),
            burst!($sign, $half),
            finish!($step, $b),
            burst!($sign, $half),
            finish!($step, $c),
            rest!($sign, $half),
        )
    };
}

/// Moves on to the pixels of the next half, whose last ones may have been computed before; to a label when there
/// are none.
macro_rules! next {
    ($end:literal) => {
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
            "mov eax, 3\n",
            "cmp rcx, rax\n",
            "cmova rcx, rax\n",
            "sub ",
            field!(left),
            ", rcx\n",
            "mov rax, rcx\n",
            "imul rax, ",
            field!(step),
            "\n",
            "add r8, rax\n",
            "add r10, rax\n",
            "add r11, rax\n",
            "imul rcx, r14\n",
            "add ",
            field!(out),
            ", rcx\n",
        )
    };
}

/// The function for activations of a sign and a step.
macro_rules! function {
    ($sign:ident, $step:ident) => {
        function!($sign, $step, [[0 1 2 3] [4 5 6 7] [8 9 10 11]], [[12 13 14 15] [16 17 18 19] [20 21 22 23]])
    };
    ($sign:ident, $step:ident, $one:tt, $two:tt) => {{
        /// See [`StemRow`] for the contract.
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
        unsafe fn row(round: &Round, finish: &Finish, call: &StemRow) {
            // SAFETY: the caller's promise.
            let mut turns = unsafe { Turns::new(round, finish, call) };
            // SAFETY: reads the pixels, weights, biases, parameters and other operand and writes the output that
            // the contract of `StemRow` names: at least one half of pixels, and halves after the first move on by
            // at most as many as are left. Fetches ahead touch nothing. Registers that it changes are named.
            unsafe {
                asm!(
                    concat!(
                        "mov r9, ", field!(ahead), "\n",
                        "mov r13, ", field!(distance), "\n",
                        "mov r14, ", field!(out_step), "\n",
                        "mov r15, ", field!(first), "\n",
                        "mov r8, ", field!(input), "\n",
                        "add r8, ", field!(span), "\n",
                        "mov rcx, ", field!(step), "\n",
                        "lea r10, [r8+rcx]\n",
                        "lea r11, [r8+2*rcx]\n",
                        start!($one),
                        rest!($sign, $one),
                        "30:\n",
                        next!("80f"),
                        turn!($sign, $step, $two, $one),
                        next!("90f"),
                        turn!($sign, $step, $one, $two),
                        "jmp 30b\n",
                        "80:\n",
                        end!($step, $one),
                        "jmp 99f\n",
                        "90:\n",
                        end!($step, $two),
                        "99:\n",
                    ),
                    in("rdi") core::ptr::from_mut(&mut turns),
                    out("rax") _, out("rcx") _, out("rdx") _,
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
                );
            }
        }
        row as StemFn
    }};
}

impl Turns {
    /// # Safety
    /// - The contract of [`StemRow`].
    unsafe fn new(round: &Round, finish: &Finish, call: &StemRow) -> Self {
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
            left: call.pixels - HALF,
            step: call.step,
            out_step: call.out_step,
            span: 4 * call.groups,
            burst: call.groups / HALF,
            // SAFETY: there is a row.
            input: unsafe { *call.rows },
            out: call.out,
            distance: call.other.addr().wrapping_sub(call.out.addr()),
            weights: call.weights,
            bias: call.bias,
            first,
            second,
            ahead: call.pixels.min(AHEAD) * call.out_step,
        }
    }
}

/// The function for activations of a sign and an output, for tiles of four vectors by three pixels of one row of
/// the kernel with at least three k-groups.
pub(super) fn select(round: &Round, finish: &Finish, signed: bool) -> Option<StemFn> {
    match (signed, beside::step(round, finish)?) {
        (false, Step::Float) => Some(function!(u8, float)),
        (false, Step::Floor) => Some(function!(u8, floor)),
        (true, Step::Float) => Some(function!(s8, float)),
        (true, Step::Floor) => Some(function!(s8, floor)),
        (
            false,
            Step::Sum {
                product_first: true,
            },
        ) => Some(function!(u8, first)),
        (
            false,
            Step::Sum {
                product_first: false,
            },
        ) => Some(function!(u8, last)),
        (
            true,
            Step::Sum {
                product_first: true,
            },
        ) => Some(function!(s8, first)),
        (
            true,
            Step::Sum {
                product_first: false,
            },
        ) => Some(function!(s8, last)),
        (_, Step::High) => None,
    }
}

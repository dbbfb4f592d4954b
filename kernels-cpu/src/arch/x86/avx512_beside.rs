//! The AVX-512 tile that finishes the tile before it on the side, see [`crate::epilogue::beside`].
//!
//! In assembly, because the compiler neither keeps the order of the two kinds of work nor gets along
//! with the registers: 24 sums (zmm0 to 23), four for the side (24 to 27), one that makes activations
//! unsigned (28), two for weights (29, 30) and one for activations (31). Two vectors of weights at a time
//! meet all rows, so activations are broadcast twice, which only takes loads.
//!
//! Stores are scarce: a core takes a vector a cycle, or half of one, and holds few of them back. So the sums of
//! the first two vectors are ready a few k-groups before the others and leave beside their products.

use core::arch::asm;

use crate::epilogue::beside::{BesideFn, BesideTable, Side, Step};
use crate::table::{Activations, Kernel, WeightFormat};

/// One of the state's fields as an operand.
macro_rules! field {
    (order) => {
        "[rdi]"
    };
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
        "dword ptr [rdi+196]{{1to16}}"
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
    (rows) => {
        "qword ptr [rdi+232]"
    };
    (sums) => {
        "qword ptr [rdi+240]"
    };
    (output) => {
        "qword ptr [rdi+248]"
    };
    (distance) => {
        "qword ptr [rdi+256]"
    };
    (parameters) => {
        "qword ptr [rdi+264]"
    };
    (width) => {
        "qword ptr [rdi+272]"
    };
    (table) => {
        "qword ptr [rdi+280]"
    };
    (segments) => {
        "qword ptr [rdi+288]"
    };
    (span) => {
        "qword ptr [rdi+296]"
    };
    (room) => {
        "qword ptr [rdi+304]"
    };
    (end) => {
        "qword ptr [rdi+312]"
    };
    (out) => {
        "qword ptr [rdi+320]"
    };
    (bias) => {
        "qword ptr [rdi+328]"
    };
    (tail) => {
        "qword ptr [rdi+336]"
    };
    (stop) => {
        "qword ptr [rdi+344]"
    };
    (groups) => {
        "qword ptr [rdi+352]"
    };
    (weights) => {
        "qword ptr [rdi+360]"
    };
    (ahead) => {
        "qword ptr [rdi+368]"
    };
    (rbx) => {
        "qword ptr [rdi+376]"
    };
    (rbp) => {
        "qword ptr [rdi+384]"
    };
}

/// Four activations of the row at a register, to zmm31.
macro_rules! broadcast {
    (u8, $row:literal, $k:literal) => {
        concat!("vpbroadcastd zmm31, dword ptr [", $row, "+rax+", $k, "]\n")
    };
    (s8, $row:literal, $k:literal) => {
        concat!(
            "vpxord zmm31, zmm28, dword ptr [",
            $row,
            "+rax+",
            $k,
            "]{{1to16}}\n"
        )
    };
}

/// The products of one row with two vectors of weights.
macro_rules! two {
    ($sign:ident, $row:literal, $k:literal, $x:literal, $y:literal) => {
        concat!(
            broadcast!($sign, $row, $k),
            "vpdpbusd zmm",
            $x,
            ", zmm31, zmm29\n",
            "vpdpbusd zmm",
            $y,
            ", zmm31, zmm30\n",
        )
    };
}

/// The products of one row with one vector of weights.
macro_rules! one {
    ($sign:ident, $row:literal, $k:literal, $x:literal) => {
        concat!(
            broadcast!($sign, $row, $k),
            "vpdpbusd zmm",
            $x,
            ", zmm31, zmm29\n"
        )
    };
}

/// All rows with two vectors of weights; the sums of each row are given.
macro_rules! pair {
    ($sign:ident, 6, $k:literal, $w:literal, $v:literal, [$($x:literal $y:literal),*] $last:tt) => {
        concat!(
            pair!($sign, 5, $k, $w, $v, [$($x $y),*] $last),
            pair!(@last $sign, $k, $last),
        )
    };
    (@last $sign:ident, $k:literal, ($x:literal $y:literal)) => { two!($sign, "r13", $k, $x, $y) };
    (
        $sign:ident, 5, $k:literal, $w:literal, $v:literal,
        [$a:literal $b:literal, $c:literal $d:literal, $e:literal $f:literal, $g:literal $h:literal, $i:literal $j:literal]
        $last:tt
    ) => {
        concat!(
            "vmovdqu64 zmm29, [rsi+", $w, "]\n",
            "vmovdqu64 zmm30, [rsi+", $v, "]\n",
            two!($sign, "r8", $k, $a, $b),
            two!($sign, "r9", $k, $c, $d),
            two!($sign, "r10", $k, $e, $f),
            two!($sign, "r11", $k, $g, $h),
            two!($sign, "r12", $k, $i, $j),
        )
    };
}

/// Half of a k-group: the first or second part of the columns of all rows. `0` and `1` say which k-group.
macro_rules! dots {
    ($sign:ident, $height:tt, 4, 0, first) => {
        pair!($sign, $height, 0, 0, 64, [0 1, 4 5, 8 9, 12 13, 16 17] (20 21))
    };
    ($sign:ident, $height:tt, 4, 0, second) => {
        pair!($sign, $height, 0, 128, 192, [2 3, 6 7, 10 11, 14 15, 18 19] (22 23))
    };
    ($sign:ident, $height:tt, 4, 1, first) => {
        pair!($sign, $height, 4, 256, 320, [0 1, 4 5, 8 9, 12 13, 16 17] (20 21))
    };
    ($sign:ident, $height:tt, 4, 1, second) => {
        pair!($sign, $height, 4, 384, 448, [2 3, 6 7, 10 11, 14 15, 18 19] (22 23))
    };
    ($sign:ident, $height:tt, 4, 2, first) => {
        pair!($sign, $height, 8, 512, 576, [0 1, 4 5, 8 9, 12 13, 16 17] (20 21))
    };
    ($sign:ident, $height:tt, 4, 3, first) => {
        pair!($sign, $height, 12, 768, 832, [0 1, 4 5, 8 9, 12 13, 16 17] (20 21))
    };
    ($sign:ident, $height:tt, 2, 0, first) => {
        pair!($sign, $height, 0, 0, 64, [0 1, 4 5, 8 9, 12 13, 16 17] (20 21))
    };
    ($sign:ident, $height:tt, 2, 1, first) => {
        pair!($sign, $height, 4, 128, 192, [0 1, 4 5, 8 9, 12 13, 16 17] (20 21))
    };
    ($sign:ident, $height:tt, 2, $group:tt, second) => { "" };
    ($sign:ident, $height:tt, 1, 0, first) => { single!($sign, $height, 0, 0) };
    ($sign:ident, $height:tt, 1, 1, first) => { single!($sign, $height, 4, 64) };
    ($sign:ident, $height:tt, 1, $group:tt, second) => { "" };
}

/// The second half of a k-group, and a store after each row.
macro_rules! storing {
    (
        $sign:ident, $k:literal, $w:literal, $v:literal,
        $a:expr, $b:expr, $c:expr, $d:expr, $e:expr $(, $f:expr)?
    ) => {
        concat!(
            "vmovdqu64 zmm29, [rsi+", $w, "]\n",
            "vmovdqu64 zmm30, [rsi+", $v, "]\n",
            two!($sign, "r8", $k, 2, 3), $a,
            two!($sign, "r9", $k, 6, 7), $b,
            two!($sign, "r10", $k, 10, 11), $c,
            two!($sign, "r11", $k, 14, 15), $d,
            two!($sign, "r12", $k, 18, 19), $e,
            $(two!($sign, "r13", $k, 22, 23), $f,)?
        )
    };
}

/// A vector of sums goes to the tile.
macro_rules! store {
    ($to:literal, $x:literal) => {
        concat!("vmovdqu64 [rdx+", $to, "], zmm", $x, "\n")
    };
}

/// The last four k-groups of a tile of four vectors: first their first halves, then their second halves,
/// while the sums that are ready are stored, and then the other sums.
macro_rules! tail {
    ($sign:ident, $height:tt, 4) => {
        concat!(
            dots!($sign, $height, 4, 0, first),
            dots!($sign, $height, 4, 1, first),
            dots!($sign, $height, 4, 2, first),
            dots!($sign, $height, 4, 3, first),
            "mov rdx, ", field!(out), "\n",
            tail!(@second $sign, $height),
        )
    };
    ($sign:ident, $height:tt, $width:tt) => { "" };
    (@second $sign:ident, 6) => {
        concat!(
            storing!(
                $sign, 0, 128, 192,
                "", store!(0, 0), "", store!(64, 1), "", store!(256, 4)
            ),
            storing!(
                $sign, 4, 384, 448,
                "", store!(320, 5), "", store!(512, 8), "", store!(576, 9)
            ),
            storing!(
                $sign, 8, 640, 704,
                "", store!(768, 12), "",
                store!(832, 13), "", store!(1024, 16)
            ),
            storing!(
                $sign, 12, 896, 960,
                "", store!(1088, 17), "",
                store!(1280, 20), "", store!(1344, 21)
            ),
            tail!(@rest),
            store!(1408, 22), store!(1472, 23),
        )
    };
    (@second $sign:ident, 5) => {
        concat!(
            storing!(
                $sign, 0, 128, 192,
                "", store!(0, 0), "", store!(64, 1), ""
            ),
            storing!(
                $sign, 4, 384, 448,
                store!(256, 4), "", store!(320, 5), "", store!(512, 8)
            ),
            storing!(
                $sign, 8, 640, 704,
                "", store!(576, 9), "", store!(768, 12), ""
            ),
            storing!(
                $sign, 12, 896, 960,
                store!(832, 13), "", store!(1024, 16), "", store!(1088, 17)
            ),
            tail!(@rest),
        )
    };
    (@rest) => {
        concat!(
            store!(128, 2), store!(192, 3),
            store!(384, 6), store!(448, 7),
            store!(640, 10), store!(704, 11),
            store!(896, 14), store!(960, 15),
            store!(1152, 18), store!(1216, 19),
        )
    };
}

/// All rows with the only vector of weights.
macro_rules! single {
    ($sign:ident, 6, $k:literal, $w:literal) => {
        concat!(single!($sign, 5, $k, $w), one!($sign, "r13", $k, 20))
    };
    ($sign:ident, 5, $k:literal, $w:literal) => {
        concat!(
            "vmovdqu64 zmm29, [rsi+",
            $w,
            "]\n",
            one!($sign, "r8", $k, 0),
            one!($sign, "r9", $k, 4),
            one!($sign, "r10", $k, 8),
            one!($sign, "r11", $k, 12),
            one!($sign, "r12", $k, 16),
        )
    };
}

/// Rounds the vector at `$sums` bytes of the row to 32-bit values in `zmm$x`, by way of `zmm$y`.
macro_rules! round {
    (float, $sums:literal, $high:literal, $other:literal, $x:literal, $y:literal) => {
        concat!(
            "vcvtdq2ps zmm", $x, ", [rdx+", $sums, "]\n",
            "vmulps zmm", $x, ", zmm", $x, ", [r15+", $sums, "]\n",
            "vcvtps2dq zmm", $x, ", zmm", $x, "\n",
            "vpaddd zmm", $x, ", zmm", $x, ", ", field!(zero_point), "\n",
        )
    };
    (floor, $sums:literal, $high:literal, $other:literal, $x:literal, $y:literal) => {
        concat!(
            "vcvtdq2ps zmm", $x, ", [rdx+", $sums, "]\n",
            "vmovups zmm", $y, ", [r15+2*", $sums, "]\n",
            // Rounding downwards takes registers; between products, that of the activations is free.
            "vmovups zmm31, [r15+2*", $sums, "+64]\n",
            "vfmadd213ps zmm", $x, ", zmm", $y, ", zmm31, {{rd-sae}}\n",
            "vcvtps2dq zmm", $x, ", zmm", $x, ", {{rd-sae}}\n",
            "vpaddd zmm", $x, ", zmm", $x, ", ", field!(zero_point), "\n",
        )
    };
    (high, $sums:literal, $high:literal, $other:literal, $x:literal, $y:literal) => {
        concat!(
            "vmovdqu64 zmm", $y, ", [rdx+", $sums, "]\n",
            "vpmuldq zmm", $x, ", zmm", $y, ", [r15+", $high, "]\n",
            "vpsrlq zmm", $y, ", zmm", $y, ", 32\n",
            "vpmuldq zmm", $y, ", zmm", $y, ", [r15+", $high, "+64]\n",
            "vpshufd zmm", $y, "{{k1}}, zmm", $x, ", 245\n",
            "vpaddd zmm", $y, ", zmm", $y, ", [r15+", $high, "+128]\n",
            "vpsravd zmm", $x, ", zmm", $y, ", [r15+", $high, "+192]\n",
        )
    };
    (first, $sums:literal, $high:literal, $other:literal, $x:literal, $y:literal) => {
        concat!(
            "vbroadcastss zmm", $x, ", ", field!(offset), "\n",
            "vpmovzxbd zmm", $y, ", [r14+rcx+", $other, "]\n",
            "vcvtdq2ps zmm", $y, ", zmm", $y, "\n",
            "vfmadd231ps zmm", $x, ", zmm", $y, ", ", field!(other), "{{1to16}}\n",
            product!($sums, $y),
            "vfmadd231ps zmm", $x, ", zmm", $y, ", ", field!(product), "{{1to16}}\n",
            "vcvtps2dq zmm", $x, ", zmm", $x, "\n",
        )
    };
    (last, $sums:literal, $high:literal, $other:literal, $x:literal, $y:literal) => {
        concat!(
            "vbroadcastss zmm", $x, ", ", field!(offset), "\n",
            product!($sums, $y),
            "vfmadd231ps zmm", $x, ", zmm", $y, ", ", field!(product), "{{1to16}}\n",
            "vpmovzxbd zmm", $y, ", [r14+rcx+", $other, "]\n",
            "vcvtdq2ps zmm", $y, ", zmm", $y, "\n",
            "vfmadd231ps zmm", $x, ", zmm", $y, ", ", field!(other), "{{1to16}}\n",
            "vcvtps2dq zmm", $x, ", zmm", $x, "\n",
        )
    };
}

/// The requantized product as a float. With the magic number added its bits are those of an integer, whose
/// order is the numbers' even where they are too large for it.
macro_rules! product {
    ($sums:literal, $y:literal) => {
        concat!(
            "vcvtdq2ps zmm",
            $y,
            ", [rdx+",
            $sums,
            "]\n",
            "vmulps zmm",
            $y,
            ", zmm",
            $y,
            ", [r15+",
            $sums,
            "]\n",
            "vaddps zmm",
            $y,
            ", zmm",
            $y,
            ", ",
            field!(magic),
            "{{1to16}}\n",
            "vpmaxsd zmm",
            $y,
            ", zmm",
            $y,
            ", ",
            field!(least),
            "{{1to16}}\n",
            "vpminsd zmm",
            $y,
            ", zmm",
            $y,
            ", ",
            field!(most),
            "{{1to16}}\n",
            "vsubps zmm",
            $y,
            ", zmm",
            $y,
            ", ",
            field!(demagic),
            "{{1to16}}\n",
        )
    };
}

/// Half of a pair of rounded sums that another tensor joins: constants are loaded once for both, into the
/// register of the activations, which is free between products. The sums end in `zmm$x` as words.
macro_rules! joined {
    (
        first, begin, $sums:literal, $next:literal, $other:literal, $beside:literal,
        $x:literal $y:literal $z:literal $w:literal
    ) => {
        concat!(
            joined!(@load $sums, $next, $other, $beside, $x $y $z $w),
            "vbroadcastss zmm31, ", field!(offset), "\n",
            "vfmadd132ps zmm", $x, ", zmm31, ", field!(other), "{{1to16}}\n",
            "vfmadd132ps zmm", $z, ", zmm31, ", field!(other), "{{1to16}}\n",
        )
    };
    (first, end, $x:literal $y:literal $z:literal $w:literal) => {
        concat!(
            joined!(@limit $y $w),
            "vbroadcastss zmm31, ", field!(product), "\n",
            "vfmadd231ps zmm", $x, ", zmm", $y, ", zmm31\n",
            "vfmadd231ps zmm", $z, ", zmm", $w, ", zmm31\n",
            joined!(@words $x $z),
        )
    };
    (
        last, begin, $sums:literal, $next:literal, $other:literal, $beside:literal,
        $x:literal $y:literal $z:literal $w:literal
    ) => {
        joined!(@load $sums, $next, $other, $beside, $x $y $z $w)
    };
    (last, end, $x:literal $y:literal $z:literal $w:literal) => {
        concat!(
            joined!(@limit $y $w),
            "vbroadcastss zmm31, ", field!(offset), "\n",
            "vfmadd132ps zmm", $y, ", zmm31, ", field!(product), "{{1to16}}\n",
            "vfmadd132ps zmm", $w, ", zmm31, ", field!(product), "{{1to16}}\n",
            "vbroadcastss zmm31, ", field!(other), "\n",
            "vfmadd132ps zmm", $x, ", zmm", $y, ", zmm31\n",
            "vfmadd132ps zmm", $z, ", zmm", $w, ", zmm31\n",
            joined!(@words $x $z),
        )
    };
    (
        @load $sums:literal, $next:literal, $other:literal, $beside:literal,
        $x:literal $y:literal $z:literal $w:literal
    ) => {
        concat!(
            "vpmovzxbd zmm", $x, ", [r14+rcx+", $other, "]\n",
            "vpmovzxbd zmm", $z, ", [r14+rcx+", $beside, "]\n",
            "vcvtdq2ps zmm", $y, ", [rdx+", $sums, "]\n",
            "vcvtdq2ps zmm", $w, ", [rdx+", $next, "]\n",
            "vcvtdq2ps zmm", $x, ", zmm", $x, "\n",
            "vcvtdq2ps zmm", $z, ", zmm", $z, "\n",
            "vmulps zmm", $y, ", zmm", $y, ", [r15+", $sums, "]\n",
            "vmulps zmm", $w, ", zmm", $w, ", [r15+", $next, "]\n",
            "vbroadcastss zmm31, ", field!(magic), "\n",
            "vaddps zmm", $y, ", zmm", $y, ", zmm31\n",
            "vaddps zmm", $w, ", zmm", $w, ", zmm31\n",
        )
    };
    (@limit $y:literal $w:literal) => {
        concat!(
            "vpbroadcastd zmm31, ", field!(least), "\n",
            "vpmaxsd zmm", $y, ", zmm", $y, ", zmm31\n",
            "vpmaxsd zmm", $w, ", zmm", $w, ", zmm31\n",
            "vpbroadcastd zmm31, ", field!(most), "\n",
            "vpminsd zmm", $y, ", zmm", $y, ", zmm31\n",
            "vpminsd zmm", $w, ", zmm", $w, ", zmm31\n",
            "vbroadcastss zmm31, ", field!(demagic), "\n",
            "vsubps zmm", $y, ", zmm", $y, ", zmm31\n",
            "vsubps zmm", $w, ", zmm", $w, ", zmm31\n",
        )
    };
    (@words $x:literal $z:literal) => {
        concat!(
            "vcvtps2dq zmm", $x, ", zmm", $x, "\n",
            "vcvtps2dq zmm", $z, ", zmm", $z, "\n",
            words!($x, $z),
        )
    };
}

/// Two vectors of values as words.
macro_rules! words {
    ($x:literal, $y:literal) => {
        concat!("vpackssdw zmm", $x, ", zmm", $x, ", zmm", $y, "\n")
    };
}

/// The quarters of a step: a row of the waiting tile.
macro_rules! step {
    (first, $width:tt, $quarter:tt) => {
        sum!(first, $width, $quarter)
    };
    (last, $width:tt, $quarter:tt) => {
        sum!(last, $width, $quarter)
    };
    ($step:ident, 4, 0) => {
        round!($step, 0, 0, 0, 24, 25)
    };
    ($step:ident, 4, 1) => {
        concat!(round!($step, 64, 256, 16, 25, 26), words!(24, 25))
    };
    ($step:ident, 4, 2) => {
        round!($step, 128, 512, 32, 25, 26)
    };
    ($step:ident, 4, 3) => {
        concat!(
            round!($step, 192, 768, 48, 26, 27),
            words!(25, 26),
            finish!($step, 25, "zmm24", 256),
        )
    };
    ($step:ident, 2, 0) => {
        round!($step, 0, 0, 0, 24, 25)
    };
    ($step:ident, 2, 1) => {
        concat!(
            round!($step, 64, 256, 16, 25, 26),
            words!(24, 25),
            finish!($step, 24, "ymm24", 128),
        )
    };
    ($step:ident, 1, 0) => {
        concat!(
            round!($step, 0, 0, 0, 24, 25),
            words!(24, 24),
            finish!($step, 24, "xmm24", 64),
        )
    };
    ($step:ident, $width:tt, $quarter:tt) => {
        ""
    };
}

/// The quarters of a step with a sum, two vectors at a time where there are two.
macro_rules! sum {
    ($step:ident, 4, 0) => {
        joined!($step, begin, 0, 64, 0, 16, 24 25 26 27)
    };
    ($step:ident, 4, 1) => {
        joined!($step, end, 24 25 26 27)
    };
    ($step:ident, 4, 2) => {
        joined!($step, begin, 128, 192, 32, 48, 25 26 27 28)
    };
    ($step:ident, 4, 3) => {
        concat!(
            joined!($step, end, 25 26 27 28),
            finish!($step, 25, "zmm24", 256),
        )
    };
    ($step:ident, 2, 0) => {
        joined!($step, begin, 0, 64, 0, 16, 24 25 26 27)
    };
    ($step:ident, 2, 1) => {
        concat!(
            joined!($step, end, 24 25 26 27),
            finish!($step, 24, "ymm24", 128),
        )
    };
    ($step:ident, 1, 0) => {
        concat!(
            round!($step, 0, 0, 0, 24, 25),
            words!(24, 24),
            finish!($step, 24, "xmm24", 64),
        )
    };
    ($step:ident, $width:tt, $quarter:tt) => {
        ""
    };
}

/// The other operand of a row to come.
macro_rules! fetch {
    (first) => {
        "prefetcht0 [r14+rbp]\n"
    };
    (last) => {
        "prefetcht0 [r14+rbp]\n"
    };
    ($step:ident) => {
        ""
    };
}

/// The words in zmm24 and another register leave as bytes, and the next row follows. Most outputs are
/// unsigned bytes without limits of their own, and get by with the pack.
macro_rules! finish {
    ($step:ident, $y:tt, $bytes:literal, $row:literal) => {
        concat!(
            "cmp ",
            field!(kind),
            ", 1\n",
            "jb 2f\n",
            "ja 3f\n",
            "vpackuswb zmm24, zmm24, zmm",
            $y,
            "\n",
            "vpmaxub zmm24, zmm24, ",
            field!(lo),
            "\n",
            "vpminub zmm24, zmm24, ",
            field!(hi),
            "\n",
            "jmp 4f\n",
            "3:\n",
            "vpacksswb zmm24, zmm24, zmm",
            $y,
            "\n",
            "vpmaxsb zmm24, zmm24, ",
            field!(lo),
            "\n",
            "vpminsb zmm24, zmm24, ",
            field!(hi),
            "\n",
            "jmp 4f\n",
            "2:\n",
            "vpackuswb zmm24, zmm24, zmm",
            $y,
            "\n",
            "4:\n",
            "prefetchw [r14+rbx]\n",
            fetch!($step),
            "vmovdqa64 zmm25, ",
            field!(order),
            "\n",
            "vpermd zmm24, zmm25, zmm24\n",
            "add rdx, ",
            $row,
            "\n",
            "vmovdqu64 [r14], ",
            $bytes,
            "\n",
            "add r14, ",
            field!(width),
            "\n",
        )
    };
}

/// A whole k-group with nothing beside it.
macro_rules! group {
    ($sign:ident, $height:tt, $width:tt, $group:tt) => {
        concat!(
            dots!($sign, $height, $width, $group, first),
            dots!($sign, $height, $width, $group, second),
        )
    };
}

/// Bytes of weights of one k-group, and of two.
macro_rules! weights {
    (4, 1) => {
        "256"
    };
    (4, 2) => {
        "512"
    };
    (2, 1) => {
        "128"
    };
    (2, 2) => {
        "256"
    };
    (1, 1) => {
        "64"
    };
    (1, 2) => {
        "128"
    };
}

/// How rows of the waiting tile share the loop with k-groups: their number as a fraction.
macro_rules! busy {
    (half, $sign:ident, $height:tt, $width:tt, $step:ident) => {
        concat!(
            dots!($sign, $height, $width, 0, first),
            step!($step, $width, 0),
            dots!($sign, $height, $width, 0, second),
            step!($step, $width, 1),
            dots!($sign, $height, $width, 1, first),
            step!($step, $width, 2),
            dots!($sign, $height, $width, 1, second),
            step!($step, $width, 3),
            "add rsi, ",
            weights!($width, 2),
            "\n",
            "add rax, 8\n",
        )
    };
    (whole, $sign:ident, $height:tt, $width:tt, $step:ident) => {
        concat!(
            dots!($sign, $height, $width, 0, first),
            step!($step, $width, 0),
            step!($step, $width, 1),
            dots!($sign, $height, $width, 0, second),
            step!($step, $width, 2),
            step!($step, $width, 3),
            "add rsi, ",
            weights!($width, 1),
            "\n",
            "add rax, 4\n",
        )
    };
    (twice, $sign:ident, $height:tt, $width:tt, $step:ident) => {
        concat!(
            row!($step, $width),
            dots!($sign, $height, $width, 0, first),
            row!($step, $width),
            dots!($sign, $height, $width, 0, second),
            "add rsi, ",
            weights!($width, 1),
            "\n",
            "add rax, 4\n",
        )
    };
}

/// One step.
macro_rules! row {
    ($step:ident, $width:tt) => {
        concat!(
            step!($step, $width, 0),
            step!($step, $width, 1),
            step!($step, $width, 2),
            step!($step, $width, 3),
        )
    };
}

/// From the number of loop passes in r8: rows that they finish, to be taken off, and bytes of activations.
macro_rules! passes {
    (half) => {
        concat!("sub ", field!(rows), ", r8\nlea r9, [rax+r8*8]\n")
    };
    (whole) => {
        concat!("sub ", field!(rows), ", r8\nlea r9, [rax+r8*4]\n")
    };
    (twice) => {
        concat!(
            "lea r9, [rax+r8*4]\nadd r8, r8\nsub ",
            field!(rows),
            ", r8\n"
        )
    };
}

/// Passes that the waiting rows ask for.
macro_rules! wanted {
    (twice) => {
        "shr r8, 1\n"
    };
    ($pace:ident) => {
        ""
    };
}

/// Adds the length of a segment to the pointers of rows, which are read from their end.
macro_rules! pointers {
    (6) => {
        concat!(
            "mov r13, [rax+40]\n",
            pointers!(5),
            "add r13, r15\n",
            "add ",
            field!(table),
            ", 48\n",
        )
    };
    (five) => {
        concat!(pointers!(5), "add ", field!(table), ", 40\n")
    };
    (5) => {
        concat!(
            "mov r8, [rax]\n",
            "mov r9, [rax+8]\n",
            "mov r10, [rax+16]\n",
            "mov r11, [rax+24]\n",
            "mov r12, [rax+32]\n",
            "mov r15, ",
            field!(span),
            "\n",
            "add r8, r15\n",
            "add r9, r15\n",
            "add r10, r15\n",
            "add r11, r15\n",
            "add r12, r15\n",
        )
    };
}

macro_rules! start {
    (6) => {
        pointers!(6)
    };
    (5) => {
        pointers!(five)
    };
}

/// Copies of the first row's sums to a row that starts at a register.
macro_rules! copies {
    (4, $a:literal $b:literal $c:literal $d:literal) => {
        concat!(
            "vmovdqa64 zmm",
            $a,
            ", zmm0\n",
            "vmovdqa64 zmm",
            $b,
            ", zmm1\n",
            "vmovdqa64 zmm",
            $c,
            ", zmm2\n",
            "vmovdqa64 zmm",
            $d,
            ", zmm3\n",
        )
    };
    (2, $a:literal $b:literal $c:literal $d:literal) => {
        concat!(
            "vmovdqa64 zmm",
            $a,
            ", zmm0\n",
            "vmovdqa64 zmm",
            $b,
            ", zmm1\n"
        )
    };
    (1, $a:literal $b:literal $c:literal $d:literal) => {
        concat!("vmovdqa64 zmm", $a, ", zmm0\n")
    };
}

macro_rules! biases {
    (4) => {
        concat!(
            biases!(2),
            "vmovdqu64 zmm2, [rdx+128]\n",
            "vmovdqu64 zmm3, [rdx+192]\n",
        )
    };
    (2) => {
        concat!(biases!(1), "vmovdqu64 zmm1, [rdx+64]\n")
    };
    (1) => {
        "vmovdqu64 zmm0, [rdx]\n"
    };
}

macro_rules! sums {
    (6, $width:tt) => { concat!(sums!(5, $width), copies!($width, 20 21 22 23)) };
    (5, $width:tt) => {
        concat!(
            biases!($width),
            copies!($width, 4 5 6 7),
            copies!($width, 8 9 10 11),
            copies!($width, 12 13 14 15),
            copies!($width, 16 17 18 19),
        )
    };
}

macro_rules! stores {
    (6, 4) => {
        concat!(
            stores!(5, 4),
            store!(1280, 20),
            store!(1344, 21),
            store!(1408, 22),
            store!(1472, 23),
        )
    };
    (5, 4) => {
        concat!(
            store!(0, 0),
            store!(64, 1),
            store!(128, 2),
            store!(192, 3),
            store!(256, 4),
            store!(320, 5),
            store!(384, 6),
            store!(448, 7),
            store!(512, 8),
            store!(576, 9),
            store!(640, 10),
            store!(704, 11),
            store!(768, 12),
            store!(832, 13),
            store!(896, 14),
            store!(960, 15),
            store!(1024, 16),
            store!(1088, 17),
            store!(1152, 18),
            store!(1216, 19),
        )
    };
    (6, 2) => {
        concat!(stores!(5, 2), store!(640, 20), store!(704, 21))
    };
    (5, 2) => {
        concat!(
            store!(0, 0),
            store!(64, 1),
            store!(128, 4),
            store!(192, 5),
            store!(256, 8),
            store!(320, 9),
            store!(384, 12),
            store!(448, 13),
            store!(512, 16),
            store!(576, 17),
        )
    };
    (6, 1) => {
        concat!(stores!(5, 1), store!(320, 20))
    };
    (5, 1) => {
        concat!(
            store!(0, 0),
            store!(64, 4),
            store!(128, 8),
            store!(192, 12),
            store!(256, 16),
        )
    };
}

/// K-groups of a segment with room for steps, and what follows them in the last segment.
macro_rules! room {
    (4) => {
        field!(room)
    };
    ($width:tt) => {
        field!(groups)
    };
}
macro_rules! reserved {
    (4) => {
        concat!("cmove r9, ", field!(tail), "\n")
    };
    ($width:tt) => {
        ""
    };
}

/// From k-groups in r9 to passes.
macro_rules! each {
    (half) => {
        "shr r9, 1\n"
    };
    ($pace:ident) => {
        ""
    };
}

/// The function for activations of a sign, a height, a width in vectors, a step, and its pace.
macro_rules! function {
    ($sign:ident, $height:tt, $width:tt, $step:ident, $pace:ident) => {{
        /// See [`BesideFn`] for the contract.
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
        unsafe fn tile(side: &mut Side) {
            // SAFETY: reads the segments, weights and biases and writes the sums that the contract of
            // `Tile` names; reads the sums, parameters and other operand and writes the output of the
            // rows that wait in `side`, as its contract says. `sub` and `cmp` keep the rows finished
            // at or below those that wait. Fetches ahead touch nothing. Registers that it changes are named,
            // but for rbx and rbp, which are put back.
            unsafe {
                asm!(
                    concat!(
                        "mov rsi, ", field!(weights), "\n",
                        "mov rdx, ", field!(bias), "\n",
                        sums!($height, $width),
                        "vpbroadcastd zmm28, ", field!(sign), "\n",
                        "mov eax, 0x5555\n",
                        "kmovw k1, eax\n",
                        "mov rdx, ", field!(sums), "\n",
                        "mov r14, ", field!(output), "\n",
                        "mov rcx, ", field!(distance), "\n",
                        "mov ", field!(rbx), ", rbx\n",
                        "mov ", field!(rbp), ", rbp\n",
                        "mov rbx, ", field!(ahead), "\n",
                        "lea rbp, [rbx+rcx]\n",
                        // Each segment: how far steps go along, and its pointers.
                        "20:\n",
                        "xor r9d, r9d\n",
                        "cmp ", field!(segments), ", 1\n",
                        reserved!($width),
                        "mov ", field!(stop), ", r9\n",
                        "mov r8, ", field!(rows), "\n",
                        wanted!($pace),
                        "mov r9, ", room!($width), "\n",
                        each!($pace),
                        "cmp r8, r9\n",
                        "cmova r8, r9\n",
                        "mov rax, ", field!(span), "\n",
                        "neg rax\n",
                        passes!($pace),
                        "mov ", field!(end), ", r9\n",
                        "mov rax, ", field!(table), "\n",
                        start!($height),
                        "mov rax, r15\n",
                        "neg rax\n",
                        "mov r15, ", field!(parameters), "\n",
                        "cmp rax, ", field!(end), "\n",
                        "je 35f\n",
                        ".p2align 5\n",
                        "30:\n",
                        busy!($pace, $sign, $height, $width, $step),
                        "cmp rax, ", field!(end), "\n",
                        "jne 30b\n",
                        "35:\n",
                        "cmp rax, ", field!(stop), "\n",
                        "je 50f\n",
                        ".p2align 5\n",
                        "40:\n",
                        group!($sign, $height, $width, 0),
                        "add rsi, ", weights!($width, 1), "\n",
                        "add rax, 4\n",
                        "cmp rax, ", field!(stop), "\n",
                        "jne 40b\n",
                        "50:\n",
                        "dec ", field!(segments), "\n",
                        "jnz 20b\n",
                        // Rows for which there was no room.
                        "cmp ", field!(rows), ", 0\n",
                        "je 70f\n",
                        "60:\n",
                        row!($step, $width),
                        "dec ", field!(rows), "\n",
                        "jnz 60b\n",
                        "70:\n",
                        "test rax, rax\n",
                        "jz 80f\n",
                        tail!($sign, $height, $width),
                        "jmp 90f\n",
                        "80:\n",
                        "mov rdx, ", field!(out), "\n",
                        stores!($height, $width),
                        "90:\n",
                        "mov rbx, ", field!(rbx), "\n",
                        "mov rbp, ", field!(rbp), "\n",
                    ),
                    in("rdi") core::ptr::from_mut(side),
                    out("rsi") _,
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
                    out("k1") _,
                    options(nostack),
                );
            }
        }
        Some(tile as BesideFn)
    }};
}

/// The functions of a step at a pace.
macro_rules! table {
    ($sign:ident, $step:ident, $pace:ident) => {
        [
            heights!($sign, 1, $step, $pace),
            heights!($sign, 2, $step, $pace),
            [None; 6],
            heights!($sign, 4, $step, $pace),
        ]
    };
}

macro_rules! heights {
    ($sign:ident, $width:tt, $step:ident, $pace:ident) => {
        [
            None,
            None,
            None,
            None,
            function!($sign, 5, $width, $step, $pace),
            function!($sign, 6, $width, $step, $pace),
        ]
    };
}

macro_rules! paces {
    ($sign:ident, $step:ident, $groups:expr) => {
        match $groups {
            16.. => table!($sign, $step, half),
            10.. => table!($sign, $step, whole),
            _ => table!($sign, $step, twice),
        }
    };
}

/// The functions for a step, for products with `groups` k-groups in each segment.
pub(super) fn functions(kernel: &Kernel, step: Step, groups: usize) -> Option<BesideTable> {
    if kernel.weights != WeightFormat::I8 {
        return None;
    }
    match (kernel.activations, step) {
        (Activations::U8, Step::Float) => Some(paces!(u8, float, groups)),
        (Activations::U8, Step::Floor) => Some(paces!(u8, floor, groups)),
        (Activations::U8, Step::High) => Some(paces!(u8, high, groups)),
        (
            Activations::U8,
            Step::Sum {
                product_first: true,
            },
        ) => Some(paces!(u8, first, groups)),
        (
            Activations::U8,
            Step::Sum {
                product_first: false,
            },
        ) => Some(paces!(u8, last, groups)),
        (Activations::I8, Step::Float) => Some(paces!(s8, float, groups)),
        (Activations::I8, Step::Floor) => Some(paces!(s8, floor, groups)),
        (Activations::I8, Step::High) => Some(paces!(s8, high, groups)),
        // Of a sum, the other operand is unsigned as well.
        (Activations::I8, Step::Sum { .. }) => None,
        (Activations::Widened, _) => None,
    }
}

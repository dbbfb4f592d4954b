//! One plain loop, compiled for each instruction set.
//!
//! Elementwise operators are loops that the compiler vectorises well once it may use the wide
//! registers. [`versions!`] turns such a body into a selector: given an ISA, it returns the copy of the
//! body that was compiled for it. All copies do the same IEEE and integer operations in the same order
//! for each element, so they give the same bytes.

/// Defines `fn $select(isa) -> fn(..)` that picks the copy of `$body` compiled for an ISA. An ISA that
/// the machine lacks gives the plain copy. The body must be `#[inline(always)]`.
macro_rules! versions {
    ($(#[$meta:meta])* $vis:vis fn $select:ident($($name:ident: $type:ty),* $(,)?) = $body:path) => {
        $(#[$meta])*
        $vis fn $select(isa: $crate::Isa) -> fn($($type),*) {
            fn scalar($($name: $type),*) {
                $body($($name),*)
            }
            #[cfg(target_arch = "x86_64")]
            fn avx2($($name: $type),*) {
                #[target_feature(enable = "avx2,fma")]
                fn copy($($name: $type),*) {
                    $body($($name),*)
                }
                // SAFETY: this function is handed out only where the ISA is available.
                unsafe { copy($($name),*) }
            }
            #[cfg(target_arch = "x86_64")]
            fn avx512($($name: $type),*) {
                #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
                fn copy($($name: $type),*) {
                    $body($($name),*)
                }
                // SAFETY: this function is handed out only where the ISA is available.
                unsafe { copy($($name),*) }
            }
            if !isa.is_available() {
                return scalar;
            }
            match isa {
                $crate::Isa::Scalar | $crate::Isa::NeonDot | $crate::Isa::NeonI8mm => scalar,
                #[cfg(target_arch = "x86_64")]
                $crate::Isa::Avx2 | $crate::Isa::AvxVnni => avx2,
                #[cfg(target_arch = "x86_64")]
                $crate::Isa::Avx512Vnni => avx512,
                #[cfg(not(target_arch = "x86_64"))]
                $crate::Isa::Avx2 | $crate::Isa::AvxVnni | $crate::Isa::Avx512Vnni => scalar,
            }
        }
    };
}

pub(crate) use versions;

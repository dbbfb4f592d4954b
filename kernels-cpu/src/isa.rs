//! The instruction sets that kernels are written for, and which of them this machine has.

use core::fmt;
use core::str::FromStr;
use std::sync::OnceLock;

use thiserror::Error;

/// An instruction set with kernels of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust, on every machine.
    Scalar,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// x86-64 with AVX2 and AVX-VNNI.
    AvxVnni,
    /// x86-64 with AVX-512 F, BW, DQ, VL and VNNI.
    Avx512Vnni,
    /// AArch64 with the dot product extension.
    NeonDot,
    /// AArch64 with the dot product and the matrix multiplication extensions.
    NeonI8mm,
}

/// A name that is no instruction set.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("unknown instruction set {0:?}, expected {list}", list = Isa::ALL.map(Isa::name).join(", "))]
pub struct UnknownIsa(pub String);

impl Isa {
    /// Every instruction set, worst to best on its architecture.
    pub const ALL: [Isa; 6] = [
        Isa::Scalar,
        Isa::Avx2,
        Isa::AvxVnni,
        Isa::Avx512Vnni,
        Isa::NeonDot,
        Isa::NeonI8mm,
    ];

    /// The name used in flags, metrics and kernel names.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avx-vnni",
            Isa::Avx512Vnni => "avx512-vnni",
            Isa::NeonDot => "neon-dotprod",
            Isa::NeonI8mm => "neon-i8mm",
        }
    }

    /// The instruction sets of this machine, worst to best. Never empty.
    pub fn available() -> Vec<Isa> {
        Isa::ALL
            .into_iter()
            .filter(|isa| isa.is_available())
            .collect()
    }

    /// The best instruction set of this machine.
    pub fn best() -> Isa {
        Isa::ALL
            .into_iter()
            .rev()
            .find(|isa| isa.is_available())
            .unwrap_or(Isa::Scalar)
    }

    /// Whether this machine can execute it. Detected once.
    pub fn is_available(self) -> bool {
        static DETECTED: OnceLock<[bool; 6]> = OnceLock::new();
        let detected = DETECTED.get_or_init(|| Isa::ALL.map(detect));
        match self {
            Isa::Scalar => detected[0],
            Isa::Avx2 => detected[1],
            Isa::AvxVnni => detected[2],
            Isa::Avx512Vnni => detected[3],
            Isa::NeonDot => detected[4],
            Isa::NeonI8mm => detected[5],
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn detect(isa: Isa) -> bool {
    let avx2 = || is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    match isa {
        Isa::Scalar => true,
        Isa::Avx2 => avx2(),
        Isa::AvxVnni => avx2() && is_x86_feature_detected!("avxvnni"),
        Isa::Avx512Vnni => {
            avx2()
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni")
        }
        Isa::NeonDot | Isa::NeonI8mm => false,
    }
}

#[cfg(target_arch = "aarch64")]
fn detect(isa: Isa) -> bool {
    match isa {
        Isa::Scalar => true,
        Isa::Avx2 | Isa::AvxVnni | Isa::Avx512Vnni => false,
        Isa::NeonDot => std::arch::is_aarch64_feature_detected!("dotprod"),
        Isa::NeonI8mm => {
            std::arch::is_aarch64_feature_detected!("dotprod")
                && std::arch::is_aarch64_feature_detected!("i8mm")
        }
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn detect(isa: Isa) -> bool {
    isa == Isa::Scalar
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Isa {
    type Err = UnknownIsa;

    fn from_str(name: &str) -> Result<Self, UnknownIsa> {
        Isa::ALL
            .into_iter()
            .find(|isa| isa.name() == name)
            .ok_or_else(|| UnknownIsa(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back() {
        for isa in Isa::ALL {
            assert_eq!(isa.name().parse(), Ok(isa));
        }
        assert_eq!("sse2".parse::<Isa>(), Err(UnknownIsa("sse2".to_owned())));
    }

    #[test]
    fn scalar_is_always_there_and_best_is_available() {
        assert_eq!(Isa::available().first(), Some(&Isa::Scalar));
        assert_eq!(Isa::available().last(), Some(&Isa::best()));
    }
}

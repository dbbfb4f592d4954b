//! What a precision costs, where it can be computed: bit operations, bytes, and an estimate of the energy.
//! (What it costs in time is measured.)

use requant_numerics::{ActivationPrecision, LayerPrecision, WeightPrecision};

/// Bits at which weights enter a product. Ternary weights are stored in 2 bits; a codebook's centroids
/// have 8.
pub const fn weight_bits(precision: WeightPrecision) -> u32 {
    match precision {
        WeightPrecision::W8 | WeightPrecision::Codebook => 8,
        WeightPrecision::W4 => 4,
        WeightPrecision::W2 | WeightPrecision::Ternary => 2,
        WeightPrecision::Binary => 1,
    }
}

/// Bits of an activation.
pub const fn activation_bits(precision: ActivationPrecision) -> u32 {
    match precision {
        ActivationPrecision::A8 => 8,
        ActivationPrecision::A4 => 4,
        ActivationPrecision::Ternary => 2,
        ActivationPrecision::Binary => 1,
    }
}

/// Bit operations of a layer: `MACs·bits(weights)·bits(activations)` (HAWQ-V3, section 3.3).
pub const fn bops(macs: u64, precision: LayerPrecision) -> u64 {
    let bits = weight_bits(precision.weights) * activation_bits(precision.activations);
    macs.saturating_mul(bits as u64)
}

/// Bytes of weights packed at so many bits, without scales and biases.
pub const fn packed_bytes(parameters: u64, bits: u32) -> u64 {
    parameters.saturating_mul(bits as u64).div_ceil(8)
}

/// Energy of an inference, estimated from operation counts.
///
/// The figures are those of a 45 nm process at 0.9 V in Horowitz, "Computing's energy problem", ISSCC 2014,
/// figure 1.1.9: they are meant for comparing models, not for any particular device.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Energy {
    /// Joules in multipliers and adders.
    pub compute: f64,
    /// Joules to read each weight once from DRAM.
    pub memory: f64,
}

impl Energy {
    /// 8-bit integer multiplication, pJ.
    pub const MULTIPLY_8: f64 = 0.2;
    /// 32-bit integer addition, pJ.
    pub const ADD_32: f64 = 0.1;
    /// 32-bit float multiplication, pJ.
    pub const FLOAT_MULTIPLY: f64 = 3.7;
    /// 32-bit float addition, pJ.
    pub const FLOAT_ADD: f64 = 0.9;
    /// A byte from DRAM, pJ: the lower end, 1.3 nJ for 64 bits.
    pub const DRAM_BYTE: f64 = 1300.0 / 8.0;

    /// A layer in integers. An array multiplier has a cell for each pair of bits: its energy goes as the product
    /// of the widths. Sums are 32 bits wide.
    pub fn integer(macs: u64, precision: LayerPrecision, bytes: u64) -> Self {
        let cells = weight_bits(precision.weights) * activation_bits(precision.activations);
        let multiply = Self::MULTIPLY_8 * f64::from(cells) / 64.0;
        Self {
            compute: macs as f64 * (multiply + Self::ADD_32) * 1e-12,
            memory: bytes as f64 * Self::DRAM_BYTE * 1e-12,
        }
    }

    /// The same layer in 32-bit floats.
    pub fn float(macs: u64, parameters: u64) -> Self {
        Self {
            compute: macs as f64 * (Self::FLOAT_MULTIPLY + Self::FLOAT_ADD) * 1e-12,
            memory: parameters as f64 * 4.0 * Self::DRAM_BYTE * 1e-12,
        }
    }

    /// Joules in all.
    pub fn total(&self) -> f64 {
        self.compute + self.memory
    }

    /// The sum.
    #[must_use]
    pub fn plus(&self, other: &Energy) -> Energy {
        Energy {
            compute: self.compute + other.compute,
            memory: self.memory + other.memory,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bit_operations_of_resnet50() {
        // HAWQ's table: 247 G at W8A8 for the 3.86 G MACs of ResNet-50.
        let [w8a8, w4a4] = [("w8a8", 64), ("w4a4", 16)].map(|(label, bits)| {
            let all = LayerPrecision::ALL.into_iter();
            let precision = all.clone().find(|p| p.label() == label).unwrap();
            assert_eq!(bops(10, precision), 10 * bits);
            bops(3_857_973_248, precision)
        });
        assert_eq!(w8a8 / 1_000_000_000, 246);
        assert_eq!(w8a8, 4 * w4a4);
        assert_eq!(packed_bytes(25_502_912, 8), 25_502_912);
        assert_eq!(packed_bytes(3, 4), 2);
    }

    #[test]
    fn fewer_bits_never_cost_more_energy() {
        let (macs, parameters) = (1_000_000, 5_000);
        let energy = |precision: LayerPrecision| {
            let bytes = packed_bytes(parameters, weight_bits(precision.weights));
            Energy::integer(macs, precision, bytes).total()
        };
        for a in LayerPrecision::ALL {
            assert!(energy(a) < Energy::float(macs, parameters).total());
            for b in LayerPrecision::ALL {
                let fewer = weight_bits(a.weights) <= weight_bits(b.weights)
                    && activation_bits(a.activations) <= activation_bits(b.activations);
                assert!(!fewer || energy(a) <= energy(b), "{a} {b}");
            }
        }
        // 0.2 + 0.1 pJ a MAC and 162.5 pJ a byte.
        let w8a8 = Energy::integer(macs, LayerPrecision::ALL[0], parameters);
        assert!((w8a8.compute - 0.3e-6).abs() < 1e-18);
        assert!((w8a8.memory - 0.8125e-6).abs() < 1e-18);
    }
}

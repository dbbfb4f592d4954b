//! What a model costs before any clock is read: bit operations and an estimate of energy.
//!
//! Energies of operations are those of M. Horowitz, "Computing's energy problem (and what we can do
//! about it)", ISSCC 2014, for 45 nm and 0.9 V: int8 multiply 0.2 pJ, int32 add 0.1 pJ, fp32 multiply
//! 3.7 pJ, fp32 add 0.9 pJ. A multiplier's energy goes with the product of its operands' widths. Memory
//! is left out, so the figure compares models; it is no measurement of a device.

use requant_numerics::{ActivationPrecision, LayerPrecision, WeightPrecision};

const INT8_MULTIPLY: f64 = 0.2e-12;
const INT32_ADD: f64 = 0.1e-12;
const FP32_MULTIPLY: f64 = 3.7e-12;
const FP32_ADD: f64 = 0.9e-12;

/// Bits that a multiplication by weights of this precision works on; a codebook's weights are
/// decoded to 8 bits first.
pub const fn weight_bits(weights: WeightPrecision) -> u32 {
    match weights {
        WeightPrecision::W8 | WeightPrecision::Codebook => 8,
        WeightPrecision::W4 => 4,
        WeightPrecision::W2 | WeightPrecision::Ternary => 2,
        WeightPrecision::Binary => 1,
    }
}

/// Bits of activations of this precision.
pub const fn activation_bits(activations: ActivationPrecision) -> u32 {
    match activations {
        ActivationPrecision::A8 => 8,
        ActivationPrecision::A4 => 4,
        ActivationPrecision::Ternary => 2,
        ActivationPrecision::Binary => 1,
    }
}

/// Bit operations: multiply-accumulates times the bits of both operands, as HAWQ-V3 counts them.
pub const fn bops(macs: u64, precision: LayerPrecision) -> u64 {
    let bits = weight_bits(precision.weights) * activation_bits(precision.activations);
    macs.saturating_mul(bits as u64)
}

/// Joules of `macs` multiply-accumulates in integers.
pub fn energy(macs: u64, precision: LayerPrecision) -> f64 {
    bops(macs, precision) as f64 * (INT8_MULTIPLY / 64.0) + macs as f64 * INT32_ADD
}

/// Joules of as many in 32-bit floating point.
pub fn float_energy(macs: u64) -> f64 {
    macs as f64 * (FP32_MULTIPLY + FP32_ADD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn energy_rises_with_bit_operations() {
        let mut costs: Vec<(u64, f64)> = LayerPrecision::ALL
            .into_iter()
            .map(|precision| (bops(1000, precision), energy(1000, precision)))
            .collect();
        costs.sort_by(|a, b| a.partial_cmp(b).unwrap());
        assert!(costs.is_sorted_by(|a, b| (a.0 == b.0) == (a.1 == b.1) && a.1 <= b.1));
        let w8a8 = LayerPrecision::ALL[0];
        assert_eq!(bops(1000, w8a8), 64_000);
        assert!((energy(1000, w8a8) - 0.3e-9).abs() < 1e-15);
        assert!((float_energy(1000) - 4.6e-9).abs() < 1e-15);
    }
}

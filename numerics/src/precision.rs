//! Precision labels: of one layer (`w4a8`), and of a whole model (`int8`, `mixed`).

use core::fmt;

use serde::{Deserialize, Serialize};

use crate::DType;

/// Width of a layer's weights and of its activations, as shown in metrics and reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum LayerPrecision {
    /// 8-bit weights, 8-bit activations.
    W8A8,
    /// 4-bit weights, 8-bit activations.
    W4A8,
    /// 2-bit weights, 8-bit activations.
    W2A8,
    /// 8-bit weights, 4-bit activations.
    W8A4,
    /// 4-bit weights, 4-bit activations.
    W4A4,
    /// 2-bit weights, 4-bit activations.
    W2A4,
}

impl LayerPrecision {
    /// Every layer precision.
    pub const ALL: [LayerPrecision; 6] = [
        LayerPrecision::W8A8,
        LayerPrecision::W4A8,
        LayerPrecision::W2A8,
        LayerPrecision::W8A4,
        LayerPrecision::W4A4,
        LayerPrecision::W2A4,
    ];

    /// The precision of a layer with these element types, or `None` when it has no name (types wider
    /// than 8 bits). 2-bit activations count as 4-bit ones.
    pub const fn of(weights: DType, activations: DType) -> Option<Self> {
        let narrow = match activations.bits() {
            0..=4 => true,
            5..=8 => false,
            _ => return None,
        };
        match (weights.bits(), narrow) {
            (2, false) => Some(LayerPrecision::W2A8),
            (4, false) => Some(LayerPrecision::W4A8),
            (8, false) => Some(LayerPrecision::W8A8),
            (2, true) => Some(LayerPrecision::W2A4),
            (4, true) => Some(LayerPrecision::W4A4),
            (8, true) => Some(LayerPrecision::W8A4),
            (_, _) => None,
        }
    }

    /// Width of the weights in bits.
    pub const fn weight_bits(self) -> u32 {
        match self {
            LayerPrecision::W8A8 | LayerPrecision::W8A4 => 8,
            LayerPrecision::W4A8 | LayerPrecision::W4A4 => 4,
            LayerPrecision::W2A8 | LayerPrecision::W2A4 => 2,
        }
    }

    /// The label: `w8a8`, `w4a8`, …
    pub const fn label(self) -> &'static str {
        match self {
            LayerPrecision::W8A8 => "w8a8",
            LayerPrecision::W4A8 => "w4a8",
            LayerPrecision::W2A8 => "w2a8",
            LayerPrecision::W8A4 => "w8a4",
            LayerPrecision::W4A4 => "w4a4",
            LayerPrecision::W2A4 => "w2a4",
        }
    }
}

impl fmt::Display for LayerPrecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.label())
    }
}

/// The precision label of a whole model, from the weight widths of its layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelPrecision {
    /// Every layer with weights has 8-bit weights, or no layer has any.
    Int8,
    /// Every layer with weights has 4-bit weights.
    Int4,
    /// Every layer with weights has 2-bit weights.
    Int2,
    /// Layers differ.
    Mixed,
}

impl ModelPrecision {
    /// The label of a model made of these layers.
    pub fn of(layers: impl IntoIterator<Item = LayerPrecision>) -> Self {
        let mut widths = layers.into_iter().map(LayerPrecision::weight_bits);
        let first = widths.next().unwrap_or(8);
        if widths.any(|bits| bits != first) {
            return ModelPrecision::Mixed;
        }
        match first {
            2 => ModelPrecision::Int2,
            4 => ModelPrecision::Int4,
            _ => ModelPrecision::Int8,
        }
    }

    /// The label: `int8`, `int4`, `int2` or `mixed`.
    pub const fn label(self) -> &'static str {
        match self {
            ModelPrecision::Int8 => "int8",
            ModelPrecision::Int4 => "int4",
            ModelPrecision::Int2 => "int2",
            ModelPrecision::Mixed => "mixed",
        }
    }
}

impl fmt::Display for ModelPrecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.label())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels() {
        assert_eq!(
            LayerPrecision::of(DType::I4, DType::U8),
            Some(LayerPrecision::W4A8)
        );
        assert_eq!(
            LayerPrecision::of(DType::U8, DType::U4),
            Some(LayerPrecision::W8A4)
        );
        assert_eq!(LayerPrecision::of(DType::I16, DType::U8), None);
        assert_eq!(LayerPrecision::of(DType::I8, DType::F32), None);
        let model = |layers: &[LayerPrecision]| ModelPrecision::of(layers.iter().copied()).label();
        assert_eq!(model(&[]), "int8");
        assert_eq!(model(&[LayerPrecision::W4A8, LayerPrecision::W4A4]), "int4");
        assert_eq!(
            model(&[LayerPrecision::W4A8, LayerPrecision::W8A8]),
            "mixed"
        );
        assert_eq!(model(&[LayerPrecision::W2A8]), "int2");
    }
}

//! Precision labels: of one layer (`w4a8`), and of a whole model (`int8`, `mixed`).

use core::fmt;

use serde::{Deserialize, Serialize};

use crate::DType;

/// How a layer's weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum WeightPrecision {
    /// 8 bits.
    W8,
    /// 4 bits.
    W4,
    /// 2 bits.
    W2,
    /// -1, 0 and 1.
    Ternary,
    /// -1 and 1.
    Binary,
    /// Indices of centroids.
    Codebook,
}

/// How a layer's activations are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ActivationPrecision {
    /// 5 to 8 bits.
    A8,
    /// 2 to 4 bits.
    A4,
    /// -1, 0 and 1.
    Ternary,
    /// -1 and 1.
    Binary,
}

/// Width of a layer's weights and of its activations, as shown in metrics and reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LayerPrecision {
    /// The activations.
    pub activations: ActivationPrecision,
    /// The weights.
    pub weights: WeightPrecision,
}

impl WeightPrecision {
    const ALL: [Self; 6] = [
        WeightPrecision::W8,
        WeightPrecision::W4,
        WeightPrecision::W2,
        WeightPrecision::Ternary,
        WeightPrecision::Binary,
        WeightPrecision::Codebook,
    ];

    /// The precision of weights of a type, or `None` for types wider than 8 bits.
    pub const fn of(dtype: DType) -> Option<Self> {
        match dtype {
            DType::Binary => Some(WeightPrecision::Binary),
            DType::Ternary => Some(WeightPrecision::Ternary),
            DType::I2 | DType::U2 => Some(WeightPrecision::W2),
            DType::I4 | DType::U4 => Some(WeightPrecision::W4),
            DType::I8 | DType::U8 => Some(WeightPrecision::W8),
            DType::I16 | DType::I32 | DType::I64 | DType::F32 | DType::F64 => None,
        }
    }
}

impl ActivationPrecision {
    const ALL: [Self; 4] = [
        ActivationPrecision::A8,
        ActivationPrecision::A4,
        ActivationPrecision::Ternary,
        ActivationPrecision::Binary,
    ];

    /// The precision of activations of a type, or `None` for types wider than 8 bits. 2-bit
    /// activations count as 4-bit ones.
    pub const fn of(dtype: DType) -> Option<Self> {
        match dtype {
            DType::Binary => Some(ActivationPrecision::Binary),
            DType::Ternary => Some(ActivationPrecision::Ternary),
            DType::I2 | DType::U2 | DType::I4 | DType::U4 => Some(ActivationPrecision::A4),
            DType::I8 | DType::U8 => Some(ActivationPrecision::A8),
            DType::I16 | DType::I32 | DType::I64 | DType::F32 | DType::F64 => None,
        }
    }
}

impl LayerPrecision {
    /// Number of layer precisions.
    const COUNT: usize = WeightPrecision::ALL.len() * ActivationPrecision::ALL.len();

    /// Every layer precision, 8-bit activations first.
    pub const ALL: [LayerPrecision; Self::COUNT] = {
        let first = LayerPrecision {
            activations: ActivationPrecision::A8,
            weights: WeightPrecision::W8,
        };
        let mut all = [first; Self::COUNT];
        let mut index = 0;
        while index < Self::COUNT {
            all[index] = LayerPrecision {
                activations: ActivationPrecision::ALL[index / WeightPrecision::ALL.len()],
                weights: WeightPrecision::ALL[index % WeightPrecision::ALL.len()],
            };
            index += 1;
        }
        all
    };

    /// The precision of a layer with these element types, or `None` when it has no name (types wider
    /// than 8 bits). Codebooks have no type of their own: see [`WeightPrecision::Codebook`].
    pub const fn of(weights: DType, activations: DType) -> Option<Self> {
        match (
            WeightPrecision::of(weights),
            ActivationPrecision::of(activations),
        ) {
            (Some(weights), Some(activations)) => Some(LayerPrecision {
                activations,
                weights,
            }),
            (_, _) => None,
        }
    }

    /// The label: `w8a8`, `w4a8`, …; `t` stands for ternary, `c` for a codebook.
    pub const fn label(self) -> &'static str {
        use ActivationPrecision as A;
        use WeightPrecision as W;
        match (self.weights, self.activations) {
            (W::W8, A::A8) => "w8a8",
            (W::W4, A::A8) => "w4a8",
            (W::W2, A::A8) => "w2a8",
            (W::Ternary, A::A8) => "wta8",
            (W::Binary, A::A8) => "w1a8",
            (W::Codebook, A::A8) => "wca8",
            (W::W8, A::A4) => "w8a4",
            (W::W4, A::A4) => "w4a4",
            (W::W2, A::A4) => "w2a4",
            (W::Ternary, A::A4) => "wta4",
            (W::Binary, A::A4) => "w1a4",
            (W::Codebook, A::A4) => "wca4",
            (W::W8, A::Ternary) => "w8at",
            (W::W4, A::Ternary) => "w4at",
            (W::W2, A::Ternary) => "w2at",
            (W::Ternary, A::Ternary) => "wtat",
            (W::Binary, A::Ternary) => "w1at",
            (W::Codebook, A::Ternary) => "wcat",
            (W::W8, A::Binary) => "w8a1",
            (W::W4, A::Binary) => "w4a1",
            (W::W2, A::Binary) => "w2a1",
            (W::Ternary, A::Binary) => "wta1",
            (W::Binary, A::Binary) => "w1a1",
            (W::Codebook, A::Binary) => "wca1",
        }
    }
}

impl fmt::Display for LayerPrecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.label())
    }
}

/// The precision label of a whole model, from the weights of its layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelPrecision {
    /// Every layer with weights has 8-bit weights, or no layer has any.
    Int8,
    /// Every layer with weights has 4-bit weights.
    Int4,
    /// Every layer with weights has 2-bit weights.
    Int2,
    /// Every layer with weights has ternary weights.
    Ternary,
    /// Every layer with weights has binary weights.
    Binary,
    /// Every layer with weights has a codebook.
    Codebook,
    /// Layers differ.
    Mixed,
}

impl ModelPrecision {
    /// The label of a model made of these layers.
    pub fn of(layers: impl IntoIterator<Item = LayerPrecision>) -> Self {
        let mut weights = layers.into_iter().map(|layer| layer.weights);
        let first = weights.next().unwrap_or(WeightPrecision::W8);
        if weights.any(|other| other != first) {
            return ModelPrecision::Mixed;
        }
        match first {
            WeightPrecision::W8 => ModelPrecision::Int8,
            WeightPrecision::W4 => ModelPrecision::Int4,
            WeightPrecision::W2 => ModelPrecision::Int2,
            WeightPrecision::Ternary => ModelPrecision::Ternary,
            WeightPrecision::Binary => ModelPrecision::Binary,
            WeightPrecision::Codebook => ModelPrecision::Codebook,
        }
    }

    /// The label: `int8`, `int4`, `int2`, `ternary`, `binary`, `codebook` or `mixed`.
    pub const fn label(self) -> &'static str {
        match self {
            ModelPrecision::Int8 => "int8",
            ModelPrecision::Int4 => "int4",
            ModelPrecision::Int2 => "int2",
            ModelPrecision::Ternary => "ternary",
            ModelPrecision::Binary => "binary",
            ModelPrecision::Codebook => "codebook",
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
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn labels() {
        let label = |weights, activations| {
            LayerPrecision::of(weights, activations).map(LayerPrecision::label)
        };
        assert_eq!(label(DType::I4, DType::U8), Some("w4a8"));
        assert_eq!(label(DType::U8, DType::U4), Some("w8a4"));
        assert_eq!(label(DType::Binary, DType::Binary), Some("w1a1"));
        assert_eq!(label(DType::Binary, DType::Ternary), Some("w1at"));
        assert_eq!(label(DType::Ternary, DType::I8), Some("wta8"));
        assert_eq!(label(DType::I16, DType::U8), None);
        assert_eq!(label(DType::I8, DType::F32), None);
        let labels: HashSet<_> = LayerPrecision::ALL.map(LayerPrecision::label).into();
        assert_eq!(labels.len(), LayerPrecision::ALL.len());
        let model = |layers: &[(DType, DType)]| {
            ModelPrecision::of(layers.iter().filter_map(|l| LayerPrecision::of(l.0, l.1))).label()
        };
        assert_eq!(model(&[]), "int8");
        assert_eq!(
            model(&[(DType::I4, DType::U8), (DType::I4, DType::U4)]),
            "int4"
        );
        assert_eq!(
            model(&[(DType::I4, DType::U8), (DType::I8, DType::U8)]),
            "mixed"
        );
        assert_eq!(model(&[(DType::U2, DType::U8)]), "int2");
        assert_eq!(
            model(&[(DType::Binary, DType::U8), (DType::Binary, DType::Binary)]),
            "binary"
        );
    }
}

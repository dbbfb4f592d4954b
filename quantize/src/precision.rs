//! Precisions as the command line names them, and which of them each layer may choose from.

use std::fmt;
use std::str::FromStr;

use requant_numerics::{ActivationPrecision, LayerPrecision, WeightPrecision};
use thiserror::Error;

/// A word that names no precision.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PrecisionError {
    /// Of weights.
    #[error("'{0}' is none of int8, int4, int2, ternary, binary, codebook and auto")]
    Weights(String),
    /// Of activations.
    #[error("'{0}' is none of int8, int4 and auto")]
    Activations(String),
    /// Of a layer.
    #[error("'{0}' is no precision of a layer, such as w8a8, w4a8, w4a4, w2a8, wta8, w1a8 or wca8")]
    Layer(String),
    /// Not `LAYER=PRECISION`.
    #[error("'{0}' is not LAYER=PRECISION")]
    Fix(String),
    /// Not `LAYER,LAYER`.
    #[error("'{0}' does not name two layers, as in conv1,conv2")]
    Tie(String),
}

/// What the weights of the layers may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Weights {
    /// Chosen a layer, where there is a budget; 8 bits otherwise.
    #[default]
    Auto,
    /// The same everywhere but in the first and the last layer, which keep 8 bits.
    All(WeightPrecision),
}

/// What the activations that layers read may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activations {
    /// Chosen a layer, where there is a budget; 8 bits otherwise.
    Auto,
    /// 8 bits.
    #[default]
    Eight,
    /// 4 bits everywhere but in the first and the last layer, which keep 8.
    Four,
}

/// A layer's precision as the user has fixed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fix {
    /// The layer's name.
    pub layer: String,
    /// Its precision.
    pub precision: LayerPrecision,
}

/// Layers that have one precision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tie {
    /// Their names, two at least.
    pub layers: Vec<String>,
}

impl FromStr for Tie {
    type Err = PrecisionError;

    fn from_str(word: &str) -> Result<Self, PrecisionError> {
        let layers: Vec<String> = word.split(',').map(str::to_owned).collect();
        let repeated = |(index, layer): (usize, &String)| layers[..index].contains(layer);
        if layers.len() < 2
            || layers.iter().any(String::is_empty)
            || layers.iter().enumerate().any(repeated)
        {
            return Err(PrecisionError::Tie(word.to_owned()));
        }
        Ok(Tie { layers })
    }
}

impl fmt::Display for Tie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.layers.join(","))
    }
}

impl FromStr for Weights {
    type Err = PrecisionError;

    fn from_str(word: &str) -> Result<Self, PrecisionError> {
        Ok(Weights::All(match word {
            "auto" => return Ok(Weights::Auto),
            "int8" => WeightPrecision::W8,
            "int4" => WeightPrecision::W4,
            "int2" => WeightPrecision::W2,
            "ternary" => WeightPrecision::Ternary,
            "binary" => WeightPrecision::Binary,
            "codebook" => WeightPrecision::Codebook,
            _ => return Err(PrecisionError::Weights(word.to_owned())),
        }))
    }
}

impl FromStr for Activations {
    type Err = PrecisionError;

    fn from_str(word: &str) -> Result<Self, PrecisionError> {
        match word {
            "auto" => Ok(Activations::Auto),
            "int8" => Ok(Activations::Eight),
            "int4" => Ok(Activations::Four),
            _ => Err(PrecisionError::Activations(word.to_owned())),
        }
    }
}

impl fmt::Display for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Weights::Auto => "auto",
            Weights::All(WeightPrecision::W8) => "int8",
            Weights::All(WeightPrecision::W4) => "int4",
            Weights::All(WeightPrecision::W2) => "int2",
            Weights::All(WeightPrecision::Ternary) => "ternary",
            Weights::All(WeightPrecision::Binary) => "binary",
            Weights::All(WeightPrecision::Codebook) => "codebook",
        })
    }
}

impl fmt::Display for Activations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Activations::Auto => "auto",
            Activations::Eight => "int8",
            Activations::Four => "int4",
        })
    }
}

impl fmt::Display for Fix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.layer, self.precision.label())
    }
}

impl FromStr for Fix {
    type Err = PrecisionError;

    /// `LAYER=PRECISION`; a layer's name may hold `=`, a precision does not.
    fn from_str(word: &str) -> Result<Self, PrecisionError> {
        let parts = word.rsplit_once('=').filter(|(layer, _)| !layer.is_empty());
        let (layer, label) = parts.ok_or_else(|| PrecisionError::Fix(word.to_owned()))?;
        let precision = parse_layer(label)?;
        Ok(Fix {
            layer: layer.to_owned(),
            precision,
        })
    }
}

/// A layer precision by its label; `int8` and `int4` stand for `w8a8` and `w4a8`.
fn parse_layer(label: &str) -> Result<LayerPrecision, PrecisionError> {
    let label = match label {
        "int8" => "w8a8",
        "int4" => "w4a8",
        other => other,
    };
    let is_made = |precision: &LayerPrecision| {
        matches!(
            precision.activations,
            ActivationPrecision::A8 | ActivationPrecision::A4
        )
    };
    let mut all = LayerPrecision::ALL.into_iter().filter(is_made);
    all.find(|precision| precision.label() == label)
        .ok_or_else(|| PrecisionError::Layer(label.to_owned()))
}

/// 8-bit weights and activations: what every budget is a fraction of.
pub const REFERENCE: LayerPrecision = LayerPrecision {
    weights: WeightPrecision::W8,
    activations: ActivationPrecision::A8,
};

/// The precisions among which a search chooses for a layer, the reference first. 4-bit activations go with
/// weights of 4 bits: no kernel gains from them beside wider weights.
pub fn choices(weights: Weights, activations: Activations) -> Vec<LayerPrecision> {
    use WeightPrecision as W;
    let weights = match weights {
        Weights::Auto => vec![W::W8, W::W4, W::W2, W::Ternary, W::Binary, W::Codebook],
        Weights::All(W::W8) => vec![W::W8],
        Weights::All(narrow) => vec![W::W8, narrow],
    };
    let mut all = Vec::new();
    for weights in weights {
        all.push(LayerPrecision {
            weights,
            activations: ActivationPrecision::A8,
        });
        if weights == W::W4 && activations != Activations::Eight {
            all.push(LayerPrecision {
                weights,
                activations: ActivationPrecision::A4,
            });
        }
    }
    all
}

/// The one precision that `--weights` and `--activations` ask for without a search.
pub fn uniform(weights: Weights, activations: Activations) -> LayerPrecision {
    LayerPrecision {
        weights: match weights {
            Weights::Auto => WeightPrecision::W8,
            Weights::All(weights) => weights,
        },
        activations: match activations {
            Activations::Auto | Activations::Eight => ActivationPrecision::A8,
            Activations::Four => ActivationPrecision::A4,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_name_precisions() {
        let fix: Fix = "block=1/conv=w4a4".parse().unwrap();
        assert_eq!(fix.layer, "block=1/conv");
        assert_eq!(fix.precision.label(), "w4a4");
        let fix: Fix = "fc=int4".parse().unwrap();
        assert_eq!(fix.precision.label(), "w4a8");
        assert_eq!(fix.to_string(), "fc=w4a8");
        for word in [
            "auto", "int8", "int4", "int2", "ternary", "binary", "codebook",
        ] {
            assert_eq!(word.parse::<Weights>().unwrap().to_string(), word);
        }
        for word in ["auto", "int8", "int4"] {
            assert_eq!(word.parse::<Activations>().unwrap().to_string(), word);
        }
        for wrong in ["conv", "=w8a8", "conv=w3a8", "conv=w8a1"] {
            assert!(wrong.parse::<Fix>().is_err(), "{wrong}");
        }
        assert!("int3".parse::<Weights>().is_err());
        let tie: Tie = "a/conv,b,c".parse().unwrap();
        assert_eq!(tie.layers, ["a/conv", "b", "c"]);
        assert_eq!(tie.to_string(), "a/conv,b,c");
        for wrong in ["a", "", "a,", ",b", "a,,b"] {
            assert!(wrong.parse::<Tie>().is_err(), "{wrong}");
        }
        assert!("ternary".parse::<Activations>().is_err());
    }

    #[test]
    fn choices_hold_what_was_asked_for() {
        let labels = |weights: &str, activations: &str| -> Vec<&str> {
            let all = choices(weights.parse().unwrap(), activations.parse().unwrap());
            all.iter().map(|p| p.label()).collect()
        };
        assert_eq!(labels("int4", "int8"), ["w8a8", "w4a8"]);
        assert_eq!(labels("int4", "auto"), ["w8a8", "w4a8", "w4a4"]);
        assert_eq!(
            labels("auto", "int8"),
            ["w8a8", "w4a8", "w2a8", "wta8", "w1a8", "wca8"]
        );
    }
}

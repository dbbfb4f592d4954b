//! The choice of a precision for every layer as plain data: what each choice costs and how much it hurts.
//! Whoever knows graphs, kernels and profiles fills it in; the strategies see nothing else.

use requant_numerics::LayerPrecision;

use super::budget::Metric;
use super::error::Error;

/// Layers, their choices, and which layers must agree.
#[derive(Clone, Debug, Default)]
pub struct Problem {
    /// In the order in which they are computed.
    pub layers: Vec<Layer>,
    /// Sets of layers (indices) that must have the same precision, such as the two branches of a residual
    /// sum. Sets that share a layer are one set.
    pub ties: Vec<Vec<usize>>,
    /// What the model costs besides these layers: pooling, sums, tables. Latency 0 where nothing was measured.
    pub rest: Cost,
}

/// A layer and its choices.
#[derive(Clone, Debug)]
pub struct Layer {
    /// For messages.
    pub name: String,
    /// At least one, each precision at most once.
    pub choices: Vec<Choice>,
    /// The choice that counts as 8 bits, of which budgets are fractions.
    pub reference: usize,
    /// The only choice allowed, where the user or a rule (first and last layer) has made it.
    pub fixed: Option<usize>,
    /// What the reinforcement learner sees of the layer.
    pub shape: LayerShape,
}

/// One precision of one layer.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    /// Of weights and activations.
    pub precision: LayerPrecision,
    /// What the layer costs at it.
    pub cost: Cost,
    /// How much the model's output suffers when this layer alone has this precision; ≥ 0 but for noise.
    /// A solution's sensitivity is the sum over the layers (see [`super::sensitivity`]).
    pub sensitivity: f64,
}

/// What a layer or a model costs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Bytes in the artefact.
    pub bytes: u64,
    /// Bit operations of one sample.
    pub bops: u64,
    /// Seconds, measured; none without a profile.
    pub latency: Option<f64>,
}

/// A layer's dimensions, as the state of HAQ's agent has them (Wang et al., CVPR 2019, section 3.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerShape {
    /// One input channel a group.
    pub depthwise: bool,
    /// Input channels, or features.
    pub inputs: u64,
    /// Output channels, or features.
    pub outputs: u64,
    /// Of the first spatial axis; 1 for a matrix product.
    pub stride: u64,
    /// Extent of the kernel along the first spatial axis; 1 for a matrix product.
    pub kernel: u64,
    /// Weights.
    pub parameters: u64,
    /// Elements of the layer's input, a sample.
    pub pixels: u64,
}

/// A choice for each layer, with its totals.
#[derive(Clone, Debug, PartialEq)]
pub struct Solution {
    /// Index into each layer's choices.
    pub choices: Vec<usize>,
    /// `Σ sensitivity`, in the order of the layers.
    pub sensitivity: f64,
    /// Of the whole model, [`Problem::rest`] included.
    pub cost: Cost,
    /// What the evaluator said, where it was asked.
    pub score: Option<Score>,
}

/// How good an assignment truly is: figures of the integer model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// In [0, 1]: share of right answers on labelled data, or of answers equal to the float model's.
    pub accuracy: f64,
    /// Lower is better: decides between equal accuracies, and guides the reinforcement learner.
    pub loss: f64,
}

impl Cost {
    /// One figure, in bytes, operations or seconds.
    pub fn of(&self, metric: Metric) -> Option<f64> {
        match metric {
            Metric::Size => Some(self.bytes as f64),
            Metric::Bops => Some(self.bops as f64),
            Metric::Latency => self.latency,
        }
    }

    /// The sum; its latency is known where both are. Bytes and operations saturate.
    #[must_use]
    pub fn plus(&self, other: &Cost) -> Cost {
        Cost {
            bytes: self.bytes.saturating_add(other.bytes),
            bops: self.bops.saturating_add(other.bops),
            latency: self.latency.zip(other.latency).map(|(a, b)| a + b),
        }
    }
}

impl Score {
    /// Higher accuracy first, then lower loss.
    pub fn better_first(&self, other: &Score) -> core::cmp::Ordering {
        other
            .accuracy
            .total_cmp(&self.accuracy)
            .then(self.loss.total_cmp(&other.loss))
    }
}

impl Problem {
    /// Checks indices and numbers.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn validate(&self) -> Result<(), Error> {
        for layer in &self.layers {
            layer.validate()?;
        }
        let count = self.layers.len();
        match self.ties.iter().flatten().find(|&&index| index >= count) {
            Some(&index) => Err(Error::NoSuchLayer { index, count }),
            None => Ok(()),
        }
    }

    /// # Errors
    /// The first choice without a latency that a search could pick.
    pub(super) fn needs_latency(&self) -> Result<(), Error> {
        for layer in &self.layers {
            let open = |index: usize| {
                index == layer.reference || layer.fixed.is_none_or(|fixed| fixed == index)
            };
            let unmeasured =
                |(index, choice): &(usize, &Choice)| open(*index) && choice.cost.latency.is_none();
            if let Some((_, choice)) = layer.choices.iter().enumerate().find(unmeasured) {
                return Err(Error::NoLatency {
                    layer: layer.name.clone(),
                    precision: choice.precision,
                });
            }
        }
        Ok(())
    }

    /// What the model costs with every layer at its reference choice.
    pub fn reference(&self) -> Cost {
        let choices = self.layers.iter().map(|layer| layer.reference);
        self.cost(choices)
    }

    fn cost(&self, choices: impl Iterator<Item = usize>) -> Cost {
        let rest = Cost {
            latency: Some(self.rest.latency.unwrap_or(0.0)),
            ..self.rest
        };
        let picked = self.layers.iter().zip(choices);
        picked
            .filter_map(|(layer, index)| layer.choices.get(index))
            .fold(rest, |total, choice| total.plus(&choice.cost))
    }

    /// Adds up an assignment.
    ///
    /// # Errors
    /// [`Error::Assignment`] where it does not fit.
    pub fn solution(&self, choices: Vec<usize>) -> Result<Solution, Error> {
        let layers = self.layers.len();
        let fits = |(layer, &index): (&Layer, &usize)| index < layer.choices.len();
        if choices.len() != layers || !self.layers.iter().zip(&choices).all(fits) {
            return Err(Error::Assignment { layers });
        }
        let picked = self.layers.iter().zip(&choices);
        Ok(Solution {
            sensitivity: picked
                .filter_map(|(layer, &index)| layer.choices.get(index))
                .fold(0.0, |sum, choice| sum + choice.sensitivity),
            cost: self.cost(choices.iter().copied()),
            choices,
            score: None,
        })
    }
}

impl Layer {
    fn validate(&self) -> Result<(), Error> {
        let count = self.choices.len();
        if count == 0 {
            return Err(Error::NoChoice {
                layer: self.name.clone(),
            });
        }
        let named = [Some(self.reference), self.fixed];
        if let Some(index) = named.into_iter().flatten().find(|&index| index >= count) {
            return Err(Error::NoSuchChoice {
                layer: self.name.clone(),
                index,
                count,
            });
        }
        for choice in &self.choices {
            let figure = |what, value| Error::Figure {
                layer: self.name.clone(),
                precision: choice.precision,
                what,
                value,
            };
            if !choice.sensitivity.is_finite() {
                return Err(figure("sensitivity", choice.sensitivity));
            }
            match choice.cost.latency {
                Some(latency) if !(latency.is_finite() && latency >= 0.0) => {
                    return Err(figure("latency", latency));
                }
                Some(_) | None => {}
            }
        }
        Ok(())
    }
}

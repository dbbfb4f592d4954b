//! A small multilayer perceptron with its gradients and Adam: what the agent's actor and critic are made of.
//! Plain loops in f64, sums in the order of the indices, so that a seed means the same numbers everywhere.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// Dense layers with ReLU between them; the last one is linear.
#[derive(Clone, Debug)]
pub(super) struct Mlp {
    layers: Vec<Dense>,
}

/// `y = b + Σ_i x_i·W_i`; parameters are `[inputs, outputs]` followed by `[outputs]`, so that the loops run along
/// independent outputs.
#[derive(Clone, Debug)]
struct Dense {
    inputs: usize,
    outputs: usize,
    parameters: Vec<f64>,
}

/// Gradients of all parameters, layer by layer.
pub(super) type Gradients = Vec<Vec<f64>>;

impl Mlp {
    /// Uniform within `±1/sqrt(inputs)`; the last layer within ±0.003, so that first outputs are near 0
    /// (Lillicrap et al., section 7).
    pub(super) fn new(widths: &[usize], random: &mut ChaCha8Rng) -> Self {
        let last = widths.len().saturating_sub(2);
        let layers = widths.windows(2).enumerate().map(|(index, pair)| {
            let (inputs, outputs) = (pair[0], pair[1]);
            let bound = match index == last {
                true => 0.003,
                false => 1.0 / (inputs as f64).sqrt(),
            };
            let count = (inputs + 1) * outputs;
            let parameters = (0..count).map(|_| random.random_range(-bound..bound));
            Dense {
                inputs,
                outputs,
                parameters: parameters.collect(),
            }
        });
        Self {
            layers: layers.collect(),
        }
    }

    /// Gradients of zero.
    pub(super) fn zeros(&self) -> Gradients {
        let sizes = self.layers.iter().map(|layer| layer.parameters.len());
        sizes.map(|size| vec![0.0; size]).collect()
    }

    /// The input and the output of each layer, ReLU applied.
    pub(super) fn forward(&self, input: &[f64]) -> Vec<Vec<f64>> {
        let mut values = vec![input.to_vec()];
        let last = self.layers.len().saturating_sub(1);
        for (index, layer) in self.layers.iter().enumerate() {
            let mut output = layer.apply(&values[index]);
            if index != last {
                output.iter_mut().for_each(|x| *x = x.max(0.0));
            }
            values.push(output);
        }
        values
    }

    /// The first number of the output.
    pub(super) fn scalar(&self, input: &[f64]) -> f64 {
        let values = self.forward(input);
        values
            .last()
            .and_then(|output| output.first())
            .copied()
            .unwrap_or(0.0)
    }

    /// The gradient of the input for a gradient of the output, `values` being those of [`Self::forward`]. The
    /// gradients of the parameters are added to `gradients`, where they are wanted.
    pub(super) fn backward(
        &self,
        values: &[Vec<f64>],
        output: &[f64],
        mut gradients: Option<&mut Gradients>,
    ) -> Vec<f64> {
        let mut downstream = output.to_vec();
        for (index, layer) in self.layers.iter().enumerate().rev() {
            let input = &values[index];
            if let Some(gradients) = gradients.as_deref_mut() {
                let sums = gradients[index].chunks_exact_mut(layer.outputs);
                for (row, &x) in sums.zip(input.iter().chain([&1.0])) {
                    row.iter_mut()
                        .zip(&downstream)
                        .for_each(|(sum, g)| *sum += x * g);
                }
            }
            let rows = layer.parameters.chunks_exact(layer.outputs).zip(input);
            downstream = rows
                .map(|(row, &x)| match index > 0 && x <= 0.0 {
                    // The input of this layer went through ReLU.
                    true => 0.0,
                    false => row
                        .iter()
                        .zip(&downstream)
                        .fold(0.0, |sum, (w, g)| sum + w * g),
                })
                .collect();
        }
        downstream
    }

    /// `θ ← (1 − rate)·θ + rate·other`.
    pub(super) fn follow(&mut self, other: &Mlp, rate: f64) {
        for (layer, other) in self.layers.iter_mut().zip(&other.layers) {
            for (own, other) in layer.parameters.iter_mut().zip(&other.parameters) {
                *own += rate * (other - *own);
            }
        }
    }
}

impl Dense {
    fn apply(&self, input: &[f64]) -> Vec<f64> {
        let (weights, biases) = self.parameters.split_at(self.inputs * self.outputs);
        let mut output = biases.to_vec();
        for (row, &x) in weights.chunks_exact(self.outputs).zip(input) {
            if x != 0.0 {
                output
                    .iter_mut()
                    .zip(row)
                    .for_each(|(sum, w)| *sum += x * w);
            }
        }
        output
    }
}

/// Adam (Kingma and Ba, ICLR 2015) with β = 0.9 and 0.999.
#[derive(Clone, Debug)]
pub(super) struct Adam {
    rate: f64,
    first: Gradients,
    second: Gradients,
    /// Powers of β so far.
    decay: (f64, f64),
}

impl Adam {
    pub(super) fn new(net: &Mlp, rate: f64) -> Self {
        Self {
            rate,
            first: net.zeros(),
            second: net.zeros(),
            decay: (1.0, 1.0),
        }
    }

    /// A step against the gradients.
    pub(super) fn step(&mut self, net: &mut Mlp, gradients: &Gradients) {
        const BETA: (f64, f64) = (0.9, 0.999);
        self.decay = (self.decay.0 * BETA.0, self.decay.1 * BETA.1);
        let moments = self.first.iter_mut().zip(&mut self.second);
        for ((layer, gradients), (first, second)) in
            net.layers.iter_mut().zip(gradients).zip(moments)
        {
            let moments = first.iter_mut().zip(second);
            for ((parameter, g), (m, v)) in layer.parameters.iter_mut().zip(gradients).zip(moments)
            {
                *m = BETA.0 * *m + (1.0 - BETA.0) * g;
                *v = BETA.1 * *v + (1.0 - BETA.1) * g * g;
                let mean = *m / (1.0 - self.decay.0);
                let deviation = (*v / (1.0 - self.decay.1)).sqrt();
                *parameter -= self.rate * mean / (deviation + 1e-8);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn gradients_equal_central_differences() {
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let mut net = Mlp::new(&[3, 5, 4, 2], &mut random);
        for layer in &mut net.layers {
            for parameter in &mut layer.parameters {
                *parameter = random.random_range(-1.0..1.0);
            }
        }
        let input = [0.3, -0.8, 0.5];
        let weigh = |net: &Mlp, input: &[f64]| {
            let values = net.forward(input);
            let output = values.last().unwrap();
            1.5 * output[0] - 0.5 * output[1]
        };
        let values = net.forward(&input);
        let mut gradients = net.zeros();
        let of_input = net.backward(&values, &[1.5, -0.5], Some(&mut gradients));
        let step = 1e-6;
        let agree = |found: f64, above: f64, below: f64| {
            let expected = (above - below) / (2.0 * step);
            assert!((found - expected).abs() < 1e-7, "{found} {expected}");
        };
        for (layer, gradients) in gradients.iter().enumerate() {
            for (index, &gradient) in gradients.iter().enumerate() {
                let shifted = |by: f64| {
                    let mut net = net.clone();
                    net.layers[layer].parameters[index] += by;
                    weigh(&net, &input)
                };
                agree(gradient, shifted(step), shifted(-step));
            }
        }
        for (index, &gradient) in of_input.iter().enumerate() {
            let shifted = |by: f64| {
                let mut input = input;
                input[index] += by;
                weigh(&net, &input)
            };
            agree(gradient, shifted(step), shifted(-step));
        }
        assert!(gradients.iter().flatten().any(|g| g.abs() > 0.1));
    }

    #[test]
    fn adam_fits_a_function() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let mut net = Mlp::new(&[1, 16, 1], &mut random);
        let mut adam = Adam::new(&net, 1e-2);
        let points: Vec<f64> = (0..16).map(|i| f64::from(i) / 8.0 - 1.0).collect();
        let loss = |net: &Mlp| {
            let errors = points.iter().map(|&x| net.scalar(&[x]) - x.abs());
            errors.map(|e| e * e).sum::<f64>() / 16.0
        };
        let before = loss(&net);
        for _ in 0..500 {
            let mut gradients = net.zeros();
            for &x in &points {
                let values = net.forward(&[x]);
                let error = values.last().unwrap()[0] - x.abs();
                net.backward(&values, &[2.0 * error / 16.0], Some(&mut gradients));
            }
            adam.step(&mut net, &gradients);
        }
        assert!(before > 0.1 && loss(&net) < 1e-3, "{before} {}", loss(&net));
    }
}

//! How far a quantized model's answers are from the float model's, and how often both are right.

use std::ops::Range;

use requant_import::float::{Graph, Op};

/// What the outputs of a model mean, which decides how answers are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// One real a class: the largest is the answer.
    Logits {
        /// Number of classes.
        classes: usize,
    },
    /// One probability a class.
    Probabilities {
        /// Number of classes.
        classes: usize,
    },
    /// Anything else, several outputs too: compared as reals.
    Reals,
}

impl Answer {
    /// What the outputs of a graph mean: classes where there is one, and a sample has one vector of at least
    /// two.
    pub fn of(graph: &Graph) -> Self {
        let Some(port) = graph.outputs.first() else {
            return Answer::Reals;
        };
        let value = graph.value(port.value);
        let classes = value.elements();
        let is_vector = value.dims.iter().filter(|&&extent| extent != 1).count() == 1;
        if !is_vector || graph.outputs.len() != 1 || is_input_shape(graph, classes) {
            return Answer::Reals;
        }
        let mut made = port.value;
        while let Some(node) = graph.nodes.iter().find(|node| node.output == made) {
            if matches!(node.op, Op::Softmax { log: false, .. }) {
                return Answer::Probabilities { classes };
            }
            if !matches!(node.op, Op::Reshape | Op::Transpose(_)) {
                break;
            }
            made = node.inputs[0];
        }
        Answer::Logits { classes }
    }

    /// Number of classes, where the output has classes.
    pub fn classes(self) -> Option<usize> {
        match self {
            Answer::Logits { classes } | Answer::Probabilities { classes } => Some(classes),
            Answer::Reals => None,
        }
    }
}

/// An output as large as the input is a reconstruction of it, not a choice among classes.
fn is_input_shape(graph: &Graph, elements: usize) -> bool {
    let mut inputs = graph.inputs.iter();
    inputs.any(|port| graph.value(port.value).elements() == elements)
}

/// Index of the largest element, the lowest of equal ones.
pub fn top1(row: &[f32]) -> usize {
    requant_numerics::edge::argmax(row.iter().copied()).unwrap_or(0)
}

/// What one sample's or one data set's comparison came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Verdict {
    /// Samples compared.
    pub samples: usize,
    /// Samples whose top class is the float model's; of models without classes, those whose error is below a
    /// hundredth of the signal in every output.
    pub agreeing: usize,
    /// Samples whose top class is the label, where there are labels.
    pub right: Option<usize>,
    /// Sum over samples of the divergence: `KL(float ‖ quantized)` of class probabilities in nats, or the
    /// squared error relative to the float answer's square, on average over the outputs.
    pub divergence: f64,
}

impl Verdict {
    /// This verdict and one on other samples.
    #[must_use]
    pub fn plus(&self, other: &Verdict) -> Verdict {
        let right = match (self.right, other.right) {
            (Some(a), Some(b)) => Some(a + b),
            // Nothing was compared yet.
            (None, right) if self.samples == 0 => right,
            (_, _) => None,
        };
        Verdict {
            samples: self.samples + other.samples,
            agreeing: self.agreeing + other.agreeing,
            right,
            divergence: self.divergence + other.divergence,
        }
    }

    /// Share of samples that agree with the float model.
    pub fn agreement(&self) -> f64 {
        self.agreeing as f64 / self.samples.max(1) as f64
    }

    /// Share of samples that are right, where there are labels.
    pub fn accuracy(&self) -> Option<f64> {
        self.right
            .map(|right| right as f64 / self.samples.max(1) as f64)
    }

    /// Mean divergence of a sample.
    pub fn mean_divergence(&self) -> f64 {
        self.divergence / self.samples.max(1) as f64
    }
}

/// Compares answers, `samples` rows of each output; `labels` are class indices, and mean nothing where there
/// are no classes.
pub fn compare(
    answer: Answer,
    samples: usize,
    float: &[&[f32]],
    quantized: &[&[f32]],
    labels: Option<&[i64]>,
) -> Verdict {
    let labels = labels.filter(|_| answer.classes().is_some());
    let mut verdict = Verdict {
        samples,
        right: labels.map(|_| 0),
        ..Verdict::default()
    };
    for index in 0..samples {
        let row = |output: &[f32]| -> Range<usize> {
            let width = output.len() / samples;
            index * width..(index + 1) * width
        };
        let pairs = float.iter().zip(quantized);
        let rows: Vec<(&[f32], &[f32])> = pairs.map(|(&f, &q)| (&f[row(f)], &q[row(q)])).collect();
        let sum: f64 = rows.iter().map(|(f, q)| divergence(answer, f, q)).sum();
        verdict.divergence += sum / float.len().max(1) as f64;
        let agrees = |&(float, quantized): &(&[f32], &[f32])| match answer {
            Answer::Logits { .. } | Answer::Probabilities { .. } => top1(float) == top1(quantized),
            Answer::Reals => relative_error(float, quantized) < 0.01,
        };
        verdict.agreeing += usize::from(rows.iter().all(agrees));
        let label = labels.and_then(|labels| labels.get(index));
        let chosen = rows.first().map(|(_, quantized)| top1(quantized));
        if let (Some(right), Some(&label), Some(chosen)) = (verdict.right.as_mut(), label, chosen) {
            *right += usize::from(chosen as i64 == label);
        }
    }
    verdict
}

/// The divergence of one output of one sample; see [`Verdict::divergence`].
pub fn divergence(answer: Answer, float: &[f32], quantized: &[f32]) -> f64 {
    match answer {
        Answer::Logits { .. } => kl(&log_softmax(float), &log_softmax(quantized)),
        Answer::Probabilities { .. } => {
            // Probabilities that were rounded to nothing count as the least that f32 softmax tells apart.
            let logs = |row: &[f32]| -> Vec<f64> {
                row.iter()
                    .map(|&p| libm::log(f64::from(p).max(1e-9)))
                    .collect()
            };
            kl(&logs(float), &logs(quantized))
        }
        Answer::Reals => relative_error(float, quantized),
    }
}

fn kl(p: &[f64], q: &[f64]) -> f64 {
    p.iter().zip(q).map(|(&p, &q)| libm::exp(p) * (p - q)).sum()
}

fn log_softmax(row: &[f32]) -> Vec<f64> {
    let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let shifted = row.iter().map(|&x| f64::from(x) - f64::from(top));
    let sum: f64 = shifted.clone().map(libm::exp).sum();
    shifted.map(|x| x - libm::log(sum)).collect()
}

/// `Σ(q − f)² / Σf²`; of an answer of zeros, the squared error itself.
fn relative_error(float: &[f32], quantized: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let signal: f64 = float.iter().map(|&f| square(f64::from(f))).sum();
    let noise: f64 = float
        .iter()
        .zip(quantized)
        .map(|(&f, &q)| square(f64::from(q) - f64::from(f)))
        .sum();
    if signal > 0.0 { noise / signal } else { noise }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_count_samples() {
        let answer = Answer::Logits { classes: 2 };
        let float = [1.0, 0.0, 0.0, 3.0, 2.0, 2.0];
        let quantized = [1.0, 0.0, 1.0, 0.0, 2.0, 2.0];
        let verdict = compare(answer, 3, &[&float], &[&quantized], Some(&[0, 0, 1]));
        assert_eq!((verdict.agreeing, verdict.right), (2, Some(2)));
        // KL of (1, e³)/(1+e³) from (e, 1)/(1+e), by hand.
        let p = 1.0 / (1.0 + 3f64.exp());
        let q = 1f64.exp() / (1.0 + 1f64.exp());
        let expected = p * (p / q).ln() + (1.0 - p) * ((1.0 - p) / (1.0 - q)).ln();
        assert!((verdict.divergence - expected).abs() < 1e-12);
        let same = compare(Answer::Reals, 1, &[&[3.0, 4.0]], &[&[3.0, 4.5]], Some(&[1]));
        assert_eq!(
            (same.divergence, same.agreeing, same.right),
            (0.01, 0, None)
        );
    }

    #[test]
    fn every_output_counts() {
        let first: &[f32] = &[3.0, 4.0, 1.0, 0.0];
        let (second, changed): (&[f32], &[f32]) = (&[5.0, 2.0], &[5.0, 1.0]);
        let verdict = compare(Answer::Reals, 2, &[first, second], &[first, changed], None);
        // Of the second sample the first output is as it was, and the second has an error of a quarter.
        assert_eq!((verdict.divergence, verdict.agreeing), (0.125, 1));
    }

    #[test]
    fn probabilities_and_logits_agree() {
        let (float, quantized) = ([0.5f32, -1.0, 2.0], [0.25f32, -1.5, 2.25]);
        let soft = |row: &[f32]| {
            let mut out = vec![0.0; row.len()];
            requant_numerics::edge::softmax(row, &mut out);
            out
        };
        let logits = divergence(Answer::Logits { classes: 3 }, &float, &quantized);
        let answer = Answer::Probabilities { classes: 3 };
        let probabilities = divergence(answer, &soft(&float), &soft(&quantized));
        assert!(
            (logits - probabilities).abs() < 1e-6 * logits,
            "{logits} {probabilities}"
        );
    }
}

//! How much work a reconstruction is, and the constants of the method.

/// How long and on what to learn. The defaults suit small networks on a few cores; what a step costs is about
/// three runs of the block on `batch` samples.
#[derive(Clone, Debug, PartialEq)]
pub struct Effort {
    /// Steps a block.
    pub iterations: usize,
    /// Samples a step.
    pub batch: usize,
    /// Most samples that a block is reconstructed on.
    pub samples: usize,
    /// Most layers of a block.
    pub layers: usize,
    /// Bytes that cached values and a step's tape may take together. Where all samples' values do not fit,
    /// the block learns on the first ones that do; where a step's tape does not, on smaller batches.
    pub memory: usize,
    /// Weight of the term that drives roundings to a decision (λ of AdaRound).
    pub rounding: f32,
    /// Rate of the rounding variables.
    pub weight_rate: f32,
    /// Rate of activation scales, relative to the scale; falls to 0 along a cosine.
    pub scale_rate: f32,
    /// Rate of biases, relative to the root mean square of what the block gives; falls to 0 along a cosine.
    pub bias_rate: f32,
    /// Seed of batches and of what is dropped.
    pub seed: u64,
}

impl Default for Effort {
    fn default() -> Self {
        Self {
            iterations: 300,
            batch: 16,
            samples: 512,
            layers: 8,
            memory: 768 << 20,
            rounding: 0.01,
            weight_rate: 0.03,
            scale_rate: 1e-3,
            bias_rate: 1e-3,
            seed: 0,
        }
    }
}

//! Weights of few bits as bytes, larger by a power of two where that spares the epilogue 64-bit shifts.
//!
//! Layers of 4 bits have large multipliers, and `rhu` by high words takes shifts from 33 on, or 32 with a
//! mantissa below 2^30. But `(acc·m + 2^(s−1)) >> s` is `((acc·2^k)·m + 2^(s+k−1)) >> (s + k)`: where a channel's
//! weights have bits to spare in a byte, and its sums in 32 bits, both are packed `2^k` times as large. No
//! kernel knows of it, and it costs nothing.

use requant_numerics::{Requantize, Scheme};

use crate::epilogue::{Join, Output, Quantized};

use super::{ConvSpec, Weights};

/// The least shift of a rounding by high words.
const HIGH: u8 = 33;

/// What is packed instead of a convolution's own parameters.
pub(super) struct Lifted {
    weights: Vec<i8>,
    bias: Vec<i32>,
    output: Output,
}

impl Lifted {
    /// None where the convolution is best taken as it is, and for weights of more than 8 bits.
    pub(super) fn new(spec: &ConvSpec<'_>) -> Option<Self> {
        let (nibbles, depth) = match spec.weights {
            Weights::I8(_) => (false, spec.shape.depth()),
            Weights::I4(_) => (true, spec.shape.depth()),
            Weights::I16(_) => return None,
        };
        let lifts = lifts(spec);
        if lifts.is_none() && !nibbles {
            return None;
        }
        let lift = |channel: usize| lifts.as_ref().map_or(0, |lifts| lifts[channel]);
        let channels = 0..spec.shape.out_c;
        let bias = spec.bias.iter().enumerate();
        Some(Lifted {
            weights: channels
                .flat_map(|channel| (0..depth).map(move |k| (channel, k)))
                .map(|(channel, k)| (spec.weights.get(channel, k, depth) << lift(channel)) as i8)
                .collect(),
            bias: bias.map(|(channel, bias)| bias << lift(channel)).collect(),
            output: lifts.map_or_else(
                || spec.output.clone(),
                |lifts| shifted(&spec.output, &lifts),
            ),
        })
    }

    /// The convolution with what is packed.
    pub(super) fn spec(&self, spec: &ConvSpec<'_>) -> ConvSpec<'_> {
        ConvSpec {
            shape: spec.shape,
            input: spec.input,
            input_zero_point: spec.input_zero_point,
            weights: Weights::I8(&self.weights),
            bias: &self.bias,
            output: self.output.clone(),
        }
    }
}

/// How many bits each channel is lifted by, if all of them can be rounded by high words then and some could
/// not before.
fn lifts(spec: &ConvSpec<'_>) -> Option<Vec<u8>> {
    let Output::Quantized(quantized) = &spec.output else {
        return None;
    };
    let Scheme::Rhu { m, s } = &quantized.requantize.scheme else {
        return None;
    };
    // One shift serves the product and the residual.
    if matches!(quantized.join, Join::Residual { .. }) || s.iter().all(|&s| s == HIGH - 1) {
        return None;
    }
    let of = |channel: usize| {
        let index = if m.len() == 1 { 0 } else { channel };
        let (m, s) = (*m.get(index)?, *s.get(index)?);
        let short = m < 1 << 30 && s == HIGH - 1;
        let lift = if short { 0 } else { HIGH.saturating_sub(s) };
        (lift == 0 || fits(spec, channel, lift)).then_some(lift)
    };
    let lifts: Option<Vec<u8>> = (0..spec.shape.out_c).map(of).collect();
    lifts.filter(|lifts| lifts.iter().any(|&lift| lift > 0))
}

/// Whether a channel's weights, bias and sums have so many bits to spare.
fn fits(spec: &ConvSpec<'_>, channel: usize, lift: u8) -> bool {
    let depth = spec.shape.depth();
    let Some((lo, hi)) = spec.input.range().filter(|_| lift < 8) else {
        return false;
    };
    let weights = || (0..depth).map(|k| spec.weights.get(channel, k, depth));
    let bytes = weights().all(|weight| i8::try_from(weight << lift).is_ok());
    let sum: u64 = weights()
        .map(|weight| u64::from(weight.unsigned_abs()))
        .sum();
    let bias = spec.bias.get(channel).copied().unwrap_or(0);
    let most = sum
        .saturating_mul((hi - lo) as u64)
        .saturating_add(bias.unsigned_abs().into());
    bytes && most < 1 << (31 - lift)
}

/// The output of sums that are larger by so many bits.
fn shifted(output: &Output, lifts: &[u8]) -> Output {
    let Output::Quantized(quantized) = output else {
        return output.clone();
    };
    let Scheme::Rhu { m, s } = &quantized.requantize.scheme else {
        return output.clone();
    };
    // With one entry for all channels they have the same lift.
    let shifts = s.iter().zip(lifts).map(|(s, lift)| s + lift).collect();
    Output::Quantized(Box::new(Quantized {
        requantize: Requantize {
            scheme: Scheme::Rhu {
                m: m.clone(),
                s: shifts,
            },
            ..quantized.requantize
        },
        ..(**quantized).clone()
    }))
}

//! Quantization inside a network, with the gradients that reconstruction learns by.

use std::sync::Arc;

use super::elementwise::{choose, map1, map2, sum};
use super::{Tape, Var};

/// How far the stretched sigmoid of AdaRound leaves 0..1 on both sides (Nagel et al. 2020: ζ = 1.1,
/// γ = −0.1).
const STRETCH: f32 = 0.1;

/// AdaRound's `h(v) = clip(1.2·sigmoid(v) − 0.1, 0, 1)`.
pub fn rectified_sigmoid(v: f32) -> f32 {
    ((1.0 + 2.0 * STRETCH) * sigmoid(v) - STRETCH).clamp(0.0, 1.0)
}

/// The `v` with `h(v) = h`, for h in 0..=1.
pub fn rectified_sigmoid_inverse(h: f32) -> f32 {
    let s = (h.clamp(0.0, 1.0) + STRETCH) / (1.0 + 2.0 * STRETCH);
    -libm::logf(1.0 / s - 1.0)
}

/// `dh/dv`; 0 where h is cut off.
pub fn rectified_sigmoid_slope(v: f32) -> f32 {
    let s = sigmoid(v);
    let h = (1.0 + 2.0 * STRETCH) * s - STRETCH;
    if h > 0.0 && h < 1.0 {
        (1.0 + 2.0 * STRETCH) * s * (1.0 - s)
    } else {
        0.0
    }
}

fn sigmoid(v: f32) -> f32 {
    1.0 / (1.0 + libm::expf(-v))
}

/// Round half to even for |x| < 2^22: the sum has no room for a fraction.
fn round(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0;
    (x + MAGIC) - MAGIC
}

/// Integers of an activation, relative to the zero point.
#[derive(Clone, Debug)]
pub struct FakeQuant {
    /// Lowest integer less the zero point.
    pub lo: f32,
    /// Highest integer less the zero point.
    pub hi: f32,
    /// Elements that stay real: a bit each, 64 a word; none for no element.
    pub dropped: Option<Arc<Vec<u64>>>,
}

/// Weights whose rounding is learnt.
#[derive(Clone, Debug)]
pub struct SoftRound {
    /// The lower of the two integers.
    pub base: Arc<Vec<f32>>,
    /// Step of each weight.
    pub step: Arc<Vec<f32>>,
    /// Lowest integer.
    pub lo: f32,
    /// Highest integer.
    pub hi: f32,
}

impl Tape {
    /// `s·clamp(rne(x/s), lo, hi)` with a scale of one element. The gradient passes through inside the
    /// range; that of the scale is LSQ's (Esser et al. 2020) without its normalisation.
    pub fn fake_quant(&mut self, x: Var, scale: Var, spec: FakeQuant) -> Var {
        let s = self.data(scale)[0];
        let FakeQuant { lo, hi, dropped } = spec;
        let inverse = 1.0 / s;
        let mut data = map1(self.data(x), |x| s * round((x * inverse).max(lo).min(hi)));
        if let Some(dropped) = &dropped {
            choose(&mut data, self.data(x), dropped);
        }
        self.push(self.dims(x).to_vec(), data, vec![x, scale], move |p| {
            let (input, output) = (p.operand(0), p.result());
            let pass = |g: f32, x: f32| {
                let v = x * inverse;
                if v >= lo && v <= hi { g } else { 0.0 }
            };
            let mut dx = map2(p.gradient, input, pass);
            if let Some(dropped) = &dropped {
                choose(&mut dx, p.gradient, dropped);
            }
            // Inside, y/s − x/s; outside y/s is the limit. A dropped element has y = x: nothing inside, and
            // outside it must count for nothing too.
            let ds = p.wants(1).then(|| {
                let slope = map2(input, output, |x, y| {
                    let v = x * inverse;
                    let q = y * inverse;
                    if v >= lo && v <= hi { q - v } else { q }
                });
                let mut terms = map2(&slope, p.gradient, |slope, g| slope * g);
                if let Some(dropped) = &dropped {
                    let zeros = vec![0.0; terms.len()];
                    choose(&mut terms, &zeros, dropped);
                }
                let sums = terms.chunks(4096).map(|part| f64::from(sum(part)));
                vec![sums.sum::<f64>() as f32]
            });
            vec![p.wants(0).then_some(dx), ds]
        })
    }

    /// `step·clamp(base + h(v), lo, hi)`: AdaRound's soft weights.
    pub fn soft_round(&mut self, v: Var, spec: SoftRound) -> Var {
        let SoftRound { base, step, lo, hi } = spec;
        let soft = map2(self.data(v), &base, |v, base| {
            (base + rectified_sigmoid(v)).max(lo).min(hi)
        });
        let data = map2(&soft, &step, |w, step| w * step);
        self.push(self.dims(v).to_vec(), data, vec![v], move |p| {
            let slope = map2(p.operand(0), &base, |v, base| {
                let w = base + rectified_sigmoid(v);
                if w >= lo && w <= hi {
                    rectified_sigmoid_slope(v)
                } else {
                    0.0
                }
            });
            let g = map2(p.gradient, &step, |g, step| g * step);
            vec![Some(map2(&g, &slope, |g, slope| g * slope))]
        })
    }
}

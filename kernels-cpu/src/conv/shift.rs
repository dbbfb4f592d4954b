//! Weights of more than 8 bits on kernels for 8.
//!
//! Unsigned 8-bit weights with a zero point have effective values `w - zp` from -255 to 255, but a layer's
//! lie among 256 consecutive ones. So bytes `w - shift` do for a panel, and `Σ x·w = Σ x·(w - shift) +
//! shift·Σ x`: a sum over each row of activations, once for all panels. A panel whose weights are bytes as
//! they are has a shift of 0 and costs nothing. Depthwise kernels, whose sums have activations of their own
//! for each channel, take what does not fit a byte as further taps instead.

use super::Weights;

/// Values of a byte.
const BYTE: i32 = 255;

/// Whether 16-bit weights lie, with 0, among 256 consecutive values.
pub(super) fn fits(weights: &Weights<'_>) -> bool {
    let Weights::I16(weights) = weights else {
        return false;
    };
    let (least, most) = range(weights.iter().copied());
    most - least <= BYTE
}

/// Bytes whose sum a weight is for a depthwise kernel.
pub(super) const PARTS: usize = 2;

/// Whether 16-bit weights are sums of as many bytes.
pub(super) fn fits_parts(weights: &Weights<'_>) -> bool {
    let Weights::I16(weights) = weights else {
        return false;
    };
    let limit = PARTS as i32;
    let (least, most) = range(weights.iter().copied());
    least >= limit * i32::from(i8::MIN) && most <= limit * i32::from(i8::MAX)
}

/// The bytes of a weight that is a sum of them.
pub(super) fn parts(weight: i16) -> [i8; PARTS] {
    let first = weight.clamp(i16::from(i8::MIN), i16::from(i8::MAX));
    [first as i8, (weight - first) as i8]
}

/// The shift of smallest magnitude that makes weights, which fit, bytes.
pub(super) fn of(weights: impl Iterator<Item = i16>) -> i32 {
    let (least, most) = range(weights);
    if most > i32::from(i8::MAX) {
        most - i32::from(i8::MAX)
    } else {
        (least - i32::from(i8::MIN)).min(0)
    }
}

/// Least and most, 0 included: what pads a panel is 0.
fn range(weights: impl Iterator<Item = i16>) -> (i32, i32) {
    weights.fold((0, 0), |(least, most), weight| {
        let weight = i32::from(weight);
        (weight.min(least), weight.max(most))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shifted_weights_are_bytes() {
        for zero_point in 0..=255i16 {
            let all: Vec<i16> = (0..=255).map(|w| w - zero_point).collect();
            assert!(fits(&Weights::I16(&all)));
            let shift = of(all.iter().copied());
            assert!(
                all.iter()
                    .all(|&w| i8::try_from(i32::from(w) - shift).is_ok())
            );
        }
        for (weights, shift) in [
            (&[-128, 127][..], 0),
            (&[1, 127], 0),
            (&[128], 1),
            (&[-129, 5], -1),
            (&[255, 3], 128),
            (&[-255], -127),
        ] {
            assert_eq!(of(weights.iter().copied()), shift, "{weights:?}");
        }
        for weight in -256..=254 {
            assert!(fits_parts(&Weights::I16(&[weight])));
            let [a, b] = parts(weight).map(i16::from);
            assert_eq!(a + b, weight);
        }
        assert!(!fits_parts(&Weights::I16(&[255])));
        assert!(!fits_parts(&Weights::I16(&[-257])));
        assert!(!fits(&Weights::I16(&[-1, 255])));
        assert!(!fits(&Weights::I16(&[256])));
    }
}

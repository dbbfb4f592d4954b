//! The kernels' images: one an architecture, compressed, and which of them a device runs.

use std::io::Read;

use flate2::read::GzDecoder;

use crate::CudaError;

include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// The portable image, which the driver compiles for devices that no other image fits.
const PORTABLE: &str = "compute_80";

/// Most bytes that an image is unpacked to.
const LIMIT: u64 = 64 << 20;

/// The image for a compute capability. Machine code runs on its own capability and on later ones of the
/// same major number; that of an `a` architecture on its own alone.
pub(crate) fn choose((major, minor): (i32, i32)) -> Option<&'static str> {
    let exact = match (major, minor) {
        (7, 5..) => "sm_75",
        (8, 0..=5) => "sm_80",
        (8, 6..=8) => "sm_86",
        (8, 9..) => "sm_89",
        (9, 0) => "sm_90a",
        (10, 0) => "sm_100a",
        (12, 0) => "sm_120a",
        (8.., _) => PORTABLE,
        (_, _) => return None,
    };
    Some(exact)
}

/// Whether an architecture multiplies 4 bits by 4 bits, and counts bits that differ. Later ones do both by
/// other instructions, slower than bytes.
pub(crate) fn has_narrow_units(image: &str) -> bool {
    matches!(image, "sm_75" | "sm_80" | "sm_86" | "sm_89")
}

/// A digest (FNV-1a) of an image as it is embedded: another one may have other kernels, or faster ones.
pub(crate) fn digest(name: &str) -> u64 {
    let packed = IMAGES.iter().find(|(image, _)| *image == name);
    let bytes = packed.map_or(&[][..], |(_, packed)| packed);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |digest, &byte| {
        (digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The bytes of an image; text ends with the zero that the driver asks for.
pub(crate) fn load(name: &'static str) -> Result<Vec<u8>, CudaError> {
    let damaged = || CudaError::DamagedImage(name);
    let (_, packed) = IMAGES
        .iter()
        .find(|(image, _)| *image == name)
        .ok_or_else(damaged)?;
    let mut image = Vec::new();
    let mut reader = GzDecoder::new(*packed).take(LIMIT);
    reader.read_to_end(&mut image).map_err(|_| damaged())?;
    if image.is_empty() {
        return Err(damaged());
    }
    image.push(0);
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kernel;

    #[test]
    fn every_device_since_turing_has_an_image() {
        let cases = [
            ((7, 0), None),
            ((7, 5), Some("sm_75")),
            ((8, 0), Some("sm_80")),
            ((8, 7), Some("sm_86")),
            ((8, 9), Some("sm_89")),
            ((9, 0), Some("sm_90a")),
            ((10, 0), Some("sm_100a")),
            ((10, 3), Some("compute_80")),
            ((12, 0), Some("sm_120a")),
            ((12, 1), Some("compute_80")),
        ];
        for (capability, image) in cases {
            assert_eq!(choose(capability), image, "{capability:?}");
        }
    }

    #[test]
    fn every_image_holds_every_kernel() {
        for (name, _) in IMAGES {
            let image = load(name).unwrap();
            let text = name.starts_with("compute_");
            assert!(
                image.starts_with(if text { b"//" } else { b"\x7fEL" }),
                "{name}"
            );
            for kernel in Kernel::ALL {
                let entry = if text {
                    format!(".entry {}(", kernel.name())
                } else {
                    format!(".text.{}\0", kernel.name())
                };
                let found = image.windows(entry.len()).any(|w| w == entry.as_bytes());
                assert_eq!(found, kernel.is_in(name), "{name}, {}", kernel.name());
            }
        }
    }
}

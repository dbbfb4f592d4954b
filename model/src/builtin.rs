//! The model that every build carries, so that a server started with nothing serves something real.

/// The artefact of `fashion`: a residual CNN that names the garment in an image of Fashion-MNIST, its
/// first and last layer with 8-bit weights, the layers between with 4-bit ones.
///
/// Input `input`, `f32 [N, 1, 28, 28]`: `(byte/255 − 0.2860)/0.3530`; its integer form is the image's
/// bytes. Output `logits`, `f32 [N, 10]`, one score a class. `model/builtin` holds the float model it was
/// made of and says by which command; the graph's provenance names both. Read it with
/// [`crate::artifact::read`].
pub const FASHION: &[u8] = include_bytes!("../builtin/fashion.safetensors");

#[cfg(test)]
mod tests {
    use requant_numerics::{DType, ModelPrecision, WeightPrecision};
    use sha2::{Digest as _, Sha256};

    use super::FASHION;
    use crate::artifact;

    #[test]
    fn fashion_is_small_and_mixed() {
        assert!(FASHION.len() < 100_000, "{} bytes", FASHION.len());
        let graph = artifact::read(FASHION).unwrap();
        assert_eq!(graph.name, "fashion");
        assert_eq!(graph.precision(), ModelPrecision::Mixed);
        let expected = [
            ("source", "fashion.onnx"),
            ("calibration_samples", "256"),
            ("weights", "int4"),
            ("rounding", "block"),
        ];
        for (key, value) in expected {
            assert_eq!(graph.provenance[key], value, "{key}");
        }
        let source = include_bytes!("../builtin/fashion.onnx");
        let digest: String = Sha256::digest(source)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(graph.provenance["source_sha256"], digest);
        let layers = graph.layers();
        let weights = |precisions: &[WeightPrecision]| -> u64 {
            let of = |layer: &&crate::LayerInfo| {
                let stored = layer.precision.map(|precision| precision.weights);
                stored.is_some_and(|stored| precisions.contains(&stored))
            };
            layers.iter().filter(of).map(|layer| layer.weights).sum()
        };
        let four = weights(&[WeightPrecision::W4]);
        assert_eq!(four + weights(&[WeightPrecision::W8]), 42_256);
        assert!(2 * four >= 42_256, "{four}");
    }

    #[test]
    fn fashion_declares_its_edges() {
        let graph = artifact::read(FASHION).unwrap();
        let port = |id: crate::ValueId| {
            let value = graph.value(id);
            (value.name.as_str(), value.dtype, value.dims.as_slice())
        };
        let inputs: Vec<_> = graph.inputs.iter().map(|&id| port(id)).collect();
        let outputs: Vec<_> = graph.outputs.iter().map(|&id| port(id)).collect();
        assert!(graph.batched);
        assert_eq!(inputs, [("input", DType::F32, &[1, 1, 28, 28][..])]);
        assert_eq!(outputs, [("logits", DType::F32, &[1, 10][..])]);
    }

    #[test]
    fn fashion_is_in_the_canonical_form() {
        let graph = artifact::read(FASHION).unwrap();
        assert!(artifact::write(&graph).unwrap() == FASHION);
    }
}

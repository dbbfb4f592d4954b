//! The choice of kernels: which rounding a TFLite model's layers get, and that each is what it says.
#![allow(clippy::unwrap_used, clippy::panic)]

mod flatbuffer;

use flatbuffer::{I8, Model, Tensor, activation, constant, list, operator};
use requant_conformance::Rng;
use requant_import::tflite::{ImportOptions, Kernels, import_bytes};
use requant_model::Graph;
use requant_numerics::{Rounding, rounding};
use requant_runtime::ReferenceBackend;

/// A fully connected layer of 8 rows and 16 columns whose output has `scale`.
fn dense(rng: &mut Rng, scale: f32) -> (Model, Vec<i8>, Vec<i32>) {
    let weights: Vec<i8> = (0..128).map(|_| rng.range(-127, 127) as i8).collect();
    let bias: Vec<i32> = (0..8).map(|_| rng.range(-500, 500) as i32).collect();
    let tensors = vec![
        activation("x", &[1, 16], I8, 0.25, 0),
        Tensor {
            scales: vec![0.0625],
            zero_points: vec![0],
            ..constant(
                "w",
                &[8, 16],
                I8,
                weights.iter().map(|&w| w as u8).collect(),
            )
        },
        list("b", &[8], &bias),
        activation("y", &[1, 8], I8, scale, -3),
    ];
    let model = Model::new(tensors, vec![operator(9, &[0, 1, 2], &[3])]);
    (model, weights, bias)
}

fn import(model: &Model, kernels: Kernels) -> Result<Graph, String> {
    let options = ImportOptions {
        kernels,
        ..ImportOptions::default()
    };
    import_bytes(&model.bytes(), "dense", &options).map_err(|e| e.to_string())
}

fn round_of(graph: &Graph) -> Rounding {
    let node = graph
        .nodes
        .iter()
        .find(|node| node.op.name() == "gemm")
        .unwrap();
    let linear = node.op.linear().unwrap();
    let cx = requant_model::ops::Context::new(graph, node);
    let (requantize, _) = linear.requantize(&cx, 8).unwrap().unwrap();
    requantize.scheme.rounding().unwrap()
}

#[test]
fn each_rounds_as_it_says() {
    let mut rng = Rng::new(5);
    for k in [0u8, 1, 3, 7] {
        // 0.25·0.0625 = 2^-6, so the multiplier is 2^-k.
        let (model, weights, bias) = dense(&mut rng, 2f32.powi(i32::from(k) - 6));
        let input: Vec<i8> = (0..16 * 64).map(|_| rng.range(-128, 127) as i8).collect();
        for (kernels, name) in [
            (Kernels::LiteRt, Rounding::F64Away),
            (Kernels::Tflm, Rounding::TfliteDouble),
            (Kernels::CmsisShift, Rounding::Shift),
        ] {
            let graph = import(&model, kernels).unwrap();
            assert_eq!(round_of(&graph), name);
            assert_eq!(graph.provenance["kernels"], kernels.name());
            let data = vec![input.iter().map(|&x| x as u8).collect()];
            let got = requant_conformance::run(&ReferenceBackend, &graph, true, &data, 64, 64);
            let got = &got.unwrap()[0];
            for (index, &got) in got.iter().enumerate() {
                let (row, unit) = (index / 8, index % 8);
                let dot: i32 = (0..16)
                    .map(|i| i32::from(input[row * 16 + i]) * i32::from(weights[unit * 16 + i]))
                    .sum();
                let acc = dot + bias[unit];
                let rounded = match kernels {
                    Kernels::LiteRt => (f64::from(acc) / f64::from(1 << k)).round() as i32,
                    Kernels::Tflm => rounding::tflite_double(acc, 1 << 30, 1 - k as i8),
                    Kernels::CmsisShift => (acc + ((1 << k) >> 1)) >> k,
                };
                let want = (rounded - 3).clamp(-128, 127);
                assert_eq!(i32::from(got as i8), want, "{kernels:?}, k = {k}, {acc}");
            }
        }
    }
}

#[test]
fn shifts_need_powers_of_two() {
    let mut rng = Rng::new(6);
    for (scale, multiplier) in [(0.1f32, "0.1562499976716936"), (2f32.powi(-7), "2")] {
        let (model, ..) = dense(&mut rng, scale);
        assert_eq!(
            import(&model, Kernels::CmsisShift).unwrap_err(),
            format!(
                "1 of the model's operators cannot be imported:\n  operator 0 'y' \
                 (FULLY_CONNECTED): the multiplier {multiplier} is not a power of two in [2^-30, 1]"
            )
        );
        assert!(import(&model, Kernels::Tflm).is_ok());
    }
}

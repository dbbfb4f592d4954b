//! Binary networks that others trained: accuracy on MNIST, weights of one bit, popcount kernels, and every
//! decision that of the float model.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::path::Path;
use std::sync::Arc;

use prost::Message;
use requant_conformance::npz::{self, test_data};
use requant_import::onnx::{ImportOptions, import_file};
use requant_model::{Graph, artifact};
use requant_numerics::{DType, ModelPrecision};
use requant_runtime::{
    Backend, CpuBackend, CpuOptions, Executable, Form, Instance, Isa, Plan, PlanOptions,
    ReferenceBackend,
};

fn path(data: &Path, name: &str) -> std::path::PathBuf {
    data.join("quantized/qonnx")
        .join(name)
        .with_extension("onnx")
}

fn import(data: &Path, name: &str) -> Graph {
    import_file(&path(data, name), &ImportOptions::default()).unwrap()
}

fn compiled(backend: &dyn Backend, graph: &Graph) -> Arc<dyn Executable> {
    let plan = Plan::new(graph.clone(), &PlanOptions::default()).unwrap();
    backend.compile(Arc::new(plan)).unwrap()
}

fn logits(instance: &mut dyn Instance, image: &[f32]) -> Vec<f32> {
    let bytes: Vec<u8> = image.iter().flat_map(|v| v.to_le_bytes()).collect();
    let write = instance.write_input(0, 0, 1, Form::Declared, &bytes);
    write.unwrap();
    instance.run(1).unwrap();
    let mut out = vec![0; 40];
    let read = instance.read_output(0, 0, 1, Form::Declared, &mut out);
    read.unwrap();
    let (values, _) = out.as_chunks();
    values.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

fn best(logits: &[f32]) -> usize {
    let order = |a: &usize, b: &usize| logits[*a].total_cmp(&logits[*b]).then(b.cmp(a));
    (0..logits.len()).max_by(order).unwrap()
}

/// Images as reals in 0..=1, and labels.
fn mnist(data: &Path) -> Vec<(Vec<f32>, usize)> {
    let arrays = npz::read(&data.join("eval/small/mnist_dev.npz"));
    let images = arrays["x"].data.chunks_exact(784);
    let real = |image: &[u8]| image.iter().map(|&b| f32::from(b) / 255.0).collect();
    let labels = arrays["y"].data.iter().map(|&y| usize::from(y));
    images.map(real).zip(labels).collect()
}

/// The file's own float arithmetic, a plain loop: hidden layers of weights `[N, K]` and batch norm, and
/// the last layer's scalar one.
struct Oracle {
    /// Quantization of the input and between layers: ternary, or else binary.
    ternary: bool,
    layers: Vec<(Vec<f32>, [Vec<f32>; 4])>,
    last: Vec<f32>,
    /// Mean, divisor, factor and shift.
    norm: [f32; 4],
}

impl Oracle {
    fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let model = support::proto::ModelProto::decode(&bytes[..]).unwrap();
        let graph = model.graph.unwrap();
        let floats = |name: &str| -> Vec<f32> {
            let tensor = graph.initializer.iter().find(|t| t.name() == name).unwrap();
            match &tensor.raw_data {
                Some(raw) if !raw.is_empty() => {
                    let (values, _) = raw.as_chunks();
                    values.iter().map(|&b| f32::from_le_bytes(b)).collect()
                }
                _ => tensor.float_data.clone(),
            }
        };
        let quants = |op: &'static str| graph.node.iter().filter(move |n| n.op_type() == op);
        let weights: Vec<Vec<f32>> = quants("BipolarQuant")
            .map(|node| node.input[0].as_str())
            .filter(|name| graph.initializer.iter().any(|t| t.name() == *name))
            .map(floats)
            .collect();
        let norms = quants("BatchNormalization")
            .map(|node| [1, 2, 3, 4].map(|index| floats(&node.input[index])));
        let (last, hidden) = weights.split_last().unwrap();
        let scalar = |op: &'static str, index: usize| {
            let node = quants(op).next_back().unwrap();
            floats(&node.input[index])[0]
        };
        let power = quants("Pow").next_back().unwrap();
        let variance = floats(&power.input[0])[0];
        Oracle {
            ternary: quants("Quant").next().is_some(),
            layers: hidden.iter().cloned().zip(norms).collect(),
            last: last.clone(),
            norm: [
                scalar("Sub", 1),
                variance.sqrt(),
                scalar("Mul", 1),
                scalar("Add", 1),
            ],
        }
    }

    fn quantize(&self, x: f32) -> f32 {
        if self.ternary {
            x.clamp(-1.0, 1.0).round_ties_even()
        } else if x >= 0.0 {
            1.0
        } else {
            -1.0
        }
    }

    fn run(&self, image: &[f32]) -> Vec<f32> {
        let product = |x: &[f32], weights: &[f32]| -> Vec<f32> {
            let rows = weights.chunks_exact(x.len());
            rows.map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum())
                .collect()
        };
        let mut x: Vec<f32> = image.iter().map(|v| self.quantize(v * 2.0 - 1.0)).collect();
        for (weights, [scale, shift, mean, variance]) in &self.layers {
            let sums = product(&x, weights);
            let normalized = |(c, sum): (usize, f32)| {
                let factor = scale[c] / (variance[c] + 1e-5).sqrt();
                (sum - mean[c]) * factor + shift[c]
            };
            let normalized = sums.into_iter().enumerate().map(normalized);
            x = normalized.map(|v| self.quantize(v)).collect();
        }
        let [mean, divisor, factor, shift] = self.norm;
        let real = |sum: f32| (sum - mean) / divisor * factor + shift;
        product(&x, &self.last).into_iter().map(real).collect()
    }
}

#[test]
fn accuracy_and_decisions_on_5000_images() {
    let Some(data) = test_data("accuracy_and_decisions_on_5000_images") else {
        return;
    };
    let images = mnist(&data);
    assert_eq!(images.len(), 5000);
    // What the float models get right, the lowest class of several with the largest logit.
    for (name, float) in [("TFC_1W1A", 4642), ("TFC_1W2A", 4733)] {
        let graph = import(&data, name);
        let cpu = CpuBackend::new(CpuOptions::default()).unwrap();
        let executable = compiled(&cpu, &graph);
        let mut instance = executable.instance(1).unwrap();
        let oracle = Oracle::read(&path(&data, name));
        let (mut right, mut last) = (0, 0);
        for (image, label) in &images {
            let got = logits(&mut *instance, image);
            let want = oracle.run(image);
            right += usize::from(best(&got) == *label);
            // Logits are few and often tie; the highest class gets some more.
            let reversed: Vec<f32> = got.iter().rev().copied().collect();
            last += usize::from(9 - best(&reversed) == *label);
            // A logit is a whole accumulator through one scale: one other decision in any layer would
            // move it by far more than its rounding.
            for (got, want) in got.iter().zip(&want) {
                assert!((got - want).abs() <= 1e-5, "{name}: {got} for {want}");
            }
        }
        println!("{name}: {right} of 5000 right, {last} by the highest class of a tie");
        assert_eq!(right, float, "{name}");
        assert!(last > right, "{name}: {last}");
    }
}

#[test]
fn weights_take_a_bit_and_kernels_count_bits() {
    let Some(data) = test_data("weights_take_a_bit_and_kernels_count_bits") else {
        return;
    };
    for (name, activations) in [("TFC_1W1A", DType::Binary), ("TFC_1W2A", DType::Ternary)] {
        let graph = import(&data, name);
        assert_eq!(graph.precision(), ModelPrecision::Binary);
        let layers = graph.layers();
        let bits: u64 = layers.iter().map(|layer| 8 * layer.weight_bytes).sum();
        assert_eq!(bits, (784 + 64 + 64 + 10) * 64, "{name}");
        let narrow = graph.values.iter().filter(|v| v.dtype == activations);
        assert!(narrow.count() >= 4, "{name}");
        let file = artifact::write(&graph).unwrap();
        assert_eq!(artifact::read(&file).unwrap(), graph);
        let images = mnist(&data);
        let reference = compiled(&ReferenceBackend, &graph);
        let mut reference = reference.instance(1).unwrap();
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            let options = CpuOptions {
                isa: Some(isa),
                threads: 2,
                ..CpuOptions::default()
            };
            let executable = compiled(&CpuBackend::new(options).unwrap(), &graph);
            let kernels = executable.kernels();
            let counting = kernels.iter().filter(|kernel| kernel.contains("popcnt"));
            assert_eq!(counting.count(), 4, "{name}: {kernels:?}");
            let mut instance = executable.instance(1).unwrap();
            for (image, _) in images.iter().step_by(50) {
                let want = logits(&mut *reference, image);
                assert_eq!(logits(&mut *instance, image), want, "{name} on {isa}");
            }
            println!("{name} on {isa}: {kernels:?}");
        }
    }
}

//! Simulated integers are the engine's on real networks: every value of each float network of the test data, at
//! every precision, against the reference backend, and the outputs against the CPU's kernels as well.
#![allow(clippy::unwrap_used, clippy::panic)]

mod networks;

use std::collections::BTreeMap;
use std::path::Path;

use requant_conformance::npz::test_data;
use requant_conformance::{Rng, run};
use requant_import::float::{
    ActivationQuant, Graph, LayerQuant, Op, Port, Quantized, Tensor, ValueId, read_file, to_graph,
};
use requant_import::onnx::ImportOptions;
use requant_numerics::{ActivationPrecision, DType};
use requant_quantize::assemble::{Candidate, Decided, Grids, assemble};
use requant_quantize::calibrate::{Calibrator, Histogram, Range, quantization};
use requant_quantize::exec::{Exact, Executor, Reals};
use requant_quantize::placement::Placement;
use requant_quantize::weights::{self, Grouping, Recipe, Rounding};
use requant_runtime::{Backend, CpuBackend, CpuOptions, ReferenceBackend};

/// How weights are stored; a codebook without a type.
type Store = Option<DType>;

/// What the layers are given in turn.
struct Variant {
    name: &'static str,
    layers: &'static [(Store, ActivationPrecision)],
    /// Whether residual streams hold 16 bits.
    streams: bool,
}

use ActivationPrecision::{A4, A8};
use DType::{Binary, I2, I4, I8, Ternary};

const VARIANTS: [Variant; 6] = [
    Variant {
        name: "w8a8",
        layers: &[(Some(I8), A8)],
        streams: false,
    },
    Variant {
        name: "w4a8",
        layers: &[(Some(I4), A8)],
        streams: false,
    },
    Variant {
        name: "w4a4",
        layers: &[(Some(I4), A4)],
        streams: false,
    },
    Variant {
        name: "w8a8, 16-bit streams",
        layers: &[(Some(I8), A8)],
        streams: true,
    },
    Variant {
        name: "w4a4, 16-bit streams",
        layers: &[(Some(I4), A4)],
        streams: true,
    },
    MIXED,
];

/// Every way to store weights.
const MIXED: Variant = Variant {
    name: "mixed, 16-bit streams",
    layers: &[
        (Some(Ternary), A8),
        (None, A8),
        (Some(I4), A4),
        (Some(Binary), A8),
        (Some(I8), A8),
        (Some(I2), A8),
        (None, A4),
    ],
    streams: true,
};

/// Weights along K that share a multiplier, where a matrix product has few bits and more inputs than that.
const GROUP: usize = 16;
/// Centroids of a codebook, and weights of each.
const CENTROIDS: (usize, usize) = (16, 4);

/// The grids of every group of values, from a run of the float network.
fn grids(executor: &Executor<'_>, placement: &Placement, input: Tensor) -> Vec<Grids> {
    let graph = executor.graph();
    let mut seen = vec![Histogram::new(); placement.len()];
    let mut add = |id: ValueId, tensor: &Tensor| {
        if let Some(group) = placement.group(id) {
            seen[group].add(&tensor.data).unwrap();
        }
    };
    add(graph.inputs[0].value, &input);
    let reals = Reals::default();
    let mut values = executor.start(vec![input], &reals).unwrap();
    executor
        .compute(&mut values, &executor.outputs(), &reals, &mut add)
        .unwrap();
    let grids = |seen: &Histogram| {
        let of = |calibrator: Calibrator, dtype: DType| ActivationQuant {
            dtype,
            quant: quantization(calibrator.range(seen, dtype).unwrap(), dtype).unwrap(),
        };
        let (lo, hi) = seen.extremes().unwrap();
        let reach = 2.0 * lo.abs().max(hi.abs());
        Grids {
            a8: of(Calibrator::MinMax, DType::U8),
            a4: of(Calibrator::Mse, DType::U4),
            a16: ActivationQuant {
                dtype: DType::I16,
                quant: quantization(Range::around(-reach, reach), DType::I16).unwrap(),
            },
        }
    };
    seen.iter().map(grids).collect()
}

/// A layer's weights, rounded to the nearest.
fn candidate(op: &Op, store: Store) -> Candidate {
    let tensor = op.weights().unwrap();
    let (rows, bias) = (tensor.dims[0], op.bias().unwrap().to_vec());
    let Some(dtype) = store else {
        return Candidate {
            quant: coded(tensor),
            bias,
        };
    };
    let taps = tensor.dims[2..].iter().product();
    let narrow = matches!(dtype, I4 | I2) && tensor.data.len() / rows > GROUP;
    let recipe = Recipe {
        rounding: Rounding::Nearest,
        group: narrow.then_some(Grouping { size: GROUP, taps }),
        ..Recipe::new(dtype)
    };
    let rounded = weights::round(&tensor.data, rows, &[], recipe).unwrap();
    let quant = LayerQuant {
        dtype: rounded.dtype,
        weights: rounded.weights,
        scales: rounded.scales,
        bias: Vec::new(),
        groups: rounded.groups,
        codebook: None,
    };
    Candidate { quant, bias }
}

/// Weights as centroids, whose runs go along `[KH, KW, I/g]`.
fn coded(tensor: &Tensor) -> LayerQuant {
    let rows = tensor.dims[0];
    let inputs = tensor.dims[1];
    let (taps, k) = (
        tensor.dims[2..].iter().product::<usize>(),
        tensor.data.len() / rows,
    );
    // Where the weight of a stored place lies in the float weights.
    let place = |stored: usize| {
        let (row, at) = (stored / k, stored % k);
        row * k + at % inputs * taps + at / inputs
    };
    let arranged: Vec<f32> = (0..rows * k).map(|i| tensor.data[place(i)]).collect();
    let (centroids, width) = (CENTROIDS.0, CENTROIDS.1.min(k));
    let coded = weights::codebook(&arranged, rows, &[], centroids, width, 0).unwrap();
    let mut integers = vec![0; rows * k];
    for (stored, weight) in coded.expanded(k).into_iter().enumerate() {
        integers[place(stored)] = weight;
    }
    LayerQuant {
        dtype: DType::I8,
        weights: integers,
        scales: coded.scales,
        bias: Vec::new(),
        groups: None,
        codebook: Some(coded.codebook),
    }
}

/// A network, what it was calibrated to, and samples that had no part in that.
struct Bench<'g> {
    name: &'static str,
    graph: &'g Graph,
    placement: Placement,
    grids: Vec<Grids>,
    input: Tensor,
    samples: usize,
    cpu: CpuBackend,
}

impl<'g> Bench<'g> {
    fn quantized(&self, variant: &Variant) -> Quantized<'g> {
        let streams = if variant.streams {
            self.placement.streams(self.graph)
        } else {
            vec![false; self.placement.len()]
        };
        let choices = variant.layers.iter().cycle();
        let candidates: BTreeMap<usize, _> = self
            .graph
            .layers()
            .zip(choices)
            .map(|(layer, &(store, activations))| {
                let made = candidate(&self.graph.nodes[layer].op, store);
                (layer, (made, activations))
            })
            .collect();
        let decided = candidates
            .iter()
            .map(|(&layer, (candidate, activations))| {
                let activations = *activations;
                let decided = Decided {
                    activations,
                    candidate,
                };
                (layer, decided)
            })
            .collect();
        assemble(self.graph, &self.placement, &self.grids, &streams, &decided)
    }

    /// Values compared and values that differ, of the outputs on both backends, and of every value on the
    /// reference backend where `deep` is set.
    fn differing(&self, variant: &Variant, deep: bool) -> (usize, usize) {
        let quantized = self.quantized(variant);
        let (mut compared, mut differing) = (0, 0);
        let mut against = |quantized: &Quantized<'_>, backend: &dyn Backend, fused: bool| {
            let (all, wrong) = self.against(variant.name, quantized, backend, fused);
            compared += all;
            differing += wrong;
        };
        against(&quantized, &self.cpu, true);
        if deep {
            against(&quantized, &ReferenceBackend, true);
            let graph = every_value_public(self.graph);
            let open = Quantized {
                graph: &graph,
                ..quantized
            };
            against(&open, &ReferenceBackend, false);
            against(&open, &self.cpu, true);
        }
        (compared, differing)
    }

    /// Compares the outputs of the simulation with a backend's.
    fn against(
        &self,
        variant: &str,
        quantized: &Quantized<'_>,
        backend: &dyn Backend,
        fused: bool,
    ) -> (usize, usize) {
        let what = || format!("{} {variant}", self.name);
        let graph = to_graph(quantized).unwrap_or_else(|e| panic!("{}: {e}", what()));
        let executor = Executor::new(quantized.graph).unwrap();
        let exact = Exact::new(&executor, quantized).unwrap_or_else(|e| panic!("{}: {e}", what()));
        let simulated = executor.run(vec![self.input.clone()], &exact).unwrap();
        let bytes: Vec<u8> = self
            .input
            .data
            .iter()
            .flat_map(|x| x.to_le_bytes())
            .collect();
        let inputs = vec![bytes];
        let engine = run(backend, &graph, fused, &inputs, self.samples, self.samples).unwrap();
        assert_eq!(simulated.len(), engine.len(), "{}", what());
        let (mut compared, mut differing) = (0, 0);
        let ports = quantized.graph.outputs.iter();
        for ((port, tensor), engine) in ports.zip(&simulated).zip(&engine) {
            let simulated = exact.real(port.value, tensor);
            let engine = engine.as_chunks().0;
            assert_eq!(
                simulated.data.len(),
                engine.len(),
                "{} {}",
                what(),
                port.name
            );
            let pairs = simulated.data.iter().zip(engine);
            let wrong = pairs
                .filter(|(a, b)| **a != f32::from_le_bytes(**b))
                .count();
            if wrong > 0 {
                println!(
                    "{}: {} differs at {wrong} of {}",
                    what(),
                    port.name,
                    engine.len()
                );
            }
            compared += engine.len();
            differing += wrong;
        }
        (compared, differing)
    }
}

/// The graph with the result of every node as an output.
fn every_value_public(graph: &Graph) -> Graph {
    let mut graph = graph.clone();
    let computed = graph.nodes.iter().filter(|node| !node.inputs.is_empty());
    let port = |(index, node): (usize, &requant_import::float::Node)| Port {
        value: node.output,
        name: format!("value{index} {}", node.name),
    };
    graph.outputs = computed.enumerate().map(port).collect();
    graph
}

/// Samples from which a network is calibrated, and those that are run.
const COUNTS: (usize, usize) = (4, 2);

/// Checks a network at each variant; all of its values where `deep` says so.
fn check(data: &Path, name: &'static str, deep: impl Fn(&Variant) -> bool) {
    let path = networks::file(data, name);
    let graph = read_file(&path, &ImportOptions::default()).unwrap();
    let value = graph.value(graph.inputs[0].value);
    let (calibration, samples) = if graph.batched { COUNTS } else { (1, 1) };
    let reals = networks::inputs(data, name, calibration + samples).unwrap_or_else(|| {
        let mut rng = Rng::new(1);
        let count = value.elements() * (calibration + samples);
        (0..count).map(|_| rng.unit() as f32).collect()
    });
    let tensor = |first: usize, count: usize| {
        let mut dims = value.dims.clone();
        dims[0] *= count;
        let elements = value.elements();
        let data = reals[first * elements..(first + count) * elements].to_vec();
        Tensor { dims, data }
    };
    let executor = Executor::new(&graph).unwrap();
    let placement = Placement::new(&graph);
    let bench = Bench {
        name,
        graph: &graph,
        grids: grids(&executor, &placement, tensor(0, calibration)),
        placement,
        input: tensor(calibration, samples),
        samples,
        cpu: CpuBackend::new(CpuOptions::default()).unwrap(),
    };
    for variant in &VARIANTS {
        let (compared, differing) = bench.differing(variant, deep(variant));
        println!("{name}, {}: {differing} of {compared} differ", variant.name);
        assert_eq!(differing, 0, "{name}, {}", variant.name);
    }
}

#[test]
fn every_value_of_small_networks_is_the_engines() {
    let Some(data) = test_data("every_value_of_small_networks_is_the_engines") else {
        return;
    };
    for name in [
        "fmnist_resnet",
        "mlperf_tiny_ic_resnet8_float",
        "mlperf_tiny_ic_resnet8_large_float",
        "mlperf_tiny_kws_float",
        "mlperf_tiny_vww_96_float",
        "mlperf_tiny_ad01_float",
    ] {
        check(&data, name, |_| true);
    }
}

/// Plain loops are slow: on the large networks they meet the variant that has everything.
#[test]
fn large_networks_give_the_engines_answers() {
    let Some(data) = test_data("large_networks_give_the_engines_answers") else {
        return;
    };
    for name in ["ultraface_rfb320", "efficientnet-lite0"] {
        check(&data, name, |variant| variant.name == MIXED.name);
    }
}

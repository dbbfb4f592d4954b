//! Reconstruction of small hand-built networks: blocks, what is learnt, gradients of whole networks.

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use requant_import::float::{
    ActivationQuant, Binary, BinaryKind, Clamp, Conv, Gemm, Graph, LayerQuant, Node, Op, Port,
    Quantized, Tensor, Value, ValueId,
};
use requant_model::Affine;
use requant_model::ops::Window;
use requant_numerics::DType;

use super::*;
use crate::exec::{Executor, Reals};

fn normal(rng: &mut ChaCha8Rng, count: usize, scale: f32) -> Vec<f32> {
    let mut uniform = || (rng.next_u32() >> 8) as f32 / (1u32 << 24) as f32 - 0.5;
    let sum = |_| (0..6).map(|_| uniform()).sum::<f32>() * scale * 1.4;
    (0..count).map(sum).collect()
}

struct Builder {
    graph: Graph,
    rng: ChaCha8Rng,
}

impl Builder {
    fn new(dims: &[usize]) -> Self {
        let mut builder = Self {
            graph: Graph {
                batched: true,
                ..Graph::default()
            },
            rng: ChaCha8Rng::seed_from_u64(5),
        };
        let value = builder.value(dims);
        builder.graph.inputs.push(Port {
            value,
            name: "x".to_owned(),
        });
        builder
    }

    fn value(&mut self, dims: &[usize]) -> ValueId {
        let id = ValueId(self.graph.values.len());
        self.graph.values.push(Value {
            name: format!("v{}", id.0),
            dims: dims.to_vec(),
            batched: true,
        });
        id
    }

    fn node(&mut self, op: Op, inputs: &[ValueId], dims: &[usize]) -> ValueId {
        let output = self.value(dims);
        self.graph.nodes.push(Node {
            name: format!("n{}", self.graph.nodes.len()),
            op,
            inputs: inputs.to_vec(),
            output,
        });
        output
    }

    fn conv(&mut self, inputs: &[ValueId], outputs: usize, clamp: Clamp) -> ValueId {
        let dims = self.graph.value(inputs[0]).dims.clone();
        let scale = 1.0 / (dims[1] as f32 * 4.5).sqrt();
        let op = Op::Conv(Conv {
            weights: Arc::new(Tensor {
                dims: vec![outputs, dims[1], 3, 3],
                data: normal(&mut self.rng, outputs * dims[1] * 9, scale),
            }),
            bias: normal(&mut self.rng, outputs, 0.2),
            window: Window {
                kernel: [3, 3],
                strides: [1, 1],
                pads: [1; 4],
                dilations: [1, 1],
                ceil: false,
            },
            groups: 1,
            residual: inputs.len() > 1,
            clamp,
        });
        self.node(op, inputs, &[1, outputs, dims[2], dims[3]])
    }

    fn finish(mut self, output: ValueId) -> Graph {
        self.graph.outputs.push(Port {
            value: output,
            name: "y".to_owned(),
        });
        self.graph
    }
}

/// Convolution, residual block, mean, product: `[1, 3, 6, 6]` to 5 classes.
fn residual_network() -> Graph {
    let mut b = Builder::new(&[1, 3, 6, 6]);
    let x = b.conv(&[ValueId(0)], 8, Clamp::RELU);
    let y = b.conv(&[x], 8, Clamp::RELU);
    let z = b.conv(&[y, x], 8, Clamp::RELU);
    let op = Op::Mean {
        axes: vec![2, 3],
        clamp: Clamp::NONE,
    };
    let mean = b.node(op, &[z], &[1, 8, 1, 1]);
    let flat = b.node(Op::Reshape, &[mean], &[1, 8]);
    let gemm = Op::Gemm(Gemm {
        weights: Arc::new(Tensor {
            dims: vec![5, 8],
            data: normal(&mut b.rng, 40, 1.0),
        }),
        bias: normal(&mut b.rng, 5, 0.2),
        residual: false,
        clamp: Clamp::NONE,
    });
    let logits = b.node(gemm, &[flat], &[1, 5]);
    b.finish(logits)
}

fn images(count: usize) -> Vec<f32> {
    // Smooth pictures: neighbours correlate, as they do in real ones.
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let mut data = Vec::new();
    for _ in 0..count * 3 {
        let w = normal(&mut rng, 4, 1.0);
        for i in 0..36 {
            let (y, x) = ((i / 6) as f32 / 3.0 - 1.0, (i % 6) as f32 / 3.0 - 1.0);
            data.push(w[0] + w[1] * y + w[2] * x + w[3] * y * x);
        }
    }
    data
}

/// Every layer rounded to the nearest of `bits` bits, every value to 8, operands of layers behind the first
/// to `reads`.
fn nearest<'g>(
    graph: &'g Graph,
    data: &Samples<'_>,
    weights: DType,
    reads: DType,
) -> Quantized<'g> {
    let executor = Executor::new(graph).expect("an executor");
    let input = Tensor {
        dims: vec![data.count, 3, 6, 6],
        data: data.inputs[0].to_vec(),
    };
    let arithmetic = Reals::default();
    let mut values = executor.start(vec![input], &arithmetic).expect("values");
    let all: Vec<ValueId> = (0..graph.values.len()).map(ValueId).collect();
    executor
        .compute(&mut values, &all, &arithmetic, &mut |_, _| ())
        .expect("a run");
    let grid = |id: &ValueId, dtype: DType| {
        let data = &values.get(*id).expect("a value").data;
        let lo = data.iter().fold(0.0f32, |m, &v| m.min(v));
        let hi = data.iter().fold(0.0f32, |m, &v| m.max(v));
        let (low, high) = dtype.range().expect("integers");
        let scale = (hi - lo) / (high - low) as f32;
        let zero_point = (low as f32 - lo / scale).round() as i32;
        ActivationQuant {
            dtype,
            quant: Affine { scale, zero_point },
        }
    };
    let mut quantized = Quantized {
        graph,
        values: all.iter().map(|id| Some(grid(id, DType::U8))).collect(),
        operands: BTreeMap::new(),
        layers: vec![None; graph.nodes.len()],
    };
    let (_, top) = weights.range().expect("integers");
    for index in graph.layers().collect::<Vec<_>>() {
        let node = &graph.nodes[index];
        if index > 0 && reads != DType::U8 {
            let grid = grid(&node.inputs[0], reads);
            quantized.operands.insert((index, 0), grid);
        }
        let reals = node.op.weights().expect("weights");
        let k = reals.data.len() / reals.dims[0];
        let mut layer = LayerQuant {
            dtype: weights,
            weights: Vec::new(),
            scales: Vec::new(),
            bias: Vec::new(),
            groups: None,
            codebook: None,
        };
        let x = quantized.operand(index, 0).expect("a grid").quant.scale;
        let bias = path::real_bias(&node.op);
        for (row, bias) in reals.data.chunks(k).zip(bias) {
            let scale = row.iter().fold(0.0f32, |m, w| m.max(w.abs())) / top as f32;
            layer
                .weights
                .extend(row.iter().map(|w| (w / scale).round() as i8));
            layer.scales.push(scale);
            layer.bias.push((bias / (x * scale)).round() as i32);
        }
        quantized.layers[index] = Some(layer);
    }
    quantized
}

/// Squared error of the answers on the samples, relative to their squares.
fn error(graph: &Graph, quantized: &Quantized<'_>, data: &Samples<'_>) -> f64 {
    let executor = Executor::new(graph).expect("an executor");
    let run = |arithmetic: Reals| {
        let input = Tensor {
            dims: vec![data.count, 3, 6, 6],
            data: data.inputs[0].to_vec(),
        };
        executor.run(vec![input], &arithmetic).expect("a run")[0]
            .data
            .clone()
    };
    let (real, fake) = (run(Reals::default()), run(Reals::fake(quantized)));
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = real.iter().zip(&fake).map(|(r, f)| square(r - f)).sum();
    error / real.iter().map(|&r| square(r)).sum::<f64>()
}

fn effort() -> Effort {
    Effort {
        iterations: 250,
        batch: 16,
        weight_rate: 0.03,
        ..Effort::default()
    }
}

#[test]
fn a_residual_block_is_one_block_and_a_chain_is_layers() {
    let graph = residual_network();
    let blocks: Vec<_> = partition(&graph, 8).into_iter().map(|b| b.nodes).collect();
    assert_eq!(blocks, [0..1, 1..3, 3..4, 4..5, 5..6]);
    let single: Vec<_> = partition(&graph, 1).into_iter().map(|b| b.nodes).collect();
    assert_eq!(single, [0..1, 1..2, 2..3, 3..4, 4..5, 5..6]);
    let block = Block { nodes: 1..3 };
    assert_eq!(block.inputs(&graph), [graph.nodes[0].output]);
    assert_eq!(block.outputs(&graph), [graph.nodes[2].output]);
    let half = Block { nodes: 0..2 };
    let both = vec![graph.nodes[0].output, graph.nodes[1].output];
    assert_eq!(half.outputs(&graph), both);
}

#[test]
fn reconstruction_beats_rounding_to_nearest_on_unseen_samples() {
    let graph = residual_network();
    let data = images(96);
    let (seen, unseen) = data.split_at(64 * 108);
    let seen = Samples::new(&graph, 64, vec![seen]).expect("samples");
    let unseen = Samples::new(&graph, 32, vec![unseen]).expect("samples");
    for (weights, reads, gain) in [(DType::I4, DType::U4, 0.6), (DType::I4, DType::U8, 0.75)] {
        let mut quantized = nearest(&graph, &seen, weights, reads);
        let start = error(&graph, &quantized, &unseen);
        let reports =
            reconstruct_model(&mut quantized, &seen, &effort(), None, &()).expect("reports");
        let end = error(&graph, &quantized, &unseen);
        assert_eq!(reports.len(), 3, "{weights} {reads}");
        for report in &reports {
            assert!(report.kept && report.after < report.before, "{report:?}");
        }
        assert!(
            end < gain * start,
            "{weights} {reads}: from {start} to {end}"
        );
        // Integers stay in their type, one beside the weight's real place.
        for index in graph.layers() {
            let layer = quantized.layers[index].as_ref().expect("a layer");
            assert!(layer.weights.iter().all(|&w| weights.contains(w.into())));
        }
    }
}

#[test]
fn finished_blocks_are_taken_up_by_the_same_job() {
    use crate::work::{Key, Work};

    let graph = residual_network();
    let data = images(24);
    let samples = Samples::new(&graph, 24, vec![&data]).expect("samples");
    let folder = tempfile::tempdir().expect("a folder");
    let place = folder.path().join("work");
    let run = |resume: bool, key: &str, iterations: usize| {
        let work = Work::new(&place, resume);
        let key = Key::of([key.as_bytes()]);
        let mut quantized = nearest(&graph, &samples, DType::I4, DType::U4);
        let effort = Effort {
            iterations,
            ..effort()
        };
        let steps = Some((&work, &key));
        let reports = reconstruct_model(&mut quantized, &samples, &effort, steps, &());
        let Quantized {
            layers,
            operands,
            values,
            ..
        } = quantized;
        (layers, operands, values, reports.expect("reports"))
    };
    let steps = || {
        let files = std::fs::read_dir(&place).expect("a folder");
        files.map(|file| file.expect("a file").path())
    };
    let whole = run(false, "a", 30);
    assert!(whole.3.iter().all(|report| report.kept));
    assert_eq!(steps().count(), 3);
    assert_eq!(run(true, "a", 30), whole);
    for missing in steps().collect::<Vec<_>>() {
        std::fs::remove_file(missing).expect("a file");
        assert_eq!(run(true, "a", 30), whole);
    }
    // Blocks come from there: without what they changed, nothing is changed.
    for step in steps() {
        let text = std::fs::read_to_string(&step).expect("a step");
        let (report, _) = text.split_once("\"layers\":").expect("layers");
        let none = "\"layers\":[],\"operands\":[],\"values\":[]}]";
        std::fs::write(step, format!("{report}{none}")).expect("a step");
    }
    let plain = nearest(&graph, &samples, DType::I4, DType::U4);
    let unlearnt = run(true, "a", 30);
    assert_eq!((unlearnt.0, unlearnt.1), (plain.layers, plain.operands));
    // Another job, or one that learns longer, has no use for them.
    assert_eq!(run(true, "b", 30), whole);
    let longer = run(true, "b", 90);
    assert_ne!(longer.3, whole.3);
    assert_eq!(run(false, "c", 90), longer);
}

#[test]
fn what_a_block_says_of_its_error_is_what_the_executor_finds() {
    let graph = residual_network();
    let data = images(24);
    let samples = Samples::new(&graph, 24, vec![&data]).expect("samples");
    let mut quantized = nearest(&graph, &samples, DType::I4, DType::U4);
    let effort = Effort {
        iterations: 40,
        batch: 7,
        layers: 1,
        ..effort()
    };
    let reports = reconstruct_model(&mut quantized, &samples, &effort, None, &()).expect("reports");
    let last = reports.last().expect("a report");
    let want = error(&graph, &quantized, &samples);
    // Biases are integers in the executor; a sum near the middle of two steps may take the other.
    let stated = if last.kept { last.after } else { last.before };
    assert!(
        (stated - want).abs() < 5e-3 * want,
        "{stated} instead of {want}"
    );
}

#[test]
fn layers_of_eight_bits_stay_and_values_of_four_are_learnt() {
    let graph = residual_network();
    let data = images(32);
    let samples = Samples::new(&graph, 32, vec![&data]).expect("samples");
    let mut quantized = nearest(&graph, &samples, DType::I8, DType::U8);
    let before = quantized.clone();
    assert!(
        reconstruct_model(&mut quantized, &samples, &effort(), None, &())
            .expect("reports")
            .is_empty()
    );
    assert_eq!(quantized.layers, before.layers);
    // The value between the block's convolutions has 4 bits: both its scale and the bias of its reader,
    // which is in steps of it, change.
    let inner = graph.nodes[1].output;
    let narrow = nearest(&graph, &samples, DType::I8, DType::U4).operands[&(2, 0)];
    quantized.values[inner.0] = Some(narrow);
    let layer = quantized.layers[2].as_mut().expect("a layer");
    let old = before.values[inner.0].expect("a grid").quant.scale;
    for bias in &mut layer.bias {
        *bias = (*bias as f32 * old / narrow.quant.scale).round() as i32;
    }
    let reports =
        reconstruct_model(&mut quantized, &samples, &effort(), None, &()).expect("reports");
    assert_eq!(reports.len(), 1);
    assert!(reports[0].kept);
    let learnt = quantized.values[inner.0].expect("a grid");
    assert_ne!(learnt.quant.scale, narrow.quant.scale);
    assert_eq!(learnt.quant.zero_point, narrow.quant.zero_point);
    let weights = |q: &Quantized<'_>| -> Vec<Vec<i8>> {
        q.layers
            .iter()
            .flatten()
            .map(|l| l.weights.clone())
            .collect()
    };
    assert_eq!(weights(&quantized), weights(&before));
}

#[test]
fn threads_and_memory_change_nothing_and_samples_are_cut_to_memory() {
    let graph = residual_network();
    let data = images(40);
    let run = |threads: usize, memory: usize| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .expect("a pool");
        pool.install(|| {
            let samples = Samples::new(&graph, 40, vec![&data]).expect("samples");
            let mut quantized = nearest(&graph, &samples, DType::I4, DType::U4);
            let effort = Effort {
                iterations: 20,
                memory,
                ..effort()
            };
            let reports =
                reconstruct_model(&mut quantized, &samples, &effort, None, &()).expect("reports");
            (quantized.layers, quantized.operands, reports)
        })
    };
    let one = run(1, 1 << 30);
    assert_eq!(one, run(3, 1 << 30));
    // Alive before and behind the first block: 108 and 288 elements; before the last: 8 and 5.
    let (_, _, reports) = run(2, 2 * 20 * 8 * (108 + 288));
    let counts: Vec<usize> = reports.iter().map(|report| report.samples).collect();
    assert_eq!(counts, [20, 16, 40]);
}

#[test]
fn a_listener_can_stop_it_and_wrong_data_is_refused() {
    struct Stop;
    impl crate::progress::Progress for Stop {
        fn cancelled(&self) -> bool {
            true
        }
    }
    let graph = residual_network();
    let data = images(4);
    let samples = Samples::new(&graph, 4, vec![&data]).expect("samples");
    let mut quantized = nearest(&graph, &samples, DType::I4, DType::U8);
    let stopped = reconstruct_model(&mut quantized, &samples, &effort(), None, &Stop);
    assert!(matches!(stopped, Err(ReconstructError::Cancelled)));
    let short = Samples::new(&graph, 5, vec![&data]);
    assert!(matches!(
        short,
        Err(ReconstructError::Data {
            input: 0,
            found: 432,
            expected: 540
        })
    ));
    assert!(matches!(
        Samples::new(&graph, 0, vec![]),
        Err(ReconstructError::NoSamples)
    ));
    quantized.layers[1] = None;
    let missing = reconstruct_model(&mut quantized, &samples, &effort(), None, &());
    assert!(matches!(
        missing,
        Err(ReconstructError::NotQuantized { .. })
    ));
}

#[test]
fn gradients_of_a_network_are_those_of_its_loss() {
    let graph = residual_network();
    let data = images(3);
    let samples = Samples::new(&graph, 3, vec![&data]).expect("samples");
    let loss = NetworkLoss::new(&graph, samples.clone(), Loss::TopClass).expect("a loss");
    let gradients = loss.gradients(&BTreeMap::new(), 0..3).expect("gradients");
    let executor = Executor::new(&graph).expect("an executor");
    let value = |weights: &BTreeMap<usize, Vec<f32>>| -> f64 {
        let mut arithmetic = Reals::default();
        for (&node, weights) in weights {
            let layer = crate::exec::LayerReals {
                weights: Arc::new(weights.clone()),
                bias: path::real_bias(&graph.nodes[node].op).to_vec(),
            };
            arithmetic = arithmetic.with_layer(node, layer);
        }
        let input = || Tensor {
            dims: vec![3, 3, 6, 6],
            data: data.clone(),
        };
        let logits = executor.run(vec![input()], &arithmetic).expect("a run");
        let real = executor
            .run(vec![input()], &Reals::default())
            .expect("a run");
        let rows = logits[0].data.chunks(5).zip(real[0].data.chunks(5));
        let losses = rows.map(|(row, real)| {
            let top = crate::judge::top1(real);
            let sum: f64 = row.iter().map(|&v| libm::exp(f64::from(v))).sum();
            libm::log(sum) - f64::from(row[top])
        });
        losses.sum::<f64>() / 3.0
    };
    let layers: Vec<usize> = graph.layers().collect();
    for (&node, gradient) in layers.iter().zip(&gradients) {
        let own = &graph.nodes[node].op.weights().expect("weights").data;
        assert_eq!(gradient.len(), own.len());
        let norm = gradient.iter().fold(0.0f32, |m, g| m.max(g.abs()));
        for i in (0..own.len()).step_by(own.len() / 7) {
            let at = |step: f32| {
                let mut moved = own.clone();
                moved[i] += step;
                value(&BTreeMap::from([(node, moved)]))
            };
            let want = (at(1e-3) - at(-1e-3)) / 2e-3;
            let found = f64::from(gradient[i]);
            assert!(
                (found - want).abs() < 1e-2 * f64::from(norm),
                "layer {node}, weight {i}: {found} instead of {want}"
            );
        }
    }
    let again = loss.mean_gradients(&BTreeMap::new(), || Ok(()));
    assert_eq!(again.expect("gradients"), gradients);
    let stopped = loss.mean_gradients(&BTreeMap::new(), || Err(ReconstructError::Cancelled));
    assert!(matches!(stopped, Err(ReconstructError::Cancelled)));
    // The divergence is at its minimum at the real weights.
    let divergence = NetworkLoss::new(&graph, samples.clone(), Loss::Divergence).expect("a loss");
    let at_rest = divergence
        .gradients(&BTreeMap::new(), 0..3)
        .expect("gradients");
    let largest = |g: &[Vec<f32>]| g.iter().flatten().fold(0.0f32, |m, g| m.max(g.abs()));
    assert!(largest(&at_rest) < 1e-4 * largest(&gradients));
    // Fisher: the mean of squared gradients of single samples.
    let diagonal = fisher(&graph, &samples, || Ok(())).expect("a diagonal");
    let singles: Vec<_> = (0..3)
        .map(|i| {
            loss.gradients(&BTreeMap::new(), i..i + 1)
                .expect("gradients")
        })
        .collect();
    for (layer, diagonal) in diagonal.iter().enumerate() {
        for (i, &found) in diagonal.iter().enumerate() {
            let squares = singles.iter().map(|g| f64::from(g[layer][i]).powi(2));
            assert!((found - squares.sum::<f64>() / 3.0).abs() <= 1e-12);
        }
    }
}

/// Of a convolution `y` without classes the Fisher information of a normal distribution around the answer, in
/// units of the answer's mean square, is for the weight at the window's middle the mean over samples of `Σ x²`.
#[test]
fn fisher_information_without_classes_is_that_of_a_normal_distribution() {
    const SAMPLES: usize = 256;
    let mut b = Builder::new(&[1, 3, 6, 6]);
    let y = b.conv(&[ValueId(0)], 2, Clamp::NONE);
    let single = b.finish(y);
    let data = images(SAMPLES);
    let diagonal = |graph: &Graph| {
        let samples = Samples::new(graph, SAMPLES, vec![&data]).expect("samples");
        fisher(graph, &samples, || Ok(())).expect("a diagonal")
    };
    let middles = |diagonal: &[Vec<f64>]| diagonal[0].iter().skip(4).step_by(9).sum::<f64>();
    let input = Tensor {
        dims: vec![SAMPLES, 3, 6, 6],
        data: data.clone(),
    };
    let executor = Executor::new(&single).expect("an executor");
    let answers = executor.run(vec![input], &Reals::default()).expect("a run");
    let mean_square = |x: &[f32]| {
        let squares = x.iter().map(|&x| f64::from(x) * f64::from(x));
        squares.sum::<f64>() / SAMPLES as f64
    };
    // Two output channels read every input, and an answer has 72 elements.
    let wanted = 2.0 * mean_square(&data) / mean_square(&answers[0].data) / 72.0;
    let found = middles(&diagonal(&single));
    assert!((found / wanted - 1.0).abs() < 0.2, "{found}, not {wanted}");
    // An output that the layer does not make halves its gradient, in whatever order they are.
    let mut both = single.clone();
    let first = Port {
        value: ValueId(0),
        name: "x".to_owned(),
    };
    both.outputs.insert(0, first);
    let ratio = found / middles(&diagonal(&both));
    assert!((ratio / 4.0 - 1.0).abs() < 0.3, "{ratio}");
}

#[test]
fn a_sum_of_branches_that_nothing_dominates_is_cut_into_layers() {
    let mut b = Builder::new(&[1, 3, 4, 4]);
    let x = ValueId(0);
    let one = b.conv(&[x], 3, Clamp::NONE);
    let two = b.conv(&[x], 3, Clamp::NONE);
    let three = b.conv(&[one], 3, Clamp::NONE);
    let sum = Op::Binary(Binary {
        kind: BinaryKind::Sum,
        clamp: Clamp::RELU,
    });
    let y = b.node(sum, &[two, three], &[1, 3, 4, 4]);
    let graph = b.finish(y);
    let nodes = |most| -> Vec<_> {
        let blocks = partition(&graph, most).into_iter();
        blocks.map(|block| block.nodes).collect()
    };
    assert_eq!(nodes(3).len(), 1);
    assert_eq!(nodes(2), [0..1, 1..2, 2..3, 3..4]);
}

//! Scale moved between layers leaves what the float model computes as it was, and moves it where it may.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;

use requant_conformance::Rng;
use requant_conformance::npz::test_data;
use requant_import::float::{
    self, Clamp, Conv, Expr, Gemm, Graph, Map, Node, Op, Port, Tensor, Value, ValueId,
};
use requant_import::onnx::ImportOptions;
use requant_model::ops::Window;
use requant_quantize::data::Data;
use requant_quantize::exec::{Executor, Reals};
use requant_quantize::pipeline::{Equalise, Samples, equalise, input_specs};

struct Builder {
    graph: Graph,
    rng: Rng,
}

impl Builder {
    fn new(dims: &[usize]) -> Self {
        let mut builder = Builder {
            graph: Graph {
                batched: true,
                ..Graph::default()
            },
            rng: Rng::new(7),
        };
        let value = builder.value(dims);
        let name = "x".to_owned();
        builder.graph.inputs.push(Port { value, name });
        builder
    }

    fn value(&mut self, dims: &[usize]) -> ValueId {
        let id = self.graph.values.len();
        self.graph.values.push(Value {
            name: format!("v{id}"),
            dims: dims.to_vec(),
            batched: true,
        });
        ValueId(id)
    }

    fn node(&mut self, op: Op, inputs: &[ValueId], dims: &[usize]) -> ValueId {
        let output = self.value(dims);
        let name = format!("n{}", self.graph.nodes.len());
        self.graph.nodes.push(Node {
            name,
            op,
            inputs: inputs.to_vec(),
            output,
        });
        output
    }

    /// Reals of ranges that differ by channel.
    fn tensor(&mut self, dims: &[usize]) -> Arc<Tensor> {
        let rows = dims[0];
        let row = dims.iter().skip(1).product::<usize>();
        let mut data = Vec::new();
        for _ in 0..rows {
            let size = 10f64.powf(2.0 * self.rng.unit() - 1.0);
            data.extend((0..row).map(|_| (size * (self.rng.unit() - 0.5)) as f32));
        }
        let dims = dims.to_vec();
        Arc::new(Tensor { dims, data })
    }

    fn conv(&mut self, x: &[ValueId], out: usize, groups: usize, clamp: Clamp) -> ValueId {
        let dims = self.graph.value(x[0]).dims.clone();
        let weights = self.tensor(&[out, dims[1] / groups, 3, 3]);
        let bias = self.tensor(&[out, 1]).data.clone();
        let conv = Conv {
            weights,
            bias,
            window: window([3, 3], 1, 1),
            groups,
            residual: x.len() > 1,
            clamp,
        };
        self.node(Op::Conv(conv), x, &[1, out, dims[2], dims[3]])
    }

    fn finish(mut self, y: ValueId) -> Graph {
        let port = Port {
            value: y,
            name: "y".to_owned(),
        };
        self.graph.outputs.push(port);
        self.graph
    }
}

fn window(kernel: [usize; 2], stride: usize, pad: usize) -> Window {
    Window {
        kernel,
        strides: [stride; 2],
        pads: [pad; 4],
        dilations: [1, 1],
        ceil: false,
    }
}

/// A chain of all that lets scale pass: a depthwise layer, a PReLU, a pool, a flattening.
fn chain(clamp: Clamp) -> Graph {
    let mut b = Builder::new(&[1, 2, 8, 8]);
    let one = b.conv(&[ValueId(0)], 6, 1, clamp);
    let two = b.conv(&[one], 6, 6, Clamp::NONE);
    let slope = b.tensor(&[6, 1, 1]);
    let expr = Expr::Binary(
        "PRelu".to_owned(),
        Box::new(Expr::Input),
        Box::new(Expr::Constant(slope)),
    );
    let bent = b.node(Op::Map(Map { expr }), &[two], &[1, 6, 8, 8]);
    let pooled = b.node(Op::MaxPool(window([2, 2], 2, 0)), &[bent], &[1, 6, 4, 4]);
    let grouped = b.conv(&[pooled], 4, 2, Clamp::RELU);
    let flat = b.node(Op::Reshape, &[grouped], &[1, 64]);
    let gemm = Gemm {
        weights: b.tensor(&[5, 64]),
        bias: vec![0.5; 5],
        residual: false,
        clamp: Clamp::NONE,
    };
    let y = b.node(Op::Gemm(gemm), &[flat], &[1, 5]);
    b.finish(y)
}

/// A layer that is read twice, and a sum: nothing may move but into the branch.
fn residual() -> Graph {
    let mut b = Builder::new(&[1, 2, 8, 8]);
    let one = b.conv(&[ValueId(0)], 4, 1, Clamp::RELU);
    let two = b.conv(&[one], 6, 1, Clamp::RELU);
    let three = b.conv(&[two, one], 4, 1, Clamp::RELU);
    let four = b.conv(&[three], 3, 1, Clamp::NONE);
    b.finish(four)
}

fn run(graph: &Graph, samples: &Samples<'_>) -> Vec<f32> {
    let executor = Executor::new(graph).unwrap();
    let batch = samples.batch(0, samples.len()).unwrap();
    executor.run(batch, &Reals::default()).unwrap()[0]
        .data
        .clone()
}

/// Equalises; how many pairs, and the weights of each layer after it.
fn moved(graph: &Graph, how: Equalise) -> (usize, BTreeMap<String, Arc<Tensor>>) {
    let data = Data::noise(&input_specs(graph), 6, 3);
    let samples = Samples::new(graph, &data);
    let mut equal = graph.clone();
    let pairs = equalise(&mut equal, &samples, how, &()).unwrap();
    let (before, after) = (run(graph, &samples), run(&equal, &samples));
    let largest = before.iter().fold(0f32, |m, v| m.max(v.abs()));
    assert!(largest > 0.0);
    for (a, b) in before.iter().zip(&after) {
        assert!((a - b).abs() <= 2e-5 * largest, "{how}: {a} became {b}");
    }
    let layers = equal.layers().map(|index| {
        let node = &equal.nodes[index];
        (node.name.clone(), node.op.weights().unwrap().clone())
    });
    (pairs, layers.collect())
}

fn largest(weights: &[f32]) -> f32 {
    weights.iter().fold(0.0, |most, w| most.max(w.abs()))
}

#[test]
fn what_a_network_computes_stays() {
    for how in [Equalise::Weights, Equalise::Smooth] {
        let (pairs, layers) = moved(&chain(Clamp::RELU), how);
        assert_eq!(pairs, 3);
        if how == Equalise::Weights {
            // Channel by channel, the depthwise layer's weights reach as far as those before it.
            let (one, two) = (&layers["n0"].data, &layers["n1"].data);
            for (one, two) in one.chunks(18).zip(two.chunks(9)) {
                let (one, two) = (largest(one), largest(two));
                assert!((one / two - 1.0).abs() < 0.05, "{one} {two}");
            }
        }
        // A clamp at 6 knows the scale: only what comes after it is left.
        let six = Clamp { lo: 0.0, hi: 6.0 };
        assert_eq!(moved(&chain(six), how).0, 2);
        assert_eq!(moved(&residual(), how).0, 1);
    }
    let graph = chain(Clamp::RELU);
    let (pairs, layers) = moved(&graph, Equalise::None);
    assert_eq!(pairs, 0);
    for index in graph.layers() {
        let node = &graph.nodes[index];
        assert_eq!(&layers[&node.name], node.op.weights().unwrap());
    }
}

#[test]
fn trained_networks_compute_the_same() {
    let Some(data) = test_data("trained_networks_compute_the_same") else {
        return;
    };
    for (name, least) in [
        ("mlperf_tiny_kws_float", 8),
        ("mlperf_tiny_ic_resnet8_float", 3),
        ("fmnist_resnet", 3),
    ] {
        let bytes = std::fs::read(data.join(format!("models/{name}.onnx"))).unwrap();
        let graph = float::read_bytes(&bytes, name, &ImportOptions::default()).unwrap();
        for how in [Equalise::Weights, Equalise::Smooth] {
            let (pairs, _) = moved(&graph, how);
            assert!(pairs >= least, "{name}: {pairs} pairs");
        }
    }
}

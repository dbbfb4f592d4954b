//! Images a second of a network with the layers of efficientnet-lite0 (0.4 GMAC), on two threads, in reals, with
//! simulated quantization and in the engine's integers:
//! `cargo bench -p requant-quantize --bench executor`.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;
use std::time::Instant;

use requant_import::float::{
    ActivationQuant, Binary, BinaryKind, Clamp, Conv, Gemm, Graph, LayerQuant, Node, Op, Port,
    Quantized, Tensor, Value, ValueId,
};
use requant_model::Affine;
use requant_model::ops::Window;
use requant_numerics::DType;
use requant_quantize::exec::{Arithmetic, Exact, Executor, Reals};

const BATCH: usize = 32;
const SIX: Clamp = Clamp { lo: 0.0, hi: 6.0 };

fn node(graph: &mut Graph, op: Op, inputs: &[ValueId], dims: Vec<usize>) -> ValueId {
    let index = graph.nodes.len();
    let output = ValueId(graph.values.len());
    graph.values.push(Value {
        name: format!("v{index}"),
        dims,
        batched: true,
    });
    graph.nodes.push(Node {
        name: format!("n{index}"),
        op,
        inputs: inputs.to_vec(),
        output,
    });
    output
}

fn conv(
    graph: &mut Graph,
    x: ValueId,
    (o, kernel, stride, depthwise): (usize, usize, usize, bool),
    clamp: Clamp,
) -> ValueId {
    let dims = graph.value(x).dims.clone();
    let groups = if depthwise { dims[1] } else { 1 };
    let weights = [o, dims[1] / groups, kernel, kernel];
    let count: usize = weights.iter().product();
    let deviation = 1.0 / (count as f32 / o as f32).sqrt();
    let data = (0..count)
        .map(|i| ((i * 7919 % 255) as f32 / 127.0 - 1.0) * deviation)
        .collect();
    let pad = kernel / 2;
    let window = Window {
        kernel: [kernel; 2],
        strides: [stride; 2],
        pads: [pad; 4],
        dilations: [1; 2],
        ceil: false,
    };
    let out = vec![
        1,
        o,
        window.output(0, dims[2]).unwrap(),
        window.output(1, dims[3]).unwrap(),
    ];
    let conv = Conv {
        weights: Arc::new(Tensor {
            dims: weights.to_vec(),
            data,
        }),
        bias: vec![0.1; o],
        window,
        groups,
        residual: false,
        clamp,
    };
    node(graph, Op::Conv(conv), &[x], out)
}

fn network() -> Graph {
    let mut graph = Graph {
        name: "lite0".to_owned(),
        batched: true,
        ..Graph::default()
    };
    graph.values.push(Value {
        name: "x".to_owned(),
        dims: vec![1, 3, 224, 224],
        batched: true,
    });
    graph.inputs.push(Port {
        value: ValueId(0),
        name: "x".to_owned(),
    });
    let mut x = conv(&mut graph, ValueId(0), (32, 3, 2, false), SIX);
    let stages = [
        (1, 3, 1, 16, 1),
        (6, 3, 2, 24, 2),
        (6, 5, 2, 40, 2),
        (6, 3, 2, 80, 3),
        (6, 5, 1, 112, 3),
        (6, 5, 2, 192, 4),
        (6, 3, 1, 320, 1),
    ];
    for (expand, kernel, stride, outputs, repeats) in stages {
        for repeat in 0..repeats {
            let channels = graph.value(x).dims[1];
            let stride = if repeat == 0 { stride } else { 1 };
            let mut y = x;
            if expand > 1 {
                y = conv(&mut graph, y, (channels * expand, 1, 1, false), SIX);
            }
            y = conv(
                &mut graph,
                y,
                (channels * expand, kernel, stride, true),
                SIX,
            );
            y = conv(&mut graph, y, (outputs, 1, 1, false), Clamp::NONE);
            if repeat > 0 {
                let dims = graph.value(y).dims.clone();
                let sum = Binary {
                    kind: BinaryKind::Sum,
                    clamp: Clamp::NONE,
                };
                y = node(&mut graph, Op::Binary(sum), &[y, x], dims);
            }
            x = y;
        }
    }
    x = conv(&mut graph, x, (1280, 1, 1, false), SIX);
    let mean = Op::Mean {
        axes: vec![2, 3],
        clamp: Clamp::NONE,
    };
    x = node(&mut graph, mean, &[x], vec![1, 1280, 1, 1]);
    x = node(&mut graph, Op::Reshape, &[x], vec![1, 1280]);
    let data = (0..1_280_000)
        .map(|i| (i * 7919 % 255) as f32 / 1270.0 - 0.1)
        .collect();
    let gemm = Gemm {
        weights: Arc::new(Tensor {
            dims: vec![1000, 1280],
            data,
        }),
        bias: vec![0.0; 1000],
        residual: false,
        clamp: Clamp::NONE,
    };
    x = node(&mut graph, Op::Gemm(gemm), &[x], vec![1, 1000]);
    graph.outputs.push(Port {
        value: x,
        name: "y".to_owned(),
    });
    graph
}

fn quantized(graph: &Graph) -> Quantized<'_> {
    let quant = ActivationQuant {
        dtype: DType::U8,
        quant: Affine {
            scale: 0.05,
            zero_point: 100,
        },
    };
    let layer = |node: &Node| {
        let weights = node.op.weights()?;
        let outputs = weights.dims[0];
        Some(LayerQuant {
            dtype: DType::I8,
            weights: weights
                .data
                .iter()
                .map(|w| (w * 127.0).clamp(-127.0, 127.0) as i8)
                .collect(),
            scales: vec![1.0 / 127.0; outputs],
            bias: vec![10; outputs],
            groups: None,
            codebook: None,
        })
    };
    Quantized {
        graph,
        values: vec![Some(quant); graph.values.len()],
        operands: Default::default(),
        layers: graph.nodes.iter().map(layer).collect(),
    }
}

fn main() {
    let graph = network();
    let executor = Executor::new(&graph).unwrap();
    let quantized = quantized(&graph);
    let macs: u64 = graph.layers().map(|index| graph.macs(index)).sum();
    println!(
        "{} GMAC, batches of {BATCH}, {} threads",
        macs as f64 / 1e9,
        rayon::current_num_threads()
    );
    let exact = Exact::new(&executor, &quantized).unwrap();
    let ways: [(&str, &dyn Arithmetic); 3] = [
        ("reals", &Reals::default()),
        ("simulated", &Reals::fake(&quantized)),
        ("integers", &exact),
    ];
    let data: Vec<f32> = (0..BATCH * 3 * 224 * 224)
        .map(|i| (i * 2_654_435 % 1000) as f32 / 500.0 - 1.0)
        .collect();
    let input = Tensor {
        dims: vec![BATCH, 3, 224, 224],
        data,
    };
    for (name, arithmetic) in ways {
        let mut best = f64::INFINITY;
        for _ in 0..5 {
            let inputs = vec![input.clone()];
            let start = Instant::now();
            executor.run(inputs, arithmetic).unwrap();
            best = best.min(start.elapsed().as_secs_f64());
        }
        println!(
            "{name}: {:.1} images/s, {:.1} GFLOP/s",
            BATCH as f64 / best,
            2e-9 * macs as f64 * BATCH as f64 / best
        );
        if std::env::args().any(|argument| argument == "--layers") {
            layers(&executor, &input, arithmetic);
        }
    }
}

/// Time of each node.
fn layers(executor: &Executor<'_>, input: &Tensor, arithmetic: &dyn Arithmetic) {
    let mut values = executor.start(vec![input.clone()], arithmetic).unwrap();
    let mut last = Instant::now();
    let graph = executor.graph();
    executor
        .compute(
            &mut values,
            &executor.outputs(),
            arithmetic,
            &mut |id, _| {
                let index = graph
                    .nodes
                    .iter()
                    .position(|node| node.output == id)
                    .unwrap();
                let seconds = last.elapsed().as_secs_f64();
                let macs = graph.macs(index) as f64 * BATCH as f64;
                println!(
                    "{:>4} {:?} {:.2} ms {:.0} GFLOP/s",
                    index,
                    graph.value(id).dims,
                    seconds * 1e3,
                    2e-9 * macs / seconds
                );
                last = Instant::now();
            },
        )
        .unwrap();
}

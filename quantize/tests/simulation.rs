//! Simulated integers are the engine's integers: every value of random nets of every operator against plain
//! formulas in 128-bit integers, and against the reference backend.
#![allow(clippy::unwrap_used, clippy::panic, clippy::wildcard_enum_match_arm)]

#[path = "../../import/tests/float_nets/mod.rs"]
mod float_nets;
mod nets;

use std::sync::Arc;

use float_nets::net::Net;
use float_nets::{plain, suite};
use requant_conformance::{Rng, run};
use requant_import::float::{ActivationQuant, Op, Tensor, ValueId, to_graph};
use requant_numerics::DType;
use requant_quantize::exec::{Exact, Executor, LayerReals, Reals, Values, dims, round_to};
use requant_runtime::ReferenceBackend;

const SAMPLES: usize = 3;

/// Inputs that reach past both ends of their grids.
fn inputs(net: &Net, rng: &mut Rng, samples: usize) -> Vec<Tensor> {
    let ports = net.graph.inputs.iter();
    let input = |port: &requant_import::float::Port| {
        let dims = dims(net.graph.value(port.value), samples);
        let quant = net.values[port.value.0].unwrap();
        let (lo, hi) = quant.dtype.range().unwrap();
        let mut real = || {
            let steps = rng.range(10 * (lo - 9), 10 * (hi + 9)) as f32 / 10.0;
            (steps - quant.quant.zero_point as f32) * quant.quant.scale
        };
        let data = (0..dims.iter().product()).map(|_| real()).collect();
        Tensor { dims, data }
    };
    ports.map(input).collect()
}

/// Every value of a run.
fn all(
    executor: &Executor<'_>,
    net: &Net,
    given: &[Tensor],
    arithmetic: &dyn requant_quantize::exec::Arithmetic,
) -> Values {
    let targets: Vec<ValueId> = (0..net.graph.values.len()).map(ValueId).collect();
    let mut values = executor.start(given.to_vec(), arithmetic).unwrap();
    executor
        .compute(&mut values, &targets, arithmetic, &mut |_, _| ())
        .unwrap();
    values
}

#[test]
fn every_value_is_what_the_formulas_say() {
    let mut compared = 0;
    for seed in 0..25 {
        for net in suite::all(seed) {
            let executor = Executor::new(&net.graph).unwrap();
            let exact = Exact::new(&executor, &net.quantized()).unwrap();
            let given = inputs(&net, &mut Rng::new(seed), SAMPLES);
            let values = all(&executor, &net, &given, &exact);
            for sample in 0..SAMPLES {
                let one = |tensor: &Tensor| {
                    let elements = tensor.data.len() / SAMPLES;
                    tensor.data[sample * elements..(sample + 1) * elements].to_vec()
                };
                let want = plain::integers(&net, &given.iter().map(one).collect::<Vec<_>>());
                for (index, want) in want.iter().enumerate() {
                    let (id, Some(want)) = (ValueId(index), want) else {
                        continue;
                    };
                    let stored = exact.stored(id, values.get(id).unwrap()).unwrap();
                    let value = net.graph.value(id);
                    // A constant is there once for all samples.
                    let first = if value.batched {
                        sample * value.elements()
                    } else {
                        0
                    };
                    let got = stored[first..first + value.elements()]
                        .iter()
                        .map(|&q| i128::from(q));
                    let name = &value.name;
                    assert!(
                        got.eq(want.iter().copied()),
                        "{} of seed {seed}: {name}",
                        net.graph.name
                    );
                    compared += want.len();
                }
            }
        }
    }
    println!("{compared} values compared");
}

/// Reals at which rounding and saturation are decided, and any bits at all but NaN.
fn hard_reals(quant: ActivationQuant, rng: &mut Rng) -> Vec<f32> {
    let scale = quant.quant.scale;
    let (lo, hi) = quant.dtype.range().unwrap();
    let mut reals = vec![
        0.0,
        -0.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::MAX,
        f32::MIN,
        f32::MIN_POSITIVE,
        -f32::MIN_POSITIVE,
        f32::from_bits(1),
        -f32::from_bits(1),
        f32::from_bits(0x007f_ffff),
    ];
    for _ in 0..400 {
        let steps = rng.range(lo - hi - 2, hi - lo + 2) as f32 + 0.5;
        let tie = steps * scale;
        reals.extend([tie, tie.next_up(), tie.next_down()]);
    }
    let bits = |_| f32::from_bits(rng.range(0, i64::from(u32::MAX)) as u32);
    reals.extend((0..800).map(bits).filter(|x| !x.is_nan()));
    reals.truncate(1600);
    reals
}

#[test]
fn every_real_is_rounded_as_the_edges_do() {
    for seed in 0..6 {
        for dtype in [DType::U8, DType::I8, DType::U4, DType::I16] {
            let mut net = Net::new("edge", seed);
            let quant = net.some(dtype, 0.02);
            let x = net.input(&[1, 1600], quant);
            let y = net.node(Op::Reshape, &[x], &[1, 1, 1600], quant);
            net.output(y);
            let reals = hard_reals(quant.unwrap(), &mut net.rng);
            let want: Vec<i128> = plain::integers(&net, std::slice::from_ref(&reals))[y.0]
                .clone()
                .unwrap();
            let executor = Executor::new(&net.graph).unwrap();
            let exact = Exact::new(&executor, &net.quantized()).unwrap();
            let given = Tensor {
                dims: vec![1, 1600],
                data: reals.clone(),
            };
            let values = all(&executor, &net, &[given], &exact);
            let value = values.get(y).unwrap();
            let stored = exact.stored(y, value).unwrap();
            let graph = to_graph(&net.quantized()).unwrap();
            let bytes = vec![reals.iter().flat_map(|x| x.to_le_bytes()).collect()];
            let engine = run(&ReferenceBackend, &graph, false, &bytes, 1, 1).unwrap();
            let answers = exact.real(y, value);
            for (i, x) in reals.iter().enumerate() {
                let name = format!("{x:e} at {quant:?}");
                assert_eq!(i128::from(stored[i]), want[i], "{name}");
                let engine = engine[0].as_chunks().0[i];
                assert_eq!(f32::from_le_bytes(engine), answers.data[i], "{name}");
            }
        }
    }
}

/// What the reference backend gives; a graph that would mix samples runs them one by one.
fn engine(graph: &requant_model::Graph, fused: bool, data: &[Vec<u8>]) -> Vec<Vec<u8>> {
    if graph.batched {
        return run(
            &ReferenceBackend,
            graph,
            fused,
            &data.to_vec(),
            SAMPLES,
            SAMPLES,
        )
        .unwrap();
    }
    let mut outputs = vec![Vec::new(); graph.outputs.len()];
    for sample in 0..SAMPLES {
        let of = |data: &Vec<u8>| {
            data.chunks(data.len() / SAMPLES)
                .nth(sample)
                .unwrap()
                .to_vec()
        };
        let one = data.iter().map(of).collect();
        let got = run(&ReferenceBackend, graph, fused, &one, 1, 1).unwrap();
        outputs
            .iter_mut()
            .zip(got)
            .for_each(|(all, one)| all.extend(one));
    }
    outputs
}

/// A net's values as the engine gives them, each a public output.
fn engine_differs(mut net: Net, seed: u64) -> usize {
    let computed = net
        .graph
        .nodes
        .iter()
        .filter(|node| !node.inputs.is_empty());
    let public: Vec<ValueId> = computed.map(|node| node.output).collect();
    net.graph.outputs.clear();
    for &id in &public {
        net.output(id);
    }
    let name = format!("{} of seed {seed}", net.graph.name);
    let executor = Executor::new(&net.graph).unwrap();
    let exact = Exact::new(&executor, &net.quantized()).unwrap_or_else(|e| panic!("{name}: {e}"));
    let given = inputs(&net, &mut Rng::new(seed), SAMPLES);
    let graph = to_graph(&net.quantized()).unwrap_or_else(|e| panic!("{name}: {e}"));
    let bytes = |tensor: &Tensor| {
        tensor
            .data
            .iter()
            .flat_map(|x| x.to_le_bytes())
            .collect::<Vec<u8>>()
    };
    let data: Vec<Vec<u8>> = given.iter().map(bytes).collect();
    let mut differing = 0;
    for fused in [false, true] {
        let engine = engine(&graph, fused, &data);
        let values = all(&executor, &net, &given, &exact);
        for (id, engine) in public.iter().zip(&engine) {
            let got = bytes(&exact.real(*id, values.get(*id).unwrap()));
            assert_eq!(got.len(), engine.len(), "{name}");
            let same =
                |(a, b): &(&[u8; 4], &[u8; 4])| f32::from_le_bytes(**a) == f32::from_le_bytes(**b);
            let count = got
                .as_chunks()
                .0
                .iter()
                .zip(engine.as_chunks().0)
                .filter(|pair| !same(pair))
                .count();
            if count > 0 {
                println!(
                    "{name}: {} differs at {count} of {}",
                    net.graph.value(*id).name,
                    got.len() / 4
                );
            }
            differing += count;
        }
    }
    differing
}

#[test]
fn the_engine_gives_the_same_integers() {
    let nets = (0..12).flat_map(|seed| suite::all(seed).into_iter().map(move |net| (net, seed)));
    let differing: usize = nets.map(|(net, seed)| engine_differs(net, seed)).sum();
    assert_eq!(differing, 0);
}

#[test]
fn the_engine_gives_the_same_integers_for_what_moves_and_mixes() {
    let nets = (0..12).flat_map(|seed| nets::all(seed).into_iter().map(move |net| (net, seed)));
    let differing: usize = nets.map(|(net, seed)| engine_differs(net, seed)).sum();
    assert_eq!(differing, 0);
}

/// Reals in place of the zeros that the nets have for weights.
fn with_reals(mut net: Net) -> Net {
    let quantized = net.quantized();
    let reals: Vec<Option<LayerReals>> = (0..net.graph.nodes.len())
        .map(|node| {
            let layer = quantized.layers[node].as_ref()?;
            let scale = quantized.operand(node, 0)?.quant.scale;
            Some(LayerReals::of(&net.graph, node, layer, Some(scale)))
        })
        .collect();
    for (node, reals) in net.graph.nodes.iter_mut().zip(reals) {
        let Some(reals) = reals else {
            continue;
        };
        let (weights, bias) = match &mut node.op {
            requant_import::float::Op::Conv(conv) => (&mut conv.weights, &mut conv.bias),
            requant_import::float::Op::Gemm(gemm) => (&mut gemm.weights, &mut gemm.bias),
            op => panic!("{op:?}"),
        };
        *weights = Arc::new(Tensor {
            dims: weights.dims.clone(),
            data: reals.weights.to_vec(),
        });
        *bias = reals.bias;
    }
    net
}

#[test]
fn simulated_reals_are_the_integers_but_for_ties() {
    let (mut differing, mut compared) = (0, 0);
    for seed in 0..10 {
        for net in suite::all(seed)
            .into_iter()
            .filter(|net| net.graph.name == "layer")
        {
            let executor = Executor::new(&net.graph).unwrap();
            let exact = Exact::new(&executor, &net.quantized()).unwrap();
            let fake = Reals::fake(&net.quantized());
            let given = inputs(&net, &mut Rng::new(seed), SAMPLES);
            let (id, quant) = (
                net.graph.outputs[0].value,
                net.values[net.graph.outputs[0].value.0].unwrap(),
            );
            let a = executor.run(given.clone(), &exact).unwrap();
            let b = executor.run(given, &fake).unwrap();
            let a = exact.real(id, &a[0]);
            for (a, b) in a.data.iter().zip(&b[0].data) {
                let steps = ((a - b) / quant.quant.scale).round().abs();
                assert!(steps <= 1.0, "seed {seed}: {a} {b}");
                differing += usize::from(steps != 0.0);
                compared += 1;
            }
        }
    }
    assert!(differing * 1000 < compared, "{differing} of {compared}");
}

#[test]
fn any_part_can_be_quantized_alone() {
    let net = with_reals(
        suite::all(5)
            .into_iter()
            .find(|net| net.graph.name == "residuals")
            .unwrap(),
    );
    let executor = Executor::new(&net.graph).unwrap();
    let given = inputs(&net, &mut Rng::new(5), SAMPLES);
    let plain = Reals::default();
    let float = all(&executor, &net, &given, &plain);
    // The reals are the dequantized integers, so rounding the weights alone changes nothing.
    let quantized = net.quantized();
    let layer = |node: usize| {
        let scale = quantized.operand(node, 0).map(|quant| quant.quant.scale);
        LayerReals::of(
            &net.graph,
            node,
            quantized.layers[node].as_ref().unwrap(),
            scale,
        )
    };
    let weights = net.graph.layers().fold(plain.clone(), |reals, node| {
        reals.with_layer(node, layer(node))
    });
    let same = all(&executor, &net, &given, &weights);
    for index in 0..net.graph.values.len() {
        assert_eq!(same.get(ValueId(index)), float.get(ValueId(index)));
    }
    // One value on a grid: it alone is rounded, what does not follow from it stays.
    let at = 2;
    let id = net.graph.nodes[at].output;
    let quant = net.values[id.0].unwrap();
    let one = plain.clone().with_value(id, quant);
    let rounded = all(&executor, &net, &given, &one);
    let mut want = Tensor::clone(float.get(id).unwrap());
    round_to(quant, &mut want.data);
    assert_eq!(**rounded.get(id).unwrap(), want);
    assert_ne!(want.data, float.get(id).unwrap().data);
    for node in &net.graph.nodes[..at] {
        assert_eq!(rounded.get(node.output), float.get(node.output));
    }
    // From kept values, only what follows is computed, and it is the same.
    let mut kept = float.clone();
    executor.invalidate(&mut kept, id, true);
    let mut made = Vec::new();
    let outputs = executor.outputs();
    executor
        .compute(&mut kept, &outputs, &one, &mut |id, _| made.push(id))
        .unwrap();
    assert_eq!(
        made,
        net.graph.nodes[at..]
            .iter()
            .map(|node| node.output)
            .collect::<Vec<_>>()
    );
    assert_eq!(kept.get(outputs[0]), rounded.get(outputs[0]));
    // An operand on a grid is the value on that grid for that reader alone.
    let reader = net.graph.readers()[id.0][0];
    let operand = all(
        &executor,
        &net,
        &given,
        &plain.clone().with_operand(reader.0, reader.1, quant),
    );
    assert_eq!(operand.get(id), float.get(id));
    assert_eq!(
        operand.get(net.graph.nodes[reader.0].output),
        rounded.get(net.graph.nodes[reader.0].output)
    );
}

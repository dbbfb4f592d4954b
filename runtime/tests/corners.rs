//! Corners of the graph that random cases rarely meet, against values worked out by hand.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use requant_conformance::{Builder, run};
use requant_model::ops::{Dequantize, MatMul, Quantize, Reshape, Transpose};
use requant_model::{Affine, Graph, ModelError, NodeError, Op, Tensor, artifact, builtin};
use requant_numerics::DType;
use requant_runtime::plan::{Step, StepOp};
use requant_runtime::{
    Backend, CpuBackend, CpuOptions, ExecError, Executable, Form, Instance, Plan, PlanOptions,
    ReferenceBackend,
};

const QUANT: Option<Affine> = Some(Affine {
    scale: 0.5,
    zero_point: 2,
});

fn backends() -> [Box<dyn Backend>; 2] {
    let cpu = CpuBackend::new(CpuOptions::default()).unwrap();
    [Box::new(ReferenceBackend), Box::new(cpu)]
}

fn compile(backend: &dyn Backend, graph: Graph) -> Arc<dyn Executable> {
    let plan = Plan::new(graph, &PlanOptions::default()).unwrap();
    backend.compile(Arc::new(plan)).unwrap()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let (values, _) = bytes.as_chunks();
    values.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

#[test]
fn a_constant_may_be_an_output() {
    let mut b = Builder::new("constant", false);
    let x = b.value(DType::U8, &[3], QUANT);
    b.graph.inputs.push(x);
    let values = Tensor::from_integers(DType::I4, vec![2, 2], &[-8, 7, 0, 3]);
    let constant = b.constant(values.unwrap(), QUANT);
    let view = b.value(DType::I4, &[4], QUANT);
    b.node(Op::Reshape(Reshape {}), &[constant], &[view]);
    let real = b.value(DType::F32, &[4], None);
    b.node(Op::Dequantize(Dequantize::default()), &[view], &[real]);
    let graph = b.finish(&[view, x, real, constant]);
    for backend in backends() {
        let input = vec![vec![9, 8, 7]];
        let outputs = run(&*backend, &graph, true, &input, 1, 1).unwrap();
        assert_eq!(outputs[0], [0xf8, 7, 0, 3]);
        assert_eq!(outputs[1], [9, 8, 7]);
        assert_eq!(floats(&outputs[2]), [-5.0, 2.5, -1.0, 0.5]);
        assert_eq!(outputs[3], outputs[0]);
    }
}

#[test]
fn an_input_may_feed_two_edges_and_be_an_output() {
    let mut b = Builder::new("edges", true);
    let x = b.value(DType::F32, &[1, 2], None);
    b.graph.inputs.push(x);
    let fine = b.value(DType::U8, &[1, 2], QUANT);
    let coarse = b.value(
        DType::I8,
        &[1, 2],
        Some(Affine {
            scale: 2.0,
            zero_point: 0,
        }),
    );
    b.node(Op::Quantize(Quantize::default()), &[x], &[fine]);
    b.node(Op::Quantize(Quantize::default()), &[x], &[coarse]);
    // Public, and quantized again.
    let real = b.value(DType::F32, &[1, 2], None);
    b.node(Op::Dequantize(Dequantize::default()), &[fine], &[real]);
    let again = b.value(DType::I8, &[1, 2], QUANT);
    b.node(Op::Quantize(Quantize::default()), &[real], &[again]);
    let graph = b.finish(&[x, coarse, real, again]);
    let input: Vec<u8> = [0.75f32, -9.0, f32::INFINITY, 1.0]
        .iter()
        .flat_map(|v| v.to_le_bytes())
        .collect();
    for backend in backends() {
        let outputs = run(&*backend, &graph, true, &vec![input.clone()], 2, 2).unwrap();
        assert_eq!(outputs[0], input);
        assert_eq!(outputs[1], [0, 0xfc, 127, 0]);
        assert_eq!(floats(&outputs[2]), [1.0, -1.0, 126.5, 1.0]);
        assert_eq!(outputs[3], [4, 0, 127, 4]);
    }
}

#[test]
fn planes_of_an_input_become_pixels_in_either_form() {
    let mut b = Builder::new("planes", true);
    let x = b.value(DType::F32, &[1, 3, 2, 2], None);
    b.graph.inputs.push(x);
    let planes = b.value(DType::U8, &[1, 3, 2, 2], QUANT);
    b.node(Op::Quantize(Quantize::default()), &[x], &[planes]);
    let pixels = b.value(DType::U8, &[1, 2, 2, 3], QUANT);
    let perm = vec![0, 2, 3, 1];
    b.node(Op::Transpose(Transpose { perm }), &[planes], &[pixels]);
    let graph = b.finish(&[pixels]);
    let real: Vec<u8> = (0..12)
        .flat_map(|i| (i as f32 * 0.5).to_le_bytes())
        .collect();
    let own: Vec<u8> = (20..32).collect();
    for backend in backends() {
        let mut instance = compile(&*backend, graph.clone()).instance(2).unwrap();
        instance
            .write_input(0, 0, 1, Form::Declared, &real)
            .unwrap();
        instance
            .write_input(0, 1, 1, Form::Quantized, &own)
            .unwrap();
        instance.run(2).unwrap();
        let mut got = [0; 24];
        instance
            .read_output(0, 0, 2, Form::Declared, &mut got)
            .unwrap();
        assert_eq!(got[..12], [2, 6, 10, 3, 7, 11, 4, 8, 12, 5, 9, 13]);
        assert_eq!(got[12..], [20, 24, 28, 21, 25, 29, 22, 26, 30, 23, 27, 31]);
    }
}

#[test]
fn integers_outside_a_narrow_type_are_refused() {
    let mut b = Builder::new("narrow", true);
    let x = b.value(DType::F32, &[1, 3], None);
    b.graph.inputs.push(x);
    let q = b.value(DType::U4, &[1, 3], QUANT);
    b.node(Op::Quantize(Quantize::default()), &[x], &[q]);
    let y = b.value(DType::I2, &[1, 2], None);
    b.graph.inputs.push(y);
    let graph = b.finish(&[q, y]);
    for backend in backends() {
        let mut instance = compile(&*backend, graph.clone()).instance(2).unwrap();
        let mut write = |input, form, data: &[u8]| instance.write_input(input, 1, 1, form, data);
        let (own, declared) = (Form::Quantized, Form::Declared);
        assert_eq!(write(0, own, &[0, 15, 7]), Ok(()));
        assert_eq!(write(1, declared, &[0xfe, 1]), Ok(()));
        let range = |name: &str, dtype, index, value| {
            Err(ExecError::Range {
                name: name.to_owned(),
                dtype,
                index,
                value,
            })
        };
        assert_eq!(write(0, own, &[0, 1, 16]), range("v0", DType::U4, 2, 16));
        assert_eq!(write(1, declared, &[2, 0]), range("v2", DType::I2, 0, 2));
        assert_eq!(
            write(1, declared, &[0, 0xfd]),
            range("v2", DType::I2, 1, -3)
        );
    }
}

#[test]
fn batches_of_any_size_are_answered() {
    let mut b = Builder::new("sizes", true);
    let x = b.value(DType::U8, &[1, 1 << 20], QUANT);
    b.graph.inputs.push(x);
    let graph = b.finish(&[x]);
    for backend in backends() {
        let executable = compile(&*backend, graph.clone());
        assert!(executable.instance(3).is_ok());
        for samples in [1 << 13, usize::MAX >> 20, usize::MAX] {
            let refused = executable
                .instance(samples)
                .map(|i: Box<dyn Instance>| i.max_batch());
            assert!(
                matches!(refused, Err(ExecError::TooLarge { .. })),
                "{samples}"
            );
        }
        let refused = executable.instance(0).map(|i| i.max_batch());
        assert!(matches!(refused, Err(ExecError::Batch { .. })));
    }
}

#[test]
fn packed_weights_are_the_only_ones_kept() {
    let graph = artifact::read(builtin::FASHION).unwrap();
    let weights: u64 = graph.layers().iter().map(|layer| layer.weights).sum();
    for backend in backends() {
        let plan = Arc::new(Plan::new(graph.clone(), &PlanOptions::default()).unwrap());
        let executable = backend.compile(plan).unwrap();
        let held = |step: &Step| {
            if let StepOp::Conv(conv) = &step.op {
                conv.weights.as_ref().map_or(0, |w| w.effective.len())
            } else {
                0
            }
        };
        let held: usize = executable.plan().steps().iter().map(held).sum();
        let footprint = executable.footprint(1).weight_bytes as u64;
        if backend.name() == "cpu" {
            assert_eq!(held, 0);
            // 4-bit weights stay two a byte; padding and biases come on top.
            assert!(footprint < weights + weights / 2, "{footprint}");
        } else {
            assert_eq!(held as u64, weights);
            assert_eq!(footprint, 2 * weights);
        }
    }
}

#[test]
fn matrix_products_keep_samples_apart() {
    // One matrix a sample against two a sample: the second sample's would meet the first's.
    let mut b = Builder::new("matmul", true);
    let x = b.value(DType::U8, &[1, 2, 3], QUANT);
    let y = b.value(DType::U8, &[1, 2, 3, 2], QUANT);
    b.graph.inputs.extend([x, y]);
    let pairs = b.value(DType::U8, &[2, 3, 2], QUANT);
    b.node(Op::Reshape(Reshape {}), &[y], &[pairs]);
    let acc = b.value(DType::I32, &[2, 2, 2], None);
    let op = MatMul {
        requantize: None,
        dynamic_zero_point: false,
    };
    b.node(Op::MatMul(op), &[x, pairs], &[acc]);
    let out = b.value(DType::I32, &[1, 8], None);
    b.node(Op::Reshape(Reshape {}), &[acc], &[out]);
    let error = b.finish(&[out]).validate().unwrap_err();
    let ModelError::Node { source, .. } = error else {
        unreachable!("{error}");
    };
    assert_eq!(*source, NodeError::MixesSamples);
}

//! The ONNX project's own operator cases, as far as they lie beside the checkout.
//!
//! Cases of quantization operators run as they are. Cases of float operators are rewritten: every float
//! input and output goes through QuantizeLinear and DequantizeLinear, u8 per tensor, by the case's own
//! smallest and largest value, and the result must be within one output step of the operator's float
//! result on the quantized inputs (`onnx_node_references.npz` where the quantization of the inputs
//! moves the case's own result by more than half a step). What is not data (scales, shapes, axes, weights, limits) becomes a
//! constant. Every case that does not pass must be listed with its reason in `onnx_node_skips.txt`, and
//! every listed one must still fail.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use prost::Message as _;
use requant_conformance::npz::{self, Array, test_data};
use requant_import::onnx::{ImportOptions, import_bytes};
use requant_runtime::ReferenceBackend;

use support::proto::{ModelProto, TensorProto, ValueInfoProto};
use support::{F32, I8, I16, U8, bytes, floats, node};

/// Results of the reference evaluator on quantized inputs, by case.
type References = BTreeMap<String, Array>;

/// A case's tensors as reals or integers, for comparison.
#[derive(Debug)]
enum Values {
    Floats(Vec<f32>),
    Bytes(Vec<u8>),
}

#[test]
fn operator_cases() {
    let Some(data) = test_data("onnx node cases") else {
        return;
    };
    let skips: BTreeMap<&str, &str> = include_str!("onnx_node_skips.txt")
        .lines()
        .filter_map(|l| l.split_once(": "))
        .collect();
    let references = npz::parse(include_bytes!("onnx_node_references.npz"));
    let mut passed = 0;
    let mut skipped = 0;
    let mut faults = Vec::new();
    let mut names: Vec<_> = fs::read_dir(data.join("onnx-node-tests"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("model.onnx").is_file())
        .collect();
    names.sort();
    for path in &names {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let result = run_case(path, &name, &references);
        match (result, skips.get(name.as_str())) {
            (Ok(()), None) => passed += 1,
            (Ok(()), Some(_)) => faults.push(format!("{name}: listed as skipped, but passes")),
            (Err(_), Some(_)) => skipped += 1,
            (Err(fault), None) => faults.push(format!("{name}: {fault}")),
        }
    }
    println!(
        "onnx node cases: passed {passed}, skipped {skipped} of {}",
        names.len()
    );
    for (name, reason) in &skips {
        println!("skipped {name}: {reason}");
        assert!(
            names.iter().any(|path| path.ends_with(name)),
            "{name} is listed, not there"
        );
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Operands that stay inputs; the others become constants.
fn data_operands(op: &str) -> &'static [usize] {
    match op {
        "QLinearMatMul" => &[0, 3],
        "MatMulInteger" | "MatMul" | "Add" | "Sub" | "Mul" | "Concat" => &[0, 1],
        _ => &[0],
    }
}

fn run_case(path: &Path, name: &str, references: &References) -> Result<(), String> {
    let mut model = ModelProto::decode(fs::read(path.join("model.onnx")).unwrap().as_slice())
        .map_err(|e| e.to_string())?;
    let set = path.join("test_data_set_0");
    let tensor = |kind: &str, index: usize| -> TensorProto {
        let file = set.join(format!("{kind}_{index}.pb"));
        TensorProto::decode(fs::read(file).unwrap().as_slice()).unwrap()
    };
    let graph = model.graph.as_mut().unwrap();
    let op = graph.node.last().unwrap().op_type().to_owned();
    let single = graph.node.len() == 1;
    let operands = graph.node[0].input.clone();
    let ports: Vec<ValueInfoProto> = std::mem::take(&mut graph.input);
    let (mut inputs, mut expected) = (Vec::new(), Vec::new());
    for (index, port) in ports.into_iter().enumerate() {
        let constant = TensorProto {
            name: port.name.clone(),
            ..tensor("input", index)
        };
        let operand = if single {
            operands
                .iter()
                .position(|n| n == port.name())
                .unwrap_or(usize::MAX)
        } else {
            index
        };
        let is_data = if single {
            data_operands(&op).contains(&operand)
        } else {
            index == 0
        };
        let weights = single && operand == 1 && (op == "Conv" || op == "Gemm");
        let elem = constant.data_type();
        if elem == F32 && (is_data || weights) && !quantizes(&op) {
            let values = reals(&constant)?;
            quantize_uses(graph, port.name(), &values);
        }
        if is_data {
            inputs.push(raw_bytes(&constant)?);
            graph.input.push(port);
        } else {
            graph.initializer.push(constant);
        }
    }
    let outputs = graph.output.clone();
    let mut steps = Vec::new();
    for (index, port) in outputs.iter().enumerate() {
        let want = tensor("output", index);
        let float = want.data_type() == F32;
        if float && !quantizes(&op) {
            let scale = quantize_result(graph, port.name(), &reals(&want)?);
            steps.push(Some(scale));
            // The case's own result is of inputs that are not quantized.
            if let Some(reference) = references.get(name) {
                expected.push(Values::Floats(reference.f32s()));
                continue;
            }
        } else {
            steps.push(None);
        }
        expected.push(if float {
            Values::Floats(reals(&want)?)
        } else {
            Values::Bytes(raw_bytes(&want)?)
        });
    }
    let encoded = model.encode_to_vec();
    let graph =
        import_bytes(&encoded, name, &ImportOptions::default()).map_err(|e| e.to_string())?;
    let results = requant_conformance::run(&ReferenceBackend, &graph, true, &inputs, 1, 1)
        .map_err(|e| e.to_string())?;
    for ((result, want), step) in results.iter().zip(&expected).zip(steps) {
        compare(result, want, step)?;
    }
    Ok(())
}

/// Whether an operator works on integers by itself.
fn quantizes(op: &str) -> bool {
    op.contains("Linear") || op.contains("Integer")
}

fn compare(result: &[u8], want: &Values, step: Option<f32>) -> Result<(), String> {
    match want {
        Values::Bytes(want) => {
            if result == want {
                Ok(())
            } else {
                Err(format!("{result:?} instead of {want:?}"))
            }
        }
        Values::Floats(want) => {
            let (got, _) = result.as_chunks();
            let got: Vec<f32> = got.iter().map(|b| f32::from_le_bytes(*b)).collect();
            if got.len() != want.len() {
                return Err(format!("{} elements instead of {}", got.len(), want.len()));
            }
            for (index, (g, w)) in got.iter().zip(want).enumerate() {
                let room = match step {
                    Some(step) => step * 1.0001,
                    None => w.abs() * 1e-6,
                };
                if (g - w).abs() > room {
                    let steps = (g - w).abs() / step.unwrap_or(1.0);
                    return Err(format!(
                        "element {index}: {g} instead of {w} ({steps} steps)"
                    ));
                }
            }
            Ok(())
        }
    }
}

/// Scale and zero point of u8 over a range that holds 0.
fn range(values: &[f32]) -> (f32, u8) {
    let lo = values.iter().copied().fold(0f32, f32::min);
    let hi = values.iter().copied().fold(0f32, f32::max);
    let scale = if hi > lo { (hi - lo) / 255.0 } else { 1.0 };
    (scale, (-lo / scale).round_ties_even() as u8)
}

fn parameters(graph: &mut support::proto::GraphProto, name: &str, values: &[f32]) -> f32 {
    let (scale, zero_point) = range(values);
    graph
        .initializer
        .push(floats(&format!("{name}.scale"), &[], &[scale]));
    graph
        .initializer
        .push(bytes(&format!("{name}.zero"), &[], &[zero_point]));
    scale
}

/// Every node reads the tensor through a QuantizeLinear and a DequantizeLinear.
fn quantize_uses(graph: &mut support::proto::GraphProto, name: &str, values: &[f32]) {
    parameters(graph, name, values);
    let (scale, zero) = (format!("{name}.scale"), format!("{name}.zero"));
    let (q, dq) = (format!("{name}.q"), format!("{name}.dq"));
    for node in &mut graph.node {
        for input in node.input.iter_mut().filter(|input| *input == name) {
            input.clone_from(&dq);
        }
    }
    graph
        .node
        .insert(0, node("DequantizeLinear", &[&q, &scale, &zero], &[&dq]));
    graph
        .node
        .insert(0, node("QuantizeLinear", &[name, &scale, &zero], &[&q]));
}

/// The tensor comes out of a QuantizeLinear and a DequantizeLinear. Gives its step.
fn quantize_result(graph: &mut support::proto::GraphProto, name: &str, values: &[f32]) -> f32 {
    let step = parameters(graph, name, values);
    let (scale, zero) = (format!("{name}.scale"), format!("{name}.zero"));
    let (q, plain) = (format!("{name}.q"), format!("{name}.plain"));
    for node in &mut graph.node {
        for tensor in node
            .output
            .iter_mut()
            .chain(&mut node.input)
            .filter(|t| *t == name)
        {
            tensor.clone_from(&plain);
        }
    }
    graph
        .node
        .push(node("QuantizeLinear", &[&plain, &scale, &zero], &[&q]));
    graph
        .node
        .push(node("DequantizeLinear", &[&q, &scale, &zero], &[name]));
    step
}

fn raw_bytes(tensor: &TensorProto) -> Result<Vec<u8>, String> {
    let raw = match (&tensor.raw_data, tensor.data_type()) {
        (Some(raw), _) => raw.to_vec(),
        (None, F32) => tensor
            .float_data
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect(),
        (None, I16) => tensor
            .int32_data
            .iter()
            .flat_map(|&v| (v as i16).to_le_bytes())
            .collect(),
        (None, U8 | I8 | support::U4 | support::I4) => {
            tensor.int32_data.iter().map(|&v| v as u8).collect()
        }
        (None, other) => return Err(format!("element type {other} without raw data")),
    };
    let count: i64 = tensor.dims.iter().product();
    let nibble = |i: usize| raw[i / 2] >> (4 * (i % 2)) & 15;
    Ok(match tensor.data_type() {
        // Four-bit elements travel one a byte.
        support::U4 => (0..count as usize).map(nibble).collect(),
        support::I4 => {
            let signed = |i: usize| ((nibble(i) << 4) as i8 >> 4) as u8;
            (0..count as usize).map(signed).collect()
        }
        _ => raw,
    })
}

fn reals(tensor: &TensorProto) -> Result<Vec<f32>, String> {
    let raw = raw_bytes(tensor)?;
    let (chunks, _) = raw.as_chunks();
    Ok(chunks.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

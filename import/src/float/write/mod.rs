//! A quantized float graph as an ONNX file of the QDQ form (opset 21): every quantized value passes
//! QuantizeLinear and DequantizeLinear, an operand that is read at another quantization passes another
//! pair on its way, and weights are integers behind a DequantizeLinear with a scale an output channel.
//!
//! The ONNX node that does a node's work has its name; fused sums, biases and clamps become nodes of
//! their own after it. The integers of value `v` are the tensor `v`, or `v/quantized` where a port has that
//! name; ports keep names and shapes, their batch is the symbol `N`. Weights of 1 and 2 bits are written
//! as `int4`, those of a codebook as `int8`.

mod layers;
mod nodes;
mod proto;

use std::collections::{BTreeMap, HashSet};

use prost::Message as _;
use requant_model::Affine;
use requant_numerics::edge::{EdgeRounding, quantize};
use requant_numerics::rounding::rhu;
use requant_numerics::{DType, Dyadic, native};

use super::export_error::ExportError;
use super::graph::{Graph, Node, Op, Tensor, ValueId};
use super::quantized::{ActivationQuant, Quantized};
use crate::names::Names;
use crate::onnx::proto::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto,
};
use proto::Attribute;

/// The first opset whose QuantizeLinear and DequantizeLinear take 4 and 16 bits and blocks.
const OPSET: i64 = 21;
/// The version of ONNX's file format that goes with it.
const IR_VERSION: i64 = 10;

/// Who reads the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Anyone.
    File,
    /// The native lowering: group multipliers are left out, because it is told them afterwards, and maps
    /// are marked.
    Native,
}

/// The graph as an ONNX QDQ file.
///
/// # Errors
/// Integers that do not fit the graph.
pub fn to_onnx(quantized: &Quantized<'_>) -> Result<Vec<u8>, ExportError> {
    Ok(model(quantized, Form::File)?.0.encode_to_vec())
}

/// The ONNX model, and the names of its nodes by float node.
pub(super) fn model(
    quantized: &Quantized<'_>,
    form: Form,
) -> Result<(ModelProto, Vec<String>), ExportError> {
    let graph = quantized.graph;
    let ports = graph.inputs.iter().chain(&graph.outputs);
    let reserved: HashSet<String> = ports.map(|port| port.name.clone()).collect();
    let mut node_names = Names::new(std::iter::empty());
    let mut writer = Writer {
        quantized,
        graph,
        form,
        node_names: graph
            .nodes
            .iter()
            .map(|node| node_names.unique(&node.name))
            .collect(),
        names: Names::new(reserved.iter().cloned()),
        reserved,
        nodes: Vec::new(),
        initializers: Vec::new(),
        reals: vec![None; graph.values.len()],
        edges: BTreeMap::new(),
        constants: BTreeMap::new(),
        published: HashSet::new(),
        narrow_result: false,
        last: None,
    };
    let inputs = writer.inputs()?;
    for index in 0..graph.nodes.len() {
        writer.node(index)?;
    }
    let outputs = writer.outputs()?;
    let opset = |domain: &str, version| OperatorSetIdProto {
        domain: Some(domain.to_owned()),
        version: Some(version),
    };
    let mut opset_import = vec![opset("", OPSET)];
    if writer.nodes.iter().any(|node| node.domain.is_some()) {
        opset_import.push(opset(nodes::MICROSOFT, 1));
    }
    let proto = ModelProto {
        ir_version: Some(IR_VERSION),
        producer_name: Some("requant".to_owned()),
        producer_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        graph: Some(GraphProto {
            node: writer.nodes,
            name: Some(crate::names::clean(&graph.name)),
            initializer: writer.initializers,
            input: inputs,
            output: outputs,
            sparse_initializer: Vec::new(),
        }),
        opset_import,
    };
    Ok((proto, writer.node_names))
}

/// The least and greatest integer of a type.
fn range(quant: ActivationQuant) -> (i32, i32) {
    let (lo, hi) = quant.dtype.range().unwrap_or((0, 0));
    (lo as i32, hi as i32)
}

/// A real as the nearest step.
fn step(x: f32, quant: ActivationQuant) -> i32 {
    let Affine { scale, zero_point } = quant.quant;
    let (lo, hi) = range(quant);
    quantize(x, scale, zero_point, lo, hi, EdgeRounding::HalfEven)
}

/// A quantization as a key of a map.
type QuantKey = (DType, u32, i32);

fn key(quant: ActivationQuant) -> QuantKey {
    let affine = quant.quant;
    (quant.dtype, affine.scale.to_bits(), affine.zero_point)
}

/// A file being written.
#[derive(Debug)]
struct Writer<'q> {
    quantized: &'q Quantized<'q>,
    graph: &'q Graph,
    form: Form,
    node_names: Vec<String>,
    names: Names,
    /// Names of ports.
    reserved: HashSet<String>,
    nodes: Vec<NodeProto>,
    initializers: Vec<TensorProto>,
    /// The tensor of each value's reals, once it is made.
    reals: Vec<Option<String>>,
    /// The tensor of a value's reals at another quantization.
    edges: BTreeMap<(ValueId, QuantKey), String>,
    /// Constant values.
    constants: BTreeMap<ValueId, &'q Tensor>,
    /// Output ports whose tensor is made.
    published: HashSet<String>,
    /// Whether the result of the node being written is quantized to 4 bits in a file for others.
    narrow_result: bool,
    /// The tensor of the last node that computes anything.
    last: Option<String>,
}

impl<'q> Writer<'q> {
    fn inputs(&mut self) -> Result<Vec<ValueInfoProto>, ExportError> {
        let mut infos = Vec::new();
        for port in &self.graph.inputs {
            let Some(value) = self.graph.values.get(port.value.0) else {
                let (node, index) = ("graph input".to_owned(), port.value.0);
                return Err(ExportError::Operand { node, index });
            };
            infos.push(proto::port(&port.name, &value.dims, value.batched));
            let real = match self.quant(port.value) {
                Some(quant) => self.quantized_pair(port.value, port.name.clone(), quant)?,
                None => port.name.clone(),
            };
            self.reals[port.value.0] = Some(real);
        }
        Ok(infos)
    }

    fn outputs(&mut self) -> Result<Vec<ValueInfoProto>, ExportError> {
        let mut infos = Vec::new();
        for port in &self.graph.outputs {
            let real = self.reals.get(port.value.0).cloned().flatten();
            let real = match (real, self.constants.contains_key(&port.value)) {
                (Some(real), _) => real,
                (None, true) => self.constant(port.value, self.quant(port.value))?,
                (None, false) => {
                    let (node, index) = ("graph output".to_owned(), port.value.0);
                    return Err(ExportError::Operand { node, index });
                }
            };
            let value = self.graph.value(port.value);
            infos.push(proto::port(&port.name, &value.dims, value.batched));
            if real != port.name {
                let name = self.names.unique(&format!("{}/output", port.name));
                let node = proto::node(name, "Identity", vec![real], port.name.clone(), Vec::new());
                self.nodes.push(node);
            }
        }
        Ok(infos)
    }

    fn node(&mut self, index: usize) -> Result<(), ExportError> {
        let graph = self.graph;
        let node = &graph.nodes[index];
        if node.output.0 >= self.reals.len() {
            let (node, index) = (node.name.clone(), node.output.0);
            return Err(ExportError::Operand { node, index });
        }
        if let Op::Constant(tensor) = &node.op {
            self.constants.insert(node.output, tensor);
            return Ok(());
        }
        self.last = None;
        let narrow = self.quant(node.output).is_some_and(|q| q.dtype.bits() < 8);
        self.narrow_result = narrow && self.form == Form::File;
        let mut real = self.operator(index, node)?;
        let quant = self.quant(node.output);
        // The last node gives the result, under its final name where no quantization follows.
        let name = match quant {
            Some(_) => format!("{}/real", graph.value(node.output).name),
            None => graph.value(node.output).name.clone(),
        };
        let name = match self.port_of(node.output).filter(|_| quant.is_none()) {
            Some(port) => port,
            None => self.names.unique(&name),
        };
        if self.last.as_ref() != Some(&real) {
            let identity = proto::node(
                self.node_names[index].clone(),
                "Identity",
                vec![real],
                name.clone(),
                Vec::new(),
            );
            self.nodes.push(identity);
        } else if let Some(last) = self.nodes.last_mut() {
            last.output = vec![name.clone()];
        }
        real = name;
        if let Some(quant) = quant {
            real = self.quantized_pair(node.output, real, quant)?;
        }
        self.reals[node.output.0] = Some(real);
        Ok(())
    }

    fn quant(&self, value: ValueId) -> Option<ActivationQuant> {
        self.quantized.values.get(value.0).copied().flatten()
    }

    /// The first output port of a value whose tensor is still to be made; its name is then given.
    fn port_of(&mut self, value: ValueId) -> Option<String> {
        let port = self.graph.outputs.iter().find(|port| port.value == value)?;
        let is_input = self.graph.inputs.iter().any(|i| i.name == port.name);
        let given = !is_input && self.published.insert(port.name.clone());
        given.then(|| port.name.clone())
    }

    /// Quantizes the reals of a value as the value has it; the tensor of what comes back.
    fn quantized_pair(
        &mut self,
        value: ValueId,
        real: String,
        quant: ActivationQuant,
    ) -> Result<String, ExportError> {
        let own = self.graph.value(value).name.clone();
        let base = if self.reserved.contains(&own) {
            format!("{own}/quantized")
        } else {
            own.clone()
        };
        let integers = self.names.unique(&base);
        let back = match self.port_of(value) {
            Some(port) => port,
            None => self.names.unique(&format!("{own}/dequantized")),
        };
        self.pair(real, (integers, back), quant)
    }

    /// QuantizeLinear and DequantizeLinear into tensors of these names.
    fn pair(
        &mut self,
        real: String,
        (integers, back): (String, String),
        quant: ActivationQuant,
    ) -> Result<String, ExportError> {
        let [scale, zero] = self.parameters(&integers, quant)?;
        let quantize = proto::node(
            format!("{integers}/quantize"),
            "QuantizeLinear",
            vec![real, scale.clone(), zero.clone()],
            integers.clone(),
            Vec::new(),
        );
        let dequantize = proto::node(
            format!("{integers}/dequantize"),
            "DequantizeLinear",
            vec![integers, scale, zero],
            back.clone(),
            Vec::new(),
        );
        self.nodes.extend([quantize, dequantize]);
        Ok(back)
    }

    /// Scale and zero point as initializers.
    fn parameters(
        &mut self,
        base: &str,
        quant: ActivationQuant,
    ) -> Result<[String; 2], ExportError> {
        let wrong = || ExportError::Type {
            value: base.to_owned(),
            dtype: quant.dtype,
        };
        if quant.dtype == DType::I32 {
            return Err(wrong());
        }
        let scale = self.names.unique(&format!("{base}/scale"));
        let zero = self.names.unique(&format!("{base}/zero_point"));
        let zero_points = std::iter::once(quant.quant.zero_point);
        let tensor = proto::integers(zero.clone(), quant.dtype, &[], zero_points);
        self.initializers.push(tensor.ok_or_else(wrong)?);
        let tensor = proto::reals(scale.clone(), &[], &[quant.quant.scale]);
        self.initializers.push(tensor);
        Ok([scale, zero])
    }

    /// The tensor that node `index` reads as its operand: reals of the quantization that it reads.
    fn operand(&mut self, index: usize, operand: usize) -> Result<String, ExportError> {
        let node = &self.graph.nodes[index];
        let arity = || ExportError::Arity {
            node: node.name.clone(),
            count: node.inputs.len(),
        };
        let value = *node.inputs.get(operand).ok_or_else(arity)?;
        let wanted = self.quantized.operand(index, operand);
        if self.constants.contains_key(&value) {
            return self.constant(value, wanted);
        }
        let real = self.reals.get(value.0).cloned().flatten();
        let real = real.ok_or_else(|| ExportError::Operand {
            node: node.name.clone(),
            index: value.0,
        })?;
        let Some(quant) = wanted.filter(|&quant| Some(quant) != self.quant(value)) else {
            return Ok(real);
        };
        let at = (value, key(quant));
        if let Some(edge) = self.edges.get(&at) {
            return Ok(edge.clone());
        }
        let own = &self.graph.value(value).name;
        let integers = self.names.unique(&format!("{own}/{}", quant.dtype));
        let back = self.names.unique(&format!("{integers}/dequantized"));
        let edge = self.pair(real, (integers, back), quant)?;
        self.edges.insert(at, edge.clone());
        Ok(edge)
    }

    /// A constant value as an initializer: its reals, or their integers behind a DequantizeLinear.
    fn constant(
        &mut self,
        value: ValueId,
        quant: Option<ActivationQuant>,
    ) -> Result<String, ExportError> {
        let Some(&tensor) = self.constants.get(&value) else {
            let (node, index) = ("constant".to_owned(), value.0);
            return Err(ExportError::Operand { node, index });
        };
        let name = self.graph.value(value).name.clone();
        let Some(quant) = quant else {
            if let Some(real) = &self.reals[value.0] {
                return Ok(real.clone());
            }
            let real = self.names.unique(&format!("{name}/constant"));
            let reals = proto::reals(real.clone(), &tensor.dims, &tensor.data);
            self.initializers.push(reals);
            self.reals[value.0] = Some(real.clone());
            return Ok(real);
        };
        let at = (value, key(quant));
        if let Some(edge) = self.edges.get(&at) {
            return Ok(edge.clone());
        }
        let integers = self.names.unique(&format!("{name}/{}", quant.dtype));
        let back = self.names.unique(&format!("{integers}/dequantized"));
        let [scale, zero] = self.parameters(&integers, quant)?;
        let own = self.quant(value).unwrap_or(quant);
        let steps = tensor.data.iter().map(|&x| step(x, own));
        let steps: Vec<i32> = if own == quant {
            steps.collect()
        } else {
            let Dyadic { m, s } = native::rescale(own.quant.scale, quant.quant.scale)?;
            let (lo, hi) = range(quant);
            let read = |q: i32| {
                rhu(q - own.quant.zero_point, m, s)
                    .saturating_add(quant.quant.zero_point)
                    .clamp(lo, hi)
            };
            steps.map(read).collect()
        };
        let steps = steps.into_iter();
        let stored = proto::integers(integers.clone(), quant.dtype, &tensor.dims, steps);
        self.initializers.extend(stored);
        let node = proto::node(
            format!("{integers}/dequantize"),
            "DequantizeLinear",
            vec![integers, scale, zero],
            back.clone(),
            Vec::new(),
        );
        self.nodes.push(node);
        self.edges.insert(at, back.clone());
        Ok(back)
    }

    /// Adds a node; the tensor of its result.
    fn push(
        &mut self,
        name: &str,
        op: &str,
        inputs: Vec<String>,
        attributes: Vec<Attribute>,
    ) -> String {
        let output = self.names.unique(&format!("{name}/result"));
        let node = proto::node(name.to_owned(), op, inputs, output.clone(), attributes);
        self.nodes.push(node);
        self.last = Some(output.clone());
        output
    }

    /// A vector of 64-bit integers as an initializer.
    fn numbers(&mut self, base: &str, values: &[i64]) -> String {
        let name = self.names.unique(base);
        self.initializers.push(proto::numbers(name.clone(), values));
        name
    }

    /// Reals as an initializer.
    fn real_tensor(&mut self, base: &str, dims: &[usize], values: &[f32]) -> String {
        let name = self.names.unique(base);
        let tensor = proto::reals(name.clone(), dims, values);
        self.initializers.push(tensor);
        name
    }

    /// The dims of a node's result.
    fn result_dims(&self, node: &Node) -> &'q [usize] {
        &self.graph.value(node.output).dims
    }
}

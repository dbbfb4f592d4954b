//! The walk over the nodes: each ONNX tensor becomes a constant or a value, each node one operator of the
//! graph or a few. Nothing is joined here; the passes do that.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use requant_model::limits;
use requant_model::ops::broadcast;

use crate::float::graph::{Graph, Node as FloatNode, Op, Port, Tensor, Value, ValueId};
use crate::names::Names;
use crate::onnx::constant::{Constant, Data, Dim};
use crate::onnx::elem::{Elem, I64};
use crate::onnx::fold::Folder;
use crate::onnx::lower::{Failure, Lowered, Stop, TAKES_INFINITY, oddity};
use crate::onnx::model::{self, Domain, Model, Node};
use crate::onnx::rules;
use crate::onnx::{ImportError, PortFault, Reason, Refusal};

use super::select::{is_quantized, needed, node_names};

/// What an ONNX tensor is.
#[derive(Clone, Debug)]
pub(super) enum Mapped {
    /// A constant.
    Constant(Arc<Constant>),
    /// A value of the graph.
    Value(ValueId),
    /// The result of a refused node.
    Refused,
}

/// The state of a walk.
#[derive(Debug)]
pub(super) struct Reader<'m> {
    model: &'m Model,
    /// Tensors that a node which the outputs need, or an output, reads.
    needed: HashSet<&'m str>,
    batched: bool,
    pub(super) graph: Graph,
    mapped: HashMap<&'m str, Mapped>,
    /// Constants that became values, by tensor.
    placed: HashMap<String, ValueId>,
    pub(super) folder: Folder,
    values: Names,
    nodes: Names,
    /// Names of the ONNX nodes in the graph.
    node_names: Vec<String>,
    /// Index of the node being read.
    current: usize,
    refusals: Vec<Refusal>,
    /// The NaN, or else the infinity, that a float constant holds.
    oddities: HashMap<&'m str, Option<f32>>,
}

/// Reads a model, with a symbolic batch or a fixed one. Gives what is left of the budget too.
pub(super) fn read(model: &Model, batched: bool) -> Result<(Graph, Folder), Failure> {
    let (live, needed) = needed(model);
    let quantized = |&(index, node): &(usize, &Node)| live[index] && is_quantized(node);
    if let Some((_, node)) = model.nodes.iter().enumerate().find(quantized) {
        return Err(Failure::Import(ImportError::Quantized {
            node: node.name.clone(),
            op: node.display.clone(),
        }));
    }
    let ports = model.inputs.iter().map(|port| port.name.clone());
    let mut nodes = Names::new(std::iter::empty());
    let mut reader = Reader {
        model,
        needed,
        batched,
        graph: Graph {
            name: model.name.clone(),
            batched,
            ..Graph::default()
        },
        mapped: HashMap::new(),
        placed: HashMap::new(),
        folder: Folder::new(model.constants.values().map(|c| c.len()).sum()),
        values: Names::new(ports),
        node_names: node_names(model, &live, &mut nodes),
        nodes,
        current: 0,
        refusals: Vec::new(),
        oddities: HashMap::new(),
    };
    for (name, constant) in &model.constants {
        let constant = Mapped::Constant(Arc::clone(constant));
        reader.mapped.insert(name, constant);
    }
    reader.inputs(&live)?;
    for (index, node) in model.nodes.iter().enumerate().filter(|(i, _)| live[*i]) {
        reader.current = index;
        match reader.node(node) {
            Ok(()) => {}
            Err(Stop::MixesSamples) => return Err(Failure::MixesSamples),
            // What cannot be said of every batch size may be said of a batch of one.
            Err(Stop::Refuse(_)) if reader.reads_batch_size(node) => {
                return Err(Failure::MixesSamples);
            }
            Err(stop) => reader.refuse(node, stop),
        }
    }
    reader.outputs()?;
    if !reader.refusals.is_empty() {
        return Err(ImportError::Unsupported(reader.refusals).into());
    }
    Ok((reader.graph, reader.folder))
}

impl<'m> Reader<'m> {
    fn inputs(&mut self, live: &[bool]) -> Result<(), Failure> {
        let (count, limit) = (self.model.inputs.len(), limits::MAX_PORTS);
        if count > limit {
            let what = "inputs";
            return Err(ImportError::TooMany { what, count, limit }.into());
        }
        let cast = self.only_cast_to_float(live);
        for port in &self.model.inputs {
            let fault = |fault| port_error("input", port, fault);
            let dims = port.dims.clone();
            let dims = dims.ok_or_else(|| fault(PortFault::NotATensor))?;
            if !port.elem.is_float() && !cast.contains(port.name.as_str()) {
                return Err(fault(PortFault::Type(port.elem)).into());
            }
            let value = ValueId(self.graph.values.len());
            // The names of ports are reserved, so they are given directly.
            self.graph.values.push(Value {
                name: port.name.clone(),
                dims,
                batched: self.batched,
            });
            self.graph.inputs.push(Port {
                value,
                name: port.name.clone(),
            });
            self.mapped.insert(&port.name, Mapped::Value(value));
        }
        Ok(())
    }

    /// Tensors that are read, and only to be made real: their integers are the reals then.
    fn only_cast_to_float(&self, live: &[bool]) -> HashSet<&'m str> {
        let mut cast = HashSet::new();
        let mut others: HashSet<&str> =
            self.model.outputs.iter().map(|p| p.name.as_str()).collect();
        let nodes = self.model.nodes.iter().zip(live);
        for (node, _) in nodes.filter(|(_, live)| **live) {
            let casts = node.op == "Cast"
                && node.domain == Domain::Onnx
                && cast_target(node).is_some_and(Elem::is_float);
            let readers = if casts { &mut cast } else { &mut others };
            readers.extend(node.inputs.iter().map(String::as_str));
        }
        cast.retain(|name| !others.contains(name));
        cast
    }

    fn outputs(&mut self) -> Result<(), Failure> {
        for port in &self.model.outputs {
            if self
                .model
                .inputs
                .iter()
                .any(|input| input.name == port.name)
            {
                return Err(port_error("output", port, PortFault::Input).into());
            }
            let value = match self.mapped.get(port.name.as_str()) {
                Some(&Mapped::Value(value)) => value,
                Some(Mapped::Constant(_)) => {
                    return Err(port_error("output", port, PortFault::Constant).into());
                }
                // Its node was refused.
                Some(Mapped::Refused) | None => continue,
            };
            let own = self.graph.value(value);
            if self.batched && (!own.batched || own.dims.first() != Some(&1)) {
                return Err(Failure::MixesSamples);
            }
            let name = port.name.clone();
            self.graph.outputs.push(Port { value, name });
        }
        let real = self.graph.reals();
        for node in &self.graph.nodes {
            if matches!(node.op, Op::Softmax { log: true, .. }) && !real[node.output.0] {
                self.refusals.push(Refusal {
                    node: node.name.clone(),
                    op: "LogSoftmax".to_owned(),
                    reason: Reason::InnerLogSoftmax,
                });
            }
        }
        Ok(())
    }

    fn node(&mut self, node: &'m Node) -> Lowered<()> {
        if let Some(results) = self.folded(node)? {
            for (index, constant) in results.into_iter().enumerate() {
                self.define(node, index, Mapped::Constant(Arc::new(constant)));
            }
            return Ok(());
        }
        self.numbers(node)?;
        match node.domain {
            Domain::Onnx => self.standard(node),
            Domain::Microsoft => self.function(node),
            Domain::Qonnx | Domain::Other => Err(Reason::UnknownOp.into()),
        }
    }

    fn standard(&mut self, node: &'m Node) -> Lowered<()> {
        match node.op.as_str() {
            "Conv" => self.conv(node),
            "ConvTranspose" => self.conv_transpose(node),
            "Gemm" => self.gemm(node),
            "MatMul" => self.mat_mul(node),
            "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Min" | "Max" | "PRelu" | "Sum" => {
                self.elementwise(node)
            }
            "Clip" => self.clip(node),
            "BatchNormalization" => self.batch_normalization(node),
            "MaxPool" => self.max_pool(node),
            "GlobalMaxPool" => self.global_max_pool(node),
            "AveragePool" => self.average_pool(node),
            "GlobalAveragePool" => self.global_average_pool(node),
            "ReduceMean" => self.reduce_mean(node),
            "ReduceSum" => self.reduce_sum(node),
            "ReduceL2" => self.reduce_l2(node),
            "ReduceMax" => self.reduce_max(node),
            "LayerNormalization" => self.layer_normalization(node),
            "InstanceNormalization" => self.instance_normalization(node),
            "GroupNormalization" => self.group_normalization(node),
            "Softmax" => self.softmax(node, false),
            "LogSoftmax" => self.softmax(node, true),
            "Concat" => self.concat(node),
            "Split" => self.split(node),
            "Slice" => self.slice(node),
            "Gather" => self.gather(node),
            "Pad" => self.pad(node),
            "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" => self.reshape(node),
            "Transpose" => self.transpose(node),
            "DepthToSpace" | "SpaceToDepth" => self.space(node),
            "Resize" | "Upsample" => self.resize(node),
            "Identity" | "Dropout" => self.identity(node),
            "Cast" => self.cast(node),
            "CastLike" => self.cast_like(node),
            "Expand" => self.expand(node),
            "Shape" | "Size" => self.shape(node),
            _ => self.function(node),
        }
    }

    fn identity(&mut self, node: &'m Node) -> Lowered<()> {
        self.unused(node, 1)?;
        let mapped = self.operand(node, 0)?.clone();
        self.define(node, 0, mapped);
        Ok(())
    }

    /// Cast between float types, and of integers that are the reals.
    fn cast(&mut self, node: &'m Node) -> Lowered<()> {
        if cast_target(node).is_some_and(Elem::is_float) {
            return self.identity(node);
        }
        // Nothing is known of what a refused node would give: a size, perhaps, that is no real.
        self.operand(node, 0)?;
        let value = vec![node.int("to")?.unwrap_or(0)];
        Err(Reason::Attribute { name: "to", value }.into())
    }

    /// Cast to the type of the second operand: exporters bring their constants to that of a value.
    fn cast_like(&mut self, node: &'m Node) -> Lowered<()> {
        let float = match self.operand(node, 1)? {
            Mapped::Constant(like) => like.elem.is_float(),
            Mapped::Value(_) | Mapped::Refused => true,
        };
        let mapped = self.operand(node, 0)?.clone();
        let Mapped::Constant(constant) = &mapped else {
            self.define(node, 0, mapped);
            return Ok(());
        };
        let dims = constant.dims.clone();
        let cast = match (constant.floats(), float) {
            (None, true) => {
                let values = constant.ints().ok_or(Reason::Fold)?;
                Constant::float(dims, values.into_iter().map(|v| v as f32).collect())
            }
            (Some(values), false) => {
                let values = values.iter().map(|&v| v as i64).collect();
                Constant::integer(I64, dims, values)
            }
            (None, false) | (Some(_), true) => {
                self.define(node, 0, mapped);
                return Ok(());
            }
        };
        self.define(node, 0, Mapped::Constant(Arc::new(cast)));
        Ok(())
    }

    /// The results of a node that only moves or computes constants.
    fn folded(&mut self, node: &Node) -> Lowered<Option<Vec<Constant>>> {
        let mut operands = Vec::new();
        for name in &node.inputs {
            match self.mapped.get(name.as_str()) {
                None if name.is_empty() => operands.push(None),
                Some(Mapped::Constant(constant)) => operands.push(Some(Arc::clone(constant))),
                Some(Mapped::Value(_) | Mapped::Refused) | None => return Ok(None),
            }
        }
        self.folder.fold(node, &operands).map_err(Stop::Refuse)
    }

    /// Whether an operand is a number that depends on the batch size.
    fn reads_batch_size(&self, node: &Node) -> bool {
        let depends = |name: &String| match self.mapped.get(name.as_str()) {
            Some(Mapped::Constant(constant)) => matches!(constant.data, Data::Symbolic(_)),
            Some(Mapped::Value(_) | Mapped::Refused) | None => false,
        };
        self.batched && node.inputs.iter().any(depends)
    }

    /// Notes a refusal; the node's results are then refused without another word.
    fn refuse(&mut self, node: &'m Node, stop: Stop) {
        if let Stop::Refuse(reason) = stop {
            self.refusals.push(Refusal {
                node: node.name.clone(),
                op: node.display.clone(),
                reason,
            });
        }
        for output in node.outputs.iter().filter(|name| !name.is_empty()) {
            self.mapped.insert(output, Mapped::Refused);
        }
    }

    /// Refuses a node with a constant operand that is not a number, or infinite where that means nothing.
    fn numbers(&mut self, node: &'m Node) -> Lowered<()> {
        let takes_infinity = TAKES_INFINITY.contains(&node.op.as_str());
        for name in node.inputs.iter().filter(|name| !name.is_empty()) {
            let Some(Mapped::Constant(constant)) = self.mapped.get(name.as_str()) else {
                continue;
            };
            let Some(values) = constant.floats() else {
                continue;
            };
            let found = *self.oddities.entry(name).or_insert_with(|| oddity(values));
            if let Some(value) = found.filter(|v| v.is_nan() || !takes_infinity) {
                let tensor = name.clone();
                return Err(Reason::Value { tensor, value }.into());
            }
        }
        Ok(())
    }

    /// Refuses a node whose result `index`, which is not computed, something needs.
    pub(super) fn unused(&self, node: &Node, index: usize) -> Lowered<()> {
        match node.output(index) {
            Some(tensor) if self.needed.contains(tensor) => {
                let tensor = tensor.to_owned();
                Err(Reason::Result { tensor }.into())
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Whether result `index` is needed.
    pub(super) fn wants(&self, node: &Node, index: usize) -> bool {
        let name = node.output(index);
        name.is_some_and(|name| self.needed.contains(name))
    }

    /// Defines a result of a node.
    pub(super) fn define(&mut self, node: &'m Node, index: usize, mapped: Mapped) {
        if let Some(name) = node.output(index) {
            self.mapped.insert(name, mapped);
        }
    }

    /// Defines the first result of a node as a value.
    pub(super) fn define_value(&mut self, node: &'m Node, value: ValueId) {
        self.define(node, 0, Mapped::Value(value));
    }

    /// What the operand at `index` is; refused ones stop the node.
    pub(super) fn operand(&self, node: &Node, index: usize) -> Lowered<&Mapped> {
        match self.mapped.get(node.required(index)?) {
            Some(Mapped::Refused) | None => Err(Stop::Refused),
            Some(mapped) => Ok(mapped),
        }
    }

    /// The value that the operand at `index` is.
    pub(super) fn value(&self, node: &Node, index: usize) -> Lowered<ValueId> {
        match self.operand(node, index)? {
            Mapped::Value(value) => Ok(*value),
            Mapped::Constant(_) | Mapped::Refused => {
                let tensor = node.required(index)?.to_owned();
                Err(Reason::Operand { tensor }.into())
            }
        }
    }

    /// The constant that the operand at `index` is.
    pub(super) fn constant(&self, node: &Node, index: usize) -> Lowered<Arc<Constant>> {
        match self.operand(node, index)? {
            Mapped::Constant(constant) => Ok(Arc::clone(constant)),
            Mapped::Value(_) | Mapped::Refused => {
                let tensor = node.required(index)?.to_owned();
                Err(Reason::NotConstant { tensor }.into())
            }
        }
    }

    /// The float constant that the operand at `index` is, as a tensor of the graph.
    pub(super) fn tensor(&self, node: &Node, index: usize) -> Lowered<Tensor> {
        let constant = self.constant(node, index)?;
        self.folder.pay(&constant.dims)?;
        let Some(values) = constant.floats() else {
            return Err(Reason::Type {
                tensor: node.required(index)?.to_owned(),
                elem: constant.elem,
            }
            .into());
        };
        Ok(Tensor {
            dims: constant.dims.clone(),
            data: values.to_vec(),
        })
    }

    /// The operands of a node after the first, which must be constants or absent, by position.
    pub(super) fn constant_operands(&self, node: &Node) -> Lowered<Vec<Option<Arc<Constant>>>> {
        let constant = |index: usize| match node.input(index).filter(|_| index > 0) {
            Some(_) => self.constant(node, index).map(Some),
            None => Ok(None),
        };
        (0..node.inputs.len()).map(constant).collect()
    }

    /// The operand at `index` as a value; a constant becomes one.
    pub(super) fn placed(&mut self, node: &Node, index: usize) -> Lowered<ValueId> {
        if let Mapped::Value(value) = self.operand(node, index)? {
            return Ok(*value);
        }
        let name = node.required(index)?.to_owned();
        if let Some(&value) = self.placed.get(&name) {
            return Ok(value);
        }
        let tensor = self.tensor(node, index)?;
        let value = self.place(&name, tensor)?;
        self.placed.insert(name, value);
        Ok(value)
    }

    /// A constant as a value.
    pub(super) fn place(&mut self, name: &str, tensor: Tensor) -> Lowered<ValueId> {
        if let Some(value) = oddity(&tensor.data) {
            let tensor = name.to_owned();
            return Err(Reason::Value { tensor, value }.into());
        }
        let dims = tensor.dims.clone();
        let node_name = self.nodes.unique(name);
        self.push(node_name, name, Op::Constant(Arc::new(tensor)), &[], dims)
    }

    /// A node that does the work of an ONNX node, and the first result's name.
    pub(super) fn emit(
        &mut self,
        node: &Node,
        op: Op,
        inputs: &[ValueId],
        dims: Vec<usize>,
    ) -> Lowered<ValueId> {
        self.emit_part(node, "", op, inputs, dims)
    }

    /// As [`Reader::emit`], for a node that does a part of the work; `part` tells which and is empty for
    /// the main one.
    pub(super) fn emit_part(
        &mut self,
        node: &Node,
        part: &str,
        op: Op,
        inputs: &[ValueId],
        dims: Vec<usize>,
    ) -> Lowered<ValueId> {
        let output = node.output(0).unwrap_or_default();
        if part.is_empty() {
            let name = self.node_names[self.current].clone();
            return self.push(name, output, op, inputs, dims);
        }
        let name = format!("{}/{part}", self.node_names[self.current]);
        let name = self.nodes.unique(&name);
        self.push(name, &format!("{output}/{part}"), op, inputs, dims)
    }

    /// Gives the last value that a node became the name of the ONNX tensor, which the first one has;
    /// nothing where they are one (`part` is empty).
    pub(super) fn swap_names(&mut self, first: ValueId, last: ValueId, part: &str) {
        if part.is_empty() || first == last {
            return;
        }
        let name = std::mem::take(&mut self.graph.values[first.0].name);
        let other = std::mem::replace(&mut self.graph.values[last.0].name, name);
        self.graph.values[first.0].name = other;
    }

    /// Gives a value that a node's parts end in the name of the ONNX tensor.
    pub(super) fn rename(&mut self, value: ValueId, name: &str) {
        self.graph.values[value.0].name = self.values.unique(name);
    }

    /// A node of the name and a value named after `base`.
    pub(super) fn push(
        &mut self,
        name: String,
        base: &str,
        op: Op,
        inputs: &[ValueId],
        dims: Vec<usize>,
    ) -> Lowered<ValueId> {
        if limits::elements(&dims).is_none() {
            return Err(Reason::Shape(dims.iter().map(|&d| d as i64).collect()).into());
        }
        let output = ValueId(self.graph.values.len());
        self.graph.values.push(Value {
            name: self.values.unique(base),
            dims,
            batched: inputs.iter().any(|&id| self.graph.value(id).batched),
        });
        self.graph.nodes.push(FloatNode {
            name,
            op,
            inputs: inputs.to_vec(),
            output,
        });
        Ok(output)
    }

    /// The graph's name of part `index` of the node being read.
    pub(super) fn part_name(&mut self, index: usize) -> String {
        let name = self.node_names[self.current].clone();
        if index == 0 {
            return name;
        }
        self.nodes.unique(&format!("{name}/{index}"))
    }

    /// The shape of a value.
    pub(super) fn dims(&self, value: ValueId) -> Vec<usize> {
        self.graph.value(value).dims.clone()
    }

    /// Whether a value leads with the batch.
    pub(super) fn is_batched(&self, value: ValueId) -> bool {
        self.graph.value(value).batched
    }

    /// The shape of the operand at `index` with its batch as a symbol.
    pub(super) fn symbols(&self, node: &Node, index: usize) -> Lowered<Vec<Dim>> {
        Ok(match self.operand(node, index)? {
            Mapped::Constant(constant) => rules::symbols(&constant.dims, false),
            Mapped::Value(value) => {
                let value = self.graph.value(*value);
                rules::symbols(&value.dims, value.batched)
            }
            Mapped::Refused => return Err(Stop::Refused),
        })
    }

    /// The shape of two values that are joined element by element. Samples stay apart where the batch
    /// leads the result, and an operand without it repeats for every sample.
    pub(super) fn broadcast(&self, a: ValueId, b: ValueId) -> Lowered<Vec<usize>> {
        let (a, b) = (self.graph.value(a), self.graph.value(b));
        let dims = broadcast(&a.dims, &b.dims);
        let batched = a.batched || b.batched;
        let leads = |value: &Value| {
            let rank = a.dims.len().max(b.dims.len());
            if value.batched {
                value.dims.len() == rank
            } else {
                value.dims.len() < rank || value.dims.first() == Some(&1)
            }
        };
        let per_sample = !(a.batched && b.batched) || a.dims[0] == b.dims[0];
        if batched && !(leads(a) && leads(b) && per_sample) {
            return Err(Stop::MixesSamples);
        }
        Ok(dims.ok_or_else(|| Reason::Shapes {
            a: a.dims.clone(),
            b: b.dims.clone(),
        })?)
    }
}

/// The type that a Cast makes.
fn cast_target(node: &Node) -> Option<Elem> {
    let number = node.int("to").ok().flatten()?;
    Some(i32::try_from(number).map_or(Elem::Other(0), Elem::from_number))
}

fn port_error(kind: &'static str, port: &model::Port, fault: PortFault) -> ImportError {
    ImportError::Port {
        port: kind,
        name: port.name.clone(),
        fault,
    }
}

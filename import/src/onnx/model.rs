//! The decoded model as the importer works on it: nodes with checked names and attributes, constants,
//! ports, and the operator versions.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use requant_model::limits;

use super::ImportOptions;
use super::constant::Constant;
use super::elem::Elem;
use super::error::{ImportError, PortFault, Reason, TensorFault};
use super::proto::tensor_shape_proto::dimension::Value as DimValue;
use super::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, ValueInfoProto};
use super::tensor;

/// Operator versions of the default domain that are read.
const OPSETS: std::ops::RangeInclusive<i64> = 9..=25;

/// A checked model.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) producer: String,
    pub(crate) opset: i64,
    pub(crate) name: String,
    pub(crate) nodes: Vec<Node>,
    pub(crate) constants: HashMap<String, Arc<Constant>>,
    pub(crate) inputs: Vec<Port>,
    pub(crate) outputs: Vec<Port>,
    /// Whether every input and output leads with the same unknown dimension.
    pub(crate) symbolic_batch: bool,
}

/// A graph input or output.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) name: String,
    pub(crate) elem: Elem,
    /// Shape, an unknown leading dimension as 1. Of an output, where it is stated.
    pub(crate) dims: Option<Vec<usize>>,
    /// Whether the leading dimension is unknown.
    symbolic: bool,
}

/// An operator domain that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Domain {
    /// The standard operators.
    Onnx,
    /// ONNX Runtime's contributed operators.
    Microsoft,
    /// QONNX's operators, under the names that its tools have given them.
    Qonnx,
    /// Any other.
    Other,
}

/// A node.
#[derive(Debug)]
pub(crate) struct Node {
    /// Its name, or `(unnamed OpType #index)`.
    pub(crate) name: String,
    /// Whether that is the file's.
    pub(crate) named: bool,
    pub(crate) op: String,
    pub(crate) domain: Domain,
    /// The operator with its domain, for reports.
    pub(crate) display: String,
    pub(crate) inputs: Vec<String>,
    pub(crate) outputs: Vec<String>,
    pub(crate) opset: i64,
    attributes: BTreeMap<String, Attribute>,
}

/// The value of an attribute.
#[derive(Clone, Debug)]
pub(crate) enum Attribute {
    Int(i64),
    Float(f32),
    Text(String),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Tensor(Arc<Constant>),
    /// A graph, type, or list of texts.
    Unread,
}

impl Model {
    pub(crate) fn read(proto: ModelProto, options: &ImportOptions) -> Result<Self, ImportError> {
        if proto.graph.is_none() {
            return Err(ImportError::NoGraph);
        }
        let opset = opset(&proto)?;
        let producer = format!("{} {}", proto.producer_name(), proto.producer_version());
        let graph = proto.graph.ok_or(ImportError::NoGraph)?;
        if let Some(sparse) = graph.sparse_initializer.first() {
            let tensor = sparse.values.as_ref().map_or("", |v| v.name()).to_owned();
            return Err(ImportError::Tensor {
                tensor,
                fault: TensorFault::Sparse,
            });
        }
        let mut constants = HashMap::new();
        for initializer in &graph.initializer {
            let name = initializer.name().to_owned();
            if name.is_empty() {
                return Err(ImportError::Tensor {
                    tensor: name,
                    fault: TensorFault::NoName,
                });
            }
            let constant = Arc::new(tensor::read(initializer, "")?);
            if constants.insert(name.clone(), constant).is_some() {
                return Err(ImportError::Duplicate { tensor: name });
            }
        }
        let mut inputs = Vec::new();
        for info in graph
            .input
            .iter()
            .filter(|i| !constants.contains_key(i.name()))
        {
            inputs.push(Port::read(info, "input", options)?);
        }
        let outputs: Vec<Port> = graph
            .output
            .iter()
            .map(|info| Port::read(info, "output", options))
            .collect::<Result<_, _>>()?;
        if inputs.is_empty() {
            return Err(ImportError::NoPorts("inputs"));
        }
        if outputs.is_empty() {
            return Err(ImportError::NoPorts("outputs"));
        }
        let nodes = nodes(&graph, opset)?;
        check_names(&constants, &inputs, &outputs, &nodes)?;
        let symbolic_batch = inputs.iter().all(|port| port.symbolic)
            && outputs
                .iter()
                .all(|port| port.symbolic || port.dims.is_none());
        let name = graph.name().to_owned();
        Ok(Model {
            producer,
            opset,
            name,
            nodes,
            constants,
            inputs,
            outputs,
            symbolic_batch,
        })
    }
}

fn opset(proto: &ModelProto) -> Result<i64, ImportError> {
    let mut found = None;
    for entry in &proto.opset_import {
        match entry.domain() {
            "" | "ai.onnx" => found = Some(entry.version()),
            // Other domains are refused where a node uses them.
            _ => {}
        }
    }
    let version = found.unwrap_or(0);
    if OPSETS.contains(&version) {
        Ok(version)
    } else {
        Err(ImportError::Opset {
            domain: String::new(),
            version,
        })
    }
}

/// Every tensor is made once, and before it is read.
fn check_names(
    constants: &HashMap<String, Arc<Constant>>,
    inputs: &[Port],
    outputs: &[Port],
    nodes: &[Node],
) -> Result<(), ImportError> {
    let mut defined: HashSet<&str> = constants.keys().map(String::as_str).collect();
    let duplicate = |tensor: &str| ImportError::Duplicate {
        tensor: tensor.to_owned(),
    };
    for port in inputs {
        if !defined.insert(&port.name) {
            return Err(duplicate(&port.name));
        }
    }
    for node in nodes {
        for tensor in node.inputs.iter().filter(|t| !t.is_empty()) {
            if !defined.contains(tensor.as_str()) {
                return Err(ImportError::Undefined {
                    node: node.name.clone(),
                    tensor: tensor.clone(),
                });
            }
        }
        for tensor in node.outputs.iter().filter(|t| !t.is_empty()) {
            if !defined.insert(tensor) {
                return Err(duplicate(tensor));
            }
        }
    }
    let mut listed = BTreeSet::new();
    for port in outputs {
        if !defined.contains(port.name.as_str()) {
            let (node, tensor) = ("graph output".to_owned(), port.name.clone());
            return Err(ImportError::Undefined { node, tensor });
        }
        if !listed.insert(&port.name) {
            return Err(duplicate(&port.name));
        }
    }
    Ok(())
}

impl Port {
    fn read(
        info: &ValueInfoProto,
        port: &'static str,
        options: &ImportOptions,
    ) -> Result<Self, ImportError> {
        let name = info.name().to_owned();
        let fault = |fault| ImportError::Port {
            port,
            name: name.clone(),
            fault,
        };
        if name.is_empty() || name.len() > limits::MAX_NAME || name.chars().any(char::is_control) {
            return Err(fault(PortFault::Name));
        }
        let is_input = port == "input";
        let tensor = info.r#type.as_ref().and_then(|t| t.tensor_type.as_ref());
        let Some(tensor) = tensor else {
            return Err(fault(PortFault::NotATensor));
        };
        let elem = Elem::from_number(tensor.elem_type());
        let Some(shape) = &tensor.shape else {
            if is_input {
                return Err(fault(PortFault::NotATensor));
            }
            return Ok(Port {
                name,
                elem,
                dims: None,
                symbolic: false,
            });
        };
        let mut symbolic = false;
        let mut dims = Vec::new();
        let given = options.input_dims.get(&name).filter(|_| is_input);
        for (axis, dim) in shape.dim.iter().enumerate() {
            let named = match &dim.value {
                Some(DimValue::DimValue(value)) if *value > 0 => {
                    dims.push(*value);
                    continue;
                }
                // Exporters write 0 or -1 for a dimension that they do not know.
                Some(DimValue::DimValue(0 | -1)) | None => None,
                Some(DimValue::DimValue(value)) => {
                    return Err(fault(PortFault::Shape(vec![*value])));
                }
                Some(DimValue::DimParam(symbol)) => Some(symbol).filter(|s| !s.is_empty()),
            };
            let fixed = named
                .and_then(|symbol| options.fixed_dims.get(symbol))
                .map(|&size| i64::try_from(size).unwrap_or(0))
                .or_else(|| given.and_then(|dims| extent(dims, axis, shape.dim.len())));
            match fixed {
                Some(size) => dims.push(size),
                None if axis == 0 => {
                    symbolic = true;
                    dims.push(1);
                }
                // What an output's other dimensions are follows from the inputs.
                None if !is_input => dims.push(1),
                None => {
                    let symbol = match &dim.value {
                        Some(DimValue::DimValue(value)) => value.to_string(),
                        Some(DimValue::DimParam(symbol)) if !symbol.is_empty() => symbol.clone(),
                        Some(DimValue::DimParam(_)) | None => "?".to_owned(),
                    };
                    return Err(fault(PortFault::Symbolic { axis, symbol }));
                }
            }
        }
        let sizes: Option<Vec<usize>> = dims.iter().map(|&d| usize::try_from(d).ok()).collect();
        let sizes = sizes.filter(|sizes| limits::elements(sizes).is_some());
        let Some(sizes) = sizes else {
            return Err(fault(PortFault::Shape(dims)));
        };
        Ok(Port {
            name,
            elem,
            dims: Some(sizes),
            symbolic,
        })
    }
}

/// The extent that a stated shape gives an axis of a tensor of `rank`.
fn extent(stated: &[i64], axis: usize, rank: usize) -> Option<i64> {
    let first = rank
        .checked_sub(stated.len())
        .filter(|&missing| missing <= 1)?;
    let size = stated.get(axis.checked_sub(first)?)?;
    (*size > 0).then_some(*size)
}

fn nodes(graph: &GraphProto, opset: i64) -> Result<Vec<Node>, ImportError> {
    graph
        .node
        .iter()
        .enumerate()
        .map(|(index, node)| Node::read(node, index, opset))
        .collect()
}

impl Node {
    fn read(proto: &NodeProto, index: usize, opset: i64) -> Result<Self, ImportError> {
        let op = proto.op_type().to_owned();
        let domain = match proto.domain() {
            "" | "ai.onnx" => Domain::Onnx,
            "com.microsoft" => Domain::Microsoft,
            "qonnx.custom_op.general" | "onnx.brevitas" | "finn.custom_op.general" => Domain::Qonnx,
            _ => Domain::Other,
        };
        let display = match domain {
            Domain::Onnx => op.clone(),
            Domain::Microsoft | Domain::Qonnx | Domain::Other => format!("{}.{op}", proto.domain()),
        };
        let name = match proto.name() {
            "" => format!("(unnamed {op} #{index})"),
            name => name.to_owned(),
        };
        let mut attributes = BTreeMap::new();
        for attribute in &proto.attribute {
            attributes.insert(
                attribute.name().to_owned(),
                Attribute::read(attribute, &name)?,
            );
        }
        let (inputs, outputs) = (proto.input.clone(), proto.output.clone());
        Ok(Node {
            name,
            named: !proto.name().is_empty(),
            op,
            domain,
            display,
            inputs,
            outputs,
            opset,
            attributes,
        })
    }

    /// The name of an operand, or `None` where it is absent.
    pub(crate) fn input(&self, index: usize) -> Option<&str> {
        self.inputs
            .get(index)
            .map(String::as_str)
            .filter(|name| !name.is_empty())
    }

    /// The name of an operand that must be there.
    pub(crate) fn required(&self, index: usize) -> Result<&str, Reason> {
        self.input(index).ok_or(Reason::MissingInput { index })
    }

    /// The name of a result, or `None` where it is not wanted.
    pub(crate) fn output(&self, index: usize) -> Option<&str> {
        self.outputs
            .get(index)
            .map(String::as_str)
            .filter(|name| !name.is_empty())
    }

    /// An integer attribute.
    pub(crate) fn int(&self, name: &'static str) -> Result<Option<i64>, Reason> {
        match self.attributes.get(name) {
            None => Ok(None),
            Some(Attribute::Int(value)) => Ok(Some(*value)),
            Some(_) => Err(Reason::AttributeType { name }),
        }
    }

    /// A float attribute.
    pub(crate) fn float(&self, name: &'static str) -> Result<Option<f32>, Reason> {
        match self.attributes.get(name) {
            None => Ok(None),
            Some(Attribute::Float(value)) if value.is_finite() => Ok(Some(*value)),
            Some(Attribute::Float(value)) => Err(Reason::FloatAttribute {
                name,
                value: *value,
            }),
            Some(_) => Err(Reason::AttributeType { name }),
        }
    }

    /// A list of integers.
    pub(crate) fn ints(&self, name: &'static str) -> Result<Option<&[i64]>, Reason> {
        match self.attributes.get(name) {
            None => Ok(None),
            Some(Attribute::Ints(values)) => Ok(Some(values)),
            Some(_) => Err(Reason::AttributeType { name }),
        }
    }

    /// A list of floats.
    pub(crate) fn floats(&self, name: &'static str) -> Result<Option<&[f32]>, Reason> {
        match self.attributes.get(name) {
            None => Ok(None),
            Some(Attribute::Floats(values)) => Ok(Some(values)),
            Some(_) => Err(Reason::AttributeType { name }),
        }
    }

    /// A text, `default` where it is absent.
    pub(crate) fn text<'a>(
        &'a self,
        name: &'static str,
        default: &'a str,
    ) -> Result<&'a str, Reason> {
        match self.attributes.get(name) {
            None => Ok(default),
            Some(Attribute::Text(value)) => Ok(value),
            Some(_) => Err(Reason::AttributeType { name }),
        }
    }

    /// A tensor.
    pub(crate) fn tensor(&self, name: &'static str) -> Result<Option<&Arc<Constant>>, Reason> {
        match self.attributes.get(name) {
            None => Ok(None),
            Some(Attribute::Tensor(value)) => Ok(Some(value)),
            Some(_) => Err(Reason::AttributeType { name }),
        }
    }
}

impl Attribute {
    fn read(proto: &AttributeProto, node: &str) -> Result<Self, ImportError> {
        // Old writers leave the type out; the field that is set tells then.
        let kind = match proto.r#type() {
            0 if proto.i.is_some() => 2,
            0 if proto.f.is_some() => 1,
            0 if proto.s.is_some() => 3,
            0 if proto.t.is_some() => 4,
            0 if !proto.floats.is_empty() => 6,
            0 if !proto.ints.is_empty() => 7,
            kind => kind,
        };
        Ok(match kind {
            1 => Attribute::Float(proto.f()),
            2 => Attribute::Int(proto.i()),
            3 => Attribute::Text(String::from_utf8_lossy(proto.s()).into_owned()),
            4 => match &proto.t {
                Some(tensor) => {
                    let name = format!("{}.{}", node, proto.name());
                    Attribute::Tensor(Arc::new(tensor::read(tensor, &name)?))
                }
                None => Attribute::Unread,
            },
            6 => Attribute::Floats(proto.floats.clone()),
            7 => Attribute::Ints(proto.ints.clone()),
            _ => Attribute::Unread,
        })
    }
}

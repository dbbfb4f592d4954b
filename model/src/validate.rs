//! The whole-graph check: everything a plan relies on is proved here, once.

use std::collections::HashSet;

use requant_numerics::DType;

use crate::graph::name_is_valid;
use crate::ops::Context;
use crate::{Graph, ModelError, Node, NodeError, Value, ValueId, limits};

pub(crate) fn validate(graph: &Graph) -> Result<(), ModelError> {
    for (what, count, limit) in [
        ("nodes", graph.nodes.len(), limits::MAX_NODES),
        ("values", graph.values.len(), limits::MAX_VALUES),
        ("tensors", graph.tensors.len(), limits::MAX_TENSORS),
        ("inputs", graph.inputs.len(), limits::MAX_PORTS),
        ("outputs", graph.outputs.len(), limits::MAX_PORTS),
    ] {
        if count > limit {
            return Err(ModelError::TooMany { what, count, limit });
        }
    }
    for (index, name) in graph.tensors.keys().enumerate() {
        if !name_is_valid(name) {
            return Err(ModelError::Name {
                what: "tensor",
                index,
            });
        }
    }
    let mut names = HashSet::new();
    for (index, value) in graph.values.iter().enumerate() {
        check_value(index, value)?;
        if !names.insert(value.name.as_str()) {
            return Err(ModelError::DuplicateValue {
                name: value.name.clone(),
            });
        }
    }
    check_ports(graph, &graph.inputs, "inputs")?;
    check_ports(graph, &graph.outputs, "outputs")?;
    let limit = limits::max_reads(graph.tensors.values().map(crate::Tensor::elements).sum());
    let mut read = 0usize;
    let mut computed = vec![false; graph.values.len()];
    for id in &graph.inputs {
        computed[id.index()] = true;
    }
    for (index, node) in graph.nodes.iter().enumerate() {
        if !name_is_valid(&node.name) {
            return Err(ModelError::Name {
                what: "node",
                index,
            });
        }
        check_order(graph, node, &mut computed)?;
        let fault = |source| ModelError::Node {
            node: node.name.clone(),
            op: node.op.name(),
            source: Box::new(source),
        };
        read = read.saturating_add(check_node(graph, node).map_err(fault)?);
        if read > limit {
            return Err(ModelError::TooMany {
                what: "tensor elements read by its nodes",
                count: read,
                limit,
            });
        }
    }
    match graph.outputs.iter().find(|id| !computed[id.index()]) {
        Some(id) => {
            let value = graph.value(*id).name.clone();
            Err(ModelError::Order {
                node: "graph".to_owned(),
                value,
            })
        }
        None => Ok(()),
    }
}

fn check_value(index: usize, value: &Value) -> Result<(), ModelError> {
    let name = || value.name.clone();
    if !name_is_valid(&value.name) {
        return Err(ModelError::Name {
            what: "value",
            index,
        });
    }
    if limits::elements(&value.dims).is_none() || (value.batched && value.dims.is_empty()) {
        return Err(ModelError::Shape {
            name: name(),
            dims: value.dims.clone(),
        });
    }
    if value.dtype == DType::F64 {
        return Err(ModelError::ValueType {
            name: name(),
            dtype: value.dtype,
        });
    }
    let Some(quant) = value.quant else {
        return Ok(());
    };
    let Some((lo, hi)) = value.dtype.range() else {
        return Err(ModelError::ValueType {
            name: name(),
            dtype: value.dtype,
        });
    };
    if !limits::SCALE_RANGE.contains(&quant.scale) {
        return Err(ModelError::Scale {
            name: name(),
            scale: quant.scale,
        });
    }
    // The 16-bit residual stream and accumulators are symmetric, and so is what is told by its sign.
    let signs = matches!(value.dtype, DType::Binary | DType::Ternary);
    let symmetric = value.dtype.bits() > 8 || signs;
    let inside = (lo..=hi).contains(&i64::from(quant.zero_point));
    if !inside || (symmetric && quant.zero_point != 0) {
        let (dtype, zero_point) = (value.dtype, quant.zero_point);
        return Err(ModelError::ZeroPoint {
            name: name(),
            dtype,
            zero_point,
        });
    }
    Ok(())
}

fn check_ports(graph: &Graph, ids: &[ValueId], what: &'static str) -> Result<(), ModelError> {
    if ids.is_empty() {
        return Err(ModelError::NoPorts(what));
    }
    let mut seen = HashSet::new();
    for id in ids {
        check_id(graph, "graph", *id)?;
        let value = graph.value(*id);
        if !seen.insert(id) {
            return Err(ModelError::DuplicatePort {
                name: value.name.clone(),
                what,
            });
        }
        let leads = !graph.batched || value.dims.first() == Some(&1);
        if value.batched != graph.batched || !leads {
            return Err(ModelError::PortBatch {
                name: value.name.clone(),
                dims: value.dims.clone(),
                value: value.batched,
                graph: graph.batched,
            });
        }
    }
    Ok(())
}

fn check_id(graph: &Graph, node: &str, id: ValueId) -> Result<(), ModelError> {
    let count = graph.values.len();
    if id.index() < count {
        return Ok(());
    }
    Err(ModelError::Dangling {
        node: node.to_owned(),
        id: id.0,
        count,
    })
}

fn check_order(graph: &Graph, node: &Node, computed: &mut [bool]) -> Result<(), ModelError> {
    for &id in &node.inputs {
        check_id(graph, &node.name, id)?;
        if !computed[id.index()] {
            let value = graph.value(id).name.clone();
            return Err(ModelError::Order {
                node: node.name.clone(),
                value,
            });
        }
    }
    for &id in &node.outputs {
        check_id(graph, &node.name, id)?;
        if std::mem::replace(&mut computed[id.index()], true) {
            let value = graph.value(id).name.clone();
            return Err(ModelError::Redefined {
                node: node.name.clone(),
                value,
            });
        }
    }
    Ok(())
}

/// Checks a node; gives the tensor elements that it reads.
fn check_node(graph: &Graph, node: &Node) -> Result<usize, NodeError> {
    let cx = Context::new(graph, node);
    let expected = node.op.rule().check(&cx)?;
    for (value, want) in cx.outputs.iter().zip(expected) {
        let name = || value.name.clone();
        if value.dims != want.dims {
            let declared = value.dims.clone();
            return Err(NodeError::Shape {
                name: name(),
                declared,
                computed: want.dims,
            });
        }
        if value.batched != want.batched {
            return Err(NodeError::Batched {
                name: name(),
                declared: value.batched,
            });
        }
    }
    Ok(cx.read())
}

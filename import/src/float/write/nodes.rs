//! The ONNX nodes of each operator of the float graph.

use requant_model::ops::Window;

use super::proto::{Attribute, longs};
use super::{ExportError, Form, Writer, range};
use crate::float::graph::{BinaryKind, Clamp, Interpolation, Node, Op};
use crate::float::map::{Expr, Unary};
use crate::float::quantized::ActivationQuant;

/// The domain of ONNX Runtime's own operators.
pub(super) const MICROSOFT: &str = "com.microsoft";

impl Writer<'_> {
    /// Writes what node `index` computes; the tensor of its result, which the last node written gives.
    pub(super) fn operator(&mut self, index: usize, node: &Node) -> Result<String, ExportError> {
        let name = self.node_names[index].clone();
        let first = self.operand(index, 0)?;
        Ok(match &node.op {
            // Constants are initializers where they are read.
            Op::Constant(_) => first,
            Op::Conv(conv) => self.conv(index, conv, first)?,
            Op::Gemm(gemm) => self.gemm(index, gemm, first)?,
            Op::MatMul(clamp) => {
                let second = self.operand(index, 1)?;
                let product = self.push(&name, "MatMul", vec![first, second], Vec::new());
                self.clamp(&name, product, *clamp)
            }
            Op::Binary(binary) => {
                let second = self.operand(index, 1)?;
                let op = match binary.kind {
                    BinaryKind::Sum => "Add",
                    BinaryKind::Difference => "Sub",
                    BinaryKind::Product => "Mul",
                };
                let result = self.push(&name, op, vec![first, second], Vec::new());
                self.clamp(&name, result, binary.clamp)
            }
            Op::Map(map) => {
                let x = match self.form {
                    Form::File => first,
                    // A clip of nothing tells the lowering that a function begins.
                    Form::Native => self.clip(&format!("{name}/map"), first, Clamp::NONE),
                };
                self.expression(&name, &map.expr, &x)
            }
            Op::MaxPool(window) => {
                let attributes = self.window(index, window);
                let lowest = self.lowest(index, node);
                let first = self.limits(&format!("{name}/from"), first, lowest);
                let largest = self.push(&name, "MaxPool", vec![first], attributes);
                self.limits(&format!("{name}/limits"), largest, lowest)
            }
            Op::AveragePool(pool) => {
                let mut attributes = self.window(index, &pool.window);
                let include = i64::from(pool.include_pad);
                attributes.push(Attribute::Int("count_include_pad", include));
                let mean = self.push(&name, "AveragePool", vec![first], attributes);
                self.clamp(&name, mean, pool.clamp)
            }
            Op::Mean { axes, clamp } => {
                let axes = self.numbers(&format!("{name}/axes"), &longs(axes));
                let keep = vec![Attribute::Int("keepdims", 1)];
                let mean = self.push(&name, "ReduceMean", vec![first, axes], keep);
                self.clamp(&name, mean, *clamp)
            }
            Op::Concat { axis } => {
                let mut parts = vec![first];
                for operand in 1..node.inputs.len() {
                    parts.push(self.operand(index, operand)?);
                }
                let axis = vec![Attribute::Int("axis", *axis as i64)];
                self.push(&name, "Concat", parts, axis)
            }
            Op::Slice(ranges) => self.slice(index, ranges, first),
            Op::Gather { axis, picks } => {
                let picks = self.numbers(&format!("{name}/picks"), &longs(picks));
                let axis = vec![Attribute::Int("axis", *axis as i64)];
                self.push(&name, "Gather", vec![first, picks], axis)
            }
            Op::Pad {
                before,
                after,
                value,
            } => {
                let pads = longs(&[&before[..], &after[..]].concat());
                let pads = self.numbers(&format!("{name}/pads"), &pads);
                let value = self.real_tensor(&format!("{name}/value"), &[], &[*value]);
                self.push(&name, "Pad", vec![first, pads, value], Vec::new())
            }
            Op::Reshape => {
                let dims = self.result_dims(node).to_vec();
                self.reshape(&name, index, first, &dims)
            }
            Op::Transpose(perm) => {
                let perm = vec![Attribute::sizes("perm", perm)];
                self.push(&name, "Transpose", vec![first], perm)
            }
            Op::Resize(resize) => {
                let size = self.numbers(&format!("{name}/size"), &longs(&resize.size));
                let mode = match resize.interpolation {
                    Interpolation::Nearest => "nearest",
                    Interpolation::Linear => "linear",
                };
                let text =
                    |name: &str, value: &str| Attribute::Text(name.to_owned(), value.to_owned());
                let attributes = vec![
                    Attribute::sizes("axes", &[2, 3]),
                    text("mode", mode),
                    text("coordinate_transformation_mode", &resize.coordinates),
                    text("nearest_mode", &resize.nearest),
                ];
                let inputs = vec![first, String::new(), String::new(), size];
                self.push(&name, "Resize", inputs, attributes)
            }
            Op::Softmax { axis, flat, log } => {
                let kind = if *log { "LogSoftmax" } else { "Softmax" };
                let dims = self.result_dims(node).to_vec();
                let of = vec![Attribute::Int("axis", *axis as i64)];
                if !flat || axis + 1 == dims.len() {
                    return Ok(self.push(&name, kind, vec![first], of));
                }
                let row = dims[*axis..].iter().product();
                let rows = [&dims[..*axis], &[row]].concat();
                let joined = self.reshape(&format!("{name}/rows"), index, first, &rows);
                let softmax = self.push(&name, kind, vec![joined], of);
                self.reshape(&format!("{name}/shape"), index, softmax, &dims)
            }
        })
    }

    /// A Reshape to `dims`, the leading one left open where it holds the batch of node `index`.
    fn reshape(&mut self, name: &str, index: usize, x: String, dims: &[usize]) -> String {
        let batched = self.graph.value(self.graph.nodes[index].output).batched;
        let mut dims = longs(dims);
        if let (true, Some(first)) = (batched, dims.first_mut()) {
            *first = -1;
        }
        let shape = self.numbers(&format!("{name}/dims"), &dims);
        self.push(name, "Reshape", vec![x, shape], Vec::new())
    }

    /// Only axes that are not taken whole, so that the batch is left alone.
    fn slice(&mut self, index: usize, ranges: &[(usize, i64, usize)], x: String) -> String {
        let name = self.node_names[index].clone();
        let node = &self.graph.nodes[index];
        let dims = node.inputs.first().map(|&v| &self.graph.value(v).dims);
        let whole = |axis: usize, range: &(usize, i64, usize)| {
            let dim = dims.and_then(|dims| dims.get(axis));
            Some(*range) == dim.map(|&d| (0, 1, d))
        };
        let (mut starts, mut ends) = (Vec::new(), Vec::new());
        let (mut axes, mut steps) = (Vec::new(), Vec::new());
        for (axis, range) in ranges.iter().enumerate() {
            let &(start, step, count) = range;
            if whole(axis, range) {
                continue;
            }
            let end = start as i64 + step * count as i64;
            starts.push(start as i64);
            // A negative end counts from the back: before the first element is further than any.
            ends.push(if end < 0 { i64::MIN + 1 } else { end });
            axes.push(axis as i64);
            steps.push(step);
        }
        if axes.is_empty() {
            return x;
        }
        let mut inputs = vec![x];
        for (what, values) in [
            ("starts", starts),
            ("ends", ends),
            ("axes", axes),
            ("steps", steps),
        ] {
            inputs.push(self.numbers(&format!("{name}/{what}"), &values));
        }
        self.push(&name, "Slice", inputs, Vec::new())
    }

    /// The attributes of a window over the first operand of node `index`.
    pub(super) fn window(&self, index: usize, window: &Window) -> Vec<Attribute> {
        let node = &self.graph.nodes[index];
        let rank = node
            .inputs
            .first()
            .map_or(4, |&value| self.graph.value(value).dims.len());
        // A line has no height.
        let first = if rank == 3 { 1 } else { 0 };
        let [top, left, bottom, right] = window.pads;
        let pads = if rank == 3 {
            vec![left, right]
        } else {
            vec![top, left, bottom, right]
        };
        let mut attributes = vec![
            Attribute::sizes("kernel_shape", &window.kernel[first..]),
            Attribute::sizes("strides", &window.strides[first..]),
            Attribute::sizes("pads", &pads),
        ];
        // ONNX Runtime's integer pools know no dilations, not even those of 1.
        if window.dilations != [1, 1] {
            attributes.push(Attribute::sizes("dilations", &window.dilations[first..]));
        }
        if window.ceil {
            attributes.push(Attribute::Int("ceil_mode", 1));
        }
        attributes
    }

    /// A clamp as Relu or Clip; nothing where there is no limit.
    pub(super) fn clamp(&mut self, name: &str, x: String, clamp: Clamp) -> String {
        if clamp == Clamp::NONE {
            return x;
        }
        let name = format!("{name}/clamp");
        if self.narrow_result {
            return self.limits(&name, x, clamp);
        }
        if clamp == Clamp::RELU {
            return self.push(&name, "Relu", vec![x], Vec::new());
        }
        self.clip(&name, x, clamp)
    }

    /// A clamp before a quantization to 4 bits: ONNX Runtime 1.32 does not load a file in which one follows
    /// a Relu or Clip.
    fn limits(&mut self, name: &str, mut x: String, clamp: Clamp) -> String {
        for (op, bound) in [("Max", clamp.lo), ("Min", clamp.hi)] {
            if bound.is_finite() {
                let name = format!("{name}/{op}");
                let bound = self.real_tensor(&format!("{name}/bound"), &[], &[bound]);
                x = self.push(&name, op, vec![x, bound], Vec::new());
            }
        }
        x
    }

    /// The lowest real of a 4-bit result in a file for others, none elsewhere: ONNX Runtime 1.32 gives a pool
    /// between 4-bit quantizations its operand's integers and then has no such pool, but not where a `Max`
    /// that changes nothing stands between them.
    fn lowest(&self, index: usize, node: &Node) -> Clamp {
        let result = self.quant(node.output).filter(|_| self.narrow_result);
        let lowest = |quant: ActivationQuant| {
            let lowest = range(quant).0 - quant.quant.zero_point;
            lowest as f32 * quant.quant.scale
        };
        let of_result = result.map_or(f32::NEG_INFINITY, lowest);
        let operand = self.quantized.operand(index, 0);
        Clamp {
            lo: of_result.min(operand.map_or(f32::INFINITY, lowest)),
            hi: f32::INFINITY,
        }
    }

    fn clip(&mut self, name: &str, x: String, clamp: Clamp) -> String {
        let mut inputs = vec![x];
        for (what, bound) in [("min", clamp.lo), ("max", clamp.hi)] {
            inputs.push(if bound.is_infinite() {
                String::new()
            } else {
                self.real_tensor(&format!("{name}/{what}"), &[], &[bound])
            });
        }
        if inputs.last().is_some_and(String::is_empty) {
            inputs.pop();
        }
        self.push(name, "Clip", inputs, Vec::new())
    }

    /// A map's expression over the tensor `x`.
    fn expression(&mut self, name: &str, expr: &Expr, x: &str) -> String {
        match expr {
            Expr::Input => x.to_owned(),
            Expr::Constant(tensor) => {
                self.real_tensor(&format!("{name}/constant"), &tensor.dims, &tensor.data)
            }
            Expr::Unary(unary, inner) => {
                let inner = self.expression(&format!("{name}/of"), inner, x);
                self.unary(name, unary, inner)
            }
            Expr::Binary(op, a, b) => {
                let a = self.expression(&format!("{name}/a"), a, x);
                let b = self.expression(&format!("{name}/b"), b, x);
                self.push(name, op, vec![a, b], Vec::new())
            }
        }
    }

    fn unary(&mut self, name: &str, unary: &Unary, x: String) -> String {
        let float = |name: &str, open| {
            let found = unary.floats.iter().find(|(own, _)| own == name);
            found.map_or(open, |&(_, value)| value)
        };
        if unary.op == "Clip" && !unary.microsoft {
            let clamp = Clamp {
                lo: float("min", f32::NEG_INFINITY),
                hi: float("max", f32::INFINITY),
            };
            if self.narrow_result {
                return self.limits(name, x, clamp);
            }
            return self.clip(name, x, clamp);
        }
        if unary.op == "Relu" && self.narrow_result {
            return self.limits(name, x, Clamp::RELU);
        }
        let floats = unary
            .floats
            .iter()
            .map(|(name, value)| Attribute::Float(name.clone(), *value));
        let texts = unary
            .texts
            .iter()
            .map(|(name, value)| Attribute::Text(name.clone(), value.clone()));
        let attributes = floats.chain(texts).collect();
        let result = self.push(name, &unary.op, vec![x], attributes);
        if let (true, Some(node)) = (unary.microsoft, self.nodes.last_mut()) {
            node.domain = Some(MICROSOFT.to_owned());
        }
        result
    }
}

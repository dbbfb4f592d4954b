//! Convolutions and products with weights: integers behind DequantizeLinear, then bias, residual and
//! clamp.

use requant_numerics::DType;

use super::proto::{self, Attribute};
use super::{ExportError, Form, Writer};
use crate::float::graph::{Clamp, Conv, Gemm, Tensor};
use crate::float::quantized::LayerQuant;

/// How a layer's weights lie in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// As the float weights, output channels first.
    Channels,
    /// `[K, N]`: output channels last.
    Columns,
}

impl<'q> Writer<'q> {
    /// The integers of a layer, checked against its reals.
    fn layer(
        &self,
        index: usize,
        (weights, bias): (&Tensor, &[f32]),
    ) -> Result<&'q LayerQuant, ExportError> {
        let name = || self.graph.nodes[index].name.clone();
        let layer = self.quantized.layers.get(index).and_then(Option::as_ref);
        let layer = layer.ok_or_else(|| ExportError::Real {
            layer: name(),
            missing: "weights",
        })?;
        let channels = weights.dims.first().copied().unwrap_or(0);
        let k = weights.data.len() / channels.max(1);
        let groups = layer.groups.as_ref();
        let rows = groups.map_or(0, |g| channels * k.div_ceil(g.size.max(1)));
        for (what, expected, got) in [
            ("weights", weights.data.len(), layer.weights.len()),
            ("scales", channels, layer.scales.len()),
            ("biases", bias.len(), layer.bias.len()),
            ("biases", channels, layer.bias.len()),
            (
                "group multipliers",
                rows,
                groups.map_or(0, |g| g.multipliers.len()),
            ),
        ] {
            if expected != got {
                return Err(ExportError::Count {
                    layer: name(),
                    what,
                    expected,
                    got,
                });
            }
        }
        let narrow = matches!(
            layer.dtype,
            DType::I8 | DType::I4 | DType::I2 | DType::Ternary | DType::Binary
        );
        let fits = |&w: &i8| layer.dtype.contains(i64::from(w));
        if !narrow || !layer.weights.iter().all(fits) {
            return Err(ExportError::Weights {
                layer: name(),
                dtype: layer.dtype,
            });
        }
        Ok(layer)
    }

    /// Weights as initializers behind a DequantizeLinear; the tensor of the reals.
    fn weights(
        &mut self,
        index: usize,
        layer: &LayerQuant,
        dims: &[usize],
        order: Order,
    ) -> Result<String, ExportError> {
        let name = self.node_names[index].clone();
        let dtype = if layer.dtype == DType::I8 {
            DType::I8
        } else {
            DType::I4
        };
        let channels = layer.scales.len();
        let k = layer.weights.len() / channels.max(1);
        let (dims, values) = match order {
            Order::Channels => (dims.to_vec(), layer.weights.clone()),
            Order::Columns => (vec![k, channels], turned(&layer.weights, channels, k)),
        };
        let channel_axis = match order {
            Order::Channels => 0,
            Order::Columns => 1,
        };
        let mut attributes = vec![Attribute::Int("axis", channel_axis)];
        let mut scales = (vec![channels], layer.scales.clone());
        if let (Some(groups), Form::File) = (&layer.groups, self.form) {
            let count = groups.multipliers.len() / channels.max(1);
            let scaled: Vec<f32> = groups
                .multipliers
                .iter()
                .enumerate()
                .map(|(i, &u)| layer.scales[i / count.max(1)] * f32::from(u))
                .collect();
            scales = match order {
                Order::Channels => (vec![channels, count], scaled),
                Order::Columns => (vec![count, channels], turned(&scaled, channels, count)),
            };
            attributes = vec![
                Attribute::Int("axis", 1 - channel_axis),
                Attribute::Int("block_size", groups.size as i64),
            ];
        }
        let integers = self.names.unique(&format!("{name}/weight"));
        let values = values.into_iter().map(i32::from);
        let tensor = proto::integers(integers.clone(), dtype, &dims, values);
        self.initializers.extend(tensor);
        let scales = self.real_tensor(&format!("{name}/weight_scale"), &scales.0, &scales.1);
        let node = format!("{integers}/dequantize");
        Ok(self.push(
            &node,
            "DequantizeLinear",
            vec![integers, scales],
            attributes,
        ))
    }

    /// The bias as 32-bit integers behind a DequantizeLinear; none where it is all zeros.
    fn bias(&mut self, index: usize, layer: &LayerQuant) -> Result<Option<String>, ExportError> {
        let graph = self.graph;
        let node = &graph.nodes[index];
        let Some(x) = self.quantized.operand(index, 0) else {
            return Err(ExportError::Real {
                layer: node.name.clone(),
                missing: "activations",
            });
        };
        if layer.bias.iter().all(|&b| b == 0) {
            return Ok(None);
        }
        let name = self.node_names[index].clone();
        let integers = self.names.unique(&format!("{name}/bias"));
        let values = layer.bias.iter().copied();
        let count = [layer.bias.len()];
        let tensor = proto::integers(integers.clone(), DType::I32, &count, values);
        self.initializers.extend(tensor);
        let scales: Vec<f32> = layer.scales.iter().map(|s| x.quant.scale * s).collect();
        let scales = self.real_tensor(&format!("{name}/bias_scale"), &count, &scales);
        let node = format!("{integers}/dequantize");
        let axis = vec![Attribute::Int("axis", 0)];
        Ok(Some(self.push(
            &node,
            "DequantizeLinear",
            vec![integers, scales],
            axis,
        )))
    }

    pub(super) fn conv(
        &mut self,
        index: usize,
        conv: &Conv,
        x: String,
    ) -> Result<String, ExportError> {
        let name = self.node_names[index].clone();
        let layer = self.layer(index, (&conv.weights, &conv.bias))?;
        if layer.groups.is_some() && self.form == Form::File {
            let layer = self.graph.nodes[index].name.clone();
            return Err(ExportError::Groups { layer });
        }
        let mut dims = conv.weights.dims.clone();
        let mut attributes = self.window(index, &conv.window);
        if let (4, Some(&value)) = (dims.len(), self.graph.nodes[index].inputs.first())
            && self.graph.value(value).dims.len() == 3
        {
            dims.remove(2);
        }
        attributes.push(Attribute::Int("group", conv.groups as i64));
        let mut inputs = vec![x, self.weights(index, layer, &dims, Order::Channels)?];
        inputs.extend(self.bias(index, layer)?);
        let product = self.push(&name, "Conv", inputs, attributes);
        self.finish(index, product, (conv.residual, conv.clamp))
    }

    pub(super) fn gemm(
        &mut self,
        index: usize,
        gemm: &Gemm,
        x: String,
    ) -> Result<String, ExportError> {
        let name = self.node_names[index].clone();
        let layer = self.layer(index, (&gemm.weights, &gemm.bias))?;
        let rank = self.result_dims(&self.graph.nodes[index]).len();
        let dims = &gemm.weights.dims;
        let product = if rank == 2 {
            let mut inputs = vec![x, self.weights(index, layer, dims, Order::Channels)?];
            inputs.extend(self.bias(index, layer)?);
            self.push(&name, "Gemm", inputs, vec![Attribute::Int("transB", 1)])
        } else {
            let weights = self.weights(index, layer, dims, Order::Columns)?;
            let bias = self.bias(index, layer)?;
            let product = self.push(&name, "MatMul", vec![x, weights], Vec::new());
            match bias {
                Some(bias) => {
                    let node = format!("{name}/biased");
                    self.push(&node, "Add", vec![product, bias], Vec::new())
                }
                None => product,
            }
        };
        self.finish(index, product, (gemm.residual, gemm.clamp))
    }

    /// Residual and clamp.
    fn finish(
        &mut self,
        index: usize,
        mut product: String,
        (residual, clamp): (bool, Clamp),
    ) -> Result<String, ExportError> {
        let name = self.node_names[index].clone();
        if residual {
            let other = self.operand(index, 1)?;
            let node = format!("{name}/sum");
            product = self.push(&node, "Add", vec![product, other], Vec::new());
        }
        Ok(self.clamp(&name, product, clamp))
    }
}

/// `[rows, columns]` as `[columns, rows]`.
fn turned<T: Copy>(values: &[T], rows: usize, columns: usize) -> Vec<T> {
    let at = |i: usize| values[i % rows * columns + i / rows];
    (0..values.len()).map(at).collect()
}

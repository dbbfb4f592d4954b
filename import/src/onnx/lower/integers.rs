//! Operators on integers that no DequantizeLinear reads first: Clip and Relu of the integers themselves.

use requant_model::Affine;
use requant_numerics::table;

use super::value::{Clamp, Lowered, Mapped, Placed};
use super::{Lowering, edges::PLAIN};
use crate::onnx::elem::Elem;
use crate::onnx::error::Reason;
use crate::onnx::model::Node;

impl<'m> Lowering<'m> {
    /// Integers limited to an interval.
    pub(super) fn clamp_integers(
        &mut self,
        node: &'m Node,
        source: &Placed,
        clamp: Clamp,
    ) -> Lowered<()> {
        let value = self.builder.get(source.id).clone();
        if !value.dtype.is_quantized() {
            let (tensor, elem) = (node.required(0)?.to_owned(), Elem::Known(value.dtype));
            return Err(Reason::Type { tensor, elem }.into());
        }
        let quant: Affine = value.quant.unwrap_or(PLAIN);
        self.ensure_quant(source, quant)?;
        let bytes = table::from_fn(value.dtype, |q| clamp.apply(q as f32) as i32);
        let name = node.output(0).unwrap_or_default();
        let placed = self.map_bytes(source, value.dtype, quant, &bytes, name)?;
        self.define(node, 0, Mapped::Integer(placed, None));
        Ok(())
    }
}

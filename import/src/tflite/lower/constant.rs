//! Constant tensors: as operands, as weights, and as lists of numbers that steer an operator.

use requant_model::ops::{Constant, Op};
use requant_model::{Tensor, ValueId};
use requant_numerics::DType;

use super::{Lower, byte_type};
use crate::tflite::error::Reason;
use crate::tflite::schema::ElementType;

/// Most numbers in a list that steers an operator.
const LONGEST_LIST: usize = 64;

impl<'a> Lower<'a> {
    /// The bytes of a constant.
    fn data(&self, index: usize) -> Result<&'a [u8], Reason> {
        self.tensor(index).data.ok_or_else(|| Reason::NotConstant {
            tensor: self.tensor(index).name.clone(),
        })
    }

    /// A type that the operator does not take for this tensor.
    pub(super) fn wrong_type(&self, index: usize) -> Reason {
        Reason::Type {
            tensor: self.tensor(index).name.clone(),
            elements: self.tensor(index).elements,
        }
    }

    /// A short list of integers.
    pub(super) fn list(&self, index: usize) -> Result<Vec<i64>, Reason> {
        let data = self.data(index)?;
        let values: Vec<i64> = match self.tensor(index).elements {
            ElementType::I32 => {
                let values = data.as_chunks().0.iter().take(LONGEST_LIST + 1);
                values.map(|b| i32::from_le_bytes(*b).into()).collect()
            }
            ElementType::I64 => {
                let values = data.as_chunks().0.iter().take(LONGEST_LIST + 1);
                values.map(|b| i64::from_le_bytes(*b)).collect()
            }
            ElementType(_) => return Err(self.wrong_type(index)),
        };
        if values.len() > LONGEST_LIST {
            return Err(Reason::Shapes {
                a: self.tensor(index).dims.clone(),
                b: vec![LONGEST_LIST],
            });
        }
        Ok(values)
    }

    /// The one 8-bit integer of a constant.
    pub(super) fn single(&self, index: usize) -> Result<i32, Reason> {
        let (dtype, _) = self.byte(index)?;
        match self.data(index)? {
            [byte] if dtype.is_signed() => Ok(i32::from(*byte as i8)),
            [byte] => Ok(i32::from(*byte)),
            _ => Err(Reason::Shapes {
                a: self.tensor(index).dims.clone(),
                b: vec![1],
            }),
        }
    }

    /// A bias of 32-bit integers, one an output channel.
    pub(super) fn bias(&mut self, index: usize, channels: usize) -> Result<String, Reason> {
        if self.tensor(index).elements != ElementType::I32 {
            return Err(self.wrong_type(index));
        }
        let data = self.data(index)?;
        let base = self.tensor(index).name.clone();
        let dims = &self.tensor(index).dims;
        if dims.iter().product::<usize>() != channels {
            return Err(Reason::Shapes {
                a: dims.clone(),
                b: vec![channels],
            });
        }
        self.builder.tensor(&base, &[channels], |dims| {
            Tensor::new(DType::I32, dims, data.to_vec())
        })
    }

    /// Weights of 8 or 4 bits in the order `[O, …]`; those of a depthwise convolution have their
    /// output channels last in the file.
    pub(super) fn weights(
        &mut self,
        index: usize,
        dims: &[usize],
        channels_last: bool,
    ) -> Result<String, Reason> {
        let tensor = self.tensor(index);
        let base = tensor.name.clone();
        let data = self.data(index)?;
        // Paid for before it is unpacked.
        self.builder.charge(data.len().saturating_mul(2))?;
        let (dtype, bytes) = match (byte_type(tensor.elements), tensor.elements) {
            (Some(dtype), _) => (dtype, data.to_vec()),
            (None, ElementType::I4) => {
                let count = tensor.dims.iter().product();
                let nibbles = data.iter().flat_map(|b| [b & 15, b >> 4]);
                // The sign is bit 3.
                let signed = nibbles.map(|n| (n ^ 8).wrapping_sub(8));
                (DType::I4, signed.take(count).collect())
            }
            (None, _) => return Err(self.wrong_type(index)),
        };
        let bytes = if channels_last {
            let channels = dims.first().copied().unwrap_or(1).max(1);
            let taps = bytes.len() / channels;
            let place = |i: usize| bytes[i % taps * channels + i / taps];
            (0..bytes.len()).map(place).collect()
        } else {
            bytes
        };
        self.builder.tensor(&base, dims, |dims| {
            if dtype.bits() == 8 {
                return Tensor::new(dtype, dims, bytes);
            }
            let values: Vec<i64> = bytes.iter().map(|&b| i64::from(b as i8)).collect();
            Tensor::from_integers(dtype, dims, &values)
        })
    }

    /// A constant of 8 bits as an operand.
    pub(super) fn constant_value(&mut self, index: usize) -> Result<ValueId, Reason> {
        let data = self.data(index)?;
        let (dtype, quant) = self.byte(index)?;
        let tensor = self.tensor(index);
        let (base, dims) = (tensor.name.clone(), tensor.dims.clone());
        let name = self
            .builder
            .tensor(&format!("{base}/data"), &dims, |dims| {
                Tensor::new(dtype, dims, data.to_vec())
            })?;
        let value = self.named(index, dtype, dims, false, Some(quant));
        let op = Op::Constant(Constant { tensor: name });
        self.builder.node(&base, op, &[], &[value]);
        Ok(value)
    }
}

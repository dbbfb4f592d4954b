//! The parts of the TFLite schema that an integer graph needs, as plain data: field numbers are the
//! published schema's, counts are bounded here, contents stay views of the file.

use std::fmt;

use requant_model::limits;

use super::error::{FormatFault, ImportError, Reason, TensorFault};
use super::flatbuffer::{self, Table, Vector};
use super::operators;

/// Most tensors of a graph.
const MAX_TENSORS: usize = 1 << 15;
/// Most operands or results of an operator.
const MAX_OPERANDS: usize = 1 << 10;
/// Most operands and results of all operators together: many operators may share one list in the file.
const MAX_ALL_OPERANDS: usize = 1 << 18;

/// A model of one graph.
#[derive(Debug)]
pub(super) struct Model<'a> {
    /// What made it says of itself.
    pub(super) description: String,
    pub(super) tensors: Vec<TensorInfo<'a>>,
    pub(super) operators: Vec<Operator>,
    pub(super) inputs: Vec<usize>,
    pub(super) outputs: Vec<usize>,
}

/// A tensor's description; its contents where it is a constant.
#[derive(Debug)]
pub(super) struct TensorInfo<'a> {
    pub(super) name: String,
    pub(super) elements: ElementType,
    pub(super) dims: Vec<usize>,
    pub(super) scales: Vector<'a>,
    pub(super) zero_points: Vector<'a>,
    /// Axis of the scales, where there are several.
    pub(super) axis: i32,
    pub(super) data: Option<&'a [u8]>,
}

/// An operator with its options, or the reason why it is refused.
#[derive(Debug)]
pub(super) struct Operator {
    pub(super) name: String,
    pub(super) kind: Result<Kind, Reason>,
    /// Tensor indices; `None` for an operand that is left out.
    pub(super) inputs: Vec<Option<usize>>,
    pub(super) outputs: Vec<usize>,
}

/// The operators that are read, with their options.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    Conv(WindowOptions),
    DepthwiseConv(WindowOptions),
    FullyConnected {
        activation: Activation,
        weights_format: u8,
    },
    Add(Activation),
    Sub(Activation),
    Mul(Activation),
    AveragePool(WindowOptions),
    MaxPool(WindowOptions),
    Mean,
    Pad,
    PadV2,
    /// Reshape, squeeze and expand dims: the output's shape says all.
    Reshape,
    Softmax {
        beta: f32,
    },
    Logistic,
    Tanh,
    /// A standalone activation.
    Clamp(Activation),
    LeakyRelu {
        alpha: f32,
    },
    HardSwish,
    Quantize,
    Dequantize,
    Concatenation {
        axis: i32,
        activation: Activation,
    },
    Transpose,
    StridedSlice(SliceMasks),
    Slice,
    Split,
    ResizeBilinear(Coordinates),
    ResizeNearest(Coordinates),
}

/// The options of what slides a window.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct WindowOptions {
    /// 0: as many outputs as strides fit the input; 1: windows inside the input only.
    pub(super) padding: u8,
    /// Height, width.
    pub(super) strides: [i32; 2],
    /// Height, width; of a pool only.
    pub(super) filter: [i32; 2],
    /// Height, width.
    pub(super) dilations: [i32; 2],
    pub(super) activation: Activation,
}

/// Bits by axis, of a strided slice.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct SliceMasks {
    pub(super) begin: i32,
    pub(super) end: i32,
    pub(super) ellipsis: i32,
    pub(super) new_axis: i32,
    pub(super) shrink_axis: i32,
    /// Whether the ends count from the beginnings.
    pub(super) offset: bool,
}

/// How a resize finds its sources.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Coordinates {
    pub(super) align_corners: bool,
    pub(super) half_pixel_centers: bool,
}

/// A fused activation, by its number in the schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Activation(pub u8);

impl Activation {
    pub(super) const NONE: Activation = Activation(0);
    pub(super) const RELU: Activation = Activation(1);
    pub(super) const RELU_N1_TO_1: Activation = Activation(2);
    pub(super) const RELU6: Activation = Activation(3);
}

impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 6] = ["NONE", "RELU", "RELU_N1_TO_1", "RELU6", "TANH", "SIGN_BIT"];
        match NAMES.get(usize::from(self.0)) {
            Some(name) => f.write_str(name),
            None => write!(f, "number {}", self.0),
        }
    }
}

/// An element type, by its number in the schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ElementType(pub u8);

impl ElementType {
    pub(super) const F32: ElementType = ElementType(0);
    pub(super) const I32: ElementType = ElementType(2);
    pub(super) const U8: ElementType = ElementType(3);
    pub(super) const I64: ElementType = ElementType(4);
    pub(super) const I8: ElementType = ElementType(9);
    pub(super) const I4: ElementType = ElementType(17);

    /// Bytes that a shape's elements take, for the types that are read; the largest number there is
    /// where they would take more.
    fn bytes(self, dims: &[usize]) -> Option<usize> {
        let count = dims
            .iter()
            .try_fold(1usize, |count, &dim| count.checked_mul(dim))
            .unwrap_or(usize::MAX);
        Some(match self {
            Self::U8 | Self::I8 => count,
            // Two to a byte, without regard to rows.
            Self::I4 => count.div_ceil(2),
            Self::F32 | Self::I32 => count.saturating_mul(4),
            Self::I64 => count.saturating_mul(8),
            ElementType(_) => return None,
        })
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 21] = [
            "FLOAT32",
            "FLOAT16",
            "INT32",
            "UINT8",
            "INT64",
            "STRING",
            "BOOL",
            "INT16",
            "COMPLEX64",
            "INT8",
            "FLOAT64",
            "COMPLEX128",
            "UINT64",
            "RESOURCE",
            "VARIANT",
            "UINT32",
            "UINT16",
            "INT4",
            "BFLOAT16",
            "INT2",
            "UINT4",
        ];
        match NAMES.get(usize::from(self.0)) {
            Some(name) => f.write_str(name),
            None => write!(f, "number {}", self.0),
        }
    }
}

impl<'a> Model<'a> {
    /// Reads a file.
    ///
    /// # Errors
    /// What does not hold together, counts that are too large, indices that point nowhere.
    pub(super) fn read(file: &'a [u8]) -> Result<Self, ImportError> {
        let root = flatbuffer::root(file)?;
        let version = root.u32(0)?;
        if version != 3 {
            return Err(ImportError::Version(version));
        }
        let graphs = root.vector(2, 4)?;
        let (1, Some(graph)) = (graphs.len(), graphs.tables().next()) else {
            return Err(ImportError::Subgraphs(graphs.len()));
        };
        let graph = graph?;
        let buffers = root.vector(4, 4)?;
        let tensors = graph.vector(0, 4)?;
        at_most("tensors", tensors.len(), MAX_TENSORS)?;
        let tensors: Vec<TensorInfo<'a>> = tensors
            .tables()
            .enumerate()
            .map(|(index, table)| tensor(index, table?, &buffers))
            .collect::<Result<_, ImportError>>()?;
        let port = |what: &'static str, id: usize| {
            let vector = graph.vector(id, 4)?;
            at_most(what, vector.len(), limits::MAX_PORTS)?;
            if vector.len() == 0 {
                return Err(ImportError::NoPorts(what));
            }
            let user = || format!("the list of {what}");
            let find = |index| known(user, "tensor", index, tensors.len());
            vector.i32s().map(i64::from).map(find).collect()
        };
        let (inputs, outputs) = (port("inputs", 1)?, port("outputs", 2)?);
        Ok(Model {
            description: text(root.string(3)?),
            operators: self::operators(&root, &graph, tensors.len())?,
            tensors,
            inputs,
            outputs,
        })
    }
}

fn at_most(what: &'static str, count: usize, limit: usize) -> Result<(), ImportError> {
    if count > limit {
        return Err(ImportError::TooMany { what, count, limit });
    }
    Ok(())
}

fn known(
    user: impl Fn() -> String,
    what: &'static str,
    index: i64,
    count: usize,
) -> Result<usize, ImportError> {
    match usize::try_from(index) {
        Ok(found) if found < count => Ok(found),
        Ok(_) | Err(_) => Err(ImportError::Dangling {
            user: user(),
            what,
            index,
            count,
        }),
    }
}

/// Text of the file, not longer than a name may be.
fn text(bytes: &[u8]) -> String {
    let bytes = &bytes[..bytes.len().min(limits::MAX_NAME)];
    String::from_utf8_lossy(bytes).into_owned()
}

fn tensor<'a>(
    index: usize,
    table: Table<'a>,
    buffers: &Vector<'a>,
) -> Result<TensorInfo<'a>, ImportError> {
    let name = text(table.string(3)?);
    let fault = |fault| ImportError::Tensor {
        index,
        name: name.clone(),
        fault,
    };
    let shape = table.vector(0, 4)?;
    let shape: Vec<i32> = shape.i32s().take(limits::MAX_RANK + 1).collect();
    let dims: Option<Vec<usize>> = shape.iter().map(|&d| usize::try_from(d).ok()).collect();
    let Some(dims) = dims.filter(|dims| dims.len() <= limits::MAX_RANK) else {
        return Err(fault(TensorFault::Shape(shape)));
    };
    if table.bool(5)? {
        return Err(fault(TensorFault::Variable));
    }
    if table.table(6)?.is_some() {
        return Err(fault(TensorFault::Sparse));
    }
    let user = || format!("tensor {index} '{name}'");
    let buffer = known(user, "buffer", i64::from(table.u32(2)?), buffers.len())?;
    let buffer = buffers.table(buffer)?;
    // Offset 1 marks contents that follow the flatbuffer in files of more than 2 GiB.
    if buffer.u64(1)? != 0 || table.u32(10)? != 0 {
        return Err(fault(TensorFault::External));
    }
    let data = buffer.vector(0, 1)?.bytes();
    let elements = ElementType(table.u8(1, 0)?);
    if !data.is_empty()
        && let Some(expected) = elements.bytes(&dims)
        && expected != data.len()
    {
        let got = data.len();
        return Err(fault(TensorFault::Length { expected, got }));
    }
    let quantization = table.table(4)?;
    let (scales, zero_points, axis) = match &quantization {
        Some(table) => (table.vector(2, 4)?, table.vector(3, 8)?, table.i32(6, 0)?),
        None => (Vector::empty(4), Vector::empty(8), 0),
    };
    let extent = usize::try_from(axis).ok().and_then(|axis| dims.get(axis));
    let matches = match scales.len() {
        0 | 1 => true,
        n => extent == Some(&n),
    };
    let balanced = zero_points.len() == scales.len() || zero_points.len() <= 1;
    if !matches || !balanced {
        return Err(fault(TensorFault::Quantization {
            scales: scales.len(),
            zero_points: zero_points.len(),
            axis,
        }));
    }
    Ok(TensorInfo {
        elements,
        dims,
        scales,
        zero_points,
        axis,
        data: (!data.is_empty()).then_some(data),
        name,
    })
}

fn operators(
    root: &Table<'_>,
    graph: &Table<'_>,
    tensors: usize,
) -> Result<Vec<Operator>, ImportError> {
    let codes = root.vector(1, 4)?;
    at_most("operator codes", codes.len(), limits::MAX_NODES)?;
    let list = graph.vector(3, 4)?;
    at_most("operators", list.len(), limits::MAX_NODES)?;
    let mut all = 0usize;
    let one = |(index, table): (usize, Result<Table<'_>, FormatFault>)| {
        let table = table?;
        let user = || format!("operator {index}");
        let code = known(user, "operator code", table.u32(0)?.into(), codes.len())?;
        let code = codes.table(code)?;
        // Numbers past 127 stand in the newer field alone.
        let old = i32::from(code.u8(0, 0)? as i8);
        let builtin = code.i32(3, 0)?.max(old);
        let (inputs, outputs) = (table.vector(1, 4)?, table.vector(2, 4)?);
        at_most("operands of an operator", inputs.len(), MAX_OPERANDS)?;
        at_most("results of an operator", outputs.len(), MAX_OPERANDS)?;
        all += inputs.len() + outputs.len();
        at_most("operands and results", all, MAX_ALL_OPERANDS)?;
        let input = |index: i32| match index {
            -1 => Ok(None),
            index => known(user, "tensor", index.into(), tensors).map(Some),
        };
        let output = |index: i32| known(user, "tensor", index.into(), tensors);
        Ok(Operator {
            name: operators::name(builtin, &text(code.string(1)?)),
            kind: operators::kind(builtin, table.u8(3, 0)?, table.table(4)?)?,
            inputs: inputs.i32s().map(input).collect::<Result<_, _>>()?,
            outputs: outputs.i32s().map(output).collect::<Result<_, _>>()?,
        })
    };
    list.tables().enumerate().map(one).collect()
}

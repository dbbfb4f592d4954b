//! What makes two steps of plans take the same time: operation, shapes, types and everything fused into
//! them, but not the numbers that they compute with.

use requant_numerics::Scheme;
use requant_runtime::plan::step::{Join, StepOp};
use requant_runtime::plan::{Buffer, BufferId, Plan, Step};
use serde::{Deserialize, Serialize};

/// A step, as a table of latencies knows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepKey {
    /// Operation: `conv`, `add`, ….
    pub op: String,
    /// Shapes of one sample of what it reads, with types (`u8[1,56,56,64]`); a layer's first operand
    /// without type, which is its precision's.
    pub inputs: Vec<String>,
    /// Shapes and types of what it writes.
    pub outputs: Vec<String>,
    /// Kernel (height, width), of a window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<[usize; 2]>,
    /// Strides (height, width), of a window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strides: Option<[usize; 2]>,
    /// Dilations (height, width), of a window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dilations: Option<[usize; 2]>,
    /// Padding (top, left, bottom, right), of a window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pads: Option<[usize; 4]>,
    /// Groups of a convolution.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<usize>,
    /// What is done to the accumulator, first to last: the rounding, a sum, a table.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub epilogue: Vec<String>,
}

impl StepKey {
    /// Whether two steps differ at most in the types of what they write and join, and in a table at the end.
    /// Those change a step's time little, so one will do where the other was not measured.
    pub fn resembles(&self, other: &StepKey) -> bool {
        let shapes = |mine: &[String], theirs: &[String]| {
            mine.len() == theirs.len()
                && mine
                    .iter()
                    .zip(theirs)
                    .all(|(a, b)| extents(a) == extents(b))
        };
        let kinds = |key: &StepKey| -> Vec<String> {
            let kinds = key.epilogue.iter().map(|part| part.split(' ').next());
            let kinds = kinds.map(|kind| kind.unwrap_or_default().to_owned());
            kinds.filter(|kind| kind != "table").collect()
        };
        self.op == other.op
            && shapes(&self.inputs, &other.inputs)
            && shapes(&self.outputs, &other.outputs)
            && (
                self.kernel,
                self.strides,
                self.dilations,
                self.pads,
                self.groups,
            ) == (
                other.kernel,
                other.strides,
                other.dilations,
                other.pads,
                other.groups,
            )
            && kinds(self) == kinds(other)
    }

    /// The key of a step of a plan.
    pub fn of(plan: &Plan, step: &Step) -> Self {
        let typed = |id: &BufferId| {
            let buffer = plan.buffer(*id);
            format!("{}{}", buffer.dtype, shape(buffer))
        };
        let mut key = StepKey {
            op: step.op.name().to_owned(),
            inputs: step.inputs.iter().map(typed).collect(),
            outputs: step.outputs.iter().map(typed).collect(),
            kernel: None,
            strides: None,
            dilations: None,
            pads: None,
            groups: None,
            epilogue: Vec::new(),
        };
        let window = match &step.op {
            StepOp::Conv(conv) => {
                if let (Some(first), Some(id)) = (key.inputs.first_mut(), step.inputs.first()) {
                    *first = shape(plan.buffer(*id));
                }
                key.groups = Some(conv.groups);
                let epilogue = &conv.epilogue;
                key.epilogue.extend(
                    epilogue
                        .requantize
                        .as_ref()
                        .map(|requantize| rounding(&requantize.scheme)),
                );
                key.epilogue
                    .extend(epilogue.join.as_ref().map(|join| match join {
                        Join::Residual { buffer, .. } => format!("residual {}", typed(buffer)),
                        Join::Add { buffer, .. } => format!("add {}", typed(buffer)),
                    }));
                key.epilogue
                    .extend(epilogue.table.as_ref().map(|_| "table".to_owned()));
                Some(&conv.window)
            }
            StepOp::MaxPool(window) | StepOp::AveragePool { window, .. } => Some(window),
            StepOp::Rescale { requantize, .. }
            | StepOp::Mean { requantize, .. }
            | StepOp::ResizeLinear { requantize, .. } => {
                key.epilogue.push(rounding(&requantize.scheme));
                None
            }
            StepOp::MatMul { requantize, .. } => {
                key.epilogue
                    .extend(requantize.as_ref().map(|r| rounding(&r.scheme)));
                None
            }
            StepOp::Transpose { perm } => {
                key.epilogue.push(format!("axes {perm:?}"));
                None
            }
            StepOp::Quantize { .. }
            | StepOp::Dequantize { .. }
            | StepOp::EdgeThresholds { .. }
            | StepOp::Add(_)
            | StepOp::Mul(_)
            | StepOp::Table { .. }
            | StepOp::Concat { .. }
            | StepOp::Slice { .. }
            | StepOp::Pad { .. }
            | StepOp::ResizeNearest { .. }
            | StepOp::Softmax { .. }
            | StepOp::IntegerSoftmax(_)
            | StepOp::LayerNorm(_)
            | StepOp::QLinearSoftmax { .. }
            | StepOp::TfliteSoftmax { .. }
            | StepOp::ArgMax { .. }
            | StepOp::DynamicQuantize
            | StepOp::ScaleAccumulator { .. } => None,
        };
        if let Some(window) = window {
            key.kernel = Some(window.kernel);
            key.strides = Some(window.strides);
            key.dilations = Some(window.dilations);
            key.pads = Some(window.pads);
        }
        key
    }
}

/// An operand without its type.
fn extents(operand: &str) -> &str {
    operand.find('[').map_or(operand, |at| &operand[at..])
}

fn shape(buffer: &Buffer) -> String {
    let extents: Vec<String> = buffer.dims.iter().map(usize::to_string).collect();
    format!("[{}]", extents.join(","))
}

fn rounding(scheme: &Scheme) -> String {
    let name = match scheme {
        Scheme::Rhu { .. } => "rhu",
        Scheme::Shift { .. } => "shift",
        Scheme::F32Rne { .. } => "f32_rne",
        Scheme::TfliteDouble { .. } => "tflite_double",
        Scheme::F64Away { .. } => "f64_away",
        Scheme::Thresholds { .. } => "thresholds",
    };
    name.to_owned()
}

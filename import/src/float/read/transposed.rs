//! Transposed convolutions as plain ones: output pixels that lie a stride apart are a convolution of the input
//! with every stride-th weight, so one convolution with stride² times the channels makes them all, and moves sort them.

use std::sync::Arc;

use requant_model::limits::MAX_WINDOW;
use requant_model::ops::Window;

use crate::float::graph::{Clamp, Conv, Op, Tensor, ValueId};
use crate::onnx::Reason;
use crate::onnx::lower::Lowered;
use crate::onnx::model::Node;

use super::reader::Reader;

/// One spatial axis of a transposed convolution: element `f = i·stride + k·dilation` of the uncut result sums
/// what weight `k` makes of input `i`.
#[derive(Clone, Copy, Debug)]
struct Axis {
    input: usize,
    kernel: usize,
    stride: usize,
    dilation: usize,
    /// First element of the uncut result that is kept.
    cut: usize,
    /// Elements kept.
    output: usize,
}

impl Axis {
    /// Elements of the plain convolution's window: inputs that one element sums at most.
    fn taps(self) -> usize {
        (self.kernel - 1) * self.dilation / self.stride + 1
    }

    /// Elements of the plain convolution's result: `f div stride` of what is kept, and one an input at least.
    fn positions(self) -> usize {
        (self.cut + self.output)
            .div_ceil(self.stride)
            .max(self.input)
    }

    /// The weight that tap `tap` of the elements with `f mod stride = phase` takes.
    fn weight(self, phase: usize, tap: usize) -> Option<usize> {
        // A window runs towards later inputs, `f` towards later weights of earlier ones.
        let offset = phase + (self.taps() - 1 - tap) * self.stride;
        let weight = offset / self.dilation;
        (offset.is_multiple_of(self.dilation) && weight < self.kernel).then_some(weight)
    }

    /// Zeros before and after the input.
    fn pads(self) -> [usize; 2] {
        [self.taps() - 1, self.positions() - self.input]
    }
}

impl<'m> Reader<'m> {
    pub(super) fn conv_transpose(&mut self, node: &'m Node) -> Lowered<()> {
        let (x, dims) = self.image(node)?;
        let weights = self.tensor(node, 1)?;
        let fits = weights.dims.len() == dims.len() && weights.dims[0] == dims[1];
        if !fits || weights.data.is_empty() {
            let (a, b) = (dims, weights.dims);
            return Err(Reason::Shapes { a, b }.into());
        }
        let stated = node.int("group")?.unwrap_or(1);
        let groups = usize::try_from(stated)
            .ok()
            .filter(|&g| g > 0 && dims[1].is_multiple_of(g))
            .ok_or(Reason::Attribute {
                name: "group",
                value: vec![stated],
            })?;
        let mut axes = axes(node, &dims[2..], &weights.dims[2..])?;
        if axes.len() == 1 {
            let line = Axis {
                input: 1,
                kernel: 1,
                stride: 1,
                dilation: 1,
                cut: 0,
                output: 1,
            };
            axes.insert(0, line);
        }
        let [rows, columns] = axes[..] else {
            return Err(Reason::Shape(dims.iter().map(|&d| d as i64).collect()).into());
        };
        let channels = weights.dims[1] * groups;
        let bias = self.bias(node, channels)?;
        let ([top, bottom], [left, right]) = (rows.pads(), columns.pads());
        let phases = rows.stride * columns.stride;
        let (inputs, taps) = (dims[1] / groups, rows.taps() * columns.taps());
        self.folder.pay(&[channels, phases, inputs, taps])?;
        let conv = Conv {
            weights: Arc::new(plain_weights(&weights, groups, rows, columns)),
            bias: bias.iter().flat_map(|&b| vec![b; phases]).collect(),
            window: Window {
                kernel: [rows.taps(), columns.taps()],
                strides: [1; 2],
                pads: [top, left, bottom, right],
                dilations: [1; 2],
                ceil: false,
            },
            groups,
            residual: false,
            clamp: Clamp::NONE,
        };
        let (h, w) = (rows.positions(), columns.positions());
        let all = vec![dims[0], channels * phases, h, w];
        let shape = |full: Vec<usize>| {
            if dims.len() == 3 {
                [&full[..2], &full[3..]].concat()
            } else {
                full
            }
        };
        let value = self.emit(node, Op::Conv(conv), &[x], shape(all))?;
        let spread = self.spread(node, value, (rows, columns), dims.len() == 3)?;
        self.swap_names(value, spread, "spread");
        self.define_value(node, spread);
        Ok(())
    }

    /// Sorts channels `(channel, row phase, column phase)` into the picture and cuts it.
    fn spread(
        &mut self,
        node: &'m Node,
        mut x: ValueId,
        (rows, columns): (Axis, Axis),
        line: bool,
    ) -> Lowered<ValueId> {
        let before = self.dims(x);
        let channels = before[1] / (rows.stride * columns.stride);
        let (h, w) = (rows.positions(), columns.positions());
        let (sh, sw) = (rows.stride, columns.stride);
        if sh * sw > 1 {
            let (split, perm, joined) = if line {
                let split = vec![before[0], channels, sw, w];
                (split, vec![0, 1, 3, 2], vec![before[0], channels, w * sw])
            } else {
                let split = vec![before[0], channels, sh, sw, h, w];
                let joined = vec![before[0], channels, h * sh, w * sw];
                (split, vec![0, 1, 4, 2, 5, 3], joined)
            };
            x = self.emit_part(node, "split", Op::Reshape, &[x], split)?;
            x = self.permuted(node, x, "sorted", perm)?;
            x = self.emit_part(node, "joined", Op::Reshape, &[x], joined)?;
        }
        let mut ranges: Vec<_> = self.dims(x).iter().map(|&d| (0, 1, d)).collect();
        let last = ranges.len() - 1;
        ranges[last] = (columns.cut, 1, columns.output);
        if !line {
            ranges[last - 1] = (rows.cut, 1, rows.output);
        }
        self.sliced(node, x, "cut", ranges)
    }
}

/// `[I, O/groups, KH, KW]` as `[O·phases, I/groups, TH, TW]`.
fn plain_weights(weights: &Tensor, groups: usize, rows: Axis, columns: Axis) -> Tensor {
    let (inputs, outputs) = (weights.dims[0] / groups, weights.dims[1]);
    let taps = [rows.taps(), columns.taps()];
    let phases = rows.stride * columns.stride;
    let mut data = Vec::with_capacity(groups * outputs * phases * inputs * taps[0] * taps[1]);
    for output in 0..groups * outputs {
        for phase in 0..phases {
            for input in 0..inputs {
                let row = (output / outputs * inputs + input) * outputs + output % outputs;
                for tap in 0..taps[0] * taps[1] {
                    let at = rows
                        .weight(phase / columns.stride, tap / taps[1])
                        .zip(columns.weight(phase % columns.stride, tap % taps[1]));
                    data.push(at.map_or(0.0, |(kh, kw)| {
                        weights.data[(row * rows.kernel + kh) * columns.kernel + kw]
                    }));
                }
            }
        }
    }
    Tensor {
        dims: vec![groups * outputs * phases, inputs, taps[0], taps[1]],
        data,
    }
}

/// The spatial axes of a node, by ONNX's rules.
fn axes(node: &Node, extents: &[usize], kernel: &[usize]) -> Result<Vec<Axis>, Reason> {
    let spatial = extents.len();
    let list = |name: &'static str, count: usize| -> Result<Option<Vec<usize>>, Reason> {
        let Some(values) = node.ints(name)? else {
            return Ok(None);
        };
        let numbers: Option<Vec<usize>> = values
            .iter()
            .map(|&v| usize::try_from(v).ok().filter(|&v| v <= 1 << 20))
            .collect();
        let numbers = numbers.filter(|numbers| numbers.len() == count);
        numbers.map(Some).ok_or_else(|| Reason::Attribute {
            name,
            value: values.to_vec(),
        })
    };
    let strides = list("strides", spatial)?.unwrap_or_else(|| vec![1; spatial]);
    let dilations = list("dilations", spatial)?.unwrap_or_else(|| vec![1; spatial]);
    let extra = list("output_padding", spatial)?.unwrap_or_else(|| vec![0; spatial]);
    let shape = list("output_shape", spatial)?;
    let pads = list("pads", 2 * spatial)?.unwrap_or_else(|| vec![0; 2 * spatial]);
    let mode = node.text("auto_pad", "NOTSET")?;
    if let Some(stated) = list("kernel_shape", spatial)?
        && stated != kernel
    {
        let (a, b) = (stated, kernel.to_vec());
        return Err(Reason::Shapes { a, b });
    }
    let mut axes = Vec::new();
    for axis in 0..spatial {
        let (stride, dilation) = (strides[axis], dilations[axis]);
        for (name, value) in [
            ("strides", stride),
            ("dilations", dilation),
            ("kernel_shape", kernel[axis]),
        ] {
            if value == 0 || value > MAX_WINDOW {
                let value = vec![value as i64];
                return Err(Reason::Attribute { name, value });
            }
        }
        let full = stride * (extents[axis] - 1) + (kernel[axis] - 1) * dilation + 1 + extra[axis];
        // What is cut in total, where the node states the result's extent.
        let wanted = match (&shape, mode) {
            (Some(shape), _) => Some(shape[axis]),
            (None, "SAME_UPPER" | "SAME_LOWER") => Some(extents[axis] * stride),
            (None, "NOTSET" | "" | "VALID") => None,
            (None, mode) => {
                let (name, value) = ("auto_pad", mode.to_owned());
                return Err(Reason::Mode { name, value });
            }
        };
        let [before, after] = match wanted {
            Some(wanted) => {
                let total = full.saturating_sub(wanted);
                let before = if mode == "SAME_UPPER" {
                    total / 2
                } else {
                    total - total / 2
                };
                [before, total - before]
            }
            None if mode == "VALID" => [0, 0],
            None => [pads[axis], pads[axis + spatial]],
        };
        let output = full
            .checked_sub(before + after)
            .filter(|&output| output > 0 && wanted.is_none_or(|wanted| wanted == output));
        let output = output.ok_or_else(|| Reason::Attribute {
            name: "pads",
            value: vec![before as i64, after as i64],
        })?;
        axes.push(Axis {
            input: extents[axis],
            kernel: kernel[axis],
            stride,
            dilation,
            cut: before,
            output,
        });
    }
    Ok(axes)
}

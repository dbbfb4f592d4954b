//! Windows of convolutions and pools: attributes to explicit padding, and tensors `[N, C, L]` or
//! `[N, C, H, W]` to the graph's `[N, H, W, C]`.

use requant_model::ValueId;
use requant_model::limits::MAX_WINDOW;
use requant_model::ops::Window;

use super::Lowering;
use super::value::{Lowered, Placed, Pool};
use crate::onnx::error::Reason;
use crate::onnx::model::Node;

impl Lowering<'_> {
    /// The window of a node over a tensor of `dims`, the extents of the kernel given or taken from
    /// the node.
    pub(super) fn window(
        &self,
        node: &Node,
        dims: &[usize],
        kernel: Option<&[usize]>,
        channels_last: bool,
    ) -> Lowered<Pool> {
        let rank = dims.len();
        if !(3..=4).contains(&rank) {
            let tensor = node.input(0).unwrap_or_default().to_owned();
            return Err(Reason::Rank { tensor, rank }.into());
        }
        let spatial = rank - 2;
        let kernel: Vec<usize> = match (kernel, node.ints("kernel_shape")?) {
            (Some(kernel), Some(stated)) if numbers("kernel_shape", stated, spatial)? != kernel => {
                return Err(Reason::Shapes {
                    a: kernel.to_vec(),
                    b: dims.to_vec(),
                }
                .into());
            }
            (Some(kernel), _) => kernel.to_vec(),
            (None, Some(stated)) => numbers("kernel_shape", stated, spatial)?,
            (None, None) => {
                return Err(Reason::MissingAttribute {
                    name: "kernel_shape",
                }
                .into());
            }
        };
        let list = |name, default: usize| match node.ints(name)? {
            Some(values) => numbers(name, values, spatial),
            None => Ok(vec![default; spatial]),
        };
        let (strides, dilations) = (list("strides", 1)?, list("dilations", 1)?);
        for (name, values) in [
            ("kernel_shape", &kernel),
            ("strides", &strides),
            ("dilations", &dilations),
        ] {
            if values.iter().any(|&v| v == 0 || v > MAX_WINDOW) {
                let value = values.iter().map(|&v| v as i64).collect();
                return Err(Reason::Attribute { name, value }.into());
            }
        }
        let first = if channels_last { 1 } else { 2 };
        let extents = &dims[first..first + spatial];
        let pads = match node.text("auto_pad", "NOTSET")? {
            "NOTSET" | "" => match node.ints("pads")? {
                Some(pads) => numbers("pads", pads, 2 * spatial)?,
                None => vec![0; 2 * spatial],
            },
            "VALID" => vec![0; 2 * spatial],
            mode @ ("SAME_UPPER" | "SAME_LOWER") => {
                let upper = mode == "SAME_UPPER";
                same_pads(extents, &kernel, &strides, &dilations, upper)
            }
            mode => {
                return Err(Reason::Mode {
                    name: "auto_pad",
                    value: mode.to_owned(),
                }
                .into());
            }
        };
        let ceil = node.int("ceil_mode")?.unwrap_or(0) != 0;
        // A line is an image of height 1.
        let two = |values: &[usize]| match values {
            [h, w] => [*h, *w],
            _ => [1, values[0]],
        };
        let pads = match pads[..] {
            [top, left, bottom, right] => [top, left, bottom, right],
            _ => [0, pads[0], 0, pads[1]],
        };
        let window = Window {
            kernel: two(&kernel),
            strides: two(&strides),
            pads,
            dilations: two(&dilations),
            ceil,
        };
        Ok(Pool {
            window,
            channels_last,
        })
    }

    /// A tensor `[N, C, L]` or `[N, C, H, W]` as `[N, H, W, C]`.
    pub(super) fn image(&mut self, source: &Placed, channels_last: bool) -> Lowered<ValueId> {
        let rank = source.perm.len();
        let perm = image_perm(rank, channels_last);
        let id = self.builder.arranged(source, &perm);
        if rank == 4 {
            return Ok(id);
        }
        let dims = self.builder.get(id).dims.clone();
        let [n, l, c] = dims[..] else {
            let tensor = self.builder.get(id).name.clone();
            return Err(Reason::Rank { tensor, rank }.into());
        };
        Ok(self.builder.reshaped(id, vec![n, 1, l, c]))
    }

    /// A value `[N, H, W, C]` as the tensor of `rank` that it stands for.
    pub(super) fn unimage(&mut self, id: ValueId, rank: usize, channels_last: bool) -> Placed {
        let perm = image_perm(rank, channels_last);
        let dims = self.builder.get(id).dims.clone();
        match dims[..] {
            [n, _, l, c] if rank == 3 => Placed {
                id: self.builder.reshaped(id, vec![n, l, c]),
                perm,
            },
            _ => Placed { id, perm },
        }
    }

    /// The dims of a value `[N, H, W, C]` after a window.
    pub(super) fn pooled_dims(&self, id: ValueId, window: &Window) -> Lowered<Vec<usize>> {
        let dims = &self.builder.get(id).dims;
        let none = || Reason::Shapes {
            a: dims.clone(),
            b: window.kernel.to_vec(),
        };
        let h = window
            .output(0, dims[1])
            .filter(|&h| h > 0)
            .ok_or_else(none)?;
        let w = window
            .output(1, dims[2])
            .filter(|&w| w > 0)
            .ok_or_else(none)?;
        Ok(vec![dims[0], h, w, dims[3]])
    }
}

/// The dims of an ONNX tensor after a window, with `channels` channels where they change.
pub(super) fn pooled(
    dims: &[usize],
    pool: &Pool,
    channels: Option<usize>,
) -> Result<Vec<usize>, Reason> {
    let mut out = dims.to_vec();
    let (spatial, channel) = if pool.channels_last {
        (1, dims.len() - 1)
    } else {
        (2, 1)
    };
    let axes: &[usize] = if dims.len() == 3 { &[1] } else { &[0, 1] };
    for (i, &axis) in axes.iter().enumerate() {
        let extent = pool
            .window
            .output(axis, dims[spatial + i])
            .filter(|&extent| extent > 0);
        out[spatial + i] = extent.ok_or_else(|| Reason::Shapes {
            a: dims.to_vec(),
            b: pool.window.kernel.to_vec(),
        })?;
    }
    out[channel] = channels.unwrap_or(dims[channel]);
    Ok(out)
}

/// The order of ONNX axes in an image (or line) with the channels last.
fn image_perm(rank: usize, channels_last: bool) -> Vec<usize> {
    match (rank, channels_last) {
        (4, false) => vec![0, 2, 3, 1],
        (3, false) => vec![0, 2, 1],
        (rank, _) => (0..rank).collect(),
    }
}

fn numbers(name: &'static str, values: &[i64], count: usize) -> Result<Vec<usize>, Reason> {
    let numbers: Option<Vec<usize>> = values.iter().map(|&v| usize::try_from(v).ok()).collect();
    numbers
        .filter(|numbers| numbers.len() == count && numbers.iter().all(|&v| v <= MAX_WINDOW))
        .ok_or_else(|| Reason::Attribute {
            name,
            value: values.to_vec(),
        })
}

/// Padding that gives `ceil(extent/stride)` windows; the odd element goes to the end, or to the
/// beginning for SAME_LOWER.
fn same_pads(
    extents: &[usize],
    kernel: &[usize],
    strides: &[usize],
    dilations: &[usize],
    upper: bool,
) -> Vec<usize> {
    let totals: Vec<usize> = (0..extents.len())
        .map(|i| {
            let span = (kernel[i] - 1) * dilations[i] + 1;
            let covered = (extents[i].div_ceil(strides[i]) - 1) * strides[i] + span;
            covered.saturating_sub(extents[i])
        })
        .collect();
    let small = totals.iter().map(|t| t / 2);
    let large = totals.iter().map(|t| t - t / 2);
    if upper {
        small.chain(large).collect()
    } else {
        large.chain(small).collect()
    }
}

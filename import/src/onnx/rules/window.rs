//! Windows of convolutions and pools: attributes to explicit padding.

use requant_model::limits::MAX_WINDOW;
use requant_model::ops::Window;

use crate::onnx::error::Reason;
use crate::onnx::model::Node;

/// A window over a tensor `[N, C, L]` or `[N, C, H, W]` (or with the channels last).
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pool {
    /// The window; height 1 for `[N, C, L]`.
    pub(crate) window: Window,
    /// Whether channels are the ONNX tensor's last axis.
    pub(crate) channels_last: bool,
}

/// The window of a node over a tensor of `dims`, the extents of the kernel given or taken from
/// the node.
pub(crate) fn window(
    node: &Node,
    dims: &[usize],
    kernel: Option<&[usize]>,
    channels_last: bool,
) -> Result<Pool, Reason> {
    let rank = dims.len();
    if !(3..=4).contains(&rank) {
        let tensor = node.input(0).unwrap_or_default().to_owned();
        return Err(Reason::Rank { tensor, rank });
    }
    let spatial = rank - 2;
    let kernel: Vec<usize> = match (kernel, node.ints("kernel_shape")?) {
        (Some(kernel), Some(stated)) if numbers("kernel_shape", stated, spatial)? != kernel => {
            return Err(Reason::Shapes {
                a: kernel.to_vec(),
                b: dims.to_vec(),
            });
        }
        (Some(kernel), _) => kernel.to_vec(),
        (None, Some(stated)) => numbers("kernel_shape", stated, spatial)?,
        (None, None) => {
            return Err(Reason::MissingAttribute {
                name: "kernel_shape",
            });
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
            return Err(Reason::Attribute { name, value });
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
            });
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

/// The dims of an ONNX tensor after a window, with `channels` channels where they change.
pub(crate) fn pooled(
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

/// Pads to the end of the last window, which then counts in full although `ceil_mode` lets it reach
/// past the stated padding.
pub(crate) fn pad_to_windows(pool: &mut Pool, input: &[usize], output: &[usize]) {
    if !pool.window.ceil {
        return;
    }
    let first = if pool.channels_last { 1 } else { 2 };
    let axes: &[usize] = if input.len() == 3 { &[1] } else { &[0, 1] };
    let window = &mut pool.window;
    for (i, &axis) in axes.iter().enumerate() {
        let span = (window.kernel[axis] - 1) * window.dilations[axis] + 1;
        let reach = (output[first + i] - 1) * window.strides[axis] + span;
        let padded = input[first + i] + window.pads[axis];
        window.pads[axis + 2] = reach.saturating_sub(padded);
    }
    window.ceil = false;
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

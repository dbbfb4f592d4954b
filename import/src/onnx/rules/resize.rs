//! Resize and Upsample: the extents that a node asks for, and where ONNX Runtime takes each output element
//! from.

use crate::onnx::constant::Dim;
use crate::onnx::error::Reason;
use crate::onnx::fold::{Operands, axis_of, operand};
use crate::onnx::lower::{Lowered, Stop};
use crate::onnx::model::Node;

/// The opset from which Resize has coordinate modes.
const COORDINATE_MODES: i64 = 11;
/// Largest output extent.
const MAX_EXTENT: usize = 1 << 20;

/// How coordinates and neighbours are chosen.
#[derive(Debug)]
pub(crate) struct Sampling<'a> {
    pub(crate) coordinates: &'a str,
    pub(crate) nearest: &'a str,
    pub(crate) linear: bool,
}

/// Output extent and scale of every axis.
///
/// The operands after the first must be constants.
pub(crate) fn resize_targets(
    node: &Node,
    dims: &[usize],
    batched: bool,
    operands: &Operands,
) -> Lowered<Vec<(usize, f32)>> {
    let rank = dims.len();
    let axes: Vec<usize> = match node.ints("axes")? {
        Some(axes) => axes
            .iter()
            .map(|&a| axis_of(a, rank))
            .collect::<Result<_, _>>()?,
        None => (0..rank).collect(),
    };
    let mut targets: Vec<(usize, f32)> = dims.iter().map(|&d| (d, 1.0)).collect();
    // Upsample and the first Resize have the scales second, later ones after a region.
    let scales_at = if node.inputs.len() == 2 { 1 } else { 2 };
    let scales = match (node.floats("scales")?, node.input(scales_at)) {
        (Some(scales), _) => scales.to_vec(),
        (None, Some(name)) => {
            let constant = operand(operands, scales_at)?;
            let floats = constant.floats().map(<[f32]>::to_vec);
            floats.ok_or_else(|| Reason::Type {
                tensor: name.to_owned(),
                elem: constant.elem,
            })?
        }
        (None, None) => Vec::new(),
    };
    let bad = |name, value| Stop::from(Reason::Attribute { name, value });
    if !scales.is_empty() {
        if scales.len() != axes.len() {
            return Err(bad("scales", vec![scales.len() as i64]));
        }
        for (&axis, &scale) in axes.iter().zip(&scales) {
            if batched && axis == 0 && scale != 1.0 {
                return Err(Stop::MixesSamples);
            }
            let extent = (dims[axis] as f32 * scale).floor();
            if !(1.0..=MAX_EXTENT as f32).contains(&extent) {
                return Err(Reason::FloatAttribute {
                    name: "scales",
                    value: scale,
                }
                .into());
            }
            targets[axis] = (extent as usize, scale);
        }
        return Ok(targets);
    }
    let constant = operand(operands, 3)?;
    let symbols = constant.symbols().unwrap_or_default();
    let sizes: Vec<i64> = symbols
        .iter()
        .map(|d| {
            let (Dim::Known(size) | Dim::Batch(size)) = *d;
            size
        })
        .collect();
    match node.text("keep_aspect_ratio_policy", "stretch")? {
        "stretch" => {}
        other => {
            let (name, value) = ("keep_aspect_ratio_policy", other.to_owned());
            return Err(Reason::Mode { name, value }.into());
        }
    }
    if sizes.len() != axes.len() {
        return Err(bad("sizes", sizes));
    }
    for (i, (&axis, &size)) in axes.iter().zip(&sizes).enumerate() {
        // Only the batch itself is as large as the batch at every batch size.
        let own = symbols[i] == Dim::Batch(dims[axis] as i64);
        let symbolic = matches!(symbols[i], Dim::Batch(_));
        if symbolic != (batched && axis == 0) || (symbolic && !own) {
            return Err(Stop::MixesSamples);
        }
        let extent = usize::try_from(size)
            .ok()
            .filter(|s| (1..=MAX_EXTENT).contains(s));
        let Some(extent) = extent else {
            return Err(bad("sizes", sizes.clone()));
        };
        targets[axis] = (extent, extent as f32 / dims[axis] as f32);
    }
    Ok(targets)
}

/// How a Resize or Upsample samples.
pub(crate) fn sampling(node: &Node) -> Result<Sampling<'_>, Reason> {
    let linear = match node.text("mode", "nearest")? {
        "nearest" => false,
        "linear" | "bilinear" => true,
        mode => {
            return Err(Reason::Mode {
                name: "mode",
                value: mode.to_owned(),
            });
        }
    };
    if node.int("antialias")?.unwrap_or(0) != 0 {
        return Err(Reason::Attribute {
            name: "antialias",
            value: vec![1],
        });
    }
    let old = node.opset < COORDINATE_MODES || node.op == "Upsample";
    let (coordinates, nearest) = if old {
        ("asymmetric", "floor")
    } else {
        ("half_pixel", "round_prefer_floor")
    };
    Ok(Sampling {
        coordinates: node.text("coordinate_transformation_mode", coordinates)?,
        nearest: node.text("nearest_mode", nearest)?,
        linear,
    })
}

/// The source coordinate of output element `i`.
pub(crate) fn source(
    mode: &str,
    i: usize,
    input: usize,
    output: usize,
    scale: f32,
) -> Result<f32, Reason> {
    let x = i as f32;
    Ok(match mode {
        "half_pixel" => (x + 0.5) / scale - 0.5,
        "pytorch_half_pixel" if output > 1 => (x + 0.5) / scale - 0.5,
        "pytorch_half_pixel" => 0.0,
        "half_pixel_symmetric" => {
            let adjustment = output as f32 / (scale * input as f32);
            let centre = input as f32 / 2.0;
            // ONNX Runtime takes this one mode in f64 from here on.
            let offset = f64::from(centre * (1.0 - adjustment));
            (offset + (f64::from(x) + 0.5) / f64::from(scale) - 0.5) as f32
        }
        "tf_half_pixel_for_nn" => (x + 0.5) / scale,
        "align_corners" if output > 1 => x * (input as f32 - 1.0) / (output as f32 - 1.0),
        "align_corners" => 0.0,
        "asymmetric" => x / scale,
        mode => {
            let name = "coordinate_transformation_mode";
            return Err(Reason::Mode {
                name,
                value: mode.to_owned(),
            });
        }
    })
}

/// The source element of a coordinate.
pub(crate) fn nearest(mode: &str, x: f32) -> Result<f32, Reason> {
    Ok(match mode {
        // Halves go down; everything else to the nearest.
        "round_prefer_floor" => (x - 0.5).ceil(),
        "round_prefer_ceil" => (x + 0.5).floor(),
        "floor" => x.floor(),
        "ceil" => x.ceil(),
        mode => {
            return Err(Reason::Mode {
                name: "nearest_mode",
                value: mode.to_owned(),
            });
        }
    })
}

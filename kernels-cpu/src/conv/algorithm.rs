//! The ways to compute one convolution. All give the same bytes, so which one is taken may be measured.

use core::fmt;

use crate::pack::Panels;
use crate::table::{self, Activations, DepthwiseKernel, Kernel, WeightFormat};
use crate::{Isa, KernelError};

use super::depthwise::Depthwise;
use super::depthwise_rows::DepthwiseByRows;
use super::grouped::Grouped;
use super::lift::Lifted;
use super::pointwise::Pointwise;
use super::stem::Stem;
use super::table_after::TableAfter;
use super::tiled::Tiled;
use super::windows::Windowed;
use super::{Conv, ConvSpec, Engine, Weights, check, fits_sixteen_fold, shift};

/// A way to compute a convolution.
#[derive(Clone, Copy, Debug)]
pub enum Algorithm {
    /// Rows of an image of few channels, to finished bytes.
    Stem,
    /// Rows of groups of few channels, to finished bytes.
    Grouped,
    /// Short rows of a product, to finished bytes.
    Pointwise,
    /// Windows, to finished bytes, by halves of tiles that take turns.
    Turns,
    /// Tiles of a kernel of the table, with weights in its format.
    Tiled(&'static Kernel),
    /// Rows of each channel, to finished bytes.
    DepthwiseByRows(&'static DepthwiseKernel),
    /// Stretches of each channel's pixels.
    Depthwise(&'static DepthwiseKernel),
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Algorithm::Stem => f.write_str("stem"),
            Algorithm::Grouped => f.write_str("groups"),
            Algorithm::Pointwise => f.write_str("points"),
            Algorithm::Turns => f.write_str("turns"),
            Algorithm::Tiled(kernel) => f.write_str(kernel.name),
            Algorithm::DepthwiseByRows(kernel) => write!(f, "rows {}", kernel.name),
            Algorithm::Depthwise(kernel) => write!(f, "stretches {}", kernel.name),
        }
    }
}

impl Conv {
    /// The ways to compute a convolution on an ISA, those that [`Conv::new`] tries first; some may turn out
    /// not to serve ([`Conv::by`]). Plain loops are among them only where nothing else is.
    ///
    /// # Errors
    /// As [`Conv::new`].
    pub fn algorithms(isa: Isa, spec: &ConvSpec<'_>) -> Result<Vec<Algorithm>, KernelError> {
        let signed = check(spec)?;
        let mut algorithms = usual(isa, spec)?;
        if !spec.shape.is_depthwise() {
            let usual = usual_kernel(isa, spec, signed)?;
            let others = table::ladder(isa)
                .iter()
                .flat_map(|&isa| table::kernels().filter(move |kernel| kernel.isa == isa))
                .filter(|kernel| kernel.isa != Isa::Scalar && kernel.name != usual.name)
                .filter(|kernel| takes(kernel, spec, signed));
            algorithms.extend(others.map(Algorithm::Tiled));
            if !Windowed::is_usual(&spec.shape, &spec.output) {
                algorithms.push(Algorithm::Turns);
            }
            if !Pointwise::is_usual(&spec.shape, &spec.output) {
                algorithms.push(Algorithm::Pointwise);
            }
        }
        Ok(algorithms)
    }

    /// Prepares a convolution for one of the ways to compute it; none where that does not serve the shape or
    /// the output.
    ///
    /// # Errors
    /// As [`Conv::new`], and [`KernelError::NoKernel`] when the kernel does not take these operands.
    pub fn by(
        isa: Isa,
        spec: &ConvSpec<'_>,
        algorithm: Algorithm,
    ) -> Result<Option<Conv>, KernelError> {
        let signed = check(spec)?;
        table::usable(isa, true)?;
        let (table, output) = TableAfter::split(isa, &spec.output);
        let spec = &ConvSpec {
            output,
            ..spec.clone()
        };
        let packed =
            matches!(algorithm, Algorithm::Tiled(kernel) if kernel.weights == WeightFormat::I4);
        let lifted = if packed { None } else { Lifted::new(spec) };
        let lifted = lifted.as_ref().map(|lifted| lifted.spec(spec));
        let spec = lifted.as_ref().unwrap_or(spec);
        let engine = match algorithm {
            Algorithm::Stem => Stem::new(isa, spec, signed)?.map(Engine::Stem),
            Algorithm::Grouped => Grouped::new(isa, spec, signed)?.map(Engine::Grouped),
            Algorithm::Pointwise => Pointwise::new(isa, spec, signed)?.map(Engine::Pointwise),
            Algorithm::Turns => Windowed::new(isa, spec, signed)?.map(Engine::Windowed),
            Algorithm::Tiled(kernel) => {
                table::usable(kernel.isa, takes(kernel, spec, signed))?;
                Some(Engine::Tiled(Tiled::new(isa, kernel, spec, signed)?))
            }
            Algorithm::DepthwiseByRows(kernel) => {
                table::usable(kernel.isa, takes_depthwise(kernel, spec, signed))?;
                DepthwiseByRows::new(isa, kernel, spec)?.map(Engine::DepthwiseByRows)
            }
            Algorithm::Depthwise(kernel) => {
                table::usable(kernel.isa, takes_depthwise(kernel, spec, signed))?;
                Some(Engine::Depthwise(Depthwise::new(isa, kernel, spec)?))
            }
        };
        Ok(engine.map(|engine| Conv {
            table,
            ..Conv::prepared(spec, engine)
        }))
    }
}

/// The ways that are tried, in order, where nothing is measured.
pub(super) fn usual(isa: Isa, spec: &ConvSpec<'_>) -> Result<Vec<Algorithm>, KernelError> {
    let signed = check(spec)?;
    table::usable(isa, true)?;
    if !spec.shape.is_depthwise() {
        let kernel = usual_kernel(isa, spec, signed)?;
        let mut usual = vec![Algorithm::Stem, Algorithm::Grouped];
        if Windowed::is_usual(&spec.shape, &spec.output) {
            usual.push(Algorithm::Turns);
        }
        if Pointwise::is_usual(&spec.shape, &spec.output) {
            usual.push(Algorithm::Pointwise);
        }
        usual.push(Algorithm::Tiled(kernel));
        return Ok(usual);
    }
    let kernels = table::ladder(isa)
        .iter()
        .flat_map(|&isa| table::depthwise_kernels().filter(move |kernel| kernel.isa == isa));
    Ok(kernels
        .filter(|kernel| takes_depthwise(kernel, spec, signed))
        .flat_map(|kernel| {
            [
                Algorithm::DepthwiseByRows(kernel),
                Algorithm::Depthwise(kernel),
            ]
        })
        .collect())
}

/// The kernel for tiles that is taken where nothing is measured.
fn usual_kernel(
    isa: Isa,
    spec: &ConvSpec<'_>,
    signed: bool,
) -> Result<&'static Kernel, KernelError> {
    let format = match spec.weights {
        Weights::I8(_) => WeightFormat::I8,
        Weights::I4(_) if fits_sixteen_fold(spec) && stays_packed(isa, spec, signed)? => {
            WeightFormat::I4
        }
        Weights::I4(_) => WeightFormat::I8,
        Weights::I16(_) if shift::fits(&spec.weights) => {
            // Faster where activations are read as bytes too.
            let bytes = table::select(isa, signed, WeightFormat::I8)?;
            if bytes.activations != Activations::Widened {
                return Ok(bytes);
            }
            WeightFormat::I16
        }
        Weights::I16(_) => WeightFormat::I16,
    };
    table::select(isa, signed, format)
}

/// Weights of a channel from which on their bytes count: those of smaller layers stay in a core's cache.
const MANY_WEIGHTS: usize = 512;

/// Whether weights of 4 bits are unpacked by the kernel, again and again, rather than once when they are
/// packed: where they are many, or each is used for one row, and panels of bytes are not as small.
fn stays_packed(isa: Isa, spec: &ConvSpec<'_>, signed: bool) -> Result<bool, KernelError> {
    let shape = &spec.shape;
    let bytes = |format| -> Result<usize, KernelError> {
        let kernel = table::select(isa, signed, format)?;
        let panels = Panels::new(kernel, 1, shape.out_c / shape.groups, kernel.group)?;
        Ok(panels.bytes)
    };
    let large = shape.depth() >= MANY_WEIGHTS || shape.out_h * shape.out_w == 1;
    Ok(large && 4 * bytes(WeightFormat::I4)? <= 3 * bytes(WeightFormat::I8)?)
}

/// Whether a kernel takes the operands of a convolution.
fn takes(kernel: &Kernel, spec: &ConvSpec<'_>, signed: bool) -> bool {
    let weights = match spec.weights {
        Weights::I8(_) => kernel.weights == WeightFormat::I8,
        Weights::I4(_) => match kernel.weights {
            WeightFormat::I8 => true,
            WeightFormat::I4 => fits_sixteen_fold(spec),
            WeightFormat::I16 => false,
        },
        Weights::I16(_) => match kernel.weights {
            WeightFormat::I16 => true,
            WeightFormat::I8 => shift::fits(&spec.weights),
            WeightFormat::I4 => false,
        },
    };
    weights && kernel.takes(signed)
}

/// Whether a depthwise kernel takes the operands of a convolution.
fn takes_depthwise(kernel: &DepthwiseKernel, spec: &ConvSpec<'_>, signed: bool) -> bool {
    let wide = spec.weights.are_wide() && !shift::fits_parts(&spec.weights);
    spec.shape.is_depthwise() && kernel.takes(signed, wide)
}

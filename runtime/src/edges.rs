//! The ports of a plan on the host's kernels: floats to integers on the way in, integers to floats on
//! the way out, planes to pixels where the plan does without that transposition.

use requant_kernels_cpu::{Dequantize, Isa, KernelError, Parallel, Planes, Quantize, Transpose};

use crate::plan::signature::Edge;
use crate::{CompileError, Plan, ports};

/// How an input is written.
#[derive(Debug)]
enum Input {
    /// Its float edge, if it has one, has no kernel.
    Portable,
    /// By its float edge.
    Flat(Quantize),
    /// By its float edge, or its integers as they are, from planes to pixels.
    Planes {
        quantize: Quantize,
        planes: Planes,
        transpose: Transpose,
    },
}

/// The kernels of a plan's ports.
#[derive(Debug)]
pub(crate) struct Edges {
    inputs: Vec<Input>,
    /// Those of types without a kernel run portable.
    outputs: Vec<Option<Dequantize>>,
}

impl Edges {
    /// Prepares the ports of a plan; `planes` says which inputs come in another order than the plan's.
    pub(crate) fn new(
        isa: Isa,
        plan: &Plan,
        planes: Vec<Option<Planes>>,
    ) -> Result<Self, CompileError> {
        let inputs = plan.inputs.iter().zip(planes).map(|(port, planes)| {
            input(isa, port.edge.as_ref(), planes).map_err(|source| CompileError::Kernel {
                step: port.info.name.clone(),
                source,
            })
        });
        let output =
            |edge: &Edge| Dequantize::new(isa, edge.dtype, &[edge.scale], edge.zero_point).ok();
        Ok(Edges {
            inputs: inputs.collect::<Result<_, _>>()?,
            outputs: plan
                .outputs
                .iter()
                .map(|port| output(port.edge.as_ref()?))
                .collect(),
        })
    }

    /// Floats into input port `input`.
    pub(crate) fn quantize(
        &self,
        input: usize,
        edge: &Edge,
        data: &[u8],
        out: &mut [u8],
        pool: &dyn Parallel,
    ) -> Result<(), KernelError> {
        match &self.inputs[input] {
            Input::Planes {
                quantize, planes, ..
            } => quantize.run_planes(*planes, data, out, pool),
            Input::Flat(quantize) => quantize.run(data, out, pool),
            Input::Portable => {
                ports::quantize(edge, data, out);
                Ok(())
            }
        }
    }

    /// Integers into input port `input`.
    pub(crate) fn copy_input(
        &self,
        input: usize,
        data: &[u8],
        out: &mut [u8],
        pool: &dyn Parallel,
    ) -> Result<(), KernelError> {
        if let Input::Planes {
            planes, transpose, ..
        } = &self.inputs[input]
        {
            let images = data.len() / (planes.channels * planes.pixels);
            return transpose.run(images, data, out, pool);
        }
        out.copy_from_slice(data);
        Ok(())
    }

    /// Output port `output` to floats.
    pub(crate) fn dequantize(
        &self,
        output: usize,
        edge: &Edge,
        data: &[u8],
        out: &mut [u8],
        pool: &dyn Parallel,
    ) {
        let kernel = self.outputs.get(output).and_then(Option::as_ref);
        if kernel.is_none_or(|kernel| kernel.run(data, out, pool).is_err()) {
            ports::dequantize(edge, data, out);
        }
    }
}

fn input(isa: Isa, edge: Option<&Edge>, planes: Option<Planes>) -> Result<Input, KernelError> {
    let Some(edge) = edge.filter(|edge| edge.dtype.is_quantized()) else {
        return Ok(Input::Portable);
    };
    let quantize = Quantize::new(isa, edge.dtype, edge.scale, edge.zero_point, edge.rounding)?;
    Ok(match planes {
        Some(planes) => Input::Planes {
            quantize,
            planes,
            transpose: Transpose::new(&[planes.channels, planes.pixels], &[1, 0], 1)?,
        },
        None => Input::Flat(quantize),
    })
}

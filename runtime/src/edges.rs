//! What crosses the ports of a plan, on the host: floats become integers on the way in and integers floats
//! on the way out, planes become pixels where the plan does without that transposition, and values are
//! checked.

use std::ops::Range;

use requant_kernels_cpu::{Dequantize, Isa, KernelError, Parallel, Planes, Quantize, Transpose};

use crate::plan::signature::{Edge, Port};
use crate::{CompileError, ExecError, Form, Plan, ports};

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

    /// The ports of a plan in plain loops.
    pub(crate) fn portable(plan: &Plan) -> Self {
        Edges {
            inputs: plan.inputs.iter().map(|_| Input::Portable).collect(),
            outputs: plan.outputs.iter().map(|_| None).collect(),
        }
    }

    /// Writes samples of input port `input` to their place in its buffer.
    ///
    /// # Errors
    /// An integer outside its type.
    pub(crate) fn write(
        &self,
        plan: &Plan,
        (input, port): (usize, &Port),
        form: Form,
        data: &[u8],
        out: &mut [u8],
        pool: &dyn Parallel,
    ) -> Result<(), ExecError> {
        let failed = |source| ExecError::Kernel {
            step: port.info.name.clone(),
            source,
        };
        if let (Some(edge), Form::Declared) = (&port.edge, form) {
            return self.quantize(input, edge, data, out, pool).map_err(failed);
        }
        let dtype = plan.buffer(port.buffer).dtype;
        if let Some((index, value)) = ports::outside_range(dtype, data) {
            return Err(ExecError::Range {
                name: port.info.name.clone(),
                dtype,
                index,
                value,
            });
        }
        self.copy_input(input, data, out, pool).map_err(failed)
    }

    /// Reads samples of output port `output` from the bytes of its buffer, in which they lie at `range`; a
    /// buffer that is the same for every sample is read again for each.
    pub(crate) fn read(
        &self,
        plan: &Plan,
        (output, port): (usize, &Port),
        form: Form,
        (bytes, range): (&[u8], Range<usize>),
        data: &mut [u8],
        pool: &dyn Parallel,
    ) {
        let read = |bytes: &[u8], data: &mut [u8]| match (&port.edge, form) {
            (Some(edge), Form::Declared) => self.dequantize(output, edge, bytes, data, pool),
            (_, _) => data.copy_from_slice(bytes),
        };
        if plan.buffer(plan.root(port.buffer)).batched {
            read(&bytes[range], data);
        } else {
            let each = port.info.bytes(form).unwrap_or(0).max(1);
            data.chunks_exact_mut(each)
                .for_each(|data| read(bytes, data));
        }
    }

    /// Floats into input port `input`.
    fn quantize(
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
    fn copy_input(
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
    fn dequantize(
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

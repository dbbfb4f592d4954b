//! Admission: a request is compared with the model's signature, number by number and with checked
//! arithmetic, and becomes a [`Job`] whose buffers have exactly the lengths that the engine expects.

use std::time::Duration;

use bytes::Bytes;
use requant_numerics::DType;
use requant_proto::inference::{ModelInferRequest, model_infer_request::InferInputTensor as Input};

use super::{parameters, typed};
use crate::{
    batcher::Job,
    datatype::{self, WIRE_NAMES, wire_name},
    engine::{Form, Signature, TensorInfo, contains_nan, outside_range},
    error::Fault,
};

/// What a request is checked against.
#[derive(Clone, Copy, Debug)]
pub struct Spec<'a> {
    /// The model's tensors.
    pub signature: &'a Signature,
    /// Whether shapes start with the batch.
    pub leading: bool,
    /// Most samples in a request.
    pub max_rows: usize,
}

/// A request that may enter the line.
#[derive(Debug)]
pub struct Admitted {
    /// What is computed.
    pub job: Job,
    /// How the outputs are presented, in the order of [`Job::outputs`].
    pub wanted: Vec<Wanted>,
    /// The caller's own queue timeout.
    pub timeout: Option<Duration>,
}

/// One output that a caller wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its index in the model.
    pub index: usize,
    /// The form in which it is read.
    pub form: Form,
    /// Whether only the best classes are answered, and how many.
    pub classes: Option<usize>,
}

/// Checks a request and prepares it for the line.
///
/// # Errors
/// The first [`Fault`] found: parameters, then inputs in the request's order, then outputs.
pub fn admit(request: &ModelInferRequest, spec: &Spec<'_>) -> Result<Admitted, Fault> {
    let timeout = parameters::of_request(&request.parameters)?;
    check_raw_count(request)?;
    let inputs = &spec.signature.inputs;
    let mut gathered: Vec<Option<(Form, Bytes)>> = vec![None; inputs.len()];
    let mut batch: Option<(&str, usize)> = None;
    for (position, input) in request.inputs.iter().enumerate() {
        let found = inputs.iter().position(|info| info.name == input.name);
        let Some((index, info)) = found.and_then(|i| inputs.get(i).map(|info| (i, info))) else {
            return Err(Fault::UnknownInput {
                input: input.name.clone(),
                expected: names(inputs),
            });
        };
        if gathered.get(index).is_some_and(Option::is_some) {
            return Err(Fault::DuplicateInput {
                input: input.name.clone(),
            });
        }
        parameters::of_input(&input.name, &input.parameters)?;
        let form = form_of(input, info)?;
        let rows = rows_of(input, info, spec)?;
        match batch {
            None => batch = Some((&input.name, rows)),
            Some((first, expected)) if expected != rows => {
                return Err(Fault::BatchMismatch {
                    input: input.name.clone(),
                    first: first.to_owned(),
                    expected,
                    got: rows,
                });
            }
            Some(_) => {}
        }
        let data = contents(request, position, input, info, form, rows)?;
        if form == Form::Declared && info.dtype == DType::F32 && contains_nan(&data) {
            return Err(Fault::Nan {
                input: input.name.clone(),
            });
        }
        let dtype = datatype::of(info, form);
        if let Some((index, value)) = outside_range(dtype, &data) {
            return Err(Fault::ContentsRange {
                input: input.name.clone(),
                datatype: dtype.name(),
                index,
                value,
            });
        }
        if let Some(place) = gathered.get_mut(index) {
            *place = Some((form, data));
        }
    }
    let mut complete = Vec::with_capacity(inputs.len());
    for (info, data) in inputs.iter().zip(gathered) {
        complete.push(data.ok_or_else(|| Fault::MissingInput {
            input: info.name.clone(),
        })?);
    }
    let wanted = outputs(request, spec)?;
    Ok(Admitted {
        job: Job {
            inputs: complete,
            outputs: wanted.iter().map(|want| (want.index, want.form)).collect(),
            rows: batch.map_or(1, |(_, rows)| rows),
        },
        wanted,
        timeout,
    })
}

fn names(tensors: &[TensorInfo]) -> String {
    let names: Vec<String> = tensors
        .iter()
        .map(|info| format!("'{}'", info.name))
        .collect();
    names.join(", ")
}

fn check_raw_count(request: &ModelInferRequest) -> Result<(), Fault> {
    let (expected, got) = (request.inputs.len(), request.raw_input_contents.len());
    if got == 0 || got == expected {
        return Ok(());
    }
    let names: Vec<&str> = request
        .inputs
        .iter()
        .map(|input| input.name.as_str())
        .collect();
    Err(Fault::RawCount {
        expected,
        got,
        inputs: names.join(", "),
    })
}

/// The form that the datatype names: the declared type or the network's own integers.
fn form_of(input: &Input, info: &TensorInfo) -> Result<Form, Fault> {
    let declared = wire_name(info.dtype);
    if input.datatype == declared {
        return Ok(Form::Declared);
    }
    let quantized = info
        .quantized
        .as_ref()
        .map(|quantized| wire_name(quantized.dtype));
    if quantized == Some(input.datatype.as_str()) {
        return Ok(Form::Quantized);
    }
    let expected = match quantized {
        Some(own) => format!("{declared} or {own}"),
        None => declared.to_owned(),
    };
    let (name, got) = (input.name.clone(), input.datatype.clone());
    Err(match WIRE_NAMES.contains(&input.datatype.as_str()) {
        true => Fault::Datatype {
            input: name,
            expected,
            got,
        },
        false => Fault::UnknownDatatype {
            input: name,
            expected,
            got,
        },
    })
}

/// Checks the shape and gives the number of samples.
fn rows_of(input: &Input, info: &TensorInfo, spec: &Spec<'_>) -> Result<usize, Fault> {
    let shape = &input.shape;
    let name = || input.name.clone();
    let mut elements = 1_u64;
    for &dim in shape {
        let Ok(dim) = u64::try_from(dim) else {
            return Err(Fault::NegativeDimension {
                input: name(),
                shape: shape.clone(),
            });
        };
        // Eight bytes an element must still be countable, whatever the datatype.
        elements = match elements
            .checked_mul(dim)
            .filter(|&n| n <= i64::MAX as u64 / 8)
        {
            Some(elements) => elements,
            None => {
                return Err(Fault::ShapeOverflow {
                    input: name(),
                    shape: shape.clone(),
                });
            }
        };
    }
    let own: Vec<i64> = info
        .dims
        .iter()
        .map(|&d| i64::try_from(d).unwrap_or(-1))
        .collect();
    let (rows, sample) = match (spec.leading, shape.split_first()) {
        (true, Some((&rows, sample))) => (u64::try_from(rows).unwrap_or(0), sample),
        (true, None) => (0, shape.as_slice()),
        (false, _) => (1, shape.as_slice()),
    };
    if sample != own.as_slice() || (spec.leading && shape.is_empty()) {
        let dims = spec
            .leading
            .then_some(-1)
            .into_iter()
            .chain(own.iter().copied());
        let dims: Vec<String> = dims.map(|dim| dim.to_string()).collect();
        return Err(Fault::Shape {
            input: name(),
            expected: format!("[{}]", dims.join(", ")),
            got: shape.clone(),
        });
    }
    match usize::try_from(rows)
        .ok()
        .filter(|rows| (1..=spec.max_rows).contains(rows))
    {
        Some(rows) => Ok(rows),
        None => Err(Fault::BatchSize {
            input: name(),
            max: spec.max_rows,
            got: rows,
        }),
    }
}

fn contents(
    request: &ModelInferRequest,
    position: usize,
    input: &Input,
    info: &TensorInfo,
    form: Form,
    rows: usize,
) -> Result<Bytes, Fault> {
    let dtype = datatype::of(info, form);
    // Cannot overflow: the shape was compared with the model's and its product checked.
    let expected = (info.elements() * dtype.size_in_memory() * rows) as u64;
    let typed_contents = input
        .contents
        .as_ref()
        .filter(|contents| typed::is_set(contents));
    if let Some(raw) = request.raw_input_contents.get(position) {
        if typed_contents.is_some() {
            return Err(Fault::BothContents {
                input: input.name.clone(),
            });
        }
        if raw.len() as u64 != expected {
            return Err(Fault::RawSize {
                input: input.name.clone(),
                expected,
                got: raw.len(),
            });
        }
        return Ok(raw.clone());
    }
    let elements = expected / dtype.size_in_memory() as u64;
    typed::bytes(
        &input.name,
        dtype,
        elements,
        typed_contents.unwrap_or(&Default::default()),
    )
}

fn outputs(request: &ModelInferRequest, spec: &Spec<'_>) -> Result<Vec<Wanted>, Fault> {
    let infos = &spec.signature.outputs;
    let whole = |index: usize| Wanted {
        index,
        form: Form::Declared,
        classes: None,
    };
    if request.outputs.is_empty() {
        return Ok((0..infos.len()).map(whole).collect());
    }
    let mut wanted: Vec<Wanted> = Vec::with_capacity(request.outputs.len());
    for output in &request.outputs {
        let name = || output.name.clone();
        let found = infos
            .iter()
            .enumerate()
            .find(|(_, info)| info.name == output.name);
        let Some((index, info)) = found else {
            return Err(Fault::UnknownOutput {
                output: name(),
                expected: names(infos),
            });
        };
        if wanted.iter().any(|other| other.index == index) {
            return Err(Fault::DuplicateOutput { output: name() });
        }
        let asked = parameters::of_output(&output.name, &output.parameters)?;
        let form = match asked.quantized {
            true if info.quantized.is_some() => Form::Quantized,
            true => {
                return Err(Fault::NotQuantized {
                    output: name(),
                    datatype: wire_name(info.dtype),
                });
            }
            false => Form::Declared,
        };
        if asked.classes.is_some() {
            super::classify::check(&output.name, info, spec.leading)?;
        }
        wanted.push(Wanted {
            index,
            form,
            classes: asked.classes,
        });
    }
    Ok(wanted)
}

//! The answer to a request: the outputs it wanted, always as raw contents, because the common Python
//! client reads nothing else.

use std::collections::BTreeMap;

use requant_proto::inference::{
    InferParameter, ModelInferResponse, infer_parameter::ParameterChoice,
    model_infer_response::InferOutputTensor,
};

use super::{Wanted, classify};
use crate::{
    batcher::Done,
    datatype::{self, wire_name},
    engine::{Form, TensorInfo},
    repository::Version,
};

/// Builds the answer; `rows` is the request's number of samples.
pub fn respond(
    version: &Version,
    id: String,
    wanted: &[Wanted],
    rows: usize,
    done: Done,
) -> ModelInferResponse {
    let mut outputs = Vec::with_capacity(wanted.len());
    let mut contents = Vec::with_capacity(wanted.len());
    for (want, data) in wanted.iter().zip(done.outputs) {
        let Some(info) = version.signature().outputs.get(want.index) else {
            continue;
        };
        let leading = version.completed.leading.then(|| extent(rows));
        let dtype = datatype::of(info, want.form);
        let (datatype, shape, data) = match want.classes {
            None => {
                let shape = leading
                    .into_iter()
                    .chain(info.dims.iter().copied().map(extent));
                (wire_name(dtype), shape.collect(), data)
            }
            Some(k) => {
                let labels = version
                    .labels
                    .get(want.index)
                    .map_or(&[][..], Vec::as_slice);
                let (data, k) = classify::best(&data, dtype, rows, k, labels);
                (
                    "BYTES",
                    leading.into_iter().chain([extent(k)]).collect(),
                    data,
                )
            }
        };
        outputs.push(InferOutputTensor {
            name: info.name.clone(),
            datatype: datatype.to_owned(),
            shape,
            parameters: quantization(info, want.form),
            contents: None,
        });
        contents.push(data);
    }
    ModelInferResponse {
        model_name: version.model.clone(),
        model_version: version.number.to_string(),
        id,
        parameters: BTreeMap::new(),
        outputs,
        raw_output_contents: contents,
    }
}

fn extent(dim: usize) -> i64 {
    i64::try_from(dim).unwrap_or(i64::MAX)
}

/// What turns an output's integers back into numbers.
fn quantization(info: &TensorInfo, form: Form) -> BTreeMap<String, InferParameter> {
    let Some(own) = info.quantized.as_ref().filter(|_| form == Form::Quantized) else {
        return BTreeMap::new();
    };
    let parameter = |choice| InferParameter {
        parameter_choice: Some(choice),
    };
    BTreeMap::from([
        (
            "scale".to_owned(),
            parameter(ParameterChoice::DoubleParam(own.scale.into())),
        ),
        (
            "zero_point".to_owned(),
            parameter(ParameterChoice::Int64Param(own.zero_point.into())),
        ),
    ])
}

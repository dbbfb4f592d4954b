//! Request, input and output parameters: the keys that mean something are checked for their type,
//! reserved keys that do not exist are refused, and a caller's own keys pass untouched.

use std::{collections::BTreeMap, time::Duration};

use requant_proto::inference::{InferParameter, infer_parameter::ParameterChoice};

use crate::error::Fault;

type Parameters = BTreeMap<String, InferParameter>;

fn choice<'a>(parameters: &'a Parameters, key: &str) -> Option<&'a InferParameter> {
    parameters.get(key)
}

fn wrong(key: &str, expected: &'static str) -> Fault {
    Fault::Parameter {
        key: key.to_owned(),
        expected,
    }
}

/// A value that must be an integer of zero or more.
fn natural(parameter: &InferParameter, key: &str) -> Result<u64, Fault> {
    let number = match parameter.parameter_choice {
        Some(ParameterChoice::Int64Param(value)) => u64::try_from(value).ok(),
        Some(ParameterChoice::Uint64Param(value)) => Some(value),
        Some(
            ParameterChoice::BoolParam(_)
            | ParameterChoice::StringParam(_)
            | ParameterChoice::DoubleParam(_),
        )
        | None => None,
    };
    number.ok_or_else(|| wrong(key, "an integer, int64_param of 0 or more or uint64_param"))
}

/// Checks a request's parameters and gives its queue timeout, if it brings one.
pub(super) fn of_request(parameters: &Parameters) -> Result<Option<Duration>, Fault> {
    for key in parameters.keys() {
        if key.starts_with("triton_") && key != "triton_enable_empty_final_response" {
            return Err(Fault::ReservedParameter { key: key.clone() });
        }
    }
    if let Some(priority) = choice(parameters, "priority") {
        natural(priority, "priority")?;
    }
    match choice(parameters, "timeout") {
        None => Ok(None),
        Some(timeout) => {
            let micros = natural(timeout, "timeout")?;
            Ok((micros > 0).then(|| Duration::from_micros(micros)))
        }
    }
}

/// Checks an input's parameters.
pub(super) fn of_input(tensor: &str, parameters: &Parameters) -> Result<(), Fault> {
    shared_memory(tensor, parameters)
}

/// What an output's parameters ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct OutputForm {
    /// The network's own integers.
    pub(super) quantized: bool,
    /// The classes with the highest values, this many of them.
    pub(super) classes: Option<usize>,
}

/// Checks an output's parameters.
pub(super) fn of_output(tensor: &str, parameters: &Parameters) -> Result<OutputForm, Fault> {
    shared_memory(tensor, parameters)?;
    let mut form = OutputForm::default();
    if let Some(parameter) = choice(parameters, "quantized") {
        match parameter.parameter_choice {
            Some(ParameterChoice::BoolParam(quantized)) => form.quantized = quantized,
            Some(
                ParameterChoice::Int64Param(_)
                | ParameterChoice::StringParam(_)
                | ParameterChoice::DoubleParam(_)
                | ParameterChoice::Uint64Param(_),
            )
            | None => return Err(wrong(&format!("{tensor}: quantized"), "bool_param")),
        }
    }
    if let Some(parameter) = choice(parameters, "classification") {
        let key = format!("{tensor}: classification");
        let count = natural(parameter, &key)?;
        form.classes = Some(usize::try_from(count).unwrap_or(usize::MAX)).filter(|&k| k > 0);
    }
    Ok(form)
}

fn shared_memory(tensor: &str, parameters: &Parameters) -> Result<(), Fault> {
    match parameters
        .keys()
        .find(|key| key.starts_with("shared_memory_"))
    {
        Some(key) => Err(Fault::SharedMemory {
            tensor: tensor.to_owned(),
            key: key.clone(),
        }),
        None => Ok(()),
    }
}
